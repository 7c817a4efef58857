// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/gaissmai/bart"

	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// catchment is the program of KindCatchment: every target is probed from each sender, one after the other, and
// where the answer comes home is the result. With several origins that is done for each of them.
type catchment struct {
	r     *run
	s     *sweep
	steps []catchStep
	// first is the position of the first vote for each origin among those for a target: one for each of its sites.
	first   []int
	votes   int // for a target
	tallies *tallies
}

// catchStep is a turn of one origin: in each of its turns another one of its sites probes a target.
type catchStep struct{ origin, turn int }

// Catchment: which site hears the answers of each target? All senders probe a target in turn, SiteGap apart, and the
// senders take the targets in turn, so that all have as much to do. A single sender that is lost is stood in for by others.
// Origins take turns, too: what they are compared by is measured as close in time as that allows.
func (r *run) catchment(ctx context.Context) error {
	p := &catchment{r: r, tallies: r.newTallies()}
	for i := range r.origins {
		p.first = append(p.first, p.votes)
		p.votes += len(r.origins[i].sites)
	}
	for turn := range r.senders {
		for i := range r.origins {
			if turn < len(r.origins[i].sites) {
				p.steps = append(p.steps, catchStep{i, turn})
			}
		}
	}
	var err error
	if p.s, err = r.newSweep(p, r.take(), len(p.steps), needsStamps(r.def.Protocol)); err != nil {
		return err
	}
	defer p.s.close()
	if err = p.s.openOrigins(ctx, r.def.Protocol, 1, nil); err != nil {
		return err
	}
	if r.Prior != nil {
		p.s.addPrior(p.tallies)
	}
	err = p.s.sweep(ctx)
	r.blame(p.s)
	p.tallies.fill(&r.summary, p.s.view())
	return err
}

// needsStamps tells of probes that do not bring their time of departure back, or not always: then the site has to tell it.
func needsStamps(k stateless.Kind) bool { return k != stateless.ICMP && k != stateless.DNS }

// blame notes the sites that could not send something.
func (r *run) blame(s *sweep) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.failed {
		if errors.Is(f.err, ErrSiteLost) {
			r.note("the connection to site %s was lost on the way", f.site)
		} else {
			r.note("site %s could not send some probes: %v", f.site, f.err)
		}
	}
	s.failed = nil
}

func (p *catchment) aim(b *block, i int) (shot, bool) {
	six := p.s.targets.addrs[i].Is6()
	step := p.steps[b.step]
	o := &p.r.origins[step.origin]
	at := o.sites[(i+step.turn)%len(o.sites)]
	source := o.source(at, six)
	if len(o.sites) == 1 && !p.s.usableLocked(uint16(at)) {
		return p.standIn(o, step.origin, six)
	}
	// An origin that nobody reaches must not hide what the others find: each gets its first turn.
	if p.r.def.Responsive && step.turn > 0 && !p.answered(b, i) {
		return shot{}, false
	}
	return shot{site: uint16(at), session: p.s.sessionOf(step.origin, p.r.def.Protocol), source: source}, source.IsValid()
}

// answered tells whether target i has answered one of the sites before.
func (p *catchment) answered(b *block, i int) bool {
	votes, _ := b.data.([]uint16)
	return slices.ContainsFunc(votes[(i-b.first)*p.votes:][:p.votes], func(site uint16) bool { return site != noSite })
}

// standIn finds another site to send from.
func (p *catchment) standIn(o *sender, origin int, six bool) (shot, bool) {
	session := p.s.sessionOf(origin, p.r.def.Protocol)
	for i := range p.s.fleet {
		site := &p.s.fleet[i]
		source := sourceOf(site, o.Source, six)
		if at := p.s.siteLocked(site.Name); site.Native && source.IsValid() && p.s.usableLocked(at) {
			return shot{site: at, session: session, source: source}, true
		}
	}
	only := o.sites[0]
	return shot{site: uint16(only), session: session, source: o.source(only, six)}, true // to wait for it
}

func (p *catchment) pause(*block) time.Duration { return max(0, p.r.def.Pace.SiteGap) }

func (p *catchment) end(b *block) error {
	sites := p.s.view()
	step := p.steps[b.step]
	votes, _ := b.data.([]uint16)
	if votes == nil {
		votes = slices.Repeat([]uint16{noSite}, p.votes*len(b.records))
		b.data = votes
	}
	slab := make([]Catch, 0, len(b.records))
	for k := range b.records {
		rec := &b.records[k]
		if rec.state == idle {
			continue
		}
		slab = append(slab, Catch{Origin: p.r.origins[step.origin].Name})
		p.s.catch(&slab[len(slab)-1], b, k, sites, p.r.def.Protocol)
		if rec.state == answered && rec.status == probe.Replied {
			votes[k*p.votes+p.first[step.origin]+step.turn] = rec.receiver
		}
	}
	if b.step == len(p.steps)-1 {
		homes := make([]uint16, len(p.r.origins))
		for k := range b.records {
			for i := range homes {
				homes[i] = majority(votes[k*p.votes+p.first[i]:][:len(p.r.origins[i].sites)])
			}
			p.tallies.add(b.addrs[k], homes)
		}
	}
	if len(slab) == 0 {
		return nil
	}
	return p.r.Sink.Results(resultsOf(slab))
}

func resultsOf(slab []Catch) []Result {
	results := make([]Result, len(slab))
	for i := range slab {
		results[i] = &slab[i]
	}
	return results
}

// noSite stands for none.
const noSite = ^uint16(0)

// majority gives the most frequent site, the first of them when they are equal; noSite if there is none.
func majority(votes []uint16) uint16 {
	best, most := noSite, 0
	for i, v := range votes {
		if v == noSite || v == best {
			continue
		}
		count := 0
		for _, w := range votes[i:] {
			if w == v {
				count++
			}
		}
		if count > most {
			best, most = v, count
		}
	}
	return best
}

// tally counts what each site catches, and with the user's query counts what that is worth. It keeps no target.
type tally struct {
	sites   map[uint16]int
	weights []Weight
	index   *bart.Table[int]       // of weights
	heard   map[int]map[uint16]int // weight -> site -> targets
}

func newTally(weights []Weight) tally {
	t := tally{sites: make(map[uint16]int), weights: weights}
	if len(weights) > 0 {
		t.index, t.heard = new(bart.Table[int]), make(map[int]map[uint16]int)
		for i, w := range weights {
			t.index.Insert(w.Network.Masked(), i)
		}
	}
	return t
}

func (t *tally) add(a netip.Addr, site uint16) {
	if site == noSite {
		return
	}
	t.sites[site]++
	if t.index == nil {
		return
	}
	if i, ok := t.index.Lookup(a); ok {
		if t.heard[i] == nil {
			t.heard[i] = make(map[uint16]int, 1)
		}
		t.heard[i][site]++
	}
}

// sums gives how many targets each site catches, and what that is worth, nil without weights. The queries of a network are
// shared out in proportion to its targets.
func (t *tally) sums(sites []siteState) (caught map[string]int, worth map[string]float64) {
	caught = make(map[string]int, len(t.sites))
	for site, n := range t.sites {
		caught[sites[site].name] = n
	}
	if t.index == nil {
		return caught, nil
	}
	worth = make(map[string]float64)
	for i, by := range t.heard {
		total := 0
		for _, n := range by {
			total += n
		}
		for site, n := range by {
			worth[sites[site].name] += t.weights[i].Queries * float64(n) / float64(total)
		}
	}
	return caught, worth
}
