// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package stateless

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/dchest/siphash"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
)

// all runs f for probes of each kind and version.
func all(t *testing.T, f func(t *testing.T, c *Codec, table *Table, p *Probe, pkt []byte)) {
	for _, kind := range kinds {
		for _, version := range []int{4, 6} {
			t.Run(fmt.Sprintf("%s%d", kind, version), func(t *testing.T) {
				c, table := setup(t, testConfig(kind))
				p := testProbe(version)
				f(t, c, table, p, build(t, c, p))
			})
		}
	}
}

// expect is the answer that a router or target gives to a test probe.
func expect(c *Codec, p *Probe) Answer {
	v := 0
	if p.Dst.Is6() {
		v = 1
	}
	a := Answer{Number: p.Number, Flow: p.Flow, Target: target[v], Responder: router[v], Local: source[v], ReplyTTL: 61, ReplyTOS: 0xc0}
	if c.cfg.Kind == CHAOS {
		a.Flow = p.Number
	}
	if v == 0 {
		a.ReplyID = 0x1234
	}
	return a
}

func check(t *testing.T, what string, table *Table, in []byte, c *Codec, want Answer) {
	t.Helper()
	var a Answer
	got, err := parse(table, in, &a)
	if err != nil || got != c {
		t.Errorf("%s: %p, %v\n%x", what, got, err, in)
		return
	}
	want.ReplySize = uint16(len(in))
	if len(a.Labels) == 0 {
		a.Labels = nil
	}
	if !reflect.DeepEqual(a, want) {
		t.Errorf("%s:\n got %+v\nwant %+v", what, a, want)
	}
}

func refuse(t *testing.T, what string, table *Table, in []byte, want error) {
	t.Helper()
	var a Answer
	if c, err := parse(table, in, &a); !errors.Is(err, want) || c != nil {
		t.Errorf("%s: %v, want %v; %+v\n%x", what, err, want, a, in)
	}
}

// TestErrors takes each kind of probe through the routers there are.
func TestErrors(t *testing.T) {
	labels := []packet.Label{{Label: 16001, TTL: 1}, {Label: 299, TC: 5, Bottom: true, TTL: 1}}
	mpls, err := packet.AppendMPLS(nil, labels)
	if err != nil {
		t.Fatal(err)
	}
	all(t, func(t *testing.T, c *Codec, table *Table, p *Probe, pkt []byte) {
		version := versionOf(pkt)
		want := expect(c, p)
		want.Status, want.HasICMP, want.ICMPType, want.QuotedTTL = probe.TimeExceeded, true, exceeded(version), p.TTL
		strong := want
		switch c.cfg.Kind {
		case ICMP, UDP, DNS:
			strong.Sent = p.Time
			strong.Strong = true
		case CHAOS:
			strong.Strong = true
		case TCP: // has no payload
		}
		check(t, "whole", table, report(t, packet.ICMPError{Type: exceeded(version), Quote: pkt}), c, strong)
		if version == 4 {
			check(t, "28 bytes", table, report(t, packet.ICMPError{Type: exceeded(4), Quote: pkt[:28]}), c, want)
			swapped := bytes.Clone(pkt[:28])
			binary.BigEndian.PutUint16(swapped[4:], bits.ReverseBytes16(packet.IPv4(pkt).ID()))
			check(t, "byte-swapped identification", table, report(t, packet.ICMPError{Type: exceeded(4), Quote: swapped}), c, want)
			padded := append(bytes.Clone(pkt[:28]), make([]byte, 100)...)
			check(t, "zeros for a payload", table, report(t, packet.ICMPError{Type: exceeded(4), Quote: padded}), c, want)
		} else {
			in := report(t, packet.ICMPError{Type: exceeded(6), Quote: pkt[:48]})
			if c.cfg.Kind == TCP {
				check(t, "48 bytes", table, in, c, want)
			} else {
				refuse(t, "48 bytes", table, in, ErrForged)
			}
		}
		with := strong
		with.Labels = labels
		check(t, "MPLS", table, report(t, packet.ICMPError{Type: exceeded(version), Quote: pkt, Extensions: mpls}), c, with)

		changed := bytes.Clone(pkt)
		if version == 4 {
			packet.IPv4(changed).SetTTL(1)
			packet.IPv4(changed).SetTOS(0x28)
		} else {
			packet.IPv6(changed).SetHopLimit(1)
			packet.IPv6(changed).SetTrafficClass(0x28)
		}
		on := strong
		on.QuotedTTL, on.QuotedTOS = 1, 0x28
		check(t, "TTL and TOS", table, report(t, packet.ICMPError{Type: exceeded(version), Quote: changed}), c, on)
	})
}

