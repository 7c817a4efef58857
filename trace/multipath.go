// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/probe"
)

// Defaults of [MultipathOptions].
const (
	DefaultConfidence       = 0.95
	DefaultBalancers        = 10
	DefaultMultipathTimeout = time.Second
	DefaultMultipathWindow  = 32
	DefaultRetries          = 3
	DefaultMeshFlows        = 4
	DefaultMaxProbes        = 20000

	maxFlow = probe.MaxFlow
	// retryPause is the time before the first retry; it doubles each time. Retries are
	// for loss, and for routers that limit their answers.
	retryPause = 100 * time.Millisecond
)

// Algorithm is a way to discover all paths.
type Algorithm uint8

// The algorithms. The zero value is MDALite.
const (
	// MDALite probes hop by hop and takes each hop's nodes together, until it meets what does not
	// allow that: then it switches over to MDA, up to where the paths join again.
	MDALite Algorithm = iota
	// MDA probes node by node, with flows that are known to pass the node. It finds every
	// topology and needs more probes.
	MDA
)

// String gives the name as in the literature.
func (a Algorithm) String() string {
	switch a {
	case MDALite:
		return "MDA-Lite"
	case MDA:
		return "MDA"
	}
	return fmt.Sprintf("Algorithm(%d)", uint8(a))
}

// MultipathOptions are the options of [Multipath]. The zero value works.
type MultipathOptions struct {
	// Algorithm is MDALite unless set.
	Algorithm Algorithm
	// Confidence is the probability of finding the whole graph if balancers use their next nodes
	// evenly, above 0 and below 1: DefaultConfidence unless set.
	Confidence float64
	// Balancers is the number of balancers on the way for which Confidence shall hold:
	// DefaultBalancers unless set. Each of them may then fail with probability
	// 1 - Confidence^(1/Balancers). With 1, Confidence is that of a single balancer.
	Balancers int
	// FirstHop and MaxHops bound the hop limits: 1 and DefaultMaxHops unless set, at most 255.
	FirstHop, MaxHops int
	// Timeout is the longest wait for an answer: DefaultMultipathTimeout unless set. Once a hop
	// has answered, probes to it wait three times its slowest answer, but at least MinWait
	// (DefaultMinWait unless set).
	Timeout, MinWait time.Duration
	// Retries is how often a probe without an answer is repeated, with growing pauses, to tell
	// loss from silent nodes: DefaultRetries unless set, less than 0 means never. A hop where
	// nothing answers at all gets no retries.
	Retries int
	// Window bounds the probes in flight: DefaultMultipathWindow unless set. Routers that limit their answers want a small one.
	Window int
	// MeshFlows is the number of flows through each node with which MDALite looks for links that
	// contradict its assumptions: DefaultMeshFlows unless set, at least 2.
	MeshFlows int
	// GapLimit and LoopLimit are as in Options.
	GapLimit, LoopLimit int
	// MaxProbes ends the trace: DefaultMaxProbes unless set.
	MaxProbes int
	// MaxFlows ends it as well, for a via that has few: probe.MaxFlow unless set.
	MaxFlows int
	// OnReply, if set, is called with each result, on Multipath's goroutine. It must not block.
	OnReply func(probe.Result)
}

