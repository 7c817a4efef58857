// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/packet"
)

// bench runs a router without interfaces: frames in by send, out in out.
type bench struct {
	t   testing.TB
	r   *Router
	now time.Duration
	out []sent
}

type sent struct {
	port  int
	frame []byte
}

var hostMAC = macAddr{2, 0, 0, 0, 0, 0xaa}

func newBench(t testing.TB, cfg RouterConfig) *bench {
	t.Helper()
	b := &bench{t: t}
	for i := range cfg.Ports {
		cfg.Ports[i].MAC = net.HardwareAddr{2, 0, 0, 0, 1, byte(i)}
		if cfg.Ports[i].MTU == 0 {
			cfg.Ports[i].MTU = 1500
		}
	}
	var err error
	b.r, err = newRouter(cfg, new(bufferPool), func(port int, frame []byte, pooled bool) {
		b.out = append(b.out, sent{port, bytes.Clone(frame)})
	})
	if err != nil {
		t.Fatal(err)
	}
	b.r.clock = func() (time.Duration, int64) { return b.now, 0 }
	return b
}

// know makes neighbours known for ever.
func (b *bench) know(port int, addrs ...string) {
	for _, a := range addrs {
		b.r.neighbours[neighbourKey{port, netip.MustParseAddr(a)}] = &neighbour{mac: hostMAC, known: true, confirmed: 1 << 62}
	}
}

// send gives the router a packet on a port and returns what it sends.
func (b *bench) send(port int, ip []byte) []sent {
	b.t.Helper()
	frame := append(append([]byte{}, b.r.ports[port].mac[:]...), hostMAC[:]...)
	if ip[0]>>4 == 6 {
		frame = append(frame, 0x86, 0xdd)
	} else {
		frame = append(frame, 0x08, 0x00)
	}
	return b.sendFrame(port, append(frame, ip...))
}

func (b *bench) sendFrame(port int, frame []byte) []sent {
	b.t.Helper()
	b.out = nil
	b.r.input(b.now, port, frame)
	for _, s := range b.out {
		checkFrame(b.t, s.frame)
	}
	return b.out
}

// one expects exactly one frame from the router and returns its packet.
func (b *bench) one(got []sent, port int) []byte {
	b.t.Helper()
	if len(got) != 1 || got[0].port != port {
		b.t.Fatalf("router sent %s, want one frame from port %d; %+v", dump(got), port, b.r.counters)
	}
	return got[0].frame[etherLen:]
}

func (b *bench) none(got []sent) {
	b.t.Helper()
	if len(got) != 0 {
		b.t.Fatalf("router sent %s, want nothing", dump(got))
	}
}

func dump(got []sent) string {
	s := "nothing"
	for i, f := range got {
		if i == 0 {
			s = ""
		}
		s += " [port " + string(rune('0'+f.port)) + "] " + hex.EncodeToString(f.frame)
	}
	return s
}

// checkFrame verifies every checksum of a frame.
func checkFrame(t testing.TB, frame []byte) {
	t.Helper()
	if frame[12] == 0x08 && frame[13] == 0x06 {
		return
	}
	var p pkt
	if err := p.decode(frame, 0); err != nil {
		t.Fatalf("router sent a bad packet: %v: %x", err, frame)
	}
	if p.fragment || p.upper == nil {
		return
	}
	ok := true
	switch p.proto {
	case packet.ProtocolUDP:
		u, err := packet.ParseUDP(p.upper)
		ok = err == nil && u.ChecksumOK(p.src, p.dst)
	case packet.ProtocolTCP:
		s, err := packet.ParseTCP(p.upper)
		ok = err == nil && s.ChecksumOK(p.src, p.dst)
	case packet.ProtocolICMP:
		ok = packet.ICMP(p.upper).ChecksumOK()
	case packet.ProtocolICMPv6:
		ok = packet.ICMP(p.upper).ChecksumOK6(p.src, p.dst)
	}
	if !ok {
		t.Fatalf("router sent a wrong checksum: %x", frame)
	}
}

func ipPacket(src, dst string, ttl uint8, proto packet.Protocol, payload []byte) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	var b []byte
	var err error
	if s.Is4() {
		h := packet.IPv4Header{ID: 7, DontFragment: true, TTL: ttl, Protocol: proto, Src: s, Dst: d}
		b, err = h.Append(nil, len(payload))
	} else {
		h := packet.IPv6Header{HopLimit: ttl, NextHeader: proto, Src: s, Dst: d}
		b, err = h.Append(nil, len(payload))
	}
	if err != nil {
		panic(err)
	}
	return append(b, payload...)
}

func udp(src, dst string, ttl uint8) []byte {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	seg, err := packet.AppendUDP(nil, s, d, []byte("payload"))
	if err != nil {
		panic(err)
	}
	return ipPacket(s.Addr().String(), d.Addr().String(), ttl, packet.ProtocolUDP, seg)
}

