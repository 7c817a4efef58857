// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestUDP(t *testing.T) {
	for name, b := range vectors {
		src, dst := src4, dst4
		switch {
		case strings.HasPrefix(name, "udp4"):
		case strings.HasPrefix(name, "udp6"):
			src, dst = src6, dst6
		default:
			continue
		}
		t.Run(name, func(t *testing.T) {
			u, err := ParseUDP(append(bytes.Clone(b), 1, 2, 3))
			if err != nil {
				t.Fatal(err)
			}
			if u.Length() != len(b) || len(u.Payload()) != len(b)-8 || !u.ChecksumOK(src, dst) {
				t.Errorf("decoded wrongly: %x", u)
			}
			got := must(t)(AppendUDP([]byte("before"), netip.AddrPortFrom(src, u.SrcPort()), netip.AddrPortFrom(dst, u.DstPort()), u.Payload()))
			equalBytes(t, "encoded", got, append([]byte("before"), b...))
			u[8] ^= 1
			if u.ChecksumOK(src, dst) {
				t.Error("wrong checksum taken for right")
			}
		})
	}
}

func TestBalanceUDP(t *testing.T) {
	for _, tc := range []struct {
		name     string
		src, dst netip.Addr
		sum      uint16
		size     int
	}{{"udp4-balanced", src4, dst4, 0x80f1, 12}, {"udp4-balanced-smallest", src4, dst4, 0x80f7, 4}, {"udp6-balanced", src6, dst6, 0x82a7, 12}} {
		pattern := byte(0x55)
		if tc.size == 4 {
			pattern = 0
		}
		b := must(t)(AppendUDPHeader(nil, 2000, 53, tc.size))
		b = append(b, bytes.Repeat([]byte{pattern}, tc.size)...)
		if err := BalanceUDP(b, tc.src, tc.dst, tc.sum); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		equalBytes(t, tc.name, b, vector(t, tc.name))
	}
	for sum := 1; sum <= 0xffff; sum++ { // every number that a probe can carry
		b := [11]byte{7, 0xd0, 0, 53, 0, 11, 0, 0, 1, 2, 3}
		if err := BalanceUDP(b[:], src6, dst6, uint16(sum)); err != nil {
			t.Fatal(err)
		}
		if u := UDP(b[:]); u.Checksum() != uint16(sum) || !u.ChecksumOK(src6, dst6) {
			t.Fatalf("sum %04x: %x", sum, u)
		}
	}
	if err := BalanceUDP(make([]byte, 9), src4, dst4, 1); !errors.Is(err, ErrTruncated) {
		t.Errorf("1 byte of payload: %v", err)
	}
	if err := BalanceUDP(make([]byte, 10), src4, dst4, 0); !errors.Is(err, ErrMalformed) {
		t.Errorf("sum 0: %v", err)
	}
}

func TestUDPZeroChecksum(t *testing.T) {
	// The destination port is chosen so that the sum comes out as 0, which must be sent as ffff.
	src := netip.AddrPortFrom(src4, 1)
	b := must(t)(AppendUDP(nil, src, netip.AddrPortFrom(dst4, 0), nil))
	port := UDP(b).Checksum()
	b = must(t)(AppendUDP(nil, src, netip.AddrPortFrom(dst4, port), nil))
	if u := UDP(b); u.Checksum() != 0xffff || !u.ChecksumOK(src4, dst4) {
		t.Errorf("got %x, want checksum ffff", b)
	}
	none := UDP(vector(t, "seed-udp"))
	if !none.ChecksumOK(src4, dst4) || none.ChecksumOK(src6, dst6) {
		t.Error("no checksum must be right for IPv4 only")
	}
	none.SetSrcPort(1)
	none.UpdateAddr(src4, dst4)
	if none.Checksum() != 0 {
		t.Errorf("a checksum appeared: %x", none)
	}
}

func TestUDPTranslate(t *testing.T) {
	u := UDP(vector(t, "udp4"))
	u.SetSrcPort(40000)
	u.SetDstPort(53)
	u.UpdateAddr(src4, far4)
	if u.SrcPort() != 40000 || u.DstPort() != 53 || !u.ChecksumOK(far4, dst4) {
		t.Errorf("translated: %x", u)
	}
}

func TestUDPErrors(t *testing.T) {
	if _, err := AppendUDP(nil, netip.AddrPortFrom(src4, 1), netip.AddrPortFrom(dst6, 1), nil); !errors.Is(err, ErrAddress) {
		t.Errorf("two versions: %v", err)
	}
	for _, n := range []int{-1, 65528} {
		if b, err := AppendUDPHeader([]byte("x"), 1, 1, n); !errors.Is(err, ErrTooLong) || string(b) != "x" {
			t.Errorf("payload %d: %x, %v", n, b, err)
		}
	}
	for length, want := range map[byte]error{0: ErrMalformed, 7: ErrMalformed, 9: ErrTruncated} {
		if _, err := ParseUDP([]byte{0, 1, 0, 2, 0, length, 0, 0}); !errors.Is(err, want) {
			t.Errorf("length %d: got %v, want %v", length, err, want)
		}
	}
}
