// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/seed5728abee/fathom/nat"
	"github.com/seed5728abee/fathom/nat/punch"
	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// A reacher knows the sockets that the peer listens on, and the addresses it has.
type reacher struct {
	peer     *Peer
	listener net.Listener
	bound    netip.AddrPort
	puncher  *punch.Puncher // nil where the system does not allow it

	asking sync.Mutex // held while an address is dialled to see who is there; before mu

	mu   sync.Mutex
	mute map[netip.AddrPort]time.Time // addresses at which nobody answered, and when
}

// newReacher listens on an address.
func newReacher(p *Peer, addr netip.AddrPort) (*reacher, error) {
	// The port is shared with outgoing connections for hole punching, which lets another process of this user share
	// it too: so see first that nobody has it.
	plain, err := net.Listen("tcp", addr.String())
	if err != nil {
		return nil, err
	}
	addr = netip.AddrPortFrom(addr.Addr(), addrPort(plain.Addr()).Port())
	r := &reacher{peer: p, listener: plain, bound: addr, mute: make(map[netip.AddrPort]time.Time)}
	plain.Close()
	r.listener, err = punch.ListenTCP(p.ctx, addr)
	if errors.Is(err, errors.ErrUnsupported) {
		r.listener, err = net.Listen("tcp", addr.String())
	}
	if err != nil {
		return nil, err
	}
	r.puncher, err = punch.New(punch.Options{Listen: addr, Log: p.log})
	if err != nil {
		// Another program may have the UDP port: all but hole punching works without.
		p.log.Info("no hole punching", "error", err)
		r.puncher = nil
	}
	return r, nil
}

func (r *reacher) port() uint16 { return r.bound.Port() }

func (r *reacher) close() {
	if r.puncher != nil {
		r.puncher.Close()
	}
}

// candidates are the addresses under which this peer may be reached without help: the one it is bound to, or those of
// the machine, the one that leads to the outside first.
func (r *reacher) candidates() []netip.AddrPort {
	if !r.bound.Addr().IsUnspecified() {
		return []netip.AddrPort{r.bound}
	}
	var list, loopback []netip.AddrPort
	add := func(a netip.Addr) {
		a = a.Unmap()
		ap := netip.AddrPortFrom(a, r.bound.Port())
		switch {
		case a.IsLinkLocalUnicast() || a.IsMulticast() || a.Zone() != "" || r.bound.Addr().Is4() && !a.Is4() || slices.Contains(list, ap):
		case a.IsLoopback():
			loopback = append(loopback, ap)
		default:
			list = append(list, ap)
		}
	}
	// Connecting a UDP socket sends nothing: it asks the routing table which source address leads there.
	for _, outside := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} {
		if c, err := net.Dial("udp", outside); err == nil {
			add(addrPort(c.LocalAddr()).Addr())
			c.Close()
		}
	}
	addrs, err := punch.System.Addrs()
	if err != nil {
		r.peer.log.Warn("addresses of this machine", "error", err)
	}
	for _, a := range addrs {
		add(a)
	}
	if len(list) == 0 {
		return loopback[:min(len(loopback), 1)]
	}
	return list[:min(len(list), member.MaxAddrs-2)]
}

// isOwn reports whether an address is one of this machine's.
func (r *reacher) isOwn(a netip.Addr) bool {
	if r.bound.Addr() == a || a.IsLoopback() {
		return true
	}
	addrs, _ := punch.System.Addrs()
	return slices.Contains(addrs, a)
}

// Of addresses at which nobody answered.
const (
	maxMute  = 1024
	muteLife = time.Minute
)

// isMute reports whether nobody answered at an address a short while ago.
func (r *reacher) isMute(addr netip.AddrPort) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	since, ok := r.mute[addr]
	return ok && time.Since(since) < muteLife
}

func (r *reacher) setMute(addr netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.mute) >= maxMute {
		clear(r.mute)
	}
	r.mute[addr] = time.Now()
}

