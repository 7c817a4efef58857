// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"runtime"
	"slices"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/lab/dataplane"
)

// A Wire is a wire of a running lab.
type Wire struct {
	config  *WireConfig
	carrier *dataplane.Wire // nil: a plain veth pair
}

// Wire is the wire between two nodes, or [ErrNoWire]. Of several it is the first in the topology;
// [Lab.Wires] has them all.
func (l *Lab) Wire(a, b string) (*Wire, error) {
	for _, w := range l.wires {
		if w.config.Ends == [2]string{a, b} || w.config.Ends == [2]string{b, a} {
			return w, nil
		}
	}
	return nil, fmt.Errorf("%w: %s - %s in lab %s", ErrNoWire, a, b, l.plan.topology.label())
}

// Wires are all wires, in the order of the topology.
func (l *Lab) Wires() []*Wire { return slices.Clone(l.wires) }

// Ends are the names of the nodes at its ends.
func (w *Wire) Ends() [2]string { return w.config.Ends }

// Plain reports whether the wire is a bare veth pair, which has neither impairments nor counters.
func (w *Wire) Plain() bool { return w.carrier == nil }

// Impairment is what the wire does at present to what goes from a node to the other.
func (w *Wire) Impairment(from string) (Impairment, error) {
	d, err := w.from(from)
	if err != nil || w.carrier == nil {
		return Impairment{}, err
	}
	return w.carrier.Params(d), nil
}

// Set changes what the wire does in both directions. Frames under way keep their time. It returns
// [ErrPlainWire] for a plain wire, and [ErrTopology] for an impairment that makes no sense.
func (w *Wire) Set(i Impairment) error {
	for _, from := range w.config.Ends {
		if err := w.SetFrom(from, i); err != nil {
			return err
		}
	}
	return nil
}

// SetFrom changes what the wire does to what goes from a node to the other, as Set does for both.
func (w *Wire) SetFrom(from string, i Impairment) error {
	d, err := w.from(from)
	if err != nil {
		return err
	}
	if err := checkImpairment(&i); err != nil {
		return bad("wire %s - %s: %w", w.config.Ends[0], w.config.Ends[1], err)
	}
	if w.carrier == nil {
		return fmt.Errorf("wire %s - %s: %w; declare it with adjustable = true", w.config.Ends[0], w.config.Ends[1], ErrPlainWire)
	}
	return w.carrier.Set(d, i)
}

// Counters count the frames from a node to the other. A plain wire counts nothing.
func (w *Wire) Counters(from string) (WireCounters, error) {
	d, err := w.from(from)
	switch {
	case err != nil:
		return WireCounters{}, err
	case w.carrier == nil:
		return WireCounters{}, fmt.Errorf("wire %s - %s: %w", w.config.Ends[0], w.config.Ends[1], ErrPlainWire)
	}
	return w.carrier.Counters(d), nil
}

func (w *Wire) from(node string) (dataplane.Direction, error) {
	switch node {
	case w.config.Ends[0]:
		return dataplane.Forward, nil
	case w.config.Ends[1]:
		return dataplane.Backward, nil
	}
	return 0, fmt.Errorf("%w: %s is not an end of the wire %s - %s", ErrNoNode, node, w.config.Ends[0], w.config.Ends[1])
}

