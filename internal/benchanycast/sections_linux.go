// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed5728abee/fathom/internal/figures"
	"github.com/seed5728abee/fathom/internal/labnet"
	"github.com/seed5728abee/fathom/lab"
)

// tally is what a number of turns found.
type tally struct {
	rates                                []float64
	latencies                            []time.Duration
	asked, failed, stars, wrong, untimed int
	answered, heard                      int // probes, as the client was told, and as the sites' kernels know
	use                                  usage
	controller, agent                    memory
}

// ask has the client send requests, some at once, and adds what became of them.
func (b *bench) ask(ctx context.Context, f *fleet, t *tally, found truth, atOnce int, args ...string) error {
	text, err := json.Marshal(found)
	if err != nil {
		return err
	}
	if err := f.forget(); err != nil {
		return err
	}
	before, err := f.used()
	if err != nil {
		return err
	}
	heard, err := f.heard()
	if err != nil {
		return err
	}
	o, err := b.on(ctx, f, "ask", append([]string{
		"-command", "volta a " + labnet.Target4.String(), "-truth", string(text), "-at-once", strconv.Itoa(atOnce),
	}, args...)...)
	if err != nil {
		return err
	}
	after, err := f.used()
	if err != nil {
		return err
	}
	now, err := f.heard()
	if err != nil {
		return err
	}
	t.heard += now - heard
	t.answered += o.Requests*len(found)*queries - o.Stars
	use := after.since(before)
	use.cpu["client"] = o.CPU
	if t.use.cpu == nil {
		t.use = usage{cpu: map[string]time.Duration{}}
	}
	for name, d := range use.cpu {
		t.use.cpu[name] += d
	}
	t.rates = append(t.rates, o.rate())
	t.latencies = append(t.latencies, o.Latencies...)
	t.asked += o.Requests + o.Failed
	t.failed += o.Failed
	t.stars += o.Stars
	t.wrong += o.Wrong
	t.untimed += o.Untimed
	t.controller = larger(t.controller, use.rss["controller"])
	t.agent = larger(t.agent, use.agents())
	return nil
}

// missed is how many answers came to a site and not to the client.
func (t *tally) missed() int { return t.heard - t.answered }

// right tells whether every request was answered, and rightly.
func (t *tally) right() bool { return t.failed == 0 && t.missed() == 0 && t.wrong == 0 }

func (t *tally) errors() string {
	s := fmt.Sprintf("%d of %d failed, %d of %d answers missed, %d wrong lines", t.failed, t.asked, t.missed(), t.heard, t.wrong)
	if t.stars > t.missed() {
		s += fmt.Sprintf("; the lab lost %d", t.stars-t.missed())
	}
	return s
}

func (t *tally) shares() string { return t.use.shares(float64(t.asked), "traceroute") }

// requests: traceroutes of 20 hops that all answer, 3 probes each; one at a time, and many at once.
func (b *bench) requests(ctx context.Context) error {
	topology, find := b.path()
	f, err := b.start(ctx, topology)
	if err != nil {
		return err
	}
	defer f.stop()
	found := find(f.lab)
	counts := []int{1, 100, 1000}
	tallies := make([]tally, len(counts))
	// Once, to fill the neighbour tables.
	if err := b.ask(ctx, f, new(tally), found, 1, "-requests", "20"); err != nil {
		return err
	}
	for range b.rounds {
		for i, n := range counts {
			if err := b.ask(ctx, f, &tallies[i], found, n, "-seconds", b.seconds.String()); err != nil {
				return err
			}
		}
	}
	one, all := &tallies[0], &tallies[len(tallies)-1]
	m := figures.Median(one.latencies)
	b.figures.Judge("requests", "one traceroute, median", fmt.Sprintf("%.2f ms (95th percentile %.2f ms)", milliseconds(m), milliseconds(figures.Quantile(one.latencies, 0.95))), "< 5 ms", m < 5*time.Millisecond)
	for i, n := range counts {
		t := &tallies[i]
		name := fmt.Sprintf("%d at once", n)
		rate := fmt.Sprintf("%.0f/s, each %.0f ms", figures.Median(t.rates), milliseconds(figures.Median(t.latencies)))
		if t == all {
			b.figures.Judge("requests", name, rate, "≥ 1500/s", figures.Median(t.rates) >= 1500)
		} else {
			b.figures.Add("requests", name, rate)
		}
		b.figures.Judge("requests", name+": lost requests, and answers shown as stars", t.errors(), "none", t.right())
		b.figures.Add("requests", name+": processor", t.shares())
	}
	b.figures.Judge("requests", "memory at 1000 at once, controller", all.controller.String(), "< 64 MB", all.controller.own < 64<<20)
	b.figures.Judge("requests", "memory at 1000 at once, agent", all.agent.String(), "< 32 MB", all.agent.own < 32<<20)
	return nil
}

