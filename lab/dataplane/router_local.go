// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/packet"
)

// errorKind is a reason to send an ICMP error.
type errorKind uint8

const (
	errExpired    errorKind = iota // TTL or hop limit used up
	errNoRoute                     // no route
	errHost                        // next hop does not answer, or a route says so
	errProhibited                  // firewall
	errTooBig                      // longer than the MTU
	errPort                        // no such port at the router itself
	errProtocol                    // no such protocol at the router itself
)

// icmpCodes are type and code of each kind, of ICMP and ICMPv6.
var icmpCodes = [...][2][2]uint8{
	errExpired:    {{packet.ICMPv4TimeExceeded, 0}, {packet.ICMPv6TimeExceeded, 0}},
	errNoRoute:    {{packet.ICMPv4Unreachable, packet.ICMPv4CodeNet}, {packet.ICMPv6Unreachable, 0}},
	errHost:       {{packet.ICMPv4Unreachable, packet.ICMPv4CodeHost}, {packet.ICMPv6Unreachable, 3}},
	errProhibited: {{packet.ICMPv4Unreachable, packet.ICMPv4CodeProhibited}, {packet.ICMPv6Unreachable, 1}},
	errTooBig:     {{packet.ICMPv4Unreachable, packet.ICMPv4CodeFragNeeded}, {packet.ICMPv6PacketTooBig, 0}},
	errPort:       {{packet.ICMPv4Unreachable, packet.ICMPv4CodePort}, {packet.ICMPv6Unreachable, 4}},
	errProtocol:   {{packet.ICMPv4Unreachable, packet.ICMPv4CodeProtocol}, {packet.ICMPv6ParameterProblem, 1}},
}

// deliver handles a packet for the router itself.
func (r *Router) deliver(now time.Duration, p *pkt) {
	if !r.passes(now, p) {
		return
	}
	r.counters.Delivered++
	if p.fragment || p.upper == nil {
		return // nothing is reassembled
	}
	switch {
	case p.isICMP():
		r.deliverICMP(now, p)
	case p.proto == packet.ProtocolUDP:
		r.sendError(now, p, errPort, 0)
	case p.proto == packet.ProtocolTCP:
		r.sendReset(now, p)
	default:
		r.sendError(now, p, errProtocol, 0)
	}
}

// deliverICMP answers echo requests. Errors and the rest are of no use to a router.
func (r *Router) deliverICMP(now time.Duration, p *pkt) {
	m, err := packet.ParseICMP(p.upper)
	if err != nil {
		r.counters.Malformed++
		return
	}
	request, reply, ok := packet.ICMPv4Echo, packet.ICMPv4EchoReply, false
	if p.v6 {
		request, reply = packet.ICMPv6Echo, packet.ICMPv6EchoReply
		ok = m.ChecksumOK6(p.src, p.dst)
	} else {
		ok = m.ChecksumOK()
	}
	if !ok {
		r.counters.Malformed++
		return
	}
	if m.Type() != request || m.Code() != 0 || r.behaviour.SilentPing {
		return
	}
	tos := uint8(0)
	if p.v6 {
		tos = p.ip6().TrafficClass()
	} else {
		tos = p.ip4().TOS()
	}
	answer := append(r.scratch[:0], p.upper...)
	r.scratch = answer
	answer[0], answer[2], answer[3] = reply, 0, 0
	if p.v6 {
		packet.SetICMPv6Checksum(answer, p.dst, p.src)
	} else {
		packet.SetICMPChecksum(answer)
	}
	r.sendPacket(now, p.in, p.dst, p.src, p.proto, tos, answer, r.behaviour.ICMPDelay)
}

// sendReset refuses a TCP segment (RFC 9293 section 3.10.7.1).
func (r *Router) sendReset(now time.Duration, p *pkt) {
	t, err := packet.ParseTCP(p.upper)
	if err != nil {
		r.counters.Malformed++
		return
	}
	if t.Flags()&packet.TCPRst != 0 || !t.ChecksumOK(p.src, p.dst) {
		return
	}
	h := packet.TCPHeader{SrcPort: t.DstPort(), DstPort: t.SrcPort(), Flags: packet.TCPRst}
	if t.Flags()&packet.TCPAck != 0 {
		h.Seq = t.Ack()
	} else {
		h.Flags |= packet.TCPAck
		h.Ack = t.Seq() + uint32(len(t.Payload()))
		for _, f := range []packet.TCPFlags{packet.TCPSyn, packet.TCPFin} {
			if t.Flags()&f != 0 {
				h.Ack++
			}
		}
	}
	segment, err := h.Append(r.scratch[:0], p.dst, p.src, nil)
	if err != nil {
		return
	}
	r.scratch = segment
	r.sendPacket(now, p.in, p.dst, p.src, packet.ProtocolTCP, 0, segment, 0)
}

// mayAnswer tells whether an ICMP error may be sent about p: never about an
// error, a later fragment, or what was meant for many (RFC 1122 section 3.2.2;
// RFC 4443 section 2.4). Packets for many do not come this far.
func (p *pkt) mayAnswer() bool {
	if p.upper == nil {
		return false
	}
	if p.isICMP() {
		if len(p.upper) == 0 || packet.IsICMPError(p.version(), p.upper[0]) {
			return false
		}
	}
	return p.src.IsValid() && !p.src.IsUnspecified() && !p.src.IsMulticast() && !p.src.IsLoopback()
}