func (o MultipathOptions) withDefaults() (MultipathOptions, error) {
	set := func(v *int, def int) {
		if *v == 0 {
			*v = def
		}
	}
	set(&o.Balancers, DefaultBalancers)
	set(&o.FirstHop, 1)
	set(&o.MaxHops, max(DefaultMaxHops, o.FirstHop))
	set(&o.Retries, DefaultRetries)
	set(&o.Window, DefaultMultipathWindow)
	set(&o.MeshFlows, DefaultMeshFlows)
	set(&o.GapLimit, DefaultGapLimit)
	set(&o.LoopLimit, DefaultLoopLimit)
	set(&o.MaxProbes, DefaultMaxProbes)
	set(&o.MaxFlows, maxFlow)
	if o.Confidence == 0 {
		o.Confidence = DefaultConfidence
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultMultipathTimeout
	}
	if o.MinWait == 0 {
		o.MinWait = DefaultMinWait
	}
	switch {
	case o.Algorithm > MDA:
		return o, &probe.RequestError{Field: "algorithm", Value: o.Algorithm, Reason: "want MDALite or MDA"}
	// Beyond 1-1e-9 the differences of the probabilities computed get lost in rounding.
	case !(o.Confidence > 0 && o.Confidence <= 1-1e-9): // also refuses NaN
		return o, &probe.RequestError{Field: "confidence", Value: o.Confidence, Reason: "want a number above 0 and below 1"}
	case o.Balancers < 1:
		return o, &probe.RequestError{Field: "balancers", Value: o.Balancers, Reason: "want at least 1"}
	case o.Window < 1:
		return o, &probe.RequestError{Field: "window", Value: o.Window, Reason: "want at least 1"}
	case o.MeshFlows < 2:
		return o, &probe.RequestError{Field: "mesh flows", Value: o.MeshFlows, Reason: "want at least 2"}
	case o.MaxProbes < 1:
		return o, &probe.RequestError{Field: "max probes", Value: o.MaxProbes, Reason: "want at least 1"}
	case o.MaxFlows < 1 || o.MaxFlows > maxFlow:
		return o, &probe.RequestError{Field: "max flows", Value: o.MaxFlows, Reason: fmt.Sprintf("want 1 to %d", maxFlow)}
	case o.Timeout < 0 || o.MinWait < 0:
		return o, &probe.RequestError{Field: "timeout", Value: min(o.Timeout, o.MinWait), Reason: "want a duration above 0"}
	}
	return o, checkHops(o.FirstHop, o.MaxHops)
}

// Multipath discovers all paths to req.Target through load balancers, with the flows req.Flow
// (or 1) and up. The request says what the probes are made of; its TTL, Timeout and Flow are set for each probe.
//
// When via fails or ctx ends, Multipath gives the error together with the graph found by then. The
// graph is nil only if the request or the options are invalid (probe.ErrInvalid).
func Multipath(ctx context.Context, via Via, req probe.Request, opts MultipathOptions) (*Graph, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := checkTarget(req); err != nil {
		return nil, err
	}
	m := &mda{
		via: via, req: req, opts: opts,
		stopping: stopping{failure: 1 - math.Pow(opts.Confidence, 1/float64(opts.Balancers))},
		base:     max(req.Flow, 1),
	}
	start := time.Now()
	reason, err := m.run(ctx)
	if errors.Is(err, errProbeLimit) {
		reason, err = StopProbeLimit, nil
	}
	if err != nil {
		reason = StopInterrupted
	}
	g := m.graph(reason)
	g.Start, g.Duration = start, time.Since(start)
	return g, err
}

// errProbeLimit ends a trace that used up its probes or its flows.
var errProbeLimit = errors.New("trace: out of probes")

// mda is the state of one Multipath; only its goroutine touches it.
type mda struct {
	via      Via
	req      probe.Request
	opts     MultipathOptions
	stopping stopping

	levels   []*level // levels[0] is the source, levels[i] the hop FirstHop+i-1
	base     uint16   // the first flow
	flows    int      // flows in use: base, base+1, ...
	sent     int
	switched []int
}

// level is one distance.
type level struct {
	ttl      int
	vertices []*vertex
	seen     map[uint16]int // flow -> index of the vertex that it reaches
	slowest  time.Duration  // round-trip time
	tried    int            // flows given by unused, by number
	extra    map[link]bool  // links seen by repeating a flow
	full     bool           // the links to the next level were found node by node
	// mixed tells that flows do not lead to the same vertices every time: this level is behind a
	// per-packet balancer.
	mixed bool
}

// vertex is a node of a level under construction. The silent one has no address.
type vertex struct {
	Node
	flows []uint16 // those that reach it, in the order found
}

// last tells that nothing goes on from here.
func (v *vertex) last() bool { return v.Kind == TargetNode || v.Kind == RefuseNode }

// flow gives the flow with the given number, counted from 0.
func (m *mda) flow(i int) uint16 { return uint16((int(m.base)-1+i)%maxFlow + 1) }

