// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// Bounds on a walk.
const (
	maxPaths     = 8
	stepsPerPath = 32 // members that one path asks
	stepContacts = 8  // members that each names
	candidates   = 32 // members that a path keeps in mind, nearest to the key
	siblings     = 5  // members nearest to the key that have to be asked before a path ends, without those that claim it
)

// A walk is a lookup in which the node asks every member on the way itself, over several paths at once. No member is
// asked by two of them, so that one that lies spoils one path (S/Kademlia: Baumgart and Mies, 2007).
type walk struct {
	n   *Node
	key member.ID

	mu     sync.Mutex
	asked  map[member.ID]bool // by some path
	spent  map[member.ID]bool // of these, who did not answer, or claimed the key: no path goes by them
	claims []claim
	heard  []member.Contact // that the paths had in mind at their end
}

// A claim is that of a member that answered and says that it owns the key.
type claim struct {
	owner member.Contact
	leaf  []member.Contact
	path  []member.ID
}

func (n *Node) walk(ctx context.Context, key member.ID, disjoint int) (Result, error) {
	disjoint = min(disjoint, maxPaths)
	w := &walk{n: n, key: key, asked: map[member.ID]bool{n.table.self: true}, spent: map[member.ID]bool{}}
	starts := make([][]member.Contact, disjoint)
	n.mu.Lock()
	known := n.table.all()
	for i, e := range n.table.closest(key, len(known)) {
		starts[i%disjoint] = append(starts[i%disjoint], e.contact)
	}
	if !n.self.Leaf && n.table.owns(key) {
		w.claims = append(w.claims, claim{owner: n.self, leaf: n.leafLocked(key)})
	}
	n.mu.Unlock()
	var paths sync.WaitGroup
	for _, start := range starts {
		paths.Go(func() { w.follow(ctx, start) })
	}
	paths.Wait()
	// What one path heard of and had no more steps for, or another left to it, is asked now: near the key all are close.
	w.follow(ctx, w.heard)
	result, ok := w.judge(ctx)
	switch {
	case ctx.Err() != nil:
		return Result{}, fmt.Errorf("lookup %s: %w", key.Short(), ctx.Err())
	case !ok:
		return Result{}, fmt.Errorf("lookup %s over %d paths: %w", key.Short(), disjoint, ErrNotFound)
	}
	return result, nil
}

// follow asks the nearest member that it has heard of and that no path has asked, until those nearest to the key have
// all been.
func (w *walk) follow(ctx context.Context, list []member.Contact) {
	list = w.nearest(list)
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, c := range list {
			if !names(w.heard, c.ID) {
				w.heard = append(w.heard, c)
			}
		}
	}()
	var path []member.ID
	for range stepsPerPath {
		c, ok := w.choose(list)
		if !ok || ctx.Err() != nil {
			return
		}
		a, err := w.step(ctx, c)
		if err != nil {
			w.spend(c.ID)
			continue
		}
		path = append(path, c.ID)
		if a.Owner {
			// If it lies it would lead the path astray, and if it does not there is nothing nearer: what it names is of
			// no use, and the path goes on as if it had not been there.
			w.mu.Lock()
			w.claims = append(w.claims, claim{c, a.Leaf, slices.Clone(path)})
			w.mu.Unlock()
			w.spend(c.ID)
			continue
		}
		for _, heard := range a.Contacts[:min(len(a.Contacts), stepContacts)] {
			if !heard.Leaf && heard.ID != w.n.table.self && !names(list, heard.ID) && (heard.Dialect == member.Unknown || heard.Verify(w.n.o.Binding) == nil) {
				list = append(list, heard)
			}
		}
		list = w.nearest(list)
	}
}

func (w *walk) spend(id member.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spent[id] = true
}

// nearest sorts members, and keeps those to keep in mind.
func (w *walk) nearest(list []member.Contact) []member.Contact {
	slices.SortFunc(list, nearest(w.key))
	return list[:min(len(list), candidates)]
}

// choose takes the nearest member of the list that no path has asked, if it is among the nearest few.
func (w *walk) choose(list []member.Contact) (member.Contact, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	passed := 0
	for _, c := range list {
		switch {
		case w.spent[c.ID]:
		case !w.asked[c.ID]:
			w.asked[c.ID] = true
			return c, true
		default:
			if passed++; passed == siblings {
				return member.Contact{}, false
			}
		}
	}
	return member.Contact{}, false
}

// step asks one member for its part of the way. An original is asked for its neighbours, which say as much.
func (w *walk) step(ctx context.Context, c member.Contact) (wire.Closest, error) {
	if c.Dialect == member.Native {
		return call[wire.Closest](ctx, w.n, c, wire.Step{Key: w.key, Count: stepContacts})
	}
	a, err := call[wire.Neighbours](ctx, w.n, c, wire.State{})
	if err != nil {
		return wire.Closest{}, err
	}
	if a.Self.ID != c.ID {
		return wire.Closest{}, wire.ErrAnswer
	}
	owner := len(a.Predecessors) > 0 && w.key.In(a.Predecessors[0].ID, c.ID)
	return wire.Closest{Owner: owner, Contacts: slices.Concat(a.Predecessors, a.Successors)}, nil
}

// judge decides between the members that claim to own the key: it is the nearest at or after it. They have all
// answered for themselves, and nobody can choose to be nearer where IDs are bound to keys.
func (w *walk) judge(ctx context.Context) (Result, bool) {
	if len(w.claims) == 0 {
		return Result{}, false
	}
	slices.SortStableFunc(w.claims, func(a, b claim) int { return nearest(w.key)(a.owner, b.owner) })
	best := w.claims[0]
	r := Result{Found: wire.Found{Key: w.key, Owner: best.owner, Hops: uint64(len(best.path)), Path: best.path}}
	for _, c := range w.claims[1:] {
		if c.owner.ID != best.owner.ID && !names(r.Conflict, c.owner.ID) {
			r.Conflict = append(r.Conflict, c.owner)
		}
	}
	if len(r.Conflict) > 0 {
		w.n.count.conflicts.Add(1)
	}
	// A leaf is there if it answers itself, through its hosts.
	if len(best.leaf) > 0 && best.leaf[0].ID == w.key && best.leaf[0].Leaf && best.leaf[0].Verify(w.n.o.Binding) == nil {
		if _, err := call[wire.Pong](ctx, w.n, best.leaf[0], wire.Ping{}); err == nil {
			r.Leaf = best.leaf
		}
	}
	return r, true
}
