// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/seed5728abee/fathom/packet"
)

type neighbourKey struct {
	port int
	addr netip.Addr
}

// neighbour is an entry of the ARP and ND cache.
type neighbour struct {
	mac       macAddr
	known     bool          // mac is right, or was until lately
	static    bool          // from the configuration: never asked for, never forgotten
	confirmed time.Duration // when it last was
	asking    bool          // in Router.resolving
	asked     int           // requests sent
	again     time.Duration // when to ask again
	waiting   []waitingFrame
}

// waitingFrame is a frame whose next hop is being asked for its address.
type waitingFrame struct {
	data []byte // from the pool
	from int    // port that it came in by; noPort if no error is to be sent about it
}

const (
	// neighbourAsks requests, neighbourInterval apart, then the neighbour is
	// unreachable: after a second, where Linux takes three.
	neighbourAsks     = 4
	neighbourInterval = 250 * time.Millisecond
	// neighbourFresh is how long an answer is trusted; later it is used on, but
	// asked for again (REACHABLE_TIME, RFC 4861 section 10).
	neighbourFresh = 30 * time.Second
	// maxWaiting frames per unresolved neighbour (RFC 1122 section 2.3.2.2 asks for one at least).
	maxWaiting = 64
	// maxNeighbours bounds the cache against a scan of a large network.
	maxNeighbours = 4096
)

var broadcast = macAddr{255, 255, 255, 255, 255, 255}

// output sends a frame to a neighbour, hop.Gateway, once its address is known.
// It takes over the frame if it is pooled, else copies it if it has to wait.
func (r *Router) output(now time.Duration, frame []byte, pooled bool, hop NextHop, from int) {
	key := neighbourKey{hop.Port, hop.Gateway}
	n := r.neighbours[key]
	if n == nil {
		if len(r.neighbours) >= maxNeighbours {
			r.forgetNeighbours()
		}
		n = new(neighbour)
		r.neighbours[key] = n
	}
	if !n.static && !n.asking && (!n.known || now-n.confirmed > neighbourFresh) {
		n.asking, n.asked, n.again = true, 0, now
		r.resolving = append(r.resolving, key)
		r.ask(now, key, n)
	}
	if n.known {
		r.transmit(frame, pooled, hop.Port, n.mac)
		return
	}
	if len(n.waiting) >= maxWaiting {
		r.counters.Unresolved++
		if pooled {
			r.pool.put(frame)
		}
		return
	}
	if !pooled {
		frame = r.pool.copy(frame)
	}
	n.waiting = append(n.waiting, waitingFrame{frame, from})
}

// transmit fills in the Ethernet header; the frame's type follows from its packet.
func (r *Router) transmit(frame []byte, pooled bool, port int, to macAddr) {
	copy(frame, to[:])
	copy(frame[6:], r.ports[port].mac[:])
	et := uint16(etherTypeIPv4)
	if frame[etherLen]>>4 == 6 {
		et = etherTypeIPv6
	}
	binary.BigEndian.PutUint16(frame[12:], et)
	r.emit(port, frame, pooled)
}

// forgetNeighbours empties the cache but for what is static or being asked.
func (r *Router) forgetNeighbours() {
	for key, n := range r.neighbours {
		if !n.asking && !n.static {
			delete(r.neighbours, key)
		}
	}
	if len(r.neighbours) >= maxNeighbours { // a scan: give up the oldest half
		for _, key := range r.resolving[:len(r.resolving)/2] {
			r.counters.Unresolved += uint64(len(r.neighbours[key].waiting))
			for _, w := range r.neighbours[key].waiting {
				r.pool.put(w.data)
			}
			delete(r.neighbours, key)
		}
		r.resolving = slices.Delete(r.resolving, 0, len(r.resolving)/2)
	}
}

