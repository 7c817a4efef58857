// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/packet"
)

// natBench is a NAT between 10.0.0.0/24 on port 0 and the world on port 1,
// where it is 203.0.113.1 unless cfg says otherwise.
func natBench(t testing.TB, cfg NATConfig) *bench {
	t.Helper()
	cfg.Outside = 1
	outside := "203.0.113.1/24"
	if cfg.Address.IsValid() {
		outside = cfg.Address.String() + "/24"
	}
	b := newBench(t, RouterConfig{
		Name:   "NAT",
		Ports:  []PortConfig{{Addrs: prefixes("10.0.0.1/24", "fd00::1/64")}, {Addrs: prefixes(outside, "fd13::1/64")}},
		Routes: []Route{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), NextHops: []NextHop{{1, netip.MustParseAddr("203.0.113.254")}}}},
		NAT:    &cfg,
	})
	b.know(0, "10.0.0.2", "10.0.0.3", "fd00::2")
	b.know(1, "203.0.113.254", "fd13::9", "198.51.100.1", "203.0.113.1")
	return b
}

// ends are the endpoints of a packet.
func ends(t testing.TB, ip []byte) (src, dst string) {
	t.Helper()
	v, err := packet.ParseIPv4(ip)
	if err != nil {
		t.Fatal(err)
	}
	f, ok := flowOf(v.Protocol(), v.Src(), v.Dst(), v.Payload())
	if !ok {
		t.Fatalf("no ports in %x", ip)
	}
	return f.src.String(), f.dst.String()
}

// out sends a datagram from inside and returns the source that the world sees.
func (b *bench) natOut(src, dst string) string {
	b.t.Helper()
	s, d := ends(b.t, b.one(b.send(0, udp(src, dst, 9)), 1))
	if d != dst {
		b.t.Fatalf("destination %s became %s", dst, d)
	}
	return s
}

// in sends a datagram from outside and returns the inside destination, "" if it did not pass.
func (b *bench) natIn(src, dst string) string {
	b.t.Helper()
	got := b.send(1, udp(src, dst, 9))
	if len(got) == 0 {
		return ""
	}
	s, d := ends(b.t, b.one(got, 0))
	if s != src {
		b.t.Fatalf("source %s became %s", src, s)
	}
	return d
}

func TestNATMapping(t *testing.T) {
	for _, tt := range []struct {
		mapping Dependence
		// Whether other port of the same remote host, and another host, see the same external port.
		port, host bool
	}{
		{EndpointIndependent, true, true}, {AddressDependent, true, false}, {AddressAndPortDependent, false, false},
	} {
		t.Run(tt.mapping.String(), func(t *testing.T) {
			b := natBench(t, NATConfig{Mapping: tt.mapping, Ports: SequentialPort, PortMin: 5000})
			first := b.natOut("10.0.0.2:7000", "192.0.2.1:1")
			if first != "203.0.113.1:5000" {
				t.Errorf("external endpoint %s", first)
			}
			if again := b.natOut("10.0.0.2:7000", "192.0.2.1:1"); again != first {
				t.Errorf("the same flow has %s, then %s", first, again)
			}
			if got := b.natOut("10.0.0.2:7000", "192.0.2.1:2") == first; got != tt.port {
				t.Errorf("another remote port sees the same external port: %v", got)
			}
			if got := b.natOut("10.0.0.2:7000", "192.0.2.9:1") == first; got != tt.host {
				t.Errorf("another remote host sees the same external port: %v", got)
			}
			if other := b.natOut("10.0.0.3:7000", "192.0.2.1:1"); other == first {
				t.Errorf("two internal endpoints share %s", other)
			}
			if other := b.natOut("10.0.0.2:7001", "192.0.2.1:1"); other == first {
				t.Errorf("two internal ports share %s", other)
			}
			if got := b.natIn("192.0.2.1:1", first); got != "10.0.0.2:7000" {
				t.Errorf("the answer went to %q", got)
			}
		})
	}
}

