// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

// A link is what a sealed mesh has with one peer.
//
//	initiation --handshake 2--> next --first datagram in it--> current --replaced--> old --30 s--> gone
//	response   --handshake 3-----------------------------------> current
//
// A session is sent in when the other side is known to have it: the side that answers knows when it has the last
// message of the handshake, the other one when it hears the first datagram. Until then the session before stays in use,
// so that nothing is lost when keys are replaced.
type link struct {
	current *session
	next    *session
	old     []*session // oldest first

	initiation  *initiation
	attempts    int // since there was a session
	attemptLast time.Time
	attemptNext time.Time

	queue  []waiting
	queued int // bytes in it
}

// waiting is a broadcast that waits for a session.
type waiting struct {
	since time.Time
	frame []byte // as in a frame record
}

const (
	// A handshake takes two round trips; what is broadcast meanwhile fits in here unless there is a flood.
	maxQueue      = 64
	maxQueueBytes = 256 << 10
	// queueTime is less than copies of a broadcast are remembered for (package guard): one that came later, when another
	// relay has long brought it, would be a second one.
	queueTime = 500 * time.Millisecond
	// queueAttempts is after how many attempts a peer is no longer waited for: seven seconds.
	queueAttempts = 3
	// simultaneous is how close to each other two sessions must be made to be from both sides at once.
	simultaneous = 2 * time.Second
)

// enqueue keeps frames for a peer that will have a session soon, and drops them for others.
func (m *Mesh) enqueue(p *peer, frames []Frame, now time.Time) {
	l := &p.link
	for i := range frames {
		b := frames[i].SS
		n := len(b) - ssHeader
		if n < minIP || n > maxFrame-macLen {
			continue
		}
		if len(l.queue) == maxQueue {
			p.expireQueue(now)
		}
		if l.attempts > queueAttempts || len(l.queue) == maxQueue || l.queued+n > maxQueueBytes {
			p.queueDrops++
			continue
		}
		frame := append(make([]byte, 0, macLen+n), b[ssLen+macLen:ssLen+2*macLen]...)
		frame = append(frame, b[ssHeader:]...)
		l.queue = append(l.queue, waiting{since: now, frame: frame})
		l.queued += len(frame)
	}
}

func (p *peer) expireQueue(now time.Time) {
	l := &p.link
	n := 0
	for n < len(l.queue) && now.Sub(l.queue[n].since) >= queueTime {
		l.queued -= len(l.queue[n].frame)
		p.queueDrops++
		n++
	}
	l.queue = slices.Delete(l.queue, 0, n)
	if len(l.queue) == 0 {
		l.queue = nil
	}
}

// sendQueue sends what has waited.
func (m *Mesh) sendQueue(p *peer, out *Outbox, now time.Time) {
	p.expireQueue(now)
	if slices.ContainsFunc(m.peers, func(q *peer) bool { return q != p && q.ours() && q.instance == p.instance }) {
		p.link.queue, p.link.queued = nil, 0 // it went to another address of the same relay
		return
	}
	k := packer{m: m, p: p, s: p.link.current, out: out}
	for _, w := range p.link.queue {
		k.frame(w.frame[:macLen], w.frame[macLen:])
	}
	k.flush()
	p.link.queue, p.link.queued = nil, 0
}

// newIndex takes an index that is not in use.
func (m *Mesh) newIndex(e entry) uint32 {
	for {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(m.token()))
		i := binary.BigEndian.Uint32(b[:])
		if _, used := m.indexes[i]; !used && i != 0 {
			m.indexes[i] = e
			return i
		}
	}
}

// install makes a session the current one.
func (m *Mesh) install(p *peer, s *session, out *Outbox, now time.Time) {
	l := &p.link
	s.last = nil
	s.outdated = !m.authentic(s)
	p.shown = true
	l.attempts, l.attemptNext = 0, time.Time{}
	if c := l.current; c != nil && c.instance == s.instance && now.Sub(c.since) < simultaneous &&
		bytes.Compare(c.binding[:], s.binding[:]) < 0 {
		// Both sides began at the same time. Both make the same choice.
		m.age(p, s, now)
		return
	}
	m.retire(p, now)
	l.current = s
	m.setInstance(p, s.id, s.instance)
	p.name, p.version = s.name, s.version
	m.setUp(p, now)
	p.unanswered = 0
	m.sendHello(p, s, out, now)
	p.helloNext = now.Add(helloInterval)
	m.wake(p, p.helloNext)
	m.sendQueue(p, out, now)
}

// confirm is the first datagram in a session that this side began.
func (m *Mesh) confirm(p *peer, out *Outbox, now time.Time) {
	s := p.link.next
	p.link.next = nil
	m.install(p, s, out, now)
}

// retire ends the use of the current session for sending.
func (m *Mesh) retire(p *peer, now time.Time) {
	if s := p.link.current; s != nil {
		p.link.current = nil
		m.age(p, s, now)
	}
}

// age keeps a session for what is under way.
func (m *Mesh) age(p *peer, s *session, now time.Time) {
	s.until = now.Add(oldSession)
	p.link.old = append(p.link.old, s)
	if len(p.link.old) > maxOld {
		m.forget(p.link.old[0])
		p.link.old = slices.Delete(p.link.old, 0, 1)
	}
}

func (m *Mesh) forget(s *session) { delete(m.indexes, s.local) }

func (m *Mesh) forgetInitiation(p *peer) {
	if i := p.link.initiation; i != nil {
		delete(m.indexes, i.index)
		p.link.initiation = nil
	}
}

// dropLink forgets everything of a link.
func (m *Mesh) dropLink(p *peer) {
	l := &p.link
	m.forgetInitiation(p)
	for _, s := range append(l.old, l.current, l.next) {
		if s != nil {
			m.forget(s)
		}
	}
	p.queueDrops += uint64(len(l.queue))
	*l = link{attempts: l.attempts, attemptLast: l.attemptLast, attemptNext: l.attemptNext}
}

// follow is a peer that was learned, and now sends from another address: a NAT between has forgotten it, or it moved.
// Peers that were configured stay where they were configured to be.
func (m *Mesh) follow(p *peer, from netip.AddrPort) {
	if p.origin != learned || m.byAddr[from] != nil {
		return
	}
	delete(m.byAddr, p.addr)
	p.addr = from
	m.byAddr[from] = p
	m.stale = true
}
