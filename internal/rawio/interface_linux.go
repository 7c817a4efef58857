// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// InterfaceState is what is known about an interface at one moment.
type InterfaceState struct {
	Name  string
	Index int
	// MAC is the Ethernet address, zero for an interface that has none.
	MAC [6]byte
	// MTU is the length of the longest IP packet, in bytes.
	MTU int
	// Up is what the administrator wants. Frames may not go through all the same: the cable is out, the peer is down.
	Up bool
	// Prefixes are its addresses, each with the length of its network, IPv4 first.
	Prefixes []netip.Prefix
	// Broadcasts are the directed broadcast addresses: those that are configured first, then the last of each
	// network. 255.255.255.255 is not among them.
	Broadcasts []netip.Addr
}

// LookupInterface asks for the interface name of the calling thread's network namespace. If there is none the error is
// [unix.ENODEV].
func LookupInterface(name string) (InterfaceState, error) {
	link, err := netlink.LinkByName(name)
	if _, ok := errors.AsType[netlink.LinkNotFoundError](err); ok {
		return InterfaceState{}, fmt.Errorf("interface %s: %w", name, unix.ENODEV)
	} else if err != nil {
		return InterfaceState{}, fmt.Errorf("interface %s: %w", name, err)
	}
	a := link.Attrs()
	s := InterfaceState{
		Name: a.Name, Index: a.Index, MTU: a.MTU,
		Up: a.RawFlags&unix.IFF_UP != 0,
	}
	if len(a.HardwareAddr) == len(s.MAC) {
		s.MAC = [6]byte(a.HardwareAddr)
	}
	var last []netip.Addr
	for _, family := range [...]int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, family) })
		if err != nil {
			return InterfaceState{}, fmt.Errorf("addresses of %s: %w", name, err)
		}
		for _, a := range addrs {
			ip, ok := netip.AddrFromSlice(a.IP)
			if !ok {
				continue
			}
			bits, _ := a.Mask.Size()
			p := netip.PrefixFrom(ip.Unmap(), bits)
			s.Prefixes = append(s.Prefixes, p)
			if !p.Addr().Is4() {
				continue
			}
			if b, ok := netip.AddrFromSlice(a.Broadcast); ok && b.Unmap() != netip.AddrFrom4([4]byte{255, 255, 255, 255}) && !b.IsUnspecified() {
				s.Broadcasts = append(s.Broadcasts, b.Unmap())
			}
			if bits < 31 { // as the kernel does, configured or not (RFC 3021 for 31)
				last = append(last, lastOf(p))
			}
		}
	}
	for _, b := range last {
		if !slices.Contains(s.Broadcasts, b) {
			s.Broadcasts = append(s.Broadcasts, b)
		}
	}
	return s, nil
}

// dumpAttempts is how often the kernel is asked for a list that changes while it gives it.
const dumpAttempts = 5

// dump asks the kernel for a list. On a host where containers come and go it is interrupted time and again, by changes of other
// interfaces as well; what came is taken then, for a change of what matters here is told, and leads to another question.
func dump[T any](list func() ([]T, error)) (got []T, err error) {
	for range dumpAttempts {
		if got, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return got, err
		}
	}
	return got, nil
}

// lastOf is the last address of an IPv4 network.
func lastOf(p netip.Prefix) netip.Addr {
	a := p.Addr().As4()
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])|(1<<(32-p.Bits())-1))
	return netip.AddrFrom4(a)
}

// Neighbours returns the Ethernet addresses of the hosts on an interface's network that the kernel has talked with, by
// their IP addresses.
func Neighbours(index int) (map[netip.Addr][6]byte, error) {
	list, err := dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(index, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("neighbours on interface %d: %w", index, err)
	}
	known := make(map[netip.Addr][6]byte, len(list))
	for _, n := range list {
		if addr, ok := netip.AddrFromSlice(n.IP); ok && len(n.HardwareAddr) == 6 && n.State&(netlink.NUD_NOARP|netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) == 0 {
			known[addr.Unmap()] = [6]byte(n.HardwareAddr)
		}
	}
	return known, nil
}

// changesSettle is how long changes are collected after the first: an interface that goes up, or is made anew, takes
// several steps within milliseconds.
const changesSettle = 50 * time.Millisecond

// WatchInterfaces calls changed after interfaces or addresses of the calling thread's network namespace have changed, once for
// changes that come together, until ctx ends; then it returns nil. changed runs in the caller's
// goroutine and may block: what happens meanwhile leads to another call. It is also called once at the beginning, when
// nothing more can be missed.
func WatchInterfaces(ctx context.Context, changed func()) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("watch interfaces: %w", err)
	}
	f := os.NewFile(uintptr(fd), "netlink")
	defer f.Close()
	if err := unix.Bind(fd, &unix.SockaddrNetlink{
		Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR,
	}); err != nil {
		return fmt.Errorf("watch interfaces: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	// What the messages say does not matter; nor does it if some are lost (ENOBUFS).
	var b [1]byte
	wait := func(deadline time.Time) error {
		if err := f.SetReadDeadline(deadline); err != nil {
			return err
		}
		if ctx.Err() != nil { // and the deadline that it has set may be overwritten
			return os.ErrDeadlineExceeded
		}
		if _, err := f.Read(b[:]); !errors.Is(err, unix.ENOBUFS) {
			return err
		}
		return nil
	}
	for {
		changed()
		if err = wait(time.Time{}); err == nil {
			settled := time.Now().Add(changesSettle)
			for err == nil {
				err = wait(settled)
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("watch interfaces: %w", err)
		}
	}
}
