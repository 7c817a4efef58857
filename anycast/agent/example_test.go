// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"fmt"
	"net/netip"

	"github.com/seed5728abee/fathom/anycast/agent"
	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/internal/rawio/rawiotest"
)

func Example() {
	a, err := agent.New(agent.Options{
		ID:      "ams",
		Links:   []agent.Link{{Address: "control.example.net:50051"}, {Address: "203.0.113.5:50051", Dialect: agent.Seed}},
		Anycast: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		Rate:    20000,
		// A network in memory; without this it is the kernel's, and needs CAP_NET_RAW.
		Host: func() (rawio.Host, error) { return rawiotest.NewHost(rawiotest.Config{}), nil },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer a.Close()
	// Here comes a.Run(ctx).
	for _, l := range a.Stats().Links {
		fmt.Println(l.Address, l.Dialect, l.Connected)
	}
	// Output:
	// control.example.net:50051 auto false
	// 203.0.113.5:50051 seed false
}
