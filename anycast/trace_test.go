// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/fleettest"
	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
	"github.com/seed5728abee/fathom/trace"
)

// diamond is a path of 8 routers whose third hop is one of four, by flow.
func diamond(p fleettest.Probe) []fleettest.Hop {
	hops := fleettest.Chain(8, p.Target.Is6(), 3*ms)
	if !p.Target.Is6() {
		hops[2].Addr = netip.AddrFrom4([4]byte{10, 3, 0, byte(1 + uint32(p.Port)*2654435761>>24%4)})
	}
	hops[5].MPLS = []packet.Label{{Label: 16001, TTL: 1, Bottom: true}}
	return hops
}

func traceOf(method anycast.Method, kind stateless.Kind) anycast.Definition {
	return anycast.Definition{
		Program: anycast.KindTrace, Sites: []string{"fra"}, Protocol: kind, Trace: &anycast.TraceOptions{Method: method}, AllowPrivate: true,
	}
}

func TestTrace(t *testing.T) {
	six := anycast.Target{Addr: netip.MustParseAddr("2001:db8:5::10"), Name: "www.example.net"}
	four := anycast.Target{Addr: target}
	for _, kind := range []stateless.Kind{stateless.ICMP, stateless.UDP, stateless.TCP} {
		for _, method := range []anycast.Method{anycast.MethodParis, anycast.MethodClassic, anycast.MethodMultipath} {
			job := anycast.Job{Definition: traceOf(method, kind), Targets: []anycast.Target{four, six}}
			prepare := func(f *fleettest.Fleet) { f.Internet.Path, f.Wire = diamond, true }
			simulate(t, prepare, job, func(t *testing.T, f *fleettest.Fleet, m *memory, err error) {
				if err != nil {
					t.Fatal(err)
				}
				all := of[*anycast.TraceResult](m)
				if len(all) != 2 {
					t.Fatalf("%v %v: %d results", kind, method, len(all))
				}
				for _, r := range all {
					checkTrace(t, r, f)
				}
				replies := len(all[0].Replies) + len(all[1].Replies)
				if sum := m.summary(t); sum.Sent != uint64(f.Sent()) || sum.Answered != uint64(replies) {
					t.Errorf("%v %v: %+v, but %d probes were sent, and %d count", kind, method, sum, f.Sent(), replies)
				}
			})
		}
	}
}

// checkTrace compares a trace through diamond with the truth.
func checkTrace(t *testing.T, r *anycast.TraceResult, f *fleettest.Fleet) {
	t.Helper()
	name := fmt.Sprintf("%v %v %v", r.Target, r.Protocol, r.Method)
	if r.Stop != "reached" || r.Site != "fra" || r.SrcPort == 0 || !slices.Contains([]netip.Addr{fleettest.Anycast4, fleettest.Anycast6}, r.Source) {
		t.Errorf("%s: %+v", name, r)
	}
	third := make(map[netip.Addr]bool)
	for i := range r.Replies {
		p := &r.Replies[i]
		if i > 0 && p.TTL < r.Replies[i-1].TTL {
			t.Errorf("%s: not in the order of the hops", name)
		}
		hops := diamond(fleettest.Probe{Target: r.Target, Port: r.SrcPort + p.Flow})
		want, labels := r.Target, []packet.Label(nil)
		if p.TTL <= 8 {
			want, labels = hops[p.TTL-1].Addr, hops[p.TTL-1].MPLS
		}
		if p.Responder != want || !slices.Equal(p.MPLS, labels) || p.ReplySize == 0 || p.ReplyTTL == 0 {
			t.Errorf("%s: hop %d flow %d: %+v, want %v", name, p.TTL, p.Flow, *p, want)
		}
		if home := fleettest.Nearest(1, anycast.Network(want).Addr(), []string{"fra", "nyc", "syd"}); p.Receiver != home {
			t.Errorf("%s: hop %d came home at %s, want %s", name, p.TTL, p.Receiver, home)
		}
		way := time.Duration(min(p.TTL, 8)) * 3 * ms
		truth := 2 * way
		if p.Receiver != "fra" {
			truth = way + f.Internet.Distance(p.Receiver, want)
		}
		if (p.RTT - truth).Abs() > p.ClockError {
			t.Errorf("%s: hop %d in %v, want %v", name, p.TTL, p.RTT, truth)
		}
		if p.TTL == 3 {
			third[p.Responder] = true
		}
	}
	wide := map[anycast.Method]int{anycast.MethodParis: 1, anycast.MethodClassic: 2, anycast.MethodMultipath: 4}[r.Method]
	if r.Target.Is6() {
		wide = 1
	}
	if len(third) < wide || r.Method == anycast.MethodParis && len(third) > 1 {
		t.Errorf("%s: %d routers at hop 3, want %d", name, len(third), wide)
	}
	if r.Method == anycast.MethodMultipath && (r.Confidence < 0.9 || len(r.Links) != 7+2*wide) {
		t.Errorf("%s: %d links with confidence %v: %+v", name, len(r.Links), r.Confidence, r.Links)
	}
}

