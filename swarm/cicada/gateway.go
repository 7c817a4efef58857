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
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
)

// MaxPayload is the longest payload that is sent to an original: at the pace at which it reads, four minutes' worth.
const MaxPayload = 128 << 10

// bulk is the size of a message from which on it goes over a connection of its own, so that the questions and answers
// that keep an original's ring alive need not wait behind it.
const bulk = 1024

// How long what was seen holds.
const (
	knownFor   = 12 * time.Second        // an original asks its peers every 5 s; who was asked is one
	freshFor   = 3 * time.Second         // what it answered, before something that it must have a peer for; twice that when it is written
	justFor    = 1500 * time.Millisecond // what it answered about members that we cannot ask
	cachedFor  = 2 * time.Second         // what it answered: for the ring, which asks more often than is good for it
	liveFor    = 15 * time.Second        // anything heard
	followsFor = 20 * time.Second        // a notification, which says that it takes us for its successor
	peerLife   = time.Minute             // without a connection, until an original is forgotten
)

// maxPeers bounds how many originals are remembered.
const maxPeers = 4096

// A Gateway speaks for one native member to all the originals that it meets. It is safe for concurrent use.
type Gateway struct {
	o         Options
	ctx       context.Context
	cancel    context.CancelFunc
	owned     sync.WaitGroup // connections that we dialled, copies of broadcasts under way
	memory    atomic.Int64
	spreading atomic.Int64 // copies of broadcasts on their way to originals

	mu               sync.Mutex // guards all below, and what is said so of conn and peer
	done             bool
	conns            map[*conn]struct{}
	peers            map[member.ID]*peer
	stats            Stats
	proofs           map[member.ID]time.Time // members that answered just now
	arc              []member.ID             // originals between us and the next native member, clockwise
	arcStart, arcEnd member.ID               // both of them
	census           []member.ID             // members that answered when we last looked around the ring
	hurry            time.Time               // until when originals are asked more often, as somebody is gone
	texts            texts
	tags             tagMemory
	wants            map[member.ID]int // lookups of originals under way, by key
}

// A peer is what is known about one original. Gateway.mu guards it.
type peer struct {
	id       member.ID
	addr     netip.AddrPort // where it can be dialled; zero: not known
	conns    []*conn
	heard    time.Time // anything from it
	told     Node      // what it answered to the same question
	toldAt   time.Time
	failed   time.Time // it did not answer that question, though the connection stands; zero: it has since
	follows  time.Time // it took us for its successor
	notify   time.Time // it notified us, as it does its successor
	joined   time.Time // we asked it to join, to heal it
	placed   time.Time // since when it ought to be our predecessor, if it does
	notified Node      // what we last notified it of
	sent     time.Time // when
	took     bool      // what it answered
	rtt      time.Duration
	asking   *asking
	dialing  *dialing
	bulk     *conn // for large messages; nil: none yet
}

// asking is one question for a peer's neighbours, which all who want to know wait for.
type asking struct {
	done chan struct{}
	node Node
	err  error
}

// dialing is one attempt to connect to a peer.
type dialing struct {
	done chan struct{}
	conn *conn
	err  error
}

// NewGateway returns a gateway. It answers originals from then on; [Gateway.Run] keeps their ring in order besides.
func NewGateway(o Options) *Gateway {
	g := &Gateway{
		o: o.withDefaults(), conns: map[*conn]struct{}{}, peers: map[member.ID]*peer{},
		texts: newTexts(), wants: map[member.ID]int{}, proofs: map[member.ID]time.Time{}, tags: newTagMemory(),
	}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g
}

// Close ends all connections and waits for everything that the gateway has begun. Connections given to Accept end as
// well, and their Accept returns. It takes up to three seconds where originals would not bear less.
func (g *Gateway) Close() error {
	g.mu.Lock()
	var open []*conn
	for c := range g.conns {
		if !g.done && c.busyLocked() {
			open = append(open, c)
		}
	}
	g.done = true
	g.mu.Unlock()
	end := time.Now().Add(closeDrain)
	for _, c := range open { // see retire
		c.drain(g.ctx, time.Until(end))
	}
	g.cancel()
	g.owned.Wait()
	return nil
}

// background runs f in a goroutine that Close waits for. It reports false after Close.
func (g *Gateway) background(f func(ctx context.Context)) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.done {
		return false
	}
	g.owned.Go(func() { f(g.ctx) })
	return true
}

// Stats returns what has been counted.
func (g *Gateway) Stats() Stats {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.stats
	s.Connections = len(g.conns)
	for _, p := range g.peers {
		if len(p.conns) > 0 {
			s.Originals++
		}
	}
	return s
}

// Linked returns the originals that there is a connection with, in no order.
func (g *Gateway) Linked() []member.Contact {
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []member.Contact
	for _, p := range g.peers {
		if len(p.conns) > 0 {
			list = append(list, p.contact())
		}
	}
	return list
}

