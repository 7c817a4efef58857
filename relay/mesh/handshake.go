// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/flynn/noise"

	"github.com/seed5728abee/fathom/relay/drop"
)

var suite = noise.NewCipherSuite(noise.DH25519, noise.CipherAESGCM, noise.HashSHA256)

const (
	prologue = "fathom relay mesh 1"
	dhLen    = 32

	maxHandshake1 = 2048
	maxHandshake  = maxChainBytes + 4096
	// paddedHandshake1 is what the first message has with certificates, so that a forged source address gets
	// little more than the forger has to send (as RFC 9000, section 8.1).
	paddedHandshake1 = 1200

	// maxResponses bounds the handshakes that others have begun.
	maxResponses = 256
	responseTime = 10 * time.Second
	// maxTries is how many datagrams may claim to go on with one handshake, each at the cost of a Diffie-Hellman. Who
	// sends them has seen its index.
	maxTries = 8
	// ownFirst is for how long an own initiation goes before that of the other side: longer than most round trips, and
	// shorter than the other side waits before it tries again, so that it is turned down once at most.
	ownFirst = 500 * time.Millisecond

	minBackoff = time.Second
	maxBackoff = 10 * time.Second
)

// An initiation is a handshake that this side has begun.
type initiation struct {
	index     uint32
	peer      *peer
	state     *noise.HandshakeState
	ephemeral [dhLen]byte
	key       Key
	at        time.Time
	tries     int // of others to answer it
}

// A response is a handshake that the other side has begun.
type response struct {
	index     uint32
	remote    uint32
	state     *noise.HandshakeState
	ephemeral [dhLen]byte // the other side's
	key       Key
	from      netip.AddrPort
	at        time.Time
	tries     int    // of others to go on with it
	answer    []byte // handshake 2, in case it is asked for again
}

// member is what the two sides of a handshake tell each other under its protection, besides the proof that goes
// with certificates.
//
//	0       4          10         18        26
//	+-------+----------+----------+---------+---+---------+-------
//	| index | relay ID | instance | mesh ID | n | version | proof
//	+-------+----------+----------+---------+---+---------+-------
type member struct {
	index    uint32 // the sender's, so that nobody can change the one in the header
	id       [6]byte
	instance [8]byte
	mesh     [8]byte
	version  []byte
	proof    []byte
}

const memberFixed = 4 + 6 + 8 + 8

func (m *Mesh) appendMember(b []byte, index uint32) []byte {
	b = binary.BigEndian.AppendUint32(b, index)
	b = append(b, m.id[:]...)
	b = append(b, m.instance[:]...)
	b = append(b, m.meshID[:]...)
	b = append(b, byte(len(m.version)))
	b = append(b, m.version...)
	return append(b, m.proof...)
}

func parseMember(b []byte) (h member, ok bool) {
	if len(b) < memberFixed {
		return h, false
	}
	h.index = binary.BigEndian.Uint32(b)
	h.id = [6]byte(b[4:])
	h.instance = [8]byte(b[10:])
	h.mesh = [8]byte(b[18:])
	h.version, h.proof, ok = counted(b[memberFixed:], 1, maxVersion)
	return h, ok && printable(h.version)
}

// SetKeys replaces the keys of a mesh that has keys. Links that began with a key that is gone get new sessions
// at once, and their old ones end after thirty seconds.
func (m *Mesh) SetKeys(keys []Key) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !m.sealed || m.identity != nil:
		return ErrMode
	case len(keys) == 0 || len(keys) > MaxKeys:
		return fmt.Errorf("%d keys: from 1 to %d: %w", len(keys), MaxKeys, ErrOptions)
	}
	m.keys = slices.Clone(keys)
	m.keyIDs = nil
	for _, k := range keys {
		m.keyIDs = append(m.keyIDs, k.id())
	}
	m.review()
	return nil
}

// SetIdentity replaces the certificate of a mesh that has certificates, or the authorities. Links get new
// sessions at once, in which both sides prove themselves anew, and their old ones end after thirty seconds.
func (m *Mesh) SetIdentity(id *Identity) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.sealed || len(m.keys) > 0 || id == nil {
		return ErrMode
	}
	proof, err := id.prove(nil, m.static.Public)
	if err != nil {
		return err
	}
	m.identity, m.proof = id, proof
	m.epoch++
	m.review()
	return nil
}