func (m *mda) run(ctx context.Context) (StopReason, error) {
	m.levels = []*level{{ttl: m.opts.FirstHop - 1, seen: make(map[uint16]int)}}
	m.levels[0].vertices = []*vertex{{Node: Node{TTL: m.opts.FirstHop - 1, Kind: SourceNode}}}
	full := m.opts.Algorithm == MDA
	for l := 0; ; l++ {
		if reason := m.judge(); reason != 0 {
			return reason, nil
		}
		m.levels = append(m.levels, &level{ttl: m.levels[l].ttl + 1, seen: make(map[uint16]int)})
		this, next := m.levels[l], m.levels[l+1]
		if this.mixed {
			// Behind a per-packet balancer nothing can be steered: MDA-Lite without its tests.
			if err := m.lite(ctx, l); err != nil {
				return 0, err
			}
			next.mixed = len(next.vertices) > 1
			continue
		}
		if !full {
			if err := m.lite(ctx, l); err != nil {
				return 0, err
			}
			fits, err := m.fits(ctx, l)
			if err != nil {
				return 0, err
			}
			if !fits {
				full = true
				m.switched = append(m.switched, next.ttl)
				// Do the hops since the paths parted again, with what is known already.
				from := l
				for from > 0 && len(m.levels[from].vertices) > 1 {
					from--
				}
				for i := from; i < l; i++ {
					if err := m.full(ctx, i); err != nil {
						return 0, err
					}
				}
			}
		}
		if full {
			if err := m.full(ctx, l); err != nil {
				return 0, err
			}
		}
		if err := m.findPerPacket(ctx, l); err != nil {
			return 0, err
		}
		if len(next.vertices) == 1 {
			full = m.opts.Algorithm == MDA
		}
	}
}

// judge tells whether the trace ends with the levels known so far.
func (m *mda) judge() StopReason {
	at := m.levels[len(m.levels)-1]
	if !slices.ContainsFunc(at.vertices, func(v *vertex) bool { return !v.last() }) {
		if slices.ContainsFunc(m.allVertices(), func(v *vertex) bool { return v.Kind == TargetNode }) {
			return StopReached
		}
		return StopUnreachable
	}
	_, reason := judge(m.hops(), limits{gap: max(0, m.opts.GapLimit), loop: max(0, m.opts.LoopLimit)})
	if reason == 0 && at.ttl == m.opts.MaxHops {
		reason = StopMaxHops
	}
	return reason
}

func (m *mda) allVertices() []*vertex {
	var all []*vertex
	for _, l := range m.levels {
		all = append(all, l.vertices...)
	}
	return all
}

// hops gives the levels as judge takes them. As some paths may end before others, only silence
// and loops are for it to see.
func (m *mda) hops() []Hop {
	hops := make([]Hop, 0, len(m.levels))
	for _, l := range m.levels[1:] {
		h := Hop{TTL: l.ttl, Replies: make([]probe.Result, len(l.vertices))}
		for i, v := range l.vertices {
			h.Replies[i].Status = probe.NoReply
			if v.Addr.IsValid() && !v.last() {
				h.Replies[i] = probe.Result{Status: probe.TimeExceeded, Responder: v.Addr}
			}
		}
		hops = append(hops, h)
	}
	return hops
}

// lite finds the vertices of level l+1 together: it sends flows until the stopping point for the
// number of vertices there, and then one flow for each vertex that lacks a link.
func (m *mda) lite(ctx context.Context, l int) error {
	this, next := m.levels[l], m.levels[l+1]
	for {
		// One flow for each vertex of this level, so that none is left without a link.
		var flows []uint16
		for _, v := range this.vertices {
			if v.last() || slices.ContainsFunc(v.flows, next.has) {
				continue
			}
			if len(v.flows) == 0 {
				if this.mixed {
					continue // found by chance, and not to be found again
				}
				if err := m.steer(ctx, l, v, 1); err != nil {
					return err
				}
			}
			flows = append(flows, v.flows[0])
		}
		// Then as many as are needed, first those known to get this far.
		need := m.stopping.point(max(1, len(next.vertices))) - len(next.seen) - len(flows)
		if need > 0 {
			more, err := m.passing(ctx, l, need, flows)
			if err != nil {
				return err
			}
			flows = append(flows, more...)
		}
		// And one for each vertex of the next level, backwards.
		var back []uint16
		if !this.mixed && len(this.vertices) > 1 {
			for _, w := range next.vertices {
				if !slices.ContainsFunc(w.flows, this.has) && len(w.flows) > 0 {
					back = append(back, w.flows[0])
				}
			}
		}
		if len(flows)+len(back) == 0 {
			return nil
		}
		if err := m.observe(ctx, l, back); err != nil {
			return err
		}
		if err := m.observe(ctx, l+1, flows); err != nil {
			return err
		}
	}
}