func TestStatus(t *testing.T) {
	tests := []struct {
		version   int
		typ, code uint8
		mtu       uint32
		want      probe.Status // 0: not ours
	}{
		{4, packet.ICMPv4TimeExceeded, packet.ICMPCodeHopLimit, 0, probe.TimeExceeded},
		{4, packet.ICMPv4Unreachable, packet.ICMPv4CodePort, 0, probe.Replied},
		{4, packet.ICMPv4Unreachable, packet.ICMPv4CodeHost, 0, probe.HostUnreachable},
		{4, packet.ICMPv4Unreachable, packet.ICMPv4CodeFragNeeded, 1400, probe.HostUnreachable},
		{4, packet.ICMPv4ParameterProblem, 0, 0, probe.HostUnreachable},
		{4, packet.ICMPv4SourceQuench, 0, 0, 0},
		{6, packet.ICMPv6TimeExceeded, packet.ICMPCodeHopLimit, 0, probe.TimeExceeded},
		{6, packet.ICMPv6Unreachable, packet.ICMPv6CodePort, 0, probe.Replied},
		{6, packet.ICMPv6Unreachable, packet.ICMPv6CodeNoRoute, 0, probe.HostUnreachable},
		{6, packet.ICMPv6PacketTooBig, 0, 1280, probe.HostUnreachable},
		{6, packet.ICMPv6ParameterProblem, packet.ICMPv6CodeNextHeader, 0, probe.HostUnreachable},
		{6, 100, 0, 0, 0},
	}
	c, table := setup(t, testConfig(UDP))
	for _, tt := range tests {
		p := testProbe(tt.version)
		in := report(t, packet.ICMPError{Type: tt.typ, Code: tt.code, MTU: tt.mtu, Quote: build(t, c, p)})
		if tt.want == 0 {
			refuse(t, "other error", table, in, ErrNotOurs)
			continue
		}
		want := expect(c, p)
		want.Status, want.HasICMP, want.ICMPType, want.ICMPCode, want.MTU = tt.want, true, tt.typ, tt.code, tt.mtu
		want.QuotedTTL, want.Sent, want.Strong = p.TTL, p.Time, true
		check(t, "error", table, in, c, want)
	}
}

func TestReplies(t *testing.T) {
	all(t, func(t *testing.T, c *Codec, table *Table, p *Probe, pkt []byte) {
		version := versionOf(pkt)
		want := expect(c, p)
		want.Responder, want.Status = want.Target, probe.Replied
		switch c.cfg.Kind {
		case ICMP:
			want.HasICMP, want.ICMPType = true, packet.ICMPv4EchoReply
			if version == 6 {
				want.ICMPType = packet.ICMPv6EchoReply
			}
			want.Sent, want.Strong = p.Time, true
		case UDP, DNS:
			want.Sent, want.Strong = p.Time, true
		case CHAOS:
			want.Strong, want.Text = true, "ams1.ns.example.net"
		case TCP: // has no payload
		}
		in := reply(t, pkt)
		check(t, "reply", table, in, c, want)

		// Another key, other ports, another local address.
		cfg := c.cfg
		cfg.Key[0]++
		_, others := setup(t, cfg)
		refuse(t, "another key", others, in, ErrForged)
		cfg = c.cfg
		cfg.FirstPort += cfg.Ports
		_, others = setup(t, cfg)
		refuse(t, "other ports", others, in, ErrNotOurs)
		refuse(t, "empty table", new(Table), in, ErrNotOurs)
		if version == 4 {
			moved := bytes.Clone(in)
			moved[16]++
			refuse(t, "another local address", table, moved, ErrForged)
		}
	})
}