func TestNATFiltering(t *testing.T) {
	for _, tt := range []struct {
		filtering            Dependence
		otherPort, otherHost bool
	}{
		{EndpointIndependent, true, true}, {AddressDependent, true, false}, {AddressAndPortDependent, false, false},
	} {
		for _, mapping := range []Dependence{EndpointIndependent, AddressAndPortDependent} {
			t.Run(fmt.Sprintf("%v mapping, %v filtering", mapping, tt.filtering), func(t *testing.T) {
				b := natBench(t, NATConfig{Mapping: mapping, Filtering: tt.filtering})
				ext := b.natOut("10.0.0.2:7000", "192.0.2.1:1")
				for _, c := range []struct {
					from string
					want bool
				}{{"192.0.2.1:1", true}, {"192.0.2.1:2", tt.otherPort}, {"192.0.2.9:1", tt.otherHost}} {
					if got := b.natIn(c.from, ext); (got == "10.0.0.2:7000") != c.want {
						t.Errorf("from %s: passed to %q, want passing %v", c.from, got, c.want)
					}
				}
				// What came in opens nothing.
				if got := b.natIn("192.0.2.9:1", ext); (got != "") != tt.otherHost {
					t.Errorf("second packet of a stranger: %q", got)
				}
				if got := b.natIn("192.0.2.1:1", "203.0.113.1:4"); got != "" {
					t.Errorf("port without mapping: passed to %s", got)
				}
			})
		}
	}
}

func TestNATPorts(t *testing.T) {
	b := natBench(t, NATConfig{Ports: PreservePort})
	if got := b.natOut("10.0.0.2:7000", "192.0.2.1:1"); got != "203.0.113.1:7000" {
		t.Errorf("preserved port: %s", got)
	}
	if got := b.natOut("10.0.0.3:7000", "192.0.2.1:1"); got != "203.0.113.1:7001" {
		t.Errorf("port taken by another host: %s", got)
	}
	if got := b.natOut("10.0.0.3:53", "192.0.2.1:1"); got != "203.0.113.1:53" { // REQ-3: stays in 0-1023
		t.Errorf("well-known port: %s", got)
	}

	b = natBench(t, NATConfig{Ports: SequentialPort, PortMin: 100, PortMax: 102})
	for i, want := range []string{"203.0.113.1:100", "203.0.113.1:101", "203.0.113.1:102"} {
		if got := b.natOut(fmt.Sprintf("10.0.0.2:%d", 7000+i), "192.0.2.1:1"); got != want {
			t.Errorf("mapping %d: %s, want %s", i, got, want)
		}
	}
	b.none(b.send(0, udp("10.0.0.2:8000", "192.0.2.1:1", 9))) // no port is left, and none is shared
	b.now += 6 * time.Minute
	if got := b.natOut("10.0.0.2:8000", "192.0.2.1:1"); got != "203.0.113.1:100" {
		t.Errorf("after all expired: %s", got)
	}

	b = natBench(t, NATConfig{Ports: RandomPort, PortMin: 2000, PortMax: 2999})
	seen := map[string]bool{}
	inOrder := 0
	last := netip.AddrPort{}
	for i := range 1000 { // all of them are found
		got := b.natOut(fmt.Sprintf("10.0.0.2:%d", 7000+i), "192.0.2.1:1")
		ap := netip.MustParseAddrPort(got)
		if seen[got] || ap.Port() < 2000 || ap.Port() > 2999 {
			t.Fatalf("mapping %d: %s", i, got)
		}
		if i < 100 && ap.Port() == last.Port()+1 {
			inOrder++
		}
		seen[got], last = true, ap
	}
	if inOrder > 20 {
		t.Errorf("%d of 100 random ports follow the one before", inOrder)
	}

	b = natBench(t, NATConfig{MaxMappings: 2})
	b.natOut("10.0.0.2:1", "192.0.2.1:1")
	b.natOut("10.0.0.2:2", "192.0.2.1:1")
	b.none(b.send(0, udp("10.0.0.2:3", "192.0.2.1:1", 9)))
}