func tcp(src, dst string, flags packet.TCPFlags) []byte {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	h := packet.TCPHeader{SrcPort: s.Port(), DstPort: d.Port(), Seq: 1000, Ack: 2000, Flags: flags}
	seg, err := h.Append(nil, s.Addr(), d.Addr(), nil)
	if err != nil {
		panic(err)
	}
	return ipPacket(s.Addr().String(), d.Addr().String(), 64, packet.ProtocolTCP, seg)
}

func echoPacket(src, dst string, ttl uint8, typ uint8, id, seq uint16) []byte {
	m := packet.AppendICMPEcho(nil, typ, id, seq, []byte("payload"))
	proto := packet.ProtocolICMP
	if netip.MustParseAddr(src).Is6() {
		proto = packet.ProtocolICMPv6
		packet.SetICMPv6Checksum(m, netip.MustParseAddr(src), netip.MustParseAddr(dst))
	} else {
		packet.SetICMPChecksum(m)
	}
	return ipPacket(src, dst, ttl, proto, m)
}

// lan is a router of two networks, with a third behind two neighbours of port 1.
func lan(t testing.TB, behaviour Behaviour) *bench {
	b := newBench(t, RouterConfig{
		Name: "R",
		Ports: []PortConfig{
			{Addrs: prefixes("10.1.0.1/24", "fd01::1/64")},
			{Addrs: prefixes("10.2.0.1/24", "fd02::1/64"), MTU: 1400},
			{Addrs: prefixes("10.3.0.1/24", "fd03::1/64")},
		},
		Routes: []Route{
			{Prefix: netip.MustParsePrefix("192.0.2.0/24"), NextHops: []NextHop{{1, netip.MustParseAddr("10.2.0.9")}, {2, netip.MustParseAddr("10.3.0.9")}}},
			{Prefix: netip.MustParsePrefix("2001:db8::/32"), NextHops: []NextHop{{1, netip.MustParseAddr("fd02::9")}, {2, netip.MustParseAddr("fd03::9")}}},
			{Prefix: netip.MustParsePrefix("198.51.100.0/26"), Reject: Blackhole},
			{Prefix: netip.MustParsePrefix("198.51.100.64/26"), Reject: Unreachable},
			{Prefix: netip.MustParsePrefix("198.51.100.128/26"), Reject: Prohibit},
		},
		Behaviour: behaviour,
	})
	b.know(0, "10.1.0.2", "fd01::2")
	b.know(1, "10.2.0.2", "fd02::2", "10.2.0.9", "fd02::9")
	b.know(2, "10.3.0.9", "fd03::9")
	return b
}

func TestRouterForward(t *testing.T) {
	b := lan(t, Behaviour{})
	for _, in := range [][]byte{udp("10.1.0.2:5", "10.2.0.2:7", 9), udp("[fd01::2]:5", "[fd02::2]:7", 9)} {
		want := bytes.Clone(in)
		if want[0]>>4 == 6 {
			packet.IPv6(want).SetHopLimit(8)
		} else {
			packet.IPv4(want).SetTTL(8)
		}
		got := b.send(0, append(in, 0, 0, 0)) // with padding, which goes no further
		if ip := b.one(got, 1); !bytes.Equal(ip, want) {
			t.Errorf("forwarded\n%x, want\n%x", ip, want)
		}
		if f := got[0].frame; macAddr(f[:6]) != hostMAC || macAddr(f[6:12]) != b.r.ports[1].mac {
			t.Errorf("Ethernet header %x", f[:14])
		}
	}
	if b.r.counters.Forwarded != 2 {
		t.Errorf("counters %+v", b.r.counters)
	}
}

// icmpError decodes an ICMP error packet.
func icmpError(t testing.TB, ip []byte) (p pkt, e packet.ICMPError) {
	t.Helper()
	if err := p.decode(append(make([]byte, etherLen), ip...), 0); err != nil {
		t.Fatal(err)
	}
	if !p.isICMP() {
		t.Fatalf("not ICMP: %x", ip)
	}
	e, err := packet.ParseICMPError(p.version(), p.upper)
	if err != nil {
		t.Fatalf("%v: %x", err, ip)
	}
	return p, e
}

