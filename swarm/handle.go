// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/swarm/link"
	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// Bounds on what strangers and members can make this peer do at a time.
const (
	maxHalfOpen        = 256             // connections that have not said who they are
	maxHalfOpenPerHost = 64              // of them from one host
	handshakeTimeout   = 5 * time.Second // for all of it
	maxRequests        = 64              // requests of one member under way
)

// queuePatience is how long a message waits for room in the queue of the application before its sender is told.
const queuePatience = 5 * time.Second

var (
	errIsOriginal = errors.New("the peer speaks the original protocol")
	errSelf       = errors.New("that is this peer itself")
	errWrong      = errors.New("another member answers there")
	errBare       = errors.New("the link is for questions of reachability only")
	errUnproved   = errors.New("the address that the peer claims does not lead to it")
)

// accept serves the listener until the peer closes.
func (p *Peer) accept(ctx context.Context) {
	slots := halfOpen{perHost: make(map[netip.Addr]int)}
	for delay := time.Duration(0); ; {
		conn, err := p.listener.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors, most likely: that passes as links end.
			delay = min(max(2*delay, 5*time.Millisecond), time.Second)
			p.log.Warn("accept", "error", err, "retry_in", delay)
			select {
			case <-time.After(delay):
			case <-ctx.Done():
				return
			}
			continue
		}
		delay = 0
		host := hostOf(conn.RemoteAddr())
		if !slots.take(host) {
			p.counters.refused.Add(1)
			conn.Close()
			continue
		}
		if !p.background(func(ctx context.Context) {
			p.welcome(ctx, conn, func() { slots.give(host) })
		}) {
			conn.Close()
		}
	}
}

// halfOpen counts connections that have not yet shown who they are.
type halfOpen struct {
	mu      sync.Mutex
	total   int
	perHost map[netip.Addr]int
}

func (h *halfOpen) take(host netip.Addr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.total == maxHalfOpen || h.perHost[host] == maxHalfOpenPerHost {
		return false
	}
	h.total++
	h.perHost[host]++
	return true
}

func (h *halfOpen) give(host netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.total--
	if h.perHost[host]--; h.perHost[host] == 0 {
		delete(h.perHost, host)
	}
}

// A peekedConn is a connection whose first bytes have been looked at.
type peekedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *peekedConn) Read(b []byte) (int, error) {
	if c.r == nil {
		return c.Conn.Read(b)
	}
	n, err := c.r.Read(b)
	if c.r.Buffered() == 0 {
		c.r = nil
	}
	return n, err
}

// SetLinger is that of the TCP connection beneath: how to end a connection to an original, which does not notice when it
// is closed in good order.
func (c *peekedConn) SetLinger(seconds int) error {
	conn := c.Conn
	for {
		switch inner := conn.(type) {
		case interface{ SetLinger(int) error }:
			return inner.SetLinger(seconds)
		case interface{ NetConn() net.Conn }:
			conn = inner.NetConn()
		default:
			return nil
		}
	}
}