// dial connects to an address.
func (r *reacher) dial(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	if !r.bound.Addr().IsUnspecified() && r.bound.Addr().Is4() == addr.Addr().Is4() && r.bound.Addr().IsLoopback() == addr.Addr().IsLoopback() {
		// A member speaks from the address that it is known by.
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(r.bound.Addr(), 0))
	}
	return d.DialContext(ctx, "tcp", addr.String())
}

// punched hands a connection that came in to the hole punching it belongs to, and gives it back if it belongs to none.
func (r *reacher) punched(conn net.Conn) (rest net.Conn, taken bool, err error) {
	if r.puncher == nil {
		return conn, false, nil
	}
	return r.puncher.Take(conn)
}

// reach makes a link to a member by the best way there is: one of its addresses, or one of its hosts.
func (p *Peer) reach(ctx context.Context, to member.Contact) (*session, error) {
	if to.ID == p.ID() {
		return nil, errSelf
	}
	type result struct {
		s   *session
		err error
	}
	direct := make(chan result, 1)
	if !p.background(func(life context.Context) {
		ctx, cancel := context.WithTimeout(life, dialTimeout)
		defer cancel()
		s, err := p.dialDirect(ctx, to)
		direct <- result{s, err}
	}) {
		return nil, net.ErrClosed
	}
	through := make(chan result, 1)
	goThrough := func() bool {
		return p.background(func(context.Context) {
			s, err := p.dialThrough(ctx, to)
			if err == nil {
				p.background(func(ctx context.Context) { p.upgrade(ctx, s) })
			}
			through <- result{s, err}
		})
	}
	pending := 1 // ways that have not failed yet
	wait := detourAfter
	if to.Leaf {
		wait = 0 // its addresses are good on its own LAN, at most
	}
	detour := time.NewTimer(wait)
	defer detour.Stop()
	var failures []error
	for pending > 0 {
		var r result
		select {
		case <-detour.C:
			if goThrough() {
				pending++
			}
			continue
		case r = <-direct:
			switch {
			case r.err == nil || errors.Is(r.err, errIsOriginal) || !detour.Stop():
			case !to.Leaf && errors.Is(r.err, errNobody):
				// The host is there and the member is not: others do not find it either.
			case goThrough():
				pending++
			}
		case r = <-through:
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w: %w", to, wire.ErrUnreachable, errors.Join(append(failures, ctx.Err())...))
		}
		if r.err == nil || errors.Is(r.err, errIsOriginal) {
			return r.s, r.err
		}
		failures = append(failures, r.err)
		pending--
	}
	return nil, fmt.Errorf("%s: %w: %w", to, wire.ErrUnreachable, errors.Join(failures...))
}

// detourAfter is how long a member's own addresses have for themselves, before its hosts and others are asked as well.
const detourAfter = time.Second

// errNobody says that the hosts at all addresses of a member are there, and the member is not.
var errNobody = errors.New("nobody listens there")

// dialDirect tries the addresses of a member, one more every dialStagger, until one answers.
func (p *Peer) dialDirect(ctx context.Context, to member.Contact) (*session, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		s   *session
		err error
	}
	own := p.contact().Addrs
	addrs := slices.DeleteFunc(slices.Clone(to.Addrs), func(a netip.AddrPort) bool {
		return slices.Contains(own, a) || a.Addr().IsUnspecified() || a.Addr().IsMulticast() || !p.mayDial(a.Addr())
	})
	if len(addrs) == 0 {
		return nil, errors.New("it has no address")
	}
	results := make(chan result, len(addrs))
	next := time.NewTimer(0)
	defer next.Stop()
	var failures []error
	for started, failed := 0, 0; ; {
		var more <-chan time.Time
		if started < len(addrs) {
			more = next.C
		}
		select {
		case <-more:
			addr := addrs[started]
			started++
			if !p.background(func(context.Context) {
				s, err := p.dialAddr(ctx, addr, to)
				if err != nil {
					err = fmt.Errorf("%s: %w", addr, err)
				}
				results <- result{s, err}
			}) {
				return nil, net.ErrClosed
			}
			next.Reset(dialStagger)
		case r := <-results:
			if r.err == nil || errors.Is(r.err, errIsOriginal) {
				return r.s, r.err
			}
			failures = append(failures, r.err)
			if failed++; failed == len(addrs) {
				err := errors.Join(failures...)
				if !slices.ContainsFunc(failures, func(err error) bool { return !errors.Is(err, syscall.ECONNREFUSED) }) {
					return nil, fmt.Errorf("%w: %w", errNobody, err)
				}
				return nil, err
			}
			next.Reset(0)
		}
	}
}

