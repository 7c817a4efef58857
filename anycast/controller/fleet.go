// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe/stateless"
)

var _ anycast.Fleet = (*fleet)(nil)

// siteGrace is how long a lost site may be away before what it was to send counts as lost. It covers an agent's
// reconnecting; a program that waits for longer would only wait.
const siteGrace = 15 * time.Second

// defaultLinger is how long a session's ports rest before they are used again.
const defaultLinger = 2 * time.Second

// fleet is the connected sites, of all dialects, and the open sessions.
//
// Locks are taken in this order: sharedPool.mu, fleet.mu, site.mu, the lock of a queue. None is held while a Handler is called.
type fleet struct {
	log    *slog.Logger
	ports  *ports
	shared *sharedPool
	epoch  time.Time // the controller's clock: it never jumps

	table                               stateless.Table
	stray, forged, malformed, duplicate atomic.Uint64 // packets that were no answers, by reason

	mu       sync.RWMutex
	sites    map[string]*site
	sessions map[uint32]*session
	owners   map[*stateless.Codec]*session
	jobs     map[uint16]*job // of the originals' agents, by session id
	next     uint32          // id of the session opened next
}

func newFleet(blocks *volta.Blocks, log *slog.Logger) *fleet {
	f := &fleet{
		log: log, ports: &ports{blocks: blocks}, epoch: time.Now(),
		sites: map[string]*site{}, sessions: map[uint32]*session{}, owners: map[*stateless.Codec]*session{}, jobs: map[uint16]*job{},
		// Agents outlive a controller, and tell the next one which sessions they have.
		next: rand.Uint32(),
	}
	f.shared = &sharedPool{fleet: f, kinds: map[stateless.Config]*sharedKind{}}
	return f
}

// now is the controller's clock in nanoseconds since 1970.
func (f *fleet) now() int64 { return f.epoch.UnixNano() + int64(time.Since(f.epoch)) }

// site finds a site, connected or lost for less than siteGrace.
func (f *fleet) site(name string) *site {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.sites[name]
}

// all gives the sites by name, also those that are lost for less than siteGrace.
func (f *fleet) all() []*site {
	f.mu.RLock()
	defer f.mu.RUnlock()
	all := make([]*site, 0, len(f.sites))
	for _, s := range f.sites {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *site) int { return cmp.Compare(a.name, b.name) })
	return all
}

// Sites gives the connected sites, by name.
func (f *fleet) Sites() []anycast.Site {
	now := f.now()
	var sites []anycast.Site
	for _, s := range f.all() {
		if info, ok := s.describe(now); ok {
			sites = append(sites, info)
		}
	}
	return sites
}

// RTT corrects a time between two sites by what is known of their clocks.
func (f *fleet) RTT(from string, sent int64, to string, received int64) (rtt, uncertainty time.Duration, ok bool) {
	if sent == 0 || received == 0 {
		return 0, 0, false
	}
	rtt = time.Duration(received - sent)
	if from == to {
		return rtt, 0, rtt > 0
	}
	f.mu.RLock()
	a, b := f.sites[from], f.sites[to]
	f.mu.RUnlock()
	if a == nil || b == nil {
		return 0, 0, false
	}
	now := f.now()
	offsetA, errA := a.clock.estimate(now)
	offsetB, errB := b.clock.estimate(now)
	if errA == 0 || errB == 0 {
		return 0, 0, false
	}
	rtt += offsetA - offsetB
	uncertainty = errA + errB
	// A time that could as well be none at all says nothing.
	return rtt, uncertainty, rtt > uncertainty
}

// Open begins a session at all sites, and at those that connect later. Small ones share one.
func (f *fleet) Open(ctx context.Context, conf anycast.SessionConfig) (anycast.Session, error) {
	if shareable(&conf) {
		l, ok, err := f.shared.lease(ctx, &conf)
		if err != nil {
			return nil, err
		}
		if ok {
			l.shared.session.await(ctx)
			return l, nil
		}
	}
	linger := conf.Linger
	if linger == 0 {
		linger = defaultLinger
	}
	s, err := f.open(ctx, conf.Probes, conf.Handler, linger)
	if err != nil {
		return nil, err // and not a nil *session
	}
	s.await(ctx)
	return s, nil
}

