// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"errors"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// turnsBetween is the turns after which all sockets are looked at while some of them never run dry.
const turnsBetween = 8

// receive takes in what has arrived. It tells whether there was anything. To look at an empty socket costs a system call, so
// between two waits it looks again only at those that had something the last time.
func (p *plane) receive() bool {
	any := false
	all := p.sinceWait%turnsBetween == 0
	p.sinceWait++
	for i := range p.receivers {
		rx := &p.receivers[i]
		if rx.conn == nil || !all && !rx.busy {
			continue
		}
		rx.busy = false
		v := (rx.version - 4) / 2
		in := p.in[v][:]
		for range receiveRounds {
			n, err := rx.conn.Receive(in)
			if err != nil || n == 0 {
				// An error of the socket is cleared by reading it.
				break
			}
			any, rx.busy = true, true
			p.counters.received += uint64(n)
			for k := range in[:n] {
				if in[k].Time == 0 {
					in[k].Time = p.wall
				}
				if v == 0 {
					p.arrive4(rx, &in[k])
				} else {
					p.arrive6(rx, k)
				}
			}
			if n < len(in) {
				break
			}
		}
	}
	return any
}

// arrive4 handles a packet with its header.
func (p *plane) arrive4(rx *receiver, m *rawio.Message) {
	pkt := m.Data[:m.N]
	// The kernel's own check of ICMP comes after the raw sockets'.
	if rx.icmp && !m.Truncated && !sound4(pkt) {
		p.counters.malformed++
		return
	}
	c, err := p.table.Parse4(pkt, &p.answer)
	if err == nil {
		p.deliver(c, m.Time, pkt)
		return
	}
	if rx.icmp && p.forwarding > 0 && forVolta(pkt) {
		p.counters.forwarded++
		for _, l := range p.links {
			if l.forwards {
				l.add(m.Time, pkt)
			}
		}
		return
	}
	p.discard(err)
}

// arrive6 handles packet k, which comes without its header. In its buffer is room for one that is made up from what
// the system tells: without extension headers, and without a flow label.
func (p *plane) arrive6(rx *receiver, k int) {
	m := &p.in[1][k]
	src := m.Addr.Addr().WithZone("")
	c, err := p.table.Parse6(src, m.Local, m.TTL, m.TOS, rx.proto, m.Data[:m.N], &p.answer)
	if err != nil {
		p.discard(err)
		return
	}
	pkt := p.whole6[k][:ip6Header+m.N]
	binary.BigEndian.PutUint32(pkt, 6<<28|uint32(m.TOS)<<20)
	binary.BigEndian.PutUint16(pkt[4:], uint16(m.N))
	pkt[6], pkt[7] = byte(rx.proto), m.TTL
	from, to := src.As16(), m.Local.As16()
	copy(pkt[8:], from[:])
	copy(pkt[24:], to[:])
	p.deliver(c, m.Time, pkt)
}

func (p *plane) discard(err error) {
	switch {
	case errors.Is(err, stateless.ErrForged):
		p.counters.forged++
	case errors.Is(err, stateless.ErrMalformed):
		p.counters.malformed++
	default:
		p.counters.stray++
	}
}

// deliver gives an answer to the controller of its session, without what nobody looks at.
func (p *plane) deliver(c *stateless.Codec, time int64, pkt []byte) {
	p.counters.recognised++
	s := p.byCodec[c]
	l := s.key.link
	keep := keepReply
	switch kind := c.Config().Kind; {
	case p.answer.HasICMP && p.answer.ICMPType != packet.ICMPv4EchoReply && p.answer.ICMPType != packet.ICMPv6EchoReply:
		keep = keepError
	case kind == stateless.DNS || kind == stateless.CHAOS:
		keep = keepDNS
	}
	l.add(time, pkt[:min(len(pkt), keep)])
}

// How much of an answer is forwarded, in bytes from the IP header on.
const (
	// keepError is more than what routers quote, with their extensions behind it (RFC 1812, RFC 4443).
	keepError = 1280
	// keepReply is two headers with all their options, and what a probe's payload proves itself with.
	keepReply = 160
	// keepDNS is a response without EDNS (RFC 1035), with its headers.
	keepDNS = 576
)

// sound4 tells whether the checksum of an ICMP message is right.
func sound4(pkt []byte) bool {
	ip, err := packet.ParseQuotedIPv4(pkt)
	return err == nil && packet.Checksum(ip.Payload()) == 0
}

// forVolta tells whether a packet is for Voltadomar's controllers: an ICMP error of type 3 or 11 that
// quotes UDP up to the end of its header. The quoted source port does not decide, since nobody says which are in use. Echo
// replies are not for them: their agents send no requests, and a reply whose data is no IP packet ends some originals' stream.
func forVolta(pkt []byte) bool {
	ip, err := packet.ParseQuotedIPv4(pkt)
	if err != nil || ip.Protocol() != packet.ProtocolICMP || ip.FragmentOffset() != 0 {
		return false
	}
	b := ip.Payload()
	if len(b) < packet.ICMPHeaderLen || b[0] != packet.ICMPv4Unreachable && b[0] != packet.ICMPv4TimeExceeded {
		return false
	}
	q, err := packet.ParseQuotedIPv4(b[packet.ICMPHeaderLen:])
	return err == nil && q.Protocol() == packet.ProtocolUDP && q.FragmentOffset() == 0 && len(q.Payload()) >= packet.UDPHeaderLen
}
