// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package punch

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/seed5728abee/fathom/internal/rawio"
)

// Network is what a Puncher needs of its host. [System] is the host itself; natsim.Host is one in memory.
type Network interface {
	// ListenUDP opens a UDP socket. Its addresses are of type *net.UDPAddr.
	ListenUDP(local netip.AddrPort) (net.PacketConn, error)
	// DialTCP connects from a local address that a listener may have as well. When ctx ends, nothing
	// is left that answers. It fails with errors.ErrUnsupported where addresses cannot be shared.
	DialTCP(ctx context.Context, local, remote netip.AddrPort) (net.Conn, error)
	// Addrs gives the addresses of the interfaces.
	Addrs() ([]netip.Addr, error)
}

// System is the network of this host.
var System Network = system{}

type system struct{}

func (system) ListenUDP(local netip.AddrPort) (net.PacketConn, error) {
	c, err := net.ListenUDP(family("udp", local.Addr()), net.UDPAddrFromAddrPort(local))
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (system) DialTCP(ctx context.Context, local, remote netip.AddrPort) (net.Conn, error) {
	// A wildcard is one of the family of the remote address.
	if a := local.Addr(); a.IsUnspecified() && a.Is6() && remote.Addr().Is4() {
		local = netip.AddrPortFrom(netip.IPv4Unspecified(), local.Port())
	}
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(local), Control: rawio.ReusePort}
	return d.DialContext(ctx, family("tcp", remote.Addr()), remote.String())
}

func (system) Addrs() ([]netip.Addr, error) {
	nets, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the addresses of this host: %w", err)
	}
	var addrs []netip.Addr
	for _, n := range nets {
		if p, ok := n.(*net.IPNet); ok {
			if a, ok := netip.AddrFromSlice(p.IP); ok {
				addrs = append(addrs, a.Unmap())
			}
		}
	}
	return addrs, nil
}

// family is the name that package net has for a transport over the IP version of an address. The
// IPv6 wildcard stands for both versions.
func family(network string, a netip.Addr) string {
	switch {
	case a.Is4():
		return network + "4"
	case a == netip.IPv6Unspecified():
		return network
	default:
		return network + "6"
	}
}

// ListenTCP listens at an address from which a [Puncher] of this process can connect at the same time. Where the
// system does not allow that, it fails with errors.ErrUnsupported; a plain listener does then, and punching is left to UDP.
func ListenTCP(ctx context.Context, at netip.AddrPort) (net.Listener, error) {
	lc := net.ListenConfig{Control: rawio.ReusePort}
	return lc.Listen(ctx, family("tcp", at.Addr()), at.String())
}
