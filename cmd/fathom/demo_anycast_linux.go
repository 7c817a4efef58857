// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/agent"
	"github.com/seed5728abee/fathom/anycast/client"
	"github.com/seed5728abee/fathom/anycast/controller"
	"github.com/seed5728abee/fathom/anycast/enroll"
	"github.com/seed5728abee/fathom/lab"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// anycastFile is examples/anycast.toml; a test holds them together.
//
//go:embed demo/anycast.toml
var anycastFile []byte

const (
	anycastPort = 50051
	// mapHosts is how many addresses of each customer are in the map: enough for the flows of those who use
	// two sites to use both.
	mapHosts = 16
	// flipFlows is how many flows look for targets that reach several sites. All go to one of two with a
	// probability of 1 in 2^23.
	flipFlows = 24
	// watchedMix is how many addresses of each customer with two sites are watched.
	watchedMix = 6
	// watchInterval is how often each is probed, spread how long news takes from one router to the next.
	watchInterval = 50 * time.Millisecond
	spread        = 300 * time.Millisecond
	// watchSlack is how far the time of a move may be off: an interval, the way there and back, and a busy machine.
	watchSlack = 250 * time.Millisecond
)

var (
	demoSites   = []string{"ams", "nyc", "sin"}
	demoCores   = []string{"core-eu", "core-us", "core-ap"} // where each is connected
	demoAnycast = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
)

// anycastDemo is the chapter's lab with a fleet in it.
type anycastDemo struct {
	*demo
	lab    *lab.Lab
	client *client.Client
	// customers are the hosts behind the providers, in the order of their addresses.
	customers []string
}

func anycastChapter(ctx context.Context, d *demo) (err error) {
	topology, err := lab.Parse(anycastFile)
	if err != nil {
		return err
	}
	l, err := lab.Start(ctx, topology, lab.Options{})
	if err != nil {
		return err
	}
	defer l.Close()
	dir, err := os.MkdirTemp("", "fathom-demo")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // what is left is the system's to clear
	p := &anycastDemo{demo: d, lab: l}
	for name, h := range topology.Hosts {
		// A site has one shared address, a customer networks.
		if len(h.Addresses) > 0 && !h.Addresses[0].IsSingleIP() {
			p.customers = append(p.customers, name)
		}
	}
	slices.SortFunc(p.customers, func(a, b string) int { return l.Host(a).Addr().Compare(l.Host(b).Addr()) })

	fleetCtx, stop := context.WithCancel(ctx)
	fleet, fleetCtx := errgroup.WithContext(fleetCtx)
	defer func() {
		if p.client != nil {
			p.client.Close()
		}
		stop()
		err = errors.Join(err, fleet.Wait())
	}()
	if err := p.startFleet(fleetCtx, fleet, dir); err != nil {
		return err
	}
	p.picture(anycastFile, "# Each customer")
	for i, part := range []func(context.Context) error{p.sites, p.trace, p.catchments, p.flipping, p.watch} {
		if i > 0 {
			p.say("")
		}
		if err := part(ctx); err != nil {
			return err
		}
	}
	p.say("")
	return nil
}

