// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package fleettest

import (
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/probe/stateless"
)

var (
	_ anycast.Fleet   = (*Fleet)(nil)
	_ anycast.Session = (*session)(nil)
)

// Anycast4 and Anycast6 are the addresses that the sites of [New] share.
var (
	Anycast4 = netip.MustParseAddr("192.0.2.1")
	Anycast6 = netip.MustParseAddr("2001:db8::1")
)

// quantum is how long a site gathers answers before it passes them on.
const quantum = time.Millisecond

// Site is a simulated site.
type Site struct {
	anycast.Site
	// Skew is how far its clock really is ahead of the controller's; Site.Clock is what the controller thinks of it.
	Skew time.Duration
	// Link is the time that a message takes between the controller and the site.
	Link time.Duration
	// CannotSend, if set, is why the site refuses to send.
	CannotSend error

	withdrawn, gone bool
}

// Fleet is sites in memory. Make it with New; fields must not be changed once it is used.
type Fleet struct {
	Seed     uint64
	Internet Internet
	// Wire makes every probe and every answer as a packet, and recognises it as agents and controllers do. An answer that
	// is not recognised is a panic: it is a fault in the codec, or in this package.
	Wire bool

	wake chan struct{}
	stop chan struct{}
	done chan struct{}

	mu        sync.Mutex // guards all following fields
	sites     []*Site    // by name
	sessions  map[*session]bool
	events    eventHeap
	order     uint64
	nextPort  uint16
	limits    map[netip.Addr]*bucket
	batches   map[string][]*flight // by site: those not reported yet
	sent      int
	closed    bool
	delivered int
	table     *stateless.Table // with Wire
}

// New makes a fleet with sites of the given names. They share Anycast4 and Anycast6, have each addresses of their own, clocks that are right and known to be, and are 1 ms away
// from the controller. Close it.
func New(seed uint64, sites ...string) *Fleet {
	f := &Fleet{
		Seed: seed, wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
		sessions: make(map[*session]bool), nextPort: 10000, limits: make(map[netip.Addr]*bucket), batches: make(map[string][]*flight),
	}
	f.Internet = f.internet()
	for i, name := range sites {
		f.Add(Site{
			Site: anycast.Site{
				Name: name, Anycast: []netip.Addr{Anycast4, Anycast6}, Native: true,
				Unicast: []netip.Addr{
					netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)}),
					netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 1, 15: byte(i + 1)}),
				},
				Clock: anycast.Clock{Error: time.Microsecond},
			},
			Link: time.Millisecond,
		})
	}
	go f.run()
	return f
}

// Add adds a site, or replaces the one of that name.
func (f *Fleet) Add(s Site) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, found := slices.BinarySearchFunc(f.sites, s.Name, func(s *Site, name string) int { return cmp.Compare(s.Name, name) })
	if found {
		f.sites[at] = &s
	} else {
		f.sites = slices.Insert(f.sites, at, &s)
	}
}

// Change runs change with a site, while nothing else happens.
func (f *Fleet) Change(site string, change func(*Site)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f.siteLocked(site))
}

// Withdraw ends the announcement of the anycast addresses at a site: answers go elsewhere.
func (f *Fleet) Withdraw(site string) { f.Change(site, func(s *Site) { s.withdrawn = true }) }

// Announce begins it again.
func (f *Fleet) Announce(site string) { f.Change(site, func(s *Site) { s.withdrawn = false }) }

// Disconnect ends a site's connection: what it was to send is lost, and nobody hears of answers there.
func (f *Fleet) Disconnect(site string) {
	f.mu.Lock()
	f.siteLocked(site).gone = true
	lost := f.batches[site]
	delete(f.batches, site)
	f.mu.Unlock()
	for _, l := range lost {
		l.s.conf.Handler.HandleSent(anycast.Sent{Site: site, Batch: l.batch, Err: anycast.ErrSiteLost})
	}
}

// Connect brings it back.
func (f *Fleet) Connect(site string) { f.Change(site, func(s *Site) { s.gone = false }) }

// Sent is how many probes have left, and Delivered how many answers were given to handlers.
func (f *Fleet) Sent() int { f.mu.Lock(); defer f.mu.Unlock(); return f.sent }

// Delivered is how many answers were given to handlers, duplicates and injected ones included.
func (f *Fleet) Delivered() int { f.mu.Lock(); defer f.mu.Unlock(); return f.delivered }

// Inject gives an answer that nobody made to the handlers of all sessions, as if it had come to a site now.
func (f *Fleet) Inject(site string, a stateless.Answer) {
	f.mu.Lock()
	now := time.Now()
	for s := range f.sessions {
		f.pushLocked(event{at: now, s: s, answer: anycast.Answer{Site: site, Time: f.clockLocked(site, now), Answer: a}})
	}
	f.mu.Unlock()
	f.signal()
}

