// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/seed5728abee/fathom/packet"
)

// Mapping is an entry of a NAT's table, for whoever wants to look.
type Mapping struct {
	Protocol packet.Protocol
	Internal netip.AddrPort // for ICMP, the port is the identifier
	External netip.AddrPort
	// Remote is the remote endpoint that the mapping is for: the zero AddrPort
	// under EndpointIndependent mapping, port 0 under AddressDependent.
	Remote netip.AddrPort
	// Sessions is how many remote endpoints the internal one has sent to lately.
	Sessions int
}

// nat is the translator of a router.
type nat struct {
	r          *Router
	cfg        NATConfig
	addr       netip.Addr
	byInternal map[internalKey]*mapping
	byExternal map[externalKey]*mapping
	rng        *rand.Rand
	next       uint16 // of SequentialPort
	fragments  [64]natFragment
	fragment   int // next of fragments to be overwritten
}

type internalKey struct {
	proto    packet.Protocol
	internal netip.AddrPort
	remote   netip.AddrPort // as far as Mapping looks at it
}

type externalKey struct {
	proto packet.Protocol
	port  uint16
}

// mapping binds an internal endpoint to an external port. It lives as long as
// the longest of its sessions.
type mapping struct {
	key      internalKey
	external uint16
	expires  time.Duration
	sessions map[netip.AddrPort]*session // by remote endpoint that the internal one has sent to
}

// session is one flow through a mapping: what filtering and, for TCP, the idle time go by.
type session struct {
	last    time.Duration // of the packets that keep it alive
	expires time.Duration
	seen    tcpSeen
}

// tcpSeen is what has passed of a TCP connection.
type tcpSeen uint8

const (
	synOut tcpSeen = 1 << iota
	synIn
	finOut
	finIn
	reset
)

// maxSessions bounds the sessions of a mapping; the one idle longest makes room.
const maxSessions = 1024

// natFragment remembers what became of a first fragment, for the later ones,
// which have no ports (RFC 4787 REQ-14). Those that come before the first are dropped.
type natFragment struct {
	src, dst       netip.Addr
	proto          packet.Protocol
	id             uint16
	until          time.Duration
	newSrc, newDst netip.Addr
}

// fragmentLife is how long later fragments may follow the first.
const fragmentLife = 15 * time.Second

func newNAT(cfg NATConfig, r *Router) (*nat, error) {
	if cfg.Outside < 0 || cfg.Outside >= len(r.ports) {
		return nil, fmt.Errorf("%w: NAT to port %d of %d", ErrRouter, cfg.Outside, len(r.ports))
	}
	outside := &r.ports[cfg.Outside]
	if !cfg.Address.IsValid() {
		for _, a := range outside.addrs {
			if a.Addr().Is4() {
				cfg.Address = a.Addr()
				break
			}
		}
	}
	if !cfg.Address.Is4() {
		return nil, fmt.Errorf("%w: NAT without an IPv4 address on port %d", ErrRouter, cfg.Outside)
	}
	if cfg.Mapping > AddressAndPortDependent || cfg.Filtering > AddressAndPortDependent || cfg.Ports > RandomPort {
		return nil, fmt.Errorf("%w: NAT with %v mapping, %v filtering, %v ports", ErrRouter, cfg.Mapping, cfg.Filtering, cfg.Ports)
	}
	if cfg.PortMax == 0 {
		cfg.PortMax = 65535
	}
	if cfg.PortMin == 0 {
		cfg.PortMin = min(1024, cfg.PortMax)
	}
	if cfg.PortMin > cfg.PortMax || cfg.MaxMappings < 0 {
		return nil, fmt.Errorf("%w: NAT with ports %d to %d, %d mappings", ErrRouter, cfg.PortMin, cfg.PortMax, cfg.MaxMappings)
	}
	for _, d := range []struct {
		d     *time.Duration
		value time.Duration
	}{
		{&cfg.UDPTimeout, 5 * time.Minute},
		{&cfg.TCPTimeout, 2*time.Hour + 4*time.Minute},
		{&cfg.TCPTransitoryTimeout, 4 * time.Minute},
		{&cfg.ICMPTimeout, time.Minute},
	} {
		if *d.d < 0 {
			return nil, fmt.Errorf("%w: NAT timeout %v", ErrRouter, *d.d)
		}
		if *d.d == 0 {
			*d.d = d.value
		}
	}
	if cfg.MaxMappings == 0 {
		cfg.MaxMappings = 65536
	}
	if _, ok := r.own[cfg.Address]; !ok { // one more address of the outside port
		r.own[cfg.Address] = cfg.Outside
		last := len(outside.addrs) - 1
		outside.addrs = slices.Insert(outside.addrs, last, netip.PrefixFrom(cfg.Address, 32))
	}
	return &nat{
		r: r, cfg: cfg, addr: cfg.Address, next: cfg.PortMin,
		byInternal: make(map[internalKey]*mapping), byExternal: make(map[externalKey]*mapping),
		rng: rand.New(rand.NewPCG(r.seed, 1)),
	}, nil
}

