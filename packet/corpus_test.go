// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"net/netip"
	"testing"
)

// decoders runs every decoder, with every method of what it returns, over the bytes. The fuzz
// targets and the truncation test share it, so that a decoder added here is covered by both.
var decoders = map[string]func(b []byte) error{
	"IPv4": func(b []byte) error {
		v, err := ParseIPv4(b)
		touchIPv4(v)
		return err
	},
	"QuotedIPv4": func(b []byte) error {
		v, err := ParseQuotedIPv4(b)
		touchIPv4(v)
		return err
	},
	"IPv6": func(b []byte) error {
		v, err := ParseIPv6(b)
		touchIPv6(v)
		return err
	},
	"QuotedIPv6": func(b []byte) error {
		v, err := ParseQuotedIPv6(b)
		touchIPv6(v)
		return err
	},
	"UDP": func(b []byte) error {
		u, err := ParseUDP(b)
		if err == nil {
			sink(u.SrcPort(), u.DstPort(), u.Length(), u.Checksum(), u.ChecksumOK(src4, dst4), u.Payload())
		}
		return err
	},
	"TCP": func(b []byte) error {
		t, err := ParseTCP(b)
		if err == nil {
			mss, ok := t.MSS()
			sink(t.SrcPort(), t.DstPort(), t.Seq(), t.Ack(), t.DataOffset(), t.Flags(), t.Window(), t.Checksum(), t.Urgent(),
				t.Options(), t.Payload(), mss, ok, t.ChecksumOK(src6, dst6))
		}
		return err
	},
	"SCTP": func(b []byte) error {
		s, err := ParseSCTP(b)
		if err == nil {
			init, ok := s.First().Init()
			sink(s.SrcPort(), s.DstPort(), s.Tag(), s.Checksum(), s.ChecksumOK(), s.First(), init, ok)
			for c := range s.Chunks() {
				sink(c.Init())
			}
		}
		return err
	},
	"ICMP": func(b []byte) error {
		m, err := ParseICMP(b)
		if err == nil {
			sink(m.Type(), m.Code(), m.Checksum(), m.ID(), m.Seq(), m.Body(), m.ChecksumOK(), m.ChecksumOK6(src6, dst6))
		}
		return err
	},
	"ICMPv4Error": func(b []byte) error { return touchError(4, b) },
	"ICMPv6Error": func(b []byte) error { return touchError(6, b) },
	"Extensions": func(b []byte) error {
		e, err := ParseExtensions(b)
		touchExtensions(e)
		touchExtensions(Extensions(b)) // iterating is safe even without the check
		return err
	},
	"Quote": func(b []byte) error {
		q, err := ParseQuote(b)
		if err == nil {
			tag, ok := q.SCTPInitiateTag()
			sink(q.ICMPType(), q.ICMPCode(), q.ICMPChecksum(), q.ID(), q.Seq(), q.UDPLen(), q.UDPChecksum(), q.TCPSeq(), q.SCTPTag(), tag, ok)
		}
		return err
	},
}

func touchIPv4(v IPv4) {
	if v != nil {
		sink(v.HeaderLen(), v.TOS(), v.TotalLen(), v.ID(), v.DontFragment(), v.MoreFragments(), v.FragmentOffset(), v.TTL(), v.Protocol(),
			v.Checksum(), v.ChecksumOK(), v.Src(), v.Dst(), v.Options(), v.Payload())
	}
}

func touchIPv6(v IPv6) {
	if v != nil {
		p, b, err := v.Upper()
		sink(v.TrafficClass(), v.FlowLabel(), v.PayloadLen(), v.NextHeader(), v.HopLimit(), v.Src(), v.Dst(), v.Payload(), p, b, err)
	}
}

func touchError(version int, b []byte) error {
	e, err := ParseICMPError(version, b)
	if err == nil {
		touchExtensions(e.Extensions)
		_, _ = ParseQuote(e.Quote)
	}
	return err
}

func touchExtensions(e Extensions) {
	for o := range e.All() {
		sink(o)
	}
	sink(e.AppendLabels(nil))
}

// sink keeps the compiler from dropping a call.
func sink(...any) {}

