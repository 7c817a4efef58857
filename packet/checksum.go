// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Checksum is the Internet checksum of RFC 1071 over b. A last odd byte is
// padded with a zero. Over data that includes its own right checksum it is 0.
func Checksum(b []byte) uint16 { return finish(add(0, b)) }

// TransportChecksum is the Internet checksum over segment and the pseudo header
// of IPv4 (RFC 9293 section 3.1) or IPv6 (RFC 8200 section 8.1). Clear the segment's checksum
// field first to compute it; leave it to check it, which gives 0 when it is right.
//
// A zero Addr counts as the unspecified address. UDP sends a result of 0 as 0xffff; that is left
// to [SetUDPChecksum].
func TransportChecksum(p Protocol, src, dst netip.Addr, segment []byte) uint16 {
	return finish(add(pseudoHeader(p, src, dst, len(segment)), segment))
}

// UpdateChecksum gives the checksum of data in which the aligned 16-bit word old was
// replaced by new, from the checksum that it had before (RFC 1624, equation 3).
func UpdateChecksum(sum, old, new uint16) uint16 {
	s := uint32(^sum) + uint32(^old) + uint32(new)
	s = s>>16 + s&0xffff
	return ^uint16(s>>16 + s)
}

// UpdateChecksumAddr is [UpdateChecksum] for an address, in the data or in the
// pseudo header. A translator uses it on the transport checksum when it rewrites an address.
func UpdateChecksumAddr(sum uint16, old, new netip.Addr) uint16 {
	s := uint64(bits.ReverseBytes16(^sum))
	s = addAddr(s, new)
	// Adding the complement of the old address takes it out of the sum.
	s = addWord(s, uint64(finishRaw(addAddr(0, old))))
	return finish(s)
}

// Sums are kept as 64-bit ones'-complement numbers of little-endian words: RFC 1071 section 2(B)
// shows that the byte order does not matter as long as the result is swapped once.

func addWord(sum, w uint64) uint64 {
	sum, carry := bits.Add64(sum, w, 0)
	return sum + carry
}

func add(sum uint64, b []byte) uint64 {
	var carry uint64
	for len(b) >= 32 {
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b[8:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b[16:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b[24:]), carry)
		b = b[32:]
	}
	for len(b) >= 8 {
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b), carry)
		b = b[8:]
	}
	var tail uint64 // the last 0 to 7 bytes
	if len(b) >= 4 {
		tail = uint64(binary.LittleEndian.Uint32(b))
		b = b[4:]
		switch len(b) {
		case 3:
			tail |= uint64(b[0])<<32 | uint64(b[1])<<40 | uint64(b[2])<<48
		case 2:
			tail |= uint64(b[0])<<32 | uint64(b[1])<<40
		case 1:
			tail |= uint64(b[0]) << 32
		}
	} else {
		switch len(b) {
		case 3:
			tail = uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16
		case 2:
			tail = uint64(b[0]) | uint64(b[1])<<8
		case 1:
			tail = uint64(b[0])
		}
	}
	sum, carry = bits.Add64(sum, tail, carry)
	sum, carry = bits.Add64(sum, 0, carry)
	return sum + carry
}

func addAddr(sum uint64, a netip.Addr) uint64 {
	switch {
	case a.Is4() || a.Is4In6():
		a4 := a.As4()
		return addWord(sum, uint64(binary.LittleEndian.Uint32(a4[:])))
	case a.IsValid():
		a16 := a.As16()
		sum = addWord(sum, binary.LittleEndian.Uint64(a16[:8]))
		return addWord(sum, binary.LittleEndian.Uint64(a16[8:]))
	}
	return sum
}

// pseudoHeader is the sum over the pseudo header. Those of both versions add the same
// numbers, only in fields of different width.
func pseudoHeader(p Protocol, src, dst netip.Addr, length int) uint64 {
	sum := addAddr(addAddr(0, src), dst)
	sum = addWord(sum, uint64(p)<<8)
	return addWord(sum, uint64(bits.ReverseBytes32(uint32(length))))
}

// finishRaw folds a sum to 16 bits and complements it, leaving the bytes swapped.
func finishRaw(sum uint64) uint16 {
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum)
}

func finish(sum uint64) uint16 { return bits.ReverseBytes16(finishRaw(sum)) }

// sameVersion tells that both addresses are IPv4 or both are IPv6. A zero Addr goes with either.
func sameVersion(a, b netip.Addr) bool {
	return !a.IsValid() || !b.IsValid() || a.Unmap().Is4() == b.Unmap().Is4()
}
