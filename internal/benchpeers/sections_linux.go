// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/seed5728abee/fathom/internal/figures"
)

var (
	// many is a network of which host b has every address: fping is at its best with many targets.
	manyNet = netip.MustParsePrefix("10.200.0.0/16")
	// silentNet is routed to host b, which drops it.
	silentNet  = netip.MustParsePrefix("10.201.0.0/16")
	silentWide = netip.MustParsePrefix("10.202.0.0/15") // 131,072 addresses
)

type mallocs struct{ n uint64 }

func (m *mallocs) read() {
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	m.n = s.Mallocs
}

// prepare adds the routes for many and silent addresses.
func (b *bench) prepare() error {
	gateway := b.lab.Host("b").Addr()
	if err := b.lab.Host("a").Do(func() error {
		for _, p := range []netip.Prefix{manyNet, silentNet, silentWide} {
			if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(p), Gw: gateway.AsSlice()}); err != nil {
				return fmt.Errorf("route to %v: %w", p, err)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	return b.lab.Host("b").Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		// Table 255 is the local one: the kernel answers for every address of it.
		return netlink.RouteAdd(&netlink.Route{Dst: ipNet(manyNet), LinkIndex: lo.Attrs().Index, Table: 255, Type: 2, Scope: netlink.SCOPE_HOST})
	})
}

// rates: ICMP echo, answered probes per second and processor time, of everyone.
func (b *bench) rates(ctx context.Context) error {
	target := b.lab.Host("b").Addr().String()
	dur := b.seconds.String()
	var ours, bare, fping, oursCPU, bareCPU, fpingCPU, allocs []float64
	debian := map[int][]float64{}
	debianCPU := map[int][]float64{}
	for range b.rounds {
		o, err := b.on(ctx, "a", "closed", "-target", target, "-seconds", dur)
		if err != nil {
			return err
		}
		ours, oursCPU, allocs = append(ours, o.rate()), append(oursCPU, o.cpuPer100k()), append(allocs, o.Allocs)
		if o, err = b.on(ctx, "a", "bare", "-target", target, "-seconds", dur); err != nil {
			return err
		}
		bare, bareCPU = append(bare, o.rate()), append(bareCPU, o.cpuPer100k())
		if b.debian != "" {
			// Its best lies somewhere here; it takes 1024 at most.
			for _, window := range []int{64, 256, 900} {
				o, err := b.pipe(ctx, b.debian, window, b.seconds)
				if err != nil {
					return err
				}
				debian[window] = append(debian[window], o.rate())
				debianCPU[window] = append(debianCPU[window], o.cpuPer100k())
			}
		}
		if b.fping != "" {
			o, err := b.runFping(ctx)
			if err != nil {
				return err
			}
			fping, fpingCPU = append(fping, o.rate()), append(fpingCPU, o.cpuPer100k())
		}
	}
	b.figures.Add("icmp", "fathom, 256 in flight", fmt.Sprintf("%.0f/s", figures.Median(ours)))
	b.figures.Add("icmp", "bare sendmmsg/recvmmsg loop", fmt.Sprintf("%.0f/s, %.2f CPU s per 100,000", figures.Median(bare), figures.Median(bareCPU)))
	r := ratios(ours, bare)
	b.figures.Judge("icmp", "fathom / bare loop", fmt.Sprintf("%.2f", r), "≥ 0.80", r >= 0.8)
	if b.debian != "" {
		best := 0
		for w := range debian {
			if best == 0 || figures.Median(debian[w]) > figures.Median(debian[best]) {
				best = w
			}
		}
		b.figures.Add("icmp", fmt.Sprintf("Debian's mtr-packet, at its best (%d in flight)", best), fmt.Sprintf("%.0f/s, %.2f CPU s per 100,000", figures.Median(debian[best]), figures.Median(debianCPU[best])))
		r := ratios(ours, debian[best])
		b.figures.Judge("icmp", "fathom / Debian's mtr-packet", fmt.Sprintf("%.2f", r), "≥ 2.0", r >= 2)
	}
	if b.fping != "" {
		b.figures.Add("icmp", "fping -i 0, 65,534 targets", fmt.Sprintf("%.0f/s, %.2f CPU s per 100,000", figures.Median(fping), figures.Median(fpingCPU)))
		r := ratios(ours, fping)
		b.figures.Judge("icmp", "fathom / fping", fmt.Sprintf("%.2f", r), "≥ 1.7", r >= 1.7)
	}
	c := figures.Median(oursCPU)
	b.figures.Judge("icmp", "fathom, CPU s per 100,000", fmt.Sprintf("%.2f (%.2f of the bare loop's)", c, ratios(oursCPU, bareCPU)), "≤ 0.40", c <= 0.4)
	a := figures.Median(allocs)
	b.figures.Judge("icmp", "fathom, allocations per probe", fmt.Sprintf("%.4f", a), "0", a < 0.01)
	return nil
}

