// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/relay/drop"
)

// Receive takes one datagram from the mesh socket. Broadcasts and reports in it go into in, what must be answered
// into out. A sealed datagram is decrypted in place. The reason is the first for which the datagram, or a record in
// it, goes no further.
func (m *Mesh) Receive(from netip.AddrPort, datagram []byte, in *Inbox, out *Outbox, now time.Time) drop.Reason {
	from = unmapped(from)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stale {
		m.rebuild()
	}
	if isSS(datagram) {
		return m.receiveSS(from, datagram, in, now)
	}
	switch framed(datagram) {
	case kindSealed:
		return m.receiveSealed(from, datagram, in, out, now)
	case kindOpen:
		return m.receiveOpen(from, datagram, in, out, now)
	case kindHandshake1:
		return m.receiveHandshake1(from, datagram, out, now)
	case kindHandshake2:
		return m.receiveHandshake2(from, datagram, out, now)
	case kindHandshake3:
		return m.receiveHandshake3(from, datagram, out, now)
	case kindReset:
		return m.receiveReset(from, datagram, out, now)
	default:
		return drop.Unframed
	}
}

// sourceOf says which peer a datagram in clear is from; nil for a stranger.
func (m *Mesh) sourceOf(from netip.AddrPort) *peer {
	if from == m.lastFrom {
		return m.lastPeer
	}
	p := m.byAddr[from]
	if p == nil {
		p = m.bySource[from.Addr()]
	}
	m.lastFrom, m.lastPeer = from, p
	return p
}

// refused tells whether what is in clear from an address is not listened to.
func (m *Mesh) refused(from netip.AddrPort) bool {
	if !m.only {
		return false
	}
	if _, peer := m.bySource[from.Addr()]; peer {
		return false
	}
	return !near(from.Addr(), m.allow)
}

func (m *Mesh) receiveSS(from netip.AddrPort, b []byte, in *Inbox, now time.Time) drop.Reason {
	if m.sealed && !m.compat {
		return drop.OpenRefused
	}
	if m.refused(from) {
		return drop.UnknownPeer
	}
	if len(b) < ssHeader+minIP {
		return drop.Truncated
	}
	var number uint32
	if p := m.sourceOf(from); p != nil {
		if p.shown {
			return drop.OpenRefused
		}
		if p.origin&configured != 0 && (p.kind == Unknown || p.kind == Ours && p.state == Down) {
			p.kind, p.state = Original, Connecting
			m.stale = true
		}
		p.lastHeard = now
		p.received.Datagrams++
		p.received.Broadcasts++
		p.received.Bytes += uint64(len(b))
		number = p.number
	} else {
		s := m.strangers.get(from, now)
		s.datagrams++
		s.broadcasts++
		s.bytes += uint64(len(b))
		number = s.number
	}
	in.Items = append(in.Items, Incoming{
		Peer: number, Link: [6]byte(b[ssLen+macLen:]), IP: b[ssHeader:], Frame: b[ssLen:],
	})
	return drop.None
}

func (m *Mesh) receiveOpen(from netip.AddrPort, b []byte, in *Inbox, out *Outbox, now time.Time) drop.Reason {
	if m.sealed {
		return drop.OpenRefused
	}
	if m.refused(from) {
		return drop.UnknownPeer
	}
	p := m.byAddr[from]
	if p == nil {
		s := m.strangers.get(from, now)
		s.datagrams++
		s.bytes += uint64(len(b))
		return m.records(nil, s, nil, from, b[headerLen:], in, out, now)
	}
	p.lastHeard = now
	p.received.Datagrams++
	p.received.Bytes += uint64(len(b))
	return m.records(p, nil, nil, from, b[headerLen:], in, out, now)
}

// records goes through the records of a datagram that came from a peer, with the session it was sealed in, or from a
// stranger.
func (m *Mesh) records(p *peer, x *stranger, s *session, from netip.AddrPort, b []byte, in *Inbox, out *Outbox, now time.Time) drop.Reason {
	first := drop.None
	for len(b) > 0 {
		kind, body, rest, reason := nextRecord(b)
		if reason == drop.None {
			b = rest
			reason = m.record(p, x, s, from, kind, body, in, out, now)
		} else {
			b = nil // where the next record begins is not known
		}
		if first == drop.None {
			first = reason
		}
	}
	return first
}

func (m *Mesh) record(p *peer, x *stranger, s *session, from netip.AddrPort, kind byte, body []byte, in *Inbox, out *Outbox, now time.Time) drop.Reason {
	switch kind {
	case recordFrame:
		return deliver(p, x, body, in)
	case recordPart:
		return m.part(p, x, body, in, now)
	case recordHello:
		h, reason := parseHello(body)
		if reason != drop.None {
			return reason
		}
		return m.helloReceived(p, s, from, &h, out, now)
	case recordHelloAck:
		h, reason := parseHello(body)
		if reason != drop.None {
			return reason
		}
		return m.ackReceived(p, s, &h, out, now)
	case recordTestReport:
		r, reason := parseTestReport(body)
		if reason != drop.None {
			return reason
		}
		number := uint32(0)
		if p != nil {
			number = p.number
		} else {
			number = x.number
		}
		if len(in.Reports) < maxReports {
			in.Reports = append(in.Reports, Report{Peer: number, From: from, TestReport: r})
		}
	case recordBye:
		if p != nil && p.ours() {
			m.leave(p, now)
		}
	}
	return drop.None // of a later version
}

// maxReports bounds what one datagram full of them costs.
const maxReports = 256

