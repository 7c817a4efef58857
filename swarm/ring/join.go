// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// Join takes the node's place in the ring that the entries are in, the first of which that answers leads there. Of an
// entry the address is enough, if the transport can do with that. Without entries the bootstrap members are asked, and
// all entries are remembered as such. When it returns nil, the members on either side know of the node, and lookups find
// it. A leaf does not join: [Node.Run] attaches it to hosts, which Join does once.
//
// Without a deadline in ctx it goes through the entries three times. The error wraps [ErrNoEntry].
func (n *Node) Join(ctx context.Context, entries ...member.Contact) error {
	n.addBootstrap(entries)
	n.mu.Lock()
	n.leaving = false
	n.joining++
	leaf := n.self.Leaf
	if len(entries) == 0 {
		entries = slices.Clone(n.bootstrap)
	}
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		n.joining--
		n.mu.Unlock()
		n.kick()
	}()
	if leaf {
		n.attach(ctx)
		n.mu.Lock()
		defer n.mu.Unlock()
		if len(n.hosts) == 0 {
			return fmt.Errorf("attach to hosts: %w", ErrNoEntry)
		}
		return nil
	}
	if len(entries) == 0 {
		return fmt.Errorf("join: %w: none is known", ErrNoEntry)
	}
	_, patient := ctx.Deadline()
	var errs []error
	for try := 0; patient || try < 3; try++ {
		errs = nil
		for _, e := range entries {
			err := n.joinThrough(ctx, e)
			if err == nil {
				return nil
			}
			errs = append(errs, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("join: %w: %w", ErrNoEntry, errors.Join(append(errs, ctx.Err())...))
		case <-time.After(n.somewhat(n.o.Interval / 4)):
		}
	}
	return fmt.Errorf("join: %w: %w", ErrNoEntry, errors.Join(errs...))
}

