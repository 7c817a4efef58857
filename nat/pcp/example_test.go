// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package pcp_test

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/nat/pcp"
)

func Example() {
	ask := pcp.Request{
		Opcode: pcp.Map, Lifetime: time.Hour, Client: netip.MustParseAddr("192.0.2.7"),
		Mapping: pcp.Mapping{
			Nonce: pcp.Nonce{1, 2, 3}, Protocol: pcp.TCP, // random in earnest: it is what answers are known by
			InternalPort: 49610, External: netip.MustParseAddrPort("0.0.0.0:49610"),
		},
	}
	fmt.Println(len(ask.Append(nil)), "bytes")

	answer := pcp.Response{Opcode: pcp.Map, Lifetime: 2 * time.Minute, Epoch: 7, Mapping: ask.Mapping}
	r, err := pcp.ParseResponse(answer.Append(nil))
	fmt.Println(r.Opcode, r.Result, r.Mapping.External, r.Lifetime, err)
	// Output:
	// 60 bytes
	// MAP success 0.0.0.0:49610 2m0s <nil>
}
