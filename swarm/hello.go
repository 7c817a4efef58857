// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// A hello is what two members tell each other inside the handshake of a link:
//
//	version (1) | flags (1) | size of address (1): 0, 4, 16 | address | port (2) | contact
//
// The address is the one that the other is seen at. Of the flags, bit 0 says that IDs are bound to keys, bit 1 that
// the member carries circuits, and bit 2 that the link is for what its dialler is about to send, and not to be used
// for anything else.
type hello struct {
	binding  member.Binding
	forwards bool
	private  bool
	observed netip.AddrPort // where the sender sees the receiver; invalid if it does not know
	contact  member.Contact
}

const (
	helloVersion = 1

	helloByKey    = 0x01
	helloForwards = 0x02
	helloPrivate  = 0x04
)

var (
	errHello   = errors.New("malformed hello")
	errVersion = errors.New("the peer speaks another version of the protocol")
	errBinding = errors.New("the peer belongs to another kind of swarm")
)

func appendHello(b []byte, h hello) []byte {
	var flags byte
	if h.binding == member.ByKey {
		flags |= helloByKey
	}
	if h.forwards {
		flags |= helloForwards
	}
	if h.private {
		flags |= helloPrivate
	}
	addr := h.observed.Addr().Unmap().AsSlice()
	b = append(b, helloVersion, flags, byte(len(addr)))
	b = binary.BigEndian.AppendUint16(append(b, addr...), h.observed.Port())
	return wire.AppendContact(b, h.contact)
}

// decodeHello reads a hello. Flags that are not known are let pass: later versions may use them.
func decodeHello(b []byte) (hello, error) {
	if len(b) < 5 {
		return hello{}, errHello
	}
	if b[0] != helloVersion {
		return hello{}, fmt.Errorf("%w: %d, ours is %d", errVersion, b[0], helloVersion)
	}
	h := hello{forwards: b[1]&helloForwards != 0, private: b[1]&helloPrivate != 0}
	if b[1]&helloByKey != 0 {
		h.binding = member.ByKey
	}
	size := int(b[2])
	if size != 0 && size != 4 && size != 16 || len(b) < 5+size {
		return hello{}, errHello
	}
	if addr, ok := netip.AddrFromSlice(b[3 : 3+size]); ok {
		// What can be nobody's address is as good as none: it would make a contact that everyone refuses.
		if addr = addr.Unmap(); !addr.IsUnspecified() && !addr.IsMulticast() && addr != limitedBroadcast {
			h.observed = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[3+size:]))
		}
		if h.observed.Port() == 0 {
			h.observed = netip.AddrPort{}
		}
	}
	var err error
	h.contact, err = wire.DecodeContact(b[5+size:])
	if err != nil {
		return hello{}, fmt.Errorf("%w: %w", errHello, err)
	}
	return h, nil
}

var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// An envelope is the body of a message between two members:
//
//	kind (1) | tag (16), with kind 1 only | data
//
// The tag is the same in all copies of a message that goes by several ways.
const (
	envelopePlain = 0
	envelopeCopy  = 1
)

var errEnvelope = errors.New("malformed message")

func decodeEnvelope(b []byte) (tag wire.Tag, copied bool, data []byte, err error) {
	switch {
	case len(b) >= 1 && b[0] == envelopePlain:
		return tag, false, b[1:], nil
	case len(b) >= 1+len(tag) && b[0] == envelopeCopy:
		copy(tag[:], b[1:])
		return tag, true, b[1+len(tag):], nil
	default:
		return tag, false, nil, errEnvelope
	}
}

// A stream begins with a header that says what it is for:
//
//	kind (1) | service: its name
//	         | circuit: the ID (32) of the member to be reached
//	         | met:     the contact of the member at the other end, as the host knows it
const (
	headerService = 1 // to an application's listener
	headerCircuit = 2 // asks a host to join the stream to one to another member
	headerMet     = 3 // from the host to that member
)

var errHeader = errors.New("malformed stream header")

type header struct {
	kind    byte
	service string
	to      member.ID
	from    member.Contact
}

func appendHeader(b []byte, h header) []byte {
	b = append(b, h.kind)
	switch h.kind {
	case headerService:
		b = append(b, h.service...)
	case headerCircuit:
		b = append(b, h.to[:]...)
	case headerMet:
		b = wire.AppendContact(b, h.from)
	}
	return b
}

// maxService is the longest name of a service, in bytes.
const maxService = 255

func decodeHeader(b []byte) (header, error) {
	if len(b) == 0 {
		return header{}, errHeader
	}
	h := header{kind: b[0]}
	switch b = b[1:]; h.kind {
	case headerService:
		if len(b) > maxService {
			return header{}, errHeader
		}
		h.service = string(b)
	case headerCircuit:
		if len(b) != len(h.to) {
			return header{}, errHeader
		}
		copy(h.to[:], b)
	case headerMet:
		var err error
		if h.from, err = wire.DecodeContact(b); err != nil {
			return header{}, fmt.Errorf("%w: %w", errHeader, err)
		}
	default:
		return header{}, fmt.Errorf("%w: kind %d", errHeader, h.kind)
	}
	return h, nil
}
