// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package nat

import (
	"fmt"
	"net/netip"
	"syscall"

	netroute "golang.org/x/net/route"
)

// defaultGateway asks the kernel for its IPv4 routes, by sysctl.
func defaultGateway() (netip.Addr, error) {
	rib, err := netroute.FetchRIB(syscall.AF_INET, netroute.RIBTypeRoute, 0)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("routing table: %w", err)
	}
	messages, err := netroute.ParseRIB(netroute.RIBTypeRoute, rib)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("routing table: %w", err)
	}
	for _, m := range messages {
		r, ok := m.(*netroute.RouteMessage)
		if !ok || r.Flags&(syscall.RTF_UP|syscall.RTF_GATEWAY) != syscall.RTF_UP|syscall.RTF_GATEWAY || len(r.Addrs) <= syscall.RTAX_GATEWAY {
			continue
		}
		to, isV4 := r.Addrs[syscall.RTAX_DST].(*netroute.Inet4Addr)
		via, viaV4 := r.Addrs[syscall.RTAX_GATEWAY].(*netroute.Inet4Addr)
		if isV4 && viaV4 && to.IP == [4]byte{} {
			return netip.AddrFrom4(via.IP), nil
		}
	}
	return netip.Addr{}, errNoRoute
}
