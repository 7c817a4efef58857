// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package natsim

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	synTries    = 4           // of a SYN or SYN-ACK, each twice as long after the one before it
	synTimeout  = time.Second // after the first (RFC 6298 section 2)
	acceptQueue = 128
	window      = 1 << 20 // bytes that wait to be read before writes do
)

// A Host is an end system with one address. It has no loopback address.
type Host struct {
	network   *Network
	segment   *segment
	addr      netip.Addr
	ephemeral uint16

	// Guarded by network.mu.
	udp       map[uint16]*udpConn
	listeners map[uint16]*listener
	conns     map[pair]*conn
}

type pair struct{ local, remote netip.AddrPort }

// Addr is the host's address.
func (h *Host) Addr() netip.Addr { return h.addr }

// Addrs gives the addresses of the host's interfaces.
func (h *Host) Addrs() ([]netip.Addr, error) { return []netip.Addr{h.addr}, nil }

// localLocked completes a local address.
func (h *Host) localLocked(a netip.AddrPort, taken func(port uint16) bool) (netip.AddrPort, error) {
	if a.Addr().IsValid() && !a.Addr().IsUnspecified() && a.Addr() != h.addr {
		return a, syscall.EADDRNOTAVAIL
	}
	port := a.Port()
	for range 1 << 15 {
		if a.Port() == 0 {
			port = h.ephemeral
			h.ephemeral = max(h.ephemeral+1, 32768)
		}
		if !taken(port) {
			return netip.AddrPortFrom(h.addr, port), nil
		}
		if a.Port() != 0 {
			break
		}
	}
	return a, syscall.EADDRINUSE
}

func (h *Host) receiveLocked(p packet) {
	if p.proto == UDP {
		if c := h.udp[p.dst.Port()]; c != nil {
			select {
			case c.queue <- p:
			default: // full
			}
		}
		return
	}
	key := pair{p.dst, p.src}
	c := h.conns[key]
	if c == nil && p.kind == syn {
		if l := h.listeners[p.dst.Port()]; l != nil {
			c = newConn(h, key, l)
			c.state = synReceived
			h.conns[key] = c
			c.peer = p.from
			c.retryLocked(synAck, 0)
			return
		}
	}
	if c == nil {
		if p.kind != rst {
			h.segment.sendLocked(packet{proto: TCP, kind: rst, src: p.dst, dst: p.src, acks: p.from})
		}
		return
	}
	c.receiveLocked(p)
}

type state uint8

const (
	synSent state = iota
	synReceived
	established
	closed
)

// conn is one end of a connection.
type conn struct {
	host     *Host
	key      pair
	listener *listener // that it came to, if it did
	in       stream

	readBy, writeBy deadline
	done            chan struct{} // closed by Close

	// Guarded by network.mu.
	state state
	peer  *conn         // the other end, as far as its packets have told
	ready chan struct{} // closed when set up, or failed
	err   error         // why it failed
}

var _ net.Conn = (*conn)(nil)

func newConn(h *Host, key pair, l *listener) *conn {
	return &conn{
		host: h, key: key, listener: l, ready: make(chan struct{}), done: make(chan struct{}),
		in: stream{changed: make(chan struct{})},
	}
}

// DialTCP connects from a local address, which may be that of a listener; port 0 is a free one.
func (h *Host) DialTCP(ctx context.Context, local, remote netip.AddrPort) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(remote), Err: err}
	}
	if !remote.IsValid() || remote.Port() == 0 {
		return fail(syscall.EINVAL)
	}
	h.network.mu.Lock()
	local, err := h.localLocked(local, func(port uint16) bool {
		return h.conns[pair{netip.AddrPortFrom(h.addr, port), remote}] != nil
	})
	if err != nil {
		h.network.mu.Unlock()
		return fail(err)
	}
	c := newConn(h, pair{local, remote}, nil)
	h.conns[c.key] = c
	c.retryLocked(syn, 0)
	h.network.mu.Unlock()

	select {
	case <-c.ready:
	case <-ctx.Done():
		_ = c.Close()
		return fail(ctx.Err())
	}
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	if c.err != nil {
		return fail(c.err)
	}
	return c, nil
}

