// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/gaissmai/bart"

	"github.com/seed5728abee/fathom/packet"
)

// ErrRouter is wrapped in the error for a router configuration that makes no sense.
var ErrRouter = errors.New("invalid router configuration")

// RouterCounters counts what a router did with packets.
type RouterCounters struct {
	Received       uint64 // packets addressed to the router's ports, ARP and ND included
	Forwarded      uint64
	Delivered      uint64 // to the router itself
	Expired        uint64 // TTL or hop limit
	NoRoute        uint64 // no route, or one that rejects
	Filtered       uint64 // by the firewall, or refused by the NAT
	Unresolved     uint64 // next hop did not answer, or too many waited for it
	TooBig         uint64
	Malformed      uint64
	ErrorsSent     uint64 // ICMP errors
	ErrorsWithheld uint64 // by Silent or ICMPRate
	SendErrors     uint64 // refused by an interface
}

// Router forwards IPv4 and IPv6 packets between its ports. What it does is a
// function of what comes in, the time, and its seed. An [Engine] runs it.
//
// It answers ARP and neighbour discovery for its addresses and resolves its
// neighbours; it speaks no routing protocol, sends no router advertisements,
// and reassembles nothing.
type Router struct {
	mu *sync.Mutex // the engine's; guards all that follows

	name       string
	ports      []routerPort
	own        map[netip.Addr]int // port of each own address; noPort for a loopback
	hops       []routerHop        // that the router stands for; none is one
	hopOf      map[netip.Addr]int // hop of each own address, if there are hops
	table      *bart.Table[*Route]
	behaviour  Behaviour
	seed       uint64
	rng        *rand.Rand
	nat        *nat
	neighbours map[neighbourKey]*neighbour
	resolving  []neighbourKey // the neighbours that wait for an answer
	delayed    schedule       // own packets, under ICMPDelay
	tokens     float64
	tokensAt   time.Duration
	turn       int    // of BalancePacket
	ipID       uint16 // of own packets
	counters   RouterCounters
	scratch    []byte
	current    pkt // that input works on; here because a NAT's closures hold it

	pool *bufferPool
	// emit sends a frame. One that is not pooled is the frame that input was given.
	emit  func(port int, frame []byte, pooled bool)
	clock func() (time.Duration, int64)
}

type macAddr [6]byte

type routerPort struct {
	mac   macAddr
	mtu   int
	addrs []netip.Prefix // link-local address last
}

type routerHop struct {
	addrs [2]netip.Addr // IPv4 and IPv6, if any
	table *bart.Table[*Route]
}

const (
	noPort        = -1
	etherLen      = 14
	etherTypeIPv4 = 0x0800
	etherTypeARP  = 0x0806
	etherTypeIPv6 = 0x86dd
	defaultTTL    = 64
	// tosOwn is "internetwork control", for ICMP errors (RFC 1812 section 4.3.2.5).
	tosOwn = 0xc0
)

