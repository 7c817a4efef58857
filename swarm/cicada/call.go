// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicada

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// notifyEvery is how often an original is notified of what it was notified of before, and notifyAgain where it did not
// take us for its predecessor then: it may not have noticed yet that another one is gone.
const (
	notifyEvery = 4 * time.Second
	notifyAgain = 2 * time.Second
)

// dialTimeout is how long a connection may take.
const dialTimeout = 5 * time.Second

// Call sends a request to an original, translated, and waits for its answer; see [wire.Transport]. Ping, State, Notify
// and Lookup can be said to one, everything else is refused as [wire.Unsupported]. State may be answered with what the
// original said up to two seconds ago, and Notify with what it answered to the same: it reads slowly. The members that
// it names are of dialect Unknown. An original that knows nobody answers none of them.
func (g *Gateway) Call(ctx context.Context, to member.Contact, request wire.Message) (wire.Message, error) {
	switch m := request.(type) {
	case wire.Ping:
		if _, _, err := g.ask(ctx, to, cachedFor); err != nil {
			return nil, err
		}
		return wire.Pong{}, nil
	case wire.State:
		return g.state(ctx, to)
	case wire.Notify:
		return g.notifyOriginal(ctx, to, m)
	case wire.Lookup:
		return g.lookup(ctx, to, m)
	default:
		return nil, wire.Refused{Code: wire.Unsupported, Reason: request.Kind().String() + " to an original"}
	}
}

// Cast does nothing: nothing that natives say without waiting for an answer can be said to an original.
func (g *Gateway) Cast(member.Contact, wire.Message) {}

func (g *Gateway) state(ctx context.Context, to member.Contact) (wire.Message, error) {
	n, _, err := g.ask(ctx, to, cachedFor)
	if err != nil {
		return nil, err
	}
	answer := wire.Neighbours{Self: g.contactOf(to.ID, to)}
	if c, ok := g.heardOf(n.Predecessor); ok {
		answer.Predecessors = []member.Contact{c}
	}
	if c, ok := g.heardOf(n.Successor); ok {
		answer.Successors = []member.Contact{c}
	}
	return answer, nil
}

// contactOf returns what is known of an original.
func (g *Gateway) contactOf(id member.ID, otherwise member.Contact) member.Contact {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p := g.peers[id]; p != nil && p.addr.IsValid() {
		return p.contact()
	}
	otherwise.Dialect = member.Original
	return otherwise
}

// heardOf returns a contact for somebody that an original names, if it can be reached at all.
func (g *Gateway) heardOf(r Ref) (member.Contact, bool) {
	self := g.o.Self()
	if r.ID == self.ID {
		return self, true
	}
	g.mu.Lock()
	p := g.peers[r.ID]
	if p != nil && p.addr.IsValid() {
		c := p.contact()
		g.mu.Unlock()
		return c, true
	}
	g.mu.Unlock()
	return member.Contact{ID: r.ID, Addrs: []netip.AddrPort{r.Addr}}, usable(r)
}

func (g *Gateway) lookup(ctx context.Context, to member.Contact, m wire.Lookup) (wire.Message, error) {
	c, err := g.ready(ctx, to)
	if err != nil {
		return nil, err
	}
	answer, err := c.request(ctx, Lookup, AppendSearch(nil, Search{Key: m.Key}), nil)
	if err != nil {
		return nil, err
	}
	found, err := DecodeSearchAnswer(answer.Data)
	if err != nil {
		return nil, err
	}
	owner, ok := g.heardOf(found.Owner)
	if found.Key != m.Key || !ok {
		return nil, fmt.Errorf("lookup of %s by %s: %w", m.Key.Short(), to, wire.ErrAnswer)
	}
	return wire.Found{Key: m.Key, Owner: owner, Hops: uint64(found.Hops), Path: []member.ID{to.ID}}, nil
}

// notifyOriginal tells an original that it is our successor.
func (g *Gateway) notifyOriginal(ctx context.Context, to member.Contact, m wire.Notify) (wire.Message, error) {
	self := g.ref()
	if m.From.ID != self.ID {
		return nil, wire.Refused{Code: wire.Unsupported, Reason: "notify for another to an original"}
	}
	c, err := g.ready(ctx, to)
	if err != nil {
		return nil, err
	}
	state := g.ring(ctx, to)
	n := Node{Self: self}
	for _, p := range state.Predecessors {
		if r := refOf(p); g.mayName(r, p, self) {
			n.Predecessor = r
			break
		}
	}
	g.mu.Lock()
	p := g.peers[to.ID]
	if p != nil && p.addr.IsValid() {
		n.Successor = Ref{ID: p.id, Addr: p.addr}
	}
	every := notifyEvery
	if p != nil && !p.took {
		every = notifyAgain
	}
	again := p != nil && p.notified == n && time.Since(p.sent) < every
	g.mu.Unlock()
	if !again {
		answer, err := c.request(ctx, Notify, AppendNode(nil, n), nil)
		if err != nil {
			return nil, err
		}
		accepted, err := DecodeAccepted(answer.Data)
		if err != nil {
			return nil, err
		}
		g.mu.Lock()
		if p := g.peers[to.ID]; p != nil {
			p.notified, p.sent, p.took = n, time.Now(), accepted
			if accepted {
				c.interest = p.sent // it has us among its peers now
				p.toldAt = time.Time{}
			}
		}
		g.mu.Unlock()
	}
	return g.state(ctx, to)
}

