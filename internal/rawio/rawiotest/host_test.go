// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawiotest_test

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/internal/rawio/rawiotest"
	"github.com/seed5728abee/fathom/packet"
)

var (
	local  = [2]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	target = [2]netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:1::1")}
)

// answer is a target that echoes and refuses datagrams.
func answer(p []byte) []rawiotest.Delivery {
	var out []byte
	var src, dst netip.Addr
	proto := packet.ProtocolICMP
	if p[0]>>4 == 4 {
		ip, err := packet.ParseIPv4(p)
		if err != nil || !ip.ChecksumOK() {
			return nil
		}
		src, dst = ip.Src(), ip.Dst()
		if ip.Protocol() == packet.ProtocolUDP {
			out, _ = packet.AppendICMPError4(nil, &packet.ICMPError{Type: packet.ICMPv4Unreachable, Code: packet.ICMPv4CodePort, Quote: p})
		} else if m, err := packet.ParseICMP(ip.Payload()); err == nil && m.ChecksumOK() {
			out = packet.AppendICMPEcho(nil, packet.ICMPv4EchoReply, m.ID(), m.Seq(), m.Body())
		}
	} else {
		ip, err := packet.ParseIPv6(p)
		if err != nil {
			return nil
		}
		src, dst, proto = ip.Src(), ip.Dst(), packet.ProtocolICMPv6
		if ip.NextHeader() == packet.ProtocolUDP {
			out, _ = packet.AppendICMPError6(nil, dst, src, &packet.ICMPError{Type: packet.ICMPv6Unreachable, Code: packet.ICMPv6CodePort, Quote: p})
		} else if m, err := packet.ParseICMP(ip.Payload()); err == nil && m.ChecksumOK6(src, dst) {
			out = packet.AppendICMPEcho(nil, packet.ICMPv6EchoReply, m.ID(), m.Seq(), m.Body())
			packet.SetICMPv6Checksum(out, dst, src)
		}
	}
	if out == nil {
		return nil
	}
	return []rawiotest.Delivery{{After: time.Millisecond, Packet: whole(proto, dst, src, out)}}
}

// whole is an IP packet with a TTL of 64.
func whole(proto packet.Protocol, src, dst netip.Addr, upper []byte) []byte {
	var b []byte
	if dst.Is4() {
		h := packet.IPv4Header{TTL: 64, Protocol: proto, Src: src, Dst: dst}
		b, _ = h.Append(nil, len(upper))
	} else {
		h := packet.IPv6Header{HopLimit: 64, NextHeader: proto, Src: src, Dst: dst}
		b, _ = h.Append(nil, len(upper))
	}
	return append(b, upper...)
}

// TestTwin holds the twin to the same contract as the kernel; see TestKernel in package rawio.
func TestTwin(t *testing.T) {
	rawiotest.TestHost(t, func(t *testing.T) *rawiotest.Env {
		h := rawiotest.NewHost(rawiotest.Config{Network: answer, Addrs: local[:], Interfaces: []string{"lo", "b"}, Link: rawio.LinkAddr{2, 0, 0, 0, 0, 1}})
		h.SetFaults(rawiotest.Faults{Route: noRoute})
		t.Cleanup(func() { h.Close() })
		return &rawiotest.Env{
			Host: h, Local: local, Target: target, ClosedPort: 9, Unrouted: unrouted, Interface: "b",
		}
	})
}