// deliver hands over the body of a frame record.
func deliver(p *peer, x *stranger, body []byte, in *Inbox) drop.Reason {
	if len(body) < minFrame || len(body) > maxFrame {
		return drop.Malformed
	}
	number := uint32(0)
	if p != nil {
		p.received.Broadcasts++
		number = p.number
	} else {
		x.broadcasts++
		number = x.number
	}
	in.Items = append(in.Items, Incoming{Peer: number, Link: [6]byte(body), IP: body[macLen:]})
	return drop.None
}

func (m *Mesh) part(p *peer, x *stranger, body []byte, in *Inbox, now time.Time) drop.Reason {
	h, data, reason := parsePart(body)
	if reason != drop.None {
		return reason
	}
	parts, number := &m.strangerParts, uint32(0)
	if p != nil {
		parts = &p.parts
	} else {
		number = x.number // all strangers share one place
	}
	frame, lost, reason := parts.add(number, h, data, now)
	if p != nil {
		p.partDrops += uint64(lost)
	}
	if frame == nil {
		return reason
	}
	b := append(reserve(&in.arena, len(frame)), frame...)
	keep(&in.arena, b)
	return deliver(p, x, b, in)
}

// helloReceived answers a hello, and lets a peer that is not up have one in turn at once.
func (m *Mesh) helloReceived(p *peer, s *session, from netip.AddrPort, h *hello, out *Outbox, now time.Time) drop.Reason {
	if h.mesh != m.meshID {
		return drop.Unauthenticated
	}
	if p == nil {
		if !m.answers.allow(now) {
			return drop.Rate
		}
		m.sendAck(nil, nil, from, h.token, out)
		return drop.None
	}
	if !p.answers.allow(now) {
		return drop.Rate
	}
	m.sendAck(p, s, from, h.token, out)
	if s != nil {
		m.learn(p, h)
	} else if p.ours() {
		p.unanswered = 0 // it asks only relays that it hears as often as this
	} else if p.kind != Self && now.Sub(p.helloLast) >= probeInterval {
		m.sendHello(p, nil, out, now)
	}
	return drop.None
}

// ackReceived takes the answer to a hello. It may come from another address of the peer than the hello was sent to;
// the token is what counts.
func (m *Mesh) ackReceived(p *peer, s *session, h *hello, out *Outbox, now time.Time) drop.Reason {
	if h.mesh != m.meshID {
		return drop.Unauthenticated
	}
	var sent *sentHello
	if p != nil {
		sent = p.outstanding(h.token)
	}
	if s == nil {
		for i := 0; sent == nil && i < len(m.peers); i++ {
			p = m.peers[i]
			sent = p.outstanding(h.token)
		}
	}
	if sent == nil {
		return drop.Replayed
	}
	p.smooth(now.Sub(sent.at))
	*sent = sentHello{}
	p.lastHeard = now
	if h.instance == m.instance {
		p.unanswered = 0
		m.setSelf(p)
		return drop.None
	}
	if s == nil {
		m.setInstance(p, h.id, h.instance)
	}
	m.learn(p, h)
	m.setUp(p, now)
	return drop.None
}

// learn keeps what a hello tells about a peer, apart from who it is.
func (m *Mesh) learn(p *peer, h *hello) {
	if p.version != string(h.version) {
		p.version = string(h.version)
	}
	p.segments = p.segments[:0]
	for b := h.segments; len(b) > 0; b = b[tokenLen:] {
		p.segments = append(p.segments, [8]byte(b))
	}
}

// leave is what a peer does that says so: it is asked again soon, in case it starts anew, but not at once.
func (m *Mesh) leave(p *peer, now time.Time) {
	m.setDown(p, now)
	p.probes = quickProbes
	m.retire(p, now)
	p.helloNext = now.Add(2 * helloInterval)
	p.link.attempts, p.link.attemptNext = 0, p.helloNext
	m.wake(p, p.helloNext)
}

// outstanding finds the hello that a token was sent with.
func (p *peer) outstanding(token uint64) *sentHello {
	for i := range p.hellos {
		if p.hellos[i].token == token && !p.hellos[i].at.IsZero() {
			return &p.hellos[i]
		}
	}
	return nil
}

func (m *Mesh) receiveSealed(from netip.AddrPort, b []byte, in *Inbox, out *Outbox, now time.Time) drop.Reason {
	if !m.sealed {
		return drop.Unauthenticated
	}
	if len(b) < sealedHeader+tagLen {
		return drop.Truncated
	}
	index := binary.BigEndian.Uint32(b[headerLen:])
	s := m.indexes[index].session
	if s == nil {
		if m.indexes[index].response == nil && m.resets.allow(now) {
			m.sendReset(from, index, out)
		}
		return drop.Unauthenticated
	}
	counter := binary.BigEndian.Uint64(b[headerLen+4:])
	if counter >= maxCounter || !s.window.fresh(counter) {
		return drop.Replayed
	}
	records, ok := s.open(b, counter)
	if !ok {
		return drop.Unauthenticated
	}
	p := s.peer
	if s.window.mark(counter) && from != p.addr {
		m.follow(p, from)
	}
	p.lastHeard = now
	p.received.Datagrams++
	p.received.Bytes += uint64(len(b))
	switch s {
	case p.link.next:
		m.confirm(p, out, now)
	case p.link.current:
		// It has the session, and hears this side, or else it would have given up. So a few answers may get lost.
		p.unanswered = 0
	}
	return m.records(p, nil, s, from, records, in, out, now)
}