// TestReplyFromElsewhere holds that the target is known although another address has answered.
func TestReplyFromElsewhere(t *testing.T) {
	for _, kind := range []Kind{ICMP, UDP} {
		c, table := setup(t, testConfig(kind))
		p := testProbe(4)
		in := reply(t, build(t, c, p))
		elsewhere := netip.MustParseAddr("203.0.113.77")
		if err := packet.IPv4(in).SetSrc(elsewhere); err != nil {
			t.Fatal(err)
		}
		var a Answer
		if _, err := table.Parse4(in, &a); err != nil || a.Target != p.Dst || a.Responder != elsewhere {
			t.Errorf("%s: %+v, %v", kind, a, err)
		}
	}
	for _, kind := range []Kind{TCP, DNS, CHAOS} {
		c, table := setup(t, testConfig(kind))
		in := reply(t, build(t, c, testProbe(4)))
		if err := packet.IPv4(in).SetSrc(router[0]); err != nil {
			t.Fatal(err)
		}
		refuse(t, kind.String(), table, in, ErrForged)
	}
}

func TestTCPAnswers(t *testing.T) {
	c, table := setup(t, testConfig(TCP))
	pkt := build(t, c, testProbe(4))
	seq := packet.TCP(transport(pkt)).Seq()
	answer := func(flags packet.TCPFlags, port uint16, ack uint32) []byte {
		h := packet.TCPHeader{SrcPort: port, DstPort: 20003, Ack: ack, Flags: flags}
		b, err := h.Append(nil, target[0], source[0], nil)
		if err != nil {
			t.Fatal(err)
		}
		return wrap(t, 4, packet.ProtocolTCP, target[0], source[0], b)
	}
	for _, flags := range []packet.TCPFlags{packet.TCPSyn | packet.TCPAck, packet.TCPRst | packet.TCPAck} {
		var a Answer
		if _, err := table.Parse4(answer(flags, 80, seq+1), &a); err != nil || a.Number != 42 || a.Flow != 3 || a.Target != target[0] {
			t.Errorf("%v: %+v, %v", flags, a, err)
		}
		refuse(t, "wrong acknowledgement", table, answer(flags, 80, seq), ErrForged)
		refuse(t, "wrong port", table, answer(flags, 81, seq+1), ErrForged)
	}
	// Without ACK nothing is acknowledged; others belong to connections.
	for _, flags := range []packet.TCPFlags{packet.TCPRst, packet.TCPSyn, packet.TCPAck, packet.TCPFin | packet.TCPAck} {
		refuse(t, flags.String(), table, answer(flags, 80, seq+1), ErrNotOurs)
	}
}

// TestUDPAnswers holds that a datagram from the right port proves nothing but by repeating the payload.
func TestUDPAnswers(t *testing.T) {
	c, table := setup(t, testConfig(UDP))
	probed := packet.UDP(transport(build(t, c, testProbe(4))))
	answer := func(from, to uint16, body []byte) []byte {
		b, err := packet.AppendUDP(nil, netip.AddrPortFrom(target[0], from), netip.AddrPortFrom(source[0], to), body)
		if err != nil {
			t.Fatal(err)
		}
		return wrap(t, 4, packet.ProtocolUDP, target[0], source[0], b)
	}
	check4 := func(body []byte) {
		t.Helper()
		var a Answer
		if _, err := table.Parse4(answer(33434, 20003, body), &a); err != nil || a.Number != 42 || !a.Strong {
			t.Errorf("%x: %+v, %v", body, a, err)
		}
	}
	check4(probed.Payload())
	check4(probed.Payload()[:24])
	check4(append(bytes.Clone(probed.Payload()), "and more"...))
	refuse(t, "cut off", table, answer(33434, 20003, probed.Payload()[:23]), ErrForged)
	short := answer(33434, 20003, probed.Payload())
	short[25] = packet.UDPHeaderLen + 23
	refuse(t, "cut off by its length", table, short, ErrForged)
	refuse(t, "other payload", table, answer(33434, 20003, []byte("hello")), ErrForged)
	refuse(t, "no payload", table, answer(33434, 20003, nil), ErrForged)
	refuse(t, "wrong port", table, answer(33435, 20003, probed.Payload()), ErrForged)
	refuse(t, "another flow", table, answer(33434, 20004, probed.Payload()), ErrForged)
	refuse(t, "another's port", table, answer(33434, 20100, probed.Payload()), ErrNotOurs)
}