// corpus is at least one valid input for each decoder. No proper prefix of one is valid, except where an ICMP
// message or its quote, which have no length field, ends early: whole then says how much must be there.
func corpus(t testing.TB) []sample {
	app := must(t)
	options := IPv4Header{TTL: 1, Protocol: ProtocolUDP, Src: src4, Dst: dst4, Options: []byte{7, 7, 4, 0, 0, 0, 0}}
	withOptions := append(app(options.Append(nil, 8)), app(AppendUDPHeader(nil, 1, 2, 0))...)
	syn := TCPHeader{SrcPort: 33017, DstPort: 80, Flags: TCPSyn, Options: AppendTCPOptionMSS(nil, 1460)}
	cookie := app(AppendSCTPInitAck(nil, 164, 33500, 0xdeadbeef, SCTPInit{InitiateTag: 1, OutStreams: 1, InStreams: 1}, []byte("cookie!!")))
	too := ICMPError{Type: ICMPv6PacketTooBig, MTU: 1280, Quote: vector(t, "echo6")}
	mpls6 := ICMPError{Type: ICMPv6TimeExceeded, Quote: vector(t, "echo6"), Extensions: vector(t, "extension-3labels")}
	s := []sample{
		{"IPv4", withOptions, 0},
		{"QuotedIPv4", withOptions, 28},
		{"Quote", withOptions, 36},
		{"IPv6", extended(t, 0), 0},
		{"QuotedIPv6", extended(t, 0), 40},
		{"Quote", extended(t, 0), len(extended(t, 0))},
		{"TCP", app(syn.Append(nil, src4, dst4, nil)), 0},
		{"SCTP", vector(t, "sctp-init"), 0},
		{"SCTP", vector(t, "sctp-abort"), 0},
		{"SCTP", cookie, 0},
		{"ICMPv6Error", app(AppendICMPError6(nil, dst6, src6, &too)), 8},
		{"ICMPv6Error", app(AppendICMPError6(nil, dst6, src6, &mpls6)), 8},
		{"ICMPv6Error", vector(t, "icmp6-port"), 8},
		{"ICMPv4Error", vector(t, "icmp4-time-exceeded-mpls-no-length"), 8},
		{"ICMPv4Error", vector(t, "icmp4-prohibited"), 8},
		{"Extensions", vector(t, "extension-1label"), 4},
		{"Extensions", vector(t, "extension-3labels"), 4},
	}
	for _, name := range []string{"udp4", "udp4-balanced", "udp6", "udp6-balanced"} {
		s = append(s, sample{"UDP", vector(t, name), 0})
	}
	for _, name := range []string{"echo4", "echo4-size100-pattern171-tos184-ttl9", "go-udp-probe", "anycast-captured"} {
		b := vector(t, name)
		s = append(s, sample{"IPv4", b, 0}, sample{"QuotedIPv4", b, 20}, sample{"Quote", b, 28}, sample{"ICMP", b[20:], 8})
	}
	b := vector(t, "echo6")
	s = append(s, sample{"IPv6", b, 0}, sample{"QuotedIPv6", b, 40}, sample{"Quote", b, 48}, sample{"ICMP", b[40:], 8})
	for _, name := range []string{"time-exceeded4", "time-exceeded4-mpls", "anycast-time-exceeded", "anycast-port"} {
		b := vector(t, name)
		s = append(s, sample{"IPv4", b, 0}, sample{"ICMPv4Error", b[20:], 8})
	}
	return s
}

type sample struct {
	decoder string
	bytes   []byte
	whole   int // shortest prefix that is valid; 0 means all
}

func TestTruncated(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range corpus(t) {
		seen[s.decoder] = true
		decode := decoders[s.decoder]
		if err := decode(s.bytes); err != nil {
			t.Errorf("%s %x: %v", s.decoder, s.bytes, err)
		}
		whole := s.whole
		if whole == 0 {
			whole = len(s.bytes)
		}
		for n := range s.bytes {
			b := s.bytes[:n:n] // reading beyond the end would panic
			err := decode(b)
			if n < whole && err == nil {
				t.Errorf("%s: %d of %d bytes accepted: %x", s.decoder, n, len(s.bytes), b)
			}
			for _, other := range decoders { // which need not refuse it, but must not panic
				_ = other(b)
			}
		}
	}
	for name := range decoders {
		if !seen[name] {
			t.Errorf("no sample for %s", name)
		}
	}
}

// Every byte of every sample takes some values that are special in most fields.
func TestMutated(t *testing.T) {
	for _, s := range corpus(t) {
		for i, old := range s.bytes {
			for _, c := range []byte{0, 1, 0x0f, 0x40, 0x45, 0x60, 0x7f, 0x80, 0xff, old + 1, old - 1} {
				s.bytes[i] = c
				for _, decode := range decoders {
					_ = decode(s.bytes)
				}
			}
			s.bytes[i] = old
		}
	}
}

