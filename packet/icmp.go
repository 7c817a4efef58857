// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"net/netip"
)

// ICMPHeaderLen is the length in bytes of the part that all messages have: type, code, checksum, and
// 4 bytes that depend on the type.
const ICMPHeaderLen = 8

// Types of ICMP for IPv4 (RFC 792, RFC 8335).
const (
	ICMPv4EchoReply           uint8 = 0
	ICMPv4Unreachable         uint8 = 3
	ICMPv4SourceQuench        uint8 = 4
	ICMPv4Redirect            uint8 = 5
	ICMPv4Echo                uint8 = 8
	ICMPv4RouterAdvertisement uint8 = 9
	ICMPv4RouterSolicitation  uint8 = 10
	ICMPv4TimeExceeded        uint8 = 11
	ICMPv4ParameterProblem    uint8 = 12
	ICMPv4Timestamp           uint8 = 13
	ICMPv4TimestampReply      uint8 = 14
	ICMPv4ExtendedEcho        uint8 = 42
	ICMPv4ExtendedEchoReply   uint8 = 43
)

// Codes of [ICMPv4Unreachable] (RFC 792, RFC 1122, RFC 1812).
const (
	ICMPv4CodeNet            uint8 = 0
	ICMPv4CodeHost           uint8 = 1
	ICMPv4CodeProtocol       uint8 = 2
	ICMPv4CodePort           uint8 = 3
	ICMPv4CodeFragNeeded     uint8 = 4 // and DF set; the message tells the next hop's MTU
	ICMPv4CodeSourceRoute    uint8 = 5
	ICMPv4CodeNetUnknown     uint8 = 6
	ICMPv4CodeHostUnknown    uint8 = 7
	ICMPv4CodeHostIsolated   uint8 = 8
	ICMPv4CodeNetProhibited  uint8 = 9
	ICMPv4CodeHostProhibited uint8 = 10
	ICMPv4CodeNetTOS         uint8 = 11
	ICMPv4CodeHostTOS        uint8 = 12
	ICMPv4CodeProhibited     uint8 = 13
	ICMPv4CodePrecedence     uint8 = 14
	ICMPv4CodeCutoff         uint8 = 15
)

// Types of ICMPv6 (RFC 4443, RFC 4861, RFC 8335).
const (
	ICMPv6Unreachable           uint8 = 1
	ICMPv6PacketTooBig          uint8 = 2
	ICMPv6TimeExceeded          uint8 = 3
	ICMPv6ParameterProblem      uint8 = 4
	ICMPv6Echo                  uint8 = 128
	ICMPv6EchoReply             uint8 = 129
	ICMPv6RouterSolicitation    uint8 = 133
	ICMPv6RouterAdvertisement   uint8 = 134
	ICMPv6NeighborSolicitation  uint8 = 135
	ICMPv6NeighborAdvertisement uint8 = 136
	ICMPv6Redirect              uint8 = 137
	ICMPv6ExtendedEcho          uint8 = 160
	ICMPv6ExtendedEchoReply     uint8 = 161
)

// Codes of [ICMPv6Unreachable] (RFC 4443).
const (
	ICMPv6CodeNoRoute     uint8 = 0
	ICMPv6CodeProhibited  uint8 = 1
	ICMPv6CodeBeyondScope uint8 = 2
	ICMPv6CodeAddress     uint8 = 3
	ICMPv6CodePort        uint8 = 4
	ICMPv6CodePolicy      uint8 = 5
	ICMPv6CodeReject      uint8 = 6
)

// Codes of both versions' time exceeded.
const (
	ICMPCodeHopLimit   uint8 = 0 // TTL or hop limit reached 0 on the way
	ICMPCodeReassembly uint8 = 1
)

// ICMPv6CodeNextHeader is the code of an [ICMPv6ParameterProblem] that stands for IPv4's "protocol unreachable".
const ICMPv6CodeNextHeader uint8 = 1

// ICMP is a view of an ICMP or ICMPv6 message. Only [ParseICMP] makes one whose methods cannot fail.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+---------------+---------------+-------------------------------+
//	|      Type     |      Code     |            Checksum           |
//	+---------------+---------------+-------------------------------+
//	|       Identifier (echo)       |    Sequence Number (echo)     |
//	+-------------------------------+-------------------------------+
//	|                              Body                             |
//	+---------------------------------------------------------------+
type ICMP []byte

// ParseICMP checks that there are 8 bytes. A message has no length field, so b must end where
// the message does. The checksum is not looked at: see [ICMP.ChecksumOK] and [ICMP.ChecksumOK6].
func ParseICMP(b []byte) (ICMP, error) {
	if len(b) < ICMPHeaderLen {
		return nil, errICMPShort
	}
	return ICMP(b), nil
}

