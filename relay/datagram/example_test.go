// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package datagram_test

import (
	"encoding/hex"
	"fmt"
	"net/netip"

	"github.com/seed5728abee/fathom/relay/datagram"
	"github.com/seed5728abee/fathom/relay/drop"
)

// A directed broadcast of another subnet, as an SS datagram brings it, is made one of the own segment's.
func Example() {
	ss, _ := hex.DecodeString("5353ffffffffffff02000002000b0800450000219baf4000401185790a4d020b0a4d02ff9c4013d4000d19c268656c6c6f")

	policy, err := datagram.NewPolicy(datagram.Config{
		Ports:    []datagram.PortRange{{First: 5064, Last: 5065}, {First: 5076, Last: 5076}},
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.77.1.3/24")},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	var d datagram.Datagram
	for _, step := range []func() drop.Reason{
		func() drop.Reason { return d.ParseSS(ss[2:]) },
		func() drop.Reason { return policy.CheckMesh(&d) },
		d.Finish,
	} {
		if reason := step(); reason != drop.None {
			fmt.Println(reason)
			return
		}
	}
	d.SetDestination(policy.Target(d.Dst.Addr()))
	fmt.Printf("%v -> %v: %s\n", d.Src, d.Dst, d.Payload())
	// Output: 10.77.2.11:40000 -> 10.77.1.255:5076: hello
}

func ExampleFragmenter() {
	broadcast, _ := hex.DecodeString("450000215a000000401114750a4d020bffffffff9c4013d4000dff9568656c6c6f")

	var d datagram.Datagram
	if reason := d.ParsePacket(datagram.MAC{2, 0, 0, 2, 0, 0x0b}, broadcast); reason != drop.None {
		fmt.Println(reason)
		return
	}
	if reason := d.Finish(); reason != drop.None {
		fmt.Println(reason)
		return
	}
	var f datagram.Fragmenter
	pieces, reason := f.Cut(&d, 28, nil)
	if reason != drop.None {
		fmt.Println(reason)
		return
	}
	for _, p := range pieces {
		fmt.Printf("%x\n", p)
	}
	// Output:
	// 4500001c5a0020004011f4790a4d020bffffffff9c4013d4000dff95
	// 450000195a0000014011147c0a4d020bffffffff68656c6c6f
}
