// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// Defaults of [TracerouteConf].
const (
	DefaultTracerouteHops    = 20
	DefaultTracerouteQueries = 3
	DefaultTracerouteWindow  = 8
	DefaultHopTimeout        = time.Second

	// maxSlotsAtFirst is room for the usual request, so that it needs no second allocation.
	maxSlotsAtFirst = 96
)

// TracerouteConf describes a [Traceroute].
type TracerouteConf struct {
	Fleet Fleet
	// Site sends the probes to Target.
	Site   string
	Target netip.Addr
	// Source is the address to send from; by default the site's first anycast address of the target's IP version.
	Source netip.Addr
	// Probes is what probes look like: UDP unless Kind is set. All are one flow.
	Probes stateless.Config
	// MaxTTL is the last hop tried: 20 unless set. Queries is how many probes each hop gets: 3 unless set.
	MaxTTL, Queries int
	// Window is how many hops may wait for answers at once: 8 unless set. No more than that see probes that need not
	// have been sent.
	Window int
	// Expected is how long the path was found to be before, in hops; 0 if that is not known. So many are probed at
	// once at first, and the traceroute is over after one batch if nothing has changed.
	Expected int
	// HopTimeout is how long an answer is waited for, from when its probe was reported as sent: 1 s unless set.
	HopTimeout time.Duration
}

// Traceroute finds the path from one site to a target, whose answers may come home at any site. It is the lean way of
// doing that, for many requests at once: all probes are one flow, some hops at a time go out as one batch, and there is no
// goroutine but the one that calls Run; answers are booked where they arrive. One of 20 hops with 60 probes costs some
// 25 µs of one core beside the fleet's work, and 25 kB. [Via] has more to offer:
// every algorithm of package trace.
//
// A Traceroute ends when every hop up to the first final one, the target or who says that there is no way to it, has
// its answers or has used up HopTimeout. Use it for one run. It is the [Handler] of its session.
type Traceroute struct {
	conf TracerouteConf
	wake chan struct{} // holds an element when Run is to look

	mu       sync.Mutex // guards all following fields
	slots    []slot     // of the probes sent, by number: hop by hop
	settled  int        // every probe before it is
	last     int        // hop behind which nothing is of interest
	batches  [][2]int   // by id: first probe, and the one behind the last
	failure  error      // why no more can be sent
	deadline time.Time  // when the next probe is given up
}

// slot is a probe.
type slot struct {
	TracerouteReply
	ordered        time.Time // or reported, as soon as it is
	reported, over bool
}

// settled tells that nothing more is to come about the probe.
func (s *slot) settled() bool { return s.over || s.Responder.IsValid() && (s.reported || s.Sent != 0) }

// TracerouteResult is what a Traceroute found.
type TracerouteResult struct {
	Site   string
	Target netip.Addr
	// Queries is how many probes each hop had.
	Queries int
	// Hops are the answers by hop, from hop limit 1, each with Queries elements, up to the first final hop or the last
	// one tried.
	Hops [][]TracerouteReply
	// Reached tells that the last hop is final.
	Reached bool
	// Sent is how many probes were sent.
	Sent int
	// Err is why the traceroute ended early, if it did: ErrSiteLost, or the site's reason.
	Err error
}

// TracerouteReply is the answer to one probe, zero if there was none.
type TracerouteReply struct {
	Responder netip.Addr
	// Receiver is the site that heard it.
	Receiver string
	Status   probe.Status
	// RTT is 0 if it is not known (see Fleet.RTT), and may be off by Uncertainty.
	RTT, Uncertainty time.Duration
	// Sent and Received are by the clocks of the sending and the receiving site, in nanoseconds since 1970; 0 if not known.
	Sent, Received int64
}

// Final tells that nothing lies behind who answered.
func (r *TracerouteReply) Final() bool {
	return r.Status != 0 && r.Status != probe.TimeExceeded && r.Status != probe.NoReply
}

var _ Handler = (*Traceroute)(nil)