// Type is what the message is for; its meaning depends on the IP version.
func (m ICMP) Type() uint8 { return m[0] }

// Code divides a type.
func (m ICMP) Code() uint8 { return m[1] }

// Checksum is the checksum field.
func (m ICMP) Checksum() uint16 { return binary.BigEndian.Uint16(m[2:]) }

// ID is the identifier of an echo request or reply.
func (m ICMP) ID() uint16 { return binary.BigEndian.Uint16(m[4:]) }

// Seq is the sequence number of an echo request or reply.
func (m ICMP) Seq() uint16 { return binary.BigEndian.Uint16(m[6:]) }

// Body is what follows the first 8 bytes.
func (m ICMP) Body() []byte { return m[ICMPHeaderLen:] }

// ChecksumOK tells that the checksum of an IPv4 message is right.
func (m ICMP) ChecksumOK() bool { return Checksum(m) == 0 }

// ChecksumOK6 tells that the checksum of an ICMPv6 message between these addresses is right.
func (m ICMP) ChecksumOK6(src, dst netip.Addr) bool {
	return TransportChecksum(ProtocolICMPv6, src, dst, m) == 0
}

// SetID changes the identifier and the checksum with it.
func (m ICMP) SetID(id uint16) {
	sum := UpdateChecksum(m.Checksum(), m.ID(), id)
	binary.BigEndian.PutUint16(m[4:], id)
	binary.BigEndian.PutUint16(m[2:], sum)
}

// UpdateAddr corrects the checksum of an ICMPv6 message after an address of the IP header around it
// was changed from old to new. IPv4's does not cover addresses.
func (m ICMP) UpdateAddr(old, new netip.Addr) {
	binary.BigEndian.PutUint16(m[2:], UpdateChecksumAddr(m.Checksum(), old, new))
}

// AppendICMPEcho appends an echo request or reply of the given type with IPv4's checksum. For an
// ICMPv6 type, call [SetICMPv6Checksum] on what was appended, or leave that to the kernel, which
// does it on every raw ICMPv6 socket.
func AppendICMPEcho(b []byte, typ uint8, id, seq uint16, payload []byte) []byte {
	start := len(b)
	b = append(b, typ, 0, 0, 0, byte(id>>8), byte(id), byte(seq>>8), byte(seq))
	b = append(b, payload...)
	SetICMPChecksum(b[start:])
	return b
}

// SetICMPChecksum computes the checksum of an IPv4 message of at least 8 bytes and stores it there.
func SetICMPChecksum(message []byte) {
	message[2], message[3] = 0, 0
	binary.BigEndian.PutUint16(message[2:], Checksum(message))
}

// SetICMPv6Checksum computes the checksum of an ICMPv6 message of at least 8 bytes and stores it there.
func SetICMPv6Checksum(message []byte, src, dst netip.Addr) {
	message[2], message[3] = 0, 0
	binary.BigEndian.PutUint16(message[2:], TransportChecksum(ProtocolICMPv6, src, dst, message))
}

// BalanceICMP sets the checksum of an IPv4 message to sum, and the two bytes at the
// offset to what makes that checksum right, so that load balancers which hash the ICMP checksum see one
// flow while the sequence number counts (Paris traceroute). The offset is even and 4 or
// more, else [ErrMalformed]; two bytes must be there, else [ErrTruncated].
func BalanceICMP(message []byte, sum uint16, at int) error {
	if err := startBalanceICMP(message, sum, at); err != nil {
		return err
	}
	binary.BigEndian.PutUint16(message[at:], Checksum(message))
	return nil
}

// BalanceICMPv6 is [BalanceICMP] for an ICMPv6 message between these addresses.
// On a raw ICMPv6 socket the kernel's own checksum then comes out as sum.
func BalanceICMPv6(message []byte, src, dst netip.Addr, sum uint16, at int) error {
	if !sameVersion(src, dst) {
		return errICMPAddress
	}
	if err := startBalanceICMP(message, sum, at); err != nil {
		return err
	}
	binary.BigEndian.PutUint16(message[at:], TransportChecksum(ProtocolICMPv6, src, dst, message))
	return nil
}

func startBalanceICMP(message []byte, sum uint16, at int) error {
	switch {
	case len(message) < ICMPHeaderLen:
		return errICMPShort
	case at < 4 || at%2 != 0:
		return errICMPBalanceAt
	case at > len(message)-2:
		return errICMPBalance
	}
	binary.BigEndian.PutUint16(message[2:], sum)
	message[at], message[at+1] = 0, 0
	return nil
}
