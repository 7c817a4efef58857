// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast_test

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/fleettest"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
)

func catchmentOf(sites ...string) anycast.Definition {
	return anycast.Definition{Program: anycast.KindCatchment, Sites: sites}
}

// accounted checks that every answer that was delivered is in the summary, once.
func accounted(t *testing.T, f *fleettest.Fleet, sum *anycast.Summary) {
	t.Helper()
	if got := int(sum.Answered + sum.Duplicates + sum.Unknown); got != f.Delivered() {
		t.Errorf("%d answers accounted for, %d delivered: %+v", got, f.Delivered(), sum)
	}
}

// TestSiteLost has the only sender lost in mid-run: another site goes on.
func TestSiteLost(t *testing.T) {
	prepare := func(f *fleettest.Fleet) { time.AfterFunc(1013*ms, func() { f.Disconnect("fra") }) }
	simulate(t, prepare, anycast.Job{Definition: catchmentOf("fra"), Targets: targets(3000)}, func(t *testing.T, f *fleettest.Fleet, m *memory, err error) {
		if err != nil {
			t.Fatal(err)
		}
		by := make(map[string]int)
		seen := make(map[netip.Addr]bool)
		for _, c := range of[*anycast.Catch](m) {
			by[c.Sender]++
			seen[c.Target] = true
		}
		if len(seen) != 3000 || by["fra"] < 900 || by["fra"] > 1100 || by["fra"]+by["nyc"]+by["syd"] != 3000 {
			t.Errorf("%d targets, by sender %v", len(seen), by)
		}
		sum := m.summary(t)
		if len(sum.Notes) != 1 || !strings.Contains(sum.Notes[0], "fra was lost") {
			t.Errorf("notes %q", sum.Notes)
		}
		accounted(t, f, sum)
	})
}

// TestSiteLostForGood has one of several senders lost: what it was to send is waited for, and then given up.
func TestSiteLostForGood(t *testing.T) {
	prepare := func(f *fleettest.Fleet) { time.AfterFunc(500*ms, func() { f.Disconnect("nyc") }) }
	simulate(t, prepare, anycast.Job{Definition: catchmentOf(), Targets: targets(600)}, func(t *testing.T, f *fleettest.Fleet, m *memory, err error) {
		if err != nil {
			t.Fatal(err)
		}
		all := of[*anycast.Catch](m)
		failed := 0
		for _, c := range all {
			if c.Status == probe.Failed {
				failed++
				if c.Sender != "nyc" || c.Receiver != "" {
					t.Errorf("%+v", c)
				}
			}
		}
		sum := m.summary(t)
		if len(all) != 1800 || failed == 0 || failed > 600 || sum.Refused != uint64(failed) || sum.Took > time.Minute {
			t.Errorf("%d results, %d failed; %+v", len(all), failed, sum)
		}
		accounted(t, f, sum)
	})
}

// TestSiteBack has the connection of one of several senders lost for some seconds: nothing is missing in the end.
func TestSiteBack(t *testing.T) {
	prepare := func(f *fleettest.Fleet) {
		time.AfterFunc(500*ms, func() { f.Disconnect("nyc") })
		time.AfterFunc(8*time.Second, func() { f.Connect("nyc") })
		f.Internet.Catcher = func(fleettest.Probe, netip.Addr, []string) string { return "syd" }
	}
	simulate(t, prepare, anycast.Job{Definition: catchmentOf(), Targets: targets(600)}, func(t *testing.T, f *fleettest.Fleet, m *memory, err error) {
		sum := m.summary(t)
		if err != nil || sum.Sent != 1800 || sum.Answered != 1800 || sum.Refused != 0 || sum.Sites["syd"] != 600 {
			t.Errorf("%v, %+v", err, sum)
		}
		accounted(t, f, sum)
	})
}

