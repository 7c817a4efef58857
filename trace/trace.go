// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/probe"
)

// Defaults and limits of [Options].
const (
	DefaultMaxHops   = 30
	DefaultQueries   = 3
	DefaultTimeout   = 3 * time.Second
	DefaultWindow    = 20
	DefaultGapLimit  = 8
	DefaultLoopLimit = 3
	DefaultMinWait   = 200 * time.Millisecond
	// MaxQueries bounds Options.Queries.
	MaxQueries = 1000

	// A probe is given up early when it is later than hereFactor times the slowest answer of its
	// own hop, or nearFactor times the slowest of the nearest hop behind it that answered. The
	// numbers are those of the traceroute that most Linux systems have (its option -w).
	hereFactor = 3
	nearFactor = 10

	// A trace begins with pilotHops hops and adds the others when those are complete, or after
	// pilotWait: a target next door answers before and is not flooded; any other path is too long
	// for the pause to matter.
	pilotHops = 3
	pilotWait = 500 * time.Microsecond
)

// Method says how the probes of a trace are told apart by load balancers.
type Method uint8

// The methods. The zero value is Paris.
const (
	// Paris gives all probes one flow, so that they take one way through per-flow load balancers
	// and the hops found belong together (Augustin et al. 2006).
	Paris Method = iota
	// Classic lets the probes differ, as Van Jacobson's traceroute did: balancers spread them,
	// and neighbouring hops may belong to different ways.
	Classic
)

// String gives the lower-case name.
func (m Method) String() string {
	switch m {
	case Paris:
		return "paris"
	case Classic:
		return "classic"
	}
	return fmt.Sprintf("Method(%d)", uint8(m))
}

// flow is the flow of the method's probes, when the request asks for flow want.
func (m Method) flow(want uint16) uint16 {
	switch {
	case m == Classic:
		return 0
	case want == 0:
		return 1
	}
	return want
}

// Options of [Run]. The zero value works.
type Options struct {
	// Method is Paris unless set. A Paris trace uses the request's Flow, or flow 1.
	Method Method
	// FirstHop and MaxHops bound the hop limits tried: 1 and DefaultMaxHops unless set, at most 255.
	FirstHop, MaxHops int
	// Queries is how many probes each hop gets: DefaultQueries unless set, at most MaxQueries.
	Queries int
	// Timeout is the longest wait for an answer: DefaultTimeout unless set. Once other answers
	// are in, the wait is shorter: three times the slowest answer of the same hop, or ten times
	// the slowest answer of the nearest hop behind it, but at least MinWait.
	Timeout time.Duration
	// MinWait is the least that an early decision waits: DefaultMinWait unless set. Routers
	// answer in their spare time, much later than they forward.
	MinWait time.Duration
	// Window is how many hops may wait for answers at once: DefaultWindow unless set. The nearest
	// hop is probed first, and nothing more is sent once the target has answered; 1 probes one hop
	// after the other. A large window is fast, but the target may see up to Window-1 hops' probes too many. A
	// path of at most three hops that answers within half a millisecond sees none behind its third.
	Window int
	// GapLimit ends the trace after so many silent hops in a row: DefaultGapLimit unless set, less
	// than 0 means never.
	GapLimit int
	// LoopLimit ends the trace when a router has had its turn so often: DefaultLoopLimit unless
	// set, less than 0 means never. The same address at neighbouring hops counts once.
	LoopLimit int
	// OnReply, if set, is called with each result as it comes, in any order, also for hops that
	// may turn out to lie behind the end of the path. It is called on Run's goroutine and must not block.
	OnReply func(probe.Result)
	// OnHop, if set, is called with each hop of the path, in order and as soon as it is known to
	// be part of it: a silent hop when a later one has answered. It is called on Run's goroutine
	// and must not block. The hop's replies must not be changed.
	OnHop func(Hop)
}