// dialFrom gives a function that connects from a host.
func dialFrom(h *lab.Host) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = h.Do(func() (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// join makes a host a member of the fleet, as `fathom anycast enroll` and `join` do.
func (p *anycastDemo) join(ctx context.Context, authority *enroll.Authority, host *lab.Host, who enroll.Identity, controller, dir string) (*enroll.Credentials, error) {
	token, err := authority.Token(who, 0, controller)
	if err != nil {
		return nil, err
	}
	return enroll.Join(ctx, token, filepath.Join(dir, who.Name), enroll.JoinOptions{Exchange: client.Exchange, Dial: dialFrom(host)})
}

// startFleet starts a controller and an agent at each site, which all know each other by their certificates, and connects.
func (p *anycastDemo) startFleet(ctx context.Context, fleet *errgroup.Group, dir string) error {
	log := slog.New(slog.DiscardHandler) // what it would say is what the chapter checks
	authority, err := enroll.Open(filepath.Join(dir, "authority"), enroll.AuthorityOptions{})
	if err != nil {
		return err
	}
	c, err := controller.New(controller.Options{Start: 10000, End: 20000, Block: 100, Name: "control", Authority: authority, Log: log})
	if err != nil {
		return err
	}
	control := p.lab.Host("control")
	address := netip.AddrPortFrom(control.Addr(), anycastPort).String()
	var listener net.Listener
	if err := control.Do(func() (err error) {
		listener, err = new(net.ListenConfig).Listen(ctx, "tcp", address)
		return err
	}); err != nil {
		return err
	}
	fleet.Go(func() error { return c.Serve(ctx, listener) })
	for _, site := range demoSites {
		host := p.lab.Host(site)
		creds, err := p.join(ctx, authority, host, enroll.Identity{Role: enroll.Agent, Name: site}, address, dir)
		if err != nil {
			return err
		}
		var a *agent.Agent
		if err := host.Do(func() (err error) {
			a, err = agent.New(agent.Options{
				ID: site, Links: []agent.Link{{Address: address, TLS: creds.ClientTLS()}}, Anycast: demoAnycast, Log: log,
				Dial: func(ctx context.Context, address string) (net.Conn, error) {
					return dialFrom(host)(ctx, "tcp", address)
				},
			})
			return err
		}); err != nil {
			return err
		}
		fleet.Go(func() error { return a.Run(ctx) })
	}
	creds, err := p.join(ctx, authority, control, enroll.Identity{Role: enroll.Operator, Name: "demo"}, address, dir)
	if err != nil {
		return err
	}
	p.client, err = client.Dial(ctx, address, client.Options{
		TLS: creds.ClientTLS(),
		Dialer: func(ctx context.Context, address string) (net.Conn, error) {
			return dialFrom(control)(ctx, "tcp", address)
		},
	})
	return err
}

// sites waits until all are there.
func (p *anycastDemo) sites(ctx context.Context) error {
	for {
		sites, err := p.client.Sites(ctx)
		if err != nil {
			return err
		}
		if len(sites) < len(demoSites) {
			select {
			case <-time.After(20 * time.Millisecond):
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		p.heading("fathom anycast sites")
		for i, s := range sites {
			var own netip.Addr
			if len(s.Unicast) > 0 {
				own = s.Unicast[0]
			}
			found := fmt.Sprintf("%s, and %v", addrsText(s.Anycast), own)
			truth := fmt.Sprintf("%s, and %v", addrsText(demoAnycast), p.lab.Host(demoSites[i]).AddrTowards(demoCores[i], 4))
			p.check(s.Name, found, truth, s.Name == demoSites[i] && found == truth)
		}
		return nil
	}
}

// measure runs a measurement and gives what it found. look, if there is one, sees results as they come.
func (p *anycastDemo) measure(ctx context.Context, def anycast.Definition, targets []netip.Addr, look func(anycast.Result)) ([]anycast.Result, error) {
	def.AllowPrivate = true // the lab's addresses are those for examples
	s, err := p.client.Start(ctx, def, client.Targets{Addrs: targets}, true)
	if err != nil {
		return nil, err
	}
	var found []anycast.Result
	for e, err := range s.All() {
		if err != nil {
			return nil, err
		}
		for _, r := range e.Results {
			if look != nil {
				look(r)
			}
		}
		found = append(found, e.Results...)
	}
	if m := s.Measurement(); m.State != anycast.Done {
		return nil, fmt.Errorf("%s: %s: %s", def.Program, m.State, m.Error)
	}
	return found, nil
}

// truth is where packets from a node to the shared address end, in words.
func (p *anycastDemo) truth(node string, version int) (string, error) {
	sites, err := p.lab.Catchment(node, demoAnycast[map[int]int{4: 0, 6: 1}[version]])
	return strings.Join(sites, " or "), err
}

// tracedWay is the way of a probe from nyc to la1, with the delays from there to each hop, and from the hop to the site that hears it.
var tracedWay = []struct {
	before, node string
	delay        time.Duration
}{
	{"nyc", "core-us", 0},
	{"core-us", "isp-la", (6 + 9) * time.Millisecond}, // and home by core-eu
	{"isp-la", "la1", (6 + 9) * time.Millisecond},
}

// trace sends from one site and hears at two.
func (p *anycastDemo) trace(ctx context.Context) error {
	p.heading("fathom anycast trace nyc la1")
	var found []anycast.Result
	for range delayTraces { // the best of several, as in the first chapter
		f, err := p.measure(ctx, anycast.Definition{
			Program: anycast.KindTrace, Protocol: stateless.UDP, Sites: []string{"nyc"}, Timeout: time.Second, Trace: &anycast.TraceOptions{},
		}, []netip.Addr{p.lab.Host("la1").Addr()}, nil)
		if err != nil {
			return err
		}
		found = append(found, f...)
	}
	best := make([]*anycast.Reply, len(tracedWay))
	hops := 0
	for _, r := range found {
		t, ok := r.(*anycast.TraceResult)
		if !ok {
			continue
		}
		for i := range t.Replies {
			reply := &t.Replies[i]
			hops = max(hops, int(reply.TTL))
			at := int(reply.TTL) - 1
			if at < len(best) && reply.Responder.IsValid() && (best[at] == nil || reply.RTT > 0 && reply.RTT < best[at].RTT) {
				best[at] = reply
			}
		}
	}
	for i, w := range tracedWay {
		site, err := p.truth(w.node, 4)
		if err != nil {
			return err
		}
		addr := p.lab.Host(w.node).AddrTowards(w.before, 4)
		if i == len(tracedWay)-1 {
			addr = p.lab.Host(w.node).Addr()
		}
		what := fmt.Sprintf("hop %d, %s", i+1, w.node)
		want := fmt.Sprintf("%v heard at %s, %s", addr, site, ms(w.delay))
		r := best[i]
		if r == nil {
			p.check(what, "*", want, false)
			continue
		}
		got := fmt.Sprintf("%v heard at %s, %s", r.Responder, r.Receiver, ms(r.RTT))
		near := r.RTT >= w.delay-demoEarly-r.ClockError && r.RTT <= w.delay+demoLate+r.ClockError
		p.check(what, got, want, r.Responder == addr && r.Receiver == site && near)
	}
	p.check("length", count(hops, "hop"), count(len(tracedWay), "hop"), hops == len(tracedWay))
	return nil
}

// hosts gives so many addresses of a customer.
func (p *anycastDemo) hosts(customer string, version, n int) (addrs []netip.Addr) {
	a := p.lab.Host(customer).Addr()
	if version == 6 {
		a = p.lab.Host(customer).Addr6()
	}
	for range n {
		addrs = append(addrs, a)
		a = a.Next()
	}
	return addrs
}

// catchments maps which site hears which customer, and compares that with the routes in the lab.
func (p *anycastDemo) catchments(ctx context.Context) error {
	owner := map[netip.Prefix]string{}
	var targets []netip.Addr
	for _, version := range []int{4, 6} {
		for _, c := range p.customers {
			hosts := p.hosts(c, version, mapHosts)
			owner[anycast.Network(hosts[0])] = c
			targets = append(targets, hosts...)
		}
	}
	found, err := p.measure(ctx, anycast.Definition{
		Program: anycast.KindCatchment, Protocol: stateless.ICMP, Timeout: time.Second, Pace: anycast.Pace{Rate: 5000, PerNetwork: -1, SiteGap: 100 * time.Millisecond},
	}, targets, nil)
	if err != nil {
		return err
	}
	heard := map[int]map[string]map[string]bool{4: {}, 6: {}} // by IP version, customer, site
	var sum *anycast.Summary
	for _, r := range found {
		switch r := r.(type) {
		case *anycast.Catch:
			if r.Receiver == "" {
				continue
			}
			version := heard[4]
			if r.Target.Is6() {
				version = heard[6]
			}
			c := owner[anycast.Network(r.Target)]
			if version[c] == nil {
				version[c] = map[string]bool{}
			}
			version[c][r.Receiver] = true
		case *anycast.Summary:
			sum = r
		}
	}
	for _, version := range []int{4, 6} {
		if version == 4 {
			p.heading("fathom anycast catchment")
		} else {
			p.say("  over IPv6")
		}
		// Both maps have sites as keys, and the customers there in their order.
		got, want := map[string][]string{}, map[string][]string{}
		for _, c := range p.customers {
			if at := strings.Join(slices.Sorted(maps.Keys(heard[version][c])), " or "); at != "" {
				got[at] = append(got[at], c)
			}
			at, err := p.truth(c, version)
			if err != nil {
				return err
			}
			want[at] = append(want[at], c)
		}
		keys := slices.Sorted(maps.Keys(want))
		for at := range got {
			if !slices.Contains(keys, at) {
				keys = append(keys, at)
			}
		}
		for _, at := range keys {
			p.check("heard at "+at, orDash(strings.Join(got[at], " ")), orDash(strings.Join(want[at], " ")), slices.Equal(got[at], want[at]))
		}
	}
	sent := uint64(len(targets) * len(demoSites))
	p.check("probes answered", fmt.Sprintf("%d of %d, %d duplicates", sum.Answered, sum.Sent, sum.Duplicates),
		fmt.Sprintf("%d of %d, 0 duplicates", sent, sent), sum.Answered == sent && sum.Sent == sent && sum.Duplicates == 0)
	return nil
}

// flipWay is the way of a probe from nyc to mix1. Answers of mix1, and of isp-mix, go to nyc or to sin.
var flipWay = []string{"nyc", "core-us", "isp-mix", "mix1"}

// flipping looks for customers whose site depends on the flow. Then it does the same with the routers on the way to
// one of them: the first that flips is where the paths of the answers part.
func (p *anycastDemo) flipping(ctx context.Context) error {
	p.heading("fathom anycast flipping")
	var targets []flipTarget
	var want []string
	for _, c := range p.customers {
		targets = append(targets, flipTarget{c, p.lab.Host(c).Addr()})
		if sites, err := p.truth(c, 4); err != nil {
			return err
		} else if strings.Contains(sites, " or ") {
			want = append(want, c)
		}
	}
	found, err := p.flips(ctx, targets)
	if err != nil {
		return err
	}
	var flipping []string
	for _, t := range targets {
		if found[t.addr] != nil {
			flipping = append(flipping, t.node)
		}
	}
	p.check("customers that flip", orDash(strings.Join(flipping, " ")), strings.Join(want, " "), slices.Equal(flipping, want))
	for _, t := range targets {
		f := found[t.addr]
		if f == nil {
			continue
		}
		truth, err := p.truth(t.node, 4)
		if err != nil {
			return err
		}
		var seen []string
		for _, site := range slices.Sorted(maps.Keys(f.Seen)) {
			seen = append(seen, fmt.Sprintf("%d flows to %s", f.Seen[site], site))
		}
		agrees := strings.Join(slices.Sorted(maps.Keys(f.Seen)), " or ") == truth && f.ByFlow && !f.ByProtocol && !f.ByTime
		p.check(t.node, strings.Join(seen, ", "), truth+", by flow", agrees)
	}

	last := len(flipWay) - 1
	path, err := p.measure(ctx, anycast.Definition{
		Program: anycast.KindTrace, Protocol: stateless.UDP, Sites: flipWay[:1], Timeout: time.Second, Trace: &anycast.TraceOptions{},
	}, []netip.Addr{p.lab.Host(flipWay[last]).Addr()}, nil)
	if err != nil {
		return err
	}
	var hops []flipTarget
	for _, r := range path {
		if t, ok := r.(*anycast.TraceResult); ok {
			for _, replies := range byHop(t.Replies) {
				hops = append(hops, flipTarget{fmt.Sprintf("hop %d", replies[0].TTL), replies[0].Responder})
			}
		}
	}
	if found, err = p.flips(ctx, hops); err != nil {
		return err
	}
	parting, truth := "-", "-"
	if i := slices.IndexFunc(hops, func(h flipTarget) bool { return found[h.addr] != nil }); i >= 0 {
		parting = fmt.Sprintf("at %s, %v", hops[i].node, hops[i].addr)
	}
	for i, node := range flipWay[1:] {
		if sites, err := p.truth(node, 4); err != nil {
			return err
		} else if strings.Contains(sites, " or ") {
			truth = fmt.Sprintf("at hop %d, %v", i+1, p.lab.Host(node).AddrTowards(flipWay[i], 4))
			break
		}
	}
	p.check("paths of "+flipWay[last]+"'s answers part", parting, truth, parting == truth)
	return nil
}

type flipTarget struct {
	node string
	addr netip.Addr
}

// flips gives those that flip.
func (p *anycastDemo) flips(ctx context.Context, targets []flipTarget) (map[netip.Addr]*anycast.FlipResult, error) {
	addrs := make([]netip.Addr, len(targets))
	for i, t := range targets {
		addrs[i] = t.addr
	}
	found, err := p.measure(ctx, anycast.Definition{
		Program: anycast.KindFlipping, Protocol: stateless.ICMP, Timeout: 500 * time.Millisecond, Pace: anycast.Pace{Rate: 5000, PerNetwork: -1},
		Flipping: &anycast.FlippingOptions{Flows: flipFlows, Rounds: 1, NoPaths: true},
	}, addrs, nil)
	if err != nil {
		return nil, err
	}
	flips := map[netip.Addr]*anycast.FlipResult{}
	for _, r := range found {
		if f, ok := r.(*anycast.FlipResult); ok {
			flips[f.Target] = f
		}
	}
	return flips, nil
}

// catchmentChange is a state of the lab's routes: where a customer's packets end, from a time on.
type catchmentChange struct {
	at    time.Time
	sites []string
}

// watch looks on while a site is withdrawn, and the news spreads from router to router.
func (p *anycastDemo) watch(ctx context.Context) error {
	p.say("fathom anycast watch, while nyc is withdrawn: each router hears of it %v after the one before", spread)
	p.say("")
	owner := map[netip.Addr]string{}
	var targets []netip.Addr
	for _, c := range p.customers {
		n := 1
		if sites, err := p.lab.Catchment(c, demoAnycast[0]); err != nil {
			return err
		} else if len(sites) > 1 {
			n = watchedMix
		}
		for _, a := range p.hosts(c, 4, n) {
			owner[a] = c
			targets = append(targets, a)
		}
	}
	truths := make(map[string][]catchmentChange, len(p.customers))
	withdrawn, withdrawal := make(chan struct{}), time.Time{}
	routes, routesCtx := errgroup.WithContext(ctx)
	stop := make(chan struct{})
	routes.Go(func() error { return p.recordCatchments(routesCtx, truths, stop) })

	moves := map[netip.Addr][]*anycast.Move{}
	var first, last *anycast.WatchResult
	var sum *anycast.Summary
	_, err := p.measure(ctx, anycast.Definition{
		Program: anycast.KindWatch, Protocol: stateless.ICMP, Sites: []string{"ams"}, Timeout: 400 * time.Millisecond, Pace: anycast.Pace{PerNetwork: -1},
		Watch: &anycast.WatchOptions{Interval: watchInterval, Duration: 3 * time.Second, Settle: 600 * time.Millisecond},
	}, targets, func(r anycast.Result) {
		switch r := r.(type) {
		case *anycast.WatchResult:
			if first == nil {
				first = r
				p.say("   before  %s", sharesText(r))
				withdrawal = time.Now()
				routes.Go(func() error {
					defer close(withdrawn)
					return p.lab.Withdraw(routesCtx, "nyc", lab.AnnounceOptions{Prefixes: []netip.Prefix{netip.PrefixFrom(demoAnycast[0], 32)}, Stagger: spread})
				})
			}
			last = r
		case *anycast.Move:
			moves[r.Target] = append(moves[r.Target], r)
			p.say("%7.2f s  %-16v%-6sfrom %s to %s", r.Time.Sub(withdrawal).Seconds(), r.Target, owner[r.Target], siteOr(r.From), siteOr(r.To))
		case *anycast.Summary:
			sum = r
		}
	})
	if err != nil {
		close(stop)
		return errors.Join(err, routes.Wait())
	}
	<-withdrawn
	close(stop)
	if err := routes.Wait(); err != nil {
		return err
	}
	p.say("    after  %s", sharesText(last))
	p.say("")
	p.heading("what moved, how, and when")
	return p.checkMoves(owner, targets, truths, moves, withdrawal, sum)
}

// recordCatchments notes how the routes change, until stop is closed.
func (p *anycastDemo) recordCatchments(ctx context.Context, truths map[string][]catchmentChange, stop <-chan struct{}) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, c := range p.customers {
			sites, err := p.lab.Catchment(c, demoAnycast[0])
			if err != nil {
				return err
			}
			if all := truths[c]; len(all) == 0 || !slices.Equal(all[len(all)-1].sites, sites) {
				truths[c] = append(all, catchmentChange{time.Now(), sites})
			}
		}
		select {
		case <-tick.C:
		case <-stop:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// move is a move as it is compared: to a site, at a time.
type move struct {
	to string
	at time.Time
}

// expected gives the moves of one flow of a customer that began at a site: it stays while that
// hears it, else goes to what is new among the sites that share its customer.
func expected(changes []catchmentChange, site string) (moves []move) {
	for i := 1; i < len(changes); i++ {
		before, now := changes[i-1].sites, changes[i].sites
		if slices.Contains(now, site) || len(now) == 0 {
			continue
		}
		site = cmp.Or(firstNotIn(now, before), now[0])
		moves = append(moves, move{site, changes[i].at})
	}
	return moves
}

func firstNotIn(all, other []string) string {
	for _, s := range all {
		if !slices.Contains(other, s) {
			return s
		}
	}
	return ""
}

// checkMoves compares each target's moves with those of the routes. Targets whose moves are alike share a line.
func (p *anycastDemo) checkMoves(owner map[netip.Addr]string, targets []netip.Addr, truths map[string][]catchmentChange, moves map[netip.Addr][]*anycast.Move, withdrawal time.Time, sum *anycast.Summary) error {
	type line struct {
		who          []string
		found, truth []move
		agrees       bool
	}
	lines := map[string]*line{} // by the way that the targets took
	stayed, shouldStay := 0, 0
	var firstTruth, lastTruth time.Time
	for _, target := range targets {
		c := owner[target]
		var begin string
		var found []move
		for i, m := range moves[target] {
			if i == 0 {
				begin = m.From
			}
			found = append(found, move{m.To, m.Time})
		}
		if begin == "" { // it did not move, so anything that it may have been at will do that need not move
			stayed++
			if sites := truths[c]; len(sites) == 1 || slices.ContainsFunc(sites[0].sites, func(s string) bool { return len(expected(sites, s)) == 0 }) {
				shouldStay++
			}
			continue
		}
		truth := expected(truths[c], begin)
		way := []string{begin}
		for _, m := range found {
			way = append(way, m.to)
		}
		key := strings.Join(way, " > ")
		agrees := len(found) == len(truth)
		for i := range min(len(found), len(truth)) {
			late := found[i].at.Sub(truth[i].at)
			agrees = agrees && found[i].to == truth[i].to && late > -watchInterval && late < watchSlack
		}
		for _, m := range truth {
			if firstTruth.IsZero() || m.at.Before(firstTruth) {
				firstTruth = m.at
			}
			if m.at.After(lastTruth) {
				lastTruth = m.at
			}
		}
		l := lines[key]
		if l == nil {
			l = &line{found: found, truth: truth, agrees: true}
			lines[key] = l
		}
		l.agrees = l.agrees && agrees
		if !slices.Contains(l.who, c) {
			l.who = append(l.who, c)
		}
	}
	text := func(begin string, all []move) string {
		var s strings.Builder
		s.WriteString(begin)
		for _, m := range all {
			fmt.Fprintf(&s, ", %s at %.2f s", m.to, m.at.Sub(withdrawal).Seconds())
		}
		return s.String()
	}
	for _, key := range slices.Sorted(maps.Keys(lines)) {
		l := lines[key]
		begin, _, _ := strings.Cut(key, " > ")
		p.check(strings.Join(l.who, " "), text(begin, l.found), text(begin, l.truth), l.agrees)
	}
	p.check("targets that stayed", fmt.Sprint(stayed), fmt.Sprint(shouldStay), stayed == shouldStay)
	truth := lastTruth.Sub(firstTruth)
	p.check("first move to last", fmt.Sprintf("%.2f s", sum.Converged.Seconds()), fmt.Sprintf("%.2f s", truth.Seconds()),
		!lastTruth.IsZero() && (sum.Converged-truth).Abs() < watchSlack)
	p.check("answers lost meanwhile", fmt.Sprint(sum.Sent-sum.Answered), "0", sum.Sent == sum.Answered)
	return nil
}
