// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/fleettest"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// second is an anycast address that nyc and syd hold beside the first.
var second = netip.MustParseAddr("192.0.2.129")

// twoAddresses has nyc and syd hold the second address, and networks choose among the sites that hold the one that they answer to.
func twoAddresses(f *fleettest.Fleet) {
	for _, site := range []string{"nyc", "syd"} {
		f.Change(site, func(s *fleettest.Site) { s.Anycast = append(slices.Clone(s.Anycast), second) })
	}
	f.Internet.Catcher = func(p fleettest.Probe, responder netip.Addr, announced []string) string {
		return homeOf(p.Source, responder)
	}
}

func homeOf(source, responder netip.Addr) string {
	sites := []string{"fra", "nyc", "syd"}
	if source == second {
		sites = sites[1:]
	}
	return fleettest.Nearest(1, anycast.Network(responder).Addr(), sites)
}

func twoOrigins(program anycast.ProgramKind) anycast.Definition {
	return anycast.Definition{
		Program: program, Origins: []anycast.Origin{{Name: "all", Source: fleettest.Anycast4}, {Name: "part", Source: second}},
	}
}

// caughtBy counts, for each origin, what the truth is about the targets of a job; and about how many the origins differ.
func caughtBy(job *anycast.Job) (all, part map[string]int, differ int) {
	all, part = map[string]int{}, map[string]int{}
	for _, t := range job.Targets {
		a, b := homeOf(fleettest.Anycast4, t.Addr), homeOf(second, t.Addr)
		all[a]++
		part[b]++
		if a != b {
			differ++
		}
	}
	return all, part, differ
}

func equalCounts(a, b map[string]int) bool {
	for _, site := range []string{"fra", "nyc", "syd"} {
		if a[site] != b[site] {
			return false
		}
	}
	return true
}

func checkOriginSums(t *testing.T, job *anycast.Job, sum *anycast.Summary) {
	t.Helper()
	all, part, differ := caughtBy(job)
	if differ == 0 || differ == len(job.Targets) {
		t.Fatalf("origins differ about %d of %d targets: the test proves nothing", differ, len(job.Targets))
	}
	if sum.Differ != differ {
		t.Errorf("origins differ about %d targets, want %d", sum.Differ, differ)
	}
	if len(sum.Origins) != 2 || sum.Origins[0].Name != "all" || sum.Origins[1].Name != "part" ||
		!equalCounts(sum.Origins[0].Sites, all) || !equalCounts(sum.Origins[1].Sites, part) {
		t.Errorf("sums %+v, want %v and %v", sum.Origins, all, part)
	}
	for _, site := range []string{"fra", "nyc", "syd"} {
		if sum.Sites[site] != all[site]+part[site] {
			t.Errorf("%s catches %d, want the sum of both origins", site, sum.Sites[site])
		}
	}
}

func TestOriginsOfCatchment(t *testing.T) {
	job := anycast.Job{Definition: twoOrigins(anycast.KindCatchment), Targets: targets(200)}
	job.Definition.Weights = []anycast.Weight{{Network: netip.MustParsePrefix("20.0.0.0/24"), Queries: 10}}
	simulate(t, twoAddresses, job, func(t *testing.T, _ *fleettest.Fleet, m *memory, err error) {
		if err != nil {
			t.Fatal(err)
		}
		caught := of[*anycast.Catch](m)
		if len(caught) != (3+2)*200 {
			t.Fatalf("%d results, want those of 3 and 2 senders for each of 200 targets", len(caught))
		}
		sent := make(map[netip.Addr][]time.Time)
		for _, c := range caught {
			source := map[string]netip.Addr{"all": fleettest.Anycast4, "part": second}[c.Origin]
			if home := homeOf(source, c.Target); c.Receiver != home || c.Status != probe.Replied {
				t.Errorf("%+v, want it to come home at %s", c, home)
			}
			if c.Origin == "part" && c.Sender == "fra" {
				t.Errorf("%+v was sent from an address that the site does not hold", c)
			}
			sent[c.Target] = append(sent[c.Target], c.Time)
		}
		for target, times := range sent {
			slices.SortFunc(times, time.Time.Compare)
			for i := 1; i < len(times); i++ {
				if gap := times[i].Sub(times[i-1]); gap < time.Second-ms {
					t.Errorf("%v is probed again after %v, from whatever origin", target, gap)
				}
			}
		}
		sum := m.summary(t)
		checkOriginSums(t, &job, sum)
		if w := sum.Origins[1].Weight; len(w) != 1 || w[homeOf(second, netip.MustParseAddr("20.0.0.7"))] != 10 {
			t.Errorf("weights of the second origin are %v, want the 10 queries where its network reaches", w)
		}
	})
}

