// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawiotest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"golang.org/x/net/bpf"

	"github.com/seed5728abee/fathom/internal/rawio"
)

const (
	defaultQueue = 212992 // bytes: net.core.rmem_default
	// What the kernel charges a queue for beside the bytes of a packet (struct sk_buff and shared info).
	overhead = 768

	defaultTTL = 64
)

// conn is a socket of a [Host].
type conn struct {
	host  *Host
	spec  rawio.Spec
	bound netip.AddrPort

	// host.mu guards what follows.
	filter  *bpf.VM
	queue   []entry
	queued  int // bytes in queue
	errors  []entry
	pending syscall.Errno // of the socket: the next call fails with it, once
	stamps  uint32        // departures counted
	dropped uint32
	closed  bool
}

// entry is a message in a queue.
type entry struct {
	data []byte
	m    rawio.Message // all but Data, N, Truncated
}

var _ rawio.Conn = (*conn)(nil)

// bindLocked gives a datagram socket its port or identifier.
func (c *conn) bindLocked() error {
	h := c.host
	addr, port := c.spec.Local.Addr(), c.spec.Local.Port()
	if addr.IsValid() && !addr.IsUnspecified() && !slices.Contains(h.addrs, addr) {
		return fmt.Errorf("bind to %v: %w", c.spec.Local, syscall.EADDRNOTAVAIL)
	}
	taken := func(p uint16) bool {
		return slices.ContainsFunc(h.conns, func(o *conn) bool {
			return o.spec.Kind == rawio.Datagram && o.spec.Version == c.spec.Version && o.spec.Protocol == c.spec.Protocol && o.bound.Port() == p
		})
	}
	if port == 0 {
		for port = 32768; taken(port); port++ { // net.ipv4.ip_local_port_range
		}
	} else if taken(port) {
		return fmt.Errorf("bind to %v: %w", c.spec.Local, syscall.EADDRINUSE)
	}
	if !addr.IsValid() {
		addr = netip.IPv4Unspecified()
		if c.spec.Version == 6 {
			addr = netip.IPv6Unspecified()
		}
	}
	c.bound = netip.AddrPortFrom(addr, port)
	return nil
}

// Send implements [rawio.Conn].
func (c *conn) Send(msgs []rawio.Message) (int, error) {
	for k := range msgs {
		packet, err := c.take(&msgs[k])
		if err != nil {
			return k, err
		}
		if packet != nil {
			c.host.carry(packet)
		}
	}
	return len(msgs), nil
}

// take makes the packet that leaves for m; nil if nobody gets it.
func (c *conn) take(m *rawio.Message) ([]byte, error) {
	h := c.host
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.closed || h.closed {
		return nil, net.ErrClosed
	}
	if c.pending != 0 {
		err := c.pending
		c.pending = 0
		return nil, err
	}
	if c.spec.Kind == rawio.Link {
		return c.takeFrameLocked(m)
	}
	dst := m.Addr.Addr()
	if dst.Is4() != (c.spec.Version == 4) {
		return nil, syscall.EAFNOSUPPORT
	}
	if m.IfIndex < 0 || m.IfIndex > len(h.interfaces) || m.IfIndex > 0 && h.interfaces[m.IfIndex-1] == "" {
		return nil, syscall.ENODEV
	}
	src, err := h.routeLocked(dst, rawio.Route{})
	if err != nil {
		return nil, err
	}
	if m.Source.IsValid() && !m.Source.IsUnspecified() && c.spec.Kind != rawio.RawHeader {
		if !slices.Contains(h.addrs, m.Source) {
			return nil, syscall.EINVAL // as IP_PKTINFO has it
		}
		src = m.Source
	}
	if err := c.askLocked(m); err != nil {
		return nil, err
	}
	packet, err := c.build(m, src, dst.WithZone(""))
	if err != nil {
		return nil, err
	}
	c.stampLocked(m)
	return packet, nil
}

// takeFrameLocked makes the packet that leaves in a frame: what m has, without a look at the routes. What goes to
// another Ethernet address than the neighbour's is nobody's.
func (c *conn) takeFrameLocked(m *rawio.Message) ([]byte, error) {
	h := c.host
	if m.IfIndex < 1 || m.IfIndex > len(h.interfaces) || h.interfaces[m.IfIndex-1] == "" {
		return nil, syscall.ENXIO
	}
	if err := c.askLocked(m); err != nil {
		return nil, err
	}
	if len(m.Data) > h.mtu {
		return nil, syscall.EMSGSIZE
	}
	c.stampLocked(m)
	if m.Link != h.link {
		return nil, nil
	}
	return slices.Clone(m.Data), nil
}