// newRouter returns a router whose ports have MAC and MTU.
func newRouter(cfg RouterConfig, pool *bufferPool, emit func(int, []byte, bool)) (*Router, error) {
	r := &Router{
		mu: new(sync.Mutex), name: cfg.Name, own: make(map[netip.Addr]int), neighbours: make(map[neighbourKey]*neighbour),
		seed: cfg.Seed, pool: pool, emit: emit,
	}
	if r.seed == 0 {
		h := fnv.New64a()
		h.Write([]byte(cfg.Name))
		r.seed = h.Sum64()
	}
	r.rng = rand.New(rand.NewPCG(r.seed, 0))
	for i, pc := range cfg.Ports {
		if len(pc.MAC) != 6 || pc.MAC[0]&1 != 0 {
			return nil, fmt.Errorf("%w: port %d has MAC address %v", ErrRouter, i, pc.MAC)
		}
		if pc.MTU < 68 || pc.MTU > 65535 { // RFC 791's least, and the most there is
			return nil, fmt.Errorf("%w: port %d has MTU %d", ErrRouter, i, pc.MTU)
		}
		p := routerPort{mac: macAddr(pc.MAC), mtu: pc.MTU}
		for _, a := range append(slices.Clone(pc.Addrs), linkLocal(p.mac)) {
			if !a.IsValid() || a.Addr().IsMulticast() || a.Addr().Is4In6() || a.Addr().Zone() != "" {
				return nil, fmt.Errorf("%w: port %d has address %v", ErrRouter, i, a)
			}
			if !slices.Contains(p.addrs, a) {
				p.addrs = append(p.addrs, a)
			}
			if !a.Addr().IsLinkLocalUnicast() || a.Addr().Is4() {
				r.own[a.Addr()] = i
			}
		}
		for _, n := range pc.Neighbours {
			if len(n.MAC) != 6 || n.MAC[0]&1 != 0 || !n.Addr.IsValid() || n.Addr.Is4In6() || n.Addr.Zone() != "" {
				return nil, fmt.Errorf("%w: port %d has neighbour %v at %v", ErrRouter, i, n.Addr, n.MAC)
			}
			if len(r.neighbours) == maxNeighbours/2 { // the other half is for those to be asked for
				return nil, fmt.Errorf("%w: more than %d static neighbours", ErrRouter, maxNeighbours/2)
			}
			r.neighbours[neighbourKey{i, n.Addr}] = &neighbour{mac: macAddr(n.MAC), known: true, static: true}
		}
		r.ports = append(r.ports, p)
	}
	for _, a := range cfg.Addrs {
		if !a.IsValid() || a.IsMulticast() || a.Is4In6() {
			return nil, fmt.Errorf("%w: address %v", ErrRouter, a)
		}
		if _, ok := r.own[a]; !ok {
			r.own[a] = noPort
		}
	}
	if err := r.setRoutes(cfg.Routes); err != nil {
		return nil, err
	}
	if err := r.setHops(&cfg); err != nil {
		return nil, err
	}
	if err := cfg.Behaviour.validate(); err != nil {
		return nil, err
	}
	r.setBehaviour(cfg.Behaviour)
	if cfg.NAT != nil {
		n, err := newNAT(*cfg.NAT, r)
		if err != nil {
			return nil, err
		}
		r.nat = n
	}
	return r, nil
}

// linkLocal is fe80::/64 with the modified EUI-64 of a MAC address (RFC 4291 appendix A).
func linkLocal(m macAddr) netip.Prefix {
	a := [16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]}
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// setRoutes replaces the table.
func (r *Router) setRoutes(routes []Route) error {
	table := new(bart.Table[*Route])
	for i := range r.ports {
		for _, a := range r.ports[i].addrs {
			if !a.Addr().Is6() || !a.Addr().IsLinkLocalUnicast() {
				table.Insert(a.Masked(), &Route{Prefix: a.Masked(), NextHops: []NextHop{{Port: i}}})
			}
		}
	}
	if err := r.addRoutes(table, routes); err != nil {
		return err
	}
	r.table = table
	return nil
}

func (r *Router) addRoutes(table *bart.Table[*Route], routes []Route) error {
	for _, route := range routes {
		if !route.Prefix.IsValid() || route.Prefix.Addr().Is4In6() {
			return fmt.Errorf("%w: route to %v", ErrRouter, route.Prefix)
		}
		if len(route.NextHops) == 0 && route.Reject == 0 || route.Reject > Prohibit {
			return fmt.Errorf("%w: route to %v has no next hop and %v", ErrRouter, route.Prefix, route.Reject)
		}
		for _, h := range route.NextHops {
			if h.Port < 0 || h.Port >= len(r.ports) {
				return fmt.Errorf("%w: route to %v by port %d of %d", ErrRouter, route.Prefix, h.Port, len(r.ports))
			}
			if h.Gateway.IsValid() && h.Gateway.Is4() != route.Prefix.Addr().Is4() {
				return fmt.Errorf("%w: route to %v by %v", ErrRouter, route.Prefix, h.Gateway)
			}
		}
		route.NextHops = slices.Clone(route.NextHops)
		for i := range route.NextHops {
			route.NextHops[i].Gateway = route.NextHops[i].Gateway.WithZone("")
		}
		table.Insert(route.Prefix.Masked(), &route)
	}
	return nil
}

