// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"net/netip"
)

// minQuote is how many bytes of the transport header every ICMP error has to quote (RFC 792), and
// what the methods of [Quote] read.
const minQuote = 8

// Quote is a packet quoted by an ICMP error, decoded as far as it goes. Comparing it
// with the packet that was sent shows what was changed on the way (TOS, addresses, id).
type Quote struct {
	Version  int      // 4 or 6
	Protocol Protocol // behind all IPv6 extension headers
	TTL      uint8    // or hop limit, as it reached the router: 0 or 1 unless TTL was hidden in a tunnel
	TOS      uint8    // or traffic class
	Src, Dst netip.Addr
	TotalLen int    // of the packet when it was sent, IP header included; some hosts change it
	IPID     uint16 // IPv4 only
	// FlowLabel is IPv6 only.
	FlowLabel uint32
	// SrcPort and DstPort are those of UDP, TCP and SCTP; else 0.
	SrcPort, DstPort uint16
	// Transport is the quoted bytes from the transport header on, at least 8.
	Transport []byte
}

// ParseQuote decodes a quoted packet. The version field decides how; IPv4 options and IPv6 extension
// headers are skipped. Errors: [ErrVersion], [ErrMalformed], [ErrFragment], and
// [ErrTruncated] if less than 8 bytes of the transport header are there.
func ParseQuote(b []byte) (q Quote, err error) {
	err = q.Decode(b)
	return q, err
}

// Decode is [ParseQuote] into a Quote that is used again, which spares copying it.
// On an error q is left as it was.
func (q *Quote) Decode(b []byte) error {
	if len(b) == 0 {
		return errQuoteShort
	}
	var transport []byte
	switch b[0] >> 4 {
	case 4:
		v, err := ParseQuotedIPv4(b)
		if err != nil {
			return err
		}
		if v.FragmentOffset() != 0 {
			return errIPv4Fragment
		}
		if transport = v.Payload(); len(transport) < minQuote {
			return errQuoteShort
		}
		q.Version, q.Protocol, q.TTL, q.TOS = 4, v.Protocol(), v.TTL(), v.TOS()
		q.Src, q.Dst, q.TotalLen, q.IPID, q.FlowLabel = v.Src(), v.Dst(), v.TotalLen(), v.ID(), 0
	case 6:
		v, err := ParseQuotedIPv6(b)
		if err != nil {
			return err
		}
		var p Protocol
		if p, transport, err = v.Upper(); err != nil {
			return err
		}
		if len(transport) < minQuote {
			return errQuoteShort
		}
		q.Version, q.Protocol, q.TTL, q.TOS = 6, p, v.HopLimit(), v.TrafficClass()
		q.Src, q.Dst, q.TotalLen, q.IPID, q.FlowLabel = v.Src(), v.Dst(), IPv6HeaderLen+v.PayloadLen(), 0, v.FlowLabel()
	default:
		return errQuoteVersion
	}
	q.Transport, q.SrcPort, q.DstPort = transport, 0, 0
	switch q.Protocol {
	case ProtocolUDP, ProtocolTCP, ProtocolSCTP:
		q.SrcPort = binary.BigEndian.Uint16(transport)
		q.DstPort = binary.BigEndian.Uint16(transport[2:])
	}
	return nil
}

// The methods below read the quoted transport header; each is meaningful for the protocol it names.

// ICMPType is the type of the quoted ICMP message.
func (q *Quote) ICMPType() uint8 { return q.Transport[0] }

// ICMPCode is the code of the quoted ICMP message.
func (q *Quote) ICMPCode() uint8 { return q.Transport[1] }

// ICMPChecksum is the checksum of the quoted ICMP message.
func (q *Quote) ICMPChecksum() uint16 { return binary.BigEndian.Uint16(q.Transport[2:]) }

// ID is the identifier of the quoted ICMP echo.
func (q *Quote) ID() uint16 { return binary.BigEndian.Uint16(q.Transport[4:]) }

// Seq is the sequence number of the quoted ICMP echo.
func (q *Quote) Seq() uint16 { return binary.BigEndian.Uint16(q.Transport[6:]) }

// UDPLen is the length field of the quoted UDP header.
func (q *Quote) UDPLen() int { return int(binary.BigEndian.Uint16(q.Transport[4:])) }

// UDPChecksum is the checksum field of the quoted UDP header.
func (q *Quote) UDPChecksum() uint16 { return binary.BigEndian.Uint16(q.Transport[6:]) }

// TCPSeq is the sequence number of the quoted TCP header.
func (q *Quote) TCPSeq() uint32 { return binary.BigEndian.Uint32(q.Transport[4:]) }

// SCTPTag is the verification tag of the quoted SCTP header: 0 with an INIT.
func (q *Quote) SCTPTag() uint32 { return binary.BigEndian.Uint32(q.Transport[4:]) }

// SCTPInitiateTag is the initiate tag of the quoted INIT chunk, if the quote is long enough to have it.
func (q *Quote) SCTPInitiateTag() (uint32, bool) {
	const at = SCTPHeaderLen + 4
	if len(q.Transport) < at+4 || q.Transport[SCTPHeaderLen] != SCTPChunkInit {
		return 0, false
	}
	return binary.BigEndian.Uint32(q.Transport[at:]), true
}
