// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// fingers says how far the search for fingers is.
type fingers struct {
	building bool // one search for each, one after the other
	cursor   int  // the next: levels from the highest down, ahead and back in turn
	holes    []place
	refresh  time.Time // when to look after the next one
}

// A place is where a finger stands.
type place struct {
	level int
	back  bool
}

// fingersAtATime is how many searches go on while fingers are built.
const fingersAtATime = 4

// lost notes which fingers a member leaves empty that is about to be removed.
func (f *fingers) lost(t *table, id member.ID) {
	for back, list := range map[bool][]finger{false: t.forward, true: t.backward} {
		for _, g := range list {
			if g.entry.contact.ID == id && len(f.holes) < 2*member.Bits {
				f.holes = append(f.holes, place{g.level, back})
			}
		}
	}
}

// finger looks for the next finger, or the next few after a join or a death.
func (n *Node) finger(ctx context.Context) time.Duration {
	n.mu.Lock()
	var due []place
	repairing := n.fingers.building || len(n.fingers.holes) > 0
	switch {
	case n.self.Leaf || n.leaving:
	case len(n.fingers.holes) > 0:
		count := min(len(n.fingers.holes), fingersAtATime)
		due, n.fingers.holes = n.fingers.holes[:count], n.fingers.holes[count:]
	case n.fingers.building:
		due = n.nextFingersLocked(fingersAtATime)
	case !time.Now().Before(n.fingers.refresh):
		due = n.nextFingersLocked(1)
		n.fingers.refresh = time.Now().Add(time.Duration(float64(fingerEvery*n.o.Interval) * (0.5 + n.random.Float64())))
	}
	n.mu.Unlock()
	var all sync.WaitGroup
	for _, p := range due {
		all.Go(func() { n.search(ctx, p, repairing) })
	}
	all.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fingers.building || len(n.fingers.holes) > 0 {
		return n.o.Interval / 100
	}
	return n.o.Interval
}

// nextFingersLocked moves the cursor over up to count fingers, and to the start when there are no more.
func (n *Node) nextFingersLocked(count int) (list []place) {
	ahead, back := n.table.bottom(n.table.after, n.table.ahead), n.table.bottom(n.table.before, n.table.back)
	for len(list) < count {
		p := place{member.Bits - 1 - n.fingers.cursor/2, n.fingers.cursor%2 == 1}
		if p.level < min(ahead, back) || p.level < 0 {
			n.fingers.cursor, n.fingers.building = 0, false
			break
		}
		n.fingers.cursor++
		if !p.back && p.level >= ahead || p.back && p.level >= back {
			list = append(list, p)
		}
	}
	return list
}

// search finds the member that is to be a finger. Unless there is none, the one there has to answer first.
func (n *Node) search(ctx context.Context, p place, repairing bool) {
	if p.back && p.level == member.Bits-1 {
		return // the farthest back is the nearest ahead
	}
	n.mu.Lock()
	target, list := n.self.ID.After(p.level), n.table.forward
	if p.back {
		target, list = n.self.ID.Before(p.level+1), n.table.backward
	}
	var existing member.Contact
	if i := slices.IndexFunc(list, func(f finger) bool { return f.level == p.level }); i >= 0 {
		existing = list[i].entry.contact
	}
	n.mu.Unlock()
	if !repairing && existing.Dialect != member.Unknown {
		n.probe(ctx, existing)
	}
	found, err := n.pass(ctx, target, 0)
	if err != nil || found.Owner.ID == n.table.self || found.Owner.Leaf || found.Owner.Dialect == member.Original {
		return
	}
	n.mu.Lock()
	known := n.table.find(found.Owner.ID) != nil
	n.mu.Unlock()
	if known {
		return
	}
	// What others passed on is hearsay until the member itself has answered.
	if a, err := call[wire.Neighbours](ctx, n, found.Owner, wire.State{}); err == nil {
		_ = n.accept(found.Owner, a) // what is wrong is noted there
	}
}