// mayDial reports whether an address that others have named may be dialled. Those of this machine alone, and of the wire
// it is on, are for swarms that live there: others could use them to knock at doors that are closed to them.
func (p *Peer) mayDial(a netip.Addr) bool {
	local := func(a netip.Addr) bool { return a.IsLoopback() || a.IsLinkLocalUnicast() }
	return !local(a) || slices.ContainsFunc(p.contact().Addrs, func(own netip.AddrPort) bool { return local(own.Addr()) }) ||
		slices.ContainsFunc(p.links.all(), func(s *session) bool { return local(addrPort(s.RemoteAddr()).Addr()) })
}

// dialAddr connects to an address and makes a link to whoever answers, which has to be to if that has an ID. What
// speaks the original protocol is handed to the gateway, with errIsOriginal.
func (p *Peer) dialAddr(ctx context.Context, addr netip.AddrPort, to member.Contact) (*session, error) {
	return p.dialFor(ctx, addr, wanted{dialled: true, to: to})
}

// dialFor is dialAddr for a link of a certain kind.
func (p *Peer) dialFor(ctx context.Context, addr netip.AddrPort, w wanted) (*session, error) {
	conn, err := p.reacher.dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	if p.gateway != nil && w.to.Dialect == member.Unknown && addr.Addr().Is4() { // originals know IPv4 only
		native, err := p.gateway.Hail(ctx, conn, w.to.ID, addr) // which owns conn from now on
		if err != nil {
			return nil, err
		}
		if native == nil {
			return nil, errIsOriginal
		}
		conn = native
	}
	return p.secure(ctx, conn, w)
}

// dialThrough makes a link through a host of the member, or through one that may well be linked to it.
func (p *Peer) dialThrough(ctx context.Context, to member.Contact) (*session, error) {
	var failures []error
	for _, h := range to.Hosts {
		if h.ID == p.ID() {
			continue // then it would be linked
		}
		host, err := p.links.session(ctx, h)
		if err == nil {
			var s *session
			if s, err = p.circuit(ctx, host, to, false); err == nil {
				return s, nil
			}
		}
		failures = append(failures, err)
	}
	if !to.Leaf {
		for _, host := range p.carriers(to, fewHosts) {
			s, err := p.circuit(ctx, host, to, false)
			if err == nil {
				return s, nil
			}
			failures = append(failures, err)
		}
	}
	return nil, fmt.Errorf("through %d hosts: %w", len(failures), errors.Join(failures...))
}

const fewHosts = 3

