// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// IPv4HeaderLen is the length in bytes of an IPv4 header without options.
const IPv4HeaderLen = 20

// maxIPv4Options is what a 4-bit header length in units of 4 bytes leaves for options.
const maxIPv4Options = 15*4 - IPv4HeaderLen

// IPv4 is a view of an IPv4 packet (RFC 791). Only [ParseIPv4] and [ParseQuotedIPv4] make one whose
// methods cannot fail.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-------+-------+---------------+-------------------------------+
//	|Version|  IHL  |      TOS      |          Total Length         |
//	+-------+-------+---------------+-----+-------------------------+
//	|         Identification        |Flags|     Fragment Offset     |
//	+---------------+---------------+-----+-------------------------+
//	|      TTL      |    Protocol   |        Header Checksum        |
//	+---------------+---------------+-------------------------------+
//	|                         Source Address                        |
//	+---------------------------------------------------------------+
//	|                      Destination Address                      |
//	+---------------------------------------------------------------+
//	|                     Options, up to 40 bytes                   |
//	+---------------------------------------------------------------+
type IPv4 []byte

// ParseIPv4 checks the header of a whole packet and returns a view without what follows
// the packet (link-layer padding). The header checksum is not looked at: see [IPv4.ChecksumOK].
func ParseIPv4(b []byte) (IPv4, error) {
	n, err := ipv4HeaderLen(b)
	if err != nil {
		return nil, err
	}
	total := int(binary.BigEndian.Uint16(b[2:]))
	switch {
	case total < n:
		return nil, errIPv4TotalLen
	case total > len(b):
		return nil, errIPv4Payload
	}
	return IPv4(b[:total:total]), nil
}

// ParseQuotedIPv4 is [ParseIPv4] for a packet quoted inside an ICMP error: only the header
// must be complete. Padding behind a short original packet is cut off, but only down to the 8 bytes of
// payload that every error quotes: some hosts change the total length before they quote it.
func ParseQuotedIPv4(b []byte) (IPv4, error) {
	n, err := ipv4HeaderLen(b)
	if err != nil {
		return nil, err
	}
	if total := int(binary.BigEndian.Uint16(b[2:])); total >= n+8 && total < len(b) {
		b = b[:total]
	}
	return IPv4(slices.Clip(b)), nil
}

func ipv4HeaderLen(b []byte) (int, error) {
	if len(b) < IPv4HeaderLen {
		return 0, errIPv4Short
	}
	if b[0]>>4 != 4 {
		return 0, errIPv4Version
	}
	n := int(b[0]&15) * 4
	if n < IPv4HeaderLen {
		return 0, errIPv4HeaderLen
	}
	if n > len(b) {
		return 0, errIPv4Short
	}
	return n, nil
}

// HeaderLen is the length of the header with options, in bytes.
func (v IPv4) HeaderLen() int { return int(v[0]&15) * 4 }

// TOS is the type-of-service byte: 6 bits DSCP, 2 bits ECN.
func (v IPv4) TOS() uint8 { return v[1] }

// TotalLen is the length field: header and payload, in bytes.
func (v IPv4) TotalLen() int { return int(binary.BigEndian.Uint16(v[2:])) }

// ID is the identification field.
func (v IPv4) ID() uint16 { return binary.BigEndian.Uint16(v[4:]) }

// DontFragment is the DF flag.
func (v IPv4) DontFragment() bool { return v[6]&0x40 != 0 }

// MoreFragments is the MF flag.
func (v IPv4) MoreFragments() bool { return v[6]&0x20 != 0 }

// FragmentOffset is where the payload belongs in the unfragmented one, in bytes.
func (v IPv4) FragmentOffset() int { return int(binary.BigEndian.Uint16(v[6:])&0x1fff) * 8 }

// TTL is the time to live.
func (v IPv4) TTL() uint8 { return v[8] }

// Protocol tells what the payload is.
func (v IPv4) Protocol() Protocol { return Protocol(v[9]) }

// Checksum is the header checksum field.
func (v IPv4) Checksum() uint16 { return binary.BigEndian.Uint16(v[10:]) }

// ChecksumOK tells that the header checksum is right.
func (v IPv4) ChecksumOK() bool { return Checksum(v[:v.HeaderLen()]) == 0 }

// Src is the source address.
func (v IPv4) Src() netip.Addr { return netip.AddrFrom4([4]byte(v[12:16])) }

// Dst is the destination address.
func (v IPv4) Dst() netip.Addr { return netip.AddrFrom4([4]byte(v[16:20])) }

// Options is the raw options, padding included; empty for most packets.
func (v IPv4) Options() []byte { return v[IPv4HeaderLen:v.HeaderLen()] }

// Payload is what follows the header.
func (v IPv4) Payload() []byte { return v[v.HeaderLen():] }

// SetTOS changes the type-of-service byte and the header checksum with it.
func (v IPv4) SetTOS(tos uint8) { v.setWord(0, uint16(v[0])<<8|uint16(tos)) }