func TestRouterErrors(t *testing.T) {
	long4 := ipPacket("10.1.0.2", "10.2.0.2", 9, packet.ProtocolUDP, make([]byte, 1381))
	long6 := ipPacket("fd01::2", "fd02::2", 9, packet.ProtocolUDP, make([]byte, 1361))
	tests := []struct {
		name      string
		in        []byte
		src       string
		typ, code uint8
		mtu       uint32
	}{
		{"ttl", udp("10.1.0.2:5", "10.2.0.2:7", 1), "10.1.0.1", 11, 0, 0},
		{"ttl 0", udp("10.1.0.2:5", "10.2.0.2:7", 0), "10.1.0.1", 11, 0, 0},
		{"ttl no route", udp("10.1.0.2:5", "203.0.113.1:7", 1), "10.1.0.1", 11, 0, 0},
		{"hop limit", udp("[fd01::2]:5", "[fd02::2]:7", 1), "fd01::1", 3, 0, 0},
		{"no route", udp("10.1.0.2:5", "203.0.113.1:7", 9), "10.1.0.1", 3, 0, 0},
		{"no route 6", udp("[fd01::2]:5", "[fd99::2]:7", 9), "fd01::1", 1, 0, 0},
		{"unreachable", udp("10.1.0.2:5", "198.51.100.65:7", 9), "10.1.0.1", 3, 1, 0},
		{"prohibit", udp("10.1.0.2:5", "198.51.100.129:7", 9), "10.1.0.1", 3, 13, 0},
		{"too big", long4, "10.1.0.1", 3, 4, 1400},
		{"too big 6", long6, "fd01::1", 2, 0, 1400},
		{"port", udp("10.1.0.2:5", "10.3.0.1:7", 1), "10.1.0.1", 3, 3, 0},
		{"port 6", udp("[fd01::2]:5", "[fd03::1]:7", 1), "fd01::1", 1, 4, 0},
		{"protocol", ipPacket("10.1.0.2", "10.1.0.1", 9, packet.ProtocolSCTP, make([]byte, 12)), "10.1.0.1", 3, 2, 0},
		{"next header", ipPacket("fd01::2", "fd01::1", 9, packet.ProtocolSCTP, make([]byte, 12)), "fd01::1", 4, 1, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := lan(t, Behaviour{})
			p, e := icmpError(t, b.one(b.send(0, bytes.Clone(tt.in)), 0))
			if p.src.String() != tt.src || e.Type != tt.typ || e.Code != tt.code || e.MTU != tt.mtu {
				t.Errorf("got type %d code %d mtu %d from %v, want %d %d %d from %s", e.Type, e.Code, e.MTU, p.src, tt.typ, tt.code, tt.mtu, tt.src)
			}
			if p.ttl != 64 || !bytes.HasPrefix(tt.in, e.Quote) || len(e.Quote) < min(len(tt.in), 500) {
				t.Errorf("ttl %d, quote %x of %x", p.ttl, e.Quote, tt.in)
			}
			if e.Extensions != nil {
				t.Errorf("unasked extensions %x", e.Extensions)
			}
			// Silent sends none of them, and SilentPing has no say.
			b = lan(t, Behaviour{Silent: true})
			b.none(b.send(0, bytes.Clone(tt.in)))
			if b.r.counters.ErrorsWithheld != 1 {
				t.Errorf("counters %+v", b.r.counters)
			}
		})
	}
}

// TestRouterNoError: what must not be answered.
func TestRouterNoError(t *testing.T) {
	b := lan(t, Behaviour{})
	expired, err := packet.AppendICMPError4(nil, &packet.ICMPError{Type: 11, Quote: udp("10.2.0.2:5", "10.1.0.2:7", 1)})
	if err != nil {
		t.Fatal(err)
	}
	fragment := udp("10.1.0.2:5", "10.2.0.2:7", 1)
	fragment[6], fragment[7] = 0, 5 // offset 40
	fragment[10], fragment[11] = 0, 0
	sum := packet.Checksum(fragment[:20])
	fragment[10], fragment[11] = byte(sum>>8), byte(sum)
	bad := udp("10.1.0.2:5", "10.2.0.2:7", 1)
	bad[10]++
	for name, in := range map[string][]byte{
		"an error":         ipPacket("10.1.0.2", "10.2.0.2", 1, packet.ProtocolICMP, expired),
		"a later fragment": fragment,
		"a bad checksum":   bad,
		"multicast":        udp("10.1.0.2:5", "224.0.0.1:7", 1),
		"broadcast":        udp("10.1.0.2:5", "255.255.255.255:7", 1),
		"from nobody":      udp("0.0.0.0:5", "10.2.0.2:7", 1),
		"from loopback":    udp("127.0.0.1:5", "10.2.0.2:7", 1),
		"blackhole":        udp("10.1.0.2:5", "198.51.100.1:7", 9),
	} {
		if got := b.send(0, in); len(got) != 0 {
			t.Errorf("%s: sent %s", name, dump(got))
		}
	}
	// To all stations, or to another one.
	f := append(append([]byte{}, broadcast[:]...), hostMAC[:]...)
	f = append(append(f, 8, 0), udp("10.1.0.2:5", "10.2.0.2:7", 9)...)
	b.none(b.sendFrame(0, bytes.Clone(f)))
	copy(f, hostMAC[:])
	b.none(b.sendFrame(0, f))
}

