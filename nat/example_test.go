// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nat_test

import (
	"context"
	"fmt"

	"github.com/seed5728abee/fathom/nat"
	"github.com/seed5728abee/fathom/nat/nattest"
)

// A port of this host is opened to the outside, on whatever external port is free. The gateway of this example is one for tests; with the
// zero Options it would be the default gateway.
func Example() {
	gateway, err := nattest.Start(nattest.Behaviour{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer gateway.Close()

	ctx := context.Background()
	m, err := nat.Discover(ctx, gateway.Options())
	if err != nil {
		fmt.Println(err) // nat.ErrNoGateway, most likely
		return
	}
	defer m.Close()
	mapping, err := m.Map(ctx, nat.Request{Protocol: nat.TCP | nat.UDP, InternalPort: 49610})
	if err != nil {
		fmt.Println(err)
		return
	}
	s := mapping.State()
	fmt.Println(s.Protocol, s.External, "by", s.Method, "for", s.Lifetime)
	// Output: tcp+udp 203.0.113.1:49610 by pcp for 1h0m0s
}