// ready returns a connection to an original that was seen, just now, to have a peer: one that has none breaks when it is
// notified or asked for somebody.
func (g *Gateway) ready(ctx context.Context, to member.Contact) (*conn, error) {
	g.mu.Lock()
	p := g.peers[to.ID]
	recent := p != nil && len(p.conns) > 0 && (g.knowsUsLocked(p, time.Now()) || time.Since(p.toldAt) <= freshFor)
	g.mu.Unlock()
	if recent && g.knowsSomebody(p) {
		return g.connect(ctx, to)
	}
	_, c, err := g.ask(ctx, to, 0)
	return c, err
}

// bestLocked returns the connection to use: the newest, as an original that opened another has given the older up, but
// not the one for large messages.
func (p *peer) bestLocked() *conn {
	for _, c := range slices.Backward(p.conns) {
		if c != p.bulk {
			return c
		}
	}
	p.bulk = nil
	return p.conns[0]
}

// ask asks an original for its neighbours, unless it said so a short time ago.
func (g *Gateway) ask(ctx context.Context, to member.Contact, age time.Duration) (Node, *conn, error) {
	c, err := g.connect(ctx, to)
	if err != nil {
		return Node{}, nil, err
	}
	g.mu.Lock()
	p := c.peer
	if p == nil || p.id != to.ID {
		g.mu.Unlock()
		return Node{}, nil, fmt.Errorf("%s: %w: another member answers there", to, wire.ErrUnreachable)
	}
	if age > 0 && time.Since(p.toldAt) <= age {
		defer g.mu.Unlock()
		return p.told, c, nil
	}
	if g.done {
		g.mu.Unlock()
		return Node{}, nil, net.ErrClosed
	}
	a := p.asking
	if a == nil {
		a = &asking{done: make(chan struct{})}
		p.asking = a
		// Whoever waits may go; the others still want to know.
		g.owned.Go(func() { g.askNow(p, c, a) })
	}
	g.mu.Unlock()
	select {
	case <-a.done:
		return a.node, c, a.err
	case <-ctx.Done():
		return Node{}, nil, fmt.Errorf("info to %s: %w", to, context.Cause(ctx))
	}
}

func (g *Gateway) askNow(p *peer, c *conn, a *asking) {
	answer, err := c.request(g.ctx, Info, nil, nil)
	if err == nil {
		a.node, err = g.toldBy(c, p, answer)
	}
	a.err = err
	g.mu.Lock()
	p.asking = nil
	if err != nil && c.err == nil && p.failed.IsZero() {
		p.failed = time.Now()
	}
	g.mu.Unlock()
	close(a.done)
}

// toldBy takes note of an answer that names an original's neighbours.
func (g *Gateway) toldBy(c *conn, p *peer, answer Message) (Node, error) {
	n, err := DecodeNode(answer.Data)
	if err != nil {
		return Node{}, err
	}
	g.locate(c, n.Self)
	seen := c.remote.Addr()
	n.Predecessor, n.Successor = place(n.Predecessor, seen), place(n.Successor, seen)
	g.mu.Lock()
	defer g.mu.Unlock()
	p.told, p.toldAt, p.failed = n, time.Now(), time.Time{}
	return n, nil
}

