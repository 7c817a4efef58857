// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/seed5728abee/fathom/probe"
)

// probeTarget is a host that a campaign probes.
type probeTarget struct {
	name   string // as the user wrote it
	addr   netip.Addr
	number int // the place in the list that the user gave
	// err says why the target got no probe, or no more of them.
	err error

	started  uint64 // probes asked for
	sent     uint64 // of these, those that left this host
	outcomes [probe.Failed + 1]uint64
	rtt      rttStats

	slot     uint32
	next     time.Time // when the next probe is due
	inFlight int
	complete bool // no more probes are to be sent
}

func (t *probeTarget) received() uint64 { return t.outcomes[probe.Replied] }

// loss is the share of probes without a reply, from 0 to 1.
func (t *probeTarget) loss() float64 {
	if t.sent == 0 {
		return 0
	}
	return 1 - float64(t.received())/float64(t.sent)
}

// campaignReport is told what happens, on the goroutine of campaign.run.
type campaignReport interface {
	// admitted tells of a target at the beginning. If it has an error, finished follows.
	admitted(t *probeTarget)
	// result tells of the probe with a sequence number, which counts from 1.
	result(t *probeTarget, sequence uint64, r *probe.Result)
	// finished tells that nothing more will happen to a target.
	finished(t *probeTarget)
	// progress and flush are called when a batch of news is through, and at least once a second.
	progress(c *campaignTotals)
	flush() error
}

// campaignTotals counts over all targets.
type campaignTotals struct {
	started, finished, silent int // targets
	sent, received            uint64
}

// campaign probes any number of targets. One goroutine owns all its state; memory is bounded by
// window: no more targets than that are at work at a time, and no more probes in flight.
type campaign struct {
	request  probe.Request // all but Target and Tag
	count    uint64        // probes for each target, 0 for no end
	interval time.Duration // between the probes of one target
	window   int
	limiter  *rate.Limiter
	prober   prober
	report   campaignReport

	totals   campaignTotals
	broken   error // why the prober can't go on
	inFlight int
	active   int
	slots    []*probeTarget // by probeTarget.slot; nil where free
	free     []uint32
	due      dueQueue

	arrived chan struct{} // capacity 1: results is not empty
	mu      sync.Mutex
	results []probe.Result // guarded by mu
	spare   []probe.Result // the other buffer; collect swaps the two
}

const (
	// sendBatch bounds the probes between two looks at the results.
	sendBatch = 64
	// limiterCredit is for how long unused sending rights are kept. It makes up for timers that
	// fire late; what may leave in one burst stays below what network queues absorb.
	limiterCredit = 2 * time.Millisecond
	// exhaustedPause is how long to hold back when the prober has no room for another probe.
	exhaustedPause = time.Millisecond
)

// newLimiter allows perSecond probes a second, any number if it is 0.
func newLimiter(perSecond float64) *rate.Limiter {
	if perSecond == 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	return rate.NewLimiter(rate.Limit(perSecond), max(1, int(perSecond*limiterCredit.Seconds())))
}

// run probes the targets that the channel brings until all are finished, or ctx ends: then probes
// in flight are forgotten and what is known is reported.
func (c *campaign) run(ctx context.Context, targets <-chan *probeTarget) error {
	c.arrived = make(chan struct{}, 1)
	c.slots = make([]*probeTarget, 0, min(c.window, 1024))
	timer := time.NewTimer(0)
	defer timer.Stop()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	now := make(chan time.Time)
	close(now)
	for {
		c.collect()
		wait := c.send(time.Now())
		c.report.progress(&c.totals)
		if err := c.report.flush(); err != nil {
			return errors.Join(err, c.prober.Close())
		}
		if c.broken != nil {
			err := c.prober.Close() // says why, if it can
			c.collect()
			c.abandon()
			return errors.Join(cmp.Or(err, c.broken), c.report.flush())
		}
		if targets == nil && c.active == 0 {
			return c.prober.Close()
		}
		incoming := targets
		if c.active >= c.window {
			incoming = nil
		}
		var timeout <-chan time.Time
		switch {
		case wait > 0:
			timer.Reset(wait)
			timeout = timer.C
		case wait == 0:
			timeout = now
		}
		select {
		case <-ctx.Done():
			err := c.prober.Close()
			c.collect()
			c.abandon()
			return errors.Join(err, c.report.flush())
		case <-c.arrived:
		case t, ok := <-incoming:
			if !ok {
				targets = nil
				break
			}
			c.admit(t)
		case <-timeout:
		case <-ticker.C:
		}
	}
}

// admit takes a target in. One that has failed to resolve is finished at once.
func (c *campaign) admit(t *probeTarget) {
	c.totals.started++
	c.report.admitted(t)
	if n := len(c.free); n > 0 {
		t.slot, c.free = c.free[n-1], c.free[:n-1]
		c.slots[t.slot] = t
	} else {
		t.slot = uint32(len(c.slots))
		c.slots = append(c.slots, t)
	}
	c.active++
	if t.err != nil {
		t.complete = true
		c.finish(t)
		return
	}
	t.next = time.Now()
	heap.Push(&c.due, t)
}