// Close ends the simulation.
func (f *Fleet) Close() {
	f.mu.Lock()
	again := f.closed
	f.closed = true
	f.mu.Unlock()
	if !again {
		close(f.stop)
	}
	<-f.done
}

// Sites implements anycast.Fleet.
func (f *Fleet) Sites() []anycast.Site {
	f.mu.Lock()
	defer f.mu.Unlock()
	var sites []anycast.Site
	for _, s := range f.sites {
		if !s.gone {
			sites = append(sites, s.Site)
		}
	}
	return sites
}

// RTT implements anycast.Fleet.
func (f *Fleet) RTT(from string, sent int64, to string, received int64) (rtt, uncertainty time.Duration, ok bool) {
	if from == to {
		return time.Duration(received - sent), 0, received > sent
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	a, b := f.siteLocked(from).Clock, f.siteLocked(to).Clock
	if a.Error == 0 || b.Error == 0 {
		return 0, 0, false
	}
	rtt = time.Duration(received-sent) - b.Offset + a.Offset
	uncertainty = a.Error + b.Error
	return rtt, uncertainty, rtt > uncertainty
}

func (f *Fleet) siteLocked(name string) *Site {
	for _, s := range f.sites {
		if s.Name == name {
			return s
		}
	}
	return &Site{gone: true}
}

// clockLocked reads a site's clock.
func (f *Fleet) clockLocked(site string, t time.Time) int64 {
	return t.Add(f.siteLocked(site).Skew).UnixNano()
}

// ownerLocked is the site that has an address for itself.
func (f *Fleet) ownerLocked(a netip.Addr) string {
	for _, s := range f.sites {
		if slices.Contains(s.Unicast, a) {
			return s.Name
		}
	}
	return ""
}

func (f *Fleet) announcedLocked() []string {
	names := make([]string, 0, len(f.sites))
	for _, s := range f.sites {
		if !s.withdrawn && len(s.Anycast) > 0 {
			names = append(names, s.Name)
		}
	}
	return names
}

// bucket limits a router's answers.
type bucket struct {
	have   float64
	filled time.Time
}

func (f *Fleet) allowLocked(h *Hop, now time.Time) bool {
	if h.RateLimit <= 0 {
		return true
	}
	b := f.limits[h.Addr]
	if b == nil {
		b = &bucket{have: h.RateLimit, filled: now}
		f.limits[h.Addr] = b
	}
	if now.After(b.filled) {
		b.have = min(h.RateLimit, b.have+h.RateLimit*now.Sub(b.filled).Seconds())
		b.filled = now
	}
	if b.have < 1 {
		return false
	}
	b.have--
	return true
}

// session is a session of the fleet.
type session struct {
	f     *Fleet
	conf  anycast.SessionConfig
	first uint16
	codec *stateless.Codec
}

// Open implements anycast.Fleet.
func (f *Fleet) Open(_ context.Context, conf anycast.SessionConfig) (anycast.Session, error) {
	conf.Probes.Key, conf.Probes.Ports = stateless.Key{1}, max(1, conf.Probes.Ports)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.nextPort > 60000 {
		f.nextPort = 10000
	}
	if conf.Probes.FirstPort == 0 {
		conf.Probes.FirstPort = f.nextPort
		f.nextPort += conf.Probes.Ports
	}
	codec, err := stateless.New(conf.Probes)
	if err != nil {
		return nil, err
	}
	s := &session{f: f, conf: conf, first: conf.Probes.FirstPort, codec: codec}
	if f.Wire {
		if f.table == nil {
			f.table = new(stateless.Table)
		}
		if err := f.table.Add(codec); err != nil {
			return nil, err
		}
	}
	f.sessions[s] = true
	return s, nil
}

// FirstPort implements anycast.Session.
func (s *session) FirstPort() uint16 { return s.first }

// Close implements anycast.Session.
func (s *session) Close() {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	delete(s.f.sessions, s)
	if s.f.table != nil {
		s.f.table.Remove(s.codec)
	}
}

// flight is a batch that is not reported yet.
type flight struct {
	s     *session
	site  string
	batch uint64
	sent  anycast.Sent
}

// Send implements anycast.Session.
func (s *session) Send(site string, b anycast.Batch) error {
	f := s.f
	f.mu.Lock()
	defer f.mu.Unlock()
	at := f.siteLocked(site)
	switch {
	case at.gone || f.closed:
		return fmt.Errorf("%s: %w", site, anycast.ErrNoSite)
	case !at.Native:
		return fmt.Errorf("%s: %w", site, anycast.ErrCannotSend)
	}
	n := b.Len()
	for _, l := range []int{len(b.Targets), len(b.TTLs), len(b.Flows), len(b.Numbers)} {
		if l != 1 && l != n {
			return fmt.Errorf("a batch of %d probes with %d of something", n, l)
		}
	}
	source := b.Source
	if !source.IsValid() {
		for _, a := range at.Anycast {
			if !source.IsValid() && a.Is6() == b.Targets[0].Is6() {
				source = a
			}
		}
	}
	if !slices.Contains(at.Anycast, source) && !slices.Contains(at.Unicast, source) {
		return fmt.Errorf("%s: %v: %w", site, source, anycast.ErrNoSource)
	}
	fl := &flight{s: s, site: site, batch: b.ID, sent: anycast.Sent{Site: site, Batch: b.ID}}
	f.batches[site] = append(f.batches[site], fl)
	start := time.Now().Add(at.Link)
	if at.CannotSend != nil {
		fl.sent.Err = at.CannotSend
		f.pushLocked(event{at: start.Add(at.Link), s: s, flight: fl})
		f.signal()
		return nil
	}
	gap := time.Duration(0)
	if b.Rate > 0 {
		gap = time.Duration(float64(time.Second) / b.Rate)
	}
	if at.Rate > 0 {
		gap = max(gap, time.Duration(float64(time.Second)/at.Rate))
	}
	for i := range n {
		p := Probe{
			Site: site, Source: source, Time: start.Add(gap * time.Duration(i)), Kind: s.conf.Probes.Kind, Target: pick(b.Targets, i),
			TTL: pick(b.TTLs, i), Flow: pick(b.Flows, i), Number: pick(b.Numbers, i),
		}
		p.Port = s.first + p.Flow%s.conf.Probes.Ports
		f.sent++
		if b.Stamps {
			fl.sent.Times = append(fl.sent.Times, f.clockLocked(site, p.Time))
		}
		a, receiver, after, twice, ok := f.answerLocked(&p, s.conf.Probes.Ports)
		if !ok {
			continue
		}
		if f.Wire {
			if err := s.wire(&p, f.clockLocked(site, p.Time), &a); err != nil {
				panic(err)
			}
		}
		home := f.siteLocked(receiver)
		if home.gone {
			continue
		}
		arrived := p.Time.Add(after)
		e := event{
			at: arrived.Add(home.Link).Truncate(quantum).Add(quantum), s: s,
			answer: anycast.Answer{Site: receiver, Time: arrived.Add(home.Skew).UnixNano(), Answer: a},
		}
		f.pushLocked(e)
		if twice {
			e.at = e.at.Add(quantum)
			e.answer.Time += int64(quantum)
			f.pushLocked(e)
		}
	}
	fl.sent.Count = n
	f.pushLocked(event{at: start.Add(gap*time.Duration(n) + at.Link), s: s, flight: fl})
	f.signal()
	return nil
}

// pick gives the element for probe i.
func pick[T any](s []T, i int) T {
	if len(s) == 1 {
		return s[0]
	}
	return s[i]
}

// event is an answer that reaches the controller, or the report about a flight.
type event struct {
	at     time.Time
	order  uint64
	s      *session
	flight *flight
	answer anycast.Answer
}

type eventHeap []*event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	if !h[i].at.Equal(h[j].at) {
		return h[i].at.Before(h[j].at)
	}
	return h[i].order < h[j].order
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(*event)) }
func (h *eventHeap) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return x
}

