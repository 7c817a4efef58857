// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package pcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

const (
	// Version is the first byte of every message.
	Version = 2
	// Port is the UDP port of the gateway (RFC 6887, section 19.1).
	Port = 5351
	// AnnouncePort is the UDP port of hosts that hears announcements.
	AnnouncePort = 5350
	// MaxSize of a message, in bytes (section 7).
	MaxSize = 1100
)

// ErrMalformed: the bytes are no PCP message of the kind that is parsed.
var ErrMalformed = errors.New("malformed PCP message")

// Opcode is what a request is about.
type Opcode uint8

// The opcodes of RFC 6887, section 19.2. PEER is neither encoded nor decoded here beyond the header.
const (
	Announce Opcode = 0
	Map      Opcode = 1
	Peer     Opcode = 2
)

// response is the bit that the opcode has in an answer.
const response = 0x80

// String is the name in the RFC.
func (o Opcode) String() string {
	switch o {
	case Announce:
		return "ANNOUNCE"
	case Map:
		return "MAP"
	case Peer:
		return "PEER"
	}
	return fmt.Sprintf("Opcode(%d)", uint8(o))
}

// Result is how a gateway took a request.
type Result uint8

// The results of section 7.4.
const (
	Success               Result = 0
	UnsupportedVersion    Result = 1
	NotAuthorized         Result = 2
	MalformedRequest      Result = 3
	UnsupportedOpcode     Result = 4
	UnsupportedOption     Result = 5
	MalformedOption       Result = 6
	NetworkFailure        Result = 7
	NoResources           Result = 8
	UnsupportedProtocol   Result = 9
	UserExceededQuota     Result = 10
	CannotProvideExternal Result = 11
	AddressMismatch       Result = 12 // the request passed another NAT on its way
	ExcessiveRemotePeers  Result = 13
)

var results = [...]string{
	"success", "unsupported version", "not authorized", "malformed request", "unsupported opcode", "unsupported option",
	"malformed option", "network failure", "no resources", "unsupported protocol", "user exceeded quota",
	"cannot provide external", "address mismatch", "excessive remote peers",
}

// String says the result in the words of the RFC.
func (r Result) String() string {
	if int(r) < len(results) {
		return results[r]
	}
	return fmt.Sprintf("Result(%d)", uint8(r))
}

// The transport protocols of a mapping: IANA's numbers.
const (
	TCP = 6
	UDP = 17
)

// Nonce ties answers to questions: only who sees a host's requests can answer them, or change its mapping.
type Nonce [12]byte

// Mapping is the part of a MAP request and of its answer (section 11.1).
//
//	+---------------------------------------------------------------+
//	|  nonce (96 bits)                                              |
//	+---------------+-----------------------------------------------+
//	|  protocol     |  reserved                                     |
//	+---------------+---------------+-------------------------------+
//	|  internal port                |  external port                |
//	+-------------------------------+-------------------------------+
//	|  external address (128 bits)                                  |
//	+---------------------------------------------------------------+
type Mapping struct {
	Nonce        Nonce
	Protocol     uint8
	InternalPort uint16
	// External is suggested in a request, where an unspecified address and port 0 leave them to the gateway, and
	// assigned in an answer. An invalid address is encoded as ::ffff:0.0.0.0, any IPv4 address.
	External netip.AddrPort
}

// Request is what a host asks. Mapping is of [Map] only.
//
//	+---------------+---------------+-------------------------------+
//	|  version 2    |R|  opcode     |  reserved                     |
//	+---------------+---------------+-------------------------------+
//	|  lifetime in seconds                                          |
//	+---------------------------------------------------------------+
//	|  address of the client (128 bits, IPv4 mapped)                |
//	+---------------------------------------------------------------+
type Request struct {
	Opcode Opcode
	// Lifetime is cut to whole seconds. 0 removes the mapping, and belongs to [Announce].
	Lifetime time.Duration
	// Client is the address that the request is sent from.
	Client  netip.Addr
	Mapping Mapping
}

const (
	headerSize  = 24
	mappingSize = 36
)

// Append appends the request's bytes.
func (r Request) Append(b []byte) []byte {
	b = append(b, Version, byte(r.Opcode), 0, 0)
	b = binary.BigEndian.AppendUint32(b, seconds(r.Lifetime))
	b = appendAddr(b, r.Client)
	if r.Opcode == Map {
		b = r.Mapping.append(b)
	}
	return b
}

