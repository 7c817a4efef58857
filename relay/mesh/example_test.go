// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/relay/mesh"
)

// Two relays find each other, and a broadcast crosses. The slices stand for a network.
func Example() {
	key := mesh.GenerateKey()
	here, there := netip.MustParseAddrPort("192.0.2.1:7124"), netip.MustParseAddrPort("203.0.113.1:7124")
	relays := make(map[netip.AddrPort]*mesh.Mesh)
	for i, addr := range []netip.AddrPort{here, there} {
		m, err := mesh.New(mesh.Options{ID: [6]byte{2, 0, 0, 0, 0, byte(i)}, Keys: []mesh.Key{key}})
		if err != nil {
			fmt.Println(err)
			return
		}
		relays[addr] = m
	}
	relays[here].SetPeers([]netip.AddrPort{there})

	var deliver func(from netip.AddrPort, out *mesh.Outbox)
	deliver = func(from netip.AddrPort, out *mesh.Outbox) {
		for _, item := range out.Items {
			var in mesh.Inbox
			var answers mesh.Outbox
			if reason := relays[item.To].Receive(from, item.Data, &in, &answers, time.Now()); reason != 0 {
				fmt.Println(reason)
			}
			for _, broadcast := range in.Items {
				fmt.Printf("%v received %d bytes of IP from %x\n", item.To.Addr(), len(broadcast.IP), broadcast.Link)
			}
			deliver(item.To, &answers)
		}
	}
	var out mesh.Outbox
	relays[here].Tick(time.Now(), &out) // greets the peer
	deliver(here, &out)

	ss := make([]byte, 2+14+128) // "SS", the Ethernet header, an IP packet of 128 bytes
	copy(ss, "SS\xff\xff\xff\xff\xff\xff\x02\x00\x00\x02\x00\x0b\x08\x00\x45")
	out.Reset()
	relays[here].Send([]mesh.Frame{{SS: ss, SSOK: true}}, &out, time.Now())
	deliver(here, &out)

	status := relays[here].Peers(time.Now())[0]
	fmt.Println(status.Address, status.Kind, status.State, status.Sealed)
	// Output:
	// 203.0.113.1 received 128 bytes of IP from 02000002000b
	// 203.0.113.1:7124 ours up true
}
