// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/packet"
)

// Where a probe keeps its sequence number, by which the quote in an ICMP error
// is matched. Ports in brackets are the request's.
//
//	             source port     destination port   elsewhere
//	ICMP         –               –                  sequence number
//	UDP          prober's        sequence
//	UDP          [local]         sequence
//	UDP          sequence        [port]
//	UDP          [local]         [port]             UDP checksum
//	TCP          sequence        [port]             TCP sequence number (random)
//	SCTP         sequence        [port]             initiate tag (random)
//
// These are mtr-packet's places. With Request.Flow set, all that load balancers
// hash is constant, and only the last column varies:
//
//	ICMP         checksum = flow, balanced by the first two payload bytes
//	UDP          [local] or prober's, + flow − 1; [port] or 33434; IPv6 flow label
//	TCP, SCTP    the same, [port] or 80
const (
	flowPort   = 33434 // destination of UDP flows that name no port
	lowestPort = 1024  // flows take source ports from here on
)

// flowSource is the source port of a flow.
func flowSource(base, flow uint16) uint16 {
	base = max(base, lowestPort)
	return lowestPort + uint16((uint32(base)-lowestPort+uint32(flow)-1)%(65536-lowestPort))
}

// flowLabel is the IPv6 flow label of a flow: 20 bits, not 0, well spread, the same each time.
func flowLabel(flow uint16) uint32 {
	if flow == 0 {
		return 0
	}
	return uint32(flow)*0x9e3b&0xfffff | 1
}

// place is where an identity has the sequence number.
type place uint8

const (
	inICMP    place = iota // the number, and the identifier when the numbers start over
	inSrcPort              // source port
	inDstPort              // destination port, or an echo request's number where the identifier is fixed
	inToken                // nowhere else: what the ports are stays
)

// number gives slot i its identity on the wire: the next sequence number
// that no probe in flight uses.
func (e *engine) number(i uint32) error {
	s := e.slots.at(i)
	r := &s.req
	id := identity{proto: r.Protocol, v6: s.dst.Is6(), dst: s.dst}
	switch r.Protocol {
	case ICMP:
		return e.pick(i, id, inICMP)
	case UDP:
		id.a, id.b = e.sourcePort(r), r.Port
		switch {
		case r.Flow != 0:
			if id.b == 0 {
				id.b = flowPort
			}
			return e.pick(i, id, inToken)
		case r.LocalPort != 0 && r.Port != 0:
			return e.pick(i, id, inToken)
		case r.Port != 0:
			id.a = 0
			return e.pick(i, id, inSrcPort)
		}
		return e.pick(i, id, inDstPort)
	case TCP, SCTP:
		id.b = r.Port
		if r.Flow != 0 {
			id.a = e.sourcePort(r)
			return e.pick(i, id, inToken)
		}
	}
	return e.pick(i, id, inSrcPort)
}

// fullPause is how long no number is looked for where there was none: to look costs a millisecond or more,
// and the probes to come are often of the same kind.
const fullPause = int64(20 * time.Millisecond)

// pick completes id with the next free sequence number.
func (e *engine) pick(i uint32, id identity, in place) error {
	kind := id
	tries := 65536 - int(e.firstSeq)
	if in == inICMP {
		tries *= int(min(e.ids, 4))
	}
	if id.proto == ICMP {
		kind.dst = netip.Addr{}
	}
	if until, ok := e.full[kind]; ok {
		if e.now < until {
			return ErrExhausted
		}
		delete(e.full, kind)
	}
	for range tries {
		icmpID, seq := e.nextSequence()
		switch in {
		case inICMP:
			id.a, id.b = icmpID, seq
		case inSrcPort:
			id.a = seq
		case inDstPort:
			id.b = seq
		case inToken:
			id.token = uint32(seq)
		}
		if id.proto == TCP || id.proto == SCTP {
			// Unforgeable by those who do not see the probe.
			id.token = rand.Uint32() | 1
		}
		// A datagram that answers a flow, and a short quote of an SCTP packet, do not tell the token.
		if e.identify(i, id, id.proto == UDP && in == inToken || id.proto == SCTP) {
			return nil
		}
	}
	if e.full == nil || len(e.full) >= otherBound {
		e.full = make(map[identity]int64)
	}
	e.clock()
	e.full[kind] = e.now + fullPause
	return ErrExhausted
}

// sourcePort is the source port of UDP probes, unless it is their number, and of all flows.
func (e *engine) sourcePort(r *Request) uint16 {
	port := r.LocalPort
	if port == 0 {
		port = e.udpPort()
	}
	if r.Flow != 0 {
		port = flowSource(port, r.Flow)
	}
	return port
}

