// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"time"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/relay/drop"
)

const (
	// ReassemblyTimeout is how long the first fragment to come waits for the last.
	ReassemblyTimeout = 3 * time.Second
	// DefaultReassemblies is how many datagrams a [Reassembler] puts together at a time.
	DefaultReassemblies = 256
	// DefaultReassemblyBytes is how many bytes of fragments it holds for that.
	DefaultReassemblyBytes = 4 << 20
)

// A block holds a part of a datagram's data, and a bit for each 8 bytes that are there. Datagrams are held in
// blocks so that a lone fragment that claims to be the end of a long datagram costs one block, not 64 KiB.
// The sizes make a block 4 KiB in all, and its bits whole words but for 8.
type block struct {
	have [8]uint64
	data [blockLen]byte
}

const (
	unit       = 8 // bytes; fragment offsets count in these
	blockUnits = 504
	blockLen   = blockUnits * unit
	maxBlocks  = (MaxPacketLen + blockLen - 1) / blockLen

	// maxHead bounds what comes before a datagram's data: the 60 bytes of IPv4, IPv6 with some options.
	maxHead = 128
)

// setKey tells the fragments of one datagram from others (RFC 791 section 3.2, RFC 8200 section 4.5). It also has who
// brought them, so that nobody's fragments get between those of others.
type setKey struct {
	src, dst [16]byte
	id       uint32
	origin   uint32
	link     MAC
	kind     byte // the IP version, 0 for an IPv6 fragment that is all of its datagram
}

// A set is what is there of one datagram. Sets form a list by age.
type set struct {
	key          setKey
	older, newer *set
	deadline     time.Time
	dropped      drop.Reason // not None: the whole is lost, and so is what still comes of it
	blocks       [maxBlocks]*block
	units        int // that are there
	end          int // of the data that is there and known not to be the last, in bytes
	total        int // length of the data in bytes, 0 while it is not known
	headLen      int // 0 while the first fragment is not there
	headNext     int // IPv6: where the head names the fragment header
	next         byte
	head         [maxHead]byte
}

// A Reassembler puts fragmented datagrams together. The zero value is ready. It takes memory as fragments
// come, up to its bounds, and [Reassembler.Expire] gives it back. It is used by one goroutine.
type Reassembler struct {
	// MaxDatagrams bounds the datagrams of which a part is there; 0 means [DefaultReassemblies]. One more pushes the oldest out.
	MaxDatagrams int
	// MaxBytes bounds what is held of them, in bytes and rounded to 4 KiB; 0 means [DefaultReassemblyBytes], and
	// less than one long datagram takes counts as that much (68 KiB).
	MaxBytes int

	busy           bool // since the last Expire
	sets           map[setKey]*set
	oldest, newest *set
	blocks         int // in sets
	freeSets       []*set
	freeBlocks     []*block
	whole          []byte // the last datagram that was completed

	incomplete, overflow int // datagrams given up since the last Expire
}

// Add takes a fragment that one of the Parse methods has read from what origin has sent: any number that tells
// sources of fragments apart, for example the segment's or the mesh peer's. It copies what it keeps.
//
// When it was the last one missing, Add reports true and d is the whole datagram, parsed anew and with its UDP
// checksum verified, in a buffer that the next Add uses again. The header is the first fragment's, with its options and
// without any trace of fragments. The destination and source of its fragments may have been checked before; its ports have not.
//
// Any reason but None means the end of the datagram: [drop.Overlapping] when two fragments contradict each other
// (in IPv6 also when they overlap without that, RFC 5722), [drop.Malformed] and others for what the whole turned out to be. Fragments of
// it that come later get the same reason for as long as it would have been waited for. Only [drop.Overflow], for IPv6 options
// longer than there is room for, is about d alone.
func (r *Reassembler) Add(d *Datagram, origin uint32, now time.Time) (whole bool, reason drop.Reason) {
	if !d.Fragment {
		return true, drop.None
	}
	data := d.IP[d.at:]
	head := d.IP[:d.at]
	v6 := d.IP[0]>>4 == 6
	if v6 {
		head = d.IP[:d.at-8]
	}
	if len(head) > maxHead {
		return false, drop.Overflow
	}
	r.busy = true
	r.expire(now)
	s := r.find(d, origin, now)
	if s.dropped != drop.None {
		return false, s.dropped
	}
	if reason := s.place(d.offset, len(data), d.more); reason != drop.None {
		return false, r.lose(s, reason)
	}
	if d.offset == 0 {
		// A second first fragment agrees in its data; of two headers the first counts.
		if s.headLen == 0 {
			s.headLen = copy(s.head[:], head)
			if v6 {
				s.headNext, s.next = d.next, d.IP[d.at-8]
			}
		}
	}
	if s.headLen+max(s.end, s.total) > MaxPacketLen {
		return false, r.lose(s, drop.Malformed)
	}
	if !r.store(s, d.offset, data, v6) {
		return false, r.lose(s, drop.Overlapping)
	}
	if s.total == 0 || s.headLen == 0 || s.units != (s.total+unit-1)/unit {
		return false, drop.None
	}
	if reason := r.complete(d, s); reason != drop.None {
		return false, r.lose(s, reason)
	}
	r.remove(s)
	return true, drop.None
}

