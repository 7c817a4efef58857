// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/seed5728abee/fathom/packet"
)

// stringOfFive stands for five routers. Hop 1, counted from 0, sends to 192.0.2.0/24 by port 1, and the others by port 0.
//
//	10.0.0.2 -- port 0 --+
//	10.0.1.2 -- port 1 --+-- 0 -- 1 -- 2 -- 3 -- 4 -- port 2 -- 10.0.2.2
func stringOfFive(t *testing.T) *bench {
	cfg := RouterConfig{Routes: []Route{
		{Prefix: netip.MustParsePrefix("192.0.2.0/24"), NextHops: []NextHop{{Port: 0, Gateway: netip.MustParseAddr("10.0.0.2")}}},
		{Prefix: netip.MustParsePrefix("203.0.113.0/24"), NextHops: []NextHop{{Port: 2, Gateway: netip.MustParseAddr("10.0.2.2")}}},
		{Prefix: netip.MustParsePrefix("2001:db8::/32"), NextHops: []NextHop{{Port: 2, Gateway: netip.MustParseAddr("fd00:2::2")}}},
	}}
	for i := range 3 {
		cfg.Ports = append(cfg.Ports, PortConfig{Addrs: []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("10.0.%d.1/24", i)), netip.MustParsePrefix(fmt.Sprintf("fd00:%d::1/64", i)),
		}})
	}
	for i := range 5 {
		cfg.Hops = append(cfg.Hops, HopConfig{Addrs: []netip.Addr{
			netip.MustParseAddr(fmt.Sprintf("10.9.9.%d", i)), netip.MustParseAddr(fmt.Sprintf("fd00:9::%d", i)),
		}})
	}
	cfg.Hops[1].Routes = []Route{{Prefix: netip.MustParsePrefix("192.0.2.0/24"), NextHops: []NextHop{{Port: 1, Gateway: netip.MustParseAddr("10.0.1.2")}}}}
	b := newBench(t, cfg)
	for i := range 3 {
		b.know(i, fmt.Sprintf("10.0.%d.2", i), fmt.Sprintf("fd00:%d::2", i))
	}
	return b
}

func datagram4(t *testing.T, src, dst string, ttl uint8) []byte {
	t.Helper()
	h := packet.IPv4Header{TTL: ttl, Protocol: packet.ProtocolUDP, Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst)}
	b, err := h.Append(nil, 8)
	if err != nil {
		t.Fatal(err)
	}
	return append(b, 0x82, 0x35, 0x82, 0x9a, 0, 8, 0, 0)
}

