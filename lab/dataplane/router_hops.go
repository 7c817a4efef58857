// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/gaissmai/bart"
)

// A router with Hops stands for a string of routers, which cost no more than one:
//
//	port 0 --+
//	port 1 --+-- hop 0 -- hop 1 -- ... -- hop n-1 -- last port
//
// A packet is at a hop, and passes hops as it goes; only where it stops does anything happen.

// setHops takes over the hops of a configuration.
func (r *Router) setHops(cfg *RouterConfig) error {
	switch {
	case len(cfg.Hops) == 0:
		return nil
	case len(cfg.Hops) > MaxHops:
		return fmt.Errorf("%w: %d hops, at most %d", ErrRouter, len(cfg.Hops), MaxHops)
	case cfg.NAT != nil:
		return fmt.Errorf("%w: a NAT has no hops", ErrRouter)
	}
	r.hopOf = make(map[netip.Addr]int)
	for i, hc := range cfg.Hops {
		var hop routerHop
		for _, a := range hc.Addrs {
			if !a.IsValid() || a.IsMulticast() || a.Is4In6() || a.Zone() != "" || hop.addrs[family(a.Is6())].IsValid() {
				return fmt.Errorf("%w: hop %d has address %v", ErrRouter, i, a)
			}
			if _, ok := r.own[a]; ok {
				return fmt.Errorf("%w: hop %d has address %v of another", ErrRouter, i, a)
			}
			hop.addrs[family(a.Is6())] = a
			r.own[a], r.hopOf[a] = noPort, i
		}
		if len(hc.Routes) > 0 {
			hop.table = new(bart.Table[*Route])
			if err := r.addRoutes(hop.table, hc.Routes); err != nil {
				return err
			}
		}
		r.hops = append(r.hops, hop)
	}
	for a, port := range r.own {
		if port != noPort {
			r.hopOf[a] = r.endHop(port)
		}
	}
	return nil
}

// endHop is the hop at a port. Without a port it is the first.
func (r *Router) endHop(port int) int {
	if port == len(r.ports)-1 {
		return max(0, len(r.hops)-1)
	}
	return 0
}

// pass moves a packet along the hops up to another one, where it has yet to be handled, and reports false if
// its time to live has ended before.
func (r *Router) pass(now time.Duration, p *pkt, to int) bool {
	n := abs(to - p.hop)
	if n == 0 {
		return true
	}
	step := (to - p.hop) / n
	if alive := max(1, int(p.ttl)) - 1; alive < n {
		p.lower(alive)
		p.hop += alive * step
		r.expire(now, p)
		return false
	}
	p.lower(n)
	p.hop = to
	return true
}

// expire ends a packet that has no hop to go.
func (r *Router) expire(now time.Duration, p *pkt) {
	r.counters.Expired++
	r.sendError(now, p, errExpired, 0)
}

// lower takes n hops from the time to live, which is more.
func (p *pkt) lower(n int) {
	if n == 0 {
		return
	}
	p.ttl -= uint8(n)
	if p.v6 {
		p.ip6().SetHopLimit(p.ttl)
	} else {
		p.ip4().SetTTL(p.ttl)
	}
}

// lookupOwn finds the way of a packet of the router's own, which is at the hop whose address it comes from.
func (r *Router) lookupOwn(p *pkt) NextHop {
	if len(r.hops) > 0 {
		at, ok := r.hopOf[p.src]
		if !ok {
			at = r.endHop(p.in)
		}
		p.hop = at
		if table := r.hops[at].table; table != nil {
			if route, ok := table.Lookup(p.dst); ok {
				hop, _ := r.choose(route, ok, p)
				return hop
			}
		}
	}
	hop, _ := r.lookup(p.dst, p)
	return hop
}

// family is the index of an IP version: 0 for IPv4, 1 for IPv6.
func family(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

func abs(n int) int { return max(n, -n) }
