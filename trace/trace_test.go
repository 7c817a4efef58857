// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/trace"
	"github.com/seed5728abee/fathom/trace/tracetest"
)

const (
	ms = time.Millisecond
	// hold is how long the hops behind the third wait if they don't answer.
	hold = 500 * time.Microsecond
)

// shape writes a path as its responders, "*" for each missing answer, and the reason to stop.
func shape(p *trace.Path) string {
	var b strings.Builder
	for _, h := range p.Hops {
		fmt.Fprintf(&b, "%d:", h.TTL)
		for i, r := range h.Replies {
			if i > 0 {
				b.WriteByte(',')
			}
			switch {
			case r.Status == probe.NoReply:
				b.WriteByte('*')
			case r.Status == probe.HostUnreachable:
				fmt.Fprintf(&b, "%s!%d", r.Responder, r.ICMPCode)
			case !r.Answered():
				b.WriteString(r.Status.String())
			default:
				b.WriteString(r.Responder.String())
			}
		}
		b.WriteByte(' ')
	}
	fmt.Fprintf(&b, "%s", p.Stop)
	if p.Silent > 0 {
		fmt.Fprintf(&b, " after %d silent", p.Silent)
	}
	return b.String()
}

func TestRunShapes(t *testing.T) {
	tests := []struct {
		name   string
		hops   int
		change func(net *tracetest.Network, nodes []*tracetest.Node)
		opts   trace.Options
		sorted bool
		want   string
		took   time.Duration
	}{
		{
			name: "all answer", hops: 4, opts: trace.Options{Queries: 2},
			want: "1:10.0.0.1,10.0.0.1 2:10.0.0.2,10.0.0.2 3:10.0.0.3,10.0.0.3 4:192.0.2.4,192.0.2.4 reached",
			took: 40*ms + hold, // the target's round trip and a pause, whatever the hops before it take
		},
		{
			name: "one hop after the other", hops: 4, opts: trace.Options{Queries: 1, Window: 1},
			want: "1:10.0.0.1 2:10.0.0.2 3:10.0.0.3 4:192.0.2.4 reached",
			took: (10 + 20 + 30 + 40) * ms,
		},
		{
			name: "first hop", hops: 4, opts: trace.Options{Queries: 1, FirstHop: 3},
			want: "3:10.0.0.3 4:192.0.2.4 reached", took: 40 * ms,
		},
		{
			name: "silent hop is given up ten times the next hop's time after it was sent", hops: 4,
			change: func(_ *tracetest.Network, n []*tracetest.Node) { n[1].Silent = true },
			opts:   trace.Options{Queries: 2},
			want:   "1:10.0.0.1,10.0.0.1 2:*,* 3:10.0.0.3,10.0.0.3 4:192.0.2.4,192.0.2.4 reached",
			took:   300 * ms,
		},
		{
			name: "but not before the least wait", hops: 4,
			change: func(_ *tracetest.Network, n []*tracetest.Node) { n[1].Silent = true },
			opts:   trace.Options{Queries: 1, MinWait: time.Second},
			want:   "1:10.0.0.1 2:* 3:10.0.0.3 4:192.0.2.4 reached", took: time.Second,
		},
		{
			name: "rate limit: the rest of a hop waits three times its answer", hops: 3,
			change: func(_ *tracetest.Network, n []*tracetest.Node) { n[2].RateLimit = 1 },
			opts:   trace.Options{Queries: 3, Window: 1, MinWait: ms},
			sorted: true, // any of the three may be first
			want:   "1:10.0.0.1,10.0.0.1,10.0.0.1 2:10.0.0.2,10.0.0.2,10.0.0.2 3:*,*,192.0.2.3 reached",
			took:   (10 + 20 + 90) * ms,
		},
		{
			name: "slow answer within the wait counts", hops: 3,
			change: func(_ *tracetest.Network, n []*tracetest.Node) { n[0].AnswerDelay = 150 * ms },
			opts:   trace.Options{Queries: 1},
			want:   "1:10.0.0.1 2:10.0.0.2 3:192.0.2.3 reached", took: 160 * ms,
		},
		{
			name: "firewall", hops: 6,
			change: func(_ *tracetest.Network, n []*tracetest.Node) { n[2].Firewall = true },
			opts:   trace.Options{Queries: 1, Timeout: time.Second},
			want:   "1:10.0.0.1 2:10.0.0.2 3:10.0.0.3 gap limit after 8 silent", took: time.Second + hold,
		},
		{
			name: "gap limit off", hops: 6,
			change: func(_ *tracetest.Network, n []*tracetest.Node) { n[2].Firewall = true },
			opts:   trace.Options{Queries: 1, Timeout: time.Second, GapLimit: -1, MaxHops: 16},
			want:   "1:10.0.0.1 2:10.0.0.2 3:10.0.0.3 max hops after 13 silent", took: time.Second + hold,
		},
		{
			name: "gap within the limit", hops: 6,
			change: func(_ *tracetest.Network, n []*tracetest.Node) { n[2].Silent, n[3].Silent = true, true },
			opts:   trace.Options{Queries: 1, GapLimit: 3, MinWait: ms},
			want:   "1:10.0.0.1 2:10.0.0.2 3:* 4:* 5:10.0.0.5 6:192.0.2.6 reached", took: 500*ms + hold,
		},
		{
			name: "everything silent", hops: 3,
			change: func(net *tracetest.Network, _ []*tracetest.Node) { net.Source.Next = nil },
			opts:   trace.Options{Queries: 1, GapLimit: 2},
			want:   "gap limit after 2 silent", took: 3 * time.Second,
		},
		{
			name: "unreachable", hops: 4,
			change: func(_ *tracetest.Network, n []*tracetest.Node) { n[1].Unreachable, n[1].Code = true, 13 },
			opts:   trace.Options{Queries: 2},
			want:   "1:10.0.0.1,10.0.0.1 2:10.0.0.2,10.0.0.2 3:10.0.0.2!13,10.0.0.2!13 unreachable", took: 20 * ms,
		},
		{
			name: "loop", hops: 4,
			change: func(_ *tracetest.Network, n []*tracetest.Node) { n[2].Next = []*tracetest.Node{n[1]} },
			opts:   trace.Options{Queries: 1, Window: 1},
			want:   "1:10.0.0.1 2:10.0.0.2 3:10.0.0.3 4:10.0.0.2 5:10.0.0.3 6:10.0.0.2 loop",
			took:   (10 + 20 + 30 + 40 + 50 + 60) * ms,
		},
		{
			name: "loop through a silent router", hops: 4,
			change: func(_ *tracetest.Network, n []*tracetest.Node) {
				n[2].Next, n[2].Silent = []*tracetest.Node{n[1]}, true
			},
			opts: trace.Options{Queries: 1, LoopLimit: 2},
			want: "1:10.0.0.1 2:10.0.0.2 3:* 4:10.0.0.2 loop", took: 400 * ms,
		},
		{
			name: "address translation is no loop", hops: 7,
			change: func(_ *tracetest.Network, n []*tracetest.Node) {
				for _, node := range n[1:6] {
					node.Source = n[1].Addr
				}
			},
			opts: trace.Options{Queries: 1},
			want: "1:10.0.0.1 2:10.0.0.2 3:10.0.0.2 4:10.0.0.2 5:10.0.0.2 6:10.0.0.2 7:192.0.2.7 reached", took: 70*ms + hold,
		},
		{
			name: "max hops", hops: 9, opts: trace.Options{Queries: 1, MaxHops: 3},
			want: "1:10.0.0.1 2:10.0.0.2 3:10.0.0.3 max hops", took: 30 * ms,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net, nodes := tracetest.Chain(1, tt.hops, 5*ms)
				target := nodes[tt.hops-1].Addr
				if tt.change != nil {
					tt.change(net, nodes)
				}
				var shown []trace.Hop
				opts := tt.opts
				opts.OnHop = func(h trace.Hop) { shown = append(shown, h) }
				path, err := trace.Run(t.Context(), net, probe.Request{Target: target, Protocol: probe.UDP}, opts)
				if err != nil {
					t.Fatal(err)
				}
				if tt.sorted {
					for _, h := range path.Hops {
						slices.SortFunc(h.Replies, func(a, b probe.Result) int { return int(a.RTT - b.RTT) })
					}
				}
				if got := shape(path); got != tt.want {
					t.Errorf("got  %s\nwant %s", got, tt.want)
				}
				if path.Duration != tt.took {
					t.Errorf("took %v, want %v", path.Duration, tt.took)
				}
				if diff := cmp.Diff(path.Hops, shown, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" && len(shown)+len(path.Hops) > 0 {
					t.Errorf("OnHop saw other hops than the path has (-path +seen):\n%s", diff)
				}
			})
		})
	}
}

