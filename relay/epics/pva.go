// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package epics

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
)

// Sizes of PVAccess messages, in bytes.
const (
	PVAHeaderLen = 8    // of a header
	PVAMaxSearch = 1400 // of a datagram that a client fills with searches

	pvaMagic = 0xca
)

// PVAVersion is the version of PVAccess that the encoders speak.
const PVAVersion = 2

// PVAFlags are those of a message's header.
type PVAFlags uint8

// The flags of a header.
const (
	PVAControl    PVAFlags = 1 << 0 // a control message, of TCP only
	PVASegments   PVAFlags = 3 << 4 // not 0: a part of a message, of TCP only
	PVAFromServer PVAFlags = 1 << 6
	PVABigEndian  PVAFlags = 1 << 7 // how the numbers of header and payload are written
)

// A PVACommand says what a PVAccess message is for.
type PVACommand uint8

// The commands that are sent in datagrams.
const (
	PVACommandBeacon         PVACommand = 0  // a server is there
	PVACommandSearch         PVACommand = 3  // a client looks for names, or for servers
	PVACommandSearchResponse PVACommand = 4  // a server has names
	PVACommandOrigin         PVACommand = 22 // what follows was passed on inside a host
)

func (c PVACommand) String() string {
	switch c {
	case PVACommandBeacon:
		return "beacon"
	case PVACommandSearch:
		return "search"
	case PVACommandSearchResponse:
		return "search response"
	case PVACommandOrigin:
		return "origin tag"
	}
	return fmt.Sprintf("PVACommand(%d)", uint8(c))
}

// A PVAMessage is one message of PVAccess, its payload not decoded yet. Its header is
//
//	+-----------+-----------+-----------+-----------+
//	| 0xca      |  version  |   flags   |  command  |
//	+-----------+-----------+-----------+-----------+
//	|                payload size                   |
//	+-----------------------------------------------+
type PVAMessage struct {
	Version uint8 // not 0
	Flags   PVAFlags
	Command PVACommand
	Payload []byte
}

// ParsePVA decodes the header of the first message of a datagram and returns what follows
// the message. The payload is a part of b. Every error is a [drop.Invalid].
func ParsePVA(b []byte) (m PVAMessage, rest []byte, err error) {
	if len(b) < PVAHeaderLen {
		return PVAMessage{}, nil, errPVAShort
	}
	m = PVAMessage{Version: b[1], Flags: PVAFlags(b[2]), Command: PVACommand(b[3])}
	switch {
	case b[0] != pvaMagic || m.Version == 0:
		return PVAMessage{}, nil, errPVAMagic
	case m.Flags&(PVAControl|PVASegments) != 0:
		return PVAMessage{}, nil, errPVAFlags
	}
	r := reader{b: b[4:], big: m.bigEndian()}
	size := r.uint32()
	if uint64(size) > uint64(len(r.b)) {
		return PVAMessage{}, nil, errPVAPayload
	}
	m.Payload = r.b[:size:size]
	return m, r.b[size:], nil
}

// validPVA checks all messages of a datagram, with the fields of those that are known.
func validPVA(b []byte) error {
	for first := true; first || len(b) > 0; first = false {
		m, rest, err := ParsePVA(b)
		if err == nil {
			err = m.valid()
		}
		if err != nil {
			return err
		}
		b = rest
	}
	return nil
}

// valid checks the fields of the payload, where the command is known.
func (m PVAMessage) valid() (err error) {
	switch m.Command {
	case PVACommandBeacon:
		_, err = m.Beacon()
	case PVACommandSearch:
		_, err = m.Search()
	case PVACommandSearchResponse:
		_, err = m.SearchResponse()
	case PVACommandOrigin:
		_, err = m.Origin()
	}
	return err
}

func (m PVAMessage) bigEndian() bool { return m.Flags&PVABigEndian != 0 }

func (m PVAMessage) reader(c PVACommand) reader {
	return reader{b: m.Payload, big: m.bigEndian(), other: m.Command != c}
}