// carriers returns links to members that may carry a circuit to another: its hosts, those nearest to it on the ring,
// then any; at most n.
func (p *Peer) carriers(to member.Contact, n int) []*session {
	var list []*session
	add := func(s *session) {
		if s != nil && len(list) < n && s.how == Direct && s.hello.forwards && s.contact.ID != to.ID && !s.contact.Leaf && !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	for _, h := range to.Hosts {
		add(p.links.live(h.ID))
	}
	sessions := p.links.all()
	slices.SortFunc(sessions, func(a, b *session) int {
		return nearness(to.ID, a.contact.ID).Compare(nearness(to.ID, b.contact.ID))
	})
	for _, s := range sessions {
		add(s)
	}
	return list
}

// nearness is the distance between two places by the shorter way.
func nearness(a, b Hash) Hash {
	there, back := a.Distance(b), b.Distance(a)
	if there.Compare(back) < 0 {
		return there
	}
	return back
}

// upgrade tries to find a way that needs no host for a link that goes by a circuit.
func (p *Peer) upgrade(ctx context.Context, s *session) {
	if p.reacher.puncher == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, punchTimeout)
	defer cancel()
	mine, err := p.reacher.offer(ctx)
	if err != nil {
		p.log.Debug("no offer to meet", "error", err)
		return
	}
	encoded, err := mine.Append(nil)
	if err != nil {
		p.log.Debug("no offer to meet", "error", err)
		return
	}
	answer, err := p.links.call(ctx, s, wire.Meet{From: p.contact(), To: s.contact.ID, Offer: encoded})
	met, ok := answer.(wire.Met)
	if err != nil || !ok {
		p.log.Debug("no meeting", "member", s.contact.String(), "error", err)
		return
	}
	theirs, err := punch.ParseOffer(met.Offer)
	if err != nil {
		p.log.Debug("no meeting", "member", s.contact.String(), "error", err)
		return
	}
	p.meetAt(ctx, s.contact, punch.Attempt{Mine: mine, Theirs: theirs, Initiator: true, RTT: s.RTT()})
}

const punchTimeout = 4 * time.Second

// meet answers an offer to meet, and begins to punch.
func (p *Peer) meet(ctx context.Context, s *session, m wire.Meet) wire.Message {
	if m.To != p.ID() || m.From.ID != s.contact.ID {
		return wire.Refused{Code: wire.Invalid, Reason: "not for this member"}
	}
	if p.reacher.puncher == nil {
		return wire.Refused{Code: wire.Unsupported, Reason: "this member does not punch holes"}
	}
	theirs, err := punch.ParseOffer(m.Offer)
	if err != nil {
		return wire.Refused{Code: wire.Invalid, Reason: err.Error()}
	}
	if !s.meeting.CompareAndSwap(false, true) {
		return wire.Refused{Code: wire.Overloaded, Reason: "one after the other"}
	}
	ctx, stop := context.WithTimeout(ctx, punchTimeout)
	cancel := func() {
		stop()
		s.meeting.Store(false)
	}
	mine, err := p.reacher.offer(ctx)
	if err != nil {
		cancel()
		return wire.Refused{Code: wire.Unsupported, Reason: err.Error()}
	}
	encoded, err := mine.Append(nil)
	if err != nil || !p.background(func(context.Context) {
		defer cancel()
		// The other side begins when it has the answer.
		p.meetAt(ctx, s.contact, punch.Attempt{Mine: mine, Theirs: theirs, Start: time.Now().Add(s.RTT() / 2), RTT: s.RTT()})
	}) {
		cancel()
		return wire.Refused{Code: wire.Leaving, Reason: "no offer"}
	}
	return wire.Met{Offer: encoded}
}

// meetAt punches a hole and makes a link of what comes through.
func (p *Peer) meetAt(ctx context.Context, with member.Contact, a punch.Attempt) {
	result, err := p.reacher.puncher.Punch(ctx, a)
	if err != nil {
		p.counters.punchFailures.Add(1)
		p.log.Debug("hole punching failed: the circuit stays", "member", with.String(), "error", err)
		return
	}
	how := PunchedTCP
	if result.How == punch.UDP {
		how = PunchedUDP
	}
	if _, err := p.secure(ctx, result.Conn, wanted{dialled: a.Initiator, to: with, how: how}); err != nil {
		p.log.Debug("link through the hole", "member", with.String(), "error", err)
		return
	}
	p.counters.punched.Add(1)
	p.log.Debug("link up", "member", with.String(), "how", how.String(), "took", result.Took)
}

