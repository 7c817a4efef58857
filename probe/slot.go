// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import "net/netip"

// A slot holds one probe from Start to its result. Slots live in chunks that
// are never moved or given back, so that an index stays good, memory grows by
// a chunk at a time, and nothing is allocated in steady state. Index 0 is no slot.
type slot struct {
	req  Request
	done func(Result)
	gen  uint32
	state

	// The identity on the wire.
	src, dst netip.Addr // without zones; dst is req.Target, or loopback where that is unspecified
	a, b     uint16     // ICMP: identifier and sequence; others: source and destination port
	token    uint32     // what else tells probes of one flow apart: UDP checksum, TCP sequence, SCTP tag
	hash     [2]uint32  // of the exact identity, and of the flow alone
	linked   [2]bool    // in which of the two indexes it is

	// Times: mono in nanoseconds since the engine's epoch, wall since 1970.
	sentMono, sentWall int64
	deadline           int64 // mono; the first attempt to send sets it
	kernelSent         bool  // sentWall is the kernel's
	bucket             uint16

	// fd belongs to unprivileged TCP probes only; 0 is none.
	fd int32

	links [3]link
}

// to is where the probe is sent: dst with its zone, which is the target's, or the interface that the request names.
func (s *slot) to() netip.Addr {
	if s.req.Target.Zone() != "" {
		return s.req.Target
	}
	if s.req.Interface != "" && (s.dst.IsLinkLocalUnicast() || s.dst.IsLinkLocalMulticast()) {
		return s.dst.WithZone(s.req.Interface)
	}
	return s.dst
}

// Which list a link belongs to.
const (
	byIdentity = iota // chain of the exact index; while slotWaiting, engine.waiting
	byFlow            // chain of the flow index
	byTime            // bucket of the timer wheel; submission queue and free list before and after
)

type state uint8

const (
	slotFree    state = iota
	slotQueued        // submitted, not sent yet
	slotWaiting       // not sent, for want of something of its own: see engine.wait
	slotFlying        // sent: in the index and the wheel
)

type link struct{ prev, next uint32 }

const chunkSize = 1024

// slots is the memory of the slots. Copies share it; only the owner of the
// prober's lock grows it.
type slots struct{ chunks []*[chunkSize]slot }

func (s *slots) at(i uint32) *slot { return &s.chunks[i/chunkSize][i%chunkSize] }

// A list is circular and doubly linked through the slots: *head is the oldest
// entry, head.prev the newest.
func (s *slots) push(head *uint32, i uint32, l int) {
	e := &s.at(i).links[l]
	if *head == 0 {
		e.prev, e.next = i, i
		*head = i
		return
	}
	first := &s.at(*head).links[l]
	e.prev, e.next = first.prev, *head
	s.at(first.prev).links[l].next = i
	first.prev = i
}

// pushFront adds i as the oldest entry.
func (s *slots) pushFront(head *uint32, i uint32, l int) {
	s.push(head, i, l)
	*head = i
}

func (s *slots) remove(head *uint32, i uint32, l int) {
	e := &s.at(i).links[l]
	if e.next == i {
		*head = 0
	} else {
		s.at(e.prev).links[l].next = e.next
		s.at(e.next).links[l].prev = e.prev
		if *head == i {
			*head = e.next
		}
	}
	*e = link{}
}

// pop takes the oldest entry off, 0 if there is none.
func (s *slots) pop(head *uint32, l int) uint32 {
	i := *head
	if i != 0 {
		s.remove(head, i, l)
	}
	return i
}

// splice appends the list at *from to the one at *to.
func (s *slots) splice(to, from *uint32, l int) {
	if *from == 0 {
		return
	}
	if *to == 0 {
		*to, *from = *from, 0
		return
	}
	a, b := &s.at(*to).links[l], &s.at(*from).links[l]
	lastA, lastB := a.prev, b.prev
	s.at(lastA).links[l].next = *from
	s.at(lastB).links[l].next = *to
	a.prev, b.prev = lastB, lastA
	*from = 0
}

// length counts a list.
func (s *slots) length(head uint32, l int) (n int) {
	for i := head; i != 0; {
		n++
		if i = s.at(i).links[l].next; i == head {
			break
		}
	}
	return n
}