// sendError sends an ICMP error about p, which is as it came, unless the
// router's behaviour is against it. The mtu is of errTooBig.
func (r *Router) sendError(now time.Duration, p *pkt, kind errorKind, mtu int) {
	if !p.mayAnswer() {
		return
	}
	b := &r.behaviour
	if b.Silent || !r.takeToken(now) {
		r.counters.ErrorsWithheld++
		return
	}
	src := r.errorSource(p)
	if !src.IsValid() {
		return
	}
	e := packet.ICMPError{MTU: uint32(mtu), Quote: p.ip()}
	if kind == errProtocol && p.v6 {
		e.Pointer = 6 // the next-header field
	}
	if kind == errExpired && len(b.MPLS) > 0 {
		var labels [16]packet.Label
		for i, l := range b.MPLS {
			labels[i] = packet.Label{Label: l.Label, TC: l.TC, TTL: l.TTL, Bottom: i == len(b.MPLS)-1}
		}
		ext, err := packet.AppendMPLS(nil, labels[:len(b.MPLS)])
		if err != nil {
			return
		}
		e.Extensions = ext
	}
	var err error
	proto := packet.ProtocolICMP
	tos := uint8(tosOwn)
	if p.v6 {
		proto, tos = packet.ProtocolICMPv6, 0
		e.Type, e.Code = icmpCodes[kind][1][0], icmpCodes[kind][1][1]
		r.scratch, err = packet.AppendICMPError6(r.scratch[:0], src, p.src, &e)
	} else {
		e.Type, e.Code = icmpCodes[kind][0][0], icmpCodes[kind][0][1]
		r.scratch, err = packet.AppendICMPError4(r.scratch[:0], &e)
	}
	if err != nil {
		r.counters.Malformed++
		return
	}
	r.counters.ErrorsSent++
	r.sendPacket(now, p.in, src, p.src, proto, tos, r.scratch, b.ICMPDelay)
}

// takeToken is the token bucket of ICMPRate.
func (r *Router) takeToken(now time.Duration) bool {
	b := &r.behaviour
	if b.ICMPRate == 0 {
		return true
	}
	r.tokens = min(float64(b.ICMPBurst), r.tokens+(now-r.tokensAt).Seconds()*b.ICMPRate)
	r.tokensAt = now
	if r.tokens < 1 {
		return false
	}
	r.tokens--
	return true
}

// errorSource is the address that an ICMP error about p comes from.
func (r *Router) errorSource(p *pkt) netip.Addr {
	for _, a := range r.behaviour.ErrorSource {
		if a.Is6() == p.v6 {
			return a
		}
	}
	if len(r.hops) > 0 && !p.src.IsLinkLocalUnicast() {
		if a := r.hops[p.hop].addrs[family(p.v6)]; a.IsValid() {
			return a
		}
	}
	// The port that the packet came in by; on it, the address in the sender's
	// network if there is one, so that a neighbour hears its gateway.
	var first netip.Addr
	for _, a := range r.ports[p.in].addrs {
		if a.Addr().Is6() != p.v6 || p.v6 && a.Addr().IsLinkLocalUnicast() != p.src.IsLinkLocalUnicast() {
			continue
		}
		if a.Contains(p.src) {
			return a.Addr()
		}
		if !first.IsValid() {
			first = a.Addr()
		}
	}
	if first.IsValid() {
		return first
	}
	for i := range r.ports { // an unnumbered port: any address will do
		for _, a := range r.ports[i].addrs {
			if a.Addr().Is6() == p.v6 && !a.Addr().IsLinkLocalUnicast() {
				return a.Addr()
			}
		}
	}
	var own netip.Addr
	for a := range r.own {
		if a.Is6() == p.v6 && (!own.IsValid() || a.Less(own)) {
			own = a
		}
	}
	return own
}

// sendPacket makes a packet of the router's own and sends it after delay. The
// port in is where packets to link-local addresses go.
func (r *Router) sendPacket(now time.Duration, in int, src, dst netip.Addr, proto packet.Protocol, tos uint8, payload []byte, delay time.Duration) {
	frame := r.newFrame(packet.IPv6HeaderLen + len(payload))
	var err error
	if dst.Is6() {
		h := packet.IPv6Header{TrafficClass: tos, NextHeader: proto, HopLimit: r.behaviour.TTL, Src: src, Dst: dst}
		frame, err = h.Append(frame, len(payload))
	} else {
		r.ipID++
		h := packet.IPv4Header{TOS: tos, ID: r.ipID, TTL: r.behaviour.TTL, Protocol: proto, Src: src, Dst: dst}
		frame, err = h.Append(frame, len(payload))
	}
	if err != nil {
		r.pool.put(frame)
		return
	}
	frame = append(frame, payload...)
	if delay > 0 {
		r.delayed.push(scheduled{at: now + delay, port: in, data: frame})
		return
	}
	r.sendOwn(now, frame, in)
}

// sendOwn routes a frame from the pool that holds a packet of the router's own.
func (r *Router) sendOwn(now time.Duration, frame []byte, in int) {
	var p pkt
	if frame[etherLen]>>4 == 6 {
		frame[12], frame[13] = etherTypeIPv6>>8, etherTypeIPv6&0xff
	} else {
		frame[12], frame[13] = etherTypeIPv4>>8, etherTypeIPv4&0xff
	}
	if err := p.decode(frame, in); err != nil {
		r.pool.put(frame)
		return
	}
	hop := NextHop{Port: in}
	if !p.v6 || !p.dst.IsLinkLocalUnicast() {
		hop = r.lookupOwn(&p)
	}
	if hop.Port == noPort {
		r.counters.NoRoute++
		r.pool.put(frame)
		return
	}
	if n := abs(p.hop - r.endHop(hop.Port)); n > 0 { // other hops before the port
		if int(p.ttl) <= n {
			r.counters.Expired++ // in silence: most of what a router says must not be answered
			r.pool.put(frame)
			return
		}
		p.lower(n)
	}
	if !hop.Gateway.IsValid() {
		hop.Gateway = p.dst
	}
	r.output(now, frame, true, hop, noPort)
}
