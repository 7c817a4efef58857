// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"
	"fmt"
)

// A kind says what a frame is. The values are part of the format and never change.
type kind uint8

const (
	_ kind = iota
	kindWelcome
	kindGoodbye
	kindPing
	kindPong
	kindRekey
	kindRequest
	kindAnswer
	kindFailed
	kindCast
	kindMessage
	kindAcked
	kindNacked
	kindOpen
	kindAccept
	kindData
	kindCredit
	kindEnd
)

// What a stream is opened for. The values are part of the format.
const (
	forApplication uint8 = iota
	forRequest
	forAnswer
	forCast
	forMessage
	purposes
)

// How one side ends a stream. The values are part of the format.
const (
	endWriting uint8 = iota // it writes no more
	endClosed               // it writes no more and reads no more
	endAborted              // what was written does not count either; also the answer to a stream that is refused
)

// A frame is one thing said. Which fields it has depends on its kind.
//
//	+------+----+------+--------+-------+--------+------+
//	| kind | id | code | number | total | length | body |
//	+------+----+------+--------+-------+--------+------+
//
// kind and code are one byte each, the others unsigned varints (as in encoding/binary).
type frame struct {
	kind   kind
	id     uint64 // of the request or stream; 0 for the credit of messages
	code   uint8
	number uint64 // an amount, a token; of a stream for a large body: the request
	total  uint64 // length of a large body
	body   []byte
}

type fields uint8

const (
	hasID fields = 1 << iota
	hasCode
	hasNumber
	hasTotal
	hasBody
)

var layouts = [...]struct {
	name   string
	fields fields
}{
	kindWelcome: {"welcome", 0},
	kindGoodbye: {"goodbye", hasCode | hasBody},
	kindPing:    {"ping", hasNumber},
	kindPong:    {"pong", hasNumber},
	kindRekey:   {"rekey", 0},
	kindRequest: {"request", hasID | hasBody},
	kindAnswer:  {"answer", hasID | hasBody},
	kindFailed:  {"failed", hasID | hasBody},
	kindCast:    {"cast", hasBody},
	kindMessage: {"message", hasBody},
	kindAcked:   {"acked", hasNumber},
	kindNacked:  {"nacked", hasBody},
	kindOpen:    {"open", hasID | hasCode | hasNumber | hasTotal | hasBody},
	kindAccept:  {"accept", hasID},
	kindData:    {"data", hasID | hasBody},
	kindCredit:  {"credit", hasID | hasNumber},
	kindEnd:     {"end", hasID | hasCode | hasBody},
}

func (k kind) known() bool { return k > 0 && int(k) < len(layouts) }

func (k kind) String() string {
	if k.known() {
		return layouts[k].name
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// frameOverhead is the most that a frame takes besides its body.
const frameOverhead = 1 + binary.MaxVarintLen64 + 1 + 3*binary.MaxVarintLen64

func appendFrame(b []byte, f *frame) []byte {
	has := layouts[f.kind].fields
	b = append(b, byte(f.kind))
	if has&hasID != 0 {
		b = binary.AppendUvarint(b, f.id)
	}
	if has&hasCode != 0 {
		b = append(b, f.code)
	}
	if has&hasNumber != 0 {
		b = binary.AppendUvarint(b, f.number)
	}
	if has&hasTotal != 0 {
		b = binary.AppendUvarint(b, f.total)
	}
	if has&hasBody != 0 {
		b = binary.AppendUvarint(b, uint64(len(f.body)))
		b = append(b, f.body...)
	}
	return b
}

// decodeFrame reads the frame at the beginning of b into f and returns what follows it. The frame's body shares memory
// with b.
func decodeFrame(f *frame, b []byte) (rest []byte, err error) {
	if len(b) == 0 || !kind(b[0]).known() {
		return nil, fmt.Errorf("%w: no frame", ErrProtocol)
	}
	*f = frame{kind: kind(b[0])}
	has, rest, ok := layouts[f.kind].fields, b[1:], true
	number := func() (v uint64) {
		// Most are small.
		if len(rest) > 0 && rest[0] < 0x80 {
			v, rest = uint64(rest[0]), rest[1:]
			return v
		}
		v, n := binary.Uvarint(rest)
		if n <= 0 {
			ok = false
			return 0
		}
		rest = rest[n:]
		return v
	}
	if has&hasID != 0 {
		f.id = number()
	}
	if has&hasCode != 0 {
		if len(rest) == 0 {
			ok = false
		} else {
			f.code, rest = rest[0], rest[1:]
		}
	}
	if has&hasNumber != 0 {
		f.number = number()
	}
	if has&hasTotal != 0 {
		f.total = number()
	}
	if has&hasBody != 0 {
		n := number()
		if n > uint64(len(rest)) {
			ok = false
		} else {
			f.body, rest = rest[:n:n], rest[n:]
		}
	}
	if !ok {
		return nil, fmt.Errorf("%w: %s cut short", ErrProtocol, f.kind)
	}
	return rest, nil
}

// maxReason bounds texts for people.
const maxReason = 200

func reasonBytes(s string) []byte { return []byte(s[:min(len(s), maxReason)]) }
