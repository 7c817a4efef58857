// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Mapper maps ports at this host's gateway. Its methods may be called by several goroutines at once.
type Mapper struct {
	o     Options
	find  func(ctx context.Context, all bool) (*site, error)
	route func() (gateway, local netip.Addr, err error)

	// finding holds a token during a search; it is taken before mu. Who waits for it can be told not to.
	finding chan struct{}

	mu       sync.Mutex
	site     *site
	searches int   // so far
	failed   error // how the latest search ended
	mappings map[*Mapping]struct{}
	closed   bool
}

// Discover finds out how this host's gateway maps ports. It returns within Options.Timeout, with [ErrNoGateway] if it does not, and
// much sooner if it does.
func Discover(ctx context.Context, o Options) (*Mapper, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	m := &Mapper{o: o, finding: make(chan struct{}, 1), mappings: map[*Mapping]struct{}{}}
	m.find = func(ctx context.Context, all bool) (*site, error) { return find(ctx, &m.o, all, m.wake) }
	m.route = func() (gateway, local netip.Addr, err error) { return route(&m.o) }
	if _, err := m.search(ctx, nil, false); err != nil {
		return nil, err
	}
	return m, nil
}

// search looks for the gateway again, for one whom a site has failed. If another has found a new site meanwhile, it is that one.
func (m *Mapper) search(ctx context.Context, failed *site, all bool) (*site, error) {
	m.mu.Lock()
	before := m.searches
	m.mu.Unlock()
	select {
	case m.finding <- struct{}{}:
		defer func() { <-m.finding }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	m.mu.Lock()
	s, err, again, closed := m.site, m.failed, m.searches > before, m.closed
	m.mu.Unlock()
	switch {
	case closed:
		return nil, net.ErrClosed
	case s != failed:
		return s, nil
	case again && err != nil: // a moment ago
		return nil, err
	}

	s, err = m.find(ctx, all)
	m.mu.Lock()
	m.searches++
	m.failed = err
	old := m.site
	switch {
	case err != nil: // what was there before may come back
		old = nil
	case m.closed:
		old, err = s, net.ErrClosed
	default:
		m.site = s
	}
	m.mu.Unlock()
	old.close() // not under mu: its goroutines may be about to wake mappings
	if err != nil {
		return nil, err
	}
	return s, nil
}

// wake has all mappings renewed.
func (m *Mapper) wake() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for mapping := range m.mappings {
		mapping.renewNow()
	}
}

// Gateway is the address of the gateway, and Local that of this host towards it.
func (m *Mapper) Gateway() netip.Addr { return m.current().gateway }

// Local is this host's address towards the gateway.
func (m *Mapper) Local() netip.Addr { return m.current().local }

// Answers tells how the gateway took each method, the preferred one first. Methods that were not waited for, because a
// better one had answered, are missing.
func (m *Mapper) Answers() []Answer { return append([]Answer(nil), m.current().answers...) }

func (m *Mapper) current() *site {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.site
}

// Close closes all mappings, which removes them from the gateway, and waits for that. After it, Map returns [net.ErrClosed].
func (m *Mapper) Close() error {
	m.mu.Lock()
	m.closed = true
	var all []*Mapping
	for mapping := range m.mappings {
		all = append(all, mapping)
	}
	m.mu.Unlock()
	errs := make([]error, len(all))
	var closing sync.WaitGroup
	for i, mapping := range all {
		closing.Go(func() { errs[i] = mapping.Close() })
	}
	closing.Wait()
	m.finding <- struct{}{} // a search that is under way sees that it is too late
	defer func() { <-m.finding }()
	m.current().close()
	return errors.Join(errs...)
}

