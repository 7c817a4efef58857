// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring_test

import (
	"crypto/ed25519"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/ring"
	"github.com/seed5728abee/fathom/swarm/ring/ringtest"
	"github.com/seed5728abee/fathom/swarm/simnet"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// bubble runs f with a swarm of some members that has settled, in simulated time.
func bubble(t *testing.T, size int, f func(t *testing.T, s *ringtest.Swarm)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := ringtest.New(1, simnet.Options{Jitter: 0.1}, ring.Options{})
		defer s.Close()
		if err := s.Grow(t.Context(), size, 8); err != nil {
			t.Fatal(err)
		}
		if took, err := s.Settle(8, time.Minute); err != nil {
			t.Fatalf("after %v: %v", took, err)
		}
		f(t, s)
	})
}

func TestEveryMemberFindsTheOwner(t *testing.T) {
	for _, size := range []int{1, 2, 3, 8, 9, 10, 25} {
		bubble(t, size, func(t *testing.T, s *ringtest.Swarm) {
			time.Sleep(10 * time.Second)
			for range 30 {
				key := s.Key()
				for _, disjoint := range []int{0, 1, 3} {
					m := s.Random()
					found, err := m.Lookup(t.Context(), key, ring.LookupOptions{Disjoint: disjoint})
					if err != nil || found.Owner.ID != s.Owner(key) {
						t.Fatalf("of %d, over %d paths: %v, %v, not %v", size, disjoint, found.Owner, err, s.Owner(key))
					}
				}
			}
		})
	}
}

// In a swarm that is bound by keys, members with keys make a ring and those without are kept out.
func TestBoundByKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ringtest.New(1, simnet.Options{}, ring.Options{Binding: member.ByKey})
		defer s.Close()
		for range 6 {
			m := s.StartAs(func(c *member.Contact) {
				key, _, err := ed25519.GenerateKey(nil)
				if err != nil {
					t.Fatal(err)
				}
				c.Key, c.ID = key, member.OfKey(key)
			})
			if err := s.Join(t.Context(), m); err != nil {
				t.Fatal(err)
			}
		}
		settles(t, s, 5, 5*time.Second)
		without := s.Start()
		_ = without.Join(t.Context(), s.Random().Port.Contact()) // it may believe in its place; the others do not
		time.Sleep(5 * time.Second)
		if err := s.Check(5); err != nil {
			t.Error(err)
		}
	})
}

// An address is enough to join, where the transport finds out who is there.
func TestJoinByAddress(t *testing.T) {
	bubble(t, 5, func(t *testing.T, s *ringtest.Swarm) {
		m := s.Start()
		if err := m.Join(t.Context(), member.Contact{Addrs: s.Random().Port.Contact().Addrs}); err != nil {
			t.Fatal(err)
		}
		s.Count(m)
		settles(t, s, 5, 5*time.Second)
	})
}

func TestJoinTellsWhyNot(t *testing.T) {
	bubble(t, 1, func(t *testing.T, s *ringtest.Swarm) {
		m := s.Start()
		for name, entries := range map[string][]member.Contact{
			"nobody is known": nil, "nobody is there": {simnet.Contact(999)}, "itself": {m.Port.Contact()},
		} {
			if err := m.Join(t.Context(), entries...); !errors.Is(err, ring.ErrNoEntry) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestLearnAndSuspect(t *testing.T) {
	bubble(t, 1, func(t *testing.T, s *ringtest.Swarm) {
		m, other := s.Random(), s.Start()
		leaf, undecided, unbound := simnet.Contact(50), simnet.Contact(51), simnet.Contact(52)
		leaf.Leaf, undecided.Dialect, unbound.ID = true, member.Unknown, member.HashOf("elsewhere")
		for _, c := range []member.Contact{leaf, undecided, unbound, m.Port.Contact()} {
			m.Learn(c)
		}
		if table := m.Table(); len(table) > 0 {
			t.Errorf("learned %v", table)
		}
		m.Learn(other.Port.Contact())
		if table := m.Table(); len(table) != 1 || table[0].ID != other.ID() {
			t.Errorf("learned %v", table)
		}
		m.Suspect(other.ID())
		time.Sleep(time.Second)
		if snapshot := m.Snapshot(); len(snapshot.Successors) != 1 || len(snapshot.Predecessors) != 1 {
			t.Errorf("a live member was dropped: %+v", snapshot)
		}
		s.Kill(other)
		m.Suspect(other.ID())
		time.Sleep(time.Second)
		if table := m.Table(); len(table) > 0 || m.Stats().Died != 1 {
			t.Errorf("the dead is kept: %v", table)
		}
	})
}

// Tables stay in ring order, without the node itself, whatever happens.
func TestTableIsInRingOrder(t *testing.T) {
	bubble(t, 40, func(t *testing.T, s *ringtest.Swarm) {
		s.Kill(s.Pick(0.2)...)
		time.Sleep(5 * time.Second)
		for _, m := range s.Live() {
			table := m.Table()
			if slices.ContainsFunc(table, func(c member.Contact) bool { return c.ID == m.ID() || !s.Net.Alive(c.ID) }) {
				t.Errorf("%s has itself or the dead in %v", m.ID().Short(), table)
			}
			if !slices.IsSortedFunc(table, func(a, b member.Contact) int { return m.ID().Distance(a.ID).Compare(m.ID().Distance(b.ID)) }) {
				t.Errorf("%s has %v", m.ID().Short(), table)
			}
			a, ok := m.Handle(t.Context(), simnet.Contact(99), wire.State{}).(wire.Neighbours)
			if snapshot := m.Snapshot(); !ok || !slices.EqualFunc(a.Successors, snapshot.Successors, member.Contact.Equal) ||
				!slices.EqualFunc(a.Predecessors, snapshot.Predecessors, member.Contact.Equal) {
				t.Errorf("%s answers %v", m.ID().Short(), a)
			}
		}
	})
}
