// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"errors"
	"testing"
)

func TestIPv6(t *testing.T) {
	b := vector(t, "echo6")
	v, err := ParseIPv6(append(b, 1, 2, 3))
	if err != nil {
		t.Fatal(err)
	}
	p, payload, err := v.Upper()
	if len(v) != 64 || v.TrafficClass() != 0 || v.FlowLabel() != 0xaf00e || v.PayloadLen() != 24 || v.NextHeader() != ProtocolICMPv6 ||
		v.HopLimit() != 255 || v.Src() != src6 || v.Dst() != dst6 || len(v.Payload()) != 24 ||
		err != nil || p != ProtocolICMPv6 || len(payload) != 24 {
		t.Errorf("decoded wrongly: %x", v)
	}
	h := IPv6Header{FlowLabel: v.FlowLabel(), NextHeader: p, HopLimit: 255, Src: src6, Dst: dst6}
	equalBytes(t, "header", must(t)(h.Append([]byte("before"), 24)), append([]byte("before"), b[:40]...))

	v.SetTrafficClass(0xb9)
	v.SetHopLimit(2)
	if v.TrafficClass() != 0xb9 || v.FlowLabel() != 0xaf00e || b[0]>>4 != 6 {
		t.Errorf("SetTrafficClass: %x", v)
	}
	if !v.DecrementHopLimit() || v.HopLimit() != 1 || v.DecrementHopLimit() || v.HopLimit() != 1 {
		t.Errorf("DecrementHopLimit: %d", v.HopLimit())
	}
	if err := errors.Join(v.SetSrc(dst6), v.SetDst(src6)); err != nil || v.Src() != dst6 || v.Dst() != src6 {
		t.Errorf("addresses: %x, %v", v, err)
	}
	if err := v.SetDst(dst4); !errors.Is(err, ErrAddress) {
		t.Errorf("SetDst of IPv4: %v", err)
	}
}

func TestIPv6Errors(t *testing.T) {
	for _, tc := range []struct {
		h    IPv6Header
		n    int
		want error
	}{
		{IPv6Header{Src: src4}, 0, ErrAddress},
		{IPv6Header{Dst: dst4}, 0, ErrAddress},
		{IPv6Header{FlowLabel: 1 << 20}, 0, ErrMalformed},
		{IPv6Header{}, 65536, ErrTooLong},
		{IPv6Header{}, -1, ErrTooLong},
	} {
		b, err := tc.h.Append([]byte("x"), tc.n)
		if !errors.Is(err, tc.want) || string(b) != "x" {
			t.Errorf("%+v with payload %d: got %x, %v, want %v", tc.h, tc.n, b, err, tc.want)
		}
	}
	if _, err := ParseIPv6(make([]byte, 40)); !errors.Is(err, ErrVersion) {
		t.Errorf("version 0: %v", err)
	}
}

// extended builds an IPv6 packet with one of each extension header before a UDP datagram.
func extended(t testing.TB, fragmentOffset uint16) []byte {
	app := must(t)
	udp := app(AppendUDPHeader(nil, 1, 2, 0))
	ext := app(AppendIPv6Options(nil, ProtocolRouting, []byte{5, 2, 0, 0})) // router alert
	ext = app(AppendIPv6Routing(ext, ProtocolDestination, 4, 0, make([]byte, 20)))
	ext = app(AppendIPv6Options(ext, ProtocolFragment, []byte{0x1e, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9}))
	ext = app(AppendIPv6Fragment(ext, ProtocolAH, fragmentOffset, true, 0x01020304))
	ext = append(ext, byte(ProtocolUDP), 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1) // AH: 24 bytes
	ext = append(ext, make([]byte, 12)...)
	h := IPv6Header{NextHeader: ProtocolHopByHop, HopLimit: 3, Src: src6, Dst: dst6}
	b := app(h.Append(nil, len(ext)+len(udp)))
	return append(append(b, ext...), udp...)
}

func TestIPv6Upper(t *testing.T) {
	b := extended(t, 0)
	v, err := ParseIPv6(b)
	if err != nil {
		t.Fatal(err)
	}
	p, payload, err := v.Upper()
	if p != ProtocolUDP || !bytes.Equal(payload, []byte{0, 1, 0, 2, 0, 8, 0, 0}) || err != nil {
		t.Errorf("got %v, %x, %v", p, payload, err)
	}
	v, err = ParseIPv6(extended(t, 8))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := v.Upper(); !errors.Is(err, ErrFragment) {
		t.Errorf("second fragment: %v", err)
	}
	for n := 40; n < len(b)-8; n++ {
		v, err := ParseQuotedIPv6(b[:n])
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := v.Upper(); !errors.Is(err, ErrTruncated) {
			t.Errorf("%d bytes: %v, want truncated", n, err)
		}
	}
	for _, p := range []Protocol{ProtocolNoNext, ProtocolESP, Protocol(200)} {
		h := IPv6Header{NextHeader: p}
		v, err := ParseIPv6(append(must(t)(h.Append(nil, 1)), 9))
		if err != nil {
			t.Fatal(err)
		}
		if got, rest, err := v.Upper(); got != p || len(rest) != 1 || err != nil {
			t.Errorf("%v: got %v, %x, %v", p, got, rest, err)
		}
	}
}

func TestAppendIPv6Extensions(t *testing.T) {
	for n := range 20 {
		b := must(t)(AppendIPv6Options(nil, ProtocolUDP, bytes.Repeat([]byte{0}, n)))
		if len(b)%8 != 0 || int(b[1])*8+8 != len(b) || len(b) < n+2 || len(b) > n+9 {
			t.Errorf("%d bytes of options: %x", n, b)
		}
		switch pad := b[2+n:]; len(pad) {
		case 0:
		case 1:
			equalBytes(t, "Pad1", pad, []byte{0})
		default:
			equalBytes(t, "PadN", pad, append([]byte{1, byte(len(pad) - 2)}, make([]byte, len(pad)-2)...))
		}
	}
	if b := must(t)(AppendIPv6Options(nil, ProtocolUDP, make([]byte, 2046))); len(b) != 2048 || b[1] != 255 {
		t.Errorf("longest: %d bytes", len(b))
	}
	if _, err := AppendIPv6Options(nil, 0, make([]byte, 2047)); !errors.Is(err, ErrTooLong) {
		t.Errorf("2047 bytes of options: %v", err)
	}
	if _, err := AppendIPv6Routing(nil, 0, 0, 0, make([]byte, 5)); !errors.Is(err, ErrMalformed) {
		t.Errorf("odd routing header: %v", err)
	}
	if _, err := AppendIPv6Routing(nil, 0, 0, 0, make([]byte, 2052)); !errors.Is(err, ErrTooLong) {
		t.Errorf("long routing header: %v", err)
	}
	if _, err := AppendIPv6Fragment(nil, 0, 7, false, 0); !errors.Is(err, ErrMalformed) {
		t.Errorf("odd fragment offset: %v", err)
	}
	equalBytes(t, "fragment", must(t)(AppendIPv6Fragment(nil, ProtocolUDP, 1456, true, 0xcafe0102)), []byte{17, 0, 0x05, 0xb1, 0xca, 0xfe, 1, 2})
	equalBytes(t, "routing", must(t)(AppendIPv6Routing(nil, ProtocolUDP, 3, 1, []byte{9, 8, 7, 6})), []byte{17, 0, 3, 1, 9, 8, 7, 6})
}