func TestNATTimeout(t *testing.T) {
	for _, refresh := range []bool{false, true} {
		b := natBench(t, NATConfig{UDPTimeout: time.Minute, RefreshInbound: refresh, Filtering: AddressAndPortDependent})
		ext := b.natOut("10.0.0.2:7000", "192.0.2.1:1")
		b.now += 50 * time.Second
		if b.natOut("10.0.0.2:7000", "192.0.2.1:1") != ext { // keeps it alive
			t.Error("the mapping changed")
		}
		b.now += 50 * time.Second
		if b.natIn("192.0.2.1:1", ext) == "" {
			t.Error("expired though refreshed from inside 50s ago")
		}
		b.now += 50 * time.Second
		if got := b.natIn("192.0.2.1:1", ext) != ""; got != refresh {
			t.Errorf("RefreshInbound %v: alive 50s after an inbound packet, 100s after an outbound one: %v", refresh, got)
		}
	}
	// Under a mapping that lives on, a session of its own expires.
	b := natBench(t, NATConfig{UDPTimeout: time.Minute, Filtering: AddressDependent})
	ext := b.natOut("10.0.0.2:7000", "192.0.2.1:1")
	b.now += 40 * time.Second
	b.natOut("10.0.0.2:7000", "192.0.2.2:1")
	b.now += 40 * time.Second
	if b.natIn("192.0.2.1:1", ext) != "" || b.natIn("192.0.2.2:1", ext) == "" {
		t.Error("the filter does not forget by session")
	}
	if m := b.r.Mappings(); len(m) != 1 || m[0].Sessions != 1 {
		t.Errorf("mappings %+v", m)
	}
	b.now += time.Hour
	if m := b.r.Mappings(); len(m) != 0 {
		t.Errorf("mappings after an hour: %+v", m)
	}
}

func TestNATTCP(t *testing.T) {
	const syn, ack, fin, rst = packet.TCPSyn, packet.TCPAck, packet.TCPFin, packet.TCPRst
	step := func(b *bench, out bool, flags packet.TCPFlags) bool {
		if out {
			return len(b.send(0, tcp("10.0.0.2:7000", "192.0.2.1:80", flags))) == 1
		}
		got := b.send(1, tcp("192.0.2.1:80", "203.0.113.1:7000", flags))
		return len(got) == 1 && got[0].port == 0
	}
	alive := func(b *bench) bool { return len(b.r.Mappings()) == 1 }
	type pass struct {
		out   bool
		flags packet.TCPFlags
	}
	handshake := []pass{{true, syn}, {false, syn | ack}, {true, ack}}
	for _, tt := range []struct {
		name  string
		steps []pass
		idle  time.Duration // how long the mapping lives after the last step
	}{
		{"syn", handshake[:1], 4 * time.Minute},
		{"established", handshake, 2*time.Hour + 4*time.Minute},
		{"simultaneous open", []pass{{true, syn}, {false, syn}, {true, syn | ack}}, 2*time.Hour + 4*time.Minute},
		{"half closed", append(handshake[:3:3], pass{true, fin | ack}), 2*time.Hour + 4*time.Minute},
		{"closed", append(handshake[:3:3], pass{true, fin | ack}, pass{false, fin | ack}), 4 * time.Minute},
		{"reset", append(handshake[:3:3], pass{false, rst}), 4 * time.Minute},
		{"midstream", []pass{{true, ack}, {false, ack}}, 4 * time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := natBench(t, NATConfig{Filtering: AddressAndPortDependent})
			for i, s := range tt.steps {
				if !step(b, s.out, s.flags) {
					t.Fatalf("step %d, %v, did not pass", i, s.flags)
				}
			}
			b.now += tt.idle - time.Second
			if !alive(b) {
				t.Errorf("the mapping is gone before %v", tt.idle)
			}
			b.now += 2 * time.Second
			if alive(b) {
				t.Errorf("the mapping lives after %v", tt.idle)
			}
		})
	}
	b := natBench(t, NATConfig{Filtering: AddressAndPortDependent})
	if step(b, false, syn) {
		t.Error("a connection came in without a mapping")
	}
	if len(b.out) != 0 {
		t.Errorf("an unsolicited SYN was answered (RFC 5382 REQ-4): %s", dump(b.out))
	}
}

