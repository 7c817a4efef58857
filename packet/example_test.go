// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet_test

import (
	"encoding/hex"
	"fmt"
	"net/netip"

	"github.com/seed5728abee/fathom/packet"
)

// A router's answer to a probe: who sent it, which probe it is about, and the MPLS labels
// with which the probe arrived there.
func Example() {
	datagram, _ := hex.DecodeString("450000a8000000003e01aefac00002010a580102" + "0b00f4df00200000" + // IPv4, time exceeded
		"4500001cc2f70000fd01c5580a580102c6336403" + "08007715000180e9" + // quoted IPv4, echo request
		fmt.Sprintf("%0200d", 0) + "2000c00d" + "00080101" + "03e81b01") // padding, extension, label

	ip, err := packet.ParseIPv4(datagram)
	if err != nil {
		fmt.Println(err)
		return
	}
	e, err := packet.ParseICMPError(4, ip.Payload())
	if err != nil {
		fmt.Println(err)
		return
	}
	q, err := packet.ParseQuote(e.Quote)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(ip.Src(), "about", q.Protocol, "to", q.Dst, "sequence", q.Seq())
	for _, l := range e.Extensions.AppendLabels(nil) {
		fmt.Printf("label %d, traffic class %d, bottom %v, TTL %d\n", l.Label, l.TC, l.Bottom, l.TTL)
	}
	// Output:
	// 192.0.2.1 about ICMP to 198.51.100.3 sequence 33001
	// label 16001, traffic class 5, bottom true, TTL 1
}

func ExampleAppendUDP() {
	src, dst := netip.MustParseAddrPort("10.88.1.2:2000"), netip.MustParseAddrPort("10.88.3.2:53")
	buf := make([]byte, 0, 1500) // used again for every packet
	h := packet.IPv4Header{TTL: 3, Protocol: packet.ProtocolUDP, Src: src.Addr(), Dst: dst.Addr()}
	payload := []byte("hi")
	b, err := h.Append(buf, packet.UDPHeaderLen+len(payload))
	if err != nil {
		fmt.Println(err)
		return
	}
	if b, err = packet.AppendUDP(b, src, dst, payload); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%x\n", b)
	// Output: 4500001e0000000003119f1c0a5801020a58030207d00035000a76b86869
}

// Two probes of one flow: the checksum carries the number, and nothing else that a load
// balancer looks at changes.
func ExampleBalanceUDP() {
	src, dst := netip.MustParseAddr("10.88.1.2"), netip.MustParseAddr("10.88.3.2")
	for number := uint16(1); number <= 2; number++ {
		b, err := packet.AppendUDPHeader(nil, 2000, 53, 4)
		if err != nil {
			fmt.Println(err)
			return
		}
		b = append(b, 0, 0, 0, 0)
		if err := packet.BalanceUDP(b, src, dst, number); err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%x %v\n", b, packet.UDP(b).ChecksumOK(src, dst))
	}
	// Output:
	// 07d00035000c0001df1c0000 true
	// 07d00035000c0002df1b0000 true
}

func ExampleExtensions_All() {
	b, err := packet.AppendExtensions(nil,
		packet.ExtensionObject{Class: packet.ExtensionMPLS, Type: 1, Payload: []byte{0x03, 0xe8, 0x1b, 0x01}},
		packet.ExtensionObject{Class: packet.ExtensionInterface, Type: 2, Payload: []byte{0, 0, 0, 7}})
	if err != nil {
		fmt.Println(err)
		return
	}
	e, err := packet.ParseExtensions(b)
	if err != nil {
		fmt.Println(err)
		return
	}
	for o := range e.All() {
		fmt.Printf("class %d type %d: %x\n", o.Class, o.Type, o.Payload)
	}
	// Output:
	// class 1 type 1: 03e81b01
	// class 2 type 2: 00000007
}

func ExampleIPv4_DecrementTTL() {
	h := packet.IPv4Header{TTL: 2, Protocol: packet.ProtocolUDP, Src: netip.MustParseAddr("10.88.1.2"), Dst: netip.MustParseAddr("10.88.3.2")}
	b, err := h.Append(nil, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	v := packet.IPv4(b)
	fmt.Println(v.DecrementTTL(), v.TTL(), v.ChecksumOK())
	fmt.Println(v.DecrementTTL(), v.TTL(), v.ChecksumOK())
	// Output:
	// true 1 true
	// false 1 true
}

func ExampleBuildUDPProbe() {
	b, err := packet.BuildUDPProbe(netip.MustParseAddr("203.0.113.10"), 1, 10000, 10000)
	fmt.Printf("%x %v\n", b, err)
	// Output: 4500001c0000000001117dc700000000cb00710a27102710000875b3 <nil>
}

func ExampleAppendSCTPInit() {
	init := packet.SCTPInit{InitiateTag: 0xdeadbeef, Window: 65536, OutStreams: 1, InStreams: 1, TSN: 99}
	b, err := packet.AppendSCTPInit(nil, 33500, 164, init)
	fmt.Printf("%x %v\n", b, err)
	// Output: 82dc00a40000000054cd0a7b01000014deadbeef000100000001000100000063 <nil>
}
