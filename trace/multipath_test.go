// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/trace"
	"github.com/seed5728abee/fathom/trace/tracetest"
)

// The tables of Augustin et al. 2007 (95 %) and Veitch et al. 2009 (99 %).
func TestStoppingPoints(t *testing.T) {
	for _, tt := range []struct {
		failure float64
		want    []int
	}{
		{0.05, []int{6, 11, 16, 21, 27, 33}},
		{0.01, []int{8, 15, 21, 28, 36, 43}},
		{0.5, []int{2}},
	} {
		if got := trace.StoppingPoints(tt.failure, len(tt.want)); !slices.Equal(got, tt.want) {
			t.Errorf("failure %v: %v, want %v", tt.failure, got, tt.want)
		}
	}
}

// For any failure probability the points rise, and a single balancer of two ways is missed with
// probability 2^-(n_1 - 1), which is at most the bound, and would be more with one probe less.
func TestStoppingPointsProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		failure := rapid.Float64Range(1e-6, 0.5).Draw(t, "failure")
		points := trace.StoppingPoints(failure, rapid.IntRange(1, 24).Draw(t, "k"))
		if n := float64(points[0]); math.Pow(2, 1-n) > failure || math.Pow(2, 2-n) <= failure {
			t.Fatalf("n_1 = %v for %v", n, failure)
		}
		for i := 1; i < len(points); i++ {
			if points[i] <= points[i-1] {
				t.Fatalf("points %v do not rise", points)
			}
		}
	})
}

// layers builds a network of the given widths behind each other, all links present between
// neighbours unless mesh is false: then node i goes on to the nodes that divide evenly.
func layers(seed uint64, mesh bool, widths ...int) (*tracetest.Network, [][]*tracetest.Node) {
	net := tracetest.New(seed)
	before := []*tracetest.Node{&net.Source}
	var all [][]*tracetest.Node
	for i, w := range append(widths, 1) {
		var here []*tracetest.Node
		for j := range w {
			n := &tracetest.Node{Addr: netip.AddrFrom4([4]byte{10, 0, byte(i + 1), byte(j + 1)}), Delay: ms}
			if i == len(widths) {
				n.Addr = addr("192.0.2.1")
			}
			here = append(here, n)
		}
		for k, b := range before {
			for j, n := range here {
				if mesh || len(here) >= len(before) && j*len(before)/len(here) == k || len(here) < len(before) && k*len(here)/len(before) == j {
					b.Next = append(b.Next, n)
				}
			}
		}
		before = here
		all = append(all, here)
	}
	return net, all
}

// links writes the graph's links, as ttl/address>address.
func links(g *trace.Graph) []string {
	name := func(n trace.Node) string {
		switch n.Kind {
		case trace.SourceNode:
			return "src"
		case trace.SilentNode:
			return "*"
		case trace.RouterNode, trace.TargetNode, trace.RefuseNode:
		}
		return n.Addr.String()
	}
	var all []string
	for _, e := range g.Edges {
		mark := ""
		if e.Uncertain {
			mark = "?"
		}
		all = append(all, fmt.Sprintf("%d/%s>%s%s", g.Nodes[e.From].TTL, name(g.Nodes[e.From]), name(g.Nodes[e.To]), mark))
	}
	slices.Sort(all)
	return all
}

// truth writes the network's links in the same form.
func truth(net *tracetest.Network) []string {
	seen := make(map[string]bool)
	var walk func(ttl int, name string, n *tracetest.Node)
	walk = func(ttl int, name string, n *tracetest.Node) {
		for _, next := range n.Next {
			to := next.Addr.String()
			if next.Silent {
				to = "*"
			}
			l := fmt.Sprintf("%d/%s>%s", ttl, name, to)
			if !seen[l] {
				seen[l] = true
			}
			walk(ttl+1, to, next)
		}
	}
	walk(0, "src", &net.Source)
	var all []string
	for l := range seen {
		all = append(all, l)
	}
	slices.Sort(all)
	return all
}

func multipath(t *testing.T, net trace.Via, opts trace.MultipathOptions) *trace.Graph {
	t.Helper()
	g, err := trace.Multipath(t.Context(), net, probe.Request{Target: addr("192.0.2.1"), Protocol: probe.UDP}, opts)
	if err != nil {
		t.Fatal(err)
	}
	checkGraph(t, g)
	return g
}

