// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// A task is a short conversation with one member.
type task struct {
	kind    taskKind
	contact member.Contact
}

type taskKind uint8

const (
	introduce taskKind = iota // somebody named the member: hear it itself, and let it hear of us
	probe                     // the member is in the table: is it still there?
)

// queueLocked asks for a task, unless one for the same member is waiting or under way.
func (n *Node) queueLocked(t task) {
	if !n.busy[t.contact.ID] && len(n.queue) < maxQueue {
		n.busy[t.contact.ID] = true
		n.queue = append(n.queue, t)
	}
}

// A job is done again and again, never twice at a time. It returns when to do it next.
type job struct {
	do      func(context.Context) time.Duration
	due     time.Time
	running bool
}

// Run keeps the node's place in the ring until ctx ends, and returns nil. While it does not run, nothing is repaired.
// It can be called again, but not twice at a time.
func (n *Node) Run(ctx context.Context) error {
	var work sync.WaitGroup
	defer work.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	round := &job{do: n.round}
	merging := &job{do: n.merge, due: time.Now().Add(n.somewhat(mergeEvery * n.o.Interval))}
	jobs := []*job{round, merging, {do: n.finger}, {do: n.handOver}}
	ended := make(chan *job, len(jobs)+maxTasks) // of all that can be under way: sending never waits
	tasks := 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		tasks += n.startTasks(ctx, &work, maxTasks-tasks, ended)
		if n.takeUrgent(round.running) {
			round.due = time.Now()
		}
		now := time.Now()
		next := now.Add(time.Hour)
		for _, j := range jobs {
			switch {
			case j.running:
			case !j.due.After(now):
				j.running = true
				work.Go(func() {
					j.due = time.Now().Add(j.do(ctx))
					ended <- j
				})
			case j.due.Before(next):
				next = j.due
			}
		}
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-n.wake:
		case j := <-ended:
			if j == nil {
				tasks--
			} else {
				j.running = false
			}
		}
	}
}

// takeUrgent reports, once, whether a round is due at once. While one is under way it stays due.
func (n *Node) takeUrgent(running bool) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if running || !n.urgent {
		return false
	}
	n.urgent = false
	return true
}

// startTasks starts up to limit tasks that wait; each sends nil to ended.
func (n *Node) startTasks(ctx context.Context, work *sync.WaitGroup, limit int, ended chan<- *job) (started int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for started < limit && len(n.queue) > 0 {
		t := n.queue[0]
		n.queue = n.queue[1:]
		started++
		work.Go(func() {
			n.perform(ctx, t)
			ended <- nil
		})
	}
	return started
}

func (n *Node) perform(ctx context.Context, t task) {
	defer func() {
		n.mu.Lock()
		delete(n.busy, t.contact.ID)
		n.mu.Unlock()
	}()
	switch t.kind {
	case introduce:
		n.mu.Lock()
		wanted := n.table.fits(t.contact.ID) && n.table.find(t.contact.ID) == nil
		n.mu.Unlock()
		if wanted {
			_, _ = n.meet(ctx, t.contact) // those who do not answer are noted there
		}
	case probe:
		n.probe(ctx, t.contact)
	}
}

// probe asks a member whether it is there, a second time if it has not been suspected before, and drops it if it does
// not say so. It reports whether the member is not in the table any more.
func (n *Node) probe(ctx context.Context, c member.Contact) (dead bool) {
	for {
		_, err := call[wire.Pong](ctx, n, c, wire.Ping{})
		if ctx.Err() != nil {
			return false
		}
		n.mu.Lock()
		e := n.table.find(c.ID)
		switch {
		case e == nil:
			n.mu.Unlock()
			return true
		case err == nil:
			e.heard, e.suspect = time.Now(), false
			n.mu.Unlock()
			return false
		case e.suspect || !gone(err):
			n.mu.Unlock()
			n.dead(c.ID)
			return true
		}
		e.suspect = true
		n.mu.Unlock()
	}
}

