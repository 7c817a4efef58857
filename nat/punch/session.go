// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package punch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

const (
	defaultTimeout = time.Second
	maxTimeout     = 10 * time.Second

	// A connection attempt that is ended early is no use to the other side, whose answer then finds nobody;
	// one that lasts holds up the next, as the kernel sends its first SYN again only after a second.
	minPatience = 200 * time.Millisecond
	// dialGap keeps the first SYNs in the order of the candidates.
	dialGap = time.Millisecond
	// dialRetry is the time from the beginning of an attempt that was refused to that of the next.
	dialRetry = 100 * time.Millisecond

	// Probes go out in rounds: at first often, since the other side may have begun later.
	probeInterval = 50 * time.Millisecond
	probeQuick    = 10 // rounds
	probeSlow     = 100 * time.Millisecond

	// maxTargets bounds the addresses that are tried over each transport. An honest offer has fewer.
	maxTargets = 20
	// maxReflexive bounds the addresses that are found out from authentic probes.
	maxReflexive = 8
	// maxPaths bounds the QUIC connections that are tried at once.
	maxPaths = 3

	// selectGrace is how much longer the responder waits when it has proved itself on a connection: the
	// initiator may have chosen it.
	selectGrace = 500 * time.Millisecond
	selectTime  = time.Second
)

// An Attempt is what both sides have agreed about one connection.
type Attempt struct {
	Mine   Offer // by Offer of the same Puncher
	Theirs Offer
	// Initiator is true on one side and false on the other. The initiator chooses the connection.
	Initiator bool
	// Start is when to begin, at the same moment as the other side: the one that has all it needs first waits for as
	// long as its last message takes. Default: now. A difference of less than half the round trip is as good as none. With a larger
	// one, packets arrive uninvited, which most NATs forgive; Linux without a filter for them then gives its own
	// side another port than was observed, and UDP fails.
	Start time.Time
	// RTT is the round trip between the two, if that is known: by way of a common peer, an upper bound. It paces
	// the attempts to connect. Default 100 ms.
	RTT time.Duration
	// Timeout is when to give up, from the beginning. Three round trips are needed over TCP, four over UDP. Default 1 s, at most 10 s.
	Timeout time.Duration
}

// Result is a connection that came about.
type Result struct {
	// Conn is the connection, the same on both sides: a TCP connection, or a stream over UDP. The latter
	// lives as long as its Puncher.
	Conn   net.Conn
	How    Proto
	Remote netip.AddrPort // as this side sees the other
	Took   time.Duration  // from the beginning
}

// session is an attempt being made.
type session struct {
	p           *Puncher
	keys        keys
	initiator   bool
	certificate [32]byte // of the other side
	udp, tcp    []netip.AddrPort
	patience    time.Duration
	ctx         context.Context
	cancel      context.CancelFunc
	release     func() bool // of the Puncher's context
	wg          sync.WaitGroup
	proven      chan *stream        // to the initiator's choice
	chosen      chan *stream        // to the responder: the initiator's choice
	paths       chan netip.AddrPort // on which an echo came back

	mu        sync.Mutex // guards what follows
	over      bool       // nothing may be spawned any more
	number    uint32     // of the next probe
	seen      replayWindow
	echoed    replayWindow
	heard     map[netip.AddrPort]bool // where authentic probes came from; true when an echo did
	reflexive int
	proofs    int // given on connections that are still open
}

// stream is a connection to who has proved to be the other side.
type stream struct {
	net.Conn
	proto        Proto
	mine, theirs nonce
}