// flow is what a NAT sees of a packet. For ICMP echo the identifier is the port
// of the side that asks, and the other side has port 0.
type flow struct {
	proto    packet.Protocol
	src, dst netip.AddrPort
	tcp      packet.TCPFlags
}

// flowOf reads the flow from a transport header, or what a quote has of it. It
// fails for protocols without ports.
func flowOf(proto packet.Protocol, src, dst netip.Addr, seg []byte) (f flow, ok bool) {
	if len(seg) < 8 {
		return f, false
	}
	f.proto = proto
	srcPort, dstPort := binary.BigEndian.Uint16(seg), binary.BigEndian.Uint16(seg[2:])
	switch proto {
	case packet.ProtocolUDP:
	case packet.ProtocolTCP:
		if len(seg) >= 14 {
			f.tcp = packet.TCPFlags(seg[13])
		}
	case packet.ProtocolICMP:
		id := binary.BigEndian.Uint16(seg[4:])
		switch seg[0] {
		case packet.ICMPv4Echo:
			srcPort, dstPort = id, 0
		case packet.ICMPv4EchoReply:
			srcPort, dstPort = 0, id
		default:
			return f, false
		}
	default:
		return f, false
	}
	f.src, f.dst = netip.AddrPortFrom(src, srcPort), netip.AddrPortFrom(dst, dstPort)
	return f, true
}

// input handles a packet for the external address, and reports whether it did:
// what it leaves alone is for the router itself.
func (n *nat) input(now time.Duration, p *pkt) (handled bool) {
	if p.dst != n.addr {
		return false
	}
	fromOutside := p.in == n.cfg.Outside
	if p.upper == nil {
		if f := n.findFragment(now, p); f != nil {
			n.r.forward(now, p, f.newDst, func() bool { return n.applyFragment(f, p) })
			return true
		}
		return false
	}
	if p.proto == packet.ProtocolICMP && len(p.upper) > 0 {
		if packet.IsICMPError(4, p.upper[0]) {
			return n.inputError(now, p, fromOutside)
		}
		if p.upper[0] == packet.ICMPv4Echo {
			return false
		}
	}
	f, ok := flowOf(p.proto, p.src, p.dst, p.upper)
	if !ok {
		return false
	}
	m := n.external(now, f.proto, f.dst.Port())
	switch {
	case m == nil && !fromOutside:
		return false
	case m == nil, !fromOutside && !n.cfg.Hairpin, fromOutside && !n.allows(now, m, f.src):
		n.r.counters.Filtered++
		return true
	}
	to := m.key.internal
	n.r.forward(now, p, to.Addr(), func() bool {
		if !fromOutside {
			// The sender's own mapping comes first: its packet opens the way
			// for the answer even where the other's filter refuses it.
			from := n.outbound(now, f)
			if from == nil || !n.allows(now, m, netip.AddrPortFrom(n.addr, from.external)) {
				return false
			}
			n.rewrite(now, p, false, netip.AddrPortFrom(n.addr, from.external))
			f.src = netip.AddrPortFrom(n.addr, from.external)
		}
		n.keep(now, m, m.sessions[f.src], false, f.tcp)
		n.rewrite(now, p, true, to)
		return true
	})
	return true
}

