// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package natpmp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

const (
	// Version is the first byte of every message.
	Version = 0
	// Port is the UDP port of the gateway (RFC 6886, section 1.1).
	Port = 5351
	// AnnouncePort is the UDP port of hosts that hears announcements (section 3.2.1).
	AnnouncePort = 5350
)

// ErrMalformed: the bytes are no NAT-PMP message of the kind that is parsed.
var ErrMalformed = errors.New("malformed NAT-PMP message")

// Op is what a request asks for.
type Op uint8

// What can be asked for (section 3.5).
const (
	ExternalAddress Op = 0
	MapUDP          Op = 1
	MapTCP          Op = 2
)

// response is the bit that the operation has in an answer.
const response = 0x80

// String names the operation.
func (o Op) String() string {
	switch o {
	case ExternalAddress:
		return "external address"
	case MapUDP:
		return "map udp"
	case MapTCP:
		return "map tcp"
	}
	return fmt.Sprintf("Op(%d)", uint8(o))
}

// Result is how a gateway took a request.
type Result uint16

// The results of section 3.5.
const (
	Success            Result = 0
	UnsupportedVersion Result = 1
	NotAuthorized      Result = 2
	NetworkFailure     Result = 3 // the gateway has no external address yet
	OutOfResources     Result = 4
	UnsupportedOpcode  Result = 5
)

// String says the result in the words of the RFC.
func (r Result) String() string {
	switch r {
	case Success:
		return "success"
	case UnsupportedVersion:
		return "unsupported version"
	case NotAuthorized:
		return "not authorized"
	case NetworkFailure:
		return "network failure"
	case OutOfResources:
		return "out of resources"
	case UnsupportedOpcode:
		return "unsupported opcode"
	}
	return fmt.Sprintf("Result(%d)", uint16(r))
}

// Request is what a host asks. Only Op counts for [ExternalAddress].
//
//	 0                   1                   2                   3
//	+-------------------------------+-------------------------------+
//	|  version 0    |  op           |  reserved                     |
//	+-------------------------------+-------------------------------+
//	|  internal port                |  suggested external port      |
//	+-------------------------------+-------------------------------+
//	|  lifetime in seconds                                          |
//	+---------------------------------------------------------------+
type Request struct {
	Op                         Op
	InternalPort, ExternalPort uint16
	// Lifetime is cut to whole seconds. 0 removes the mapping; then ExternalPort is to be 0 too.
	Lifetime time.Duration
}

const (
	shortRequest = 2
	mapRequest   = 12
)

// Append appends the request's bytes.
func (r Request) Append(b []byte) []byte {
	b = append(b, Version, byte(r.Op))
	if r.Op == ExternalAddress {
		return b
	}
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint16(b, r.InternalPort)
	b = binary.BigEndian.AppendUint16(b, r.ExternalPort)
	return binary.BigEndian.AppendUint32(b, uint32(min(max(r.Lifetime, 0)/time.Second, 1<<32-1)))
}

// ParseRequest decodes a request. Bytes behind it are ignored, as section 3.5 of the RFC leaves room for more.
func ParseRequest(b []byte) (Request, error) {
	if len(b) < shortRequest {
		return Request{}, fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	}
	r := Request{Op: Op(b[1])}
	switch {
	case b[0] != Version:
		return Request{}, fmt.Errorf("%w: version %d", ErrMalformed, b[0])
	case r.Op == ExternalAddress:
		return r, nil
	case r.Op > MapTCP:
		return Request{}, fmt.Errorf("%w: opcode %d", ErrMalformed, b[1])
	case len(b) < mapRequest:
		return Request{}, fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	}
	r.InternalPort = binary.BigEndian.Uint16(b[4:])
	r.ExternalPort = binary.BigEndian.Uint16(b[6:])
	r.Lifetime = time.Duration(binary.BigEndian.Uint32(b[8:])) * time.Second
	return r, nil
}

// Response is what a gateway answers. External is of answers to [ExternalAddress] only, the ports and the
// lifetime of the others. With another Result than [Success] they mean nothing, and may be missing.
//
//	+-------------------------------+-------------------------------+
//	|  version 0    |  128 + op     |  result                       |
//	+-------------------------------+-------------------------------+
//	|  seconds since the gateway's mappings began                   |
//	+---------------------------------------------------------------+
//	|  external address, or internal and external port              |
//	+---------------------------------------------------------------+
//	|  (of mappings) lifetime in seconds                            |
//	+---------------------------------------------------------------+
type Response struct {
	Op     Op
	Result Result
	// Epoch counts seconds since the gateway's mappings began. When it falls back, they are lost.
	Epoch                      uint32
	External                   netip.Addr
	InternalPort, ExternalPort uint16
	Lifetime                   time.Duration
}

const (
	bareResponse    = 8
	addressResponse = 12
	mapResponse     = 16
)

// Append appends the response's bytes. External must be an IPv4 address in answers to [ExternalAddress], or
// invalid, for 0.0.0.0.
func (r Response) Append(b []byte) []byte {
	b = append(b, Version, byte(r.Op)|response)
	b = binary.BigEndian.AppendUint16(b, uint16(r.Result))
	b = binary.BigEndian.AppendUint32(b, r.Epoch)
	if r.Op == ExternalAddress {
		var a [4]byte
		if r.External.Is4() {
			a = r.External.As4()
		}
		return append(b, a[:]...)
	}
	b = binary.BigEndian.AppendUint16(b, r.InternalPort)
	b = binary.BigEndian.AppendUint16(b, r.ExternalPort)
	return binary.BigEndian.AppendUint32(b, uint32(min(max(r.Lifetime, 0)/time.Second, 1<<32-1)))
}

// ParseResponse decodes a response, whatever its result: look at that before at the rest.
func ParseResponse(b []byte) (Response, error) {
	if len(b) < bareResponse {
		return Response{}, fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	}
	switch {
	case b[0] != Version:
		return Response{}, fmt.Errorf("%w: version %d", ErrMalformed, b[0])
	case b[1]&response == 0:
		return Response{}, fmt.Errorf("%w: opcode %d is no answer's", ErrMalformed, b[1])
	}
	r := Response{
		Op:     Op(b[1] &^ response),
		Result: Result(binary.BigEndian.Uint16(b[2:])),
		Epoch:  binary.BigEndian.Uint32(b[4:]),
	}
	switch {
	case r.Op == ExternalAddress && len(b) >= addressResponse:
		r.External = netip.AddrFrom4([4]byte(b[8:12]))
	case (r.Op == MapUDP || r.Op == MapTCP) && len(b) >= mapResponse:
		r.InternalPort = binary.BigEndian.Uint16(b[8:])
		r.ExternalPort = binary.BigEndian.Uint16(b[10:])
		r.Lifetime = time.Duration(binary.BigEndian.Uint32(b[12:])) * time.Second
	case r.Result == Success:
		return Response{}, fmt.Errorf("%w: %d bytes, opcode %d", ErrMalformed, len(b), b[1])
	}
	return r, nil
}
