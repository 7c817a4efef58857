// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawiotest

import (
	"encoding/binary"
	"net/netip"
)

// What a kernel does to IP headers is written out here, so that the twin shares no code with the
// codecs that it helps to test.

const (
	protoICMP   = 1
	protoUDP    = 17
	protoICMPv6 = 58

	ip4Header = 20
	ip6Header = 40
)

// datagram is an IP packet taken apart.
type datagram struct {
	version  int
	proto    int
	src, dst netip.Addr
	ttl, tos uint8
	whole    []byte // with its header
	upper    []byte // behind IPv4 options and IPv6 extension headers
}

// parse takes a packet apart; ok is false for what a kernel would drop unseen. A quoted packet may
// end early, and its header checksum is not looked at.
func parse(b []byte, quoted bool) (d datagram, ok bool) {
	if len(b) == 0 {
		return d, false
	}
	switch b[0] >> 4 {
	case 4:
		if len(b) < ip4Header {
			return d, false
		}
		n, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		if n < ip4Header || len(b) < n {
			return d, false
		}
		if !quoted {
			if total < n || total > len(b) || checksum(0, b[:n]) != 0 {
				return d, false
			}
			b = b[:total]
		}
		return datagram{
			version: 4, proto: int(b[9]), src: netip.AddrFrom4([4]byte(b[12:])), dst: netip.AddrFrom4([4]byte(b[16:])),
			ttl: b[8], tos: b[1], whole: b, upper: b[n:],
		}, true
	case 6:
		if len(b) < ip6Header {
			return d, false
		}
		if total := ip6Header + int(binary.BigEndian.Uint16(b[4:])); !quoted {
			if total > len(b) {
				return d, false
			}
			b = b[:total]
		}
		d = datagram{
			version: 6, src: netip.AddrFrom16([16]byte(b[8:])), dst: netip.AddrFrom16([16]byte(b[24:])),
			ttl: b[7], tos: uint8(binary.BigEndian.Uint16(b) >> 4), whole: b,
		}
		d.proto, d.upper, ok = skipExtensions(int(b[6]), b[ip6Header:])
		return d, ok
	}
	return d, false
}

// skipExtensions skips hop-by-hop, routing and destination options headers (RFC 8200, section 4).
func skipExtensions(next int, b []byte) (proto int, upper []byte, ok bool) {
	for {
		switch next {
		case 0, 43, 60:
			if len(b) < 8 {
				return 0, nil, false
			}
			n := 8 + 8*int(b[1])
			if len(b) < n {
				return 0, nil, false
			}
			next, b = int(b[0]), b[n:]
		default:
			return next, b, true
		}
	}
}

// appendPacket appends a packet with the header that a kernel would write.
func appendPacket(b []byte, proto int, src, dst netip.Addr, ttl, tos uint8, payload []byte) []byte {
	if dst.Is4() {
		h := len(b)
		b = append(b, 0x45, tos)
		b = binary.BigEndian.AppendUint16(b, uint16(ip4Header+len(payload)))
		b = append(b, 0, 0, 0, 0, ttl, byte(proto), 0, 0)
		b = append(b, src.AsSlice()...)
		b = append(b, dst.AsSlice()...)
		binary.BigEndian.PutUint16(b[h+10:], checksum(0, b[h:]))
		return append(b, payload...)
	}
	b = binary.BigEndian.AppendUint32(b, 6<<28|uint32(tos)<<20)
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	b = append(b, byte(proto), ttl)
	b = append(b, src.AsSlice()...)
	b = append(b, dst.AsSlice()...)
	return append(b, payload...)
}

// checksum is the Internet checksum of b, on top of a sum.
func checksum(sum uint32, b []byte) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// pseudo is the sum of the pseudo header.
func pseudo(proto int, src, dst netip.Addr, n int) uint32 {
	sum := uint32(proto) + uint32(n)
	for _, a := range [...]netip.Addr{src, dst} {
		for b := a.AsSlice(); len(b) >= 2; b = b[2:] {
			sum += uint32(binary.BigEndian.Uint16(b))
		}
	}
	return sum
}

// setChecksum fills the checksum field at an offset of upper.
func setChecksum(proto int, src, dst netip.Addr, upper []byte, at int) {
	upper[at], upper[at+1] = 0, 0
	var sum uint32
	if proto != protoICMP {
		sum = pseudo(proto, src, dst, len(upper))
	}
	c := checksum(sum, upper)
	if c == 0 && proto == protoUDP {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(upper[at:], c)
}
