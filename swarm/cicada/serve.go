// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicada

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// Limits of what is done for an original's request.
const (
	// joinLife is how long an answer to a request to join is worth something: the original gives up after 10 s.
	joinLife = 7 * time.Second
	// searchLife bounds the answer to a lookup, for which an original would wait for ever.
	searchLife = 9 * time.Second
	// sameKey is how many lookups of one key may be passed on at a time. They can come back to us: an original that
	// knows nobody nearer sends them on all the same.
	sameKey = 3
)

// serve does what a request asks for. What takes time is returned, to be done beside. The error ends the connection.
func (g *Gateway) serve(ctx context.Context, c *conn, m Message, in *incoming) (work func(), err error) {
	switch m.Type {
	case Info:
		c.respond(in, AppendNode(nil, g.neighbours(ctx, c, m.Sender)), nil)
		return nil, nil
	case Notify:
		n, err := DecodeNode(m.Data)
		if err != nil {
			return nil, err
		}
		return func() { g.notified(ctx, c, m, n, in) }, nil
	case Join:
		addr, err := DecodeJoin(m.Data)
		if err != nil {
			return nil, err
		}
		return func() { g.joining(ctx, c, Ref{ID: m.Sender, Addr: addr}, in) }, nil
	case Lookup:
		search, err := DecodeSearch(m.Data)
		if err != nil {
			return nil, err
		}
		var body Body
		if len(search.Body) > 0 {
			if body, err = DecodeBody(search.Body); err != nil {
				return nil, err
			}
		}
		return func() { g.searched(ctx, c, m.Sender, search, body, in) }, nil
	default:
		return nil, fmt.Errorf("%w: %s", ErrMessage, m.Type)
	}
}

// from is who sent a message over c, as well as is known.
func (g *Gateway) from(c *conn, id member.ID) member.Contact {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p := c.peer; p != nil && p.id == id {
		return p.contact()
	}
	return member.Contact{ID: id, Dialect: member.Original}
}

// ring asks our own member for its place.
func (g *Gateway) ring(ctx context.Context, from member.Contact) wire.Neighbours {
	n, _ := g.o.Ring.Handle(ctx, from, wire.State{}).(wire.Neighbours)
	return n
}

// neighbours is what an original that asks is told of our place. It dials the predecessor if it takes us for its
// successor, and does not expect to fail: so whom we name is connected to us, or it is the original itself.
func (g *Gateway) neighbours(ctx context.Context, c *conn, asker member.ID) Node {
	from := g.from(c, asker)
	state := g.ring(ctx, from)
	self := g.ref()
	other := refOf(from)
	if !usable(other) {
		other = self // between it and us, there is nobody
	}
	n := Node{Self: self, Predecessor: other, Successor: other}
	for _, s := range state.Successors {
		if r := refOf(s); g.mayName(r, s, self) {
			n.Successor = r
			break
		}
	}
	for _, p := range state.Predecessors {
		if r := refOf(p); p.ID == asker || g.mayName(r, p, self) {
			if p.ID != asker {
				n.Predecessor = r
			}
			break
		}
	}
	if g.follows(c, asker) {
		// It may have lost sight of those that follow it: lead it straight to the nearest.
		if next, ok := g.next(asker, self, state); ok {
			n.Predecessor = next
		}
	}
	return n
}

func (g *Gateway) mayName(r Ref, c member.Contact, self Ref) bool {
	return r.ID != self.ID && !c.Leaf && usable(r) && g.live(r.ID)
}

// follows reports whether an original takes us for its successor.
func (g *Gateway) follows(c *conn, id member.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := c.peer
	if p == nil || p.id != id || len(p.conns) == 0 {
		return false
	}
	now := time.Now()
	return now.Sub(p.follows) <= followsFor || now.Sub(p.toldAt) <= followsFor && p.told.Successor.ID == g.selfID()
}

func (g *Gateway) selfID() member.ID { return g.o.Self().ID }

// next returns the first live member after an original, if there is one before us.
func (g *Gateway) next(id member.ID, self Ref, state wire.Neighbours) (best Ref, ok bool) {
	for _, c := range g.known(state) {
		r := refOf(c)
		if !r.ID.Between(id, self.ID) || ok && !r.ID.Between(id, best.ID) || !g.mayName(r, c, self) {
			continue
		}
		best, ok = r, true
	}
	return best, ok
}

// known returns the members that we know of, in no order; some of them twice.
func (g *Gateway) known(state wire.Neighbours) []member.Contact {
	list := append(append(g.Linked(), state.Predecessors...), state.Successors...)
	return append(list, g.o.Table()...)
}

// notified handles a notification: the sender takes us for its successor.
func (g *Gateway) notified(ctx context.Context, c *conn, m Message, n Node, in *incoming) {
	accepted := false
	if n.Self.ID == m.Sender {
		r := g.locate(c, n.Self)
		g.mu.Lock()
		if p := c.peer; p != nil && p.id == m.Sender {
			p.notify = time.Now()
			p.follows = p.notify
		}
		g.mu.Unlock()
		if usable(r) {
			from := member.Contact{ID: r.ID, Dialect: member.Original, Addrs: []netip.AddrPort{r.Addr}}
			answer, _ := g.o.Ring.Handle(ctx, from, wire.Notify{From: from}).(wire.Neighbours)
			accepted = len(answer.Predecessors) > 0 && answer.Predecessors[0].ID == r.ID
		}
	}
	c.respond(in, AppendAccepted(nil, accepted), nil)
}