// Punch makes the attempt. Both sides call it at the same time, with each other's offers. It returns one connection, the same
// on both sides, or [ErrFailed] within about the timeout: then the two cannot reach each other.
//
// The other side is proven to hold the offers, and over UDP the key of the certificate in its own. Nothing more is known of
// it: who carried the offers can have changed them. TCP is neither encrypted nor authenticated further. Whoever does not trust
// the carrier makes a handshake of its own on Conn.
func (p *Puncher) Punch(ctx context.Context, a Attempt) (Result, error) {
	s, err := p.newSession(ctx, a)
	if err != nil {
		return Result{}, err
	}
	defer s.end()
	wait := time.NewTimer(time.Until(a.Start))
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-s.ctx.Done():
		return Result{}, s.failure(0)
	}
	begin := time.Now()
	timeout := time.NewTimer(min(cmp.Or(a.Timeout, defaultTimeout), maxTimeout))
	defer timeout.Stop()
	s.begin()
	var c *stream
	if s.initiator {
		c = s.choose(timeout.C)
	} else {
		c = s.await(timeout.C)
	}
	took := time.Since(begin)
	if c == nil {
		err := s.failure(took)
		p.log.LogAttrs(ctx, levelAttempt, "punching failed", logError(err))
		return Result{}, err
	}
	_ = c.SetDeadline(time.Time{})
	r := Result{Conn: c.Conn, How: c.proto, Remote: addrPort(c.RemoteAddr()), Took: took}
	p.log.LogAttrs(ctx, levelAttempt, "punched", logResult(r)...)
	return r, nil
}

func (p *Puncher) newSession(ctx context.Context, a Attempt) (*session, error) {
	first, second := &a.Mine, &a.Theirs
	if !a.Initiator {
		first, second = second, first
	}
	s := &session{
		p: p, keys: deriveKeys(first, second), initiator: a.Initiator, certificate: a.Theirs.Certificate,
		patience: max(minPatience, a.RTT*3/2),
		proven:   make(chan *stream, 2*MaxCandidates),
		chosen:   make(chan *stream, 1),
		paths:    make(chan netip.AddrPort, maxPaths),
		heard:    map[netip.AddrPort]bool{},
	}
	theirs := slices.Clone(a.Theirs.Candidates[:min(len(a.Theirs.Candidates), MaxCandidates)])
	order(theirs)
	for _, c := range theirs {
		list := &s.udp
		if c.Proto == TCP {
			list = &s.tcp
		}
		own := slices.ContainsFunc(a.Mine.Candidates, func(m Candidate) bool { return m.Kind == LAN && m.Proto == c.Proto && m.Addr == c.Addr })
		if !own && len(*list) < maxTargets && usable(c.Addr, p.listen.Addr()) && !slices.Contains(*list, c.Addr) {
			*list = append(*list, c.Addr)
		}
	}
	if len(s.udp)+len(s.tcp) == 0 {
		return nil, fmt.Errorf("punch to %d candidates: %w", len(a.Theirs.Candidates), ErrNoCandidates)
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return nil, fmt.Errorf("punch: %w", net.ErrClosed)
	case len(p.sessions) >= maxAttempts || p.sessions[s.keys.id] != nil:
		return nil, fmt.Errorf("punch: %w", ErrBusy)
	}
	s.ctx, s.cancel = context.WithCancel(ctx)
	s.release = context.AfterFunc(p.ctx, s.cancel)
	p.sessions[s.keys.id] = s
	return s, nil
}

// end closes what was not chosen and waits for everything of the session.
func (s *session) end() {
	s.p.mu.Lock()
	delete(s.p.sessions, s.keys.id)
	s.p.mu.Unlock()
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	s.cancel()
	s.release()
	s.wg.Wait()
	for {
		select {
		case c := <-s.proven:
			discard(c.Conn)
		case c := <-s.chosen:
			discard(c.Conn)
		default:
			return
		}
	}
}

// spawn runs a part of the session, unless that is over.
func (s *session) spawn(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return false
	}
	s.wg.Go(f)
	return true
}

// failure says what was tried and how far it came.
func (s *session) failure(took time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	cause := ErrFailed
	if s.p.ctx.Err() != nil {
		cause = net.ErrClosed
	} else if err := s.ctx.Err(); err != nil {
		cause = fmt.Errorf("%w: %w", ErrFailed, err)
	}
	return fmt.Errorf("punch to %d addresses over TCP and %d over UDP for %v (probes heard from %d addresses): %w",
		len(s.tcp), len(s.udp), took.Round(time.Millisecond), len(s.heard), cause)
}

// begin starts everything. The probes go first: their order is what a counting NAT goes by.
func (s *session) begin() {
	s.round()
	s.spawn(s.probe)
	if s.initiator {
		s.spawn(s.connectPaths)
	}
	s.spawn(func() {
		for _, a := range s.tcp {
			s.spawn(func() { s.dial(a) })
			time.Sleep(dialGap)
		}
	})
}