func TestRouterMisbehaves(t *testing.T) {
	in4, in6 := udp("10.1.0.2:5", "10.2.0.2:7", 1), udp("[fd01::2]:5", "[fd02::2]:7", 1)
	send := func(b *bench, in []byte) []sent { return b.send(0, bytes.Clone(in)) }

	t.Run("source", func(t *testing.T) {
		b := lan(t, Behaviour{ErrorSource: []netip.Addr{netip.MustParseAddr("172.16.5.5"), netip.MustParseAddr("fdff::5")}, TTL: 255})
		for in, want := range map[*[]byte]string{&in4: "172.16.5.5", &in6: "fdff::5"} {
			if p, _ := icmpError(t, b.one(send(b, *in), 0)); p.src.String() != want || p.ttl != 255 {
				t.Errorf("error from %v with ttl %d, want %s and 255", p.src, p.ttl, want)
			}
		}
	})
	t.Run("mpls", func(t *testing.T) {
		b := lan(t, Behaviour{MPLS: []Label{{Label: 16001, TC: 5, TTL: 1}, {Label: 1<<20 - 1, TTL: 255}}})
		want := []packet.Label{{Label: 16001, TC: 5, TTL: 1}, {Label: 1<<20 - 1, TTL: 255, Bottom: true}}
		for _, in := range [][]byte{in4, in6} {
			_, e := icmpError(t, b.one(send(b, in), 0))
			if got := e.Extensions.AppendLabels(nil); !slices.Equal(got, want) {
				t.Errorf("labels %+v, want %+v", got, want)
			}
			if len(e.Quote) != 128 || !bytes.HasPrefix(e.Quote, in) {
				t.Errorf("quote %x", e.Quote)
			}
		}
		// Only where a label switched path can end: in time exceeded.
		if _, e := icmpError(t, b.one(b.send(0, udp("10.1.0.2:5", "10.1.0.1:7", 1)), 0)); e.Extensions != nil {
			t.Errorf("port unreachable has extensions %x", e.Extensions)
		}
	})
	t.Run("rate", func(t *testing.T) {
		b := lan(t, Behaviour{ICMPRate: 10, ICMPBurst: 3})
		count := func(n int) (answers int) {
			for range n {
				answers += len(send(b, in4))
			}
			return answers
		}
		if got := count(10); got != 3 {
			t.Errorf("a burst of 10 got %d answers, want 3", got)
		}
		b.now += 100 * time.Millisecond
		if got := count(10); got != 1 {
			t.Errorf("after 100ms at 10/s: %d answers, want 1", got)
		}
		b.now += time.Hour
		if got := count(10); got != 3 {
			t.Errorf("after an hour: %d answers, want 3", got)
		}
		if got := len(b.send(0, echoPacket("10.1.0.2", "10.1.0.1", 9, 8, 1, 1))); got != 1 {
			t.Error("the rate limits echo replies")
		}
	})
	t.Run("delay", func(t *testing.T) {
		b := lan(t, Behaviour{ICMPDelay: 30 * time.Millisecond})
		b.none(send(b, in4))
		b.none(b.send(0, echoPacket("10.1.0.2", "10.1.0.1", 9, 8, 1, 1)))
		if next := b.r.release(29 * time.Millisecond); next != 30*time.Millisecond || len(b.out) != 0 {
			t.Errorf("at 29ms: next %v, sent %s", next, dump(b.out))
		}
		if next := b.r.release(30 * time.Millisecond); next >= 0 || len(b.out) != 2 {
			t.Errorf("at 30ms: next %v, sent %s", next, dump(b.out))
		}
	})
	t.Run("ping", func(t *testing.T) {
		b := lan(t, Behaviour{SilentPing: true})
		b.none(b.send(0, echoPacket("10.1.0.2", "10.1.0.1", 9, 8, 1, 1)))
		b.none(b.send(0, echoPacket("fd01::2", "fd01::1", 9, 128, 1, 1)))
		b.one(send(b, in4), 0) // errors go on
	})
	t.Run("firewall", func(t *testing.T) {
		b := lan(t, Behaviour{Firewall: []Rule{
			{Action: Accept, Protocol: 17, PortMin: 33434, PortMax: 33440, From: netip.MustParsePrefix("10.1.0.0/24")},
			{Action: Drop, Protocol: 17, PortMin: 53},
			{Action: RejectAdmin, Protocol: 17},
			{Action: RejectAdmin, Protocol: 1, To: netip.MustParsePrefix("fd02::/64")},
		}})
		b.one(b.send(0, udp("10.1.0.2:5", "10.2.0.2:33434", 9)), 1)
		b.one(b.send(0, udp("10.1.0.2:5", "10.2.0.2:33440", 9)), 1)
		b.none(b.send(0, udp("10.1.0.2:5", "10.2.0.2:53", 9)))
		b.one(b.send(0, tcp("10.1.0.2:5", "10.2.0.2:53", packet.TCPSyn)), 1)
		b.one(b.send(0, echoPacket("10.1.0.2", "10.2.0.2", 9, 8, 1, 1)), 1)
		for _, in := range [][]byte{udp("10.1.0.2:5", "10.2.0.2:33441", 9), udp("10.1.0.2:5", "10.1.0.1:9", 9)} {
			if _, e := icmpError(t, b.one(b.send(0, in), 0)); e.Type != 3 || e.Code != 13 {
				t.Errorf("reject: type %d code %d, want 3 13", e.Type, e.Code)
			}
		}
		if _, e := icmpError(t, b.one(b.send(0, echoPacket("fd01::2", "fd02::2", 9, 128, 1, 1)), 0)); e.Type != 1 || e.Code != 1 {
			t.Errorf("reject IPv6: type %d code %d, want 1 1", e.Type, e.Code)
		}
	})
}

