// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"slices"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
)

// An entry is a member in the table: one that has spoken for itself. Its fields are guarded by the node's mutex.
type entry struct {
	contact member.Contact
	rtt     time.Duration // when it was last inserted; 0: not known
	heard   time.Time     // when it last proved to be alive
	asked   time.Time     // an original: when its state was last asked for
	suspect bool          // it did not answer; a probe is on its way
}

// A finger is the entry that stands for the members from 2^level to 2^(level+1) away.
type finger struct {
	level int
	entry *entry
}

// A table is what a member knows of the ring: the members next to it on either side, nearest first, and fingers, which
// are sorted by level. It holds at most one entry for an ID, though lists may share it: in a ring of three everyone is
// both before and after everyone. It does no input or output and is not safe for concurrent use.
type table struct {
	self              member.ID
	length            int // of each list of neighbours
	after, before     []*entry
	forward, backward []finger
}

// find returns the entry of a member, nil if there is none.
func (t *table) find(id member.ID) *entry {
	var found *entry
	t.each(func(e *entry) bool {
		if e.contact.ID == id {
			found = e
		}
		return found == nil
	})
	return found
}

// each calls f for every entry, for some twice, until it returns false.
func (t *table) each(f func(*entry) bool) {
	for _, list := range [...][]*entry{t.after, t.before} {
		for _, e := range list {
			if !f(e) {
				return
			}
		}
	}
	for _, list := range [...][]finger{t.forward, t.backward} {
		for _, g := range list {
			if !f(g.entry) {
				return
			}
		}
	}
}

// all returns every entry once, in ring order from self.
func (t *table) all() []*entry {
	list := make([]*entry, 0, len(t.after)+len(t.before)+len(t.forward)+len(t.backward))
	t.each(func(e *entry) bool { list = append(list, e); return true })
	slices.SortFunc(list, func(a, b *entry) int {
		return t.self.Distance(a.contact.ID).Compare(t.self.Distance(b.contact.ID))
	})
	return slices.Compact(list)
}

// insert puts a member that has spoken for itself where it fits. It reports whether it is a new neighbour.
func (t *table) insert(c member.Contact, rtt time.Duration, now time.Time) (neighbour bool) {
	if c.ID == t.self {
		return false
	}
	e := t.find(c.ID)
	if e == nil {
		e = &entry{}
	}
	e.contact, e.heard, e.suspect = c, now, false
	if rtt > 0 {
		e.rtt = rtt
	}
	pushedOut, in := t.put(&t.after, e, t.ahead)
	if pushedOut != nil {
		t.offer(pushedOut)
	}
	neighbour = in
	pushedOut, in = t.put(&t.before, e, t.back)
	if pushedOut != nil {
		t.offer(pushedOut)
	}
	if neighbour = neighbour || in; !neighbour {
		t.offer(e)
	}
	return neighbour
}

// put puts an entry into a list of neighbours. It reports whether that is news, and what fell off the list's end,
// which is e itself when it is farther than all others.
func (t *table) put(list *[]*entry, e *entry, distance func(member.ID) member.ID) (pushedOut *entry, in bool) {
	i, found := slices.BinarySearchFunc(*list, e, func(a, b *entry) int {
		return distance(a.contact.ID).Compare(distance(b.contact.ID))
	})
	if found || i >= t.length {
		return nil, false
	}
	*list = slices.Insert(*list, i, e)
	if len(*list) > t.length {
		pushedOut = (*list)[t.length]
		*list = (*list)[:t.length]
	}
	return pushedOut, true
}

// offer makes an entry a finger where there is none, or where it suits better. The place for a finger is 2^level ahead,
// and 2^(level+1) back, as lookups come to their key from the far side.
func (t *table) offer(e *entry) {
	if e.contact.Dialect == member.Original {
		return // they are slow, and know few others
	}
	if level := t.ahead(e.contact.ID).Log2(); level >= 0 {
		place := t.self.After(level)
		t.forward = offerTo(t.forward, level, e, place.Distance)
	}
	if level := t.back(e.contact.ID).Log2(); level >= 0 {
		place := t.self // once around
		if level < member.Bits-1 {
			place = t.self.Before(level + 1)
		}
		t.backward = offerTo(t.backward, level, e, place.Distance)
	}
}

