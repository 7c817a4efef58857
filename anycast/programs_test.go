// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast_test

import (
	"maps"
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

// skewed gives the sites clocks that are seconds off, and that the controller knows nothing of.
func skewed(f *fleettest.Fleet) {
	for i, site := range []string{"fra", "nyc", "syd"} {
		f.Change(site, func(s *fleettest.Site) { s.Skew, s.Clock = time.Duration(5*i-4)*time.Second, anycast.Clock{} })
	}
}

func TestLatency(t *testing.T) {
	job := anycast.Job{Definition: anycast.Definition{Program: anycast.KindLatency, Pace: anycast.Pace{SiteGap: 100 * ms, PerNetwork: -1}}, Targets: targets(200)}
	prepare := func(f *fleettest.Fleet) {
		skewed(f)
		f.Wire = true
		f.Internet.Host = func(p fleettest.Probe) fleettest.Host { return fleettest.Host{Silent: p.Target.As4()[2] == 9} }
	}
	for _, kind := range []stateless.Kind{stateless.ICMP, stateless.TCP, stateless.CHAOS} {
		job.Definition.Protocol = kind
		simulate(t, prepare, job, func(t *testing.T, f *fleettest.Fleet, m *memory, err error) {
			if err != nil {
				t.Fatal(err)
			}
			all := of[*anycast.LatencyResult](m)
			if len(all) != 200 {
				t.Fatalf("%v: %d results", kind, len(all))
			}
			for _, r := range all {
				if r.Target.As4()[2] == 9 {
					if r.Catcher != "" || r.RTT != 0 || len(r.Unicast) != 0 {
						t.Errorf("%v: silent, but %+v", kind, r)
					}
					continue
				}
				way := func(site string) time.Duration { return 2 * f.Internet.Distance(site, r.Target) }
				names := []string{"fra", "nyc", "syd"}
				home := fleettest.Nearest(1, anycast.Network(r.Target).Addr(), names)
				best := slices.MinFunc(names, func(a, b string) int { return int(way(a) - way(b)) })
				if r.Catcher != home || r.RTT != way(home) || r.Best != best || r.Inflation != way(home)-way(best) || len(r.Unicast) != 3 {
					t.Errorf("%v: %+v, want %s in %v; best %s in %v", kind, r, home, way(home), best, way(best))
				}
				for _, u := range r.Unicast {
					if u.RTT != way(u.Site) {
						t.Errorf("%v: %+v, want %v", kind, u, way(u.Site))
					}
				}
			}
			if sum := m.summary(t); sum.Sites["fra"]+sum.Sites["nyc"]+sum.Sites["syd"] != 199 || sum.Unknown != 0 {
				t.Errorf("%v: %+v", kind, sum)
			}
		})
	}
}

func TestFlipping(t *testing.T) {
	start := time.Now
	job := anycast.Job{
		Definition: anycast.Definition{
			Program: anycast.KindFlipping, Sites: []string{"fra"},
			Flipping: &anycast.FlippingOptions{Protocols: []stateless.Kind{stateless.ICMP, stateless.UDP}, Flows: 4, Interval: 30 * time.Second},
		},
		Targets: targets(40),
	}
	byPort := func(p fleettest.Probe) uint16 { return p.Port % 2 }
	prepare := func(f *fleettest.Fleet) {
		began := start()
		f.Wire = true
		f.Internet.Path = func(p fleettest.Probe) []fleettest.Hop {
			hops := fleettest.Chain(6, false, ms)
			if p.Target.As4()[2] == 1 {
				hops[3].Addr = netip.AddrFrom4([4]byte{10, 9, 9, byte(1 + byPort(p))})
			}
			return hops
		}
		f.Internet.Catcher = func(p fleettest.Probe, responder netip.Addr, names []string) string {
			switch responder.As4() {
			case [4]byte{20, 0, 1, 7}: // by flow
				return names[byPort(p)]
			case [4]byte{20, 0, 2, 7}: // by protocol
				return names[p.Kind-stateless.ICMP]
			case [4]byte{20, 0, 3, 7}: // by time
				return names[1+int(p.Time.Sub(began)/(20*time.Second)%2)]
			}
			return names[2]
		}
	}
	simulate(t, prepare, job, func(t *testing.T, f *fleettest.Fleet, m *memory, err error) {
		if err != nil {
			t.Fatal(err)
		}
		all := of[*anycast.FlipResult](m)
		if len(all) != 3 {
			t.Fatalf("%d flip, want 3", len(all))
		}
		for _, r := range all {
			want := map[byte][3]bool{1: {true, false, false}, 2: {false, true, false}, 3: {false, false, true}}[r.Target.As4()[2]]
			if got := [3]bool{r.ByFlow, r.ByProtocol, r.ByTime}; got != want {
				t.Errorf("%v: by flow, protocol, time %v, want %v: %v", r.Target, got, want, r.Seen)
			}
			if len(r.Catches) != 4*2*2 {
				t.Errorf("%v: %d catches", r.Target, len(r.Catches))
			}
			if r.Spread == 0 {
				t.Errorf("%v: no spread", r.Target)
			}
			switch p := r.Parting; {
			case (p != nil) != r.ByFlow:
				t.Errorf("%v: parting %+v", r.Target, p)
			case p != nil:
				if p.TTL != 3 || p.Common != netip.MustParseAddr("10.0.0.3") || len(p.Hops) != 2 || p.Hops[0] == p.Hops[1] || p.Flows[0] == p.Flows[1] {
					t.Errorf("parting %+v", p)
				}
			}
		}
		sum := m.summary(t)
		if sum.Moved != 3 || sum.Sites["syd"] < 37 || sum.Unknown != 0 || sum.Sent != uint64(f.Sent()) {
			t.Errorf("%+v, %d sent", sum, f.Sent())
		}
	})
}

func TestWatch(t *testing.T) {
	job := anycast.Job{
		Definition: anycast.Definition{
			Program: anycast.KindWatch, Pace: anycast.Pace{Rate: 2000}, Watch: &anycast.WatchOptions{Duration: 30 * time.Second},
		},
		Targets: targets(60),
	}
	names := []string{"fra", "nyc", "syd"}
	prepare := func(f *fleettest.Fleet) {
		skewed(f)
		began := time.Now()
		// nyc is withdrawn after 10 s; its targets find another site one after the other over 4 s, and reach
		// none for 1 s each.
		f.Internet.Catcher = func(p fleettest.Probe, a netip.Addr, announced []string) string {
			home := fleettest.Nearest(1, anycast.Network(a).Addr(), names)
			if home != "nyc" {
				return home
			}
			gone := began.Add(10*time.Second + time.Duration(a.As4()[2])*4*time.Second/60)
			switch {
			case p.Time.Before(gone):
				return home
			case p.Time.Before(gone.Add(time.Second)):
				return ""
			}
			return "syd"
		}
	}
	simulate(t, prepare, job, func(t *testing.T, f *fleettest.Fleet, m *memory, err error) {
		if err != nil {
			t.Fatal(err)
		}
		rounds := of[*anycast.WatchResult](m)
		if len(rounds) != 300 {
			t.Fatalf("%d rounds, want 300", len(rounds))
		}
		at := make(map[string]int)
		for _, to := range job.Targets {
			at[fleettest.Nearest(1, anycast.Network(to.Addr).Addr(), names)]++
		}
		if !maps.Equal(rounds[0].Sites, at) || rounds[0].Lost != 0 {
			t.Errorf("at first %+v, want %v", rounds[0], at)
		}
		last := rounds[299]
		if last.Sites["nyc"] != 0 || last.Sites["syd"] != at["syd"]+at["nyc"] {
			t.Errorf("at last %+v", last)
		}
		moves := of[*anycast.Move](m)
		lost, first, end := 0, time.Time{}, time.Time{}
		for _, r := range rounds {
			lost += r.Lost
		}
		for _, mv := range moves {
			if mv.From != "nyc" || mv.To != "syd" || mv.Gap < time.Second || mv.Gap > 1300*ms {
				t.Errorf("%+v", mv)
			}
			if first.IsZero() || mv.Time.Before(first) {
				first = mv.Time
			}
			if mv.Time.After(end) {
				end = mv.Time
			}
		}
		sum := m.summary(t)
		if len(moves) != at["nyc"] || sum.Moved != len(moves) || sum.Converged != end.Sub(first) || sum.Converged < 2*time.Second || sum.Converged > 5*time.Second {
			t.Errorf("%d moves in %v; %+v", len(moves), end.Sub(first), sum)
		}
		if lost < 9*at["nyc"] || lost > 11*at["nyc"] || sum.Sent != 60*300 || sum.Answered != sum.Sent-uint64(lost) || len(sum.Notes) != 0 {
			t.Errorf("lost %d; %+v", lost, sum)
		}
	})
}

// TestWatchOutage has the sender's connection lost for a while, and a target fall silent.
func TestWatchOutage(t *testing.T) {
	job := anycast.Job{
		Definition: anycast.Definition{Program: anycast.KindWatch, Watch: &anycast.WatchOptions{Duration: 10 * time.Second}},
		Targets:    targets(20),
	}
	prepare := func(f *fleettest.Fleet) {
		began := time.Now()
		f.Internet.Catcher = func(fleettest.Probe, netip.Addr, []string) string { return "syd" }
		f.Internet.Host = func(p fleettest.Probe) fleettest.Host {
			return fleettest.Host{Silent: p.Target.As4()[2] == 3 && p.Time.Sub(began) > 5*time.Second, Duplicates: 0.1}
		}
		time.AfterFunc(2050*ms+500*time.Microsecond, func() { f.Disconnect("fra") }) // with a batch on its way
		time.AfterFunc(4*time.Second, func() { f.Connect("fra") })
	}
	simulate(t, prepare, job, func(t *testing.T, f *fleettest.Fleet, m *memory, err error) {
		if err != nil {
			t.Fatal(err)
		}
		moves := of[*anycast.Move](m)
		if len(moves) != 1 || moves[0].To != "" || moves[0].Gap < 4*time.Second {
			t.Errorf("moves %+v, want that of the silent target", moves)
		}
		sum := m.summary(t)
		if sum.Sites["syd"] != 19 || sum.Duplicates == 0 || len(sum.Notes) != 2 || sum.Sent+sum.Refused != 20*100 {
			t.Errorf("%+v", sum)
		}
		if got := int(sum.Answered + sum.Duplicates); got != f.Delivered() {
			t.Errorf("%d answers accounted for, %d delivered", got, f.Delivered())
		}
	})
}

func TestWatchTooFast(t *testing.T) {
	job := anycast.Job{Definition: anycast.Definition{Program: anycast.KindWatch}, Targets: targets(101)}
	simulate(t, nil, job, func(t *testing.T, _ *fleettest.Fleet, _ *memory, err error) {
		if err == nil || !strings.Contains(err.Error(), "1010 probes per second") {
			t.Errorf("%v", err)
		}
	})
}

func catches(rows ...[2]string) func(func(*anycast.Catch) bool) {
	return func(yield func(*anycast.Catch) bool) {
		for _, r := range rows {
			c := &anycast.Catch{Target: netip.MustParseAddr(r[0]), Receiver: r[1], Status: probe.Replied}
			if r[1] == "" {
				c.Status = probe.NoReply
			}
			if !yield(c) {
				return
			}
		}
	}
}

func TestTable(t *testing.T) {
	table := anycast.TableOf(catches(
		[2]string{"192.0.2.1", "fra"}, [2]string{"192.0.2.2", "nyc"}, [2]string{"192.0.2.3", "nyc"}, [2]string{"192.0.2.4", ""},
		[2]string{"198.51.100.1", "fra"}, [2]string{"203.0.113.1", ""}, [2]string{"2001:db8:1:2::1", "syd"}, [2]string{"2001:db8:1:3::1", "syd"},
	))
	var rows []anycast.Row
	for r := range table.Rows() {
		rows = append(rows, r)
	}
	want := []anycast.Row{
		{Network: netip.MustParsePrefix("192.0.2.0/24"), Site: "nyc", Share: 2. / 3, Answers: 3, Silent: 1},
		{Network: netip.MustParsePrefix("198.51.100.0/24"), Site: "fra", Share: 1, Answers: 1},
		{Network: netip.MustParsePrefix("203.0.113.0/24"), Silent: 1},
		{Network: netip.MustParsePrefix("2001:db8:1::/48"), Site: "syd", Share: 1, Answers: 2},
	}
	if !slices.Equal(rows, want) {
		t.Errorf("got %+v\nwant %+v", rows, want)
	}
	total := table.Total([]anycast.Weight{
		{Network: netip.MustParsePrefix("192.0.2.0/24"), Queries: 100},
		{Network: netip.MustParsePrefix("198.51.100.7/32"), Queries: 5},
		{Network: netip.MustParsePrefix("203.0.113.0/24"), Queries: 3},
		{Network: netip.MustParsePrefix("2001:db8::/32"), Queries: 40},
	})
	if !maps.Equal(total.Networks, map[string]int{"nyc": 1, "fra": 1, "syd": 1}) || total.Silent != 1 || total.Split != 1 ||
		!maps.Equal(total.Weight, map[string]float64{"nyc": 100, "fra": 5, "syd": 40}) || total.Unmapped != 3 {
		t.Errorf("%+v", total)
	}
}

func TestCompare(t *testing.T) {
	before := anycast.TableOf(catches([2]string{"192.0.2.1", "fra"}, [2]string{"198.51.100.1", "fra"}, [2]string{"203.0.113.1", ""}, [2]string{"2001:db8:1::1", "syd"}))
	after := anycast.TableOf(catches([2]string{"192.0.2.1", "fra"}, [2]string{"198.51.100.1", "nyc"}, [2]string{"203.0.113.1", "nyc"}, [2]string{"2001:db8:1::1", ""}))
	c := anycast.Compare(before, after, []anycast.Weight{{Network: netip.MustParsePrefix("192.0.2.0/24"), Queries: 30}, {Network: netip.MustParsePrefix("198.51.100.0/24"), Queries: 10}})
	want := []anycast.Shift{
		{Network: netip.MustParsePrefix("198.51.100.0/24"), From: "fra", To: "nyc", Queries: 10},
		{Network: netip.MustParsePrefix("203.0.113.0/24"), To: "nyc"},
		{Network: netip.MustParsePrefix("2001:db8:1::/48"), From: "syd"},
	}
	if !slices.Equal(c.Shifts, want) || c.Same != 1 || c.Moved != 1 || c.Appeared != 1 || c.Vanished != 1 || c.Share() != 0.25 {
		t.Errorf("%+v, share %v", c, c.Share())
	}
	if c.Matrix[[2]string{"fra", "nyc"}] != 1 || c.Matrix[[2]string{"syd", ""}] != 1 || len(c.Matrix) != 4 {
		t.Errorf("%v", c.Matrix)
	}
	if s := anycast.Compare(before, before, nil); s.Share() != 0 || len(s.Shifts) != 0 {
		t.Errorf("a table and itself: %+v", s)
	}
}
