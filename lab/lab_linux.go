// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/seed5728abee/fathom/lab/dataplane"
)

// Options of [Start]. The zero value works.
type Options struct {
	// HostsFile makes the names of nodes resolve inside the lab, and all other names fail at once, by mounting
	// files over /etc/hosts and /etc/resolv.conf. Only after [Enter], which makes the mounts this
	// process's own, and for one lab at a time.
	HostsFile bool
	// Gather is how long the lab's own routers and carried wires let frames gather once they have moved some, as network
	// cards that moderate their interrupts do. A busy lab does less work for each frame then, and frames are late by up to so
	// much. Default 0: each is moved at once.
	Gather time.Duration
}

// A Lab is a running network.
type Lab struct {
	plan    *plan
	gather  time.Duration // of the options
	nodes   []*Host       // parallel to plan.nodes
	wiring  *namespace
	wires   []*Wire   // parallel to plan.wires
	routers []*Router // parallel to plan.nodes; nil where the kernel routes

	// The engine of the carried wires and the user-space routers; nil if there are none.
	engine    *dataplane.Engine
	engineErr error // of its Run, when tasks have ended
	ctx       context.Context
	cancel    context.CancelFunc

	changing chan struct{} // holds a token while announcements change, which they do one after the other

	routesMu  sync.Mutex // guards what follows
	announced announcements
	routes    routing // that each node has at present

	mu      sync.Mutex // guards the closing of closing, and that nothing joins tasks after it
	closing chan struct{}
	tasks   sync.WaitGroup

	closeOnce sync.Once
	closeErr  error
}

// New builds a lab for a test and closes it with the test. It skips the test where namespaces are
// forbidden, and fails it on any other error.
func New(t testing.TB, topology *Topology) *Lab {
	t.Helper()
	l, err := Start(context.Background(), topology, Options{})
	switch {
	case errors.Is(err, ErrNoNamespaces):
		t.Skipf("lab: %v", err)
	case err != nil:
		t.Fatalf("lab: %v", err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("lab: close: %v", err)
		}
	})
	return l
}

// Start builds a lab. It runs until Close, or until ctx is done. The process needs
// CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW, which [Enter] gives to anyone.
func Start(ctx context.Context, topology *Topology, opts Options) (*Lab, error) {
	p, err := newPlan(topology)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !capable() {
		if enterErr != nil {
			return nil, enterErr
		}
		return nil, fmt.Errorf("%w: this process lacks CAP_SYS_ADMIN, CAP_NET_ADMIN or CAP_NET_RAW; call lab.Enter first, or run as root", ErrNoNamespaces)
	}
	l := &Lab{
		plan: p, gather: opts.Gather, closing: make(chan struct{}), changing: make(chan struct{}, 1), announced: p.announce,
		wires: make([]*Wire, len(p.wires)), routers: make([]*Router, len(p.nodes)),
	}
	for _, n := range p.nodes {
		l.routes = append(l.routes, n.routes)
	}
	l.ctx, l.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := l.build(opts); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	l.spawn(func() {
		<-l.closing
		stop()
	})
	return l, nil
}

func (l *Lab) build(opts Options) error {
	for _, n := range l.plan.nodes {
		ns, err := newNamespace()
		if err != nil {
			if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
				err = noNamespaces(err)
			}
			return fmt.Errorf("%s %s: %w", n.kind, n.name, err)
		}
		h := &Host{lab: l, plan: n, ns: ns}
		l.nodes = append(l.nodes, h)
		if err := ns.setSysctls(h.sysctls()); err != nil {
			return fmt.Errorf("%s %s: %w", n.kind, n.name, err)
		}
	}
	for i := range l.plan.wires {
		if err := l.buildWire(i); err != nil {
			ends := l.plan.topology.Wires[i].Ends
			return fmt.Errorf("wire %d (%s - %s): %w", i+1, ends[0], ends[1], err)
		}
	}
	for _, h := range l.nodes {
		if err := h.configure(); err != nil {
			return fmt.Errorf("%s %s: %w", h.plan.kind, h.plan.name, err)
		}
	}
	for _, h := range l.nodes {
		if h.plan.user {
			if err := l.startRouter(h); err != nil {
				return fmt.Errorf("%s %s: %w", h.plan.kind, h.plan.name, err)
			}
			continue
		}
		for _, r := range h.plan.routes {
			if err := h.addRoute(r); err != nil {
				return fmt.Errorf("%s %s: route to %s: %w", h.plan.kind, h.plan.name, r.to, err)
			}
		}
	}
	for _, h := range l.nodes {
		if err := h.awaitIPv6(l.ctx); err != nil {
			return fmt.Errorf("%s %s: %w", h.plan.kind, h.plan.name, err)
		}
	}
	if opts.HostsFile {
		return mountNames(l.plan.hostsFile())
	}
	return nil
}