func TestSiteRefuses(t *testing.T) {
	prepare := func(f *fleettest.Fleet) {
		f.Change("fra", func(s *fleettest.Site) { s.CannotSend = errors.New("no route to host") })
	}
	simulate(t, prepare, anycast.Job{Definition: catchmentOf("fra"), Targets: targets(20)}, func(t *testing.T, _ *fleettest.Fleet, m *memory, err error) {
		sum := m.summary(t)
		if err != nil || sum.Refused != 20 || sum.Sent != 0 || len(sum.Notes) != 1 || !strings.Contains(sum.Notes[0], "no route to host") {
			t.Errorf("%v, %+v", err, sum)
		}
	})
}

func TestNoSenders(t *testing.T) {
	for _, c := range []struct {
		sites   []string
		prepare func(*fleettest.Fleet)
		want    error
	}{
		{[]string{"nowhere"}, nil, anycast.ErrNoSite},
		{[]string{"fra"}, func(f *fleettest.Fleet) { f.Change("fra", func(s *fleettest.Site) { s.Native = false }) }, anycast.ErrCannotSend},
		{[]string{"fra"}, func(f *fleettest.Fleet) { f.Change("fra", func(s *fleettest.Site) { s.Anycast = nil }) }, anycast.ErrNoSource},
	} {
		simulate(t, c.prepare, anycast.Job{Definition: catchmentOf(c.sites...), Targets: targets(1)}, func(t *testing.T, _ *fleettest.Fleet, _ *memory, err error) {
			if !errors.Is(err, c.want) {
				t.Errorf("%v: %v, want %v", c.sites, err, c.want)
			}
		})
	}
}

// TestLossAndRepeats loses half of the probes, and duplicates a fifth of the answers, some of which come late.
func TestLossAndRepeats(t *testing.T) {
	d := catchmentOf("fra")
	d.Attempts, d.Timeout, d.Pace.PerNetwork = 4, 500*ms, -1
	for _, d.Protocol = range []stateless.Kind{stateless.ICMP, stateless.TCP, stateless.CHAOS} {
		prepare := func(f *fleettest.Fleet) {
			skewed(f)
			f.Internet.Host = func(p fleettest.Probe) fleettest.Host {
				h := fleettest.Host{Loss: 0.5, Duplicates: 0.2, Text: "ns1.example.net"}
				if p.Target.As4()[2]%10 == 0 {
					h = fleettest.Host{Wait: 700 * ms} // the answer to the first comes while the second is under way
				}
				return h
			}
			f.Internet.Catcher = func(p fleettest.Probe, _ netip.Addr, _ []string) string { return p.Site }
		}
		simulate(t, prepare, anycast.Job{Definition: d, Targets: targets(1000)}, func(t *testing.T, f *fleettest.Fleet, m *memory, err error) {
			if err != nil {
				t.Fatal(err)
			}
			silent := 0
			for _, c := range of[*anycast.Catch](m) {
				switch {
				case c.Receiver == "":
					silent++
				case c.Target.As4()[2]%10 == 0:
					if truth := 2*f.Internet.Distance("fra", c.Target) + 700*ms; c.RTT != 0 && c.RTT != truth {
						t.Errorf("%v: %v answered in %v, want %v or nothing", d.Protocol, c.Target, c.RTT, truth)
					}
				case c.RTT != 2*f.Internet.Distance("fra", c.Target):
					t.Errorf("%v: %v in %v, want %v", d.Protocol, c.Target, c.RTT, 2*f.Internet.Distance("fra", c.Target))
				}
				if (c.Text != "") != (d.Protocol == stateless.CHAOS && c.Receiver != "" && c.Target.As4()[2]%10 != 0) {
					t.Errorf("%v: text %q", d.Protocol, c.Text)
				}
			}
			sum := m.summary(t)
			if silent < 20 || silent > 120 || sum.Sent != uint64(f.Sent()) || sum.Sent < 1600 || sum.Duplicates == 0 || sum.Unknown != 0 {
				t.Errorf("%v: %d silent of 1000, want about 900/16; %+v, %d sent", d.Protocol, silent, sum, f.Sent())
			}
			accounted(t, f, sum)
		})
	}
}

