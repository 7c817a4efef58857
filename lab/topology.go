// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/lab/dataplane"
)

// Bounds of a topology. They keep a hostile file from asking for the whole machine; the largest
// networks worth building in one kernel stay well inside.
const (
	MaxFileSize  = 1 << 20 // bytes of a topology file
	MaxNodes     = 512     // hosts, routers, bridges and NATs together
	MaxWires     = 1024
	MaxAddresses = 256 // per node or wire end
	MaxRoutes    = 4096

	// MaxDelay bounds every duration of a wire or router.
	MaxDelay = time.Minute
	// MaxCost bounds the costs of wires and announcements: the sum of a path's is far from overflow.
	MaxCost = 1_000_000
	// MaxRate bounds the rate of a wire, in bits per second.
	MaxRate = 1e12
)

// A Topology says which nodes a network has and how wires join them. It comes from a file
// ([Parse], [ReadFile]) or is written in Go; the zero value of every field is its default.
// Node names are unique across all kinds.
type Topology struct {
	Name    string // of the lab; default "lab"
	Hosts   map[string]HostConfig
	Routers map[string]RouterConfig
	Bridges map[string]BridgeConfig
	NATs    map[string]NATConfig
	Wires   []WireConfig
	// Routes are explicit routes that name their node in At; the same can be said at the node.
	Routes []RouteConfig
}

// HostConfig is an end system: it sends and receives, and forwards nothing.
type HostConfig struct {
	// Addresses are put on the host's loopback interface and are reachable from everywhere: service
	// and anycast addresses. The same prefix at several nodes is anycast: each node
	// routes to the nearest. Of a prefix the host answers for every address.
	Addresses []netip.Prefix
	// Announce says how Addresses are announced where that is not plainly.
	Announce []AnnounceConfig
	// Routes override the automatic ones.
	Routes []RouteConfig
}

// RouterConfig is a node that forwards. While no field but Addresses and Routes is set it is the
// kernel's IP stack in a namespace; any other field makes it a user-space router.
type RouterConfig struct {
	Addresses []netip.Prefix
	Announce  []AnnounceConfig
	Routes    []RouteConfig
	// Hops, from 2 to [dataplane.MaxHops], makes the router stand for a string of as many routers, with the last of its
	// wires at the far end and all others at the near one: long paths at little cost. Hop N of
	// router I, counted by name, has the addresses 10.128.0.N + 256 I and fd00:1ab:1:I::N. Default 1.
	Hops int
	// Adjustable makes a router without any misbehaviour a user-space one all the same, so that it can be
	// told to misbehave while running.
	Adjustable bool
	Behaviour  Behaviour
}

// AnnounceConfig says how a node announces a prefix among its Addresses. [Lab.Withdraw] and
// [Lab.Announce] change it while the lab runs.
type AnnounceConfig struct {
	Prefix netip.Prefix `json:"prefix"`
	// Cost is added to that of every path to this node, as a prepended AS number would
	// be: others are then nearer. 0 to [MaxCost].
	Cost int `json:"cost,omitempty"`
	// Withdrawn holds the prefix without announcing it, until [Lab.Announce].
	Withdrawn bool `json:"withdrawn,omitempty"`
}

// What a user-space router or a carried wire does is said in the words of package dataplane.
type (
	// Behaviour is how a router departs from a well-mannered one.
	Behaviour = dataplane.Behaviour
	// Label is an entry of an MPLS label stack that a router quotes.
	Label = dataplane.Label
	// Balance is the key by which a router spreads packets over equal-cost next hops.
	Balance = dataplane.Balance
	// Rule is a rule of a router's firewall.
	Rule = dataplane.Rule
	// Impairment is what a wire does to the frames of one direction. Its Delay is one way.
	Impairment = dataplane.Params
	// WireCounters counts the frames of one direction of a carried wire.
	WireCounters = dataplane.WireCounters
)

// BridgeConfig is an Ethernet switch: all wires that end at it are one network.
type BridgeConfig struct {
	// Subnets replace the automatic ones, at most one per IP version.
	Subnets []netip.Prefix
}