// ask sends a request for a neighbour's address.
func (r *Router) ask(now time.Duration, key neighbourKey, n *neighbour) {
	n.asked++
	n.again = now + neighbourInterval
	port := &r.ports[key.port]
	src := r.sourceFor(key)
	if key.addr.Is4() {
		if !src.IsValid() {
			src = netip.IPv4Unspecified() // an ARP probe, RFC 5227
		}
		r.sendARP(key.port, broadcast, 1, src, macAddr{}, key.addr)
		return
	}
	target := key.addr.As16()
	group := netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: target[13], 14: target[14], 15: target[15]})
	body := append([]byte{packet.ICMPv6NeighborSolicitation, 0, 0, 0, 0, 0, 0, 0}, target[:]...)
	body = append(append(body, 1, 1), port.mac[:]...) // source link-layer address
	r.sendND(key.port, multicastMAC(group), src, group, body)
}

// sourceFor is the address to ask a neighbour from: one of its network, so that it answers.
func (r *Router) sourceFor(key neighbourKey) netip.Addr {
	port := &r.ports[key.port]
	var other netip.Addr
	for _, a := range port.addrs {
		if a.Addr().Is4() != key.addr.Is4() {
			continue
		}
		if a.Contains(key.addr) {
			return a.Addr()
		}
		other = a.Addr() // the link-local address comes last
	}
	return other
}

func multicastMAC(group netip.Addr) macAddr {
	g := group.As16()
	return macAddr{0x33, 0x33, g[12], g[13], g[14], g[15]}
}

// retry asks again where no answer came, gives up where none ever did, and
// returns when to be called again, negative for never.
func (r *Router) retry(now time.Duration) time.Duration {
	next := time.Duration(-1)
	for i := 0; i < len(r.resolving); {
		key := r.resolving[i]
		n := r.neighbours[key]
		if n.again > now {
			next = earlier(next, n.again)
			i++
			continue
		}
		if n.asked < neighbourAsks {
			r.ask(now, key, n)
			next = earlier(next, n.again)
			i++
			continue
		}
		r.resolving = slices.Delete(r.resolving, i, i+1)
		delete(r.neighbours, key)
		for _, w := range n.waiting {
			r.counters.Unresolved++
			var p pkt
			if w.from != noPort && p.decode(w.data, w.from) == nil {
				r.sendError(now, &p, errHost, 0)
			}
			r.pool.put(w.data)
		}
	}
	return next
}

// learn takes down the address of a neighbour that said it. Only answers to
// own questions, and what known or asking neighbours say, make an entry.
func (r *Router) learn(now time.Duration, key neighbourKey, mac macAddr) {
	n := r.neighbours[key]
	if n == nil || n.static || mac[0]&1 != 0 {
		return
	}
	n.mac, n.known, n.confirmed = mac, true, now
	if n.asking {
		n.asking = false
		if i := slices.Index(r.resolving, key); i >= 0 {
			r.resolving = slices.Delete(r.resolving, i, i+1)
		}
	}
	for _, w := range n.waiting {
		r.transmit(w.data, true, key.port, mac)
	}
	n.waiting = nil
}

// ownOnPort tells whether addr is an address of the port.
func (r *Router) ownOnPort(port int, addr netip.Addr) bool {
	return slices.ContainsFunc(r.ports[port].addrs, func(a netip.Prefix) bool { return a.Addr() == addr })
}

const arpLen = 28

// inputARP handles a frame with an ARP packet (RFC 826):
//
//	hardware 1 | protocol 0x0800 | 6 | 4 | operation | sender MAC, IP | target MAC, IP
func (r *Router) inputARP(now time.Duration, in int, frame []byte) {
	b := frame[etherLen:]
	if len(b) < arpLen || binary.BigEndian.Uint64(b)>>16 != 0x000108000604 {
		r.counters.Malformed++
		return
	}
	op := binary.BigEndian.Uint16(b[6:])
	mac := macAddr(b[8:14])
	sender := netip.AddrFrom4([4]byte(b[14:18]))
	target := netip.AddrFrom4([4]byte(b[24:28]))
	if op != 1 && op != 2 || mac[0]&1 != 0 || r.ownOnPort(in, sender) {
		return
	}
	if !sender.IsUnspecified() {
		r.learn(now, neighbourKey{in, sender}, mac)
	}
	if op == 1 && r.ownOnPort(in, target) {
		r.sendARP(in, mac, 2, target, mac, sender)
	}
}

