// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ringtest

import (
	"context"
	"slices"
	"sync"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// A Gang is hostile members that keep their places in the ring like anyone, and work together to mislead lookups.
type Gang struct {
	mu      sync.Mutex
	members []member.Contact
}

// Join makes a member one of the gang: give the handler that it returns to Port.Serve. Of three of its members one
// ignores what it is asked on the way to a key, one claims every key, and one leads to the gang's member nearest to
// the key, which claims it; they name only each other.
func (g *Gang) Join(m *Member) wire.Handler {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.members = append(g.members, m.Port.Contact())
	return &hostile{member: m, gang: g, manner: len(g.members) % 3}
}

// Has reports whether a member is one of the gang.
func (g *Gang) Has(id member.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.ContainsFunc(g.members, func(c member.Contact) bool { return c.ID == id })
}

// nearest returns the gang's members nearest to a key.
func (g *Gang) nearest(key member.ID, count int) []member.Contact {
	g.mu.Lock()
	defer g.mu.Unlock()
	list := slices.Clone(g.members)
	slices.SortFunc(list, func(a, b member.Contact) int { return key.Distance(a.ID).Compare(key.Distance(b.ID)) })
	return list[:min(len(list), count)]
}

type hostile struct {
	member *Member
	gang   *Gang
	manner int
}

// Handle implements [wire.Handler].
func (h *hostile) Handle(ctx context.Context, from member.Contact, request wire.Message) wire.Message {
	switch m := request.(type) {
	case wire.Lookup:
		owner := h.member.Port.Contact()
		if h.manner == 2 {
			owner = h.gang.nearest(m.Key, 1)[0]
		}
		if h.manner > 0 {
			return wire.Found{Key: m.Key, Owner: owner, Hops: 1, Path: []member.ID{owner.ID}}
		}
	case wire.Step:
		named := h.gang.nearest(m.Key, int(min(m.Count, wire.MaxNeighbours)))
		if h.manner > 0 {
			return wire.Closest{Owner: h.manner == 1 || named[0].ID == h.member.ID(), Contacts: named}
		}
	default:
		return h.member.Handle(ctx, from, request)
	}
	return nil
}