// startWire carries frames between two veth ends in the wiring namespace.
func (l *Lab) startWire(i int, inner [2]string) error {
	config := &l.plan.topology.Wires[i]
	if err := l.startEngine(); err != nil {
		return err
	}
	for _, f := range l.plan.wires[i] {
		err := l.nodes[f.node.index].ns.do(func() error { return rawio.DisableOffload(f.name) })
		if err != nil {
			return err
		}
	}
	var conns [2]*rawio.FrameConn
	err := l.wiring.do(func() error {
		for e, name := range inner {
			if err := rawio.DisableOffload(name); err != nil {
				return err
			}
			var err error
			if conns[e], err = rawio.OpenFrameConn(name, rawio.FrameOptions{Promiscuous: true}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		if conns[0] != nil {
			conns[0].Close()
		}
		return err
	}
	seed := config.Seed
	if seed == 0 {
		seed = uint64(i) + 1
	}
	carrier, err := l.engine.AddWire(conns, dataplane.WireConfig{
		Name: config.Ends[0] + " - " + config.Ends[1], Seed: seed,
		Forward: config.direction(dataplane.Forward), Backward: config.direction(dataplane.Backward),
	})
	if err != nil {
		return err
	}
	l.wires[i] = &Wire{config: config, carrier: carrier}
	return nil
}

// spareProcessors are those that the runtime gets beyond the machine's: one for the engine, one for
// a goroutine that is about to leave its system call.
const spareProcessors = 2

// startEngine starts the engine of the lab's wires and routers when the first of them needs it.
func (l *Lab) startEngine() error {
	if l.engine != nil {
		return nil
	}
	engine, err := dataplane.NewEngine()
	if err != nil {
		return err
	}
	engine.Gather(l.gather)
	l.engine = engine
	// The engine keeps frames to the tenth of a millisecond only if it need not wait for one of the
	// runtime's processors: with all of them busy with the program's own work a wire of 10 ms takes 15.
	if want := runtime.NumCPU() + spareProcessors; runtime.GOMAXPROCS(0) < want {
		runtime.GOMAXPROCS(want)
	}
	l.spawn(func() { l.engineErr = engine.Run(l.ctx) })
	return nil
}

// A Router is a user-space router of a running lab.
type Router struct {
	name      string
	dataplane *dataplane.Router
}

// Router is the user-space router or NAT of that name. It returns [ErrNoNode] if there is none,
// and [ErrKernelRouter] if it is the kernel that routes.
func (l *Lab) Router(name string) (*Router, error) {
	n := l.plan.byName[name]
	if n == nil || !n.forwards() {
		return nil, fmt.Errorf("%w: %q is not a router of lab %s", ErrNoNode, name, l.plan.topology.label())
	}
	r := l.routers[n.index]
	if r == nil {
		return nil, fmt.Errorf("router %s: %w; declare it with adjustable = true", name, ErrKernelRouter)
	}
	return r, nil
}

// routerConfig says a plan's node in the words of the data plane, whose ports are the node's interfaces.
func routerConfig(t *Topology, n *planNode) dataplane.RouterConfig {
	c := dataplane.RouterConfig{Name: n.name}
	for _, a := range n.loopback {
		if !n.ofHop(a) {
			c.Addrs = append(c.Addrs, a.Addr())
		}
	}
	for _, f := range n.ifaces {
		c.Ports = append(c.Ports, dataplane.PortConfig{MAC: f.mac, MTU: f.mtu, Addrs: f.addrs, Neighbours: f.neighbours()})
	}
	c.Routes = routerRoutes(n, n.routes, 0)
	c.Hops = routerHops(n)
	if n.kind == KindRouter {
		c.Behaviour = t.Routers[n.name].Behaviour
		return c
	}
	config := t.NATs[n.name]
	c.Behaviour = config.Behaviour
	nat := &dataplane.NATConfig{
		Outside: slices.Index(n.ifaces, n.outside), Address: n.outside.addr(0), Ports: config.Ports,
		Hairpin: config.Hairpin, UDPTimeout: config.Timeout,
	}
	switch config.Type {
	case PortRestrictedCone:
		nat.Filtering = dataplane.AddressAndPortDependent
	case RestrictedCone:
		nat.Filtering = dataplane.AddressDependent
	case FullCone:
	case Symmetric:
		nat.Mapping, nat.Filtering = dataplane.AddressAndPortDependent, dataplane.AddressAndPortDependent
	}
	c.NAT = nat
	return c
}

// routerHops says what routers a node stands for, if there are several.
func routerHops(n *planNode) []dataplane.HopConfig {
	if n.hops == 1 {
		return nil
	}
	hops := make([]dataplane.HopConfig, n.hops)
	for i := range hops {
		for _, a := range n.hopAddresses(i) {
			hops[i].Addrs = append(hops[i].Addrs, a.Addr())
		}
		hops[i].Routes = routerRoutes(n, n.routes, i+1)
	}
	return hops
}

// routerRoutes says routes in the words of the data plane: those of a hop of the node, counted from 1, or with 0
// those of the node as a whole.
func routerRoutes(n *planNode, routes []planRoute, hop int) []dataplane.Route {
	var out []dataplane.Route
	for _, r := range routes {
		if r.hops[0] > hop || r.hops[1] < hop {
			continue
		}
		route := dataplane.Route{Prefix: r.to, Reject: rejects[r.reject]}
		for _, hop := range r.via {
			route.NextHops = append(route.NextHops, dataplane.NextHop{Port: slices.Index(n.ifaces, hop.iface), Gateway: hop.gateway})
		}
		out = append(out, route)
	}
	return out
}

var rejects = map[string]dataplane.Reject{
	"blackhole": dataplane.Blackhole, "unreachable": dataplane.Unreachable, "prohibit": dataplane.Prohibit,
}

// stringRing is how many frames each port of a router that stands for several may get at once: what all of those
// would hold, and what a few hundred traceroutes send before anything is answered.
const stringRing = 8192

// startRouter gives the interfaces of a node to a router in user space.
func (l *Lab) startRouter(h *Host) error {
	if err := l.startEngine(); err != nil {
		return err
	}
	conns := make([]*rawio.FrameConn, 0, len(h.plan.ifaces))
	err := h.ns.do(func() error {
		for _, f := range h.plan.ifaces {
			if err := rawio.DisableOffload(f.name); err != nil {
				return err
			}
			var o rawio.FrameOptions
			if h.plan.hops > 1 {
				o.RingFrames = stringRing
			}
			c, err := rawio.OpenFrameConn(f.name, o)
			if err != nil {
				return err
			}
			conns = append(conns, c)
		}
		return nil
	})
	if err != nil {
		for _, c := range conns {
			c.Close()
		}
		return err
	}
	// What the neighbours send must be finished frames, too.
	for _, f := range h.plan.ifaces {
		pair := l.plan.wires[f.wire]
		peer := pair[1-f.end]
		if err := l.nodes[peer.node.index].ns.do(func() error { return rawio.DisableOffload(peer.name) }); err != nil {
			for _, c := range conns {
				c.Close()
			}
			return err
		}
	}
	r, err := l.engine.AddRouter(conns, routerConfig(l.plan.topology, h.plan))
	if err != nil {
		return err
	}
	l.routers[h.plan.index] = &Router{name: h.plan.name, dataplane: r}
	return nil
}

// Behaviour is how the router behaves at present.
func (r *Router) Behaviour() Behaviour { return r.dataplane.Behaviour() }

// SetBehaviour changes how the router behaves from now on.
func (r *Router) SetBehaviour(b Behaviour) error {
	if err := checkBehaviour(&b); err != nil {
		return bad("router %s: %w", r.name, err)
	}
	return r.dataplane.SetBehaviour(b)
}
