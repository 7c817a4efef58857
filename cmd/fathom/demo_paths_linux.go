// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	_ "embed"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/lab"
	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/trace"
)

//go:embed demo/paths.toml
var pathsFile []byte

// How far a finding may lie from the truth. A wire keeps its delay to 0.2 ms, and a probe never
// arrives early; but a busy machine may be late in carrying it, so the best of several probes counts.
const (
	demoEarly   = 400 * time.Microsecond
	demoLate    = 2500 * time.Microsecond
	lossProbes  = 600
	lossDevs    = 4.5 // standard deviations: wrong once in 150,000 runs
	delayProbes = 20
	delayTraces = 4
	// demoConfidence is more than a user would pay for: the demo must not miss a way by chance.
	demoConfidence = 0.99999
)

// pathsDemo is the chapter's lab with a prober on alice.
type pathsDemo struct {
	*demo
	lab      *lab.Lab
	topology *lab.Topology
	prober   *probe.Prober
}

func pathsChapter(ctx context.Context, d *demo) error {
	topology, err := lab.Parse(pathsFile)
	if err != nil {
		return err
	}
	l, err := lab.Start(ctx, topology, lab.Options{})
	if err != nil {
		return err
	}
	defer l.Close()
	p := &pathsDemo{demo: d, lab: l, topology: topology}
	if err := l.Host("alice").Do(func() (err error) {
		p.prober, err = probe.New(probe.Options{})
		return err
	}); err != nil {
		return err
	}
	defer p.prober.Close()
	d.picture(pathsFile, "")
	d.say("")
	for _, part := range []func(context.Context) error{p.probes, p.path, p.multipath} {
		if err := part(ctx); err != nil {
			return err
		}
		d.say("")
	}
	return nil
}

// way is a path through the lab file, by its nodes.
var way = []string{"alice", "gate", "north", "core", "mute", "edge", "bob"}

// wire is the file's wire between two nodes.
func (p *pathsDemo) wire(a, b string) lab.WireConfig {
	for _, w := range p.topology.Wires {
		if w.Ends == [2]string{a, b} || w.Ends == [2]string{b, a} {
			return w
		}
	}
	panic(fmt.Sprintf("the demo's lab has no wire between %s and %s", a, b))
}

// roundTrip is the truth about the time to the last node of a way and back.
func (p *pathsDemo) roundTrip(way []string) (d time.Duration) {
	for i := range way[1:] {
		d += 2 * p.wire(way[i], way[i+1]).Impairment.Delay
	}
	return d
}