// askLocked asks the test whether m is taken.
func (c *conn) askLocked(m *rawio.Message) error {
	f := c.host.faults.Send
	if f == nil {
		return nil
	}
	err := f(c.spec, m)
	// The queue below the socket is full: the kernel has counted the message by then.
	if errors.Is(err, syscall.ENOBUFS) && m.StampTX {
		c.stamps++
	}
	return err
}

// stampLocked leaves the departure stamp that m asks for.
func (c *conn) stampLocked(m *rawio.Message) {
	if !m.StampTX {
		return
	}
	c.errors = append(c.errors, entry{m: rawio.Message{
		Time: time.Now().UnixNano(), Failure: rawio.Failure{Errno: uint32(syscall.ENOMSG), Origin: rawio.OriginTimestamp, ID: c.stamps},
	}})
	c.stamps++
}

func (c *conn) build(m *rawio.Message, src, dst netip.Addr) ([]byte, error) {
	ttl := m.TTL
	if ttl == 0 {
		ttl = defaultTTL
	}
	switch c.spec.Kind {
	case rawio.RawHeader:
		if len(m.Data) > c.host.mtu {
			return nil, syscall.EMSGSIZE
		}
		return c.complete(m.Data, src)
	case rawio.Raw:
		payload := slices.Clone(m.Data)
		if c.spec.Protocol == protoICMPv6 {
			if len(payload) < 4 {
				return nil, syscall.EINVAL
			}
			setChecksum(protoICMPv6, src, dst, payload, 2)
		}
		return c.append(payload, src, dst, ttl, m.TOS)
	default:
		switch c.spec.Protocol {
		case protoUDP:
			payload := make([]byte, 8, 8+len(m.Data))
			binary.BigEndian.PutUint16(payload, c.bound.Port())
			binary.BigEndian.PutUint16(payload[2:], m.Addr.Port())
			binary.BigEndian.PutUint16(payload[4:], uint16(8+len(m.Data)))
			payload = append(payload, m.Data...)
			setChecksum(protoUDP, src, dst, payload, 6)
			return c.append(payload, src, dst, ttl, m.TOS)
		case protoICMP, protoICMPv6:
			if len(m.Data) < 8 {
				return nil, syscall.EINVAL
			}
			payload := slices.Clone(m.Data)
			binary.BigEndian.PutUint16(payload[4:], c.bound.Port())
			setChecksum(c.spec.Protocol, src, dst, payload, 2)
			return c.append(payload, src, dst, ttl, m.TOS)
		}
		return nil, syscall.EPROTONOSUPPORT
	}
}

func (c *conn) append(payload []byte, src, dst netip.Addr, ttl, tos uint8) ([]byte, error) {
	if len(payload)+ip4Header > 65535 {
		return nil, syscall.EMSGSIZE
	}
	return appendPacket(nil, c.spec.Protocol, src, dst, ttl, tos, payload), nil
}

// complete fills in what the kernel does in a header that it is given: of IPv4 the total length, the checksum, and
// the identification and source if they are zero; of IPv6 nothing.
func (c *conn) complete(data []byte, src netip.Addr) ([]byte, error) {
	b := slices.Clone(data)
	if c.spec.Version == 6 {
		if len(b) < ip6Header {
			return nil, syscall.EINVAL
		}
		return b, nil
	}
	if len(b) < ip4Header || int(b[0]&15)*4 < ip4Header || len(b) < int(b[0]&15)*4 {
		return nil, syscall.EINVAL
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	if [4]byte(b[12:]) == ([4]byte{}) {
		a := src.As4()
		copy(b[12:], a[:])
	}
	if b[4] == 0 && b[5] == 0 && b[6]&0x40 == 0 { // an atomic datagram keeps a zero (RFC 6864)
		b[5] = 1
	}
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], checksum(0, b[:int(b[0]&15)*4]))
	return b, nil
}