// leaving returns how to translate p, which is not for the external address,
// when it is forwarded to port out; nil to leave it alone.
func (n *nat) leaving(now time.Duration, p *pkt, out int) (translate func() bool, refused bool) {
	switch {
	case p.in == n.cfg.Outside:
		return nil, out != n.cfg.Outside // nothing comes in without a mapping
	case out != n.cfg.Outside:
		return nil, false
	case p.upper == nil:
		f := n.findFragment(now, p)
		if f == nil {
			return nil, true
		}
		return func() bool { return n.applyFragment(f, p) }, false
	case p.proto == packet.ProtocolICMP && packet.IsICMPError(4, p.upper[0]):
		return func() bool { return n.outputError(now, p) }, false
	}
	f, ok := flowOf(p.proto, p.src, p.dst, p.upper)
	if !ok || f.proto == packet.ProtocolICMP && p.upper[0] != packet.ICMPv4Echo {
		return nil, true
	}
	return func() bool {
		m := n.outbound(now, f)
		if m == nil {
			return false
		}
		n.rewrite(now, p, false, netip.AddrPortFrom(n.addr, m.external))
		return true
	}, false
}

// dependence reduces a remote endpoint to what d looks at.
func dependence(d Dependence, remote netip.AddrPort) netip.AddrPort {
	switch d {
	case EndpointIndependent:
		return netip.AddrPort{}
	case AddressDependent:
		return netip.AddrPortFrom(remote.Addr(), 0)
	case AddressAndPortDependent:
	}
	return remote
}

// external finds the live mapping of an external port.
func (n *nat) external(now time.Duration, proto packet.Protocol, port uint16) *mapping {
	return n.live(now, n.byExternal[externalKey{proto, port}])
}

// live returns m, or nil after forgetting it when it has expired.
func (n *nat) live(now time.Duration, m *mapping) *mapping {
	if m != nil && now >= m.expires {
		delete(n.byInternal, m.key)
		delete(n.byExternal, externalKey{m.key.proto, m.external})
		return nil
	}
	return m
}

// allows is the filter: may remote send to the mapping?
func (n *nat) allows(now time.Duration, m *mapping, remote netip.AddrPort) bool {
	switch n.cfg.Filtering {
	case EndpointIndependent:
		return true
	case AddressDependent:
		for to, s := range m.sessions {
			if to.Addr() == remote.Addr() && now < s.expires {
				return true
			}
		}
		return false
	case AddressAndPortDependent:
	}
	s := m.sessions[remote]
	return s != nil && now < s.expires
}

// outbound finds or makes the mapping for a flow from inside and notes that
// the flow's remote endpoint was sent to. It is nil when there is no room.
func (n *nat) outbound(now time.Duration, f flow) *mapping {
	key := internalKey{f.proto, f.src, dependence(n.cfg.Mapping, f.dst)}
	m := n.live(now, n.byInternal[key])
	if m == nil {
		if len(n.byInternal) >= n.cfg.MaxMappings {
			for _, m := range n.byInternal {
				n.live(now, m)
			}
			if len(n.byInternal) >= n.cfg.MaxMappings {
				return nil
			}
		}
		port, ok := n.allocate(now, f)
		if !ok {
			return nil
		}
		m = &mapping{key: key, external: port, sessions: make(map[netip.AddrPort]*session)}
		n.byInternal[key] = m
		n.byExternal[externalKey{f.proto, port}] = m
	}
	s := m.sessions[f.dst]
	if s != nil && now >= s.expires {
		s.seen = 0 // a new connection between the same endpoints
	}
	if s == nil {
		if len(m.sessions) >= maxSessions {
			var idle netip.AddrPort
			for to, s := range m.sessions {
				if o := m.sessions[idle]; o == nil || s.last < o.last || s.last == o.last && to.Compare(idle) < 0 {
					idle = to
				}
			}
			delete(m.sessions, idle)
		}
		s = new(session)
		m.sessions[f.dst] = s
	}
	n.keep(now, m, s, true, f.tcp)
	return m
}

// keep notes a packet of a session and sets when it and its mapping expire.
// The session is nil for an inbound packet from where none was ever sent to.
func (n *nat) keep(now time.Duration, m *mapping, s *session, out bool, flags packet.TCPFlags) {
	if s == nil {
		if n.cfg.RefreshInbound {
			m.expires = max(m.expires, now+n.timeout(m.key.proto, 0))
		}
		return
	}
	if m.key.proto == packet.ProtocolTCP {
		syn, fin := synIn, finIn
		if out {
			syn, fin = synOut, finOut
		}
		if flags&packet.TCPSyn != 0 {
			if s.seen&(finOut|finIn|reset) != 0 {
				s.seen = 0 // the endpoints are used again
			}
			s.seen |= syn
		}
		if flags&packet.TCPFin != 0 {
			s.seen |= fin
		}
		if flags&packet.TCPRst != 0 {
			s.seen |= reset
		}
	}
	// Either side of a TCP connection keeps it alive: a receiver of a long
	// stream is not idle. For the rest, RFC 4787 REQ-6.
	if out || n.cfg.RefreshInbound || m.key.proto == packet.ProtocolTCP {
		s.last = now
	}
	before := s.expires
	s.expires = s.last + n.timeout(m.key.proto, s.seen)
	if s.expires >= m.expires {
		m.expires = s.expires
	} else if s.expires < before { // a connection ended: this session may have been the longest
		m.expires = 0
		for _, s := range m.sessions {
			m.expires = max(m.expires, s.expires)
		}
	}
}

