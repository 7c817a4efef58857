// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package natsim

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"
)

// Dependence is what a mapping or a filter looks at of the remote endpoint (RFC 4787 sections 4.1 and 5).
type Dependence uint8

// Dependences.
const (
	EndpointIndependent Dependence = iota
	AddressDependent
	AddressAndPortDependent
)

// String is what RFC 4787 calls it.
func (d Dependence) String() string {
	switch d {
	case EndpointIndependent:
		return "endpoint-independent"
	case AddressDependent:
		return "address-dependent"
	case AddressAndPortDependent:
		return "address-and-port-dependent"
	default:
		return fmt.Sprintf("Dependence(%d)", uint8(d))
	}
}

// reduce leaves of a remote endpoint what is looked at.
func (d Dependence) reduce(remote netip.AddrPort) netip.AddrPort {
	switch d {
	case EndpointIndependent:
		return netip.AddrPort{}
	case AddressDependent:
		return netip.AddrPortFrom(remote.Addr(), 0)
	case AddressAndPortDependent:
	}
	return remote
}

// Ports is how a NAT chooses outside ports.
type Ports uint8

// Choices of ports.
const (
	Preserve   Ports = iota // the inside port, or a random one where that is taken
	Sequential              // the next one, UDP and TCP counted together
	Random
)

// String is the choice in a word.
func (p Ports) String() string {
	switch p {
	case Preserve:
		return "preserve"
	case Sequential:
		return "sequential"
	case Random:
		return "random"
	default:
		return fmt.Sprintf("Ports(%d)", uint8(p))
	}
}

// NATConfig is the behaviour of a NAT, for UDP and TCP alike.
type NATConfig struct {
	Mapping   Dependence
	Filtering Dependence
	Ports     Ports
	// Hairpin lets inside hosts reach each other by their outside addresses.
	Hairpin bool
	// Reject answers what it does not let in of TCP with a reset; otherwise it is ignored.
	Reject bool
	// Timeout of a mapping that nothing goes out by. Default 2 min.
	Timeout time.Duration
}

// Kind is a NAT by its name.
type Kind struct {
	Name string
	NATConfig
}

// Kinds are the NATs of RFC 3489, and two more that port prediction is about: what passes the one is
// what remains of hope for a symmetric NAT.
func Kinds() []Kind {
	independent, address, port := EndpointIndependent, AddressDependent, AddressAndPortDependent
	return []Kind{
		{"full-cone", NATConfig{Mapping: independent, Filtering: independent}},
		{"restricted", NATConfig{Mapping: independent, Filtering: address}},
		{"port-restricted", NATConfig{Mapping: independent, Filtering: port}},
		{"port-restricted-random", NATConfig{Mapping: independent, Filtering: port, Ports: Random}},
		{"symmetric-sequential", NATConfig{Mapping: port, Filtering: port, Ports: Sequential}},
		{"symmetric-random", NATConfig{Mapping: port, Filtering: port, Ports: Random}},
	}
}

// A NAT is between an outside network, where it has an address, and an inside one.
type NAT struct {
	cfg     NATConfig
	outside *segment
	inside  segment
	addr    netip.Addr
	next    uint16 // of Sequential
	flows   map[flow]*mapping
	ports   map[outsidePort]*mapping
	refused int
}

type flow struct {
	proto  Protocol
	inside netip.AddrPort
	remote netip.AddrPort // what Mapping leaves of it
}

type outsidePort struct {
	proto Protocol
	port  uint16
}

type mapping struct {
	flow    flow
	port    uint16
	static  bool                         // made by Map
	expires time.Time                    // of the latest session
	remotes map[netip.AddrPort]time.Time // when who was sent to is no longer let in, by what Filtering leaves
}

func newNAT(outside *segment, addr netip.Addr, cfg NATConfig) *NAT {
	cfg.Timeout = cmp.Or(cfg.Timeout, 2*time.Minute)
	t := &NAT{
		cfg: cfg, outside: outside, addr: addr, next: 20000,
		flows: map[flow]*mapping{}, ports: map[outsidePort]*mapping{},
	}
	t.inside = segment{network: outside.network, nodes: map[netip.Addr]node{}, gateway: t}
	return t
}