// TestLate has answers that come after their targets were reported as silent.
func TestLate(t *testing.T) {
	d := catchmentOf("fra")
	d.Timeout = 300 * ms
	prepare := func(f *fleettest.Fleet) {
		f.Internet.Host = func(p fleettest.Probe) fleettest.Host {
			if p.Target.As4()[2] < 10 && p.Target.As4()[1] == 0 {
				return fleettest.Host{Wait: time.Second, Duplicates: 1}
			}
			return fleettest.Host{}
		}
	}
	simulate(t, prepare, anycast.Job{Definition: d, Targets: targets(5000)}, func(t *testing.T, f *fleettest.Fleet, m *memory, err error) {
		sum := m.summary(t)
		if err != nil || sum.Late < 7 || sum.Late > 10 || sum.Late != sum.Duplicates || sum.Answered != 4990+sum.Late {
			t.Errorf("%v, %+v", err, sum)
		}
		accounted(t, f, sum)
	})
}

// TestForged has answers to probes that were never sent.
func TestForged(t *testing.T) {
	const n = 50
	prepare := func(f *fleettest.Fleet) {
		time.AfterFunc(100*ms, func() {
			for i := range n {
				a := stateless.Answer{Status: probe.Replied, Responder: target}
				switch i % 3 {
				case 0: // about a target that is none
					a.Target = netip.MustParseAddr("198.51.100.77")
				case 1: // with a number that is not in use
					a.Target, a.Number = targets(1)[0].Addr, 40000
				case 2: // about one that is still to come
					a.Target, a.Number = targets(1)[0].Addr, 2
				}
				f.Inject("syd", a)
			}
		})
	}
	simulate(t, prepare, anycast.Job{Definition: catchmentOf(), Targets: targets(800)}, func(t *testing.T, f *fleettest.Fleet, m *memory, err error) {
		sum := m.summary(t)
		if err != nil || sum.Unknown != n || sum.Answered != 2400 {
			t.Errorf("%v, %+v", err, sum)
		}
		for _, c := range of[*anycast.Catch](m) {
			if c.Responder == target {
				t.Errorf("a forged answer counts: %+v", c)
			}
		}
		accounted(t, f, sum)
	})
}

// TestClocks has clocks that are seconds off: times that are not known are left out, those that are given hold.
func TestClocks(t *testing.T) {
	prepare := func(f *fleettest.Fleet) {
		skewed(f)
		f.Change("syd", func(s *fleettest.Site) { s.Clock = anycast.Clock{Offset: s.Skew + 2*ms, Error: 3 * ms} })
		f.Change("nyc", func(s *fleettest.Site) { s.Clock = anycast.Clock{Offset: s.Skew - ms, Error: 2 * ms} })
	}
	simulate(t, prepare, anycast.Job{Definition: catchmentOf(), Targets: targets(300)}, func(t *testing.T, f *fleettest.Fleet, m *memory, err error) {
		if err != nil {
			t.Fatal(err)
		}
		known := 0
		for _, c := range of[*anycast.Catch](m) {
			unknown := c.Sender != c.Receiver && (c.Sender == "fra" || c.Receiver == "fra")
			if unknown && c.RTT != 0 {
				t.Errorf("a time from clocks that nobody knows: %+v", c)
			}
			if c.RTT != 0 {
				known++
				truth := f.Internet.Distance(c.Sender, c.Target) + f.Internet.Distance(c.Receiver, c.Target)
				if c.RTT < 0 || (c.RTT-truth).Abs() > c.ClockError || c.Sender == c.Receiver && c.ClockError != 0 {
					t.Errorf("%+v, want %v", c, truth)
				}
			}
		}
		if known < 300 {
			t.Errorf("%d times", known)
		}
	})
}

