// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

var (
	// ErrNoEntry says that no member led into the ring.
	ErrNoEntry = errors.New("no member of the swarm answered")
	// ErrNotFound says that a lookup ended without an owner that proved itself.
	ErrNotFound = errors.New("owner not found")
	// ErrSelf says that a contact is not one for this node: it has another ID.
	ErrSelf = errors.New("not the contact of this node")
	// ErrNoRecords says that the node's options name no store.
	ErrNoRecords = errors.New("the node keeps no records")
)

var _ wire.Handler = (*Node)(nil)

// A Node is one member's part in the ring. It is safe for concurrent use.
type Node struct {
	o     Options
	t     wire.Transport
	count counters
	wake  chan struct{} // of one: there is something to do

	mu        sync.Mutex // guards all following fields; never held while the transport is used
	self      member.Contact
	table     table
	random    *rand.Rand
	bootstrap []member.Contact
	memory    memory
	failed    map[member.ID]time.Time // not to be asked before, though others name them
	behaviour behaviour
	leaves    map[member.ID]*leaf
	hosts     []member.Contact // when self is a leaf
	queue     []task
	busy      map[member.ID]bool // members that a task is for
	changed   time.Time          // when the neighbours last did
	urgent    bool               // a round is due at once
	rounds    int                // so far
	joining   int                // calls of Join under way
	leaving   bool
	fingers   fingers
	handover  handover
}

// New returns a node that knows nobody. t carries its messages; [Node.Handle] has to get those that come in.
func New(self member.Contact, t wire.Transport, o Options) *Node {
	o = o.withDefaults()
	n := &Node{
		o: o, t: t, wake: make(chan struct{}, 1), self: self,
		table:  table{self: self.ID, length: o.Neighbours},
		random: rand.New(o.Random), //nolint:gosec // which members to try first is no secret
		failed: map[member.ID]time.Time{}, leaves: map[member.ID]*leaf{}, busy: map[member.ID]bool{},
	}
	n.addBootstrap(o.Bootstrap)
	return n
}

// Self returns the node's own contact; that of a leaf with the hosts that it has now.
func (n *Node) Self() member.Contact {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.selfLocked()
}

func (n *Node) selfLocked() member.Contact {
	c := n.self
	if c.Leaf {
		c.Hosts = n.hosts[:min(len(n.hosts), member.MaxHosts)]
	}
	return c
}

// SetSelf changes what the node says about itself: its addresses, and whether it can be reached from outside. A node
// that becomes a leaf leaves the ring and attaches to hosts; one that ceases to be a leaf joins it. The ID stays: with
// another one it takes another node ([ErrSelf]).
func (n *Node) SetSelf(c member.Contact) error {
	n.mu.Lock()
	if c.ID != n.self.ID {
		n.mu.Unlock()
		return fmt.Errorf("%w: %s", ErrSelf, c)
	}
	was := n.self
	c.Hosts = nil
	n.self = c
	var farewell wire.Leave
	var told []member.Contact
	switch {
	case c.Leaf && !was.Leaf:
		farewell, told = n.farewellLocked(was)
		n.leaves = map[member.ID]*leaf{}
	case was.Leaf && !c.Leaf:
		n.hosts = nil
	}
	n.changed, n.urgent = time.Now(), true
	n.mu.Unlock()
	for _, m := range told {
		n.t.Cast(m, farewell)
	}
	n.kick()
	return nil
}

// Learn tells the node of a member that has just proved to be alive: a link to it is up.
func (n *Node) Learn(c member.Contact) {
	if c.Dialect == member.Unknown || c.Leaf || c.Verify(n.o.Binding) != nil {
		return
	}
	rtt := n.t.RTT(c.ID)
	n.mu.Lock()
	n.insertLocked(c, rtt)
	n.mu.Unlock()
	n.kick()
}

// Suspect tells the node that a link to a member broke, or could not be made. The member is asked whether it is there,
// and dropped if it does not say so.
func (n *Node) Suspect(id member.ID) {
	n.mu.Lock()
	if e := n.table.find(id); e != nil && !e.suspect {
		e.suspect = true
		n.queueLocked(task{probe, e.contact})
	}
	delete(n.leaves, id)
	n.mu.Unlock()
	n.kick()
}

// Table returns every live member that the node knows, in ring order from itself.
func (n *Node) Table() []member.Contact {
	n.mu.Lock()
	defer n.mu.Unlock()
	return contacts(n.table.all())
}

// Neighbours returns the members before and after the node, each nearest first.
func (n *Node) Neighbours() (predecessors, successors []member.Contact) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return contacts(n.table.before), contacts(n.table.after)
}

// A Snapshot is what a node knows at one moment.
type Snapshot struct {
	Self                      member.Contact
	Predecessors, Successors  []member.Contact // nearest first
	FingersAhead, FingersBack []Finger         // nearest first
	Leaves                    []member.Contact // that the node is a host of
}

// A Finger is a member between 2^Level and 2^(Level+1) away.
type Finger struct {
	Level   int
	Contact member.Contact
}

