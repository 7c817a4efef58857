// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trust_test

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/trust"
)

// Two hosts list each other; the outbound key of one is the inbound key of the other.
func Example() {
	a, b := netip.MustParseAddrPort("192.0.2.1:7000"), netip.MustParseAddrPort("192.0.2.2:7000")
	ofA, err := trust.Parse([]byte(`{"trusted_hosts": [
		{"address": "192.0.2.2:7000", "outbound_key": "x7Vt...", "inbound_key": "q0Zk..."}
	]}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	ofB, err := trust.Parse([]byte(`{"trusted_hosts": [
		{"address": "192.0.2.1:7000", "outbound_key": "q0Zk...", "inbound_key": "x7Vt..."}
	]}`))
	if err != nil {
		fmt.Println(err)
		return
	}

	body, sealed := ofA.Seal(member.OfAddr(a), member.OfAddr(b), b, []byte("hello!"))
	fmt.Println(len(body), "bytes, sealed:", sealed)

	payload, sealed, err := ofB.Open(member.OfAddr(b), member.OfAddr(a), a, body)
	fmt.Printf("%s, sealed: %t, error: %v\n", payload, sealed, err)

	_, _, err = ofB.Open(member.OfAddr(b), member.OfAddr(a), a, []byte("in clear"))
	fmt.Println(errors.Is(err, trust.ErrNotSealed))
	// Output:
	// 62 bytes, sealed: true
	// hello!, sealed: true, error: <nil>
	// true
}
