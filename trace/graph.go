// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
)

// Graph is what [Multipath] found: the nodes at each distance and the links between them.
type Graph struct {
	// Target and Protocol are those of the probes.
	Target   netip.Addr
	Protocol probe.Protocol
	// Source is what pictures call the first node: "source" if it is empty.
	Source string
	// Nodes are sorted by distance, then by address, the silent one last. The first is the source.
	Nodes []Node
	// Edges are sorted by From, then by To.
	Edges []Edge
	// Stop says why the trace ended, and Silent how many silent hops it left out at the end.
	Stop   StopReason
	Silent int
	// Probes and Flows count what was used.
	Probes, Flows int
	// NodeFailure is the probability, aimed at, that a balancer with evenly used next nodes shows
	// fewer of them than it has.
	NodeFailure float64
	// Confidence is the probability that the balancers at the hops that branch, as many as were
	// found but at least one, show all their next nodes. It holds if they balance evenly.
	Confidence float64
	// Switched are the hops where MDA-Lite's assumptions failed, so that MDA took over.
	Switched []int
	// Start is when the trace began and Duration how long it took.
	Start    time.Time
	Duration time.Duration
}

// Node is a router, or the source or the target, at one distance. The same router at two
// distances is two nodes.
type Node struct {
	// TTL is the distance. The source's is one less than the first hop's.
	TTL int
	// Addr is where the answers came from. The zero Addr is the source or a node that does not
	// answer; it may stand for several.
	Addr netip.Addr
	// Kind says what the node is.
	Kind NodeKind
	// Flows are the flows that reach this node, as far as was tried, in ascending order.
	Flows []uint16
	// PerPacket tells that the node sends packets of one flow to different next nodes.
	PerPacket bool
	// Answers counts the answers; Min, Avg and Max are of the round-trip times of those, Timed many, where that is known.
	Answers, Timed int
	Min, Avg, Max  time.Duration
	// Receivers are the places where answers came home (see probe.Result), sorted; none if always at the sender.
	Receivers []string
	// Status, ICMPType and ICMPCode are of the latest answer; HasICMP tells that it was an ICMP message.
	Status             probe.Status
	HasICMP            bool
	ICMPType, ICMPCode uint8
	// MPLS is the label stack in the latest answer.
	MPLS []packet.Label
}

// NodeKind says what a node is.
type NodeKind uint8

// The kinds of nodes.
const (
	RouterNode NodeKind = iota // it answers that the hop limit ran out
	SourceNode                 // the host, or the router before the first hop tried
	TargetNode                 // it answers as the target
	RefuseNode                 // it says that the target can't be reached
	SilentNode                 // nothing came back
)

var kindNames = [...]string{
	RouterNode: "router", SourceNode: "source", TargetNode: "target", RefuseNode: "refuse", SilentNode: "silent",
}

// String gives a name in lower case.
func (k NodeKind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("NodeKind(%d)", uint8(k))
}

// MarshalText gives String, so that JSON has the name.
func (k NodeKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Edge is a link from a node to one at the next distance.
type Edge struct {
	// From and To are indexes into Graph.Nodes.
	From, To int
	// Flows are the flows seen on it, in ascending order.
	Flows []uint16
	// Uncertain tells that the link may not exist: behind a per-packet balancer there is no telling which
	// of the nodes at one distance go on to which at the next.
	Uncertain bool
}

// Hops gives the nodes by distance: the source alone, then each hop's. The elements are indexes into Nodes.
func (g *Graph) Hops() [][]int {
	var hops [][]int
	for i := range g.Nodes {
		if i == 0 || g.Nodes[i].TTL != g.Nodes[i-1].TTL {
			hops = append(hops, nil)
		}
		hops[len(hops)-1] = append(hops[len(hops)-1], i)
	}
	return hops
}

// Sort puts nodes and edges that were added in any order into the order that Graph describes.
func (g *Graph) Sort() {
	order := make([]int, len(g.Nodes))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(g.Nodes[a].TTL-g.Nodes[b].TTL, compareNodes(g.Nodes[a], g.Nodes[b]))
	})
	nodes, at := make([]Node, len(order)), make([]int, len(order))
	for i, old := range order {
		nodes[i], at[old] = g.Nodes[old], i
	}
	g.Nodes = nodes
	for i := range g.Edges {
		e := &g.Edges[i]
		e.From, e.To = at[e.From], at[e.To]
	}
	slices.SortFunc(g.Edges, func(a, b Edge) int { return cmp.Or(a.From-b.From, a.To-b.To) })
}