// withDefaults checks the options and fills in what is not set.
func (o Options) withDefaults() (Options, error) {
	set := func(v *int, def int) {
		if *v == 0 {
			*v = def
		}
	}
	set(&o.FirstHop, 1)
	set(&o.MaxHops, max(DefaultMaxHops, o.FirstHop))
	set(&o.Queries, DefaultQueries)
	set(&o.Window, DefaultWindow)
	set(&o.GapLimit, DefaultGapLimit)
	set(&o.LoopLimit, DefaultLoopLimit)
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.MinWait == 0 {
		o.MinWait = DefaultMinWait
	}
	if o.Method > Classic {
		return o, &probe.RequestError{Field: "method", Value: o.Method, Reason: "want Paris or Classic"}
	}
	if err := checkHops(o.FirstHop, o.MaxHops); err != nil {
		return o, err
	}
	if o.Queries < 1 || o.Queries > MaxQueries {
		return o, &probe.RequestError{Field: "queries", Value: o.Queries, Reason: fmt.Sprintf("want 1 to %d", MaxQueries)}
	}
	if o.Window < 1 {
		return o, &probe.RequestError{Field: "window", Value: o.Window, Reason: "want at least 1"}
	}
	if o.Timeout < 0 || o.MinWait < 0 {
		return o, &probe.RequestError{Field: "timeout", Value: min(o.Timeout, o.MinWait), Reason: "want a duration above 0"}
	}
	return o, nil
}

func checkHops(first, last int) error {
	if first < 1 || first > 255 {
		return &probe.RequestError{Field: "first hop", Value: first, Reason: "want 1 to 255"}
	}
	if last < first || last > 255 {
		return &probe.RequestError{Field: "max hops", Value: last, Reason: fmt.Sprintf("want %d to 255", first)}
	}
	return nil
}

func checkTarget(req probe.Request) error {
	if !req.Target.IsValid() {
		return &probe.RequestError{Field: "target", Value: req.Target, Reason: "want an address"}
	}
	return nil
}

func (o *Options) limits() limits { return limits{gap: max(0, o.GapLimit), loop: max(0, o.LoopLimit)} }

// Run traces the path to req.Target. The request says what the probes are made of; Run sets
// their TTL, Timeout and Flow.
//
// When via fails or ctx ends, Run gives the error together with what it knows by then, with
// Stop set to StopInterrupted. The path is nil only if the request or the options are invalid
// (probe.ErrInvalid).
func Run(ctx context.Context, via Via, req probe.Request, opts Options) (*Path, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := checkTarget(req); err != nil {
		return nil, err
	}
	req.Timeout = opts.Timeout
	req.Flow = opts.Method.flow(req.Flow)
	n := opts.MaxHops - opts.FirstHop + 1
	t := &tracer{
		via: via, req: req, opts: opts,
		hops: make([]Hop, n), waits: make([]hopWait, n), last: n,
		// Room for everything: a probe's goroutine never waits for the tracer.
		done:  make(chan outcome, n*opts.Queries),
		pilot: min(pilotHops, opts.Window-1), piloting: true,
	}
	return t.run(ctx)
}

// tracer is the state of one Run; only Run's goroutine touches it.
type tracer struct {
	via  Via
	req  probe.Request
	opts Options

	hops     []Hop     // by index: TTL - FirstHop
	waits    []hopWait // for each hop what it waits for
	launched int       // hops launched
	pilot    int       // hops that begin the trace
	piloting bool      // they are not complete, and pilotWait has not passed
	complete int       // hops launched and complete, in any order
	decided  int       // complete hops at the front
	shown    int       // hops given to OnHop
	last     int       // hops at this index and behind are beyond the target
	sent     int
	done     chan outcome
	wg       sync.WaitGroup
}

// hopWait is what a hop still waits for.
type hopWait struct {
	pending []pending // one for each query; zero once it is answered
	open    int       // how many are pending
	slowest time.Duration
}

