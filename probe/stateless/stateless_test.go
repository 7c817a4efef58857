// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package stateless

import (
	_ "embed"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/seed5728abee/fathom/packet"
)

var (
	testKey = Key{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	kinds   = []Kind{ICMP, UDP, TCP, DNS, CHAOS}

	// Of each version: where probes come from, where they go, and a router between.
	source = [2]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	target = [2]netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:7::10")}
	router = [2]netip.Addr{netip.MustParseAddr("192.0.2.254"), netip.MustParseAddr("2001:db8:1::fe")}
)

// testTime is 2026-01-02T03:04:05.0105Z.
const testTime = 1767323045_010500000

func testConfig(kind Kind) Config {
	cfg := Config{Key: testKey, Kind: kind, FirstPort: 20000, Ports: 100}
	switch kind {
	case ICMP, UDP:
		cfg.Note = "https://example.com/probes"
	case DNS:
		cfg.Name = "example.com"
	case TCP, CHAOS: // nothing to say
	}
	return cfg
}

func testProbe(version int) *Probe {
	v := version / 6
	return &Probe{Src: source[v], Dst: target[v], TTL: 5, Flow: 3, Number: 42, Time: testTime}
}

// setup gives a codec, and a table that knows it.
func setup(t testing.TB, cfg Config) (*Codec, *Table) {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	table := new(Table)
	if err := table.Add(c); err != nil {
		t.Fatal(err)
	}
	return c, table
}

func build(t testing.TB, c *Codec, p *Probe) []byte {
	t.Helper()
	b, err := c.Append(nil, p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func versionOf(pkt []byte) int { return int(pkt[0] >> 4) }

// transport gives what follows the IP header of a probe.
func transport(pkt []byte) []byte {
	if versionOf(pkt) == 4 {
		return pkt[packet.IPv4HeaderLen:]
	}
	return pkt[packet.IPv6HeaderLen:]
}

// header is how long the IP header of a probe is.
func header(pkt []byte) int { return len(pkt) - len(transport(pkt)) }

// wrap puts an IP header around an answer.
func wrap(t testing.TB, version int, proto packet.Protocol, src, dst netip.Addr, payload []byte) []byte {
	t.Helper()
	var b []byte
	var err error
	if version == 4 {
		h := packet.IPv4Header{ID: 0x1234, TOS: 0xc0, TTL: 61, Protocol: proto, Src: src, Dst: dst}
		b, err = h.Append(nil, len(payload))
	} else {
		h := packet.IPv6Header{TrafficClass: 0xc0, HopLimit: 61, NextHeader: proto, Src: src, Dst: dst}
		b, err = h.Append(nil, len(payload))
	}
	if err != nil {
		t.Fatal(err)
	}
	return append(b, payload...)
}

// report is the ICMP error that the router answers a probe with, as a whole IP packet.
func report(t testing.TB, e packet.ICMPError) []byte {
	t.Helper()
	version := versionOf(e.Quote)
	var m []byte
	var err error
	proto := packet.ProtocolICMP
	if version == 4 {
		m, err = packet.AppendICMPError4(nil, &e)
	} else {
		proto = packet.ProtocolICMPv6
		m, err = packet.AppendICMPError6(nil, router[1], source[1], &e)
	}
	if err != nil {
		t.Fatal(err)
	}
	return wrap(t, version, proto, router[version/6], source[version/6], m)
}

func exceeded(version int) uint8 {
	if version == 4 {
		return packet.ICMPv4TimeExceeded
	}
	return packet.ICMPv6TimeExceeded
}

// reply is what the target answers a probe with: to a UDP probe, an echo of the datagram.
func reply(t testing.TB, pkt []byte) []byte {
	t.Helper()
	version := versionOf(pkt)
	v := version / 6
	src, dst := target[v], source[v]
	var proto packet.Protocol
	if version == 4 {
		proto = packet.IPv4(pkt).Protocol()
	} else {
		proto = packet.IPv6(pkt).NextHeader()
	}
	b := transport(pkt)
	var err error
	switch proto {
	case packet.ProtocolICMP, packet.ProtocolICMPv6:
		m := packet.ICMP(b)
		typ := packet.ICMPv4EchoReply
		if version == 6 {
			typ = packet.ICMPv6EchoReply
		}
		b = packet.AppendICMPEcho(nil, typ, m.ID(), m.Seq(), m.Body())
	case packet.ProtocolTCP:
		s := packet.TCP(b)
		h := packet.TCPHeader{SrcPort: s.DstPort(), DstPort: s.SrcPort(), Seq: 99, Ack: s.Seq() + 1, Flags: packet.TCPSyn | packet.TCPAck}
		b, err = h.Append(nil, src, dst, nil)
	default:
		u := packet.UDP(b)
		body := u.Payload()
		if u.DstPort() == DefaultDNSPort {
			body = respond(t, body)
		}
		b, err = packet.AppendUDP(nil, netip.AddrPortFrom(src, u.DstPort()), netip.AddrPortFrom(dst, u.SrcPort()), body)
	}
	if err != nil {
		t.Fatal(err)
	}
	return wrap(t, version, proto, src, dst, b)
}

// respond is a name server, of other make than the encoder under test.
func respond(t testing.TB, query []byte) []byte {
	t.Helper()
	var q dns.Msg
	if err := q.Unpack(query); err != nil {
		t.Fatal(err)
	}
	r := new(dns.Msg).SetReply(&q)
	if q.Question[0].Qclass != dns.ClassCHAOS {
		r.Rcode = dns.RcodeNameError
	} else {
		r.Answer = []dns.RR{&dns.TXT{
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassCHAOS},
			Txt: []string{"ams1.", "ns.example.net"},
		}}
		opt := r.SetEdns0(4096, false).IsEdns0()
		for _, o := range q.IsEdns0().Option {
			switch o := o.(type) {
			case *dns.EDNS0_NSID:
				opt.Option = append(opt.Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID, Nsid: hex.EncodeToString([]byte("nsid-1"))})
			case *dns.EDNS0_COOKIE:
				opt.Option = append(opt.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: o.Cookie + "0123456789abcdef"})
			}
		}
	}
	b, err := r.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// parse gives a table a whole IP packet in the way of its version.
func parse(table *Table, pkt []byte, a *Answer) (*Codec, error) {
	if len(pkt) < packet.IPv6HeaderLen || versionOf(pkt) != 6 {
		return table.Parse4(pkt, a)
	}
	h := packet.IPv6(pkt)
	return table.Parse6(h.Src(), h.Dst(), h.HopLimit(), h.TrafficClass(), h.NextHeader(), pkt[packet.IPv6HeaderLen:], a)
}

//go:embed testdata/vectors.txt
var vectorText string

// vector gives the bytes of a name in testdata/vectors.txt.
func vector(t testing.TB, name string) []byte {
	t.Helper()
	for line := range strings.Lines(vectorText) {
		if digits, ok := strings.CutPrefix(line, name+" "); ok {
			b, err := hex.DecodeString(strings.TrimSpace(digits))
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
	}
	t.Fatalf("no vector %q", name)
	return nil
}
