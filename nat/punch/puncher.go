// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package punch

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/seed5728abee/fathom/nat/stun"
)

const (
	// maxAttempts bounds the attempts that a Puncher makes at once.
	maxAttempts = 64
	// maxStrangers bounds the accepted connections that have not shown yet to whom they belong.
	maxStrangers = 64
	// greetTime is how long such a connection has for that.
	greetTime = 2 * time.Second

	// observeTime is how long Observe waits for answers, and observeRetry how often it asks again.
	observeTime  = time.Second
	observeRetry = 150 * time.Millisecond
	maxServers   = 8

	// predictions is how many ports of a counting NAT are offered: other hosts behind it use some, and so do
	// the candidates of this very attempt.
	predictions = 8
	// maxLAN bounds the offered addresses of interfaces, for each transport.
	maxLAN = 4
)

// Errors to branch on.
var (
	// ErrFailed is returned when no connection came about in time. A relay is what is left then.
	ErrFailed = errors.New("no connection came about")
	// ErrNoCandidates is returned when the other side has named no address that could be tried.
	ErrNoCandidates = errors.New("no candidate to try")
	// ErrBusy is returned when too many attempts are being made already.
	ErrBusy = errors.New("too many attempts at once")
)

// Options of a Puncher.
type Options struct {
	// Listen is the address of the peer's TCP listener, made by [ListenTCP]: connections are made from
	// there. The UDP socket has the same address, with another port if that one is taken. Required; the address may be a
	// wildcard, the port must not be 0.
	Listen netip.AddrPort
	// Network is where that is. Default: [System].
	Network Network
	// Log gets a line at level debug for each attempt. Default: none.
	Log *slog.Logger
}

// A Puncher makes connections through NATs for one peer. It owns the UDP socket of the peer, on which it also
// answers STUN requests. Its methods may be called from several goroutines.
type Puncher struct {
	network  Network
	log      *slog.Logger
	listen   netip.AddrPort // of TCP
	udp      net.PacketConn
	udpPort  uint16
	cert     tls.Certificate
	certHash [32]byte
	quic     *quic.Transport
	listener *quic.Listener
	limiter  stun.Limiter
	counters counters

	ctx       context.Context // ends with Close
	cancel    context.CancelFunc
	closing   sync.Once
	wg        sync.WaitGroup // of the goroutines that read and accept
	lingering sync.WaitGroup // of closed QUIC connections
	strangers chan struct{}  // a token for each

	mu        sync.Mutex // guards what follows
	closed    bool
	sessions  map[sessionID]*session
	asked     map[stun.ID]question
	conns     map[*quicConn]struct{}
	behaviour stun.Behaviour
}

// question is a STUN request that waits for its answer.
type question struct {
	server netip.AddrPort
	answer chan<- stun.Answer
}

type counters struct {
	answered, limited, dropped, strangers atomic.Uint64
}

// Stats counts what has come in since New.
type Stats struct {
	Answered  uint64 // STUN requests
	Limited   uint64 // STUN requests left without an answer, because there were too many
	Dropped   uint64 // datagrams that were neither STUN nor proved to belong to an attempt
	Strangers uint64 // connections that did not prove to belong to an attempt
}