func TestNATHairpin(t *testing.T) {
	for _, filtering := range []Dependence{EndpointIndependent, AddressAndPortDependent} {
		b := natBench(t, NATConfig{Hairpin: true, Filtering: filtering})
		extA := b.natOut("10.0.0.2:1111", "192.0.2.1:1")
		extB := b.natOut("10.0.0.3:2222", "192.0.2.1:1")
		got := b.send(0, udp("10.0.0.2:1111", extB, 9))
		if filtering == AddressAndPortDependent {
			b.none(got) // B has not sent to A's external endpoint
		} else if s, d := ends(t, b.one(got, 0)); s != extA || d != "10.0.0.3:2222" {
			t.Errorf("B gets a packet from %s to %s, want from %s", s, d, extA)
		}
		// Now A's filter is open for B.
		if s, d := ends(t, b.one(b.send(0, udp("10.0.0.3:2222", extA, 9)), 0)); s != extB || d != "10.0.0.2:1111" {
			t.Errorf("A gets a packet from %s to %s, want from %s", s, d, extB)
		}
		if s, d := ends(t, b.one(b.send(0, udp("10.0.0.2:1111", extB, 9)), 0)); s != extA || d != "10.0.0.3:2222" {
			t.Errorf("B gets a packet from %s to %s, want from %s", s, d, extA)
		}
		// An error from B about it comes to A, in A's words.
		quote := b.out[0].frame[etherLen:]
		m, err := packet.AppendICMPError4(nil, &packet.ICMPError{Type: 3, Code: 3, Quote: quote})
		if err != nil {
			t.Fatal(err)
		}
		p, e := icmpError(t, b.one(b.send(0, ipPacket("10.0.0.3", "203.0.113.1", 9, packet.ProtocolICMP, m)), 0))
		if s, d := ends(t, e.Quote); s != "10.0.0.2:1111" || d != extB || p.src.String() != "203.0.113.1" || p.dst.String() != "10.0.0.2" {
			t.Errorf("A gets an error from %v about %s to %s", p.src, s, d)
		}
	}
	b := natBench(t, NATConfig{})
	ext := b.natOut("10.0.0.3:2222", "192.0.2.1:1")
	b.none(b.send(0, udp("10.0.0.2:1111", ext, 9)))
}

// TestNATErrors: what an ICMP error quotes is in the words of who gets it.
func TestNATErrors(t *testing.T) {
	for _, tt := range []struct {
		name string
		out  []byte
	}{
		{"udp", udp("10.0.0.2:7000", "192.0.2.1:33434", 9)},
		{"tcp", tcp("10.0.0.2:7000", "192.0.2.1:80", packet.TCPSyn)},
		{"echo", echoPacket("10.0.0.2", "192.0.2.1", 9, 8, 7000, 3)},
	} {
		for _, short := range []bool{false, true} {
			b := natBench(t, NATConfig{Ports: SequentialPort, PortMin: 40000, Filtering: AddressAndPortDependent})
			ext := b.one(b.send(0, bytes.Clone(tt.out)), 1)
			quote := bytes.Clone(ext)
			if short {
				quote = quote[:28] // eight bytes, as RFC 792 asks for at least
			}
			e := packet.ICMPError{Type: 11, Quote: quote}
			if !short {
				e.Extensions, _ = packet.AppendMPLS(nil, []packet.Label{{Label: 5, TTL: 1, Bottom: true}})
			}
			m, err := packet.AppendICMPError4(nil, &e)
			if err != nil {
				t.Fatal(err)
			}
			p, got := icmpError(t, b.one(b.send(1, ipPacket("198.51.100.7", "203.0.113.1", 9, packet.ProtocolICMP, m)), 0))
			want := bytes.Clone(tt.out)
			packet.IPv4(want).DecrementTTL() // it was quoted one hop on
			n := min(len(want), len(quote))
			if p.src.String() != "198.51.100.7" || p.dst.String() != "10.0.0.2" || !bytes.Equal(got.Quote[:n], want[:n]) {
				t.Errorf("%s, short %v: error from %v to %v quotes\n%x, want\n%x", tt.name, short, p.src, p.dst, got.Quote, want[:n])
			}
			if !short && len(got.Extensions.AppendLabels(nil)) != 1 {
				t.Errorf("%s: extensions %x", tt.name, got.Extensions)
			}
			// One that quotes what was never sent.
			forged := bytes.Clone(quote)
			packet.IPv4(forged).SetDst(netip.MustParseAddr("192.0.2.77"))
			m, _ = packet.AppendICMPError4(nil, &packet.ICMPError{Type: 11, Quote: forged})
			b.none(b.send(1, ipPacket("198.51.100.7", "203.0.113.1", 9, packet.ProtocolICMP, m)))
		}
	}
	// The NAT's own errors, on both sides of it.
	b := natBench(t, NATConfig{})
	in := udp("10.0.0.2:7000", "192.0.2.1:1", 1)
	p, e := icmpError(t, b.one(b.send(0, bytes.Clone(in)), 0))
	if p.src.String() != "10.0.0.1" || !bytes.Equal(e.Quote, in) {
		t.Errorf("hop limit of the NAT inside: from %v, quote %x", p.src, e.Quote)
	}
	ext := b.natOut("10.0.0.2:7000", "192.0.2.1:1")
	in = udp("192.0.2.1:1", ext, 1)
	p, e = icmpError(t, b.one(b.send(1, bytes.Clone(in)), 1))
	if p.src.String() != "203.0.113.1" || !bytes.Equal(e.Quote, in) {
		t.Errorf("hop limit of the NAT outside: from %v, quote %x", p.src, e.Quote)
	}
	// An inside host refuses: the world hears it from the external address, about the external endpoint.
	arrived := b.one(b.send(1, udp("192.0.2.1:1", ext, 9)), 0)
	m, err := packet.AppendICMPError4(nil, &packet.ICMPError{Type: 3, Code: 3, Quote: arrived})
	if err != nil {
		t.Fatal(err)
	}
	p, e = icmpError(t, b.one(b.send(0, ipPacket("10.0.0.2", "192.0.2.1", 9, packet.ProtocolICMP, m)), 1))
	if s, d := ends(t, e.Quote); p.src.String() != "203.0.113.1" || s != "192.0.2.1:1" || d != ext {
		t.Errorf("error from %v about %s to %s", p.src, s, d)
	}
}

