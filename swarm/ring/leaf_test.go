// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring_test

import (
	"errors"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/ring"
	"github.com/seed5728abee/fathom/swarm/ring/ringtest"
	"github.com/seed5728abee/fathom/swarm/simnet"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// addLeaf starts a leaf and attaches it.
func addLeaf(t *testing.T, s *ringtest.Swarm) *ringtest.Member {
	t.Helper()
	l := s.StartAs(func(c *member.Contact) { c.Leaf = true })
	if err := l.Join(t.Context(), s.Random().Port.Contact()); err != nil {
		t.Fatal(err)
	}
	return l
}

// reach looks a leaf up from a random member, and pings it through its hosts.
func reach(t *testing.T, s *ringtest.Swarm, l *ringtest.Member, o ring.LookupOptions) error {
	t.Helper()
	m := s.Random()
	found, err := m.Lookup(t.Context(), l.ID(), o)
	if err != nil {
		return err
	}
	if len(found.Leaf) == 0 {
		return errors.New("the owner does not know the leaf")
	}
	_, err = m.Port.Call(t.Context(), found.Leaf[0], wire.Ping{})
	return err
}

func TestLeavesAreFoundThroughTheirHosts(t *testing.T) {
	bubble(t, 20, func(t *testing.T, s *ringtest.Swarm) {
		l := addLeaf(t, s)
		hosts := l.Self().Hosts
		if len(hosts) != member.MaxHosts || hosts[0].ID != s.Owner(l.ID()) {
			t.Fatalf("hosts %v", hosts)
		}
		for _, disjoint := range []int{0, 2} {
			if err := reach(t, s, l, ring.LookupOptions{Disjoint: disjoint}); err != nil {
				t.Error(err)
			}
		}
		for _, m := range s.Live() {
			for _, c := range m.Table() {
				if c.ID == l.ID() {
					t.Errorf("%s has the leaf in its table", m.ID().Short())
				}
			}
		}
		// A leaf looks up as others do.
		key := s.Key()
		for _, disjoint := range []int{0, 2} {
			if found, err := l.Lookup(t.Context(), key, ring.LookupOptions{Disjoint: disjoint}); err != nil || found.Owner.ID != s.Owner(key) {
				t.Errorf("over %d paths the leaf found %v, %v", disjoint, found.Owner, err)
			}
		}
		// The first host dies: the second has become the owner of its place, and knows it.
		for _, m := range s.Live() {
			if m.ID() == hosts[0].ID {
				s.Kill(m)
			}
		}
		time.Sleep(3 * time.Second)
		if err := reach(t, s, l, ring.LookupOptions{}); err != nil {
			t.Error(err)
		}
		// It renews, with new hosts.
		time.Sleep(wire.AttachLife)
		if hosts = l.Self().Hosts; len(hosts) != member.MaxHosts || hosts[0].ID != s.Owner(l.ID()) {
			t.Errorf("hosts %v", hosts)
		}
		// A leaf that is silent is forgotten.
		s.Kill(l)
		time.Sleep(wire.AttachLife + 2*time.Second)
		for _, m := range s.Live() {
			if len(m.Leaves()) > 0 {
				t.Errorf("%s keeps %v", m.ID().Short(), m.Leaves())
			}
		}
	})
}

// The owner of a leaf's place may have joined a moment ago, and not know it yet: those who did before it are asked.
func TestLeafIsFoundBesideANewOwner(t *testing.T) {
	bubble(t, 8, func(t *testing.T, s *ringtest.Swarm) {
		l := addLeaf(t, s)
		before := s.Owner(l.ID())
		for range 100 {
			if s.Owner(l.ID()) != before {
				break
			}
			if _, err := s.Add(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for _, m := range s.Live() {
			if m.ID() == s.Owner(l.ID()) && (m.ID() == before || len(m.Leaves()) > 0) {
				t.Fatal("there is no new owner without the leaf")
			}
		}
		if _, err := s.Random().FindLeaf(t.Context(), s.Key()); !errors.Is(err, ring.ErrNotFound) {
			t.Errorf("nobody is found: %v", err)
		}
		for _, m := range s.Live() {
			if c, err := m.FindLeaf(t.Context(), l.ID()); err != nil || c.ID != l.ID() || !c.Leaf || len(c.Hosts) == 0 {
				t.Errorf("from %s: %v, %v", m.ID().Short(), c, err)
			}
		}
	})
}

func TestLeafLeaves(t *testing.T) {
	bubble(t, 5, func(t *testing.T, s *ringtest.Swarm) {
		l := addLeaf(t, s)
		if err := l.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		for _, m := range s.Live() {
			if len(m.Leaves()) > 0 {
				t.Errorf("%s keeps it", m.ID().Short())
			}
		}
	})
}

// A member that turns out not to be reachable becomes a leaf, and the other way round.
func TestMemberBecomesLeafAndBack(t *testing.T) {
	bubble(t, 12, func(t *testing.T, s *ringtest.Swarm) {
		m := s.Start()
		if err := m.Join(t.Context(), s.Random().Port.Contact()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		c := m.Self()
		c.Leaf = true
		if err := m.SetSelf(c); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if err := s.Check(5); err != nil {
			t.Errorf("without it: %v", err)
		}
		if err := reach(t, s, m, ring.LookupOptions{}); err != nil {
			t.Errorf("as a leaf: %v", err)
		}
		c.Leaf = false
		if err := m.SetSelf(c); err != nil {
			t.Fatal(err)
		}
		s.Count(m)
		settles(t, s, 8, 10*time.Second)
		if err := m.SetSelf(simnet.Contact(1000)); !errors.Is(err, ring.ErrSelf) {
			t.Errorf("another ID was taken: %v", err)
		}
	})
}

func TestHostsAreBounded(t *testing.T) {
	bubble(t, 1, func(t *testing.T, s *ringtest.Swarm) {
		host := s.Random()
		attach := func(i int) wire.Message {
			c := simnet.Contact(1000 + i)
			c.Leaf = true
			return host.Handle(t.Context(), c, wire.Attach{From: c})
		}
		for i := range 1024 {
			if a, ok := attach(i).(wire.Attached); !ok || len(a.Hosts) != 1 {
				t.Fatalf("leaf %d: %v", i, a)
			}
		}
		if r, ok := attach(1024).(wire.Refused); !ok || r.Code != wire.Overloaded {
			t.Errorf("one more: %v", r)
		}
		time.Sleep(wire.AttachLife + time.Second)
		if _, ok := attach(1024).(wire.Attached); !ok || len(host.Leaves()) != 1 {
			t.Errorf("after the others have gone: %d leaves", len(host.Leaves()))
		}
	})
}
