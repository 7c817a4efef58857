// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
	"github.com/seed5728abee/fathom/trace"
)

const (
	// viaGather is how long the first probe of a batch waits for others, so that a window of probes is one message.
	viaGather = 200 * time.Microsecond
	// viaBatch is when a batch goes at once.
	viaBatch = 512
)

// ViaConf describes a [Via].
type ViaConf struct {
	Fleet Fleet
	// Site sends the probes.
	Site string
	// Source is the address to send from; by default the site's first anycast address of each target's IP version.
	Source netip.Addr
	// Probes is what probes look like; Kind is ICMP, UDP or TCP. Ports is how many flows there can be: flows that differ
	// by a multiple of it are the same.
	Probes stateless.Config
	// Linger is as in SessionConfig.
	Linger time.Duration
}

// Via lets a site of a fleet send the probes of package trace, so that trace.Run, trace.Multipath and trace.Continuous
// work over it, thousands at the same time. A result's Receiver is the site that heard the answer. Its RTT is 0 if the clocks of sender and
// receiver are not known well enough, and ClockError bounds its error.
//
// Probes that are started in a row go out as one batch. An answer is matched by target and number in constant time; the numbers of a target
// come round after 65,534 probes to it, those under way left out, so that answers to the probe that had one
// before have long come.
type Via struct {
	conf    ViaConf
	kind    probe.Protocol
	session Session
	wake    chan struct{} // holds an element when run is to look
	stop    chan struct{}
	wg      sync.WaitGroup

	// Of its session's numbers it has so many from the first on: all, unless it shares the session with a sweep.
	firstNumber, numbers int
	firstBatch           uint64 // 0 if the session is its own

	mu        sync.Mutex // guards all following fields
	closed    bool
	waiting   []*viaProbe // to be sent
	flying    map[viaKey]*viaProbe
	targets   map[netip.Addr]*viaTarget
	batches   map[uint64][]*viaProbe
	lastBatch uint64
	ends      viaHeap
	spread    uint16 // flow of the next probe without one
}

// viaKey is what an answer tells about its probe.
type viaKey struct {
	target netip.Addr
	number uint16
}

// viaTarget hands out numbers.
type viaTarget struct {
	next   int
	flying int
}

// viaProbe is a probe under way.
type viaProbe struct {
	key      viaKey
	req      probe.Request
	flow     uint16
	done     func(probe.Result, *Answer)
	started  time.Time
	sent     int64 // by the site's clock
	kernel   bool
	reported bool
	answer   *Answer // that waits for the report
	end      time.Time
	at       int // in the heap, -1 if it is not
}

// viaHeap has the probes that wait for answers, the first to give up first.
type viaHeap []*viaProbe

func (h viaHeap) Len() int           { return len(h) }
func (h viaHeap) Less(i, j int) bool { return h[i].end.Before(h[j].end) }
func (h viaHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].at, h[j].at = i, j }
func (h *viaHeap) Push(x any)        { p := x.(*viaProbe); p.at = len(*h); *h = append(*h, p) }
func (h *viaHeap) Pop() any {
	last := len(*h) - 1
	p := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	p.at = -1
	return p
}

var (
	_ trace.Via     = (*Via)(nil)
	_ trace.Starter = (*Via)(nil)
	_ Handler       = (*Via)(nil)
)

// NewVia opens a session for probes from one site. Close it.
func NewVia(ctx context.Context, conf ViaConf) (*Via, error) {
	v, err := newVia(conf)
	if err != nil {
		return nil, err
	}
	v.session, err = conf.Fleet.Open(ctx, SessionConfig{Probes: conf.Probes, Handler: v, Linger: conf.Linger})
	if err != nil {
		return nil, fmt.Errorf("open a session: %w", err)
	}
	v.start()
	return v, nil
}

