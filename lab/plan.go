// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"cmp"
	"container/heap"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
)

// Kind says what a node is.
type Kind uint8

// The kinds of node.
const (
	_ Kind = iota
	KindHost
	KindRouter
	KindBridge
	KindNAT
)

var kindNames = [...]string{"", "host", "router", "bridge", "nat"}

// String is the word the topology file uses.
func (k Kind) String() string {
	if k > 0 && int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// A plan is a topology with every decision taken: who is called what, has which addresses, and
// sends packets where. It is a pure function of the topology; building it into a kernel
// decides nothing more.
type plan struct {
	topology *Topology
	nodes    []*planNode // by name
	byName   map[string]*planNode
	wires    [][2]*planIface // parallel to topology.Wires
	segments []*segment      // in the order of their first wires
	announce announcements   // at the start
}

type planNode struct {
	index    int
	name     string
	kind     Kind
	ifaces   []*planIface // in the order of their wires
	loopback []netip.Prefix
	routes   []planRoute      // at the start, by destination; connected ones are left to the interface addresses
	announce []AnnounceConfig // as the topology says
	hops     int              // routers that it stands for; at least 1
	outside  *planIface       // of a NAT
	user     bool             // forwards in user space
}

// address is the node's first address of a family, service addresses first, or the zero Addr.
func (n *planNode) address(f int) netip.Addr {
	for _, a := range n.addresses() {
		if family(a) == f {
			return a
		}
	}
	return netip.Addr{}
}

// hostsFile is the text of an /etc/hosts in which every node's name stands for all its addresses, so that each of
// them has a name. Resolvers keep the order: the address that [planNode.address] gives comes first. An anycast address
// has no name: it would be that of a node that does not answer.
func (p *plan) hostsFile() string {
	holders := map[netip.Addr]int{}
	for _, n := range p.nodes {
		for _, a := range n.loopback {
			holders[a.Addr()]++
		}
	}
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	for _, n := range p.nodes {
		addrs := n.addresses()
		slices.SortStableFunc(addrs, func(a, b netip.Addr) int { return cmp.Compare(family(a), family(b)) })
		for _, a := range addrs {
			if holders[a] < 2 {
				fmt.Fprintf(&b, "%s %s\n", a, n.name)
			}
		}
	}
	return b.String()
}

// forwards reports whether routes may lead through the node.
func (n *planNode) forwards() bool { return n.kind == KindRouter || n.kind == KindNAT }

type planIface struct {
	node  *planNode
	peer  *planNode // at the other end of the wire: a bridge, perhaps
	name  string
	wire  int
	end   int
	mac   net.HardwareAddr
	mtu   int
	cost  int            // of sending by it
	addrs []netip.Prefix // with the length of the subnet
	seg   *segment
}

// addr is the interface's first address of a family, or the zero Addr.
func (f *planIface) addr(which int) netip.Addr {
	for _, p := range f.addrs {
		if family(p.Addr()) == which {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// A segment is one network in the sense of IP: a wire, or a bridge (or several) with its wires.
type segment struct {
	index   int // from 1
	name    string
	subnets []netip.Prefix
	members []*planIface // bridge ports excluded
	realm   [2]int       // by family; segments of one realm share an address space
}

type planRoute struct {
	to     netip.Prefix
	via    []nextHop
	reject string
	hops   [2]int // that alone have it, or zero
}

type nextHop struct {
	iface   *planIface
	gateway netip.Addr
}

func newPlan(t *Topology) (*plan, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	p := &plan{topology: t, byName: map[string]*planNode{}, announce: announcements{}}
	p.addNodes()
	if err := p.addWires(); err != nil {
		return nil, err
	}
	if err := p.addAddresses(); err != nil {
		return nil, err
	}
	p.findRealms()
	if err := p.checkOverlaps(); err != nil {
		return nil, err
	}
	if err := p.addAnnouncements(); err != nil {
		return nil, err
	}
	tables, err := p.findRoutes(p.announce)
	if err != nil {
		return nil, err
	}
	for i, n := range p.nodes {
		n.routes = tables[i]
	}
	return p, nil
}

// A routing is what all nodes know: the routes of each, by its index and then by destination.
type routing [][]planRoute

// findRoutes are the routes of all nodes while prefixes are announced so.
func (p *plan) findRoutes(announced announcements) (routing, error) {
	t := make(routing, len(p.nodes))
	p.addAutomaticRoutes(t, announced)
	if err := p.addExplicitRoutes(t); err != nil {
		return nil, err
	}
	for _, routes := range t {
		slices.SortFunc(routes, func(a, b planRoute) int { return comparePrefix(a.to, b.to) })
	}
	return t, nil
}

func (p *plan) addNodes() {
	add := func(name string, kind Kind, loopback []netip.Prefix, announce []AnnounceConfig) {
		n := &planNode{name: name, kind: kind, loopback: slices.Clip(loopback), announce: announce, hops: 1}
		p.nodes = append(p.nodes, n)
		p.byName[name] = n
	}
	for name, h := range p.topology.Hosts {
		add(name, KindHost, h.Addresses, h.Announce)
	}
	for name, r := range p.topology.Routers {
		add(name, KindRouter, r.Addresses, r.Announce)
		p.byName[name].user = r.Adjustable || r.Hops > 1 || !reflect.ValueOf(r.Behaviour).IsZero()
		p.byName[name].hops = max(1, r.Hops)
	}
	for name := range p.topology.Bridges {
		add(name, KindBridge, nil, nil)
	}
	for name, n := range p.topology.NATs {
		add(name, KindNAT, n.Addresses, nil)
		p.byName[name].user = true
	}
	slices.SortFunc(p.nodes, func(a, b *planNode) int { return cmp.Compare(a.name, b.name) })
	for i, n := range p.nodes {
		n.index = i
		if n.hops > 1 {
			for hop := range n.hops {
				addrs := n.hopAddresses(hop)
				n.loopback = append(n.loopback, addrs[:]...)
			}
		}
	}
}

// ofHop reports whether an address of the loopback interface is that of a hop.
func (n *planNode) ofHop(a netip.Prefix) bool {
	for hop := range n.hops {
		if addrs := n.hopAddresses(hop); n.hops > 1 && slices.Contains(addrs[:], a) {
			return true
		}
	}
	return false
}

// hopAddresses are those of one of the routers that a router stands for, counted from 0, each with the network of all.
func (n *planNode) hopAddresses(hop int) [2]netip.Prefix {
	v4 := [4]byte{10, 128 + byte(n.index>>8), byte(n.index), byte(hop + 1)}
	v6 := [16]byte{0xfd, 0x00, 0x01, 0xab, 5: 1, 15: byte(hop + 1)}
	binary.BigEndian.PutUint16(v6[6:], uint16(n.index))
	return [2]netip.Prefix{netip.PrefixFrom(netip.AddrFrom4(v4), 24), netip.PrefixFrom(netip.AddrFrom16(v6), 64)}
}

// addWires makes the interfaces and gathers them into segments.
func (p *plan) addWires() error {
	lans := make(forest, len(p.nodes)) // bridges that are wired together are one LAN
	for i := range lans {
		lans[i] = i
	}
	for i := range p.topology.Wires {
		w := &p.topology.Wires[i]
		a, b := p.byName[w.Ends[0]], p.byName[w.Ends[1]]
		pair := [2]*planIface{}
		for end, n := range []*planNode{a, b} {
			peer := []*planNode{b, a}[end]
			f := &planIface{
				node: n, peer: peer, name: interfaceName(n, peer.name), wire: i, end: end,
				mtu: cmp.Or(w.MTU, 1500), cost: w.cost(end),
				// Locally administered; the wire and its end make it unique and stable.
				mac: net.HardwareAddr{0x02, 0xfa, byte(i >> 16), byte(i >> 8), byte(i), byte(end + 1)},
			}
			n.ifaces = append(n.ifaces, f)
			pair[end] = f
		}
		p.wires = append(p.wires, pair)
		if a.kind == KindBridge && b.kind == KindBridge && !lans.union(a.index, b.index) {
			return bad("wire %d (%s - %s): closes a loop of bridges, which would carry broadcasts round forever", i+1, a.name, b.name)
		}
	}
	byLAN := map[int]*segment{}
	for i, pair := range p.wires {
		var seg *segment
		for _, f := range pair {
			if f.node.kind == KindBridge {
				seg = byLAN[lans.find(f.node.index)]
			}
		}
		if seg == nil {
			seg = &segment{index: len(p.segments) + 1, name: pair[0].node.name + " - " + pair[1].node.name}
			p.segments = append(p.segments, seg)
		}
		for _, f := range pair {
			if f.node.kind == KindBridge {
				seg.name = f.node.name
				byLAN[lans.find(f.node.index)] = seg
			} else {
				seg.members = append(seg.members, f)
			}
			f.seg = seg
		}
		seg.subnets = append(seg.subnets, p.topology.Wires[i].Subnets...)
	}
	for _, n := range p.nodes {
		switch n.kind {
		case KindBridge:
			if len(n.ifaces) > 0 {
				seg := n.ifaces[0].seg
				seg.subnets = append(seg.subnets, p.topology.Bridges[n.name].Subnets...)
			}
		case KindNAT:
			outside := p.topology.NATs[n.name].Outside
			for _, f := range n.ifaces {
				if f.peer.name != outside {
					continue
				}
				if n.outside != nil {
					return bad("nat %s: two wires lead to %s; outside must be one", n.name, outside)
				}
				n.outside = f
			}
			if n.outside == nil {
				return bad("nat %s: outside: no wire leads to %q", n.name, outside)
			}
		case KindHost, KindRouter: // all is said at the wires
		}
	}
	return nil
}

// interfaceName names an interface after what it leads to, as far as the kernel's 15 bytes allow.
func interfaceName(n *planNode, peer string) string {
	const longest = 15
	taken := func(s string) bool {
		return slices.ContainsFunc(n.ifaces, func(f *planIface) bool { return f.name == s })
	}
	name := peer[:min(len(peer), longest)]
	for i := 2; taken(name); i++ {
		suffix := fmt.Sprintf(".%d", i)
		name = peer[:min(len(peer), longest-len(suffix))] + suffix
	}
	return name
}

func (p *plan) addAddresses() error {
	for _, seg := range p.segments {
		if err := checkSubnets(seg.subnets); err != nil {
			return bad("%s: %w", seg.name, err)
		}
		explicit := func(f *planIface) []netip.Prefix { return p.topology.Wires[f.wire].Addresses[f.end] }
		given := len(seg.subnets) > 0
		for _, f := range seg.members {
			for _, a := range explicit(f) {
				within := slices.ContainsFunc(seg.subnets, func(s netip.Prefix) bool { return s == a.Masked() })
				if given && !within {
					return bad("%s: address %s of %s is outside the subnets %v", seg.name, a, f.node.name, seg.subnets)
				}
				if !within {
					seg.subnets = append(seg.subnets, a.Masked())
				}
			}
		}
		if len(seg.subnets) == 0 {
			seg.subnets = automaticSubnets(seg.index)
		}
		used := map[netip.Addr]*planIface{}
		for _, f := range seg.members {
			for _, a := range explicit(f) {
				if other := used[a.Addr()]; other != nil {
					return bad("%s: duplicate address %s: %s and %s", seg.name, a.Addr(), other.node.name, f.node.name)
				}
				used[a.Addr()] = f
				f.addrs = append(f.addrs, a)
			}
		}
		var last [2]netip.Addr // of the automatic ones, by family: they go upwards
		var seen [2]bool
		for _, subnet := range seg.subnets {
			v := family(subnet.Addr())
			if seen[v] {
				continue // a second explicit subnet of a version: no automatic addresses in it
			}
			seen[v] = true
			for _, f := range seg.members {
				if len(explicit(f)) > 0 {
					continue
				}
				a := nextAddress(subnet, last[v])
				for a.IsValid() && used[a] != nil {
					a = nextAddress(subnet, a)
				}
				if !a.IsValid() {
					return bad("%s: subnet %s is too small for its %d interfaces", seg.name, subnet, len(seg.members))
				}
				last[v] = a
				used[a] = f
				f.addrs = append(f.addrs, netip.PrefixFrom(a, subnet.Bits()))
			}
		}
	}
	return nil
}

// automaticSubnets are 10.H.L.0/24 and fd00:1ab:0:N::/64 of segment N = 256 H + L.
func automaticSubnets(index int) []netip.Prefix {
	v4 := [4]byte{10, byte(index >> 8), byte(index), 0}
	v6 := [16]byte{0xfd, 0x00, 0x01, 0xab}
	binary.BigEndian.PutUint16(v6[6:], uint16(index))
	return []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4(v4), 24), netip.PrefixFrom(netip.AddrFrom16(v6), 64)}
}

// nextAddress is the first usable address of the subnet after a, or the zero Addr.
func nextAddress(subnet netip.Prefix, a netip.Addr) netip.Addr {
	wide := subnet.Addr().BitLen()-subnet.Bits() >= 2 // /31 and /127 have neither network nor broadcast address
	switch {
	case a.IsValid():
		a = a.Next()
	case wide:
		a = subnet.Addr().Next()
	default:
		a = subnet.Addr()
	}
	if !a.IsValid() || !subnet.Contains(a) || wide && a.Is4() && !subnet.Contains(a.Next()) {
		return netip.Addr{}
	}
	return a
}

// findRealms joins the segments that nodes connect. IPv4 beyond a NAT is another realm, which may use the
// same addresses.
func (p *plan) findRealms() {
	for v := range 2 {
		realms := make(forest, len(p.segments))
		for i := range realms {
			realms[i] = i
		}
		for _, n := range p.nodes {
			first := -1
			for _, f := range n.ifaces {
				if v == 0 && f == n.outside {
					continue
				}
				if first >= 0 {
					realms.union(first, f.seg.index-1)
				}
				first = f.seg.index - 1
			}
		}
		for i, seg := range p.segments {
			seg.realm[v] = realms.find(i)
		}
	}
}

func (p *plan) checkOverlaps() error {
	type entry struct {
		prefix netip.Prefix
		realm  int
		name   string
	}
	var all []entry
	for _, seg := range p.segments {
		for _, s := range seg.subnets {
			all = append(all, entry{s, seg.realm[family(s.Addr())], seg.name})
		}
	}
	slices.SortFunc(all, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.realm, b.realm), comparePrefix(a.prefix, b.prefix))
	})
	for i := 1; i < len(all); i++ {
		if a, b := all[i-1], all[i]; a.realm == b.realm && a.prefix.Overlaps(b.prefix) {
			return bad("subnets %s of %s and %s of %s overlap", a.prefix, a.name, b.prefix, b.name)
		}
	}
	ifaces := map[netip.Addr][]*planIface{}
	for _, seg := range p.segments {
		for _, f := range seg.members {
			for _, a := range f.addrs {
				ifaces[a.Addr()] = append(ifaces[a.Addr()], f)
			}
		}
	}
	for _, n := range p.nodes {
		for i, f := range n.ifaces {
			for _, g := range n.ifaces[:i] {
				if f.seg == g.seg && n.kind != KindBridge {
					return bad("%s has two wires to %s", n.name, f.seg.name)
				}
				for _, s := range f.seg.subnets {
					for _, r := range g.seg.subnets {
						if f.seg != g.seg && s.Overlaps(r) {
							return bad("subnets %s of %s and %s of %s overlap at %s", s, f.seg.name, r, g.seg.name, n.name)
						}
					}
				}
			}
		}
		for _, a := range n.loopback {
			for _, f := range ifaces[a.Addr()] {
				if f.node == n || len(n.ifaces) == 0 || f.seg.realm[family(a.Addr())] == n.realm(family(a.Addr())) {
					return bad("duplicate address %s: of %s, and of %s on %s", a.Addr(), n.name, f.node.name, f.seg.name)
				}
			}
		}
	}
	return nil
}