// NewTraceroute checks a configuration. Its error is ErrDefinition.
func NewTraceroute(conf TracerouteConf) (*Traceroute, error) {
	set(&conf.Probes.Kind, stateless.UDP)
	set(&conf.MaxTTL, DefaultTracerouteHops)
	set(&conf.Queries, DefaultTracerouteQueries)
	set(&conf.Window, DefaultTracerouteWindow)
	set(&conf.HopTimeout, DefaultHopTimeout)
	conf.Target = conf.Target.Unmap()
	var c checker
	c.want(conf.Target.IsValid(), "target", conf.Target, "want an address")
	c.want(conf.MaxTTL >= 1 && conf.MaxTTL <= 255, "max hops", conf.MaxTTL, "want 1 to 255")
	c.want(conf.Queries >= 1 && conf.Queries*conf.MaxTTL <= stateless.MaxNumber, "queries", conf.Queries, "want 1 to %d", stateless.MaxNumber/max(1, conf.MaxTTL))
	c.want(conf.Window >= 1, "window", conf.Window, "want at least 1")
	c.want(conf.HopTimeout > 0, "hop timeout", conf.HopTimeout, "want more than 0")
	switch conf.Probes.Kind {
	case stateless.ICMP, stateless.UDP, stateless.TCP:
	default:
		c.want(false, "protocol", conf.Probes.Kind, "traces are made of icmp, udp or tcp")
	}
	if err := errors.Join(c.errs...); err != nil {
		return nil, err
	}
	return &Traceroute{
		conf: conf, last: conf.MaxTTL, wake: make(chan struct{}, 1),
		slots: make([]slot, 0, min(conf.MaxTTL*conf.Queries, maxSlotsAtFirst)),
	}, nil
}

// Run does it. When ctx ends first, what is known by then is the result, without an error. Errors: those of
// Fleet.Open and Session.Send, if not a single probe was sent.
func (t *Traceroute) Run(ctx context.Context) (*TracerouteResult, error) {
	session, err := t.conf.Fleet.Open(ctx, SessionConfig{Probes: t.conf.Probes, Numbers: t.conf.MaxTTL * t.conf.Queries, Handler: t})
	if err != nil {
		return nil, fmt.Errorf("traceroute %s from %s: %w", t.conf.Target, t.conf.Site, err)
	}
	defer session.Close()
	timer := time.NewTimer(t.conf.HopTimeout)
	defer timer.Stop()
	for {
		now := time.Now()
		t.mu.Lock()
		t.giveUpLocked(now)
		b, ok := t.nextLocked(now)
		over := t.overLocked()
		deadline := t.deadline
		t.mu.Unlock()
		if ok {
			if err := session.Send(t.conf.Site, b); err != nil {
				if b.ID == 0 {
					return nil, fmt.Errorf("traceroute %s from %s: %w", t.conf.Target, t.conf.Site, err)
				}
				t.HandleSent(Sent{Site: t.conf.Site, Batch: b.ID, Err: err})
			}
			continue
		}
		if over {
			return t.result(), nil
		}
		timer.Reset(deadline.Sub(now))
		select {
		case <-t.wake:
		case <-timer.C:
		case <-ctx.Done():
			return t.result(), nil
		}
	}
}

// sentLocked is how many hops have had their probes ordered.
func (t *Traceroute) sentLocked() int { return len(t.slots) / t.conf.Queries }

// overLocked tells that there is nothing to wait for.
func (t *Traceroute) overLocked() bool {
	for t.settled < len(t.slots) && t.slots[t.settled].settled() {
		t.settled++
	}
	end := t.last
	if t.failure != nil {
		end = min(end, t.sentLocked())
	}
	return t.settled >= end*t.conf.Queries
}

// giveUpLocked gives up the probes whose time is over, and finds when the next one's is.
func (t *Traceroute) giveUpLocked(now time.Time) {
	t.deadline = now.Add(t.conf.HopTimeout)
	for i := t.settled; i < len(t.slots); i++ {
		s := &t.slots[i]
		if s.settled() || !s.reported {
			continue // a site that is slow to send is no hop that is slow to answer
		}
		if at := s.ordered.Add(t.conf.HopTimeout); !at.After(now) {
			s.over = true
		} else if at.Before(t.deadline) {
			t.deadline = at
		}
	}
}

