// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net/netip"
	"time"
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
	// routes to the nearest.
	Addresses []netip.Prefix
	// Routes override the automatic ones.
	Routes []RouteConfig
}

// RouterConfig is a node that forwards. While no field but Addresses and Routes is set it is the
// kernel's IP stack in a namespace; any other field makes it a user-space router.
type RouterConfig struct {
	Addresses []netip.Prefix
	Routes    []RouteConfig
	// Adjustable makes a router that behaves a user-space one all the same, so that it can be told
	// to misbehave while running.
	Adjustable bool
	Behaviour
}

// Behaviour is how a user-space router departs from what a well-mannered one does.
type Behaviour struct {
	// Silent sends no ICMP errors: the hop is a star in a traceroute.
	Silent bool
	// SilentPing leaves echo requests to the router's own addresses unanswered.
	SilentPing bool
	// ICMPRate limits the ICMP errors sent, per second. 0 is no limit.
	ICMPRate float64
	// ICMPBurst is how many errors may go at once under ICMPRate. Default 1.
	ICMPBurst int
	// ICMPDelay is added before an ICMP error or echo reply is sent: a slow control plane.
	ICMPDelay time.Duration
	// ErrorSource replaces the source address of ICMP errors, one address per version.
	ErrorSource []netip.Addr
	// MPLS is the label stack that errors quote in an RFC 4950 extension, outermost first.
	MPLS []Label
	// Balance is how packets are spread over equally good next hops.
	Balance Balance
	// Firewall rules apply to forwarded and delivered packets; the first that matches decides.
	Firewall []Rule
}

func (b *Behaviour) isZero() bool {
	return !b.Silent && !b.SilentPing && b.ICMPRate == 0 && b.ICMPBurst == 0 && b.ICMPDelay == 0 &&
		len(b.ErrorSource) == 0 && len(b.MPLS) == 0 && b.Balance == BalanceDefault && len(b.Firewall) == 0
}

// Label is one entry of an MPLS label stack (RFC 3032).
type Label struct {
	Label uint32 // 20 bits
	TC    uint8  // traffic class, 3 bits
	TTL   uint8  // default 1, as most routers quote it
}

// Balance is the key by which a router spreads packets over equal-cost next hops.
type Balance uint8

// The ways to balance.
const (
	BalanceDefault     Balance = iota // by flow, in the kernel
	BalanceFlow                       // addresses, protocol and ports (or ICMP checksum and identifier)
	BalanceDestination                // destination address only
	BalancePacket                     // each packet anew, in turn
)

var balanceNames = [...]string{"", "flow", "destination", "packet"}

// String is the word the topology file uses.
func (b Balance) String() string {
	if int(b) < len(balanceNames) {
		return balanceNames[b]
	}
	return fmt.Sprintf("Balance(%d)", uint8(b))
}

// Action is what becomes of a packet that a [Rule] matches.
type Action uint8

// The actions of a firewall rule.
const (
	_      Action = iota
	Accept        // forward
	Drop          // silently
	Reject        // drop and answer "administratively prohibited"
)

var actionNames = [...]string{"", "accept", "drop", "reject"}

// String is the word the topology file uses.
func (a Action) String() string {
	if a > 0 && int(a) < len(actionNames) {
		return actionNames[a]
	}
	return fmt.Sprintf("Action(%d)", uint8(a))
}

// Rule matches packets that a user-space router forwards. A field that is zero matches everything.
type Rule struct {
	Action   Action
	Protocol string       // "icmp" (of either version), "udp", "tcp", "sctp", or empty
	From, To netip.Prefix // source and destination
	Port     uint16       // destination port, of UDP, TCP and SCTP
}

// BridgeConfig is an Ethernet switch: all wires that end at it are one network.
type BridgeConfig struct {
	// Subnets replace the automatic ones, at most one per IP version.
	Subnets []netip.Prefix
}

// NATConfig is a router that translates the source addresses of what passes from its inside (every
// wire but one) to its outside, as home routers do. Nothing outside has a route to the inside.
type NATConfig struct {
	Addresses []netip.Prefix
	Routes    []RouteConfig
	// Outside is the neighbour on the outside wire. Required.
	Outside string
	// Type is the mapping and filtering behaviour. Default [PortRestrictedCone].
	Type NATType
	// Hairpin lets inside hosts reach each other by their outside addresses.
	Hairpin bool
	// Timeout of an idle UDP or ICMP mapping. Default 30 s.
	Timeout time.Duration
	Behaviour
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
	Impairment
	// Forward (from Ends[0] to Ends[1]) and Backward replace Impairment in one direction.
	Forward, Backward *Impairment
	// Seed of the random choices of this wire. The default is made from its place in the topology,
	// so that a topology behaves the same each time.
	Seed uint64
	// MTU of both interfaces, in bytes. Default 1500.
	MTU int
	// Cost for automatic routes, in either direction. Default 1.
	Cost int
	// Subnets replace the automatic ones, at most one per IP version. Not with a bridge, which has
	// its own.
	Subnets []netip.Prefix
	// Addresses of the interfaces at Ends[0] and Ends[1]; they replace the automatic ones.
	Addresses [2][]netip.Prefix
	// Adjustable carries the wire in user space even without impairments, so that
	// they can be set while running.
	Adjustable bool
}

// Direction is what a wire does to packets from Ends[0] to Ends[1], or back.
func (w *WireConfig) direction(backward bool) Impairment {
	switch {
	case !backward && w.Forward != nil:
		return *w.Forward
	case backward && w.Backward != nil:
		return *w.Backward
	}
	return w.Impairment
}

// plain reports whether a bare veth pair does all that the wire asks.
func (w *WireConfig) plain() bool {
	return !w.Adjustable && w.direction(false) == Impairment{} && w.direction(true) == Impairment{}
}

// Impairment is what a wire does to the frames of one direction. Probabilities are per
// frame, from 0 to 1, and independent of each other.
type Impairment struct {
	Delay     time.Duration // one way
	Jitter    time.Duration // standard deviation of the delay; the order of frames is kept
	Loss      float64       // probability that a frame vanishes
	Duplicate float64       // probability that a frame arrives twice
	Reorder   float64       // probability that a frame overtakes those before it, by skipping Delay
	Corrupt   float64       // probability that one bit of a frame flips
	Rate      float64       // bits per second; 0 is no limit
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
}

// label is the topology's name, or what stands for it.
func (t *Topology) label() string {
	if t.Name == "" {
		return "lab"
	}
	return t.Name
}
