// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
)

const (
	// hopWindow is how many hops are probed at once: few enough to leave the target's ICMP limiter alone when the
	// path is shorter, enough for a path of 20 hops to take three round trips.
	hopWindow = 8
	// hopTimeout is how long a probe is waited for, from when it was sent.
	hopTimeout = time.Second
	// answerMargin is how long before the caller's deadline the answer leaves.
	answerMargin = 200 * time.Millisecond
	// longestPath is a difference of times beyond which clocks of different zones are to blame.
	longestPath = time.Minute
)

// traceroute does what a command asks for, from an agent of any dialect. Its error is one for volta.ResponseFor.
func (c *Controller) traceroute(ctx context.Context, cmd volta.Command) (*volta.Result, error) {
	if err := cmd.CheckSize(c.fleet.ports.blocks.Size()); err != nil {
		return nil, err
	}
	site := c.fleet.site(cmd.Source)
	if site == nil || site.goneFor(time.Now()) > 0 {
		return nil, &volta.NotConnectedError{AgentID: cmd.Source}
	}
	target, err := c.names.ResolveIP(ctx, cmd.Destination)
	if err != nil {
		return nil, err
	}
	end := time.Now().Add(cmd.Wait)
	if deadline, ok := ctx.Deadline(); ok && deadline.Add(-answerMargin).Before(end) {
		end = deadline.Add(-answerMargin)
	}
	var result *volta.Result
	if site.native {
		result, err = c.keyedTraceroute(ctx, cmd, target, end)
	} else {
		result, err = c.classicTraceroute(ctx, cmd, target, site)
	}
	if err != nil {
		return nil, err
	}
	c.addNames(ctx, result)
	return result, nil
}

// addNames looks up the names of routers, as far as that is possible in a moment.
func (c *Controller) addNames(ctx context.Context, r *volta.Result) {
	if c.opts.NameTimeout < 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.NameTimeout)
	defer cancel()
	r.SetNames(c.names.ResolveHostnames(ctx, r.Gateways()))
}

// classicTraceroute has one of the originals' agents probe, in the originals' way.
func (c *Controller) classicTraceroute(ctx context.Context, cmd volta.Command, target netip.Addr, s *site) (*volta.Result, error) {
	if cmd.ICMP {
		return nil, fmt.Errorf("%s: echo requests: %w", s.name, anycast.ErrCannotSend)
	}
	f := c.fleet
	first, err := f.ports.allocateBlock()
	if err != nil {
		return nil, err
	}
	defer f.ports.release(first)
	trace, err := volta.NewTraceroute(volta.TracerouteConf{Command: cmd, Target: target, SessionID: first})
	if err != nil {
		return nil, err
	}
	if cmd.Probes() > 0 {
		session, err := f.openClassic(first, uint16(cmd.Probes()), target, func(site string, packet []byte, at volta.Time) {
			trace.HandleReply(volta.Reply{Packet: packet, Time: at}, site)
		})
		if err != nil {
			return nil, err
		}
		defer session.end()
	}
	f.mu.Lock()
	f.jobs[first] = &job{site: s, trace: trace}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.jobs, first)
	}()
	return trace.Run(ctx, func(j volta.Job) error {
		sent, err := s.job(j)
		if err == nil && !sent {
			err = &volta.NotConnectedError{AgentID: s.name}
		}
		return err
	})
}

// keyedTraceroute has a native agent probe, a few hops at a time, in one flow and with a key.
func (c *Controller) keyedTraceroute(ctx context.Context, cmd volta.Command, target netip.Addr, end time.Time) (*volta.Result, error) {
	t := &keyedTrace{
		fleet: c.fleet, cmd: cmd, target: target, probes: make([]keyedProbe, cmd.Probes()),
		lastTTL: cmd.MaxTTL, wake: make(chan struct{}, 1),
	}
	if len(t.probes) == 0 || !time.Now().Before(end) {
		return t.result(), nil
	}
	kind := stateless.UDP
	if cmd.ICMP {
		kind = stateless.ICMP
	}
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	session, err := c.fleet.Open(ctx, anycast.SessionConfig{Probes: stateless.Config{Kind: kind, TOS: cmd.TrafficClass()}, Handler: t})
	if errors.Is(err, anycast.ErrNoPorts) {
		err = volta.ErrNoBlock
	}
	if err != nil {
		return nil, err
	}
	defer session.Close()
	if err := t.run(ctx, session); err != nil {
		return nil, err
	}
	return t.result(), nil
}