// NATConfig is a router that translates the IPv4 source addresses of what passes from its inside (every
// wire but one) to its outside, as home routers do. Nothing outside has an IPv4 route to the inside.
// IPv6 is routed, both ways.
type NATConfig struct {
	Addresses []netip.Prefix
	Routes    []RouteConfig
	// Outside is the neighbour on the outside wire. Required.
	Outside string
	// Type is the mapping and filtering behaviour. Default [PortRestrictedCone].
	Type NATType
	// Hairpin lets inside hosts reach each other by their outside addresses.
	Hairpin bool
	// Ports says how outside ports are chosen. Default: the inside port where it is free.
	Ports dataplane.PortAllocation
	// Timeout of an idle UDP mapping. Default 5 min (RFC 4787, REQ-5).
	Timeout   time.Duration
	Behaviour Behaviour
}

// NATType names the classic kinds of NAT (RFC 3489; RFC 4787 in brackets).
type NATType uint8

// The kinds of NAT.
const (
	PortRestrictedCone NATType = iota // endpoint-independent mapping, address-and-port-dependent filtering
	RestrictedCone                    // endpoint-independent mapping, address-dependent filtering
	FullCone                          // endpoint-independent mapping and filtering
	Symmetric                         // address-and-port-dependent mapping and filtering
)

var natTypeNames = [...]string{"port-restricted", "restricted", "full-cone", "symmetric"}

// String is the word the topology file uses.
func (n NATType) String() string {
	if int(n) < len(natTypeNames) {
		return natTypeNames[n]
	}
	return fmt.Sprintf("NATType(%d)", uint8(n))
}

// WireConfig joins two nodes. While no impairment is set it is a plain veth pair; otherwise its
// frames are carried in user space.
type WireConfig struct {
	Ends [2]string // node names
	// Impairment applies in both directions.
	Impairment Impairment
	// Forward (from Ends[0] to Ends[1]) and Backward replace Impairment in one direction.
	Forward, Backward *Impairment
	// Seed of the random choices of this wire. The default is made from its place in the topology,
	// so that a topology behaves the same each time.
	Seed uint64
	// MTU of both interfaces, in bytes. Default 1500.
	MTU int
	// Cost for automatic routes, in either direction. Default 1.
	Cost int
	// Costs replace Cost in one direction, the first from Ends[0] to Ends[1], so that the ways there and
	// back may differ. At a bridge only the direction towards it counts. 0: Cost.
	Costs [2]int
	// Subnets replace the automatic ones, at most one per IP version. Not with a bridge, which has
	// its own.
	Subnets []netip.Prefix
	// Addresses of the interfaces at Ends[0] and Ends[1]; they replace the automatic ones.
	Addresses [2][]netip.Prefix
	// Adjustable carries the wire in user space even without impairments, so that
	// they can be set while running.
	Adjustable bool
}

// direction is what the wire does from Ends[0] to Ends[1], or back.
func (w *WireConfig) direction(d dataplane.Direction) Impairment {
	switch {
	case d == dataplane.Forward && w.Forward != nil:
		return *w.Forward
	case d == dataplane.Backward && w.Backward != nil:
		return *w.Backward
	}
	return w.Impairment
}

// cost is that of sending from Ends[end].
func (w *WireConfig) cost(end int) int { return cmp.Or(w.Costs[end], w.Cost, 1) }

// plain reports whether a bare veth pair does all that the wire asks.
func (w *WireConfig) plain() bool {
	return !w.Adjustable && w.direction(dataplane.Forward) == Impairment{} && w.direction(dataplane.Backward) == Impairment{}
}

// RouteConfig is an explicit route. It replaces the automatic route to the same prefix.
type RouteConfig struct {
	// At is the node that has the route. Empty (and implied) in a node's own Routes.
	At string
	// To is a prefix, an address, "default" (of both IP versions), or a node: all its addresses.
	To string
	// Via are the next hops: neighbouring nodes, or addresses of theirs. Several share the load.
	Via []string
	// Reject drops instead: "blackhole" silently, "unreachable" and "prohibit" with an ICMP error.
	Reject string
	// Hops, of a router with several, are the first and the last of those that have the route, counted from 1: what
	// they themselves send goes by it, and nothing else does. Withdrawals do not touch it. Default: the router
	// as a whole.
	Hops [2]int
}

// label is the topology's name, or what stands for it.
func (t *Topology) label() string {
	if t.Name == "" {
		return "lab"
	}
	return t.Name
}
