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
// where the answer comes home is the result.
type catchment struct {
	r       *run
	s       *sweep
	sources [][2]netip.Addr // of each sender, for IPv4 and IPv6
	ports   uint16
	tally   tally
}

// Catchment: which site hears the answers of each target? All senders probe a target in turn, SiteGap apart, and the
// senders take the targets in turn, so that all have as much to do. A single sender that is lost is stood in for by others.
func (r *run) catchment(ctx context.Context) error {
	p := &catchment{r: r, tally: newTally(r.def.Weights)}
	for i := range r.senders {
		p.sources = append(p.sources, [2]netip.Addr{
			sourceOf(&r.senders[i], r.def.Source, false), sourceOf(&r.senders[i], r.def.Source, true),
		})
	}
	p.ports = 1
	if r.def.Protocol == chaos { // where the number is the port
		p.ports = uint16(len(r.senders) * r.def.Attempts)
	}
	var err error
	if p.s, err = r.newSweep(p, r.take(), len(r.senders), needsStamps(r.def.Protocol)); err != nil {
		return err
	}
	if len(p.s.targets.addrs) > 0 {
		if err := p.s.open(ctx, r.def.probes(int(p.ports)), nil); err != nil {
			return err
		}
		defer p.s.close()
	}
	err = p.s.sweep(ctx)
	r.blame(p.s)
	p.tally.fill(&r.summary, p.s.view())
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
	n := len(p.r.senders)
	at := (i + b.step) % n
	if n == 1 && !p.s.usableLocked(0) {
		return p.standIn(six)
	}
	if p.r.def.Responsive && b.step > 0 && !p.answered(b, i) {
		return shot{}, false
	}
	source := p.source(at, six)
	return shot{site: uint16(at), source: source}, source.IsValid()
}

// answered tells whether target i has answered one of the sites before.
func (p *catchment) answered(b *block, i int) bool {
	votes, _ := b.data.([]uint16)
	n := len(p.r.senders)
	before := votes[(i-b.first)*n:][:b.step]
	return slices.ContainsFunc(before, func(site uint16) bool { return site != noSite })
}

func (p *catchment) source(sender int, six bool) netip.Addr {
	if six {
		return p.sources[sender][1]
	}
	return p.sources[sender][0]
}

// standIn finds another site to send from.
func (p *catchment) standIn(six bool) (shot, bool) {
	for i := range p.s.fleet {
		site := &p.s.fleet[i]
		source := sourceOf(site, p.r.def.Source, six)
		if at := p.s.siteLocked(site.Name); site.Native && source.IsValid() && p.s.usableLocked(at) {
			return shot{site: at, source: source}, true
		}
	}
	return shot{site: 0, source: p.source(0, six)}, true // to wait for it
}

func (p *catchment) pause(*block) time.Duration { return max(0, p.r.def.Pace.SiteGap) }

func (p *catchment) end(b *block) error {
	sites := p.s.view()
	n := len(p.r.senders)
	votes, _ := b.data.([]uint16)
	if votes == nil {
		votes = slices.Repeat([]uint16{noSite}, n*len(b.records))
		b.data = votes
	}
	slab := make([]Catch, 0, len(b.records))
	for k := range b.records {
		rec := &b.records[k]
		if rec.state == idle {
			continue
		}
		slab = append(slab, Catch{})
		p.s.catch(&slab[len(slab)-1], b, k, sites, p.r.def.Protocol)
		if rec.state == answered && rec.status == probe.Replied {
			votes[k*n+b.step] = rec.receiver
		}
	}
	if b.step == n-1 {
		for k := range b.records {
			p.tally.add(p.s.targets.addrs[b.first+k], majority(votes[k*n:(k+1)*n]))
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

// fill writes the sums. The queries of a network are shared out in proportion to its targets.
func (t *tally) fill(sum *Summary, sites []siteState) {
	sum.Sites = make(map[string]int, len(t.sites))
	for site, n := range t.sites {
		sum.Sites[sites[site].name] = n
	}
	if t.index == nil {
		return
	}
	sum.Weight = make(map[string]float64)
	for i, by := range t.heard {
		total := 0
		for _, n := range by {
			total += n
		}
		for site, n := range by {
			sum.Weight[sites[site].name] += t.weights[i].Queries * float64(n) / float64(total)
		}
	}
}
