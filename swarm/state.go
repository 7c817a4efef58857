// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/seed5728abee/fathom/nat"
	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/ring"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// lookupPlain is a lookup along standing links.
var lookupPlain ring.LookupOptions

// counters of a peer.
type counters struct {
	sent, received, broadcasts atomic.Uint64 // messages of the application
	dropped                    atomic.Uint64 // messages for which the queue had no room
	untrusted                  atomic.Uint64 // messages that Options.Trust refused
	malformed, refused         atomic.Uint64 // messages, and connections, of strangers and members
	conflicts                  atomic.Uint64
	circuits                   atomic.Int64 // carried at the moment
	circuitsCarried            atomic.Uint64
	punched, punchFailures     atomic.Uint64
}

// Counters are what a peer has counted since Bind.
type Counters struct {
	Sent            uint64 `json:"sent"`             // messages, copies for disjoint ways included
	Received        uint64 `json:"received"`         // messages and broadcasts handed to the application
	Broadcasts      uint64 `json:"broadcasts"`       // begun here
	Dropped         uint64 `json:"dropped"`          // arrived when the queue was full
	Untrusted       uint64 `json:"untrusted"`        // refused: not sealed, or under a wrong key
	Malformed       uint64 `json:"malformed"`        // messages that could not be read
	Refused         uint64 `json:"refused"`          // connections and circuits that proved nothing
	Conflicts       uint64 `json:"conflicts"`        // copies or claims that disagreed
	Circuits        uint64 `json:"circuits"`         // being carried for others
	CircuitsCarried uint64 `json:"circuits_carried"` // so far
	Punched         uint64 `json:"punched"`          // holes through NATs
	PunchFailures   uint64 `json:"punch_failures"`
}

// A State is what a peer knows about itself and its part of the ring.
type State struct {
	Self      Member
	Connected bool // to others: the first peer of a swarm is as soon as somebody joins
	// Predecessors and Successors are the neighbours on the ring, nearest first; Hosts those of a leaf.
	Predecessors, Successors, Hosts []Member
	// Forward and Backward are the fingers: the owners of the places 2^i after and before this peer's.
	Forward, Backward []Member
	// Leaves are attached here.
	Leaves []Member
	// Peers are those that there is a link to.
	Peers []PeerState
	// Mapping is the router's port mapping, nil if there is none.
	Mapping *nat.State
	Pending int // messages that wait for Recv
	Counters
}

// A PeerState tells about the link to one member.
type PeerState struct {
	Member
	How      How
	Via      Hash // the host that carries a circuit
	RTT      time.Duration
	Since    time.Time
	Inbound  bool
	Sent     uint64 // bytes
	Received uint64
}

// State returns what the peer knows at this moment.
func (p *Peer) State() State {
	if p.ready() != nil {
		return State{}
	}
	snap := p.node().Snapshot()
	s := State{
		Self: p.Self(), Connected: p.isConnected() || !p.alone(),
		Predecessors: membersOf(snap.Predecessors), Successors: membersOf(snap.Successors), Hosts: membersOf(snap.Self.Hosts),
		Forward: fingersOf(snap.FingersAhead), Backward: fingersOf(snap.FingersBack), Leaves: membersOf(snap.Leaves),
		Mapping: p.mapper.state(), Pending: p.Pending(), Counters: p.Counters(),
	}
	for _, l := range p.links.all() {
		stats := l.Stats()
		s.Peers = append(s.Peers, PeerState{
			Member: memberOf(l.contact), How: l.how, Via: l.via, RTT: l.RTT(), Since: l.since, Inbound: !l.outbound,
			Sent: stats.BytesSent, Received: stats.BytesReceived,
		})
	}
	if p.gateway != nil {
		for _, c := range p.gateway.Linked() {
			s.Peers = append(s.Peers, PeerState{Member: memberOf(c), How: ToOriginal})
		}
	}
	slices.SortFunc(s.Peers, func(a, b PeerState) int {
		return s.Self.ID.Distance(a.ID).Compare(s.Self.ID.Distance(b.ID))
	})
	return s
}

