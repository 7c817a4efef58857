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

// Steps of a latency measurement: find the catcher, time it from there, once more if it changed in between, and then
// every site by its own address.
const (
	stepDiscover = iota
	stepTime
	stepTimeAgain
	stepUnicast
)

// latency is the program of KindLatency. Only times between one clock and itself are used: the probe is sent by the site that is
// going to hear the answer.
type latency struct {
	r       *run
	s       *sweep
	sources [][2]netip.Addr // of each sender, for IPv4 and IPv6
	own     [][2]netip.Addr // its own addresses
	tally   tally
}

// distance is what is known about a target, in a block's data.
type distance struct {
	catcher uint16
	rtt     time.Duration
	time    time.Time
	unicast []SiteRTT
}

func (r *run) latency(ctx context.Context) error {
	p := &latency{r: r, tally: newTally(r.def.Weights)}
	for i := range r.senders {
		s := &r.senders[i]
		p.sources = append(p.sources, [2]netip.Addr{sourceOf(s, r.def.Source, false), sourceOf(s, r.def.Source, true)})
		p.own = append(p.own, [2]netip.Addr{unicastOf(s, false), unicastOf(s, true)})
		if own := p.own[i]; !own[0].IsValid() && !own[1].IsValid() {
			r.note("site %s has no address of its own to compare with", s.Name)
		}
	}
	var err error
	if p.s, err = r.newSweep(p, r.take(), stepUnicast+len(r.senders), true); err != nil {
		return err
	}
	if len(p.s.targets.addrs) > 0 {
		ports := 1
		if r.def.Protocol == chaos {
			ports = p.s.numbers
		}
		if err := p.s.open(ctx, r.def.probes(ports), nil); err != nil {
			return err
		}
		defer p.s.close()
	}
	err = p.s.sweep(ctx)
	r.blame(p.s)
	p.tally.fill(&r.summary, p.s.view())
	return err
}

// aim implements sweeper.
func (p *latency) aim(b *block, i int) (shot, bool) {
	version := 0
	if p.s.targets.addrs[i].Is6() {
		version = 1
	}
	if b.step == stepDiscover {
		return p.discover(i, version)
	}
	d := &b.data.([]distance)[i-b.first]
	switch {
	case d.catcher == noSite:
		return shot{}, false // it does not answer
	case b.step >= stepUnicast:
		at := b.step - stepUnicast
		source := p.own[at][version]
		return shot{site: uint16(at), source: source}, source.IsValid() && p.s.usableLocked(uint16(at))
	case d.rtt > 0 || int(d.catcher) >= len(p.sources): // known, or heard by a site that is not to send
		return shot{}, false
	}
	source := p.sources[d.catcher][version]
	return shot{site: d.catcher, source: source}, source.IsValid() && p.s.usableLocked(d.catcher)
}

// discover lets the sites take turns in finding the catchers.
func (p *latency) discover(i, version int) (shot, bool) {
	n := len(p.sources)
	for k := range n {
		at := (i + k) % n
		if source := p.sources[at][version]; source.IsValid() && p.s.usableLocked(uint16(at)) {
			return shot{site: uint16(at), source: source}, true
		}
	}
	return shot{site: uint16(i % n), source: p.sources[i%n][version]}, p.sources[i%n][version].IsValid() // to wait for it
}

// pause implements sweeper: every step has another sender.
func (p *latency) pause(*block) time.Duration { return max(0, p.r.def.Pace.SiteGap) }

// end implements sweeper.
func (p *latency) end(b *block) error {
	sites := p.s.view()
	if b.step == stepDiscover {
		b.data = make([]distance, len(b.records))
	}
	all := b.data.([]distance)
	for k := range b.records {
		rec, d := &b.records[k], &all[k]
		heard := rec.state == answered && isReply(rec.status)
		switch {
		case b.step == stepDiscover:
			*d = distance{catcher: noSite, time: b.began}
			if heard {
				d.catcher = rec.receiver
				if rec.receiver == rec.sender { // there is luck
					d.rtt, _ = p.s.rtt(rec, sites)
				}
			}
		case !heard:
		case b.step < stepUnicast:
			d.catcher = rec.receiver
			if rec.receiver == rec.sender {
				d.rtt, _ = p.s.rtt(rec, sites)
			}
		case rec.receiver == rec.sender:
			if rtt, _ := p.s.rtt(rec, sites); rtt > 0 {
				d.unicast = append(d.unicast, SiteRTT{Site: sites[rec.sender].name, RTT: rtt})
			}
		}
	}
	if b.step < p.s.steps-1 {
		return nil
	}
	slab := make([]LatencyResult, len(all))
	results := make([]Result, len(all))
	for k := range all {
		p.tally.add(p.s.targets.addrs[b.first+k], all[k].catcher)
		slab[k] = all[k].result(p.s.targets.addrs[b.first+k], sites)
		results[k] = &slab[k]
	}
	return p.r.Sink.Results(results)
}

func (d *distance) result(target netip.Addr, sites []siteState) LatencyResult {
	r := LatencyResult{Target: target, RTT: d.rtt, Unicast: d.unicast, Time: d.time}
	if d.catcher == noSite {
		return r
	}
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
