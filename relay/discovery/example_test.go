// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package discovery_test

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/seed5728abee/fathom/relay/discovery"
)

func ExampleUnion() {
	ctx, cancel := context.WithCancel(context.Background())
	u := discovery.NewUnion(discovery.UnionOptions{
		Sources: []discovery.Source{discovery.Static(7124, "192.0.2.1", "192.0.2.7", "[2001:db8::7]:7125")},
		Own: func(context.Context) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
		},
	})
	err := u.Run(ctx, func(peers []netip.AddrPort) {
		fmt.Println(peers)
		cancel()
	})
	fmt.Println(err)
	// Output:
	// [192.0.2.7:7124 [2001:db8::7]:7125]
	// <nil>
}
