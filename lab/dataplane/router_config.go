// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net"
	"net/netip"
	"time"
)

// RouterConfig says what a router is. Its zero value, with ports, is a router
// that forwards between the networks of its ports and behaves well.
type RouterConfig struct {
	// Name appears in errors, and seeds the choices of the router unless Seed does.
	Name string
	// Ports are its interfaces. Other fields name a port by its index here.
	Ports []PortConfig
	// Addrs are addresses of the router itself, on no port (a loopback).
	Addrs []netip.Addr
	// Routes come besides the networks of the ports, which are routes by
	// themselves. Of two to the same prefix the later one counts.
	Routes []Route
	// Hops, if not empty, makes the router stand for a string of routers, with the last port at its end and
	// all others at its beginning. What goes along it passes them all, each of which takes one from the time to live and
	// answers for itself where that ends. Not with NAT.
	Hops []HopConfig
	// Behaviour can be changed while the router runs, with [Router.SetBehaviour].
	Behaviour Behaviour
	// NAT, if not nil, makes the router translate addresses. IPv4 only.
	NAT *NATConfig
	// Seed of random choices and of the hash that balances flows. Default: from Name.
	Seed uint64
}

// MaxHops is how many routers one may stand for: as many as packets commonly have hops to go.
const MaxHops = 64

// HopConfig is one of the routers that a router stands for.
type HopConfig struct {
	// Addrs are its own addresses, at most one per IP version. Its ICMP errors come from them; without one, from
	// the port's address as always.
	Addrs []netip.Addr
	// Routes are for what the hop itself sends, before those of the router.
	Routes []Route
}

// PortConfig is one interface of a router.
type PortConfig struct {
	// MAC is the port's Ethernet address. Default: that of the interface.
	MAC net.HardwareAddr
	// MTU is the longest IP packet that the port sends. Default: that of the interface.
	MTU int
	// Addrs are the router's addresses on the port, each with its network.
	// Besides these a port has the IPv6 link-local address made from MAC.
	Addrs []netip.Prefix
	// Neighbours are known from the start and for good, so that not even the first packet waits
	// for an answer over a slow wire. All others are asked for by ARP and neighbour discovery.
	Neighbours []Neighbour
}

// Neighbour is a node on the network of a port.
type Neighbour struct {
	Addr netip.Addr
	MAC  net.HardwareAddr
}

// Route is one entry of the forwarding table.
type Route struct {
	Prefix netip.Prefix
	// NextHops share the packets, as Behaviour.Balance says.
	NextHops []NextHop
	// Reject, if not 0, applies instead of NextHops.
	Reject Reject
}

// NextHop is where a route leads.
type NextHop struct {
	Port int
	// Gateway is a neighbour on Port. The zero Addr: the destination itself is a neighbour.
	Gateway netip.Addr
}

// Reject is what a route without next hops does to packets.
type Reject uint8

// Kinds of Reject.
const (
	_           Reject = iota
	Blackhole          // drop silently
	Unreachable        // answer "no route" (IPv4 "host unreachable", as Linux does)
	Prohibit           // answer "administratively prohibited"
)

// String gives the word that "ip route" uses.
func (r Reject) String() string {
	switch r {
	case Blackhole:
		return "blackhole"
	case Unreachable:
		return "unreachable"
	case Prohibit:
		return "prohibit"
	}
	return fmt.Sprintf("Reject(%d)", uint8(r))
}

// Behaviour is how a router treats packets. The zero value is a router
// that answers everything at once.
type Behaviour struct {
	// Silent sends no ICMP errors.
	Silent bool
	// SilentPing answers no echo requests.
	SilentPing bool
	// ICMPRate limits ICMP errors, per second, by a token bucket. 0 is no limit.
	ICMPRate float64
	// ICMPBurst is the size of the bucket. Default 1.
	ICMPBurst int
	// ICMPDelay holds back ICMP errors and echo replies: a slow control plane.
	ICMPDelay time.Duration
	// ErrorSource replaces the source address of ICMP errors: the first address
	// of the packet's IP version. It need not be the router's. Default: the
	// address of the port that the packet came in by.
	ErrorSource []netip.Addr
	// MPLS is the label stack, outermost first, that time-exceeded errors carry
	// in an extension (RFC 4884, RFC 4950).
	MPLS []Label
	// Balance chooses among the next hops of a route.
	Balance Balance
	// Firewall rules apply, after the TTL check, to packets that are forwarded
	// or for the router itself; the first that matches decides, and what none
	// matches passes.
	Firewall []Rule
	// TTL is the time to live, or hop limit, of what the router itself sends. Default 64.
	TTL uint8
}

// Label is an MPLS label stack entry (RFC 3032).
type Label struct {
	Label uint32 // 20 bits
	TC    uint8  // traffic class, 3 bits
	TTL   uint8  // as it is quoted; 0 is 0
}

// Balance is the key by which packets are spread over several next hops.
type Balance uint8

