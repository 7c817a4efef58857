// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/net/bpf"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/packet"
)

// raw is the privileged backend. Per IP version, one socket sends whole packets, one more sends
// them in frames if the options ask for it, and one per protocol receives.
type raw struct {
	e       *engine
	senders [2]rawSender
	framers [2]rawSender      // conn is nil where there are no frames
	id      uint16            // IPv4 identification of the last framed packet
	rx      [2][4]rawReceiver // by ipVersion, Protocol
	in      [rawio.BatchSize]rawio.Message
	stamps  [rawio.BatchSize]rawio.Message
	routes  routeCache
	missing []string

	idle      int // waits since the last arrival
	sinceWait int // turns

	stampTime  int64 // mono, up to which the allowance was counted
	stampsLeft int64
}

// rawSender sends packets with their IP headers, through a raw socket or in frames.
type rawSender struct {
	conn  rawio.Conn
	msgs  [rawio.BatchSize]rawio.Message
	slots [rawio.BatchSize]uint32
	n     int

	stamps stamps
}

// rawReceiver is a raw socket of one protocol. It also sends what is too long for
// the sender, since the kernel fragments only packets whose header it wrote.
type rawReceiver struct {
	conn   rawio.Conn
	used   bool
	busy   bool   // it had something when last looked at
	lo, hi uint16 // ports let through by the filter
}

// Each departure that the kernel stamps costs an entry of the error queue, about a fifth of the
// probe itself. Up to stampRate of them per second are stamped, stampBurst at once: all probes of a
// trace, none to speak of in a flood. Probes without one take an even share of the time that
// their batch's system call took, which in a flood of equal probes is right to a microsecond or two.
const (
	stampRate  = 10000
	stampBurst = 4 * rawio.BatchSize
)

// mayStamp takes n departure stamps from the allowance, if they are there.
func (b *raw) mayStamp(n int) bool {
	e := b.e
	earned := (e.now - b.stampTime) / (int64(time.Second) / stampRate)
	b.stampsLeft = min(b.stampsLeft+earned, stampBurst)
	b.stampTime += earned * (int64(time.Second) / stampRate)
	if b.stampsLeft < int64(n) {
		return false
	}
	b.stampsLeft -= int64(n)
	return true
}

// receiveSize is how much of a packet is read: more than any ICMP error, and than the headers of
// any answer. What is cut off is not looked at.
const receiveSize = 1536

// receiveRounds bounds the batches that are read from one queue per turn: a flood must not keep the engine from
// sending and expiring.
const receiveRounds = 4

func newRaw(e *engine) (*raw, error) {
	b := &raw{e: e, stampsLeft: stampBurst}
	for i := range b.in {
		b.in[i].Data = make([]byte, receiveSize)
	}
	for i := range b.stamps {
		b.stamps[i].Data = make([]byte, 64)
	}
	var errs []error
	for v := range b.senders {
		if err := b.openVersion(v); err != nil {
			errs = append(errs, err)
			b.closeVersion(v)
			b.missing = append(b.missing, fmt.Sprintf("IPv%d: %v", 4+2*v, err))
		}
	}
	if len(errs) == len(b.senders) {
		return nil, errors.Join(errs...)
	}
	b.routes.init()
	if e.p.opts.SendFrames {
		b.openFramers()
	}
	return b, nil
}

// openFramers opens the sockets for frames. Without them all goes through the raw sockets.
func (b *raw) openFramers() {
	for v := range b.framers {
		if b.senders[v].conn == nil {
			continue
		}
		tx, err := b.e.host.Open(rawio.Spec{Version: 4 + 2*v, Kind: rawio.Link})
		if err != nil {
			b.missing = append(b.missing, fmt.Sprintf("Ethernet frames: %v", err))
			return
		}
		b.framers[v].conn = tx
	}
	b.id = uint16(rand.Uint32())
}

func (b *raw) openVersion(v int) error {
	e := b.e
	version := 4 + 2*v
	// The kernel tells a socket that a full queue dropped its packet only if it has an error queue.
	tx, err := e.host.Open(rawio.Spec{Version: version, Kind: rawio.RawHeader, ReceiveErrors: true})
	if err != nil {
		return err
	}
	b.senders[v].conn = tx
	for p := ICMP; p <= SCTP; p++ {
		// All sockets are opened now, since the privilege may be dropped next; until
		// the first probe of its protocol, each lets nothing through.
		rx, err := e.host.Open(rawio.Spec{
			Version: version, Kind: rawio.Raw, Protocol: int(protocolNumbers[v][p]),
			Filter: rawio.FilterNone(), ReceiveBuffer: e.p.opts.ReceiveBuffer,
		})
		if err != nil {
			return err
		}
		b.rx[v][p].conn = rx
	}
	return nil
}