// runFping pings every address of the many network once.
func (b *bench) runFping(ctx context.Context) (outcome, error) {
	c := b.lab.Host("a").Command(ctx, b.fping, "-q", "-i", "0", "-r", "0", "-s", "-g", manyNet.String())
	start := time.Now()
	out, err := c.CombinedOutput()
	o := outcome{Elapsed: time.Since(start)}
	if c.ProcessState == nil {
		return o, fmt.Errorf("fping: %w", err)
	}
	o.CPU = c.ProcessState.UserTime() + c.ProcessState.SystemTime()
	for line := range strings.Lines(string(out)) {
		var n int
		if _, err := fmt.Sscanf(strings.TrimSpace(line), "%d alive", &n); err == nil {
			o.Answered = n
		}
	}
	if o.Answered == 0 {
		return o, fmt.Errorf("fping: no target answered: %.200s", out)
	}
	return o, nil
}

// protocols: UDP, TCP and IPv6 beside ICMP over IPv4.
func (b *bench) protocols(ctx context.Context) error {
	t4, t6 := b.lab.Host("b").Addr().String(), b.lab.Host("b").Addr6().String()
	dur := b.seconds.String()
	cases := []struct{ name, target, protocol, window string }{
		{"icmp4", t4, "icmp", "256"},
		{"udp4", t4, "udp", "256"},
		{"tcp4", t4, "tcp", "64"},
		{"icmp6", t6, "icmp", "256"},
		{"udp6", t6, "udp", "256"},
		{"tcp6", t6, "tcp", "64"},
	}
	rates := map[string][]float64{}
	for range b.rounds {
		for _, c := range []struct{ name, target, protocol string }{
			{"bare4", t4, "icmp"},
			{"bareudp4", t4, "udp"},
			{"bare6", t6, "icmp"},
		} {
			o, err := b.on(ctx, "a", "bare", "-target", c.target, "-protocol", c.protocol, "-seconds", dur)
			if err != nil {
				return err
			}
			rates[c.name] = append(rates[c.name], o.rate())
		}
		for _, c := range cases {
			o, err := b.on(ctx, "a", "closed", "-target", c.target, "-protocol", c.protocol, "-window", c.window, "-seconds", dur)
			if err != nil {
				return err
			}
			rates[c.name] = append(rates[c.name], o.rate())
		}
	}
	for _, c := range cases {
		b.figures.Add("protocols", c.protocol+" to "+c.target+", "+c.window+" in flight", fmt.Sprintf("%.0f/s", figures.Median(rates[c.name])))
	}
	r := ratios(rates["udp4"], rates["icmp4"])
	b.figures.Judge("protocols", "UDP / ICMP", fmt.Sprintf("%.2f", r), "≥ 0.90", r >= 0.9)
	b.figures.Add("protocols", "bare loop: UDP / ICMP (the kernel's share)", fmt.Sprintf("%.2f", ratios(rates["bareudp4"], rates["bare4"])))
	b.figures.Add("protocols", "fathom / bare loop, UDP", fmt.Sprintf("%.2f", ratios(rates["udp4"], rates["bareudp4"])))
	m := figures.Median(rates["tcp4"])
	b.figures.Judge("protocols", "TCP, 64 in flight", fmt.Sprintf("%.0f/s", m), "≥ 75,000/s", m >= 75000)
	b.figures.Add("protocols", "bare ICMP loop: IPv6 / IPv4 (the kernel's share)", fmt.Sprintf("%.2f", ratios(rates["bare6"], rates["bare4"])))
	b.figures.Add("protocols", "fathom / bare loop, ICMP over IPv6", fmt.Sprintf("%.2f", ratios(rates["icmp6"], rates["bare6"])))
	for _, p := range []string{"icmp", "udp", "tcp"} {
		r := ratios(rates[p+"6"], rates[p+"4"])
		b.figures.Judge("protocols", p+": IPv6 / IPv4", fmt.Sprintf("%.2f", r), "≥ 0.85", r >= 0.85)
	}
	return nil
}

