// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"net/netip"

	"github.com/seed5728abee/fathom/internal/rawio"
)

// routeCache remembers source addresses and interface numbers for a moment:
// asking the kernel costs more than sending the probe. A change of routes is seen after routeLife.
type routeCache struct {
	sources map[routeKey]route
	locals  map[netip.Addr]int64 // addresses found to be the host's: until when
	ifaces  map[string]route     // by name; index only

	ways map[routeKey]*way

	// Many probes in a row go to one target: that saves the look-up in the map.
	lastKey routeKey
	last    route

	lastWayKey routeKey
	lastWay    *way
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

// way is what is known about the way of frames to a destination.
type way struct {
	rawio.NextHop
	framed bool  // there is one
	until  int64 // mono
}

const (
	routeLife  = int64(1e9)
	routeBound = 1 << 16 // entries; beyond it the cache starts over
	otherBound = 256     // of the other two maps

	// askLife is routeLife for a neighbour whose address is not known yet: it is about to be.
	askLife = int64(10e6)
)

func (c *routeCache) init() {
	c.sources = make(map[routeKey]route)
	c.locals = make(map[netip.Addr]int64)
	c.ifaces = make(map[string]route)
	c.ways = make(map[routeKey]*way)
}

// way gives the way of frames to where slot s goes, or nil if this probe has to take a raw socket.
func (c *routeCache) way(e *engine, s *slot) *way {
	if s.req.Mark != 0 {
		return nil
	}
	key := routeKey{s.to(), rawio.Route{Interface: s.req.Interface}}
	w := c.lastWay
	if w == nil || key != c.lastWayKey {
		if w = c.ways[key]; w == nil {
			if len(c.ways) >= routeBound {
				clear(c.ways)
			}
			w = new(way)
			c.ways[key] = w
		}
		c.lastWayKey, c.lastWay = key, w
	}
	ask := false
	if w.until < e.now || w.until == 0 {
		next, err := e.host.NextHop(key.dst, key.via)
		*w = way{NextHop: next, framed: err == nil, until: e.now + routeLife}
		if errors.Is(err, rawio.ErrNoNeighbour) {
			w.until = e.now + askLife
		}
		// Frames do not tell the system that the neighbour is in use. It finds out whether it is still there only
		// when something of its own goes there, as this probe will.
		ask = err == nil && !next.Fresh
	}
	if !w.framed || ask {
		return nil
	}
	return w
}

// forgetWay makes the next probe that goes the way of s look it up again.
func (c *routeCache) forgetWay(s *slot) {
	if w := c.ways[routeKey{s.to(), rawio.Route{Interface: s.req.Interface}}]; w != nil {
		w.until = 0
	}
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