// arriveLocked queues d if it is for this socket.
func (c *conn) arriveLocked(d *datagram, now int64) {
	if d.version != c.spec.Version || c.closed {
		return
	}
	m := rawio.Message{Time: now}
	if c.spec.ReceiveLocal {
		m.Local = d.dst
	}
	switch c.spec.Kind {
	case rawio.RawHeader, rawio.Link: // receive nothing
	case rawio.Raw:
		if d.proto != c.spec.Protocol {
			return
		}
		data := d.whole
		if d.version == 6 {
			// The kernel checks what arrives on ICMPv6 sockets, and leaves the rest to the receiver.
			if d.proto == protoICMPv6 && checksum(pseudo(d.proto, d.src, d.dst, len(d.upper)), d.upper) != 0 {
				return
			}
			data = d.upper
			m.Addr, m.TTL, m.TOS = netip.AddrPortFrom(d.src, 0), d.ttl, d.tos
		}
		c.queueLocked(data, &m)
	case rawio.Datagram:
		icmp := protoICMP
		if d.version == 6 {
			icmp = protoICMPv6
		}
		switch {
		case d.proto == icmp:
			c.icmpLocked(d, &m)
		case d.proto == protoUDP && c.spec.Protocol == protoUDP && len(d.upper) >= 8:
			if binary.BigEndian.Uint16(d.upper[2:]) != c.bound.Port() {
				return
			}
			if given := binary.BigEndian.Uint16(d.upper[6:]); given != 0 && checksum(pseudo(protoUDP, d.src, d.dst, len(d.upper)), d.upper) != 0 {
				return
			}
			m.Addr, m.TTL, m.TOS = netip.AddrPortFrom(d.src, binary.BigEndian.Uint16(d.upper)), d.ttl, d.tos
			c.queueLocked(d.upper[8:], &m)
		}
	}
}

// icmpLocked gives a datagram socket its echo replies, and the errors about what it sent.
func (c *conn) icmpLocked(d *datagram, m *rawio.Message) {
	b := d.upper
	var sum uint32
	if d.version == 6 {
		sum = pseudo(d.proto, d.src, d.dst, len(b))
	}
	if len(b) < 8 || checksum(sum, b) != 0 {
		return
	}
	reply := b[0] == 0 && d.version == 4 || b[0] == 129 && d.version == 6
	if reply {
		if c.spec.Protocol == d.proto && binary.BigEndian.Uint16(b[4:]) == c.bound.Port() {
			m.Addr, m.TTL, m.TOS = netip.AddrPortFrom(d.src, 0), d.ttl, d.tos
			c.queueLocked(b, m)
		}
		return
	}
	errno, ok := errnoOf(d.version, b[0], b[1])
	q, parsed := parse(b[8:], true)
	if !ok || !parsed || !c.spec.ReceiveErrors || q.version != d.version || q.proto != c.spec.Protocol || len(q.upper) < 8 {
		return
	}
	quoted, port, data := binary.BigEndian.Uint16(q.upper), binary.BigEndian.Uint16(q.upper[2:]), q.upper[8:]
	if q.proto != protoUDP {
		quoted, port, data = binary.BigEndian.Uint16(q.upper[4:]), 0, q.upper
	}
	if quoted != c.bound.Port() {
		return
	}
	f := rawio.Failure{Errno: uint32(errno), Origin: rawio.OriginICMP, Type: b[0], Code: b[1], Offender: d.src}
	if d.version == 6 {
		f.Origin = rawio.OriginICMPv6
		if b[0] == 2 {
			f.Info = binary.BigEndian.Uint32(b[4:])
		}
	} else if b[0] == 3 && b[1] == 4 {
		f.Info = uint32(binary.BigEndian.Uint16(b[6:]))
	}
	// RFC 4884's length field: where the extensions begin, which Linux gives relative to the data.
	n := int(b[5]) * 4
	if d.version == 6 {
		n = int(b[4]) * 8
	}
	if head := len(b) - 8 - len(data); n >= 128 && n < len(b)-8 {
		f.ExtensionOffset = n - head
	}
	m.Addr, m.Failure = netip.AddrPortFrom(q.dst, port), f
	m.TTL, m.TOS = d.ttl, d.tos
	c.errors = append(c.errors, entry{data: slices.Clone(data), m: *m})
	c.pending = errno
}

// errnoOf is the error that Linux makes of an ICMP message (icmp_err_convert, icmpv6_err_convert).
func errnoOf(version int, typ, code uint8) (syscall.Errno, bool) {
	if version == 4 {
		switch typ {
		case 3:
			switch code {
			case 0, 6, 9, 11:
				return syscall.ENETUNREACH, true
			case 2:
				return syscall.ENOPROTOOPT, true
			case 3:
				return syscall.ECONNREFUSED, true
			case 4:
				return syscall.EMSGSIZE, true
			}
			return syscall.EHOSTUNREACH, true
		case 11:
			return syscall.EHOSTUNREACH, true
		case 12:
			return syscall.EPROTO, true
		}
		return 0, false
	}
	switch typ {
	case 1:
		switch code {
		case 0:
			return syscall.ENETUNREACH, true
		case 1, 5, 6:
			return syscall.EACCES, true
		case 4:
			return syscall.ECONNREFUSED, true
		}
		return syscall.EHOSTUNREACH, true
	case 2:
		return syscall.EMSGSIZE, true
	case 3:
		return syscall.EHOSTUNREACH, true
	case 4:
		return syscall.EPROTO, true
	}
	return 0, false
}

