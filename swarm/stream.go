// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/seed5728abee/fathom/swarm/link"
	"github.com/seed5728abee/fathom/swarm/member"
)

var (
	_ net.Conn     = (*Stream)(nil)
	_ net.Listener = (*Listener)(nil)
)

// A Stream is a reliable connection between two peers; many of them share one link. It is a net.Conn, and has a
// CloseWrite as TCP has.
type Stream struct {
	*link.Stream
	local, remote Addr
	session       *session
	closed        atomic.Bool
}

// LocalAddr returns this peer's [Addr].
func (s *Stream) LocalAddr() net.Addr { return s.local }

// RemoteAddr returns the other peer's [Addr].
func (s *Stream) RemoteAddr() net.Addr { return s.remote }

// Member returns the peer at the other end.
func (s *Stream) Member() Member { return memberOf(s.session.contact) }

// Close ends the stream in both directions.
func (s *Stream) Close() error {
	if s.closed.CompareAndSwap(false, true) {
		s.session.streams.Add(-1)
		s.session.touch()
	}
	return s.Stream.Close()
}

func (s *session) stream(raw *link.Stream) *Stream {
	s.streams.Add(1)
	return &Stream{Stream: raw, local: Addr{s.peer.ID()}, remote: Addr{s.contact.ID}, session: s}
}

// Dial opens a stream to a service of another peer: to the Listener that it has for that name.
func (p *Peer) Dial(ctx context.Context, to Target, service string) (*Stream, error) {
	s, err := p.dialService(ctx, to, service)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "swarm", Addr: targetNetAddr{to}, Err: err}
	}
	return s, nil
}

func (p *Peer) dialService(ctx context.Context, to Target, service string) (*Stream, error) {
	if err := p.ready(); err != nil {
		return nil, err
	}
	if len(service) > maxService {
		return nil, fmt.Errorf("%w: its name is longer than %d bytes", ErrNoService, maxService)
	}
	c, err := p.find(ctx, to, lookupPlain)
	if err != nil {
		return nil, err
	}
	if c.ID == p.ID() {
		return nil, errSelf
	}
	if p.isOriginal(c) {
		return nil, ErrOriginal
	}
	s, err := p.links.session(ctx, c)
	if err != nil {
		if errors.Is(err, errIsOriginal) {
			return nil, ErrOriginal
		}
		return nil, err
	}
	s.touch()
	raw, err := s.Open(ctx, appendHeader(nil, header{kind: headerService, service: service}))
	if err != nil {
		if errors.Is(err, link.ErrRefused) {
			return nil, fmt.Errorf("%w: %q: %w", ErrNoService, service, err)
		}
		return nil, err
	}
	return s.stream(raw), nil
}

// targetNetAddr shows a target in the errors of package net.
type targetNetAddr struct{ Target }

func (targetNetAddr) Network() string { return "swarm" }

// A Listener takes the streams that other peers open to one service.
type Listener struct {
	peer    *Peer
	service string
	queue   chan *Stream
	once    sync.Once
	done    chan struct{}
}

// acceptBacklog is how many streams wait for Accept; further ones are refused. As net.core.somaxconn was for long.
const acceptBacklog = 128

// services are the listeners of a peer, by name.
type services struct {
	mu     sync.Mutex
	byName map[string]*Listener
	closed bool
}

// Listen takes the streams to a service, a name of at most 255 bytes.
func (p *Peer) Listen(service string) (*Listener, error) {
	if len(service) > maxService {
		return nil, fmt.Errorf("listen for %.20q...: the name is longer than %d bytes", service, maxService)
	}
	p.services.mu.Lock()
	defer p.services.mu.Unlock()
	if p.services.closed {
		return nil, fmt.Errorf("listen for %q: %w", service, net.ErrClosed)
	}
	if p.services.byName[service] != nil {
		return nil, fmt.Errorf("listen for %q: %w", service, ErrServiceTaken)
	}
	if p.services.byName == nil {
		p.services.byName = make(map[string]*Listener)
	}
	l := &Listener{peer: p, service: service, queue: make(chan *Stream, acceptBacklog), done: make(chan struct{})}
	p.services.byName[service] = l
	return l, nil
}

// Accept waits for the next stream, which is a *[Stream].
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case s := <-l.queue:
		return s, nil
	case <-l.done:
		return nil, &net.OpError{Op: "accept", Net: "swarm", Addr: l.Addr(), Err: net.ErrClosed}
	}
}

// Close ends the listener. Streams that wait are closed; those that were accepted stay.
func (l *Listener) Close() error {
	l.once.Do(func() {
		l.peer.services.mu.Lock()
		defer l.peer.services.mu.Unlock()
		delete(l.peer.services.byName, l.service)
		close(l.done)
		for {
			select {
			case s := <-l.queue:
				s.Close()
			default:
				return
			}
		}
	})
	return nil
}

// Addr returns the peer's [Addr].
func (l *Listener) Addr() net.Addr { return Addr{l.peer.ID()} }

// offer hands a stream to the listener of a service.
func (v *services) offer(service string, s *Stream) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	l := v.byName[service]
	if l == nil {
		return ErrNoService
	}
	select {
	case l.queue <- s:
		return nil
	default:
		return fmt.Errorf("%w: too many wait", ErrNoService)
	}
}

func (v *services) close() {
	v.mu.Lock()
	v.closed = true
	var all []*Listener
	for _, l := range v.byName {
		all = append(all, l)
	}
	v.mu.Unlock()
	for _, l := range all {
		l.Close()
	}
}