// frames: as requests, with agents that send frames.
func (b *bench) frames(ctx context.Context) error {
	b.sendEth = true
	defer func() { b.sendEth = false }()
	topology, find := b.path()
	f, err := b.start(ctx, topology)
	if err != nil {
		return err
	}
	defer f.stop()
	found := find(f.lab)
	// Once, to fill the neighbour tables.
	if err := b.ask(ctx, f, new(tally), found, 1, "-requests", "20"); err != nil {
		return err
	}
	const n = 1000
	var t tally
	for range b.rounds {
		if err := b.ask(ctx, f, &t, found, n, "-seconds", b.seconds.String()); err != nil {
			return err
		}
	}
	name := fmt.Sprintf("%d at once, with --send-eth", n)
	b.figures.Add("frames", name, fmt.Sprintf("%.0f/s, each %.0f ms", figures.Median(t.rates), milliseconds(figures.Median(t.latencies))))
	b.figures.Judge("frames", name+": lost requests, and answers shown as stars", t.errors(), "none", t.right())
	b.figures.Add("frames", name+": processor", t.shares())
	return nil
}

// queue: ten thousand requests in the same moment.
func (b *bench) queue(ctx context.Context) error {
	topology, find := b.path()
	f, err := b.start(ctx, topology)
	if err != nil {
		return err
	}
	defer f.stop()
	const n = 10_000
	var t tally
	if err := b.ask(ctx, f, &t, find(f.lab), n, "-requests", strconv.Itoa(n)); err != nil {
		return err
	}
	name := fmt.Sprintf("%d at once", n)
	b.figures.Judge("queue", name, fmt.Sprintf("%s, %.0f/s", t.errors(), figures.Median(t.rates)), "all end correctly", t.right())
	b.figures.Add("queue", name+": memory", fmt.Sprintf("controller %v; agent %v", t.controller, t.agent))
	return nil
}

// world is a network of hosts that answer echo requests, beside three sites. The answers come home at a.
//
//	a --+
//	b --+-- world: every address of 172.16.0.0/12
//	c --+
func world() *lab.Topology {
	t := &lab.Topology{Name: "world", Hosts: map[string]lab.HostConfig{"controller": {}}, Routers: map[string]lab.RouterConfig{"hub": {}}}
	t.Hosts["world"] = lab.HostConfig{Addresses: []netip.Prefix{worldNet}}
	for i, site := range sites {
		t.Hosts[site] = lab.HostConfig{Addresses: []netip.Prefix{netip.PrefixFrom(labnet.Anycast4, 32)}}
		t.Wires = append(t.Wires, lab.WireConfig{Ends: [2]string{site, "world"}, Costs: [2]int{1, 1 + i}})
	}
	for _, site := range sites {
		t.Wires = append(t.Wires, lab.WireConfig{Ends: [2]string{site, "hub"}})
	}
	t.Wires = append(t.Wires, lab.WireConfig{Ends: [2]string{"hub", "controller"}})
	return t
}

var worldNet = netip.MustParsePrefix("172.16.0.0/12")

// burstSize is how many replies must wait for an agent without being lost.
const burstSize = 100_000

// sweepRate is what the catchments ask for, in probes per second.
const sweepRate = 100_000

func (b *bench) sweep(ctx context.Context, f *fleet, sender string, targets int, timeout time.Duration) (outcome, error) {
	return b.on(ctx, f, "sweep", "-sender", sender, "-first", worldNet.Addr().Next().String(), "-targets", strconv.Itoa(targets),
		"-rate", strconv.Itoa(sweepRate), "-timeout", timeout.String())
}