// realm is where the node's own addresses are known: a NAT's are outside.
func (n *planNode) realm(v int) int {
	if n.outside != nil {
		return n.outside.seg.realm[v]
	}
	return n.ifaces[0].seg.realm[v]
}

// A destination is a prefix and the nodes that have reached it.
type destination struct {
	to    netip.Prefix
	seg   *segment    // or nil
	nodes []*planNode // that announce the prefix, which is on their loopback interface
}

func (p *plan) addAutomaticRoutes(t routing, announced announcements) {
	var dests []destination
	for _, seg := range p.segments {
		for _, s := range seg.subnets {
			dests = append(dests, destination{to: s, seg: seg})
		}
	}
	owners := map[netip.Prefix][]*planNode{}
	for _, n := range p.nodes {
		for _, prefix := range n.prefixes() {
			if !announced[holding{n, prefix}].Withdrawn {
				owners[prefix] = append(owners[prefix], n)
			}
		}
	}
	for _, to := range slices.SortedFunc(maps.Keys(owners), comparePrefix) {
		dests = append(dests, destination{to: to, nodes: owners[to]})
	}
	for _, d := range dests {
		p.route(t, d, announced)
	}
	for i, n := range p.nodes {
		if n.kind == KindHost {
			t[i] = defaultRoutes(t[i])
		}
	}
}

