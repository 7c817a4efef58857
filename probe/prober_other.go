// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package probe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/packet"
)

// Numbers that these systems do not share; nothing compares equal to -1.
const (
	errHostDown = ^syscall.Errno(0)
	errNoDevice = ^syscall.Errno(1)
)

// open opens the portable backend: ICMP and UDP over package net, without kernel
// time stamps, one system call and goroutine switch per packet.
func (e *engine) open() error {
	if e.p.opts.Loop != nil {
		return fmt.Errorf("open prober: Options.Loop on %s: %w", runtime.GOOS, ErrUnsupported)
	}
	if e.host = e.p.opts.host; e.host != nil {
		b, err := newRaw(e)
		if err != nil {
			return fmt.Errorf("open prober: %w", err)
		}
		e.back = b
		return nil
	}
	h := &portableHost{wake: make(chan struct{}, 1)}
	e.host = h
	b, err := newPortable(e, h)
	if err != nil {
		return fmt.Errorf("open prober: %w", err)
	}
	e.back = b
	return nil
}

// portableHost is a wait that other goroutines can end.
type portableHost struct {
	rawio.Host // nil: only the methods below are called
	wake       chan struct{}
}

func (h *portableHost) Wait(timeout time.Duration) error {
	if timeout < 0 {
		<-h.wake
		return nil
	}
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-h.wake:
	case <-t.C:
	}
	return nil
}

func (h *portableHost) Wake() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *portableHost) Close() error { return nil }

func (h *portableHost) Source(dst netip.Addr, _ rawio.Route) (netip.Addr, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, 1)))
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

func (h *portableHost) CheckLocal(addr netip.Addr) error {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
	if err != nil {
		return err
	}
	return c.Close()
}

type portable struct {
	e       *engine
	icmp    [2]*icmp.PacketConn
	udp     [2]*net.UDPConn
	dgram   [2]bool // the ICMP socket takes net.UDPAddr
	routes  routeCache
	buf     []byte
	missing []string
	readers sync.WaitGroup

	mu sync.Mutex
	in []portableArrival
}

type portableArrival struct {
	arrival
	v    int
	p    Protocol
	port uint16 // of a datagram's sender
}

func newPortable(e *engine, h *portableHost) (*portable, error) {
	b := &portable{e: e}
	b.routes.init()
	var errs []error
	for v, network := range [...][2]string{{"ip4:icmp", "udp4"}, {"ip6:ipv6-icmp", "udp6"}} {
		local := [...]string{"0.0.0.0", "::"}[v]
		c, err := icmp.ListenPacket(network[0], local)
		if err != nil && runtime.GOOS == "darwin" { // any user may open datagram ICMP sockets there
			b.dgram[v] = true
			c, err = icmp.ListenPacket(network[1], local)
		}
		if err != nil {
			errs = append(errs, err)
			b.missing = append(b.missing, fmt.Sprintf("IPv%d: %v: run as administrator", 4+2*v, err))
			continue
		}
		b.icmp[v] = c
		if b.udp[v], err = net.ListenUDP(network[1], &net.UDPAddr{IP: net.ParseIP(local)}); err != nil {
			errs = append(errs, err)
		}
	}
	if b.icmp[0] == nil && b.icmp[1] == nil {
		return nil, errors.Join(errs...)
	}
	b.missing = append(b.missing, "TCP and SCTP probes, routing marks, interfaces and flows need Linux")
	for v := range b.icmp {
		if c := b.icmp[v]; c != nil {
			b.readers.Go(func() { b.read(h, v, ICMP, c.ReadFrom) })
		}
		if c := b.udp[v]; c != nil {
			b.readers.Go(func() { b.read(h, v, UDP, c.ReadFrom) })
		}
	}
	return b, nil
}

// read hands packets to the engine until its socket is closed.
func (b *portable) read(h *portableHost, v int, p Protocol, from func([]byte) (int, net.Addr, error)) {
	buf := make([]byte, receiveSize)
	for {
		n, addr, err := from(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about an earlier datagram
		}
		a := portableArrival{v: v, p: p, arrival: arrival{data: append([]byte(nil), buf[:n]...), stamp: time.Now().UnixNano()}}
		switch addr := addr.(type) {
		case *net.UDPAddr:
			a.src, a.port = addr.AddrPort().Addr().Unmap(), uint16(addr.Port)
		case *net.IPAddr:
			src, _ := netip.AddrFromSlice(addr.IP)
			a.src = src.Unmap().WithZone(addr.Zone)
		}
		b.mu.Lock()
		if len(b.in) < 1<<16 {
			b.in = append(b.in, a)
		}
		b.mu.Unlock()
		h.Wake()
	}
}