func (b *raw) closeVersion(v int) {
	if c := b.senders[v].conn; c != nil {
		c.Close()
		b.senders[v].conn = nil
	}
	for p := range b.rx[v] {
		if c := b.rx[v][p].conn; c != nil {
			c.Close()
			b.rx[v][p].conn = nil
		}
	}
}

func (b *raw) features() Features {
	return Features{
		Mode: Privileged, IPv4: b.senders[0].conn != nil, IPv6: b.senders[1].conn != nil,
		ICMP: true, UDP: true, TCP: true, SCTP: true,
		Mark: true, Interface: true, Flow: true, KernelTime: true, Missing: b.missing,
		Frames: b.framers[0].conn != nil || b.framers[1].conn != nil,
	}
}

func (b *raw) close() {}

func (b *raw) forget(uint32) {}

// listen makes sure that answers to slot s pass the filter.
func (b *raw) listen(s *slot) error {
	v := ipVersion(s.dst)
	rx := &b.rx[v][s.req.Protocol]
	lo, hi := s.a, s.a // answers come to our source port
	if s.req.Protocol == ICMP {
		lo, hi = b.e.firstID, b.e.firstID+uint16(b.e.ids-1)
	}
	// ICMP errors come in answer to every protocol.
	if icmp := &b.rx[v][ICMP]; !icmp.used && s.req.Protocol != ICMP {
		if err := b.open(icmp, v, ICMP, b.e.firstID, b.e.firstID+uint16(b.e.ids-1)); err != nil {
			return err
		}
	}
	if rx.used && rx.lo <= lo && hi <= rx.hi {
		return nil
	}
	if rx.used {
		// Ports in sequence would change the filter with every probe.
		lo, hi = min(lo, rx.lo), max(hi, rx.hi)
		if hi >= b.e.firstSeq {
			hi = 65535
			lo = min(lo, b.e.firstSeq)
		}
	}
	return b.open(rx, v, s.req.Protocol, lo, hi)
}

func (b *raw) open(rx *rawReceiver, v int, p Protocol, lo, hi uint16) error {
	var f []bpf.RawInstruction
	switch {
	case p == ICMP && v == 0:
		f = rawio.FilterICMP4(lo, hi)
	case p == ICMP:
		f = rawio.FilterICMP6(lo, hi)
	case p == TCP && v == 0:
		f = rawio.FilterTCP4(lo, hi)
	case p == TCP:
		f = rawio.FilterTCP6(lo, hi)
	case v == 0:
		f = rawio.FilterPort4(lo, hi)
	default:
		f = rawio.FilterPort6(lo, hi)
	}
	if err := rx.conn.SetFilter(f); err != nil {
		return fmt.Errorf("open the filter for %v: %w", p, err)
	}
	rx.used, rx.lo, rx.hi = true, lo, hi
	return nil
}

// prepare numbers slot i and builds its packet as the next message of its sender.
func (b *raw) prepare(i uint32) error {
	e := b.e
	s := e.slots.at(i)
	r := &s.req
	v := ipVersion(s.dst)
	tx := &b.senders[v]
	var out *way
	if b.framers[v].conn != nil {
		out = b.routes.way(e, s)
	}
	var index int
	var err error
	if out != nil && !r.LocalAddr.IsValid() {
		s.src = out.Source
	} else if s.src, index, err = b.routes.route(e, s); err != nil {
		return err
	}
	if err := e.number(i); err != nil {
		return err
	}
	if err := b.listen(s); err != nil {
		return err
	}
	id := uint16(0)
	if out != nil {
		if s.src.IsUnspecified() {
			s.src = out.Source
		}
		tx = &b.framers[v]
		b.id = max(b.id+1, 1)
		id = b.id
	}
	m := &tx.msgs[tx.n]
	if m.Data, err = appendPacket(m.Data[:0], s, id); err != nil {
		return err
	}
	tx.slots[tx.n] = i
	switch {
	case out == nil:
		m.Addr = netip.AddrPortFrom(s.to(), 0)
		m.IfIndex, m.Mark = index, r.Mark
		m.Source = hintSource(s)
	case len(m.Data) > out.MTU:
		return b.unframe(v, tx.n)
	default:
		m.IfIndex, m.Link = out.IfIndex, out.Link
	}
	tx.n++
	return nil
}