// nextLocked makes the batch of the next hops, as soon as half the window is free: a window at a time would
// wait for the slowest hop, a hop at a time is many messages.
func (t *Traceroute) nextLocked(now time.Time) (Batch, bool) {
	if t.overLocked() || t.failure != nil {
		return Batch{}, false
	}
	q := t.conf.Queries
	done := t.sentLocked()
	open := 0
	for hop := t.settled / q; hop < done; hop++ {
		for i := hop * q; i < (hop+1)*q; i++ {
			if s := &t.slots[i]; !s.over && !s.Responder.IsValid() {
				open++
				break
			}
		}
	}
	window := t.conf.Window
	if done == 0 {
		window = max(window, t.conf.Expected)
	}
	last := min(done+window-open, t.last)
	if last <= done || open > t.conf.Window/2 {
		return Batch{}, false
	}
	first := len(t.slots)
	n := (last - done) * q
	b := Batch{
		ID: uint64(len(t.batches)), Source: t.conf.Source, Targets: []netip.Addr{t.conf.Target}, Flows: []uint16{0},
		TTLs: make([]uint8, n), Numbers: make([]uint16, n), Stamps: true,
	}
	for i := range n {
		b.TTLs[i] = uint8(done + 1 + i/q)
		b.Numbers[i] = uint16(first + i)
		t.slots = append(t.slots, slot{ordered: now})
	}
	t.batches = append(t.batches, [2]int{first, first + n})
	return b, true
}

// lookLocked has Run look, if there is something for it to do: when all hops have been probed that is the end, and the
// time that answers may take, which Run knows of.
func (t *Traceroute) lookLocked() {
	if t.sentLocked() >= t.last && !t.overLocked() {
		return
	}
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// HandleSent implements Handler.
func (t *Traceroute) HandleSent(e Sent) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e.Batch >= uint64(len(t.batches)) {
		return
	}
	now := time.Now()
	span := t.batches[e.Batch]
	for i := span[0]; i < span[1]; i++ {
		s := &t.slots[i]
		s.reported, s.ordered = true, now
		left := i-span[0] < e.Count
		if k := i - span[0]; k < len(e.Times) {
			s.Sent, left = e.Times[k], e.Times[k] != 0
		}
		if !left && !s.Responder.IsValid() {
			s.over = true
		}
	}
	if e.Err != nil && t.failure == nil {
		t.failure = e.Err
	}
	t.lookLocked()
}

// HandleAnswers implements Handler.
func (t *Traceroute) HandleAnswers(all []Answer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	look := false
	for i := range all {
		a := &all[i]
		if int(a.Number) >= len(t.slots) || a.Target != t.conf.Target {
			continue
		}
		s := &t.slots[a.Number]
		if s.Responder.IsValid() {
			continue // a duplicate
		}
		s.Responder, s.Receiver, s.Status, s.Received = a.Responder, a.Site, a.Status, a.Time
		if s.Sent == 0 {
			s.Sent = a.Sent
		}
		if hop := int(a.Number)/t.conf.Queries + 1; s.Final() && hop < t.last {
			t.last = hop
		}
		look = true
	}
	if look {
		t.lookLocked()
	}
}

// result is what is known by now.
func (t *Traceroute) result() *TracerouteResult {
	t.mu.Lock()
	defer t.mu.Unlock()
	q := t.conf.Queries
	r := &TracerouteResult{
		Site: t.conf.Site, Target: t.conf.Target, Queries: q, Sent: len(t.slots), Err: t.failure,
		Hops: make([][]TracerouteReply, 0, min(t.last, t.sentLocked())),
	}
	replies := make([]TracerouteReply, min(t.last, t.sentLocked())*q)
	for hop := range min(t.last, t.sentLocked()) {
		here := replies[hop*q : (hop+1)*q : (hop+1)*q]
		for i := range here {
			s := &t.slots[hop*q+i]
			here[i] = s.TracerouteReply
			if s.Sent != 0 && s.Received != 0 {
				if rtt, uncertainty, ok := t.conf.Fleet.RTT(t.conf.Site, s.Sent, s.Receiver, s.Received); ok && rtt > 0 {
					here[i].RTT, here[i].Uncertainty = rtt, uncertainty
				}
			}
			r.Reached = r.Reached || here[i].Final()
		}
		r.Hops = append(r.Hops, here)
	}
	return r
}