// newVia makes a via without a session. It does nothing before start.
func newVia(conf ViaConf) (*Via, error) {
	kind, ok := protocolOf(conf.Probes.Kind)
	if !ok {
		return nil, &FieldError{Field: "protocol", Value: conf.Probes.Kind, Reason: "traces are made of icmp, udp or tcp"}
	}
	conf.Probes.Ports = max(1, conf.Probes.Ports)
	return &Via{
		conf: conf, kind: kind, numbers: stateless.MaxNumber + 1, wake: make(chan struct{}, 1), stop: make(chan struct{}),
		flying: make(map[viaKey]*viaProbe), targets: make(map[netip.Addr]*viaTarget),
		batches: make(map[uint64][]*viaProbe),
	}, nil
}

func (v *Via) start() { v.wg.Go(v.run) }

// protocolOf is what package probe calls a kind.
func protocolOf(k stateless.Kind) (p probe.Protocol, ok bool) {
	switch k {
	case stateless.ICMP:
		return probe.ICMP, true
	case stateless.UDP:
		return probe.UDP, true
	case stateless.TCP:
		return probe.TCP, true
	case stateless.DNS, stateless.CHAOS:
	}
	return 0, false
}

// Request is a request for a probe to a target as this via sends it.
func (v *Via) Request(target netip.Addr) probe.Request {
	return probe.Request{Target: target, Protocol: v.kind}
}

// Close ends the session and all probes, with net.ErrClosed, and waits for what is being sent.
func (v *Via) Close() {
	v.mu.Lock()
	again := v.closed
	v.closed = true
	left := make([]*viaProbe, 0, len(v.flying))
	for _, p := range v.flying {
		left = append(left, p)
	}
	for _, p := range left {
		v.removeLocked(p)
	}
	v.mu.Unlock()
	if !again {
		close(v.stop)
	}
	v.wg.Wait()
	if !again && v.firstBatch == 0 { // else the session is another's
		v.session.Close()
	}
	for _, p := range left {
		p.fail(net.ErrClosed)
	}
}

// Probe sends a probe and waits for what becomes of it. It implements trace.Via.
func (v *Via) Probe(ctx context.Context, req probe.Request) (probe.Result, error) {
	done := make(chan probe.Result, 1)
	cancel, err := v.StartProbe(req, func(r probe.Result) { done <- r })
	if err != nil {
		return probe.Result{Tag: req.Tag, Target: req.Target, Status: probe.Failed, Err: err}, err
	}
	select {
	case r := <-done:
		return r, r.Err
	case <-ctx.Done():
		cancel()
		r := <-done
		if errors.Is(r.Err, context.Canceled) {
			r.Err = fmt.Errorf("probe %s: %w", req.Target, context.Cause(ctx))
		}
		return r, r.Err
	}
}

// StartProbe sends a probe. done is called once with what became of it, on another goroutine or by cancel or Close; it
// must not block. What the request says about the probe, other than Protocol, TTL and Flow, must be unset: the session
// decides. A Flow of 0 gives each probe another flow. cancel ends the probe with context.Canceled if it has not
// ended. It implements trace.Starter. Errors: probe.ErrInvalid, probe.ErrExhausted and net.ErrClosed.
func (v *Via) StartProbe(req probe.Request, done func(probe.Result)) (cancel func(), err error) {
	return v.startWith(req, func(r probe.Result, _ *Answer) { done(r) })
}

// startWith is StartProbe for those who want to see the answer as well. It is nil without one, and not to be kept.
func (v *Via) startWith(req probe.Request, done func(probe.Result, *Answer)) (cancel func(), err error) {
	if err := v.check(&req); err != nil {
		return nil, err
	}
	if req.Timeout == 0 {
		req.Timeout = probe.DefaultTimeout
	}
	if req.TTL == 0 {
		req.TTL = probe.DefaultTTL
	}
	p := &viaProbe{req: req, done: done, started: time.Now(), flow: req.Flow, at: -1}
	p.key.target = req.Target.Unmap()

	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil, net.ErrClosed
	}
	if p.flow == 0 {
		p.flow = v.spread
		v.spread++
	}
	t := v.targets[p.key.target]
	if t == nil {
		t = &viaTarget{}
		v.targets[p.key.target] = t
	}
	if t.flying == v.numbers {
		return nil, probe.ErrExhausted
	}
	for {
		p.key.number = uint16(v.firstNumber + t.next)
		t.next = (t.next + 1) % v.numbers
		if v.flying[p.key] == nil {
			break
		}
	}
	t.flying++
	v.flying[p.key] = p
	v.waiting = append(v.waiting, p)
	if n := len(v.waiting); n == 1 || n == viaBatch {
		v.look()
	}
	return func() { v.cancel(p) }, nil
}

