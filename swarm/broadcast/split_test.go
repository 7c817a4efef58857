// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package broadcast

import (
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// drawID draws places that are spread over the ring, and some that are crowded.
func drawID(t *rapid.T, label string) (id member.ID) {
	spread := rapid.IntRange(1, len(id)).Draw(t, label+" bytes")
	for i := range spread {
		id[len(id)-1-i] = rapid.Byte().Draw(t, label)
	}
	return id
}

// TestSplit holds that whoever is known in a part comes into exactly one of the parts it is split into, and nobody else.
func TestSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		self, limit := drawID(t, "self"), drawID(t, "limit")
		if rapid.Bool().Draw(t, "whole ring") {
			limit = self
		}
		var list []member.Contact
		for range rapid.IntRange(0, 60).Draw(t, "known") {
			c := member.Contact{ID: drawID(t, "member"), Dialect: member.Native}
			c.Leaf = rapid.IntRange(0, 9).Draw(t, "leaf") == 0
			if rapid.IntRange(0, 9).Draw(t, "original") == 0 {
				c.Dialect = member.Original
			}
			list = append(list, c)
		}
		skipped := make(map[member.ID]bool)
		for _, c := range list {
			if rapid.IntRange(0, 4).Draw(t, "skip") == 0 {
				skipped[c.ID] = true
			}
		}
		skip := func(id member.ID) bool { return skipped[id] }
		degree := rapid.IntRange(1, 20).Draw(t, "degree")
		known := make(map[member.ID]bool)
		for _, c := range list {
			if c.Dialect == member.Native && !c.Leaf && c.ID.Between(self, limit) {
				known[c.ID] = true
			}
		}
		parts := newTable(self, list).split(member.ID{}, limit, degree, skip)
		if len(parts) > degree {
			t.Fatalf("%d parts, at most %d", len(parts), degree)
		}
		at := self
		for _, p := range parts {
			switch {
			case !known[p.to.ID]:
				t.Fatalf("%s is not in (%s, %s)", p.to.ID, self, limit)
			case skipped[p.to.ID]:
				t.Fatalf("%s was to be skipped", p.to.ID)
			case p.to.ID != limit && !p.to.ID.Between(at, limit):
				t.Fatalf("parts are not in order: %s after %s", p.to.ID, at)
			}
			at = p.to.ID
		}
		for i, p := range parts {
			want := limit
			if i+1 < len(parts) {
				want = parts[i+1].to.ID
			}
			if p.limit != want {
				t.Fatalf("part %d ends at %s, want %s", i, p.limit, want)
			}
		}
		for id := range known {
			if skipped[id] {
				continue
			}
			in := 0
			for _, p := range parts {
				if id == p.to.ID || id.Between(p.to.ID, p.limit) {
					in++
				}
			}
			if in != 1 {
				t.Fatalf("%s is in %d parts of %v", id, in, parts)
			}
		}
	})
}

// TestSplitIsEven holds that the parts of a member that knows others by fingers are no larger than they have to be.
func TestSplitIsEven(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	var self member.ID
	var list []member.Contact
	for range 1000 {
		c := member.Contact{Dialect: member.Native}
		for i := range c.ID {
			c.ID[i] = byte(random.Uint32())
		}
		list = append(list, c)
	}
	all := newTable(self, list)
	none := func(member.ID) bool { return false }
	for _, degree := range []int{degreeSmall, degreeLarge} {
		parts := all.split(member.ID{}, self, degree, none)
		for _, p := range parts {
			if n := all.index(reach(self, p.limit)) - all.index(self.Distance(p.to.ID)); n > 2*1000/degree {
				t.Errorf("one of %d parts has %d of 1000 members", degree, n)
			}
		}
	}
}

// TestMemory holds that nothing is taken twice, whatever comes in which order at which time, and that the bounds hold.
func TestMemory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const span = 60
		limit := rapid.IntRange(1, 40).Draw(t, "limit")
		m := newMemory(span*time.Second, limit)
		sentAt := make(map[wire.Tag]int64)
		taken := make(map[wire.Tag]bool)
		now := int64(1_000_000)
		for range rapid.IntRange(1, 300).Draw(t, "broadcasts") {
			now += rapid.Int64Range(0, 5).Draw(t, "later")
			tag := wire.Tag{rapid.Byte().Draw(t, "tag")}
			sent, ok := sentAt[tag]
			if !ok {
				sent = now + rapid.Int64Range(-span-5, span+5).Draw(t, "sent")
				sentAt[tag] = sent
			}
			if m.has(tag) {
				if !taken[tag] {
					t.Fatal("remembers what was not taken")
				}
				continue
			}
			ok = m.add(tag, time.Unix(sent, 0), time.Unix(now, 0))
			if ok && taken[tag] {
				t.Fatalf("%s is taken twice", tag)
			}
			if !ok && limit > 30 && !taken[tag] && len(taken) < limit && sent > now-span && sent <= now+span {
				t.Fatalf("%s, sent %d s ago, is refused though there is room", tag, now-sent)
			}
			if ok {
				taken[tag] = true
			}
			count := 0
			for second, tags := range m.seconds {
				if second <= m.horizon {
					t.Fatalf("remembers second %d, horizon %d", second, m.horizon)
				}
				count += len(tags)
			}
			if count != len(m.tags) || count > limit {
				t.Fatalf("%d tags by second, %d in all, at most %d", count, len(m.tags), limit)
			}
		}
	})
}
