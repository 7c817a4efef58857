// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/internal/rawio/rawiotest"
	"github.com/seed5728abee/fathom/packet"
)

// The addresses of the tests, by IP version.
var (
	local   = [2]netip.Addr{netip.MustParseAddr("10.88.1.2"), netip.MustParseAddr("fd88:1::2")}
	target  = [2]netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("fd88:66::1")}
	router  = [2]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fd88:67::1")}
	nowhere = [2]netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:dead::1")}
)

const (
	hop      = 5 * time.Millisecond // there and back
	openPort = 80                   // of TCP, UDP and SCTP at every target
)

var protocols = []Protocol{ICMP, UDP, TCP, SCTP}

// internet is a path of routers to every address, hop apart. It remembers what was sent.
//
//	local --- routers[0] --- routers[1] --- ... --- any other address
type internet struct {
	routers int
	silent  bool // nothing is answered
	labels  []packet.Label

	mu   sync.Mutex
	sent [][]byte
}

// routerAddr is the address of router k, from 0.
func routerAddr(v, k int) netip.Addr {
	a := router[v]
	for range k {
		a = a.Next()
	}
	return a
}

// distance is the time to router k and back; the target is behind the last one.
func distance(k int) time.Duration { return time.Duration(k+1) * hop }

func (n *internet) carry(p []byte) []rawiotest.Delivery {
	n.mu.Lock()
	n.sent = append(n.sent, slices.Clone(p))
	n.mu.Unlock()
	if n.silent {
		return nil
	}
	d := dissect(p)
	if ttl := int(d.ttl); ttl <= n.routers {
		msg := packet.ICMPError{Type: packet.ICMPv4TimeExceeded, Quote: dying(p)}
		if d.v == 1 {
			msg.Type = packet.ICMPv6TimeExceeded
		}
		if n.labels != nil {
			msg.Extensions, _ = packet.AppendMPLS(nil, n.labels)
		}
		return arriving(distance(ttl-1), icmpError(routerAddr(d.v, ttl-1), d.src, &msg))
	}
	return arriving(distance(n.routers), respond(p)...)
}

// last is the packet that was sent last.
func (n *internet) last(t testing.TB) []byte {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.sent) == 0 {
		t.Fatal("nothing was sent")
	}
	return n.sent[len(n.sent)-1]
}

func (n *internet) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.sent)
}

func arriving(after time.Duration, packets ...[]byte) []rawiotest.Delivery {
	var out []rawiotest.Delivery
	for _, p := range packets {
		out = append(out, rawiotest.Delivery{After: after, Packet: p})
	}
	return out
}

// sentPacket is a packet of ours, taken apart.
type sentPacket struct {
	v        int // 0 IPv4, 1 IPv6
	proto    packet.Protocol
	src, dst netip.Addr
	ttl, tos uint8
	label    uint32
	upper    []byte
}

func dissect(p []byte) sentPacket {
	if p[0]>>4 == 4 {
		ip, err := packet.ParseIPv4(p)
		if err != nil || !ip.ChecksumOK() {
			panic("sent a malformed IPv4 packet")
		}
		return sentPacket{proto: ip.Protocol(), src: ip.Src(), dst: ip.Dst(), ttl: ip.TTL(), tos: ip.TOS(), upper: ip.Payload()}
	}
	ip, err := packet.ParseIPv6(p)
	if err != nil {
		panic("sent a malformed IPv6 packet")
	}
	return sentPacket{
		v: 1, proto: ip.NextHeader(), src: ip.Src(), dst: ip.Dst(), ttl: ip.HopLimit(), tos: ip.TrafficClass(),
		label: ip.FlowLabel(), upper: ip.Payload(),
	}
}

// dying is the packet as the router sees it that lets it die: with a TTL of 1.
func dying(p []byte) []byte {
	p = slices.Clone(p)
	if p[0]>>4 == 4 {
		packet.IPv4(p).SetTTL(1)
	} else {
		packet.IPv6(p).SetHopLimit(1)
	}
	return p
}

// respond is what the destination itself answers.
func respond(p []byte) [][]byte {
	d := dissect(p)
	back := func(proto packet.Protocol, upper []byte) [][]byte {
		return [][]byte{ipPacket(proto, d.dst, d.src, upper)}
	}
	switch d.proto {
	case packet.ProtocolICMP, packet.ProtocolICMPv6:
		m, err := packet.ParseICMP(d.upper)
		if err != nil {
			return nil
		}
		return [][]byte{echoReply(d.dst, d.src, m.ID(), m.Seq(), m.Body())}
	case packet.ProtocolUDP:
		u, err := packet.ParseUDP(d.upper)
		if err != nil {
			return nil
		}
		if u.DstPort() != openPort {
			return [][]byte{portUnreachable(d.dst, p)}
		}
		b, _ := packet.AppendUDP(nil, netip.AddrPortFrom(d.dst, u.DstPort()), netip.AddrPortFrom(d.src, u.SrcPort()), []byte("hello"))
		return back(packet.ProtocolUDP, b)
	case packet.ProtocolTCP:
		s, err := packet.ParseTCP(d.upper)
		if err != nil || s.Flags() != packet.TCPSyn {
			return nil
		}
		h := packet.TCPHeader{SrcPort: s.DstPort(), DstPort: s.SrcPort(), Seq: 99, Ack: s.Seq() + 1, Flags: packet.TCPSyn | packet.TCPAck}
		if s.DstPort() != openPort {
			h.Seq, h.Flags = 0, packet.TCPRst|packet.TCPAck
		}
		b, _ := h.Append(nil, d.dst, d.src, nil)
		return back(packet.ProtocolTCP, b)
	case packet.ProtocolSCTP:
		s, err := packet.ParseSCTP(d.upper)
		if err != nil {
			return nil
		}
		tag, _ := initiateTag(d.upper)
		if s.DstPort() != openPort {
			return back(packet.ProtocolSCTP, packet.AppendSCTPAbort(nil, s.DstPort(), s.SrcPort(), tag, false))
		}
		b, _ := packet.AppendSCTPInitAck(nil, s.DstPort(), s.SrcPort(), tag, packet.SCTPInit{InitiateTag: 1, OutStreams: 1, InStreams: 1}, []byte("cookie"))
		return back(packet.ProtocolSCTP, b)
	}
	return nil
}

