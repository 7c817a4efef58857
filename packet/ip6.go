// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// IPv6HeaderLen is the length in bytes of the fixed IPv6 header.
const IPv6HeaderLen = 40

// IPv6 is a view of an IPv6 packet (RFC 8200). Only [ParseIPv6] and [ParseQuotedIPv6] make one whose
// methods cannot fail.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-------+---------------+---------------------------------------+
//	|Version| Traffic Class |               Flow Label              |
//	+-------+---------------+-------+---------------+---------------+
//	|         Payload Length        |  Next Header  |   Hop Limit   |
//	+-------------------------------+---------------+---------------+
//	|                    Source Address, 16 bytes                   |
//	+---------------------------------------------------------------+
//	|                 Destination Address, 16 bytes                 |
//	+---------------------------------------------------------------+
type IPv6 []byte

// ParseIPv6 checks the header of a whole packet and returns a view without what follows
// the packet. Jumbograms (RFC 2675) appear as packets with an empty payload.
func ParseIPv6(b []byte) (IPv6, error) {
	if err := checkIPv6(b); err != nil {
		return nil, err
	}
	total := IPv6HeaderLen + int(binary.BigEndian.Uint16(b[4:]))
	if total > len(b) {
		return nil, errIPv6Payload
	}
	return IPv6(b[:total:total]), nil
}

// ParseQuotedIPv6 is [ParseIPv6] for a packet quoted inside an ICMPv6 error: only the
// fixed header must be complete. Padding behind a short original packet is cut off, but
// only down to 8 bytes of payload.
func ParseQuotedIPv6(b []byte) (IPv6, error) {
	if err := checkIPv6(b); err != nil {
		return nil, err
	}
	if total := IPv6HeaderLen + int(binary.BigEndian.Uint16(b[4:])); total >= IPv6HeaderLen+8 && total < len(b) {
		b = b[:total]
	}
	return IPv6(slices.Clip(b)), nil
}

func checkIPv6(b []byte) error {
	if len(b) < IPv6HeaderLen {
		return errIPv6Short
	}
	if b[0]>>4 != 6 {
		return errIPv6Version
	}
	return nil
}

// TrafficClass is 6 bits DSCP, 2 bits ECN.
func (v IPv6) TrafficClass() uint8 { return v[0]<<4 | v[1]>>4 }

// FlowLabel is 20 bits wide.
func (v IPv6) FlowLabel() uint32 { return binary.BigEndian.Uint32(v) & 0xfffff }

// PayloadLen is the length field: all that follows the fixed header, in bytes.
func (v IPv6) PayloadLen() int { return int(binary.BigEndian.Uint16(v[4:])) }

// NextHeader tells what the payload begins with.
func (v IPv6) NextHeader() Protocol { return Protocol(v[6]) }

// HopLimit is the number of hops left.
func (v IPv6) HopLimit() uint8 { return v[7] }

// Src is the source address.
func (v IPv6) Src() netip.Addr { return netip.AddrFrom16([16]byte(v[8:24])) }

// Dst is the destination address.
func (v IPv6) Dst() netip.Addr { return netip.AddrFrom16([16]byte(v[24:40])) }

// Payload is what follows the fixed header, extension headers included.
func (v IPv6) Payload() []byte { return v[IPv6HeaderLen:] }

// SetTrafficClass changes the traffic class. No checksum covers it.
func (v IPv6) SetTrafficClass(tc uint8) {
	v[0] = v[0]&0xf0 | tc>>4
	v[1] = v[1]&0x0f | tc<<4
}

// SetHopLimit changes the hop limit. No checksum covers it.
func (v IPv6) SetHopLimit(n uint8) { v[7] = n }

// DecrementHopLimit is what a router does before it forwards: it lowers the hop limit by 1
// and reports true, or changes nothing and reports false when the packet has to die here.
func (v IPv6) DecrementHopLimit() bool {
	if v[7] <= 1 {
		return false
	}
	v[7]--
	return true
}

// SetSrc changes the source address. The checksum of the transport protocol is the caller's: see
// [UpdateChecksumAddr]. An address that is not IPv6 is [ErrAddress].
func (v IPv6) SetSrc(a netip.Addr) error { return v.setAddr(8, a) }

// SetDst is [IPv6.SetSrc] for the destination.
func (v IPv6) SetDst(a netip.Addr) error { return v.setAddr(24, a) }

func (v IPv6) setAddr(at int, a netip.Addr) error {
	if !a.Is6() {
		return errIPv6Address
	}
	a16 := a.As16()
	copy(v[at:at+16], a16[:])
	return nil
}