// SetTTL changes the time to live and the header checksum with it.
func (v IPv4) SetTTL(ttl uint8) { v.setWord(8, uint16(ttl)<<8|uint16(v[9])) }

// DecrementTTL is what a router does before it forwards: it lowers the time to live by 1
// and reports true, or changes nothing and reports false when the packet has to die here.
func (v IPv4) DecrementTTL() bool {
	if v[8] <= 1 {
		return false
	}
	v.SetTTL(v[8] - 1)
	return true
}

// SetSrc changes the source address and the header checksum with it. The checksum of the
// transport protocol, which covers the address as well, is the caller's: see [UpdateChecksumAddr].
// An address that is not IPv4 is [ErrAddress].
func (v IPv4) SetSrc(a netip.Addr) error { return v.setAddr(12, a) }

// SetDst is [IPv4.SetSrc] for the destination.
func (v IPv4) SetDst(a netip.Addr) error { return v.setAddr(16, a) }

func (v IPv4) setAddr(at int, a netip.Addr) error {
	a = a.Unmap()
	if !a.Is4() {
		return errIPv4Address
	}
	a4 := a.As4()
	v.setWord(at, binary.BigEndian.Uint16(a4[:]))
	v.setWord(at+2, binary.BigEndian.Uint16(a4[2:]))
	return nil
}

// setWord replaces the aligned word of the header at the offset, and corrects the checksum.
func (v IPv4) setWord(at int, w uint16) {
	sum := UpdateChecksum(v.Checksum(), binary.BigEndian.Uint16(v[at:]), w)
	binary.BigEndian.PutUint16(v[at:], w)
	binary.BigEndian.PutUint16(v[10:], sum)
}

// IPv4Header is what there is to choose in an IPv4 header. Lengths and checksum follow from the rest.
type IPv4Header struct {
	TOS            uint8
	ID             uint16
	DontFragment   bool
	MoreFragments  bool
	FragmentOffset uint16 // in bytes, a multiple of 8
	TTL            uint8
	Protocol       Protocol
	Src, Dst       netip.Addr // the zero Addr is written as 0.0.0.0
	Options        []byte     // at most 40 bytes; padded with zeros to a multiple of 4
}

// Append appends the header of a packet with payloadLen bytes of payload, which
// the caller appends next. Errors: [ErrTooLong], [ErrAddress], [ErrMalformed] for an odd fragment offset.
func (h *IPv4Header) Append(b []byte, payloadLen int) ([]byte, error) {
	start := len(b)
	b, err := h.AppendTemplate(b)
	if err != nil {
		return b, err
	}
	v := b[start:]
	total := len(v) + payloadLen
	if payloadLen < 0 || total > 0xffff {
		return b[:start], errIPv4TooLong
	}
	binary.BigEndian.PutUint16(v[2:], uint16(total))
	binary.BigEndian.PutUint16(v[10:], Checksum(v))
	return b, nil
}

// AppendTemplate appends the header for a raw socket with IP_HDRINCL, where the kernel fills in
// the total length, the checksum, and the id and source if they are zero. The checksum is zero, the
// total length that of the header alone.
func (h *IPv4Header) AppendTemplate(b []byte) ([]byte, error) {
	src, ok1 := as4(h.Src)
	dst, ok2 := as4(h.Dst)
	switch {
	case !ok1 || !ok2:
		return b, errIPv4Address
	case len(h.Options) > maxIPv4Options:
		return b, errIPv4Options
	case h.FragmentOffset%8 != 0:
		return b, errIPv4Offset
	}
	options := (len(h.Options) + 3) &^ 3
	n := IPv4HeaderLen + options
	flags := h.FragmentOffset / 8
	if h.DontFragment {
		flags |= 0x4000
	}
	if h.MoreFragments {
		flags |= 0x2000
	}
	b = append(b,
		0x40|byte(n/4), h.TOS, 0, byte(n),
		byte(h.ID>>8), byte(h.ID), byte(flags>>8), byte(flags),
		h.TTL, byte(h.Protocol), 0, 0,
		src[0], src[1], src[2], src[3],
		dst[0], dst[1], dst[2], dst[3])
	b = append(b, h.Options...)
	for range options - len(h.Options) {
		b = append(b, 0)
	}
	return b, nil
}

// as4 is a.As4 that takes the zero Addr for 0.0.0.0 and tells whether a is IPv4.
func as4(a netip.Addr) (b [4]byte, ok bool) {
	if !a.IsValid() {
		return b, true
	}
	if a = a.Unmap(); !a.Is4() {
		return b, false
	}
	return a.As4(), true
}

// SetECN returns tos with both ECN bits set (congestion experienced, RFC 3168) or cleared.
func SetECN(tos uint8, on bool) uint8 {
	if on {
		return tos | 3
	}
	return tos &^ 3
}