func TestAllocs(t *testing.T) {
	buf := make([]byte, 0, 2048)
	payload := make([]byte, 64)
	d := errorDecoder{labels: make([]Label, 0, 8)}
	a4, b4 := netip.AddrPortFrom(src4, 1), netip.AddrPortFrom(dst4, 2)
	h4 := IPv4Header{TTL: 1, Protocol: ProtocolUDP, Src: src4, Dst: dst4, Options: payload[:7]}
	h6 := IPv6Header{HopLimit: 1, Src: src6, Dst: dst6}
	tcp := TCPHeader{Flags: TCPSyn, Options: payload[:5]}
	init := SCTPInit{InitiateTag: 1, OutStreams: 1, InStreams: 1}
	mpls := vector(t, "time-exceeded4-mpls")
	e, err := ParseICMPError(4, mpls[20:])
	if err != nil {
		t.Fatal(err)
	}
	quote6, extended6, initAck := vector(t, "echo6"), extended(t, 0), vector(t, "sctp-init-ack")
	udp := must(t)(AppendUDP(nil, a4, b4, payload))
	message := AppendICMPEcho(nil, ICMPv4Echo, 1, 2, payload)
	for name, f := range map[string]func(){
		"IPv4Header.Append":     func() { _, _ = h4.Append(buf, 8) },
		"IPv6Header.Append":     func() { _, _ = h6.Append(buf, 8) },
		"AppendIPv6Options":     func() { _, _ = AppendIPv6Options(buf, ProtocolUDP, payload) },
		"AppendIPv6Routing":     func() { _, _ = AppendIPv6Routing(buf, ProtocolUDP, 0, 0, payload[:4]) },
		"AppendIPv6Fragment":    func() { _, _ = AppendIPv6Fragment(buf, ProtocolUDP, 8, true, 1) },
		"AppendUDP":             func() { _, _ = AppendUDP(buf, a4, b4, payload) },
		"BalanceUDP":            func() { _ = BalanceUDP(udp, src4, dst4, 7) },
		"TCPHeader.Append":      func() { _, _ = tcp.Append(buf, src4, dst4, payload) },
		"AppendSCTPInit":        func() { _, _ = AppendSCTPInit(buf, 1, 2, init) },
		"AppendSCTPInitAck":     func() { _, _ = AppendSCTPInitAck(buf, 1, 2, 3, init, payload) },
		"AppendSCTPAbort":       func() { AppendSCTPAbort(buf, 1, 2, 3, false) },
		"AppendICMPEcho":        func() { AppendICMPEcho(buf, ICMPv4Echo, 1, 2, payload) },
		"BalanceICMP":           func() { _ = BalanceICMP(message, 7, 8) },
		"BalanceICMPv6":         func() { _ = BalanceICMPv6(message, src6, dst6, 7, 8) },
		"AppendICMPError4":      func() { _, _ = AppendICMPError4(buf, &e) },
		"AppendICMPError6":      func() { _, _ = AppendICMPError6(buf, src6, dst6, &ICMPError{Type: 3, Quote: quote6}) },
		"AppendMPLS":            func() { _, _ = AppendMPLS(buf, labels3) },
		"AppendExtensions":      func() { _, _ = AppendExtensions(buf, ExtensionObject{Class: 2, Payload: payload}) },
		"AppendUDPProbe":        func() { _, _ = AppendUDPProbe(buf, a4, b4, 1, payload) },
		"AppendICMPProbe":       func() { _, _ = AppendICMPProbe(buf, src6, dst6, 1, 2, 3, payload) },
		"SetSrc and UpdateAddr": func() { _ = IPv4(mpls).SetSrc(src4); UDP(udp).UpdateAddr(src4, src4) },
		"ParseUDP":              func() { u, _ := ParseUDP(udp); _ = u.ChecksumOK(src4, dst4) },
		"IPv6.Upper":            func() { v, _ := ParseIPv6(extended6); _, _, _ = v.Upper() },
		"refusal":               func() { _, _ = ParseIPv4(udp); _, _ = ParseQuote(mpls[:30]) },
		"ParseQuote6":           func() { q, _ := ParseQuote(quote6); _ = q.Seq() },
		"decode an error":       func() { _ = d.decode(mpls) },
		"decode an SCTP answer": func() { s, _ := ParseSCTP(initAck); _, _ = s.First().Init(); _ = s.ChecksumOK() },
		"iterate over the chunks": func() {
			s, _ := ParseSCTP(initAck)
			for c := range s.Chunks() {
				_ = c.Type
			}
		},
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations, want 0", name, n)
		}
	}
}

// errorDecoder is what a prober does with each ICMP error, and what it uses again for the next.
type errorDecoder struct {
	e      ICMPError
	q      Quote
	labels []Label
}

func (d *errorDecoder) decode(datagram []byte) error {
	v, err := ParseIPv4(datagram)
	if err != nil {
		return err
	}
	if err := d.e.Decode(4, v.Payload()); err != nil {
		return err
	}
	d.labels = d.e.Extensions.AppendLabels(d.labels[:0])
	return d.q.Decode(d.e.Quote)
}