// udpPort is the source port of UDP probes that name none.
func (e *engine) udpPort() uint16 {
	if e.firstID < lowestPort {
		return e.firstID + (65536 - lowestPort)
	}
	return e.firstID
}

var protocolNumbers = [2][4]packet.Protocol{
	{packet.ProtocolICMP, packet.ProtocolUDP, packet.ProtocolTCP, packet.ProtocolSCTP},
	{packet.ProtocolICMPv6, packet.ProtocolUDP, packet.ProtocolTCP, packet.ProtocolSCTP},
}

// ipVersion indexes arrays by IP version: 0 for IPv4, 1 for IPv6.
func ipVersion(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// appendTransport appends what follows the IP header of slot s, whose source address is known.
func appendTransport(b []byte, s *slot) ([]byte, error) {
	start := len(b)
	r := &s.req
	v6 := s.dst.Is6()
	header := packet.IPv4HeaderLen
	if v6 {
		header = packet.IPv6HeaderLen
	}
	switch r.Protocol {
	case ICMP:
		least := 0
		if r.Flow != 0 {
			least = 2
		}
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
		b = appendPattern(b, max(r.Size-header-packet.ICMPHeaderLen, least), r.Pattern)
		m := b[start:]
		m[0] = packet.ICMPv4Echo
		if v6 {
			m[0] = packet.ICMPv6Echo
		}
		binary.BigEndian.PutUint16(m[4:], s.a)
		binary.BigEndian.PutUint16(m[6:], s.b)
		switch sum := r.Flow % 0xffff; { // 0xffff is no checksum, 0 stands for it
		case r.Flow != 0 && v6:
			return b, packet.BalanceICMPv6(m, s.src, s.dst, sum, packet.ICMPHeaderLen)
		case r.Flow != 0:
			return b, packet.BalanceICMP(m, sum, packet.ICMPHeaderLen)
		case v6:
			packet.SetICMPv6Checksum(m, s.src, s.dst)
		default:
			packet.SetICMPChecksum(m)
		}
	case UDP:
		// The 4 bytes leave room for balancing and are what mtr-packet sends.
		n := max(r.Size-header-packet.UDPHeaderLen, 4)
		var err error
		if b, err = packet.AppendUDPHeader(b, s.a, s.b, n); err != nil {
			return b, err
		}
		b = appendPattern(b, n, r.Pattern)
		if s.token != 0 {
			return b, packet.BalanceUDP(b[start:], s.src, s.dst, uint16(s.token))
		}
		packet.SetUDPChecksum(b[start:], s.src, s.dst)
	case TCP:
		// A SYN as systems send it; some firewalls drop one without the option.
		var options [4]byte
		mss := uint16(1460)
		if v6 {
			mss = 1440
		}
		h := packet.TCPHeader{
			SrcPort: s.a, DstPort: s.b, Seq: s.token, Flags: packet.TCPSyn, Window: 64240,
			Options: packet.AppendTCPOptionMSS(options[:0], mss),
		}
		return h.Append(b, s.src, s.dst, nil)
	case SCTP:
		return packet.AppendSCTPInit(b, s.a, s.b, packet.SCTPInit{
			InitiateTag: s.token, Window: 65536, OutStreams: 1, InStreams: 1, TSN: s.token,
		})
	}
	return b, nil
}

func appendPattern(b []byte, n int, pattern byte) []byte {
	start := len(b)
	if cap(b)-start < n {
		b = append(b, make([]byte, n)...)
	}
	b = b[:start+n]
	fill := b[start:]
	for i := range fill {
		fill[i] = pattern
	}
	return b
}

// appendPacket appends the whole packet of slot s. The identification of IPv4 is id, or 0 for one of the
// kernel's choice.
func appendPacket(b []byte, s *slot, id uint16) ([]byte, error) {
	r := &s.req
	start := len(b)
	proto := protocolNumbers[ipVersion(s.dst)][r.Protocol]
	header := packet.IPv4HeaderLen
	if s.dst.Is6() {
		header = packet.IPv6HeaderLen
	}
	// The header needs the length of what follows it, so its place is kept.
	for range header {
		b = append(b, 0)
	}
	b, err := appendTransport(b, s)
	if err != nil {
		return b, err
	}
	n := len(b) - start - header
	if s.dst.Is6() {
		h := packet.IPv6Header{TrafficClass: r.TOS, FlowLabel: flowLabel(r.Flow), NextHeader: proto, HopLimit: r.TTL, Src: s.src, Dst: s.dst}
		_, err = h.Append(b[start:start], n)
	} else {
		h := packet.IPv4Header{TOS: r.TOS, ID: id, TTL: r.TTL, Protocol: proto, Src: s.src, Dst: s.dst}
		_, err = h.Append(b[start:start], n)
	}
	return b, err
}
