// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// EmitterOptions are the options of an [Emitter].
type EmitterOptions struct {
	// Mark marks what is sent (SO_MARK), so that filters can tell; see [Emitter.HasMark]. Default 0: no mark.
	Mark uint32
	// SendBuffer is the size in bytes of the kernel's send buffers, as in [UDPOptions]. Default 0: the kernel's.
	SendBuffer int
}

// Emitter puts whole IP packets, made by others, on the segment of one interface. It does so with raw sockets
// (IP_HDRINCL in raw(7)), not packet sockets: the host's own applications get broadcasts and multicasts too, once.
//
// On the wire a frame comes from the interface's own MAC address and goes to everybody, or to the group's MAC address.
// What is not 255.255.255.255, a broadcast address of the interface or a group is a single host for the kernel, which
// asks for its MAC address.
//
// The kernel does not fragment. Fragments may be emitted as such; applications get them in one piece. In an IPv4 header the kernel
//
//   - writes total length and checksum, to what they should be;
//   - makes up an ID where it is 0 and DF is not set, another for each fragment;
//   - keeps everything else, the source also if it is another host's and rp_filter is strict.
//
// An IPv6 header stays as it is. Packets of IPv4 from 0.0.0.0, whose source the kernel would fill in, take a packet
// socket: they stay as they are, and applications of this host do not get them.
//
// It never blocks. It belongs to one goroutine. When the interface is made anew it has to be, too.
type Emitter struct {
	ifi     net.Interface
	sockets [emitterKinds]int // descriptors, -1 where there is none
	full    emitterKind       // whose buffer was full last
	marked  bool
	failed  []SendError
	closed  atomic.Bool

	hdrs  [BatchSize]mmsghdr
	iovs  [BatchSize]unix.Iovec
	names [BatchSize]unix.RawSockaddrInet6
}

// emitterKind is how a packet leaves.
type emitterKind int

const (
	emitIPv4 emitterKind = iota
	emitIPv6
	emitLink // IPv4 from nowhere
	emitterKinds
)

// OpenEmitter opens the interface ifname of the calling thread's network namespace; afterwards the Emitter can be used from any
// thread. It needs CAP_NET_RAW in the user namespace that owns that network namespace.
func OpenEmitter(ifname string, o EmitterOptions) (*Emitter, error) {
	ifi, err := net.InterfaceByName(ifname)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", ifname, err)
	}
	e := &Emitter{ifi: *ifi, marked: o.Mark != 0, sockets: [emitterKinds]int{-1, -1, -1}}
	for kind := range emitterKinds {
		if err := e.open(kind, o); err != nil {
			e.Close()
			if errors.Is(err, unix.EPERM) {
				return nil, fmt.Errorf("raw socket on %s needs CAP_NET_RAW: %w", ifname, err)
			}
			return nil, fmt.Errorf("raw socket on %s: %w", ifname, err)
		}
	}
	runtime.SetFinalizer(e, (*Emitter).Close)
	return e, nil
}

func (e *Emitter) open(kind emitterKind, o EmitterOptions) error {
	family, typ, proto := unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW // which includes IP_HDRINCL
	switch kind {
	case emitIPv6:
		family = unix.AF_INET6
	case emitLink:
		// For a datagram the kernel writes the Ethernet header. Protocol 0 receives nothing.
		family, typ, proto = unix.AF_PACKET, unix.SOCK_DGRAM, 0
	default:
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if kind == emitIPv6 && err == unix.EAFNOSUPPORT {
		return nil // each such packet will fail
	} else if err != nil {
		return err
	}
	e.sockets[kind] = fd
	set := func(level, opt, value int) error {
		if err != nil {
			return err
		}
		return unix.SetsockoptInt(fd, level, opt, value)
	}
	err = AttachFilter(fd, FilterNone())
	switch kind {
	case emitIPv4:
		err = set(unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
		err = set(unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 1)
		// Connection tracking would collect fragments, and make others.
		err = set(unix.IPPROTO_IP, unix.IP_NODEFRAG, 1)
		if err == nil {
			err = unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(e.ifi.Index)})
		}
	case emitIPv6:
		err = set(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 1)
		err = set(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, e.ifi.Index)
	default:
	}
	if kind != emitLink && err == nil {
		err = unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, e.ifi.Name)
	}
	if err != nil {
		return err
	}
	// Before Linux 5.17 a mark takes CAP_NET_ADMIN.
	if o.Mark != 0 && unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(o.Mark)) != nil {
		e.marked = false
	}
	return setBuffers(fd, 0, o.SendBuffer)
}