// retryLocked sends a SYN or SYN-ACK until the state has moved on.
func (c *conn) retryLocked(k kind, try int) {
	want := synSent
	if k == synAck {
		want = synReceived
	}
	if c.state != want {
		return
	}
	if try == synTries {
		c.failLocked(syscall.ETIMEDOUT)
		return
	}
	c.sendLocked(k)
	time.AfterFunc(synTimeout<<try, func() {
		c.host.network.mu.Lock()
		defer c.host.network.mu.Unlock()
		c.retryLocked(k, try+1)
	})
}

func (c *conn) sendLocked(k kind) {
	c.host.segment.sendLocked(packet{proto: TCP, kind: k, src: c.key.local, dst: c.key.remote, from: c, acks: c.peer})
}

// receiveLocked is the part of RFC 9293 section 3.10.7 that sets up and resets.
func (c *conn) receiveLocked(p packet) {
	switch p.kind {
	case syn:
		switch c.state {
		case synSent: // both connect at once
			c.peer, c.state = p.from, synReceived
			c.retryLocked(synAck, 0)
		case synReceived:
			if c.peer != p.from {
				c.peer = p.from // the other has given up and tries anew
			}
			c.sendLocked(synAck)
		case established, closed:
		}
	case synAck:
		if p.acks != c { // of an attempt that is over
			c.host.segment.sendLocked(packet{proto: TCP, kind: rst, src: p.dst, dst: p.src, acks: p.from})
			return
		}
		if c.state == synSent || c.state == synReceived {
			c.peer = p.from
			c.establishLocked()
		}
		c.sendLocked(ack)
	case ack:
		if c.state == synReceived && p.acks == c {
			c.establishLocked()
		}
	case rst:
		if p.acks != c {
			return
		}
		if c.state == established {
			c.failLocked(syscall.ECONNRESET)
		} else {
			c.failLocked(syscall.ECONNREFUSED)
		}
	case datagram:
	}
}

func (c *conn) establishLocked() {
	c.state = established
	close(c.ready)
	if c.listener == nil {
		return
	}
	if c.host.listeners[c.key.local.Port()] == c.listener {
		select {
		case c.listener.queue <- c:
			return
		default: // full
		}
	}
	c.failLocked(syscall.ECONNRESET)
}

func (c *conn) failLocked(err error) {
	if c.state == closed {
		return
	}
	if c.state != established {
		c.err = err
		close(c.ready)
	}
	c.state = closed
	c.in.put(nil, err, time.Now())
	c.forgetLocked()
}

func (c *conn) forgetLocked() {
	if c.host.conns[c.key] == c {
		delete(c.host.conns, c.key)
	}
}

// stream is what has been sent to an end and not been read yet.
type stream struct {
	mu      sync.Mutex
	chunks  []chunk
	size    int
	changed chan struct{} // closed and replaced when chunks or size change
}

// chunk is readable from a time on. With an error it is the last.
type chunk struct {
	data []byte
	err  error
	at   time.Time
}

func (s *stream) put(data []byte, err error, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chunks = append(s.chunks, chunk{data, err, at})
	s.size += len(data)
	s.wakeLocked()
}

func (s *stream) wakeLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// take reads what is there. With n = 0 and no error, changed or after tells when to look again.
func (s *stream) take(b []byte) (n int, changed <-chan struct{}, after time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	after = time.Hour
	for len(s.chunks) > 0 && n < len(b) {
		c := &s.chunks[0]
		if wait := time.Until(c.at); wait > 0 {
			after = wait
			break
		}
		if c.err != nil {
			if n == 0 {
				err = c.err
			}
			break
		}
		m := copy(b[n:], c.data)
		n += m
		s.size -= m
		if c.data = c.data[m:]; len(c.data) == 0 {
			s.chunks = s.chunks[1:]
		}
	}
	if n > 0 {
		s.wakeLocked()
	}
	return n, s.changed, after, err
}