func (b *Behaviour) validate() error {
	if !(b.ICMPRate >= 0) || b.ICMPBurst < 0 || b.ICMPDelay < 0 || b.ICMPDelay > maxDelay {
		return fmt.Errorf("%w: ICMP rate %v, burst %d, delay %v", ErrRouter, b.ICMPRate, b.ICMPBurst, b.ICMPDelay)
	}
	if b.Balance > BalancePacketRandom {
		return fmt.Errorf("%w: %v", ErrRouter, b.Balance)
	}
	if len(b.MPLS) > 16 {
		return fmt.Errorf("%w: %d MPLS labels, at most 16", ErrRouter, len(b.MPLS))
	}
	for _, l := range b.MPLS {
		if l.Label >= 1<<20 || l.TC > 7 {
			return fmt.Errorf("%w: MPLS label %d, traffic class %d", ErrRouter, l.Label, l.TC)
		}
	}
	for _, rule := range b.Firewall {
		if rule.Action == 0 || rule.Action > RejectAdmin || rule.PortMax != 0 && rule.PortMax < rule.PortMin {
			return fmt.Errorf("%w: firewall rule %+v", ErrRouter, rule)
		}
	}
	return nil
}

func (r *Router) setBehaviour(b Behaviour) {
	if b.ICMPBurst == 0 {
		b.ICMPBurst = 1
	}
	if b.TTL == 0 {
		b.TTL = defaultTTL
	}
	b.ErrorSource, b.MPLS, b.Firewall = slices.Clone(b.ErrorSource), slices.Clone(b.MPLS), slices.Clone(b.Firewall)
	r.behaviour = b
	r.tokens = float64(b.ICMPBurst)
}

// pkt is an IP packet in the frame that it came in, decoded.
type pkt struct {
	frame    []byte // Ethernet header and packet, without padding
	in       int    // port
	v6       bool
	src, dst netip.Addr
	ttl      uint8
	proto    packet.Protocol
	upper    []byte // what follows the headers; nil in a later fragment
	fragment bool   // any fragment
	hop      int    // of the router's, where the packet is
}

func (p *pkt) ip() []byte       { return p.frame[etherLen:] }
func (p *pkt) ip4() packet.IPv4 { return packet.IPv4(p.frame[etherLen:]) }
func (p *pkt) ip6() packet.IPv6 { return packet.IPv6(p.frame[etherLen:]) }
func (p *pkt) isICMP() bool {
	return p.proto == packet.ProtocolICMP && !p.v6 || p.proto == packet.ProtocolICMPv6 && p.v6
}

func (p *pkt) version() int {
	if p.v6 {
		return 6
	}
	return 4
}

// decode fills p from a frame with an IP packet.
func (p *pkt) decode(frame []byte, in int) error {
	*p = pkt{in: in}
	if len(frame) > etherLen && frame[etherLen]>>4 == 4 {
		ip, err := packet.ParseIPv4(frame[etherLen:])
		if err != nil {
			return err
		}
		if !ip.ChecksumOK() {
			return packet.ErrChecksum
		}
		p.frame = frame[:etherLen+len(ip)]
		p.src, p.dst, p.ttl, p.proto = ip.Src(), ip.Dst(), ip.TTL(), ip.Protocol()
		p.fragment = ip.MoreFragments() || ip.FragmentOffset() > 0
		if ip.FragmentOffset() == 0 {
			p.upper = ip.Payload()
		}
		return nil
	}
	ip, err := packet.ParseIPv6(frame[etherLen:])
	if err != nil {
		return err
	}
	p.v6 = true
	p.frame = frame[:etherLen+len(ip)]
	p.src, p.dst, p.ttl = ip.Src(), ip.Dst(), ip.HopLimit()
	p.proto, p.upper, err = ip.Upper()
	p.fragment = ip.NextHeader() == packet.ProtocolFragment
	if err != nil && !errors.Is(err, packet.ErrFragment) {
		return err
	}
	return nil
}