// offerTo puts an entry into a list of fingers, where it is nearer to the finger's place than the one there is. Members
// close to the place, by a sixteenth of what the finger covers, are equals: of those the one with the shorter round
// trip suits better.
func offerTo(list []finger, level int, e *entry, distance func(member.ID) member.ID) []finger {
	i, found := slices.BinarySearchFunc(list, level, func(f finger, level int) int { return f.level - level })
	if !found {
		return slices.Insert(list, i, finger{level, e})
	}
	now := list[i].entry
	was, is := distance(now.contact.ID), distance(e.contact.ID)
	better := is.Compare(was) < 0
	if max(was.Log2(), is.Log2()) < level-4 && now.rtt > 0 && e.rtt > 0 {
		better = e.rtt < now.rtt*3/4 // links vary: a little is no reason to change
	}
	if better {
		list[i].entry = e
	}
	return list
}

// remove drops a member. It reports whether it was a neighbour. Others take the places that it leaves in the lists,
// though they may be far away, until nearer ones are known.
func (t *table) remove(id member.ID) (neighbour bool) {
	is := func(e *entry) bool { return e.contact.ID == id }
	isFinger := func(f finger) bool { return is(f.entry) }
	neighbours := len(t.after) + len(t.before)
	t.after, t.before = slices.DeleteFunc(t.after, is), slices.DeleteFunc(t.before, is)
	t.forward, t.backward = slices.DeleteFunc(t.forward, isFinger), slices.DeleteFunc(t.backward, isFinger)
	if neighbours == len(t.after)+len(t.before) {
		return false
	}
	for _, e := range t.all() {
		t.put(&t.after, e, t.ahead)
		t.put(&t.before, e, t.back)
	}
	return true
}

// ahead and back are how far a member is, clockwise and counter-clockwise.
func (t *table) ahead(id member.ID) member.ID { return t.self.Distance(id) }
func (t *table) back(id member.ID) member.ID  { return id.Distance(t.self) }

// fits reports whether a member would be a new neighbour.
func (t *table) fits(id member.ID) bool {
	if id == t.self {
		return false
	}
	return t.fitsIn(t.after, id, t.ahead) || t.fitsIn(t.before, id, t.back)
}

func (t *table) fitsIn(list []*entry, id member.ID, distance func(member.ID) member.ID) bool {
	d := distance(id)
	for _, e := range list {
		if c := d.Compare(distance(e.contact.ID)); c <= 0 {
			return c < 0
		}
	}
	return len(list) < t.length
}

// next returns the member to which to pass on a lookup: the one nearest to the key, clockwise from the key to the
// member, and nearer than self. Members that are suspected are taken when there is no other. It returns nil when none
// but self is left: then self owns the key, unless members were skipped. Leaves have no place, and pass on to anyone.
func (t *table) next(key member.ID, leaf bool, skip func(member.ID) bool) *entry {
	limit := key.Distance(t.self)
	var best, doubtful *entry
	var bestAt, doubtfulAt member.ID
	t.each(func(e *entry) bool {
		d := key.Distance(e.contact.ID)
		if !leaf && d.Compare(limit) >= 0 || skip != nil && skip(e.contact.ID) {
			return true
		}
		switch {
		case e.suspect && (doubtful == nil || d.Compare(doubtfulAt) < 0):
			doubtful, doubtfulAt = e, d
		case !e.suspect && (best == nil || d.Compare(bestAt) < 0):
			best, bestAt = e, d
		}
		return true
	})
	if best == nil {
		return doubtful
	}
	return best
}

// closest returns up to count members, nearest to the key first.
func (t *table) closest(key member.ID, count int) []*entry {
	list := t.all()
	slices.SortFunc(list, func(a, b *entry) int {
		return key.Distance(a.contact.ID).Compare(key.Distance(b.contact.ID))
	})
	return list[:min(count, len(list))]
}

// owns reports whether self is the first member at or after the key, as far as the table knows.
func (t *table) owns(key member.ID) bool { return t.next(key, false, nil) == nil }

// bottom returns the lowest level at which fingers are of use: below it the neighbours are known anyway, and all of
// the ring when their list is not full.
func (t *table) bottom(list []*entry, distance func(member.ID) member.ID) int {
	if len(list) < t.length {
		return member.Bits
	}
	return max(0, distance(list[len(list)-1].contact.ID).Log2())
}

// contacts lists the members of entries.
func contacts(list []*entry) []member.Contact {
	out := make([]member.Contact, len(list))
	for i, e := range list {
		out[i] = e.contact
	}
	return out
}