// ParseRequest decodes a request. Options behind it are ignored.
func ParseRequest(b []byte) (Request, error) {
	if err := check(b, false); err != nil {
		return Request{}, err
	}
	r := Request{
		Opcode:   Opcode(b[1]),
		Lifetime: time.Duration(binary.BigEndian.Uint32(b[4:])) * time.Second,
		Client:   addr(b[8:]),
	}
	if r.Opcode == Map {
		if len(b) < headerSize+mappingSize {
			return Request{}, fmt.Errorf("%w: MAP of %d bytes", ErrMalformed, len(b))
		}
		r.Mapping = parseMapping(b[headerSize:])
	}
	return r, nil
}

// Response is what a gateway answers. Mapping is of [Map] only; with another result than [Success] it holds what
// the request said.
//
//	+---------------+---------------+---------------+---------------+
//	|  version 2    |R|  opcode     |  reserved     |  result       |
//	+---------------+---------------+---------------+---------------+
//	|  lifetime in seconds: of the mapping, or of the error         |
//	+---------------------------------------------------------------+
//	|  epoch                                                        |
//	+---------------------------------------------------------------+
//	|  reserved (96 bits)                                           |
//	+---------------------------------------------------------------+
type Response struct {
	Opcode Opcode
	Result Result
	// Lifetime is what was granted, or with an error for how long asking again is of no use.
	Lifetime time.Duration
	// Epoch counts seconds since the gateway's mappings began. When it falls back, they are lost.
	Epoch   uint32
	Mapping Mapping
}

// Append appends the response's bytes.
func (r Response) Append(b []byte) []byte {
	b = append(b, Version, byte(r.Opcode)|response, 0, byte(r.Result))
	b = binary.BigEndian.AppendUint32(b, seconds(r.Lifetime))
	b = binary.BigEndian.AppendUint32(b, r.Epoch)
	b = append(b, make([]byte, 12)...)
	if r.Opcode == Map {
		b = r.Mapping.append(b)
	}
	return b
}

// ParseResponse decodes a response, whatever its result: look at that before at the rest. Options are ignored.
func ParseResponse(b []byte) (Response, error) {
	if err := check(b, true); err != nil {
		return Response{}, err
	}
	r := Response{
		Opcode:   Opcode(b[1] &^ response),
		Result:   Result(b[3]),
		Lifetime: time.Duration(binary.BigEndian.Uint32(b[4:])) * time.Second,
		Epoch:    binary.BigEndian.Uint32(b[8:]),
	}
	switch {
	case r.Opcode != Map:
	case len(b) >= headerSize+mappingSize:
		r.Mapping = parseMapping(b[headerSize:])
	case r.Result == Success:
		return Response{}, fmt.Errorf("%w: MAP of %d bytes", ErrMalformed, len(b))
	}
	return r, nil
}

// check holds what section 8.3 demands of every message.
func check(b []byte, answer bool) error {
	switch {
	case len(b) < headerSize || len(b) > MaxSize || len(b)%4 != 0:
		return fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	case b[0] != Version:
		return fmt.Errorf("%w: version %d", ErrMalformed, b[0])
	case b[1]&response != 0 != answer:
		return fmt.Errorf("%w: opcode %#x", ErrMalformed, b[1])
	}
	return nil
}

func (m Mapping) append(b []byte) []byte {
	b = append(b, m.Nonce[:]...)
	b = append(b, m.Protocol, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, m.InternalPort)
	b = binary.BigEndian.AppendUint16(b, m.External.Port())
	return appendAddr(b, m.External.Addr())
}

// parseMapping decodes mappingSize bytes.
func parseMapping(b []byte) Mapping {
	return Mapping{
		Nonce:        Nonce(b[:12]),
		Protocol:     b[12],
		InternalPort: binary.BigEndian.Uint16(b[16:]),
		External:     netip.AddrPortFrom(addr(b[20:]), binary.BigEndian.Uint16(b[18:])),
	}
}

func addr(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b[:16])).Unmap() }

func appendAddr(b []byte, a netip.Addr) []byte {
	if !a.IsValid() {
		a = netip.IPv4Unspecified()
	}
	a16 := a.As16()
	return append(b, a16[:]...)
}

func seconds(d time.Duration) uint32 { return uint32(min(max(d, 0)/time.Second, 1<<32-1)) }
