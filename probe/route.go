// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"net/netip"

	"github.com/seed5728abee/fathom/internal/rawio"
)

// routeCache remembers source addresses and interface numbers for a moment:
// asking the kernel costs more than sending the probe. A change of routes is seen after routeLife.
type routeCache struct {
	sources map[routeKey]route
	locals  map[netip.Addr]int64 // addresses found to be the host's: until when
	ifaces  map[string]route     // by name; index only

	// Many probes in a row go to one target: that saves the look-up in the map.
	lastKey routeKey
	last    route
}

type routeKey struct {
	dst netip.Addr
	via rawio.Route
}

type route struct {
	src   netip.Addr
	index int
	until int64 // mono
}

const (
	routeLife  = int64(1e9)
	routeBound = 1 << 16 // entries; beyond it the cache starts over
	otherBound = 256     // of the other two maps
)

func (c *routeCache) init() {
	c.sources = make(map[routeKey]route)
	c.locals = make(map[netip.Addr]int64)
	c.ifaces = make(map[string]route)
}

// route gives the source address for slot s, and the interface number if the request names one.
func (c *routeCache) route(e *engine, s *slot) (src netip.Addr, index int, err error) {
	r := &s.req
	if r.Interface != "" {
		it, ok := c.ifaces[r.Interface]
		if !ok || it.until < e.now {
			if it.index, err = e.host.IfIndex(r.Interface); err != nil {
				return src, 0, err
			}
			it.until = e.now + routeLife
			if len(c.ifaces) >= otherBound {
				clear(c.ifaces)
			}
			c.ifaces[r.Interface] = it
		}
		index = it.index
	}
	if local := r.LocalAddr; local.IsValid() {
		if local.IsLinkLocalUnicast() && local.Zone() == "" {
			local = local.WithZone(s.to().Zone())
		}
		if until, ok := c.locals[local]; !ok || until < e.now {
			if err := e.host.CheckLocal(local); err != nil {
				return src, 0, err
			}
			if len(c.locals) >= otherBound {
				clear(c.locals)
			}
			c.locals[local] = e.now + routeLife
		}
		return local.WithZone(""), index, nil
	}
	if s.dst.Is4() && r.Protocol == ICMP {
		// No checksum covers the address, and the kernel fills it in.
		return netip.IPv4Unspecified(), index, nil
	}
	key := routeKey{s.to(), rawio.Route{Interface: r.Interface, Mark: r.Mark}}
	if key == c.lastKey && c.last.until >= e.now {
		return c.last.src, index, nil
	}
	it, ok := c.sources[key]
	if !ok || it.until < e.now {
		if it.src, err = e.host.Source(key.dst, key.via); err != nil {
			return src, 0, err
		}
		it.src = it.src.WithZone("")
		it.until = e.now + routeLife
		if len(c.sources) >= routeBound {
			clear(c.sources)
		}
		c.sources[key] = it
	}
	c.lastKey, c.last = key, it
	return it.src, index, nil
}