func TestNATRest(t *testing.T) {
	b := natBench(t, NATConfig{})
	// Echo, both ways; the identifier is the port.
	got := b.one(b.send(0, echoPacket("10.0.0.2", "192.0.2.1", 9, 8, 77, 1)), 1)
	if s, d := ends(t, got); s != "203.0.113.1:77" || d != "192.0.2.1:0" {
		t.Errorf("echo request from %s to %s", s, d)
	}
	got = b.one(b.send(1, echoPacket("192.0.2.1", "203.0.113.1", 9, 0, 77, 1)), 0)
	if s, d := ends(t, got); s != "192.0.2.1:0" || d != "10.0.0.2:77" {
		t.Errorf("echo reply from %s to %s", s, d)
	}
	// The NAT itself answers pings from both sides.
	b.one(b.send(1, echoPacket("192.0.2.1", "203.0.113.1", 9, 8, 77, 1)), 1)
	b.one(b.send(0, echoPacket("10.0.0.2", "203.0.113.1", 9, 8, 77, 1)), 0)
	// Nothing inside is reached by its own address, and nothing passes that has no ports.
	b.none(b.send(1, udp("192.0.2.1:1", "10.0.0.2:7000", 9)))
	b.none(b.send(0, ipPacket("10.0.0.2", "192.0.2.1", 9, packet.ProtocolSCTP, make([]byte, 12))))
	b.none(b.send(0, echoPacket("10.0.0.2", "192.0.2.1", 9, 0, 9, 9))) // a reply to nothing
	// A datagram without checksum stays without.
	in := udp("10.0.0.2:7000", "192.0.2.1:1", 9)
	in[26], in[27] = 0, 0
	if got := b.one(b.send(0, in), 1); got[26] != 0 || got[27] != 0 {
		t.Errorf("checksum 0 became %x", got[26:28])
	}
	// IPv6 is routed.
	b.one(b.send(1, udp("[fd13::9]:1", "[fd00::2]:1", 9)), 0)
	b.one(b.send(0, udp("[fd00::2]:1", "[fd13::9]:1", 9)), 1)
	// From inside to inside it is a router.
	if s, _ := ends(t, b.one(b.send(0, udp("10.0.0.2:1", "10.0.0.3:1", 9)), 0)); s != "10.0.0.2:1" {
		t.Errorf("inside traffic has source %s", s)
	}
}

