// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed5728abee/fathom/swarm/link"
	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// How says by which kind of way a link goes. Better ways have lower numbers, and are taken where there are several.
type How uint8

const (
	// Direct links were dialled, by either side.
	Direct How = iota
	// PunchedTCP and PunchedUDP links go through a hole that both sides made in their NATs at the same time.
	PunchedTCP
	PunchedUDP
	// Circuit links are carried by a host that both sides have a link to; it cannot read what passes.
	Circuit
	// ToOriginal is a connection in the original protocol.
	ToOriginal
)

func (h How) String() string {
	names := [...]string{"direct", "punched tcp", "punched udp", "circuit", "original"}
	if int(h) < len(names) {
		return names[h]
	}
	return fmt.Sprintf("How(%d)", uint8(h))
}

// MarshalText returns the name.
func (h How) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// Times of links.
const (
	dialTimeout  = 5 * time.Second        // for a connection and its handshake
	dialStagger  = 100 * time.Millisecond // between one address and the next (RFC 8305 has 250 ms for the Internet)
	retryDialIn  = time.Second            // a member that could not be reached is left alone that long
	firstTimeout = 2 * time.Second        // for an answer, before any round trip has been measured
	minTimeout   = 400 * time.Millisecond // a busy machine is no dead one
	maxTimeout   = 6 * time.Second
	idleLife     = time.Minute // what was dialled, is not used and leads to nobody in our tables is closed
	reapInterval = 10 * time.Second
)

// links keeps the links to other members and carries messages over them: the transport of the ring and the broadcast.
type links struct {
	peer *Peer

	mu      sync.Mutex
	members map[Hash]*linked
	hosts   map[netip.Addr]int // links that came in, by where from: see hostOf
	closed  bool
	count   int // sessions in all

	// Constant: maxLinks and maxLinksPerHost, but in tests.
	most, mostPerHost int
}

// Bounds on the links that others can make this peer keep. They are far above what a member needs: some hundred, and one
// for each of its leaves.
const (
	maxLinks          = 8192
	maxLinksPerHost   = 2048 // that came in from one address: many may share one
	maxLinksPerMember = 8    // by both sides, over different ways, and old ones that have not been noticed to be dead
)

var errTooMany = errors.New("this member has as many links as it can have")

var _ wire.Transport = (*links)(nil)

// A linked is what is known about the links to one member. links.mu guards it.
type linked struct {
	contact  member.Contact
	sessions []*session // live, the best way first, of equals the oldest
	dialling *dialling
	failed   time.Time      // when dialling last failed
	tried    member.Contact // as it was known then
	reason   error
	rtt      time.Duration // smoothed
	greeted  bool          // the NewPeer hook has had it
}

// dialling is one attempt to reach a member that all who want it wait for.
type dialling struct {
	to      member.Contact
	done    chan struct{}
	session *session
	err     error
}

// A session is a link that is up, and the handler of what comes in over it.
type session struct {
	*link.Session
	peer     *Peer
	contact  member.Contact // as it said, checked
	hello    hello
	how      How
	via      Hash // the host of a Circuit
	outbound bool
	private  bool       // made for one purpose, by this side
	host     netip.Addr // that it counts for in links.hosts; invalid if for none
	since    time.Time
	used     atomic.Int64  // when it was last used, Unix nanoseconds
	streams  atomic.Int32  // open for applications and circuits
	carried  atomic.Int32  // circuits carried for the member
	trying   atomic.Bool   // its addresses
	meeting  atomic.Bool   // punching, as it asked
	gone     chan struct{} // closed when it is no longer registered
	went     sync.Once     // for gone
	ready    chan struct{} // closed when the fields above are set and the link is registered
}

func newLinks(p *Peer) *links {
	return &links{
		peer: p, members: make(map[Hash]*linked), hosts: make(map[netip.Addr]int), most: maxLinks, mostPerHost: maxLinksPerHost,
	}
}