// frames: the goals for the engine where it sends Ethernet frames of its own, which is for the user to ask
// for, beside a bare loop that does so and the same peers as in rates and protocols.
func (b *bench) frames(ctx context.Context) error {
	t4, t6 := b.lab.Host("b").Addr().String(), b.lab.Host("b").Addr6().String()
	cases := []struct {
		name string
		args []string
	}{
		{"bare4", []string{"bare", "-target", t4}},
		{"bare4 frames", []string{"bare", "-target", t4, "-frames"}},
		{"icmp4 raw", []string{"closed", "-target", t4}},
		{"icmp4", []string{"closed", "-target", t4, "-frames"}},
		{"udp4", []string{"closed", "-target", t4, "-frames", "-protocol", "udp"}},
		{"tcp4", []string{"closed", "-target", t4, "-frames", "-protocol", "tcp", "-window", "64"}},
		{"bare6", []string{"bare", "-target", t6}},
		{"bare6 frames", []string{"bare", "-target", t6, "-frames"}},
		{"icmp6 raw", []string{"closed", "-target", t6}},
		{"icmp6", []string{"closed", "-target", t6, "-frames"}},
		{"udp6", []string{"closed", "-target", t6, "-frames", "-protocol", "udp"}},
		{"tcp6", []string{"closed", "-target", t6, "-frames", "-protocol", "tcp", "-window", "64"}},
	}
	rates, cpus, allocs := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	for range b.rounds {
		for _, c := range cases {
			o, err := b.on(ctx, "a", c.args[0], append(c.args[1:len(c.args):len(c.args)], "-seconds", b.seconds.String())...)
			if err != nil {
				return err
			}
			rates[c.name] = append(rates[c.name], o.rate())
			cpus[c.name] = append(cpus[c.name], o.cpuPer100k())
			allocs[c.name] = append(allocs[c.name], o.Allocs)
		}
		if b.fping != "" {
			o, err := b.runFping(ctx)
			if err != nil {
				return err
			}
			rates["fping"] = append(rates["fping"], o.rate())
		}
	}
	for _, c := range cases {
		b.figures.Add("frames", c.name, fmt.Sprintf("%.0f/s, %.2f CPU s per 100,000", figures.Median(rates[c.name]), figures.Median(cpus[c.name])))
	}
	ratio := func(name, of, to string) {
		b.figures.Add("frames", name, fmt.Sprintf("%.2f", ratios(rates[of], rates[to])))
	}
	goal := func(name, of, to string, least float64) {
		r := ratios(rates[of], rates[to])
		b.figures.Judge("frames", name, fmt.Sprintf("%.2f", r), fmt.Sprintf("≥ %.2f", least), r >= least)
	}
	ratio("bare loop, frames / raw, IPv4", "bare4 frames", "bare4")
	ratio("bare loop, frames / raw, IPv6", "bare6 frames", "bare6")
	ratio("fathom, frames / raw, IPv4", "icmp4", "icmp4 raw")
	ratio("fathom, frames / raw, IPv6", "icmp6", "icmp6 raw")
	ratio("fathom / bare loop of frames", "icmp4", "bare4 frames")
	goal("fathom / bare loop", "icmp4", "bare4", 0.8)
	if b.fping != "" {
		goal("fathom / fping", "icmp4", "fping", 1.7)
	}
	goal("UDP / ICMP", "udp4", "icmp4", 0.9)
	for _, p := range []string{"icmp", "udp", "tcp"} {
		goal(p+": IPv6 / IPv4", p+"6", p+"4", 0.85)
	}
	a := figures.Median(allocs["icmp4"])
	b.figures.Judge("frames", "fathom, allocations per probe", fmt.Sprintf("%.4f", a), "0", a < 0.01)
	return nil
}

