// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/fleettest"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
	"github.com/seed5728abee/fathom/trace"
)

// printer is a sink that prints.
type printer struct{ print func(anycast.Result) }

func (p printer) Results(all []anycast.Result) error {
	for _, r := range all {
		p.print(r)
	}
	return nil
}

func (printer) Progress(anycast.Progress) {}

// fleet is three sites, and 4 ms to everywhere.
func fleet() *fleettest.Fleet {
	f := fleettest.New(1, "fra", "nyc", "syd")
	f.Internet.Distance = func(string, netip.Addr) time.Duration { return 4 * time.Millisecond }
	return f
}

func addrs(list ...string) []anycast.Target {
	var all []anycast.Target
	for _, s := range list {
		all = append(all, anycast.Target{Addr: netip.MustParseAddr(s)})
	}
	return all
}

// Which site hears each of some networks?
func ExampleRun() {
	f := fleet()
	defer f.Close()
	definition := anycast.Definition{Program: anycast.KindCatchment, Sites: []string{"fra"}}
	table := &anycast.Table{}
	sink := printer{func(r anycast.Result) {
		if c, ok := r.(*anycast.Catch); ok {
			table.Add(c)
		}
	}}
	if err := anycast.Run(context.Background(), f, definition, addrs("9.9.9.9", "8.8.8.8", "1.1.1.1"), sink); err != nil {
		fmt.Println(err)
	}
	for row := range table.Rows() {
		fmt.Println(row.Network, row.Site)
	}
	// Output:
	// 1.1.1.0/24 fra
	// 8.8.8.0/24 nyc
	// 9.9.9.0/24 nyc
}