// check refuses what the session cannot do.
func (v *Via) check(r *probe.Request) error {
	refuse := func(field string, value any, reason string) error {
		return &probe.RequestError{Field: field, Value: value, Reason: reason}
	}
	const decided = "the session decides"
	switch {
	case !r.Target.IsValid() || r.Target.Zone() != "":
		return refuse("target", r.Target, "want an address without a zone")
	case r.Protocol != v.kind:
		return refuse("protocol", r.Protocol, fmt.Sprintf("the session's probes are %v", v.kind))
	case r.Port != 0:
		return refuse("port", r.Port, decided)
	case r.LocalPort != 0:
		return refuse("local port", r.LocalPort, decided)
	case r.LocalAddr.IsValid():
		return refuse("local address", r.LocalAddr, decided)
	case r.Size != 0:
		return refuse("size", r.Size, decided)
	case r.TOS != 0:
		return refuse("TOS", r.TOS, decided)
	case r.Interface != "" || r.Mark != 0 || r.Pattern != 0:
		return refuse("interface, mark or pattern", "", "a site of a fleet has none of these")
	}
	return nil
}

func (v *Via) look() {
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

func (v *Via) cancel(p *viaProbe) {
	v.mu.Lock()
	there := v.removeLocked(p)
	v.mu.Unlock()
	if there {
		p.fail(context.Canceled)
	}
}

// removeLocked forgets a probe, and tells whether it was there.
func (v *Via) removeLocked(p *viaProbe) bool {
	if v.flying[p.key] != p {
		return false
	}
	delete(v.flying, p.key)
	v.targets[p.key.target].flying--
	if p.at >= 0 {
		heap.Remove(&v.ends, p.at)
	}
	return true
}

// run sends what waits and ends what has waited long enough, until Close.
func (v *Via) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now := time.Now()
		next := now.Add(time.Hour)
		v.mu.Lock()
		var late []*viaProbe
		for len(v.ends) > 0 && !v.ends[0].end.After(now) {
			late = append(late, v.ends[0])
			v.removeLocked(v.ends[0])
		}
		if len(v.ends) > 0 {
			next = v.ends[0].end
		}
		var out []Batch
		if len(v.waiting) > 0 {
			if at := v.waiting[0].started.Add(viaGather); len(v.waiting) >= viaBatch || !at.After(now) {
				out = v.packLocked()
			} else if at.Before(next) {
				next = at
			}
		}
		v.mu.Unlock()
		for _, b := range out {
			if err := v.session.Send(v.conf.Site, b); err != nil {
				v.HandleSent(Sent{Site: v.conf.Site, Batch: b.ID, Err: err})
			}
		}
		for _, p := range late {
			p.done(p.result(probe.NoReply), nil)
		}
		if len(out) > 0 {
			continue
		}
		timer.Reset(time.Until(next))
		select {
		case <-v.wake:
		case <-timer.C:
		case <-v.stop:
			return
		}
	}
}

// packLocked makes batches, one for each IP version, of what waits.
func (v *Via) packLocked() (out []Batch) {
	for _, six := range []bool{false, true} {
		var b Batch
		var probes []*viaProbe
		for _, p := range v.waiting {
			if p.key.target.Is6() != six || v.flying[p.key] != p {
				continue
			}
			b.Targets = append(b.Targets, p.key.target)
			b.TTLs = append(b.TTLs, p.req.TTL)
			b.Flows = append(b.Flows, p.flow)
			b.Numbers = append(b.Numbers, p.key.number)
			probes = append(probes, p)
		}
		if len(probes) == 0 {
			continue
		}
		b.ID, b.Stamps, b.Source = v.firstBatch+v.lastBatch, true, v.conf.Source
		v.lastBatch++
		v.batches[b.ID] = probes
		out = append(out, b)
	}
	clear(v.waiting)
	v.waiting = v.waiting[:0]
	return out
}