// connect returns a connection to an original, and opens one if there is none.
func (g *Gateway) connect(ctx context.Context, to member.Contact) (*conn, error) {
	g.mu.Lock()
	p := g.peers[to.ID]
	if p != nil && len(p.conns) > 0 {
		c := p.bestLocked()
		g.mu.Unlock()
		return c, nil
	}
	r := refOf(to)
	if p != nil && usable(Ref{ID: p.id, Addr: p.addr}) {
		r.Addr = p.addr
	}
	if !usable(r) {
		g.mu.Unlock()
		return nil, fmt.Errorf("%s: %w: %w", to, wire.ErrUnreachable, ErrNoIPv4)
	}
	if g.done {
		g.mu.Unlock()
		return nil, net.ErrClosed
	}
	known := p != nil
	p = g.peerLocked(to.ID, time.Now())
	d := p.dialing
	if d == nil {
		d = &dialing{done: make(chan struct{})}
		p.dialing = d
		g.owned.Go(func() {
			d.conn, d.err = g.dial(g.ctx, to.ID, r.Addr)
			g.mu.Lock()
			p.dialing = nil
			if d.err != nil && !known && len(p.conns) == 0 {
				delete(g.peers, p.id)
			}
			g.mu.Unlock()
			close(d.done)
		})
	}
	g.mu.Unlock()
	select {
	case <-d.done:
		return d.conn, d.err
	case <-ctx.Done():
		return nil, fmt.Errorf("dial %s: %w", to, context.Cause(ctx))
	}
}

// dial opens a connection to an original.
func (g *Gateway) dial(ctx context.Context, id member.ID, addr netip.AddrPort) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout+requestTimeout)
	defer cancel()
	dialCtx, cancelDial := context.WithTimeout(ctx, dialTimeout)
	defer cancelDial()
	nc, err := g.o.Dial(dialCtx, addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w: %w", addr, wire.ErrUnreachable, err)
	}
	c, native, err := g.greet(ctx, nc, id, Info)
	if native != nil {
		_ = native.Close()
	}
	return c, err
}

// Hail sends the first message over a connection just opened to whoever listens at addr, to find out what it speaks. A
// native member answers that it is one: then the connection is returned, to go on as a link. Otherwise it belongs to the
// gateway, which returns nil for an original, and closes it, now or later, where that fails: an original may break when
// it is closed at the wrong moment, so nobody else must.
//
// The zero id is for a member who wants to join there: the first message is a request to join, whose answer [Gateway.Join]
// returns. With any other the original has to have that ID, and is asked for its neighbours; one that has none does not
// answer.
func (g *Gateway) Hail(ctx context.Context, nc net.Conn, id member.ID, addr netip.AddrPort) (net.Conn, error) {
	if g.connectionAt(addr) != nil {
		// It is known already. To be reset before it has accepted would end its listener.
		g.background(func(ctx context.Context) {
			select {
			case <-time.After(acceptLife):
			case <-ctx.Done():
			}
			_ = nc.Close()
		})
		return nil, nil
	}
	kind := Info
	if id == (member.ID{}) {
		kind = Join
	}
	_, native, err := g.greet(ctx, nc, id, kind)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", addr, err)
	}
	return native, nil
}

// greet sends the first message over a connection, and finds out who is there.
func (g *Gateway) greet(ctx context.Context, nc net.Conn, id member.ID, kind Type) (c *conn, native net.Conn, err error) {
	c = newConn(g, nc, true)
	if err := g.admit(c); err != nil {
		reset(nc)
		return nil, nil, err
	}
	var data []byte
	if kind == Join {
		data = AppendJoin(nil, g.ref().Addr)
	}
	q, err := c.begin(kind, data, nil)
	if err != nil {
		return nil, nil, err
	}
	c.first = q
	serving := c // c is a result: it may be nil by the time that the connection ends
	if !g.background(func(ctx context.Context) {
		if err := serving.run(ctx, nil); err != nil && !errors.Is(err, ErrNative) {
			g.o.Log.Debug("connection to an original", "address", serving.remote.String(), "error", err)
		}
	}) {
		g.forget(c)
		reset(nc)
		return nil, nil, net.ErrClosed
	}
	select {
	case <-c.proved:
	case <-c.over:
	case <-ctx.Done():
		err := fmt.Errorf("%w: no answer: %w", wire.ErrUnreachable, context.Cause(ctx))
		c.retire(err)
		return nil, nil, err
	}
	select {
	case <-c.over:
		<-c.ended
		if errors.Is(c.err, ErrNative) {
			_ = nc.SetDeadline(time.Time{})
			return nil, nc, nil
		}
		return nil, nil, c.err
	default:
	}
	g.mu.Lock()
	p := c.peer
	g.mu.Unlock()
	if p == nil || id != (member.ID{}) && p.id != id {
		err := fmt.Errorf("%w: another original is at %s", wire.ErrUnreachable, c.remote)
		c.retire(err)
		return nil, nil, err
	}
	if kind == Info {
		// It may ask something before it answers.
		answer, err := c.wait(ctx, q)
		if err == nil {
			_, err = g.toldBy(c, p, answer)
		}
		if err != nil {
			c.retire(err)
			return nil, nil, err
		}
	}
	return c, nil, nil
}

