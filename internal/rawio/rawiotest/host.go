// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawiotest

import (
	"container/heap"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
)

// Config describes a [Host]. The zero value is a host without addresses before a network that
// swallows everything.
type Config struct {
	// Network gets what is sent; nil answers nothing.
	Network Network
	// Addrs are the host's. Packets leave from the first of their version; a version without addresses has no
	// route.
	Addrs []netip.Addr
	// Interfaces are the names of the network interfaces, numbered from 1.
	Interfaces []string
	// MTU bounds packets sent with their header, in bytes; 0 means 1500.
	MTU int
	// Link is the Ethernet address of the one neighbour, who forwards packets to everybody. Routes go
	// through the last interface. Without it the host has no Ethernet.
	Link rawio.LinkAddr
}

// Faults make a host misbehave. Each function may be nil, and may be called from any goroutine that
// uses the host, one call at a time.
type Faults struct {
	// Open is asked before a socket is opened.
	Open func(rawio.Spec) error
	// Route is asked for the route to a destination, by Source and by every message sent
	// (whose interface and mark are in the Message, not here).
	Route func(dst netip.Addr, via rawio.Route) error
	// Send is asked before each message is taken, with the socket's spec. The message is valid
	// during the call only.
	Send func(rawio.Spec, *rawio.Message) error
	// NextHop is asked by NextHop, and may change what it answers.
	NextHop func(dst netip.Addr, hop *rawio.NextHop) error
	// Wait is asked before each Wait.
	Wait func() error
}

// Host is a [rawio.Host] in memory. Apart from Wake, Deliver, SetFaults, SetAddrs and Dropped,
// its methods belong to one goroutine, like those of the kernel's.
type Host struct {
	network Network
	mtu     int
	link    rawio.LinkAddr
	timer   *time.Timer
	signal  chan struct{} // something changed: look again
	air     air

	mu         sync.Mutex // guards what follows, and the queues of the sockets
	addrs      []netip.Addr
	interfaces []string
	faults     Faults
	conns      []*conn
	woken      bool
	closed     bool
	dropped    uint64
}

var _ rawio.Host = (*Host)(nil)

// NewHost returns a host. In a synctest bubble, call it there.
func NewHost(c Config) *Host {
	h := &Host{
		network: c.Network, mtu: c.MTU, link: c.Link, addrs: slices.Clone(c.Addrs), interfaces: slices.Clone(c.Interfaces),
		signal: make(chan struct{}, 1), timer: time.NewTimer(time.Hour),
	}
	h.timer.Stop()
	if h.network == nil {
		h.network = func([]byte) []Delivery { return nil }
	}
	if h.mtu == 0 {
		h.mtu = 1500
	}
	return h
}

// SetFaults replaces the faults.
func (h *Host) SetFaults(f Faults) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.faults = f
}

// SetAddrs replaces the host's addresses, as when an interface loses one.
func (h *Host) SetAddrs(addrs ...netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.addrs = slices.Clone(addrs)
}

// SetInterfaces replaces the interfaces. An empty name is one that is gone.
func (h *Host) SetInterfaces(names ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.interfaces = slices.Clone(names)
}

// Dropped counts the arrivals that found a full receive queue.
func (h *Host) Dropped() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dropped
}

// Open implements [rawio.Host].
func (h *Host) Open(s rawio.Spec) (rawio.Conn, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.Version != 4 && s.Version != 6 {
		return nil, fmt.Errorf("open socket: IP version %d is neither 4 nor 6", s.Version)
	}
	switch s.Kind {
	case rawio.RawHeader, rawio.Raw, rawio.Datagram, rawio.Link:
	default:
		return nil, fmt.Errorf("open socket: unknown kind %d", s.Kind)
	}
	if f := h.faults.Open; f != nil {
		if err := f(s); err != nil {
			return nil, err
		}
	}
	c := &conn{host: h, spec: s, bound: s.Local}
	if err := c.setFilterLocked(s.Filter); err != nil {
		return nil, err
	}
	if s.Kind == rawio.Datagram {
		if err := c.bindLocked(); err != nil {
			return nil, err
		}
	}
	h.conns = append(h.conns, c)
	return c, nil
}

// source is the address of one version that packets leave from; the zero Addr if there is none.
func (h *Host) sourceLocked(v6 bool) netip.Addr {
	for _, a := range h.addrs {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

func (h *Host) routeLocked(dst netip.Addr, via rawio.Route) (netip.Addr, error) {
	if f := h.faults.Route; f != nil {
		if err := f(dst, via); err != nil {
			return netip.Addr{}, err
		}
	}
	if zone := dst.Zone(); zone != "" {
		if _, err := h.indexLocked(zone); err != nil {
			return netip.Addr{}, err
		}
	}
	if slices.Contains(h.addrs, dst) {
		return dst, nil // a host reaches itself from the same address
	}
	src := h.sourceLocked(dst.Is6())
	if !src.IsValid() {
		return src, syscall.ENETUNREACH
	}
	return src, nil
}

// Source implements [rawio.Host].
func (h *Host) Source(dst netip.Addr, via rawio.Route) (netip.Addr, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if via.Interface != "" {
		if _, err := h.indexLocked(via.Interface); err != nil {
			return netip.Addr{}, err
		}
	}
	a, err := h.routeLocked(dst, via)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("route to %v: %w", dst, err)
	}
	return a, nil
}

// NextHop implements [rawio.Host].
func (h *Host) NextHop(dst netip.Addr, via rawio.Route) (rawio.NextHop, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	hop := rawio.NextHop{IfIndex: len(h.interfaces), Link: h.link, MTU: h.mtu, Fresh: true}
	if via.Interface != "" {
		var err error
		if hop.IfIndex, err = h.indexLocked(via.Interface); err != nil {
			return hop, err
		}
	}
	src, err := h.routeLocked(dst, via)
	if err != nil {
		return hop, fmt.Errorf("next hop to %v: %w", dst, err)
	}
	hop.Source = src
	if h.link == (rawio.LinkAddr{}) || via.Mark != 0 || dst.IsLoopback() || dst.IsMulticast() || slices.Contains(h.addrs, dst.WithZone("")) {
		return hop, fmt.Errorf("next hop to %v: %w", dst, errors.ErrUnsupported)
	}
	if f := h.faults.NextHop; f != nil {
		if err := f(dst, &hop); err != nil {
			return hop, fmt.Errorf("next hop to %v: %w", dst, err)
		}
	}
	return hop, nil
}

// CheckLocal implements [rawio.Host].
func (h *Host) CheckLocal(addr netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Contains(h.addrs, addr) {
		return fmt.Errorf("local address %v: %w", addr, syscall.EADDRNOTAVAIL)
	}
	return nil
}

// IfIndex implements [rawio.Host].
func (h *Host) IfIndex(name string) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.indexLocked(name)
}