func TestRouterLocal(t *testing.T) {
	b := lan(t, Behaviour{})
	for _, in := range [][]byte{echoPacket("10.1.0.2", "10.3.0.1", 1, 8, 77, 5), echoPacket("fd01::2", "fd03::1", 1, 128, 77, 5)} {
		var p pkt
		p.decode(append(make([]byte, etherLen), b.one(b.send(0, bytes.Clone(in)), 0)...), 0)
		m := packet.ICMP(p.upper)
		if m.Type() != map[bool]uint8{false: 0, true: 129}[p.v6] || m.ID() != 77 || m.Seq() != 5 || string(m.Body()) != "payload" {
			t.Errorf("echo reply %x", p.upper)
		}
	}
	bad := echoPacket("10.1.0.2", "10.3.0.1", 1, 8, 77, 5)
	bad[len(bad)-1]++
	b.none(b.send(0, bad))

	for _, tt := range []struct {
		flags, want packet.TCPFlags
		seq, ack    uint32
	}{
		{packet.TCPSyn, packet.TCPRst | packet.TCPAck, 0, 1001},
		{packet.TCPSyn | packet.TCPFin, packet.TCPRst | packet.TCPAck, 0, 1002},
		{packet.TCPAck, packet.TCPRst, 2000, 0},
	} {
		ip := b.one(b.send(0, tcp("10.1.0.2:5", "10.3.0.1:80", tt.flags)), 0)
		s, err := packet.ParseTCP(packet.IPv4(ip).Payload())
		if err != nil || s.Flags() != tt.want || s.Seq() != tt.seq || s.Ack() != tt.ack || s.SrcPort() != 80 || s.DstPort() != 5 {
			t.Errorf("answer to %v: %x, %v", tt.flags, ip, err)
		}
	}
	b.none(b.send(0, tcp("10.1.0.2:5", "10.3.0.1:80", packet.TCPRst)))
}

func TestRouterBalance(t *testing.T) {
	ports := func(b *bench, n int, in func(i int) []byte) (got []int) {
		t.Helper()
		for i := range n {
			s := b.send(0, in(i))
			if len(s) != 1 {
				t.Fatalf("packet %d: sent %s", i, dump(s))
			}
			got = append(got, s[0].port)
		}
		return got
	}
	spread := func(got []int) (share float64) {
		for _, p := range got {
			if p == 1 {
				share++
			}
		}
		return share / float64(len(got))
	}
	port := func(i int) string { return netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(i)).String() }
	const n = 400
	same := func(int) []byte { return udp("10.1.0.2:5", "192.0.2.1:7", 9) }
	byPort := func(i int) []byte { return udp("10.1.0.2:5", port(33434+i), 9) }
	byDst := func(i int) []byte {
		return udp("10.1.0.2:5", netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 7).String(), 9)
	}
	// The checksum changes with the sequence number: a classic ping wanders.
	bySeq := func(i int) []byte { return echoPacket("10.1.0.2", "192.0.2.1", 9, 8, 1, uint16(i)) }
	// A Paris probe keeps it.
	paris := func(i int) []byte {
		ip := bySeq(i)
		if err := packet.BalanceICMP(ip[20:], 0x1234, 8); err != nil {
			t.Fatal(err)
		}
		return ip
	}
	byLabel := func(i int) []byte {
		ip := udp("[fd01::2]:5", "[2001:db8::1]:7", 9)
		ip[2], ip[3] = byte(i>>8), byte(i)
		return ip
	}
	for _, tt := range []struct {
		name    string
		balance Balance
		in      func(int) []byte
		fixed   bool
	}{
		{"flow: one flow", BalanceFlow, same, true},
		{"flow: ports", BalanceFlow, byPort, false},
		{"flow: destinations", BalanceFlow, byDst, false},
		{"flow: echo", BalanceFlow, bySeq, false},
		{"flow: paris echo", BalanceFlow, paris, true},
		{"flow: label", BalanceFlow, byLabel, false},
		{"destination: ports", BalanceDestination, byPort, true},
		{"destination: destinations", BalanceDestination, byDst, false},
		{"packet: one flow", BalancePacket, same, false},
		{"random: one flow", BalancePacketRandom, same, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := lan(t, Behaviour{Balance: tt.balance})
			got := ports(b, n, tt.in)
			share := spread(got)
			if fixed := share == 0 || share == 1; fixed != tt.fixed {
				t.Errorf("share of the first path %.2f, want fixed %v", share, tt.fixed)
			} else if !fixed && (share < 0.4 || share > 0.6) {
				t.Errorf("share of the first path %.2f", share)
			}
			if again := ports(lan(t, Behaviour{Balance: tt.balance}), n, tt.in); !slices.Equal(got, again) {
				t.Error("another run spreads otherwise")
			}
			if tt.balance == BalancePacket && got[0] == got[1] {
				t.Errorf("packets take %v, want turns", got[:8])
			}
		})
	}
	// Routers of different names hash differently, or a second one would never use its other path.
	a, b := lan(t, Behaviour{}), lan(t, Behaviour{})
	b.r.seed = 99
	if slices.Equal(ports(a, 50, byPort), ports(b, 50, byPort)) {
		t.Error("two seeds hash alike")
	}
}

