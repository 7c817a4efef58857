// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/trace"
	"github.com/seed5728abee/fathom/trace/tracetest"
)

// distant is a Via far away, as one over a fleet of sites is: every result comes later than its round-trip
// time, says where the answer was heard, and has no time where that is "elsewhere".
type distant struct {
	*tracetest.Network
	way     time.Duration
	hearing func(probe.Result) string
	refuse  error // of StartProbe
	started int
}

func (d *distant) StartProbe(req probe.Request, done func(probe.Result)) (cancel func(), err error) {
	if d.refuse != nil {
		return nil, d.refuse
	}
	d.started++
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		time.Sleep(d.way)
		res, _ := d.Network.Probe(ctx, req)
		if res.Answered() {
			res.Receiver = d.hearing(res)
			if res.Receiver == "elsewhere" {
				res.RTT = 0
			}
		}
		time.Sleep(d.way)
		done(res)
	}()
	return cancel, nil
}

var _ trace.Starter = (*distant)(nil)

// far is a chain of 12 whose even hops are heard elsewhere.
func far() (*distant, []*tracetest.Node) {
	net, nodes := tracetest.Chain(1, 12, ms)
	return &distant{Network: net, way: 300 * ms, hearing: func(r probe.Result) string {
		if r.TTL%2 == 0 {
			return "elsewhere"
		}
		return "here"
	}}, nodes
}

var zeroTime = regexp.MustCompile(`\b0\.000 ms`)

// TestDistant has answers that are late because the via is far, and have no time: none becomes a star.
func TestDistant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		via, nodes := far()
		path, err := trace.Run(t.Context(), via, probe.Request{Target: nodes[11].Addr}, trace.Options{})
		if err != nil || len(path.Hops) != 12 || path.Stop != trace.StopReached || via.started != path.Probes {
			t.Fatalf("%+v, %v", path, err)
		}
		for _, h := range path.Hops {
			for _, r := range h.Replies {
				if !r.Answered() || (r.RTT == 0) != (h.TTL%2 == 0) {
					t.Errorf("hop %d: %+v", h.TTL, r)
				}
			}
		}
		g := path.Graph()
		for _, n := range g.Nodes[1:] {
			timed, home := 3, "here"
			if n.TTL%2 == 0 {
				timed, home = 0, "elsewhere"
			}
			if n.Answers != 3 || n.Timed != timed || (n.Min == 0) != (timed == 0) || !slices.Equal(n.Receivers, []string{home}) {
				t.Errorf("%+v", n)
			}
		}
		for _, format := range []trace.Format{trace.SVG, trace.DOT, trace.Mermaid} {
			var b strings.Builder
			if err := g.Draw(&b, format, nil); err != nil {
				t.Fatal(err)
			}
			if s := b.String(); strings.Count(s, "heard at elsewhere") != 6 || zeroTime.MatchString(s) {
				t.Errorf("%v:\n%s", format, s)
			}
		}
	})
	synctest.Test(t, func(t *testing.T) {
		via, nodes := far()
		g, err := trace.Multipath(t.Context(), via, probe.Request{Target: nodes[11].Addr}, trace.MultipathOptions{})
		if err != nil || g.Stop != trace.StopReached || len(g.Nodes) != 13 {
			t.Errorf("%+v, %v", g, err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		via, nodes := far()
		via.refuse = errors.New("not today")
		if _, err := trace.Run(t.Context(), via, probe.Request{Target: nodes[11].Addr}, trace.Options{}); !errors.Is(err, via.refuse) {
			t.Errorf("%v, want %v", err, via.refuse)
		}
	})
}

// TestUnknownTimes has half the answers of a continuous trace without a time: they count, and spoil no figure.
func TestUnknownTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, nodes := tracetest.Chain(1, 3, ms)
		n := 0
		via := viaFunc(func(ctx context.Context, req probe.Request) (probe.Result, error) {
			res, err := net.Probe(ctx, req)
			if n++; n%2 == 0 {
				res.RTT = 0
			}
			return res, err
		})
		c, err := trace.NewContinuous(via, probe.Request{Target: nodes[2].Addr}, trace.ContinuousOptions{Rounds: 10})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, h := range c.Snapshot() {
			want := 2 * ms * time.Duration(h.TTL)
			if h.Received != 10 || h.Timed < 3 || h.Timed > 7 || h.Best != want || h.Avg != want || h.StDev != 0 || h.Loss() != 0 {
				t.Errorf("%+v, want %v", h, want)
			}
		}
	})
}

type viaFunc func(context.Context, probe.Request) (probe.Result, error)

func (f viaFunc) Probe(ctx context.Context, req probe.Request) (probe.Result, error) {
	return f(ctx, req)
}

// TestMaxFlows has a via with few flows: the trace ends honestly when they are used up.
func TestMaxFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, at := layers(1, false, 1, 16, 1)
		used := make(map[uint16]bool)
		via := viaFunc(func(ctx context.Context, req probe.Request) (probe.Result, error) {
			used[req.Flow] = true
			return net.Probe(ctx, req)
		})
		req := probe.Request{Target: at[2][0].Addr}
		g, err := trace.Multipath(t.Context(), via, req, trace.MultipathOptions{MaxFlows: 20, Window: 1})
		if err != nil || g.Stop != trace.StopProbeLimit || len(used) > 20 {
			t.Errorf("%v after %d flows, %v", g.Stop, len(used), err)
		}
		if _, err := trace.Multipath(t.Context(), via, req, trace.MultipathOptions{MaxFlows: -1}); !errors.Is(err, probe.ErrInvalid) {
			t.Errorf("%v, want ErrInvalid", err)
		}
	})
}

func TestSort(t *testing.T) {
	g := &trace.Graph{
		Nodes: []trace.Node{{TTL: 0, Kind: trace.SourceNode}, {TTL: 2, Kind: trace.SilentNode}, {TTL: 1, Flows: []uint16{1}}},
		Edges: []trace.Edge{{From: 2, To: 1}, {From: 0, To: 2}},
	}
	g.Sort()
	if g.Nodes[1].TTL != 1 || g.Nodes[2].Kind != trace.SilentNode || g.Edges[0].From != 0 || g.Edges[0].To != 1 || g.Edges[1].To != 2 {
		t.Errorf("%+v", g)
	}
}
