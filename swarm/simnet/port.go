// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package simnet

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// How calls time out, after the estimator of RFC 6298 with a granularity for the other's work.
const (
	firstTimeout = time.Second // to a member whose round trip has not been measured
	granularity  = 30 * time.Millisecond
)

const (
	alive int32 = iota
	silent
	crashed
)

var (
	errBroken  = fmt.Errorf("%w: connection broken", wire.ErrUnreachable)
	errRefused = fmt.Errorf("%w: connection refused", wire.ErrUnreachable)
	errTimeout = fmt.Errorf("%w: no answer in time", wire.ErrUnreachable)
)

var _ wire.Transport = (*Port)(nil)

// A Port is where a member is attached to a network: its transport.
type Port struct {
	net     *Network
	contact member.Contact
	index   uint32
	x, y    float64
	group   int // guarded by net.mu

	state    atomic.Int32
	life     atomic.Pointer[life]
	handler  atomic.Pointer[wire.Handler]
	handling atomic.Int32

	mu      sync.Mutex
	links   map[uint32]*link
	pending map[*call]struct{} // calls that wait for this member
}

// A life is the time from being attached, or revived, to being killed.
type life struct {
	ctx context.Context
	end context.CancelFunc
}

func newLife() *life {
	ctx, end := context.WithCancel(context.Background())
	return &life{ctx, end}
}

// A link is what a member knows about its connection to another.
type link struct {
	rtt, deviation time.Duration
	last           time.Time // arrival of the newest message sent
}

// A call is a request on its way.
type call struct {
	from *Port
	done chan answer // of one
}

type answer struct {
	message wire.Message
	err     error
	rtt     time.Duration
}

func (c *call) finish(a answer) {
	select {
	case c.done <- a:
	default: // answered, broken or given up before
	}
}

// Serve sets the handler of the messages that come in. Before it is called they are refused.
func (p *Port) Serve(h wire.Handler) { p.handler.Store(&h) }

// Contact returns what the member was attached as.
func (p *Port) Contact() member.Contact { return p.contact }

// Call implements [wire.Transport].
func (p *Port) Call(ctx context.Context, to member.Contact, request wire.Message) (wire.Message, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	limit := p.timeout(to.ID)
	if deadline, ok := ctx.Deadline(); ok {
		limit = time.Until(deadline)
	}
	c := &call{from: p, done: make(chan answer, 1)}
	target, through := p.net.find(p, to)
	if target == nil || target.handler.Load() == nil {
		p.net.refused.Add(1)
		time.AfterFunc(granularity, func() { c.finish(answer{err: errRefused}) })
	} else {
		target.mu.Lock()
		target.pending[c] = struct{}{}
		target.mu.Unlock()
		defer func() {
			target.mu.Lock()
			delete(target.pending, c)
			target.mu.Unlock()
		}()
		p.request(c, target, through, request)
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case a := <-c.done:
		if a.err != nil {
			return nil, fmt.Errorf("%s to %s: %w", request.Kind(), to, a.err)
		}
		if r, ok := a.message.(wire.Refused); ok {
			return nil, r
		}
		if a.rtt > 0 {
			p.measured(target, a.rtt)
		}
		return a.message, nil
	case <-timer.C:
		p.net.timeouts.Add(1)
		return nil, fmt.Errorf("%s to %s: %w", request.Kind(), to, errTimeout)
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			p.net.timeouts.Add(1)
			return nil, fmt.Errorf("%s to %s: %w", request.Kind(), to, errTimeout)
		}
		return nil, ctx.Err()
	}
}

// request sends a request off, and its answer back when that has been found.
func (p *Port) request(c *call, target, through *Port, request wire.Message) {
	raw := p.net.encode(request)
	if !p.net.passes(p, target) {
		return
	}
	fresh := p.net.o.Handshake > 0 && through == nil && !p.linked(target)
	there := p.way(target, through)
	time.AfterFunc(there, func() {
		if target.state.Load() == crashed {
			p.net.refused.Add(1)
			time.AfterFunc(p.net.delay(target, p), func() { c.finish(answer{err: errRefused}) })
			return
		}
		reply := target.handle(p, raw)
		if reply == nil {
			return
		}
		raw := p.net.encode(reply)
		if !p.net.passes(target, p) {
			return
		}
		back := target.way(p, through)
		time.AfterFunc(back, func() {
			message, err := wire.Decode(raw)
			rtt := there + back
			if fresh {
				rtt = 0 // measured by the handshake
			}
			c.finish(answer{message, err, rtt})
		})
	})
}