// input handles one frame that came in by port in at now. It may change frame,
// and hand it to emit.
func (r *Router) input(now time.Duration, in int, frame []byte) {
	port := &r.ports[in]
	if len(frame) < etherLen {
		return
	}
	forUs := macAddr(frame[:6]) == port.mac
	if !forUs && frame[0]&1 == 0 {
		return // of others: the interface is promiscuous, or flooded by a switch
	}
	r.counters.Received++
	p := &r.current
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherTypeARP:
		r.inputARP(now, in, frame)
		return
	case etherTypeIPv4, etherTypeIPv6:
		err := p.decode(frame, in)
		if err != nil || p.v6 != (binary.BigEndian.Uint16(frame[12:]) == etherTypeIPv6) {
			r.counters.Malformed++
			return
		}
	default:
		return
	}
	if p.v6 && p.proto == packet.ProtocolICMPv6 && r.inputND(now, p) {
		return
	}
	// What came to a group of stations is never forwarded (RFC 1812 section
	// 5.3.4), and no group is joined; a packet without sender is not either.
	if !forUs || p.dst.IsMulticast() || p.dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}) ||
		p.src.IsMulticast() || p.src.IsUnspecified() || p.dst.IsUnspecified() || p.src.IsLoopback() || p.dst.IsLoopback() {
		return
	}
	if p.v6 && p.dst.IsLinkLocalUnicast() {
		if p.dst == port.addrs[len(port.addrs)-1].Addr() {
			r.deliver(now, p)
		}
		return
	}
	if r.nat != nil && !p.v6 && r.nat.input(now, p) {
		return
	}
	p.hop = r.endHop(in)
	if _, ok := r.own[p.dst]; ok {
		if r.pass(now, p, r.hopOf[p.dst]) {
			r.deliver(now, p)
		}
		return
	}
	r.forward(now, p, p.dst, nil)
}

// forward sends p on its way to the address to, which is its destination but
// for what a NAT makes of it: translate, if not nil, is called when nothing
// stands against forwarding any more, and may still refuse.
func (r *Router) forward(now time.Duration, p *pkt, to netip.Addr, translate func() bool) {
	var hop NextHop
	var reject Reject
	if len(r.hops) > 0 { // how many it passes depends on where it leaves
		hop, reject = r.lookup(to, p)
		if !r.pass(now, p, r.endHop(hop.Port)) {
			return
		}
	}
	if p.ttl <= 1 {
		r.expire(now, p)
		return
	}
	if !r.passes(now, p) {
		return
	}
	if len(r.hops) == 0 {
		hop, reject = r.lookup(to, p)
	}
	switch {
	case reject == Blackhole:
		r.counters.NoRoute++
		return
	case reject == Prohibit:
		r.counters.NoRoute++
		r.sendError(now, p, errProhibited, 0)
		return
	case reject == Unreachable:
		r.counters.NoRoute++
		r.sendError(now, p, errHost, 0)
		return
	case hop.Port == noPort:
		r.counters.NoRoute++
		r.sendError(now, p, errNoRoute, 0)
		return
	}
	if p.v6 && p.src.IsLinkLocalUnicast() { // RFC 4291 section 2.5.6
		r.counters.NoRoute++
		return
	}
	mtu := r.ports[hop.Port].mtu
	tooBig := len(p.ip()) > mtu
	if tooBig && (p.v6 || p.ip4().DontFragment()) {
		r.counters.TooBig++
		r.sendError(now, p, errTooBig, mtu)
		return
	}
	if r.nat != nil && !p.v6 && translate == nil {
		var refused bool
		if translate, refused = r.nat.leaving(now, p, hop.Port); refused {
			r.counters.Filtered++
			return
		}
	}
	if translate != nil && !translate() {
		r.counters.Filtered++
		return
	}
	if p.v6 {
		p.ip6().DecrementHopLimit()
	} else {
		p.ip4().DecrementTTL()
	}
	r.counters.Forwarded++
	if !hop.Gateway.IsValid() {
		hop.Gateway = to
	}
	from := p.in
	if translate != nil {
		from = noPort // an error would quote what its receiver has never seen: none is sent
	}
	if tooBig {
		r.fragment(now, p.ip4(), mtu, hop, from)
		return
	}
	r.output(now, p.frame, false, hop, from)
}