func (s *session) ourKey() *[32]byte {
	if s.initiator {
		return &s.keys.initiator
	}
	return &s.keys.responder
}

func (s *session) theirKey() *[32]byte {
	if s.initiator {
		return &s.keys.responder
	}
	return &s.keys.initiator
}

// probe sends probes until the session ends.
func (s *session) probe() {
	t := time.NewTimer(probeInterval)
	defer t.Stop()
	for i := 1; ; i++ {
		select {
		case <-t.C:
		case <-s.ctx.Done():
			return
		}
		s.round()
		if i < probeQuick {
			t.Reset(probeInterval)
		} else {
			t.Reset(probeSlow)
		}
	}
}

// round sends a probe to every address that is known. An address that cannot be sent to is tried
// again in the next round: the error may be that of an earlier datagram.
func (s *session) round() {
	s.mu.Lock()
	targets := slices.Clone(s.udp)
	s.mu.Unlock()
	for _, to := range targets {
		s.sendProbe(to)
	}
}

func (s *session) sendProbe(to netip.AddrPort) {
	s.mu.Lock()
	n := s.number
	s.number++
	s.mu.Unlock()
	if n < maxProbes {
		_ = s.p.send(probe{session: s.keys.id, number: n}.append(nil, s.ourKey()), to)
	}
}

// probed handles a probe whose MAC is right, and reports whether it was new.
func (s *session) probed(m probe, from netip.AddrPort) bool {
	s.mu.Lock()
	if m.echo {
		defer s.mu.Unlock()
		if m.number >= s.number || !s.echoed.first(m.number) {
			return false
		}
		if s.initiator && !s.heard[from] {
			select {
			case s.paths <- from:
				s.heard[from] = true
			default: // enough are being tried
			}
		}
		return true
	}
	if !s.seen.first(m.number) {
		s.mu.Unlock()
		return false
	}
	_, known := s.heard[from]
	fresh := !known && !slices.Contains(s.udp, from)
	switch {
	case known:
	case !fresh:
		s.heard[from] = false
	case s.reflexive < maxReflexive:
		s.reflexive++
		s.heard[from] = false
		s.udp = append(s.udp, from)
	default:
		fresh = false
	}
	s.mu.Unlock()
	_ = s.p.send(probe{echo: true, session: s.keys.id, number: m.number}.append(nil, s.ourKey()), from)
	if fresh {
		s.sendProbe(from)
	}
	return true
}

// knows tells whether an authentic probe has come from an address.
func (s *session) knows(from netip.AddrPort) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.heard[from]
	return ok
}

// connectPaths connects with QUIC where echoes come from, until the session ends.
func (s *session) connectPaths() {
	for range maxPaths {
		select {
		case to := <-s.paths:
			s.spawn(func() { s.openStream(to) })
		case <-s.ctx.Done():
			return
		}
	}
}

// openStream is the initiator's way to a stream of QUIC.
func (s *session) openStream(to netip.AddrPort) {
	accept := func(hash [32]byte) bool { return hash == s.certificate }
	conn, err := s.p.quic.Dial(s.ctx, net.UDPAddrFromAddrPort(to), tlsConfig(s.p.cert, accept), quicConfig(-1))
	if err != nil {
		return
	}
	st, err := conn.OpenStreamSync(s.ctx)
	s.shakeQUIC(conn, st, err)
}

// acceptStream is the responder's.
func (s *session) acceptStream(conn *quic.Conn) {
	st, err := conn.AcceptStream(s.ctx)
	s.shakeQUIC(conn, st, err)
}

func (s *session) shakeQUIC(conn *quic.Conn, st *quic.Stream, err error) {
	if err != nil {
		_ = conn.CloseWithError(quicCloseCode, "")
		return
	}
	if c, err := s.p.adopt(conn, st); err == nil {
		s.shake(c, UDP, nil)
	}
}