// New opens the UDP socket.
func New(o Options) (*Puncher, error) {
	if !o.Listen.IsValid() || o.Listen.Port() == 0 {
		return nil, fmt.Errorf("punch from %v: not a listener's address", o.Listen)
	}
	if o.Network == nil {
		o.Network = System
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	cert, hash, err := newCertificate()
	if err != nil {
		return nil, err
	}
	udp, err := o.Network.ListenUDP(o.Listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		udp, err = o.Network.ListenUDP(netip.AddrPortFrom(o.Listen.Addr(), 0))
	}
	if err != nil {
		return nil, fmt.Errorf("open UDP socket at %v: %w", o.Listen, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Puncher{
		network: o.Network, log: o.Log, listen: o.Listen, udp: udp,
		cert: cert, certHash: hash,
		ctx: ctx, cancel: cancel,
		strangers: make(chan struct{}, maxStrangers),
		sessions:  map[sessionID]*session{},
		asked:     map[stun.ID]question{},
		conns:     map[*quicConn]struct{}{},
	}
	p.udpPort = addrPort(udp.LocalAddr()).Port()
	silenceQUIC()
	p.quic = &quic.Transport{
		Conn:                             udp,
		DisableVersionNegotiationPackets: true,
		// Whoever has not sent an authentic probe from an address gets not even a handshake there.
		ConnContext: func(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
			if !p.expects(addrPort(info.RemoteAddr)) {
				p.counters.strangers.Add(1)
				return nil, errStranger
			}
			return ctx, nil
		},
	}
	p.listener, err = p.quic.Listen(tlsConfig(cert, func(hash [32]byte) bool { return p.responding(hash) != nil }), quicConfig(1))
	if err != nil {
		cancel()
		_ = udp.Close()
		return nil, fmt.Errorf("listen for QUIC at %v: %w", udp.LocalAddr(), err)
	}
	p.wg.Go(p.readUDP)
	p.wg.Go(p.acceptQUIC)
	return p, nil
}

// silenceQUIC keeps quic-go from writing to standard error that the kernel's socket buffers are small; one
// connection's worth of traffic does not need more. There is no other way than the environment.
var silenceQUIC = sync.OnceFunc(func() {
	const variable = "QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING"
	if _, ok := os.LookupEnv(variable); !ok {
		_ = os.Setenv(variable, "true")
	}
})

// Close ends all attempts and all connections over UDP, and closes the socket. TCP connections stay.
func (p *Puncher) Close() error {
	p.closing.Do(func() {
		p.cancel()
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		p.lingering.Wait()
		p.mu.Lock()
		conns := p.conns
		p.conns = map[*quicConn]struct{}{}
		p.mu.Unlock()
		for c := range conns {
			c.abort()
		}
		_ = p.listener.Close()
		_ = p.quic.Close()
		_ = p.udp.Close()
		p.wg.Wait()
	})
	return nil
}

// UDPAddr is the address of the UDP socket, where STUN requests are answered.
func (p *Puncher) UDPAddr() netip.AddrPort { return addrPort(p.udp.LocalAddr()) }

// Stats gives the counters.
func (p *Puncher) Stats() Stats {
	c := &p.counters
	return Stats{Answered: c.answered.Load(), Limited: c.limited.Load(), Dropped: c.dropped.Load(), Strangers: c.strangers.Load()}
}

// Observe asks others with STUN which address the UDP socket has, remembers the answer for [Puncher.Offer],
// and returns it. Servers are UDP addresses of other peers, at most 8; two at different addresses tell whether
// what they see is of use to a third. It takes a round trip, and two when some do not answer; it fails when nobody does
// within a second.
// A prediction of ports ages quickly: ask right before an offer.
func (p *Puncher) Observe(ctx context.Context, servers ...netip.AddrPort) (stun.Behaviour, error) {
	servers = slices.Clone(servers[:min(len(servers), maxServers)])
	ctx, cancel := context.WithTimeout(ctx, observeTime)
	defer cancel()
	answers := make(chan stun.Answer, len(servers))
	ids := make([]stun.ID, len(servers))
	p.mu.Lock()
	for i := range servers {
		servers[i] = netip.AddrPortFrom(servers[i].Addr().Unmap(), servers[i].Port())
		ids[i] = stun.NewID()
		p.asked[ids[i]] = question{servers[i], answers}
	}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, id := range ids {
			delete(p.asked, id)
		}
	}()

	begin := time.Now()
	mapped := map[stun.ID]netip.AddrPort{}
	retry := time.NewTicker(observeRetry)
	defer retry.Stop()
	var enough <-chan time.Time // when the rest is not waited for any longer
	ask := func() (err error) {
		for i, id := range ids {
			if _, ok := mapped[id]; !ok {
				err = cmp.Or(p.send(stun.AppendRequest(nil, id), servers[i]), err)
			}
		}
		return err
	}
	err := ask()
wait:
	for len(mapped) < len(servers) {
		select {
		case a := <-answers:
			mapped[a.ID] = a.Mapped
			enough = time.After(observeRest(len(mapped), time.Since(begin)))
		case <-retry.C:
			err = cmp.Or(ask(), err)
		case <-enough:
			break wait
		case <-ctx.Done():
			break wait
		case <-p.ctx.Done():
			return stun.Behaviour{}, fmt.Errorf("ask for the own address: %w", net.ErrClosed)
		}
	}
	if len(mapped) == 0 {
		return stun.Behaviour{}, fmt.Errorf("ask %d peers for the own address: %w", len(servers), cmp.Or(err, ctx.Err(), ErrNoCandidates))
	}
	// In the order in which they were asked: that is the order in which a NAT has made its mappings.
	seen := make([]stun.Observation, len(servers))
	for i, id := range ids {
		seen[i] = stun.Observation{Server: servers[i], Mapped: mapped[id]}
	}
	var local []netip.AddrPort
	addrs, err := p.addrs()
	if err != nil {
		return stun.Behaviour{}, err
	}
	for _, a := range addrs {
		local = append(local, netip.AddrPortFrom(a, p.udpPort))
	}
	b := stun.Classify(local, seen)
	p.mu.Lock()
	p.behaviour = b
	p.mu.Unlock()
	return b, nil
}

// observeRest is how long the other servers are waited for when some have answered. One answer shows the address; it
// takes two to see what kind of NAT there is.
func observeRest(answers int, took time.Duration) time.Duration {
	if answers == 1 {
		return max(2*took, 2*observeRetry)
	}
	return max(took, observeRetry/3)
}

// addrs gives the addresses at which this host may be reached.
func (p *Puncher) addrs() ([]netip.Addr, error) {
	if !p.listen.Addr().IsUnspecified() {
		return []netip.Addr{p.listen.Addr()}, nil
	}
	all, err := p.network.Addrs()
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, a := range all {
		if usable(netip.AddrPortFrom(a, 1), p.listen.Addr()) {
			addrs = append(addrs, a)
		}
	}
	return addrs, nil
}

// Offer makes the offer of an attempt: the addresses of the interfaces, what the last [Puncher.Observe] found, what that
// lets expect of a NAT, and what the caller knows besides: TCP addresses that other peers have
// seen, in the order in which they were asked, and mappings at gateways. It sends nothing.
func (p *Puncher) Offer(known ...Candidate) (Offer, error) {
	o := Offer{Certificate: p.certHash}
	_, _ = rand.Read(o.Share[:]) // never fails
	add := func(proto Proto, kind Kind, addrs ...netip.AddrPort) {
		for _, a := range addrs {
			c := Candidate{Addr: a, Proto: proto, Kind: kind}
			same := func(d Candidate) bool { return d.Addr == a && d.Proto == proto }
			if len(o.Candidates) < MaxCandidates && a.IsValid() && !slices.ContainsFunc(o.Candidates, same) {
				o.Candidates = append(o.Candidates, c)
			}
		}
	}
	addrs, err := p.addrs()
	if err != nil {
		return o, err
	}
	for _, a := range addrs[:min(len(addrs), maxLAN)] {
		add(UDP, LAN, netip.AddrPortFrom(a, p.udpPort))
		add(TCP, LAN, netip.AddrPortFrom(a, p.listen.Port()))
	}
	// Where others have seen the TCP port. The last is the latest.
	var tcp []stun.Observation
	for i, c := range known {
		c.Addr = netip.AddrPortFrom(c.Addr.Addr().Unmap(), c.Addr.Port())
		if c.Kind == Observed && c.Proto == TCP {
			// Who has seen it does not matter to the prediction, as long as they differ.
			tcp = append(tcp, stun.Observation{Server: netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(i)}), 1), Mapped: c.Addr})
		}
		add(c.Proto, c.Kind, c.Addr)
	}
	p.mu.Lock()
	udp := p.behaviour
	p.mu.Unlock()
	mapped := udp.Mapped[:min(len(udp.Mapped), maxLAN)]
	add(UDP, Observed, mapped...)
	add(UDP, Predicted, udp.Predict(predictions)...)
	add(TCP, Predicted, stun.Classify(nil, tcp).Predict(predictions)...)
	if len(tcp) == 0 {
		// Most NATs keep the port where they can, and map TCP as they map UDP.
		for _, m := range mapped {
			add(TCP, Predicted, netip.AddrPortFrom(m.Addr(), p.listen.Port()), m)
		}
	}
	return o, nil
}