// fragment sends a packet in pieces (RFC 791 section 3.2). Options go with the
// first of them only.
func (r *Router) fragment(now time.Duration, ip packet.IPv4, mtu int, hop NextHop, from int) {
	payload := ip.Payload()
	h := packet.IPv4Header{
		TOS: ip.TOS(), ID: ip.ID(), TTL: ip.TTL(), Protocol: ip.Protocol(), Src: ip.Src(), Dst: ip.Dst(), Options: ip.Options(),
	}
	for offset := 0; offset < len(payload); {
		n := len(payload) - offset
		room := mtu - packet.IPv4HeaderLen - len(h.Options)
		h.MoreFragments = ip.MoreFragments()
		if n > room {
			n = room &^ 7
			h.MoreFragments = true
		}
		h.FragmentOffset = uint16(ip.FragmentOffset() + offset)
		frame := r.newFrame(mtu)
		frame, err := h.Append(frame, n)
		if err != nil {
			r.counters.Malformed++
			return
		}
		r.output(now, append(frame, payload[offset:offset+n]...), true, hop, from)
		offset += n
		h.Options = nil
	}
}

// newFrame returns a buffer with an empty Ethernet header and room for a packet of n bytes.
func (r *Router) newFrame(n int) []byte {
	return append(r.pool.get(etherLen+n), make([]byte, etherLen)...)
}

// lookup finds where packets for to go, and picks among several next hops by
// what p is. The port is noPort when there is no route.
func (r *Router) lookup(to netip.Addr, p *pkt) (NextHop, Reject) {
	route, ok := r.table.Lookup(to)
	return r.choose(route, ok, p)
}

// choose picks among the next hops of a route, if one was found.
func (r *Router) choose(route *Route, ok bool, p *pkt) (NextHop, Reject) {
	switch {
	case !ok:
		return NextHop{Port: noPort}, 0
	case route.Reject != 0:
		return NextHop{Port: noPort}, route.Reject
	case len(route.NextHops) == 1:
		return route.NextHops[0], 0
	}
	n := len(route.NextHops)
	var i int
	switch r.behaviour.Balance {
	case BalancePacket:
		i = r.turn % n
		r.turn++
	case BalancePacketRandom:
		i = r.rng.IntN(n)
	case BalanceDestination:
		i = int(hashAddr(r.seed, p.dst) % uint64(n))
	default:
		i = int(r.flowHash(p) % uint64(n))
	}
	return route.NextHops[i], 0
}

// flowHash is what BalanceFlow goes by.
func (r *Router) flowHash(p *pkt) uint64 {
	h := hashAddr(hashAddr(r.seed, p.src), p.dst)
	h = mix(h ^ uint64(p.proto))
	if !p.fragment && len(p.upper) >= 4 {
		h = mix(h ^ uint64(binary.BigEndian.Uint32(p.upper)))
	}
	if p.v6 {
		h = mix(h ^ uint64(p.ip6().FlowLabel())<<32)
	}
	return h
}

