// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/probe"
)

// Defaults of [ContinuousOptions].
const (
	DefaultInterval          = time.Second
	DefaultContinuousTimeout = 10 * time.Second
	DefaultGrace             = 5 * time.Second
	DefaultMaxUnknown        = 12

	// firstGuess is the number of hops over which the first round spreads its probes, as nothing is known.
	firstGuess = 10
	// maxWaiting bounds the probes in flight of one continuous trace. Only intervals far below
	// a millisecond get there; sending then waits.
	maxWaiting = 8192
)

// ContinuousOptions are the options of a [Continuous] trace. The zero value works.
type ContinuousOptions struct {
	// Method is Paris unless set.
	Method Method
	// FirstHop and MaxHops bound the hop limits: 1 and DefaultMaxHops unless set, at most 255.
	FirstHop, MaxHops int
	// MaxUnknown ends a round when more than so many hops in a row have never answered:
	// DefaultMaxUnknown unless set.
	MaxUnknown int
	// Interval is the time from round to round: DefaultInterval unless set. A round sends one
	// probe to each hop, spread evenly over the interval.
	Interval time.Duration
	// Rounds ends Run after so many rounds; 0 means that it goes on until its context ends.
	Rounds int
	// Timeout is how long a probe waits for its answer: DefaultContinuousTimeout unless set.
	Timeout time.Duration
	// Grace is how long Run waits for answers after the last round: DefaultGrace unless set.
	Grace time.Duration
	// OnSend and OnReply, if set, are called for each probe sent, with its hop limit and its
	// number, and for each result. Calls do not overlap. They must not block, nor call methods of the trace.
	OnSend  func(ttl int, number uint64)
	OnReply func(number uint64, res probe.Result)
}

func (o ContinuousOptions) withDefaults() (ContinuousOptions, error) {
	if o.FirstHop == 0 {
		o.FirstHop = 1
	}
	if o.MaxHops == 0 {
		o.MaxHops = max(DefaultMaxHops, o.FirstHop)
	}
	if o.MaxUnknown == 0 {
		o.MaxUnknown = DefaultMaxUnknown
	}
	for _, d := range []struct {
		v    *time.Duration
		def  time.Duration
		name string
	}{
		{&o.Interval, DefaultInterval, "interval"},
		{&o.Timeout, DefaultContinuousTimeout, "timeout"},
		{&o.Grace, DefaultGrace, "grace"},
	} {
		if *d.v == 0 {
			*d.v = d.def
		}
		if *d.v < 0 {
			return o, &probe.RequestError{Field: d.name, Value: *d.v, Reason: "want a duration above 0"}
		}
	}
	if o.Method > Classic {
		return o, &probe.RequestError{Field: "method", Value: o.Method, Reason: "want Paris or Classic"}
	}
	if o.MaxUnknown < 0 {
		return o, &probe.RequestError{Field: "max unknown", Value: o.MaxUnknown, Reason: "want at least 1"}
	}
	if o.Rounds < 0 {
		return o, &probe.RequestError{Field: "rounds", Value: o.Rounds, Reason: "want at least 0"}
	}
	return o, checkHops(o.FirstHop, o.MaxHops)
}

// Continuous traces a path again and again and keeps statistics of each hop, as mtr does. All
// methods may be called at any time from any goroutine.
type Continuous struct {
	via  Via
	req  probe.Request
	opts ContinuousOptions

	resumed chan struct{} // has an element after Resume, to wake Run

	mu     sync.Mutex // guards all following fields
	hops   []hop      // by index: TTL - FirstHop
	era    int        // counts resets: answers to older probes do not count
	number uint64     // of the latest probe
	rounds int
	paused bool
	ran    bool
}

// hop collects what a hop answers.
type hop struct {
	sample
	sent       int
	latest     uint64 // number of the latest probe
	inTransit  bool   // it still waits
	status     probe.Status
	icmp       [2]uint8 // type and code
	responders []Responder
}

