// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicada

import (
	"encoding/binary"
	"fmt"

	"github.com/seed5728abee/fathom/swarm/member"
)

// MaxVisited is how many members the visited list of a broadcast can hold. Originals drop arbitrary ones beyond it.
const MaxVisited = 256

// The two bytes that a body begins with.
const (
	bodyData      = 0xff00
	bodyBroadcast = 0xff01
)

// A Body is what one application sends to others, inside a lookup: to one member, or to all.
type Body struct {
	Broadcast bool
	Visited   []member.ID // of a broadcast: members that it went to already, at most [MaxVisited]
	Payload   []byte
}

// AppendBody appends the encoding of a body to b. Visited members beyond [MaxVisited] are left out.
func AppendBody(b []byte, body Body) []byte {
	if !body.Broadcast {
		b = binary.BigEndian.AppendUint16(b, bodyData)
	} else {
		visited := body.Visited[:min(len(body.Visited), MaxVisited)]
		b = binary.BigEndian.AppendUint16(b, bodyBroadcast)
		b = binary.BigEndian.AppendUint32(b, uint32(len(visited)))
		for _, id := range visited {
			b = append(b, id[:]...)
		}
	}
	return append(binary.BigEndian.AppendUint32(b, uint32(len(body.Payload))), body.Payload...)
}

// DecodeBody reads a body. Payload shares memory with b; whatever follows it is ignored, as by originals. The error
// wraps [ErrMessage].
func DecodeBody(b []byte) (Body, error) {
	if len(b) < 2 {
		return Body{}, fmt.Errorf("%w: a body of %d bytes", ErrMessage, len(b))
	}
	var body Body
	kind, rest := binary.BigEndian.Uint16(b), b[2:]
	switch kind {
	case bodyData:
	case bodyBroadcast:
		body.Broadcast = true
		n, ids, ok := cutLength(rest)
		if !ok || n > MaxVisited || n*idSize > len(ids) {
			return Body{}, fmt.Errorf("%w: %d visited members in %d bytes", ErrMessage, n, len(ids))
		}
		for ; n > 0; n-- {
			body.Visited, ids = append(body.Visited, member.ID(ids)), ids[idSize:]
		}
		rest = ids
	default:
		return Body{}, fmt.Errorf("%w: a body of type %04x", ErrMessage, kind)
	}
	n, payload, ok := cutLength(rest)
	if !ok || n > len(payload) {
		return Body{}, fmt.Errorf("%w: a payload of %d bytes where %d are", ErrMessage, n, len(payload))
	}
	body.Payload = payload[:n:n]
	return body, nil
}

// cutLength takes a length from the front of b. It does not fit into an int32 of any message: those are refused.
func cutLength(b []byte) (n int, rest []byte, ok bool) {
	if len(b) < 4 {
		return 0, nil, false
	}
	v := binary.BigEndian.Uint32(b)
	if v > MaxMessage {
		return 0, b[4:], false
	}
	return int(v), b[4:], true
}