// find gives the set that a fragment belongs to, a new one if there is none yet.
func (r *Reassembler) find(d *Datagram, origin uint32, now time.Time) *set {
	k := setKey{src: d.Src.Addr().As16(), dst: d.Dst.Addr().As16(), id: d.id, origin: origin, link: d.Link, kind: d.IP[0] >> 4}
	if d.offset == 0 && !d.more {
		k.kind = 0 // RFC 6946: it has nothing to do with others of the same ID
	}
	s := r.sets[k]
	if s != nil {
		return s
	}
	limit := r.MaxDatagrams
	if limit <= 0 {
		limit = DefaultReassemblies
	}
	for len(r.sets) >= limit {
		r.pushOut(r.oldest)
	}
	if r.sets == nil {
		r.sets = make(map[setKey]*set, limit)
	}
	if n := len(r.freeSets); n > 0 {
		s, r.freeSets = r.freeSets[n-1], r.freeSets[:n-1]
	} else {
		s = new(set)
	}
	*s = set{key: k, deadline: now.Add(ReassemblyTimeout), older: r.newest}
	if r.newest != nil {
		r.newest.newer = s
	} else {
		r.oldest = s
	}
	r.newest = s
	r.sets[k] = s
	return s
}

// place holds the bounds of a fragment against what is known of where the datagram ends.
func (s *set) place(offset, n int, more bool) drop.Reason {
	end := offset + n
	if more {
		if s.total != 0 && end >= s.total {
			return drop.Overlapping
		}
		s.end = max(s.end, end)
		return drop.None
	}
	if s.end >= end || s.total != 0 && s.total != end {
		return drop.Overlapping
	}
	s.total = end
	return drop.None
}

// store copies data to its place and reports false when other data is there. If strict, a fragment brings only
// what is new, or nothing that is: then it is one that came twice.
func (r *Reassembler) store(s *set, offset int, data []byte, strict bool) bool {
	units, had := (len(data)+unit-1)/unit, s.units
	for at := offset; len(data) > 0; {
		i, from := at/blockLen, at%blockLen
		n := min(len(data), blockLen-from)
		b := s.blocks[i]
		if b == nil {
			b = r.newBlock(s)
			s.blocks[i] = b
		}
		added, ok := b.store(from, data[:n])
		if !ok {
			return false
		}
		s.units += added
		data = data[n:]
		at += n
	}
	added := s.units - had
	return !strict || added == units || added == 0
}

// store is [Reassembler.store] within a block, and tells how many units are new. It takes the units a word of bits at a time.
func (b *block) store(from int, data []byte) (added int, same bool) {
	to := from + len(data)
	first, end := from/unit, (to+unit-1)/unit
	for w := first / 64; w*64 < end; w++ {
		mask := ^uint64(0) << max(first-w*64, 0) & (^uint64(0) >> max((w+1)*64-end, 0))
		lo, hi := max(from, w*64*unit), min(to, (w+1)*64*unit)
		if seen := b.have[w] & mask; seen == 0 {
			copy(b.data[lo:hi], data[lo-from:])
			added += bits.OnesCount64(mask)
		} else {
			for at := lo; at < hi; at += unit {
				there, new := b.data[at:min(at+unit, hi)], data[at-from:min(at+unit, hi)-from]
				if b.have[w]>>(at/unit%64)&1 == 0 {
					copy(there, new)
					added++
				} else if !bytes.Equal(there, new) {
					return added, false
				}
			}
		}
		b.have[w] |= mask
	}
	return added, true
}

