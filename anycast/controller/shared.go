// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// sharedSession is a session that many small ones share, one after the other and at the same time: thousands of text requests need
// no Open and Close at every agent. Each holds a lease: one of the session's ports, and numbers that nobody else of that
// port has had or will have. So an answer, however late, belongs to one lease at most.
//
//	port        numbers
//	first    |  lease  |  lease  |  lease  |          free            |
//	first+1  |  lease  |       lease       |          free            |
//	...      unit      unit      unit                           units*unit
//
// Units are given out in ascending order. Before they run out another session is opened, so that nobody has to wait for it then; this
// one is closed with its last lease.
type sharedSession struct {
	pool    *sharedPool
	key     stateless.Config
	session *session
	leases  []atomic.Pointer[lease] // by port, and unit in it

	// The pool's lock guards what follows.
	next    []int // free unit of each port
	used    int   // units
	turn    int   // port that the next lease is of
	held    int   // leases that are not closed
	retired bool  // no more leases
	idle    *time.Timer
}

const (
	// sharedPorts is how many ports a shared session has: as many paths as load balancers may choose for requests, and
	// some eight thousand traceroutes of the usual size before it is replaced.
	sharedPorts = 8
	// unit is how many numbers a lease has at least: those of a traceroute of 20 hops.
	unit  = 64
	units = stateless.MaxNumber / unit // of a port
	// maxLease is how many numbers a lease may have. Who needs more opens a session of its own.
	maxLease = 16 * unit
	// sharedIdle is how long a shared session without a lease stays open, so that the next request need not wait until
	// all sites have opened another.
	sharedIdle = 5 * time.Second
	// maxShared bounds the kinds of probes that have a shared session, which takes 64 kB. Others have sessions of their own.
	maxShared = 16
)

// sharedPool is the shared sessions of a fleet, one at most for each kind of probe.
type sharedPool struct {
	fleet *fleet

	mu    sync.Mutex
	kinds map[stateless.Config]*sharedKind
}

// sharedKind is the sessions for probes that look the same.
type sharedKind struct {
	opening   chan struct{} // holds an element while somebody opens the next one
	users     int           // that may open
	current   *sharedSession
	successor *sharedSession // of current, when that is nearly used up
}

// shareable tells whether a session may be a lease.
func shareable(conf *anycast.SessionConfig) bool {
	p := &conf.Probes
	return conf.Numbers > 0 && conf.Numbers <= maxLease && p.Ports <= 1 && p.FirstPort == 0 && !p.Classic && p.Kind != stateless.CHAOS && conf.Linger == 0
}

// lease opens a shareable session. It is false if there are too many kinds of them.
func (p *sharedPool) lease(ctx context.Context, conf *anycast.SessionConfig) (l *lease, ok bool, err error) {
	key := conf.Probes
	key.Ports, key.FirstPort, key.Key = 0, 0, stateless.Key{}
	p.mu.Lock()
	kind := p.kinds[key]
	if kind == nil {
		if len(p.kinds) >= maxShared {
			p.mu.Unlock()
			return nil, false, nil
		}
		kind = &sharedKind{opening: make(chan struct{}, 1)}
		p.kinds[key] = kind
	}
	if l := kind.leaseLocked(conf); l != nil {
		prepare := kind.wantsSuccessorLocked()
		p.mu.Unlock()
		if prepare {
			p.prepare(key, kind)
		}
		return l, true, nil
	}
	kind.users++ // so that nobody forgets it
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		kind.users--
		p.forgetLocked(key, kind)
	}()

	// One opens, the others wait for it.
	select {
	case kind.opening <- struct{}{}:
	case <-ctx.Done():
		return nil, true, fmt.Errorf("open session: %w: %w", anycast.ErrNoPorts, context.Cause(ctx))
	}
	defer func() { <-kind.opening }()
	p.mu.Lock()
	l = kind.leaseLocked(conf)
	p.mu.Unlock()
	if l != nil {
		return l, true, nil
	}
	s, err := p.open(ctx, key)
	if err != nil {
		return nil, true, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	kind.succeedLocked(s)
	return kind.leaseLocked(conf), true, nil
}

// wantsSuccessorLocked tells whether it is time to open the next session, which is the caller's to do then.
func (k *sharedKind) wantsSuccessorLocked() bool {
	if s := k.current; k.successor != nil || s.used < len(s.leases)*3/4 {
		return false
	}
	select {
	case k.opening <- struct{}{}:
		k.users++
		return true
	default:
		return false
	}
}

// prepare opens a successor, if there are ports for one.
func (p *sharedPool) prepare(key stateless.Config, kind *sharedKind) {
	defer func() { <-kind.opening }()
	atOnce, cancel := context.WithCancel(context.Background())
	cancel()
	s, err := p.open(atOnce, key)
	p.mu.Lock()
	defer p.mu.Unlock()
	kind.users--
	switch {
	case err != nil: // the next lease waits for some
		p.forgetLocked(key, kind)
	case kind.current == nil:
		kind.current = s
	default:
		s.idle.Stop() // it rests with the current one
		kind.successor = s
	}
}

// succeedLocked puts a session in the place of the current one.
func (k *sharedKind) succeedLocked(s *sharedSession) {
	if k.current != nil {
		k.current.retireLocked()
	}
	k.current = s
}