// keyedTrace is the state of a traceroute by a native agent. It is its session's Handler; what it does when something
// arrives is done where that arrives, so that it needs no goroutine but the one that waits for it.
type keyedTrace struct {
	fleet  *fleet
	cmd    volta.Command
	target netip.Addr
	wake   chan struct{} // holds an element when run is to look

	mu       sync.Mutex
	session  anycast.Session
	probes   []keyedProbe // by number: hop by hop
	batches  []probeRange // by id
	next     int          // number of the first probe that is not sent
	settled  int          // no probe before it is waited for
	lastTTL  int          // hop behind which nothing is of interest
	failure  error        // why nothing more can be sent
	deadline time.Time    // when the probe waited for longest is given up
}

// probeRange is the numbers of the probes of a batch: [first, end).
type probeRange struct{ first, end int }

// keyedProbe is one probe and what became of it.
type keyedProbe struct {
	sent     int64     // departure by the clock of the sending site, 0 if not known
	received int64     // arrival by the clock of the receiving site
	reported time.Time // when the site said that it had left; zero before
	answered bool
	given    bool // up
	final    bool
	gateway  netip.Addr
	receiver string
}

// settled tells that nothing more is waited for about the probe.
func (p *keyedProbe) settled() bool { return p.given || p.answered && !p.reported.IsZero() }

// run sends and waits until all is known, or ctx ends. What is known then is the result.
func (t *keyedTrace) run(ctx context.Context, session anycast.Session) error {
	t.mu.Lock()
	t.session = session
	err := t.advanceLocked()
	t.mu.Unlock()
	if err != nil {
		return err
	}
	timer := time.NewTimer(hopTimeout)
	defer timer.Stop()
	for {
		t.mu.Lock()
		now := time.Now()
		t.giveUpLocked(now)
		err := t.advanceLocked()
		over := t.overLocked()
		deadline := t.deadline
		t.mu.Unlock()
		if over || err != nil {
			return nil
		}
		timer.Reset(deadline.Sub(now))
		select {
		case <-t.wake:
		case <-timer.C:
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(cause, context.DeadlineExceeded) {
				return cause
			}
			return nil
		}
	}
}

// overLocked tells that there is nothing to wait for.
func (t *keyedTrace) overLocked() bool {
	return t.settled >= t.lastTTL*t.cmd.Queries || t.failure != nil && t.settled >= t.next
}

// giveUpLocked gives up probes whose time is over, and finds when the next one's is.
func (t *keyedTrace) giveUpLocked(now time.Time) {
	t.deadline = now.Add(hopTimeout)
	for i := t.settled; i < t.next; i++ {
		p := &t.probes[i]
		if p.settled() || p.reported.IsZero() {
			continue
		}
		if at := p.reported.Add(hopTimeout); !at.After(now) {
			p.given = true
		} else if at.Before(t.deadline) {
			t.deadline = at
		}
	}
}

// advanceLocked finds out what is settled and sends the probes of the next hops, once there is room for half a window.
func (t *keyedTrace) advanceLocked() error {
	for t.settled < t.next && t.probes[t.settled].settled() {
		t.settled++
	}
	q := t.cmd.Queries
	open := 0 // hops under way
	for i := t.settled / q * q; i < t.next; i += q {
		for j := i; j < i+q; j++ {
			if p := &t.probes[j]; !p.given && !p.answered {
				open++
				break
			}
		}
	}
	first, last := t.next/q+1, min(t.next/q+hopWindow-open, t.lastTTL) // hops
	if t.failure != nil || last < first || open > hopWindow/2 && last < t.lastTTL {
		return nil
	}
	n := (last - first + 1) * q
	b := anycast.Batch{
		ID: uint64(len(t.batches)), Targets: []netip.Addr{t.target}, Flows: []uint16{0}, TTLs: make([]uint8, n), Numbers: make([]uint16, n), Stamps: true,
	}
	for i := range n {
		b.TTLs[i] = uint8(first + i/q)
		b.Numbers[i] = uint16(t.next + i)
	}
	if err := t.session.Send(t.cmd.Source, b); err != nil {
		if errors.Is(err, anycast.ErrNoSite) {
			err = &volta.NotConnectedError{AgentID: t.cmd.Source}
		}
		t.failure = err
		if t.next == 0 {
			return err
		}
		return nil
	}
	t.batches = append(t.batches, probeRange{t.next, t.next + n})
	t.next += n
	return nil
}