// review looks at all sessions after what authenticates them has changed.
func (m *Mesh) review() {
	for _, p := range m.peers {
		m.forgetInitiation(p)
		if s := p.link.current; s != nil {
			s.outdated = !m.authentic(s)
		}
		p.link.attemptNext = time.Time{}
		p.next = time.Time{}
	}
	m.deadline = time.Time{}
}

// authentic tells whether what a session was authenticated by is still accepted.
func (m *Mesh) authentic(s *session) bool {
	if m.identity != nil {
		return s.epoch == m.epoch
	}
	return slices.Contains(m.keys, s.key)
}

// newState begins one side of a handshake. The header of the first message is part of it, so that nobody
// can change that.
func (m *Mesh) newState(initiator bool, key Key, header []byte) (*noise.HandshakeState, error) {
	c := noise.Config{
		CipherSuite: suite, Random: m.random, Pattern: noise.HandshakeXX, Initiator: initiator,
		Prologue: append([]byte(prologue), header[:handshake1Header]...), StaticKeypair: m.static,
	}
	if m.identity == nil {
		c.PresharedKey = key[:]
	}
	return noise.NewHandshakeState(c)
}

// startHandshake sends the first message.
func (m *Mesh) startHandshake(p *peer, out *Outbox, now time.Time) {
	l := &p.link
	m.forgetInitiation(p)
	i := &initiation{peer: p, at: now}
	var keyID [4]byte
	if m.identity == nil {
		// While keys are replaced, the other side may not have the first one yet.
		n := l.attempts % len(m.keys)
		i.key, keyID = m.keys[n], m.keyIDs[n]
	}
	backoff := min(minBackoff<<min(l.attempts, 4), maxBackoff)
	if p.kind == Self {
		backoff = patientInterval
		p.unanswered++
	}
	l.attempts++
	l.attemptLast, l.attemptNext = now, now.Add(jitter(backoff))
	i.index = m.newIndex(entry{initiation: i})
	b := appendHeader(reserve(&out.arena, maxHandshake1), kindHandshake1)
	b = append(b, keyID[:]...)
	b = binary.BigEndian.AppendUint32(b, i.index)
	var padding []byte
	if m.identity != nil {
		padding = make([]byte, min(paddedHandshake1, m.payload)-handshake1Header-dhLen)
	}
	var err error
	if i.state, err = m.newState(true, i.key, b); err == nil {
		b, _, _, err = i.state.WriteMessage(b, padding)
	}
	if err != nil {
		delete(m.indexes, i.index)
		return // no random bytes; the next attempt comes
	}
	i.ephemeral = [dhLen]byte(b[handshake1Header:])
	l.initiation = i
	finish(out, p, nil, p.addr, b)
	m.wake(p, l.attemptNext)
}

func (m *Mesh) receiveHandshake1(from netip.AddrPort, b []byte, out *Outbox, now time.Time) drop.Reason {
	if !m.sealed {
		return drop.Unauthenticated
	}
	if len(b) < handshake1Header+dhLen {
		return drop.Truncated
	}
	if len(b) > maxHandshake1 {
		return drop.TooLong
	}
	remote := binary.BigEndian.Uint32(b[headerLen+4:])
	ephemeral := [dhLen]byte(b[handshake1Header:])
	if i := m.indexes[remote].initiation; i != nil && i.ephemeral == ephemeral {
		// It came back. A peer with a session is somebody else, whatever is reflected.
		if p := i.peer; p.link.current == nil {
			p.unanswered = 0
			m.setSelf(p)
			p.link.attemptNext = now.Add(patientInterval)
		}
		return drop.None
	}
	p := m.byAddr[from]
	// Peers have limits of their own: whoever invents sources uses up those that strangers share.
	if p != nil && !p.handshakes.allow(now) || p == nil && !m.perSource.allow(from.Addr(), now) {
		return drop.Rate
	}
	for _, r := range m.responses {
		if r.ephemeral == ephemeral && r.remote == remote && r.from == from {
			m.sendBytes(nil, r.answer, from, out) // it was lost, or the network has doubled the question
			return drop.None
		}
	}
	state, key := m.openHandshake1(b)
	if state == nil {
		return drop.Unauthenticated
	}
	rate := &m.fromStrangers
	if p != nil {
		rate = &m.fromPeers
		if i := p.link.initiation; i != nil && now.Sub(i.at) < ownFirst && bytes.Compare(i.ephemeral[:], ephemeral[:]) < 0 {
			return drop.None // both began at the same time: this side's counts, and the other side knows
		}
	}
	if !rate.allow(now) {
		return drop.Rate
	}
	r := &response{remote: remote, state: state, ephemeral: ephemeral, key: key, from: from, at: now}
	r.index = m.newIndex(entry{response: r})
	answer := appendHeader(nil, kindHandshake2)
	answer = binary.BigEndian.AppendUint32(answer, remote)
	answer = binary.BigEndian.AppendUint32(answer, r.index)
	answer, _, _, err := state.WriteMessage(answer, m.appendMember(nil, r.index))
	if err != nil { // its ephemeral key is a point of low order
		delete(m.indexes, r.index)
		return drop.Unauthenticated
	}
	r.answer = answer
	if len(m.responses) == maxResponses {
		m.endResponse(0)
	}
	m.responses = append(m.responses, r)
	m.sendBytes(p, answer, from, out)
	return drop.None
}