// welcome finds out what a connection that came in speaks, and serves it. settled is called when it is no longer a
// stranger's, or has ended.
func (p *Peer) welcome(ctx context.Context, conn net.Conn, settled func()) {
	settled = sync.OnceFunc(settled)
	defer settled()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	_ = conn.SetReadDeadline(time.Now().Add(handshakeTimeout)) // fails only when it is closed, and so does reading
	rest, taken, err := p.reacher.punched(conn)
	if taken {
		return
	}
	peeked := &peekedConn{Conn: rest, r: bufio.NewReaderSize(rest, 16)}
	var first []byte
	if err == nil {
		first, err = peeked.r.Peek(1)
	}
	if err != nil {
		p.counters.refused.Add(1)
		conn.Close()
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	switch {
	case first[0] == link.Magic:
		p.welcomeNative(ctx, peeked)
	case first[0] == 'c' && p.gateway != nil:
		upgraded, err := p.gateway.Accept(ctx, peeked, settled)
		if err != nil {
			p.log.Debug("connection in the original protocol", "from", conn.RemoteAddr(), "error", err)
		}
		if upgraded != nil {
			p.welcomeNative(ctx, upgraded)
		}
	default:
		p.counters.refused.Add(1)
		conn.Close()
	}
}

// welcomeNative makes a link of a connection that came in, and closes it if that fails.
func (p *Peer) welcomeNative(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	s, err := p.secure(ctx, conn, wanted{how: Direct})
	if err != nil {
		p.counters.refused.Add(1)
		p.log.Debug("link refused", "from", conn.RemoteAddr(), "error", err)
		return
	}
	if s.bare() {
		defer s.Close()
		select {
		case <-s.Done():
		case <-ctx.Done():
		}
		return
	}
	p.log.Debug("link up", "member", s.contact.String(), "how", s.how.String(), "inbound", true)
}

// wanted says what a link that is being made is for.
type wanted struct {
	dialled bool
	to      member.Contact // who is expected: the zero ID is anybody
	how     How
	via     Hash
	private bool // for the caller alone: the link is not registered
}

// secure makes a link of a connection, which it closes on failure, and registers it.
func (p *Peer) secure(ctx context.Context, conn net.Conn, w wanted) (*session, error) {
	s := &session{
		peer: p, how: w.how, via: w.via, outbound: w.dialled, private: w.private, since: time.Now(),
		ready: make(chan struct{}), gone: make(chan struct{}),
	}
	s.touch()
	var said member.Contact
	config := link.Config{
		Identity: p.identity.Private(), SwarmKeys: p.o.SwarmKeys.Raw(), Handler: s, Logger: p.log, MaxRequests: maxRequests,
		Hello: func(remote net.Addr) []byte {
			said = p.contact()
			return appendHello(nil, hello{
				binding: p.o.Binding, forwards: !p.o.NoForwarding, private: w.private,
				observed: addrPort(remote), contact: said,
			})
		},
		Check:  func(key ed25519.PublicKey, b []byte, _ net.Addr) error { return s.check(key, b, w.to) },
		Closed: s.closed,
	}
	var err error
	if w.dialled {
		s.Session, err = link.Client(ctx, conn, config, w.to.Key)
	} else {
		s.Session, err = link.Server(ctx, conn, config)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	if s.mustProve(conn, w) {
		// What went wrong is not told: it would show strangers which addresses can be reached from here.
		if err := p.proves(ctx, s.contact); err != nil {
			s.Bye(link.CodeRefused, errUnproved.Error())
			return nil, fmt.Errorf("%w: %w", errUnproved, err)
		}
		p.links.unseat(s.contact)
	}
	if w.private || s.hello.private && !w.dialled {
		close(s.ready)
		return s, nil
	}
	if err := p.links.add(s); err != nil {
		s.Bye(link.CodeOverloaded, err.Error())
		return nil, err
	}
	if p.ID() != said.ID { // it has moved since it said so, and links.drop may have been before this one
		s.Bye(link.CodeClosed, "the member's contact has changed")
		return nil, fmt.Errorf("%w: this peer has moved meanwhile", wire.ErrUnreachable)
	}
	if s.ended() {
		s.closed(s.Session) // it was told before it was registered
		return nil, fmt.Errorf("%w: %w", wire.ErrUnreachable, s.Err())
	}
	close(s.ready)
	p.node().Learn(s.contact)
	return s, nil
}

// closed takes a link that has ended out of use.
func (s *session) closed(l *link.Session) {
	s.peer.log.Debug("link down", "member", s.contact.String(), "how", s.how.String(), "error", l.Err())
	s.peer.links.remove(s)
}

// check holds what the other said in its hello against what is known, before the link counts as up.
func (s *session) check(key ed25519.PublicKey, b []byte, expected member.Contact) error {
	h, err := decodeHello(b)
	if err != nil {
		return err
	}
	if h.binding != s.peer.o.Binding {
		return fmt.Errorf("%w: its IDs are those of its %s", errBinding, map[member.Binding]string{
			member.ByAddress: "addresses", member.ByKey: "keys",
		}[h.binding])
	}
	c := h.contact
	if err := c.Verify(h.binding); err != nil {
		return err
	}
	if !slices.Equal(c.Key, key) || c.Dialect != member.Native {
		return member.ErrUnbound
	}
	if c.ID == s.peer.ID() {
		return errSelf
	}
	if expected.ID != (Hash{}) && c.ID != expected.ID || len(expected.Key) > 0 && !expected.Key.Equal(key) {
		return fmt.Errorf("%w: %s", errWrong, c.ID.Short())
	}
	s.contact, s.hello = c, h
	return nil
}

// bare reports whether the link was made to find out about reachability, with a member that has proved nothing but its
// key: it is good for nothing else.
func (s *session) bare() bool {
	return s.how == Direct && (s.private || s.hello.private && !s.outbound)
}

// mustProve reports whether a member has to prove its address before it is believed. In an open swarm anybody can claim
// an ID in a hello. These are believed: who speaks from the address that the ID is the hash of, who answers there, who
// answers where the user said that there is a member, and who has the key that the member with this ID is known by.
func (s *session) mustProve(conn net.Conn, w wanted) bool {
	if s.peer.o.Binding != member.ByAddress || s.bare() || w.private {
		return false // keys are proved in the handshake; and what is private is with a member that is known, or is no use
	}
	believed := false
	switch {
	case !w.dialled:
		believed = s.how == Direct && s.atClaimed(conn)
	case s.how == Direct && w.to.ID != (Hash{}) && !s.contact.Leaf:
		// Others named it, with further addresses: these can be of somebody else.
		believed = addrPort(conn.RemoteAddr()) == s.contact.Addr()
	default:
		believed = true
	}
	if s.contact.Leaf && believed {
		return false // it cannot be asked at its address
	}
	key := s.peer.links.keyOf(s.contact.ID)
	return key == nil && !believed || key != nil && !key.Equal(s.contact.Key)
}

// atClaimed reports whether a connection comes from the host that the member's ID is bound to.
func (s *session) atClaimed(conn net.Conn) bool {
	remote := addrPort(conn.RemoteAddr()).Addr()
	return remote == s.contact.Addr().Addr() || remote.IsLoopback() && slices.ContainsFunc(s.contact.Addrs, func(a netip.AddrPort) bool {
		return s.peer.reacher.isOwn(a.Addr())
	})
}

// proofTimeout is for the connection to an address that is to be proved: its own LAN may be the only one that a member
// cannot be reached from by the address that it is known by.
const proofTimeout = time.Second

// proves checks that a member has the key it says: it is dialled at the address that it is known by, or, if that leads
// nowhere, the members around its place are asked. Their word is not enough against a key that has been proved.
func (p *Peer) proves(ctx context.Context, c member.Contact) error {
	var conn net.Conn
	err := error(nil)
	switch {
	case c.Leaf:
	case !p.mayDial(c.Addr().Addr()):
		err = errUnproved
	default:
		dialCtx, cancel := context.WithTimeout(ctx, proofTimeout)
		conn, err = p.reacher.dial(dialCtx, c.Addr())
		cancel()
	}
	if conn == nil && p.links.keyOf(c.ID) != nil {
		return errors.Join(err, errWrong)
	}
	if conn == nil {
		found, lookupErr := p.node().Lookup(ctx, c.ID, lookupPlain)
		if lookupErr != nil {
			return errors.Join(err, lookupErr)
		}
		for _, known := range append(found.Leaf, found.Owner) {
			if known.ID == c.ID && c.Key.Equal(known.Key) {
				return nil
			}
		}
		if leaf, err := p.node().FindLeaf(ctx, c.ID); c.Leaf && err == nil && c.Key.Equal(leaf.Key) {
			return nil
		}
		return errors.Join(err, ErrNoSuchMember)
	}
	s, err := p.secure(ctx, conn, wanted{dialled: true, to: c, private: true})
	if err != nil {
		return err
	}
	s.Close()
	return nil
}

// up waits until the link is registered, or over: then what came with it does not count.
func (s *session) up(l *link.Session) bool {
	select {
	case <-s.ready:
		return true
	case <-l.Done():
		return false
	}
}

// Request handles a request of the member; part of [link.Handler].
func (s *session) Request(l *link.Session, body []byte, reply func([]byte)) {
	if !s.up(l) {
		reply(nil) // nobody hears it
		return
	}
	m, err := wire.Decode(body)
	if err != nil {
		s.peer.counters.malformed.Add(1)
		reply(wire.Append(nil, wire.Refused{Code: wire.Invalid, Reason: err.Error()}))
		return
	}
	answer := wire.Append(nil, s.peer.answer(s.peer.ctx, s, m))
	s.peer.hookSend(s, answer)
	reply(answer)
}

// answer handles a request.
func (p *Peer) answer(ctx context.Context, s *session, m wire.Message) wire.Message {
	if _, ok := m.(wire.Try); s.bare() && !ok {
		return wire.Refused{Code: wire.Invalid, Reason: errBare.Error()}
	}
	var answer wire.Message
	switch m := m.(type) {
	case wire.Push, wire.Offer, wire.Want:
		answer = p.broadcast.Handle(ctx, s.contact, m)
	case wire.Try:
		answer = p.try(ctx, s, m)
	case wire.Meet:
		answer = p.meet(ctx, s, m)
	default:
		answer = p.node().Handle(ctx, s.contact, m)
	}
	if answer == nil {
		answer = wire.Refused{Code: wire.Unsupported, Reason: m.Kind().String() + " is not a request"}
	}
	return answer
}

// Cast handles a message without an answer; part of [link.Handler].
func (s *session) Cast(l *link.Session, body []byte) {
	if !s.up(l) {
		return
	}
	m, err := wire.Decode(body)
	if err != nil {
		s.peer.counters.malformed.Add(1)
		return
	}
	if s.bare() {
		return
	}
	if m.Kind() == wire.KindHave {
		s.peer.broadcast.Handle(s.peer.ctx, s.contact, m)
		return
	}
	s.peer.node().Handle(s.peer.ctx, s.contact, m)
}

// Message takes in an application's message; part of [link.Handler].
func (s *session) Message(l *link.Session, payload []byte) error {
	if !s.up(l) {
		return net.ErrClosed
	}
	if s.bare() {
		return errBare
	}
	s.touch()
	tag, copied, data, err := decodeEnvelope(payload)
	if err != nil {
		s.peer.counters.malformed.Add(1)
		return err
	}
	if copied {
		switch s.peer.copies.see(s.contact.ID, tag, data) {
		case copyNew:
		case copyRepeated:
			return nil
		case copyDiffers:
			s.peer.conflict(Conflict{Kind: "message", Subject: s.contact.ID, Between: []Hash{s.contact.ID}})
			return nil
		}
	}
	err = s.peer.deliver(s.contact, data, false)
	if err != nil && copied {
		s.peer.copies.forget(s.contact.ID, tag) // another copy may fare better
	}
	return err
}

// deliver puts a message into the queue of the application. It keeps a copy of data.
func (p *Peer) deliver(from member.Contact, data []byte, isBroadcast bool) error {
	m := Message{From: memberOf(from), Broadcast: isBroadcast, Time: time.Now()}
	if p.o.Trust != nil && !isBroadcast {
		opened, sealed, err := p.o.Trust.Open(p.ID(), from.ID, from.Addr(), data)
		if err != nil {
			p.counters.untrusted.Add(1)
			p.log.Warn("message refused", "from", from.String(), "error", err)
			return err
		}
		m.Data, m.Sealed = opened, sealed
	}
	if !m.Sealed {
		m.Data = slices.Clone(data)
	}
	if hook := p.o.Hooks.Recv; hook != nil {
		hook(m)
	}
	// Who sends to one member can wait for it, and does: only what else its link carries as messages waits too.
	patience := queuePatience
	if isBroadcast {
		patience = 0
	}
	if !p.inbox.wait(m, patience) {
		p.counters.dropped.Add(1)
		if p.ctx.Err() != nil {
			return net.ErrClosed
		}
		return ErrQueueFull
	}
	p.counters.received.Add(1)
	return nil
}

func (p *Peer) conflict(c Conflict) {
	p.counters.conflicts.Add(1)
	if c.Kind == "name" {
		p.log.Warn("several members have the same name", "place", c.Subject.Short())
	} else {
		p.log.Warn("copies differ: somebody on the way lies", "kind", c.Kind, "subject", c.Subject.Short())
	}
	if hook := p.o.Hooks.Conflict; hook != nil {
		hook(c)
	}
}

func (p *Peer) hookSend(s *session, body []byte) {
	if hook := p.o.Hooks.Send; hook != nil {
		hook(memberOf(s.contact), body)
	}
}

// addrPort returns the address of a net.Addr, the zero one when it has none, as the end of a circuit.
func addrPort(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
	case *net.UDPAddr:
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
	default:
		return netip.AddrPort{}
	}
}
