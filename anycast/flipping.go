// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
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

// chaos is short for the kind whose numbers are its ports.
const chaos = stateless.CHAOS

// isReply tells an answer of the target from one of a router.
func isReply(s probe.Status) bool { return s == probe.Replied }

const (
	// maxParting bounds the targets whose paths are traced, maxPartingAtOnce those at the same time.
	maxParting, maxPartingAtOnce = 2000, 16
	partingTimeout               = time.Second
)

// flipping is the program of KindFlipping. A step is one flow of one protocol in one round; all probes to a target
// come from one sender, so that nothing but these differs.
type flipping struct {
	r       *run
	s       *sweep
	sources [][2]netip.Addr
	vias    map[viaOf]*Via
	handler []*partingHandler // by protocol
	tally   tally

	parted []*FlipResult // those whose paths are to be traced
}

// viaOf is what a via is made for.
type viaOf struct{ sender, protocol int }

func (r *run) flipping(ctx context.Context) error {
	o := r.def.Flipping
	p := &flipping{r: r, tally: newTally(r.def.Weights), vias: make(map[viaOf]*Via)}
	for i := range r.senders {
		s := &r.senders[i]
		p.sources = append(p.sources, [2]netip.Addr{sourceOf(s, r.def.Source, false), sourceOf(s, r.def.Source, true)})
	}
	stamps := slices.ContainsFunc(o.Protocols, needsStamps)
	var err error
	if p.s, err = r.newSweep(p, r.take(), o.Flows*len(o.Protocols)*o.Rounds, stamps); err != nil {
		return err
	}
	defer p.s.close()
	if len(p.s.targets.addrs) > 0 {
		for _, kind := range o.Protocols {
			ports := o.Flows
			if kind == chaos {
				ports = p.s.numbers
			}
			h := &partingHandler{vias: make(map[string]*Via)}
			p.handler = append(p.handler, h)
			if err := p.s.open(ctx, r.def.probesOf(kind, ports), h); err != nil {
				return err
			}
		}
	}
	err = p.s.sweep(ctx)
	r.blame(p.s)
	p.tally.fill(&r.summary, p.s.view())
	if err == nil {
		err = p.part(ctx)
	} else if len(p.parted) > 0 { // cut short: what was found counts all the same
		err = errors.Join(err, r.Sink.Results(flips(p.parted)))
	}
	return err
}

func flips(all []*FlipResult) []Result {
	results := make([]Result, len(all))
	for i, f := range all {
		results[i] = f
	}
	return results
}

// of gives what a step is: flows vary fastest, rounds slowest.
func (p *flipping) of(step int) (flow, protocol, round int) {
	o := p.r.def.Flipping
	return step % o.Flows, step / o.Flows % len(o.Protocols), step / o.Flows / len(o.Protocols)
}

// aim implements sweeper.
func (p *flipping) aim(b *block, i int) (shot, bool) {
	flow, protocol, _ := p.of(b.step)
	at := i % len(p.sources)
	source := p.sources[at][0]
	if p.s.targets.addrs[i].Is6() {
		source = p.sources[at][1]
	}
	return shot{site: uint16(at), session: protocol, flow: uint16(flow), source: source}, source.IsValid()
}

// pause implements sweeper: rounds begin Interval apart.
func (p *flipping) pause(b *block) time.Duration {
	f := b.data.(*flipBlock)
	_, _, round := p.of(b.step)
	if _, _, next := p.of(b.step + 1); next == round || b.step+1 == p.s.steps {
		return 0
	}
	wait := time.Until(f.round.Add(p.r.def.Flipping.Interval))
	f.round = time.Time{}
	return max(0, wait+time.Since(b.reported))
}

// flipBlock is a block's data.
type flipBlock struct {
	round   time.Time // when it began
	catches [][]Catch // by target
}