// pending is a probe in flight, or no more if cancel is nil.
type pending struct {
	sent   time.Time
	cancel func()
}

// outcome is what the goroutine of one probe reports.
type outcome struct {
	hop, query int
	res        probe.Result
	err        error
}

func (t *tracer) run(ctx context.Context) (*Path, error) {
	start := time.Now()
	defer t.wg.Wait()
	defer t.abandon()

	keep, reason, err := t.loop(ctx)
	if err != nil {
		reason = StopInterrupted
		keep, _ = judge(t.hops[:t.decided], t.opts.limits())
	}
	t.show(keep)
	silent := 0
	switch reason {
	case StopGapLimit:
		silent = t.opts.GapLimit // more may have been tried at the same time
	case StopMaxHops:
		silent = t.decided - keep
	case StopReached, StopUnreachable, StopLoop, StopProbeLimit, StopInterrupted:
	}
	return &Path{
		Target: t.req.Target, Protocol: t.req.Protocol, Flow: t.req.Flow,
		Hops: t.hops[:keep:keep], Stop: reason, Silent: silent,
		Start: start, Duration: time.Since(start), Probes: t.sent,
	}, err
}

// loop runs the trace up to a reason to stop.
func (t *tracer) loop(ctx context.Context) (keep int, reason StopReason, err error) {
	pilotEnd := time.Now().Add(pilotWait)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		t.piloting = t.piloting && t.complete < t.pilot && time.Until(pilotEnd) > 0
		if err := t.launch(ctx); err != nil {
			return 0, 0, err
		}
		if keep, reason := t.advance(); reason != 0 {
			return keep, reason, nil
		}
		if t.piloting && t.complete >= t.pilot || t.room() {
			continue // advancing made room
		}
		wait := t.giveUp(time.Now())
		if t.piloting {
			wait = min(wait, time.Until(pilotEnd))
		}
		timer.Reset(wait)
		select {
		case o := <-t.done:
			if err := t.take(ctx, o); err != nil {
				return 0, 0, err
			}
		case <-timer.C:
		case <-ctx.Done():
			return 0, 0, context.Cause(ctx)
		}
	}
}

// room tells whether another hop may be launched now. The pilot's hops keep their place in the
// window: a path as long as the window is launched at once, and nothing behind it.
func (t *tracer) room() bool {
	if t.launched >= t.last || t.piloting && t.launched >= t.pilot {
		return false
	}
	return t.launched-max(0, t.complete-t.pilot) < t.opts.Window
}