// offer makes an offer to meet, with what other members see of this peer.
func (r *reacher) offer(ctx context.Context) (punch.Offer, error) {
	if witnesses := r.witnesses(); len(witnesses) > 0 {
		if _, err := r.puncher.Observe(ctx, witnesses...); err != nil {
			r.peer.log.Debug("nobody tells this peer's address", "error", err)
		}
	}
	var known []punch.Candidate
	if m := r.peer.mapper.state(); m != nil {
		known = append(known, punch.Candidate{Addr: m.External, Proto: punch.TCP, Kind: punch.Mapped})
		if m.Protocol&nat.UDP != 0 {
			known = append(known, punch.Candidate{Addr: m.External, Proto: punch.UDP, Kind: punch.Mapped})
		}
	}
	return r.puncher.Offer(known...)
}

// witnesses are where members answer, over UDP, which address they see: the port is that of their listener.
func (r *reacher) witnesses() []netip.AddrPort {
	var list []netip.AddrPort
	for _, s := range r.peer.links.all() {
		if s.how != Direct || s.contact.Leaf || len(list) == fewHosts {
			continue
		}
		remote := addrPort(s.RemoteAddr())
		if a := s.contact.Addr(); !s.outbound && a.IsValid() {
			remote = a
		}
		if remote.IsValid() {
			list = append(list, remote)
		}
	}
	return list
}

// try dials the candidates of a member afresh, for it to learn which of them lead to it.
func (p *Peer) try(ctx context.Context, s *session, m wire.Try) wire.Message {
	if m.From.ID != s.contact.ID || m.From.Verify(p.o.Binding) != nil {
		return wire.Refused{Code: wire.Invalid, Reason: "a member can ask for itself only"}
	}
	if !s.trying.CompareAndSwap(false, true) {
		return wire.Refused{Code: wire.Overloaded, Reason: "one after the other"}
	}
	defer s.trying.Store(false)
	defer p.tries.Add(-1)
	if p.tries.Add(1) > maxTries {
		return wire.Refused{Code: wire.Overloaded, Reason: "trying for others"}
	}
	remote := addrPort(s.RemoteAddr()).Addr()
	reached := make([]bool, len(m.From.Addrs))
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for i, a := range m.From.Addrs {
		// Nobody is dialled but the host that asks: members are no means of attacking others.
		if s.how != Direct || a.Addr() != remote && (!remote.IsLoopback() || !p.reacher.isOwn(a.Addr())) {
			continue
		}
		wg.Go(func() {
			conn, err := p.reacher.dial(ctx, a)
			if err != nil {
				return
			}
			if t, err := p.secure(ctx, conn, wanted{dialled: true, to: member.Contact{ID: m.From.ID, Key: m.From.Key}, private: true}); err == nil {
				reached[i] = true
				t.Bye(0, "")
			}
		})
	}
	wg.Wait()
	return wire.Tried{Reached: reached}
}

const (
	tryTimeout = time.Second
	maxTries   = 32 // requests to try at a time, each of up to member.MaxAddrs connections
)

// entryTimeout bounds the way to the first member. An original in a ring that has not settled takes its time, and asks
// others first: 10 s is what originals themselves allow for it.
const entryTimeout = 12 * time.Second

// isReachable asks a member whether it can dial this peer at one of its addresses, and returns the one it reached.
func (p *Peer) isReachable(ctx context.Context, s *session, self member.Contact) (netip.AddrPort, bool) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout+time.Second)
	defer cancel()
	answer, err := p.links.call(ctx, s, wire.Try{From: self})
	tried, ok := answer.(wire.Tried)
	if err != nil || !ok {
		p.log.Debug("reachability", "asked", s.contact.String(), "error", err)
		return netip.AddrPort{}, false
	}
	for i, r := range tried.Reached {
		if r && i < len(self.Addrs) {
			return self.Addrs[i], true
		}
	}
	return netip.AddrPort{}, false
}