// Map asks the gateway for a mapping. It is renewed until Close, of it or of the Mapper; ctx is only for the asking.
//
// If the gateway takes one method badly the next one is tried. The error wraps [ErrDoubleNAT], [ErrRefused], [ErrPortTaken],
// [ErrNoAnswer] or [ErrMapped].
func (m *Mapper) Map(ctx context.Context, r Request) (*Mapping, error) {
	if err := r.complete(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	closed := m.closed
	m.mu.Unlock()
	if closed {
		return nil, net.ErrClosed
	}
	s := m.current()
	release, err := reserve(m.key(s), r)
	if err != nil {
		return nil, err
	}
	mapping := &Mapping{mapper: m, request: r, release: release, wake: make(chan struct{}, 1)}
	d, leases, err := m.acquire(ctx, s, r, nil)
	if err != nil && ctx.Err() == nil && (s.partial || m.current() != s) {
		// Perhaps one of the methods that were not waited for does better.
		if all, searchErr := m.search(ctx, s, true); searchErr == nil {
			s = all
			d, leases, err = m.acquire(ctx, s, r, nil)
		}
	}
	if err != nil {
		release()
		return nil, fmt.Errorf("map %v port %d: %w", r.Protocol, r.InternalPort, err)
	}
	mapping.set(s, d, leases)
	mapping.ctx, mapping.cancel = context.WithCancel(context.Background())

	m.mu.Lock()
	if closed = m.closed; !closed {
		m.mappings[mapping] = struct{}{}
		mapping.running.Go(mapping.run)
	}
	m.mu.Unlock()
	if closed {
		return nil, errors.Join(net.ErrClosed, mapping.Close())
	}
	m.o.Log.Debug("mapped", "protocol", r.Protocol, "internal", r.InternalPort, "external", mapping.External(), "method", d.method())
	return mapping, nil
}

// key names a host's place in the network, as far as other mappers of this process share it.
func (m *Mapper) key(s *site) place {
	return place{s.gateway, s.local, m.o.ControlPort, m.o.SearchAddr}
}

// place is where ports are mapped: two mappers at one place would take each other's mappings for their own.
type place struct {
	gateway, local netip.Addr
	controlPort    uint16
	searchAddr     netip.AddrPort
}

type reservation struct {
	place    place
	protocol Protocol
	port     uint16
}

// reserved are the local ports that this process maps, guarded by reserving.
var (
	reserving sync.Mutex
	reserved  = map[reservation]struct{}{}
)

// reserve claims the local port of a request for this process.
func reserve(p place, r Request) (release func(), err error) {
	reserving.Lock()
	defer reserving.Unlock()
	var all []reservation
	for _, protocol := range r.Protocol.each() {
		one := reservation{p, protocol, r.InternalPort}
		if _, taken := reserved[one]; taken {
			return nil, fmt.Errorf("map %v port %d: %w", protocol, r.InternalPort, ErrMapped)
		}
		all = append(all, one)
	}
	for _, one := range all {
		reserved[one] = struct{}{}
	}
	return sync.OnceFunc(func() {
		reserving.Lock()
		defer reserving.Unlock()
		for _, one := range all {
			delete(reserved, one)
		}
	}), nil
}

// acquire has a request mapped by the first method that does. before are the leases of an earlier time, if there are any, whose
// external port is asked for first.
func (m *Mapper) acquire(ctx context.Context, s *site, r Request, before []lease) (door, []lease, error) {
	want := make([]lease, 0, 2)
	port := r.ExternalPort
	for i, protocol := range r.Protocol.each() {
		l := lease{protocol: protocol, lifetime: r.Lifetime, description: r.Description}
		if before != nil {
			l.nonce = before[i].nonce
			port = before[i].external.Port()
		}
		want = append(want, l)
	}
	var errs []error
	for _, d := range s.doors {
		for i := range want {
			want[i].internal = netip.AddrPortFrom(d.client(), r.InternalPort)
		}
		leases, err := acquire(ctx, d, want, port)
		if err == nil {
			return d, leases, nil
		}
		m.o.Log.Debug("map a port", "method", d.method(), "error", err)
		errs = append(errs, fmt.Errorf("%v: %w", d.method(), err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, nil, errors.Join(errs...)
}

// How many external ports are tried: those that follow the one that was asked for, and, when a program of many peers has
// taken them all, some from anywhere in the dynamic range.
const (
	portsInTurn   = 16
	portsAtRandom = 8
	firstDynamic  = 49152 // RFC 6335, section 6
)

// candidates are the external ports to try.
func candidates(first uint16) []uint16 {
	ports := make([]uint16, 0, portsInTurn+portsAtRandom)
	for port := first; len(ports) < portsInTurn; {
		ports = append(ports, port)
		if port++; port == 0 {
			port = 1024
		}
	}
	for len(ports) < cap(ports) {
		ports = append(ports, uint16(firstDynamic+rand.IntN(1<<16-firstDynamic)))
	}
	return ports
}

// acquire has leases mapped to one external port by one method.
func acquire(ctx context.Context, d door, want []lease, first uint16) (leases []lease, err error) {
	for _, port := range candidates(first) {
		leases, err = addAll(ctx, d, want, port)
		if !errors.Is(err, ErrPortTaken) {
			return leases, err
		}
	}
	return nil, err
}

// addAll maps all leases to one external port, which may be another one than asked for, or none.
func addAll(ctx context.Context, d door, want []lease, port uint16) ([]lease, error) {
	var got []lease
	for _, l := range want {
		l.external = netip.AddrPortFrom(l.external.Addr(), port)
		added, err := addOne(ctx, d, l)
		if err == nil {
			got = append(got, added) // to be removed as well if it does not fit
			if port = got[0].external.Port(); added.external.Port() == port {
				continue
			}
			err = fmt.Errorf("%w: %v got port %d, %v port %d", ErrPortTaken, got[0].protocol, port, added.protocol, added.external.Port())
		}
		return nil, errors.Join(err, removeAll(context.WithoutCancel(ctx), d, got))
	}
	return got, nil
}

func addOne(ctx context.Context, d door, l lease) (lease, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return d.add(ctx, l)
}

// removeAll removes leases, all at once, and does not wait long for gateways that do not answer.
func removeAll(ctx context.Context, d door, leases []lease) error {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	errs := make([]error, len(leases))
	var removing sync.WaitGroup
	for i, l := range leases {
		removing.Go(func() { errs[i] = d.remove(ctx, l) })
	}
	removing.Wait()
	return errors.Join(errs...)
}

// removeTimeout is what a program that is asked to end has for it.
const removeTimeout = 2 * time.Second