// NewContinuous makes a continuous trace to req.Target. The request says what the probes are made
// of; its TTL, Timeout and Flow are set for each probe. It is idle until [Continuous.Run]. The
// error is probe.ErrInvalid.
func NewContinuous(via Via, req probe.Request, opts ContinuousOptions) (*Continuous, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := checkTarget(req); err != nil {
		return nil, err
	}
	req.Timeout = opts.Timeout
	req.Flow = opts.Method.flow(req.Flow)
	return &Continuous{
		via: via, req: req, opts: opts,
		hops:    make([]hop, opts.MaxHops-opts.FirstHop+1),
		resumed: make(chan struct{}, 1),
	}, nil
}

// errAbandoned ends the probes that outlast the grace period.
var errAbandoned = errors.New("trace: ended")

// Run sends the probes. It returns nil after the last round, ctx's error when ctx ends, or the
// error of the via. It can be called once; it leaves nothing running.
func (c *Continuous) Run(ctx context.Context) error {
	c.mu.Lock()
	again := c.ran
	c.ran = true
	c.mu.Unlock()
	if again {
		return errors.New("trace: Continuous.Run called twice")
	}

	ctx, stop := context.WithCancelCause(ctx)
	defer stop(errAbandoned)
	r := &runner{Continuous: c, stop: stop, slots: make(chan struct{}, maxWaiting)}
	defer r.wg.Wait()
	defer stop(errAbandoned) // before waiting

	hops := firstGuess
	for round := 0; c.opts.Rounds == 0 || round < c.opts.Rounds; round++ {
		sent, err := r.round(ctx, hops)
		if err != nil {
			return err
		}
		hops = max(sent, 1)
	}
	return r.finish(ctx)
}

// Snapshot gives the statistics of the hops up to the target; up to the farthest hop that
// answered and one more as long as the target has not answered. It shares nothing with the trace.
func (c *Continuous) Snapshot() []HopStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.endLocked()
	if n == len(c.hops) || !terminal(c.hops[n-1].status) {
		n = 0
		for i := range c.hops {
			if c.hops[i].n > 0 {
				n = i + 1
			}
		}
		if n < len(c.hops) && c.hops[n].sent > 0 {
			n++
		}
	}
	all := make([]HopStats, n)
	for i := range all {
		h := &c.hops[i]
		s := &all[i]
		s.TTL = c.opts.FirstHop + i
		s.Sent, s.Status, s.ICMPType, s.ICMPCode = h.sent, h.status, h.icmp[0], h.icmp[1]
		if h.inTransit {
			s.InTransit = 1
		}
		h.fill(s)
		s.Responders = slices.Clone(h.responders)
	}
	return all
}

// Rounds gives the number of rounds begun since the start or the last Reset.
func (c *Continuous) Rounds() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rounds
}

// Reset forgets all statistics. Answers to probes sent before do not count any more.
func (c *Continuous) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.hops)
	c.era++
	c.rounds = 0
}

// Pause stops sending until Resume. Answers are still taken.
func (c *Continuous) Pause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = true
}

// Resume sends again after Pause.
func (c *Continuous) Resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = false
	select {
	case c.resumed <- struct{}{}:
	default:
	}
}

// Paused tells whether the trace is paused.
func (c *Continuous) Paused() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.paused
}

// terminal tells whether nothing behind a hop with this latest answer needs probes.
func terminal(s probe.Status) bool { return isReached(s) || isUnreachable(s) }

// endLocked gives the number of hops worth probing: up to the nearest one whose latest answer came from the
// target or said that the target can't be reached. When the path grows, that hop's answer
// changes to time exceeded, and the hops behind are probed again.
func (c *Continuous) endLocked() int {
	unknown := 0
	for i := range c.hops {
		h := &c.hops[i]
		if terminal(h.status) {
			return i + 1
		}
		if h.n > 0 {
			unknown = 0
		} else if unknown++; unknown > c.opts.MaxUnknown {
			return i
		}
	}
	return len(c.hops)
}

// runner is the part of a Continuous that lives as long as Run.
type runner struct {
	*Continuous
	stop  context.CancelCauseFunc
	slots chan struct{}
	wg    sync.WaitGroup
}

