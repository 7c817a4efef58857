// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Connector tries TCP connections without privileges, any number at a time,
// and tells how each ended: accepted, refused, or by which ICMP message. Each is closed by a reset, so
// that nothing lingers on either side. It belongs to the goroutine of its host.
type Connector struct {
	host   *KernelHost
	epoll  int
	index  int
	events [BatchSize]unix.EpollEvent
	oob    [512]byte
	data   [1536]byte
}

// Connect describes one try.
type Connect struct {
	Local     netip.AddrPort // the zero AddrPort leaves it to the system
	Remote    netip.AddrPort
	TTL, TOS  uint8
	Interface string
}

// Connected is how a try ended.
type Connected struct {
	Key uint64 // of Start
	// Err is nil for an accepted connection, ECONNREFUSED for a refused one.
	Err syscall.Errno
	// Failure has the ICMP message if one ended the try.
	Failure Failure
	// Extension is the ICMP extension structure of that message (RFC 4884), nil if
	// there is none. It is good until the next call.
	Extension []byte
	// RTT is the kernel's own measure of an accepted connection, 0 if it has none.
	RTT time.Duration
	// Retransmits is how many more SYNs than the first were sent.
	Retransmits int
}

// NewConnector returns a Connector whose tries are part of what h waits for.
func NewConnector(h *KernelHost) (*Connector, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return &Connector{host: h, epoll: fd, index: h.poller.Add(fd, Readable)}, nil
}

// Start begins a try and returns the descriptor for Stop. key comes back in Connected.
func (c *Connector) Start(t Connect, key uint64) (fd int, err error) {
	v6 := t.Remote.Addr().Is6()
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, fmt.Errorf("open TCP socket: %w", err)
	}
	if err := c.begin(fd, v6, t, key); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (c *Connector) begin(fd int, v6 bool, t Connect, key uint64) error {
	type option struct{ level, opt, value int }
	options := []option{
		{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1},
	}
	if v6 {
		options = append(options,
			option{unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1},
			option{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, int(t.TTL)},
			option{unix.IPPROTO_IPV6, unix.IPV6_TCLASS, int(t.TOS)})
	} else {
		options = append(options,
			option{unix.IPPROTO_IP, unix.IP_RECVERR, 1},
			option{unix.IPPROTO_IP, unix.IP_TTL, int(t.TTL)},
			option{unix.IPPROTO_IP, unix.IP_TOS, int(t.TOS)})
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.opt, o.value); err != nil {
			return fmt.Errorf("set TCP socket option %d: %w", o.opt, err)
		}
	}
	if v6 {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR_RFC4884, 1)
	} else {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR_RFC4884, 1)
	}
	// A reset instead of a farewell: the port is free again at once.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return fmt.Errorf("set linger: %w", err)
	}
	if t.Interface != "" {
		if err := unix.BindToDevice(fd, t.Interface); err != nil {
			return fmt.Errorf("bind to interface %s: %w", t.Interface, err)
		}
	}
	if t.Local.IsValid() {
		if err := unix.Bind(fd, sockaddr(t.Local)); err != nil {
			return fmt.Errorf("bind to %v: %w", t.Local, err)
		}
	}
	ev := unix.EpollEvent{Events: unix.EPOLLOUT | unix.EPOLLET, Fd: int32(uint32(key)), Pad: int32(uint32(key >> 32))}
	if err := unix.EpollCtl(c.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("watch TCP socket: %w", err)
	}
	switch err := unix.Connect(fd, sockaddr(t.Remote)); err {
	case nil, unix.EINPROGRESS, unix.ECONNREFUSED:
		// A refusal at once (from this host) is reported through the descriptor as well.
		return nil
	default:
		return fmt.Errorf("connect to %v: %w", t.Remote, err)
	}
}

// Poll tells how tries ended, of the descriptors that fdOf gives for their keys
// (negative: the try was stopped). It never waits.
func (c *Connector) Poll(fdOf func(key uint64) int, ended func(*Connected)) (any bool) {
	for {
		n, err := unix.EpollWait(c.epoll, c.events[:], 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return any
		}
		for _, ev := range c.events[:n] {
			key := uint64(uint32(ev.Pad))<<32 | uint64(uint32(ev.Fd))
			fd := fdOf(key)
			if fd < 0 {
				continue
			}
			r := Connected{Key: key}
			c.readFailure(fd, &r)
			if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil {
				r.Err = syscall.Errno(v)
			}
			if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
				if r.Err == 0 && r.Failure == (Failure{}) && info.State == tcpSynSent {
					continue // the event of a socket that is not connecting yet
				}
				r.Retransmits = int(info.Total_retrans)
				if r.Err == 0 && r.Retransmits == 0 {
					r.RTT = time.Duration(info.Rtt) * time.Microsecond
				}
			}
			any = true
			ended(&r)
		}
		if n < len(c.events) {
			return any
		}
	}
}

const tcpSynSent = 2 // include/net/tcp_states.h

// readFailure takes the ICMP message off the error queue, if there is one.
func (c *Connector) readFailure(fd int, r *Connected) {
	n, oobn, _, _, err := unix.Recvmsg(fd, c.data[:], c.oob[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if err != nil {
		return
	}
	msgs, err := unix.ParseSocketControlMessage(c.oob[:oobn])
	if err != nil {
		return
	}
	var m Message
	for _, cm := range msgs {
		if cm.Header.Level == unix.IPPROTO_IP && cm.Header.Type == unix.IP_RECVERR ||
			cm.Header.Level == unix.IPPROTO_IPV6 && cm.Header.Type == unix.IPV6_RECVERR {
			takeFailure(&m, cm.Data)
		}
	}
	r.Failure = m.Failure
	if off := m.Failure.ExtensionOffset; off > 0 && off < n {
		r.Extension = c.data[off:n]
	}
}

// Stop closes the descriptor of a try.
func (c *Connector) Stop(fd int) { unix.Close(fd) }

// Close releases the Connector; tries are to be stopped before.
func (c *Connector) Close() error {
	c.host.poller.Remove(c.index)
	return unix.Close(c.epoll)
}
