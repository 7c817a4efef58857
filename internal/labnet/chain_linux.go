// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package labnet

import (
	"net/netip"

	"github.com/seed5728abee/fathom/lab"
)

// Addresses of [Chain]: those that all sites share, and those of its target.
var (
	Anycast4 = netip.MustParseAddr("192.0.2.1")
	Anycast6 = netip.MustParseAddr("2001:db8::1")
	Target4  = netip.MustParseAddr("203.0.113.1")
	Target6  = netip.MustParseAddr("2001:db8:ffff::1")
)

// Chain is a path of hops, the last of which is the host "target", with sites of one anycast address at its
// beginning. All hops answer at once and without limits. Hop N is routed to the anycast address at
// one of the sites: the first of as many equal parts of the path, in the order of the sites, as there are sites.
//
//	sites[0] --+
//	sites[1] --+-- "path", hops 1 to hops-1 -- "target"
//	sites[2] --+     (one router in user space)
//
// The target's answers come home at the first site. The host "controller" is behind a router "hub", to which
// each site has a second wire, so that what the controller is told does not share the way with probes.
//
// 100,000 probes and their answers cost about 1.0 s of processor time, sending and receiving included, where 19 routers
// of the kernel in a row cost 2.5 s. hops is from 2 to 65.
func Chain(hops int, sites ...string) *lab.Topology {
	t := &lab.Topology{Name: "chain", Hosts: map[string]lab.HostConfig{}, Routers: map[string]lab.RouterConfig{}}
	single := func(addrs ...netip.Addr) (out []netip.Prefix) {
		for _, a := range addrs {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
		return out
	}
	path := lab.RouterConfig{Hops: hops - 1, Adjustable: true}
	t.Hosts["target"] = lab.HostConfig{Addresses: single(Target4, Target6)}
	t.Hosts["controller"] = lab.HostConfig{}
	t.Routers["hub"] = lab.RouterConfig{}
	for i, site := range sites {
		t.Hosts[site] = lab.HostConfig{Addresses: single(Anycast4, Anycast6)}
		first, last := 1+i*hops/len(sites), min((i+1)*hops/len(sites), hops-1)
		if i > 0 && hops > 2 && first <= last {
			for _, to := range []netip.Addr{Anycast4, Anycast6} {
				path.Routes = append(path.Routes, lab.RouteConfig{To: to.String(), Via: []string{site}, Hops: [2]int{first, last}})
			}
		}
		// To the first site it is nearest, for what comes from behind.
		t.Wires = append(t.Wires, lab.WireConfig{Ends: [2]string{site, "path"}, Costs: [2]int{1, 1 + i}})
	}
	t.Routers["path"] = path
	t.Wires = append(t.Wires, lab.WireConfig{Ends: [2]string{"path", "target"}})
	for _, site := range sites {
		t.Wires = append(t.Wires, lab.WireConfig{Ends: [2]string{site, "hub"}})
	}
	t.Wires = append(t.Wires, lab.WireConfig{Ends: [2]string{"hub", "controller"}})
	return t
}

// HopAddr is the IPv4 address of a hop of a lab that [Chain] describes, counted from 1.
func HopAddr(l *lab.Lab, hop int) netip.Addr {
	path := l.Host("path").Addr().As4()
	path[3] = byte(hop)
	return netip.AddrFrom4(path)
}

// Home is the site at which the answer of a hop comes home.
func Home(hops, hop int, sites ...string) string {
	for i, site := range sites {
		if hop <= (i+1)*hops/len(sites) && hop < hops {
			return site
		}
	}
	return sites[0] // the target's
}