// route finds the shortest paths of all nodes to one destination, from the destination outwards
// (Dijkstra), and gives each node the first hops of all its shortest paths. It returns their lengths, by node.
func (p *plan) route(t routing, d destination, announced announcements) []int {
	const far = math.MaxInt
	v := family(d.to.Addr())
	dist := make([]int, len(p.nodes))
	origin := make([]bool, len(p.nodes)) // packets end here, whatever is nearer
	inward := make([]bool, len(p.nodes)) // a NAT whose IPv4 path leads inside offers it to nobody outside
	via := make([][]nextHop, len(p.nodes))
	for i := range dist {
		dist[i] = far
	}
	var queue nodeQueue
	if d.seg != nil {
		for _, f := range d.seg.members {
			if f.addr(v).IsValid() {
				dist[f.node.index], origin[f.node.index] = 0, true
				inward[f.node.index] = v == 0 && f.node.outside != f
				queue = append(queue, queued{0, f.node.index})
			}
		}
	}
	for _, n := range d.nodes {
		dist[n.index], origin[n.index] = announced[holding{n, d.to}].Cost, true
		queue = append(queue, queued{dist[n.index], n.index})
	}
	heap.Init(&queue)
	for len(queue) > 0 {
		q := heap.Pop(&queue).(queued)
		n := p.nodes[q.node]
		// What comes to a node that has the prefix goes no further, even while the node announces it to nobody.
		ends := !n.forwards() || n.holds(d.to)
		if q.dist > dist[q.node] || ends && !origin[q.node] || n.kind == KindHost && d.seg != nil {
			continue
		}
		for _, f := range n.ifaces {
			gateway := f.addr(v)
			if !gateway.IsValid() || f == n.outside && inward[n.index] {
				continue
			}
			for _, g := range f.seg.members {
				u := g.node
				if u == n || !g.addr(v).IsValid() {
					continue
				}
				switch length := q.dist + g.cost; {
				case length > dist[u.index] || origin[u.index]:
				case length == dist[u.index]:
					via[u.index] = append(via[u.index], nextHop{g, gateway})
				default:
					dist[u.index] = length
					via[u.index] = []nextHop{{g, gateway}}
					inward[u.index] = v == 0 && u.kind == KindNAT && g != u.outside
					heap.Push(&queue, queued{length, u.index})
				}
			}
		}
	}
	for i, hops := range via {
		n := p.nodes[i]
		if len(hops) == 0 || n.has(d.to) {
			continue
		}
		r := planRoute{to: d.to, via: sortHops(hops)}
		at := slices.IndexFunc(t[i], func(old planRoute) bool { return old.to == d.to })
		switch {
		case at < 0:
			t[i] = append(t[i], r)
		case d.seg != nil && d.seg.realm[v] == n.realm(v):
			t[i][at] = r // nearer than the same prefix beyond a NAT
		}
	}
	return dist
}