// identifying gives the bytes of a 28-byte quote, by what each kind is known by, of which no bit may differ.
func identifying(kind Kind) []int {
	at := []int{0, 4, 5, 9, 12, 13, 14, 15, 16, 17, 18, 19}
	switch kind {
	case ICMP:
		return append(at, 20, 24, 25, 26, 27)
	case TCP:
		return append(at, 20, 21, 22, 23, 24, 25, 26, 27)
	case CHAOS:
		return append(at, 20, 21, 22, 23)
	default:
		return append(at, 20, 21, 22, 23, 26, 27)
	}
}

func TestFlippedFields(t *testing.T) {
	for _, kind := range kinds {
		c, table := setup(t, testConfig(kind))
		in := report(t, packet.ICMPError{Type: 11, Quote: build(t, c, testProbe(4))[:28]})
		for _, at := range identifying(kind) {
			for bit := range 8 {
				flipped := bytes.Clone(in)
				flipped[28+at] ^= 1 << bit
				var a Answer
				if _, err := table.Parse4(flipped, &a); err == nil {
					t.Errorf("%s: byte %d of the quote, bit %d, may differ: %+v", kind, at, bit, a)
				}
			}
		}
	}
}

// TestFlippedBits holds that whatever bit of an answer differs, it is refused or says the same about the probe.
func TestFlippedBits(t *testing.T) {
	all(t, func(t *testing.T, c *Codec, table *Table, p *Probe, pkt []byte) {
		version := versionOf(pkt)
		answers := map[string][]byte{
			"error": report(t, packet.ICMPError{Type: exceeded(version), Quote: pkt}),
			"reply": reply(t, pkt),
		}
		if version == 4 {
			answers["short error"] = report(t, packet.ICMPError{Type: 11, Quote: pkt[:28]})
		}
		for what, in := range answers {
			var want Answer
			if _, err := parse(table, in, &want); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			refused := 0
			for i := range in {
				for bit := range 8 {
					flipped := bytes.Clone(in)
					flipped[i] ^= 1 << bit
					var a Answer
					if _, err := parse(table, flipped, &a); err != nil {
						refused++
						continue
					}
					if a.Number != want.Number || a.Flow != want.Flow || a.Target != want.Target || a.Sent != 0 && a.Sent != want.Sent {
						t.Errorf("%s: byte %d, bit %d: %+v", what, i, bit, a)
					}
				}
			}
			if refused < 100 {
				t.Errorf("%s: only %d bits matter", what, refused)
			}
		}
	})
}

// TestForgedPayload holds that each bit of the long check and of what it covers matters, when it is there.
func TestForgedPayload(t *testing.T) {
	for _, kind := range []Kind{ICMP, UDP} {
		for _, version := range []int{4, 6} {
			c, table := setup(t, testConfig(kind))
			pkt := build(t, c, testProbe(version))
			covered := dstOffset + 4
			if version == 6 {
				covered = dstOffset + 16
			}
			for i := numberOffset; i < covered; i++ {
				forged := bytes.Clone(pkt)
				forged[header(pkt)+8+i] ^= 0x10
				refuse(t, fmt.Sprintf("%s%d, byte %d quoted", kind, version, i), table,
					report(t, packet.ICMPError{Type: exceeded(version), Quote: forged}), ErrForged)
				refuse(t, fmt.Sprintf("%s%d, byte %d echoed", kind, version, i), table, reply(t, forged), ErrForged)
			}
		}
	}
}