// Call sends a request and waits for the answer; see [wire.Transport].
func (l *links) Call(ctx context.Context, to member.Contact, request wire.Message) (wire.Message, error) {
	if g := l.peer.gateway; g != nil && l.isOriginal(to) {
		return g.Call(ctx, to, request)
	}
	if to.Dialect == member.Original {
		return nil, fmt.Errorf("%s to %s: %w: originals are not let in here", request.Kind(), to, wire.ErrUnreachable)
	}
	for attempt := 0; ; attempt++ {
		s, err := l.session(ctx, to)
		if err != nil {
			if g := l.peer.gateway; g != nil && errors.Is(err, errIsOriginal) {
				return g.Call(ctx, to, request)
			}
			return nil, err
		}
		m, err := l.call(ctx, s, request)
		// A link that ended under the request says nothing about the member: it may have been one too many. Asking
		// twice does no harm.
		if err == nil || attempt == 1 || ctx.Err() != nil || !s.ended() {
			return m, err
		}
		select {
		case <-s.gone:
		case <-ctx.Done():
		}
	}
}

func (l *links) call(ctx context.Context, s *session, request wire.Message) (wire.Message, error) {
	body := wire.Append(nil, request)
	l.peer.hookSend(s, body)
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, l.timeout(s.contact.ID))
		defer cancel()
	}
	s.touch()
	began := time.Now()
	answer, err := s.Session.Call(ctx, body)
	if err != nil {
		if ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			l.doubt(s)
		}
		return nil, fmt.Errorf("%s to %s: %w: %w", request.Kind(), s.contact, wire.ErrUnreachable, err)
	}
	l.measured(s.contact.ID, request.Kind(), time.Since(began))
	m, err := wire.Decode(answer)
	if err != nil {
		l.peer.counters.malformed.Add(1)
		return nil, fmt.Errorf("%s to %s: %w", request.Kind(), s.contact, err)
	}
	if refused, ok := m.(wire.Refused); ok {
		return nil, refused
	}
	return m, nil
}

// Cast sends a message without waiting, over a link that is there already or is dialled in the background.
func (l *links) Cast(to member.Contact, message wire.Message) {
	if g := l.peer.gateway; g != nil && l.isOriginal(to) {
		g.Cast(to, message)
		return
	}
	send := func(s *session) {
		body := wire.Append(nil, message)
		l.peer.hookSend(s, body)
		s.touch()
		s.Session.Cast(body)
	}
	if s := l.live(to.ID); s != nil {
		send(s)
		return
	}
	l.peer.background(func(ctx context.Context) {
		if s, err := l.session(ctx, to); err == nil {
			send(s)
		}
	})
}

// RTT returns the measured round trip to a member.
func (l *links) RTT(id member.ID) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m := l.members[id]; m != nil {
		return m.rtt
	}
	return 0
}

// timeout is how long an answer can be expected to take.
func (l *links) timeout(id member.ID) time.Duration {
	rtt := l.RTT(id)
	if rtt == 0 {
		return firstTimeout
	}
	return min(max(8*rtt, minTimeout), maxTimeout)
}

// measured takes in how long an answer took. Only those count that a member gives from its own knowledge.
func (l *links) measured(id member.ID, kind wire.Kind, took time.Duration) {
	if kind != wire.KindState && kind != wire.KindPing && kind != wire.KindStep {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.members[id]
	switch {
	case m == nil:
	case m.rtt == 0:
		m.rtt = took
	default:
		m.rtt += (took - m.rtt) / 8 // RFC 6298
	}
}

// doubt finds out whether a member that has not answered is there at all, and ends the link if not.
func (l *links) doubt(s *session) {
	l.peer.background(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, l.timeout(s.contact.ID))
		defer cancel()
		if _, err := s.Ping(ctx); err != nil {
			s.Bye(link.CodeClosed, "no answer")
		}
	})
}