func (l *level) has(flow uint16) bool { _, ok := l.seen[flow]; return ok }

// passing gives count flows that go on from level l and were not seen at the next level yet, other
// than those in taken.
func (m *mda) passing(ctx context.Context, l, count int, taken []uint16) ([]uint16, error) {
	this, next := m.levels[l], m.levels[l+1]
	var flows []uint16
	collect := func() {
		for i := 0; i < m.flows && len(flows) < count; i++ {
			f := m.flow(i)
			if v, ok := this.seen[f]; ok && !this.vertices[v].last() && !next.has(f) &&
				!slices.Contains(taken, f) && !slices.Contains(flows, f) {
				flows = append(flows, f)
			}
		}
	}
	collect()
	for tries := 0; len(flows) < count; tries++ {
		if m.anyEnds(l) {
			// Some paths end here or before: only a probe tells whether a flow goes on.
			if tries == maxSteering {
				return nil, errProbeLimit
			}
			batch, err := m.passing(ctx, l-1, count, nil)
			if err != nil {
				return nil, err
			}
			if err := m.observe(ctx, l, batch); err != nil {
				return nil, err
			}
			collect()
			continue
		}
		f, err := m.unused(next)
		if err != nil {
			return nil, err
		}
		if slices.Contains(taken, f) || slices.Contains(flows, f) {
			continue
		}
		flows = append(flows, f)
		if len(this.vertices) == 1 && !this.has(f) {
			this.add(f, 0)
		}
	}
	return flows, nil
}

// maxSteering bounds the batches of flows spent on reaching one vertex.
const maxSteering = 64

// anyEnds tells whether there are paths that end at level l or before.
func (m *mda) anyEnds(l int) bool {
	return slices.ContainsFunc(m.levels[:l+1], func(at *level) bool {
		return slices.ContainsFunc(at.vertices, (*vertex).last)
	})
}

// unused gives a flow that was neither seen at the level nor given for it before: one in use elsewhere if
// possible, else a new one.
func (m *mda) unused(at *level) (uint16, error) {
	for at.tried < m.flows {
		f := m.flow(at.tried)
		at.tried++
		if !at.has(f) {
			return f, nil
		}
	}
	if m.flows == m.opts.MaxFlows {
		return 0, errProbeLimit
	}
	m.flows++
	at.tried = m.flows
	return m.flow(m.flows - 1), nil
}

// steer finds flows that reach vertex v of level l until it has count of them: node control.
func (m *mda) steer(ctx context.Context, l int, v *vertex, count int) error {
	this := m.levels[l]
	for tries := 0; len(v.flows) < count; tries++ {
		if len(this.vertices) == 1 && (l == 0 || !m.anyEnds(l-1)) {
			f, err := m.unused(this)
			if err != nil {
				return err
			}
			this.add(f, 0)
			continue
		}
		if tries == maxSteering {
			return errProbeLimit
		}
		// As many as it takes if they keep coming at the rate seen so far.
		batch := (count - len(v.flows)) * (len(this.seen) + 1) / (len(v.flows) + 1)
		flows, err := m.passing(ctx, l-1, min(max(batch, 1), m.opts.Window*4), nil)
		if err != nil {
			return err
		}
		if err := m.observe(ctx, l, flows); err != nil {
			return err
		}
	}
	return nil
}

