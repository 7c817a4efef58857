// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"context"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// Handle answers the requests that concern the ring: Ping, State, Notify, Lookup, Step, Attach, Store, Fetch and Leave.
// Others it refuses as unsupported. See [wire.Handler].
func (n *Node) Handle(ctx context.Context, from member.Contact, request wire.Message) wire.Message {
	n.mu.Lock()
	now := time.Now()
	if n.behaviour.banned(from.ID, now) {
		n.mu.Unlock()
		n.count.refused.Add(1)
		return refuse(request, wire.Invalid, "refused for misbehaviour")
	}
	if n.leaving {
		n.mu.Unlock()
		return refuse(request, wire.Leaving, "")
	}
	n.heardLocked(from.ID)
	leaf := n.self.Leaf
	floods := false
	switch request.(type) {
	case wire.State, wire.Notify, wire.Attach, wire.Store, wire.Leave:
		floods = n.behaviour.floods(from.ID, now)
	}
	n.mu.Unlock()
	if floods {
		n.misbehaved(from.ID)
		return refuse(request, wire.Overloaded, "too many requests")
	}

	switch m := request.(type) {
	case wire.Ping:
		return wire.Pong{}
	case wire.State:
		return n.neighbours()
	case wire.Leave:
		n.handleLeave(from, m)
		return nil
	}
	if leaf {
		return refuse(request, wire.NotOwner, "this member cannot be reached from outside and has no place in the ring")
	}
	switch m := request.(type) {
	case wire.Notify:
		return n.handleNotify(from, m)
	case wire.Lookup:
		return n.handleLookup(ctx, m)
	case wire.Step:
		return n.handleStep(m)
	case wire.Attach:
		return n.handleAttach(from, m)
	case wire.Store:
		return n.handleStore(m)
	case wire.Fetch:
		return n.handleFetch(m)
	}
	return refuse(request, wire.Unsupported, "")
}

// refuse answers a request; what is not answered is not refused either.
func refuse(request wire.Message, code wire.RefusalCode, reason string) wire.Message {
	if k := request.Kind(); k >= wire.KindLeave || k%2 == 1 {
		return nil
	}
	return wire.Refused{Code: code, Reason: reason}
}

// handleNotify takes a member that speaks for itself into the lists, which is what Zave calls rectify: when it may
// stand where another does who has been silent, the other has to show that it is there.
func (n *Node) handleNotify(from member.Contact, m wire.Notify) wire.Message {
	if m.From.ID != from.ID || m.From.Leaf || m.From.Dialect == member.Unknown || m.From.Verify(n.o.Binding) != nil {
		n.misbehaved(from.ID)
		return wire.Refused{Code: wire.Invalid, Reason: "not the sender's own contact, or not a valid one"}
	}
	rtt := n.t.RTT(from.ID)
	n.mu.Lock()
	n.insertLocked(m.From, rtt)
	if before := n.table.before; len(before) > 0 && before[0].contact.ID != from.ID &&
		time.Since(before[0].heard) > n.o.Interval/4 && before[0].contact.Dialect == member.Native {
		n.queueLocked(task{probe, before[0].contact})
	}
	n.mu.Unlock()
	n.kick()
	return n.neighbours()
}

func (n *Node) handleLookup(ctx context.Context, m wire.Lookup) wire.Message {
	if m.Hops > maxHops {
		return wire.Refused{Code: wire.Invalid, Reason: "passed on too often"}
	}
	// Who asked has gone elsewhere by then.
	ctx, cancel := context.WithTimeout(ctx, originalPatience)
	defer cancel()
	found, err := n.pass(ctx, m.Key, m.Hops)
	if err != nil {
		return wire.Refused{Code: wire.Overloaded, Reason: "no way to the owner"}
	}
	n.count.passed.Add(1)
	found.Hops++
	found.Path = append([]member.ID{n.table.self}, found.Path[:min(len(found.Path), wire.MaxPath-1)]...)
	return found
}

func (n *Node) handleStep(m wire.Step) wire.Message {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := wire.Closest{Owner: n.table.owns(m.Key), Leaf: n.leafLocked(m.Key)}
	c.Contacts = contacts(n.table.closest(m.Key, int(min(m.Count, wire.MaxNeighbours))))
	return c
}

// handleLeave takes a member out of the table, and hears of those who stood beside it.
func (n *Node) handleLeave(from member.Contact, m wire.Leave) {
	if m.From.ID != from.ID {
		n.misbehaved(from.ID)
		return
	}
	n.mu.Lock()
	n.dropLocked(from.ID)
	n.memory.forget(from.ID)
	delete(n.leaves, from.ID)
	lost := dropHost(&n.hosts, from.ID)
	n.urgent = n.urgent || lost
	n.mu.Unlock()
	n.reconcile(m.From, wire.Neighbours{Self: m.From, Predecessors: m.Predecessors, Successors: m.Successors})
}