// TestTraceFarAway has a controller that is far from the site: nothing that was answered may become a star.
func TestTraceFarAway(t *testing.T) {
	prepare := func(f *fleettest.Fleet) {
		for _, site := range []string{"fra", "nyc", "syd"} {
			// And no clock that is known, so that no answer that comes home elsewhere has a time.
			f.Change(site, func(s *fleettest.Site) { s.Link, s.Clock, s.Skew = 400*ms, anycast.Clock{}, time.Hour })
		}
		f.Internet.Path = func(fleettest.Probe) []fleettest.Hop {
			hops := fleettest.Chain(12, false, ms)
			hops[4].Silent = true
			return hops
		}
	}
	job := anycast.Job{Definition: traceOf(anycast.MethodParis, stateless.UDP), Targets: []anycast.Target{{Addr: target}}}
	simulate(t, prepare, job, func(t *testing.T, _ *fleettest.Fleet, m *memory, err error) {
		if err != nil {
			t.Fatal(err)
		}
		r := of[*anycast.TraceResult](m)[0]
		elsewhere := 0
		for _, p := range r.Replies {
			if p.Responder.IsValid() == (p.TTL == 5) {
				t.Errorf("hop %d: %+v", p.TTL, p)
			}
			if p.Receiver != "fra" {
				elsewhere++
				if p.RTT != 0 {
					t.Errorf("hop %d: a time of %v from clocks that nobody knows", p.TTL, p.RTT)
				}
			} else if want := 2 * ms * time.Duration(min(p.TTL, 12)); p.RTT != want {
				t.Errorf("hop %d: %v, want %v", p.TTL, p.RTT, want)
			}
		}
		if len(r.Replies) != 13*3 || elsewhere == 0 || r.Stop != "reached" {
			t.Errorf("%d replies, stop %q", len(r.Replies), r.Stop)
		}
	})
}

func TestTraceThousand(t *testing.T) {
	d := traceOf(anycast.MethodParis, stateless.ICMP)
	d.Pace.Rate = 1_000_000
	prepare := func(f *fleettest.Fleet) { f.Internet.Path = diamond }
	simulate(t, prepare, anycast.Job{Definition: d, Targets: targets(1500)}, func(t *testing.T, _ *fleettest.Fleet, m *memory, err error) {
		if err != nil {
			t.Fatal(err)
		}
		all := of[*anycast.TraceResult](m)
		if len(all) != 1500 {
			t.Errorf("%d results", len(all))
		}
		for _, r := range all {
			if len(r.Replies) != 27 || slices.ContainsFunc(r.Replies, func(p anycast.Reply) bool { return !p.Responder.IsValid() }) {
				t.Fatalf("%+v", r)
			}
		}
		sum := m.summary(t)
		if sum.Took > 3*time.Second || sum.Sites["fra"]+sum.Sites["nyc"]+sum.Sites["syd"] != 1500 {
			t.Errorf("%+v", sum)
		}
	})
}

// TestTraceRate keeps to the rate on average.
func TestTraceRate(t *testing.T) {
	d := traceOf(anycast.MethodParis, stateless.ICMP)
	d.Pace.Rate = 270
	prepare := func(f *fleettest.Fleet) { f.Internet.Path = diamond }
	simulate(t, prepare, anycast.Job{Definition: d, Targets: targets(100)}, func(t *testing.T, f *fleettest.Fleet, m *memory, err error) {
		if err != nil {
			t.Fatal(err)
		}
		if rate := float64(f.Sent()) / m.summary(t).Took.Seconds(); rate > 300 || rate < 200 {
			t.Errorf("%.0f probes/s, want 270", rate)
		}
	})
}

func TestTraceSiteLost(t *testing.T) {
	prepare := func(f *fleettest.Fleet) {
		f.Internet.Path = diamond
		time.AfterFunc(1500*time.Microsecond, func() { f.Disconnect("fra") })
	}
	job := anycast.Job{Definition: traceOf(anycast.MethodParis, stateless.ICMP), Targets: targets(3)}
	simulate(t, prepare, job, func(t *testing.T, _ *fleettest.Fleet, m *memory, err error) {
		if !errors.Is(err, anycast.ErrSiteLost) && !errors.Is(err, anycast.ErrNoSite) {
			t.Errorf("%v, want ErrSiteLost", err)
		}
		m.summary(t)
	})
}

