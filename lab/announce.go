// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"
)

// AnnounceOptions say what [Lab.Announce] and [Lab.Withdraw] change, and how the change spreads. The zero value
// is everything that the node holds, everywhere at once.
type AnnounceOptions struct {
	// Prefixes are among the Addresses of the node. Default: all of them.
	Prefixes []netip.Prefix `json:"prefixes,omitempty"`
	// Cost, if not nil, replaces that of [AnnounceConfig] from now on.
	Cost *int `json:"cost,omitempty"`
	// Stagger lets the change spread as routing protocols do: a node that is N hops away changes its
	// routes N times Stagger after the start, and packets meanwhile may go astray between nodes that know
	// and nodes that do not. Default 0; at most [MaxDelay].
	Stagger time.Duration `json:"stagger,omitempty"`
}

// A holding is a prefix on a node's loopback interface.
type holding struct {
	node   *planNode
	prefix netip.Prefix // masked
}

// announcements are those of holdings that are not plain: withdrawn, or at a cost.
type announcements map[holding]AnnounceConfig

// holds reports whether the node has that prefix on its loopback interface.
func (n *planNode) holds(to netip.Prefix) bool {
	return slices.ContainsFunc(n.loopback, func(a netip.Prefix) bool { return a.Masked() == to })
}

// prefixes are those on the node's loopback interface, masked, each once.
func (n *planNode) prefixes() []netip.Prefix {
	var out []netip.Prefix
	for _, a := range n.loopback {
		if a = a.Masked(); !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// addAnnouncements checks what nodes say of prefixes against what they hold.
func (p *plan) addAnnouncements() error {
	for _, n := range p.nodes {
		seen := map[netip.Prefix]bool{}
		for _, a := range n.announce {
			a.Prefix = a.Prefix.Masked()
			switch {
			case !n.holds(a.Prefix): // nor does anyone hold what is not a prefix
				return bad("%s %s: announce: %s is not among its addresses", n.kind, n.name, a.Prefix)
			case seen[a.Prefix]:
				return bad("%s %s: announce: %s is there twice", n.kind, n.name, a.Prefix)
			}
			seen[a.Prefix] = true
			p.announce[holding{n, a.Prefix}] = a
		}
	}
	return nil
}

// changed are the announcements after a change at one node.
func (o *AnnounceOptions) changed(old announcements, n *planNode, withdraw bool) (announcements, error) {
	if o.Stagger < 0 || o.Stagger > MaxDelay {
		return nil, bad("stagger %s is not between 0 and %s", o.Stagger, MaxDelay)
	}
	prefixes := o.Prefixes
	if len(prefixes) == 0 {
		prefixes = n.prefixes()
	}
	if len(prefixes) == 0 {
		return nil, fmt.Errorf("%s has no addresses to announce: %w", n.name, ErrNotHeld)
	}
	out := maps.Clone(old)
	for _, prefix := range prefixes {
		k := holding{n, prefix.Masked()}
		if !n.holds(k.prefix) {
			return nil, fmt.Errorf("%s at %s: %w", prefixString(prefix), n.name, ErrNotHeld)
		}
		a := out[k]
		a.Prefix, a.Withdrawn = k.prefix, withdraw
		if o.Cost != nil {
			a.Cost = *o.Cost
		}
		if err := checkAnnounce([]AnnounceConfig{a}); err != nil {
			return nil, bad("%s: %w", n.name, err)
		}
		out[k] = a
		if !a.Withdrawn && a.Cost == 0 {
			delete(out, k)
		}
	}
	return out, nil
}

// hops counts from one node how many hops away all others are, by index. What is out of reach is
// as far as the furthest.
func (p *plan) hops(from *planNode) []int {
	dist := make([]int, len(p.nodes))
	for i := range dist {
		dist[i] = math.MaxInt
	}
	dist[from.index] = 0
	queue := []*planNode{from}
	far := 0
	for ; len(queue) > 0; queue = queue[1:] {
		n := queue[0]
		far = dist[n.index]
		if n != from && !n.forwards() {
			continue
		}
		for _, f := range n.ifaces {
			for _, g := range f.seg.members {
				if u := g.node.index; dist[u] > far+1 {
					dist[u] = far + 1
					queue = append(queue, g.node)
				}
			}
		}
	}
	for i := range dist {
		dist[i] = min(dist[i], far)
	}
	return dist
}

// order ranks the nodes so that packets to a prefix never run in circles while one after the other, lowest rank first,
// learns that a node announces it otherwise (RFC 6976). When a path gets shorter those nearest to the prefix
// change first: whoever has changed then leads to others that have. When it gets longer
// the furthest change first: whoever has not leads to others that have not.
func (p *plan) order(to netip.Prefix, old, changed announcements, n *planNode) []int {
	k := holding{n, to}
	worse := changed[k].Withdrawn || changed[k].Cost > old[k].Cost
	announced := changed
	if worse && !old[k].Withdrawn {
		announced = old
	}
	d := destination{to: to}
	for _, n := range p.nodes {
		if n.holds(to) && !announced[holding{n, to}].Withdrawn {
			d.nodes = append(d.nodes, n)
		}
	}
	rank := p.route(make(routing, len(p.nodes)), d, announced)
	if worse {
		for i := range rank {
			rank[i] = -rank[i]
		}
	}
	return rank
}

// catchment finds where packets from a node to an address may end, by name.
func (p *plan) catchment(t routing, from *planNode, to netip.Addr) []string {
	var ends []string
	seen := make([]bool, len(p.nodes))
	queue := []*planNode{from}
	for ; len(queue) > 0; queue = queue[1:] {
		n := queue[0]
		if seen[n.index] {
			continue
		}
		seen[n.index] = true
		if n.answersFor(to) {
			ends = append(ends, n.name)
			continue
		}
		if n != from && !n.forwards() {
			continue // hosts forward nothing
		}
		queue = append(queue, n.next(t[n.index], to)...)
	}
	slices.Sort(ends)
	return ends
}

// answersFor reports whether packets to an address end at the node.
func (n *planNode) answersFor(to netip.Addr) bool {
	if slices.Contains(n.addresses(), to) {
		return true
	}
	return !n.user && slices.ContainsFunc(n.loopback, func(a netip.Prefix) bool { return a.Contains(to) })
}

// next are the nodes to which a node with those routes may send a packet on.
func (n *planNode) next(routes []planRoute, to netip.Addr) []*planNode {
	member := func(f *planIface, a netip.Addr) []*planNode {
		for _, g := range f.seg.members {
			if g != f && slices.ContainsFunc(g.addrs, func(b netip.Prefix) bool { return b.Addr() == a }) {
				return []*planNode{g.node}
			}
		}
		return nil
	}
	best := planRoute{}
	for _, r := range routes {
		if r.hops == [2]int{} && r.to.Contains(to) && (!best.to.IsValid() || r.to.Bits() > best.to.Bits()) {
			best = r
		}
	}
	for _, f := range n.ifaces {
		for _, s := range f.addrs {
			if s.Contains(to) && (!best.to.IsValid() || s.Bits() > best.to.Bits()) {
				return member(f, to)
			}
		}
	}
	var out []*planNode
	for _, hop := range best.via {
		out = append(out, member(hop.iface, hop.gateway)...)
	}
	return out
}

// prefixString is a prefix as people write it: an address if it is a single one.
func prefixString(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}
