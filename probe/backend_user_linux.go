// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/packet"
)

// user is the unprivileged backend: ICMP echo ("ping") sockets and UDP sockets,
// whose error queues tell of ICMP errors (IP_RECVERR), and a TCP connection per probe.
//
// The kernel writes the headers, so a UDP probe whose ports are both fixed keeps
// its number in the first two payload bytes. Where a router quotes less than that, the error is
// taken to be about the oldest probe of the flow.
type user struct {
	e       *engine
	ping    [2]*userSocket
	udp     [2]map[uint16]*userSocket // by source port
	connect *rawio.Connector
	in      [rawio.BatchSize]rawio.Message
	one     [1]rawio.Message
	routes  routeCache
	missing []string
}

// userSocket is a socket with what its error queue owes.
type userSocket struct {
	conn   rawio.Conn
	port   uint16 // or ICMP identifier
	flying int
	stamps stamps
}

// maxUserSockets bounds the UDP sockets per IP version: one per source port in use.
const maxUserSockets = 1024

func newUnprivileged(e *engine) (*user, error) {
	b := &user{e: e}
	for i := range b.in {
		b.in[i].Data = make([]byte, receiveSize)
	}
	b.routes.init()
	var errs []error
	for v := range b.ping {
		version := 4 + 2*v
		ping, err := b.openPing(v)
		switch {
		case errors.Is(err, ErrPermission):
			b.missing = append(b.missing, fmt.Sprintf("ICMP over IPv%d: the user's group is not in the sysctl net.ipv4.ping_group_range; "+
				"set it (`sysctl net.ipv4.ping_group_range='0 2147483647'`) or give the program CAP_NET_RAW", version))
		case err != nil:
			errs = append(errs, err)
			continue
		}
		b.ping[v] = ping
		udp, err := b.open(v, udpDatagram, 0)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		b.udp[v] = map[uint16]*userSocket{0: udp}
	}
	if b.udp[0] == nil && b.udp[1] == nil {
		return nil, errors.Join(errs...)
	}
	for _, err := range errs {
		b.missing = append(b.missing, err.Error())
	}
	var kernel *rawio.KernelHost
	switch h := e.host.(type) {
	case *rawio.KernelHost:
		kernel = h
	case *loopHost:
		kernel = h.KernelHost
	}
	if kernel != nil {
		c, err := rawio.NewConnector(kernel)
		if err != nil {
			return nil, err
		}
		b.connect = c
	}
	b.missing = append(b.missing, "SCTP, routing marks: only with CAP_NET_RAW (`setcap cap_net_raw+ep PROGRAM`)")
	return b, nil
}

const udpDatagram = int(packet.ProtocolUDP)

// openPing opens a ping socket with the identifier that the options ask for, or, where that is taken, another.
func (b *user) openPing(v int) (*userSocket, error) {
	s, err := b.open(v, int(protocolNumbers[v][ICMP]), b.e.firstID)
	if errors.Is(err, syscall.EADDRINUSE) {
		for id := b.e.firstID + 1; id != b.e.firstID && errors.Is(err, syscall.EADDRINUSE); id++ {
			if id != 0 {
				s, err = b.open(v, int(protocolNumbers[v][ICMP]), id)
			}
		}
	}
	return s, err
}

func (b *user) open(v, proto int, port uint16) (*userSocket, error) {
	local := netip.IPv4Unspecified()
	if v == 1 {
		local = netip.IPv6Unspecified()
	}
	c, err := b.e.host.Open(rawio.Spec{
		Version: 4 + 2*v, Kind: rawio.Datagram, Protocol: proto, Local: netip.AddrPortFrom(local, port),
		ReceiveErrors: true, ReceiveBuffer: b.e.p.opts.ReceiveBuffer,
	})
	if err != nil {
		return nil, err
	}
	return &userSocket{conn: c, port: port}, nil
}

func (b *user) features() Features {
	return Features{
		Mode: Unprivileged, IPv4: b.udp[0] != nil, IPv6: b.udp[1] != nil,
		ICMP: b.ping[0] != nil || b.ping[1] != nil, UDP: true, TCP: b.connect != nil,
		Interface: true, Flow: true, KernelTime: true, Missing: b.missing,
	}
}