// end implements sweeper.
func (p *flipping) end(b *block) error {
	sites := p.s.view()
	f, _ := b.data.(*flipBlock)
	if f == nil {
		f = &flipBlock{catches: make([][]Catch, len(b.records))}
		b.data = f
	}
	if f.round.IsZero() {
		f.round = b.began
	}
	flow, protocol, round := p.of(b.step)
	for k := range b.records {
		if rec := &b.records[k]; rec.state != answered || !isReply(rec.status) {
			continue
		}
		var c Catch
		p.s.catch(&c, b, k, sites, p.r.def.Flipping.Protocols[protocol])
		c.Flow, c.Round = uint16(flow), round
		f.catches[k] = append(f.catches[k], c)
	}
	if b.step < p.s.steps-1 {
		return nil
	}
	var found []Result
	for k, catches := range f.catches {
		if len(catches) == 0 {
			continue
		}
		target := p.s.targets.addrs[b.first+k]
		res := newFlipResult(target, catches)
		p.tally.add(target, p.home(res))
		if len(res.Seen) < 2 {
			continue
		}
		p.r.summary.Moved++
		if _, ok := res.pair(); ok && !p.r.def.Flipping.NoPaths && len(p.parted) < maxParting {
			p.parted = append(p.parted, res)
		} else {
			found = append(found, res)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return p.r.Sink.Results(found)
}

// home is the site that heard most.
func (p *flipping) home(r *FlipResult) uint16 {
	best, most := "", 0
	for site, n := range r.Seen {
		if n > most || n == most && site < best {
			best, most = site, n
		}
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return p.s.siteLocked(best)
}

// newFlipResult looks for what the site changes with.
//
// ByTime: the same flow of the same protocol reached different sites in different rounds. ByFlow: two flows of one protocol
// reached different sites, each the same one in all rounds. ByProtocol: two protocols reached different sets of sites, over all flows; which flow reaches which
// site is no sign, since balancers hash the protocol with the ports.
func newFlipResult(target netip.Addr, catches []Catch) *FlipResult {
	r := &FlipResult{Target: target, Seen: make(map[string]int), Catches: catches}
	type way struct {
		kind stateless.Kind
		flow uint16
	}
	constant := make(map[way]string) // way -> site, "" if it changed
	sets := make(map[stateless.Kind]map[string]bool)
	times := make(map[string][]time.Duration)
	for i := range catches {
		c := &catches[i]
		r.Seen[c.Receiver]++
		w := way{c.Protocol, c.Flow}
		if at, ok := constant[w]; !ok {
			constant[w] = c.Receiver
		} else if at != c.Receiver {
			constant[w] = ""
			r.ByTime = true
		}
		if sets[c.Protocol] == nil {
			sets[c.Protocol] = make(map[string]bool)
		}
		sets[c.Protocol][c.Receiver] = true
		if c.RTT > 0 {
			times[c.Receiver] = append(times[c.Receiver], c.RTT)
		}
	}
	for w, at := range constant {
		for v, other := range constant {
			r.ByFlow = r.ByFlow || w.kind == v.kind && at != "" && other != "" && at != other
		}
	}
	for _, a := range sets {
		for _, b := range sets {
			for site := range a {
				r.ByProtocol = r.ByProtocol || !b[site]
			}
		}
	}
	if len(times) > 1 {
		var medians []time.Duration
		for _, all := range times {
			slices.Sort(all)
			medians = append(medians, (all[(len(all)-1)/2]+all[len(all)/2])/2)
		}
		r.Spread = slices.Max(medians) - slices.Min(medians)
	}
	return r
}

// pair gives two observations of one protocol that can be traced whose flows reach different sites.
func (r *FlipResult) pair() (two [2]*Catch, ok bool) {
	if !r.ByFlow {
		return two, false
	}
	for i := range r.Catches {
		for j := range i {
			a, b := &r.Catches[j], &r.Catches[i]
			if _, traced := protocolOf(a.Protocol); traced && a.Protocol == b.Protocol && a.Flow != b.Flow && a.Receiver != b.Receiver && a.Round == b.Round {
				return [2]*Catch{a, b}, true
			}
		}
	}
	return two, false
}

// partingHandler hands events of a session on to the via that they are for.
type partingHandler struct {
	mu   sync.Mutex // guards the map
	vias map[string]*Via
}

func (h *partingHandler) HandleSent(e Sent) {
	h.mu.Lock()
	v := h.vias[e.Site]
	h.mu.Unlock()
	if v != nil {
		v.HandleSent(e)
	}
}

// HandleAnswers offers answers to all vias: their numbers are different.
func (h *partingHandler) HandleAnswers(all []Answer) {
	h.mu.Lock()
	vias := make([]*Via, 0, len(h.vias))
	for _, v := range h.vias {
		vias = append(vias, v)
	}
	h.mu.Unlock()
	for _, v := range vias {
		v.HandleAnswers(all)
	}
}

// part traces the ways of two flows to each target that flips between flows, to find where they part. The traces use
// the very flows, in the session that found them: another session's ports would be other flows.
func (p *flipping) part(ctx context.Context) error {
	defer func() {
		for _, v := range p.vias {
			v.Close()
		}
	}()
	var wg sync.WaitGroup
	places := make(chan struct{}, maxPartingAtOnce)
	var mu sync.Mutex // guards failed, and run.summary
	var failed error
	for _, res := range p.parted {
		two, _ := res.pair()
		via, err := p.via(two[0])
		if err != nil {
			return err
		}
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			parting, sent := part(ctx, via, two, p.r.def.Flipping.Flows)
			res.Parting = parting
			err := p.r.Sink.Results([]Result{res})
			mu.Lock()
			defer mu.Unlock()
			p.r.summary.Sent += uint64(sent)
			if failed == nil {
				failed = err
			}
		})
	}
	wg.Wait()
	if failed == nil {
		failed = ctx.Err()
	}
	return failed
}

// via gives the one that traces the flows of an observation.
func (p *flipping) via(c *Catch) (*Via, error) {
	sender := slices.IndexFunc(p.r.senders, func(s Site) bool { return s.Name == c.Sender })
	protocol := slices.Index(p.r.def.Flipping.Protocols, c.Protocol)
	key := viaOf{sender, protocol}
	if v := p.vias[key]; v != nil {
		return v, nil
	}
	v, err := newVia(ViaConf{
		Fleet: p.r.Fleet, Site: c.Sender, Source: p.r.def.Source, Probes: p.r.def.probesOf(c.Protocol, p.r.def.Flipping.Flows),
	})
	if err != nil {
		return nil, err
	}
	// Each its share of the numbers that the sweep does not use.
	share := (stateless.MaxNumber + 1 - p.s.numbers) / len(p.r.senders)
	v.session = p.s.sessions[protocol]
	v.firstNumber, v.numbers = p.s.numbers+sender*share, share
	v.firstBatch = otherBatches * uint64(1+sender)
	h := p.handler[protocol]
	h.mu.Lock()
	h.vias[c.Sender] = v
	h.mu.Unlock()
	p.vias[key] = v
	v.start()
	return v, nil
}

// part finds the hop where two flows part.
func part(ctx context.Context, via *Via, two [2]*Catch, flows int) (parting *Parting, sent int) {
	var paths [2]*trace.Path
	var wg sync.WaitGroup
	for i, c := range two {
		wg.Go(func() {
			req := via.Request(c.Target)
			// Flow 0 is another flow each time to package trace, and the same as flow number Flows to the session.
			req.Flow = c.Flow
			if c.Flow == 0 {
				req.Flow = uint16(flows)
			}
			// What it knows counts, whatever ended it.
			paths[i], _ = trace.Run(ctx, via, req, trace.Options{Queries: 2, Timeout: partingTimeout, Window: 8})
		})
	}
	wg.Wait()
	hop := func(path *trace.Path, i int) netip.Addr {
		if i < len(path.Hops) {
			if all := path.Hops[i].Responders(); len(all) > 0 {
				return all[0]
			}
		}
		return netip.Addr{}
	}
	if paths[0] == nil || paths[1] == nil {
		return nil, 0
	}
	sent = paths[0].Probes + paths[1].Probes
	last := Parting{Flows: [2]uint16{two[0].Flow, two[1].Flow}}
	for i := range max(len(paths[0].Hops), len(paths[1].Hops)) {
		a, b := hop(paths[0], i), hop(paths[1], i)
		switch {
		case !a.IsValid() || !b.IsValid(): // silence says nothing
		case a == b:
			last.TTL, last.Common = i+1, a
		default:
			last.Hops = []netip.Addr{a, b}
			return &last, sent
		}
	}
	return nil, sent
}
