// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"math"
)

// A record is its length in two bytes, which are authenticated with it, and what is encrypted, with the tag at its
// end. Its nonce is the number of the record in its direction: four zero bytes and the number in eight (Noise, section
// 12), so that none can be left out, repeated or moved.
const (
	lengthSize = 2
	tagSize    = 16
	maxRecord  = math.MaxUint16 // encrypted bytes in a record, tag included
)

// A direction is the cipher of one direction of a link.
type direction struct {
	key   [32]byte
	aead  cipher.AEAD
	next  uint64   // number of the next record
	nonce [12]byte // of the call under way: an array on the stack would escape through the interface
}

// newDirection makes the cipher from what the handshake agreed on. Package noise has one as well, but it allocates for
// each record.
func newDirection(key [32]byte) direction { return direction{key: key, aead: newAEAD(key)} }

func newAEAD(key [32]byte) cipher.AEAD {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // 32 bytes are a key
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // an AES block has the right size
	}
	return aead
}

// seal appends the record with a text to b.
func (d *direction) seal(b, text []byte) []byte {
	at := len(b)
	b = binary.BigEndian.AppendUint16(b, uint16(len(text)+tagSize))
	binary.BigEndian.PutUint64(d.nonce[4:], d.next)
	d.next++
	return d.aead.Seal(b, d.nonce[:], text, b[at:])
}

// open decrypts a whole record in place and returns its text.
func (d *direction) open(record []byte) ([]byte, error) {
	binary.BigEndian.PutUint64(d.nonce[4:], d.next)
	sealed := record[lengthSize:]
	text, err := d.aead.Open(sealed[:0], d.nonce[:], sealed, record[:lengthSize])
	if err != nil {
		return nil, fmt.Errorf("%w: record %d is not authentic", ErrProtocol, d.next)
	}
	d.next++
	return text, nil
}

// rekey goes on to the next key, from which the one before cannot be computed (Noise, section 4.2, REKEY).
func (d *direction) rekey() {
	binary.BigEndian.PutUint64(d.nonce[4:], math.MaxUint64)
	next := d.aead.Seal(nil, d.nonce[:], make([]byte, len(d.key)), nil)
	copy(d.key[:], next)
	d.aead = newAEAD(d.key)
}

// recordLength returns the length of the record that b begins with, its own two bytes included; 0 says that
// more has to come first.
func recordLength(b []byte) (int, error) {
	if len(b) < lengthSize {
		return 0, nil
	}
	n := int(binary.BigEndian.Uint16(b))
	if n <= tagSize { // an empty record says nothing, but costs
		return 0, fmt.Errorf("%w: a record of %d bytes", ErrProtocol, n)
	}
	return lengthSize + n, nil
}
