// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"net/netip"

	"github.com/seed5728abee/fathom/packet"
)

// arrival is a packet from outside, from its transport header on.
type arrival struct {
	src   netip.Addr
	ttl   uint8
	stamp int64 // kernel's wall clock, 0 if none
	data  []byte
}

// icmp handles an ICMP message of either version.
func (e *engine) icmp(version int, in *arrival) {
	m, err := packet.ParseICMP(in.data)
	if err != nil {
		e.counters.Malformed++
		return
	}
	reply := packet.ICMPv4EchoReply
	if version == 6 {
		reply = packet.ICMPv6EchoReply
	}
	r := Result{Responder: in.src, ReplyTTL: in.ttl, HasICMP: true, ICMPType: m.Type(), ICMPCode: m.Code()}
	if m.Type() == reply {
		r.Status = Replied
		// The source is not compared: the answer to a probe of a broadcast or anycast
		// address comes from another, and its identity is the identifier and number.
		e.matched(e.find(identity{proto: ICMP, v6: version == 6, a: m.ID(), b: m.Seq()}), &r, in.stamp)
		return
	}
	if r.Status = errorStatus(version, m.Type(), m.Code()); r.Status == 0 {
		e.counters.Irrelevant++
		return
	}
	msg, err := packet.ParseICMPError(version, in.data)
	if err != nil {
		e.counters.Malformed++
		return
	}
	q, err := packet.ParseQuote(msg.Quote)
	if err != nil || q.Version != version {
		e.counters.Malformed++
		return
	}
	i := e.findQuoted(&q)
	if i == 0 {
		e.counters.Unmatched++
		return
	}
	r.MTU, r.QuotedTTL, r.QuotedTOS = msg.MTU, q.TTL, q.TOS
	if len(msg.Extensions) > 0 {
		r.MPLS = msg.Extensions.AppendLabels(nil)
	}
	e.matched(i, &r, in.stamp)
}

// errorStatus says what an ICMP message means for the probe that it quotes, 0 if nothing.
func errorStatus(version int, typ, code uint8) Status {
	if version == 4 {
		switch typ {
		case packet.ICMPv4TimeExceeded:
			return TimeExceeded
		case packet.ICMPv4Unreachable:
			if code == packet.ICMPv4CodePort {
				return Replied
			}
			return HostUnreachable
		}
		return 0
	}
	switch typ {
	case packet.ICMPv6TimeExceeded:
		return TimeExceeded
	case packet.ICMPv6Unreachable:
		if code == packet.ICMPv6CodePort {
			return Replied
		}
		return HostUnreachable
	case packet.ICMPv6PacketTooBig:
		// The router drops the packet, as IPv4's with "fragmentation needed".
		return HostUnreachable
	case packet.ICMPv6ParameterProblem:
		// A host without SCTP answers so; IPv4's is "protocol unreachable".
		if code == packet.ICMPv6CodeNextHeader {
			return HostUnreachable
		}
	}
	return 0
}

// findQuoted is the probe in flight that q quotes, 0 if there is none. Everything that
// was ours and is quoted must agree: protocol, destination, ports or identifier, number.
func (e *engine) findQuoted(q *packet.Quote) uint32 {
	id := identity{v6: q.Version == 6, dst: q.Dst, a: q.SrcPort, b: q.DstPort}
	match := func(i uint32) uint32 {
		if i != 0 && e.slots.at(i).dst != q.Dst {
			return 0
		}
		return i
	}
	switch q.Protocol {
	case packet.ProtocolICMP, packet.ProtocolICMPv6:
		echo := packet.ICMPv4Echo
		if id.v6 {
			echo = packet.ICMPv6Echo
		}
		if (q.Protocol == packet.ProtocolICMPv6) != id.v6 || q.ICMPType() != echo {
			return 0
		}
		id.proto, id.a, id.b = ICMP, q.ID(), q.Seq()
		return match(e.find(id))
	case packet.ProtocolUDP:
		id.proto = UDP
		id.token = uint32(q.UDPChecksum())
		if i := match(e.find(id)); i != 0 {
			return i
		}
		id.token = 0
		return match(e.find(id))
	case packet.ProtocolTCP:
		id.proto, id.token = TCP, q.TCPSeq()
		return match(e.find(id))
	case packet.ProtocolSCTP:
		id.proto = SCTP
		if q.SCTPTag() != 0 {
			return 0 // of an association: an INIT has none yet (RFC 9260, section 8.5.1)
		}
		if tag, ok := q.SCTPInitiateTag(); ok {
			id.token = tag
			return match(e.find(id))
		}
		if len(q.Transport) > packet.SCTPHeaderLen && q.Transport[packet.SCTPHeaderLen] != packet.SCTPChunkInit {
			return 0
		}
		return match(e.findFlow(id))
	}
	return 0
}

// udp handles a datagram: the service itself answered.
func (e *engine) udp(in *arrival) {
	// Only the header counts, and the end may be cut off.
	if len(in.data) < packet.UDPHeaderLen {
		e.counters.Malformed++
		return
	}
	u := packet.UDP(in.data)
	id := identity{proto: UDP, v6: in.src.Is6(), a: u.DstPort(), b: u.SrcPort(), dst: in.src.WithZone("")}
	i := e.find(id)
	if i == 0 {
		// It carries no number: it is taken to answer the oldest probe of its flow.
		i = e.findFlow(id)
	}
	e.matched(i, &Result{Status: Replied, Responder: in.src, ReplyTTL: in.ttl}, in.stamp)
}

// tcp handles a segment: only one that acknowledges our SYN answers it.
func (e *engine) tcp(in *arrival) {
	if len(in.data) < packet.TCPHeaderLen {
		e.counters.Malformed++
		return
	}
	t := packet.TCP(in.data)
	if f := t.Flags(); f&packet.TCPAck == 0 || f&(packet.TCPSyn|packet.TCPRst) == 0 {
		e.counters.Irrelevant++
		return
	}
	id := identity{proto: TCP, v6: in.src.Is6(), a: t.DstPort(), b: t.SrcPort(), token: t.Ack() - 1, dst: in.src.WithZone("")}
	e.matched(e.find(id), &Result{Status: Replied, Responder: in.src, ReplyTTL: in.ttl}, in.stamp)
}

// sctp handles an SCTP packet: INIT-ACK and ABORT carry the tag that our INIT chose.
func (e *engine) sctp(in *arrival) {
	p, err := packet.ParseSCTP(in.data)
	if err != nil {
		e.counters.Malformed++
		return
	}
	if typ := p.First().Type; typ != packet.SCTPChunkInitAck && typ != packet.SCTPChunkAbort {
		e.counters.Irrelevant++
		return
	}
	id := identity{proto: SCTP, v6: in.src.Is6(), a: p.DstPort(), b: p.SrcPort(), token: p.Tag(), dst: in.src.WithZone("")}
	e.matched(e.find(id), &Result{Status: Replied, Responder: in.src, ReplyTTL: in.ttl}, in.stamp)
}

func (e *engine) matched(i uint32, r *Result, stamp int64) {
	if i == 0 {
		e.counters.Unmatched++
		return
	}
	e.answer(i, r, stamp)
}
