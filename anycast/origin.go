// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"github.com/seed5728abee/fathom/probe/stateless"
)

const (
	// MaxOrigins bounds Definition.Origins.
	MaxOrigins = 16
	// MaxOriginName is the longest Origin.Name in bytes.
	MaxOriginName = 64
)

// Origin is one of several things to send from in one run: an address, ports, and the sites that use them. Each target is
// probed from every origin of its IP version, and the results say which.
type Origin struct {
	// Name tells the origins of a measurement apart, in results too. It has no spaces.
	Name string `json:"name"`
	// Source is the anycast address to send from; by default each site's first of the target's IP version.
	Source netip.Addr `json:"source,omitzero"`
	// SourcePort is the source port, or with ICMP the identifier, of all probes: one of the controller's range, which the
	// measurement waits for if it is in use. 0 is any. Origins may share it if they share Port. Flipping and the
	// protocol CHAOS need ports of their own choice, and want 0.
	SourcePort uint16 `json:"source_port,omitempty"`
	// Port is the destination port, by default that of the definition.
	Port uint16 `json:"destination_port,omitempty"`
	// Sites are those of the definition's that send from here; none means all of them that hold Source.
	Sites []string `json:"sites,omitempty"`
}

// OriginList gives the origins of a definition: the one without a name that Source says if there are no Origins.
func (d *Definition) OriginList() []Origin {
	if len(d.Origins) > 0 {
		return d.Origins
	}
	return []Origin{{Source: d.Source, Port: d.Port}}
}

// Origin finds an origin by its name.
func (d *Definition) Origin(name string) (o Origin, ok bool) {
	list := d.OriginList()
	if i := slices.IndexFunc(list, func(o Origin) bool { return o.Name == name }); i >= 0 {
		return list[i], true
	}
	return o, false
}

// checkOrigins checks what is given, with the definition's defaults filled in.
func (d *Definition) checkOrigins(c *checker) {
	if len(d.Origins) == 0 {
		return
	}
	switch d.Program {
	case KindCatchment, KindLatency, KindFlipping:
	default:
		c.want(false, "origins", len(d.Origins), "are for catchment, latency and flipping, not %s", d.Program)
	}
	c.want(len(d.Origins) <= MaxOrigins, "origins", len(d.Origins), "want at most %d", MaxOrigins)
	c.want(!d.Source.IsValid(), "source", d.Source, "each of the origins has its own")
	names := make(map[string]bool)
	ports := make(map[uint16]uint16) // source port -> destination port
	for i := range d.Origins {
		o := &d.Origins[i]
		strange := strings.ContainsFunc(o.Name, func(r rune) bool { return !unicode.IsGraphic(r) || unicode.IsSpace(r) })
		c.want(o.Name != "" && len(o.Name) <= MaxOriginName && !strange, "origins.name", o.Name, "want a name without spaces of at most %d bytes", MaxOriginName)
		c.want(!names[o.Name], "origins.name", o.Name, "is there twice")
		names[o.Name] = true
		c.want(o.Port == 0 || d.Protocol != stateless.ICMP, "origins.destination_port", o.Port, "icmp has no ports")
		for _, site := range o.Sites {
			c.want(len(d.Sites) == 0 || slices.Contains(d.Sites, site), "origins.sites", site, "is not among the sites that send")
		}
		if o.SourcePort == 0 {
			continue
		}
		c.want(d.Program != KindFlipping && d.Protocol != chaos, "origins.source_port", o.SourcePort, "flipping and chaos choose their ports")
		port, shared := ports[o.SourcePort]
		c.want(!shared || port == o.Port, "origins.source_port", o.SourcePort, "is another origin's, which has another destination port")
		ports[o.SourcePort] = o.Port
	}
}

// sender is an origin at the sites that use it in a run.
type sender struct {
	Origin
	// sites are positions in run.senders.
	sites []int
	// sources are the addresses to send from at each of run.senders, for IPv4 and IPv6. They are the zero Addr where there is none, or the
	// site does not use the origin.
	sources [][2]netip.Addr
}

// source is the address to send from at a site, by its position in run.senders.
func (o *sender) source(site int, six bool) netip.Addr {
	if six {
		return o.sources[site][1]
	}
	return o.sources[site][0]
}

// uses tells whether a site may send from the origin.
func (o *Origin) uses(site *Site) bool {
	if len(o.Sites) > 0 && !slices.Contains(o.Sites, site.Name) {
		return false
	}
	return sourceOf(site, o.Source, false).IsValid() || sourceOf(site, o.Source, true).IsValid()
}

// placeOrigins notes which sites use each origin.
func (r *run) placeOrigins() {
	list := r.def.OriginList()
	r.origins = make([]sender, len(list))
	for i := range list {
		o := &r.origins[i]
		o.Origin = list[i]
		for k := range r.senders {
			var sources [2]netip.Addr
			if s := &r.senders[k]; o.uses(s) {
				o.sites = append(o.sites, k)
				sources = [2]netip.Addr{sourceOf(s, o.Source, false), sourceOf(s, o.Source, true)}
			}
			o.sources = append(o.sources, sources)
		}
		if len(o.sites) == 0 {
			r.note("origin %s: none of the sites can send from it", o.Name)
		}
		for _, name := range o.Sites {
			if !slices.ContainsFunc(o.sites, func(k int) bool { return r.senders[k].Name == name }) {
				r.note("origin %s: site %s cannot send from it", o.Name, name)
			}
		}
	}
}

// probesFrom is what the probes of an origin look like.
func (d *Definition) probesFrom(o *Origin, kind stateless.Kind, ports int) stateless.Config {
	conf := d.probesOf(kind, ports)
	conf.FirstPort = o.SourcePort
	if o.Port != 0 && kind == d.Protocol {
		conf.DstPort = o.Port
	}
	return conf
}

// differ tells whether two of the sites are different ones.
func differ(sites []uint16) bool {
	first := noSite
	for _, site := range sites {
		switch {
		case site == noSite:
		case first == noSite:
			first = site
		case site != first:
			return true
		}
	}
	return false
}

// tallies are the tallies of the origins of a run.
type tallies struct {
	origins []sender
	each    []tally
	differ  int // targets that origins differ about
}

func (r *run) newTallies() *tallies {
	t := &tallies{origins: r.origins}
	for range r.origins {
		t.each = append(t.each, newTally(r.def.Weights))
	}
	return t
}

// add books which site catches a target under each origin.
func (t *tallies) add(a netip.Addr, sites []uint16) {
	for i, site := range sites {
		t.each[i].add(a, site)
	}
	if differ(sites) {
		t.differ++
	}
}

// addPrior books what an earlier part of the measurement found.
func (s *sweep) addPrior(t *tallies) {
	s.mu.Lock()
	defer s.mu.Unlock()
	homes := make([]uint16, len(t.each))
	for a, sites := range s.run.Prior {
		for i := range homes {
			homes[i] = noSite
			if sites[i] != "" {
				homes[i] = s.siteLocked(sites[i])
			}
		}
		t.add(a, homes)
	}
}

// fill writes the sums, for each origin if there are several.
func (t *tallies) fill(sum *Summary, sites []siteState) {
	if t.origins[0].Name == "" {
		sum.Sites, sum.Weight = t.each[0].sums(sites)
		return
	}
	sum.Differ = t.differ
	sum.Sites = make(map[string]int)
	for i := range t.each {
		s := OriginSummary{Name: t.origins[i].Name}
		s.Sites, s.Weight = t.each[i].sums(sites)
		for site, n := range s.Sites {
			sum.Sites[site] += n
		}
		sum.Origins = append(sum.Origins, s)
	}
}
