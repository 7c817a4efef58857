// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/trace"
	"github.com/seed5728abee/fathom/trace/tracetest"
)

// The way is a simulated network here; a probe.Prober takes the same place.
func ExampleRun() {
	via, nodes := tracetest.Chain(1, 4, time.Millisecond)
	nodes[1].Silent = true
	req := probe.Request{Target: netip.MustParseAddr("192.0.2.4"), Protocol: probe.UDP}
	path, err := trace.Run(context.Background(), via, req, trace.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, h := range path.Hops {
		fmt.Println(h.TTL, h.Responders())
	}
	fmt.Println(path.Stop)
	// Output:
	// 1 [10.0.0.1]
	// 2 []
	// 3 [10.0.0.3]
	// 4 [192.0.2.4]
	// reached
}

func ExampleMultipath() {
	// source -- 10.0.1.1 --+-- 10.0.2.1 --+-- 192.0.2.1
	//                      +-- 10.0.2.2 --+
	node := func(a string) *tracetest.Node { return &tracetest.Node{Addr: netip.MustParseAddr(a)} }
	a, b1, b2, target := node("10.0.1.1"), node("10.0.2.1"), node("10.0.2.2"), node("192.0.2.1")
	via := tracetest.New(1)
	via.Source.Next = []*tracetest.Node{a}
	a.Next = []*tracetest.Node{b1, b2}
	tracetest.Link(a.Next, []*tracetest.Node{target})

	g, err := trace.Multipath(context.Background(), via, probe.Request{Target: target.Addr}, trace.MultipathOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, e := range g.Edges[1:] {
		fmt.Println(g.Nodes[e.From].Addr, "->", g.Nodes[e.To].Addr)
	}
	fmt.Printf("confidence %.0f %%\n", 100*g.Confidence)
	// Output:
	// 10.0.1.1 -> 10.0.2.1
	// 10.0.1.1 -> 10.0.2.2
	// 10.0.2.1 -> 192.0.2.1
	// 10.0.2.2 -> 192.0.2.1
	// confidence 100 %
}

func ExampleContinuous() {
	via, nodes := tracetest.Chain(1, 2, time.Millisecond)
	c, err := trace.NewContinuous(via, probe.Request{Target: nodes[1].Addr}, trace.ContinuousOptions{
		Rounds: 2, Interval: 20 * time.Millisecond,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := c.Run(context.Background()); err != nil {
		fmt.Println(err)
		return
	}
	for _, h := range c.Snapshot() {
		fmt.Println(h.TTL, h.Addr(), trace.FieldLoss.Text(&h), trace.FieldSent.Text(&h), trace.FieldBest.Text(&h))
	}
	// Output:
	// 1 10.0.0.1 0.0% 2 2.0
	// 2 192.0.2.2 0.0% 2 4.0
}

func ExampleStoppingPoints() {
	fmt.Println(trace.StoppingPoints(0.05, 6))
	// Output: [6 11 16 21 27 33]
}

func ExampleAnnotator() {
	names := trace.NewAnnotator(&trace.Names{}, &trace.OriginDNS{})
	defer names.Close()
	// A private address: no name server is asked, and there is no autonomous system.
	a := names.Wait(context.Background(), netip.MustParseAddr("10.255.255.1"))
	fmt.Printf("%q %d\n", a.Name, a.ASN)
	// Output: "" 0
}
