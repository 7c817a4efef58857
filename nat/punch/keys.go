// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package punch

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"slices"
)

const (
	sessionSize = 8
	macSize     = 16
)

// sessionID names an attempt to who takes part in it. It is no secret.
type sessionID [sessionSize]byte

// keys are what both sides of an attempt know, and nobody else but who carried their offers.
type keys struct {
	id        sessionID
	initiator [32]byte // of what the initiator sends
	responder [32]byte
}

// deriveKeys makes the keys from both offers. As both sides have contributed, what was recorded of
// another attempt is worth nothing.
func deriveKeys(initiator, responder *Offer) keys {
	secret := slices.Concat(initiator.Share[:], responder.Share[:], initiator.Certificate[:], responder.Certificate[:])
	okm, err := hkdf.Key(sha256.New, secret, nil, "fathom punch 1", sessionSize+32+32)
	if err != nil {
		panic(err) // only for lengths that SHA-256 cannot give
	}
	return keys{id: sessionID(okm), initiator: [32]byte(okm[sessionSize:]), responder: [32]byte(okm[sessionSize+32:])}
}

// mac authenticates parts whose lengths are fixed by the first of them.
func mac(key *[32]byte, parts ...[]byte) (sum [macSize]byte) {
	h := hmac.New(sha256.New, key[:])
	for _, p := range parts {
		h.Write(p)
	}
	copy(sum[:], h.Sum(nil))
	return sum
}