func TestRouterFragments(t *testing.T) {
	b := lan(t, Behaviour{})
	seg, err := packet.AppendUDP(nil, netip.MustParseAddrPort("10.1.0.2:5"), netip.MustParseAddrPort("10.2.0.2:7"), bytes.Repeat([]byte("0123456789"), 147))
	if err != nil {
		t.Fatal(err)
	}
	h := packet.IPv4Header{ID: 99, TTL: 9, Protocol: packet.ProtocolUDP, Src: netip.MustParseAddr("10.1.0.2"), Dst: netip.MustParseAddr("10.2.0.2")}
	ip, _ := h.Append(nil, len(seg))
	got := b.send(0, append(ip, seg...))
	if len(got) != 2 {
		t.Fatalf("sent %s, want two fragments", dump(got))
	}
	var whole []byte
	for i, s := range got {
		f, err := packet.ParseIPv4(s.frame[etherLen:])
		if err != nil || !f.ChecksumOK() || len(f) > 1400 || f.FragmentOffset() != len(whole) || f.MoreFragments() != (i == 0) || f.ID() != 99 || f.TTL() != 8 {
			t.Errorf("fragment %d: %x, %v", i, s.frame, err)
		}
		whole = append(whole, f.Payload()...)
	}
	if !bytes.Equal(whole, seg) {
		t.Error("the fragments do not add up")
	}
}

func TestRouterARP(t *testing.T) {
	b := lan(t, Behaviour{})
	unhex := func(s string) []byte {
		r, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	// Who has 10.1.0.1, tell 10.1.0.2.
	request := unhex("ffffffffffff0200000000aa0806" + "0001080006040001" + "0200000000aa0a010002" + "0000000000000a010001")
	want := unhex("0200000000aa0200000001000806" + "0001080006040002" + "0200000001000a010001" + "0200000000aa0a010002")
	if got := b.sendFrame(0, bytes.Clone(request)); len(got) != 1 || !bytes.Equal(got[0].frame, want) {
		t.Errorf("got %s, want %x", dump(got), want)
	}
	other := bytes.Clone(request)
	other[len(other)-1] = 9
	b.none(b.sendFrame(0, other))
	b.none(b.sendFrame(1, bytes.Clone(request))) // an address of another port
	for n := range request {
		b.none(b.sendFrame(0, bytes.Clone(request[:n])))
	}
}

func TestRouterND(t *testing.T) {
	b := lan(t, Behaviour{})
	solicit := func(src, target string, hopLimit uint8) []byte {
		dst := "ff02::1:ff00:1"
		tb := netip.MustParseAddr(target).As16()
		m := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, tb[:]...)
		if src != "::" {
			m = append(append(m, 1, 1), hostMAC[:]...)
		}
		packet.SetICMPv6Checksum(m, netip.MustParseAddr(src), netip.MustParseAddr(dst))
		ip := ipPacket(src, dst, hopLimit, packet.ProtocolICMPv6, m)
		return append([]byte{0x33, 0x33, 0xff, 0, 0, 1, 2, 0, 0, 0, 0, 0xaa, 0x86, 0xdd}, ip...)
	}
	for _, tt := range []struct {
		src, target, dst string
		flags            byte
	}{
		{"fd01::2", "fd01::1", "fd01::2", 0xe0},
		{"fe80::2", "fe80::ff:fe00:100", "fe80::2", 0xe0},
		{"::", "fd01::1", "ff02::1", 0xa0},
	} {
		got := b.sendFrame(0, solicit(tt.src, tt.target, 255))
		var p pkt
		if err := p.decode(append(make([]byte, etherLen), b.one(got, 0)...), 0); err != nil {
			t.Fatal(err)
		}
		if p.ttl != 255 || p.src.String() != tt.target || p.dst.String() != tt.dst || p.upper[0] != 136 || p.upper[4] != tt.flags ||
			netip.AddrFrom16([16]byte(p.upper[8:24])).String() != tt.target || !bytes.Equal(p.upper[24:], []byte{2, 1, 2, 0, 0, 0, 1, 0}) {
			t.Errorf("advertisement from %v to %v: %x", p.src, p.dst, p.upper)
		}
	}
	b.none(b.sendFrame(0, solicit("fd01::2", "fd01::1", 254))) // not from a neighbour
	b.none(b.sendFrame(0, solicit("fd01::2", "fd01::9", 255)))
	bad := solicit("fd01::2", "fd01::1", 255)
	bad[len(bad)-1]++
	b.none(b.sendFrame(0, bad))
	f := solicit("fd01::2", "fd01::1", 255)
	for n := range f {
		b.none(b.sendFrame(0, bytes.Clone(f[:n])))
	}
}

