// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"net/netip"
)

// UDPHeaderLen is the length in bytes of a UDP header.
const UDPHeaderLen = 8

// UDP is a view of a UDP datagram (RFC 768). Only [ParseUDP] makes one whose methods cannot fail.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-------------------------------+-------------------------------+
//	|          Source Port          |        Destination Port       |
//	+-------------------------------+-------------------------------+
//	|             Length            |            Checksum           |
//	+-------------------------------+-------------------------------+
type UDP []byte

// ParseUDP checks the header and length of a whole datagram and returns a view
// without what follows it.
func ParseUDP(b []byte) (UDP, error) {
	if len(b) < UDPHeaderLen {
		return nil, errUDPShort
	}
	n := int(binary.BigEndian.Uint16(b[4:]))
	switch {
	case n < UDPHeaderLen:
		return nil, errUDPLength
	case n > len(b):
		return nil, errUDPPayload
	}
	return UDP(b[:n:n]), nil
}

// SrcPort is the source port.
func (u UDP) SrcPort() uint16 { return binary.BigEndian.Uint16(u) }

// DstPort is the destination port.
func (u UDP) DstPort() uint16 { return binary.BigEndian.Uint16(u[2:]) }

// Length is the length field: header and payload, in bytes.
func (u UDP) Length() int { return int(binary.BigEndian.Uint16(u[4:])) }

// Checksum is the checksum field. 0 means that there is none.
func (u UDP) Checksum() uint16 { return binary.BigEndian.Uint16(u[6:]) }

// ChecksumOK tells that the checksum is right, or absent where it may be: IPv6 needs one.
func (u UDP) ChecksumOK(src, dst netip.Addr) bool {
	if u.Checksum() == 0 {
		return src.Unmap().Is4()
	}
	return TransportChecksum(ProtocolUDP, src, dst, u) == 0
}

// Payload is what follows the header.
func (u UDP) Payload() []byte { return u[UDPHeaderLen:] }

// SetSrcPort changes the source port, and the checksum with it if there is one.
func (u UDP) SetSrcPort(port uint16) { u.setWord(0, port) }

// SetDstPort changes the destination port, and the checksum with it if there is one.
func (u UDP) SetDstPort(port uint16) { u.setWord(2, port) }

func (u UDP) setWord(at int, w uint16) {
	if sum := u.Checksum(); sum != 0 {
		u.setChecksum(UpdateChecksum(sum, binary.BigEndian.Uint16(u[at:]), w))
	}
	binary.BigEndian.PutUint16(u[at:], w)
}

// UpdateAddr corrects the checksum, if there is one, after an address of the IP header around the
// datagram was changed from old to new.
func (u UDP) UpdateAddr(old, new netip.Addr) {
	if sum := u.Checksum(); sum != 0 {
		u.setChecksum(UpdateChecksumAddr(sum, old, new))
	}
}

func (u UDP) setChecksum(sum uint16) {
	if sum == 0 {
		sum = 0xffff // the other zero: RFC 768 takes the first for "no checksum"
	}
	binary.BigEndian.PutUint16(u[6:], sum)
}

// AppendUDP appends a datagram with its length and checksum. Errors: [ErrTooLong], [ErrAddress]
// for addresses of two versions.
func AppendUDP(b []byte, src, dst netip.AddrPort, payload []byte) ([]byte, error) {
	if !sameVersion(src.Addr(), dst.Addr()) {
		return b, errUDPAddress
	}
	start := len(b)
	b, err := AppendUDPHeader(b, src.Port(), dst.Port(), len(payload))
	if err != nil {
		return b, err
	}
	b = append(b, payload...)
	SetUDPChecksum(b[start:], src.Addr(), dst.Addr())
	return b, nil
}

// AppendUDPHeader appends the header of a datagram with payloadLen bytes of payload, without a
// checksum. The caller appends the payload, then calls [SetUDPChecksum] or [BalanceUDP] on both,
// so that a payload made on the spot is not copied.
func AppendUDPHeader(b []byte, srcPort, dstPort uint16, payloadLen int) ([]byte, error) {
	n := UDPHeaderLen + payloadLen
	if payloadLen < 0 || n > 0xffff {
		return b, errUDPTooLong
	}
	return append(b, byte(srcPort>>8), byte(srcPort), byte(dstPort>>8), byte(dstPort), byte(n>>8), byte(n), 0, 0), nil
}

// SetUDPChecksum computes the checksum of a datagram of at least 8 bytes and stores it there.
func SetUDPChecksum(segment []byte, src, dst netip.Addr) {
	segment[6], segment[7] = 0, 0
	UDP(segment).setChecksum(TransportChecksum(ProtocolUDP, src, dst, segment))
}

// BalanceUDP sets the checksum field of a datagram to sum, and the first two bytes of the payload
// to what makes that checksum right. So a probe can carry a number that every ICMP error
// quotes while all fields that load balancers look at stay the same (Augustin et al.,
// "Avoiding traceroute anomalies with Paris traceroute", 2006).
//
// Errors: [ErrMalformed] for sum 0, which means "no checksum"; [ErrTruncated] for a payload below 2 bytes.
func BalanceUDP(segment []byte, src, dst netip.Addr, sum uint16) error {
	switch {
	case sum == 0:
		return errUDPBalanceZero
	case len(segment) < UDPHeaderLen+2:
		return errUDPBalance
	}
	binary.BigEndian.PutUint16(segment[6:], sum)
	segment[8], segment[9] = 0, 0
	binary.BigEndian.PutUint16(segment[8:], TransportChecksum(ProtocolUDP, src, dst, segment))
	return nil
}
