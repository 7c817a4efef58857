// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast_test

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/fleettest"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
)

var target = netip.MustParseAddr("203.0.113.10")

// traceroute runs one in a bubble, over a chain of 11 routers that prepare may change.
func traceroute(t *testing.T, conf anycast.TracerouteConf, prepare func(*fleettest.Fleet, []fleettest.Hop)) (r *anycast.TracerouteResult, took time.Duration, sent int, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := fleettest.New(1, "fra", "nyc", "syd")
		defer f.Close()
		hops := fleettest.Chain(11, false, 2*ms)
		f.Internet.Path = func(fleettest.Probe) []fleettest.Hop { return hops }
		if prepare != nil {
			prepare(f, hops)
		}
		conf.Fleet, conf.Site = f, "fra"
		if !conf.Target.IsValid() {
			conf.Target = target
		}
		tr, newErr := anycast.NewTraceroute(conf)
		if newErr != nil {
			err = newErr
			return
		}
		start := time.Now()
		r, err = tr.Run(t.Context())
		took, sent = time.Since(start), f.Sent()
	})
	return r, took, sent, err
}

func TestTraceroute(t *testing.T) {
	for _, kind := range []stateless.Kind{stateless.UDP, stateless.ICMP, stateless.TCP} {
		var fleet *fleettest.Fleet
		r, took, sent, err := traceroute(t, anycast.TracerouteConf{Probes: stateless.Config{Kind: kind}}, func(f *fleettest.Fleet, _ []fleettest.Hop) { fleet = f })
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Hops) != 12 || !r.Reached || r.Err != nil {
			t.Fatalf("%v: %d hops, reached %t, %v", kind, len(r.Hops), r.Reached, r.Err)
		}
		for i, hop := range r.Hops {
			want := netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})
			way := time.Duration(i+1) * 2 * ms
			if i == 11 {
				want, way = target, 11*2*ms
			}
			home := fleettest.Nearest(1, anycast.Network(want).Addr(), []string{"fra", "nyc", "syd"})
			rtt := 2 * way
			if home != "fra" {
				rtt = way + fleet.Internet.Distance(home, want)
			}
			for _, reply := range hop {
				if reply.Responder != want || reply.Receiver != home || reply.RTT != rtt {
					t.Errorf("%v: hop %d: %+v, want %v at %s in %v", kind, i+1, reply, want, home, rtt)
				}
			}
		}
		// 8 hops, and when half of them are in, more: never beyond the window behind the target.
		if sent > (12+7)*3 || took > 500*ms {
			t.Errorf("%v: %d probes in %v", kind, sent, took)
		}
	}
}

