// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"encoding/binary"

	"github.com/seed5728abee/fathom/relay/drop"
)

// A datagram of our own begins with four bytes. Everything is big-endian.
//
//	0         2         3         4
//	+----+----+---------+---------+----
//	| 'F''R'  | version |  kind   | ...
//	+----+----+---------+---------+----
//
//	open         records
//	handshake 1  key ID [4], sender's index [4], Noise message
//	handshake 2  receiver's index [4], sender's index [4], Noise message
//	handshake 3  receiver's index [4], Noise message
//	sealed       receiver's index [4], counter [8], sealed records, tag [16]
//	reset        the index that is not known here [4]
const (
	wireVersion = 1
	headerLen   = 4
)

// The kinds of datagrams of our own.
const (
	kindOpen       = 1
	kindHandshake1 = 2
	kindHandshake2 = 3
	kindHandshake3 = 4
	kindSealed     = 5
	kindReset      = 6
)

const (
	handshake1Header = headerLen + 8
	handshake2Header = headerLen + 8
	handshake3Header = headerLen + 4
	sealedHeader     = headerLen + 12
	resetLen         = headerLen + 4
	tagLen           = 16
)

// An SS datagram is what relays of the origin send: two letters, the Ethernet header of the frame that was
// captured, and its IPv4 packet.
const (
	ssLen       = 2
	ethernetLen = 14
	ssHeader    = ssLen + ethernetLen
	minIP       = 20
)

// A record is a type, the length of what follows, and that.
const recordHeader = 3

// The types of records. A type that is not known is skipped.
const (
	recordFrame      = 1
	recordPart       = 2
	recordHello      = 3
	recordHelloAck   = 4
	recordTestReport = 5
	recordBye        = 6
)

const (
	macLen = 6
	// maxFrame is the most that a frame record, or the parts of one, can carry: a sender's Ethernet
	// address and an IP packet.
	maxFrame = macLen + 65535
	minFrame = macLen + minIP
)

// appendHeader begins a datagram of our own.
func appendHeader(b []byte, kind byte) []byte {
	return append(b, 'F', 'R', wireVersion, kind)
}

// framed tells the kind of a datagram of our own; 0 when it is none, or of another version.
func framed(b []byte) (kind byte) {
	if len(b) < headerLen || b[0] != 'F' || b[1] != 'R' || b[2] != wireVersion {
		return 0
	}
	return b[3]
}

// isSS tells whether a datagram is one of the origin's, with an Ethernet header and room for an IP header.
func isSS(b []byte) bool {
	return len(b) >= 2 && b[0] == 'S' && b[1] == 'S'
}

// appendRecordHeader begins a record whose body of n bytes is appended next.
func appendRecordHeader(b []byte, kind byte, n int) []byte {
	return append(b, kind, byte(n>>8), byte(n))
}

// nextRecord cuts the first record off.
func nextRecord(b []byte) (kind byte, body, rest []byte, reason drop.Reason) {
	if len(b) < recordHeader {
		return 0, nil, nil, drop.Truncated
	}
	n := int(binary.BigEndian.Uint16(b[1:]))
	if len(b) < recordHeader+n {
		return 0, nil, nil, drop.Truncated
	}
	return b[0], b[recordHeader : recordHeader+n], b[recordHeader+n:], drop.None
}

// A partHeader says where in a frame the bytes after it belong: at index times size.
//
//	0        4        8      10      12
//	+--------+--------+-------+-------+----
//	|  frame |  total | size  | index | bytes
//	+--------+--------+-------+-------+----
//
// Every part but the last has exactly size bytes.
type partHeader struct {
	frame uint32 // counted by the sender
	total uint32 // bytes of the whole frame record
	size  uint16
	index uint16
}

const (
	partHeaderLen = 12
	// minPart keeps the number of parts of a frame below what a reassembly keeps book of.
	minPart  = 400
	maxParts = (maxFrame + minPart - 1) / minPart
)

func (h partHeader) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, h.frame)
	b = binary.BigEndian.AppendUint32(b, h.total)
	b = binary.BigEndian.AppendUint16(b, h.size)
	return binary.BigEndian.AppendUint16(b, h.index)
}

// count is the number of parts of the frame.
func (h partHeader) count() int { return (int(h.total) + int(h.size) - 1) / int(h.size) }

// parsePart reads a part and holds it to the rules: a possible total, an index within it, and exactly the
// bytes that belong there.
func parsePart(b []byte) (h partHeader, data []byte, reason drop.Reason) {
	if len(b) < partHeaderLen {
		return h, nil, drop.Truncated
	}
	h = partHeader{
		frame: binary.BigEndian.Uint32(b),
		total: binary.BigEndian.Uint32(b[4:]),
		size:  binary.BigEndian.Uint16(b[8:]),
		index: binary.BigEndian.Uint16(b[10:]),
	}
	data = b[partHeaderLen:]
	if h.total < minFrame || h.total > maxFrame || h.size < minPart || int(h.index) >= h.count() {
		return h, nil, drop.Malformed
	}
	want := int(h.size)
	if int(h.index) == h.count()-1 {
		want = int(h.total) - int(h.index)*int(h.size)
	}
	if len(data) != want {
		return h, nil, drop.Malformed
	}
	return h, data, drop.None
}