func TestSkipped(t *testing.T) {
	d := catchmentOf("fra")
	d.OptOut = []netip.Prefix{netip.MustParsePrefix("20.0.2.0/23")}
	all := targets(5)
	for _, a := range []string{
		"10.1.2.3", "100.64.1.1", "127.0.0.1", "169.254.1.1", "224.0.0.5", "255.255.255.255", "192.0.2.9", "0.0.0.0", "fe80::1", "ff02::1", "::1", "fd00::1", "2001:db8::7",
		"20.0.0.7", "::ffff:20.0.1.7", "2a00:1450::1",
	} {
		all = append(all, anycast.Target{Addr: netip.MustParseAddr(a)})
	}
	all = append(all, anycast.Target{})
	job := anycast.Job{Definition: d, Targets: all, Done: func(a netip.Addr) bool { return a == all[4].Addr }}
	want := map[string]int{
		anycast.SkipOptOut: 2, anycast.SkipPrivate: 3, anycast.SkipLoopback: 2, anycast.SkipLinkLocal: 2, anycast.SkipMulticast: 2,
		anycast.SkipReserved: 3, anycast.SkipInvalid: 2, anycast.SkipDuplicate: 2, anycast.SkipDone: 1, anycast.SkipNoSource: 1,
	}
	prepare := func(f *fleettest.Fleet) {
		f.Change("fra", func(s *fleettest.Site) { s.Anycast = s.Anycast[:1] }) // IPv4 only
	}
	simulate(t, prepare, job, func(t *testing.T, _ *fleettest.Fleet, m *memory, err error) {
		sum := m.summary(t)
		if err != nil || !maps.Equal(sum.Skipped, want) || sum.Sent != 2 || sum.Targets != len(all) {
			t.Errorf("%v, %+v, want %v", err, sum, want)
		}
	})
	job.Definition.AllowPrivate, job.Done = true, nil
	want = map[string]int{anycast.SkipOptOut: 2, anycast.SkipInvalid: 2, anycast.SkipMulticast: 2, anycast.SkipDuplicate: 2}
	simulate(t, nil, job, func(t *testing.T, _ *fleettest.Fleet, m *memory, err error) {
		if sum := m.summary(t); err != nil || !maps.Equal(sum.Skipped, want) {
			t.Errorf("%v, %v, want %v", err, sum.Skipped, want)
		}
	})
}

// TestPerNetwork probes many addresses of few networks: never two within a second, and each once.
func TestPerNetwork(t *testing.T) {
	var all []anycast.Target
	for i := range 40 {
		for j := range 5 {
			all = append(all, anycast.Target{Addr: netip.AddrFrom4([4]byte{20, 0, byte(i), byte(10 + j)})})
		}
	}
	last := make(map[netip.Prefix]time.Time)
	n := 0
	prepare := func(f *fleettest.Fleet) {
		f.Internet.Host = func(p fleettest.Probe) fleettest.Host {
			at := anycast.Network(p.Target)
			if since := p.Time.Sub(last[at]); since < time.Second {
				t.Errorf("two probes to %v within %v", at, since)
			}
			last[at] = p.Time
			n++
			return fleettest.Host{Silent: p.Target.As4()[3] == 12}
		}
	}
	d := catchmentOf("fra", "syd")
	d.Attempts = 2
	simulate(t, prepare, anycast.Job{Definition: d, Targets: all}, func(t *testing.T, f *fleettest.Fleet, m *memory, err error) {
		sum := m.summary(t)
		if err != nil || n != 40*2*(4+2) || len(of[*anycast.Catch](m)) != 400 || sum.Took > 40*time.Second {
			t.Errorf("%v, %d probes, %+v", err, n, sum)
		}
		accounted(t, f, sum)
	})
}

