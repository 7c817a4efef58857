// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"encoding/binary"
	"math/rand/v2"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/relay/drop"
)

// A Fragmenter cuts packets that are longer than a segment or a peer can take. The zero value is ready. It is used
// by one goroutine.
type Fragmenter struct {
	arena  []byte
	pieces [][]byte
	id     uint32
	seeded bool
}

// Reset lets the memory of all earlier results be used again. To be called once a batch has been sent.
func (f *Fragmenter) Reset() {
	clear(f.pieces)
	f.arena, f.pieces = f.arena[:0], f.pieces[:0]
}

// Cut gives the packets that d becomes where none may have more than mtu bytes, each with a copy of prefix in
// front, which the MTU does not count: for fragments in SS datagrams it is "SS" and the Ethernet header. A packet that fits
// is alone and, if there is no prefix, d.IP itself. The results are valid until [Fragmenter.Reset]. The
// datagram has been finished, for no fragment can be later; else Cut panics.
//
// IPv4 packets are cut even when they are marked not to be fragmented, and lose the mark. That mark asks routers to report
// their MTU instead (RFC 1191), but nobody reports on a broadcast, and Linux sets it on every UDP packet; the
// relay stands for the sender here. The ID of a marked packet means nothing (RFC 6864 section 4.1), so the fragments
// get a new one. Others keep theirs, which their sender keeps apart, unless it is 0. Options are
// repeated where they ask for it (RFC 791 section 3.1). IPv6 packets get a fragment header behind any
// hop-by-hop options, as their sender would have done it.
//
// An MTU that leaves no room for data is [drop.TooLong].
func (f *Fragmenter) Cut(d *Datagram, mtu int, prefix []byte) ([][]byte, drop.Reason) {
	if d.checksum != finished {
		panic("datagram: Cut before Finish")
	}
	first := len(f.pieces)
	switch {
	case len(d.IP) <= mtu && len(prefix) == 0:
		f.pieces = append(f.pieces, d.IP)
	case len(d.IP) <= mtu:
		start := len(f.arena)
		f.arena = append(append(f.arena, prefix...), d.IP...)
		f.add(start)
	default:
		fits := false
		if d.IP[0]>>4 == 6 {
			fits = f.cut6(d.IP, mtu, prefix)
		} else {
			fits = f.cut4(d.IP, mtu, prefix)
		}
		if !fits {
			return nil, drop.TooLong
		}
	}
	return f.pieces[first:len(f.pieces):len(f.pieces)], drop.None
}

// add makes the end of the arena, from start on, a result. Growing the arena leaves earlier results where they are.
func (f *Fragmenter) add(start int) {
	f.pieces = append(f.pieces, f.arena[start:len(f.arena):len(f.arena)])
}

// nextID counts from a random start, so that a relay that is started again does not repeat what it has used.
func (f *Fragmenter) nextID() uint32 {
	if !f.seeded {
		f.id, f.seeded = rand.Uint32(), true
	}
	f.id++
	return f.id
}

func (f *Fragmenter) cut4(ip []byte, mtu int, prefix []byte) bool {
	n := int(ip[0]&15) * 4
	if mtu < n+unit {
		return false
	}
	id, marked := binary.BigEndian.Uint16(ip[4:]), ip[6]&0x40 != 0
	for marked || id == 0 {
		id, marked = uint16(f.nextID()), false
	}
	var later [60]byte
	head, data := ip[:n], ip[n:]
	for at := 0; at < len(data); {
		size, more := (mtu-len(head))&^(unit-1), uint16(0x2000)
		if len(data)-at <= mtu-len(head) {
			size, more = len(data)-at, 0
		}
		start := len(f.arena)
		f.arena = append(append(f.arena, prefix...), head...)
		h := f.arena[start+len(prefix):]
		binary.BigEndian.PutUint16(h[2:], uint16(len(head)+size))
		binary.BigEndian.PutUint16(h[4:], id)
		binary.BigEndian.PutUint16(h[6:], uint16(at/unit)|more)
		clear(h[10:12])
		binary.BigEndian.PutUint16(h[10:], packet.Checksum(h))
		f.arena = append(f.arena, data[at:at+size]...)
		f.add(start)
		if at == 0 && n > packet.IPv4HeaderLen {
			head = later[:laterHead4(&later, head)]
		}
		at += size
	}
	return true
}

// laterHead4 puts the header that all fragments but the first have into h, and gives its length: of the options,
// only those with the bit "copied" are left.
func laterHead4(h *[60]byte, head []byte) int {
	n := copy(h[:], head[:packet.IPv4HeaderLen])
	for options := head[packet.IPv4HeaderLen:]; len(options) > 0 && options[0] != 0; {
		size := 1
		if options[0] != 1 {
			size = int(options[1])
		}
		if options[0]&0x80 != 0 {
			n += copy(h[n:], options[:size])
		}
		options = options[size:]
	}
	n = (n + 3) &^ 3 // what is left of h is zero: the end of options
	h[0] = 0x40 | byte(n/4)
	return n
}

func (f *Fragmenter) cut6(ip []byte, mtu int, prefix []byte) bool {
	next, n := 6, packet.IPv6HeaderLen
	if packet.Protocol(ip[6]) == packet.ProtocolHopByHop {
		next, n = n, n+8+int(ip[n+1])*8
	}
	room := (mtu - n - 8) &^ (unit - 1) // for data, behind the fragment header
	if room <= 0 {
		return false
	}
	id := f.nextID()
	data := ip[n:]
	for at := 0; at < len(data); {
		size, more := room, uint16(1)
		if len(data)-at <= mtu-n-8 {
			size, more = len(data)-at, 0
		}
		start := len(f.arena)
		f.arena = append(append(f.arena, prefix...), ip[:n]...)
		h := f.arena[start+len(prefix):]
		binary.BigEndian.PutUint16(h[4:], uint16(n-packet.IPv6HeaderLen+8+size))
		h[next] = byte(packet.ProtocolFragment)
		f.arena = append(f.arena, ip[next], 0)
		f.arena = binary.BigEndian.AppendUint16(f.arena, uint16(at)|more)
		f.arena = binary.BigEndian.AppendUint32(f.arena, id)
		f.arena = append(f.arena, data[at:at+size]...)
		f.add(start)
		at += size
	}
	return true
}