// A classic trace sees both arms of a diamond; a Paris trace sees one, and all hops of it.
func TestRunMethods(t *testing.T) {
	diamond := func() (*tracetest.Network, netip.Addr) {
		net := tracetest.New(7)
		a := &tracetest.Node{Addr: addr("10.0.1.1"), Delay: ms}
		b1, b2 := &tracetest.Node{Addr: addr("10.0.2.1"), Delay: ms}, &tracetest.Node{Addr: addr("10.0.2.2"), Delay: ms}
		c1, c2 := &tracetest.Node{Addr: addr("10.0.3.1"), Delay: ms}, &tracetest.Node{Addr: addr("10.0.3.2"), Delay: ms}
		d := &tracetest.Node{Addr: addr("192.0.2.1"), Delay: ms}
		net.Source.Next = []*tracetest.Node{a}
		a.Next = []*tracetest.Node{b1, b2}
		b1.Next, b2.Next = []*tracetest.Node{c1}, []*tracetest.Node{c2}
		tracetest.Link([]*tracetest.Node{c1, c2}, []*tracetest.Node{d})
		return net, d.Addr
	}
	for flow := range uint16(20) {
		net, target := diamond()
		synctest.Test(t, func(t *testing.T) {
			path, err := trace.Run(t.Context(), net, probe.Request{Target: target, Flow: flow}, trace.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if want := max(flow, 1); path.Flow != want {
				t.Errorf("flow %d, want %d", path.Flow, want)
			}
			b, c := path.Hops[1].Responders(), path.Hops[2].Responders()
			if len(b) != 1 || len(c) != 1 || b[0].As4()[3] != c[0].As4()[3] {
				t.Errorf("flow %d: hops %v and %v: want one arm", flow, b, c)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		net, target := diamond()
		path, err := trace.Run(t.Context(), net, probe.Request{Target: target, Flow: 9}, trace.Options{Method: trace.Classic, Queries: 20})
		if err != nil {
			t.Fatal(err)
		}
		if got := path.Hops[1].Responders(); len(got) != 2 || path.Flow != 0 {
			t.Errorf("classic, flow %d: hop 2 is %v, want both arms", path.Flow, got)
		}
	})
}

// What routers say beside their address comes through.
func TestRunDetails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, nodes := tracetest.Chain(1, 3, ms)
		nodes[0].MPLS = []packet.Label{{Label: 16001, TC: 5, Bottom: true, TTL: 1}}
		nodes[1].QuotedTTL, nodes[1].TOS = 3, 0x20
		path, err := trace.Run(t.Context(), net, probe.Request{Target: nodes[2].Addr, TOS: 0xb8, Tag: 5}, trace.Options{Queries: 1})
		if err != nil {
			t.Fatal(err)
		}
		r := path.Hops[0].Replies[0]
		if diff := cmp.Diff(nodes[0].MPLS, r.MPLS); diff != "" {
			t.Error(diff)
		}
		if r.Tag != 5 || r.QuotedTOS != 0xb8 || r.ReplyTTL != 255 || r.TTL != 1 || r.RTT != 2*ms {
			t.Errorf("hop 1: %+v", r)
		}
		if r := path.Hops[1].Replies[0]; r.QuotedTTL != 3 || r.QuotedTOS != 0x20 || r.ReplyTTL != 254 {
			t.Errorf("hop 2: %+v", r)
		}
	})
}