// indexLocked is the number of the interface of this name, or of this number in decimal.
func (h *Host) indexLocked(name string) (int, error) {
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n <= len(h.interfaces) {
		return n, nil
	}
	if i := slices.Index(h.interfaces, name); i >= 0 && name != "" {
		return i + 1, nil
	}
	return 0, fmt.Errorf("interface %q: %w", name, syscall.ENODEV)
}

// Wait implements [rawio.Host].
func (h *Host) Wait(timeout time.Duration) error { return h.wait(timeout, h.readyLocked) }

// Nap implements [rawio.Host].
func (h *Host) Nap(timeout time.Duration) error {
	return h.wait(timeout, func() bool { return false })
}

func (h *Host) wait(timeout time.Duration, readyLocked func() bool) error {
	if timeout > 0 {
		h.timer.Reset(timeout)
		defer h.timer.Stop()
	}
	for first := true; ; first = false {
		h.mu.Lock()
		var err error
		if h.faults.Wait != nil && first {
			err = h.faults.Wait()
		}
		closed, ready := h.closed, h.woken || readyLocked()
		h.woken = false
		h.mu.Unlock()
		switch {
		case err != nil:
			return err
		case closed:
			return net.ErrClosed
		case ready || timeout == 0:
			return nil
		}
		if timeout < 0 {
			<-h.signal
			continue
		}
		select {
		case <-h.signal:
		case <-h.timer.C:
			return nil
		}
	}
}

// readyLocked tells whether some socket has something to read. What only sends is not watched.
func (h *Host) readyLocked() bool {
	for _, c := range h.conns {
		if c.spec.Kind != rawio.RawHeader && c.spec.Kind != rawio.Link && (len(c.queue) > 0 || len(c.errors) > 0) {
			return true
		}
	}
	return false
}

func (h *Host) notify() {
	select {
	case h.signal <- struct{}{}:
	default:
	}
}

// Wake implements [rawio.Host].
func (h *Host) Wake() {
	h.mu.Lock()
	h.woken = true
	h.mu.Unlock()
	h.notify()
}

// Close implements [rawio.Host]. It is idempotent.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.conns = nil
	h.notify()
	return nil
}

// Deliver makes a packet arrive now, without anything having been sent. The host keeps it.
func (h *Host) Deliver(packet []byte) {
	d, ok := parse(packet, false)
	if !ok {
		return // no kernel lets it through
	}
	now := time.Now().UnixNano()
	h.mu.Lock()
	for _, c := range h.conns {
		c.arriveLocked(&d, now)
	}
	h.mu.Unlock()
	h.notify()
}

// carry hands a packet to the network.
func (h *Host) carry(packet []byte) {
	for _, d := range h.network(packet) {
		if d.After <= 0 {
			h.Deliver(d.Packet)
			continue
		}
		h.air.add(time.Now().Add(d.After), d.Packet)
		time.AfterFunc(d.After, h.land)
	}
}

// land delivers what is due, in the order in which it is due: timers of one moment fire in any order.
func (h *Host) land() {
	h.air.mu.Lock()
	defer h.air.mu.Unlock()
	for now := time.Now(); len(h.air.heap) > 0 && !h.air.heap[0].due.After(now); {
		h.Deliver(heap.Pop(&h.air.heap).(flight).packet)
	}
}

// air is what is on its way to a host.
type air struct {
	mu    sync.Mutex // held while landing, so that two timers can't change the order. Before Host.mu
	heap  flights
	count uint64
}

func (a *air) add(due time.Time, packet []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.count++
	heap.Push(&a.heap, flight{due, a.count, packet})
}

type flight struct {
	due    time.Time
	number uint64 // of those due at one moment, first come first served
	packet []byte
}

// flights is a heap.
type flights []flight

func (f flights) Len() int      { return len(f) }
func (f flights) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f *flights) Push(x any)   { *f = append(*f, x.(flight)) }

func (f flights) Less(i, j int) bool {
	if c := f[i].due.Compare(f[j].due); c != 0 {
		return c < 0
	}
	return f[i].number < f[j].number
}

func (f *flights) Pop() any {
	last := (*f)[len(*f)-1]
	*f = (*f)[:len(*f)-1]
	return last
}
