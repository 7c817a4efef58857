// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"hash/crc32"
	"iter"
)

// SCTPHeaderLen is the length in bytes of SCTP's common header.
const SCTPHeaderLen = 12

// Chunk types (RFC 9260, section 3.2) that take part in opening an association.
const (
	SCTPChunkInit    uint8 = 1
	SCTPChunkInitAck uint8 = 2
	SCTPChunkAbort   uint8 = 6
)

// sctpChunkInitLen is the length of an INIT or INIT-ACK chunk without parameters.
const sctpChunkInitLen = 20

// sctpStateCookie is the type of the one parameter that an INIT-ACK must have.
const sctpStateCookie = 7

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// noChecksum stands for the checksum field while the checksum is computed. It is not on the stack
// because what crc32.Update is given escapes to the heap. Nothing writes to it.
var noChecksum [4]byte

// SCTP is a view of an SCTP packet (RFC 9260). Only [ParseSCTP] makes one whose methods cannot fail.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-------------------------------+-------------------------------+
//	|          Source Port          |        Destination Port       |
//	+-------------------------------+-------------------------------+
//	|                        Verification Tag                       |
//	+---------------------------------------------------------------+
//	|                CRC32c, least significant byte first           |
//	+---------------+---------------+-------------------------------+
//	|   Chunk Type  |     Flags     | Length with these 4 bytes     |
//	+---------------+---------------+-------------------------------+
//	|         Value, padded to a multiple of 4; more chunks         |
//	+---------------------------------------------------------------+
type SCTP []byte

// ParseSCTP checks that there is a whole common header, and behind it one whole chunk. What follows
// that one is left to [SCTP.Chunks], because a receiver uses the chunks before a broken one (RFC 9260,
// section 6.10). The checksum is not looked at: see [SCTP.ChecksumOK].
func ParseSCTP(b []byte) (SCTP, error) {
	if len(b) < SCTPHeaderLen {
		return nil, errSCTPShort
	}
	if _, _, err := cutSCTPChunk(b[SCTPHeaderLen:]); err != nil {
		return nil, err
	}
	return SCTP(b), nil
}