// live returns the best link to a member, nil if there is none.
func (l *links) live(id Hash) *session {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.liveLocked(id)
}

func (l *links) liveLocked(id Hash) *session {
	if m := l.members[id]; m != nil && len(m.sessions) > 0 {
		return m.sessions[0]
	}
	return nil
}

// session returns a link to a member, and dials it if there is none.
func (l *links) session(ctx context.Context, to member.Contact) (*session, error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, net.ErrClosed
	}
	if s := l.liveLocked(to.ID); s != nil {
		l.mu.Unlock()
		return s, nil
	}
	m := l.members[to.ID]
	if m == nil {
		m = &linked{contact: to}
		l.members[to.ID] = m
	}
	// Members are known from hearsay too: addresses that lead nowhere say nothing about others that may be right.
	if time.Since(m.failed) < retryDialIn && !m.failed.IsZero() && m.tried.Equal(to) {
		err := m.reason
		l.mu.Unlock()
		return nil, err
	}
	d := m.dialling
	if d == nil || !d.to.Equal(to) {
		d = &dialling{to: to, done: make(chan struct{})}
		m.dialling = d
		// The attempt outlives who asked for it first: others wait for it too.
		if !l.peer.background(func(ctx context.Context) { l.dial(ctx, to, d) }) {
			m.dialling = nil
			l.mu.Unlock()
			return nil, net.ErrClosed
		}
	}
	l.mu.Unlock()
	select {
	case <-d.done:
		return d.session, d.err
	case <-ctx.Done():
		return nil, fmt.Errorf("dial %s: %w: %w", to, wire.ErrUnreachable, context.Cause(ctx))
	}
}

// dial makes one attempt to reach a member by all its ways.
func (l *links) dial(ctx context.Context, to member.Contact, d *dialling) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	d.session, d.err = l.peer.reach(ctx, to)
	l.mu.Lock()
	if m := l.members[to.ID]; m != nil {
		if m.dialling == d {
			m.dialling = nil
		}
		if d.err == nil || errors.Is(d.err, errIsOriginal) {
			m.failed = time.Time{}
		} else if s := l.liveLocked(to.ID); s != nil {
			d.session, d.err = s, nil // it has come to us meanwhile
		} else {
			m.failed, m.tried, m.reason = time.Now(), to, d.err
		}
	}
	l.mu.Unlock()
	if d.err != nil && !errors.Is(d.err, errIsOriginal) {
		l.peer.node().Suspect(to.ID)
	}
	close(d.done)
}

// add registers a link that is up. The caller has checked who is at its other end.
func (l *links) add(s *session) error {
	host := netip.Addr{}
	if !s.outbound && s.how == Direct {
		host = hostOf(s.RemoteAddr())
	}
	l.mu.Lock()
	m := l.members[s.contact.ID]
	switch {
	case l.closed:
		l.mu.Unlock()
		return net.ErrClosed
	case l.count >= l.most, host.IsValid() && l.hosts[host] >= l.mostPerHost, m != nil && len(m.sessions) >= maxLinksPerMember:
		l.mu.Unlock()
		return errTooMany
	}
	if s.host = host; host.IsValid() {
		l.hosts[host]++
	}
	if m == nil {
		m = &linked{}
		l.members[s.contact.ID] = m
	}
	m.contact, m.failed = s.contact, time.Time{}
	m.sessions = append(m.sessions, s)
	slices.SortStableFunc(m.sessions, func(a, b *session) int { return cmp.Compare(a.how, b.how) })
	l.count++
	greet := !m.greeted
	m.greeted = true
	l.mu.Unlock()
	if greet && l.peer.o.Hooks.NewPeer != nil {
		l.peer.o.Hooks.NewPeer(memberOf(s.contact))
	}
	return nil
}

// hostOf returns what stands for the host at an address: with IPv6 its network, as each host has a whole one (RFC 4291).
func hostOf(a net.Addr) netip.Addr {
	addr := addrPort(a).Addr()
	if addr.Is6() {
		return netip.PrefixFrom(addr, 64).Masked().Addr()
	}
	return addr
}