// checkGraph checks what holds for every graph.
func checkGraph(t interface {
	Helper()
	Errorf(string, ...any)
}, g *trace.Graph,
) {
	t.Helper()
	if len(g.Nodes) == 0 || g.Nodes[0].Kind != trace.SourceNode {
		t.Errorf("the first node is not the source: %+v", g.Nodes)
		return
	}
	in := make([]int, len(g.Nodes))
	for _, e := range g.Edges {
		if g.Nodes[e.To].TTL != g.Nodes[e.From].TTL+1 {
			t.Errorf("edge from hop %d to hop %d", g.Nodes[e.From].TTL, g.Nodes[e.To].TTL)
		}
		if k := g.Nodes[e.From].Kind; k == trace.TargetNode || k == trace.RefuseNode {
			t.Errorf("edge from a %v", k)
		}
		for _, f := range e.Flows {
			if f == 0 || !slices.Contains(g.Nodes[e.From].Flows, f) || !slices.Contains(g.Nodes[e.To].Flows, f) {
				t.Errorf("flow %d on an edge whose nodes do not have it", f)
			}
		}
		in[e.To]++
	}
	for i, n := range in {
		if i > 0 && n == 0 {
			t.Errorf("no link to %v at hop %d", g.Nodes[i].Addr, g.Nodes[i].TTL)
		}
	}
	flows := make(map[[2]int]bool)
	for i, n := range g.Nodes {
		for _, f := range n.Flows {
			key := [2]int{n.TTL, int(f)}
			if flows[key] {
				t.Errorf("flow %d reaches two nodes of hop %d, one of them %d", f, n.TTL, i)
			}
			flows[key] = true
		}
	}
	if g.Confidence < 0 || g.Confidence > 1 {
		t.Errorf("confidence %v", g.Confidence)
	}
}

func TestMultipathGraphs(t *testing.T) {
	tests := []struct {
		name     string
		mesh     bool
		widths   []int
		change   func(net *tracetest.Network, at [][]*tracetest.Node)
		switches bool
	}{
		{name: "chain", widths: []int{1, 1, 1}},
		{name: "diamond", widths: []int{1, 2, 2, 1}},
		{name: "from the first hop", widths: []int{2, 2}},
		{name: "wide", widths: []int{1, 16, 1}},
		{name: "fans out in two steps", widths: []int{1, 2, 8, 1}},
		{name: "and in", widths: []int{1, 8, 2, 1}},
		{name: "two diamonds", widths: []int{1, 3, 1, 4, 4, 1}},
		{name: "meshed", mesh: true, widths: []int{1, 3, 3, 1}, switches: true},
		{
			name: "uneven", widths: []int{1, 2, 4, 1},
			change: func(_ *tracetest.Network, at [][]*tracetest.Node) {
				at[1][0].Next, at[1][1].Next = at[2][:1], at[2][1:]
			},
			switches: true,
		},
		{
			name: "silent branch", widths: []int{1, 2, 2, 1},
			change: func(_ *tracetest.Network, at [][]*tracetest.Node) { at[1][1].Silent = true },
		},
		{
			name: "silent hop", widths: []int{1, 1, 2, 1},
			change: func(_ *tracetest.Network, at [][]*tracetest.Node) { at[1][0].Silent = true },
		},
		{
			name: "paths of different length", widths: []int{1, 2, 2, 1},
			change: func(_ *tracetest.Network, at [][]*tracetest.Node) { at[1][0].Next = at[4] },
		},
	}
	for _, tt := range tests {
		for _, algorithm := range []trace.Algorithm{trace.MDALite, trace.MDA} {
			t.Run(tt.name+" "+algorithm.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					net, at := layers(3, tt.mesh, tt.widths...)
					if tt.change != nil {
						tt.change(net, at)
					}
					g := multipath(t, net, trace.MultipathOptions{Algorithm: algorithm, Confidence: 0.999})
					if got, want := strings.Join(links(g), "\n"), strings.Join(truth(net), "\n"); got != want {
						t.Errorf("links found:\n%s\nlinks there:\n%s", got, want)
					}
					if g.Stop != trace.StopReached || g.Confidence < 0.999 {
						t.Errorf("stop %v, confidence %v", g.Stop, g.Confidence)
					}
					sent := 0
					for _, n := range net.Sent() {
						sent += n
					}
					if sent != g.Probes {
						t.Errorf("graph says %d probes, %d were sent", g.Probes, sent)
					}
					if top := net.MaxInFlight(); top > trace.DefaultMultipathWindow {
						t.Errorf("%d probes in flight", top)
					}
					if switched := len(g.Switched) > 0; algorithm == trace.MDALite && switched != tt.switches {
						t.Errorf("switched over at %v, want %v", g.Switched, tt.switches)
					}
					t.Logf("%d probes, %v", g.Probes, g.Duration)
				})
			})
		}
	}
}