// sysctls of the node's namespace. Where user space does the forwarding, or a bridge does, the kernel must
// not speak IP.
func (h *Host) sysctls() []sysctl {
	mute := []sysctl{
		{"ipv6/conf/all/disable_ipv6", []string{"1"}, false},
		{"ipv6/conf/default/disable_ipv6", []string{"1"}, false},
	}
	switch {
	case h.plan.kind == KindBridge || h.plan.user:
		return mute
	case h.plan.kind == KindRouter:
		return slices.Concat(nodeSysctls, routerSysctls)
	}
	return nodeSysctls
}

// buildWire joins two namespaces: with a veth pair, or with two whose inner ends
// user space carries frames between.
func (l *Lab) buildWire(i int) error {
	pair := l.plan.wires[i]
	ends := [2]vethEnd{}
	for e, f := range pair {
		ends[e] = vethEnd{ns: l.nodes[f.node.index].ns, name: f.name, mac: f.mac}
	}
	mtu := pair[0].mtu
	if l.plan.topology.Wires[i].plain() {
		l.wires[i] = &Wire{config: &l.plan.topology.Wires[i]}
		return addVeth(ends[0], ends[1], mtu)
	}
	if l.wiring == nil {
		ns, err := newNamespace()
		if err != nil {
			return err
		}
		l.wiring = ns
		if err := ns.setSysctls([]sysctl{{"ipv6/conf/default/disable_ipv6", []string{"1"}, false}}); err != nil {
			return err
		}
	}
	var inner [2]string
	for e := range ends {
		inner[e] = "w" + strconv.Itoa(i) + string("ab"[e])
		if err := addVeth(ends[e], vethEnd{ns: l.wiring, name: inner[e]}, mtu); err != nil {
			return err
		}
	}
	return l.startWire(i, inner)
}

type vethEnd struct {
	ns   *namespace
	name string
	mac  net.HardwareAddr // nil: the kernel's choice
}

// addVeth makes a veth pair with its ends in two namespaces, and brings both up.
func addVeth(a, b vethEnd, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = a.name, a.mac, mtu
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: b.name, PeerHardwareAddr: b.mac, PeerTxQLen: -1,
		PeerNamespace: netlink.NsFd(b.ns.fd),
	}
	if err := a.ns.netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth pair: %w", err)
	}
	for _, end := range []vethEnd{a, b} {
		link, err := end.ns.netlink.LinkByName(end.name)
		if err != nil {
			return fmt.Errorf("find veth end %s: %w", end.name, err)
		}
		if err := end.ns.netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("bring up %s: %w", end.name, err)
		}
	}
	return nil
}

// bridgeName is the bridge's own interface. Its ports are named after neighbours, which cannot hold a dot at once.
const bridgeName = ".bridge"

// configure gives a kernel node its addresses, or joins the ports of a bridge.
func (h *Host) configure() error {
	if h.plan.user {
		return nil
	}
	if h.plan.kind == KindBridge {
		return h.configureBridge()
	}
	lo, err := h.ns.netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback interface: %w", err)
	}
	for _, a := range h.plan.loopback {
		if err := h.addAddress(lo, a); err != nil {
			return err
		}
		if err := h.addLocalNetwork(lo, a); err != nil {
			return err
		}
	}
	for _, f := range h.plan.ifaces {
		link, err := h.ns.netlink.LinkByName(f.name)
		if err != nil {
			return fmt.Errorf("find interface %s: %w", f.name, err)
		}
		for _, a := range f.addrs {
			if err := h.addAddress(link, a); err != nil {
				return err
			}
		}
		if err := h.addNeighbours(link, f); err != nil {
			return err
		}
	}
	return nil
}

// ipv6Wait bounds how long a new interface may take to speak IPv6. It is done within a second.
const ipv6Wait = 5 * time.Second

