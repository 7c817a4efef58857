// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package guard

const (
	ways       = 8        // places in which a key can be: the oldest of them makes room
	minEntries = 4 << 10  // 160 kB: some 2,000 datagrams a second
	maxEntries = 32 << 10 // 1.3 MB
)

// An entry is what is known of a datagram on the segment, with how many copies of
// it one source has sent. Each further source has an entry of its own: a child of
// the first by its birth, which counts for nothing when that has been born again.
//
// Entries hold no pointers, so that the garbage collector never looks at them.
type entry struct {
	key   Key
	last  uint32 // when it was used last, in milliseconds
	count uint32 // how often it was there; of a child, how often it came
	birth uint16

	// Not of a child.

	second uint16 // when the current second began, in milliseconds
	now    uint16 // how often it was there in this second …
	before uint16 // … and in the one before
	owner  MAC    // who has sent it, as far as is known
	flags  flags
	source uint32 // who was the first to send it …
	came   uint32 // … and how often it came from there
}

const entrySize = 40

type flags uint8

const (
	owned           flags = 1 << iota // owner is set
	sourced                           // source is set
	seen                              // owner was seen on the segment itself
	contested                         // in this second a peer has named another owner …
	contestedBefore                   // … or in the one before
)

// A table is set-associative: one access to memory finds a key or the place for
// it. The zero value is empty and takes no memory.
type table struct {
	entries []entry
	mask    uint64 // of the number of sets
}

// at returns the entry of a key, or the one to put it in: empty or the oldest of
// its set, but never that of keep.
func (t *table) at(key, keep Key, tick uint32) (e *entry, found bool) {
	set := (*[ways]entry)(t.entries[uint64(key)>>32&t.mask*ways:])
	for i := range set {
		if set[i].key == key {
			return &set[i], true
		}
	}
	oldest, age := 0, int64(-1)
	for i := range set {
		s := &set[i]
		if s.key == 0 {
			return s, false
		}
		if a := int64(tick - s.last); a > age && s.key != keep {
			oldest, age = i, a
		}
	}
	return &set[oldest], false
}

// resize makes a table of n entries, a power of two, with those that live on.
func (t *table) resize(n int, tick uint32) {
	old := t.entries
	t.entries, t.mask = make([]entry, n), uint64(n/ways-1)
	for i := range old {
		if s := &old[i]; s.alive(tick) {
			e, _ := t.at(s.key, 0, tick)
			*e = *s
		}
	}
}

// alive tells whether what is known is recent enough to go by.
func (e *entry) alive(tick uint32) bool { return e.key != 0 && tick-e.last < lifetime }

// touch makes e recent, and turns its seconds over.
func (e *entry) touch(tick uint32) {
	e.last = tick
	switch elapsed := uint16(tick) - e.second; {
	case elapsed < 1000:
		return
	case elapsed < 2000:
		e.before, e.second = e.now, e.second+1000
		e.flags = e.flags&^contestedBefore | (e.flags & contested << 1)
	default:
		e.before, e.second = 0, uint16(tick)
		e.flags &^= contestedBefore
	}
	e.now = 0
	e.flags &^= contested
}

// present counts the datagram as there once more.
func (e *entry) present() {
	e.count++
	if e.now < ^uint16(0) {
		e.now++
	}
}

// settled is how often it was there more than a second or two ago. Copies of that
// which a source still owes are lost, not late.
func (e *entry) settled() uint32 {
	return e.count - min(e.count, uint32(e.now)+uint32(e.before))
}