// open begins a session with ports and a key of its own.
func (f *fleet) open(ctx context.Context, probes stateless.Config, handler anycast.Handler, linger time.Duration) (*session, error) {
	s := &session{fleet: f, handler: handler, linger: linger}
	probes.Ports = max(probes.Ports, 1)
	probes.Key = stateless.NewKey()
	var err error
	if probes.FirstPort == 0 {
		probes.FirstPort, err = f.ports.allocate(ctx, int(probes.Ports))
	} else {
		err = f.ports.allocateFixed(ctx, probes.FirstPort)
	}
	if err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	if err := f.begin(s, probes); err != nil {
		f.ports.release(probes.FirstPort)
		return nil, err
	}
	return s, nil
}

// openClassic begins a session of the originals' probes in a block of its own. raw gets every answer as it came, and
// when, from several goroutines.
func (f *fleet) openClassic(ctx context.Context, first, ports uint16, target netip.Addr, raw func(site string, packet []byte, at volta.Time)) (*session, error) {
	s := &session{fleet: f, raw: raw, linger: defaultLinger}
	if err := f.begin(s, stateless.Config{Kind: stateless.UDP, FirstPort: first, Ports: ports, Classic: true, Target: target}); err != nil {
		return nil, err
	}
	s.await(ctx)
	return s, nil
}

// begin has all sites open a session. Before its first probe, await them.
func (f *fleet) begin(s *session, probes stateless.Config) (err error) {
	if s.codec, err = stateless.New(probes); err != nil {
		return fmt.Errorf("open session: %w", err)
	}
	if err := f.table.Add(s.codec); err != nil {
		return fmt.Errorf("open session: %w", err)
	}
	conf := s.codec.Config()
	open := &measurepb.Open{
		Key: conf.Key[:], Protocol: measurepb.FromProtocol(conf.Kind), FirstPort: uint32(conf.FirstPort), Ports: uint32(conf.Ports),
		DstPort: uint32(conf.DstPort), Size: uint32(conf.Size), Tos: uint32(conf.TOS), Note: conf.Note, Query: conf.Name, Classic: conf.Classic,
	}
	s.open = &measurepb.ToAgent{Order: &measurepb.ToAgent_Open{Open: open}}
	s.awaited, s.ready = map[*link]*site{}, make(chan struct{})
	f.mu.Lock()
	for f.next == 0 || f.sessions[f.next] != nil {
		f.next++
	}
	s.id, open.Session = f.next, f.next
	f.next++
	f.sessions[s.id] = s
	f.owners[s.codec] = s
	for _, site := range f.sites {
		site.begin(s)
	}
	s.opened(nil)
	s.begun = time.Now()
	f.mu.Unlock()
	return nil
}

// openPatience is how long a session waits for sites that are slow to open it, before its probes leave nevertheless.
const openPatience = 2 * time.Second

// await waits until all sites have opened the session: what answers its probes may come home at any of them, and
// does not pass the kernel's filter there before. ctx, or openPatience, ends the wait.
func (s *session) await(ctx context.Context) {
	select {
	case <-s.ready:
		return
	default:
	}
	patience := time.NewTimer(openPatience - time.Since(s.begun))
	defer patience.Stop()
	select {
	case <-s.ready:
	case <-ctx.Done():
	case <-patience.C:
		f := s.fleet
		f.mu.Lock()
		defer f.mu.Unlock()
		for link, site := range s.awaited {
			if !site.late.Swap(true) {
				f.log.Warn("agent is slow to listen: what comes home there now may be missed", "agent", site.name)
			}
			s.opened(link)
		}
	}
}