// TestTracerouteExpected repeats a traceroute with what the first one found, and with what is not so any more.
func TestTracerouteExpected(t *testing.T) {
	_, first, _, err := traceroute(t, anycast.TracerouteConf{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for expected, most := range map[int]int{12: 12, 5: 12 + 7, 15: 15} {
		r, took, sent, err := traceroute(t, anycast.TracerouteConf{Expected: expected}, nil)
		if err != nil || len(r.Hops) != 12 || !r.Reached {
			t.Fatalf("expected %d: %+v, %v", expected, r, err)
		}
		if sent > most*3 {
			t.Errorf("expected %d: %d probes sent, want at most %d", expected, sent, most*3)
		}
		if expected >= 12 && took >= first {
			t.Errorf("expected %d: took %v, want less than the %v without", expected, took, first)
		}
	}
}

func TestTracerouteStars(t *testing.T) {
	r, took, _, err := traceroute(t, anycast.TracerouteConf{}, func(_ *fleettest.Fleet, hops []fleettest.Hop) {
		hops[2].Silent, hops[9].Silent = true, true
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Hops) != 12 || r.Hops[2][0].Responder.IsValid() || !r.Hops[3][2].Responder.IsValid() || !r.Reached {
		t.Errorf("%+v", r)
	}
	// The windows overlap, so that the second silent hop does not wait for the first one to be given up.
	if took < anycast.DefaultHopTimeout || took > anycast.DefaultHopTimeout+300*ms {
		t.Errorf("took %v, want the time of one hop", took)
	}
}

func TestTracerouteSilentTarget(t *testing.T) {
	r, took, sent, err := traceroute(t, anycast.TracerouteConf{MaxTTL: 30, Queries: 1}, func(f *fleettest.Fleet, _ []fleettest.Hop) {
		f.Internet.Host = func(fleettest.Probe) fleettest.Host { return fleettest.Host{Silent: true} }
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Hops) != 30 || r.Reached || sent != 30 || took > 4*time.Second {
		t.Errorf("%d hops, %d probes, reached %t in %v", len(r.Hops), sent, r.Reached, took)
	}
}

// TestTracerouteForged has answers that nobody asked for.
func TestTracerouteForged(t *testing.T) {
	var once sync.Once
	r, _, _, err := traceroute(t, anycast.TracerouteConf{}, func(f *fleettest.Fleet, _ []fleettest.Hop) {
		chain := f.Internet.Path
		f.Internet.Path = func(p fleettest.Probe) []fleettest.Hop {
			once.Do(func() {
				time.AfterFunc(ms, func() {
					forged := stateless.Answer{Number: 40000, Target: target, Responder: netip.MustParseAddr("198.51.100.9"), Status: probe.Replied}
					f.Inject("syd", forged)
					forged.Number, forged.Target = 1, netip.MustParseAddr("198.51.100.9")
					f.Inject("nyc", forged)
				})
			})
			return chain(p)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Hops) != 12 || r.Hops[0][1].Responder != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("%d hops, first %+v", len(r.Hops), r.Hops[0])
	}
}

// TestTracerouteClocks has sites whose clocks are seconds off: a time is right, or it is not given.
func TestTracerouteClocks(t *testing.T) {
	var fleet *fleettest.Fleet
	r, _, _, err := traceroute(t, anycast.TracerouteConf{}, func(f *fleettest.Fleet, _ []fleettest.Hop) {
		fleet = f
		f.Change("fra", func(s *fleettest.Site) {
			s.Skew, s.Clock = 7*time.Second, anycast.Clock{Offset: 7*time.Second + 100*time.Microsecond, Error: 200 * time.Microsecond}
		})
		f.Change("nyc", func(s *fleettest.Site) { s.Skew, s.Clock = -5*time.Second, anycast.Clock{} })
		f.Change("syd", func(s *fleettest.Site) {
			s.Skew, s.Clock = -3*time.Second, anycast.Clock{Offset: -3 * time.Second, Error: 50 * time.Microsecond}
		})
		f.Internet.Catcher = func(p fleettest.Probe, _ netip.Addr, announced []string) string { return announced[p.Number%3] }
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, hop := range r.Hops {
		addr, way := hop[0].Responder, 2*ms*time.Duration(min(i+1, 11))
		for _, reply := range hop {
			switch reply.Receiver {
			case "fra":
				if reply.RTT != 2*way || reply.Uncertainty != 0 {
					t.Errorf("hop %d at fra: %+v, want %v", i+1, reply, 2*way)
				}
			case "nyc":
				if reply.RTT != 0 {
					t.Errorf("hop %d at nyc, whose clock is not known: %+v", i+1, reply)
				}
			case "syd":
				if truth := way + fleet.Internet.Distance("syd", addr); (reply.RTT-truth).Abs() > reply.Uncertainty || reply.Uncertainty == 0 {
					t.Errorf("hop %d at syd: %+v, want %v", i+1, reply, truth)
				}
			}
		}
	}
}

func TestTracerouteSiteLost(t *testing.T) {
	r, took, _, err := traceroute(t, anycast.TracerouteConf{}, func(f *fleettest.Fleet, _ []fleettest.Hop) {
		time.AfterFunc(1500*time.Microsecond, func() { f.Disconnect("fra") })
	})
	if err != nil {
		t.Fatal(err)
	}
	if !errors.Is(r.Err, anycast.ErrSiteLost) || took > anycast.DefaultHopTimeout {
		t.Errorf("%v after %v, want ErrSiteLost at once", r.Err, took)
	}
	_, _, _, err = traceroute(t, anycast.TracerouteConf{}, func(f *fleettest.Fleet, _ []fleettest.Hop) { f.Disconnect("fra") })
	if !errors.Is(err, anycast.ErrNoSite) {
		t.Errorf("%v, want ErrNoSite", err)
	}
	if _, _, _, err := traceroute(t, anycast.TracerouteConf{MaxTTL: 256, Queries: -1}, nil); !errors.Is(err, anycast.ErrDefinition) {
		t.Errorf("%v, want ErrDefinition", err)
	}
}

// TestTracerouteCancel ends one early: what was known is the result.
func TestTracerouteCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fleettest.New(1, "fra")
		defer f.Close()
		f.Internet.Path = func(fleettest.Probe) []fleettest.Hop { return fleettest.Chain(30, false, 10*ms) }
		tr, err := anycast.NewTraceroute(anycast.TracerouteConf{Fleet: f, Site: "fra", Target: target})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*ms)
		defer cancel()
		r, err := tr.Run(ctx)
		if err != nil || len(r.Hops) < 4 || !r.Hops[3][0].Responder.IsValid() || r.Reached {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// TestTracerouteThousand runs a thousand at once.
func TestTracerouteThousand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fleettest.New(1, "fra", "nyc", "syd")
		defer f.Close()
		f.Internet.Path = func(fleettest.Probe) []fleettest.Hop { return fleettest.Chain(19, false, ms) }
		start := time.Now()
		var wg sync.WaitGroup
		for _, to := range targets(1000) {
			wg.Go(func() {
				tr, err := anycast.NewTraceroute(anycast.TracerouteConf{Fleet: f, Site: "fra", Target: to.Addr})
				if err != nil {
					t.Error(err)
					return
				}
				r, err := tr.Run(t.Context())
				if err != nil || len(r.Hops) != 20 {
					t.Errorf("%+v, %v", r, err)
					return
				}
				for i, hop := range r.Hops {
					for _, reply := range hop {
						if !reply.Responder.IsValid() {
							t.Errorf("%v: hop %d was answered, but shows a star", to.Addr, i+1)
						}
					}
				}
			})
		}
		wg.Wait()
		if took := time.Since(start); took > time.Second {
			t.Errorf("took %v", took)
		}
	})
}
