// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package broadcast_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/swarm/broadcast"
	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/simnet"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// A world is a swarm whose members know each other as a ring does that is in order: a table made when the member came,
// and its neighbours, kept up to date.
//
//	ring: n0 ── n1 ── n2 ── … ── n0, sorted by ID; table: 8 on each side, and the owners of ID ± 2^i
type world struct {
	t       *testing.T
	net     *simnet.Network
	options func(i int, o *broadcast.Options)
	find    bool
	random  *rand.Rand

	mu    sync.Mutex
	nodes []*node // in the order of the ring
	byID  map[member.ID]*node
	apart func(a, b *node) bool // on different sides of a partition

	counted float64 // copies in results so far
}

type node struct {
	*broadcast.Engine
	contact member.Contact
	port    *simnet.Port
	table   []member.Contact
	leaves  []member.Contact
	started time.Time
	dead    bool
	stop    context.CancelFunc
	done    chan struct{}

	mu        sync.Mutex
	delivered map[wire.Tag][]arrival
	spread    map[wire.Tag]int
	incidents []broadcast.Incident
}

type arrival struct {
	broadcast.Message
	at time.Time
}

func (n *node) arrivals(tag wire.Tag) []arrival {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.delivered[tag]
}

// got returns how often a broadcast was delivered.
func (n *node) got(tag wire.Tag) int { return len(n.arrivals(tag)) }

func (n *node) spreads(tag wire.Tag) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.spread[tag]
}

const listLength = 8

func newWorld(t *testing.T, seed uint64, o simnet.Options) *world {
	t.Helper()
	o.Seed = seed
	return &world{
		t: t, net: simnet.New(o), find: true, random: rand.New(rand.NewPCG(seed, 7)), byID: make(map[member.ID]*node),
		options: func(int, *broadcast.Options) {},
	}
}

// populate adds members 0 to n-1, and gives them their tables when all are there.
func (w *world) populate(n int) {
	for i := range n {
		w.add(simnet.Contact(i), i)
	}
	for _, n := range w.nodes {
		n.table = w.tableOf(n.contact.ID)
	}
}

// add adds a member, but to no table.
func (w *world) add(c member.Contact, i int) *node {
	n := &node{contact: c, started: time.Now(), done: make(chan struct{}), delivered: map[wire.Tag][]arrival{}, spread: map[wire.Tag]int{}}
	port := w.net.Attach(c, nil)
	n.port = port
	o := broadcast.Options{
		Self:       func() member.Contact { return n.contact },
		Table:      func() []member.Contact { w.mu.Lock(); defer w.mu.Unlock(); return n.table },
		Neighbours: func() (before, after []member.Contact) { return w.neighbours(n) },
		Leaves:     func() []member.Contact { w.mu.Lock(); defer w.mu.Unlock(); return n.leaves },
		Transport:  port,
		Deliver: func(m broadcast.Message) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.delivered[m.Tag] = append(n.delivered[m.Tag], arrival{m, time.Now()})
		},
		Spread: func(m broadcast.Message) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.spread[m.Tag]++
		},
		Report: func(i broadcast.Incident) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.incidents = append(n.incidents, i)
		},
		Random: rand.NewPCG(uint64(i), 3),
	}
	if w.find {
		o.Find = w.owner
	}
	w.options(i, &o)
	n.Engine = broadcast.New(o)
	port.Serve(n.Engine)
	ctx, stop := context.WithCancel(w.t.Context())
	n.stop = stop
	go func() {
		defer close(n.done)
		if err := n.Run(ctx); err != nil {
			w.t.Error(err)
		}
	}()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.byID[c.ID] = n
	if !c.Leaf {
		at, _ := slices.BinarySearchFunc(w.nodes, c.ID, func(n *node, id member.ID) int { return n.contact.ID.Compare(id) })
		w.nodes = slices.Insert(w.nodes, at, n)
	}
	return n
}

// stop ends all members; a synctest bubble needs that.
func (w *world) stop() {
	for _, n := range w.byID {
		n.stop()
		<-n.done
	}
}

func (w *world) at(i int) *node { return w.nodes[((i%len(w.nodes))+len(w.nodes))%len(w.nodes)] }

func (w *world) port(id member.ID) *simnet.Port { return w.byID[id].port }

