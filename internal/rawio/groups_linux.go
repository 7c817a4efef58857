// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// memberships are the sockets that hold them.
type memberships struct {
	mu  sync.Mutex
	fds []int // guarded by mu
}

// JoinGroups makes the interface ifname of the calling thread's network namespace a member of multicast groups until
// the Closer is closed: the kernel says so to routers and switches by IGMP and MLD, and these send
// what is for the groups. It gives nothing to the caller; a packet socket sees it. It needs no privileges.
//
// On Linux an application of this host that listens to a group's port, without being a member itself, may then get what comes
// for it: see IP_MULTICAST_ALL in ip(7).
//
// Groups of IPv6 are left out where there is none: in a kernel without it, or on an interface whose MTU is below 1280. Nothing for
// them can come there.
func JoinGroups(ifname string, groups []netip.Addr) (io.Closer, error) {
	ifi, err := net.InterfaceByName(ifname)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", ifname, err)
	}
	m := new(memberships)
	current := map[int]int{unix.AF_INET: -1, unix.AF_INET6: -1} // socket by family
	for _, g := range groups {
		g = g.Unmap()
		family := unix.AF_INET
		if g.Is6() {
			family = unix.AF_INET6
		}
		err := error(unix.EINVAL)
		if g.IsMulticast() {
			err = join(current[family], ifi.Index, g)
			// A socket holds some memberships only, 20 of IPv4 by default (net.ipv4.igmp_max_memberships).
			if errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EBADF) {
				var fd int
				if fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
					m.fds = append(m.fds, fd)
					current[family] = fd
					err = join(fd, ifi.Index, g)
				}
			}
		}
		if g.Is6() && g.IsMulticast() && withoutIPv6(err) {
			continue
		}
		if err != nil && !errors.Is(err, unix.EADDRINUSE) { // a group named twice
			m.Close()
			return nil, fmt.Errorf("join group %v on %s: %w", g, ifname, err)
		}
	}
	return m, nil
}

// withoutIPv6 tells whether an error of joining a group says that the host, or the interface, has no IPv6.
func withoutIPv6(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV)
}

func join(fd, index int, g netip.Addr) error {
	if fd < 0 {
		return unix.EBADF
	}
	if g.Is4() {
		return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: g.As4(), Ifindex: int32(index)})
	}
	return unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: g.As16(), Interface: uint32(index)})
}

// Close leaves the groups. It is idempotent.
func (m *memberships) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	for _, fd := range m.fds {
		err = errors.Join(err, unix.Close(fd))
	}
	m.fds = nil
	if err != nil {
		return fmt.Errorf("leave groups: %w", err)
	}
	return nil
}