// Upper skips the extension headers (hop-by-hop and destination options, routing, fragment,
// authentication) and returns the protocol and bytes of what comes next. That is the upper-layer packet,
// or for encrypted packets the ESP header, or nothing ([ProtocolNoNext]). Of a first
// fragment it is the part that is there. Errors: [ErrFragment] for other fragments, [ErrTruncated].
func (v IPv6) Upper() (Protocol, []byte, error) {
	p, b := v.NextHeader(), v.Payload()
	for {
		n := 0
		switch p {
		case ProtocolHopByHop, ProtocolRouting, ProtocolDestination:
			if len(b) < 8 {
				return p, nil, errIPv6Extension
			}
			n = 8 + int(b[1])*8
		case ProtocolAH: // RFC 4302 section 2.2: in 4-byte units, minus 2
			if len(b) < 8 {
				return p, nil, errIPv6Extension
			}
			n = 8 + int(b[1])*4
		case ProtocolFragment:
			if len(b) < 8 {
				return p, nil, errIPv6Extension
			}
			if binary.BigEndian.Uint16(b[2:])&^7 != 0 {
				return p, nil, errIPv6Fragment
			}
			n = 8
		default:
			return p, b, nil
		}
		if n > len(b) {
			return p, nil, errIPv6Extension
		}
		p, b = Protocol(b[0]), b[n:]
	}
}

// IPv6Header is what there is to choose in an IPv6 header.
type IPv6Header struct {
	TrafficClass uint8
	FlowLabel    uint32   // 20 bits
	NextHeader   Protocol // of the first extension header, or else of the payload
	HopLimit     uint8
	Src, Dst     netip.Addr // the zero Addr is written as ::
}

// Append appends the header of a packet with payloadLen bytes behind the fixed header, which
// the caller appends next. Errors: [ErrTooLong], [ErrAddress], [ErrMalformed] for a flow label above 20 bits.
func (h *IPv6Header) Append(b []byte, payloadLen int) ([]byte, error) {
	src, ok1 := as16(h.Src)
	dst, ok2 := as16(h.Dst)
	switch {
	case !ok1 || !ok2:
		return b, errIPv6Address
	case h.FlowLabel > 0xfffff:
		return b, errIPv6FlowLabel
	case payloadLen < 0 || payloadLen > 0xffff:
		return b, errIPv6TooLong
	}
	b = append(b,
		0x60|h.TrafficClass>>4, h.TrafficClass<<4|byte(h.FlowLabel>>16), byte(h.FlowLabel>>8), byte(h.FlowLabel),
		byte(payloadLen>>8), byte(payloadLen), byte(h.NextHeader), h.HopLimit)
	b = append(b, src[:]...)
	return append(b, dst[:]...), nil
}

// as16 is a.As16 that takes the zero Addr for :: and tells whether a is IPv6.
func as16(a netip.Addr) (b [16]byte, ok bool) {
	if !a.IsValid() {
		return b, true
	}
	return a.As16(), a.Is6()
}

// AppendIPv6Options appends a hop-by-hop or destination options header: next names what follows
// it, options are whole encoded options (RFC 8200 section 4.2), padded here with Pad1 or PadN to
// a multiple of 8 bytes. More than 2046 bytes of options are [ErrTooLong].
func AppendIPv6Options(b []byte, next Protocol, options []byte) ([]byte, error) {
	n := (2 + len(options) + 7) &^ 7
	if n > 256*8 {
		return b, errIPv6ExtTooLong
	}
	b = append(b, byte(next), byte(n/8-1))
	b = append(b, options...)
	switch pad := n - 2 - len(options); pad {
	case 0:
	case 1:
		b = append(b, 0) // Pad1
	default:
		b = append(b, 1, byte(pad-2)) // PadN
		for range pad - 2 {
			b = append(b, 0)
		}
	}
	return b, nil
}

// AppendIPv6Routing appends a routing header (RFC 8200 section 4.4). Data is all that follows the
// segments-left field; with the 4 bytes before it, it must fill a multiple of 8 bytes, else [ErrMalformed].
func AppendIPv6Routing(b []byte, next Protocol, typ, segmentsLeft uint8, data []byte) ([]byte, error) {
	n := 4 + len(data)
	switch {
	case n%8 != 0:
		return b, errIPv6ExtLen
	case n > 256*8:
		return b, errIPv6ExtTooLong
	}
	b = append(b, byte(next), byte(n/8-1), typ, segmentsLeft)
	return append(b, data...), nil
}

// AppendIPv6Fragment appends a fragment header (RFC 8200 section 4.5). Offset is in bytes
// and a multiple of 8, else [ErrMalformed].
func AppendIPv6Fragment(b []byte, next Protocol, offset uint16, more bool, id uint32) ([]byte, error) {
	if offset%8 != 0 {
		return b, errIPv6Offset
	}
	if more {
		offset |= 1
	}
	return append(b, byte(next), 0, byte(offset>>8), byte(offset),
		byte(id>>24), byte(id>>16), byte(id>>8), byte(id)), nil
}