// hintSource is the source that routing has chosen for slot s, for IPv6: see [rawio.Message]. A link-local one would be
// nothing without its interface.
func hintSource(s *slot) netip.Addr {
	if s.req.LocalAddr.IsValid() || s.src.Is4() || s.src.IsLinkLocalUnicast() {
		return netip.Addr{}
	}
	return s.src
}

// unframe makes message k of a framer the next message of the raw socket, which has room for it since a
// batch fits into either. It fails as routing does.
func (b *raw) unframe(v, k int) error {
	from, to := &b.framers[v], &b.senders[v]
	i := from.slots[k]
	s := b.e.slots.at(i)
	_, index, err := b.routes.route(b.e, s)
	if err != nil {
		return err
	}
	m := &to.msgs[to.n]
	m.Data, from.msgs[k].Data = from.msgs[k].Data, m.Data
	m.Addr = netip.AddrPortFrom(s.to(), 0)
	m.IfIndex, m.Mark = index, 0
	m.Source = hintSource(s)
	to.slots[to.n] = i
	to.n++
	return nil
}

func (b *raw) transmit(batch []uint32) {
	for _, i := range batch {
		if err := b.prepare(i); err != nil {
			b.e.refused(i, err)
		}
	}
	for v := range b.senders {
		// Frames first: those that are refused become the raw socket's.
		b.flush(&b.framers[v], v)
		b.flush(&b.senders[v], v)
	}
}

// flush sends what is prepared for version index v.
func (b *raw) flush(tx *rawSender, v int) {
	e := b.e
	for from := 0; from < tx.n; {
		msgs, slots := tx.msgs[from:tx.n], tx.slots[from:tx.n]
		e.clock()
		if tx.stamps.unsure {
			b.takeStamps(tx)
		}
		stamp := tx.stamps.sure(e, tx.conn) && b.mayStamp(len(msgs))
		for k := range msgs {
			msgs[k].StampTX = stamp
		}
		mono, wall := e.now, e.wall
		n, err := tx.conn.Send(msgs)
		e.clock()
		spent := e.now - mono
		for k, i := range slots[:n] {
			// In the middle of its share of the system call.
			off := spent * int64(2*k+1) / int64(2*n)
			e.sent(i, mono+off, wall+off)
			if tx == &b.framers[v] {
				e.counters.Framed++
			}
			if stamp {
				tx.stamps.await(e, i)
			}
		}
		from += n
		if stamp && n > 0 {
			b.takeStamps(tx)
		}
		if err == nil {
			continue
		}
		if stamp {
			tx.stamps.refused(e)
		}
		i := slots[n]
		switch {
		case transient(err):
			for _, i := range tx.slots[from:tx.n] {
				e.putOff(i)
			}
			from = tx.n
		case tx == &b.framers[v]:
			// The interface or its MTU has changed since the look-up, most likely.
			b.routes.forgetWay(e.slots.at(i))
			if err := b.unframe(v, from); err != nil {
				e.refused(i, err)
			}
			from++
		case errors.Is(err, syscall.EMSGSIZE):
			// The kernel says so in the error queue as well, where nobody waits for it.
			b.readQueue(tx)
			b.sendLong(i)
			from++
		default:
			e.refused(i, fmt.Errorf("send to %v: %w", e.slots.at(i).dst, err))
			from++
		}
	}
	tx.n = 0
}

// sendLong sends a packet that the kernel must fragment.
func (b *raw) sendLong(i uint32) {
	e := b.e
	s := e.slots.at(i)
	data, err := appendTransport(nil, s)
	if err != nil {
		e.fail(i, err)
		return
	}
	_, index, err := b.routes.route(e, s)
	if err != nil {
		e.fail(i, err)
		return
	}
	msg := []rawio.Message{{
		Data: data, Addr: netip.AddrPortFrom(s.to(), 0), TTL: s.req.TTL, TOS: s.req.TOS,
		Source: s.src, IfIndex: index, Mark: s.req.Mark,
	}}
	if s.src.IsUnspecified() {
		msg[0].Source = netip.Addr{}
	}
	e.clock()
	mono, wall := e.now, e.wall
	if _, err := b.rx[ipVersion(s.dst)][s.req.Protocol].conn.Send(msg); err != nil {
		e.refused(i, fmt.Errorf("send %d bytes to %v: %w", s.req.Size, s.dst, err))
		return
	}
	e.sent(i, mono, wall)
}