// PVASearchFlags are those of a search.
type PVASearchFlags uint8

// The flags of a search.
const (
	// PVAMustReply: servers answer even if they have none of the names. Without names this asks for all servers.
	PVAMustReply PVASearchFlags = 1 << 0
	// PVAUnicast: the search was not sent to a broadcast address, as far as the client can tell (it takes
	// 255.255.255.255 for none). The host that receives it passes it on to all servers on it.
	PVAUnicast PVASearchFlags = 1 << 7
)

// A PVASearch is what a client asks all servers. Its payload is
//
//	+-----------------------------------------------+
//	|               sequence number                 |
//	+-----------+-----------------------------------+
//	|   flags   |               zero                |
//	+-----------+-----------------------------------+
//	|  reply address, IPv6 or IPv4-mapped, 16 bytes |
//	+-----------------------+-----------------------+
//	|      reply port       |  protocols: number (a size), strings …
//	+-----------------------+-----------------------+
//	|   number of names     |  names: for each, identifier (4 bytes), string …
//	+-----------------------+-----------------------+
//
// A size is one byte, or 254 and four bytes; a string is its size in bytes and the bytes.
type PVASearch struct {
	Sequence uint32
	Flags    PVASearchFlags
	// ReplyTo is where to answer to. If its address is unspecified, as in general, that
	// which the search comes from takes its place.
	ReplyTo netip.AddrPort

	protocols, names pvaList
}

// pvaList is a part of a payload whose structure has been checked.
type pvaList struct {
	b   []byte
	n   uint32
	big bool
}

// Search decodes a search. The result refers to the payload, and its methods
// cannot fail. Every error is a [drop.Invalid]; so is a message with another command.
func (m PVAMessage) Search() (PVASearch, error) {
	r := m.reader(PVACommandSearch)
	s := PVASearch{Sequence: r.uint32(), Flags: PVASearchFlags(r.uint8())}
	r.bytes(3)
	s.ReplyTo = r.addrPort()
	n := r.size()
	s.protocols = pvaList{b: r.b, n: n, big: r.big}
	for range n {
		if r.string(); r.short {
			break // n may be far more than there are
		}
	}
	n = uint32(r.uint16())
	s.names = pvaList{b: r.b, n: n, big: r.big}
	empty := false
	for range n {
		r.uint32()
		if name := r.string(); r.short {
			break
		} else if len(name) == 0 {
			empty = true
		}
	}
	if err := r.err(); err != nil {
		return PVASearch{}, err
	}
	if empty {
		return PVASearch{}, errPVAName
	}
	return s, nil
}

// Protocols are the transports that the client speaks: "tcp", "tls". None is a client
// that only looks for servers.
func (s PVASearch) Protocols() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		r := reader{b: s.protocols.b, big: s.protocols.big}
		for range s.protocols.n {
			if !yield(r.string()) {
				return
			}
		}
	}
}

// Len is the number of names.
func (s PVASearch) Len() int { return int(s.names.n) }

// Names are the names that the client looks for, with its identifiers of them. They are parts
// of the payload.
func (s PVASearch) Names() iter.Seq2[uint32, []byte] {
	return func(yield func(uint32, []byte) bool) {
		r := reader{b: s.names.b, big: s.names.big}
		for range s.names.n {
			id := r.uint32()
			if !yield(id, r.string()) {
				return
			}
		}
	}
}

// GUID identifies a server until it is restarted.
type GUID [12]byte

// A PVASearchResponse is a server's answer to the one client that searched:
// guid (12 bytes), sequence number (4), address (16), port (2), protocol (a string), found (1),
// number of identifiers (2), identifiers (4 each).
type PVASearchResponse struct {
	GUID     GUID
	Sequence uint32         // of the search
	Server   netip.AddrPort // an unspecified address is that which the answer comes from
	Protocol []byte         // part of the payload
	Found    bool

	ids pvaList
}