// timeout is the idle time after which a session expires.
func (n *nat) timeout(proto packet.Protocol, seen tcpSeen) time.Duration {
	switch proto {
	case packet.ProtocolICMP:
		return n.cfg.ICMPTimeout
	case packet.ProtocolTCP:
		established := seen&(synOut|synIn) == synOut|synIn
		over := seen&reset != 0 || seen&(finOut|finIn) == finOut|finIn
		if established && !over {
			return n.cfg.TCPTimeout
		}
		return n.cfg.TCPTransitoryTimeout
	}
	return n.cfg.UDPTimeout
}

// allocate chooses a free external port.
func (n *nat) allocate(now time.Duration, f flow) (uint16, bool) {
	lo, hi := n.cfg.PortMin, n.cfg.PortMax
	try := lo
	switch n.cfg.Ports {
	case PreservePort:
		if port := f.src.Port(); n.external(now, f.proto, port) == nil {
			return port, true
		}
		try = f.src.Port() + 1
	case SequentialPort:
		try = n.next
	case RandomPort:
		try = lo + uint16(n.rng.IntN(int(hi)-int(lo)+1))
	}
	for range int(hi) - int(lo) + 1 {
		if try < lo || try > hi {
			try = lo
		}
		if n.external(now, f.proto, try) == nil {
			n.next = try + 1
			return try, true
		}
		try++
	}
	return 0, false
}

// rewrite gives a packet another source or destination endpoint.
func (n *nat) rewrite(now time.Duration, p *pkt, dst bool, to netip.AddrPort) {
	id := p.ip4().ID()
	if p.fragment {
		f := n.noteFragment(now, p, id)
		if dst {
			f.newDst = to.Addr()
		} else {
			f.newSrc = to.Addr()
		}
	}
	rewriteIP4(p.ip4(), p.upper, dst, to)
}