// send starts the probes that are due, as far as the window and the rate allow, but no more than a
// batch. It gives how long to wait before calling it again; less than 0 means: until something arrives.
func (c *campaign) send(now time.Time) time.Duration {
	limited := c.limiter.Limit() != rate.Inf
	tokens := float64(sendBatch)
	if limited {
		tokens = c.limiter.TokensAt(now)
	}
	started := 0
	defer func() {
		// Credit is taken for the batch: once for each probe would show above 100,000 a second.
		if limited {
			c.limiter.AllowN(now, started)
		}
	}()
	for range sendBatch {
		if len(c.due) == 0 || c.inFlight >= c.window {
			return -1
		}
		t := c.due[0]
		if d := t.next.Sub(now); d > 0 {
			return d
		}
		if lacking := float64(started+1) - tokens; limited && lacking > 0 {
			return time.Duration(lacking/float64(c.limiter.Limit())*float64(time.Second)) + 1
		}
		req := c.request
		req.Target = t.addr
		req.Tag = uint64(t.slot)<<32 | (t.started+1)&0xffffffff
		if err := c.prober.start(req, c.done); errors.Is(err, probe.ErrExhausted) {
			return exhaustedPause
		} else if errors.Is(err, probe.ErrClosed) {
			c.broken = err
			return -1
		} else if err != nil {
			t.err = err
			c.complete(t)
			if t.inFlight == 0 {
				c.finish(t)
			}
			continue
		}
		started++
		t.started++
		t.sent++
		t.inFlight++
		c.inFlight++
		c.totals.sent++
		if c.count > 0 && t.started >= c.count {
			c.complete(t)
			continue
		}
		// From the time it was due, so that the pace holds; but a backlog is not caught up with.
		t.next = t.next.Add(c.interval)
		if t.next.Before(now) {
			t.next = now
		}
		heap.Fix(&c.due, 0)
	}
	return 0
}

// done runs on the prober's goroutine.
func (c *campaign) done(r probe.Result) {
	c.mu.Lock()
	c.results = append(c.results, r)
	c.mu.Unlock()
	select {
	case c.arrived <- struct{}{}:
	default:
	}
}

// collect takes in the results that have arrived.
func (c *campaign) collect() {
	c.mu.Lock()
	batch := c.results
	c.results, c.spare = c.spare[:0], batch
	c.mu.Unlock()
	for i := range batch {
		r := &batch[i]
		t := c.slots[r.Tag>>32]
		sequence := r.Tag & 0xffffffff
		t.inFlight--
		c.inFlight--
		if r.Status == probe.Failed {
			t.sent--
			c.totals.sent--
		}
		// A probe that we stopped waiting for is neither answered nor lost nor failed.
		if r.Status != probe.Failed || !errors.Is(r.Err, probe.ErrClosed) {
			t.outcomes[r.Status]++
			if r.Status == probe.Replied {
				t.rtt.add(r.RTT)
				c.totals.received++
			}
			if r.Status == probe.Failed && hopeless(r.Err) {
				t.err = r.Err
				c.complete(t)
			}
			c.report.result(t, sequence, r)
		}
		if t.complete && t.inFlight == 0 {
			c.finish(t)
		}
	}
	clear(batch)
}

// hopeless tells that the next probe to the same target would fail in the same way.
func hopeless(err error) bool {
	for _, e := range []error{
		probe.ErrInvalid, probe.ErrUnsupported, probe.ErrPermission,
		probe.ErrAddrNotAvailable, probe.ErrNoInterface, probe.ErrTooBig,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// complete ends the sending to a target.
func (c *campaign) complete(t *probeTarget) {
	t.complete = true
	if i := slices.Index(c.due, t); i >= 0 {
		heap.Remove(&c.due, i)
	}
}

// finish reports a target and forgets it.
func (c *campaign) finish(t *probeTarget) {
	c.slots[t.slot] = nil
	c.free = append(c.free, t.slot)
	c.active--
	c.totals.finished++
	if t.received() == 0 {
		c.totals.silent++
	}
	c.report.finished(t)
}

// abandon finishes the targets that are still at work, in the order they came.
func (c *campaign) abandon() {
	rest := slices.DeleteFunc(slices.Clone(c.slots), func(t *probeTarget) bool { return t == nil })
	slices.SortFunc(rest, func(a, b *probeTarget) int { return cmp.Compare(a.number, b.number) })
	for _, t := range rest {
		c.finish(t)
	}
}

// dueQueue is a heap of targets, the one that is due first on top.
type dueQueue []*probeTarget

func (q dueQueue) Len() int           { return len(q) }
func (q dueQueue) Less(i, j int) bool { return q[i].next.Before(q[j].next) }
func (q dueQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *dueQueue) Push(x any)        { *q = append(*q, x.(*probeTarget)) }
func (q *dueQueue) Pop() any {
	old := *q
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return t
}