// TestRouterResolve: packets wait for an unknown neighbour, leave when it
// answers, and are reported unreachable when it does not.
func TestRouterResolve(t *testing.T) {
	b := lan(t, Behaviour{})
	isRequest := func(f []byte) bool { return f[12] == 8 && f[13] == 6 && f[21] == 1 && f[41] == 50 }
	got := b.send(0, udp("10.1.0.2:5", "10.2.0.50:7", 9))
	if len(got) != 1 || !isRequest(got[0].frame) || got[0].port != 1 {
		t.Fatalf("sent %s, want an ARP request for 10.2.0.50", dump(got))
	}
	b.none(b.send(0, udp("10.1.0.2:6", "10.2.0.50:7", 9))) // waits without another request
	reply := append(append([]byte{}, b.r.ports[1].mac[:]...), 2, 0, 0, 0, 0, 0xbb, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 0xbb, 10, 2, 0, 50)
	reply = append(append(reply, b.r.ports[1].mac[:]...), 10, 2, 0, 1)
	got = b.sendFrame(1, reply)
	if len(got) != 2 || got[0].frame[5] != 0xbb || packet.IPv4(got[0].frame[14:]).TTL() != 8 || got[1].frame[5] != 0xbb {
		t.Fatalf("after the reply sent %s, want both packets", dump(got))
	}
	b.one(b.send(0, udp("10.1.0.2:5", "10.2.0.50:7", 9)), 1)
	if next := b.r.release(b.now); next >= 0 {
		t.Errorf("still something to do at %v", next)
	}

	// Stale: used on, but asked for.
	b.now += neighbourFresh + 1
	if got := b.send(0, udp("10.1.0.2:5", "10.2.0.50:7", 9)); len(got) != 2 || !isRequest(got[0].frame) {
		t.Errorf("stale neighbour: sent %s", dump(got))
	}
	b.sendFrame(1, bytes.Clone(reply))

	// No answer, IPv4 and IPv6.
	for _, in := range [][]byte{udp("10.1.0.2:5", "10.2.0.51:7", 9), udp("[fd01::2]:5", "[fd02::51]:7", 9)} {
		b.send(0, in)
		b.out = nil
		for next := b.r.release(b.now); next >= 0; next = b.r.release(b.now) {
			if next <= b.now {
				t.Fatalf("next is %v at %v", next, b.now)
			}
			b.now = next
		}
		if len(b.out) != neighbourAsks {
			t.Fatalf("sent %s, want %d more requests and an error", dump(b.out), neighbourAsks-1)
		}
		last := b.out[len(b.out)-1]
		p, e := icmpError(t, last.frame[etherLen:])
		if want := map[bool][2]uint8{false: {3, 1}, true: {1, 3}}[p.v6]; [2]uint8{e.Type, e.Code} != want {
			t.Errorf("error type %d code %d, want %v", e.Type, e.Code, want)
		}
	}
}

// TestRouterNeighboursBounded: a scan of a large network does not fill the memory.
func TestRouterNeighboursBounded(t *testing.T) {
	b := newBench(t, RouterConfig{Name: "R", Ports: []PortConfig{{Addrs: prefixes("10.1.0.1/24")}, {Addrs: prefixes("172.16.0.1/12")}}})
	for i := range 3 * maxNeighbours {
		b.r.input(0, 0, append([]byte{2, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0xaa, 8, 0},
			udp("10.1.0.2:5", netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 17, byte(i >> 8), byte(i)}), 7).String(), 9)...))
		b.out = nil
	}
	if n := len(b.r.neighbours); n > maxNeighbours || len(b.r.resolving) > maxNeighbours {
		t.Errorf("%d neighbours, %d resolving", n, len(b.r.resolving))
	}
}

