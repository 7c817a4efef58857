// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package punch

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
)

// On every connection that might become the one, TCP or a stream of QUIC, both sides say at once
//
//	 0          4            12          28
//	+----------+------------+-----------+
//	| f7 h p 1 | session    | nonce     |
//	+----------+------------+-----------+
//
// The responder then proves by a MAC over both nonces that it knows the keys. The initiator, when it has chosen, says
// so by another MAC, on one connection only. What follows is the application's.
const (
	helloMagic = "\xf7hp\x01"
	nonceSize  = 16
	helloSize  = len(helloMagic) + sessionSize + nonceSize
)

var (
	// errStranger is what is wrong with a connection to someone who is not in the attempt.
	errStranger = errors.New("not the peer of this attempt")

	labelProof  = []byte("proof ")
	labelSelect = []byte("select")
)

type nonce [nonceSize]byte

func newNonce() (n nonce) {
	_, _ = rand.Read(n[:]) // never fails
	return n
}

func appendHello(b []byte, id sessionID, n nonce) []byte {
	b = append(b, helloMagic...)
	b = append(b, id[:]...)
	return append(b, n[:]...)
}

func parseHello(b []byte) (id sessionID, n nonce, err error) {
	if len(b) != helloSize || !bytes.HasPrefix(b, []byte(helloMagic)) {
		return id, n, fmt.Errorf("%w: no greeting", errStranger)
	}
	b = b[len(helloMagic):]
	return sessionID(b), nonce(b[sessionSize:]), nil
}

// greet exchanges nonces. The other's is known already where its greeting was read to find the attempt.
func (k *keys) greet(rw io.ReadWriter, known *nonce) (mine, theirs nonce, err error) {
	mine = newNonce()
	if _, err := rw.Write(appendHello(nil, k.id, mine)); err != nil {
		return mine, theirs, fmt.Errorf("greet: %w", err)
	}
	if known != nil {
		return mine, *known, nil
	}
	var b [helloSize]byte
	if _, err := io.ReadFull(rw, b[:]); err != nil {
		return mine, theirs, fmt.Errorf("wait for a greeting: %w", err)
	}
	id, theirs, err := parseHello(b[:])
	if err != nil {
		return mine, theirs, err
	}
	if id != k.id || theirs == mine { // another attempt, or this side itself
		return mine, theirs, errStranger
	}
	return mine, theirs, nil
}

func (k *keys) proof(initiator, responder nonce) [macSize]byte {
	return mac(&k.responder, labelProof, initiator[:], responder[:])
}

func (k *keys) selection(initiator, responder nonce) [macSize]byte {
	return mac(&k.initiator, labelSelect, initiator[:], responder[:])
}

// expect reads a MAC and compares it.
func expect(r io.Reader, want [macSize]byte) error {
	var got [macSize]byte
	if _, err := io.ReadFull(r, got[:]); err != nil {
		return fmt.Errorf("wait for a proof: %w", err)
	}
	if !hmac.Equal(got[:], want[:]) {
		return fmt.Errorf("%w: wrong proof", errStranger)
	}
	return nil
}
