// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nattest_test

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/seed5728abee/fathom/nat"
	"github.com/seed5728abee/fathom/nat/nattest"
)

// A gateway at which another host has the port.
func Example() {
	g, err := nattest.Start(nattest.Behaviour{Methods: []nat.Method{nat.UPnP}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer g.Close()
	g.Put(nattest.Mapping{Protocol: nat.TCP, External: 49610, Internal: netip.MustParseAddrPort("192.0.2.66:80"), Description: "another"})

	m, err := nat.Discover(context.Background(), g.Options())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer m.Close()
	if _, err := m.Map(context.Background(), nat.Request{InternalPort: 49610}); err != nil {
		fmt.Println(err)
	}
	for _, mapping := range g.Mappings() {
		fmt.Println(mapping.External, "is for", mapping.Description)
	}
	// Output:
	// 49610 is for another
	// 49611 is for fathom
}