// fits tells whether the links from level l to the next are as MDA-Lite assumes: not meshed, and
// spread evenly. It adds probes to see that.
func (m *mda) fits(ctx context.Context, l int) (bool, error) {
	this, next := m.levels[l], m.levels[l+1]
	from := slices.DeleteFunc(slices.Clone(this.vertices), (*vertex).last)
	before, a, b := len(this.vertices), len(from), len(next.vertices)
	if a < 2 || b < 2 {
		return true, nil
	}
	forward := a >= b // then each vertex has one link forward, else one backward
	if forward {
		for _, v := range from {
			if err := m.steer(ctx, l, v, m.opts.MeshFlows); err != nil {
				return false, err
			}
			if err := m.observe(ctx, l+1, v.flows[:m.opts.MeshFlows]); err != nil {
				return false, err
			}
		}
	} else {
		for _, w := range slices.Clone(next.vertices) {
			if err := m.steer(ctx, l+1, w, m.opts.MeshFlows); err != nil {
				return false, err
			}
			if err := m.observe(ctx, l, w.flows[:m.opts.MeshFlows]); err != nil {
				return false, err
			}
		}
	}
	if len(this.vertices) != before || len(next.vertices) != b {
		return false, nil // there are more vertices than the stopping point allows for
	}
	out, in := make(map[int]int), make(map[int]int)
	for link := range m.links(l) {
		out[link.from]++
		in[link.to]++
	}
	one, spread := in, out
	if forward {
		one, spread = out, in
	}
	for _, n := range one {
		if n > 1 {
			return false, nil
		}
	}
	first := 0
	for _, n := range spread {
		if first != 0 && n != first {
			return false, nil
		}
		first = n
	}
	return true, nil
}

// link joins a vertex of a level to one of the next, both by index.
type link struct{ from, to int }

// links gives the links from level l to the next that flows were seen on, with the flows.
func (m *mda) links(l int) map[link][]uint16 {
	this, next := m.levels[l], m.levels[l+1]
	links := make(map[link][]uint16)
	for f, to := range next.seen {
		if from, ok := this.seen[f]; ok && !this.vertices[from].last() {
			links[link{from, to}] = append(links[link{from, to}], f)
		}
	}
	for k := range this.extra {
		if _, ok := links[k]; !ok {
			links[k] = nil
		}
	}
	return links
}

// full finds the next vertices of each vertex of level l by itself.
func (m *mda) full(ctx context.Context, l int) error {
	this, next := m.levels[l], m.levels[l+1]
	this.full = true
	for {
		var flows []uint16
		for i := 0; i < len(this.vertices); i++ { // steering may find more
			v := this.vertices[i]
			if v.last() {
				continue
			}
			sent := m.sentThrough(l, i)
			need := m.stopping.point(max(1, m.outDegree(l, i))) - sent
			if need <= 0 {
				continue
			}
			if err := m.steer(ctx, l, v, sent+need); err != nil {
				return err
			}
			for _, f := range v.flows {
				if need > 0 && !next.has(f) {
					flows = append(flows, f)
					need--
				}
			}
		}
		if err := m.observe(ctx, l+1, flows); err != nil {
			return err
		}
		if err := m.anchor(ctx, l); err != nil {
			return err
		}
		if len(flows) == 0 {
			return m.anchor(ctx, l+1)
		}
	}
}

// anchor gives each vertex of level l that was found by chance a link from the level before.
func (m *mda) anchor(ctx context.Context, l int) error {
	if l == 0 || m.levels[l-1].mixed {
		return nil
	}
	before := m.levels[l-1]
	var flows []uint16
	for _, v := range m.levels[l].vertices {
		if len(v.flows) > 0 && !slices.ContainsFunc(v.flows, before.has) {
			flows = append(flows, v.flows[0])
		}
	}
	return m.observe(ctx, l-1, flows)
}

// sentThrough counts the flows through a vertex that were seen at the next level.
func (m *mda) sentThrough(l, vertex int) int {
	n := 0
	for _, f := range m.levels[l].vertices[vertex].flows {
		if m.levels[l+1].has(f) {
			n++
		}
	}
	return n
}

// outDegree counts the next vertices of a vertex.
func (m *mda) outDegree(l, vertex int) int {
	n := 0
	for k := range m.links(l) {
		if k.from == vertex {
			n++
		}
	}
	return n
}