// takeStamps reads the departure stamps that are there.
func (b *raw) takeStamps(tx *rawSender) {
	if tx.stamps.owed > 0 {
		b.readQueue(tx)
	}
}

// readQueue empties a sender's error queue: departure stamps, and this host's own errors, which
// were the results of calls already.
func (b *raw) readQueue(tx *rawSender) {
	for {
		n, err := tx.conn.ReceiveErrors(b.stamps[:])
		if err != nil || n == 0 {
			return
		}
		for k := range b.stamps[:n] {
			if m := &b.stamps[k]; m.Failure.Origin == rawio.OriginTimestamp {
				tx.stamps.take(b.e, m)
			}
		}
		if n < len(b.stamps) {
			return
		}
	}
}

// turnsBetween is the turns after which all sockets are looked at while some of them never run dry.
const turnsBetween = 8

// receive takes in what has arrived. To look at an empty socket costs a system call, so between two waits it looks
// again only at those that had something the last time.
func (b *raw) receive(waited bool) bool {
	any := false
	if waited {
		b.sinceWait = 0
	}
	all := b.sinceWait%turnsBetween == 0
	b.sinceWait++
	for v := range b.senders {
		stamped := false
		for p := range b.rx[v] {
			rx := &b.rx[v][p]
			if !rx.used || !all && !rx.busy {
				continue
			}
			rx.busy = false
			for range receiveRounds {
				n, err := rx.conn.Receive(b.in[:])
				if err != nil {
					// An error of the socket, such as one left by a send, is cleared by reading it.
					break
				}
				if n == 0 {
					break
				}
				any, rx.busy = true, true
				if !stamped {
					b.takeStamps(&b.framers[v])
					b.takeStamps(&b.senders[v])
					stamped = true
				}
				b.e.clock()
				for k := range b.in[:n] {
					b.e.counters.Received++
					if v == 0 {
						b.e.packet4(&b.in[k])
					} else {
						b.e.packet6(Protocol(p), &b.in[k])
					}
				}
				if n < len(b.in) {
					break
				}
			}
		}
	}
	switch {
	case any:
		b.idle = 0
	case waited:
		if b.idle++; b.idle%sweepAfter == 0 {
			b.sweep()
		}
	}
	return any
}

// A raw socket takes in what arrives before its first filter is in place. On a socket that is not used yet,
// such a packet would end every wait. To look for them after each wait would cost a system call per
// socket, so that is done when so many waits in a row brought nothing.
const sweepAfter = 16

// sweep empties the sockets that are not used yet.
func (b *raw) sweep() {
	for v := range b.rx {
		for p := range b.rx[v] {
			rx := &b.rx[v][p]
			if rx.conn == nil || rx.used {
				continue
			}
			for {
				if n, err := rx.conn.Receive(b.in[:]); err != nil || n == 0 {
					break
				}
			}
		}
	}
}

// packet4 handles what a raw IPv4 socket delivered: a packet with its header.
func (e *engine) packet4(m *rawio.Message) {
	// The kernel has checked the lengths; the end may be cut off.
	ip, err := packet.ParseQuotedIPv4(m.Data[:m.N])
	if err != nil {
		e.counters.Malformed++
		return
	}
	in := arrival{src: ip.Src(), ttl: ip.TTL(), stamp: m.Time, data: ip.Payload()}
	switch ip.Protocol() {
	case packet.ProtocolICMP:
		// The kernel's own check comes after the raw sockets'.
		if !m.Truncated && packet.Checksum(in.data) != 0 {
			e.counters.Malformed++
			return
		}
		e.icmp(4, &in)
	case packet.ProtocolUDP:
		e.udp(&in)
	case packet.ProtocolTCP:
		e.tcp(&in)
	case packet.ProtocolSCTP:
		e.sctp(&in)
	default:
		e.counters.Irrelevant++
	}
}

// packet6 handles what a raw IPv6 socket of protocol p delivered: a packet without its headers.
func (e *engine) packet6(p Protocol, m *rawio.Message) {
	in := arrival{src: m.Addr.Addr(), ttl: m.TTL, stamp: m.Time, data: m.Data[:m.N]}
	switch p {
	case ICMP:
		e.icmp(6, &in)
	case UDP:
		e.udp(&in)
	case TCP:
		e.tcp(&in)
	case SCTP:
		e.sctp(&in)
	}
}
