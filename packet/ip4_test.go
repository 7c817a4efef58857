// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"
)

func TestIPv4(t *testing.T) {
	b := vector(t, "echo4-size100-pattern171-tos184-ttl9")
	v, err := ParseIPv4(append(b, 1, 2, 3)) // and link-layer padding
	if err != nil {
		t.Fatal(err)
	}
	if len(v) != 100 || v.HeaderLen() != 20 || v.TOS() != 184 || v.TotalLen() != 100 || v.ID() != 0xa2a9 ||
		v.DontFragment() || v.MoreFragments() || v.FragmentOffset() != 0 || v.TTL() != 9 || v.Protocol() != ProtocolICMP ||
		v.Checksum() != 0xf584 || v.Src() != src4 || v.Dst() != dst4 || len(v.Options()) != 0 || len(v.Payload()) != 80 {
		t.Errorf("decoded wrongly: %x", v)
	}
	if !v.ChecksumOK() {
		t.Error("checksum taken for wrong")
	}
	v[8]++
	if v.ChecksumOK() {
		t.Error("wrong checksum taken for right")
	}
}

func TestIPv4HeaderAppend(t *testing.T) {
	// Every header of a vector, rebuilt from its fields.
	for name, b := range vectors {
		if b[0] != 0x45 || name == "seed-ip" || name == "seed-ip-ecn" || name == "seed-udp-probe" || name == "seed-icmp-probe" {
			continue
		}
		v, err := ParseIPv4(b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		h := IPv4Header{TOS: v.TOS(), ID: v.ID(), DontFragment: v.DontFragment(), TTL: v.TTL(), Protocol: v.Protocol(), Src: v.Src(), Dst: v.Dst()}
		got := must(t)(h.Append([]byte("before"), len(v.Payload())))
		equalBytes(t, name, got, append([]byte("before"), b[:20]...))
	}
	h := IPv4Header{
		ID: 7, DontFragment: true, MoreFragments: true, FragmentOffset: 65528, TTL: 1, Protocol: ProtocolUDP,
		Src: src4, Dst: dst4, Options: []byte{7, 7, 4, 0, 0, 0, 0}, // record route of one address
	}
	v, err := ParseIPv4(append(must(t)(h.Append(nil, 2)), 8, 9))
	if err != nil {
		t.Fatal(err)
	}
	if v.HeaderLen() != 28 || v.TotalLen() != 30 || !v.DontFragment() || !v.MoreFragments() || v.FragmentOffset() != 65528 ||
		!bytes.Equal(v.Options(), []byte{7, 7, 4, 0, 0, 0, 0, 0}) || !bytes.Equal(v.Payload(), []byte{8, 9}) || !v.ChecksumOK() {
		t.Errorf("with options: %x", v)
	}
	mapped := IPv4Header{TTL: 64, Src: netip.AddrFrom16(src4.As16()), Dst: dst4}
	if v, err := ParseIPv4(must(t)(mapped.Append(nil, 0))); err != nil || v.Src() != src4 {
		t.Errorf("IPv4-mapped source: %x, %v", v, err)
	}
}

func TestIPv4Errors(t *testing.T) {
	for _, tc := range []struct {
		h    IPv4Header
		n    int
		want error
	}{
		{IPv4Header{Src: src6}, 0, ErrAddress},
		{IPv4Header{Dst: dst6}, 0, ErrAddress},
		{IPv4Header{Options: make([]byte, 41)}, 0, ErrTooLong},
		{IPv4Header{}, 65516, ErrTooLong},
		{IPv4Header{}, -1, ErrTooLong},
		{IPv4Header{FragmentOffset: 4}, 0, ErrMalformed},
	} {
		b, err := tc.h.Append([]byte("x"), tc.n)
		if !errors.Is(err, tc.want) || string(b) != "x" {
			t.Errorf("%+v with payload %d: got %x, %v, want %v", tc.h, tc.n, b, err, tc.want)
		}
	}
	b := vector(t, "echo4")
	for _, tc := range []struct {
		at   int
		to   byte
		want error
	}{{0, 0x65, ErrVersion}, {0, 0x44, ErrMalformed}, {3, 19, ErrMalformed}, {3, 65, ErrTruncated}, {2, 1, ErrTruncated}} {
		b := bytes.Clone(b)
		b[tc.at] = tc.to
		if _, err := ParseIPv4(b); !errors.Is(err, tc.want) {
			t.Errorf("byte %d = %02x: got %v, want %v", tc.at, tc.to, err, tc.want)
		}
	}
}

func TestQuotedIPv4(t *testing.T) {
	b := vector(t, "echo4")
	if v, err := ParseQuotedIPv4(b[:28]); err != nil || len(v) != 28 || v.TotalLen() != 64 {
		t.Errorf("28 of 64 bytes: %x, %v", v, err)
	}
	if v, err := ParseQuotedIPv4(append(b, make([]byte, 64)...)); err != nil || len(v) != 64 {
		t.Errorf("64 and padding: %d bytes, %v", len(v), err)
	}
	b[2], b[3] = 0, 20 // what some hosts leave of the length
	if v, err := ParseQuotedIPv4(b); err != nil || len(v) != 64 {
		t.Errorf("total length 20: %d bytes, %v", len(v), err)
	}
}

func TestIPv4Set(t *testing.T) {
	v := IPv4(vector(t, "echo4"))
	check := func(what string) {
		t.Helper()
		if !v.ChecksumOK() {
			t.Errorf("after %s: wrong checksum: %x", what, v)
		}
	}
	for ttl := range 256 {
		v.SetTTL(uint8(ttl))
		check("SetTTL")
	}
	for want := 254; want >= 1; want-- {
		if !v.DecrementTTL() || v.TTL() != uint8(want) {
			t.Fatalf("TTL %d, want %d", v.TTL(), want)
		}
		check("DecrementTTL")
	}
	if v.DecrementTTL() || v.TTL() != 1 {
		t.Errorf("a packet with TTL 1 lives on: TTL %d", v.TTL())
	}
	v.SetTTL(0)
	if v.DecrementTTL() || v.TTL() != 0 {
		t.Errorf("a packet with TTL 0 lives on: TTL %d", v.TTL())
	}
	v.SetTOS(0xb8)
	check("SetTOS")
	if err := v.SetSrc(far4); err != nil || v.Src() != far4 {
		t.Errorf("SetSrc: %v, %v", v.Src(), err)
	}
	check("SetSrc")
	if err := v.SetDst(src4); err != nil || v.Dst() != src4 {
		t.Errorf("SetDst: %v, %v", v.Dst(), err)
	}
	check("SetDst")
	if err := v.SetSrc(src6); !errors.Is(err, ErrAddress) {
		t.Errorf("SetSrc of IPv6: %v", err)
	}
	if v.TOS() != 0xb8 || v.Src() != far4 {
		t.Errorf("changed: %x", v)
	}
}

func TestSetECN(t *testing.T) {
	for _, tc := range []struct {
		tos  uint8
		on   bool
		want uint8
	}{{0xb8, true, 0xbb}, {0xbb, false, 0xb8}, {0, true, 3}, {0, false, 0}, {1, true, 3}} {
		if got := SetECN(tc.tos, tc.on); got != tc.want {
			t.Errorf("SetECN(%02x, %v) = %02x, want %02x", tc.tos, tc.on, got, tc.want)
		}
	}
}

func TestProtocolString(t *testing.T) {
	for p, want := range map[Protocol]string{0: "HOPOPT", 1: "ICMP", 6: "TCP", 17: "UDP", 41: "IPv6", 43: "IPv6-Route", 44: "IPv6-Frag", 50: "ESP", 51: "AH", 58: "IPv6-ICMP", 59: "IPv6-NoNxt", 60: "IPv6-Opts", 132: "SCTP", 37: "Protocol(37)"} {
		if got := p.String(); got != want {
			t.Errorf("%d: got %q, want %q", uint8(p), got, want)
		}
	}
}