// openHandshake1 finds the key that a first message was made with. Without one nothing is remembered of it.
func (m *Mesh) openHandshake1(b []byte) (*noise.HandshakeState, Key) {
	id := [4]byte(b[headerLen:])
	if m.identity != nil {
		if id != ([4]byte{}) {
			return nil, Key{}
		}
		return m.tryHandshake1(b, Key{}), Key{}
	}
	for i, k := range m.keys {
		if m.keyIDs[i] == id {
			if state := m.tryHandshake1(b, k); state != nil {
				return state, k
			}
		}
	}
	return nil, Key{}
}

func (m *Mesh) tryHandshake1(b []byte, key Key) *noise.HandshakeState {
	state, err := m.newState(false, key, b)
	if err != nil {
		return nil
	}
	if _, _, _, err := state.ReadMessage(nil, b[handshake1Header:]); err != nil {
		return nil
	}
	return state
}

func (m *Mesh) endResponse(i int) {
	r := m.responses[i]
	if m.indexes[r.index].response == r {
		delete(m.indexes, r.index)
	}
	m.responses = slices.Delete(m.responses, i, i+1)
}

func (m *Mesh) expireResponses(now time.Time) {
	for len(m.responses) > 0 && now.Sub(m.responses[0].at) >= responseTime {
		m.endResponse(0)
	}
	if len(m.responses) == 0 {
		m.responses = nil
	}
}

func (m *Mesh) receiveHandshake2(from netip.AddrPort, b []byte, out *Outbox, now time.Time) drop.Reason {
	if len(b) < handshake2Header {
		return drop.Truncated
	}
	if len(b) > maxHandshake {
		return drop.TooLong
	}
	e := m.indexes[binary.BigEndian.Uint32(b[headerLen:])]
	if e.session != nil {
		return drop.Replayed // the network has doubled it
	}
	i := e.initiation
	if i == nil {
		return drop.Unauthenticated
	}
	if i.tries++; i.tries > maxTries {
		return drop.Rate
	}
	text, _, _, err := i.state.ReadMessage(nil, b[handshake2Header:])
	if err != nil {
		return drop.Unauthenticated // the genuine one may still come
	}
	p := i.peer
	m.forgetInitiation(p) // it has no second use
	s, ok := m.admit(text, i.state, now)
	if !ok || s.remote != binary.BigEndian.Uint32(b[headerLen+4:]) {
		return drop.Unauthenticated
	}
	s.peer, s.initiator, s.key = p, true, i.key
	last := appendHeader(nil, kindHandshake3)
	last = binary.BigEndian.AppendUint32(last, s.remote)
	last, send, recv, err := i.state.WriteMessage(last, m.appendMember(nil, i.index))
	if err != nil {
		return drop.Unauthenticated
	}
	s.begin(send, recv, i.state.ChannelBinding())
	s.local = i.index
	m.indexes[s.local] = entry{session: s}
	if p.link.next != nil {
		m.forget(p.link.next)
	}
	p.link.next = s
	s.last, s.lastNext = last, now.Add(repeatLast)
	m.sendBytes(p, last, p.addr, out)
	m.wake(p, s.lastNext)
	return drop.None
}