// IsOriginal reports whether a member has been met as an original, within the last minute or on a connection that still
// stands.
func (g *Gateway) IsOriginal(id member.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.peers[id] != nil
}

// RTT returns the time that an original took for its last answer, and 0 for one that has given none.
func (g *Gateway) RTT(id member.ID) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p := g.peers[id]; p != nil {
		return p.rtt
	}
	return 0
}

func (p *peer) contact() member.Contact {
	c := member.Contact{ID: p.id, Dialect: member.Original}
	if p.addr.IsValid() {
		c.Addrs = []netip.AddrPort{p.addr}
	}
	return c
}

// ref is the member that we speak for as originals are told of it. Its address is zero when there is none to tell.
func (g *Gateway) ref() Ref { return refOf(g.o.Self()) }

// refOf returns what originals can be told of a member: the ID, and its first IPv4 address.
func refOf(c member.Contact) Ref {
	for _, a := range c.Addrs {
		if a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port()); a.Addr().Is4() {
			return Ref{ID: c.ID, Addr: a}
		}
	}
	return Ref{ID: c.ID}
}

// Accept serves a connection that somebody opened with a message of this protocol, until it ends; it closes conn. When
// that is a native member who only wanted to know what we speak, Accept answers that we are one too, and returns the
// connection at once: it goes on as if newly accepted. settled, which may be nil, is called when the first message was
// one of this protocol.
func (g *Gateway) Accept(ctx context.Context, nc net.Conn, settled func()) (net.Conn, error) {
	c := newConn(g, nc, false)
	if err := g.admit(c); err != nil {
		reset(nc)
		return nil, err
	}
	defer g.forget(c)
	stop := context.AfterFunc(ctx, func() { c.fail(net.ErrClosed) })
	defer stop()
	_ = nc.SetReadDeadline(time.Now().Add(firstTimeout))
	first, err := g.readMessage(nc, nc)
	_ = nc.SetReadDeadline(time.Time{})
	if err != nil {
		c.fail(g.malformed(err))
		return nil, err
	}
	if first.Features == mark && !first.Response {
		_ = nc.SetWriteDeadline(time.Now().Add(firstTimeout))
		if _, err := nc.Write([]byte(hello)); err != nil {
			c.fail(err)
			return nil, err
		}
		_ = nc.SetWriteDeadline(time.Time{})
		return nc, nil
	}
	if settled != nil {
		settled()
	}
	both, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(g.ctx, cancel)()
	return nil, c.run(both, &first)
}

// admit makes room for a connection.
func (g *Gateway) admit(c *conn) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.done:
		return net.ErrClosed
	case len(g.conns) >= g.o.Connections:
		g.stats.Refused++
		return fmt.Errorf("%s: too many connections with originals", c.remote)
	}
	g.conns[c] = struct{}{}
	return nil
}

// forget takes a connection that has ended out of the books.
func (g *Gateway) forget(c *conn) {
	g.mu.Lock()
	delete(g.conns, c)
	p := c.peer
	lost := false
	if p != nil {
		p.conns = slices.DeleteFunc(p.conns, func(o *conn) bool { return o == c })
		lost = len(p.conns) == 0
		p.toldAt = time.Time{} // whom it knew by this connection, it knows no more
		g.hurry = time.Now().Add(hurryFor)
		c.peer = nil
	}
	g.mu.Unlock()
	if lost {
		g.o.Log.Debug("original gone", "member", p.id.Short(), "error", c.err)
		g.o.Lost(p.id)
	}
}

func (g *Gateway) malformed(err error) error {
	if errors.Is(err, ErrMessage) {
		g.mu.Lock()
		g.stats.Malformed++
		g.mu.Unlock()
	}
	return err
}

func (g *Gateway) withhold(c *conn, m Message, err error) {
	g.mu.Lock()
	g.stats.Withheld++
	if m.Response {
		delete(c.asked, m.RequestSequence)
	}
	g.mu.Unlock()
	g.o.Log.Debug("message withheld", "to", c.remote.String(), "error", err)
}

// heard takes note of a message that came in.
func (g *Gateway) heard(c *conn, m Message) {
	var met member.Contact
	g.mu.Lock()
	now := time.Now()
	g.stats.Received++
	if m.Unlinked {
		g.stats.Unlinked++
	}
	if c.peer == nil && c.err == nil && !c.retired {
		p := g.peerLocked(m.Sender, now)
		if c.dialled {
			p.addr = c.remote
		}
		if len(p.conns) == 0 {
			met = p.contact()
		}
		c.peer = p
		p.conns = append(p.conns, c)
	}
	if p := c.peer; p != nil && p.id == m.Sender {
		p.heard = now
	}
	g.mu.Unlock()
	if len(met.Addrs) > 0 {
		g.o.Learn(met)
	}
}

func (g *Gateway) peerLocked(id member.ID, now time.Time) *peer {
	p := g.peers[id]
	if p == nil {
		if len(g.peers) >= maxPeers {
			g.sweepLocked(now, 0)
		}
		p = &peer{id: id, heard: now}
		g.peers[id] = p
	}
	return p
}