func (r *Router) sendARP(port int, to macAddr, op byte, sender netip.Addr, targetMAC macAddr, target netip.Addr) {
	f := r.pool.get(etherLen + arpLen)
	mac := r.ports[port].mac
	f = append(append(append(f, to[:]...), mac[:]...), etherTypeARP>>8, etherTypeARP&0xff)
	f = append(f, 0, 1, 8, 0, 6, 4, 0, op)
	s, t := sender.As4(), target.As4()
	f = append(append(f, mac[:]...), s[:]...)
	f = append(append(f, targetMAC[:]...), t[:]...)
	r.emit(port, f, true)
}

// Options and flags of neighbour discovery, RFC 4861 section 4.
const (
	ndLen             = 24 // solicitation and advertisement, without options
	ndSourceLinkLayer = 1
	ndTargetLinkLayer = 2
	ndRouter          = 0x80
	ndSolicited       = 0x40
	ndOverride        = 0x20
)

// inputND handles p if it is a message of neighbour discovery, and reports
// whether it was one.
func (r *Router) inputND(now time.Duration, p *pkt) bool {
	if p.fragment || len(p.upper) == 0 {
		return false
	}
	typ := p.upper[0]
	if typ < packet.ICMPv6RouterSolicitation || typ > 137 { // redirect
		return false
	}
	if typ != packet.ICMPv6NeighborSolicitation && typ != packet.ICMPv6NeighborAdvertisement {
		return true // for hosts, or for routers that advertise
	}
	// RFC 4861 sections 7.1.1 and 7.1.2. A hop limit of 255 proves that the sender is a neighbour.
	m, err := packet.ParseICMP(p.upper)
	if err != nil || len(m) < ndLen || p.ttl != 255 || m.Code() != 0 || !m.ChecksumOK6(p.src, p.dst) {
		r.counters.Malformed++
		return true
	}
	target := netip.AddrFrom16([16]byte(m[8:24]))
	want := byte(ndSourceLinkLayer)
	if typ == packet.ICMPv6NeighborAdvertisement {
		want = ndTargetLinkLayer
	}
	mac := macAddr(p.frame[6:12]) // when the option is left out, it is the same
	for opts := m[ndLen:]; len(opts) > 0; {
		n := 0
		if len(opts) >= 2 {
			n = int(opts[1]) * 8
		}
		if n == 0 || n > len(opts) {
			r.counters.Malformed++
			return true
		}
		if opts[0] == want {
			mac = macAddr(opts[2:8])
		}
		opts = opts[n:]
	}
	if typ == packet.ICMPv6NeighborAdvertisement {
		if !r.ownOnPort(p.in, target) {
			r.learn(now, neighbourKey{p.in, target}, mac)
		}
		return true
	}
	if !r.ownOnPort(p.in, target) || mac[0]&1 != 0 {
		return true
	}
	flags, dst, to := byte(ndRouter|ndSolicited|ndOverride), p.src, mac
	if p.src.IsUnspecified() { // somebody wants our address for itself
		flags, dst = ndRouter|ndOverride, netip.IPv6LinkLocalAllNodes()
		to = multicastMAC(dst)
	} else {
		r.learn(now, neighbourKey{p.in, p.src}, mac)
	}
	t := target.As16()
	body := append([]byte{packet.ICMPv6NeighborAdvertisement, 0, 0, 0, flags, 0, 0, 0}, t[:]...)
	body = append(append(body, ndTargetLinkLayer, 1), r.ports[p.in].mac[:]...)
	r.sendND(p.in, to, target, dst, body)
	return true
}

func (r *Router) sendND(port int, to macAddr, src, dst netip.Addr, body []byte) {
	packet.SetICMPv6Checksum(body, src, dst)
	h := packet.IPv6Header{NextHeader: packet.ProtocolICMPv6, HopLimit: 255, Src: src, Dst: dst}
	frame, err := h.Append(r.newFrame(packet.IPv6HeaderLen+len(body)), len(body))
	if err != nil {
		return
	}
	r.transmit(append(frame, body...), true, port, to)
}