// HasMark tells whether what is sent is marked. It is not if no mark was asked for, or the kernel has refused it.
func (e *Emitter) HasMark() bool { return e.marked }

// Interface describes the interface as it was when the Emitter was opened.
func (e *Emitter) Interface() net.Interface { return e.ifi }

// FD is the descriptor to poll after an Emit that found a buffer full: it is writable when there is room. It may be
// another one after another Emit.
func (e *Emitter) FD() int { return e.sockets[e.full] }

// Emit sends packets in order, each from its IP header on, to the broadcast or multicast address in it. The
// header of an IPv4 packet from 0.0.0.0 has to be finished, and so has everything behind the headers.
//
// It returns how many packets it has dealt with: less than all when the send buffer is full, and then the
// caller may wait until FD is writable. What it has dealt with is sent, except what failed lists, in order; that
// slice is valid until the next Emit. One that fails does not stop the others. An err is about the Emitter.
//
// What is no IP packet fails with EINVAL, what is longer than the MTU with EMSGSIZE.
func (e *Emitter) Emit(packets [][]byte) (n int, failed []SendError, err error) {
	if e.closed.Load() {
		return 0, nil, net.ErrClosed
	}
	e.failed = e.failed[:0]
	for n < len(packets) {
		sent := 0
		kind, count, errno := e.fill(packets[n:])
		if errno == 0 {
			sent, errno = sendmmsg(e.sockets[kind], e.hdrs[:count])
		}
		switch errno {
		case 0:
			n += sent
		case unix.EAGAIN:
			e.full = kind
			return n, e.failed, nil
		default:
			e.failed = append(e.failed, SendError{n, errno})
			n++
		}
	}
	return n, e.failed, nil
}

// fill makes messages of the first packets, as many as take the same way. An errno is about the first.
func (e *Emitter) fill(packets [][]byte) (kind emitterKind, count int, errno unix.Errno) {
	for i, p := range packets[:min(len(packets), BatchSize)] {
		k, nameLen, errno := e.setName(&e.names[i], p)
		if i == 0 && errno != 0 {
			return k, 0, errno
		} else if i == 0 {
			kind = k
		} else if errno != 0 || k != kind {
			break
		}
		e.iovs[i].Base = unsafe.SliceData(p)
		e.iovs[i].SetLen(len(p))
		h := &e.hdrs[i].hdr
		*h = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&e.names[i])), Namelen: nameLen, Iov: &e.iovs[i]}
		h.SetIovlen(1)
		count++
	}
	return kind, count, 0
}

// setName writes where a packet goes.
func (e *Emitter) setName(name *unix.RawSockaddrInet6, p []byte) (emitterKind, uint32, unix.Errno) {
	switch {
	case len(p) >= 20 && p[0]>>4 == 4 && [4]byte(p[12:]) == [4]byte{}:
		sa := (*unix.RawSockaddrLinklayer)(unsafe.Pointer(name))
		*sa = unix.RawSockaddrLinklayer{Family: unix.AF_PACKET, Ifindex: int32(e.ifi.Index), Halen: 6}
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa.Protocol))[:], unix.ETH_P_IP)
		mac := [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		if p[16]>>4 == 0xe {
			mac = [6]byte{0x01, 0x00, 0x5e, p[17] & 0x7f, p[18], p[19]} // RFC 1112, section 6.4
		}
		copy(sa.Addr[:], mac[:])
		return emitLink, unix.SizeofSockaddrLinklayer, 0
	case len(p) >= 20 && p[0]>>4 == 4:
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		*sa = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: [4]byte(p[16:])}
		return emitIPv4, unix.SizeofSockaddrInet4, 0
	case len(p) >= 40 && p[0]>>4 == 6:
		if e.sockets[emitIPv6] < 0 {
			return emitIPv6, 0, unix.EAFNOSUPPORT
		}
		*name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: [16]byte(p[24:]), Scope_id: uint32(e.ifi.Index)}
		return emitIPv6, unix.SizeofSockaddrInet6, 0
	}
	return emitIPv4, 0, unix.EINVAL
}

// Close closes the sockets; nothing else may be under way. It is idempotent.
func (e *Emitter) Close() error {
	if e.closed.Swap(true) {
		return nil
	}
	runtime.SetFinalizer(e, nil)
	var err error
	for _, fd := range e.sockets {
		if fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
		}
	}
	if err != nil {
		return fmt.Errorf("close raw sockets of %s: %w", e.ifi.Name, err)
	}
	return nil
}