func (c *conn) Read(b []byte) (int, error) {
	for {
		passed := c.readBy.wait()
		select {
		case <-c.done:
			return 0, c.error("read", net.ErrClosed)
		default:
		}
		if c.readBy.over(passed) {
			return 0, c.error("read", os.ErrDeadlineExceeded)
		}
		if len(b) == 0 {
			return 0, nil
		}
		n, changed, after, err := c.in.take(b)
		switch {
		case err == io.EOF:
			return 0, io.EOF
		case err != nil:
			return 0, c.error("read", err)
		case n > 0:
			return n, nil
		}
		timer := time.NewTimer(after)
		select {
		case <-changed:
		case <-timer.C:
		case <-passed:
		case <-c.done:
		}
		timer.Stop()
	}
}

func (c *conn) Write(b []byte) (int, error) {
	written := 0
	for {
		passed := c.writeBy.wait()
		select {
		case <-c.done:
			return written, c.error("write", net.ErrClosed)
		default:
		}
		if c.writeBy.over(passed) {
			return written, c.error("write", os.ErrDeadlineExceeded)
		}
		if written == len(b) {
			return written, nil
		}
		n, changed, err := c.push(b[written:])
		if err != nil {
			return written, c.error("write", err)
		}
		if written += n; n > 0 {
			continue
		}
		select {
		case <-changed:
		case <-passed:
		case <-c.done:
		}
	}
}

// push hands to the other end what there is room for.
func (c *conn) push(b []byte) (int, <-chan struct{}, error) {
	n := c.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.state == closed || c.peer == nil || c.peer.state == closed {
		return 0, nil, syscall.EPIPE
	}
	peer := c.peer
	peer.in.mu.Lock()
	room := min(window-peer.in.size, len(b))
	changed := peer.in.changed
	peer.in.mu.Unlock()
	if room > 0 {
		at := time.Now().Add(c.delay())
		if peer.state == synReceived { // data acknowledges as well
			peer.establishLocked()
		}
		peer.in.put(append([]byte(nil), b[:room]...), nil, at)
	}
	return max(room, 0), changed, nil
}

// delay is one way to the other end: of the public network if one of them is there, or they are behind different NATs.
func (c *conn) delay() time.Duration {
	if c.host.segment == c.peer.host.segment && c.host.segment.gateway != nil {
		return lanDelay
	}
	return c.host.network.opts.Delay
}

func (c *conn) Close() error {
	n := c.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-c.done:
		return nil
	default:
	}
	close(c.done)
	if c.state == established && c.peer != nil {
		c.peer.in.put(nil, io.EOF, time.Now().Add(c.delay()))
	} else if c.state != closed && c.err == nil {
		c.err = net.ErrClosed
		close(c.ready)
	}
	c.state = closed
	c.forgetLocked()
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(c.key.local) }
func (c *conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.key.remote) }

func (c *conn) SetDeadline(t time.Time) error {
	c.readBy.set(t)
	c.writeBy.set(t)
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error  { c.readBy.set(t); return nil }
func (c *conn) SetWriteDeadline(t time.Time) error { c.writeBy.set(t); return nil }

func (c *conn) error(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// listener accepts connections to a port.
type listener struct {
	host   *Host
	local  netip.AddrPort
	queue  chan *conn
	closed chan struct{}
	once   sync.Once
}

var _ net.Listener = (*listener)(nil)

// ListenTCP listens. Port 0 is a free one. DialTCP may use the same port.
func (h *Host) ListenTCP(local netip.AddrPort) (net.Listener, error) {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	local, err := h.localLocked(local, func(port uint16) bool { return h.listeners[port] != nil })
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Err: fmt.Errorf("%v: %w", local, err)}
	}
	l := &listener{host: h, local: local, queue: make(chan *conn, acceptQueue), closed: make(chan struct{})}
	h.listeners[local.Port()] = l
	return l, nil
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
	default:
		select {
		case c := <-l.queue:
			return c, nil
		case <-l.closed:
		}
	}
	return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
}

func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.local) }

// Close resets connections that nobody has accepted.
func (l *listener) Close() error {
	l.once.Do(func() {
		l.host.network.mu.Lock()
		delete(l.host.listeners, l.local.Port())
		l.host.network.mu.Unlock()
		close(l.closed)
		for {
			select {
			case c := <-l.queue:
				_ = c.Close()
			default:
				return
			}
		}
	})
	return nil
}
