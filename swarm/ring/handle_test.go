// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/ring"
	"github.com/seed5728abee/fathom/swarm/ring/ringtest"
	"github.com/seed5728abee/fathom/swarm/simnet"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// liar answers as it is told.
type liar struct {
	*ringtest.Member
	lie func(wire.Message) wire.Message
}

func (l *liar) Handle(ctx context.Context, from member.Contact, m wire.Message) wire.Message {
	if lie := l.lie(m); lie != nil {
		return lie
	}
	return l.Member.Handle(ctx, from, m)
}

func refusal(m wire.Message) wire.RefusalCode {
	r, _ := m.(wire.Refused)
	return r.Code
}

func TestForgedMessagesAreHeldAgainstTheSender(t *testing.T) {
	other := simnet.Contact(77)
	unbound := simnet.Contact(78)
	unbound.Addrs = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}
	leaf := simnet.Contact(79)
	leaf.Leaf = true
	for name, forged := range map[string]struct {
		from    member.Contact
		message wire.Message
	}{
		"notify for another":         {simnet.Contact(80), wire.Notify{From: other}},
		"notify with an unbound ID":  {unbound, wire.Notify{From: unbound}},
		"notify of a leaf":           {leaf, wire.Notify{From: leaf}},
		"attach for another":         {simnet.Contact(80), wire.Attach{From: leaf}},
		"attach of one that is none": {other, wire.Attach{From: other}},
		"farewell for another":       {simnet.Contact(80), wire.Leave{From: other}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 3, func(t *testing.T, s *ringtest.Swarm) {
				m := s.Random()
				for range 3 {
					if a := m.Handle(t.Context(), forged.from, forged.message); a != nil && refusal(a) != wire.Invalid {
						t.Fatalf("answered with %v", a)
					}
				}
				if refusal(m.Handle(t.Context(), forged.from, wire.Ping{})) != 0 {
					t.Error("refused for what may have been a mistake")
				}
				m.Handle(t.Context(), forged.from, forged.message)
				if refusal(m.Handle(t.Context(), forged.from, wire.Ping{})) != wire.Invalid {
					t.Error("not refused")
				}
				if stats := m.Stats(); stats.Strikes != 4 || stats.Banned != 1 || stats.Refused != 1 || stats.Leaves != 0 {
					t.Errorf("counted %+v", stats)
				}
				time.Sleep(3 * time.Minute)
				if refusal(m.Handle(t.Context(), forged.from, wire.Ping{})) != 0 {
					t.Error("refused for ever")
				}
				if err := s.Check(2); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Members that neighbours name are asked themselves: those who do not exist never get into a table.
func TestLyingNeighbours(t *testing.T) {
	bubble(t, 20, func(t *testing.T, s *ringtest.Swarm) {
		l := s.Random()
		var invented []member.Contact
		for i := range 16 {
			invented = append(invented, simnet.Contact(5000+i))
		}
		l.Port.Serve(&liar{l, func(m wire.Message) wire.Message {
			switch m.(type) {
			case wire.State, wire.Notify:
				return wire.Neighbours{Self: l.Port.Contact(), Predecessors: invented[:8], Successors: invented[8:]}
			}
			return nil
		}})
		for range 15 {
			time.Sleep(2 * time.Second)
			if err := s.Check(3); err != nil {
				t.Fatal(err)
			}
			for _, m := range s.Live() {
				for _, c := range m.Table() {
					for _, i := range invented {
						if c.ID == i.ID {
							t.Fatalf("%s believes in %s", m.ID().Short(), c)
						}
					}
				}
			}
		}
	})
}

// A member that names what cannot be is refused, and lookups go by others.
func TestMalformedNeighboursAndAnswers(t *testing.T) {
	bubble(t, 20, func(t *testing.T, s *ringtest.Swarm) {
		l := s.Random()
		leaf, unbound := simnet.Contact(5000), simnet.Contact(5001)
		leaf.Leaf, unbound.ID = true, l.ID().After(3)
		turn := 0
		l.Port.Serve(&liar{l, func(m wire.Message) wire.Message {
			turn++
			switch m := m.(type) {
			case wire.State, wire.Notify:
				return wire.Neighbours{Self: l.Port.Contact(), Successors: []member.Contact{[]member.Contact{leaf, unbound}[turn%2]}}
			case wire.Lookup:
				return []wire.Message{
					wire.Found{Key: m.Key.After(1), Owner: l.Port.Contact()},
					wire.Found{Key: m.Key, Owner: unbound},
					wire.Pong{},
				}[turn%3]
			}
			return nil
		}})
		for range 100 {
			key, m := s.Key(), s.Random()
			if s.Owner(key) == l.ID() || m == l {
				continue
			}
			found, err := m.Lookup(t.Context(), key, ring.LookupOptions{})
			if err != nil || found.Owner.ID != s.Owner(key) && !found.Owner.ID.Between(key, l.ID()) {
				t.Errorf("found %v, %v", found.Owner, err)
			}
		}
		time.Sleep(30 * time.Second)
		banned := 0
		for _, m := range s.Live() {
			if m.Stats().Banned > 0 {
				banned++
			}
		}
		if banned < 2 {
			t.Errorf("%d members refuse it", banned)
		}
	})
}

func TestFloodsAreRefused(t *testing.T) {
	bubble(t, 3, func(t *testing.T, s *ringtest.Swarm) {
		m, from := s.Random(), simnet.Contact(80)
		overloaded := 0
		for range 1000 {
			if refusal(m.Handle(t.Context(), from, wire.State{})) == wire.Overloaded {
				overloaded++
			}
		}
		if overloaded == 0 || refusal(m.Handle(t.Context(), from, wire.State{})) != wire.Invalid {
			t.Errorf("%d refused as too many, and no more in the end", overloaded)
		}
		// Nobody else is affected, nor lookups, which come from many through one.
		for i := range 2000 {
			if a := m.Handle(t.Context(), simnet.Contact(81+i), wire.State{}); refusal(a) != 0 {
				t.Fatalf("another one: %v", a)
			}
			if a := m.Handle(t.Context(), simnet.Contact(81), wire.Step{Key: s.Key(), Count: 1 << 60}); refusal(a) != 0 {
				t.Fatalf("a step: %v", a)
			}
		}
	})
}

func TestRequestsThatConcernOthers(t *testing.T) {
	bubble(t, 3, func(t *testing.T, s *ringtest.Swarm) {
		m, from := s.Random(), simnet.Contact(80)
		if got := refusal(m.Handle(t.Context(), from, wire.Want{})); got != wire.Unsupported {
			t.Errorf("a request for another part: %v", got)
		}
		if got := m.Handle(t.Context(), from, wire.Have{}); got != nil {
			t.Errorf("a cast was answered with %v", got)
		}
		if got := refusal(m.Handle(t.Context(), from, wire.Lookup{Hops: 1000})); got != wire.Invalid {
			t.Errorf("a lookup in circles: %v", got)
		}
		if err := m.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := refusal(m.Handle(t.Context(), from, wire.Ping{})); got != wire.Leaving {
			t.Errorf("after leaving: %v", got)
		}
	})
}