// open opens a session to be shared.
func (p *sharedPool) open(ctx context.Context, key stateless.Config) (*sharedSession, error) {
	key.Ports = uint16(min(sharedPorts, p.fleet.ports.blocks.Size()))
	s := &sharedSession{pool: p, key: key, next: make([]int, key.Ports)}
	var err error
	if s.session, err = p.fleet.open(ctx, key, s, defaultLinger); err != nil {
		return nil, err
	}
	s.leases = make([]atomic.Pointer[lease], int(key.Ports)*units)
	s.key.Ports = 0
	s.idle = time.AfterFunc(sharedIdle, s.rest)
	return s, nil
}

// forgetLocked drops a kind that nobody uses.
func (p *sharedPool) forgetLocked(key stateless.Config, kind *sharedKind) {
	if kind.users == 0 && kind.current == nil {
		delete(p.kinds, key)
	}
}

// leaseLocked gives out some of the numbers of the current session, or of its successor; nil if they have too few, or there is none.
func (k *sharedKind) leaseLocked(conf *anycast.SessionConfig) *lease {
	if k.current == nil {
		return nil
	}
	n := (conf.Numbers + unit - 1) / unit
	l := k.current.leaseLocked(conf.Handler, n)
	if l == nil && k.successor != nil {
		k.succeedLocked(k.successor)
		k.successor = nil
		l = k.current.leaseLocked(conf.Handler, n)
	}
	return l
}

// leaseLocked gives out n units, nil if no port has so many.
func (s *sharedSession) leaseLocked(handler anycast.Handler, n int) *lease {
	for range s.next {
		port := s.turn
		s.turn = (s.turn + 1) % len(s.next)
		first := s.next[port]
		if first+n > units {
			continue
		}
		s.next[port] += n
		s.used += n
		l := &lease{shared: s, handler: handler, flow: uint16(port), first: first, units: n}
		for i := range n {
			s.leases[port*units+first+i].Store(l)
		}
		if s.held == 0 {
			s.idle.Stop()
		}
		s.held++
		return l
	}
	return nil
}

// retireLocked gives out no more leases, and closes the session if there are none.
func (s *sharedSession) retireLocked() {
	s.retired = true
	s.idle.Stop()
	if s.held == 0 {
		s.session.Close()
	}
}

// rest closes a session that nobody has used for a while.
func (s *sharedSession) rest() {
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	if s.held > 0 || s.retired {
		return
	}
	s.retireLocked()
	kind := s.pool.kinds[s.key]
	kind.current = nil
	if kind.successor != nil {
		kind.successor.retireLocked()
		kind.successor = nil
	}
	s.pool.forgetLocked(s.key, kind)
}

var _ anycast.Handler = (*sharedSession)(nil)

// HandleSent is never called: each order is its lease's.
func (s *sharedSession) HandleSent(anycast.Sent) {}

// HandleAnswers gives answers to the leases. Those of one lease that came in a row go together.
func (s *sharedSession) HandleAnswers(all []anycast.Answer) {
	for i := 0; i < len(all); {
		l := s.ownerOf(&all[i])
		end := i + 1
		for end < len(all) && s.ownerOf(&all[end]) == l {
			end++
		}
		if l != nil {
			l.deliver(all[i:end])
		}
		i = end
	}
}

// ownerOf finds the lease of an answer; nil if it has been closed.
func (s *sharedSession) ownerOf(a *anycast.Answer) *lease {
	u := int(a.Number) / unit
	if u >= units { // nobody has ever had it
		return nil
	}
	return s.leases[int(a.Flow)*units+u].Load()
}

// lease is a session inside a shared one.
type lease struct {
	shared  *sharedSession
	handler anycast.Handler
	flow    uint16 // of the shared session
	first   int    // unit
	units   int
	closed  atomic.Bool
}

var _ anycast.Session = (*lease)(nil)

// deliver hands answers on, with the flow and the numbers that the holder knows.
func (l *lease) deliver(answers []anycast.Answer) {
	for i := range answers {
		answers[i].Flow = 0
		answers[i].Number -= uint16(l.first * unit)
	}
	l.handler.HandleAnswers(answers)
}

// Send has a site send probes.
func (l *lease) Send(name string, b anycast.Batch) error {
	if l.closed.Load() {
		return net.ErrClosed
	}
	numbers := make([]uint16, len(b.Numbers))
	for i, n := range b.Numbers {
		if int(n) >= l.units*unit {
			return fmt.Errorf("probe %d of %d: %w", n, l.units*unit, errNumbers)
		}
		numbers[i] = n + uint16(l.first*unit)
	}
	b.Numbers, b.Flows = numbers, []uint16{l.flow}
	return l.shared.session.send(name, b, l.handler)
}

// FirstPort is the source port of all probes.
func (l *lease) FirstPort() uint16 { return l.shared.session.FirstPort() + l.flow }

// Close ends the lease. Its numbers are never used again.
func (l *lease) Close() {
	if l.closed.Swap(true) {
		return
	}
	s := l.shared
	for i := range l.units {
		s.leases[int(l.flow)*units+l.first+i].Store(nil)
	}
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	s.held--
	switch {
	case s.held > 0:
	case s.retired:
		s.session.Close()
	default:
		s.idle.Reset(sharedIdle)
	}
}