func TestRouterConfigErrors(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	port := PortConfig{MAC: mac, MTU: 1500, Addrs: prefixes("10.0.0.1/24")}
	for name, cfg := range map[string]RouterConfig{
		"no MAC":       {Ports: []PortConfig{{MTU: 1500}}},
		"group MAC":    {Ports: []PortConfig{{MAC: net.HardwareAddr{1, 0, 0, 0, 0, 1}, MTU: 1500}}},
		"MTU":          {Ports: []PortConfig{{MAC: mac, MTU: 20}}},
		"route port":   {Ports: []PortConfig{port}, Routes: []Route{{Prefix: netip.MustParsePrefix("::/0"), NextHops: []NextHop{{Port: 1}}}}},
		"route empty":  {Ports: []PortConfig{port}, Routes: []Route{{Prefix: netip.MustParsePrefix("::/0")}}},
		"route family": {Ports: []PortConfig{port}, Routes: []Route{{Prefix: netip.MustParsePrefix("::/0"), NextHops: []NextHop{{0, netip.MustParseAddr("10.0.0.2")}}}}},
		"label":        {Ports: []PortConfig{port}, Behaviour: Behaviour{MPLS: []Label{{Label: 1 << 20}}}},
		"rule":         {Ports: []PortConfig{port}, Behaviour: Behaviour{Firewall: []Rule{{}}}},
		"rate":         {Ports: []PortConfig{port}, Behaviour: Behaviour{ICMPRate: -1}},
		"balance":      {Ports: []PortConfig{port}, Behaviour: Behaviour{Balance: 9}},
		"nat port":     {Ports: []PortConfig{port}, NAT: &NATConfig{Outside: 1}},
		"nat address":  {Ports: []PortConfig{{MAC: mac, MTU: 1500}}, NAT: &NATConfig{}},
	} {
		if _, err := newRouter(cfg, new(bufferPool), nil); !errors.Is(err, ErrRouter) {
			t.Errorf("%s: %v, want ErrRouter", name, err)
		}
	}
}

func FuzzRouter(f *testing.F) {
	f.Add(uint8(0), udp("10.1.0.2:5", "10.2.0.2:7", 9))
	f.Add(uint8(0), udp("10.1.0.2:5", "192.0.2.1:7", 1))
	f.Add(uint8(1), udp("[fd02::2]:5", "[fd01::2]:7", 1))
	f.Add(uint8(0), tcp("10.1.0.2:5", "10.1.0.1:7", packet.TCPSyn))
	f.Add(uint8(0), echoPacket("10.1.0.2", "10.1.0.1", 1, 8, 1, 1))
	expired, err := packet.AppendICMPError4(nil, &packet.ICMPError{Type: 11, Quote: udp("10.2.0.1:5", "192.0.2.1:7", 1)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint8(1), ipPacket("192.0.2.1", "10.2.0.1", 9, packet.ProtocolICMP, expired))
	f.Fuzz(func(t *testing.T, port uint8, ip []byte) {
		if len(ip) == 0 {
			return
		}
		for _, nat := range []*NATConfig{nil, {Outside: 1, Filtering: AddressDependent, Hairpin: true}} {
			b := newBench(t, RouterConfig{
				Name:      "R",
				Ports:     []PortConfig{{Addrs: prefixes("10.1.0.1/24", "fd01::1/64")}, {Addrs: prefixes("10.2.0.1/24", "fd02::1/64"), MTU: 576}},
				Routes:    []Route{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), NextHops: []NextHop{{1, netip.MustParseAddr("10.2.0.9")}}}},
				Behaviour: Behaviour{MPLS: []Label{{Label: 3}}},
				NAT:       nat,
			})
			b.know(0, "10.1.0.2", "fd01::2")
			b.know(1, "10.2.0.9", "10.2.0.2", "fd02::2")
			b.r.counters = RouterCounters{}
			frame := append(append([]byte{}, b.r.ports[port%2].mac[:]...), hostMAC[:]...)
			frame = append(frame, 0x08, 0x00)
			if ip[0]>>4 == 6 {
				frame[12], frame[13] = 0x86, 0xdd
			}
			b.r.input(0, int(port%2), append(frame, ip...))
			for _, s := range b.out {
				var p pkt
				if s.frame[12] == 8 && s.frame[13] == 6 {
					continue
				}
				if err := p.decode(s.frame, 0); err != nil {
					t.Fatalf("sent what it could not read: %v: %x", err, s.frame)
				}
			}
		}
	})
}