// A target so near that it answers at once sees few probes too many, even with a large window.
func TestRunNearTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, nodes := tracetest.Chain(1, 2, 20*time.Microsecond)
		path, err := trace.Run(t.Context(), net, probe.Request{Target: nodes[1].Addr}, trace.Options{Queries: 1})
		if err != nil {
			t.Fatal(err)
		}
		if path.Probes != 3 {
			t.Errorf("%d probes for 2 hops, want 3", path.Probes)
		}
	})
}

// The target is far and 30 hops are allowed: no more than the window may be sent at once, and a near target
// sees no more than that.
func TestRunWindow(t *testing.T) {
	for _, window := range []int{1, 2, 5, 20} {
		synctest.Test(t, func(t *testing.T) {
			net, nodes := tracetest.Chain(1, 4, 5*ms)
			_, err := trace.Run(t.Context(), net, probe.Request{Target: nodes[3].Addr}, trace.Options{Window: window})
			if err != nil {
				t.Fatal(err)
			}
			if got := net.MaxInFlight(); got > 3*window {
				t.Errorf("window %d: %d probes in flight, want at most %d", window, got, 3*window)
			}
			for ttl := range net.Sent() {
				if int(ttl) >= 4+window {
					t.Errorf("window %d: probes with hop limit %d to a target 4 hops away", window, ttl)
				}
			}
		})
	}
}

