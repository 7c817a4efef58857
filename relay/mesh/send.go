// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"slices"
	"time"
)

// A Frame is one broadcast to send to all peers. Its slices are the caller's, and stay as they are until what the Outbox
// holds has been sent.
type Frame struct {
	// SS is an SS datagram: "SS", an Ethernet header whose source is the sender's, an IP packet. All that
	// is sent to peers of ours comes from it, whatever SSOK says.
	SS []byte
	// SSOK tells whether relays of the origin can make use of SS as it is: an IPv4 broadcast of at
	// most 1500 bytes.
	SSOK bool
	// Alternate, when not nil, is sent instead of SS to peers that are not ours, unless their address is in one of
	// Near: the same datagram to 255.255.255.255, because the origin cannot rewrite a directed broadcast.
	Alternate []byte
	Near      []netip.Prefix
	// Fragments are sent to peers that are not ours when not SSOK: an SS datagram for each IP fragment of a larger
	// broadcast. Nil when there is nothing of the frame that the origin could use.
	Fragments [][]byte
}

// Send puts the datagrams that carry a batch of frames to all peers into out, peer by peer. The frames keep their
// order. Several frames share a datagram where the other side is ours and the link is sealed, or SS cannot carry them;
// nothing waits for the next batch. A frame whose SS is shorter than an SS datagram with an empty IPv4
// header, or longer than one with 65535 bytes of IP packet, is not sent.
func (m *Mesh) Send(frames []Frame, out *Outbox, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stale {
		m.rebuild()
	}
	out.Items = slices.Grow(out.Items, len(frames))
	for _, p := range m.targets {
		switch {
		case p.ours():
			m.sendOurs(p, frames, out)
		case p.origin == neighbour || p.origin == learned:
			// Ours, but not there yet, or no longer; and perhaps another address of a peer that is.
		case m.sealed && (p.shown || !m.compat):
			m.enqueue(p, frames, now)
		default:
			sendOriginal(p, frames, out)
		}
	}
}

// sendOriginal sends what a relay of the origin understands.
func sendOriginal(p *peer, frames []Frame, out *Outbox) {
	for i := range frames {
		f := &frames[i]
		if f.SSOK {
			data := f.SS
			if f.Alternate != nil && !near(p.addr.Addr(), f.Near) {
				data = f.Alternate
			}
			p.sent.Datagrams++
			p.sent.Broadcasts++
			p.sent.Bytes += uint64(len(data))
			out.add(p.addr, data)
			continue
		}
		if len(f.Fragments) > 0 {
			p.sent.Broadcasts++
		}
		for _, data := range f.Fragments {
			p.sent.Datagrams++
			p.sent.Bytes += uint64(len(data))
			out.add(p.addr, data)
		}
	}
}

func near(a netip.Addr, prefixes []netip.Prefix) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// sendOurs sends everything: as SS datagrams where the mesh is open and they fit the path, as records otherwise.
func (m *Mesh) sendOurs(p *peer, frames []Frame, out *Outbox) {
	k := packer{m: m, p: p, s: p.link.current, out: out}
	for i := range frames {
		f := &frames[i]
		if !m.sealed && f.SSOK && len(f.SS) <= m.payload {
			k.flush() // what was packed so far came before
			p.sent.Datagrams++
			p.sent.Broadcasts++
			p.sent.Bytes += uint64(len(f.SS))
			out.add(p.addr, f.SS)
			continue
		}
		if n := len(f.SS) - ssHeader; n < minIP || n > maxFrame-macLen {
			continue
		}
		k.frame(f.SS[ssLen+macLen:ssLen+2*macLen], f.SS[ssHeader:])
	}
	k.flush()
}

// A packer puts records for one peer into as few datagrams as fit the path.
type packer struct {
	m   *Mesh
	p   *peer
	s   *session // nil in an open mesh
	out *Outbox
	b   []byte // the datagram under way; nil when there is none
}

// room is how many bytes of records a datagram has.
func (k *packer) room() int {
	if k.s != nil {
		return k.m.payload - sealedHeader - tagLen
	}
	return k.m.payload - headerLen
}

// start makes sure that n more bytes fit, n being at most room.
func (k *packer) start(n int) {
	if k.b != nil && len(k.b)+n <= cap(k.b)-k.overhead() {
		return
	}
	k.flush()
	k.b = begin(k.out, k.s, k.m.payload)
}

// overhead is what follows the records.
func (k *packer) overhead() int {
	if k.s != nil {
		return tagLen
	}
	return 0
}