// newBlock gives an empty block for s, at the cost of older sets if need be.
func (r *Reassembler) newBlock(s *set) *block {
	limit := r.MaxBytes
	if limit <= 0 {
		limit = DefaultReassemblyBytes
	}
	limit = max(limit/blockLen, maxBlocks) // s alone never needs more
	for r.blocks >= limit {
		oldest := r.oldest
		if oldest == s {
			oldest = s.newer
		}
		r.pushOut(oldest)
	}
	r.blocks++
	if n := len(r.freeBlocks); n > 0 {
		b := r.freeBlocks[n-1]
		r.freeBlocks = r.freeBlocks[:n-1]
		b.have = [8]uint64{}
		return b
	}
	return new(block)
}

// complete makes d the whole datagram.
func (r *Reassembler) complete(d *Datagram, s *set) drop.Reason {
	b := append(r.whole[:0], s.head[:s.headLen]...)
	for i, left := 0, s.total; left > 0; i++ {
		n := min(left, blockLen)
		b = append(b, s.blocks[i].data[:n]...)
		left -= n
	}
	r.whole = b
	d.checksum = verify
	var reason drop.Reason
	if b[0]>>4 == 6 {
		b[s.headNext] = s.next
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-packet.IPv6HeaderLen))
		reason = d.parse6(b)
	} else {
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		clear(b[6:8])
		clear(b[10:12])
		binary.BigEndian.PutUint16(b[10:], packet.Checksum(b[:s.headLen]))
		reason = d.parse4(b)
	}
	switch {
	case reason != drop.None:
		return reason
	case d.Fragment: // a fragment header inside of another
		return drop.Malformed
	}
	return d.Finish()
}

// lose gives a datagram up, and keeps what is left of it to recognize the rest.
func (r *Reassembler) lose(s *set, reason drop.Reason) drop.Reason {
	s.dropped = reason
	r.release(s)
	return reason
}

func (r *Reassembler) release(s *set) {
	for i, b := range s.blocks {
		if b != nil {
			r.freeBlocks = append(r.freeBlocks, b)
			s.blocks[i] = nil
			r.blocks--
		}
	}
}

func (r *Reassembler) remove(s *set) {
	r.release(s)
	if s.older != nil {
		s.older.newer = s.newer
	} else {
		r.oldest = s.newer
	}
	if s.newer != nil {
		s.newer.older = s.older
	} else {
		r.newest = s.older
	}
	delete(r.sets, s.key)
	r.freeSets = append(r.freeSets, s)
}

func (r *Reassembler) pushOut(s *set) {
	if s.dropped == drop.None {
		r.overflow++
	}
	r.remove(s)
}

func (r *Reassembler) expire(now time.Time) {
	for r.oldest != nil && !now.Before(r.oldest.deadline) {
		if r.oldest.dropped == drop.None {
			r.incomplete++
		}
		r.remove(r.oldest)
	}
}

// Expire gives up what has waited too long, and all memory when nothing came since the last call. To be called about
// once a second. It returns how many datagrams were lost since the last call without Add having said so:
// [drop.Incomplete] ones, and those pushed out by newer ones, which are [drop.Overflow].
func (r *Reassembler) Expire(now time.Time) (incomplete, overflow int) {
	r.expire(now)
	if !r.busy && len(r.sets) == 0 {
		r.sets, r.freeSets, r.freeBlocks, r.whole = nil, nil, nil, nil
	}
	r.busy = false
	incomplete, overflow = r.incomplete, r.overflow
	r.incomplete, r.overflow = 0, 0
	return incomplete, overflow
}

// Pending returns how many datagrams are waited for, and how many bytes of memory their fragments take.
func (r *Reassembler) Pending() (datagrams, bytes int) { return len(r.sets), r.blocks * blockLen }