// has reports whether the node is on that subnet, or has that prefix itself. Behind NATs two
// subnets may have the same prefix, and the own one comes first.
func (n *planNode) has(to netip.Prefix) bool {
	for _, f := range n.ifaces {
		if n.kind != KindBridge && slices.Contains(f.seg.subnets, to) {
			return true
		}
	}
	return n.holds(to)
}

// defaultRoutes replaces a host's routes of one IP version by a default route where all
// have the same next hops.
func defaultRoutes(routes []planRoute) []planRoute {
	var out []planRoute
	for v, to := range defaults {
		var of []planRoute
		same := true
		for _, r := range routes {
			if family(r.to.Addr()) == v {
				of = append(of, r)
				same = same && slices.Equal(r.via, of[0].via)
			}
		}
		if same && len(of) > 0 {
			of = []planRoute{{to: to, via: of[0].via}}
		}
		out = append(out, of...)
	}
	return out
}

var defaults = [2]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

func (p *plan) addExplicitRoutes(tables routing) error {
	t := p.topology
	count := 0
	add := func(at string, routes []RouteConfig) error {
		for _, r := range routes {
			if count++; count > MaxRoutes {
				return bad("more than %d explicit routes", MaxRoutes)
			}
			if r.At != "" && at != "" && r.At != at {
				return bad("%s: route to %q: at = %q is another node", at, r.To, r.At)
			}
			n := p.byName[cmp.Or(at, r.At)]
			if n == nil || n.kind == KindBridge {
				return bad("route to %q: at must name a host, router or NAT, not %q", r.To, r.At)
			}
			if err := p.addExplicitRoute(tables, n, r); err != nil {
				return bad("%s: route to %q: %w", n.name, r.To, err)
			}
		}
		return nil
	}
	for _, n := range p.nodes {
		var routes []RouteConfig
		switch n.kind {
		case KindHost:
			routes = t.Hosts[n.name].Routes
		case KindRouter:
			routes = t.Routers[n.name].Routes
		case KindNAT:
			routes = t.NATs[n.name].Routes
		case KindBridge: // has none
		}
		if err := add(n.name, routes); err != nil {
			return err
		}
	}
	return add("", t.Routes)
}

