// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package broadcast

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// Labels keep what is hashed and signed here apart from all else that the same key may sign.
const (
	labelNative    = "fathom swarm broadcast\x00"
	labelForeign   = "fathom swarm foreign broadcast\x00"
	labelSignature = "fathom swarm broadcast signature\x00"
)

// foreignBit is set in the first byte of the tags of broadcasts that originals began, and clear in all others: neither
// kind can take the other's tags.
const foreignBit = 0x80

// digest is what a broadcast of a native member is named by and signed as:
//
//	SHA-256( label | origin, 32 bytes | sent, 8 bytes | number of exceptions, 1 byte | exceptions, 32 bytes each | payload )
func digest(origin member.ID, sent uint64, except []member.ID, payload []byte) (d [sha256.Size]byte) {
	h := sha256.New()
	var head [len(labelNative) + len(origin) + 8 + 1 + wire.MaxExcept*len(origin)]byte
	b := append(append(head[:0], labelNative...), origin[:]...)
	b = append(binary.BigEndian.AppendUint64(b, sent), byte(len(except)))
	for _, id := range except {
		b = append(b, id[:]...)
	}
	h.Write(b)
	h.Write(payload)
	h.Sum(d[:0])
	return d
}

func nativeTag(digest [sha256.Size]byte) (t wire.Tag) {
	copy(t[:], digest[:])
	t[0] &^= foreignBit
	return t
}

// signed is what the origin puts its signature under.
func signed(digest [sha256.Size]byte) []byte { return append([]byte(labelSignature), digest[:]...) }

// MaxForeignNumber is the largest number that a [ForeignTag] can have.
const MaxForeignNumber = 1<<15 - 1

// ForeignTag returns the tag of a broadcast that an original began. Originals do not name what they send, so that all
// who hear a text from them have to give it the same tag by themselves: it is made of the text, and a number that tells
// apart deliberate repetitions of it, which may be used again [ForeignMemory] after its last use. Above MaxForeignNumber
// it starts at 0 again.
//
//	 0              2                               16
//	+-+-------------+-------------------------------+
//	|1| number, 15  | SHA-256( label | the 2 bytes before | payload ), its first 14 bytes
//	+-+-------------+-------------------------------+
func ForeignTag(payload []byte, number int) (t wire.Tag) {
	binary.BigEndian.PutUint16(t[:], foreignBit<<8|uint16(number&MaxForeignNumber))
	h := sha256.New()
	h.Write([]byte(labelForeign))
	h.Write(t[:2])
	h.Write(payload)
	copy(t[2:], h.Sum(nil))
	return t
}

// IsForeign reports whether a tag is of a broadcast that an original began.
func IsForeign(t wire.Tag) bool { return t[0]&foreignBit != 0 }

// verify checks that a copy is what its tag names and that it is signed as the swarm demands.
func verify(p wire.Push, b member.Binding, originals bool) error {
	if IsForeign(p.Tag) {
		switch {
		case b == member.ByKey && !originals:
			return ErrForeign
		case p.Sent != 0 || len(p.Except) != 0 || len(p.Key) != 0 || len(p.Signature) != 0:
			return fmt.Errorf("%w: an original does not sign", ErrForm)
		case ForeignTag(p.Payload, int(binary.BigEndian.Uint16(p.Tag[:]))) != p.Tag:
			return ErrConflict
		}
		return nil
	}
	d := digest(p.Origin, p.Sent, p.Except, p.Payload)
	switch {
	case nativeTag(d) != p.Tag:
		return ErrConflict
	case b == member.ByAddress && len(p.Key)+len(p.Signature) > 0:
		return fmt.Errorf("%w: signed in a swarm without keys", ErrForm)
	case b == member.ByAddress:
		return nil
	case len(p.Key) != ed25519.PublicKeySize || member.OfKey(p.Key) != p.Origin || !ed25519.Verify(p.Key, signed(d), p.Signature):
		return ErrForged
	}
	return nil
}
