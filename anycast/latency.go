// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"
)

// Steps of a latency measurement, for each origin: find the catcher, time it from there, once more if it changed in between. Behind those of
// the last origin follow every site's by its own address.
const (
	stepDiscover = iota
	stepTime
	stepTimeAgain
	originSteps
)

// latency is the program of KindLatency. Only times between one clock and itself are used: the probe is sent by the site that is
// going to hear the answer.
type latency struct {
	r       *run
	s       *sweep
	own     [][2]netip.Addr // each sender's own addresses, for IPv4 and IPv6
	unicast int             // the first step of these
	tallies *tallies
}

// distances is what is known about a target: a block's data has one for each.
type distances struct {
	origins []distance
	unicast []SiteRTT
}

// distance is what is known about a target under one origin.
type distance struct {
	catcher uint16
	rtt     time.Duration
	time    time.Time
}

func (r *run) latency(ctx context.Context) error {
	p := &latency{r: r, unicast: originSteps * len(r.origins), tallies: r.newTallies()}
	for i := range r.senders {
		s := &r.senders[i]
		p.own = append(p.own, [2]netip.Addr{unicastOf(s, false), unicastOf(s, true)})
		if own := p.own[i]; !own[0].IsValid() && !own[1].IsValid() {
			r.note("site %s has no address of its own to compare with", s.Name)
		}
	}
	var err error
	if p.s, err = r.newSweep(p, r.take(), p.unicast+len(r.senders), true); err != nil {
		return err
	}
	defer p.s.close()
	if err := p.s.openOrigins(ctx, r.def.Protocol, 1, nil); err != nil {
		return err
	}
	err = p.s.sweep(ctx)
	r.blame(p.s)
	p.tallies.fill(&r.summary, p.s.view())
	return err
}

// aim implements sweeper.
func (p *latency) aim(b *block, i int) (shot, bool) {
	six := p.s.targets.addrs[i].Is6()
	if b.step >= p.unicast {
		return p.aimUnicast(&b.data.([]distances)[i-b.first], b.step-p.unicast, six)
	}
	origin := b.step / originSteps
	o := &p.r.origins[origin]
	sh := shot{session: p.s.sessionOf(origin, p.r.def.Protocol)}
	if b.step%originSteps == stepDiscover {
		return p.discover(sh, o, i, six)
	}
	d := &b.data.([]distances)[i-b.first].origins[origin]
	if d.catcher == noSite || d.rtt > 0 || int(d.catcher) >= len(o.sources) { // silent, known, or heard by a site that is not to send
		return shot{}, false
	}
	sh.site, sh.source = d.catcher, o.source(int(d.catcher), six)
	return sh, sh.source.IsValid() && p.s.usableLocked(d.catcher)
}

// aimUnicast is the probe of a target that answers from a site's own address, in the session of an origin that found it.
func (p *latency) aimUnicast(d *distances, at int, six bool) (shot, bool) {
	origin := slices.IndexFunc(d.origins, func(d distance) bool { return d.catcher != noSite })
	if origin < 0 {
		return shot{}, false
	}
	source := p.own[at][0]
	if six {
		source = p.own[at][1]
	}
	return shot{site: uint16(at), session: p.s.sessionOf(origin, p.r.def.Protocol), source: source}, source.IsValid() && p.s.usableLocked(uint16(at))
}

// discover lets the sites of an origin take turns in finding the catchers.
func (p *latency) discover(sh shot, o *sender, i int, six bool) (shot, bool) {
	n := len(o.sites)
	if n == 0 {
		return sh, false
	}
	for k := range n {
		at := o.sites[(i+k)%n]
		if source := o.source(at, six); source.IsValid() && p.s.usableLocked(uint16(at)) {
			sh.site, sh.source = uint16(at), source
			return sh, true
		}
	}
	at := o.sites[i%n]
	sh.site, sh.source = uint16(at), o.source(at, six)
	return sh, sh.source.IsValid() // to wait for it
}

// pause implements sweeper: every step has another sender.
func (p *latency) pause(*block) time.Duration { return max(0, p.r.def.Pace.SiteGap) }

// end implements sweeper.
func (p *latency) end(b *block) error {
	sites := p.s.view()
	if b.step == 0 {
		b.data = p.nothing(b)
	}
	all := b.data.([]distances)
	for k := range b.records {
		rec := &b.records[k]
		heard := rec.state == answered && isReply(rec.status)
		if b.step >= p.unicast {
			if heard && rec.receiver == rec.sender {
				if rtt, _ := p.s.rtt(rec, sites); rtt > 0 {
					all[k].unicast = append(all[k].unicast, SiteRTT{Site: sites[rec.sender].name, RTT: rtt})
				}
			}
			continue
		}
		d := &all[k].origins[b.step/originSteps]
		if b.step%originSteps == stepDiscover {
			d.time = b.began
		}
		if heard {
			d.catcher = rec.receiver
			if rec.receiver == rec.sender { // in the first step, with luck
				d.rtt, _ = p.s.rtt(rec, sites)
			}
		}
	}
	if b.step < p.s.steps-1 {
		return nil
	}
	n := len(p.r.origins)
	slab := make([]LatencyResult, 0, n*len(all))
	homes := make([]uint16, n)
	for k := range all {
		for i := range homes {
			homes[i] = all[k].origins[i].catcher
			if o := &p.r.origins[i]; p.has(o, b.addrs[k].Is6()) {
				slab = append(slab, all[k].result(b.addrs[k], i, o.Name, sites))
			}
		}
		p.tallies.add(b.addrs[k], homes)
	}
	results := make([]Result, len(slab))
	for i := range slab {
		results[i] = &slab[i]
	}
	return p.r.Sink.Results(results)
}

// has tells whether an origin has an address of an IP version anywhere. The only origin is asked about everything.
func (p *latency) has(o *sender, six bool) bool {
	return len(p.r.origins) == 1 || slices.ContainsFunc(o.sites, func(at int) bool { return o.source(at, six).IsValid() })
}

// nothing is what is known about the targets of a block at first.
func (p *latency) nothing(b *block) []distances {
	n := len(p.r.origins)
	all, each := make([]distances, len(b.records)), slices.Repeat([]distance{{catcher: noSite}}, n*len(b.records))
	for k := range all {
		all[k].origins = each[k*n:][:n:n]
	}
	return all
}

func (t *distances) result(target netip.Addr, origin int, name string, sites []siteState) LatencyResult {
	d := &t.origins[origin]
	r := LatencyResult{Target: target, Origin: name, RTT: d.rtt, Time: d.time}
	if d.catcher == noSite {
		return r
	}
	r.Unicast = slices.Clone(t.unicast)
	r.Catcher = sites[d.catcher].name
	slices.SortFunc(r.Unicast, func(a, b SiteRTT) int { return cmp.Or(cmp.Compare(a.RTT, b.RTT), cmp.Compare(a.Site, b.Site)) })
	if len(r.Unicast) == 0 {
		return r
	}
	r.Best = r.Unicast[0].Site
	from := r.RTT
	if i := slices.IndexFunc(r.Unicast, func(s SiteRTT) bool { return s.Site == r.Catcher }); i >= 0 {
		from = r.Unicast[i].RTT
	}
	if from > 0 {
		r.Inflation = from - r.Unicast[0].RTT
	}
	return r
}