// Next gives the nodes that a node goes on to, as indexes into Nodes.
func (g *Graph) Next(node int) []int {
	var next []int
	for _, e := range g.Edges {
		if e.From == node {
			next = append(next, e.To)
		}
	}
	return next
}

// Graph gives the path as a graph, to draw it. The replies of a hop with the same sender are one
// node. A Paris path's edges are certain where hops have one node each.
func (p *Path) Graph() *Graph {
	g := &Graph{
		Target: p.Target, Protocol: p.Protocol, Stop: p.Stop, Silent: p.Silent, Probes: p.Probes, Flows: 1,
		Start: p.Start, Duration: p.Duration,
	}
	first := 1
	if len(p.Hops) > 0 {
		first = p.Hops[0].TTL
	}
	g.Nodes = []Node{{TTL: first - 1, Kind: SourceNode}}
	from := []int{0}
	for i := range p.Hops {
		h := &p.Hops[i]
		var here []Node
		for q := range h.Replies {
			r := &h.Replies[q]
			if !r.Answered() {
				continue
			}
			at := slices.IndexFunc(here, func(n Node) bool { return n.Addr == r.Responder })
			if at < 0 {
				here = append(here, Node{TTL: h.TTL, Addr: r.Responder})
				at = len(here) - 1
			}
			here[at].take(r)
		}
		if len(here) == 0 {
			here = []Node{{TTL: h.TTL, Kind: SilentNode}}
		}
		sortNodes(here)
		var to []int
		for _, n := range here {
			to = append(to, len(g.Nodes))
			g.Nodes = append(g.Nodes, n)
		}
		for _, f := range from {
			if k := g.Nodes[f].Kind; k == TargetNode || k == RefuseNode {
				continue
			}
			for _, t := range to {
				g.Edges = append(g.Edges, Edge{From: f, To: t, Uncertain: len(from) > 1 && len(to) > 1})
			}
		}
		from = to
	}
	return g
}

// take books an answer.
func (n *Node) take(r *probe.Result) {
	n.Answers++
	if r.RTT > 0 {
		if n.Timed == 0 || r.RTT < n.Min {
			n.Min = r.RTT
		}
		n.Max = max(n.Max, r.RTT)
		n.Timed++
		n.Avg += (r.RTT - n.Avg) / time.Duration(n.Timed)
	}
	if at, found := slices.BinarySearch(n.Receivers, r.Receiver); !found && r.Receiver != "" {
		n.Receivers = slices.Insert(n.Receivers, at, r.Receiver)
	}
	n.Status, n.HasICMP, n.ICMPType, n.ICMPCode = r.Status, r.HasICMP, r.ICMPType, r.ICMPCode
	n.MPLS = slices.Clone(r.MPLS)
	switch {
	case isReached(r.Status):
		n.Kind = TargetNode
	case isUnreachable(r.Status):
		n.Kind = RefuseNode
	default:
		n.Kind = RouterNode
	}
}

// compareNodes sorts the nodes of one hop.
func compareNodes(a, b Node) int {
	switch {
	case a.Kind == SilentNode || b.Kind == SilentNode:
		return boolToInt(a.Kind == SilentNode) - boolToInt(b.Kind == SilentNode)
	default:
		return a.Addr.Compare(b.Addr)
	}
}

func sortNodes(nodes []Node) { slices.SortFunc(nodes, compareNodes) }

func boolToInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