// enter joins the swarm through the peer at an address.
func (p *Peer) enter(ctx context.Context, address string) error {
	addr, err := resolve(ctx, address)
	if err != nil {
		return err
	}
	if addr.Addr().IsUnspecified() {
		return fmt.Errorf("%s is no address that leads anywhere", addr)
	}
	// Until others have found out that they can reach this peer, it claims no place on the ring. One that others are in
	// a ring with already has been reached.
	settling := p.alone() && !p.o.Reachable
	if settling {
		p.setSelf(ctx, func(c *member.Contact) { c.Leaf = true })
	}
	err = p.enterAt(ctx, addr, settling)
	if err != nil && settling && !p.o.Unreachable && p.alone() {
		p.setSelf(ctx, func(c *member.Contact) { c.Leaf = false }) // others may still come here
	}
	return err
}

func (p *Peer) enterAt(ctx context.Context, addr netip.AddrPort, settling bool) error {
	err := error(nil)
	if settling {
		err = p.settle(ctx, addr)
	}
	s := p.links.at(addr)
	if s == nil && err == nil {
		dialCtx, cancel := context.WithTimeout(ctx, entryTimeout)
		defer cancel()
		s, err = p.dialAddr(dialCtx, addr, member.Contact{Addrs: []netip.AddrPort{addr}})
	}
	if errors.Is(err, errIsOriginal) {
		// Originals cannot tell whether they reach this peer, and it has to be in the ring for them to try.
		p.setSelf(ctx, func(c *member.Contact) { c.Leaf = p.o.Unreachable })
		entry, err := p.gateway.Join(ctx, addr)
		if err != nil {
			return err
		}
		return p.node().Join(ctx, entry)
	}
	if err != nil {
		return err
	}
	return p.node().Join(ctx, s.contact)
}

// settle finds out from the peer at an address how others see this one and whether they can reach it, and says so in its
// contact. The link that it asks over is for nothing else: behind a NAT the address that a peer has of itself is not one
// that it could prove to be its own.
func (p *Peer) settle(ctx context.Context, addr netip.AddrPort) error {
	dialCtx, cancel := context.WithTimeout(ctx, entryTimeout)
	defer cancel()
	s, err := p.dialFor(dialCtx, addr, wanted{dialled: true, to: member.Contact{Addrs: []netip.AddrPort{addr}}, private: true})
	if err != nil {
		return err
	}
	defer s.Bye(0, "")
	self, observed := p.contact(), s.hello.observed
	leaf, best := p.o.Unreachable, netip.AddrPort{}
	if !p.o.Unreachable {
		ask := self
		if observed.IsValid() {
			// A router that forwards a port by hand does so to the same port, most likely.
			guess := netip.AddrPortFrom(observed.Addr(), p.reacher.port())
			if !slices.Contains(ask.Addrs, guess) && len(ask.Addrs) < member.MaxAddrs {
				ask.Addrs = append(slices.Clip(ask.Addrs), guess)
			}
		}
		reached, ok := p.isReachable(ctx, s, ask)
		if leaf = !ok; ok {
			best = reached
		}
	}
	if leaf && observed.IsValid() && !p.o.External.IsValid() {
		// Its own addresses are good on its LAN only, and others may have the same there: as seen from outside it is one
		// of a kind.
		best = observed
	}
	if leaf {
		p.log.Info("others cannot reach this peer: it stays at the edge of the ring, and is met through its hosts")
	}
	p.setSelf(ctx, func(c *member.Contact) {
		c.Leaf = leaf
		if best.IsValid() && best != c.Addr() && !slices.Contains(c.Addrs, best) {
			c.Addrs = prefer(best, c.Addrs)
		}
	})
	if now := p.contact(); now.Leaf != self.Leaf || !slices.Equal(now.Addrs, self.Addrs) {
		p.links.drop() // what it said about itself when they were made no longer holds
	}
	return nil
}

// prefer puts an address first.
func prefer(first netip.AddrPort, addrs []netip.AddrPort) []netip.AddrPort {
	list := []netip.AddrPort{first}
	for _, a := range addrs {
		if a != first && len(list) < member.MaxAddrs {
			list = append(list, a)
		}
	}
	return list
}