// HandleSent notes departures: from now on answers are late at some time.
func (t *keyedTrace) HandleSent(s anycast.Sent) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.Batch >= uint64(len(t.batches)) {
		return
	}
	b := t.batches[s.Batch]
	now := time.Now()
	for i := b.first; i < b.end; i++ {
		p := &t.probes[i]
		p.reported = now
		if len(s.Times) > 0 {
			p.sent = s.Times[i-b.first]
		}
		if s.Err != nil && p.sent == 0 && !p.answered {
			p.given = true // it never left
		}
	}
	if s.Err != nil && s.Count == 0 {
		t.failure = s.Err
	}
	t.proceedLocked()
}

// HandleAnswers notes answers: the first to a probe counts.
func (t *keyedTrace) HandleAnswers(answers []anycast.Answer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range answers {
		a := &answers[i]
		n := int(a.Number)
		if n >= t.next || t.probes[n].answered || a.Target != t.target {
			continue
		}
		p := &t.probes[n]
		p.answered = true
		p.gateway, p.receiver, p.received = a.Responder, a.Site, a.Time
		p.final = a.Status == probe.Replied || a.HasICMP && a.ICMPType == packet.ICMPv4Unreachable
		if ttl := n/t.cmd.Queries + 1; p.final && ttl < t.lastTTL {
			t.lastTTL = ttl
		}
	}
	t.proceedLocked()
}

// proceedLocked sends what there is room for, and has run look if it is over.
func (t *keyedTrace) proceedLocked() {
	t.advanceLocked() //nolint:errcheck // it is in t.failure
	if t.overLocked() {
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
}

// result is what is known so far, as the original shows it.
func (t *keyedTrace) result() *volta.Result {
	t.mu.Lock()
	defer t.mu.Unlock()
	q := t.cmd.Queries
	r := &volta.Result{
		Source: t.cmd.Source, Destination: t.cmd.Destination, Target: t.target, Queries: q, MaxTTL: t.cmd.MaxTTL,
		Hops: make([]volta.Hop, 0, t.lastTTL),
	}
	all := make([]volta.TracerouteResult, t.lastTTL*q)
	for ttl := 1; ttl <= t.lastTTL; ttl++ {
		hop := all[(ttl-1)*q : ttl*q : ttl*q]
		for i := range hop {
			n := (ttl-1)*q + i
			p, out := &t.probes[n], &hop[i]
			*out = volta.TracerouteResult{Seq: n, Timeout: !p.answered}
			if p.sent != 0 {
				out.Sent = volta.At(time.Unix(0, p.sent))
			}
			if !p.answered {
				continue
			}
			out.Gateway, out.Receiver, out.Final = p.gateway, p.receiver, p.final
			if p.received != 0 {
				out.Received = volta.At(time.Unix(0, p.received))
			}
			out.RTT, out.HasRTT = t.rtt(p, out)
		}
		r.Hops = append(r.Hops, volta.Hop{TTL: ttl, Probes: hop})
	}
	return r
}

// rtt is the time that is shown: corrected where the receiver's clock is known, nothing where it is not known well
// enough, and, as the original's users expect, the plain difference where the receiver is one of the originals' agents.
func (t *keyedTrace) rtt(p *keyedProbe, out *volta.TracerouteResult) (time.Duration, bool) {
	if s := t.fleet.site(p.receiver); s != nil && !s.native {
		return out.Received.Sub(out.Sent, longestPath)
	}
	rtt, _, ok := t.fleet.RTT(t.cmd.Source, p.sent, p.receiver, p.received)
	return rtt, ok
}
