// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package member

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"math/bits"
	"net/netip"
)

// Bits is the size of the ring: IDs are integers modulo 2^Bits.
const Bits = 256

// An ID is a place on the ring: a 256-bit integer, most significant byte first. The zero ID is a place like any other.
type ID [Bits / 8]byte

// ErrID is what [ParseID] wraps.
var ErrID = errors.New("not an ID: 64 hexadecimal digits, or a decimal number below 2^256")

// HashOf returns the ID that a value hashes to: its SHA-256.
func HashOf[T ~string | ~[]byte](value T) ID { return sha256.Sum256([]byte(value)) }

// OfAddr returns the ID of the member at an address in an open swarm: the SHA-256 of "192.0.2.1:49610", or of
// "[2001:db8::1]:49610". An IPv4 address in IPv6 form counts as IPv4.
func OfAddr(addr netip.AddrPort) ID {
	return HashOf(netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()).String())
}

// OfKey returns the ID of the member with this public key in a secure swarm. The hash covers a label, so that no
// value that an application hashes can collide with a member's place by design.
func OfKey(key ed25519.PublicKey) ID {
	return HashOf(append([]byte("fathom swarm member\x00"), key...))
}

// ParseID reads an ID in either of its text forms: 64 hexadecimal digits, or a decimal number, as in Cicada's files.
// A number of exactly 64 digits is taken for hexadecimal.
func ParseID(s string) (ID, error) {
	if len(s) == 2*len(ID{}) {
		var id ID
		if _, err := hex.Decode(id[:], []byte(s)); err != nil {
			return ID{}, fmt.Errorf("%q: %w", s, ErrID)
		}
		return id, nil
	}
	n, ok := new(big.Int), len(s) > 0 && len(s) <= 78 // 2^256 has 78 digits
	for _, c := range s {
		ok = ok && '0' <= c && c <= '9'
	}
	if ok {
		_, ok = n.SetString(s, 10)
	}
	if !ok || n.BitLen() > Bits {
		return ID{}, fmt.Errorf("%q: %w", s, ErrID)
	}
	return ID(n.FillBytes(make([]byte, len(ID{})))), nil
}

// String returns the ID as 64 hexadecimal digits.
func (a ID) String() string { return hex.EncodeToString(a[:]) }

// Short returns the first eight hexadecimal digits: enough for people to tell members apart.
func (a ID) Short() string { return hex.EncodeToString(a[:4]) }

// Decimal returns the ID as a decimal number, the form in Cicada's key files.
func (a ID) Decimal() string { return new(big.Int).SetBytes(a[:]).String() }

// Compare orders IDs as integers.
func (a ID) Compare(b ID) int { return bytes.Compare(a[:], b[:]) }

// Distance returns (b - a) mod 2^256: how far b is from a, clockwise.
func (a ID) Distance(b ID) ID { return b.sub(a) }

// Between reports whether a lies in the open interval (from, to), clockwise. With from equal to to that is every
// place but from itself.
func (a ID) Between(from, to ID) bool {
	if a == from || a == to {
		return false
	}
	return from == to || from.Distance(a).Compare(from.Distance(to)) < 0
}

// In reports whether a lies in the half-open interval (from, to], clockwise. With from equal to to that is the whole
// ring.
func (a ID) In(from, to ID) bool { return a == to || a.Between(from, to) }

// After returns the place 2^i after a. It panics unless 0 <= i < [Bits].
func (a ID) After(i int) ID { return a.add(power(i)) }

// Before returns the place 2^i before a. It panics unless 0 <= i < [Bits].
func (a ID) Before(i int) ID { return a.sub(power(i)) }

// Log2 returns the place of the highest set bit, and -1 for zero: with a distance, the finger that covers it.
func (a ID) Log2() int {
	for i, b := range a {
		if b != 0 {
			return Bits - 1 - 8*i - bits.LeadingZeros8(b)
		}
	}
	return -1
}

func power(i int) ID {
	var p ID
	p[len(p)-1-i/8] = 1 << (i % 8)
	return p
}

// add and sub go by words of 64 bits: lookups compare distances to dozens of members at every step.

func (a ID) add(b ID) ID {
	var carry uint64
	for i := len(a) - 8; i >= 0; i -= 8 {
		var sum uint64
		sum, carry = bits.Add64(binary.BigEndian.Uint64(a[i:]), binary.BigEndian.Uint64(b[i:]), carry)
		binary.BigEndian.PutUint64(a[i:], sum)
	}
	return a
}

func (a ID) sub(b ID) ID {
	var borrow uint64
	for i := len(a) - 8; i >= 0; i -= 8 {
		var diff uint64
		diff, borrow = bits.Sub64(binary.BigEndian.Uint64(a[i:]), binary.BigEndian.Uint64(b[i:]), borrow)
		binary.BigEndian.PutUint64(a[i:], diff)
	}
	return a
}

// MarshalText returns the hexadecimal form.
func (a ID) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads either text form; see [ParseID].
func (a *ID) UnmarshalText(text []byte) (err error) {
	*a, err = ParseID(string(text))
	return err
}
