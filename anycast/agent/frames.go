// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
)

// Frames, if the options ask for them: the probes of an order with one target, a trace, leave through a packet socket, whose next hop is
// looked up once a second. That spares the host's IP output, and passes it by: its firewall, connection tracking and NAT.
// Whatever cannot go that way, or is refused, takes the raw socket, and so does an order with a target for each probe, for which
// the look-up would cost more than it saves. See docs/adr/0005-frames-past-the-host-only-when-asked.md.

// way is what is known of the way to a target.
type way struct {
	rawio.NextHop
	framed bool  // there is one for frames
	until  int64 // mono, when to look again
}

const (
	wayLife = int64(time.Second)
	// askLife is wayLife for a neighbour that the host does not know yet: it is about to.
	askLife = int64(10 * time.Millisecond)
	// maxWays bounds how many targets are remembered.
	maxWays = 1 << 12
)

// openFramers opens the packet sockets. Without them all goes through the raw ones.
func (p *plane) openFramers() {
	p.ways = make(map[netip.Addr]*way)
	for v := range p.framers {
		if p.senders[v].conn == nil {
			continue
		}
		conn, err := p.host.Open(rawio.Spec{Version: 4 + 2*v, Kind: rawio.Link})
		if err != nil {
			p.log.Warn("probes do not leave in frames", "error", err)
			return
		}
		p.framers[v].conn = conn
	}
}

// wayOf gives the way of frames for the next probes of an order, nil if they are to take the raw socket.
func (p *plane) wayOf(o *order) *way {
	// Jobs of Voltadomar's leave the source and the identification to the kernel.
	if p.framers[o.v].conn == nil || o.session == nil || len(o.targets) != addrLen[o.v] {
		return nil
	}
	dst, _ := netip.AddrFromSlice(o.targets)
	w := p.ways[dst]
	if w == nil {
		if len(p.ways) >= maxWays {
			clear(p.ways)
		}
		w = new(way)
		p.ways[dst] = w
	}
	if w.until > p.now {
		if !w.framed {
			return nil
		}
		return w
	}
	next, err := p.host.NextHop(dst, rawio.Route{})
	*w = way{NextHop: next, framed: err == nil, until: p.now + wayLife}
	if errors.Is(err, rawio.ErrNoNeighbour) {
		w.until = p.now + askLife
	}
	// Frames do not tell the host that the neighbour is in use: a packet of the raw socket makes it ask whether it still is.
	if err != nil || !next.Fresh {
		return nil
	}
	return w
}

// unframe makes message k of a framer the next one of the raw socket, which has room: a batch fits into either.
func (p *plane) unframe(v, k int) {
	from, to := &p.framers[v], &p.senders[v]
	m, in := &from.msgs[k], &to.msgs[to.n]
	m.Data, in.Data = in.Data, m.Data
	in.Addr = m.Addr
	to.rows[to.n] = from.rows[k]
	from.rows[k].order = nil
	to.n++
}
