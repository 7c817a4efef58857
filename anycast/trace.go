// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
	"github.com/seed5728abee/fathom/trace"
)

const (
	// maxTraces bounds the traces under way.
	maxTraces = 1000
	// Source ports of a session: a classic trace spreads its probes over some, a multipath trace cannot have more
	// flows. With 64 flows a balancer over up to 8 ways is found with a confidence of 0.95 (see trace.StoppingPoints).
	classicPorts, multipathPorts = 16, 64
	// What a trace is taken to send before it is known.
	likelyHops, likelyMultipath = 15, 200
)

// trace is the program of KindTrace: the path to each target from one site. Rate bounds the probes of all traces
// together, on average: a trace begins when those before it have had their share of the time.
func (r *run) trace(ctx context.Context) error {
	o := r.def.Trace
	ports := map[Method]int{MethodParis: 1, MethodClassic: classicPorts, MethodMultipath: multipathPorts}[o.Method]
	via, err := NewVia(ctx, ViaConf{
		Fleet: r.Fleet, Site: r.senders[0].Name, Source: r.def.Source, Probes: r.def.probes(ports), Linger: r.def.Timeout,
	})
	if err != nil {
		return err
	}
	defer via.Close()
	f := newFilter(&r.def, r.Done, r.origins)
	var targets []Target
	for _, t := range r.Targets {
		if t.Addr = t.Addr.Unmap(); f.takes(t.Addr) {
			targets = append(targets, t)
		}
	}
	if len(f.skipped) > 0 {
		r.summary.Skipped = f.skipped
	}
	r.summary.Sites = make(map[string]int)

	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	p := &tracing{run: r, via: via, ports: uint16(ports), bucket: tokens{rate: r.def.Pace.Rate}, total: len(targets)}
	places := make(chan struct{}, maxTraces)
	for _, t := range targets {
		if err := p.turn(ctx); err != nil {
			break
		}
		places <- struct{}{}
		p.wg.Go(func() {
			defer func() { <-places }()
			if err := p.trace(ctx, t); err != nil {
				p.failed(t, err, stop)
			}
		})
	}
	p.wg.Wait()
	return context.Cause(ctx)
}

// tracing is the traces of a run.
type tracing struct {
	*run
	via   *Via
	ports uint16
	total int
	wg    sync.WaitGroup

	mu     sync.Mutex // guards all following fields, and run.summary
	bucket tokens
	done   int
	// failures is how many traces failed.
	failures int
	// exhausted is how many multipath traces ran out of flows.
	exhausted int
}

// likely is how many probes a trace is taken to send before it is known.
func (p *tracing) likely() float64 {
	if p.def.Trace.Method == MethodMultipath {
		return likelyMultipath
	}
	return float64(min(likelyHops, p.def.Trace.MaxHops-p.def.Trace.FirstHop+1) * p.def.Attempts)
}