// TestSiteGap keeps probes from different sites to one target apart, and the rate.
func TestSiteGap(t *testing.T) {
	last := make(map[netip.Addr]time.Time)
	var first, end time.Time
	prepare := func(f *fleettest.Fleet) {
		f.Internet.Host = func(p fleettest.Probe) fleettest.Host {
			if since := p.Time.Sub(last[p.Target]); since < 1500*ms {
				t.Errorf("two probes to %v within %v", p.Target, since)
			}
			last[p.Target], end = p.Time, p.Time
			if first.IsZero() {
				first = p.Time
			}
			return fleettest.Host{}
		}
	}
	d := catchmentOf()
	d.Pace = anycast.Pace{Rate: 500, PerNetwork: -1, SiteGap: 1500 * ms}
	simulate(t, prepare, anycast.Job{Definition: d, Targets: targets(3000)}, func(t *testing.T, f *fleettest.Fleet, _ *memory, err error) {
		rate := float64(f.Sent()) / end.Sub(first).Seconds()
		if err != nil || f.Sent() != 9000 || rate > 510 || rate < 400 {
			t.Errorf("%v: %d probes, %.0f a second, want 500", err, f.Sent(), rate)
		}
	})
}

func TestCancel(t *testing.T) {
	for _, d := range []anycast.Definition{
		catchmentOf(),
		{Program: anycast.KindLatency},
		{Program: anycast.KindFlipping},
		{Program: anycast.KindWatch, Pace: anycast.Pace{Rate: 1e6}},
		{Program: anycast.KindTrace, Sites: []string{"fra"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := fleettest.New(1, "fra", "nyc", "syd")
			defer f.Close()
			f.Internet.Path = diamond
			cause := errors.New("the user had enough")
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(3*time.Second, func() { cancel(cause) })
			m := &memory{}
			start := time.Now()
			err := anycast.Run(ctx, f, d, targets(20000), m)
			if !errors.Is(err, cause) || time.Since(start) > 4*time.Second {
				t.Errorf("%s: %v after %v", d.Program, err, time.Since(start))
			}
			if sum := m.summary(t); sum.Sent == 0 || sum.Took < 3*time.Second {
				t.Errorf("%s: %+v", d.Program, sum)
			}
		})
	}
}

// TestFullDisk has a sink that fails: the program ends with its error.
func TestFullDisk(t *testing.T) {
	for _, d := range []anycast.Definition{
		catchmentOf(), {Program: anycast.KindLatency}, {Program: anycast.KindWatch}, {Program: anycast.KindTrace, Sites: []string{"fra"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := fleettest.New(1, "fra", "nyc", "syd")
			defer f.Close()
			full := errors.New("no space left on device")
			if err := anycast.Run(t.Context(), f, d, targets(100), &memory{err: full}); !errors.Is(err, full) {
				t.Errorf("%s: %v", d.Program, err)
			}
		})
	}
}