// findPerPacket repeats a flow through each vertex of level l that has several next ones. If it
// comes out at different ones, the vertex balances per packet.
func (m *mda) findPerPacket(ctx context.Context, l int) error {
	this, next := m.levels[l], m.levels[l+1]
	for i, v := range this.vertices {
		at := slices.IndexFunc(v.flows, next.has)
		if v.last() || at < 0 || m.outDegree(l, i) < 2 {
			continue
		}
		f := v.flows[at]
		flows := make([]uint16, m.stopping.point(1))
		for j := range flows {
			flows[j] = f
		}
		results, err := m.batch(ctx, next, flows)
		if err != nil {
			return err
		}
		for _, r := range results {
			// Silence is no sign: an answer may just be lost.
			if !r.Answered() || next.vertices[next.seen[f]].Kind == SilentNode {
				continue
			}
			to := next.vertex(&r)
			if to == next.seen[f] {
				continue
			}
			v.PerPacket = true
			next.mixed = true
			if this.extra == nil {
				this.extra = make(map[link]bool)
			}
			this.extra[link{i, to}] = true
		}
	}
	return nil
}

// add books that a flow reaches a vertex.
func (l *level) add(flow uint16, vertex int) {
	l.seen[flow] = vertex
	l.vertices[vertex].flows = append(l.vertices[vertex].flows, flow)
}

// vertex gives the index of the vertex that a result belongs to, a new one if need be, and books the answer.
func (l *level) vertex(r *probe.Result) int {
	i := slices.IndexFunc(l.vertices, func(v *vertex) bool { return v.Addr == r.Responder })
	if i < 0 {
		i = len(l.vertices)
		l.vertices = append(l.vertices, &vertex{Node: Node{TTL: l.ttl, Addr: r.Responder, Kind: SilentNode}})
	}
	switch v := l.vertices[i]; {
	case r.Answered():
		v.take(r)
		l.slowest = max(l.slowest, r.RTT, 1) // 0 means no answer
	case isUnreachable(r.Status): // this host says so
		v.Kind, v.Status = RefuseNode, r.Status
	}
	return i
}