func TestRunErrors(t *testing.T) {
	target := probe.Request{Target: addr("192.0.2.1")}
	for _, tt := range []struct {
		req  probe.Request
		opts trace.Options
		want string
	}{
		{probe.Request{}, trace.Options{}, "invalid target invalid IP: want an address"},
		{target, trace.Options{MaxHops: 256}, "invalid max hops 256: want 1 to 255"},
		{target, trace.Options{FirstHop: 9, MaxHops: 8}, "invalid max hops 8: want 9 to 255"},
		{target, trace.Options{FirstHop: -1}, "invalid first hop -1: want 1 to 255"},
		{target, trace.Options{Queries: 1001}, "invalid queries 1001: want 1 to 1000"},
		{target, trace.Options{Window: -1}, "invalid window -1: want at least 1"},
		{target, trace.Options{Timeout: -1}, "invalid timeout -1ns: want a duration above 0"},
		{target, trace.Options{Method: 7}, "invalid method Method(7): want Paris or Classic"},
	} {
		path, err := trace.Run(t.Context(), tracetest.New(1), tt.req, tt.opts)
		if path != nil || !errors.Is(err, probe.ErrInvalid) || err.Error() != tt.want {
			t.Errorf("%+v: %v, %v, want %s", tt.opts, path, err, tt.want)
		}
	}

	net := tracetest.New(1)
	net.Err = probe.ErrPermission
	path, err := trace.Run(t.Context(), net, target, trace.Options{})
	if !errors.Is(err, probe.ErrPermission) || path == nil || path.Stop != trace.StopInterrupted {
		t.Errorf("via without permission: %+v, %v", path, err)
	}
}

// An interrupted trace keeps the hops that it has.
func TestRunInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, nodes := tracetest.Chain(1, 9, 5*ms)
		ctx, cancel := context.WithTimeout(t.Context(), 35*ms)
		defer cancel()
		path, err := trace.Run(ctx, net, probe.Request{Target: nodes[8].Addr}, trace.Options{Queries: 1})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if got, want := shape(path), "1:10.0.0.1 2:10.0.0.2 3:10.0.0.3 interrupted"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// localOnly is a host without a route.
type localOnly struct{ status probe.Status }

func (v localOnly) Probe(_ context.Context, req probe.Request) (probe.Result, error) {
	return probe.Result{Target: req.Target, TTL: req.TTL, Status: v.status}, nil
}

func TestRunLocalErrors(t *testing.T) {
	for _, s := range []probe.Status{probe.NetUnreachable, probe.NetworkDown, probe.HostDown} {
		path, err := trace.Run(t.Context(), localOnly{s}, probe.Request{Target: addr("192.0.2.1")}, trace.Options{Queries: 1})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := shape(path), fmt.Sprintf("1:%s unreachable", s); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestOnReplyOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, nodes := tracetest.Chain(1, 5, 5*ms)
		nodes[0].AnswerDelay = 22 * ms // comes after hop 3
		var order []int
		_, err := trace.Run(t.Context(), net, probe.Request{Target: nodes[4].Addr}, trace.Options{
			Queries: 1, OnReply: func(r probe.Result) { order = append(order, int(r.TTL)) },
		})
		if err != nil {
			t.Fatal(err)
		}
		// The target also answers hop limits above 5, in any order.
		if want := []int{2, 3, 1, 4}; len(order) < 5 || !slices.Equal(order[:4], want) || !slices.Contains(order[4:], 5) {
			t.Errorf("replies came in the order %v, want %v and 5", order, want)
		}
	})
}