// TestVia uses a via as a stranger would, for what the programs do not do.
func TestVia(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fleettest.New(1, "fra", "nyc", "syd")
		defer f.Close()
		f.Internet.Path = diamond
		via, err := anycast.NewVia(t.Context(), anycast.ViaConf{Fleet: f, Site: "fra", Probes: stateless.Config{Kind: stateless.ICMP}})
		if err != nil {
			t.Fatal(err)
		}
		defer via.Close()
		c, err := trace.NewContinuous(via, via.Request(target), trace.ContinuousOptions{Rounds: 5})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		hops := c.Snapshot()
		if len(hops) != 9 || hops[8].Received != 5 || hops[0].Addr() != netip.MustParseAddr("10.0.0.1") {
			t.Errorf("%+v", hops)
		}

		req := via.Request(target)
		req.Protocol = probe.UDP
		if _, err := via.Probe(t.Context(), req); !errors.Is(err, probe.ErrInvalid) {
			t.Errorf("another protocol: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), ms)
		defer cancel()
		if _, err := via.Probe(ctx, via.Request(target)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cancelled: %v", err)
		}
		f.Disconnect("fra")
		if _, err := via.Probe(t.Context(), via.Request(target)); !errors.Is(err, anycast.ErrNoSite) {
			t.Errorf("without the site: %v", err)
		}
		via.Close()
		if _, err := via.Probe(t.Context(), via.Request(target)); err == nil {
			t.Error("a closed via probes")
		}
	})
}

// TestViaBatches has a window of probes go out as one message.
func TestViaBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fleettest.New(1, "fra")
		defer f.Close()
		f.Internet.Path = diamond
		counted := &counter{Fleet: f}
		via, err := anycast.NewVia(t.Context(), anycast.ViaConf{Fleet: counted, Site: "fra", Probes: stateless.Config{Kind: stateless.UDP}})
		if err != nil {
			t.Fatal(err)
		}
		defer via.Close()
		path, err := trace.Run(t.Context(), via, via.Request(target), trace.Options{})
		if err != nil || len(path.Hops) != 9 {
			t.Fatalf("%+v, %v", path, err)
		}
		// The first hops, the window, and then as hops come in.
		if counted.batches > 8 {
			t.Errorf("%d batches for %d probes", counted.batches, path.Probes)
		}
	})
}

// counter counts the batches of a fleet.
type counter struct {
	anycast.Fleet
	batches int
}

type countingSession struct {
	anycast.Session
	c *counter
}

func (c *counter) Open(ctx context.Context, conf anycast.SessionConfig) (anycast.Session, error) {
	s, err := c.Fleet.Open(ctx, conf)
	return &countingSession{s, c}, err
}

func (s *countingSession) Send(site string, b anycast.Batch) error {
	s.c.batches++
	return s.Session.Send(site, b)
}

// TestTraceExhausted: a balancer over more ways than a session has flows for is told, not passed over.
func TestTraceExhausted(t *testing.T) {
	job := anycast.Job{Definition: traceOf(anycast.MethodMultipath, stateless.UDP), Targets: []anycast.Target{{Addr: target}}}
	prepare := func(f *fleettest.Fleet) {
		f.Internet.Path = func(p fleettest.Probe) []fleettest.Hop {
			hops := fleettest.Chain(3, false, ms)
			hops[1].Addr = netip.AddrFrom4([4]byte{10, 1, 1, byte(p.Port % 20)})
			return hops
		}
	}
	simulate(t, prepare, job, func(t *testing.T, _ *fleettest.Fleet, m *memory, err error) {
		if err != nil {
			t.Fatal(err)
		}
		notes := m.summary(t).Notes
		if len(notes) != 1 || !strings.Contains(notes[0], "all 64 flows") || of[*anycast.TraceResult](m)[0].Stop != "probe limit" {
			t.Errorf("notes %q, ended with %s", notes, of[*anycast.TraceResult](m)[0].Stop)
		}
	})
}

// TestTraceGraph draws a trace whose answers come home at several sites.
func TestTraceGraph(t *testing.T) {
	for _, method := range []anycast.Method{anycast.MethodParis, anycast.MethodMultipath} {
		job := anycast.Job{Definition: traceOf(method, stateless.UDP), Targets: []anycast.Target{{Addr: target}}}
		prepare := func(f *fleettest.Fleet) {
			f.Internet.Path = func(p fleettest.Probe) []fleettest.Hop {
				hops := diamond(p)
				hops[4].Silent = true
				return hops
			}
			f.Internet.Catcher = func(p fleettest.Probe, a netip.Addr, announced []string) string {
				b := a.As4()
				if b[3] == 7 {
					return announced[p.Number%3] // by packet
				}
				return announced[(int(b[1])+int(b[3]))/3%3]
			}
		}
		simulate(t, prepare, job, func(t *testing.T, _ *fleettest.Fleet, m *memory, err error) {
			if err != nil {
				t.Fatal(err)
			}
			g := of[*anycast.TraceResult](m)[0].Graph()
			var svg, dot strings.Builder
			if err := g.Draw(&svg, trace.SVG, nil); err != nil {
				t.Fatal(err)
			}
			if err := g.Draw(&dot, trace.DOT, nil); err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{">fra</text>", ">nyc</text>", ">syd</text>", "heard at fra, nyc, syd"} {
				if !strings.Contains(svg.String(), want) {
					t.Errorf("%v: no %q in the picture", method, want)
				}
			}
			if !strings.Contains(dot.String(), "fillcolor") {
				t.Errorf("%v: no colours in DOT", method)
			}
			if dir := os.Getenv("FATHOM_PICTURES"); dir != "" {
				if err := os.WriteFile(filepath.Join(dir, string(method)+".svg"), []byte(svg.String()), 0o600); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
