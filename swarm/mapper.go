// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"context"
	"errors"
	"net/netip"
	"sync"

	"github.com/seed5728abee/fathom/nat"
	"github.com/seed5728abee/fathom/swarm/member"
)

// A mapper keeps the router's mapping of the peer's port. Both TCP and UDP are mapped, on one external port.
type mapper struct {
	peer *Peer

	mu      sync.Mutex
	gateway *nat.Mapper
	mapping *nat.Mapping
}

// start asks the router and returns the external address, the zero one when there is none. The peer works without.
func (m *mapper) start(ctx context.Context, port uint16) netip.AddrPort {
	p := m.peer
	if !p.o.PortMapping || p.reacher.bound.Addr().IsLoopback() {
		return netip.AddrPort{}
	}
	gateway, err := nat.Discover(ctx, nat.Options{Method: p.o.MappingMethod, Log: p.log})
	if err != nil {
		p.log.Info("no port mapping", "error", err)
		return netip.AddrPort{}
	}
	mapping, err := gateway.Map(ctx, nat.Request{
		Protocol: nat.TCP | nat.UDP, InternalPort: port, Lifetime: p.o.MappingLifetime,
		Description: "fathom swarm", Notify: m.notify,
	})
	if err != nil {
		// Some routers map TCP only, or have the other in use.
		if !errors.Is(err, nat.ErrDoubleNAT) {
			mapping, err = gateway.Map(ctx, nat.Request{
				InternalPort: port, Lifetime: p.o.MappingLifetime, Description: "fathom swarm", Notify: m.notify,
			})
		}
		if err != nil {
			p.log.Warn("no port mapping", "error", err)
			gateway.Close()
			return netip.AddrPort{}
		}
	}
	m.mu.Lock()
	m.gateway, m.mapping = gateway, mapping
	m.mu.Unlock()
	if hook := p.o.Hooks.Mapping; hook != nil {
		hook(nat.Event{Kind: nat.Mapped, State: mapping.State()})
	}
	return mapping.External()
}

// notify follows what happens to the mapping.
func (m *mapper) notify(e nat.Event) {
	p := m.peer
	p.log.Info("port mapping", "event", e.Kind.String(), "external", e.State.External, "error", e.Err)
	if hook := p.o.Hooks.Mapping; hook != nil {
		hook(e)
	}
	if e.Kind != nat.Mapped && e.Kind != nat.Changed {
		return
	}
	p.background(func(ctx context.Context) {
		if e.State.External == p.Addr() {
			return
		}
		// In an open swarm this is another place on the ring.
		if p.setSelf(ctx, func(c *member.Contact) { c.Addrs = prefer(e.State.External, c.Addrs) }) && p.isConnected() {
			p.rejoin(ctx)
		}
	})
}

// state returns the mapping as it is, nil if there is none.
func (m *mapper) state() *nat.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mapping == nil {
		return nil
	}
	s := m.mapping.State()
	return &s
}

// close gives the mapping back.
func (m *mapper) close() {
	m.mu.Lock()
	gateway := m.gateway
	m.gateway, m.mapping = nil, nil
	m.mu.Unlock()
	if gateway == nil {
		return
	}
	if err := gateway.Close(); err != nil {
		m.peer.log.Warn("the port mapping stays until its lease ends", "error", err)
	}
}
