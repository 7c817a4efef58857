// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"net/netip"
	"strconv"
)

// TCPHeaderLen is the length in bytes of a TCP header without options.
const TCPHeaderLen = 20

// maxTCPOptions is what a 4-bit data offset in units of 4 bytes leaves for options.
const maxTCPOptions = 15*4 - TCPHeaderLen

// TCPFlags is the byte of control bits in a TCP header.
type TCPFlags uint8

// Control bits (RFC 9293, section 3.1).
const (
	TCPFin TCPFlags = 1 << iota
	TCPSyn
	TCPRst
	TCPPsh
	TCPAck
	TCPUrg
	TCPEce
	TCPCwr
)

// String joins the names of the bits that are set, as in "SYN|ACK", or gives "0".
func (f TCPFlags) String() string {
	if f == 0 {
		return strconv.Itoa(0)
	}
	names := [...]string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"}
	var s []byte
	for i, name := range names {
		if f&(1<<i) == 0 {
			continue
		}
		if len(s) > 0 {
			s = append(s, '|')
		}
		s = append(s, name...)
	}
	return string(s)
}

// TCP is a view of a TCP segment (RFC 9293). Only [ParseTCP] makes one whose methods cannot fail.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-------------------------------+-------------------------------+
//	|          Source Port          |        Destination Port       |
//	+-------------------------------+-------------------------------+
//	|                        Sequence Number                        |
//	+---------------------------------------------------------------+
//	|                     Acknowledgment Number                     |
//	+-------+-------+---------------+-------------------------------+
//	| Offset| Rsrvd |     Flags     |             Window            |
//	+-------+-------+---------------+-------------------------------+
//	|            Checksum           |         Urgent Pointer        |
//	+-------------------------------+-------------------------------+
//	|                     Options, up to 40 bytes                   |
//	+---------------------------------------------------------------+
type TCP []byte

// ParseTCP checks that the header with its options is complete. A segment has no length field, so b
// must end where the segment does.
func ParseTCP(b []byte) (TCP, error) {
	if len(b) < TCPHeaderLen {
		return nil, errTCPShort
	}
	n := int(b[12]>>4) * 4
	switch {
	case n < TCPHeaderLen:
		return nil, errTCPOffset
	case n > len(b):
		return nil, errTCPShort
	}
	return TCP(b), nil
}

// SrcPort is the source port.
func (t TCP) SrcPort() uint16 { return binary.BigEndian.Uint16(t) }

// DstPort is the destination port.
func (t TCP) DstPort() uint16 { return binary.BigEndian.Uint16(t[2:]) }

// Seq is the sequence number.
func (t TCP) Seq() uint32 { return binary.BigEndian.Uint32(t[4:]) }

// Ack is the acknowledgment number, meaningful if the flag [TCPAck] is set.
func (t TCP) Ack() uint32 { return binary.BigEndian.Uint32(t[8:]) }

// DataOffset is the length of the header with options, in bytes.
func (t TCP) DataOffset() int { return int(t[12]>>4) * 4 }

// Flags is the control bits.
func (t TCP) Flags() TCPFlags { return TCPFlags(t[13]) }

// Window is the window field, not scaled.
func (t TCP) Window() uint16 { return binary.BigEndian.Uint16(t[14:]) }

// Checksum is the checksum field.
func (t TCP) Checksum() uint16 { return binary.BigEndian.Uint16(t[16:]) }

// ChecksumOK tells that the checksum is right.
func (t TCP) ChecksumOK(src, dst netip.Addr) bool {
	return TransportChecksum(ProtocolTCP, src, dst, t) == 0
}

// Urgent is the urgent pointer.
func (t TCP) Urgent() uint16 { return binary.BigEndian.Uint16(t[18:]) }

// Options is the raw options, padding included.
func (t TCP) Options() []byte { return t[TCPHeaderLen:t.DataOffset()] }

// Payload is what follows the header.
func (t TCP) Payload() []byte { return t[t.DataOffset():] }

// MSS is the maximum segment size option in bytes, and whether there is one.
func (t TCP) MSS() (uint16, bool) {
	for o := t.Options(); len(o) > 0; {
		switch o[0] {
		case 0: // end of options
			return 0, false
		case 1: // no operation
			o = o[1:]
			continue
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return 0, false
		}
		if o[0] == 2 && o[1] == 4 {
			return binary.BigEndian.Uint16(o[2:]), true
		}
		o = o[o[1]:]
	}
	return 0, false
}

// SetSrcPort changes the source port and the checksum with it.
func (t TCP) SetSrcPort(port uint16) { t.setWord(0, port) }

// SetDstPort changes the destination port and the checksum with it.
func (t TCP) SetDstPort(port uint16) { t.setWord(2, port) }

func (t TCP) setWord(at int, w uint16) {
	sum := UpdateChecksum(t.Checksum(), binary.BigEndian.Uint16(t[at:]), w)
	binary.BigEndian.PutUint16(t[at:], w)
	binary.BigEndian.PutUint16(t[16:], sum)
}

// UpdateAddr corrects the checksum after an address of the IP header around the
// segment was changed from old to new.
func (t TCP) UpdateAddr(old, new netip.Addr) {
	binary.BigEndian.PutUint16(t[16:], UpdateChecksumAddr(t.Checksum(), old, new))
}

// TCPHeader is what there is to choose in a TCP header.
type TCPHeader struct {
	SrcPort, DstPort uint16
	Seq, Ack         uint32
	Flags            TCPFlags
	Window           uint16
	Urgent           uint16
	Options          []byte // at most 40 bytes; padded with zeros to a multiple of 4
}

// Append appends a segment with its checksum. Errors: [ErrTooLong], [ErrAddress] for addresses of
// two versions.
func (h *TCPHeader) Append(b []byte, src, dst netip.Addr, payload []byte) ([]byte, error) {
	options := (len(h.Options) + 3) &^ 3
	n := TCPHeaderLen + options
	switch {
	case !sameVersion(src, dst):
		return b, errTCPAddress
	case len(h.Options) > maxTCPOptions:
		return b, errTCPOptions
	case n+len(payload) > 0xffff:
		return b, errTCPTooLong
	}
	start := len(b)
	b = append(b,
		byte(h.SrcPort>>8), byte(h.SrcPort), byte(h.DstPort>>8), byte(h.DstPort),
		byte(h.Seq>>24), byte(h.Seq>>16), byte(h.Seq>>8), byte(h.Seq),
		byte(h.Ack>>24), byte(h.Ack>>16), byte(h.Ack>>8), byte(h.Ack),
		byte(n/4)<<4, byte(h.Flags), byte(h.Window>>8), byte(h.Window),
		0, 0, byte(h.Urgent>>8), byte(h.Urgent))
	b = append(b, h.Options...)
	for range options - len(h.Options) {
		b = append(b, 0)
	}
	b = append(b, payload...)
	s := b[start:]
	binary.BigEndian.PutUint16(s[16:], TransportChecksum(ProtocolTCP, src, dst, s))
	return b, nil
}

// AppendTCPOptionMSS appends a maximum segment size option, for [TCPHeader].Options of a SYN.
func AppendTCPOptionMSS(b []byte, mss uint16) []byte {
	return append(b, 2, 4, byte(mss>>8), byte(mss))
}
