// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// index finds slots by a hash of their identity: an array of chains, doubled
// when there are as many slots as chains, so that a look-up costs the same with
// ten probes in flight and with a million.
type index struct {
	slots *slots
	link  int // byIdentity or byFlow
	heads []uint32
	n     int
}

func newIndex(s *slots, link int) index {
	return index{slots: s, link: link, heads: make([]uint32, 1024)}
}

func (x *index) chain(hash uint32) *uint32 { return &x.heads[hash&uint32(len(x.heads)-1)] }

func (x *index) add(i uint32) {
	if x.n == len(x.heads) {
		x.grow()
	}
	s := x.slots.at(i)
	x.slots.push(x.chain(s.hash[x.link]), i, x.link)
	s.linked[x.link] = true
	x.n++
}

func (x *index) remove(i uint32) {
	s := x.slots.at(i)
	if !s.linked[x.link] {
		return
	}
	x.slots.remove(x.chain(s.hash[x.link]), i, x.link)
	s.linked[x.link] = false
	x.n--
}

func (x *index) grow() {
	old := x.heads
	x.heads = make([]uint32, 2*len(old))
	for c := range old {
		for old[c] != 0 {
			i := x.slots.pop(&old[c], x.link) // oldest first, so that chains keep their order
			x.slots.push(x.chain(x.slots.at(i).hash[x.link]), i, x.link)
		}
	}
}

// find returns the oldest slot with this hash that match accepts, or 0.
func (x *index) find(hash uint32, match func(*slot) bool) uint32 {
	head := *x.chain(hash)
	for i := head; i != 0; {
		s := x.slots.at(i)
		if s.hash[x.link] == hash && match(s) {
			return i
		}
		if i = s.links[x.link].next; i == head {
			break
		}
	}
	return 0
}

// identity is what tells a probe from all others on the wire.
type identity struct {
	proto Protocol
	v6    bool
	a, b  uint16
	token uint32
	dst   netip.Addr // not part of an ICMP echo's identity: an answer may come from another address
}

// hashes gives the hash of the whole identity and that of its flow: all but the token.
func (id *identity) hashes(seed uint64) (exact, flow uint32) {
	k := uint64(id.proto)<<40 | uint64(id.a)<<16 | uint64(id.b)
	if id.v6 {
		k |= 1 << 48
	}
	h := mix(seed^k, 0x9e3779b97f4a7c15)
	if id.proto != ICMP {
		a := id.dst.As16()
		h = mix(h^binary.LittleEndian.Uint64(a[:]), 0xd6e8feb86659fd93)
		h = mix(h^binary.LittleEndian.Uint64(a[8:]), 0xa0761d6478bd642f)
	}
	return uint32(mix(h^uint64(id.token), 0xe7037ed1a0b428db)), uint32(h)
}

// mix is the multiply-and-fold step of wyhash. The seed is random, so an
// outsider can't choose packets that share a chain.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}
