// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"hash/maphash"
	"net/netip"
	"time"
)

// A stranger is a source of datagrams in clear that is not among the peers. Relays of the origin accept
// them, and so does an open mesh. It needs a number like any other, for the accounting of copies.
type stranger struct {
	number                uint32
	last                  time.Time
	addr                  netip.AddrPort // where its last datagram came from
	datagrams, broadcasts uint64
	bytes                 uint64
}

const (
	strangerWays = 4
	strangerSets = 256
	// Strangers have numbers apart from those of peers and, from endStrangers on, from those that
	// package guard gives to segments.
	firstStranger = 1 << 30
	endStrangers  = 1 << 31
	// strangerTime is for how long a stranger is shown after its last datagram.
	strangerTime = time.Minute
)

// strangers remembers a bounded number of them: when there is no room, the one that was silent longest
// goes. A flood of invented sources costs a look at four entries each.
type strangers struct {
	seed maphash.Seed
	next uint32
	sets [strangerSets][strangerWays]stranger
}

func newStrangers() *strangers { return &strangers{seed: maphash.MakeSeed(), next: firstStranger} }

// get finds the stranger at an address, whatever port it sends from: the origin uses a new one each time.
func (s *strangers) get(from netip.AddrPort, now time.Time) *stranger {
	addr := from.Addr()
	set := &s.sets[maphash.Comparable(s.seed, addr)%strangerSets]
	oldest := &set[0]
	for i := range set {
		e := &set[i]
		if e.number != 0 && e.addr.Addr() == addr {
			e.addr, e.last = from, now
			return e
		}
		if e.last.Before(oldest.last) {
			oldest = e
		}
	}
	*oldest = stranger{number: s.next, addr: from, last: now}
	if s.next++; s.next == endStrangers {
		s.next = firstStranger // after a thousand million strangers
	}
	return oldest
}

// byNumber finds a stranger again.
func (s *strangers) byNumber(n uint32) *stranger {
	for i := range s.sets {
		for j := range s.sets[i] {
			if e := &s.sets[i][j]; e.number == n {
				return e
			}
		}
	}
	return nil
}