func near(found, truth time.Duration) bool {
	return found >= truth-demoEarly && found <= truth+demoLate
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", d.Seconds()*1e3) }

// send sends count probes, one per interval, and gives the results.
func send(ctx context.Context, p *probe.Prober, req probe.Request, count int, interval time.Duration) ([]probe.Result, error) {
	results := make([]probe.Result, count)
	var pending sync.WaitGroup
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for i := range count {
		pending.Add(1)
		if _, err := p.Start(req, func(r probe.Result) { results[i] = r; pending.Done() }); err != nil {
			return nil, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	pending.Wait() // no longer than the probes' timeout
	return results, nil
}

// best gives the number of replies and the shortest round trip.
func best(results []probe.Result) (replies int, rtt time.Duration) {
	for _, r := range results {
		if r.Status == probe.Replied {
			if replies++; rtt == 0 || r.RTT < rtt {
				rtt = r.RTT
			}
		}
	}
	return replies, rtt
}

func (p *pathsDemo) probes(ctx context.Context) error {
	p.heading("fathom probe")
	bob, carol := p.lab.Host("bob"), p.lab.Host("carol")
	for _, c := range []struct {
		what string
		req  probe.Request
	}{
		{"ICMP to bob, best round trip", probe.Request{Target: bob.Addr()}},
		{"ICMP over IPv6", probe.Request{Target: bob.Addr6()}},
		{"UDP to a closed port", probe.Request{Target: bob.Addr(), Protocol: probe.UDP}},
		{"TCP to a closed port", probe.Request{Target: bob.Addr(), Protocol: probe.TCP}},
	} {
		c.req.Timeout = time.Second
		if err := p.roundTripCheck(ctx, p.prober, c.what, c.req); err != nil {
			return err
		}
	}
	// What any user may do: the same probe without raw sockets.
	var plain *probe.Prober
	if err := p.lab.Host("alice").DoUnprivileged(func() (err error) {
		plain, err = probe.New(probe.Options{Mode: probe.Unprivileged})
		return err
	}); err != nil {
		return err
	}
	defer plain.Close()
	if err := p.roundTripCheck(ctx, plain, "ICMP without any privilege", probe.Request{Target: bob.Addr(), Timeout: time.Second}); err != nil {
		return err
	}

	results, err := send(ctx, p.prober, probe.Request{Target: carol.Addr(), Timeout: 500 * time.Millisecond}, lossProbes, 3*time.Millisecond)
	if err != nil {
		return err
	}
	replies, _ := best(results)
	once := p.wire("edge", "carol").Impairment.Loss
	truth := 1 - (1-once)*(1-once) // there and back
	found := 1 - float64(replies)/lossProbes
	slack := lossDevs * math.Sqrt(truth*(1-truth)/lossProbes)
	p.check("loss to carol", fmt.Sprintf("%.1f %% of %d", 100*found, lossProbes), fmt.Sprintf("%.1f ± %.1f %%", 100*truth, 100*slack), math.Abs(found-truth) <= slack)
	return nil
}

func (p *pathsDemo) roundTripCheck(ctx context.Context, prober *probe.Prober, what string, req probe.Request) error {
	results, err := send(ctx, prober, req, delayProbes, 10*time.Millisecond)
	if err != nil {
		return err
	}
	replies, rtt := best(results)
	truth := p.roundTrip(way)
	p.check(what, fmt.Sprintf("%s, %d of %d answered", ms(rtt), replies, delayProbes), ms(truth), replies == delayProbes && near(rtt, truth))
	return nil
}

// address is what a trace from alice shows for a node behind the one before it.
func (p *pathsDemo) address(before, node string, version int) netip.Addr {
	return p.lab.Host(node).AddrTowards(before, version)
}

// silent tells what the file says.
func (p *pathsDemo) silent(node string) bool { return p.topology.Routers[node].Behaviour.Silent }

// labels are those that the file has for a router, as text.
func (p *pathsDemo) labels(node string) string {
	var s []string
	for _, l := range p.topology.Routers[node].Behaviour.MPLS {
		s = append(s, fmt.Sprint(l.Label))
	}
	return strings.Join(s, " ")
}

func labelText(labels []packet.Label) string {
	var s []string
	for _, l := range labels {
		s = append(s, fmt.Sprint(l.Label))
	}
	return strings.Join(s, " ")
}

// hopText describes a hop for eyes: address and labels, or a star.
func hopText(addr netip.Addr, labels string) string {
	if !addr.IsValid() {
		return "*"
	}
	if labels != "" {
		return fmt.Sprintf("%v, label %s", addr, labels)
	}
	return addr.String()
}

func (p *pathsDemo) path(ctx context.Context) error {
	for _, version := range []int{4, 6} {
		target := p.lab.Host("bob").Addr()
		heading := "fathom trace bob"
		if version == 6 {
			heading, target = "fathom trace -6 bob", p.lab.Host("bob").Addr6()
		}
		p.heading(heading)
		// All probes of a trace leave within a moment, and a machine that is busy in that moment delays
		// them all. So the best of several traces counts, as it does of several probes.
		var paths []*trace.Path
		for range delayTraces {
			path, err := trace.Run(ctx, p.prober, probe.Request{Target: target, Protocol: probe.UDP}, trace.Options{Timeout: time.Second})
			if err != nil {
				return err
			}
			paths = append(paths, path)
		}
		p.checkPath(paths, version)
		if version == 4 {
			p.say("")
		}
	}
	return nil
}

// checkPath checks traces of one flow, which are to show the same hops.
func (p *pathsDemo) checkPath(paths []*trace.Path, version int) {
	// The flow took one of two ways; the file says what each looks like.
	way := slices.Clone(way)
	if hops := paths[0].Hops; len(hops) > 1 && slices.Contains(hops[1].Responders(), p.address("gate", "south", version)) {
		way[2] = "south"
	}
	for i, node := range way[1:] {
		want := hopText(p.address(way[i], node, version), p.labels(node))
		if p.silent(node) {
			want = hopText(netip.Addr{}, "")
		}
		var got []string // what answered, each once
		var rtt time.Duration
		for _, path := range paths {
			if i >= len(path.Hops) {
				continue
			}
			for _, r := range path.Hops[i].Replies {
				if !r.Responder.IsValid() {
					continue
				}
				if text := hopText(r.Responder, labelText(r.MPLS)); !slices.Contains(got, text) {
					got = append(got, text)
				}
				if rtt == 0 || r.RTT < rtt {
					rtt = r.RTT
				}
			}
		}
		found, truth := strings.Join(got, " and "), want
		if got == nil {
			found = hopText(netip.Addr{}, "")
		}
		agrees := found == truth
		if !p.silent(node) {
			delay := p.roundTrip(way[:i+2])
			found += ", " + ms(rtt)
			truth += ", " + ms(delay)
			agrees = agrees && near(rtt, delay)
		}
		p.check(fmt.Sprintf("hop %d, %s", i+1, node), found, truth, agrees)
	}
	for _, path := range paths {
		if n := len(way) - 1; len(path.Hops) != n || path.Stop != trace.StopReached {
			p.check("length", fmt.Sprintf("%d hops, %v", len(path.Hops), path.Stop), fmt.Sprintf("%d hops, %v", n, trace.StopReached), false)
		}
	}
}

func (p *pathsDemo) multipath(ctx context.Context) error {
	p.heading("fathom trace --multipath bob")
	g, err := trace.Multipath(ctx, p.prober, probe.Request{Target: p.lab.Host("bob").Addr(), Protocol: probe.UDP}, trace.MultipathOptions{Timeout: time.Second, Confidence: demoConfidence})
	if err != nil {
		return err
	}
	truth := [][]netip.Addr{
		{p.address("alice", "gate", 4)},
		{p.address("gate", "north", 4), p.address("gate", "south", 4)},
		{p.address("north", "core", 4), p.address("south", "core", 4)},
		{{}},
		{p.address("mute", "edge", 4)},
		{p.lab.Host("bob").Addr()},
	}
	found := g.Hops()[1:] // without alice
	for i := range max(len(found), len(truth)) {
		var got, want []netip.Addr
		if i < len(found) {
			for _, n := range found[i] {
				got = append(got, g.Nodes[n].Addr)
			}
		}
		if i < len(truth) {
			want = truth[i]
		}
		p.check(fmt.Sprintf("hop %d", i+1), addrsText(got), addrsText(want), sameAddrs(got, want))
	}
	p.say("  %d probes in %d flows; confidence %.4f %%", g.Probes, g.Flows, 100*g.Confidence)
	return nil
}

func addrsText(addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return "-"
	}
	var s []string
	for _, a := range addrs {
		s = append(s, hopText(a, ""))
	}
	slices.Sort(s)
	return strings.Join(s, " ")
}

func sameAddrs(a, b []netip.Addr) bool { return addrsText(a) == addrsText(b) }