func (p *plan) addExplicitRoute(t routing, n *planNode, r RouteConfig) error {
	to, err := p.destinations(r.To)
	if err != nil {
		return err
	}
	switch r.Reject {
	case "":
		if len(r.Via) == 0 {
			return fmt.Errorf("needs via or reject")
		}
	case "blackhole", "unreachable", "prohibit":
		if len(r.Via) > 0 {
			return fmt.Errorf("has both via and reject")
		}
	default:
		return fmt.Errorf("reject %q is not blackhole, unreachable or prohibit", r.Reject)
	}
	if r.Hops != [2]int{} && (n.hops == 1 || r.Hops[0] < 1 || r.Hops[1] < r.Hops[0] || r.Hops[1] > n.hops) {
		return fmt.Errorf("hops %d to %d are not among its %d", r.Hops[0], r.Hops[1], n.hops)
	}
	added := false
	for _, prefix := range to {
		var hops []nextHop
		for _, via := range r.Via {
			found, err := n.nextHops(via, family(prefix.Addr()))
			if err != nil {
				return err
			}
			hops = append(hops, found...)
		}
		if len(hops) == 0 && r.Reject == "" {
			continue // a next hop without this IP version
		}
		if n.has(prefix) {
			return fmt.Errorf("%s is directly connected", prefix)
		}
		added = true
		t[n.index] = slices.DeleteFunc(t[n.index], func(old planRoute) bool { return old.to == prefix && old.hops == r.Hops })
		t[n.index] = append(t[n.index], planRoute{to: prefix, via: sortHops(hops), reject: r.Reject, hops: r.Hops})
	}
	if !added {
		return fmt.Errorf("no next hop of the same IP version")
	}
	return nil
}