func (b *user) close() {
	if b.connect != nil {
		b.connect.Close()
	}
}

func (b *user) transmit(batch []uint32) {
	for _, i := range batch {
		if err := b.transmitOne(i); err != nil {
			b.e.refused(i, err)
		}
	}
}

func (b *user) transmitOne(i uint32) error {
	e := b.e
	s := e.slots.at(i)
	if s.req.Mark != 0 {
		return fmt.Errorf("a routing mark needs CAP_NET_RAW: %w", ErrPermission)
	}
	src, index, err := b.routes.route(e, s)
	if err != nil {
		return err
	}
	s.src = src
	if s.req.Protocol == TCP {
		return b.transmitTCP(i)
	}
	sock, data, err := b.prepare(i)
	if err != nil {
		return err
	}
	m := &b.one[0]
	*m = rawio.Message{
		Data: data, Addr: netip.AddrPortFrom(s.to(), 0), TTL: s.req.TTL, TOS: s.req.TOS,
		IfIndex: index, Source: s.req.LocalAddr,
	}
	if s.req.Protocol == UDP {
		m.Addr = netip.AddrPortFrom(s.to(), s.b)
	}
	e.clock()
	mono, wall := e.now, e.wall
	for try := 0; ; try++ {
		m.StampTX = sock.stamps.sure(e, sock.conn)
		if _, err = sock.conn.Send(b.one[:]); err == nil {
			break
		}
		if m.StampTX {
			sock.stamps.refused(e)
		}
		if try == 2 || transient(err) {
			return fmt.Errorf("send to %v: %w", s.dst, err)
		}
		// An ICMP error about an earlier probe also makes the next call on the socket fail,
		// once. Its queue tells whose error it was; this probe is tried again.
		b.readErrors(sock, ipVersion(s.dst), s.req.Protocol)
	}
	e.sent(i, mono, wall)
	sock.flying++
	if m.StampTX {
		sock.stamps.await(e, i)
	}
	b.readErrors(sock, ipVersion(s.dst), s.req.Protocol)
	return nil
}

// prepare numbers slot i and builds what its socket sends.
func (b *user) prepare(i uint32) (*userSocket, []byte, error) {
	e := b.e
	s := e.slots.at(i)
	v := ipVersion(s.dst)
	if s.req.Protocol == ICMP {
		sock := b.ping[v]
		if sock == nil {
			return nil, nil, fmt.Errorf("ICMP sockets for IPv%d: %w", 4+2*v, ErrPermission)
		}
		if err := e.pick(i, identity{proto: ICMP, v6: v == 1, a: sock.port}, inDstPort); err != nil {
			return nil, nil, err
		}
		data, err := appendTransport(b.one[0].Data[:0], s)
		return sock, data, err
	}
	port := s.req.LocalPort
	id := identity{proto: UDP, v6: v == 1, dst: s.dst, b: s.req.Port}
	if s.req.Flow != 0 {
		port = e.sourcePort(&s.req)
		if id.b == 0 {
			id.b = flowPort
		}
	}
	sock, err := b.udpSocket(v, port)
	if err != nil {
		return nil, nil, err
	}
	id.a = port
	in := inDstPort
	if id.b != 0 {
		in = inToken
	}
	if err := e.pick(i, id, in); err != nil {
		return nil, nil, err
	}
	header := packet.IPv4HeaderLen
	if v == 1 {
		header = packet.IPv6HeaderLen
	}
	data := appendPattern(b.one[0].Data[:0], max(s.req.Size-header-packet.UDPHeaderLen, 4), s.req.Pattern)
	if in == inToken {
		binary.BigEndian.PutUint16(data, uint16(s.token))
	}
	return sock, data, nil
}

// udpSocket is the socket with this source port; 0 is the one whose port the system chose.
func (b *user) udpSocket(v int, port uint16) (*userSocket, error) {
	if sock := b.udp[v][port]; sock != nil {
		return sock, nil
	}
	if len(b.udp[v]) >= maxUserSockets {
		for p, sock := range b.udp[v] {
			if p != 0 && sock.flying == 0 {
				sock.conn.Close()
				delete(b.udp[v], p)
			}
		}
		if len(b.udp[v]) >= maxUserSockets {
			return nil, errBusy
		}
	}
	sock, err := b.open(v, udpDatagram, port)
	if err != nil {
		return nil, err
	}
	b.udp[v][port] = sock
	return sock, nil
}