// TestForgedLabel is TestForgedPayload for the question of DNS probes.
func TestForgedLabel(t *testing.T) {
	for _, version := range []int{4, 6} {
		c, table := setup(t, testConfig(DNS))
		pkt := build(t, c, testProbe(version))
		for i := range labelLen {
			forged := bytes.Clone(pkt)
			digit := &forged[header(pkt)+packet.UDPHeaderLen+labelOffset+i]
			if *digit++; *digit == '9'+1 {
				*digit = 'a'
			}
			refuse(t, fmt.Sprintf("version %d, digit %d", version, i), table, report(t, packet.ICMPError{Type: exceeded(version), Quote: forged}), ErrForged)
		}
	}
}

// TestEchoHeader holds that the header of an echo reply agrees with its payload.
func TestEchoHeader(t *testing.T) {
	c, table := setup(t, testConfig(ICMP))
	in := reply(t, build(t, c, testProbe(4)))
	for _, at := range []int{21, 25, 26, 27} { // code, identifier within the block, number
		changed := bytes.Clone(in)
		changed[at] ^= 1
		refuse(t, fmt.Sprintf("byte %d", at), table, changed, ErrForged)
	}
}

// TestNAT shows which rewrites are tolerated.
func TestNAT(t *testing.T) {
	c, table := setup(t, testConfig(UDP))
	pkt := build(t, c, testProbe(4))
	outside := netip.MustParseAddr("198.51.100.7")

	// A NAT that restores what it has changed in the quote is not seen, whatever identification it has chosen.
	renumbered := bytes.Clone(pkt)
	renumbered[4] ^= 0xff
	var a Answer
	if _, err := table.Parse4(report(t, packet.ICMPError{Type: 11, Quote: renumbered}), &a); err != nil || !a.Strong {
		t.Errorf("other identification: %+v, %v", a, err)
	}
	refuse(t, "other identification, short", table, report(t, packet.ICMPError{Type: 11, Quote: renumbered[:28]}), ErrForged)

	// One that restores the address but not the UDP checksum is refused, as is one that restores nothing.
	half := bytes.Clone(pkt)
	packet.UDP(half[20:]).UpdateAddr(source[0], outside)
	refuse(t, "checksum not restored", table, report(t, packet.ICMPError{Type: 11, Quote: half}), ErrForged)
	if err := packet.IPv4(half).SetSrc(outside); err != nil {
		t.Fatal(err)
	}
	refuse(t, "address not restored", table, report(t, packet.ICMPError{Type: 11, Quote: half}), ErrForged)
}

func TestTruncated(t *testing.T) {
	all(t, func(t *testing.T, c *Codec, table *Table, p *Probe, pkt []byte) {
		version := versionOf(pkt)
		for what, in := range map[string][]byte{
			"error": report(t, packet.ICMPError{Type: exceeded(version), Quote: pkt}),
			"reply": reply(t, pkt),
		} {
			for n := range in {
				var a Answer
				if version == 6 && n < packet.IPv6HeaderLen {
					continue
				}
				_, err := parse(table, in[:n], &a)
				switch {
				case err == nil:
					if a.Number != p.Number || a.Target != p.Dst {
						t.Errorf("%s cut to %d: %+v", what, n, a)
					}
				case !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrForged) && !errors.Is(err, ErrNotOurs):
					t.Errorf("%s cut to %d: %v", what, n, err)
				}
				if least := header(pkt) + 8; n < least && err == nil {
					t.Errorf("%s cut to %d bytes is taken", what, n)
				}
			}
		}
	})
}