func hashAddr(h uint64, a netip.Addr) uint64 {
	b := a.As16()
	h = mix(h ^ binary.BigEndian.Uint64(b[:8]))
	return mix(h ^ binary.BigEndian.Uint64(b[8:]))
}

// mix is the finalizer of SplitMix64: each bit of x changes half of the result's.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// passes asks the firewall, and answers for it.
func (r *Router) passes(now time.Duration, p *pkt) bool {
	for i := range r.behaviour.Firewall {
		rule := &r.behaviour.Firewall[i]
		if !rule.matches(p) {
			continue
		}
		if rule.Action == Accept {
			return true
		}
		r.counters.Filtered++
		if rule.Action == RejectAdmin {
			r.sendError(now, p, errProhibited, 0)
		}
		return false
	}
	return true
}

func (rule *Rule) matches(p *pkt) bool {
	switch packet.Protocol(rule.Protocol) {
	case 0:
	case packet.ProtocolICMP, packet.ProtocolICMPv6:
		if !p.isICMP() {
			return false
		}
	default:
		if packet.Protocol(rule.Protocol) != p.proto {
			return false
		}
	}
	if rule.From.IsValid() && !rule.From.Contains(p.src) || rule.To.IsValid() && !rule.To.Contains(p.dst) {
		return false
	}
	if rule.PortMin == 0 && rule.PortMax == 0 {
		return true
	}
	switch p.proto {
	case packet.ProtocolUDP, packet.ProtocolTCP, packet.ProtocolSCTP:
	default:
		return false
	}
	if len(p.upper) < 4 {
		return false
	}
	port := binary.BigEndian.Uint16(p.upper[2:])
	return port >= rule.PortMin && port <= max(rule.PortMin, rule.PortMax)
}

// release sends what is due and returns when there is more to do, negative for never.
func (r *Router) release(now time.Duration) time.Duration {
	for r.delayed.len() > 0 && r.delayed.items[0].at <= now {
		f := r.delayed.pop()
		r.sendOwn(now, f.data, f.port)
	}
	next := r.retry(now)
	if r.delayed.len() > 0 {
		next = earlier(next, r.delayed.items[0].at)
	}
	return next
}

// Name is the name the router was given.
func (r *Router) Name() string { return r.name }

// SetBehaviour changes how the router treats packets from now on. Its token
// bucket starts full. Error: [ErrRouter].
func (r *Router) SetBehaviour(b Behaviour) error {
	if err := b.validate(); err != nil {
		return fmt.Errorf("router %s: %w", r.name, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.setBehaviour(b)
	return nil
}

// Behaviour returns how the router treats packets at present, defaults filled in.
func (r *Router) Behaviour() Behaviour {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.behaviour
	b.ErrorSource, b.MPLS, b.Firewall = slices.Clone(b.ErrorSource), slices.Clone(b.MPLS), slices.Clone(b.Firewall)
	return b
}

// SetRoutes replaces the routes; those of the ports' networks stay. Error: [ErrRouter].
func (r *Router) SetRoutes(routes []Route) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.setRoutes(routes); err != nil {
		return fmt.Errorf("router %s: %w", r.name, err)
	}
	return nil
}

// Counters returns the counts since the router was added.
func (r *Router) Counters() RouterCounters {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counters
}

// Mappings lists what the router's NAT translates at present, ordered by
// protocol and external endpoint; nothing if it has no NAT.
func (r *Router) Mappings() []Mapping {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.nat == nil {
		return nil
	}
	now, _ := r.clock()
	return r.nat.mappings(now)
}

// earlier returns the lesser of two times of which negative ones mean never.
func earlier(a, b time.Duration) time.Duration {
	if a < 0 || b >= 0 && b < a {
		return b
	}
	return a
}