// queueLocked adds an arrival that passes the filter, if there is room.
func (c *conn) queueLocked(data []byte, m *rawio.Message) {
	if c.filter != nil {
		if n, err := c.filter.Run(data); err != nil || n == 0 {
			return
		}
	}
	if c.queued+len(data)+overhead > c.room() {
		c.host.dropped++
		c.dropped++
		return
	}
	c.queued += len(data) + overhead
	c.queue = append(c.queue, entry{data: data, m: *m})
}

// room is how many bytes the receive queue takes. Kernels double what they are asked for.
func (c *conn) room() int {
	if c.spec.ReceiveBuffer == 0 {
		return defaultQueue
	}
	return 2 * c.spec.ReceiveBuffer
}

// Queue implements [rawio.Conn].
func (c *conn) Queue() (rawio.QueueState, error) {
	c.host.mu.Lock()
	defer c.host.mu.Unlock()
	if c.closed {
		return rawio.QueueState{}, net.ErrClosed
	}
	return rawio.QueueState{Size: c.room(), Dropped: c.dropped}, nil
}

// Receive implements [rawio.Conn].
func (c *conn) Receive(msgs []rawio.Message) (int, error) {
	c.host.mu.Lock()
	defer c.host.mu.Unlock()
	if c.closed || c.host.closed {
		return 0, net.ErrClosed
	}
	if c.pending != 0 {
		err := c.pending
		c.pending = 0
		return 0, err
	}
	n, size := fill(msgs, &c.queue)
	c.queued -= size + n*overhead
	return n, nil
}

// ReceiveErrors implements [rawio.Conn].
func (c *conn) ReceiveErrors(msgs []rawio.Message) (int, error) {
	c.host.mu.Lock()
	defer c.host.mu.Unlock()
	if c.closed || c.host.closed {
		return 0, net.ErrClosed
	}
	n, _ := fill(msgs, &c.errors)
	if n > 0 {
		// Taking an error off the queue takes it off the socket; the next one takes its place.
		c.pending = 0
		if len(c.errors) > 0 && c.errors[0].m.Failure.Origin != rawio.OriginTimestamp {
			c.pending = syscall.Errno(c.errors[0].m.Failure.Errno)
		}
	}
	return n, nil
}

// fill moves messages out of a queue, and tells how many with how many bytes.
func fill(msgs []rawio.Message, queue *[]entry) (n, size int) {
	n = min(len(msgs), len(*queue))
	for k, e := range (*queue)[:n] {
		data := msgs[k].Data
		msgs[k] = e.m
		msgs[k].Data = data
		msgs[k].N = copy(data, e.data)
		msgs[k].Truncated = msgs[k].N < len(e.data)
		size += len(e.data)
	}
	*queue = slices.Delete(*queue, 0, n)
	return n, size
}

// SetFilter implements [rawio.Conn].
func (c *conn) SetFilter(prog []bpf.RawInstruction) error {
	c.host.mu.Lock()
	defer c.host.mu.Unlock()
	if len(prog) == 0 {
		return fmt.Errorf("attach filter: program of 0 instructions")
	}
	return c.setFilterLocked(prog)
}

func (c *conn) setFilterLocked(prog []bpf.RawInstruction) error {
	if prog == nil {
		c.filter = nil
		return nil
	}
	ins, all := bpf.Disassemble(prog)
	if !all {
		return fmt.Errorf("attach filter: %w", syscall.EINVAL)
	}
	vm, err := bpf.NewVM(ins)
	if err != nil {
		return fmt.Errorf("attach filter: %w: %w", syscall.EINVAL, err)
	}
	c.filter = vm
	return nil
}

// LocalAddr implements [rawio.Conn].
func (c *conn) LocalAddr() netip.AddrPort { return c.bound }

// ResetStamps implements [rawio.Conn].
func (c *conn) ResetStamps() error {
	c.host.mu.Lock()
	defer c.host.mu.Unlock()
	c.stamps = 0
	return nil
}

// Close implements [rawio.Conn]. It is idempotent.
func (c *conn) Close() error {
	c.host.mu.Lock()
	defer c.host.mu.Unlock()
	c.closed = true
	c.host.conns = slices.DeleteFunc(c.host.conns, func(o *conn) bool { return o == c })
	return nil
}