// textProtocol: our mtr-packet beside Debian's, driven over pipes.
func (b *bench) textProtocol(ctx context.Context) error {
	for _, window := range []int{1, 64, 900, 10000} {
		var ours, theirs []float64
		for range b.rounds {
			o, err := b.pipe(ctx, b.ours, window, b.seconds)
			if err != nil {
				return err
			}
			ours = append(ours, o.rate())
			if b.debian != "" && window < 1024 {
				if o, err = b.pipe(ctx, b.debian, window, b.seconds); err != nil {
					return err
				}
				theirs = append(theirs, o.rate())
			}
		}
		name := fmt.Sprintf("%d in flight", window)
		if theirs == nil {
			b.figures.Judge("mtr-packet", name, fmt.Sprintf("%.0f/s", figures.Median(ours)), "works", figures.Median(ours) > 0)
			continue
		}
		r := ratios(ours, theirs)
		b.figures.Judge("mtr-packet", name+", ours / Debian's", fmt.Sprintf("%.2f (%.0f/s, %.0f/s)", r, figures.Median(ours), figures.Median(theirs)), "≥ 1.2", r >= 1.2)
	}
	return nil
}

// many: memory and timers with very many probes in flight.
func (b *bench) many(ctx context.Context) error {
	// Answering probes pass at the same rate whatever else is in flight: with 100 and with 100,000.
	var few, lots []float64
	for range b.rounds {
		for _, c := range []struct {
			window string
			rates  *[]float64
		}{{"100", &few}, {"100000", &lots}} {
			o, err := b.on(ctx, "a", "closed", "-target", b.lab.Host("b").Addr().String(), "-window", c.window, "-seconds", b.seconds.String(), "-timeout", "1m")
			if err != nil {
				return err
			}
			*c.rates = append(*c.rates, o.rate())
		}
	}
	r := ratios(lots, few)
	b.figures.Judge("many", "rate with 100,000 in flight / with 100", fmt.Sprintf("%.2f (%.0f/s, %.0f/s)", r, figures.Median(lots), figures.Median(few)), "≥ 0.80", r >= 0.8)

	o, err := b.on(ctx, "a", "silent", "-target", silentWide.Addr().String(), "-count", "100000", "-timeout", "4s")
	if err != nil {
		return err
	}
	b.figures.Judge("many", "100,000 silent targets: peak memory", fmt.Sprintf("%.1f MB", float64(o.MaxRSS)/1e6), "< 64 MB", o.MaxRSS < 64e6)
	slices.Sort(o.Late)
	if len(o.Late) == 0 {
		return fmt.Errorf("no probe timed out: %+v", o)
	}
	early, late := o.Late[0], o.Late[len(o.Late)-1]
	p999 := o.Late[len(o.Late)*999/1000]
	b.figures.Judge("many", "100,000 silent targets: timed out", fmt.Sprintf("%d, %v to %v after the deadline (99.9 %%: %v)", o.Silent, early.Round(10*time.Microsecond), late.Round(10*time.Microsecond), p999.Round(10*time.Microsecond)),
		"all, ± 5 ms", o.Silent == 100000 && early >= -5*time.Millisecond && late <= 5*time.Millisecond)
	share := o.WaitCPU.Seconds() / o.WaitTime.Seconds()
	b.figures.Judge("many", "100,000 silent targets: CPU while waiting", fmt.Sprintf("%.2f %% of a core", 100*share), "< 5 %", share < 0.05)

	if o, err = b.on(ctx, "a", "silent", "-protocol", "tcp", "-target", silentNet.Addr().Next().String(), "-count", "20000", "-timeout", "3s"); err != nil {
		return err
	}
	b.figures.Judge("many", "20,000 TCP probes in flight", fmt.Sprintf("%d timed out, %d refused", o.Silent, o.Failed), "all", o.Silent == 20000)
	return nil
}

// traces: 20 hops with 3 probes each.
func (b *bench) traces(ctx context.Context) error {
	var beyond, path []float64
	answered := 0
	for range max(b.rounds, 5) {
		o, err := b.on(ctx, "c", "trace", "-target", b.lab.Host("d").Addr().String())
		if err != nil {
			return err
		}
		answered = o.Answered
		beyond = append(beyond, (o.Elapsed-o.Path).Seconds()*1e3)
		path = append(path, o.Path.Seconds()*1e3)
	}
	m := figures.Median(beyond)
	b.figures.Judge("trace", fmt.Sprintf("20 hops, 3 probes each (%d answers)", answered), fmt.Sprintf("%.2f ms beyond the longest round trip (%.2f ms)", m, figures.Median(path)), "< 3 ms", m < 3 && answered >= 60)
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