// Host puts a host inside.
func (t *NAT) Host(addr netip.Addr) *Host { return t.inside.host(addr) }

// NAT puts a NAT inside, as a provider's is before a home's.
func (t *NAT) NAT(addr netip.Addr, cfg NATConfig) *NAT { return t.inside.nat(addr, cfg) }

// Addr is the outside address.
func (t *NAT) Addr() netip.Addr { return t.addr }

// Refused counts packets from outside that were not let in.
func (t *NAT) Refused() int {
	t.inside.network.mu.Lock()
	defer t.inside.network.mu.Unlock()
	return t.refused
}

// Map forwards an outside port to an inside endpoint, whoever it is that sends, until the network ends: what hosts ask for by
// UPnP or PCP. It fails when the port is taken.
func (t *NAT) Map(proto Protocol, inside netip.AddrPort, port uint16) error {
	t.inside.network.mu.Lock()
	defer t.inside.network.mu.Unlock()
	if t.mappingLocked(proto, port) != nil {
		return fmt.Errorf("natsim: %v port %d is taken", proto, port)
	}
	m := &mapping{flow: flow{proto, inside, netip.AddrPort{}}, port: port, static: true, remotes: map[netip.AddrPort]time.Time{}}
	t.ports[outsidePort{proto, port}] = m
	if t.cfg.Mapping == EndpointIndependent {
		t.flows[m.flow] = m
	}
	return nil
}

// mappingLocked finds what an outside port is mapped to, forgetting it when its time has passed.
func (t *NAT) mappingLocked(proto Protocol, port uint16) *mapping {
	m := t.ports[outsidePort{proto, port}]
	if m != nil && !m.static && !time.Now().Before(m.expires) {
		delete(t.ports, outsidePort{proto, port})
		delete(t.flows, m.flow)
		return nil
	}
	return m
}

// outboundLocked translates a packet from inside and sends it on. Without a free port it vanishes.
func (t *NAT) outboundLocked(p packet) {
	f := flow{p.proto, p.src, t.cfg.Mapping.reduce(p.dst)}
	m := t.flows[f]
	if m != nil {
		m = t.mappingLocked(p.proto, m.port)
	}
	if m == nil {
		port, ok := t.portLocked(p.proto, p.src.Port())
		if !ok {
			return
		}
		m = &mapping{flow: f, port: port, remotes: map[netip.AddrPort]time.Time{}}
		t.flows[f] = m
		t.ports[outsidePort{p.proto, port}] = m
	}
	m.expires = time.Now().Add(t.cfg.Timeout)
	m.remotes[t.cfg.Filtering.reduce(p.dst)] = m.expires
	p.src = netip.AddrPortFrom(t.addr, m.port)
	if p.dst.Addr() != t.addr {
		t.outside.sendLocked(p)
	} else if t.cfg.Hairpin {
		t.receiveLocked(p)
	}
}

// portLocked chooses a free outside port.
func (t *NAT) portLocked(proto Protocol, inside uint16) (uint16, bool) {
	const low, high = 1024, 65535
	rng := t.inside.network.rng
	try := inside
	for i := range high - low + 1 {
		switch {
		case t.cfg.Ports == Sequential:
			try = t.next
			if t.next++; t.next < low {
				t.next = low
			}
		case t.cfg.Ports == Random || i > 0:
			try = low + uint16(rng.IntN(high-low+1))
		}
		if t.mappingLocked(proto, try) == nil {
			return try, true
		}
	}
	return 0, false
}

// receiveLocked translates a packet from outside, if it is let in.
func (t *NAT) receiveLocked(p packet) {
	m := t.mappingLocked(p.proto, p.dst.Port())
	if m != nil && !m.static && t.cfg.Filtering != EndpointIndependent {
		if until, ok := m.remotes[t.cfg.Filtering.reduce(p.src)]; !ok || !time.Now().Before(until) {
			m = nil
		}
	}
	if m == nil {
		t.refused++
		if p.kind == syn && t.cfg.Reject {
			t.outside.sendLocked(packet{proto: TCP, kind: rst, src: p.dst, dst: p.src, acks: p.from})
		}
		return
	}
	p.dst = m.flow.inside
	t.inside.sendLocked(p)
}