// Random networks of random widths: whatever is found is there; nothing is found twice; and with
// this confidence nothing is missing.
func TestMultipathProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		widths := rapid.SliceOfN(rapid.IntRange(1, 6), 1, 6).Draw(rt, "widths")
		net, at := layers(rapid.Uint64().Draw(rt, "seed"), rapid.Bool().Draw(rt, "mesh"), widths...)
		for _, n := range slices.Concat(at[:len(at)-1]...) {
			n.AnswerLoss = rapid.SampledFrom([]float64{0, 0, 0, 0.05}).Draw(rt, "loss")
		}
		opts := trace.MultipathOptions{
			Algorithm:  rapid.SampledFrom([]trace.Algorithm{trace.MDALite, trace.MDA}).Draw(rt, "algorithm"),
			Confidence: 1 - 1e-7, Retries: 8,
		}
		var g *trace.Graph
		var err error
		synctest.Test(t, func(t *testing.T) {
			g, err = trace.Multipath(t.Context(), net, probe.Request{Target: addr("192.0.2.1")}, opts)
		})
		if err != nil {
			rt.Fatal(err)
		}
		checkGraph(rt, g)
		if got, want := links(g), truth(net); !slices.Equal(got, want) {
			rt.Fatalf("links found:\n%s\nlinks there:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// The stated confidence is kept: a single balancer of two ways is overlooked in no more than 5 %
// of all runs, and not much less often than n_1 = 6 allows (2^-5 = 3.1 %).
func TestMultipathConfidence(t *testing.T) {
	const runs = 3000
	missed := 0
	synctest.Test(t, func(t *testing.T) {
		for seed := range uint64(runs) {
			net, at := layers(seed, false, 1, 2)
			// The seed has to reach the balancer, whose choice depends on its address.
			at[0][0].Addr = netip.AddrFrom4([4]byte{10, 1, byte(seed >> 8), byte(seed)})
			g := multipath(t, net, trace.MultipathOptions{Confidence: 0.95, Balancers: 1})
			if len(g.Hops()[2]) < 2 {
				missed++
			}
		}
	})
	if share := float64(missed) / runs; share < 0.02 || share > 0.045 {
		t.Errorf("missed a way in %.1f %% of the runs, want about 3.1 %%", 100*share)
	}
}

func TestMultipathPerPacket(t *testing.T) {
	for _, algorithm := range []trace.Algorithm{trace.MDALite, trace.MDA} {
		synctest.Test(t, func(t *testing.T) {
			net, at := layers(5, false, 1, 2, 2, 1, 3, 1)
			at[0][0].Balance = tracetest.PerPacket
			g := multipath(t, net, trace.MultipathOptions{Algorithm: algorithm, Confidence: 0.9999})
			var perPacket []string
			for _, n := range g.Nodes {
				if n.PerPacket {
					perPacket = append(perPacket, n.Addr.String())
				}
			}
			// The second balancer, at hop 4, is per flow.
			if !slices.Equal(perPacket, []string{"10.0.1.1"}) {
				t.Errorf("%v: per-packet balancers: %v, want 10.0.1.1", algorithm, perPacket)
			}
			want := []string{
				"0/src>10.0.1.1",
				"1/10.0.1.1>10.0.2.1", "1/10.0.1.1>10.0.2.2",
				"2/10.0.2.1>10.0.3.1?", "2/10.0.2.1>10.0.3.2?", "2/10.0.2.2>10.0.3.1?", "2/10.0.2.2>10.0.3.2?",
				"3/10.0.3.1>10.0.4.1", "3/10.0.3.2>10.0.4.1",
				"4/10.0.4.1>10.0.5.1", "4/10.0.4.1>10.0.5.2", "4/10.0.4.1>10.0.5.3",
				"5/10.0.5.1>10.0.6.1", "5/10.0.5.2>10.0.6.1", "5/10.0.5.3>10.0.6.1",
				"6/10.0.6.1>192.0.2.1",
			}
			if got := links(g); !slices.Equal(got, want) {
				t.Errorf("%v: %v", algorithm, got)
			}
		})
	}
}

// MDA-Lite needs fewer probes than MDA where its assumptions hold.
func TestMultipathProbes(t *testing.T) {
	count := func(a trace.Algorithm) (n int) {
		synctest.Test(t, func(t *testing.T) {
			net, _ := layers(1, false, 1, 8, 8, 8, 1)
			n = multipath(t, net, trace.MultipathOptions{Algorithm: a}).Probes
		})
		return n
	}
	lite, full := count(trace.MDALite), count(trace.MDA)
	if lite*4 > full*3 {
		t.Errorf("MDA-Lite sent %d probes, MDA %d: want a quarter less at least", lite, full)
	}
}

func TestMultipathStops(t *testing.T) {
	tests := []struct {
		name   string
		change func(net *tracetest.Network, at [][]*tracetest.Node)
		opts   trace.MultipathOptions
		stop   trace.StopReason
		hops   int
		silent int
	}{
		{
			name:   "firewall",
			change: func(_ *tracetest.Network, at [][]*tracetest.Node) { at[2][0].Firewall = true },
			opts:   trace.MultipathOptions{GapLimit: 3}, stop: trace.StopGapLimit, hops: 3, silent: 3,
		},
		{
			name: "unreachable",
			change: func(_ *tracetest.Network, at [][]*tracetest.Node) {
				at[2][0].Unreachable, at[2][0].Code = true, 1
			},
			stop: trace.StopUnreachable, hops: 4,
		},
		{
			name:   "loop",
			change: func(_ *tracetest.Network, at [][]*tracetest.Node) { at[2][0].Next = at[0] },
			stop:   trace.StopLoop, hops: 7,
		},
		{name: "max hops", opts: trace.MultipathOptions{MaxHops: 2}, stop: trace.StopMaxHops, hops: 2},
		{name: "max probes", opts: trace.MultipathOptions{MaxProbes: 30}, stop: trace.StopProbeLimit, hops: 2},
		{
			name: "all ways refuse but one", stop: trace.StopReached, hops: 4,
			change: func(_ *tracetest.Network, at [][]*tracetest.Node) { at[1][0].Unreachable = true },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net, at := layers(3, false, 1, 2, 1)
				if tt.change != nil {
					tt.change(net, at)
				}
				g := multipath(t, net, tt.opts)
				if g.Stop != tt.stop || len(g.Hops())-1 != tt.hops || g.Silent != tt.silent {
					t.Errorf("%v after %d hops, %d silent; want %v after %d, %d", g.Stop, len(g.Hops())-1, g.Silent, tt.stop, tt.hops, tt.silent)
				}
			})
		})
	}
}

func TestMultipathInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, _ := layers(3, false, 1, 2, 2, 1)
		ctx, cancel := context.WithTimeout(t.Context(), 7*ms)
		defer cancel()
		g, err := trace.Multipath(ctx, net, probe.Request{Target: addr("192.0.2.1")}, trace.MultipathOptions{})
		if !errors.Is(err, context.DeadlineExceeded) || g.Stop != trace.StopInterrupted || len(g.Hops()) < 2 {
			t.Errorf("%+v, %v", g, err)
		}
	})
	net := tracetest.New(1)
	net.Err = probe.ErrPermission
	if g, err := trace.Multipath(t.Context(), net, probe.Request{Target: addr("192.0.2.1")}, trace.MultipathOptions{}); g == nil || !errors.Is(err, probe.ErrPermission) {
		t.Errorf("via without permission: %v, %v", g, err)
	}
	for _, o := range []trace.MultipathOptions{
		{Confidence: 1},
		{Confidence: -0.1},
		{Confidence: math.NaN()},
		{Balancers: -1},
		{Algorithm: 7},
		{Window: -1},
		{MeshFlows: 1},
		{MaxProbes: -1},
		{Timeout: -time.Second},
		{MaxHops: 256},
	} {
		if g, err := trace.Multipath(t.Context(), net, probe.Request{Target: addr("192.0.2.1")}, o); g != nil || !errors.Is(err, probe.ErrInvalid) {
			t.Errorf("%+v: %v, %v", o, g, err)
		}
	}
}