// readUDP takes from the socket what is not QUIC.
func (p *Puncher) readUDP() {
	b := make([]byte, stun.MaxMessage+1)
	var answer []byte
	for {
		n, addr, err := p.quic.ReadNonQUICPacket(p.ctx, b)
		if err != nil {
			return // closed, or the socket broke: then attempts fail for lack of answers
		}
		from := addrPort(addr)
		switch m := b[:n]; {
		case isProbe(m):
			p.probed(m, from)
		case stun.Is(m):
			if a, err := stun.ParseAnswer(m); err == nil {
				p.answered(a, from)
				break
			}
			if answer, err = stun.AppendAnswer(answer[:0], m, from); err != nil {
				p.counters.dropped.Add(1)
			} else if !p.limiter.Allow(from.Addr()) {
				p.counters.limited.Add(1)
			} else if p.send(answer, from) == nil {
				p.counters.answered.Add(1)
			}
		default:
			p.counters.dropped.Add(1)
		}
	}
}

// answered gives a STUN answer to who has asked, if it comes from who was asked.
func (p *Puncher) answered(a stun.Answer, from netip.AddrPort) {
	p.mu.Lock()
	q, ok := p.asked[a.ID]
	if ok = ok && q.server == from; ok {
		delete(p.asked, a.ID) // so that there is one for each, and room for it
	}
	p.mu.Unlock()
	if !ok {
		p.counters.dropped.Add(1)
		return
	}
	q.answer <- a
}