func TestProgress(t *testing.T) {
	simulate(t, nil, anycast.Job{Definition: catchmentOf("fra"), Targets: targets(5000)}, func(t *testing.T, _ *fleettest.Fleet, m *memory, err error) {
		if err != nil || len(m.progress) < 4 {
			t.Fatalf("%v, %d reports", err, len(m.progress))
		}
		if p := m.progress[2]; p.Total != 5000 || p.Done < 1000 || p.Done > 3500 || p.Left < time.Second || p.Left > 8*time.Second {
			t.Errorf("%+v", p)
		}
	})
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		d    anycast.Definition
		want string
	}{
		{anycast.Definition{}, "program"},
		{anycast.Definition{Program: "dance"}, "want trace, catchment"},
		{anycast.Definition{Program: anycast.KindVolta}, "command"},
		{anycast.Definition{Program: anycast.KindCatchment, Timeout: time.Hour}, "timeout"},
		{anycast.Definition{Program: anycast.KindCatchment, Attempts: -1}, "attempts"},
		{anycast.Definition{Program: anycast.KindCatchment, Pace: anycast.Pace{Rate: -1}}, "pace.rate"},
		{anycast.Definition{Program: anycast.KindCatchment, Note: strings.Repeat("x", 300)}, "note"},
		{anycast.Definition{Program: anycast.KindCatchment, Query: "example.com"}, "query"},
		{anycast.Definition{Program: anycast.KindCatchment, Protocol: 77}, "kind"},
		{anycast.Definition{Program: anycast.KindCatchment, Watch: &anycast.WatchOptions{}}, "are for the program watch"},
		{anycast.Definition{Program: anycast.KindCatchment, Weights: []anycast.Weight{{Queries: -1}}}, "weights"},
		{anycast.Definition{Program: anycast.KindCatchment, Schedule: &anycast.Schedule{Every: ms}}, "schedule.every"},
		{anycast.Definition{Program: anycast.KindTrace, Protocol: stateless.DNS}, "traces are made of"},
		{anycast.Definition{Program: anycast.KindTrace, Sites: []string{"a", "b"}}, "name one"},
		{anycast.Definition{Program: anycast.KindTrace, Trace: &anycast.TraceOptions{MaxHops: 300}}, "trace.max_hops"},
		{anycast.Definition{Program: anycast.KindTrace, Trace: &anycast.TraceOptions{Method: "mda"}}, "trace.method"},
		{anycast.Definition{Program: anycast.KindFlipping, Flipping: &anycast.FlippingOptions{Flows: 1000}}, "flipping.flows"},
		{anycast.Definition{Program: anycast.KindFlipping, Flipping: &anycast.FlippingOptions{Protocols: []stateless.Kind{1, 1}}}, "twice"},
		{anycast.Definition{Program: anycast.KindWatch, Watch: &anycast.WatchOptions{Interval: 1}}, "watch.interval"},
		{anycast.Definition{Program: anycast.KindWatch, Protocol: stateless.CHAOS, Watch: &anycast.WatchOptions{Interval: ms}}, "source port"},
	} {
		err := c.d.Check()
		if !errors.Is(err, anycast.ErrDefinition) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.d, err, c.want)
		}
	}
	for _, d := range []anycast.Definition{
		{Program: anycast.KindTrace},
		{Program: anycast.KindCatchment, Protocol: stateless.CHAOS},
		{Program: anycast.KindLatency},
		{Program: anycast.KindFlipping},
		{Program: anycast.KindWatch},
		{Program: anycast.KindVolta, Command: "volta fra example.net"},
	} {
		if err := d.Check(); err != nil {
			t.Errorf("%s: %v", d.Program, err)
		}
	}
}

// TestTraceRefused has a site that cannot reach one of many targets: the others are traced.
func TestTraceRefused(t *testing.T) {
	prepare := func(f *fleettest.Fleet) {
		f.Internet.Path = diamond
		f.Change("fra", func(s *fleettest.Site) { s.CannotSend = errors.New("no route to host") })
	}
	d := traceOf(anycast.MethodParis, stateless.ICMP)
	simulate(t, prepare, anycast.Job{Definition: d, Targets: targets(30)}, func(t *testing.T, _ *fleettest.Fleet, m *memory, err error) {
		sum := m.summary(t)
		if err != nil || len(of[*anycast.TraceResult](m)) != 30 || len(sum.Notes) != 20 || !strings.Contains(sum.Notes[0], "no route to host") {
			t.Errorf("%v, %+v", err, sum)
		}
	})
	simulate(t, prepare, anycast.Job{Definition: d, Targets: targets(1)}, func(t *testing.T, _ *fleettest.Fleet, _ *memory, err error) {
		if err == nil || !strings.Contains(err.Error(), "no route to host") {
			t.Errorf("%v", err)
		}
	})
}

// TestTooMany asks for more different probes than can be told apart.
func TestTooMany(t *testing.T) {
	d := anycast.Definition{
		Program: anycast.KindFlipping, Attempts: 10,
		Flipping: &anycast.FlippingOptions{Flows: 64, Rounds: 100},
	}
	simulate(t, nil, anycast.Job{Definition: d, Targets: targets(1)}, func(t *testing.T, _ *fleettest.Fleet, _ *memory, err error) {
		if !errors.Is(err, anycast.ErrDefinition) {
			t.Errorf("%v, want ErrDefinition", err)
		}
	})
}