func TestHops(t *testing.T) {
	for _, test := range []struct {
		name     string
		in       int
		src, dst string
		ttl      uint8
		out      int    // port of what the router sends
		from     string // whose error it is; empty: the datagram goes on
		outTTL   uint8
	}{
		{"first hop", 0, "192.0.2.1", "203.0.113.9", 1, 0, "10.9.9.0", 64},
		{"a hop with a route of its own", 0, "192.0.2.1", "203.0.113.9", 2, 1, "10.9.9.1", 63},
		{"third hop", 0, "192.0.2.1", "203.0.113.9", 3, 0, "10.9.9.2", 62},
		{"last hop", 0, "192.0.2.1", "203.0.113.9", 5, 0, "10.9.9.4", 60},
		{"along", 0, "192.0.2.1", "203.0.113.9", 6, 2, "", 1},
		{"along from the other port", 1, "192.0.2.1", "203.0.113.9", 64, 2, "", 59},
		{"back", 2, "203.0.113.9", "192.0.2.1", 64, 0, "", 59},
		{"last hop from behind", 2, "203.0.113.9", "192.0.2.1", 1, 2, "10.9.9.4", 64},
		{"first hop from behind", 2, "203.0.113.9", "192.0.2.1", 5, 2, "10.9.9.0", 60},
		{"across the beginning", 1, "203.0.113.9", "192.0.2.1", 64, 0, "", 63},
		{"no route", 2, "203.0.113.9", "198.51.100.1", 64, 2, "10.9.9.0", 60},
		{"to a hop", 0, "192.0.2.1", "10.9.9.3", 4, 0, "10.9.9.3", 61},
		{"to a hop that is too far", 0, "192.0.2.1", "10.9.9.3", 3, 0, "10.9.9.2", 62},
		{"to the far port", 0, "192.0.2.1", "10.0.2.1", 5, 0, "10.9.9.4", 60},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := stringOfFive(t)
			ip := packet.IPv4(b.one(b.send(test.in, datagram4(t, test.src, test.dst, test.ttl)), test.out))
			if ip.TTL() != test.outTTL {
				t.Errorf("time to live: got %d, want %d", ip.TTL(), test.outTTL)
			}
			if test.from == "" {
				if ip.Dst().String() != test.dst {
					t.Errorf("got a packet to %s, want the datagram to %s", ip.Dst(), test.dst)
				}
				return
			}
			if ip.Src().String() != test.from || ip.Dst().String() != test.src || ip.Protocol() != packet.ProtocolICMP {
				t.Fatalf("got %s from %s to %s, want ICMP from %s to %s", ip.Protocol(), ip.Src(), ip.Dst(), test.from, test.src)
			}
			quote, err := packet.ParseIPv4(ip.Payload()[8:])
			if err != nil {
				t.Fatal(err)
			}
			if expired := ip.Payload()[0] == packet.ICMPv4TimeExceeded; expired && quote.TTL() != 1 || !quote.ChecksumOK() || quote.Dst().String() != test.dst {
				t.Errorf("quote: time to live %d, checksum right: %v, to %s; want 1, right, to %s", quote.TTL(), quote.ChecksumOK(), quote.Dst(), test.dst)
			}
		})
	}
}

func TestHops6(t *testing.T) {
	b := stringOfFive(t)
	h := packet.IPv6Header{HopLimit: 4, NextHeader: packet.ProtocolUDP, Src: netip.MustParseAddr("fd00:0::2"), Dst: netip.MustParseAddr("2001:db8::9")}
	p, err := h.Append(nil, 8)
	if err != nil {
		t.Fatal(err)
	}
	ip := packet.IPv6(b.one(b.send(0, append(p, 0x82, 0x35, 0x82, 0x9a, 0, 8, 1, 1)), 0))
	if ip.Src() != netip.MustParseAddr("fd00:9::3") || ip.HopLimit() != 61 || ip.Payload()[8+7] != 1 {
		t.Errorf("got an answer from %s with hop limit %d, quoting %d; want fd00:9::3, 61, 1", ip.Src(), ip.HopLimit(), ip.Payload()[8+7])
	}
}

func TestHopFaults(t *testing.T) {
	port := PortConfig{MAC: hostMAC[:], MTU: 1500, Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}}
	addr := func(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }
	for name, cfg := range map[string]RouterConfig{
		"too many":           {Hops: make([]HopConfig, MaxHops+1)},
		"NAT":                {Hops: make([]HopConfig, 2), NAT: new(NATConfig)},
		"address of a port":  {Hops: []HopConfig{{Addrs: addr("10.0.0.1")}}},
		"address of another": {Hops: []HopConfig{{Addrs: addr("10.0.0.7")}, {Addrs: addr("10.0.0.7")}}},
		"two of a version":   {Hops: []HopConfig{{Addrs: append(addr("10.0.0.7"), addr("10.0.0.8")...)}}},
		"multicast":          {Hops: []HopConfig{{Addrs: addr("224.0.0.1")}}},
		"route to nowhere":   {Hops: []HopConfig{{Routes: []Route{{Prefix: netip.MustParsePrefix("192.0.2.0/24")}}}}},
	} {
		cfg.Ports = []PortConfig{port}
		if _, err := newRouter(cfg, new(bufferPool), nil); !errors.Is(err, ErrRouter) {
			t.Errorf("%s: got %v, want %v", name, err, ErrRouter)
		}
	}
}
