// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"net/netip"
	"testing"
)

func TestDefaultHeaders(t *testing.T) {
	h := IPv4Header{TTL: 64, Protocol: ProtocolUDP}
	equalBytes(t, "default", must(t)(h.AppendTemplate(nil)), vector(t, "seed-ip"))
	h = IPv4Header{TOS: SetECN(0, true), TTL: 5, Protocol: ProtocolICMP, Src: netip.MustParseAddr("192.0.2.1"), Dst: far4}
	equalBytes(t, "ecn", must(t)(h.AppendTemplate(nil)), vector(t, "seed-ip-ecn"))
	equalBytes(t, "UDP", must(t)(AppendUDPHeader(nil, 10000, 33434, 0)), vector(t, "seed-udp"))
}

func TestBuildProbe(t *testing.T) {
	equalBytes(t, "UDP template", must(t)(BuildUDPProbeTemplate(far4, 1, 10000, 33434)), vector(t, "seed-udp-probe"))
	equalBytes(t, "ICMP template", must(t)(BuildICMPProbeTemplate(far4, 3, 7, 0x1234)), vector(t, "seed-icmp-probe"))
	equalBytes(t, "UDP", must(t)(BuildUDPProbe(far4, 1, 10000, 10000)), vector(t, "go-udp-probe"))

	v, err := ParseIPv4(must(t)(BuildICMPProbe(far4, 3, 7, 0x1234)))
	if err != nil {
		t.Fatal(err)
	}
	if v.TotalLen() != 68 || !v.ChecksumOK() || v.TTL() != 3 || v.Protocol() != ProtocolICMP || v.Dst() != far4 {
		t.Errorf("ICMP: %x", v)
	}
	equalBytes(t, "ICMP message", v.Payload(), vector(t, "seed-icmp-probe")[20:])

	for what, err := range map[string]error{
		"UDP":           second(BuildUDPProbe(dst6, 1, 1, 1)),
		"UDP template":  second(BuildUDPProbeTemplate(dst6, 1, 1, 1)),
		"ICMP":          second(BuildICMPProbe(dst6, 1, 1, 1)),
		"ICMP template": second(BuildICMPProbeTemplate(netip.Addr{}, 1, 1, 1)),
	} {
		if !errors.Is(err, ErrAddress) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func second(_ []byte, err error) error { return err }

func TestAppendProbe(t *testing.T) {
	for _, tc := range []struct {
		src, dst netip.Addr
		p        Protocol
		typ      uint8
	}{{src4, dst4, ProtocolICMP, ICMPv4Echo}, {src6, dst6, ProtocolICMPv6, ICMPv6Echo}} {
		for _, p := range []Protocol{ProtocolUDP, tc.p} {
			var b []byte
			if p == ProtocolUDP {
				b = must(t)(AppendUDPProbe([]byte("x"), netip.AddrPortFrom(tc.src, 10000), netip.AddrPortFrom(tc.dst, 33434), 9, []byte("abc")))[1:]
			} else {
				b = must(t)(AppendICMPProbe([]byte("x"), tc.src, tc.dst, 9, 1, 2, []byte("abc")))[1:]
			}
			q, err := ParseQuote(b)
			if err != nil {
				t.Fatal(err)
			}
			if q.Src != tc.src || q.Dst != tc.dst || q.TTL != 9 || q.Protocol != p || q.TotalLen != len(b) || string(q.Transport[8:]) != "abc" {
				t.Errorf("%v to %v: %x", p, tc.dst, b)
			}
			if p == ProtocolUDP {
				if !UDP(q.Transport).ChecksumOK(tc.src, tc.dst) || q.SrcPort != 10000 || q.DstPort != 33434 {
					t.Errorf("%v to %v: %x", p, tc.dst, b)
				}
			} else if m := ICMP(q.Transport); m.Type() != tc.typ || q.ID() != 1 || q.Seq() != 2 ||
				p == ProtocolICMP && !m.ChecksumOK() || p == ProtocolICMPv6 && !m.ChecksumOK6(tc.src, tc.dst) {
				t.Errorf("%v to %v: %x", p, tc.dst, b)
			}
		}
	}
	if b, err := AppendUDPProbe([]byte("x"), netip.AddrPortFrom(src6, 1), netip.AddrPortFrom(dst4, 1), 1, nil); !errors.Is(err, ErrAddress) || string(b) != "x" {
		t.Errorf("two versions: %x, %v", b, err)
	}
	if b, err := AppendUDPProbe([]byte("x"), netip.AddrPortFrom(src6, 1), netip.AddrPortFrom(dst6, 1), 1, make([]byte, 65528)); !errors.Is(err, ErrTooLong) || string(b) != "x" {
		t.Errorf("too long: %x, %v", b[:1], err)
	}
	if b, err := AppendICMPProbe([]byte("x"), src4, dst6, 1, 1, 1, nil); !errors.Is(err, ErrAddress) || string(b) != "x" {
		t.Errorf("two versions: %x, %v", b, err)
	}
	if b, err := AppendICMPProbe([]byte("x"), src4, dst4, 1, 1, 1, make([]byte, 65508)); !errors.Is(err, ErrTooLong) || string(b) != "x" {
		t.Errorf("too long: %x, %v", b[:1], err)
	}
}
