// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"fmt"
	"net/netip"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// KernelHost is the [Host] of the running system. Apart from Wake, its
// methods belong to one goroutine.
type KernelHost struct {
	poller *Poller
	open   map[*socket]struct{}
	// route is an unbound UDP socket per version: connecting it asks the routing
	// table and sends nothing.
	route [2]int
	// namespace is a descriptor of the network namespace of NewHost's caller until Adopt, then -1.
	namespace int
	// links answers NextHop; nil before the first one.
	links *linkTable
}

var _ Host = (*KernelHost)(nil)

// NewHost returns the kernel's Host, for the network namespace of the calling thread. The goroutine
// that goes on to use it calls [KernelHost.Adopt] first.
func NewHost() (*KernelHost, error) {
	p, err := NewPoller()
	if err != nil {
		return nil, err
	}
	h := &KernelHost{poller: p, open: make(map[*socket]struct{}), route: [2]int{-1, -1}, namespace: -1}
	// Without /proc there is nothing to be done about it.
	if fd, err := unix.Open(threadNamespace, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
		h.namespace = fd
	}
	for i, family := range [...]int{unix.AF_INET, unix.AF_INET6} {
		// Not fatal: a system may be without one of the versions.
		if fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
			h.route[i] = fd
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
		}
	}
	return h, nil
}

// threadNamespace is the network namespace of the calling thread. That of the process would be
// its first thread's, which the runtime may have lent to a goroutine that went elsewhere.
const threadNamespace = "/proc/thread-self/ns/net"

// Adopt puts the calling goroutine into the network namespace that NewHost was called in, for the sockets and
// look-ups to come. Where it is not there already, as in a lab, it keeps its thread, which ends with it.
func (h *KernelHost) Adopt() error {
	if h.namespace < 0 {
		return nil
	}
	defer func() {
		unix.Close(h.namespace)
		h.namespace = -1
	}()
	runtime.LockOSThread()
	var here, there unix.Stat_t
	if err := unix.Stat(threadNamespace, &here); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("look at network namespace: %w", err)
	}
	if err := unix.Fstat(h.namespace, &there); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("look at network namespace: %w", err)
	}
	if here.Dev == there.Dev && here.Ino == there.Ino {
		// Threads that goroutines are free to move between are all in one namespace.
		runtime.UnlockOSThread()
		return nil
	}
	if err := unix.Setns(h.namespace, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return nil
}

// Poller gives access to the wait, for descriptors that are not a Conn.
func (h *KernelHost) Poller() *Poller { return h.poller }

// Open implements [Host].
func (h *KernelHost) Open(s Spec) (Conn, error) {
	c, err := openSocket(s)
	if err != nil {
		return nil, err
	}
	h.open[c] = struct{}{}
	index := -1
	// The error queue of a pure sender holds departure stamps, which its owner
	// reads when it wants them; watching it would end every wait at once.
	if !s.Kind.sends() {
		index = h.poller.Add(c.fd, Readable)
	}
	c.onClose = func() {
		if index >= 0 {
			h.poller.Remove(index)
		}
		delete(h.open, c)
	}
	return c, nil
}

// Source implements [Host].
func (h *KernelHost) Source(dst netip.Addr, via Route) (netip.Addr, error) {
	if zone := dst.Zone(); zone != "" {
		if _, err := zoneIndex(zone); err != nil {
			return netip.Addr{}, fmt.Errorf("route to %v: %w", dst, err)
		}
	}
	fd := h.route[0]
	if dst.Is6() {
		fd = h.route[1]
	}
	if fd < 0 {
		return netip.Addr{}, fmt.Errorf("route to %v: %w", dst, unix.EAFNOSUPPORT)
	}
	if via != (Route{}) {
		family := unix.AF_INET
		if dst.Is6() {
			family = unix.AF_INET6
		}
		var err error
		if fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return netip.Addr{}, fmt.Errorf("route to %v: %w", dst, err)
		}
		defer unix.Close(fd)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
		if via.Interface != "" {
			if err := unix.BindToDevice(fd, via.Interface); err != nil {
				return netip.Addr{}, fmt.Errorf("route to %v through %s: %w", dst, via.Interface, err)
			}
		}
		if via.Mark != 0 {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(via.Mark)); err != nil {
				return netip.Addr{}, fmt.Errorf("route to %v with mark %d: %w", dst, via.Mark, err)
			}
		}
	}
	// Disconnecting first makes the kernel forget the address it chose last time.
	disconnect(fd)
	if err := unix.Connect(fd, sockaddr(netip.AddrPortFrom(dst, 1))); err != nil {
		return netip.Addr{}, fmt.Errorf("route to %v: %w", dst, err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("route to %v: %w", dst, err)
	}
	return fromSockaddr(sa).Addr(), nil
}

// disconnect undoes connect(2), by connecting to an address without a family.
func disconnect(fd int) {
	sa := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, _ = unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa))
}

// CheckLocal implements [Host].
func (h *KernelHost) CheckLocal(addr netip.Addr) error {
	if addr.IsMulticast() { // a socket may be bound to it, but nothing may be sent from it
		return fmt.Errorf("local address %v: %w", addr, unix.EADDRNOTAVAIL)
	}
	family := unix.AF_INET
	if addr.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("check local address %v: %w", addr, err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(addr, 0))); err != nil {
		return fmt.Errorf("local address %v: %w", addr, err)
	}
	// Nor may it be sent from a broadcast address. Only to connect to one needs a permission.
	if unix.Connect(fd, sockaddr(netip.AddrPortFrom(addr, 1))) == unix.EACCES {
		return fmt.Errorf("local address %v: %w", addr, unix.EADDRNOTAVAIL)
	}
	return nil
}

// IfIndex implements [Host].
func (h *KernelHost) IfIndex(name string) (int, error) { return interfaceIndex(name) }

// Wait implements [Host].
func (h *KernelHost) Wait(timeout time.Duration) error { return h.poller.Wait(timeout) }

// Nap implements [Host].
func (h *KernelHost) Nap(timeout time.Duration) error { return h.poller.Nap(timeout) }

// Wake implements [Host].
func (h *KernelHost) Wake() { h.poller.Wake() }

// Close implements [Host].
func (h *KernelHost) Close() error {
	for c := range h.open {
		c.Close()
	}
	for i, fd := range h.route {
		if fd >= 0 {
			unix.Close(fd)
			h.route[i] = -1
		}
	}
	if h.links != nil {
		h.links.close()
		h.links = nil
	}
	if h.namespace >= 0 {
		unix.Close(h.namespace)
		h.namespace = -1
	}
	return h.poller.Close()
}
