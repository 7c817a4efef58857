// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BareEcho is the yardstick that the probe engine is measured with: the least that a program
// can do to send ICMP echo requests and take in the answers, with
// sendmmsg(2) and recvmmsg(2) in turn on one raw socket, in one thread. It looks at nothing, matches
// nothing and stamps nothing. It returns the number of answers and the time spent.
func BareEcho(target netip.Addr, d time.Duration) (answers int, elapsed time.Duration, err error) {
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if target.Is6() {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return 0, 0, fmt.Errorf("open raw ICMP socket: %w", err)
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) // or what there is
	// Echo replies only.
	filter := FilterICMP4(0, 0)
	if target.Is6() {
		filter = FilterICMP6(0, 0)
	}
	if err := AttachFilter(fd, filter); err != nil {
		return 0, 0, err
	}
	var name unix.RawSockaddrInet6
	nameLen, err := setName(&name, netip.AddrPortFrom(target, 0))
	if err != nil {
		return 0, 0, err
	}
	var tx, rx vector
	var packets [BatchSize][44]byte // 64 bytes with the IP header, as a default probe
	var buffers [BatchSize][512]byte
	for i := range packets {
		size := len(packets[i])
		packets[i][0] = 8
		if target.Is6() {
			packets[i][0], size = 128, 24
		}
		tx.iovs[i] = unix.Iovec{Base: &packets[i][0]}
		tx.iovs[i].SetLen(size)
		tx.hdrs[i].hdr = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&name)), Namelen: nameLen, Iov: &tx.iovs[i]}
		tx.hdrs[i].hdr.SetIovlen(1)
		rx.iovs[i] = unix.Iovec{Base: &buffers[i][0]}
		rx.iovs[i].SetLen(len(buffers[i]))
		rx.hdrs[i].hdr = unix.Msghdr{Iov: &rx.iovs[i]}
		rx.hdrs[i].hdr.SetIovlen(1)
	}
	start := time.Now()
	for seq := uint16(0); time.Since(start) < d; {
		for i := range packets {
			p := packets[i][:]
			binary.BigEndian.PutUint16(p[6:], seq)
			// Only type and sequence number are not zero. Over IPv6 the kernel writes the checksum.
			binary.BigEndian.PutUint16(p[2:], ^uint16((0x800+uint32(seq))>>16+(0x800+uint32(seq))&0xffff))
			seq++
		}
		if _, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&tx.hdrs[0])), BatchSize, 0, 0, 0); errno != 0 {
			return answers, time.Since(start), fmt.Errorf("sendmmsg: %w", errno)
		}
		for {
			n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&rx.hdrs[0])), BatchSize, unix.MSG_DONTWAIT, 0, 0)
			if errno != 0 {
				break
			}
			answers += int(n)
			if n < BatchSize {
				break
			}
		}
	}
	return answers, time.Since(start), nil
}
