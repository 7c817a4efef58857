// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package stateless

import (
	"crypto/rand"
	"encoding/binary"
	"net/netip"

	"github.com/dchest/siphash"
)

// Key is the secret of one measurement. Whoever holds it can recognise the answers, and could forge them, so it
// goes only to the hosts that take part. With a new key for each measurement, late answers to an earlier one
// that used the same ports are refused.
type Key [16]byte

// NewKey returns a key from the system's random generator.
func NewKey() (k Key) {
	rand.Read(k[:]) // never fails
	return k
}

// String keeps the key out of logs.
func (Key) String() string { return "Key(secret)" }

// What the keyed check covers, in this order. Both lengths, and with them the kinds of check, differ by IP version.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+---------------+---------------+-------------------------------+
//	|     Kind      |       0       |   Source port or identifier   |
//	+---------------+---------------+-------------------------------+
//	|       Destination port        |            Number             |
//	+-------------------------------+-------------------------------+
//	|      Source address, 4 or 16 bytes; destination address       |
//	+---------------------------------------------------------------+
//	|     Time, 8 bytes: in the long check, not in the short one    |
//	+---------------------------------------------------------------+
const maxChecked = 8 + 16 + 16 + 8

// identity is what a probe is known by.
type identity struct {
	src, dst     netip.Addr // of one version, without zones
	port, number uint16
}

// proof is the input of the keyed check, from which both of its outputs are made.
type proof struct {
	buf [maxChecked]byte
	n   int // bytes of buf without the time
}

func (c *Codec) prove(id *identity) (p proof) {
	p.buf[0] = byte(c.cfg.Kind)
	binary.BigEndian.PutUint16(p.buf[2:], id.port)
	binary.BigEndian.PutUint16(p.buf[4:], c.cfg.DstPort)
	binary.BigEndian.PutUint16(p.buf[6:], id.number)
	if id.dst.Is4() {
		src, dst := id.src.As4(), id.dst.As4()
		copy(p.buf[8:], src[:])
		copy(p.buf[12:], dst[:])
		p.n = 16
	} else {
		src, dst := id.src.As16(), id.dst.As16()
		copy(p.buf[8:], src[:])
		copy(p.buf[24:], dst[:])
		p.n = 40
	}
	return p
}

// short is the check that fits anywhere. Its 16-bit words are used apart from each other: see the methods of shortCheck.
func (c *Codec) short(p *proof) shortCheck {
	return shortCheck(siphash.Hash(c.k0, c.k1, p.buf[:p.n]))
}

// long is the 64-bit check of payloads. It covers the time, so that no responder can shorten its own.
func (c *Codec) long(p *proof, time int64) uint64 {
	binary.BigEndian.PutUint64(p.buf[p.n:], uint64(time))
	return siphash.Hash(c.k0, c.k1, p.buf[:p.n+8])
}

type shortCheck uint64

// ipID is the identification of IPv4 headers: never 0, which kernels replace.
func (s shortCheck) ipID() uint16 {
	if id := uint16(s); id != 0 {
		return id
	}
	return 0xffff
}

// tcpSeq is the lower half of a SYN's sequence number.
func (s shortCheck) tcpSeq() uint16 { return uint16(s >> 16) }

// dnsID is the identifier of a CHAOS query.
func (s shortCheck) dnsID() uint16 { return uint16(s >> 32) }