// opened notes that a connection's agent listens, or is not waited for any more. The caller holds fleet.mu.
func (s *session) opened(l *link) {
	if s.awaited == nil {
		return
	}
	delete(s.awaited, l)
	if len(s.awaited) == 0 {
		s.awaited = nil
		close(s.ready)
	}
}

// opened notes what a site says of the sessions that it listens for.
func (f *fleet) opened(s *site, l *link, ids []uint32) {
	s.late.Store(false)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range ids {
		if session := f.sessions[id]; session != nil {
			session.opened(l)
		}
	}
}

// unawait has no session wait for a connection that has ended.
func (f *fleet) unawait(l *link) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, session := range f.sessions {
		session.opened(l)
	}
}

// session is one measurement's probes.
type session struct {
	fleet   *fleet
	id      uint32
	codec   *stateless.Codec
	handler anycast.Handler
	raw     func(site string, packet []byte, at volta.Time) // for classic probes, in place of handler
	open    *measurepb.ToAgent
	linger  time.Duration
	closed  atomic.Bool

	// The fleet's lock guards awaited, the connections that have not confirmed the session. When there are none it is nil, and
	// ready is closed.
	awaited map[*link]*site
	ready   chan struct{}
	begun   time.Time
}

var _ anycast.Session = (*session)(nil)

// Send has a site send probes.
func (s *session) Send(name string, b anycast.Batch) error { return s.send(name, b, s.handler) }

// send is Send, whose outcome h is told.
func (s *session) send(name string, b anycast.Batch, h anycast.Handler) error {
	n := b.Len()
	for _, column := range []int{len(b.Targets), len(b.TTLs), len(b.Flows), len(b.Numbers)} {
		if column != 1 && column != n {
			return fmt.Errorf("batch of %d probes: %w", n, errColumns)
		}
	}
	site := s.fleet.site(name)
	switch {
	case s.closed.Load():
		return net.ErrClosed
	case site == nil:
		return fmt.Errorf("%s: %w", name, anycast.ErrNoSite)
	case !site.native || s.codec.Config().Classic:
		return fmt.Errorf("%s: %w", name, anycast.ErrCannotSend)
	}
	source, err := site.source(b.Source, b.Targets[0].Is4())
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	order := &measurepb.Send{
		Session: s.id, Source: measurepb.FromAddr(source), Ipv6: !b.Targets[0].Is4(), Rate: b.Rate, Stamps: b.Stamps,
		Ttls: widen(b.TTLs), Flows: widen(b.Flows), Numbers: widen(b.Numbers),
	}
	if order.Targets, err = column(b.Targets); err != nil {
		return err
	}
	if !site.send(order, &pendingBatch{session: s, handler: h, id: b.ID, count: n, stamps: b.Stamps, rate: b.Rate}) {
		return fmt.Errorf("%s: %w", name, anycast.ErrNoSite)
	}
	return nil
}

var (
	errColumns  = errors.New("targets, hop limits, flows and numbers must each be one, or one for each probe")
	errVersions = errors.New("targets of both IP versions in a batch")
	errNumbers  = errors.New("more numbers than the session was opened with")
)

func widen[T uint8 | uint16](vs []T) []uint32 {
	out := make([]uint32, len(vs))
	for i, v := range vs {
		out[i] = uint32(v)
	}
	return out
}

// column writes addresses of one version one after the other.
func column(addrs []netip.Addr) ([]byte, error) {
	b := make([]byte, 0, len(addrs)*addrs[0].BitLen()/8)
	for _, a := range addrs {
		if a.BitLen() != addrs[0].BitLen() {
			return nil, errVersions
		}
		if a.Is4() {
			a4 := a.As4()
			b = append(b, a4[:]...)
		} else {
			a16 := a.As16()
			b = append(b, a16[:]...)
		}
	}
	return b, nil
}

// FirstPort is the source port of flow 0.
func (s *session) FirstPort() uint16 { return s.codec.Config().FirstPort }