// awaitIPv6 waits until the node hears neighbour solicitations on all its interfaces, and takes what is sent to its
// addresses. The kernel joins the multicast groups when it notices that the link is up, and makes the route of an
// address when it is done with duplicate address detection, off as that is: both in its own time.
func (h *Host) awaitIPv6(ctx context.Context) error {
	if h.plan.user || h.plan.kind == KindBridge {
		return nil
	}
	for deadline := time.Now().Add(ipv6Wait); ; {
		var routes []byte
		if err := h.ns.do(func() (err error) {
			routes, err = os.ReadFile("/proc/thread-self/net/ipv6_route")
			return err
		}); err != nil {
			return err
		}
		waiting := ""
		for _, f := range h.plan.ifaces {
			if f.addr(1).IsValid() && !hasMulticastRoute(routes, f.name) {
				waiting = f.name
			}
		}
		for _, a := range h.plan.addresses() {
			if a.Is6() && !hasLocalRoute(routes, a) {
				waiting = a.String()
			}
		}
		switch {
		case waiting == "":
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("%s is there but does not speak IPv6 after %v", waiting, ipv6Wait)
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// hasMulticastRoute looks for ff00::/8 in the text of /proc/net/ipv6_route: destination and prefix
// length come first, the interface last.
func hasMulticastRoute(routes []byte, iface string) bool {
	for line := range bytes.Lines(routes) {
		f := bytes.Fields(line)
		if len(f) > 2 && string(f[0]) == "ff000000000000000000000000000000" && string(f[1]) == "08" && string(f[len(f)-1]) == iface {
			return true
		}
	}
	return false
}

// hasLocalRoute looks for the route by which an address of the node's own is delivered: the flags
// come last but one.
func hasLocalRoute(routes []byte, a netip.Addr) bool {
	dest := hex.EncodeToString(a.AsSlice())
	for line := range bytes.Lines(routes) {
		f := bytes.Fields(line)
		if len(f) < 3 || string(f[0]) != dest || string(f[1]) != "80" {
			continue
		}
		if flags, err := strconv.ParseUint(string(f[len(f)-2]), 16, 32); err == nil && flags&unix.RTF_LOCAL != 0 {
			return true
		}
	}
	return false
}

// staticNeighbours bounds the networks whose members know each other's link addresses from the start, so that not
// even the first packet waits for an answer over a slow wire. In larger ones the tables would
// take longer to fill than they save.
const staticNeighbours = 32

// neighbours are the members of an interface's network with their addresses, if it is small enough.
func (f *planIface) neighbours() []dataplane.Neighbour {
	if len(f.seg.members) > staticNeighbours {
		return nil
	}
	var all []dataplane.Neighbour
	for _, g := range f.seg.members {
		for _, a := range g.addrs {
			if g != f && f.addr(family(a.Addr())).IsValid() {
				all = append(all, dataplane.Neighbour{Addr: a.Addr(), MAC: g.mac})
			}
		}
	}
	return all
}

func (h *Host) addNeighbours(link netlink.Link, f *planIface) error {
	for _, n := range f.neighbours() {
		err := h.ns.netlink.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
			IP: n.Addr.AsSlice(), HardwareAddr: n.MAC,
		})
		if err != nil {
			return fmt.Errorf("add neighbour %s: %w", n.Addr, err)
		}
	}
	return nil
}

func (h *Host) addAddress(link netlink.Link, a netip.Prefix) error {
	addr := &netlink.Addr{IPNet: ipNet(a)}
	if a.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := h.ns.netlink.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add address %s to %s: %w", a, link.Attrs().Name, err)
	}
	return nil
}

// addLocalNetwork makes the node answer for all addresses of a network on its loopback interface. For
// IPv4 the kernel does so by itself.
func (h *Host) addLocalNetwork(lo netlink.Link, a netip.Prefix) error {
	if a.Addr().Is4() || a.IsSingleIP() {
		return nil
	}
	err := h.ns.netlink.RouteAdd(&netlink.Route{
		Dst: ipNet(a.Masked()), LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL,
	})
	if err != nil {
		return fmt.Errorf("answer for %s: %w", a.Masked(), err)
	}
	return nil
}

func (h *Host) configureBridge() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeName
	// Without a querier, snooping may hold back multicast, neighbour discovery included.
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: new(false)}
	if err := h.ns.netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	for _, f := range h.plan.ifaces {
		port, err := h.ns.netlink.LinkByName(f.name)
		if err != nil {
			return fmt.Errorf("find port %s: %w", f.name, err)
		}
		if err := h.ns.netlink.LinkSetMaster(port, bridge); err != nil {
			return fmt.Errorf("add port %s: %w", f.name, err)
		}
	}
	if err := h.ns.netlink.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("bring up bridge: %w", err)
	}
	return nil
}

func (h *Host) addRoute(r planRoute) error {
	route, err := h.kernelRoute(r)
	if err != nil {
		return err
	}
	return h.ns.netlink.RouteAdd(route)
}