// Cast implements [wire.Transport].
func (p *Port) Cast(to member.Contact, m wire.Message) {
	target, through := p.net.find(p, to)
	raw := p.net.encode(m)
	if target == nil || !p.net.passes(p, target) {
		return
	}
	time.AfterFunc(p.way(target, through), func() { target.handle(p, raw) })
}

// RTT implements [wire.Transport].
func (p *Port) RTT(id member.ID) time.Duration {
	p.net.mu.RLock()
	other := p.net.byID[id]
	p.net.mu.RUnlock()
	if other == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.links[other.index]; l != nil {
		return l.rtt
	}
	return 0
}

// handle lets the member's handler answer a message, and returns nil for no answer.
func (p *Port) handle(from *Port, raw []byte) wire.Message {
	h, life := p.handler.Load(), p.life.Load()
	if h == nil || p.state.Load() != alive {
		return nil
	}
	p.net.handlers.Add(1)
	defer p.net.handlers.Done()
	defer p.handling.Add(-1)
	if p.handling.Add(1) > int32(p.net.o.Handlers) {
		return wire.Refused{Code: wire.Overloaded}
	}
	m, err := wire.Decode(raw)
	if err != nil {
		return wire.Refused{Code: wire.Invalid, Reason: err.Error()}
	}
	// A link proves who the other is, and no more.
	bare := member.Contact{ID: from.contact.ID, Dialect: from.contact.Dialect, Key: from.contact.Key}
	return (*h).Handle(life.ctx, bare, m)
}

// way is how long a message that is sent now takes. The first to a member sets up a link.
func (p *Port) way(to, through *Port) time.Duration {
	d := p.net.delay(p, to)
	if through != nil {
		d = p.net.delay(p, through) + p.net.delay(through, to)
	} else if to != p && !p.linked(to) {
		p.setUp(to)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.link(to)
	arrival := time.Now().Add(d)
	if !arrival.After(l.last) {
		arrival = l.last.Add(1) // links keep the order
	}
	l.last = arrival
	return time.Until(arrival)
}

// setUp makes a link to a member. Until the handshake is through, nothing arrives either way.
func (p *Port) setUp(to *Port) {
	rtt := p.net.base(p, to) + p.net.base(to, p)
	ready := time.Now().Add(time.Duration(p.net.o.Handshake) * rtt)
	known := p.net.o.Handshake > 0 && to.state.Load() == alive
	for _, end := range [...][2]*Port{{p, to}, {to, p}} {
		end[0].mu.Lock()
		l := end[0].link(end[1])
		l.last = ready.Add(rtt/2 - 1) // what is sent now arrives right after
		end[0].mu.Unlock()
		if known {
			end[0].measured(end[1], rtt)
		}
	}
}

func (p *Port) link(to *Port) *link {
	l := p.links[to.index]
	if l == nil {
		l = &link{}
		p.links[to.index] = l
	}
	return l
}

func (p *Port) linked(to *Port) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.links[to.index] != nil
}

// broken takes note that a link to a crashed member is gone.
func (p *Port) broken(other *Port) {
	p.mu.Lock()
	delete(p.links, other.index)
	p.mu.Unlock()
	h := p.handler.Load()
	if h == nil || p.state.Load() != alive || other.state.Load() == alive {
		return
	}
	if s, ok := (*h).(interface{ Suspect(id member.ID) }); ok {
		s.Suspect(other.contact.ID)
	}
}

func (p *Port) measured(to *Port, rtt time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.link(to)
	if l.rtt == 0 {
		l.rtt, l.deviation = rtt, rtt/2
		return
	}
	l.deviation += ((rtt - l.rtt).Abs() - l.deviation) / 4
	l.rtt += (rtt - l.rtt) / 8
}

// timeout is how long an answer can be expected to take.
func (p *Port) timeout(id member.ID) time.Duration {
	p.net.mu.RLock()
	to := p.net.byID[id]
	p.net.mu.RUnlock()
	if to == nil {
		return firstTimeout
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.links[to.index]
	if l == nil || l.rtt == 0 {
		return firstTimeout
	}
	queued := max(0, time.Until(l.last)-l.rtt/2) // behind what is still on its way, or the link's being set up
	return queued + l.rtt + max(granularity, 4*l.deviation)
}

func (n *Network) encode(m wire.Message) []byte {
	raw := wire.Append(nil, m)
	n.messages[m.Kind()].Add(1)
	n.bytes[m.Kind()].Add(uint64(len(raw)))
	return raw
}