// Join asks the original at an address to let us into the ring, and returns it. What it answers about our place is only
// a beginning: see package ring. An original whose ring has not settled may lose the request; then it is worth to ask
// again after some seconds, or to ask another one.
func (g *Gateway) Join(ctx context.Context, entry netip.AddrPort) (member.Contact, error) {
	entry = netip.AddrPortFrom(entry.Addr().Unmap(), entry.Port())
	c := g.connectionAt(entry)
	if c == nil {
		dialCtx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		nc, err := g.o.Dial(dialCtx, entry)
		if err != nil {
			return member.Contact{}, fmt.Errorf("dial %s: %w: %w", entry, wire.ErrUnreachable, err)
		}
		var native net.Conn
		if c, native, err = g.greet(ctx, nc, member.ID{}, Join); err != nil {
			return member.Contact{}, fmt.Errorf("join at %s: %w", entry, err)
		}
		if native != nil {
			_ = native.Close()
			return member.Contact{}, fmt.Errorf("join at %s: %w", entry, ErrNative)
		}
	}
	g.mu.Lock()
	q := c.first
	c.first = nil
	g.mu.Unlock()
	var err error
	if q == nil || q.kind != Join {
		if q, err = c.begin(Join, AppendJoin(nil, g.ref().Addr), nil); err != nil {
			return member.Contact{}, err
		}
	}
	answer, err := c.wait(ctx, q)
	if err != nil {
		return member.Contact{}, err
	}
	a, err := DecodeJoinAnswer(answer.Data)
	if err != nil {
		return member.Contact{}, fmt.Errorf("join at %s: %w", entry, err)
	}
	r := g.locate(c, a.Node.Self)
	g.mu.Lock()
	p := c.peer
	if p == nil {
		err := c.err
		g.mu.Unlock()
		return member.Contact{}, fmt.Errorf("join at %s: %w", entry, err)
	}
	if a.Node.Successor.ID == g.selfID() {
		c.interest = time.Now() // it was alone, and has taken us for its successor
		p.follows = c.interest
	}
	met := p.contact()
	g.mu.Unlock()
	if r.ID != met.ID {
		return member.Contact{}, fmt.Errorf("join at %s: %w", entry, wire.ErrAnswer)
	}
	g.o.Learn(met)
	return met, nil
}

// At returns the original at an address, if there is a connection with it. Its ID need not be that of the address: see
// [member.Contact.Verify].
func (g *Gateway) At(addr netip.AddrPort) (member.Contact, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.peers {
		if p.addr == addr && len(p.conns) > 0 {
			return p.contact(), true
		}
	}
	return member.Contact{}, false
}

// connectionAt returns a connection with the original at an address, or nil.
func (g *Gateway) connectionAt(addr netip.AddrPort) *conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.peers {
		if p.addr == addr && len(p.conns) > 0 {
			return p.bestLocked()
		}
	}
	return nil
}

// Send delivers a message to exactly this original, and waits until it has taken it. The error wraps
// [wire.ErrUnreachable] if it cannot be known to have; it may have all the same.
func (g *Gateway) Send(ctx context.Context, to member.Contact, payload []byte) error {
	if len(payload) > MaxPayload {
		return fmt.Errorf("%d bytes to %s: %w", len(payload), to, ErrTooLarge)
	}
	return g.deliver(ctx, to, Body{Payload: payload}, nil)
}

// deliver hands a body to an original's application.
func (g *Gateway) deliver(ctx context.Context, to member.Contact, body Body, as *Ref) error {
	c, err := g.ready(ctx, to)
	if err != nil {
		return err
	}
	data := AppendSearch(nil, Search{Key: to.ID, Body: AppendBody(nil, body)})
	if len(data) > bulk {
		if c, err = g.second(ctx, c); err != nil {
			return err
		}
	}
	answer, err := c.request(ctx, Lookup, data, as)
	if err != nil {
		return err
	}
	found, err := DecodeSearchAnswer(answer.Data)
	if err == nil && found.Key != to.ID {
		err = wire.ErrAnswer
	}
	return err
}

// second returns another connection to the original that c leads to, for what is large. It is opened for the first such
// message and kept.
func (g *Gateway) second(ctx context.Context, c *conn) (*conn, error) {
	g.mu.Lock()
	p := c.peer
	if p == nil {
		g.mu.Unlock()
		return nil, fmt.Errorf("%s: %w", c.remote, wire.ErrUnreachable)
	}
	if p.bulk != nil && p.bulk.err == nil && len(p.conns) > 1 {
		b := p.bulk
		g.mu.Unlock()
		return b, nil
	}
	r := Ref{ID: p.id, Addr: p.addr}
	g.mu.Unlock()
	if !usable(r) {
		return c, nil // then it has to wait its turn
	}
	b, err := g.dial(ctx, r.ID, r.Addr)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	p.bulk = b
	return b, nil
}