// joining answers an original that wants to join: with who is to be its successor.
func (g *Gateway) joining(ctx context.Context, c *conn, r Ref, in *incoming) {
	ctx, cancel := context.WithTimeout(ctx, joinLife)
	defer cancel()
	r = g.locate(c, r)
	self := g.ref()
	successor := self
	// Its own place may still be held by what it was before it started again: ask for what comes after.
	for _, key := range []member.ID{r.ID, r.ID.After(0)} {
		owner, err := g.owner(ctx, c, r.ID, key)
		if err != nil {
			break
		}
		if owner.Owner.ID == r.ID {
			continue
		}
		if o := refOf(owner.Owner); usable(o) {
			successor = o
		}
		break
	}
	if ctx.Err() != nil {
		return // too late: it waits no more
	}
	if successor == self {
		g.mu.Lock()
		if p := c.peer; p != nil && p.id == r.ID {
			p.follows = time.Now()
		}
		g.mu.Unlock()
	}
	node := g.neighbours(ctx, c, r.ID)
	c.respond(in,
		AppendJoinAnswer(nil, JoinAnswer{Node: node, Successor: successor}),
		AppendJoinAnswer(nil, JoinAnswer{Node: Node{Self: self, Predecessor: self, Successor: self}, Successor: self}))
}

// searched answers a lookup, always: the original would wait for ever. What an application sends with it goes to us if
// it is for us, and else to where it belongs; originals give it to whomever they ask first.
func (g *Gateway) searched(ctx context.Context, c *conn, sender member.ID, search Search, body Body, in *incoming) {
	ctx, cancel := context.WithTimeout(ctx, searchLife)
	defer cancel()
	self := g.ref()
	from := g.from(c, sender)
	key := search.Key
	if g.isHere(c, key, self) {
		key = self.ID
	}
	if body.Broadcast {
		g.heardBroadcast(c, from, body)
	}
	answer := SearchAnswer{Key: search.Key, Owner: self, Hops: 1}
	var found wire.Found
	if key != self.ID {
		var err error
		if found, err = g.owner(ctx, c, sender, key); err != nil {
			g.o.Log.Debug("lookup for an original", "key", key.Short(), "error", err)
		} else if o := refOf(found.Owner); usable(o) {
			answer.Owner, answer.Hops = o, uint16(max(1, min(found.Hops, 1<<15)))
		}
	}
	if len(search.Body) > 0 && !body.Broadcast {
		g.message(ctx, from, key, self.ID, found, body.Payload)
	}
	c.respond(in, AppendSearchAnswer(nil, answer), AppendSearchAnswer(nil, SearchAnswer{Key: search.Key, Owner: self, Hops: 1}))
}

// isHere reports whether an original means us by an ID. Their applications name members by host and port as they type
// them, and where that is "localhost" the ID is of those very letters.
func (g *Gateway) isHere(c *conn, key member.ID, self Ref) bool {
	return key == self.ID ||
		c.remote.Addr().IsLoopback() && key == member.HashOf(fmt.Sprintf("localhost:%d", self.Addr.Port()))
}

// message hands on what an original sends to the owner of key.
func (g *Gateway) message(ctx context.Context, from member.Contact, key, self member.ID, found wire.Found, payload []byte) {
	payload = append([]byte(nil), payload...)
	if key == self || found.Owner.ID == self && len(found.Leaf) == 0 {
		g.count(&g.stats.Delivered)
		g.o.Deliver(from, payload)
		return
	}
	err := g.o.Forward(ctx, key, from, payload)
	switch {
	case err == nil:
		g.count(&g.stats.Forwarded)
	case found.Owner.ID == from.ID && key != from.ID:
		// What is meant for nobody, not for a leaf either, and would go back to its sender, stays here: so it does with originals.
		g.count(&g.stats.Delivered)
		g.o.Deliver(from, payload)
	default:
		g.count(&g.stats.Forwarded)
		g.o.Log.Debug("message of an original", "from", from.String(), "to", key.Short(), "error", err)
	}
}

func (g *Gateway) count(n *uint64) {
	g.mu.Lock()
	*n++
	g.mu.Unlock()
}

// owner looks up the owner of a key for an original, and makes sure that it is there: the original will dial it.
func (g *Gateway) owner(ctx context.Context, c *conn, asker, key member.ID) (wire.Found, error) {
	g.mu.Lock()
	over := g.wants[key] >= sameKey
	if !over {
		g.wants[key]++
	}
	g.mu.Unlock()
	if over {
		return wire.Found{}, fmt.Errorf("%w: the lookup of %s runs in a circle", wire.ErrUnreachable, key.Short())
	}
	defer func() {
		g.mu.Lock()
		if g.wants[key]--; g.wants[key] == 0 {
			delete(g.wants, key)
		}
		g.mu.Unlock()
	}()
	var failed error
	for range 2 {
		answer := g.o.Ring.Handle(ctx, g.from(c, asker), wire.Lookup{Key: key})
		found, ok := answer.(wire.Found)
		if !ok {
			if refused, is := answer.(wire.Refused); is {
				return wire.Found{}, refused
			}
			return wire.Found{}, fmt.Errorf("lookup of %s: %w", key.Short(), wire.ErrAnswer)
		}
		if found.Owner.ID == asker || found.Owner.ID == g.selfID() {
			return found, nil
		}
		if failed = g.reach(ctx, found.Owner); failed == nil {
			return found, nil
		}
	}
	return wire.Found{}, failed
}

// reach makes sure that a member is there, now.
func (g *Gateway) reach(ctx context.Context, to member.Contact) error {
	if g.live(to.ID) {
		return nil
	}
	if _, err := g.o.Transport.Call(ctx, to, wire.Ping{}); err != nil {
		return err
	}
	g.mu.Lock()
	g.proveLocked(to.ID, time.Now())
	g.mu.Unlock()
	return nil
}