// TestInBubble runs a round trip in a bubble: it takes exactly as long as the network says.
func TestInBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := rawiotest.NewHost(rawiotest.Config{Network: answer, Addrs: local[:]})
		defer h.Close()
		c, err := h.Open(rawio.Spec{Version: 4, Kind: rawio.Raw, Protocol: 1, Filter: rawio.FilterICMP4(7, 7)})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		n, err := c.Send([]rawio.Message{{
			Data: packet.AppendICMPEcho(nil, packet.ICMPv4Echo, 7, 1, nil), Addr: netip.AddrPortFrom(target[0], 0),
		}})
		if n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if err := h.Wait(time.Hour); err != nil {
			t.Fatal(err)
		}
		in := []rawio.Message{{Data: make([]byte, 100)}}
		if n, err := c.Receive(in); n != 1 || err != nil {
			t.Fatalf("received %d, %v; want 1", n, err)
		}
		if got := time.Unix(0, in[0].Time).Sub(start); got != time.Millisecond {
			t.Errorf("stamped after %v, want 1ms", got)
		}
		if got := time.Since(start); got != time.Millisecond {
			t.Errorf("waited for %v, want 1ms", got)
		}
	})
}

// TestFullQueue checks that a full receive queue drops, counts, and takes packets again when it was read.
func TestFullQueue(t *testing.T) {
	h := rawiotest.NewHost(rawiotest.Config{Addrs: local[:]})
	defer h.Close()
	c, err := h.Open(rawio.Spec{Version: 4, Kind: rawio.Raw, Protocol: 1, ReceiveBuffer: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	reply := whole(packet.ProtocolICMP, target[0], local[0], packet.AppendICMPEcho(nil, packet.ICMPv4EchoReply, 1, 1, nil))
	for range 100 {
		h.Deliver(slices.Clone(reply))
	}
	received := func() int {
		in := make([]rawio.Message, 200)
		for i := range in {
			in[i].Data = make([]byte, 8) // shorter than the packets
		}
		n, err := c.Receive(in)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	n := received()
	if n == 0 || n == 100 || uint64(n)+h.Dropped() != 100 {
		t.Errorf("received %d and dropped %d of 100", n, h.Dropped())
	}
	for range 100 {
		h.Deliver(slices.Clone(reply))
	}
	if again := received(); again != n {
		t.Errorf("received %d after the queue was read, %d before", again, n)
	}
}

// TestBroken checks that no socket sees what a kernel drops.
func TestBroken(t *testing.T) {
	reply4 := packet.AppendICMPEcho(nil, packet.ICMPv4EchoReply, 1, 1, nil)
	reply6 := packet.AppendICMPEcho(nil, packet.ICMPv6EchoReply, 1, 1, nil)
	packet.SetICMPv6Checksum(reply6, target[1], local[1])
	good4 := whole(packet.ProtocolICMP, target[0], local[0], reply4)
	good6 := whole(packet.ProtocolICMPv6, target[1], local[1], reply6)
	change := func(b []byte, at int, v byte) []byte {
		b = slices.Clone(b)
		b[at] ^= v
		return b
	}
	options := slices.Concat(good6[:6], []byte{0}, good6[7:40], []byte{58, 0, 1, 4, 0, 0, 0, 0}, good6[40:])
	options[5] += 8
	for _, tt := range []struct {
		name   string
		packet []byte
		want   int
	}{
		{"IPv4", good4, 1},
		{"IPv6", good6, 1},
		{"IPv6 with hop-by-hop options", options, 1},
		{"empty", nil, 0},
		{"no version", change(good4, 0, 0x10), 0},
		{"IPv4 header checksum", change(good4, 10, 1), 0},
		{"IPv4 total length", change(good4, 2, 1), 0},
		{"IPv4 cut", good4[:19], 0},
		{"IPv6 cut", good6[:39], 0},
		{"IPv6 payload length", change(good6, 4, 1), 0},
		{"ICMPv6 checksum", change(good6, 42, 1), 0},
		{"IPv6 options cut", options[:44], 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := rawiotest.NewHost(rawiotest.Config{Addrs: local[:]})
			defer h.Close()
			got := 0
			for v, proto := range []int{1, 58} {
				c, err := h.Open(rawio.Spec{Version: 4 + 2*v, Kind: rawio.Raw, Protocol: proto})
				if err != nil {
					t.Fatal(err)
				}
				h.Deliver(slices.Clone(tt.packet))
				n, err := c.Receive([]rawio.Message{{Data: make([]byte, 100)}, {Data: make([]byte, 100)}})
				if err != nil {
					t.Fatal(err)
				}
				got += n
			}
			if got != tt.want {
				t.Errorf("%d sockets received %s, want %d", got, hex.EncodeToString(tt.packet), tt.want)
			}
		})
	}
}

func TestImpairment(t *testing.T) {
	plain := func([]byte) []rawiotest.Delivery { return []rawiotest.Delivery{{Packet: []byte{1}}} }
	run := func(i rawiotest.Impairment) (count int, after []time.Duration) {
		n := i.Wrap(plain)
		for range 10_000 {
			for _, d := range n([]byte{0}) {
				count++
				after = append(after, d.After)
			}
		}
		return count, after
	}
	if n, after := run(rawiotest.Impairment{}); n != 10_000 || slices.Max(after) != 0 {
		t.Errorf("no impairment: %d packets, up to %v late", n, slices.Max(after))
	}
	// Both directions lose: 0.9 * 0.9.
	if n, _ := run(rawiotest.Impairment{Loss: 0.1}); n < 7900 || n > 8300 {
		t.Errorf("10%% loss each way let %d of 10000 through, want about 8100", n)
	}
	if n, _ := run(rawiotest.Impairment{Duplicate: 0.25}); n < 12_200 || n > 12_800 {
		t.Errorf("25%% duplicates: %d, want about 12500", n)
	}
	_, after := run(rawiotest.Impairment{Delay: 10 * time.Millisecond, Jitter: 5 * time.Millisecond, Reorder: 0.1})
	early := 0
	for _, d := range after {
		switch {
		case d == 0:
			early++
		case d < 10*time.Millisecond || d >= 15*time.Millisecond:
			t.Fatalf("delay %v, want 10ms to 15ms", d)
		}
	}
	if early < 850 || early > 1150 {
		t.Errorf("%d of 10000 overtook, want about 1000", early)
	}
	i := rawiotest.Impairment{Loss: 0.3, Duplicate: 0.3, Jitter: time.Second, Seed: 5}
	_, a := run(i)
	_, b := run(i)
	if !slices.Equal(a, b) {
		t.Error("the same seed made other choices")
	}
	i.Seed++
	if _, c := run(i); slices.Equal(a, c) {
		t.Error("another seed made the same choices")
	}
}

func ExampleHost() {
	me, you := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1")
	host := rawiotest.NewHost(rawiotest.Config{Addrs: []netip.Addr{me}, Network: func(p []byte) []rawiotest.Delivery {
		fmt.Printf("sent %d bytes\n", len(p))
		reply := packet.AppendICMPEcho(nil, packet.ICMPv4EchoReply, 7, 1, nil)
		return []rawiotest.Delivery{{Packet: whole(packet.ProtocolICMP, you, me, reply)}}
	}})
	defer host.Close()
	c, err := host.Open(rawio.Spec{Version: 4, Kind: rawio.Raw, Protocol: 1, Filter: rawio.FilterICMP4(7, 7)})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = c.Send([]rawio.Message{{Data: packet.AppendICMPEcho(nil, packet.ICMPv4Echo, 7, 1, nil), Addr: netip.AddrPortFrom(you, 0)}})
	if err != nil {
		fmt.Println(err)
		return
	}
	in := []rawio.Message{{Data: make([]byte, 100)}}
	n, err := c.Receive(in)
	fmt.Println("received", n, "of", in[0].N, "bytes,", err)
	// Output:
	// sent 28 bytes
	// received 1 of 28 bytes, <nil>
}

var unrouted = [2]netip.Addr{netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8:ffff::9")}

func noRoute(dst netip.Addr, _ rawio.Route) error {
	if slices.Contains(unrouted[:], dst) {
		return syscall.ENETUNREACH
	}
	return nil
}