func (b *user) transmitTCP(i uint32) error {
	e := b.e
	s := e.slots.at(i)
	// Ports that other programs use are passed over.
	for range 64 {
		id := identity{proto: TCP, v6: s.dst.Is6(), dst: s.dst, b: s.req.Port}
		_, id.a = e.nextSequence()
		if s.req.Flow != 0 {
			id.a = e.sourcePort(&s.req)
		}
		if !e.identify(i, id, false) {
			if s.req.Flow != 0 {
				return errBusy // a flow has one connection at a time
			}
			continue
		}
		local := s.req.LocalAddr
		if !local.IsValid() {
			local = s.src
		}
		if local.IsLinkLocalUnicast() {
			local = local.WithZone(s.to().Zone())
		}
		e.clock()
		mono, wall := e.now, e.wall
		fd, err := b.connect.Start(rawio.Connect{
			Local: netip.AddrPortFrom(local, id.a), Remote: netip.AddrPortFrom(s.to(), s.req.Port),
			TTL: s.req.TTL, TOS: s.req.TOS, Interface: s.req.Interface,
		}, uint64(s.gen)<<32|uint64(i))
		if err == nil {
			s.fd = int32(fd)
			e.sent(i, mono, wall)
			return nil
		}
		e.unidentify(i)
		if !errors.Is(err, syscall.EADDRINUSE) && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			return err
		}
		if s.req.Flow != 0 {
			return errBusy
		}
	}
	return syscall.EADDRINUSE
}

func (b *user) forget(i uint32) {
	s := b.e.slots.at(i)
	switch s.req.Protocol {
	case UDP:
		if sock := b.udp[ipVersion(s.dst)][s.a]; sock != nil {
			if sock.flying--; sock.flying == 0 {
				b.e.retryNow() // the socket may be given up for another
			}
		}
	case TCP:
		if s.fd != 0 {
			b.connect.Stop(int(s.fd))
			s.fd = 0
			b.e.retryNow()
		}
	case ICMP, SCTP:
	}
}

func (b *user) receive(bool) bool {
	any := false
	for v := range b.ping {
		if sock := b.ping[v]; sock != nil {
			any = b.drain(sock, v, ICMP) || any
		}
		for _, sock := range b.udp[v] {
			any = b.drain(sock, v, UDP) || any
		}
	}
	if b.connect != nil {
		any = b.connect.Poll(b.descriptor, b.connected) || any
	}
	return any
}

// drain reads both queues of a socket. Answers come before errors, as they do on the way.
func (b *user) drain(sock *userSocket, v int, p Protocol) (any bool) {
	for range receiveRounds {
		n, err := sock.conn.Receive(b.in[:])
		if err != nil || n == 0 {
			break // an error here is the echo of one in the error queue
		}
		any = true
		b.e.clock()
		for k := range b.in[:n] {
			m := &b.in[k]
			b.e.counters.Received++
			in := arrival{src: m.Addr.Addr(), ttl: m.TTL, stamp: m.Time, data: m.Data[:m.N]}
			if p == ICMP {
				b.e.icmp(4+2*v, &in)
				continue
			}
			id := identity{proto: UDP, v6: v == 1, a: sock.port, b: m.Addr.Port(), dst: in.src.WithZone("")}
			i := b.e.find(id)
			if i == 0 {
				i = b.e.findFlow(id)
			}
			b.e.matched(i, &Result{Status: Replied, Responder: in.src, ReplyTTL: in.ttl}, in.stamp)
		}
		if n < len(b.in) {
			break
		}
	}
	return b.readErrors(sock, v, p) || any
}