// outLocked counts a link no more.
func (l *links) outLocked(s *session) {
	l.count--
	if s.host.IsValid() {
		if l.hosts[s.host]--; l.hosts[s.host] == 0 {
			delete(l.hosts, s.host)
		}
	}
}

// keyOf returns the key that a member has proved, nil if nothing is known of that.
func (l *links) keyOf(id Hash) ed25519.PublicKey {
	if s := l.live(id); s != nil {
		return s.contact.Key
	}
	return l.tabled(id).Key
}

// unseat ends the links to whoever had the address of a member before it: there is another key now.
func (l *links) unseat(c member.Contact) {
	var old []*session
	l.mu.Lock()
	if m := l.members[c.ID]; m != nil {
		m.sessions = slices.DeleteFunc(m.sessions, func(s *session) bool {
			if s.contact.Key.Equal(c.Key) {
				return false
			}
			old = append(old, s)
			l.outLocked(s)
			return true
		})
	}
	l.mu.Unlock()
	for _, s := range old {
		s.Bye(link.CodeRefused, "another member has this address now")
	}
}

// remove takes out a link that has ended, and tells the ring when it was the last one to the member.
func (l *links) remove(s *session) {
	l.mu.Lock()
	m := l.members[s.contact.ID]
	last := false
	if m != nil {
		if i := slices.Index(m.sessions, s); i >= 0 {
			m.sessions = slices.Delete(m.sessions, i, i+1)
			l.outLocked(s)
			last = len(m.sessions) == 0
		}
	}
	closed := l.closed
	l.mu.Unlock()
	s.went.Do(func() { close(s.gone) })
	if last && !closed {
		l.peer.node().Suspect(s.contact.ID)
	}
}

// reap forgets what is known about members that there is no link to, and closes links that nobody needs.
func (l *links) reap(needed func(Hash) bool) {
	now := time.Now()
	var idle []*session
	l.mu.Lock()
	for id, m := range l.members {
		for i, s := range m.sessions {
			unused := now.Sub(time.Unix(0, s.used.Load())) > idleLife && s.streams.Load() == 0
			if s.outbound && unused && (i > 0 || !needed(id)) {
				idle = append(idle, s)
			}
		}
		if len(m.sessions) == 0 && m.dialling == nil && now.Sub(m.failed) > idleLife {
			delete(l.members, id)
		}
	}
	l.mu.Unlock()
	for _, s := range idle {
		s.Bye(link.CodeClosed, "no longer needed")
	}
}

// drop says goodbye on all links, and counts on none of them from now on. It does not wait for their ends.
func (l *links) drop() {
	l.mu.Lock()
	var all []*session
	for _, m := range l.members {
		all = append(all, m.sessions...)
		m.sessions = nil
	}
	for _, s := range all {
		l.outLocked(s)
	}
	l.mu.Unlock()
	for _, s := range all {
		s.Bye(link.CodeClosed, "the member's contact has changed")
	}
}

// close ends all links and takes no more.
func (l *links) close() {
	l.mu.Lock()
	l.closed = true
	var all []*session
	for _, m := range l.members {
		all = append(all, m.sessions...)
	}
	l.mu.Unlock()
	var wg sync.WaitGroup
	for _, s := range all {
		wg.Go(func() { s.Close() })
	}
	wg.Wait()
}

// all returns the live links, the best to each member.
func (l *links) all() []*session {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]*session, 0, len(l.members))
	for _, m := range l.members {
		if len(m.sessions) > 0 {
			list = append(list, m.sessions[0])
		}
	}
	return list
}

// ended reports whether the link is over.
func (s *session) ended() bool {
	select {
	case <-s.Done():
		return true
	default:
		return false
	}
}

func (s *session) touch() { s.used.Store(time.Now().UnixNano()) }
