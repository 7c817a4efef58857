// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/simnet"
)

// smallID makes IDs that are often close to each other, or the same.
func smallID(v uint16) (id member.ID) {
	id[0], id[31] = byte(v>>8), byte(v)
	return id
}

// TestTableAgainstModel holds that, after any insertions and removals, the lists are the nearest of all that the table
// knows, the next member on the way to a key is nearer than self and the nearest that may be taken, and fingers stand
// where they belong.
func TestTableAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		self := smallID(rapid.Uint16().Draw(t, "self"))
		length := rapid.IntRange(1, 4).Draw(t, "length")
		tab := table{self: self, length: length}
		known := map[member.ID]bool{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			id := smallID(rapid.Uint16().Draw(t, "id"))
			if rapid.IntRange(0, 3).Draw(t, "what") == 0 && len(known) > 0 {
				id = tab.all()[0].contact.ID
				tab.remove(id)
				delete(known, id)
				if tab.find(id) != nil {
					t.Fatalf("%s is still there", id.Short())
				}
			} else {
				fits := tab.fits(id)
				neighbour := tab.insert(member.Contact{ID: id, Dialect: member.Native}, 0, time.Time{})
				if fits != neighbour {
					t.Fatalf("%s fits: %v, became a neighbour: %v", id.Short(), fits, neighbour)
				}
			}
			known = map[member.ID]bool{}
			for _, e := range tab.all() {
				known[e.contact.ID] = true
			}
			checkTable(t, &tab, known)
			checkNext(t, &tab, smallID(rapid.Uint16().Draw(t, "key")))
		}
	})
}

func checkTable(t *rapid.T, tab *table, known map[member.ID]bool) {
	if known[tab.self] {
		t.Fatal("the table holds self")
	}
	for name, side := range map[string]struct {
		list     []*entry
		distance func(member.ID) member.ID
	}{"after": {tab.after, tab.ahead}, "before": {tab.before, tab.back}} {
		var want []member.ID
		for id := range known {
			want = append(want, id)
		}
		slices.SortFunc(want, func(a, b member.ID) int { return side.distance(a).Compare(side.distance(b)) })
		want = want[:min(len(want), tab.length)]
		if !slices.EqualFunc(side.list, want, func(e *entry, id member.ID) bool { return e.contact.ID == id }) {
			t.Fatalf("%s: %v, want %v", name, contacts(side.list), want)
		}
	}
	for _, fingers := range []struct {
		list     []finger
		distance func(member.ID) member.ID
	}{{tab.forward, tab.ahead}, {tab.backward, tab.back}} {
		for i, f := range fingers.list {
			if fingers.distance(f.entry.contact.ID).Log2() != f.level || i > 0 && fingers.list[i-1].level >= f.level {
				t.Fatalf("fingers %v", fingers.list)
			}
		}
	}
}

func checkNext(t *rapid.T, tab *table, key member.ID) {
	var want member.ID
	limit, found := key.Distance(tab.self), false
	for _, e := range tab.all() {
		if d := key.Distance(e.contact.ID); d.Compare(limit) < 0 {
			want, limit, found = e.contact.ID, d, true
		}
	}
	next := tab.next(key, false, nil)
	if (next != nil) != found || found && next.contact.ID != want || tab.owns(key) == found {
		t.Fatalf("to %s: %v, want %s", key.Short(), next, want.Short())
	}
	if !found {
		return
	}
	if tab.certain(key, next) && !key.In(tab.self, want) && !slices.ContainsFunc(tab.all(), func(e *entry) bool {
		return key.In(e.contact.ID, want)
	}) {
		t.Fatalf("certain of %s without reason", want.Short())
	}
	next.suspect = true
	if other := tab.next(key, false, nil); other == nil || other == next && slices.ContainsFunc(tab.all(), func(e *entry) bool {
		return !e.suspect && key.Distance(e.contact.ID).Compare(key.Distance(tab.self)) < 0
	}) {
		t.Fatalf("a suspected member is preferred to others: %v", other)
	}
	next.suspect = false
	skipped := tab.next(key, false, func(id member.ID) bool { return id == want })
	if skipped == next {
		t.Fatal("a member to be skipped was taken")
	}
}

func BenchmarkNext(b *testing.B) {
	tab := table{self: simnet.Contact(0).ID, length: 8}
	for i := range 10000 {
		tab.insert(simnet.Contact(1+i), 0, time.Time{})
	}
	key := member.HashOf("key")
	b.ReportAllocs()
	for b.Loop() {
		tab.next(key, false, nil)
	}
}

func TestNextDoesNotAllocate(t *testing.T) {
	tab := table{self: simnet.Contact(0).ID, length: 8}
	for i := range 1000 {
		tab.insert(simnet.Contact(1+i), 0, time.Time{})
	}
	key := member.HashOf("key")
	if n := testing.AllocsPerRun(100, func() { tab.next(key, false, nil) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestFingersByProximity holds that of members equally well placed the quicker one is the finger.
func TestFingersByProximity(t *testing.T) {
	var self member.ID
	tab := table{self: self, length: 1}
	at := func(level int, more uint8) (id member.ID) {
		id = self.After(level)
		id[31] = more
		return id
	}
	const level = 200
	insert := func(more uint8, rtt time.Duration) {
		tab.insert(member.Contact{ID: at(level, more), Dialect: member.Native}, rtt, time.Time{})
	}
	tab.insert(member.Contact{ID: self.After(0), Dialect: member.Native}, 0, time.Time{})
	tab.insert(member.Contact{ID: self.Before(0), Dialect: member.Native}, 0, time.Time{})
	for _, step := range []struct {
		more uint8
		rtt  time.Duration
		want uint8
	}{
		{5, 100 * time.Millisecond, 5},
		{6, 90 * time.Millisecond, 5}, // hardly quicker
		{7, 50 * time.Millisecond, 7},
		{4, 80 * time.Millisecond, 7}, // nearer to the place, but slower
		{3, 0, 3},                     // not known how quick: the nearer one
	} {
		insert(step.more, step.rtt)
		if len(tab.forward) == 0 || tab.forward[len(tab.forward)-1].entry.contact.ID != at(level, step.want) {
			t.Fatalf("after %d: %v", step.more, tab.forward)
		}
	}
	far := self.After(level)
	far[7] |= 0x80 // half way to the next place: not an equal, however quick
	tab.insert(member.Contact{ID: far, Dialect: member.Native}, time.Millisecond, time.Time{})
	if tab.forward[len(tab.forward)-1].entry.contact.ID != at(level, 3) {
		t.Errorf("a quick member far from the place was taken: %v", tab.forward)
	}
}
