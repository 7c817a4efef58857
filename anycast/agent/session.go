// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"container/heap"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/net/bpf"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// session is probes of one look, whose answers are recognised. It is the plane's.
type session struct {
	key    sessionKey
	codec  *stateless.Codec
	ports  rawio.PortRange
	err    error // why it was refused; then there is no codec
	orders int
	until  int64 // mono, when nothing is recognised any more; 0 while it is open
}

// sessionKey names a session: controllers know nothing of each other's numbers.
type sessionKey struct {
	link *link
	id   uint32
}

const (
	// maxSessions is how many a controller may have.
	maxSessions = 1 << 14
	// maxLinger is how long late answers are recognised at most.
	maxLinger = time.Minute
	// reapEvery bounds how often all sessions are looked at for those that have listened long enough.
	reapEvery = int64(50 * time.Millisecond)
)

// openSession begins a session, or keeps the reason why not for its orders. One of the same name, from before a
// connection was lost, goes on if it is the same, and makes room otherwise.
func (p *plane) openSession(l *link, id uint32, conf stateless.Config, err error) {
	l.opening = append(l.opening, id) // also what is refused: nobody has to wait for it
	key := sessionKey{l, id}
	var codec *stateless.Codec
	if err == nil {
		codec, err = stateless.New(conf)
	}
	if old := p.sessions[key]; old != nil {
		if err == nil && old.codec != nil && old.until == 0 && old.codec.Config() == codec.Config() {
			return
		}
		p.endSession(old)
	} else if l.sessions >= maxSessions {
		l.log.Warn("controller opens too many sessions", "limit", maxSessions)
		return
	}
	s := &session{key: key, codec: codec, err: err}
	if err == nil {
		if s.err = p.claim(s); s.err == nil {
			c := codec.Config()
			s.ports = rawio.PortRange{Lo: c.FirstPort, Hi: c.FirstPort + c.Ports - 1}
			p.byCodec[codec] = s
		} else {
			s.codec = nil
		}
	}
	p.sessions[key] = s
	l.sessions++
	if s.err != nil {
		l.log.Warn("session refused", "session", id, "error", s.err)
		return
	}
	p.wider = true
}

// claim takes a session's ports. Those of a session of the same controller that is only listening for late
// answers give way: it knows what it does.
func (p *plane) claim(s *session) error {
	err := p.table.Add(s.codec)
	if !errors.Is(err, stateless.ErrPortsTaken) {
		return err
	}
	c := s.codec.Config()
	lo, hi := c.FirstPort, c.FirstPort+c.Ports-1
	freed := false
	for _, old := range p.sessions {
		if old.key.link == s.key.link && old.until != 0 && old.ports.Lo <= hi && lo <= old.ports.Hi {
			p.endSession(old)
			freed = true
		}
	}
	if freed {
		err = p.table.Add(s.codec)
	}
	if err != nil {
		return fmt.Errorf("ports %d to %d: %w", lo, hi, err)
	}
	return nil
}

// closeSession lets a session listen for late answers, and ends its orders.
func (p *plane) closeSession(l *link, id uint32, linger time.Duration) {
	s := p.sessions[sessionKey{l, id}]
	if s == nil || s.until != 0 {
		return
	}
	p.dropOrders(s)
	if s.codec == nil || linger <= 0 {
		p.endSession(s)
		return
	}
	s.until = p.now + int64(min(linger, maxLinger))
	p.lingering++
	p.reap = min(p.reap, max(s.until, p.now+reapEvery))
}

// endSession forgets a session.
func (p *plane) endSession(s *session) {
	p.dropOrders(s)
	if s.codec != nil {
		p.table.Remove(s.codec)
		delete(p.byCodec, s.codec)
	}
	if s.until != 0 {
		p.lingering--
	}
	delete(p.sessions, s.key)
	s.key.link.sessions--
	p.narrower = true
}

// keepSessions ends all sessions of a controller but those listed: it has forgotten them.
func (p *plane) keepSessions(l *link, ids []uint32) {
	listed := make(map[uint32]bool, len(ids))
	for _, id := range ids {
		listed[id] = true
	}
	for key, s := range p.sessions {
		if key.link == l && !listed[key.id] && s.until == 0 {
			p.endSession(s)
		}
	}
}

// openSessions lists those of a controller.
func (p *plane) openSessions(l *link) []uint32 {
	var ids []uint32
	for key, s := range p.sessions {
		if key.link == l && s.codec != nil && s.until == 0 {
			ids = append(ids, key.id)
		}
	}
	slices.Sort(ids)
	return ids
}

// expire ends sessions that have listened long enough.
func (p *plane) expire() {
	if p.lingering == 0 || p.now < p.reap {
		return
	}
	p.reap = forever
	for _, s := range p.sessions {
		switch {
		case s.until == 0:
		case s.until <= p.now:
			p.endSession(s)
		default:
			p.reap = min(p.reap, max(s.until, p.now+reapEvery))
		}
	}
}

// dropOrders ends the orders of a session.
func (p *plane) dropOrders(s *session) {
	if s.orders == 0 {
		return
	}
	var ended []*order
	drop := func(o *order) bool {
		if o.session != s {
			return false
		}
		ended = append(ended, o)
		return true
	}
	p.express.drop(drop)
	p.paced = slices.DeleteFunc(p.paced, drop)
	heap.Init(&p.paced)
	for _, o := range ended {
		o.fail(errClosed)
		o.n = o.next
		p.settle(o)
	}
}

// concerns tells whether answers to a session come by a socket.
func (rx *receiver) concerns(s *session) bool {
	return rx.icmp || s.codec.Protocol(rx.version) == rx.proto
}

// narrowEvery is how long ports of sessions that have ended may still pass: to set a filter costs as much as a hundred probes,
// so sessions that end do not have it set one by one. One that begins does.
const narrowEvery = int64(time.Second)

// confirm makes answers to the sessions that were opened in this turn pass the filters, and then tells their controllers.
func (p *plane) confirm() {
	if p.wider {
		p.filter()
	}
	for _, l := range p.links {
		if len(l.opening) > 0 {
			l.opened.add(l.opening...)
			l.opening = l.opening[:0]
		}
	}
}

// narrow makes the filters pass no more than they must.
func (p *plane) narrow() {
	if p.narrower && p.now >= p.filtered+narrowEvery {
		p.filter()
	}
}

// filter makes each socket's filter pass what belongs to a session. The kernel replaces a filter at once: there is no moment
// without one, and what is in the queue stays there.
func (p *plane) filter() {
	p.wider, p.narrower, p.filtered = false, false, p.now
	for i := range p.receivers {
		rx := &p.receivers[i]
		if rx.conn == nil {
			continue
		}
		var ranges []rawio.PortRange
		for _, s := range p.sessions {
			if s.codec != nil && rx.concerns(s) {
				ranges = append(ranges, s.ports)
			}
		}
		if ranges = rawio.JoinRanges(ranges); !slices.Equal(ranges, rx.passing) {
			rx.passing = ranges
			p.setFilter(rx)
		}
	}
}

func (p *plane) setFilter(rx *receiver) {
	var f []bpf.RawInstruction
	if rx.icmp && rx.version == 4 && p.forwarding > 0 {
		f = rawio.FilterICMP4(1, 0) // all errors, and no echo replies but those of sessions
		if len(rx.passing) > 0 {
			f = rawio.FilterICMP4(0, 65535)
		}
	} else {
		f = rx.filter(rx.passing)
	}
	if err := rx.conn.SetFilter(f); err != nil {
		p.log.Error("cannot set a filter: too much or too little is received", "error", err)
	}
}