// dial connects to an address over TCP, again and again, until it is the other side who answers or the session ends.
func (s *session) dial(to netip.AddrPort) {
	for patience := s.patience; s.ctx.Err() == nil; {
		began := time.Now()
		ctx, cancel := context.WithTimeout(s.ctx, patience)
		c, err := s.p.network.DialTCP(ctx, s.p.listen, to)
		expired := ctx.Err() != nil
		cancel()
		switch {
		case err == nil:
			if s.shake(c, TCP, nil) {
				return
			}
		case errors.Is(err, errors.ErrUnsupported):
			return
		case expired:
			patience *= 2
		}
		// Refused: the other side has not begun yet, or its NAT says so. In use: its own attempt came to our listener.
		pause := time.NewTimer(dialRetry - time.Since(began))
		select {
		case <-pause.C:
		case <-s.ctx.Done():
			pause.Stop()
		}
	}
}

// shake lets both ends of a connection prove that they belong to the attempt. It takes over the connection. On the
// initiator's side it returns when the other has proved itself, on the responder's when the connection is chosen; false if it is not to be.
func (s *session) shake(c net.Conn, proto Proto, known *nonce) bool {
	stop := context.AfterFunc(s.ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	st := &stream{Conn: c, proto: proto}
	var err error
	st.mine, st.theirs, err = s.keys.greet(c, known)
	if err == nil && s.initiator {
		err = expect(c, s.keys.proof(st.mine, st.theirs))
	} else if err == nil {
		err = s.prove(st)
	}
	if !stop() || err != nil {
		if errors.Is(err, errStranger) {
			s.p.counters.strangers.Add(1)
		}
		discard(c)
		return false
	}
	to := s.chosen
	if s.initiator {
		to = s.proven
	}
	select {
	case to <- st:
		return true
	default: // the initiator has chosen twice, or has been offered more connections than there are candidates
		discard(c)
		return false
	}
}

// prove gives the responder's proof and waits to be chosen.
func (s *session) prove(st *stream) error {
	sum := s.keys.proof(st.theirs, st.mine)
	if _, err := st.Write(sum[:]); err != nil {
		return fmt.Errorf("prove: %w", err)
	}
	s.addProofs(1)
	defer s.addProofs(-1)
	return expect(st, s.keys.selection(st.theirs, st.mine))
}

func (s *session) addProofs(d int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proofs += d
}

// choose is the initiator's: the first connection over TCP, or the first over UDP if TCP does
// not follow soon.
func (s *session) choose(timeout <-chan time.Time) *stream {
	var second []*stream
	defer func() {
		for _, c := range second {
			discard(c.Conn)
		}
	}()
	var soon <-chan time.Time
	take := func(c *stream) bool {
		_ = c.SetWriteDeadline(time.Now().Add(selectTime))
		sum := s.keys.selection(c.mine, c.theirs)
		if _, err := c.Write(sum[:]); err != nil {
			discard(c.Conn)
			return false
		}
		return true
	}
	takeSecond := func() *stream {
		for len(second) > 0 {
			c := second[0]
			second = second[1:]
			if take(c) {
				return c
			}
		}
		soon = nil
		return nil
	}
	for {
		select {
		case c := <-s.proven:
			if c.proto == UDP && len(s.tcp) > 0 {
				second = append(second, c)
				if soon == nil {
					soon = time.After(s.patience / 4)
				}
			} else if take(c) {
				return c
			}
		case <-soon:
			if c := takeSecond(); c != nil {
				return c
			}
		case <-timeout:
			return takeSecond()
		case <-s.ctx.Done():
			return nil
		}
	}
}

// await is the responder's: whatever the initiator chooses.
func (s *session) await(timeout <-chan time.Time) *stream {
	for grace := false; ; {
		select {
		case c := <-s.chosen:
			return c
		case <-timeout:
			s.mu.Lock()
			proofs := s.proofs
			s.mu.Unlock()
			if grace || proofs == 0 {
				return nil
			}
			grace = true
			timeout = time.After(selectGrace)
		case <-s.ctx.Done():
			return nil
		}
	}
}

// discard ends a connection that was not chosen. A reset frees its addresses at once.
func discard(c net.Conn) {
	switch c := c.(type) {
	case *quicConn:
		c.abort()
		return
	case interface{ SetLinger(int) error }:
		_ = c.SetLinger(0)
	}
	_ = c.Close()
}