// A path from one site whose answers come home at others.
func ExampleTraceroute() {
	f := fleet()
	defer f.Close()
	f.Internet.Path = func(fleettest.Probe) []fleettest.Hop { return fleettest.Chain(3, false, time.Millisecond) }
	f.Internet.Catcher = func(p fleettest.Probe, _ netip.Addr, sites []string) string { return sites[int(p.TTL)/2%3] }

	t, err := anycast.NewTraceroute(anycast.TracerouteConf{Fleet: f, Site: "fra", Target: netip.MustParseAddr("203.0.113.10"), Queries: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	r, err := t.Run(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	for i, hop := range r.Hops {
		fmt.Println(i+1, hop[0].Responder, "heard at", hop[0].Receiver, "after", hop[0].RTT)
	}
	// Output:
	// 1 10.0.0.1 heard at fra after 2ms
	// 2 10.0.0.2 heard at nyc after 6ms
	// 3 10.0.0.3 heard at nyc after 7ms
	// 4 203.0.113.10 heard at syd after 7ms
}

// Every algorithm of package trace works over a fleet.
func ExampleVia() {
	f := fleet()
	defer f.Close()
	f.Internet.Path = func(fleettest.Probe) []fleettest.Hop { return fleettest.Chain(2, false, time.Millisecond) }

	via, err := anycast.NewVia(context.Background(), anycast.ViaConf{Fleet: f, Site: "fra", Probes: stateless.Config{Kind: stateless.ICMP}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer via.Close()
	path, err := trace.Run(context.Background(), via, via.Request(netip.MustParseAddr("203.0.113.10")), trace.Options{Queries: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, hop := range path.Hops {
		fmt.Println(hop.TTL, hop.Replies[0].Responder)
	}
	fmt.Println(path.Stop)
	// Output:
	// 1 10.0.0.1
	// 2 10.0.0.2
	// 3 203.0.113.10
	// reached
}

// How far is a network from the site that hears it, and from the best one?
func ExampleLatencyResult() {
	f := fleet()
	defer f.Close()
	f.Internet.Catcher = func(fleettest.Probe, netip.Addr, []string) string { return "fra" }
	f.Internet.Distance = func(site string, _ netip.Addr) time.Duration {
		return map[string]time.Duration{"fra": 20, "nyc": 5, "syd": 50}[site] * time.Millisecond
	}
	definition := anycast.Definition{Program: anycast.KindLatency, Pace: anycast.Pace{SiteGap: -1, PerNetwork: -1}}
	sink := printer{func(r anycast.Result) {
		if l, ok := r.(*anycast.LatencyResult); ok {
			fmt.Printf("%v reaches %s in %v, best is %s, %v less\n", l.Target, l.Catcher, l.RTT, l.Best, l.Inflation)
		}
	}}
	if err := anycast.Run(context.Background(), f, definition, addrs("9.9.9.9"), sink); err != nil {
		fmt.Println(err)
	}
	// Output: 9.9.9.9 reaches fra in 40ms, best is nyc, 30ms less
}

// A target that reaches two sites, by flow.
func ExampleFlipResult() {
	f := fleet()
	defer f.Close()
	f.Internet.Catcher = func(p fleettest.Probe, _ netip.Addr, sites []string) string { return sites[p.Port%2] }
	definition := anycast.Definition{
		Program: anycast.KindFlipping, Sites: []string{"fra"}, Pace: anycast.Pace{PerNetwork: -1},
		Flipping: &anycast.FlippingOptions{Interval: time.Millisecond, NoPaths: true},
	}
	sink := printer{func(r anycast.Result) {
		if flip, ok := r.(*anycast.FlipResult); ok {
			fmt.Println(flip.Target, flip.Seen, "by flow:", flip.ByFlow, "by time:", flip.ByTime)
		}
	}}
	if err := anycast.Run(context.Background(), f, definition, addrs("9.9.9.9"), sink); err != nil {
		fmt.Println(err)
	}
	// Output: 9.9.9.9 map[fra:8 nyc:8] by flow: true by time: false
}

// Where do the targets of a site go that is withdrawn?
func ExampleWatchResult() {
	f := fleet()
	defer f.Close()
	definition := anycast.Definition{
		Program: anycast.KindWatch, Sites: []string{"fra"}, Timeout: 100 * time.Millisecond,
		Watch: &anycast.WatchOptions{Interval: 20 * time.Millisecond, Duration: 500 * time.Millisecond, Settle: 100 * time.Millisecond},
	}
	sink := printer{func(r anycast.Result) {
		if m, ok := r.(*anycast.Move); ok {
			fmt.Println(m.Target, "moved from", m.From, "to", m.To)
		}
	}}
	timer := time.AfterFunc(200*time.Millisecond, func() { f.Withdraw("nyc") })
	defer timer.Stop()
	if err := anycast.Run(context.Background(), f, definition, addrs("8.8.8.8", "1.1.1.1"), sink); err != nil {
		fmt.Println(err)
	}
	// Output: 8.8.8.8 moved from nyc to syd
}

// What changed between two maps?
func ExampleCompare() {
	catch := func(target, site string) *anycast.Catch {
		return &anycast.Catch{Target: netip.MustParseAddr(target), Receiver: site, Status: probe.Replied}
	}
	before := anycast.TableOf(slices.Values([]*anycast.Catch{catch("9.9.9.9", "fra"), catch("8.8.8.8", "nyc"), catch("1.1.1.1", "syd")}))
	after := anycast.TableOf(slices.Values([]*anycast.Catch{catch("9.9.9.9", "fra"), catch("8.8.8.8", "fra"), catch("1.1.1.1", "syd")}))
	c := anycast.Compare(before, after, nil)
	for _, s := range c.Shifts {
		fmt.Println(s.Network, "from", s.From, "to", s.To)
	}
	fmt.Printf("%.0f %% moved\n", 100*c.Share())
	// Output:
	// 8.8.8.0/24 from nyc to fra
	// 33 % moved
}

// A picture of a trace has a colour for each site that heard its hops.
func ExampleTraceResult_Graph() {
	f := fleet()
	defer f.Close()
	f.Internet.Path = func(fleettest.Probe) []fleettest.Hop { return fleettest.Chain(1, false, time.Millisecond) }
	definition := anycast.Definition{Program: anycast.KindTrace, Sites: []string{"fra"}, Attempts: 1}
	sink := printer{func(r anycast.Result) {
		if t, ok := r.(*anycast.TraceResult); ok {
			var picture strings.Builder
			if err := t.Graph().Draw(&picture, trace.Mermaid, nil); err != nil {
				fmt.Println(err)
			}
			for line := range strings.Lines(picture.String()) {
				if strings.Contains(line, "heard at") {
					fmt.Print(strings.TrimSpace(line), "\n")
				}
			}
		}
	}}
	if err := anycast.Run(context.Background(), f, definition, addrs("9.9.9.9"), sink); err != nil {
		fmt.Println(err)
	}
	// Output:
	// n1["10.0.0.1<br/>5.000 ms<br/>heard at syd"]
	// n2["9.9.9.9<br/>5.000 ms<br/>heard at nyc"]
}