// cutSCTPChunk returns the first chunk of b and what follows its padding, which may be missing from the last.
func cutSCTPChunk(b []byte) (c SCTPChunk, rest []byte, err error) {
	if len(b) < 4 {
		return c, nil, errSCTPChunk
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	switch {
	case n < 4:
		return c, nil, errSCTPChunkLen
	case n > len(b):
		return c, nil, errSCTPChunk
	}
	return SCTPChunk{Type: b[0], Flags: b[1], Value: b[4:n]}, b[min((n+3)&^3, len(b)):], nil
}

// SrcPort is the source port.
func (s SCTP) SrcPort() uint16 { return binary.BigEndian.Uint16(s) }

// DstPort is the destination port.
func (s SCTP) DstPort() uint16 { return binary.BigEndian.Uint16(s[2:]) }

// Tag is the verification tag: the initiate tag that the receiver chose, 0 with an INIT.
func (s SCTP) Tag() uint32 { return binary.BigEndian.Uint32(s[4:]) }

// Checksum is the CRC32c in the header.
func (s SCTP) Checksum() uint32 { return binary.LittleEndian.Uint32(s[8:]) }

// ChecksumOK tells that the CRC32c is right.
func (s SCTP) ChecksumOK() bool { return s.Checksum() == sctpChecksum(s) }

// First is the first chunk, which tells what the packet is for: INIT, INIT-ACK and most ABORTs come alone.
func (s SCTP) First() SCTPChunk {
	c, _, _ := cutSCTPChunk(s[SCTPHeaderLen:]) // ParseSCTP has seen that there is one
	return c
}

// Chunks iterates over the chunks, in order. It ends early at one that is malformed.
func (s SCTP) Chunks() iter.Seq[SCTPChunk] {
	return func(yield func(SCTPChunk) bool) {
		c, rest, err := cutSCTPChunk(s[SCTPHeaderLen:])
		for err == nil && yield(c) {
			c, rest, err = cutSCTPChunk(rest)
		}
	}
}

// SCTPChunk is one chunk; the value is a view into the packet.
type SCTPChunk struct {
	Type, Flags uint8
	Value       []byte // without the 4 bytes of type, flags and length, and without padding
}

// Init decodes the fixed part of an INIT or INIT-ACK chunk. It reports false for other chunks and
// for one that is too short.
func (c SCTPChunk) Init() (SCTPInit, bool) {
	if c.Type != SCTPChunkInit && c.Type != SCTPChunkInitAck || len(c.Value) < sctpChunkInitLen-4 {
		return SCTPInit{}, false
	}
	return SCTPInit{
		InitiateTag: binary.BigEndian.Uint32(c.Value),
		Window:      binary.BigEndian.Uint32(c.Value[4:]),
		OutStreams:  binary.BigEndian.Uint16(c.Value[8:]),
		InStreams:   binary.BigEndian.Uint16(c.Value[10:]),
		TSN:         binary.BigEndian.Uint32(c.Value[12:]),
	}, true
}

// SCTPInit is the fixed part of an INIT or INIT-ACK chunk.
type SCTPInit struct {
	InitiateTag uint32 // what the other side puts into the verification tag; not 0
	Window      uint32 // advertised receiver window credit, bytes
	OutStreams  uint16 // not 0
	InStreams   uint16 // at most that many; not 0
	TSN         uint32 // initial transmission sequence number
}

// AppendSCTPInit appends a packet that asks for an association: one INIT chunk, verification
// tag 0. A tag or number of streams that is 0 is [ErrMalformed], for peers answer it with an
// ABORT or not at all.
func AppendSCTPInit(b []byte, srcPort, dstPort uint16, init SCTPInit) ([]byte, error) {
	if !init.valid() {
		return b, errSCTPInit
	}
	start := len(b)
	b = appendSCTPHeader(b, srcPort, dstPort, 0)
	b = init.append(b, SCTPChunkInit, sctpChunkInitLen)
	setSCTPChecksum(b[start:])
	return b, nil
}

// AppendSCTPInitAck appends the answer to an INIT: tag is the initiate tag of that INIT, init is the
// answering side's own choice, cookie what the state cookie parameter holds.
// Errors: as [AppendSCTPInit], and [ErrTooLong].
func AppendSCTPInitAck(b []byte, srcPort, dstPort uint16, tag uint32, init SCTPInit, cookie []byte) ([]byte, error) {
	param := 4 + len(cookie)
	n := sctpChunkInitLen + param
	switch {
	case !init.valid():
		return b, errSCTPInit
	case n > 0xffff:
		return b, errSCTPTooLong
	}
	start := len(b)
	b = appendSCTPHeader(b, srcPort, dstPort, tag)
	b = init.append(b, SCTPChunkInitAck, n)
	b = append(b, 0, sctpStateCookie, byte(param>>8), byte(param))
	b = append(b, cookie...)
	for len(b)-start < SCTPHeaderLen+(n+3)&^3 {
		b = append(b, 0)
	}
	setSCTPChecksum(b[start:])
	return b, nil
}

// AppendSCTPAbort appends a packet that refuses or ends an association: one ABORT chunk without
// causes. If reflected, tag is the one of the packet that is refused, and the T bit says so
// (RFC 9260, section 8.4); else it is the receiver's own initiate tag.
func AppendSCTPAbort(b []byte, srcPort, dstPort uint16, tag uint32, reflected bool) []byte {
	var flags byte
	if reflected {
		flags = 1
	}
	start := len(b)
	b = appendSCTPHeader(b, srcPort, dstPort, tag)
	b = append(b, SCTPChunkAbort, flags, 0, 4)
	setSCTPChecksum(b[start:])
	return b
}

func (i *SCTPInit) valid() bool {
	return i.InitiateTag != 0 && i.OutStreams != 0 && i.InStreams != 0
}

func (i *SCTPInit) append(b []byte, typ uint8, length int) []byte {
	return append(b, typ, 0, byte(length>>8), byte(length),
		byte(i.InitiateTag>>24), byte(i.InitiateTag>>16), byte(i.InitiateTag>>8), byte(i.InitiateTag),
		byte(i.Window>>24), byte(i.Window>>16), byte(i.Window>>8), byte(i.Window),
		byte(i.OutStreams>>8), byte(i.OutStreams), byte(i.InStreams>>8), byte(i.InStreams),
		byte(i.TSN>>24), byte(i.TSN>>16), byte(i.TSN>>8), byte(i.TSN))
}

func appendSCTPHeader(b []byte, srcPort, dstPort uint16, tag uint32) []byte {
	return append(b, byte(srcPort>>8), byte(srcPort), byte(dstPort>>8), byte(dstPort),
		byte(tag>>24), byte(tag>>16), byte(tag>>8), byte(tag), 0, 0, 0, 0)
}

func setSCTPChecksum(b []byte) {
	binary.LittleEndian.PutUint32(b[8:], sctpChecksum(b))
}

// sctpChecksum is the CRC32c of the packet with zeros in place of the checksum.
func sctpChecksum(b []byte) uint32 {
	c := crc32.Update(0, castagnoli, b[:8])
	c = crc32.Update(c, castagnoli, noChecksum[:])
	return crc32.Update(c, castagnoli, b[SCTPHeaderLen:])
}