func (m *Mesh) receiveHandshake3(from netip.AddrPort, b []byte, out *Outbox, now time.Time) drop.Reason {
	if len(b) < handshake3Header {
		return drop.Truncated
	}
	if len(b) > maxHandshake {
		return drop.TooLong
	}
	e := m.indexes[binary.BigEndian.Uint32(b[headerLen:])]
	if e.session != nil {
		return drop.Replayed
	}
	r := e.response
	if r == nil || r.from != from {
		return drop.Unauthenticated
	}
	// It comes again: a stranger is not turned away by this for long.
	if m.identity != nil && m.byAddr[from] == nil && !m.proofs.allow(now) {
		return drop.Rate
	}
	if r.tries++; r.tries > maxTries {
		return drop.Rate
	}
	text, recv, send, err := r.state.ReadMessage(nil, b[handshake3Header:])
	if err != nil {
		return drop.Unauthenticated
	}
	m.endResponse(slices.Index(m.responses, r))
	s, ok := m.admit(text, r.state, now)
	if !ok || s.remote != r.remote {
		return drop.Unauthenticated
	}
	p := m.peerOf(from, s.instance)
	if p == nil {
		return drop.Overflow
	}
	s.peer, s.key = p, r.key
	s.begin(send, recv, r.state.ChannelBinding())
	s.local = r.index
	m.indexes[s.local] = entry{session: s}
	m.forgetInitiation(p)
	m.install(p, s, out, now)
	return drop.None
}

// peerOf finds the peer that a handshake came from, or learns it.
func (m *Mesh) peerOf(from netip.AddrPort, instance [8]byte) *peer {
	if m.byAddr[from] == nil {
		for _, p := range m.peers {
			if p.origin == learned && p.instance == instance {
				m.follow(p, from)
				break
			}
		}
	}
	if m.byAddr[from] == nil {
		m.addPeer(from, learned)
	}
	return m.byAddr[from]
}

// instanceOf is the instance of a relay with a Noise key. It is made from that so that no member of the mesh can take
// the place of another: who has the instance of a peer counts as a further address of it.
func instanceOf(static []byte) [8]byte {
	h := sha256.Sum256(append([]byte("fathom relay mesh instance:"), static...))
	return [8]byte(h[:])
}

// admit checks what the other side says of itself, and begins a session with it.
func (m *Mesh) admit(text []byte, state *noise.HandshakeState, now time.Time) (*session, bool) {
	h, ok := parseMember(text)
	if !ok || h.mesh != m.meshID || h.instance == m.instance || h.instance != instanceOf(state.PeerStatic()) {
		return nil, false
	}
	s := &session{
		remote: h.index, id: h.id, instance: h.instance, version: string(h.version),
		since: now, until: now.Add(sessionTime), epoch: m.epoch,
	}
	if m.identity != nil {
		cert, err := m.identity.check(h.proof, state.PeerStatic(), now)
		if err != nil {
			return nil, false
		}
		s.name = certificateName(cert)
		if cert.NotAfter.Before(s.until) {
			s.until = cert.NotAfter
		}
	}
	return s, true
}

// begin gives a session its keys.
func (s *session) begin(send, recv *noise.CipherState, binding []byte) {
	s.send, s.recv = aead(send.UnsafeKey()), aead(recv.UnsafeKey())
	s.binding = [32]byte(binding)
}

// sendReset tells the sender of a sealed datagram that its session is not known here: this relay was
// restarted. Nobody can prove that, so that the other side only begins a new one and goes on with the old one meanwhile.
func (m *Mesh) sendReset(to netip.AddrPort, index uint32, out *Outbox) {
	b := appendHeader(reserve(&out.arena, resetLen), kindReset)
	finish(out, nil, nil, to, binary.BigEndian.AppendUint32(b, index))
}

func (m *Mesh) receiveReset(from netip.AddrPort, b []byte, out *Outbox, now time.Time) drop.Reason {
	if len(b) < resetLen {
		return drop.Truncated
	}
	p := m.byAddr[from]
	if p == nil {
		return drop.UnknownPeer
	}
	s := p.link.current
	if s == nil || s.remote != binary.BigEndian.Uint32(b[headerLen:]) {
		return drop.Unauthenticated
	}
	if p.link.next == nil && now.Sub(p.link.attemptLast) >= minBackoff {
		m.startHandshake(p, out, now)
	}
	return drop.None
}