// frame packs one broadcast, in parts when it does not fit a datagram.
func (k *packer) frame(link, ip []byte) {
	k.p.sent.Broadcasts++
	total := macLen + len(ip)
	if recordHeader+total <= k.room() {
		k.start(recordHeader + total)
		k.b = appendRecordHeader(k.b, recordFrame, total)
		k.b = append(append(k.b, link...), ip...)
		return
	}
	// Parts of equal size make datagrams of equal size, which the kernel sends together.
	most := k.room() - recordHeader - partHeaderLen
	count := (total + most - 1) / most
	k.p.frameTurn++
	h := partHeader{frame: k.p.frameTurn, total: uint32(total), size: uint16(max(minPart, (total+count-1)/count))}
	for at := 0; at < total; at += int(h.size) {
		end := min(at+int(h.size), total)
		k.start(recordHeader + partHeaderLen + end - at)
		k.b = appendRecordHeader(k.b, recordPart, partHeaderLen+end-at)
		k.b = h.append(k.b)
		if at == 0 {
			k.b = append(append(k.b, link...), ip[:end-macLen]...)
		} else {
			k.b = append(k.b, ip[at-macLen:end-macLen]...)
		}
		h.index++
	}
}

// flush ends the datagram under way.
func (k *packer) flush() {
	if k.b != nil {
		finish(k.out, k.p, k.s, k.p.addr, k.b)
		k.b = nil
	}
}

// begin starts a datagram of records with at most n bytes in all.
func begin(out *Outbox, s *session, n int) []byte {
	b := reserve(&out.arena, n)
	if s != nil {
		return s.appendHeader(b)
	}
	return appendHeader(b, kindOpen)
}

// finish seals a datagram, if there is a session, and sends it.
func finish(out *Outbox, p *peer, s *session, to netip.AddrPort, b []byte) {
	if s != nil {
		b = s.seal(b)
	}
	if p != nil {
		p.sent.Datagrams++
		p.sent.Bytes += uint64(len(b))
	}
	out.addKept(to, b)
}

// helloRoom is enough for a datagram with a hello in it.
const helloRoom = sealedHeader + recordHeader + helloFixed + 2 + maxVersion + maxSegments*tokenLen + tagLen

func (m *Mesh) hello(token uint64) hello {
	return hello{token: token, id: m.id, instance: m.instance, mesh: m.meshID, version: m.version, segments: m.segments}
}

// sendHello asks a peer for a sign of life.
func (m *Mesh) sendHello(p *peer, s *session, out *Outbox, now time.Time) {
	h := m.hello(m.token())
	p.hellos[p.helloTurn%len(p.hellos)] = sentHello{token: h.token, at: now}
	p.helloTurn++
	p.helloLast = now
	p.unanswered++
	b := begin(out, s, helloRoom)
	b = appendRecordHeader(b, recordHello, h.size())
	finish(out, p, s, p.addr, h.append(b))
}

// sendAck answers a hello; p is nil for a stranger's, who gets no more than the hello was long.
func (m *Mesh) sendAck(p *peer, s *session, to netip.AddrPort, token uint64, out *Outbox) {
	h := m.hello(token)
	if p == nil {
		h.version, h.segments = nil, nil
	}
	b := begin(out, s, helloRoom)
	b = appendRecordHeader(b, recordHelloAck, h.size())
	finish(out, p, s, to, h.append(b))
}

// SendReport tells the relay with a number, as in [Incoming], what became of its test broadcast. It is not
// sent to a relay that is gone, or when there are more than fifty a second.
func (m *Mesh) SendReport(number uint32, r TestReport, out *Outbox, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stale {
		m.rebuild()
	}
	var to netip.AddrPort
	var p *peer
	for _, q := range m.targets {
		if q.number == number && (q.ours() || !m.sealed) {
			p, to = q, q.addr
			break
		}
	}
	if p == nil {
		e := m.strangers.byNumber(number)
		if e == nil || m.sealed {
			return
		}
		to = e.addr
	}
	if !m.reports.allow(now) {
		return
	}
	var s *session
	if p != nil {
		s = p.link.current
	}
	b := begin(out, s, sealedHeader+recordHeader+r.size()+tagLen)
	b = appendRecordHeader(b, recordTestReport, r.size())
	finish(out, p, s, to, r.append(b))
}

// Close tells all peers of ours that this relay leaves, so that they need not find out.
func (m *Mesh) Close(out *Outbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.peers {
		if p.ours() {
			b := begin(out, p.link.current, sealedHeader+recordHeader+tagLen)
			finish(out, p, p.link.current, p.addr, appendRecordHeader(b, recordBye, 0))
		}
	}
}