// doubt deals with a failed request to a member: one that is gone by its own word is dropped, one that does not answer
// is asked once more.
func (n *Node) doubt(ctx context.Context, c member.Contact, err error) {
	if ctx.Err() != nil || !gone(err) {
		return
	}
	if errors.Is(err, wire.ErrUnreachable) {
		n.Suspect(c.ID)
		return
	}
	n.dead(c.ID)
}

// round compares what the node and its neighbours know, or, when nothing has changed for a while, only makes sure that
// its successor is there. It is what Chord calls stabilize.
func (n *Node) round(ctx context.Context) time.Duration {
	n.mu.Lock()
	n.tidyLocked()
	leaf, idle := n.self.Leaf, n.leaving || n.joining > 0 && len(n.table.after) == 0
	alone := len(n.table.after) == 0
	quick := time.Since(n.changed) < quickFor*n.o.Interval
	n.rounds++
	full := quick || n.rounds%fullEvery == 0
	n.mu.Unlock()
	switch {
	case idle:
		return n.o.Interval
	case leaf:
		return n.attach(ctx)
	case alone:
		return n.findBack(ctx)
	}
	if full {
		n.compareAhead(ctx)
		n.compareBack(ctx)
	} else {
		n.check(ctx)
	}
	n.kick()
	if quick {
		return n.somewhat(n.o.Interval / quickDivisor)
	}
	return n.somewhat(n.o.Interval)
}

// compareAhead tells the successor that it is that, and learns from its answer, until there is no nearer one.
func (n *Node) compareAhead(ctx context.Context) {
	for range n.o.Neighbours {
		next, ok := n.neighbour(func(t *table) []*entry { return t.after })
		if !ok {
			return
		}
		if _, err := n.meet(ctx, next); err != nil {
			n.doubt(ctx, next, err)
			return
		}
		n.mu.Lock()
		same := n.isNextLocked(next.ID)
		n.mu.Unlock()
		if same {
			return
		}
	}
}

// compareBack learns what the predecessor knows.
func (n *Node) compareBack(ctx context.Context) {
	previous, ok := n.neighbour(func(t *table) []*entry { return t.before })
	if !ok {
		return
	}
	a, err := call[wire.Neighbours](ctx, n, previous, wire.State{})
	if err != nil {
		n.doubt(ctx, previous, err)
		return
	}
	if n.accept(previous, a) == nil {
		n.reconcile(previous, a)
	}
}

// neighbour returns the nearest member of a list, unless it is an original that was asked a moment ago: those can take
// a few hundred bytes per second.
func (n *Node) neighbour(list func(*table) []*entry) (member.Contact, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	entries := list(&n.table)
	if len(entries) == 0 {
		return member.Contact{}, false
	}
	e := entries[0]
	if e.contact.Dialect == member.Original {
		if time.Since(e.asked) < originalPace {
			return member.Contact{}, false
		}
		e.asked = time.Now()
	}
	return e.contact, true
}

// check makes sure that the successor is there, and the predecessor if it has been silent: it checks on us as often.
func (n *Node) check(ctx context.Context) {
	if next, ok := n.neighbour(func(t *table) []*entry { return t.after }); ok {
		n.probe(ctx, next)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if before := n.table.before; len(before) > 0 && time.Since(before[0].heard) > n.o.Interval*3/2 && before[0].contact.Dialect == member.Native {
		n.queueLocked(task{probe, before[0].contact})
	}
}

// meet hears a member itself and takes it into the table; it is told of us as far as that concerns it. What it says of
// others is followed up.
func (n *Node) meet(ctx context.Context, c member.Contact) (wire.Neighbours, error) {
	var request wire.Message = wire.State{}
	n.mu.Lock()
	self := n.selfLocked()
	n.mu.Unlock()
	// An original takes whoever notifies it for its predecessor. Of a member of unknown dialect, its state tells.
	if !self.Leaf && (c.Dialect == member.Native || c.Dialect == member.Original && n.wouldFollow(c.ID)) {
		request = wire.Notify{From: self}
	}
	a, err := call[wire.Neighbours](ctx, n, c, request)
	if err != nil {
		if ctx.Err() == nil && gone(err) {
			n.disbelieve(c.ID)
		}
		return a, err
	}
	if err := n.accept(c, a); err != nil {
		return a, err
	}
	if c.Dialect == member.Unknown && !self.Leaf && (a.Self.Dialect == member.Native || n.wouldFollow(a.Self.ID)) {
		if a, err = call[wire.Neighbours](ctx, n, a.Self, wire.Notify{From: self}); err != nil {
			return a, err
		}
	}
	n.reconcile(a.Self, a)
	return a, nil
}

// wouldFollow reports whether nobody that the node knows is between it and the member.
func (n *Node) wouldFollow(id member.ID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	after := n.table.after
	return len(after) == 0 || id.In(n.self.ID, after[0].contact.ID)
}

// disbelieve lets those who name a member talk for a while.
func (n *Node) disbelieve(id member.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.failed) < maxFailed {
		n.failed[id] = time.Now().Add(hearsayRest)
	}
}