// observe sends flows to level l, except those seen there already, and books where they come out.
func (m *mda) observe(ctx context.Context, l int, flows []uint16) error {
	at := m.levels[l]
	var todo []uint16
	for _, f := range flows {
		if !at.has(f) && !slices.Contains(todo, f) {
			todo = append(todo, f)
		}
	}
	if l == 0 {
		for _, f := range todo {
			at.add(f, 0)
		}
		return nil
	}
	for attempt := 0; len(todo) > 0; attempt++ {
		results, err := m.batch(ctx, at, todo)
		if err != nil {
			return err
		}
		var lost []uint16
		for i := range results {
			if results[i].Status == probe.NoReply {
				lost = append(lost, todo[i])
			} else {
				at.add(todo[i], at.vertex(&results[i]))
			}
		}
		if len(lost) == 0 {
			return nil
		}
		if attempt >= m.opts.Retries || at.slowest == 0 {
			silent := at.vertex(&probe.Result{Status: probe.NoReply})
			for _, f := range lost {
				at.add(f, silent)
			}
			return nil
		}
		todo = lost
		select {
		case <-time.After(retryPause << min(attempt, 10)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// batch sends the flows to a level, at most Window at once, and gives their results in the same order.
func (m *mda) batch(ctx context.Context, at *level, flows []uint16) ([]probe.Result, error) {
	if m.sent+len(flows) > m.opts.MaxProbes {
		return nil, errProbeLimit
	}
	m.sent += len(flows)
	results := make([]probe.Result, len(flows))
	waits := make([]pending, len(flows))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() {
		for _, p := range waits {
			if p.cancel != nil {
				p.cancel()
			}
		}
	}()
	done := make(chan outcome, len(flows)) // room for all: a probe's goroutine never waits
	req := m.req
	req.TTL, req.Timeout = uint8(at.ttl), m.opts.Timeout
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	settle := func(i int, r probe.Result) {
		waits[i].cancel()
		waits[i].cancel = nil
		r.Target, r.TTL, r.Flow = req.Target, req.TTL, flows[i]
		results[i] = r
		if m.opts.OnReply != nil {
			m.opts.OnReply(r)
		}
	}
	for next, open := 0, 0; next < len(flows) || open > 0; {
		for ; next < len(flows) && open < m.opts.Window; next++ {
			i := next
			r := req
			r.Flow = flows[i]
			now := time.Now()
			cancel := send(ctx, &wg, m.via, r, func(res probe.Result, err error) {
				done <- outcome{query: i, res: res, err: err}
			})
			waits[i] = pending{sent: now, cancel: cancel}
			open++
		}
		wait := time.Hour
		if at.slowest > 0 {
			patience := max(m.opts.MinWait, hereFactor*at.slowest)
			for i := range waits[:next] {
				if waits[i].cancel == nil || patience >= m.opts.Timeout {
					continue
				}
				if left := time.Until(waits[i].sent.Add(patience)); left > 0 {
					wait = min(wait, left)
				} else {
					settle(i, probe.Result{Status: probe.NoReply, Sent: waits[i].sent})
					open--
					wait = 0
				}
			}
		}
		timer.Reset(wait)
		select {
		case o := <-done:
			if waits[o.query].cancel == nil {
				continue // given up before
			}
			if o.err == nil && o.res.Status == probe.Failed {
				o.err = o.res.Err
			}
			if o.err != nil {
				if ctx.Err() != nil {
					return nil, context.Cause(ctx)
				}
				return nil, fmt.Errorf("trace %s: hop %d: %w", req.Target, at.ttl, o.err)
			}
			if o.res.Answered() {
				at.slowest = max(at.slowest, o.res.RTT, time.Since(waits[o.query].sent), 1) // as in tracer.settle
			}
			settle(o.query, o.res)
			open--
		case <-timer.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return results, nil
}

// graph gives what is known by now.
func (m *mda) graph(reason StopReason) *Graph {
	g := &Graph{
		Target: m.req.Target, Protocol: m.req.Protocol, Stop: reason, Probes: m.sent, Flows: m.flows,
		NodeFailure: m.stopping.failure, Switched: m.switched,
	}
	kept := len(m.levels)
	for kept > 1 && !slices.ContainsFunc(m.levels[kept-1].vertices, func(v *vertex) bool { return v.Kind != SilentNode }) {
		kept--
	}
	if reason == StopGapLimit || reason == StopMaxHops {
		g.Silent = len(m.levels) - kept
	}
	var before []int // of the level before: vertex -> node
	for l, at := range m.levels[:kept] {
		order := make([]int, len(at.vertices))
		for i := range order {
			order[i] = i
		}
		slices.SortFunc(order, func(a, b int) int { return compareNodes(at.vertices[a].Node, at.vertices[b].Node) })
		index := make([]int, len(at.vertices))
		for _, i := range order {
			index[i] = len(g.Nodes)
			n := at.vertices[i].Node
			n.Flows = slices.Sorted(slices.Values(at.vertices[i].flows))
			g.Nodes = append(g.Nodes, n)
		}
		if l > 0 {
			for _, e := range m.edges(l - 1) {
				g.Edges = append(g.Edges, Edge{From: before[e.From], To: index[e.To], Flows: e.Flows, Uncertain: e.Uncertain})
			}
		}
		before = index
	}
	slices.SortFunc(g.Edges, func(a, b Edge) int { return cmp.Or(a.From-b.From, a.To-b.To) })
	g.Confidence = m.confidence(kept)
	return g
}

// edges gives the links from level l to the next, with indexes of vertices.
func (m *mda) edges(l int) []Edge {
	this, next := m.levels[l], m.levels[l+1]
	var edges []Edge
	if !this.mixed {
		for k, flows := range m.links(l) {
			slices.Sort(flows)
			edges = append(edges, Edge{From: k.from, To: k.to, Flows: flows})
		}
		return edges
	}
	for i, v := range this.vertices {
		for j := range next.vertices {
			if !v.last() {
				edges = append(edges, Edge{From: i, To: j, Uncertain: len(next.vertices) > 1})
			}
		}
	}
	return edges
}

// confidence gives the probability that the balancers found show all that they have.
func (m *mda) confidence(kept int) float64 {
	all, balancers := 1.0, 0
	for l := range kept - 1 {
		this, next := m.levels[l], m.levels[l+1]
		if !this.full || this.mixed {
			// Taken together: the flows are spread over all vertices of the next level.
			if len(next.vertices) > len(this.vertices) {
				all *= 1 - missed(len(next.vertices), len(next.seen))
				balancers++
			}
			continue
		}
		for i := range this.vertices {
			if k := m.outDegree(l, i); k > 1 {
				all *= 1 - missed(k, m.sentThrough(l, i))
				balancers++
			}
		}
	}
	if balancers == 0 {
		all = 1 - missed(1, m.stopping.point(1))
	}
	return all
}