// Snapshot returns what the node knows.
func (n *Node) Snapshot() Snapshot {
	n.mu.Lock()
	defer n.mu.Unlock()
	list := func(from []finger) []Finger {
		out := make([]Finger, len(from))
		for i, f := range from {
			out[i] = Finger{f.level, f.entry.contact}
		}
		return out
	}
	return Snapshot{
		Self: n.selfLocked(), Predecessors: contacts(n.table.before), Successors: contacts(n.table.after),
		FingersAhead: list(n.table.forward), FingersBack: list(n.table.backward), Leaves: n.leavesLocked(time.Now()),
	}
}

// neighbours is what the node answers about its part of the ring.
func (n *Node) neighbours() wire.Neighbours {
	n.mu.Lock()
	defer n.mu.Unlock()
	return wire.Neighbours{
		Self: n.selfLocked(), Predecessors: contacts(n.table.before), Successors: contacts(n.table.after),
	}
}

// insertLocked takes a member that has spoken for itself into the table.
func (n *Node) insertLocked(c member.Contact, rtt time.Duration) {
	if c.Leaf || n.self.Leaf && c.Dialect != member.Native || n.leaving || n.behaviour.banned(c.ID, time.Now()) {
		return
	}
	now := time.Now()
	delete(n.failed, c.ID)
	n.memory.forget(c.ID)
	if n.table.insert(c, rtt, now) {
		n.changed, n.urgent = now, n.urgent || n.isNextLocked(c.ID)
		n.handover.due = true
	}
}

// isNextLocked reports whether a member is the node's successor.
func (n *Node) isNextLocked(id member.ID) bool {
	return len(n.table.after) > 0 && n.table.after[0].contact.ID == id
}

// dead drops a member that does not answer any more, and sees to its neighbours: those who died with it are found out
// at the same time, not one after the other.
func (n *Node) dead(id member.ID) {
	n.mu.Lock()
	n.dropLocked(id)
	n.mu.Unlock()
	n.kick()
}

func (n *Node) dropLocked(id member.ID) {
	now := time.Now()
	if len(n.failed) < maxFailed {
		n.failed[id] = now.Add(hearsayRest)
	}
	e := n.table.find(id)
	if e == nil {
		return
	}
	n.count.died.Add(1)
	n.memory.add(e.contact, now)
	n.fingers.lost(&n.table, id)
	if !n.table.remove(id) {
		return
	}
	n.changed, n.urgent, n.handover.due = now, true, true
	for _, list := range [...][]*entry{n.table.after, n.table.before} {
		for _, other := range list {
			if now.Sub(other.heard) > n.o.Interval/2 {
				n.queueLocked(task{probe, other.contact})
			}
		}
	}
}

// heard notes that a member spoke.
func (n *Node) heardLocked(id member.ID) {
	if e := n.table.find(id); e != nil {
		e.heard, e.suspect = time.Now(), false
	}
}

func (n *Node) addBootstrap(list []member.Contact) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range list {
		known := slices.ContainsFunc(n.bootstrap, func(b member.Contact) bool { return b.ID == c.ID && b.Addr() == c.Addr() })
		if !known && c.ID != n.self.ID && len(n.bootstrap) < maxBootstrap {
			n.bootstrap = append(n.bootstrap, c)
		}
	}
}

// kick lets Run look at what there is to do, if there is anything.
func (n *Node) kick() {
	n.mu.Lock()
	idle := len(n.queue) == 0 && !n.urgent
	n.mu.Unlock()
	if idle {
		return
	}
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// call sends a request to a member and checks that the answer is one of type A.
func call[A wire.Message](ctx context.Context, n *Node, to member.Contact, request wire.Message) (A, error) {
	var none A
	answer, err := n.t.Call(ctx, to, request)
	if err != nil {
		return none, err
	}
	a, ok := answer.(A)
	if !ok {
		n.misbehaved(to.ID)
		return none, fmt.Errorf("%s to %s: %w: %s", request.Kind(), to, wire.ErrAnswer, answer.Kind())
	}
	return a, nil
}

// gone reports whether an error says that the member is not there any more, or about to go.
func gone(err error) bool {
	refused, ok := errors.AsType[wire.Refused](err)
	return errors.Is(err, wire.ErrUnreachable) || ok && refused.Code == wire.Leaving
}

// memory holds members that were in the table once: the way back when all neighbours are lost, and to those on the
// other side of a split.
type memory struct{ list []remembered }

type remembered struct {
	contact member.Contact
	since   time.Time
}

func (m *memory) add(c member.Contact, now time.Time) {
	m.forget(c.ID)
	if len(m.list) >= maxRemembered {
		m.list = slices.Delete(m.list, 0, 1)
	}
	m.list = append(m.list, remembered{c, now})
}

func (m *memory) forget(id member.ID) {
	m.list = slices.DeleteFunc(m.list, func(r remembered) bool { return r.contact.ID == id })
}

// nearest orders members by how far they are from a place, clockwise.
func nearest(from member.ID) func(a, b member.Contact) int {
	return func(a, b member.Contact) int { return from.Distance(a.ID).Compare(from.Distance(b.ID)) }
}
