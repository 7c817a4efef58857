// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
	"hash/maphash"
	"math/bits"
	"net/netip"
)

// targetSet is the targets of a run: found by address in constant time, in 24 bytes for the address and at most 8
// for the index each.
type targetSet struct {
	addrs []netip.Addr // each once
	// slots has positions in addrs, plus 1, by hash, with linear probing; it is at most 3/4 full. 0 is an empty slot.
	slots []uint32
	seed  maphash.Seed
}

// newTargetSet takes addrs over, and drops what is there twice.
func newTargetSet(addrs []netip.Addr) *targetSet {
	size := 1 << bits.Len(uint(len(addrs)+len(addrs)/3+1))
	s := &targetSet{addrs: addrs[:0], slots: make([]uint32, size), seed: maphash.MakeSeed()}
	for _, a := range addrs {
		slot, found := s.slot(a)
		if !found {
			s.addrs = append(s.addrs, a)
			s.slots[slot] = uint32(len(s.addrs))
		}
	}
	return s
}

// add puts an address behind the others, unless it is there.
func (s *targetSet) add(a netip.Addr) (added bool) {
	if 4*(len(s.addrs)+1) > 3*len(s.slots) {
		s.slots = make([]uint32, 2*len(s.slots))
		for i, b := range s.addrs {
			slot, _ := s.slot(b)
			s.slots[slot] = uint32(i + 1)
		}
	}
	slot, found := s.slot(a)
	if !found {
		s.addrs = append(s.addrs, a)
		s.slots[slot] = uint32(len(s.addrs))
	}
	return !found
}

// slot is where an address is, or has its place.
func (s *targetSet) slot(a netip.Addr) (slot int, found bool) {
	mask := len(s.slots) - 1
	for slot = int(maphash.Comparable(s.seed, a)) & mask; ; slot = (slot + 1) & mask {
		at := s.slots[slot]
		if at == 0 {
			return slot, false
		}
		if s.addrs[at-1] == a {
			return slot, true
		}
	}
}

// find gives the position of an address.
func (s *targetSet) find(a netip.Addr) (i int, ok bool) {
	slot, found := s.slot(a)
	return int(s.slots[slot]) - 1, found
}

// bitSet is a set of small numbers. It is made as large as the first ones need, and grows.
type bitSet []uint64

func newBitSet(n int) bitSet { return make(bitSet, (n+63)/64) }

// add adds i, and tells whether it was there.
func (b *bitSet) add(i int) (before bool) {
	if more := i/64 + 1 - len(*b); more > 0 {
		*b = append(*b, make(bitSet, more)...)
	}
	word := &(*b)[i/64]
	before = *word>>(i%64)&1 != 0
	*word |= 1 << (i % 64)
	return before
}