// Ways to balance. The flow is what routers hash to keep packets of a
// connection in order (Augustin et al., "Avoiding traceroute anomalies with
// Paris traceroute", IMC 2006, section 2.1): addresses, protocol and the first
// four bytes behind the IP header, which are the ports of UDP, TCP and SCTP, and
// type, code and checksum of ICMP; for IPv6 also the flow label. Fragments go by
// addresses and protocol.
const (
	BalanceFlow         Balance = iota
	BalanceDestination          // by destination address
	BalancePacket               // in turn
	BalancePacketRandom         // at random
)

// String names the way.
func (b Balance) String() string {
	switch b {
	case BalanceFlow:
		return "flow"
	case BalanceDestination:
		return "destination"
	case BalancePacket:
		return "packet"
	case BalancePacketRandom:
		return "packet-random"
	}
	return fmt.Sprintf("Balance(%d)", uint8(b))
}

// Rule is one rule of a firewall. A field that is zero matches everything.
type Rule struct {
	Action   Action
	Protocol uint8        // IP protocol number; 1 and 58 are ICMP of either version
	From, To netip.Prefix // source and destination
	// PortMin and PortMax bound the destination port of UDP, TCP and SCTP;
	// PortMax 0 is PortMin. A rule with ports matches no other protocol.
	PortMin, PortMax uint16
}

// Action is what becomes of a packet that a Rule matches.
type Action uint8

// Actions.
const (
	_           Action = iota
	Accept             // go on
	Drop               // silently
	RejectAdmin        // drop and answer "administratively prohibited" (RFC 1812 code 13; RFC 4443 code 1)
)

// String names the action.
func (a Action) String() string {
	switch a {
	case Accept:
		return "accept"
	case Drop:
		return "drop"
	case RejectAdmin:
		return "reject"
	}
	return fmt.Sprintf("Action(%d)", uint8(a))
}

// NATConfig makes a router a network address and port translator (RFC 4787 for
// UDP, RFC 5382 for TCP, RFC 5508 for ICMP) from all its other ports to one. It
// translates IPv4 only; IPv6 is routed (NAT66 would need nothing that RFC 4787
// speaks of, and hides nothing from IPv6's users).
type NATConfig struct {
	// Outside is the index of the outside port.
	Outside int
	// Address is the external address. Default: the first IPv4 address of the outside port.
	Address netip.Addr
	// Mapping says when two flows of one internal endpoint share an external
	// port; RFC 4787 section 4.1.
	Mapping Dependence
	// Filtering says what may come in by a mapping; RFC 4787 section 5.
	Filtering Dependence
	// Ports says how external ports are chosen.
	Ports PortAllocation
	// PortMin and PortMax bound the external ports chosen other than by
	// preservation. Default 1024 and 65535.
	PortMin, PortMax uint16
	// Hairpin lets internal hosts reach each other by their external endpoints;
	// they see the external endpoint as source (RFC 4787 section 6).
	Hairpin bool
	// RefreshInbound lets inbound packets keep a mapping alive; outbound ones
	// always do (RFC 4787 section 4.3).
	RefreshInbound bool
	// Idle times after which a mapping ends. Defaults: 5 min (RFC 4787 REQ-5),
	// 2 h 4 min (RFC 5382 REQ-5), 4 min (the same, before and after a TCP
	// connection is established), 60 s (RFC 5508 REQ-2).
	UDPTimeout, TCPTimeout, TCPTransitoryTimeout, ICMPTimeout time.Duration
	// MaxMappings bounds the table; a flow that finds it full is dropped. Default 65536.
	MaxMappings int
}

// Dependence is how much of the remote endpoint a NAT looks at.
type Dependence uint8

// Kinds of Dependence, in the words of RFC 4787. A "symmetric" NAT has
// AddressAndPortDependent mapping; "full cone", "restricted cone" and "port
// restricted cone" have EndpointIndependent mapping and these three kinds of
// filtering.
const (
	EndpointIndependent Dependence = iota
	AddressDependent
	AddressAndPortDependent
)

// String gives the words of RFC 4787.
func (d Dependence) String() string {
	switch d {
	case EndpointIndependent:
		return "endpoint-independent"
	case AddressDependent:
		return "address-dependent"
	case AddressAndPortDependent:
		return "address-and-port-dependent"
	}
	return fmt.Sprintf("Dependence(%d)", uint8(d))
}

// PortAllocation is how a NAT chooses the external port of a mapping.
type PortAllocation uint8

// Ways to choose. An external port never belongs to two mappings of a protocol
// at a time (no "port overloading").
const (
	// PreservePort takes the internal port when it is free, else the next free one.
	PreservePort PortAllocation = iota
	// SequentialPort counts up.
	SequentialPort
	// RandomPort draws.
	RandomPort
)

// String names the way.
func (a PortAllocation) String() string {
	switch a {
	case PreservePort:
		return "preserve"
	case SequentialPort:
		return "sequential"
	case RandomPort:
		return "random"
	}
	return fmt.Sprintf("PortAllocation(%d)", uint8(a))
}
