// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
	"context"
	"errors"
	"maps"
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

// flipping is the program of KindFlipping. A step is one flow of one protocol from one origin in one round; all probes to a target
// from one origin come from one sender, so that nothing but these differs.
type flipping struct {
	r       *run
	s       *sweep
	vias    map[viaOf]*Via
	handler []*partingHandler // by session
	tallies *tallies

	parted []*FlipResult // those whose paths are to be traced
}

// viaOf is what a via is made for.
type viaOf struct{ sender, origin, session int }

func (r *run) flipping(ctx context.Context) error {
	o := r.def.Flipping
	p := &flipping{r: r, tallies: r.newTallies(), vias: make(map[viaOf]*Via)}
	stamps := slices.ContainsFunc(o.Protocols, needsStamps)
	var err error
	if p.s, err = r.newSweep(p, r.take(), o.Flows*len(o.Protocols)*len(r.origins)*o.Rounds, stamps); err != nil {
		return err
	}
	defer p.s.close()
	for _, kind := range o.Protocols {
		err := p.s.openOrigins(ctx, kind, o.Flows, func(int) Handler {
			h := &partingHandler{vias: make(map[viaOf]*Via)}
			p.handler = append(p.handler, h)
			return h
		})
		if err != nil {
			return err
		}
	}
	err = p.s.sweep(ctx)
	r.blame(p.s)
	p.tallies.fill(&r.summary, p.s.view())
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

// flipStep is what a step is.
type flipStep struct{ flow, protocol, origin, round int }

// of gives what a step is: flows vary fastest, rounds slowest.
func (p *flipping) of(step int) (of flipStep) {
	o := p.r.def.Flipping
	of.flow, step = step%o.Flows, step/o.Flows
	of.protocol, step = step%len(o.Protocols), step/len(o.Protocols)
	of.origin, of.round = step%len(p.r.origins), step/len(p.r.origins)
	return of
}

// aim implements sweeper.
func (p *flipping) aim(b *block, i int) (shot, bool) {
	step := p.of(b.step)
	o := &p.r.origins[step.origin]
	if len(o.sites) == 0 {
		return shot{}, false
	}
	at := o.sites[i%len(o.sites)]
	source := o.source(at, p.s.targets.addrs[i].Is6())
	session := p.s.sessionOf(step.origin, p.r.def.Flipping.Protocols[step.protocol])
	return shot{site: uint16(at), session: session, flow: uint16(step.flow), source: source}, source.IsValid()
}

// pause implements sweeper: rounds begin Interval apart.
func (p *flipping) pause(b *block) time.Duration {
	f := b.data.(*flipBlock)
	if p.of(b.step+1).round == p.of(b.step).round || b.step+1 == p.s.steps {
		return 0
	}
	wait := time.Until(f.round.Add(p.r.def.Flipping.Interval))
	f.round = time.Time{}
	return max(0, wait+time.Since(b.reported))
}

// flipBlock is a block's data.
type flipBlock struct {
	round   time.Time // when it began
	catches [][]Catch // by target and origin
}

// end implements sweeper.
func (p *flipping) end(b *block) error {
	sites := p.s.view()
	f, _ := b.data.(*flipBlock)
	if f == nil {
		f = &flipBlock{catches: make([][]Catch, len(b.records)*len(p.r.origins))}
		b.data = f
	}
	if f.round.IsZero() {
		f.round = b.began
	}
	step, n := p.of(b.step), len(p.r.origins)
	for k := range b.records {
		if rec := &b.records[k]; rec.state != answered || !isReply(rec.status) {
			continue
		}
		c := Catch{Origin: p.r.origins[step.origin].Name}
		p.s.catch(&c, b, k, sites, p.r.def.Flipping.Protocols[step.protocol])
		c.Flow, c.Round = uint16(step.flow), step.round
		all := &f.catches[k*n+step.origin]
		*all = append(*all, c)
	}
	if b.step < p.s.steps-1 {
		return nil
	}
	var found []Result
	homes := make([]uint16, n)
	for at, catches := range f.catches {
		target := b.addrs[at/n]
		res := newFlipResult(target, catches)
		homes[at%n] = p.home(res)
		if at%n == n-1 {
			p.tallies.add(target, homes)
		}
		if len(res.Seen) < 2 {
			continue
		}
		res.Origin = p.r.origins[at%n].Name
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
	if len(r.Seen) == 0 {
		return noSite
	}
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
	vias map[viaOf]*Via
}

func (h *partingHandler) HandleSent(e Sent) {
	for _, v := range h.all() {
		if v.firstBatch <= e.Batch && e.Batch < v.firstBatch+otherBatches {
			v.HandleSent(e)
		}
	}
}

// HandleAnswers offers answers to all vias: their numbers are different.
func (h *partingHandler) HandleAnswers(all []Answer) {
	for _, v := range h.all() {
		v.HandleAnswers(all)
	}
}

func (h *partingHandler) all() []*Via {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(maps.Values(h.vias))
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
	at := slices.IndexFunc(p.r.senders, func(s Site) bool { return s.Name == c.Sender })
	origin := slices.IndexFunc(p.r.origins, func(o sender) bool { return o.Name == c.Origin })
	o := &p.r.origins[origin]
	key := viaOf{at, origin, p.s.sessionOf(origin, c.Protocol)}
	if v := p.vias[key]; v != nil {
		return v, nil
	}
	v, err := newVia(ViaConf{
		Fleet: p.r.Fleet, Site: c.Sender, Source: o.Source, Probes: p.r.def.probesFrom(&o.Origin, c.Protocol, p.r.def.Flipping.Flows),
	})
	if err != nil {
		return nil, err
	}
	// Each its share of the numbers that the sweep does not use.
	share := (stateless.MaxNumber + 1 - p.s.numbers) / (len(p.r.senders) * len(p.r.origins))
	number := at*len(p.r.origins) + origin
	v.session = p.s.sessions[key.session]
	v.firstNumber, v.numbers = p.s.numbers+number*share, share
	v.firstBatch = otherBatches * uint64(1+number)
	h := p.handler[key.session]
	h.mu.Lock()
	h.vias[key] = v
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
