// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"fmt"
	"net/netip"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// A lookup goes out as bytes; the member asked reads them and answers.
func Example() {
	request := wire.Append(nil, wire.Lookup{Key: member.HashOf("printer")})
	fmt.Println(len(request), "bytes")

	message, err := wire.Decode(request)
	if err != nil {
		fmt.Println(err)
		return
	}
	switch m := message.(type) {
	case wire.Lookup:
		addr := netip.MustParseAddrPort("192.0.2.1:49610")
		owner := member.Contact{ID: member.OfAddr(addr), Dialect: member.Native, Addrs: []netip.AddrPort{addr}}
		answer := wire.Found{Key: m.Key, Owner: owner, Hops: m.Hops + 1}
		fmt.Println(m.Kind(), "of", m.Key.Short(), "answered with", answer.Kind(), answer.Owner)
	default:
		fmt.Println(wire.Refused{Code: wire.Unsupported, Reason: m.Kind().String()})
	}
	// Output:
	// 34 bytes
	// lookup of ba70e1da answered with found e533355d (192.0.2.1:49610)
}
