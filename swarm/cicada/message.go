// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicada

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/seed5728abee/fathom/swarm/member"
)

// Sizes of messages, in bytes.
const (
	HeadSize       = 64            // what has to be there to know how long a message is
	MinMessage     = HeadSize + 32 // a request without data
	MaxMessage     = 16 << 20      // more is refused when it comes in; originals know no limit
	responseHeader = 20
	version        = 5
)

// A Type says what a message asks for, or answers.
type Type uint16

// The types of messages. Originals name two more, quit (5) and error (0xFF): they never send one, and cease to work when
// they receive one.
const (
	_ Type = iota
	Join
	Info
	Notify
	Lookup
)

func (t Type) String() string {
	switch t {
	case Join:
		return "join"
	case Info:
		return "info"
	case Notify:
		return "notify"
	case Lookup:
		return "lookup"
	default:
		return fmt.Sprintf("Type(%d)", uint16(t))
	}
}

// A Message is the container that everything between originals is in, without its checks:
//
//	 0  protocol   "ch"; "ci" is understood too, and never sent
//	 2  version    5
//	 4  type
//	 6  response   0 or 1
//	 7  sequence
//	11  features
//	12  chain      SHA-256(SHA-256(sender), SHA-256(data)), the second part only when there is data
//	44  checksum   MD5 of the whole message with zeros here
//	60  length     of sender and data
//	64  request's sequence (4) and checksum (16), in responses only
//	64  sender     84 in responses
//	96  data       116 in responses
//
// Numbers have their most significant byte first.
type Message struct {
	Type     Type
	Response bool
	Sequence uint32 // random at first, one more for each message in this direction of the connection
	Features byte   // 0 from an original
	Sender   member.ID
	Data     []byte

	// Of the request that a response answers.
	RequestSequence uint32
	RequestChecksum [16]byte

	// Set by Decode only.
	Checksum [16]byte
	Unlinked bool // the chain is not that of sender and data, at which originals only grumble
}

// AppendMessage appends the encoding of a message to b.
func AppendMessage(b []byte, m Message) []byte {
	start := len(b)
	b = append(b, 'c', 'h')
	b = binary.BigEndian.AppendUint16(b, version)
	b = binary.BigEndian.AppendUint16(b, uint16(m.Type))
	response := byte(0)
	if m.Response {
		response = 1
	}
	b = append(b, response)
	b = binary.BigEndian.AppendUint32(b, m.Sequence)
	b = append(b, m.Features)
	chain := chain(m.Sender, m.Data)
	b = append(b, chain[:]...)
	b = append(b, make([]byte, md5.Size)...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.Sender)+len(m.Data)))
	if m.Response {
		b = binary.BigEndian.AppendUint32(b, m.RequestSequence)
		b = append(b, m.RequestChecksum[:]...)
	}
	b = append(append(b, m.Sender[:]...), m.Data...)
	sum := md5.Sum(b[start:])
	copy(b[start+44:], sum[:])
	return b
}

func chain(sender member.ID, data []byte) [sha256.Size]byte {
	parts := make([]byte, 0, 2*sha256.Size)
	sum := sha256.Sum256(sender[:])
	parts = append(parts, sum[:]...)
	if len(data) > 0 {
		sum = sha256.Sum256(data)
		parts = append(parts, sum[:]...)
	}
	return sha256.Sum256(parts)
}

// MessageSize returns the length of the message that begins with b, of which [HeadSize] bytes are enough. The error,
// which wraps [ErrMessage], says that no message begins so.
func MessageSize(b []byte) (int, error) {
	if len(b) < HeadSize {
		return 0, fmt.Errorf("%w: %d bytes of a head of %d", ErrMessage, len(b), HeadSize)
	}
	if err := checkStart(b); err != nil {
		return 0, err
	}
	if v := binary.BigEndian.Uint16(b[2:]); v != version {
		return 0, fmt.Errorf("%w: version %d", ErrMessage, v)
	}
	if b[6] > 1 {
		return 0, fmt.Errorf("%w: response flag %d", ErrMessage, b[6])
	}
	size := HeadSize
	if b[6] == 1 {
		size += responseHeader
	}
	n := uint64(binary.BigEndian.Uint32(b[60:]))
	if n < uint64(len(member.ID{})) || uint64(size)+n > MaxMessage {
		return 0, fmt.Errorf("%w: %d bytes of sender and data", ErrMessage, n)
	}
	return size + int(n), nil
}

// checkStart looks at the first two bytes alone.
func checkStart(b []byte) error {
	if b[0] != 'c' || b[1] != 'h' && b[1] != 'i' {
		return fmt.Errorf("%w: begins with %x", ErrMessage, b[:2])
	}
	return nil
}

// DecodeMessage reads one message, which has to fill b. Data shares memory with b. It takes any type, known or not. The
// error wraps [ErrMessage].
func DecodeMessage(b []byte) (Message, error) {
	size, err := MessageSize(b)
	if err != nil {
		return Message{}, err
	}
	if len(b) != size {
		return Message{}, fmt.Errorf("%w: %d bytes of %d", ErrMessage, len(b), size)
	}
	m := Message{
		Type:     Type(binary.BigEndian.Uint16(b[4:])),
		Response: b[6] == 1,
		Sequence: binary.BigEndian.Uint32(b[7:]),
		Features: b[11],
		Checksum: [16]byte(b[44:60]),
	}
	// The checksum covers zeros in its own place; b is not ours to write to.
	h := md5.New()
	h.Write(b[:44])
	h.Write(make([]byte, md5.Size))
	h.Write(b[60:])
	if [16]byte(h.Sum(nil)) != m.Checksum {
		return Message{}, fmt.Errorf("%w: %s: wrong checksum", ErrMessage, m.Type)
	}
	rest := b[HeadSize:]
	if m.Response {
		m.RequestSequence = binary.BigEndian.Uint32(rest)
		m.RequestChecksum = [16]byte(rest[4:])
		rest = rest[responseHeader:]
	}
	m.Sender = member.ID(rest[:len(m.Sender)])
	m.Data = rest[len(m.Sender):]
	m.Unlinked = chain(m.Sender, m.Data) != [sha256.Size]byte(b[12:44])
	return m, nil
}