// probed gives a probe to the attempt that it belongs to.
func (p *Puncher) probed(b []byte, from netip.AddrPort) {
	m, err := parseProbe(b)
	if err != nil {
		p.counters.dropped.Add(1)
		return
	}
	p.mu.Lock()
	s := p.sessions[m.session]
	p.mu.Unlock()
	if s == nil || !verifyProbe(b, s.theirKey()) || !s.probed(m, from) {
		p.counters.dropped.Add(1)
	}
}

func (p *Puncher) send(b []byte, to netip.AddrPort) error {
	if _, err := p.quic.WriteTo(b, net.UDPAddrFromAddrPort(to)); err != nil {
		return fmt.Errorf("send to %v: %w", to, err)
	}
	return nil
}

// acceptQUIC gives incoming QUIC connections to the attempts that they belong to.
func (p *Puncher) acceptQUIC() {
	for {
		conn, err := p.listener.Accept(p.ctx)
		if err != nil {
			return
		}
		hash, _ := peerHash(conn.ConnectionState().TLS)
		s := p.responding(hash)
		if s == nil || !s.spawn(func() { s.acceptStream(conn) }) {
			p.counters.strangers.Add(1)
			_ = conn.CloseWithError(quicCloseCode, "")
		}
	}
}

// expects tells whether an authentic probe has come from an address, so that QUIC may.
func (p *Puncher) expects(from netip.AddrPort) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sessions {
		if !s.initiator && s.knows(from) {
			return true
		}
	}
	return false
}

// responding finds the attempt in which the other side has a certificate and connects.
func (p *Puncher) responding(hash [32]byte) *session {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sessions {
		if !s.initiator && s.certificate == hash {
			return s
		}
	}
	return nil
}

// adopt makes a net.Conn of a stream. It fails after Close.
func (p *Puncher) adopt(conn *quic.Conn, stream *quic.Stream) (*quicConn, error) {
	c := &quicConn{p: p, conn: conn, stream: stream}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = conn.CloseWithError(quicCloseCode, "")
		return nil, net.ErrClosed
	}
	p.conns[c] = struct{}{}
	return c, nil
}

// linger lets a connection that was closed end in order, if there is time.
func (p *Puncher) linger(c *quicConn) {
	p.mu.Lock()
	open := !p.closed
	if open {
		p.lingering.Go(c.linger)
	}
	p.mu.Unlock()
	if !open {
		c.abort()
	}
}

func (p *Puncher) forget(c *quicConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// addrPort reads the addresses that UDP and TCP sockets have.
func addrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		ap = a.AddrPort()
	case *net.TCPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