// Stream takes a stream that the other member opens; part of [link.Handler].
func (s *session) Stream(l *link.Session, b []byte, conn net.Conn) error {
	if !s.up(l) {
		return net.ErrClosed
	}
	if s.bare() {
		return errBare
	}
	h, err := decodeHeader(b)
	if err != nil {
		s.peer.counters.malformed.Add(1)
		return err
	}
	raw, ok := conn.(*link.Stream)
	if !ok {
		return errHeader
	}
	s.touch()
	switch h.kind {
	case headerService:
		stream := s.stream(raw)
		if err := s.peer.services.offer(h.service, stream); err != nil {
			s.streams.Add(-1)
			return err
		}
		return nil
	case headerCircuit:
		return s.peer.carry(s, h.to, raw)
	default:
		return s.peer.met(s, h.from, raw)
	}
}

// A circuit has two links, and a host joins them.

// Bounds on the circuits that a peer carries for others.
const (
	maxCircuits          = 256
	maxCircuitsPerMember = 16
)

var (
	errNoForwarding = errors.New("this member carries no circuits")
	errNotLinked    = errors.New("this member has no link there")
	errNested       = errors.New("circuits do not go through circuits")

	errTooManyCircuits = errors.New("this member carries as many circuits as it can")
)

// carry joins a stream that a member has opened to one to another member.
func (p *Peer) carry(from *session, to Hash, in *link.Stream) error {
	if p.o.NoForwarding {
		return errNoForwarding
	}
	if from.how == Circuit {
		return errNested // one byte could be made to go to and fro between two hosts as often as somebody likes
	}
	target := p.links.live(to)
	neighbour := member.Contact{}
	if target == nil {
		// A member that this one knows, and merely has no link to at the moment, is dialled.
		neighbour = p.links.known(to)
	}
	if target == nil && len(neighbour.Addrs) == 0 || target != nil && target.how == Circuit || neighbour.Leaf || to == from.contact.ID {
		return errNotLinked
	}
	release := func() {
		p.counters.circuits.Add(-1)
		from.carried.Add(-1)
	}
	// Both are counted before they are looked at: many may be opened at once.
	if all, its := p.counters.circuits.Add(1), from.carried.Add(1); all > maxCircuits || its > maxCircuitsPerMember {
		release()
		return errTooManyCircuits
	}
	if !p.background(func(ctx context.Context) {
		defer release()
		defer in.Close()
		dialCtx, cancel := context.WithTimeout(ctx, dialTimeout)
		var out *link.Stream
		var err error
		if target == nil {
			// By its addresses alone: else, when a member has died, all ask each other to carry circuits to it, and wait.
			target, err = p.dialDirect(dialCtx, neighbour)
		}
		if err == nil {
			out, err = target.Open(dialCtx, appendHeader(nil, header{kind: headerMet, from: from.contact}))
		}
		cancel()
		if err != nil {
			p.log.Debug("circuit", "from", from.contact.String(), "to", to.Short(), "error", err)
			return
		}
		defer out.Close()
		stop := context.AfterFunc(ctx, func() { in.Close(); out.Close() })
		defer stop()
		from.streams.Add(1)
		target.streams.Add(1)
		defer from.streams.Add(-1)
		defer target.streams.Add(-1)
		p.counters.circuitsCarried.Add(1)
		splice(in, out)
	}) {
		release()
		return net.ErrClosed
	}
	return nil
}

// splice copies both ways until both have ended.
func splice(a, b *link.Stream) {
	done := make(chan struct{})
	copyTo := func(dst, src *link.Stream) {
		if _, err := io.Copy(dst, src); err != nil {
			dst.Close() // what broke on one side breaks on the other
			src.Close()
			return
		}
		_ = dst.CloseWrite() // when it has ended, there is nobody to tell
	}
	go func() {
		defer close(done)
		copyTo(a, b)
	}()
	copyTo(b, a)
	<-done
}

// met serves a circuit that has come to this peer: a host says who is at its other end, and the handshake on it proves.
func (p *Peer) met(host *session, from member.Contact, raw *link.Stream) error {
	if from.Verify(p.o.Binding) != nil {
		return errHeader
	}
	host.streams.Add(1)
	if !p.background(func(ctx context.Context) {
		defer host.streams.Add(-1)
		s, err := p.secure(ctx, raw, wanted{how: Circuit, via: host.contact.ID, to: from})
		if err != nil {
			p.counters.refused.Add(1)
			p.log.Debug("circuit refused", "from", from.String(), "via", host.contact.String(), "error", err)
			return
		}
		<-s.Done()
	}) {
		host.streams.Add(-1)
		return net.ErrClosed
	}
	return nil
}

// circuit opens a link to a member through a host. An own one is not registered, and its user closes it.
func (p *Peer) circuit(ctx context.Context, host *session, to member.Contact, own bool) (*session, error) {
	raw, err := host.Open(ctx, appendHeader(nil, header{kind: headerCircuit, to: to.ID}))
	if err != nil {
		return nil, fmt.Errorf("circuit through %s: %w", host.contact, err)
	}
	s, err := p.secure(ctx, raw, wanted{dialled: true, to: to, how: Circuit, via: host.contact.ID, private: own})
	if err != nil {
		return nil, fmt.Errorf("circuit through %s: %w", host.contact, err)
	}
	host.streams.Add(1)
	p.background(func(context.Context) {
		<-s.Done()
		host.streams.Add(-1)
	})
	return s, nil
}