// Close ends the session. Its ports rest for the time that answers may still come.
func (s *session) Close() {
	if s.end() {
		// Nothing of the session but its ports is kept until then: there are thousands of short ones in a second.
		ports, first := s.fleet.ports, s.FirstPort()
		time.AfterFunc(s.linger, func() { ports.release(first) })
	}
}

// end makes nobody recognise the session's answers any more. It is false if that was so before.
func (s *session) end() bool {
	if s.closed.Swap(true) {
		return false
	}
	f := s.fleet
	f.table.Remove(s.codec)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.sessions, s.id)
	delete(f.owners, s.codec)
	m := &measurepb.ToAgent{Order: &measurepb.ToAgent_Close{Close: &measurepb.Close{Session: s.id}}}
	for _, site := range f.sites {
		site.tell(m)
	}
	return true
}

// maxDelivery bounds how many answers are recognised before they are handed on, and with it the memory of a delivery.
const maxDelivery = 256

// delivery is answers between the recognising and the handing on. Each connection has its own and uses it again and again.
type delivery struct {
	answers [maxDelivery]anycast.Answer
	owners  [maxDelivery]*session
	n       int
}

// deliver hands answers on to their sessions. Those of one session that came in a row go together.
func (d *delivery) deliver() {
	for i := 0; i < d.n; {
		owner, end := d.owners[i], i+1
		for end < d.n && d.owners[end] == owner {
			end++
		}
		if !owner.closed.Load() {
			owner.handler.HandleAnswers(d.answers[i:end])
		}
		i = end
	}
	clear(d.owners[:d.n])
	d.n = 0
}

// receive recognises a packet that came home at a site and adds it to the delivery, or hands it on if its session
// wants packets. The caller holds no lock.
func (f *fleet) receive(d *delivery, s *site, pkt []byte, at volta.Time, ns int64) {
	answer := &d.answers[d.n]
	codec, err := f.parse(pkt, &answer.Answer)
	if err != nil {
		f.count(s, err)
		return
	}
	f.mu.RLock()
	owner := f.owners[codec]
	f.mu.RUnlock()
	switch {
	case owner == nil: // it was closed in this moment
	case owner.raw != nil:
		s.answers.Add(1)
		if at.IsZero() && ns != 0 {
			at = volta.At(time.Unix(0, ns))
		}
		owner.raw(s.name, pkt, at)
	default:
		s.answers.Add(1)
		answer.Site, answer.Time = s.name, ns
		d.owners[d.n] = owner
		if d.n++; d.n == maxDelivery {
			d.deliver()
		}
	}
}

// parse recognises a packet of either version, from the IP header on.
func (f *fleet) parse(pkt []byte, a *stateless.Answer) (*stateless.Codec, error) {
	if len(pkt) == 0 || pkt[0]>>4 != 6 {
		return f.table.Parse4(pkt, a)
	}
	if len(pkt) < packet.IPv6HeaderLen {
		return nil, stateless.ErrMalformed
	}
	return f.table.Parse6(netip.AddrFrom16([16]byte(pkt[8:24])), netip.AddrFrom16([16]byte(pkt[24:40])),
		pkt[7], pkt[0]<<4|pkt[1]>>4, packet.Protocol(pkt[6]), pkt[packet.IPv6HeaderLen:], a)
}

func (f *fleet) count(s *site, err error) {
	switch {
	case errors.Is(err, stateless.ErrForged):
		f.forged.Add(1)
		s.forged.Add(1)
	case errors.Is(err, stateless.ErrNotOurs):
		f.stray.Add(1)
	default:
		f.malformed.Add(1)
	}
}

// tick gives up what has been waited for long enough. It is called about once a second.
func (f *fleet) tick(now time.Time) {
	for _, s := range f.all() {
		lost := s.expire(now)
		for _, p := range lost {
			p.fail(s.name, anycast.ErrSiteLost)
		}
		f.mu.Lock()
		if s.goneFor(now) > siteGrace && f.sites[s.name] == s {
			delete(f.sites, s.name)
		}
		f.mu.Unlock()
	}
}
