// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"slices"
	"time"
)

// maxIdle is the longest that Tick asks to be left alone.
const maxIdle = 10 * time.Second

// Tick does what is due: greets new peers, asks the others for a sign of life, replaces session keys, forgets what is
// too old. It returns when it wants to be called next; another call may move that forward, see [Mesh.Deadline].
func (m *Mesh) Tick(now time.Time, out *Outbox) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.deadline = now.Add(maxIdle)
	m.strangerParts.tick(now)
	m.expireResponses(now)
	for _, p := range m.peers {
		if !p.next.After(now) {
			m.tickPeer(p, now, out)
		}
		if m.deadline.After(p.next) {
			m.deadline = p.next
		}
	}
	if slices.ContainsFunc(m.peers, func(p *peer) bool { return p.origin == 0 }) {
		m.removeOrphans()
	}
	return m.deadline
}

func (m *Mesh) tickPeer(p *peer, now time.Time, out *Outbox) {
	if p.origin&neighbour != 0 && !now.Before(p.neighbourUntil) {
		p.origin &^= neighbour
		m.stale = true
	}
	if p.origin == learned && p.state == Down && now.Sub(p.downSince) >= learnedTime {
		p.origin = 0
	}
	if p.origin == 0 {
		return
	}
	if p.kind == Self && p.unanswered >= missedHellos {
		p.kind = Unknown // the address is somebody else's now
		m.stale = true
	}
	p.partDrops += uint64(p.parts.tick(now))
	if m.sealed {
		m.tickLink(p, now, out)
	} else {
		m.tickOpen(p, now, out)
	}
	// Of the rest nothing is urgent: what is due a little later is done with the next hello.
	if p.origin&neighbour != 0 && p.next.After(p.neighbourUntil) {
		p.next = p.neighbourUntil
	}
}

// tickOpen asks a peer for a sign of life, or for the first one.
func (m *Mesh) tickOpen(p *peer, now time.Time, out *Outbox) {
	if !p.helloNext.After(now) {
		if p.ours() && p.unanswered >= missedHellos {
			m.setDown(p, now)
		}
		m.sendHello(p, nil, out, now)
		p.helloNext = now.Add(m.patience(p))
	}
	p.next = p.helloNext
}

// patience is how long to wait before the next hello, and counts the probes of a peer that is not up.
func (m *Mesh) patience(p *peer) time.Duration {
	if p.ours() {
		return helloInterval
	}
	if p.probes++; p.probes < quickProbes && p.kind != Self {
		return probeInterval
	}
	return jitter(patientInterval)
}

// tickLink keeps a sealed link alive, or tries to have one.
func (m *Mesh) tickLink(p *peer, now time.Time, out *Outbox) {
	l := &p.link
	for len(l.old) > 0 && !l.old[0].until.After(now) {
		m.forget(l.old[0])
		l.old = slices.Delete(l.old, 0, 1)
	}
	p.expireQueue(now)
	if s := l.next; s != nil && !s.lastNext.After(now) {
		if s.lastTries == maxRepeatLast {
			m.forget(s)
			l.next = nil
		} else {
			s.lastTries++
			s.lastNext = now.Add(repeatLast)
			m.sendBytes(p, s.last, p.addr, out)
		}
	}
	s := l.current
	if s != nil && s.outdated && s.until.Sub(now) > oldSession {
		s.until = now.Add(oldSession)
	}
	if s != nil && !s.until.After(now) {
		m.setDown(p, now)
		m.retire(p, now)
	}
	if p.ours() && !p.helloNext.After(now) {
		if p.unanswered >= missedHellos {
			m.setDown(p, now)
			m.retire(p, now)
		} else {
			m.sendHello(p, l.current, out, now)
			p.helloNext = now.Add(helloInterval)
		}
	}
	if l.next == nil && m.wantsHandshake(p, now) && !l.attemptNext.After(now) {
		m.startHandshake(p, out, now)
	}
	p.next = now.Add(maxIdle)
	soonest := func(t time.Time) {
		if p.next.After(t) {
			p.next = t
		}
	}
	if p.ours() {
		soonest(p.helloNext)
	}
	switch {
	case l.next != nil:
		soonest(l.next.lastNext)
	case !p.ours():
		soonest(l.attemptNext)
	}
}

// wantsHandshake tells whether a link has no session, one that may be gone at the other side, or one that is due to be
// replaced.
func (m *Mesh) wantsHandshake(p *peer, now time.Time) bool {
	s := p.link.current
	if s == nil || p.unanswered >= missedHellos-1 {
		return true
	}
	age := now.Sub(s.since)
	return s.outdated || s.sent >= rekeyMessages || age >= rekeyAfterOthers || s.initiator && age >= rekeyAfter
}

// sendBytes sends a copy of a datagram that was made before.
func (m *Mesh) sendBytes(p *peer, b []byte, to netip.AddrPort, out *Outbox) {
	finish(out, p, nil, to, append(reserve(&out.arena, len(b)), b...))
}