func (f *Fleet) pushLocked(e event) {
	f.order++
	e.order = f.order
	heap.Push(&f.events, &e)
}

func (f *Fleet) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// run delivers what is due.
func (f *Fleet) run() {
	defer close(f.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait := f.deliver()
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-f.wake:
		case <-f.stop:
			return
		}
	}
}

// deliver calls the handlers, and gives the time until it has to be called again.
func (f *Fleet) deliver() time.Duration {
	type home struct {
		s    *session
		site string
	}
	for {
		f.mu.Lock()
		now := time.Now()
		var reports []*flight
		var homes []home // in the order of their first answers
		answers := make(map[home][]anycast.Answer)
		for len(f.events) > 0 && !f.events[0].at.After(now) {
			e := heap.Pop(&f.events).(*event)
			switch open := f.sessions[e.s]; {
			case e.flight != nil:
				at := slices.Index(f.batches[e.flight.site], e.flight)
				if at >= 0 { // else it was lost with its site
					f.batches[e.flight.site] = slices.Delete(f.batches[e.flight.site], at, at+1)
					if open {
						reports = append(reports, e.flight)
					}
				}
			case open && !f.siteLocked(e.answer.Site).gone:
				k := home{e.s, e.answer.Site}
				if answers[k] == nil {
					homes = append(homes, k)
				}
				answers[k] = append(answers[k], e.answer)
				f.delivered++
			}
		}
		wait := time.Hour
		if len(f.events) > 0 {
			wait = f.events[0].at.Sub(now)
		}
		f.mu.Unlock()
		if len(reports) == 0 && len(homes) == 0 {
			return wait
		}
		for _, k := range homes {
			k.s.conf.Handler.HandleAnswers(answers[k])
		}
		for _, r := range reports {
			r.s.conf.Handler.HandleSent(r.sent)
		}
	}
}