// SearchResponse decodes the answer to a search. The result refers to the payload, and its methods
// cannot fail. Every error is a [drop.Invalid]; so is a message with another command.
func (m PVAMessage) SearchResponse() (PVASearchResponse, error) {
	r := m.reader(PVACommandSearchResponse)
	s := PVASearchResponse{GUID: r.guid(), Sequence: r.uint32(), Server: r.addrPort(), Protocol: r.string(), Found: r.uint8() != 0}
	if s.Found || len(r.b) > 0 { // a server that has none may end here
		s.ids.n, s.ids.big = uint32(r.uint16()), r.big
		s.ids.b = r.bytes(4 * int(s.ids.n))
	}
	if err := r.err(); err != nil {
		return PVASearchResponse{}, err
	}
	return s, nil
}

// IDs are the client's identifiers of the names that the server has, or with Found false has not.
func (s PVASearchResponse) IDs() iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		r := reader{b: s.ids.b, big: s.ids.big}
		for range s.ids.n {
			if !yield(r.uint32()) {
				return
			}
		}
	}
}

// A PVABeacon says that a server is there: guid (12 bytes), flags (1), sequence
// number (1), changes (2), address (16), port (2), protocol (a string), and a status that is not decoded.
type PVABeacon struct {
	GUID     GUID
	Flags    uint8
	Sequence uint8
	Changes  uint16         // counts how often the server's names have changed
	Server   netip.AddrPort // an unspecified address is that which the beacon comes from
	Protocol []byte         // part of the payload
}

// Beacon decodes a beacon. Every error is a [drop.Invalid]; so is a message with another command.
func (m PVAMessage) Beacon() (PVABeacon, error) {
	r := m.reader(PVACommandBeacon)
	s := PVABeacon{
		GUID: r.guid(), Flags: r.uint8(), Sequence: r.uint8(), Changes: r.uint16(),
		Server: r.addrPort(), Protocol: r.string(),
	}
	if err := r.err(); err != nil {
		return PVABeacon{}, err
	}
	return s, nil
}

// Origin decodes an origin tag: the address of the interface at which the host received the message that
// follows. A host sends it to a group on its loopback interface only, and heeds it nowhere else.
// Every error is a [drop.Invalid]; so is a message with another command.
func (m PVAMessage) Origin() (netip.Addr, error) {
	r := m.reader(PVACommandOrigin)
	a := r.addr()
	return a, r.err()
}

// A reader takes fields off the front of a payload. Once it is short it gives zeros.
type reader struct {
	b     []byte
	big   bool
	short bool
	other bool // the message has another command
}

func (r *reader) err() error {
	switch {
	case r.other:
		return errPVACommand
	case r.short:
		return errPVAFields
	}
	return nil
}

func (r *reader) bytes(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.short, r.b = true, nil
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) uint8() uint8 {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	b := r.bytes(2)
	switch {
	case b == nil:
		return 0
	case r.big:
		return binary.BigEndian.Uint16(b)
	}
	return binary.LittleEndian.Uint16(b)
}

func (r *reader) uint32() uint32 {
	b := r.bytes(4)
	switch {
	case b == nil:
		return 0
	case r.big:
		return binary.BigEndian.Uint32(b)
	}
	return binary.LittleEndian.Uint32(b)
}

// size is that of a string or a list. Null, which some write for nothing, is 0.
func (r *reader) size() uint32 {
	switch n := r.uint8(); n {
	case 255:
		return 0
	case 254:
		return r.uint32()
	default:
		return uint32(n)
	}
}

func (r *reader) string() []byte {
	n := r.size()
	if uint64(n) > uint64(len(r.b)) {
		r.short, r.b = true, nil
		return nil
	}
	return r.bytes(int(n))
}

func (r *reader) addr() netip.Addr {
	var a [16]byte
	copy(a[:], r.bytes(16))
	return netip.AddrFrom16(a).Unmap()
}

func (r *reader) addrPort() netip.AddrPort {
	a := r.addr()
	return netip.AddrPortFrom(a, r.uint16())
}

func (r *reader) guid() (g GUID) {
	copy(g[:], r.bytes(len(g)))
	return g
}
