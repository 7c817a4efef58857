// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// zones remembers which interface is which, for link-local addresses: the kernel numbers them, netip names them.
type zones struct {
	names   map[uint32]string
	numbers map[string]uint32
}

// addrPort converts a name that the kernel wrote. It asks through the socket fd what it does not remember.
func (z *zones) addrPort(fd int, name *unix.RawSockaddrInet6) netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&name.Port))[:])
	switch name.Family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(name)).Addr), port)
	case unix.AF_INET6:
		a := netip.AddrFrom16(name.Addr)
		if name.Scope_id != 0 && a.IsLinkLocalUnicast() {
			a = a.WithZone(z.name(fd, name.Scope_id))
		}
		return netip.AddrPortFrom(a, port)
	}
	return netip.AddrPort{}
}

// name is the name of interface index, or its number where it has none.
func (z *zones) name(fd int, index uint32) string {
	if name, ok := z.names[index]; ok {
		return name
	}
	name := strconv.FormatUint(uint64(index), 10)
	if ifr, err := unix.NewIfreq("x"); err == nil {
		// SIOCGIFNAME reads the number from, and writes the name into, the same structure.
		ifr.SetUint32(index)
		if unix.IoctlIfreq(fd, unix.SIOCGIFNAME, ifr) == nil {
			name = ifr.Name()
		}
	}
	if z.names == nil {
		z.names = make(map[uint32]string)
	}
	z.names[index] = name
	return name
}

// number is the reverse of name. Whoever finds it wrong calls forget.
func (z *zones) number(zone string) (uint32, error) {
	if n, ok := z.numbers[zone]; ok {
		return n, nil
	}
	n, err := zoneIndex(zone)
	if err != nil {
		return 0, err
	}
	if z.numbers == nil {
		z.numbers = make(map[string]uint32)
	}
	z.numbers[zone] = uint32(n)
	return uint32(n), nil
}

// forget makes number ask the kernel again: an interface that is made anew has another number.
func (z *zones) forget(zone string) { delete(z.numbers, zone) }