// readErrors reads the error queue: departure stamps and ICMP errors.
func (b *user) readErrors(sock *userSocket, v int, p Protocol) (any bool) {
	e := b.e
	for range receiveRounds {
		n, err := sock.conn.ReceiveErrors(b.in[:])
		if err != nil || n == 0 {
			return any
		}
		any = true
		e.clock()
		for k := range b.in[:n] {
			m := &b.in[k]
			f := &m.Failure
			switch f.Origin {
			case rawio.OriginTimestamp:
				sock.stamps.take(e, m)
			case rawio.OriginICMP, rawio.OriginICMPv6:
				e.counters.Received++
				b.failed(sock, v, p, m)
			case rawio.OriginNone, rawio.OriginLocal:
				// This host's own error, such as one about the packet's size, was the
				// result of the send already.
			}
		}
		if n < len(b.in) {
			break
		}
	}
	return any
}

// failed handles an ICMP error about a probe of sock; m.Data is what it quotes from
// the ICMP header on, or of UDP the payload.
func (b *user) failed(sock *userSocket, v int, p Protocol, m *rawio.Message) {
	e := b.e
	f := &m.Failure
	r := Result{
		Responder: f.Offender, HasICMP: true, ICMPType: f.Type, ICMPCode: f.Code, ReplyTTL: m.TTL,
		Status: errorStatus(4+2*v, f.Type, f.Code),
	}
	if r.Status == 0 {
		e.counters.Irrelevant++
		return
	}
	if r.Status == HostUnreachable {
		r.MTU = f.Info
	}
	data := m.Data[:m.N]
	id := identity{proto: p, v6: v == 1, a: sock.port, dst: m.Addr.Addr().WithZone("")}
	var i uint32
	switch {
	case p == ICMP && len(data) >= packet.ICMPHeaderLen:
		id.b = binary.BigEndian.Uint16(data[6:])
		i = e.find(id)
	case p == UDP:
		id.b = m.Addr.Port()
		if i = e.find(id); i != 0 {
			break
		}
		if len(data) >= 2 {
			id.token = uint32(binary.BigEndian.Uint16(data))
			i = e.find(id)
		} else {
			i = e.findFlow(id)
		}
	}
	if i != 0 && e.slots.at(i).dst != id.dst {
		i = 0
	}
	if off := f.ExtensionOffset; i != 0 && off > 0 && off < len(data) {
		if ext, err := packet.ParseExtensions(data[off:]); err == nil {
			r.MPLS = ext.AppendLabels(nil)
		}
	}
	e.matched(i, &r, m.Time)
}

// descriptor is the socket of a TCP probe by the key of its try.
func (b *user) descriptor(key uint64) int {
	s := b.e.slots.at(uint32(key))
	if s.gen != uint32(key>>32) || s.state != slotFlying || s.fd == 0 {
		return -1
	}
	return int(s.fd)
}

// connected handles the end of a TCP probe's try.
func (b *user) connected(c *rawio.Connected) {
	e := b.e
	i := uint32(c.Key)
	s := e.slots.at(i)
	e.clock()
	e.counters.Received++
	f := &c.Failure
	icmp := f.Origin == rawio.OriginICMP || f.Origin == rawio.OriginICMPv6
	status := errorStatus(4+2*ipVersion(s.dst), f.Type, f.Code)
	if icmp && status == 0 {
		e.counters.Irrelevant++
		return
	}
	// A SYN that was repeated was sent a second after the first: the answer counts from there.
	if c.Retransmits > 0 {
		again := int64(time.Second) * (1<<min(c.Retransmits, 6) - 1)
		if e.now-s.sentMono > again {
			s.sentMono += again
			s.sentWall += again
		}
	}
	if icmp {
		r := Result{Status: status, Responder: f.Offender, HasICMP: true, ICMPType: f.Type, ICMPCode: f.Code}
		if c.Extension != nil {
			if ext, err := packet.ParseExtensions(c.Extension); err == nil {
				r.MPLS = ext.AppendLabels(nil)
			}
		}
		e.answer(i, &r, 0)
		return
	}
	switch c.Err {
	case 0, syscall.ECONNREFUSED:
		if c.RTT > 0 {
			// Without the time until we looked.
			stamp := s.sentWall + int64(c.RTT)
			e.answer(i, &Result{Status: Replied, Responder: s.dst}, stamp)
			return
		}
		e.answer(i, &Result{Status: Replied, Responder: s.dst}, 0)
	case syscall.ETIMEDOUT:
		// The system gave up repeating; the probe has until its own deadline.
	default:
		e.fail(i, fmt.Errorf("connect to %v: %w", s.dst, c.Err))
	}
}