// destinations are the prefixes that a route's To stands for.
func (p *plan) destinations(to string) ([]netip.Prefix, error) {
	if to == "default" {
		return defaults[:], nil
	}
	if n := p.byName[to]; n != nil {
		var out []netip.Prefix
		for _, a := range n.addresses() {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
		if len(out) == 0 {
			return nil, fmt.Errorf("%s has no addresses", to)
		}
		return out, nil
	}
	var text prefixText
	if err := text.UnmarshalText([]byte(to)); err != nil {
		return nil, fmt.Errorf("%q is not a node, an address, a prefix or default", to)
	}
	if text.Prefix != text.Masked() {
		return nil, fmt.Errorf("%s has host bits set; did you mean %s?", to, text.Masked())
	}
	if text.Addr().Is4In6() {
		return nil, fmt.Errorf("%s is an IPv4 prefix in IPv6 clothes", to)
	}
	return []netip.Prefix{text.Prefix}, nil
}

// addresses are all of a node's, service addresses first.
func (n *planNode) addresses() []netip.Addr {
	var out []netip.Addr
	for _, a := range n.loopback {
		out = append(out, a.Addr())
	}
	for _, f := range n.ifaces {
		for _, a := range f.addrs {
			out = append(out, a.Addr())
		}
	}
	return out
}

// nextHops are the ways from n to a neighbour, which is named or given by address.
func (n *planNode) nextHops(via string, v int) ([]nextHop, error) {
	if a, err := netip.ParseAddr(via); err == nil {
		for _, f := range n.ifaces {
			for _, s := range f.seg.subnets {
				if s.Contains(a) && f.addr(v).IsValid() {
					if family(a) != v {
						return nil, nil
					}
					return []nextHop{{f, a}}, nil
				}
			}
		}
		return nil, fmt.Errorf("via %s: no interface is on that network", via)
	}
	neighbour := false
	var out []nextHop
	for _, f := range n.ifaces {
		for _, g := range f.seg.members {
			if g.node.name != via || g.node == n {
				continue
			}
			neighbour = true
			if a := g.addr(v); a.IsValid() && f.addr(v).IsValid() {
				out = append(out, nextHop{f, a})
			}
		}
	}
	if !neighbour {
		return nil, fmt.Errorf("via %q is not a neighbour", via)
	}
	return out, nil
}

// sortHops orders next hops by interface and drops doubles, so that a plan is the same each time.
func sortHops(hops []nextHop) []nextHop {
	slices.SortFunc(hops, func(a, b nextHop) int {
		return cmp.Or(cmp.Compare(a.iface.wire, b.iface.wire), a.gateway.Compare(b.gateway))
	})
	return slices.Compact(hops)
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// forest is a union-find structure: each element points towards its root.
type forest []int

func (f forest) find(i int) int {
	for f[i] != i {
		f[i] = f[f[i]]
		i = f[i]
	}
	return i
}

// union joins two trees; it reports false if they were one already.
func (f forest) union(i, j int) bool {
	i, j = f.find(i), f.find(j)
	if i == j {
		return false
	}
	f[max(i, j)] = min(i, j)
	return true
}

type queued struct{ dist, node int }

type nodeQueue []queued

func (q nodeQueue) Len() int           { return len(q) }
func (q nodeQueue) Less(i, j int) bool { return q[i].dist < q[j].dist }
func (q nodeQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *nodeQueue) Push(x any)        { *q = append(*q, x.(queued)) }
func (q *nodeQueue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}