func TestNotOurs(t *testing.T) {
	c, table := setup(t, testConfig(UDP))
	quote := build(t, c, testProbe(4))
	fragment := report(t, packet.ICMPError{Type: 11, Quote: quote})
	fragment[7] = 3
	refuse(t, "a later fragment", table, fragment, ErrNotOurs)
	refuse(t, "a probe", table, quote, ErrNotOurs)

	echo, _ := setup(t, testConfig(ICMP))
	refuse(t, "echo reply to a UDP measurement", table, reply(t, build(t, echo, testProbe(4))), ErrNotOurs)
	syn, _ := setup(t, testConfig(TCP))
	refuse(t, "error about TCP from a UDP port", table, report(t, packet.ICMPError{Type: 11, Quote: build(t, syn, testProbe(4))}), ErrNotOurs)
	refuse(t, "SYN-ACK to a UDP port", table, reply(t, build(t, syn, testProbe(4))), ErrNotOurs)
	dns, _ := setup(t, testConfig(DNS))
	refuse(t, "error about DNS from a UDP port", table, report(t, packet.ICMPError{Type: 11, Quote: build(t, dns, testProbe(4))}), ErrForged)
	refuse(t, "OSPF", table, wrap(t, 4, 89, router[0], source[0], make([]byte, 40)), ErrNotOurs)
	refuse(t, "empty", table, nil, ErrMalformed)
	var a Answer
	if _, err := table.Parse6(source[0], source[0], 1, 0, packet.ProtocolUDP, make([]byte, 60), &a); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
	// IPv4 quoted in ICMPv6.
	m, err := packet.AppendICMPError6(nil, router[1], source[1], &packet.ICMPError{Type: 3, Quote: quote})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := table.Parse6(router[1], source[1], 1, 0, packet.ProtocolICMPv6, m, &a); !errors.Is(err, ErrNotOurs) {
		t.Error(err)
	}
}