func (b *portable) features() Features {
	return Features{
		Mode: Privileged, IPv4: b.icmp[0] != nil, IPv6: b.icmp[1] != nil, ICMP: true,
		UDP: b.udp[0] != nil || b.udp[1] != nil, Missing: b.missing,
	}
}

func (b *portable) close() {
	for v := range b.icmp {
		if b.icmp[v] != nil {
			b.icmp[v].Close()
		}
		if b.udp[v] != nil {
			b.udp[v].Close()
		}
	}
	b.readers.Wait()
}

func (b *portable) forget(uint32) {}

func (b *portable) transmit(batch []uint32) {
	for _, i := range batch {
		if err := b.transmitOne(i); err != nil {
			b.e.refused(i, err)
		}
	}
}

func (b *portable) transmitOne(i uint32) error {
	e := b.e
	s := e.slots.at(i)
	v := ipVersion(s.dst)
	src, _, err := b.routes.route(e, s)
	if err != nil {
		return err
	}
	s.src = src
	if s.req.Protocol == UDP && (s.req.Port != 0 || s.req.LocalPort != 0) || s.req.LocalAddr.IsValid() {
		return fmt.Errorf("choosing UDP ports or the local address on %s: %w", runtime.GOOS, ErrUnsupported)
	}
	if err := e.number(i); err != nil {
		return err
	}
	var write func([]byte, net.Addr) (int, error)
	var to net.Addr = &net.IPAddr{IP: s.dst.AsSlice(), Zone: s.req.Target.Zone()}
	if b.buf, err = appendTransport(b.buf[:0], s); err != nil {
		return err
	}
	data := b.buf
	var p4 *ipv4.PacketConn
	var p6 *ipv6.PacketConn
	if s.req.Protocol == UDP {
		c := b.udp[v]
		if c == nil {
			return fmt.Errorf("UDP over IPv%d: %w", 4+2*v, ErrUnsupported)
		}
		// The system's port replaces the one that the layout chose.
		local := uint16(c.LocalAddr().(*net.UDPAddr).Port)
		e.unidentify(i)
		if !e.identify(i, identity{proto: UDP, v6: v == 1, dst: s.dst, a: local, b: s.b}, false) {
			return errBusy
		}
		write, to, data = c.WriteTo, &net.UDPAddr{IP: s.dst.AsSlice(), Zone: s.req.Target.Zone(), Port: int(s.b)}, data[packet.UDPHeaderLen:]
		p4, p6 = ipv4.NewPacketConn(c), ipv6.NewPacketConn(c)
	} else {
		c := b.icmp[v]
		write, p4, p6 = c.WriteTo, c.IPv4PacketConn(), c.IPv6PacketConn()
		if b.dgram[v] {
			to = &net.UDPAddr{IP: s.dst.AsSlice(), Zone: s.req.Target.Zone()}
		}
	}
	if v == 0 {
		err = errors.Join(p4.SetTTL(int(s.req.TTL)), p4.SetTOS(int(s.req.TOS)))
	} else {
		err = errors.Join(p6.SetHopLimit(int(s.req.TTL)), p6.SetTrafficClass(int(s.req.TOS)))
	}
	if err != nil {
		return fmt.Errorf("set hop limit and class: %w", err)
	}
	e.clock()
	mono, wall := e.now, e.wall
	if _, err := write(data, to); err != nil {
		return fmt.Errorf("send to %v: %w", s.dst, err)
	}
	e.sent(i, mono, wall)
	return nil
}

func (b *portable) receive(bool) bool {
	b.mu.Lock()
	in := b.in
	b.in = nil
	b.mu.Unlock()
	e := b.e
	e.clock()
	for k := range in {
		a := &in[k]
		e.counters.Received++
		if a.p == ICMP {
			e.icmp(4+2*a.v, &a.arrival)
			continue
		}
		local := uint16(b.udp[a.v].LocalAddr().(*net.UDPAddr).Port)
		id := identity{proto: UDP, v6: a.v == 1, dst: a.src.WithZone(""), a: local, b: a.port}
		e.matched(e.find(id), &Result{Status: Replied, Responder: a.src, ReplyTTL: a.ttl}, a.stamp)
	}
	return len(in) > 0
}