// burst: b sends 100,000 probes whose answers come home at a, which stands still from the first of them on; then a goes on, and
// finds all of them.
func (b *bench) burst(ctx context.Context) error {
	f, err := b.start(ctx, world())
	if err != nil {
		return err
	}
	defer f.stop()
	const n, pause = burstSize, 5 * time.Second
	var group errgroup.Group
	var o outcome
	group.Go(func() (err error) {
		o, err = b.sweep(ctx, f, "b", n, 2*pause)
		return err
	})
	// Before, a would not have opened the session, and would be missed.
	err = f.awaitProbes(ctx, "world")
	if err == nil {
		home := f.member("a").cmd.Process
		err = home.Signal(syscall.SIGSTOP)
		going := time.AfterFunc(pause, func() { _ = home.Signal(syscall.SIGCONT) })
		defer going.Stop()
	}
	if err := errors.Join(err, group.Wait()); err != nil {
		return err
	}
	s := o.Summary
	b.figures.Judge("burst", fmt.Sprintf("%d replies, nearly all in the queue of a site that stood still: found", n),
		fmt.Sprintf("%d (%d unanswered)", s.Sites["a"], o.Silent), "all", s.Sites["a"] == n && s.Sent == n)
	return nil
}

// awaitProbes waits until a host has got echo requests.
func (f *fleet) awaitProbes(ctx context.Context, host string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		n, err := f.icmp(host, "InEchos")
		if err != nil || n > 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no probe came to %s: %w", host, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// alone: one agent sends as fast as it can, to hosts that answer at once. What it forwards is only counted.
func (b *bench) alone(ctx context.Context) error {
	l, err := lab.Start(ctx, world(), lab.Options{})
	if err != nil {
		return err
	}
	f := &fleet{lab: l, address: net.JoinHostPort(l.Host("controller").Addr().String(), strconv.Itoa(controllerPort))}
	defer f.stop()
	var rates, cores []float64
	answered, twice := 0, 0
	for range b.rounds {
		// It tries again until the sink is there.
		if err := b.run1(ctx, f, "a", nil, b.program, b.agentArgs(f, "a")...); err != nil {
			return err
		}
		o, err := b.on(ctx, f, "sink", "-first", worldNet.Addr().Next().String(), "-targets", strconv.Itoa(burstSize*5))
		if err != nil {
			return err
		}
		used, err := f.used()
		if err != nil {
			return err
		}
		rates = append(rates, o.rate())
		cores = append(cores, used.cpu["a"].Seconds()*1e6/float64(o.Requests))
		answered += o.Requests
		twice += o.Wrong
		f.stopMembers()
	}
	m := figures.Median(rates)
	b.figures.Judge("agent", "probes sent, and replies forwarded, by one agent", fmt.Sprintf("%.0f/s, %.1f µs of processor for both, the kernel's answering included", m, figures.Median(cores)),
		fmt.Sprintf("≥ %d/s", sweepRate), m >= sweepRate)
	b.figures.Judge("agent", "replies forwarded once each", fmt.Sprintf("%d of %d, %d twice", answered, b.rounds*burstSize*5, twice), "all", answered == b.rounds*burstSize*5 && twice == 0)
	return nil
}

// catchment: a million targets from one site, at the rate that is asked for.
func (b *bench) catchment(ctx context.Context) error {
	f, err := b.start(ctx, world())
	if err != nil {
		return err
	}
	defer f.stop()
	// Once, so that the sites' and the controller's memory has its size.
	if _, err := b.sweep(ctx, f, "a", 10_000, 2*time.Second); err != nil {
		return err
	}
	if err := f.forget(); err != nil {
		return err
	}
	before, err := f.used()
	if err != nil {
		return err
	}
	const timeout = 2 * time.Second
	o, err := b.sweep(ctx, f, "a", b.targets, timeout)
	if err != nil {
		return err
	}
	after, err := f.used()
	if err != nil {
		return err
	}
	use := after.since(before)
	use.cpu["client"] = o.CPU
	s := o.Summary
	name := fmt.Sprintf("%d targets: ", b.targets)
	rate := float64(s.Answered) / s.Took.Seconds()
	b.figures.Judge("catchment", name+"probes sent, and replies forwarded by the agent", fmt.Sprintf("%.0f/s", rate), fmt.Sprintf("≥ %d/s", sweepRate), rate >= 0.98*sweepRate)
	b.figures.Judge("catchment", name+"accounted for", fmt.Sprintf("%d sent, %d answered at a, %d results, %d unanswered, %d late",
		s.Sent, s.Sites["a"], o.Results, o.Silent, s.Late), "all answered", int(s.Sent) == b.targets && s.Sites["a"] == b.targets && o.Results == b.targets)
	b.figures.Add("catchment", name+"processor", use.shares(float64(s.Answered), "reply"))
	b.figures.Add("catchment", name+"memory", fmt.Sprintf("controller %v; agent %v", use.rss["controller"], use.agents()))
	return nil
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1e3 }
