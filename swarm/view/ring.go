// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package view

import (
	"cmp"
	"math"
	"slices"

	"github.com/seed5728abee/fathom/swarm/member"
)

// A Ring is what to draw.
type Ring struct {
	// Title stands above the picture. Optional.
	Title string
	// Members may come in any order, each ID once.
	Members []Member
	// Dots are messages on their way.
	Dots []Dot
	// Selected is the member whose links are drawn thick, and all of them. Cursor is marked in another way: where the
	// next choice would be. Nil: none.
	Selected, Cursor *member.ID
}

// A Member is one member of the ring, or beside it.
type Member struct {
	ID    member.ID
	Label string // what to call it, usually its address
	State State

	// Successors and Predecessors are its neighbours as it names them, nearest first; Table are other members that it
	// knows. IDs that are not among the members are not drawn.
	Successors, Predecessors, Table []member.ID

	// Original marks one of Cicada's peers, Local one that runs here.
	Original, Local bool
	// Note is told about it where there is room for that: when the pointer rests on it.
	Note string
}

// A State is how a member is doing.
type State uint8

// The states of members.
const (
	Alone  State = iota // in no ring
	InRing              // in a ring
	Silent              // named by others, and does not answer
)

// A Dot is a message on its way from one member to another.
type Dot struct {
	From, To member.ID
	// At is how far it is, from 0 to 1.
	At float64
	// Label is a letter or two.
	Label string
}

// A Colour is one of those of the picture.
type Colour uint8

// The colours of pictures.
const (
	Plain Colour = iota // that of text
	Faint
	Yellow
	Green
	Blue
	Red
	Magenta
	Ochre
)

// colour returns the colour of a member.
func (r *Ring) colour(m *Member) Colour {
	switch {
	case r.Selected != nil && *r.Selected == m.ID:
		return Blue
	case m.State == InRing:
		return Green
	case m.State == Silent:
		return Faint
	}
	return Yellow
}

// A link is a line between two members.
type link struct {
	from, to int // in the sorted list
	kind     linkKind
	thick    bool
	colour   Colour
}

type linkKind uint8

// Kinds of links, from the least to the most important.
const (
	linkTable linkKind = iota
	linkPredecessor
	linkSuccessor
	linkBoth
)

// sorted returns the members in the order of their IDs.
func (r *Ring) sorted() []*Member {
	members := make([]*Member, len(r.Members))
	for i := range r.Members {
		members[i] = &r.Members[i]
	}
	slices.SortFunc(members, func(a, b *Member) int { return a.ID.Compare(b.ID) })
	return members
}

// tableMembers is up to how many members all links are drawn: above, only the selected member's, for the rest would be a ball
// of wool.
const tableMembers = 8

// links returns the lines to draw, the most important last.
func (r *Ring) links(members []*Member) []link {
	place := make(map[member.ID]int, len(members))
	for i, m := range members {
		place[m.ID] = i
	}
	var links []link
	for i, m := range members {
		thick := r.Selected != nil && *r.Selected == m.ID
		drawn := map[int]bool{i: true}
		add := func(id member.ID, kind linkKind, colour Colour) {
			if to, ok := place[id]; ok && !drawn[to] {
				drawn[to] = true
				links = append(links, link{i, to, kind, thick, colour})
			}
		}
		successor, predecessor := first(m.Successors, m.ID), first(m.Predecessors, m.ID)
		switch {
		case successor != nil && predecessor != nil && *successor == *predecessor:
			add(*successor, linkBoth, Magenta)
		default:
			if successor != nil {
				add(*successor, linkSuccessor, r.colour(m))
			}
			if predecessor != nil {
				add(*predecessor, linkPredecessor, Red)
			}
		}
		if !thick && len(members) > tableMembers {
			continue
		}
		for _, list := range [...][]member.ID{m.Successors, m.Predecessors, m.Table} {
			for _, id := range list {
				add(id, linkTable, Ochre)
			}
		}
	}
	slices.SortStableFunc(links, func(a, b link) int {
		if a.thick != b.thick {
			if a.thick {
				return 1
			}
			return -1
		}
		return cmp.Compare(a.kind, b.kind)
	})
	return links
}

// first returns the nearest neighbour that is not the member itself.
func first(list []member.ID, self member.ID) *member.ID {
	for i := range list {
		if list[i] != self {
			return &list[i]
		}
	}
	return nil
}

// angle returns where the i-th of n members stands: 0 is the top, and it grows clockwise.
func angle(i, n int) float64 { return 2 * math.Pi * float64(i) / float64(max(n, 1)) }