func TestOriginsOfLatency(t *testing.T) {
	job := anycast.Job{Definition: twoOrigins(anycast.KindLatency), Targets: targets(100)}
	simulate(t, twoAddresses, job, func(t *testing.T, f *fleettest.Fleet, m *memory, err error) {
		if err != nil {
			t.Fatal(err)
		}
		found := of[*anycast.LatencyResult](m)
		if len(found) != 2*100 {
			t.Fatalf("%d results, want one for each origin and target", len(found))
		}
		for _, l := range found {
			source := map[string]netip.Addr{"all": fleettest.Anycast4, "part": second}[l.Origin]
			home := homeOf(source, l.Target)
			if want := 2 * f.Internet.Distance(home, l.Target); l.Catcher != home || l.RTT != want {
				t.Errorf("%s from %s: %s in %v, want %s in %v", l.Target, l.Origin, l.Catcher, l.RTT, home, want)
			}
			if len(l.Unicast) != 3 || l.Best != l.Unicast[0].Site {
				t.Errorf("%s from %s: unicast %v, best %s", l.Target, l.Origin, l.Unicast, l.Best)
			}
		}
		checkOriginSums(t, &job, m.summary(t))
	})
}

// Under one of the origins the networks flip, under the other they do not; the paths part for this one's flows.
func TestOriginsOfFlipping(t *testing.T) {
	job := anycast.Job{Definition: twoOrigins(anycast.KindFlipping), Targets: targets(4)}
	job.Definition.Flipping = &anycast.FlippingOptions{Flows: 4, Rounds: 2}
	job.Definition.Pace = anycast.Pace{PerNetwork: -1}
	prepare := func(f *fleettest.Fleet) {
		twoAddresses(f)
		f.Internet.Path = func(p fleettest.Probe) []fleettest.Hop {
			hops := fleettest.Chain(3, false, ms)
			if p.Source == second && p.Port%2 == 1 {
				hops[1].Addr = netip.MustParseAddr("10.9.9.9")
			}
			return hops
		}
		f.Internet.Catcher = func(p fleettest.Probe, _ netip.Addr, _ []string) string {
			if p.Source == second && p.Port%2 == 1 {
				return "syd"
			}
			return "nyc"
		}
	}
	simulate(t, prepare, job, func(t *testing.T, _ *fleettest.Fleet, m *memory, err error) {
		if err != nil {
			t.Fatal(err)
		}
		flips := of[*anycast.FlipResult](m)
		if len(flips) != 4 {
			t.Fatalf("%d flips, want those of the second origin", len(flips))
		}
		for _, f := range flips {
			if f.Origin != "part" || !f.ByFlow || f.Seen["nyc"] != 4 || f.Seen["syd"] != 4 {
				t.Errorf("%+v", f)
			}
			if f.Parting == nil || f.Parting.TTL != 1 || !slices.Contains(f.Parting.Hops, netip.MustParseAddr("10.9.9.9")) {
				t.Errorf("%s parts at %+v, want behind the first hop", f.Target, f.Parting)
			}
			for _, c := range f.Catches {
				if c.Origin != "part" {
					t.Errorf("an observation of another origin: %+v", c)
				}
			}
		}
	})
}