// sweepLocked forgets originals that there has been no connection with for some time.
func (g *Gateway) sweepLocked(now time.Time, life time.Duration) {
	for id, p := range g.peers {
		if len(p.conns) == 0 && p.dialing == nil && now.Sub(p.heard) >= life {
			delete(g.peers, id)
		}
	}
}

// locate takes note of the address that an original says it listens on.
func (g *Gateway) locate(c *conn, r Ref) Ref {
	r = place(r, c.remote.Addr())
	g.mu.Lock()
	p := c.peer
	news := p != nil && p.id == r.ID && p.addr != r.Addr && usable(r)
	if news && (!c.dialled || !p.addr.IsValid()) {
		p.addr = r.Addr
	} else {
		news = false
	}
	var met member.Contact
	if news {
		met = p.contact()
	}
	if p != nil && p.id == r.ID && p.addr.IsValid() {
		r.Addr = p.addr
	}
	g.mu.Unlock()
	if news {
		g.o.Learn(met)
	}
	return r
}

// place corrects the address that an original says it has: one bound to all interfaces says 0.0.0.0, and one behind a
// router the address that it has behind it.
func place(r Ref, seen netip.Addr) Ref {
	outside := netip.AddrPortFrom(seen, r.Addr.Port())
	switch {
	case !seen.Is4() || !outside.IsValid():
	case r.Addr.Addr().IsUnspecified(), r.ID != member.OfAddr(r.Addr) && r.ID == member.OfAddr(outside):
		r.Addr = outside
	}
	return r
}

// standing returns what decides whether something may be written to c now.
func (c *conn) standing() standing {
	g := c.g
	now := time.Now()
	s := standing{self: g.ref()}
	g.mu.Lock()
	p := c.peer
	s.unproved = p == nil
	var named Node
	var asked bool
	if p != nil {
		asked = g.knowsUsLocked(p, now)
		named = p.told
		if now.Sub(p.toldAt) > 2*freshFor {
			named = Node{}
		}
	}
	g.mu.Unlock()
	s.knowsSomebody = p != nil && g.knowsSomebody(p)
	s.knows = func(id member.ID) bool {
		return id == s.self.ID && asked ||
			!named.Predecessor.IsZero() && (id == named.Predecessor.ID || id == named.Successor.ID)
	}
	s.awaits = func(sequence uint32) (Type, bool) {
		g.mu.Lock()
		defer g.mu.Unlock()
		if in := c.asked[sequence]; in != nil {
			return in.kind, true
		}
		return 0, false
	}
	s.live = func(r Ref) bool { return r == s.self || p != nil && r.ID == p.id || g.live(r.ID) }
	return s
}

// knowsUsLocked reports whether an original has us among its peers: it asks those every five seconds, over the connection
// by which it knows them. When that is gone, so are they.
func (g *Gateway) knowsUsLocked(p *peer, now time.Time) bool {
	return slices.ContainsFunc(p.conns, func(c *conn) bool { return !c.interest.IsZero() && now.Sub(c.interest) <= knownFor })
}

// knowsSomebody reports whether an original was seen, a moment ago, to have a peer that is still there.
func (g *Gateway) knowsSomebody(p *peer) bool {
	g.mu.Lock()
	now := time.Now()
	asked, age, told := g.knowsUsLocked(p, now), now.Sub(p.toldAt), p.told
	met := func(r Ref) bool { return g.peers[r.ID] != nil }
	metBefore, metAfter := met(told.Predecessor), met(told.Successor)
	g.mu.Unlock()
	vouched := func(r Ref, met bool) bool {
		switch {
		case r.IsZero() || age > 2*freshFor:
			return false
		case r.ID == g.selfID() || g.live(r.ID):
			return true
		default: // one who was connected to us, and is no more, has died for it as well
			return !met && age <= justFor
		}
	}
	return asked || vouched(told.Predecessor, metBefore) || vouched(told.Successor, metAfter)
}

// live reports whether a member can be named to an original: it is connected to us, now.
func (g *Gateway) live(id member.ID) bool {
	g.mu.Lock()
	now := time.Now()
	p := g.peers[id]
	connected := p != nil && len(p.conns) > 0 && now.Sub(p.heard) <= liveFor
	proved := g.provedLocked(id, now)
	g.mu.Unlock()
	return connected || proved || g.o.Live(id)
}

// maxProofs bounds how many members are known to have answered just now.
const maxProofs = 1024

func (g *Gateway) proveLocked(id member.ID, now time.Time) {
	if len(g.proofs) >= maxProofs {
		for id, at := range g.proofs {
			if now.Sub(at) > freshFor {
				delete(g.proofs, id)
			}
		}
	}
	if len(g.proofs) < maxProofs {
		g.proofs[id] = now
	}
}

func (g *Gateway) provedLocked(id member.ID, now time.Time) bool {
	at, ok := g.proofs[id]
	return ok && now.Sub(at) <= freshFor
}
