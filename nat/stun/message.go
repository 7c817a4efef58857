// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package stun

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"

	pion "github.com/pion/stun/v3"
)

// MaxMessage bounds the messages that are read, in bytes. A Binding request with every attribute that
// clients are known to send is shorter.
const MaxMessage = 548 // of UDP payload in what every IPv4 host takes (RFC 8489 section 6.1)

// Errors to branch on.
var (
	// ErrMessage is returned for what is no STUN message, or not a well-formed one.
	ErrMessage = errors.New("bad STUN message")
	// ErrKind is returned for a STUN message of another kind than expected.
	ErrKind = errors.New("unexpected kind of STUN message")
)

// ID is the number of a transaction, random, by which an answer is known and cannot be forged
// by who has not seen the request.
type ID [pion.TransactionIDSize]byte

// NewID makes a random transaction number.
func NewID() (id ID) {
	_, _ = rand.Read(id[:]) // never fails
	return id
}

// Is tells STUN messages from other protocols on a socket.
func Is(b []byte) bool { return pion.IsMessage(b) }

// AppendRequest appends a Binding request, 28 bytes with its fingerprint.
func AppendRequest(b []byte, id ID) []byte {
	m := pion.Message{TransactionID: id, Type: pion.BindingRequest}
	m.WriteHeader()
	_ = pion.Fingerprint.AddTo(&m) // fails only after an integrity attribute, and there is none
	return append(b, m.Raw...)
}

// AppendAnswer appends the answer to a Binding request that came from an address. What is no request gives
// an error, and is to be left without an answer. So is a request whose fingerprint is wrong.
func AppendAnswer(b, request []byte, from netip.AddrPort) ([]byte, error) {
	m, err := decode(request)
	if err != nil {
		return b, err
	}
	if m.Type != pion.BindingRequest {
		return b, fmt.Errorf("%w: %v", ErrKind, m.Type)
	}
	if !from.IsValid() {
		return b, fmt.Errorf("answer STUN request: no address")
	}
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	answer := pion.Message{TransactionID: m.TransactionID, Type: pion.BindingSuccess}
	answer.WriteHeader()
	seen := pion.XORMappedAddress{IP: net.IP(from.Addr().AsSlice()), Port: int(from.Port())}
	if err := seen.AddTo(&answer); err != nil {
		return b, fmt.Errorf("answer STUN request from %v: %w", from, err)
	}
	if m.Contains(pion.AttrFingerprint) { // as the client has it (RFC 8489 section 7.3)
		if err := pion.Fingerprint.AddTo(&answer); err != nil {
			return b, fmt.Errorf("answer STUN request from %v: %w", from, err)
		}
	}
	return append(b, answer.Raw...), nil
}

// Answer is what a server has said.
type Answer struct {
	ID     ID             // of the request
	Mapped netip.AddrPort // the address that the server has seen
}

// ParseAnswer reads the answer to a Binding request. That it is one to a request of ours is for the caller to
// check, by its ID and by where it came from.
func ParseAnswer(b []byte) (Answer, error) {
	m, err := decode(b)
	if err != nil {
		return Answer{}, err
	}
	if m.Type != pion.BindingSuccess {
		return Answer{}, fmt.Errorf("%w: %v", ErrKind, m.Type)
	}
	var seen pion.XORMappedAddress
	if err := seen.GetFrom(m); err != nil {
		return Answer{}, fmt.Errorf("%w: mapped address: %w", ErrMessage, err)
	}
	addr, ok := netip.AddrFromSlice(seen.IP)
	if !ok || seen.Port <= 0 || seen.Port > 0xffff {
		return Answer{}, fmt.Errorf("%w: mapped address %v port %d", ErrMessage, seen.IP, seen.Port)
	}
	return Answer{ID: m.TransactionID, Mapped: netip.AddrPortFrom(addr.Unmap(), uint16(seen.Port))}, nil
}

// decode reads a message that is short enough, without trailing bytes, and with a right fingerprint if it has one.
func decode(b []byte) (*pion.Message, error) {
	if len(b) > MaxMessage || !pion.IsMessage(b) {
		return nil, fmt.Errorf("%w: %d bytes", ErrMessage, len(b))
	}
	m := &pion.Message{Raw: append([]byte(nil), b...)}
	if err := m.Decode(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	if int(m.Length)+20 != len(b) {
		return nil, fmt.Errorf("%w: %d bytes where its length says %d", ErrMessage, len(b), m.Length+20)
	}
	if m.Contains(pion.AttrFingerprint) {
		if err := pion.Fingerprint.Check(m); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrMessage, err)
		}
	}
	return m, nil
}
