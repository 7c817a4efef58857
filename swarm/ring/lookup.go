// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// LookupOptions say how to look something up. The zero value is the quick way.
type LookupOptions struct {
	// Disjoint is over how many paths to look, no two of which lead over the same member: as long as one of them is
	// of honest members, the answer is right. 0: the question is passed from member to member along their links,
	// which is faster and takes everybody on the way at their word.
	Disjoint int
}

// A Result is what a lookup found. Its Owner answered for itself; that of a quick lookup as far as those on the path
// can be trusted.
type Result struct {
	wire.Found

	// Conflict are members that also claimed to own the key on some path: they lie, or are behind the times.
	Conflict []member.Contact
}

// Bounds on how hard to try.
const (
	passAttempts   = 6 // members that one member passes a question on to, one after the other
	lookupAttempts = 2
	maxHops        = wire.MaxPath
)

// Lookup finds the member that owns a key, which is the first one at or after it, and the leaf whose ID the key is.
// When members on the way die or do not answer, other ways are tried. The error wraps [ErrNotFound] when no way led to
// an owner.
func (n *Node) Lookup(ctx context.Context, key member.ID, o LookupOptions) (Result, error) {
	n.count.lookups.Add(1)
	if o.Disjoint > 0 {
		result, err := n.walk(ctx, key, o.Disjoint)
		if err != nil {
			n.count.lookupsFailed.Add(1)
		}
		return result, err
	}
	quick, cancel := context.WithTimeout(ctx, lookupAttempts*patience)
	defer cancel()
	var err error
	for try := 0; try < lookupAttempts && quick.Err() == nil; try++ {
		var found wire.Found
		if found, err = n.pass(quick, key, 0); err == nil {
			return Result{Found: found}, nil
		}
	}
	if ctx.Err() != nil {
		n.count.lookupsFailed.Add(1)
		return Result{}, fmt.Errorf("lookup %s: %w", key.Short(), ctx.Err())
	}
	// The members on the way are there and do not help: ask each oneself.
	result, walkErr := n.walk(ctx, key, lookupAttempts)
	if walkErr != nil {
		n.count.lookupsFailed.Add(1)
		return Result{}, fmt.Errorf("%w; before: %w", walkErr, err)
	}
	return result, nil
}

// pass answers from the table, or passes the question on to the nearest member that has an answer. hops is how many
// have passed it on.
func (n *Node) pass(ctx context.Context, key member.ID, hops uint64) (wire.Found, error) {
	var tried []member.ID
	failure := fmt.Errorf("lookup %s: %w", key.Short(), ErrNotFound)
	for range passAttempts {
		n.mu.Lock()
		next := n.table.next(key, n.self.Leaf, func(id member.ID) bool { return slices.Contains(tried, id) })
		if next == nil {
			defer n.mu.Unlock()
			// Those who are nearer are alive, but were of no help: only one of them can own the key.
			if len(tried) > 0 || n.self.Leaf || n.leaving {
				return wire.Found{}, failure
			}
			return wire.Found{Key: key, Owner: n.self, Leaf: n.leafLocked(key)}, nil
		}
		contact, certain := next.contact, n.table.certain(key, next)
		n.mu.Unlock()
		if certain && contact.Dialect == member.Original {
			// It would say the same, but much slower.
			return wire.Found{Key: key, Owner: contact, Hops: 1, Path: []member.ID{contact.ID}}, nil
		}
		found, err := n.ask(ctx, contact, wire.Lookup{Key: key, Hops: hops + 1})
		if err == nil {
			return found, nil
		}
		if ctx.Err() != nil {
			return wire.Found{}, ctx.Err()
		}
		failure = err
		tried = append(tried, contact.ID)
		n.mu.Lock()
		tried = slices.DeleteFunc(tried, func(id member.ID) bool { return n.table.find(id) == nil })
		n.mu.Unlock()
	}
	return wire.Found{}, failure
}

// ask passes a question on to a member. One that turns out to be dead is dropped from the table before it returns.
func (n *Node) ask(ctx context.Context, to member.Contact, question wire.Lookup) (wire.Found, error) {
	wait := patience
	if to.Dialect == member.Original {
		wait = originalPatience
	}
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	// An answer has a long way to come, and the member next to us may be dead: it is asked for a sign of life meanwhile.
	probing, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	probed := make(chan struct{})
	timer := time.AfterFunc(max(hush, 2*n.t.RTT(to.ID)), func() {
		defer close(probed)
		if to.Dialect != member.Original && n.probe(probing, to) {
			cancel()
		}
	})
	found, err := call[wire.Found](limited, n, to, question)
	stop()
	if !timer.Stop() {
		<-probed
	}
	switch {
	case err == nil:
		return found, n.checkFound(to, question.Key, found)
	case ctx.Err() != nil || !gone(err):
	case !errors.Is(err, wire.ErrUnreachable):
		n.dead(to.ID)
	case limited.Err() == nil:
		n.mu.Lock()
		if e := n.table.find(to.ID); e != nil {
			e.suspect = true
		}
		n.mu.Unlock()
		n.probe(ctx, to)
	}
	return wire.Found{}, err
}

// checkFound checks an answer as far as that is possible: nobody may know an owner farther from the key than itself.
func (n *Node) checkFound(from member.Contact, key member.ID, found wire.Found) error {
	wrong := found.Key != key || key.Distance(found.Owner.ID).Compare(key.Distance(from.ID)) > 0 ||
		found.Owner.Dialect != member.Unknown && found.Owner.Verify(n.o.Binding) != nil ||
		len(found.Leaf) > 0 && (found.Leaf[0].ID != key || !found.Leaf[0].Leaf || found.Leaf[0].Verify(n.o.Binding) != nil)
	if !wrong || from.Dialect == member.Original {
		return nil
	}
	// Members check what they pass on in the same way: this one lies itself.
	n.misbehaved(from.ID)
	return fmt.Errorf("lookup %s through %s: %w", key.Short(), from, wire.ErrAnswer)
}

// certain reports whether the table says for sure that a member owns a key: the one before it is known as well.
func (t *table) certain(key member.ID, e *entry) bool {
	for i := range t.after {
		if t.after[i] == e {
			return i == 0 && key.In(t.self, e.contact.ID) || i > 0 && key.In(t.after[i-1].contact.ID, e.contact.ID)
		}
	}
	for i := range t.before {
		if t.before[i] == e {
			return i+1 < len(t.before) && key.In(t.before[i+1].contact.ID, e.contact.ID)
		}
	}
	return false
}
