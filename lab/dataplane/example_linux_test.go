// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package dataplane_test

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/lab/dataplane"
)

// A wire of 5 ms each way between the veth ends wire0 and wire1, cut and mended.
func ExampleEngine() {
	var ends [2]*rawio.FrameConn
	for i, name := range []string{"wire0", "wire1"} {
		c, err := rawio.OpenFrameConn(name, rawio.FrameOptions{Promiscuous: true})
		if err != nil {
			panic(err)
		}
		ends[i] = c
	}
	e, err := dataplane.NewEngine()
	if err != nil {
		panic(err)
	}
	defer e.Close() // closes the FrameConns too
	p := dataplane.Params{Delay: 5 * time.Millisecond}
	w, err := e.AddWire(ends, dataplane.WireConfig{Name: "a-b", Forward: p, Backward: p})
	if err != nil {
		panic(err)
	}
	go func() {
		time.Sleep(time.Second)
		w.Set(dataplane.Forward, dataplane.Params{Loss: 1})
		time.Sleep(time.Second)
		w.Set(dataplane.Forward, p)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if err := e.Run(ctx); err != nil {
		panic(err)
	}
	fmt.Println(w.Counters(dataplane.Forward).Lost, "frames lost")
}

// A router that quotes an MPLS label, hides behind a private address and
// spreads flows over two ways to the rest of the world.
func ExampleRouterConfig() {
	cfg := dataplane.RouterConfig{
		Name: "core",
		Ports: []dataplane.PortConfig{
			{Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}},
			{Addrs: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/30")}},
			{Addrs: []netip.Prefix{netip.MustParsePrefix("198.51.100.5/30")}},
		},
		Routes: []dataplane.Route{{
			Prefix: netip.MustParsePrefix("0.0.0.0/0"),
			NextHops: []dataplane.NextHop{
				{Port: 1, Gateway: netip.MustParseAddr("198.51.100.2")},
				{Port: 2, Gateway: netip.MustParseAddr("198.51.100.6")},
			},
		}},
		Behaviour: dataplane.Behaviour{
			MPLS:        []dataplane.Label{{Label: 16001, TTL: 1}},
			ErrorSource: []netip.Addr{netip.MustParseAddr("10.255.0.1")},
			Balance:     dataplane.BalanceFlow,
		},
	}
	fmt.Println(cfg.Name, "balances by", cfg.Behaviour.Balance)
	// Output: core balances by flow
}