// maintain keeps links, reachability and membership in order until the peer closes.
func (p *Peer) maintain(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	reaped, looked, published, checked := time.Now(), time.Now(), time.Now(), time.Now()
	known := false // the name is published, of a member that has joined nobody
	for alone := 0; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := time.Now()
		if now.Sub(reaped) >= reapInterval {
			reaped = now
			p.reap()
		}
		if !p.isConnected() {
			alone = 0
			// The first member of a swarm joins nobody, and has a name and an address to publish all the same.
			if p.alone() {
				known = false
			} else if !known || now.Sub(published) >= publishInterval {
				known, published = true, now
				p.publishName(ctx)
			}
			continue
		}
		if p.alone() {
			// Everyone whom the ring knew is gone.
			if alone++; alone%rejoinEvery == 2 {
				p.rejoin(ctx)
			}
			continue
		}
		alone = 0
		if now.Sub(looked) >= mergeInterval {
			looked = now.Add(-rand.N(mergeInterval / 4))
			p.lookAround(ctx)
		}
		if now.Sub(checked) >= checkInterval {
			checked = now
			p.recheck(ctx)
		}
		if now.Sub(published) >= publishInterval {
			published = now
			p.publishName(ctx)
		}
	}
}

const (
	rejoinEvery     = 5                // seconds between attempts to come back
	mergeInterval   = 10 * time.Second // between looks at bootstrap peers outside our ring
	publishInterval = 10 * time.Minute
	checkInterval   = 5 * time.Minute // between looks at whether others can reach this peer
)

// recheck finds out whether what holds about this peer's reachability still does: routers are set up, restarted and
// replaced while programs run. It takes two members to agree that a peer has become unreachable.
func (p *Peer) recheck(ctx context.Context) {
	if p.o.Reachable || p.o.Unreachable {
		return
	}
	witnesses := p.carriers(p.contact(), 2)
	reached := slices.ContainsFunc(witnesses, func(s *session) bool {
		_, ok := p.isReachable(ctx, s, p.contact())
		return ok
	})
	if len(witnesses) < 2 && !reached || reached != p.contact().Leaf {
		return
	}
	p.log.Info("reachability has changed", "reachable", reached)
	p.setSelf(ctx, func(c *member.Contact) { c.Leaf = !reached })
	p.links.drop() // it said otherwise when they were made
}

func (p *Peer) isConnected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.connected
}

// reap closes links that nobody needs.
func (p *Peer) reap() {
	needed := make(map[Hash]bool)
	for _, c := range p.node().Table() {
		needed[c.ID] = true
	}
	snap := p.node().Snapshot()
	for _, list := range [][]member.Contact{snap.Self.Hosts, snap.Leaves} {
		for _, c := range list {
			needed[c.ID] = true
		}
	}
	p.links.reap(func(id Hash) bool { return needed[id] })
}

// rejoin comes back through the bootstrap peers.
func (p *Peer) rejoin(ctx context.Context) {
	for _, a := range p.bootstrap() {
		err := p.enter(ctx, a)
		if err == nil {
			p.log.Info("back in the swarm", "through", a)
			return
		}
		p.log.Debug("rejoin", "through", a, "error", err)
	}
}

// lookAround links to one of the bootstrap peers. If it is in another ring, the ring finds out and the two become one.
func (p *Peer) lookAround(ctx context.Context) {
	entries := p.bootstrap()
	if len(entries) == 0 {
		return
	}
	address := entries[rand.N(len(entries))]
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	addr, err := resolve(ctx, address)
	if err != nil || slices.Contains(p.contact().Addrs, addr) {
		return
	}
	if s := p.links.at(addr); s != nil {
		p.node().Learn(s.contact)
		return
	}
	if p.originalAt(addr) {
		return // each connection costs one of those, and it is linked already
	}
	if _, err := p.dialAddr(ctx, addr, member.Contact{Addrs: []netip.AddrPort{addr}}); err != nil {
		p.log.Debug("bootstrap peer", "address", address, "error", err)
	}
}

func (p *Peer) bootstrap() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.entries
}