// rewriteIP4 changes an endpoint in a packet or in the quote of one, whose
// transport header seg may be cut short, and corrects what checksums there are (RFC 1624).
func rewriteIP4(ip packet.IPv4, seg []byte, dst bool, to netip.AddrPort) {
	old := ip.Src()
	portAt := 0
	if dst {
		old = ip.Dst()
		portAt = 2
		_ = ip.SetDst(to.Addr()) // fails only for an address of the other version
	} else {
		_ = ip.SetSrc(to.Addr())
	}
	var sumAt int
	switch ip.Protocol() {
	case packet.ProtocolUDP:
		sumAt = 6
	case packet.ProtocolTCP:
		sumAt = 16
	case packet.ProtocolICMP:
		portAt, sumAt = 4, 2
	default:
		return
	}
	if len(seg) < portAt+2 {
		return
	}
	oldPort := binary.BigEndian.Uint16(seg[portAt:])
	binary.BigEndian.PutUint16(seg[portAt:], to.Port())
	if len(seg) < sumAt+2 {
		return
	}
	sum := binary.BigEndian.Uint16(seg[sumAt:])
	if sum == 0 && ip.Protocol() == packet.ProtocolUDP {
		return // none
	}
	sum = packet.UpdateChecksum(sum, oldPort, to.Port())
	if ip.Protocol() != packet.ProtocolICMP {
		sum = packet.UpdateChecksumAddr(sum, old, to.Addr())
	}
	if sum == 0 && ip.Protocol() == packet.ProtocolUDP {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(seg[sumAt:], sum)
}

// quoted finds the packet quoted in an ICMP error: views into p.
func quoted(p *pkt) (q packet.IPv4, seg []byte, f flow, ok bool) {
	m, err := packet.ParseICMP(p.upper)
	if err != nil || p.fragment || !m.ChecksumOK() {
		return
	}
	e, err := packet.ParseICMPError(4, p.upper)
	if err != nil {
		return
	}
	if q, err = packet.ParseQuotedIPv4(e.Quote); err != nil || q.FragmentOffset() > 0 {
		return
	}
	seg = q.Payload()
	f, ok = flowOf(q.Protocol(), q.Src(), q.Dst(), seg)
	return
}

// inputError translates an ICMP error for the external address back to the
// internal endpoint whose packet it quotes (RFC 5508 section 4.2). One that
// quotes nothing translated is for the router itself.
func (n *nat) inputError(now time.Duration, p *pkt, fromOutside bool) (handled bool) {
	q, seg, f, ok := quoted(p)
	if !ok || f.src.Addr() != n.addr {
		return false
	}
	m := n.external(now, f.proto, f.src.Port())
	if m == nil || !fromOutside && !n.cfg.Hairpin {
		n.r.counters.Filtered++
		return true
	}
	remote := f.dst
	var other *mapping // of a hairpinned flow's destination
	if !fromOutside {
		other = n.live(now, n.byInternal[internalKey{f.proto, f.dst, dependence(n.cfg.Mapping, f.src)}])
		if other == nil {
			n.r.counters.Filtered++
			return true
		}
		remote = netip.AddrPortFrom(n.addr, other.external)
	}
	if m.sessions[remote] == nil { // quotes what was never sent
		n.r.counters.Filtered++
		return true
	}
	n.r.forward(now, p, m.key.internal.Addr(), func() bool {
		rewriteIP4(q, seg, false, m.key.internal)
		if other != nil {
			rewriteIP4(q, seg, true, remote)
			_ = p.ip4().SetSrc(n.addr)
		}
		_ = p.ip4().SetDst(m.key.internal.Addr())
		packet.SetICMPChecksum(p.upper)
		return true
	})
	return true
}

// outputError translates an ICMP error from inside about a packet that came in
// by a mapping. The external address stands for its sender, so that nothing
// internal is told (RFC 5508 REQ-5).
func (n *nat) outputError(now time.Duration, p *pkt) bool {
	q, seg, f, ok := quoted(p)
	if !ok {
		return false
	}
	m := n.live(now, n.byInternal[internalKey{f.proto, f.dst, dependence(n.cfg.Mapping, f.src)}])
	if m == nil {
		return false
	}
	rewriteIP4(q, seg, true, netip.AddrPortFrom(n.addr, m.external))
	_ = p.ip4().SetSrc(n.addr)
	packet.SetICMPChecksum(p.upper)
	return true
}

// noteFragment returns the place to note what becomes of the first fragment p.
func (n *nat) noteFragment(now time.Duration, p *pkt, id uint16) *natFragment {
	if f := n.findFragment(now, p); f != nil {
		return f
	}
	f := &n.fragments[n.fragment]
	n.fragment = (n.fragment + 1) % len(n.fragments)
	*f = natFragment{src: p.src, dst: p.dst, proto: p.proto, id: id, until: now + fragmentLife, newSrc: p.src, newDst: p.dst}
	return f
}

func (n *nat) findFragment(now time.Duration, p *pkt) *natFragment {
	for i := range n.fragments {
		f := &n.fragments[i]
		if f.until > now && f.src == p.src && f.dst == p.dst && f.proto == p.proto && f.id == p.ip4().ID() {
			return f
		}
	}
	return nil
}

func (n *nat) applyFragment(f *natFragment, p *pkt) bool {
	return p.ip4().SetSrc(f.newSrc) == nil && p.ip4().SetDst(f.newDst) == nil
}

// mappings lists what is live, in order.
func (n *nat) mappings(now time.Duration) []Mapping {
	var list []Mapping
	for key, m := range n.byInternal {
		if n.live(now, m) == nil {
			continue
		}
		live := 0
		for _, s := range m.sessions {
			if now < s.expires {
				live++
			}
		}
		list = append(list, Mapping{
			Protocol: key.proto, Internal: key.internal, Remote: key.remote,
			External: netip.AddrPortFrom(n.addr, m.external), Sessions: live,
		})
	}
	slices.SortFunc(list, func(a, b Mapping) int {
		if a.Protocol != b.Protocol {
			return int(a.Protocol) - int(b.Protocol)
		}
		return a.External.Compare(b.External)
	})
	return list
}