// index returns where the owner of a place is.
func (w *world) index(id member.ID) int {
	at, _ := slices.BinarySearchFunc(w.nodes, id, func(n *node, id member.ID) int { return n.contact.ID.Compare(id) })
	return at
}

func (w *world) tableOf(id member.ID) []member.Contact {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := map[member.ID]bool{id: true}
	var table []member.Contact
	know := func(n *node) {
		if !seen[n.contact.ID] {
			seen[n.contact.ID] = true
			table = append(table, n.contact)
		}
	}
	i := w.index(id)
	for k := 1; k <= listLength; k++ {
		know(w.at(i + k))
		know(w.at(i - k))
	}
	for k := range member.Bits {
		know(w.at(w.index(id.After(k))))
		know(w.at(w.index(id.Before(k))))
	}
	return table
}

// neighbours are the live members beside one, as a ring finds them: without those that have been dead for a second.
func (w *world) neighbours(n *node) (before, after []member.Contact) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := w.index(n.contact.ID)
	for k := 1; k < len(w.nodes) && len(after) < listLength; k++ {
		if m := w.at(i + k); !m.dead && !w.parted(n, m) {
			after = append(after, m.contact)
		}
	}
	for k := 1; k < len(w.nodes) && len(before) < listLength; k++ {
		if m := w.at(i - k); !m.dead && !w.parted(n, m) {
			before = append(before, m.contact)
		}
	}
	return before, after
}

func (w *world) parted(a, b *node) bool { return w.apart != nil && w.apart(a, b) }

// owner is what a lookup finds, after some time.
func (w *world) owner(ctx context.Context, place member.ID) (member.Contact, error) {
	select {
	case <-ctx.Done():
		return member.Contact{}, ctx.Err()
	case <-time.After(40 * time.Millisecond):
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	i := w.index(place)
	for k := range len(w.nodes) {
		if m := w.at(i + k); !m.dead {
			return m.contact, nil
		}
	}
	return member.Contact{}, wire.ErrUnreachable
}

// kill lets members vanish silently. Their neighbours find out after a second.
func (w *world) kill(nodes ...*node) {
	for _, n := range nodes {
		w.net.Kill(n.contact.ID)
		n.stop()
		<-n.done
	}
	time.AfterFunc(time.Second, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, n := range nodes {
			n.dead = true
		}
	})
}

// killed reports whether a member has been killed, as those outside the world know it.
func (w *world) killed(n *node) bool { return !w.net.Alive(n.contact.ID) }

// live returns the members that are alive, leaves too.
func (w *world) live() (list []*node) {
	for _, n := range w.byID {
		if !w.killed(n) {
			list = append(list, n)
		}
	}
	return list
}

// begin begins a broadcast at a member.
func (w *world) begin(n *node, payload string, except ...member.ID) wire.Tag {
	w.t.Helper()
	tag, err := n.Broadcast(w.t.Context(), []byte(payload), except)
	if err != nil {
		w.t.Fatalf("broadcast from %s: %v", n.contact, err)
	}
	return tag
}

// A result is how a broadcast went, among the live members.
type result struct {
	members, reached, more int           // more: that got it more than once
	last                   time.Duration // until the last delivery
	hops                   int           // of the farthest
	copies                 float64       // payloads received per member since the last result
}

func (w *world) result(tag wire.Tag, origin *node, began time.Time) result {
	var r result
	copies := -w.counted
	for _, n := range w.live() {
		if n == origin {
			continue
		}
		r.members++
		copies += float64(n.Stats().Copies)
		got := n.arrivals(tag)
		if len(got) > 0 {
			r.reached++
			r.last = max(r.last, got[0].at.Sub(began))
			r.hops = max(r.hops, got[0].Hops)
		}
		if len(got) > 1 {
			r.more++
		}
	}
	r.copies = copies / float64(max(r.members, 1))
	w.counted += copies
	return r
}

// everyone checks that all live members but the origin got a broadcast once.
func (w *world) everyone(r result) {
	w.t.Helper()
	if r.reached != r.members || r.more != 0 {
		w.t.Errorf("%d of %d members got it, %d more than once", r.reached, r.members, r.more)
	}
}

// inBubble runs a test in a synctest bubble, and stops what it made.
func inBubble(t *testing.T, o simnet.Options, seed uint64, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, seed, o)
		f(t, w)
		w.stop()
	})
}
