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
// can do to send ICMP echo requests over IPv4 and take in the answers, with
// sendmmsg(2) and recvmmsg(2) in turn on one raw socket, in one thread. It looks at nothing, matches
// nothing and stamps nothing. It returns the number of answers and the time spent.
func BareEcho(target netip.Addr, d time.Duration) (answers int, elapsed time.Duration, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		return 0, 0, fmt.Errorf("open raw ICMP socket: %w", err)
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) // or what there is
	// Type 0 (echo reply) only: bit set means blocked.
	if err := unix.SetsockoptInt(fd, unix.SOL_RAW, 1 /* ICMP_FILTER */, ^1); err != nil {
		return 0, 0, fmt.Errorf("filter ICMP: %w", err)
	}
	name := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: target.As4()}
	var tx, rx vector
	var packets [BatchSize][44]byte // 64 bytes with the IP header, as a default probe
	var buffers [BatchSize][512]byte
	for i := range packets {
		packets[i][0] = 8
		tx.iovs[i] = unix.Iovec{Base: &packets[i][0]}
		tx.iovs[i].SetLen(len(packets[i]))
		tx.hdrs[i].hdr = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&name)), Namelen: unix.SizeofSockaddrInet4, Iov: &tx.iovs[i]}
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
			// Only type and sequence number are not zero.
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