// kernelRoute says a route in the words of the kernel.
func (h *Host) kernelRoute(r planRoute) (*netlink.Route, error) {
	route := &netlink.Route{Dst: ipNet(r.to)}
	switch r.reject {
	case "blackhole":
		route.Type = unix.RTN_BLACKHOLE
	case "unreachable":
		route.Type = unix.RTN_UNREACHABLE
	case "prohibit":
		route.Type = unix.RTN_PROHIBIT
	}
	for _, hop := range r.via {
		link, err := h.ns.netlink.LinkByName(hop.iface.name)
		if err != nil {
			return nil, fmt.Errorf("find interface %s: %w", hop.iface.name, err)
		}
		route.MultiPath = append(route.MultiPath, &netlink.NexthopInfo{
			LinkIndex: link.Attrs().Index, Gw: hop.gateway.AsSlice(),
		})
	}
	if len(route.MultiPath) == 1 {
		route.LinkIndex, route.Gw = route.MultiPath[0].LinkIndex, route.MultiPath[0].Gw
		route.MultiPath = nil
	}
	return route, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// noResolver is an /etc/resolv.conf for a network without name servers: the address of the loopback interface
// refuses at once, where the machine's name servers, which cannot be reached, would be waited for.
const noResolver = "# A lab has no name servers; /etc/hosts has its names.\nnameserver 127.0.0.1\noptions timeout:1 attempts:1\n"

// mountNames puts a file over /etc/hosts, and [noResolver] over /etc/resolv.conf, in this process's mount
// namespace. The files live in a tmpfs that is unmounted at once; only the mounts over the others keep it.
func mountNames(hosts string) error {
	const scratch = "/mnt"
	// The largest topology file of the shortest addresses and longest names makes less than 16 MB.
	if err := unix.Mount("tmpfs", scratch, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=16m,mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs for the hosts file: %w", err)
	}
	defer func() { _ = unix.Unmount(scratch, unix.MNT_DETACH) }() // at worst it stays, in our own mounts
	for _, f := range []struct{ name, text string }{{"hosts", hosts}, {"resolv.conf", noResolver}} {
		path := filepath.Join(scratch, f.name)
		if err := os.WriteFile(path, []byte(f.text), 0o644); err != nil {
			return fmt.Errorf("write %s: %w", f.name, err)
		}
		err := unix.Mount(path, "/etc/"+f.name, "", unix.MS_BIND, "")
		if errors.Is(err, unix.ENOENT) && f.name == "resolv.conf" {
			continue // resolvers then ask 127.0.0.1 of their own accord
		}
		if err != nil {
			return fmt.Errorf("mount %s: %w", f.name, err)
		}
	}
	return nil
}

// spawn runs f in a goroutine that Close waits for, and reports false if the lab is closed.
// f must return soon after closing is closed.
func (l *Lab) spawn(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed() {
		return false
	}
	l.tasks.Go(f)
	return true
}

func (l *Lab) closed() bool {
	select {
	case <-l.closing:
		return true
	default:
		return false
	}
}

// Topology is what the lab was built from. It must not be changed.
func (l *Lab) Topology() *Topology { return l.plan.topology }

// Close kills every command, stops every wire and router and drops every namespace. It is idempotent.
func (l *Lab) Close() error {
	l.closeOnce.Do(func() {
		l.mu.Lock()
		close(l.closing)
		l.mu.Unlock()
		l.killProcesses()
		l.cancel()
		l.tasks.Wait()
		if l.engine != nil {
			l.closeErr = errors.Join(l.engineErr, l.engine.Close())
		}
		for _, h := range l.nodes {
			h.ns.close()
		}
		if l.wiring != nil {
			l.wiring.close()
		}
	})
	return l.closeErr
}

// killProcesses kills whatever runs in a namespace of the lab: commands, and what they
// started and left behind.
func (l *Lab) killProcesses() {
	ours := map[uint64]bool{}
	for _, h := range l.nodes {
		var st unix.Stat_t
		if unix.Fstat(h.ns.fd, &st) == nil {
			ours[st.Ino] = true
		}
	}
	// A process may fork while we look; a few rounds find its children. Zombies have no namespace.
	for range 10 {
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		found := false
		for _, dir := range dirs {
			pid, err := strconv.Atoi(filepath.Base(dir))
			if err != nil || pid == os.Getpid() {
				continue
			}
			var st unix.Stat_t
			if unix.Stat(dir+"/ns/net", &st) == nil && ours[st.Ino] {
				found = true
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have just ended
			}
		}
		if !found {
			return
		}
	}
}