// Each origin has its source port, and its sites.
func TestOriginsPortsAndSites(t *testing.T) {
	job := anycast.Job{Targets: targets(3), Definition: anycast.Definition{
		Program: anycast.KindCatchment, Protocol: stateless.UDP,
		Origins: []anycast.Origin{
			{Name: "a", SourcePort: 12345, Sites: []string{"fra"}},
			{Name: "b", SourcePort: 23456, Port: 4444, Sites: []string{"syd", "lon"}},
			{Name: "c", Source: netip.MustParseAddr("192.0.2.77")},
		},
	}}
	seen := make(map[uint16]string)
	prepare := func(f *fleettest.Fleet) {
		f.Internet.Path = func(p fleettest.Probe) []fleettest.Hop {
			seen[p.Port] += p.Site + " "
			return nil
		}
	}
	simulate(t, prepare, job, func(t *testing.T, _ *fleettest.Fleet, m *memory, err error) {
		if err != nil {
			t.Fatal(err)
		}
		if len(seen) != 2 || seen[12345] != "fra fra fra " || seen[23456] != "syd syd syd " {
			t.Errorf("probes by source port: %v", seen)
		}
		notes := strings.Join(m.summary(t).Notes, "\n")
		for _, want := range []string{"origin b: site lon cannot send from it", "origin c: none of the sites can send from it"} {
			if !strings.Contains(notes, want) {
				t.Errorf("notes %q, want %q", notes, want)
			}
		}
	})
}

// A responsive target is probed once from each origin, whatever the others found, and then only if it answered any of them.
func TestOriginsResponsive(t *testing.T) {
	job := anycast.Job{Definition: twoOrigins(anycast.KindCatchment), Targets: targets(60)}
	job.Definition.Responsive = true
	silent := func(a netip.Addr) bool { return a.As4()[2]%3 == 0 }
	prepare := func(f *fleettest.Fleet) {
		twoAddresses(f)
		f.Internet.Host = func(p fleettest.Probe) fleettest.Host { return fleettest.Host{Silent: silent(p.Target)} }
	}
	simulate(t, prepare, job, func(t *testing.T, f *fleettest.Fleet, _ *memory, err error) {
		if want := 20*2 + 40*5; err != nil || f.Sent() != want {
			t.Errorf("%d probes, %v; want %d: 2 for each silent target, 5 for the others", f.Sent(), err, want)
		}
	})
}

func TestBadOrigins(t *testing.T) {
	one := anycast.Origin{Name: "a"}
	for _, c := range []struct {
		d    anycast.Definition
		want string
	}{
		{anycast.Definition{Program: anycast.KindTrace, Origins: []anycast.Origin{one}}, "origins 1: are for catchment, latency and flipping"},
		{anycast.Definition{Program: anycast.KindWatch, Origins: []anycast.Origin{one}}, "origins 1: are for catchment, latency and flipping"},
		{anycast.Definition{Origins: []anycast.Origin{one, one}}, "origins.name a: is there twice"},
		{anycast.Definition{Origins: []anycast.Origin{{}}}, "origins.name"},
		{anycast.Definition{Origins: []anycast.Origin{{Name: "a b"}}}, "without spaces"},
		{anycast.Definition{Origins: []anycast.Origin{{Name: strings.Repeat("a", 65)}}}, "at most 64 bytes"},
		{anycast.Definition{Origins: make([]anycast.Origin, 17)}, "origins 17: want at most 16"},
		{anycast.Definition{Source: second, Origins: []anycast.Origin{one}}, "source 192.0.2.129: each of the origins has its own"},
		{anycast.Definition{Origins: []anycast.Origin{{Name: "a", Port: 80}}}, "icmp has no ports"},
		{anycast.Definition{Sites: []string{"fra"}, Origins: []anycast.Origin{{Name: "a", Sites: []string{"nyc"}}}}, "origins.sites nyc: is not among the sites"},
		{anycast.Definition{Protocol: stateless.CHAOS, Origins: []anycast.Origin{{Name: "a", SourcePort: 1}}}, "flipping and chaos choose their ports"},
		{anycast.Definition{Protocol: stateless.UDP, Origins: []anycast.Origin{{Name: "a", SourcePort: 1}, {Name: "b", SourcePort: 1, Port: 2}}}, "another destination port"},
	} {
		if c.d.Program == "" {
			c.d.Program = anycast.KindCatchment
		}
		if err := c.d.Check(); !errors.Is(err, anycast.ErrDefinition) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}