// HandleSent implements Handler.
func (v *Via) HandleSent(e Sent) {
	type ended struct {
		p      *viaProbe
		answer *Answer
	}
	var over []ended
	v.mu.Lock()
	now := time.Now()
	for i, p := range v.batches[e.Batch] {
		if v.flying[p.key] != p {
			continue
		}
		p.reported, p.kernel = true, e.Kernel
		left := i < e.Count
		if e.Times != nil {
			left = i < len(e.Times) && e.Times[i] != 0
			if left {
				p.sent = e.Times[i]
			}
		}
		switch {
		case p.answer != nil || !left:
			v.removeLocked(p)
			over = append(over, ended{p, p.answer})
		default:
			p.end = now.Add(max(0, p.req.Timeout))
			heap.Push(&v.ends, p)
		}
	}
	delete(v.batches, e.Batch)
	v.mu.Unlock()
	v.look()
	for _, o := range over {
		if o.answer != nil {
			v.finish(o.p, o.answer)
			continue
		}
		err := e.Err
		if err == nil {
			err = probe.ErrExhausted
		}
		o.p.fail(&sendError{site: v.conf.Site, err: err})
	}
}

// sendError is why a site could not send a probe.
type sendError struct {
	site string
	err  error
}

func (e *sendError) Error() string { return fmt.Sprintf("site %s: %v", e.site, e.err) }
func (e *sendError) Unwrap() error { return e.err }

// HandleAnswers implements Handler.
func (v *Via) HandleAnswers(all []Answer) {
	for i := range all {
		a := &all[i]
		v.mu.Lock()
		p := v.flying[viaKey{a.Target, a.Number}]
		switch {
		case p == nil || p.answer != nil: // late, forged or a duplicate
			p = nil
		case p.reported || a.Sent != 0:
			v.removeLocked(p)
		default: // the time of departure is on its way
			kept := *a
			kept.Labels = slices.Clone(a.Labels)
			p.answer, p = &kept, nil
		}
		v.mu.Unlock()
		if p != nil {
			v.finish(p, a)
		}
	}
}

// finish ends a probe with its answer.
func (v *Via) finish(p *viaProbe, a *Answer) {
	r := p.result(a.Status)
	r.HasICMP, r.ICMPType, r.ICMPCode = a.HasICMP, a.ICMPType, a.ICMPCode
	r.ReplyTTL, r.QuotedTTL, r.QuotedTOS = a.ReplyTTL, a.QuotedTTL, a.QuotedTOS
	r.Responder, r.Receiver, r.MTU, r.MPLS = a.Responder, a.Site, a.MTU, slices.Clone(a.Labels)
	sent := p.sent
	if sent == 0 {
		sent = a.Sent
	}
	if sent != 0 {
		if rtt, uncertainty, ok := v.conf.Fleet.RTT(v.conf.Site, sent, a.Site, a.Time); ok && rtt > 0 {
			r.RTT, r.ClockError, r.KernelTimed = rtt, uncertainty, p.kernel && p.sent != 0
		}
	}
	p.done(r, a)
}

// result is what there is to say without an answer.
func (p *viaProbe) result(status probe.Status) probe.Result {
	return probe.Result{
		Tag: p.req.Tag, Target: p.req.Target, Status: status, TTL: p.req.TTL, Flow: p.req.Flow, Sent: p.started,
	}
}

func (p *viaProbe) fail(err error) {
	r := p.result(probe.Failed)
	r.Err = fmt.Errorf("probe %s: %w", p.req.Target, err)
	p.done(r, nil)
}
