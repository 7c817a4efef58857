// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package epics

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Sizes of Channel Access messages, in bytes.
const (
	CAHeaderLen = 16   // of a header
	CAMaxSearch = 1024 // of a datagram that a client fills with searches

	caExtendedLen = 8 // what an extended header has more
	caAlign       = 8
	caExtended    = 0xffff // payload size that says that the header is extended
)

// CAVersion is the minor version of Channel Access 4 that the encoders speak:
// that of EPICS Base 3.14.12 and later.
const CAVersion = 13

// A CACommand says what a Channel Access message is for.
type CACommand uint16

// The commands that are sent in datagrams.
const (
	CACommandVersion  CACommand = 0  // the sender's version and the sequence number of the datagram
	CACommandSearch   CACommand = 6  // a client looks for a name, or a server has it
	CACommandBeacon   CACommand = 13 // a server is there (RSRV_IS_UP)
	CACommandNotFound CACommand = 14 // a server has not a name, and was asked to say so
	CACommandConfirm  CACommand = 17 // the repeater has registered a client
	CACommandRegister CACommand = 24 // a client wants beacons from the repeater
)

func (c CACommand) String() string {
	switch c {
	case CACommandVersion:
		return "version"
	case CACommandSearch:
		return "search"
	case CACommandBeacon:
		return "beacon"
	case CACommandNotFound:
		return "not found"
	case CACommandConfirm:
		return "confirm"
	case CACommandRegister:
		return "register"
	}
	return fmt.Sprintf("CACommand(%d)", uint16(c))
}

// A CAMessage is one message of Channel Access. What Type, Count and the
// parameters mean depends on the command; the methods know.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-------------------------------+-------------------------------+
//	|            Command            |   Payload size (ffff: below)  |
//	+-------------------------------+-------------------------------+
//	|             Type              |      Count (ffff: 0 here)     |
//	+-------------------------------+-------------------------------+
//	|                          Parameter 1                          |
//	+---------------------------------------------------------------+
//	|                          Parameter 2                          |
//	+---------------------------------------------------------------+
//	|           Payload size, only in an extended header            |
//	+---------------------------------------------------------------+
//	|              Count, only in an extended header                |
//	+---------------------------------------------------------------+
//	|         Payload, padded to a multiple of 8 bytes …            |
type CAMessage struct {
	Command CACommand
	Type    uint16
	Count   uint32
	Param1  uint32
	Param2  uint32
	Payload []byte // with its padding
}

// ParseCA decodes the first message of a datagram and returns what follows it.
// The payload is a part of b. It checks what the methods of the message rely on, so
// that they cannot fail. Every error is a [drop.Invalid].
func ParseCA(b []byte) (m CAMessage, rest []byte, err error) {
	if len(b) < CAHeaderLen {
		return CAMessage{}, nil, errCAShort
	}
	m = CAMessage{
		Command: CACommand(binary.BigEndian.Uint16(b)),
		Type:    binary.BigEndian.Uint16(b[4:]),
		Count:   uint32(binary.BigEndian.Uint16(b[6:])),
		Param1:  binary.BigEndian.Uint32(b[8:]),
		Param2:  binary.BigEndian.Uint32(b[12:]),
	}
	size := uint32(binary.BigEndian.Uint16(b[2:]))
	b = b[CAHeaderLen:]
	if size == caExtended && m.Count == 0 {
		if len(b) < caExtendedLen {
			return CAMessage{}, nil, errCAShort
		}
		size, m.Count = binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
		b = b[caExtendedLen:]
	}
	switch {
	case size%caAlign != 0:
		return CAMessage{}, nil, errCAAlignment
	case uint64(size) > uint64(len(b)):
		return CAMessage{}, nil, errCAPayload
	}
	m.Payload, rest = b[:size:size], b[size:]
	switch m.Command {
	case CACommandVersion, CACommandBeacon, CACommandNotFound, CACommandConfirm, CACommandRegister:
		if size != 0 {
			return CAMessage{}, nil, errCASize
		}
	case CACommandSearch:
		switch {
		case !m.IsRequest():
			// Servers before 4.1 answer without their version.
			if size != 0 && size != caAlign {
				return CAMessage{}, nil, errCASize
			}
		case bytes.IndexByte(m.Payload, 0) <= 0:
			return CAMessage{}, nil, errCAName
		}
	}
	return m, rest, nil
}

