// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package broadcast

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

const (
	// maxQueue is how many pushes may wait before no broadcast is taken from anybody.
	maxQueue = 16384
	// maxWorkers is how many pushes wait for their acknowledgement at a time: at 50 ms each that makes 20,000 a second.
	maxWorkers = 1024
	// maxInFlight is how many of these are with one member: who is slower than that gets no part of the tree.
	maxInFlight = maxWorkers / 4
	// maxFinds is how many members that cannot be given a part are stepped over for one that can.
	maxFinds = 8
	// findTimeout is how long one lookup may take.
	findTimeout = 5 * time.Second
	// maxSuspects is how many members that did not answer are remembered.
	maxSuspects = 1024
)

// A job is to give a member its part.
type job struct {
	item  *item
	to    member.Contact
	limit member.ID
	offer bool
	leaf  bool             // to is a leaf, which has no part
	hosts []member.Contact // to is a host, and we are a leaf: who else can have it
}

// shareLocked gives out the part up to a limit, as far as that has not been done.
func (e *Engine) shareLocked(it *item, v *view, limit member.ID, offer bool) {
	to := reach(v.self, limit)
	if to.Compare(it.reached) <= 0 {
		return
	}
	degree := degreeSmall
	if len(it.push.Payload) > maxPushed {
		degree, offer = degreeLarge, true
	}
	for _, p := range v.split(it.reached, limit, degree, e.suspectLocked) {
		e.submitLocked(job{item: it, to: p.to, limit: p.limit, offer: offer})
	}
	it.reached = to
}

// handToLeavesLocked hands a broadcast to those leaves whose first host we are; the other hosts tell them only.
func (e *Engine) handToLeavesLocked(it *item, v *view) {
	for _, l := range v.leaves {
		if !slices.Contains(it.holders, l.ID) && (len(l.Hosts) == 0 || l.Hosts[0].ID == v.self) {
			e.submitLocked(job{item: it, to: l, limit: l.ID.After(0), offer: len(it.push.Payload) > maxPushed, leaf: true})
		}
	}
}

// handToHostLocked hands a leaf's broadcast to the first of its hosts that takes it.
func (e *Engine) handToHostLocked(it *item, hosts []member.Contact) {
	if len(hosts) > 0 {
		large := len(it.push.Payload) > maxPushed
		e.submitLocked(job{item: it, to: hosts[0], limit: hosts[0].ID, offer: large, hosts: hosts[1:]})
	}
}

func (e *Engine) submitLocked(j job) {
	if e.closed || j.item.sends >= maxSends && !j.leaf {
		e.stats.Dropped++
		return
	}
	if !j.leaf {
		j.item.sends++
	}
	j.item.holds(j.to.ID)
	if o := j.item.outcome; o != nil {
		o.pending++
	}
	e.queue = append(e.queue, j)
	if e.workers < maxWorkers {
		e.workers++
		e.running.Go(e.work)
	}
}

// work does what waits, and ends when nothing does.
func (e *Engine) work() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for !e.closed && len(e.queue) > 0 {
		j := e.queue[0]
		e.queue[0] = job{}
		e.queue = e.queue[1:]
		err := ErrBusy
		if e.inFlight[j.to.ID] < maxInFlight {
			e.inFlight[j.to.ID]++
			if j.offer {
				e.stats.Offered++
			} else {
				e.stats.Pushed++
			}
			e.mu.Unlock()
			err = e.send(j)
			e.mu.Lock()
			if e.inFlight[j.to.ID]--; e.inFlight[j.to.ID] == 0 {
				delete(e.inFlight, j.to.ID)
			}
		}
		if err != nil && e.ctx.Err() == nil {
			e.stats.Failed++
			if refused, ok := errors.AsType[wire.Refused](err); errors.Is(err, wire.ErrUnreachable) || ok && refused.Code == wire.Leaving {
				e.suspectsLocked(j.to.ID)
			}
			e.mu.Unlock()
			e.replace(j)
			e.mu.Lock()
		}
		e.settleLocked(j.item, err)
	}
	e.workers--
}

// send gives a member its part, and waits until it has acknowledged that.
func (e *Engine) send(j job) error {
	var m wire.Message
	if j.offer {
		m = wire.Offer{Tag: j.item.push.Tag, Limit: j.limit, Hops: j.item.push.Hops + 1, Size: uint64(len(j.item.push.Payload))}
	} else {
		p := j.item.push
		p.Limit = j.limit
		p.Hops++
		m = p
	}
	reply, err := e.o.Transport.Call(e.ctx, j.to, m)
	if err != nil {
		if refused, ok := errors.AsType[wire.Refused](err); ok && refused.Code == wire.Stale {
			err = fmt.Errorf("%w: %w", ErrStale, err)
		}
		return err
	}
	if _, ok := reply.(wire.Pushed); !ok {
		return fmt.Errorf("%s to %s: %w: %s", m.Kind(), j.to, wire.ErrAnswer, reply.Kind())
	}
	return nil
}

// settleLocked tells the caller of Broadcast, if it waits.
func (e *Engine) settleLocked(it *item, err error) {
	o := it.outcome
	if o == nil {
		return
	}
	o.pending--
	if err != nil {
		if o.err == nil || errors.Is(err, ErrStale) {
			o.err = err
		}
		if o.pending > 0 {
			return
		}
		err = o.err
	}
	select {
	case o.done <- err:
	default: // it has been told
	}
}

// replace gives the part of a member that did not take it to others.
func (e *Engine) replace(j job) {
	switch {
	case j.leaf: // it has no part, and is told again
		return
	case len(j.hosts) > 0:
		e.mu.Lock()
		e.handToHostLocked(j.item, j.hosts)
		e.mu.Unlock()
		return
	}
	self := e.o.Self()
	if self.Leaf {
		return
	}
	v := e.look(self)
	limit := j.limit
	e.mu.Lock()
	next, ok := v.after(j.to.ID, limit, e.suspectLocked)
	if ok {
		e.stats.Replaced++
		e.submitLocked(job{item: j.item, to: next, limit: limit, offer: true})
		limit = next.ID
	}
	e.mu.Unlock()
	if e.o.Find == nil {
		return
	}
	// Between the two there may be members that we do not know.
	at := j.to.ID
	for range maxFinds {
		ctx, cancel := context.WithTimeout(e.ctx, findTimeout)
		found, err := e.o.Find(ctx, at.After(0))
		cancel()
		if err != nil || !found.ID.Between(at, limit) || found.ID == self.ID {
			return
		}
		at = found.ID
		e.mu.Lock()
		fit := found.Dialect == member.Native && !found.Leaf && !e.suspectLocked(found.ID)
		if fit {
			e.stats.Replaced++
			e.submitLocked(job{item: j.item, to: found, limit: limit, offer: true})
		}
		e.mu.Unlock()
		if fit {
			return
		}
	}
}

// suspectLocked reports whether a member did not answer a moment ago.
func (e *Engine) suspectLocked(id member.ID) bool {
	until, ok := e.suspects[id]
	if ok && !time.Now().Before(until) {
		delete(e.suspects, id)
		return false
	}
	return ok
}

// suspectsLocked notes that a member did not answer.
func (e *Engine) suspectsLocked(id member.ID) {
	now := time.Now()
	if len(e.suspects) >= maxSuspects {
		for other, until := range e.suspects {
			if !now.Before(until) {
				delete(e.suspects, other)
			}
		}
	}
	if len(e.suspects) < maxSuspects {
		e.suspects[id] = now.Add(suspectLife)
	}
}
