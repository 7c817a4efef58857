// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package natsim

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// udpQueue is how many datagrams wait to be read; later ones are lost.
const udpQueue = 1024

// udpConn is a bound UDP socket.
type udpConn struct {
	host   *Host
	local  netip.AddrPort
	queue  chan packet
	closed chan struct{}
	once   sync.Once
	read   deadline
}

var _ net.PacketConn = (*udpConn)(nil)

// ListenUDP opens a UDP socket. Port 0 is a free one. Its addresses are of type *net.UDPAddr.
func (h *Host) ListenUDP(local netip.AddrPort) (net.PacketConn, error) {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	local, err := h.localLocked(local, func(port uint16) bool { return h.udp[port] != nil })
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "udp", Err: err}
	}
	c := &udpConn{host: h, local: local, queue: make(chan packet, udpQueue), closed: make(chan struct{})}
	h.udp[local.Port()] = c
	return c, nil
}

func (c *udpConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		passed := c.read.wait()
		if c.read.over(passed) {
			return 0, nil, c.error("read", os.ErrDeadlineExceeded)
		}
		select {
		case p := <-c.queue:
			return copy(b, p.data), net.UDPAddrFromAddrPort(p.src), nil
		case <-c.closed:
			return 0, nil, c.error("read", net.ErrClosed)
		case <-passed:
		}
	}
}

func (c *udpConn) WriteTo(b []byte, to net.Addr) (int, error) {
	addr, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, c.error("write", fmt.Errorf("address of type %T", to))
	}
	select {
	case <-c.closed:
		return 0, c.error("write", net.ErrClosed)
	default:
	}
	dst := addr.AddrPort()
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	if !dst.IsValid() || dst.Port() == 0 {
		return 0, c.error("write", syscall.EINVAL)
	}
	c.host.network.mu.Lock()
	defer c.host.network.mu.Unlock()
	c.host.segment.sendLocked(packet{proto: UDP, src: c.local, dst: dst, data: append([]byte(nil), b...)})
	return len(b), nil
}

func (c *udpConn) Close() error {
	c.once.Do(func() {
		c.host.network.mu.Lock()
		delete(c.host.udp, c.local.Port())
		c.host.network.mu.Unlock()
		close(c.closed)
	})
	return nil
}

func (c *udpConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.local) }

func (c *udpConn) SetDeadline(t time.Time) error     { return c.SetReadDeadline(t) }
func (c *udpConn) SetReadDeadline(t time.Time) error { c.read.set(t); return nil }

// SetWriteDeadline does nothing: writes do not wait.
func (c *udpConn) SetWriteDeadline(time.Time) error { return nil }

// The buffers are as large as they are.
func (c *udpConn) SetReadBuffer(int) error  { return nil }
func (c *udpConn) SetWriteBuffer(int) error { return nil }

func (c *udpConn) error(op string, err error) error {
	return &net.OpError{Op: op, Net: "udp", Addr: c.LocalAddr(), Err: err}
}
