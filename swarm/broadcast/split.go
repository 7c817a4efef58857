// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package broadcast

import (
	"encoding/binary"
	"slices"

	"github.com/seed5728abee/fathom/swarm/member"
)

// How many parts a member splits its own into. A small payload costs little to send, so that the tree is flat; a large
// one occupies the way out for a while, and trees of degree 3 or 4 bring it to all soonest.
const (
	degreeSmall = 16
	degreeLarge = 4
)

// A part is the places between a member and a limit, both excluded: the member is in charge of those there.
type part struct {
	to    member.Contact
	limit member.ID
}

// whole is the distance of the limit of a member in charge of the whole ring.
var whole = member.ID(slices.Repeat([]byte{0xff}, len(member.ID{})))

// reach returns how far a limit is from a member. With the limit at the member itself that is the whole ring.
func reach(self, limit member.ID) member.ID {
	if limit == self {
		return whole
	}
	return self.Distance(limit)
}

// A table is the native members known, in the order of the ring from self on.
type table struct {
	self    member.ID
	members []member.Contact
	heads   []uint64 // of the distances of members
}

// newTable makes a table of a list of members, in place.
func newTable(self member.ID, list []member.Contact) *table {
	list = slices.DeleteFunc(list, func(c member.Contact) bool {
		return c.Dialect != member.Native || c.Leaf || c.ID == self
	})
	slices.SortFunc(list, func(a, b member.Contact) int { return self.Distance(a.ID).Compare(self.Distance(b.ID)) })
	list = slices.CompactFunc(list, func(a, b member.Contact) bool { return a.ID == b.ID })
	heads := make([]uint64, len(list))
	for i, c := range list {
		heads[i] = head(self.Distance(c.ID))
	}
	return &table{self, list, heads}
}

// index returns how many members are nearer than a distance.
func (t *table) index(distance member.ID) int {
	i, _ := slices.BinarySearchFunc(t.members, distance, func(c member.Contact, d member.ID) int {
		return t.self.Distance(c.ID).Compare(d)
	})
	return i
}

// after returns the first member behind a place and before a limit that is not to be skipped.
func (t *table) after(place, limit member.ID, skip func(member.ID) bool) (member.Contact, bool) {
	end := t.index(reach(t.self, limit))
	for i := t.index(t.self.Distance(place)); i < end; i++ {
		if c := t.members[i]; c.ID != place && !skip(c.ID) {
			return c, true
		}
	}
	return member.Contact{}, false
}

// split divides the places from one distance on, up to a limit, into at most degree parts at members known there. They
// are chosen evenly by their places, as those who are not known will be spread evenly.
func (t *table) split(from, limit member.ID, degree int, skip func(member.ID) bool) []part {
	to := reach(t.self, limit)
	first, end := t.index(from), t.index(to)
	if first >= end {
		return nil
	}
	known := t.members[first:end]
	start := head(from)
	width := max((head(to)-start)/uint64(degree), 1)
	parts := make([]part, 0, min(len(known), degree))
	next := uint64(0) // slot, of the width of an even part
	for i, c := range known {
		if len(parts) == degree {
			break
		}
		if skip(c.ID) {
			continue
		}
		// The first has to be among them: who is before it is in nobody's charge. Of the others one is taken in each
		// slot, and when no more are left than can be taken, all.
		slot := (t.heads[first+i] - start) / width
		if len(parts) > 0 && slot < next && len(known)-i > degree-len(parts) {
			continue
		}
		if n := len(parts); n > 0 {
			parts[n-1].limit = c.ID
		}
		parts = append(parts, part{to: c})
		next = slot + 1
	}
	if n := len(parts); n > 0 {
		parts[n-1].limit = limit
	}
	return parts
}

// head is a distance in units of 2^-64 of the ring.
func head(distance member.ID) uint64 { return binary.BigEndian.Uint64(distance[:]) }