// Counters returns what the peer has counted.
func (p *Peer) Counters() Counters {
	c := &p.counters
	return Counters{
		Sent: c.sent.Load(), Received: c.received.Load(), Broadcasts: c.broadcasts.Load(), Dropped: c.dropped.Load(),
		Untrusted: c.untrusted.Load(), Malformed: c.malformed.Load(), Refused: c.refused.Load(), Conflicts: c.conflicts.Load(),
		Circuits: uint64(max(c.circuits.Load(), 0)), CircuitsCarried: c.circuitsCarried.Load(),
		Punched: c.punched.Load(), PunchFailures: c.punchFailures.Load(),
	}
}

func membersOf(list []member.Contact) []Member {
	var members []Member
	for _, c := range list {
		members = append(members, memberOf(c))
	}
	return members
}

func fingersOf(list []ring.Finger) []Member {
	var members []Member
	for _, f := range list {
		members = append(members, memberOf(f.Contact))
	}
	return members
}

// A Neighbourhood is what one member says about its part of the ring.
type Neighbourhood struct {
	Self                     Member
	Predecessors, Successors []Member
	RTT                      time.Duration // to it; 0 for this peer
}

// maxWalk ends a walk around a ring that has no end, because somebody lies.
const maxWalk = 1 << 20

// Walk visits all members of the ring, clockwise from this peer on (from its first host, for a leaf), asking each for
// its neighbours, until visit returns false or the walk is round. A member that does not answer is passed over, and visited
// with no neighbours.
func (p *Peer) Walk(ctx context.Context, visit func(Neighbourhood) bool) error {
	if err := p.ready(); err != nil {
		return fmt.Errorf("walk: %w", err)
	}
	snap := p.node().Snapshot()
	self := p.contact()
	list := snap.Successors
	if self.Leaf {
		list = snap.Self.Hosts
	} else if !visit(Neighbourhood{Self: p.Self(), Predecessors: membersOf(snap.Predecessors), Successors: membersOf(list)}) {
		return nil
	}
	if len(list) == 0 {
		return nil
	}
	start := self.ID
	if self.Leaf {
		start = list[0].ID
	}
	next, passed := list[0], self.ID
	for steps := range maxWalk {
		if steps > 0 && next.ID == start || next.ID == self.ID {
			return nil
		}
		n := Neighbourhood{Self: memberOf(next)}
		began := time.Now()
		answer, err := p.links.Call(ctx, next, wire.State{})
		neighbours, ok := answer.(wire.Neighbours)
		if ctx.Err() != nil {
			return fmt.Errorf("walk: %w", context.Cause(ctx))
		}
		if err == nil && ok && neighbours.Self.ID == next.ID { // each speaks for itself
			n = Neighbourhood{
				Self: memberOf(neighbours.Self), RTT: time.Since(began),
				Predecessors: membersOf(neighbours.Predecessors), Successors: membersOf(neighbours.Successors),
			}
			list = neighbours.Successors
		}
		if !visit(n) {
			return nil
		}
		passed = next.ID
		// The first successor that lies farther on; those of the member before serve when it does not answer.
		i := slices.IndexFunc(list, func(c member.Contact) bool { return c.ID != passed && c.ID.Between(passed, start) })
		if i < 0 {
			return nil
		}
		next = list[i]
	}
	return nil
}

// at returns a live link to the member that is known by an address, nil if there is none. What members say about
// their addresses does not count, but for the one that their IDs are bound to: only where they were dialled.
func (l *links) at(addr netip.AddrPort) *session {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.members {
		for _, s := range m.sessions {
			dialled := s.outbound && s.how == Direct && addrPort(s.RemoteAddr()) == addr
			if dialled || l.peer.o.Binding == member.ByAddress && s.contact.Addr() == addr {
				return m.sessions[0]
			}
		}
	}
	return nil
}

// known returns what is known about a member: bare but for the ID when nothing is.
func (l *links) known(id Hash) member.Contact {
	if id == l.peer.ID() {
		return l.peer.contact()
	}
	l.mu.Lock()
	m := l.members[id]
	if m != nil && m.contact.ID == id {
		defer l.mu.Unlock()
		return m.contact
	}
	l.mu.Unlock()
	return l.tabled(id)
}

// tabled returns the contact of a member in the ring's table: bare but for the ID when it is not there.
func (l *links) tabled(id Hash) member.Contact {
	table := l.peer.node().Table()
	if i := slices.IndexFunc(table, func(c member.Contact) bool { return c.ID == id }); i >= 0 {
		return table[i]
	}
	return member.Contact{ID: id}
}
