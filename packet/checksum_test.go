// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// slowChecksum is RFC 1071 as it is written there.
func slowChecksum(b []byte) uint16 {
	var sum uint32
	for i, c := range b {
		if i%2 == 0 {
			sum += uint32(c) << 8
		} else {
			sum += uint32(c)
		}
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func TestChecksum(t *testing.T) {
	// RFC 1071, section 3: the sum of these is ddf2.
	if got := Checksum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}); got != ^uint16(0xddf2) {
		t.Errorf("got %04x, want %04x", got, ^uint16(0xddf2))
	}
	if got := Checksum(nil); got != 0xffff {
		t.Errorf("of nothing: got %04x, want ffff", got)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for n := range 300 {
		random, ones := make([]byte, n), make([]byte, n)
		for i := range random {
			random[i], ones[i] = byte(rng.Uint32()), 0xff
		}
		for _, b := range [][]byte{random, ones, make([]byte, n)} {
			if got, want := Checksum(b), slowChecksum(b); got != want {
				t.Fatalf("%d bytes %x: got %04x, want %04x", n, b, got, want)
			}
		}
	}
}

func TestTransportChecksum(t *testing.T) {
	segment := []byte{1, 2, 3, 4, 5}
	pseudo4 := append([]byte{10, 88, 1, 2, 10, 88, 3, 2, 0, 17, 0, 5}, segment...)
	if got, want := TransportChecksum(ProtocolUDP, src4, dst4, segment), slowChecksum(pseudo4); got != want {
		t.Errorf("IPv4: got %04x, want %04x", got, want)
	}
	mapped := func(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }
	if got, want := TransportChecksum(ProtocolUDP, mapped(src4), mapped(dst4), segment), slowChecksum(pseudo4); got != want {
		t.Errorf("IPv4-mapped: got %04x, want %04x", got, want)
	}
	s, d := src6.As16(), dst6.As16()
	pseudo6 := append(append(append([]byte{}, s[:]...), d[:]...), 0, 0, 0, 5, 0, 0, 0, 58)
	pseudo6 = append(pseudo6, segment...)
	if got, want := TransportChecksum(ProtocolICMPv6, src6, dst6, segment), slowChecksum(pseudo6); got != want {
		t.Errorf("IPv6: got %04x, want %04x", got, want)
	}
	if got, want := TransportChecksum(ProtocolUDP, netip.Addr{}, dst4, segment), TransportChecksum(ProtocolUDP, netip.IPv4Unspecified(), dst4, segment); got != want {
		t.Errorf("zero source: got %04x, want %04x", got, want)
	}
	// A length of more than 16 bits goes into the pseudo header of IPv6 whole.
	long := make([]byte, 70000)
	pseudo6 = append(append(append([]byte{}, s[:]...), d[:]...), 0, 1, 0x11, 0x70, 0, 0, 0, 58)
	if got, want := TransportChecksum(ProtocolICMPv6, src6, dst6, long), slowChecksum(append(pseudo6, long...)); got != want {
		t.Errorf("70000 bytes: got %04x, want %04x", got, want)
	}
}

func TestUpdateChecksum(t *testing.T) {
	// RFC 1624, section 4: the case that the equation of RFC 1141 gets wrong.
	if got := UpdateChecksum(0xdd2f, 0x5555, 0x3285); got != 0 {
		t.Errorf("RFC 1624 example: got %04x, want 0", got)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 10000 {
		var b [40]byte
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		sum := Checksum(b[:])
		at := rng.IntN(20) * 2
		old, w := binary.BigEndian.Uint16(b[at:]), uint16(rng.Uint32())
		binary.BigEndian.PutUint16(b[at:], w)
		if got, want := UpdateChecksum(sum, old, w), Checksum(b[:]); got != want {
			t.Fatalf("%04x to %04x at %d of %x: got %04x, want %04x", old, w, at, b, got, want)
		}
		sum = Checksum(b[:])
		old6 := netip.AddrFrom16([16]byte(b[8:24]))
		var a [16]byte
		for i := range a {
			a[i] = byte(rng.Uint32())
		}
		copy(b[8:], a[:])
		if got, want := UpdateChecksumAddr(sum, old6, netip.AddrFrom16(a)), Checksum(b[:]); got != want {
			t.Fatalf("address %v to %x: got %04x, want %04x", old6, a, got, want)
		}
		sum = Checksum(b[:])
		old4 := netip.AddrFrom4([4]byte(b[12:16]))
		copy(b[12:], a[:4])
		if got, want := UpdateChecksumAddr(sum, old4, netip.AddrFrom4([4]byte(a[:4]))), Checksum(b[:]); got != want {
			t.Fatalf("address %v to %x: got %04x, want %04x", old4, a[:4], got, want)
		}
	}
}
