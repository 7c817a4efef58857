// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import "net/netip"

// Outgoing is one datagram to send.
type Outgoing struct {
	To   netip.AddrPort
	Data []byte // never empty
}

// An Outbox collects the datagrams that a call of a [Mesh] wants sent, in this order. Those for one peer stand
// together, so that a socket layer can hand runs of equal length to the kernel at once. The zero
// value is ready.
type Outbox struct {
	// Items are valid until the next Reset, as long as the buffers given to [Mesh.Send] are.
	Items []Outgoing

	// arena holds what is not in the caller's buffers. What was given out of an arena that
	// became too small stays where it is.
	arena []byte
}

const (
	arenaStart = 16 << 10
	// arenaKept is the most memory that stays with a box from one batch to the next.
	arenaKept = 4 << 20
	// itemsKept is the most items for which an Inbox keeps room: a batch of full datagrams of relays has fewer. Datagrams of 64 KiB
	// with the smallest frames there are have ten times as many.
	itemsKept = 8 << 10
)

// Reset forgets the items and keeps the memory.
func (o *Outbox) Reset() {
	clear(o.Items)
	o.Items = o.Items[:0]
	o.arena = emptied(o.arena)
}

func emptied(arena []byte) []byte {
	if cap(arena) > arenaKept {
		return nil
	}
	return arena[:0]
}

// reserve gives an empty slice with room for n bytes at the end of an arena.
func reserve(arena *[]byte, n int) []byte {
	a := *arena
	if cap(a)-len(a) < n {
		a = make([]byte, 0, max(2*cap(a), n, arenaStart))
		*arena = a
	}
	return a[len(a) : len(a) : len(a)+n]
}

// keep makes data, which was reserved last, part of the arena.
func keep(arena *[]byte, data []byte) { *arena = (*arena)[:len(*arena)+len(data)] }

// add sends data that the caller keeps valid.
func (o *Outbox) add(to netip.AddrPort, data []byte) {
	o.Items = append(o.Items, Outgoing{To: to, Data: data})
}

// addKept sends data that was reserved last in the arena.
func (o *Outbox) addKept(to netip.AddrPort, data []byte) {
	keep(&o.arena, data)
	o.add(to, data)
}

// Incoming is one broadcast from the mesh.
type Incoming struct {
	// Peer is the number of the relay it came from, for accounting: the same for all its addresses, and
	// never used for another one.
	Peer uint32
	// Link is the Ethernet address of the host that sent it, or so the relay says.
	Link [6]byte
	// IP is the IP packet. What follows an SS datagram's IP packet is padding.
	IP []byte
	// Frame is the whole Ethernet frame when it came as an SS datagram; otherwise it is nil.
	Frame []byte
}

// Report is a [TestReport] with the relay it came from.
type Report struct {
	Peer uint32
	From netip.AddrPort
	TestReport
}

// An Inbox collects what came from the mesh. The zero value is ready.
type Inbox struct {
	// Items are views into the datagrams given to [Mesh.Receive], and into memory of the box; they are
	// valid until the next Reset, as long as the datagrams' buffers are.
	Items []Incoming
	// Reports are answers to a test broadcast of this relay.
	Reports []Report

	arena []byte // frames that were put together from parts
}

// Reset forgets the items and keeps the memory.
func (in *Inbox) Reset() {
	clear(in.Items)
	in.Items = in.Items[:0]
	if cap(in.Items) > itemsKept {
		in.Items = nil
	}
	in.Reports = in.Reports[:0]
	in.arena = emptied(in.arena)
}