// round sends one probe to each hop, spread over the interval as if there were the given number
// of hops. It returns when the interval is over.
func (r *runner) round(ctx context.Context, hops int) (sent int, err error) {
	gap := r.opts.Interval / time.Duration(hops)
	next := time.Now()
	end := next.Add(r.opts.Interval)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		r.mu.Lock()
		more := sent < r.endLocked()
		r.mu.Unlock()
		if !more {
			break
		}
		if waited, err := r.whilePaused(ctx); err != nil {
			return sent, err
		} else if waited {
			next = time.Now()
			end = next.Add(r.opts.Interval)
		}
		if sent == 0 {
			r.mu.Lock()
			r.rounds++
			r.mu.Unlock()
		}
		if err := r.send(ctx, sent); err != nil {
			return sent, err
		}
		sent++
		next = next.Add(gap)
		if err := sleepUntil(ctx, timer, next); err != nil {
			return sent, err
		}
	}
	return sent, sleepUntil(ctx, timer, end)
}

// whilePaused waits for the end of a pause, and tells whether there was one.
func (r *runner) whilePaused(ctx context.Context) (waited bool, err error) {
	for r.Paused() {
		waited = true
		select {
		case <-r.resumed:
		case <-ctx.Done():
			return true, context.Cause(ctx)
		}
	}
	return waited, nil
}

func sleepUntil(ctx context.Context, timer *time.Timer, t time.Time) error {
	timer.Reset(time.Until(t))
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// send sends a probe to the hop with index i.
func (r *runner) send(ctx context.Context, i int) error {
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	req := r.req
	req.TTL = uint8(r.opts.FirstHop + i)

	r.mu.Lock()
	r.number++
	number, era := r.number, r.era
	h := &r.hops[i]
	h.sent++
	h.latest, h.inTransit = number, true
	if r.opts.OnSend != nil {
		r.opts.OnSend(int(req.TTL), number)
	}
	r.mu.Unlock()

	r.wg.Go(func() {
		defer func() { <-r.slots }()
		res, err := r.via.Probe(ctx, req)
		if err == nil && res.Status == probe.Failed {
			err = res.Err
		}
		if err != nil && ctx.Err() == nil {
			r.stop(fmt.Errorf("trace %s: hop %d: %w", req.Target, req.TTL, err))
			return
		}
		if err != nil {
			res = probe.Result{Status: probe.NoReply}
		}
		res.Target, res.TTL, res.Flow = req.Target, req.TTL, req.Flow
		r.take(i, era, number, res)
	})
	return nil
}

// take books a result.
func (r *runner) take(i, era int, number uint64, res probe.Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.opts.OnReply != nil {
		r.opts.OnReply(number, res)
	}
	if era != r.era {
		return
	}
	h := &r.hops[i]
	if h.latest == number {
		h.inTransit = false
	}
	if res.Status != probe.NoReply {
		h.status, h.icmp = res.Status, [2]uint8{res.ICMPType, res.ICMPCode}
	}
	if !res.Answered() {
		return
	}
	h.add(res.RTT)
	at := slices.IndexFunc(h.responders, func(p Responder) bool { return p.Addr == res.Responder })
	p := Responder{Addr: res.Responder}
	if at >= 0 {
		p = h.responders[at]
		h.responders = slices.Delete(h.responders, at, at+1)
	}
	p.Received++
	p.MPLS = slices.Clone(res.MPLS)
	h.responders = slices.Insert(h.responders, 0, p)
	if len(h.responders) > maxResponders {
		h.responders = h.responders[:maxResponders]
	}
}

// maxResponders bounds the addresses kept for a hop, which the network chooses. The one that was
// silent longest goes first.
const maxResponders = 64

// finish waits for the last answers, for the grace period at most.
func (r *runner) finish(ctx context.Context) error {
	all := make(chan struct{})
	go func() { r.wg.Wait(); close(all) }()
	timer := time.NewTimer(r.opts.Grace)
	defer timer.Stop()
	select {
	case <-all:
	case <-timer.C:
		r.stop(errAbandoned)
		<-all
		return nil
	case <-ctx.Done():
		<-all
	}
	if err := context.Cause(ctx); err != nil && !errors.Is(err, errAbandoned) {
		return err
	}
	return nil
}