// initiateTag reads the tag of an INIT.
func initiateTag(upper []byte) (uint32, bool) {
	q := packet.Quote{Transport: upper}
	return q.SCTPInitiateTag()
}

// ipPacket puts an IP header before upper, with a TTL of 60.
func ipPacket(proto packet.Protocol, src, dst netip.Addr, upper []byte) []byte {
	var b []byte
	var err error
	if dst.Is4() {
		h := packet.IPv4Header{TTL: 60, Protocol: proto, Src: src, Dst: dst}
		b, err = h.Append(nil, len(upper))
	} else {
		h := packet.IPv6Header{HopLimit: 60, NextHeader: proto, Src: src, Dst: dst}
		b, err = h.Append(nil, len(upper))
	}
	if err != nil {
		panic(err)
	}
	return append(b, upper...)
}

func icmpProtocol(a netip.Addr) packet.Protocol {
	if a.Is4() {
		return packet.ProtocolICMP
	}
	return packet.ProtocolICMPv6
}

func echoReply(src, dst netip.Addr, id, seq uint16, body []byte) []byte {
	if src.Is4() {
		return ipPacket(packet.ProtocolICMP, src, dst, packet.AppendICMPEcho(nil, packet.ICMPv4EchoReply, id, seq, body))
	}
	b := packet.AppendICMPEcho(nil, packet.ICMPv6EchoReply, id, seq, body)
	packet.SetICMPv6Checksum(b, src, dst)
	return ipPacket(packet.ProtocolICMPv6, src, dst, b)
}

// icmpError is a whole packet with an error message.
func icmpError(src, dst netip.Addr, e *packet.ICMPError) []byte {
	var b []byte
	var err error
	if src.Is4() {
		b, err = packet.AppendICMPError4(nil, e)
	} else {
		b, err = packet.AppendICMPError6(nil, src, dst, e)
	}
	if err != nil {
		panic(err)
	}
	return ipPacket(icmpProtocol(src), src, dst, b)
}

// portUnreachable is what src answers to the packet p.
func portUnreachable(src netip.Addr, p []byte) []byte {
	e := packet.ICMPError{Type: packet.ICMPv4Unreachable, Code: packet.ICMPv4CodePort, Quote: p}
	if src.Is6() {
		e.Type, e.Code = packet.ICMPv6Unreachable, packet.ICMPv6CodePort
	}
	return icmpError(src, dissect(p).src, &e)
}

// timeExceeded is what a router says about the packet p.
func timeExceeded(src netip.Addr, p []byte) []byte {
	e := packet.ICMPError{Type: packet.ICMPv4TimeExceeded, Quote: p}
	if src.Is6() {
		e.Type = packet.ICMPv6TimeExceeded
	}
	return icmpError(src, local[ipVersion(src)], &e)
}

// open gives a prober before a network, in memory. It is closed with the test.
func open(t testing.TB, network rawiotest.Network, opts Options) (*Prober, *rawiotest.Host) {
	t.Helper()
	host := rawiotest.NewHost(rawiotest.Config{
		Network: network, Addrs: local[:], Interfaces: []string{"lo", "eth0"}, Link: rawio.LinkAddr{2, 0, 0, 0, 0, 1},
	})
	opts.host = host
	if opts.Mode == Auto {
		opts.Mode = Privileged
	}
	p, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return p, host
}

// watchSends gives a function that returns the message that was last given to a socket, without its data.
func watchSends(host *rawiotest.Host) func() rawio.Message {
	var mu sync.Mutex
	var last rawio.Message
	host.SetFaults(rawiotest.Faults{Send: func(_ rawio.Spec, m *rawio.Message) error {
		mu.Lock()
		defer mu.Unlock()
		last = *m
		last.Data = nil
		return nil
	}})
	return func() rawio.Message {
		mu.Lock()
		defer mu.Unlock()
		return last
	}
}

// forVersions runs a subtest per IP version.
func forVersions(t *testing.T, f func(t *testing.T, v int)) {
	for v, name := range []string{"IPv4", "IPv6"} {
		t.Run(name, func(t *testing.T) { f(t, v) })
	}
}

// inBubble is a test for [rapid.Check] in a synctest bubble, where *testing.T has no Deadline.
type inBubble struct{ rapid.TB }

// sleep lets time pass in a bubble, and sees everything that was done meanwhile.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