// validCA checks all messages of a datagram.
func validCA(b []byte) (err error) {
	for first := true; first || len(b) > 0; first = false {
		if _, b, err = ParseCA(b); err != nil {
			return err
		}
	}
	return nil
}

// IsRequest tells that a search is a client's. A client states its version,
// which is never 0, where a server's answer has a 0.
func (m CAMessage) IsRequest() bool { return m.Command == CACommandSearch && m.Count != 0 }

// Name is the name that a client searches for, a part of the payload. It is
// nil if this is no such message.
func (m CAMessage) Name() []byte {
	if !m.IsRequest() {
		return nil
	}
	n := max(bytes.IndexByte(m.Payload, 0), 0)
	return m.Payload[:n:n]
}

// ID is the identifier that the client gave to its channel, in a search and in what answers it.
func (m CAMessage) ID() uint32 { return m.Param2 }

// Sequence is the number of the datagram of which this is the version message.
// Clients that number their datagrams say so.
func (m CAMessage) Sequence() (n uint32, ok bool) {
	return m.Param1, m.Command == CACommandVersion && m.Type&1 != 0
}

// Server is where a server that sends a beacon or answers a search is reached over TCP.
// If the address is unspecified, it is the one that the datagram comes from.
func (m CAMessage) Server() (server netip.AddrPort, ok bool) {
	var addr uint32
	port := m.Type
	switch {
	case m.Command == CACommandBeacon:
		addr = m.Param2
		port = uint16(m.Count)
	case m.Command == CACommandSearch && !m.IsRequest():
		if addr = m.Param1; addr == 0xffffffff {
			addr = 0
		}
	default:
		return netip.AddrPort{}, false
	}
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], addr)
	return netip.AddrPortFrom(netip.AddrFrom4(a), port), true
}

// Append encodes the message. It pads the payload with zeros, and extends the header if need be.
func (m CAMessage) Append(b []byte) []byte {
	size := (len(m.Payload) + caAlign - 1) / caAlign * caAlign
	extended := size >= caExtended || m.Count > 0xffff
	b = binary.BigEndian.AppendUint16(b, uint16(m.Command))
	if extended {
		b = binary.BigEndian.AppendUint16(b, caExtended)
	} else {
		b = binary.BigEndian.AppendUint16(b, uint16(size))
	}
	b = binary.BigEndian.AppendUint16(b, m.Type)
	if extended {
		b = binary.BigEndian.AppendUint16(b, 0)
	} else {
		b = binary.BigEndian.AppendUint16(b, uint16(m.Count))
	}
	b = binary.BigEndian.AppendUint32(b, m.Param1)
	b = binary.BigEndian.AppendUint32(b, m.Param2)
	if extended {
		b = binary.BigEndian.AppendUint32(b, uint32(size))
		b = binary.BigEndian.AppendUint32(b, m.Count)
	}
	b = append(b, m.Payload...)
	return append(b, make([]byte, size-len(m.Payload))...)
}

// caDontReply in a search says that a server without the name is to be silent, the only choice for a broadcast.
const caDontReply = 5

// CAVersionMessage begins each datagram of a client, and numbers it.
func CAVersionMessage(sequence uint32) CAMessage {
	return CAMessage{Command: CACommandVersion, Type: 1, Count: CAVersion, Param1: sequence}
}

// CASearch is a client's search for a name that is not empty and has no zero byte.
// The server's answer names the id again.
func CASearch(id uint32, name string) CAMessage {
	return CAMessage{
		Command: CACommandSearch, Type: caDontReply, Count: CAVersion, Param1: id, Param2: id,
		Payload: append([]byte(name), 0),
	}
}

// CASearchResponse is the answer of a server that has the name: it is reached over TCP at
// the address that this comes from, on that port.
func CASearchResponse(id uint32, port uint16) CAMessage {
	return CAMessage{
		Command: CACommandSearch, Type: port, Param1: 0xffffffff, Param2: id,
		Payload: binary.BigEndian.AppendUint16(nil, CAVersion),
	}
}

// CABeacon says that a server is there, on that TCP port. Servers number
// their beacons. They leave the address, if it is an IPv4 one, to the repeater when it is unspecified.
func CABeacon(sequence uint32, server netip.AddrPort) CAMessage {
	m := CAMessage{Command: CACommandBeacon, Type: CAVersion, Count: uint32(server.Port()), Param1: sequence}
	if a := server.Addr().Unmap(); a.Is4() {
		b := a.As4()
		m.Param2 = binary.BigEndian.Uint32(b[:])
	}
	return m
}