// accept takes a member that has answered for itself into the table. c is how it was known before.
func (n *Node) accept(c member.Contact, a wire.Neighbours) error {
	if c.ID != (member.ID{}) && a.Self.ID != c.ID {
		n.misbehaved(c.ID)
		return wire.ErrAnswer
	}
	if err := a.Self.Verify(n.o.Binding); err != nil {
		n.misbehaved(c.ID)
		return err
	}
	rtt := n.t.RTT(a.Self.ID)
	n.mu.Lock()
	defer n.mu.Unlock()
	if a.Self.Leaf {
		n.dropLocked(a.Self.ID)
		return wire.ErrUnreachable
	}
	n.insertLocked(a.Self, rtt)
	return nil
}

// reconcile follows up what a member that has answered says about its part of the ring. What it says is hearsay: those
// whom it names and who would be neighbours here are heard themselves before they are taken in, and those whom it should
// know and does not name are asked whether they are there.
func (n *Node) reconcile(from member.Contact, a wire.Neighbours) {
	lied := false
	n.mu.Lock()
	now := time.Now()
	for _, list := range [...][]member.Contact{a.Predecessors, a.Successors} {
		for _, c := range list {
			if c.ID == n.self.ID || now.Before(n.failed[c.ID]) || !n.table.fits(c.ID) || n.table.find(c.ID) != nil {
				continue
			}
			if c.Leaf || c.Dialect != member.Unknown && c.Verify(n.o.Binding) != nil {
				lied = true
				continue
			}
			n.queueLocked(task{introduce, c})
		}
	}
	if from.Dialect == member.Native {
		n.missingLocked(n.table.after, from.ID, a)
		n.missingLocked(n.table.before, from.ID, a)
	}
	n.mu.Unlock()
	if lied {
		n.misbehaved(from.ID)
	}
	n.kick()
}

// missingLocked has the members of a list probed that a neighbour, within the stretch that it knows, does not.
func (n *Node) missingLocked(list []*entry, from member.ID, a wire.Neighbours) {
	if len(a.Predecessors) == 0 || len(a.Successors) == 0 {
		return
	}
	first, last := a.Predecessors[len(a.Predecessors)-1].ID, a.Successors[len(a.Successors)-1].ID
	for _, e := range list {
		id := e.contact.ID
		if !id.Between(first, from) && !id.Between(from, last) || time.Since(e.heard) < n.o.Interval {
			continue
		}
		if !names(a.Predecessors, id) && !names(a.Successors, id) {
			n.queueLocked(task{probe, e.contact})
		}
	}
}

func names(list []member.Contact, id member.ID) bool {
	for _, c := range list {
		if c.ID == id {
			return true
		}
	}
	return false
}

// tidyLocked forgets what is past.
func (n *Node) tidyLocked() {
	now := time.Now()
	for id, until := range n.failed {
		if now.After(until) {
			delete(n.failed, id)
		}
	}
	n.expireLeavesLocked(now)
}

// somewhat varies a time by a tenth either way, so that members do not march in step.
func (n *Node) somewhat(d time.Duration) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Duration(float64(d) * (0.9 + 0.2*n.random.Float64()))
}
