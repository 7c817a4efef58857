// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"time"
)

// A session is a pair of keys that two relays agreed on in one handshake.
type session struct {
	peer      *peer
	local     uint32 // index that datagrams to us carry
	remote    uint32 // index that datagrams to the peer carry
	send      cipher.AEAD
	recv      cipher.AEAD
	sent      uint64 // counter of the next datagram
	window    window
	nonce     [12]byte // of the call under way: an array on the stack would escape through the interface
	since     time.Time
	initiator bool
	binding   [32]byte // the hash of the handshake: the same at both sides, and nowhere else
	key       Key      // what authenticated it; zero with certificates
	epoch     int      // which identity authenticated it
	outdated  bool     // what authenticated it is not accepted any more
	// until is when it may no longer be used, whatever happens.
	until time.Time

	// Who the other side has proved to be.
	id       [6]byte
	instance [8]byte
	name     string
	version  string
	// The last message of the handshake is repeated until the peer has used the session.
	last      []byte
	lastNext  time.Time
	lastTries int
}

const (
	// rekeyAfter is the age at which the side that began a session begins the next one; the other side does
	// when that did not happen.
	rekeyAfter       = 10 * time.Minute
	rekeyAfterOthers = 11 * time.Minute
	// rekeyMessages is far from what AES-GCM allows under one key with a counter for a nonce.
	rekeyMessages = 1 << 40
	// sessionTime ends a session that could not be replaced.
	sessionTime = 20 * time.Minute
	// oldSession is for how long datagrams are accepted that were on their way when a session was replaced.
	oldSession = 30 * time.Second
	// maxOld bounds what a peer that replaces its sessions all the time can make us keep.
	maxOld = 4

	repeatLast    = 250 * time.Millisecond
	maxRepeatLast = 8
)

// aead makes the cipher of one direction. Package noise has one as well, but it allocates for each message.
func aead(key [32]byte) cipher.AEAD {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // 32 bytes are a key
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // an AES block has the right size
	}
	return gcm
}

// The nonce of a Noise transport message with AES-GCM: four zero bytes and the counter (Noise, section 12).
func (s *session) setNonce(counter uint64) []byte {
	binary.BigEndian.PutUint64(s.nonce[4:], counter)
	return s.nonce[:]
}

// appendHeader begins a sealed datagram.
func (s *session) appendHeader(b []byte) []byte {
	b = appendHeader(b, kindSealed)
	b = binary.BigEndian.AppendUint32(b, s.remote)
	b = binary.BigEndian.AppendUint64(b, s.sent)
	s.sent++
	return b
}

// seal encrypts a datagram in place, from the end of its header on. The capacity has room for the tag.
func (s *session) seal(b []byte) []byte {
	nonce := s.setNonce(binary.BigEndian.Uint64(b[8:]))
	header := b[:sealedHeader]
	return s.send.Seal(header, nonce, b[sealedHeader:], header)
}

// open decrypts a datagram in place and gives the records in it.
func (s *session) open(b []byte, counter uint64) ([]byte, bool) {
	header, text := b[:sealedHeader], b[sealedHeader:]
	records, err := s.recv.Open(text[:0], s.setNonce(counter), text, header)
	return records, err == nil
}

// A window remembers which counters were received, so that none is accepted twice. It is a ring of bits
// with a word to spare, which needs no shifting (RFC 6479).
type window struct {
	next uint64 // one above the highest counter received
	bits [windowWords]uint64
}

const (
	windowWords = 64
	// windowSize is by how much a datagram may be late.
	windowSize = (windowWords - 1) * 64
	// maxCounter is far above what a session reaches, and below where a counter would turn over.
	maxCounter = 1 << 62
)

// fresh tells whether a counter was not received before, and is not too old to tell.
func (w *window) fresh(counter uint64) bool {
	if counter >= w.next {
		return true
	}
	if w.next-counter > windowSize {
		return false
	}
	return w.bits[counter/64%windowWords]&(1<<(counter%64)) == 0
}

// mark remembers a counter that is fresh and below maxCounter, and tells whether it is the highest so far.
func (w *window) mark(counter uint64) (highest bool) {
	if counter >= w.next {
		highest = true
		// Words between the old highest and the new one hold what is a whole turn old.
		from := w.next / 64
		if w.next%64 != 0 {
			from++
		}
		to := counter / 64
		for word := from; word <= to && word < from+windowWords; word++ {
			w.bits[word%windowWords] = 0
		}
		w.next = counter + 1
	}
	w.bits[counter/64%windowWords] |= 1 << (counter % 64)
	return highest
}