// TestNATFragments: later fragments follow the first one.
func TestNATFragments(t *testing.T) {
	b := natBench(t, NATConfig{})
	fragment := func(src, dst string, offset uint16, more bool, payload []byte) []byte {
		h := packet.IPv4Header{
			ID: 5, TTL: 9, Protocol: packet.ProtocolUDP, FragmentOffset: offset, MoreFragments: more,
			Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst),
		}
		ip, err := h.Append(nil, len(payload))
		if err != nil {
			t.Fatal(err)
		}
		return append(ip, payload...)
	}
	out, err := packet.AppendUDP(nil, netip.MustParseAddrPort("10.0.0.2:7000"), netip.MustParseAddrPort("192.0.2.1:1"), make([]byte, 100))
	if err != nil {
		t.Fatal(err)
	}
	b.none(b.send(0, fragment("10.0.0.2", "192.0.2.1", 48, false, out[48:]))) // before the first
	whole := append([]byte{}, packet.IPv4(b.one(b.send(0, fragment("10.0.0.2", "192.0.2.1", 0, true, out[:48])), 1)).Payload()...)
	last := packet.IPv4(b.one(b.send(0, fragment("10.0.0.2", "192.0.2.1", 48, false, out[48:])), 1))
	u, err := packet.ParseUDP(append(whole, last.Payload()...))
	if err != nil || last.Src().String() != "203.0.113.1" || !u.ChecksumOK(last.Src(), last.Dst()) {
		t.Errorf("reassembled: %x from %v, %v", u, last.Src(), err)
	}
	in, err := packet.AppendUDP(nil, netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("203.0.113.1:7000"), make([]byte, 100))
	if err != nil {
		t.Fatal(err)
	}
	b.one(b.send(1, fragment("192.0.2.1", "203.0.113.1", 0, true, in[:48])), 0)
	if got := packet.IPv4(b.one(b.send(1, fragment("192.0.2.1", "203.0.113.1", 48, false, in[48:])), 0)); got.Dst().String() != "10.0.0.2" {
		t.Errorf("later fragment went to %v", got.Dst())
	}
}

// TestNATPunching plays UDP hole punching (RFC 5128 section 3.3) between hosts
// behind two NATs: each learns the other's external endpoint, as a third party
// sees it, and sends to it.
//
//	A 10.0.0.2 -- NAT 203.0.113.1 -- world -- NAT 198.51.100.1 -- B 10.0.0.2
func TestNATPunching(t *testing.T) {
	full, restricted := NATConfig{}, NATConfig{Filtering: AddressDependent}
	port := NATConfig{Filtering: AddressAndPortDependent}
	symmetric := NATConfig{Mapping: AddressAndPortDependent, Filtering: AddressAndPortDependent, Ports: RandomPort}
	for _, tt := range []struct {
		name string
		a, b NATConfig
		want bool
	}{
		{"full cone, full cone", full, full, true},
		{"port restricted, port restricted", port, port, true},
		{"restricted, port restricted", restricted, port, true},
		{"symmetric, full cone", symmetric, full, true},
		{"symmetric, restricted", symmetric, restricted, true},
		{"symmetric, port restricted", symmetric, port, false},
		{"symmetric, symmetric", symmetric, symmetric, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.b.Address = netip.MustParseAddr("198.51.100.1")
			a, b := natBench(t, tt.a), natBench(t, tt.b)
			const inside, server = "10.0.0.2:7000", "192.0.2.1:3478"
			extA, extB := a.natOut(inside, server), b.natOut(inside, server)
			// Each sends; what its NAT lets out is given to the other's.
			met := false
			toA, toB := extA, extB
			for range 4 {
				if src := a.natOut(inside, toB); b.natIn(src, toB) != "" {
					met = true
					toA = src // B answers to where it came from
				}
				if src := b.natOut(inside, toA); a.natIn(src, toA) != "" {
					met = true
					toB = src
				}
			}
			if met != tt.want {
				t.Errorf("met: %v, want %v", met, tt.want)
			}
		})
	}
}

func TestNATSessionsBounded(t *testing.T) {
	b := natBench(t, NATConfig{Filtering: AddressAndPortDependent})
	ext := ""
	for i := range maxSessions + 10 {
		b.now += time.Millisecond
		ext = b.natOut("10.0.0.2:7000", fmt.Sprintf("192.0.2.1:%d", 1000+i))
	}
	if m := b.r.Mappings(); len(m) != 1 || m[0].Sessions != maxSessions {
		t.Errorf("mappings %+v", m)
	}
	if b.natIn("192.0.2.1:1000", ext) != "" || b.natIn(fmt.Sprintf("192.0.2.1:%d", 1000+maxSessions), ext) == "" {
		t.Error("the session that made room is not the one idle longest")
	}
}