// turn waits until a trace may begin.
func (p *tracing) turn(ctx context.Context) error {
	p.mu.Lock()
	p.bucket.fill(time.Now())
	wait := p.bucket.wait(1)
	p.bucket.have -= p.likely()
	p.mu.Unlock()
	if wait == 0 {
		return ctx.Err()
	}
	select {
	case <-time.After(wait):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// failed sees to a trace that failed. One of many is a note, unless the others have no chance either.
func (p *tracing) failed(t Target, err error, stop context.CancelCauseFunc) {
	var sent *sendError
	if p.total == 1 || !errors.As(err, &sent) || errors.Is(err, ErrSiteLost) || errors.Is(err, ErrNoSite) || errors.Is(err, ErrCannotSend) {
		stop(err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failures++; p.failures <= maxFailureNotes {
		p.note("%s: %v", t.Addr, sent)
	}
}

// maxFailureNotes bounds the notes about traces that failed.
const maxFailureNotes = 20

// recorder is a via that keeps what probe.Result has no place for. It is for one trace.
type recorder struct {
	via *Via

	mu   sync.Mutex // guards all following fields
	seen []header   // by tag, which counts from 1
}

// header is what is kept about a probe and its answer.
type header struct {
	flow, id, size uint16
	tos            uint8
}

var _ trace.Starter = (*recorder)(nil)

func (c *recorder) Probe(ctx context.Context, req probe.Request) (probe.Result, error) {
	return c.via.Probe(ctx, req)
}

func (c *recorder) StartProbe(req probe.Request, done func(probe.Result)) (cancel func(), err error) {
	c.mu.Lock()
	tag := len(c.seen) + 1
	if req.Flow == 0 { // the probes of a classic trace differ
		req.Flow = uint16(tag%probe.MaxFlow) + 1
	}
	c.seen = append(c.seen, header{flow: req.Flow % c.via.conf.Probes.Ports})
	c.mu.Unlock()
	req.Tag = uint64(tag)
	return c.via.startWith(req, func(r probe.Result, a *Answer) {
		if a != nil {
			c.mu.Lock()
			h := &c.seen[tag-1]
			h.id, h.size, h.tos = a.ReplyID, a.ReplySize, a.ReplyTOS
			c.mu.Unlock()
		}
		done(r)
	})
}

// reply makes what a result of the trace is in a TraceResult.
func (c *recorder) reply(r *probe.Result) Reply {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := Reply{
		TTL: r.TTL, Status: r.Status, Responder: r.Responder, Receiver: r.Receiver, RTT: r.RTT, ClockError: r.ClockError,
		HasICMP: r.HasICMP, ICMPType: r.ICMPType, ICMPCode: r.ICMPCode, ReplyTTL: r.ReplyTTL,
		QuotedTTL: r.QuotedTTL, QuotedTOS: r.QuotedTOS, MTU: r.MTU, MPLS: r.MPLS, Sent: r.Sent,
	}
	if r.Tag == 0 { // package trace gave it up
		p.Flow = r.Flow % c.via.conf.Probes.Ports
		return p
	}
	h := &c.seen[r.Tag-1]
	p.Flow, p.ReplyTOS, p.ReplyID, p.ReplySize = h.flow, h.tos, h.id, h.size
	return p
}

// trace traces one target.
func (p *tracing) trace(ctx context.Context, t Target) error {
	o := p.def.Trace
	site := &p.senders[0]
	c := &recorder{via: p.via}
	source := sourceOf(site, p.def.Source, t.Addr.Is6())
	res := &TraceResult{
		Site: site.Name, Source: source, Target: t.Addr, Name: t.Name, Protocol: p.def.Protocol, Method: o.Method,
		SrcPort: p.via.session.FirstPort(), DstPort: dstPort(&p.def), Size: p.def.Size, TOS: p.def.TOS,
		FirstHop: o.FirstHop, MaxHops: o.MaxHops, Attempts: p.def.Attempts, Start: time.Now(),
	}
	var err error
	if o.Method == MethodMultipath {
		err = p.multipath(ctx, c, res)
	} else {
		err = p.path(ctx, c, res)
	}
	res.End = time.Now()

	p.mu.Lock()
	p.bucket.have += p.likely() - float64(res.Probes)
	p.done++
	p.summary.Sent += uint64(res.Probes)
	home := ""
	for i := range res.Replies {
		if r := &res.Replies[i]; r.Responder.IsValid() {
			p.summary.Answered++
			if r.Status == probe.Replied {
				home = r.Receiver
			}
		}
	}
	if home != "" {
		p.summary.Sites[home]++
	}
	progress := Progress{Done: p.done, Total: p.total, Sent: p.summary.Sent, Answered: p.summary.Answered}
	if took := time.Since(p.start); p.done > 0 {
		progress.Left = took / time.Duration(p.done) * time.Duration(p.total-p.done)
	}
	p.mu.Unlock()
	if sinkErr := p.Sink.Results([]Result{res}); err == nil {
		err = sinkErr
	}
	p.Sink.Progress(progress)
	return err
}

// dstPort is where the probes go, 0 for echo requests.
func dstPort(d *Definition) uint16 {
	switch d.Protocol {
	case stateless.UDP:
		return cmp.Or(d.Port, stateless.DefaultUDPPort)
	case stateless.TCP:
		return cmp.Or(d.Port, stateless.DefaultTCPPort)
	case stateless.ICMP, stateless.DNS, stateless.CHAOS:
	}
	return 0
}

// traceWindow is how many hops wait for answers at once. The orders of the next ones take a while to the site, by when a
// target behind few hops has answered: a large window would flood it.
const traceWindow = 6

func (p *tracing) path(ctx context.Context, c *recorder, res *TraceResult) error {
	o := p.def.Trace
	opts := trace.Options{
		FirstHop: o.FirstHop, MaxHops: o.MaxHops, Queries: p.def.Attempts, Timeout: p.def.Timeout, GapLimit: o.GapLimit,
		Window: traceWindow,
	}
	if o.Method == MethodClassic {
		opts.Method = trace.Classic
	}
	path, err := trace.Run(ctx, c, p.via.Request(res.Target), opts)
	if path == nil {
		return err
	}
	res.Stop, res.Silent, res.Probes = path.Stop.String(), path.Silent, path.Probes
	for i := range path.Hops {
		for j := range path.Hops[i].Replies {
			res.Replies = append(res.Replies, c.reply(&path.Hops[i].Replies[j]))
		}
	}
	return err
}

func (p *tracing) multipath(ctx context.Context, c *recorder, res *TraceResult) error {
	o := p.def.Trace
	g, err := trace.Multipath(ctx, c, p.via.Request(res.Target), trace.MultipathOptions{
		Confidence: o.Confidence, FirstHop: o.FirstHop, MaxHops: o.MaxHops, Timeout: p.def.Timeout, GapLimit: o.GapLimit,
		MaxFlows: int(p.ports), OnReply: func(r probe.Result) { res.Replies = append(res.Replies, c.reply(&r)) },
	})
	if g == nil {
		return err
	}
	res.Stop, res.Silent, res.Probes, res.Confidence = g.Stop.String(), g.Silent, g.Probes, g.Confidence
	if g.Stop == trace.StopProbeLimit && g.Flows >= int(p.ports) {
		p.mu.Lock()
		if p.exhausted++; p.exhausted <= maxFailureNotes {
			p.note("%s: the trace used all %d flows that it can have: there may be more ways than it shows", res.Target, p.ports)
		}
		p.mu.Unlock()
	}
	slices.SortStableFunc(res.Replies, func(a, b Reply) int { return int(a.TTL) - int(b.TTL) })
	for _, e := range g.Edges {
		l := Link{TTL: g.Nodes[e.From].TTL, From: g.Nodes[e.From].Addr, To: g.Nodes[e.To].Addr, Uncertain: e.Uncertain}
		for _, f := range e.Flows {
			l.Flows = append(l.Flows, f%p.ports)
		}
		slices.Sort(l.Flows)
		res.Links = append(res.Links, l)
	}
	return err
}

// Graph gives the trace as a graph, to draw it: each hop in the colour of the sites that heard it.
func (t *TraceResult) Graph() *trace.Graph {
	proto, _ := protocolOf(t.Protocol)
	path := &trace.Path{
		Target: t.Target, Protocol: proto, Silent: t.Silent, Start: t.Start, Duration: t.End.Sub(t.Start), Probes: t.Probes,
	}
	for s := trace.StopReached; s <= trace.StopInterrupted; s++ {
		if s.String() == t.Stop {
			path.Stop = s
		}
	}
	for i := range t.Replies {
		r := &t.Replies[i]
		if n := len(path.Hops); n == 0 || path.Hops[n-1].TTL != int(r.TTL) {
			path.Hops = append(path.Hops, trace.Hop{TTL: int(r.TTL)})
		}
		h := &path.Hops[len(path.Hops)-1]
		h.Replies = append(h.Replies, probe.Result{
			Target: t.Target, Status: r.Status, HasICMP: r.HasICMP, ICMPType: r.ICMPType, ICMPCode: r.ICMPCode,
			TTL: r.TTL, Flow: r.Flow, Responder: r.Responder, Receiver: r.Receiver, RTT: r.RTT, MPLS: r.MPLS,
		})
	}
	g := path.Graph()
	g.Confidence, g.Source = t.Confidence, t.Site
	if t.Method == MethodMultipath {
		t.link(g)
	}
	return g
}

// link gives the graph of a multipath trace the links that were found.
func (t *TraceResult) link(g *trace.Graph) {
	g.Edges = nil
	node := func(ttl int, a netip.Addr) int {
		i := slices.IndexFunc(g.Nodes, func(n trace.Node) bool { return n.TTL == ttl && n.Addr == a })
		if i < 0 && !a.IsValid() { // silent beside others that answer: the graph has no node for it yet
			i = len(g.Nodes)
			g.Nodes = append(g.Nodes, trace.Node{TTL: ttl, Kind: trace.SilentNode})
		}
		return i
	}
	flows := make(map[uint16]bool)
	for _, l := range t.Links {
		from, to := node(l.TTL, l.From), node(l.TTL+1, l.To)
		if from < 0 || to < 0 {
			continue
		}
		g.Edges = append(g.Edges, trace.Edge{From: from, To: to, Flows: l.Flows, Uncertain: l.Uncertain})
		for _, f := range l.Flows {
			flows[f] = true
		}
	}
	g.Flows = max(1, len(flows))
	g.Sort()
}