// launch sends the probes of the next hop, if there is room for it, and takes the answers that are
// in by then: a near target answers before the window is full, and ends it.
func (t *tracer) launch(ctx context.Context) error {
	if !t.room() {
		return nil
	}
	i := t.launched
	t.launched++
	t.hops[i] = Hop{TTL: t.opts.FirstHop + i, Replies: make([]probe.Result, t.opts.Queries)}
	w := &t.waits[i]
	w.pending = make([]pending, t.opts.Queries)
	w.open = t.opts.Queries
	req := t.req
	req.TTL = uint8(t.hops[i].TTL)
	for q := range t.opts.Queries {
		t.sent++
		now := time.Now()
		cancel := send(ctx, &t.wg, t.via, req, func(res probe.Result, err error) {
			t.done <- outcome{i, q, res, err}
		})
		w.pending[q] = pending{sent: now, cancel: cancel}
	}
	// Let this hop's probes leave before the next hop's are made: what answers least often (ICMP
	// rate limits) shall see the probes that matter first.
	runtime.Gosched()
	for {
		select {
		case o := <-t.done:
			if err := t.take(ctx, o); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

// take books what became of a probe. Answers to probes that were given up come too late to count:
// their place is taken.
func (t *tracer) take(ctx context.Context, o outcome) error {
	w := &t.waits[o.hop]
	if w.pending[o.query].cancel == nil {
		return nil
	}
	if o.err == nil && o.res.Status == probe.Failed {
		o.err = o.res.Err
	}
	if o.err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("trace %s: hop %d: %w", t.req.Target, t.hops[o.hop].TTL, o.err)
	}
	t.settle(o.hop, o.query, o.res)
	t.report(o.hop, o.query)
	if isReached(o.res.Status) && o.hop+1 < t.last {
		t.last = o.hop + 1
		for i := t.last; i < t.launched; i++ {
			t.drop(i)
		}
	}
	return nil
}

// settle puts the result of a probe into its place.
func (t *tracer) settle(hop, query int, res probe.Result) {
	w := &t.waits[hop]
	sent := w.pending[query].sent
	w.pending[query].cancel()
	w.pending[query] = pending{}
	w.open--
	if w.open == 0 {
		t.complete++
	}
	res.Target, res.TTL, res.Flow = t.req.Target, uint8(t.hops[hop].TTL), t.req.Flow
	if res.Answered() {
		// How late this one came, not its round-trip time: that may be unknown, and a via may
		// be far away itself.
		w.slowest = max(w.slowest, res.RTT, time.Since(sent), 1) // 0 means no answer
	}
	t.hops[hop].Replies[query] = res
}

// report gives the result that settle just booked to OnReply.
func (t *tracer) report(hop, query int) {
	if t.opts.OnReply != nil {
		t.opts.OnReply(t.hops[hop].Replies[query])
	}
}

// drop gives up what a hop still waits for.
func (t *tracer) drop(hop int) {
	for q, p := range t.waits[hop].pending {
		if p.cancel != nil {
			t.settle(hop, q, probe.Result{Status: probe.NoReply, Sent: p.sent})
		}
	}
}

// abandon ends all that is still in flight.
func (t *tracer) abandon() {
	for i := range t.waits[:t.launched] {
		for _, p := range t.waits[i].pending {
			if p.cancel != nil {
				p.cancel()
			}
		}
	}
}

// giveUp ends the probes that other answers have made hopeless by now, and gives the time until
// it has to be called again: 0 if some were ended. The others are left to the via's own timeout.
func (t *tracer) giveUp(now time.Time) time.Duration {
	next := time.Hour
	var near time.Duration // the slowest answer of the nearest hop behind that answered
	ended := false
	for i := t.launched - 1; i >= 0; i-- {
		w := &t.waits[i]
		if w.open > 0 {
			wait := time.Duration(math.MaxInt64)
			if near > 0 {
				wait = max(t.opts.MinWait, nearFactor*near)
			}
			if w.slowest > 0 {
				wait = min(wait, max(t.opts.MinWait, hereFactor*w.slowest))
			}
			for q, p := range w.pending {
				if p.cancel == nil || wait >= t.opts.Timeout {
					continue
				}
				if left := p.sent.Add(wait).Sub(now); left > 0 {
					next = min(next, left)
				} else {
					t.settle(i, q, probe.Result{Status: probe.NoReply, Sent: p.sent})
					t.report(i, q)
					ended = true
				}
			}
		}
		if w.slowest > 0 {
			near = w.slowest
		}
	}
	if ended {
		return 0
	}
	return next
}

// advance moves over the hops that are complete, and applies the stop rules.
func (t *tracer) advance() (keep int, reason StopReason) {
	before := t.decided
	for t.decided < t.launched && t.waits[t.decided].open == 0 {
		t.decided++
	}
	if t.decided == before {
		return 0, 0
	}
	keep, reason = judge(t.hops[:t.decided], t.opts.limits())
	if reason == 0 && t.decided == len(t.hops) {
		reason = StopMaxHops
	}
	if reason == 0 {
		t.show(keep)
	}
	return keep, reason
}

// show gives the hops before keep to OnHop, once.
func (t *tracer) show(keep int) {
	for ; t.shown < keep; t.shown++ {
		if t.opts.OnHop != nil {
			t.opts.OnHop(t.hops[t.shown])
		}
	}
}
