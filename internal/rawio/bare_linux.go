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
	return bareLoop(target, nil, false, d)
}

// BareUDP is BareEcho with UDP datagrams to a closed port, over IPv4. The answers are ICMP errors.
func BareUDP(target netip.Addr, d time.Duration) (answers int, elapsed time.Duration, err error) {
	if !target.Is4() {
		return 0, 0, fmt.Errorf("bare UDP loop to %v: %w", target, unix.EAFNOSUPPORT)
	}
	return bareLoop(target, nil, true, d)
}

// BareFrames is BareEcho with a packet socket for the requests, to a target whose next hop the host knows.
func BareFrames(target netip.Addr, d time.Duration) (answers int, elapsed time.Duration, err error) {
	h, err := NewHost()
	if err != nil {
		return 0, 0, err
	}
	defer h.Close()
	hop, err := h.NextHop(target, Route{})
	if err != nil {
		return 0, 0, err
	}
	return bareLoop(target, &hop, false, d)
}

// bareLoop sends in frames if hop is not nil, and over UDP if udp is set.
func bareLoop(target netip.Addr, hop *NextHop, udp bool, d time.Duration) (answers int, elapsed time.Duration, err error) {
	family, proto, version := unix.AF_INET, unix.IPPROTO_ICMP, 4
	if target.Is6() {
		family, proto, version = unix.AF_INET6, unix.IPPROTO_ICMPV6, 6
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
	var nameLen uint32
	txfd := fd
	if udp {
		if txfd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP); err != nil {
			return 0, 0, fmt.Errorf("open raw UDP socket: %w", err)
		}
		defer unix.Close(txfd)
		if err := AttachFilter(txfd, FilterNone()); err != nil {
			return 0, 0, err
		}
	}
	if hop != nil {
		if txfd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return 0, 0, fmt.Errorf("open packet socket: %w", err)
		}
		defer unix.Close(txfd)
		nameLen = setLinkName(&name, &Message{IfIndex: hop.IfIndex, Link: hop.Link}, version)
	} else if nameLen, err = setName(&name, netip.AddrPortFrom(target, 0)); err != nil {
		return 0, 0, err
	}
	header, sum := bareHeader(target, hop)
	var tx, rx vector
	var packets [BatchSize][64]byte // with the IP header, as a default probe
	var buffers [BatchSize][512]byte
	for i := range packets {
		// Without its IP header, a packet to a raw socket is so much shorter.
		size := 64 - 20
		if target.Is6() {
			size = 64 - 40
		}
		copy(packets[i][:], header)
		packets[i][len(header)] = 8
		if target.Is6() {
			packets[i][len(header)] = 128
		}
		tx.iovs[i] = unix.Iovec{Base: &packets[i][0]}
		tx.iovs[i].SetLen(len(header) + size)
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
			p := packets[i][len(header):]
			if udp { // from port 40000, to one that nobody has, without a checksum
				binary.BigEndian.PutUint16(p, 40000)
				binary.BigEndian.PutUint16(p[2:], 33434+seq%4096)
				binary.BigEndian.PutUint16(p[4:], 64-20)
				binary.BigEndian.PutUint16(p[6:], 0)
				seq++
				continue
			}
			binary.BigEndian.PutUint16(p[6:], seq)
			// Only type and sequence number are not zero. To a raw socket over IPv6 the kernel writes the checksum.
			s := sum + uint32(seq)
			s = s>>16 + s&0xffff
			binary.BigEndian.PutUint16(p[2:], ^uint16(s>>16+s))
			seq++
		}
		if _, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(txfd), uintptr(unsafe.Pointer(&tx.hdrs[0])), BatchSize, 0, 0, 0); errno != 0 {
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

// bareHeader gives the IP header that a frame needs before an echo request, nil for a raw socket, and the sum of what an ICMP
// checksum covers beside the sequence number.
func bareHeader(target netip.Addr, hop *NextHop) (header []byte, sum uint32) {
	words := func(b []byte) (s uint32) {
		for ; len(b) >= 2; b = b[2:] {
			s += uint32(binary.BigEndian.Uint16(b))
		}
		return s
	}
	switch {
	case hop == nil:
		return nil, 8 << 8
	case target.Is4():
		header = append([]byte{0x45, 0, 0, 64, 0, 1, 0, 0, 64, unix.IPPROTO_ICMP, 0, 0}, hop.Source.AsSlice()...)
		header = append(header, target.AsSlice()...)
		s := words(header)
		s = s>>16 + s&0xffff
		binary.BigEndian.PutUint16(header[10:], ^uint16(s>>16+s))
		return header, 8 << 8
	default:
		header = append([]byte{0x60, 0, 0, 0, 0, 24, unix.IPPROTO_ICMPV6, 64}, hop.Source.AsSlice()...)
		header = append(header, target.AsSlice()...)
		return header, words(header[8:]) + 24 + unix.IPPROTO_ICMPV6 + 128<<8
	}
}