// joinThrough takes the node's place in the ring that a member is in.
func (n *Node) joinThrough(ctx context.Context, entry member.Contact) error {
	next, err := n.successorThrough(ctx, entry)
	if err != nil {
		return err
	}
	around, err := n.meet(ctx, next)
	if err != nil {
		return fmt.Errorf("join before %s: %w", next, err)
	}
	// The way to the member that really follows: those before it, as each says, as long as they are nearer.
	for steps := 0; ; steps++ {
		nearer := slices.DeleteFunc(slices.Clone(around.Predecessors), func(c member.Contact) bool {
			return !c.ID.Between(n.table.self, next.ID) || c.Leaf || n.isDisbelieved(c.ID)
		})
		if len(nearer) == 0 {
			break
		}
		if steps >= maxJoinSteps {
			return fmt.Errorf("join through %s: %w: no end of nearer successors", entry, ErrNotFound)
		}
		c := slices.MinFunc(nearer, nearest(n.table.self))
		if a, err := n.meet(ctx, c); err == nil {
			next, around = c, a
		} else if n.disbelieve(c.ID); ctx.Err() != nil {
			return ctx.Err()
		}
	}
	// The member before has to know of the node as well. The others will hear of it next.
	for _, c := range around.Predecessors {
		if c.ID == n.table.self || c.Leaf {
			continue
		}
		if _, err := n.meet(ctx, c); err == nil {
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	n.mu.Lock()
	n.fingers.building = true
	n.mu.Unlock()
	return nil
}

func (n *Node) isDisbelieved(id member.ID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Now().Before(n.failed[id])
}

// successorThrough asks a member for the first one after the node's place.
func (n *Node) successorThrough(ctx context.Context, via member.Contact) (member.Contact, error) {
	wait := patience
	if via.Dialect != member.Native {
		wait = originalPatience // or it has to be found out first what it is
	}
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	found, err := call[wire.Found](limited, n, via, wire.Lookup{Key: n.table.self.After(0)})
	if err != nil {
		return member.Contact{}, fmt.Errorf("ask for the way through %s: %w", via, err)
	}
	if found.Owner.ID != n.table.self {
		return found.Owner, nil
	}
	// It is alone but for us, or takes us for its neighbour from before.
	a, err := call[wire.Neighbours](ctx, n, via, wire.State{})
	if err != nil {
		return member.Contact{}, err
	}
	if a.Self.ID == n.table.self {
		return member.Contact{}, fmt.Errorf("%s is this node: %w", via, ErrNoEntry)
	}
	return a.Self, nil
}

// findBack joins again, when all neighbours are lost, through whoever was known before.
func (n *Node) findBack(ctx context.Context) time.Duration {
	candidates := n.outsiders(3)
	if len(candidates) == 0 {
		return n.somewhat(n.o.Interval)
	}
	for _, c := range candidates {
		if err := n.joinThrough(ctx, c); err == nil {
			n.count.rejoined.Add(1)
			n.o.Log.Info("joined again", "through", c.String())
			break
		}
	}
	return n.somewhat(n.o.Interval / quickDivisor)
}

// merge asks members that are not in the table who follows the node. If that is somebody the node does not know, then
// the ring was split, or has never been one: by getting to know each other the two become one.
func (n *Node) merge(ctx context.Context) time.Duration {
	n.mu.Lock()
	idle := n.self.Leaf || n.leaving || len(n.table.after) == 0
	n.mu.Unlock()
	if idle {
		return n.somewhat(n.o.Interval)
	}
	var all sync.WaitGroup
	for _, c := range n.outsiders(2) {
		all.Go(func() { n.mergeThrough(ctx, c) })
	}
	all.Wait()
	return n.somewhat(mergeEvery * n.o.Interval)
}

func (n *Node) mergeThrough(ctx context.Context, via member.Contact) {
	next, err := n.successorThrough(ctx, via)
	if err != nil || next.Leaf || next.Dialect != member.Unknown && next.Verify(n.o.Binding) != nil {
		return
	}
	n.mu.Lock()
	known := n.table.find(next.ID) != nil
	if known {
		n.memory.forget(via.ID) // it is in this ring
	}
	n.mu.Unlock()
	if known {
		return
	}
	if _, err := n.meet(ctx, next); err == nil {
		n.count.merged.Add(1)
		n.mu.Lock()
		n.changed, n.urgent = time.Now(), true
		n.mu.Unlock()
		n.kick()
	}
}

// outsiders returns up to count members that were known once and are not in the table, in random order. Bootstrap
// members are asked by few in a big ring, so that they have as much to do as in a small one.
func (n *Node) outsiders(count int) []member.Contact {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	n.memory.list = slices.DeleteFunc(n.memory.list, func(r remembered) bool {
		return now.Sub(r.since) > memoryLife && len(n.table.after) > 0
	})
	var list []member.Contact
	for _, r := range n.memory.list {
		list = append(list, r.contact)
	}
	n.random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	list = list[:min(len(list), count)]
	if n.random.Float64()*n.sizeLocked() < bootstrapAsked {
		var more []member.Contact
		for _, c := range n.bootstrap {
			if c.ID == (member.ID{}) || c.ID != n.self.ID && n.table.find(c.ID) == nil && !names(list, c.ID) {
				more = append(more, c)
			}
		}
		n.random.Shuffle(len(more), func(i, j int) { more[i], more[j] = more[j], more[i] })
		list = append(list, more[:min(len(more), count)]...)
	}
	return list
}

// sizeLocked estimates how many members the ring has, from how close the neighbours are.
func (n *Node) sizeLocked() float64 {
	after := n.table.after
	if len(after) < n.table.length {
		return float64(len(after) + 1)
	}
	span := n.table.ahead(after[len(after)-1].contact.ID)
	share, _ := new(big.Float).SetInt(new(big.Int).SetBytes(span[:])).Float64()
	return float64(len(after)) / max(share/math.Exp2(member.Bits), 1e-12)
}

// Leave tells the members next to the node that it goes, and who takes its place, and hands its records on. From then
// on the node refuses requests. It returns when the nearest have heard of it; the error is that of ctx.
func (n *Node) Leave(ctx context.Context) error {
	n.mu.Lock()
	farewell, told := n.farewellLocked(n.self)
	n.leaving = true
	hosts := n.hosts
	n.hosts = nil
	n.mu.Unlock()
	n.handAllOn(ctx, farewell.Successors)
	for _, c := range slices.Concat(told, hosts) {
		n.t.Cast(c, farewell)
	}
	// Links keep the order of messages: who answers this has had the farewell.
	var all sync.WaitGroup
	for _, list := range [...][]member.Contact{farewell.Predecessors, farewell.Successors} {
		if len(list) > 0 {
			all.Go(func() { _, _ = n.t.Call(ctx, list[0], wire.Ping{}) }) // who does not answer need not know
		}
	}
	all.Wait()
	return ctx.Err()
}

// farewellLocked empties the table, and returns what to tell whom.
func (n *Node) farewellLocked(self member.Contact) (wire.Leave, []member.Contact) {
	farewell := wire.Leave{From: self, Predecessors: contacts(n.table.before), Successors: contacts(n.table.after)}
	var told []member.Contact
	for _, e := range n.table.all() {
		n.memory.add(e.contact, time.Now())
		if e.contact.Dialect == member.Native {
			told = append(told, e.contact)
		}
	}
	n.table.after, n.table.before, n.table.forward, n.table.backward = nil, nil, nil, nil
	return farewell, told
}