func TestZone(t *testing.T) {
	c, table := setup(t, testConfig(ICMP))
	p := testProbe(6)
	p.Src, p.Dst = netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("fe80::2%eth0")
	pkt := build(t, c, p)
	m := packet.AppendICMPEcho(nil, packet.ICMPv6EchoReply, 20003, 42, packet.ICMP(transport(pkt)).Body())
	var a Answer
	_, err := table.Parse6(p.Dst, p.Src, 64, 0, packet.ProtocolICMPv6, m, &a)
	if err != nil || a.Responder != p.Dst || a.Target != p.Dst.WithZone("") {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestMapped gives packets of IPv6 with addresses of IPv4, as a site that lies may.
func TestMapped(t *testing.T) {
	all(t, func(t *testing.T, c *Codec, table *Table, _ *Probe, pkt []byte) {
		if versionOf(pkt) == 4 {
			return
		}
		in := packet.IPv6(reply(t, pkt))
		mapped := netip.MustParseAddr("::ffff:203.0.113.10")
		var a Answer
		for _, ends := range [][2]netip.Addr{{mapped, in.Dst()}, {in.Src(), mapped}, {mapped, mapped}} {
			if _, err := table.Parse6(ends[0], ends[1], 61, 0, in.NextHeader(), in.Payload(), &a); !errors.Is(err, ErrMalformed) {
				t.Errorf("from %v to %v: %v", ends[0], ends[1], err)
			}
		}
	})
}

func TestTable(t *testing.T) {
	var table Table
	codec := func(first, ports uint16) *Codec {
		cfg := testConfig(UDP)
		cfg.FirstPort, cfg.Ports = first, ports
		c, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a, b, last := codec(20000, 100), codec(20100, 100), codec(65535, 1)
	for _, c := range []*Codec{a, b, last} {
		if err := table.Add(c); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []*Codec{a, codec(20050, 100), codec(20199, 5), codec(19990, 11), codec(1, 65535)} {
		if err := table.Add(c); !errors.Is(err, ErrPortsTaken) {
			t.Errorf("%d from %d: %v", c.cfg.Ports, c.cfg.FirstPort, err)
		}
	}
	table.Remove(codec(20000, 100)) // another, though with the same ports
	in := report(t, packet.ICMPError{Type: 11, Quote: build(t, a, testProbe(4))})
	var answer Answer
	if c, err := table.Parse4(in, &answer); c != a || err != nil {
		t.Errorf("%p, %v", c, err)
	}
	table.Remove(a)
	table.Remove(a)
	refuse(t, "removed", &table, in, ErrNotOurs)
	if err := table.Add(codec(19990, 110)); err != nil {
		t.Error(err)
	}
}

// TestCheckCovers holds the drawing in check.go to account.
func TestCheckCovers(t *testing.T) {
	c, _ := setup(t, testConfig(UDP))
	covered, err := hex.DecodeString("02004e23" + "829a002a" + "c0000201" + "cb00710a" + "1886caf21d3669a0")
	if err != nil {
		t.Fatal(err)
	}
	pkt := build(t, c, testProbe(4))
	hash := func(b []byte) uint64 { return siphash.Hash(0x0706050403020100, 0x0f0e0d0c0b0a0908, b) }
	if got, want := packet.IPv4(pkt).ID(), uint16(hash(covered[:16])); got != want {
		t.Errorf("short check %#x, want %#x", got, want)
	}
	if got, want := binary.BigEndian.Uint64(pkt[28+checkOffset:]), hash(covered); got != want {
		t.Errorf("long check %#x, want %#x", got, want)
	}
}

func TestAllocations(t *testing.T) {
	all(t, func(t *testing.T, c *Codec, table *Table, p *Probe, pkt []byte) {
		buf := make([]byte, 0, 256)
		if n := testing.AllocsPerRun(100, func() {
			if _, err := c.Append(buf, p); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations per probe", n)
		}
		mpls, err := packet.AppendMPLS(nil, []packet.Label{{Label: 16001, Bottom: true}})
		if err != nil {
			t.Fatal(err)
		}
		version := versionOf(pkt)
		a := Answer{Labels: make([]packet.Label, 0, 8)}
		inputs := map[string][]byte{
			"error":  report(t, packet.ICMPError{Type: exceeded(version), Quote: pkt, Extensions: mpls}),
			"forged": report(t, packet.ICMPError{Type: exceeded(version), Quote: append(bytes.Clone(pkt[:header(pkt)]), make([]byte, 40)...)}),
			"junk":   wrap(t, version, packet.ProtocolUDP, target[version/6], source[version/6], []byte{1, 2, 3}),
		}
		if c.cfg.Kind != CHAOS {
			inputs["reply"] = reply(t, pkt)
		}
		for what, in := range inputs {
			if n := testing.AllocsPerRun(100, func() { _, _ = parse(table, in, &a) }); n != 0 {
				t.Errorf("%s: %v allocations", what, n)
			}
		}
	})
}

func TestClassic(t *testing.T) {
	c, table := setup(t, Config{Kind: UDP, FirstPort: 10000, Ports: 100, Classic: true, Target: target[0]})
	want := Answer{
		Target: target[0], Local: source[0], Responder: netip.MustParseAddr("10.9.9.1"), Status: probe.TimeExceeded,
		HasICMP: true, ICMPType: 11, ReplyTTL: 62, QuotedTTL: 1,
	}
	check(t, "exceeded", table, vector(t, "classic-exceeded"), c, want)
	captured := want
	captured.Responder, captured.ReplyTTL, captured.ReplyTOS, captured.ReplyID = netip.MustParseAddr("10.80.1.2"), 64, 0xc0, 0xbfdb
	check(t, "captured", table, vector(t, "classic-captured"), c, captured)
	final := want
	final.Responder, final.Status, final.ICMPType, final.ICMPCode = target[0], probe.Replied, 3, 3
	final.Number, final.Flow = 3, 3
	check(t, "unreachable", table, vector(t, "classic-unreachable"), c, final)

	// The probe is the one that is quoted, but for the identification that the kernel chooses.
	for n := range uint16(100) {
		pkt := build(t, c, &Probe{Src: source[0], Dst: target[0], TTL: 1, Number: n})
		quoted := bytes.Clone(vector(t, "classic-exceeded")[28:])
		binary.BigEndian.PutUint16(quoted[20:], 10000+n)
		if !bytes.Equal(pkt, quoted) {
			t.Errorf("probe %d: %x", n, pkt)
		}
		var a Answer
		if _, err := table.Parse4(report(t, packet.ICMPError{Type: 3, Code: 1, Quote: pkt}), &a); err != nil || a.Number != n || a.Status != probe.HostUnreachable {
			t.Errorf("probe %d: %+v, %v", n, a, err)
		}
	}

	edit := func(at int, v byte) []byte {
		b := vector(t, "classic-exceeded")
		b[at] = v
		return b
	}
	refuse(t, "port below", table, func() []byte { b := edit(48, 0x27); b[49] = 0x0f; return b }(), ErrNotOurs)
	refuse(t, "destination port", table, edit(51, 0x9b), ErrForged)
	refuse(t, "destination", table, edit(47, 0x0b), ErrForged)
	refuse(t, "TCP", table, edit(37, 6), ErrNotOurs)
	refuse(t, "parameter problem", table, edit(20, 12), ErrNotOurs)
	refuse(t, "redirect", table, edit(20, 5), ErrNotOurs)
	refuse(t, "datagram", table, wrap(t, 4, packet.ProtocolUDP, target[0], source[0], []byte{0x82, 0x9a, 0x27, 0x10, 0, 8, 0, 0}), ErrForged)

	anywhere, table := setup(t, Config{Kind: UDP, FirstPort: 10000, Ports: 100, Classic: true})
	moved := want
	moved.Target = netip.MustParseAddr("203.0.113.11")
	check(t, "any destination", table, edit(47, 0x0b), anywhere, moved)
}

func TestClassicICMP(t *testing.T) {
	c, table := setup(t, Config{Kind: ICMP, FirstPort: 0x1234, Ports: 100, Classic: true, Target: target[0]})
	pkt := build(t, c, &Probe{Src: source[0], Dst: target[0], TTL: 3, Number: 7})
	if got, want := transport(pkt), vector(t, "classic-echo"); !bytes.Equal(got, want) {
		t.Errorf("probe\n got %x\nwant %x", got, want)
	}
	want := Answer{
		Number: 7, Target: target[0], Local: source[0], Responder: router[0], Status: probe.TimeExceeded, HasICMP: true, ICMPType: 11,
		ReplyTTL: 61, ReplyTOS: 0xc0, ReplyID: 0x1234, QuotedTTL: 3,
	}
	check(t, "whole", table, report(t, packet.ICMPError{Type: 11, Quote: pkt}), c, want)
	check(t, "28 bytes", table, report(t, packet.ICMPError{Type: 11, Quote: pkt[:28]}), c, want)
	back := want
	back.Responder, back.Status, back.ICMPType, back.QuotedTTL = target[0], probe.Replied, 0, 0
	check(t, "reply", table, reply(t, pkt), c, back)

	other := bytes.Clone(pkt)
	packet.ICMP(transport(other)).SetID(0x1235)
	refuse(t, "error about the next identifier", table, report(t, packet.ICMPError{Type: 11, Quote: other}), ErrForged)
	refuse(t, "echo reply to somebody's ping", table, wrap(t, 4, packet.ProtocolICMP, target[0], source[0],
		packet.AppendICMPEcho(nil, 0, 0x1234, 7, []byte("abcdefghijkl"))), ErrForged)
	refuse(t, "next identifier", table, wrap(t, 4, packet.ProtocolICMP, target[0], source[0],
		packet.AppendICMPEcho(nil, 0, 0x1235, 7, []byte(classicPayload))), ErrForged)
}

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"":                       "",
		"ams1.example.net ~":     "ams1.example.net ~",
		"\x1b[2J":                "1b5b324a",
		"caf\xc3\xa9":            "636166c3a9",
		strings.Repeat("x", 300): strings.Repeat("x", maxText),
	} {
		if got := printable([]byte(in)); got != want {
			t.Errorf("%q gives %q, want %q", in, got, want)
		}
	}
}
