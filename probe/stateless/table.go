// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package stateless

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
)

// Answer is what a recognised packet says. Use one again and again: its memory is reused.
type Answer struct {
	// Number is the probe's.
	Number uint16
	// Flow is the probe's, modulo Config.Ports; its Number for CHAOS and classic UDP; 0 for classic ICMP.
	Flow uint16
	// Target is where the probe went.
	Target netip.Addr
	// Responder sent the answer. It may differ from Target when that has several addresses, or behind a NAT.
	Responder netip.Addr
	// Local is the address that the answer came to.
	Local netip.Addr
	// Status is Replied, TimeExceeded or HostUnreachable. Port unreachable is a reply.
	Status probe.Status
	// HasICMP tells that the answer is an ICMP message, so that ICMPType and ICMPCode are set.
	HasICMP            bool
	ICMPType, ICMPCode uint8
	// ReplyTTL and ReplyTOS are those of the answer when it arrived: hop limit and traffic class in IPv6.
	ReplyTTL, ReplyTOS uint8
	// QuotedTTL and QuotedTOS are the probe's as the router quoted it, 0 if nothing was quoted.
	QuotedTTL, QuotedTOS uint8
	// ReplyID is the answer's IPv4 identification, 0 for IPv6.
	ReplyID uint16
	// ReplySize is the length of the answer in bytes, IP header included (extension headers of IPv6 are not).
	ReplySize uint16
	// MTU is the next hop's if the answer names one (fragmentation needed, packet too big), else 0.
	MTU uint32
	// Labels is the MPLS label stack that the router put into its answer (RFC 4950), outermost first. The next parse
	// into this Answer overwrites it.
	Labels []packet.Label
	// Sent is Probe.Time, if it came back and its check with it; else 0.
	Sent int64
	// Text is what a name server calls itself, by the TXT record or else NSID; in hexadecimal if it is not
	// printable ASCII. CHAOS only.
	Text string
	// Strong tells that a 64-bit check was there, and right. Otherwise one of 16 bits was (two of them in
	// quoted SYNs of IPv4), or for classic probes none.
	Strong bool
}

// Table recognises answers. All its methods may be called by several goroutines at once; the zero Table is empty and ready.
// It takes half a megabyte.
type Table struct {
	mu sync.Mutex // for changes
	// codecs has the owner of each port.
	codecs [65536]atomic.Pointer[Codec]
}

// Add makes answers to c's probes known. Other measurements must not use the same ports at the same time, whatever
// their kinds: that is [ErrPortsTaken], and changes nothing.
func (t *Table) Add(c *Codec) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	block := t.block(c)
	for i := range block {
		if block[i].Load() != nil {
			return fmt.Errorf("%w: port %d", ErrPortsTaken, int(c.cfg.FirstPort)+i)
		}
	}
	for i := range block {
		block[i].Store(c)
	}
	return nil
}

// Remove undoes Add. If c is not in the Table nothing happens.
func (t *Table) Remove(c *Codec) {
	t.mu.Lock()
	defer t.mu.Unlock()
	block := t.block(c)
	for i := range block {
		block[i].CompareAndSwap(c, nil)
	}
}

func (t *Table) block(c *Codec) []atomic.Pointer[Codec] {
	return t.codecs[c.cfg.FirstPort:][:c.cfg.Ports]
}

// arrival is a packet from outside, or the IP packet around one.
type arrival struct {
	version  int
	src, dst netip.Addr
	ttl, tos uint8
	id       uint16
	size     int
	proto    packet.Protocol
	data     []byte // from the transport header on
}

// Parse4 recognises an IPv4 packet, given from its IP header on, as raw sockets deliver it. Its end may be cut off.
// It fills a and returns the Codec whose probe is answered; without one, a is undefined. It allocates nothing,
// but for CHAOS. Errors: [ErrNotOurs], [ErrForged], [ErrMalformed].
func (t *Table) Parse4(pkt []byte, a *Answer) (*Codec, error) {
	ip, err := packet.ParseQuotedIPv4(pkt)
	if err != nil {
		return nil, ErrMalformed
	}
	if ip.FragmentOffset() != 0 {
		return nil, ErrNotOurs
	}
	in := arrival{
		version: 4, src: ip.Src(), dst: ip.Dst(), ttl: ip.TTL(), tos: ip.TOS(), id: ip.ID(), size: ip.TotalLen(),
		proto: ip.Protocol(), data: ip.Payload(),
	}
	return t.parse(&in, a)
}

// Parse6 is [Table.Parse4] for IPv6, whose raw sockets deliver the parts of the IP header apart from data, which begins behind
// it and all extension headers. A zone in src is kept for Answer.Responder.
func (t *Table) Parse6(src, dst netip.Addr, hopLimit, class uint8, proto packet.Protocol, data []byte, a *Answer) (*Codec, error) {
	// Addresses of IPv4 in the form of IPv6 are not for the wire (RFC 4291), and would be taken for IPv4 further on.
	if !src.Is6() || !dst.Is6() || src.Is4In6() || dst.Is4In6() {
		return nil, ErrMalformed
	}
	in := arrival{
		version: 6, src: src, dst: dst, ttl: hopLimit, tos: class, size: packet.IPv6HeaderLen + len(data),
		proto: proto, data: data,
	}
	return t.parse(&in, a)
}

func (t *Table) parse(in *arrival, a *Answer) (*Codec, error) {
	*a = Answer{
		Responder: in.src, Local: in.dst, ReplyTTL: in.ttl, ReplyTOS: in.tos, ReplyID: in.id,
		ReplySize: uint16(min(in.size, 0xffff)), Labels: a.Labels[:0],
	}
	switch {
	case in.proto == packet.ProtocolICMP && in.version == 4, in.proto == packet.ProtocolICMPv6 && in.version == 6:
		return t.icmp(in, a)
	case in.proto == packet.ProtocolUDP:
		return t.datagram(in, a)
	case in.proto == packet.ProtocolTCP:
		return t.segment(in, a)
	}
	return nil, ErrNotOurs
}

func (t *Table) icmp(in *arrival, a *Answer) (*Codec, error) {
	m, err := packet.ParseICMP(in.data)
	if err != nil {
		return nil, ErrMalformed
	}
	a.HasICMP, a.ICMPType, a.ICMPCode = true, m.Type(), m.Code()
	reply := packet.ICMPv4EchoReply
	if in.version == 6 {
		reply = packet.ICMPv6EchoReply
	}
	if m.Type() == reply {
		return t.echoReply(in, m, a)
	}
	if a.Status = errorStatus(in.version, m.Type(), m.Code()); a.Status == 0 {
		return nil, ErrNotOurs
	}
	var e packet.ICMPError
	if err := e.Decode(in.version, in.data); err != nil {
		return nil, ErrMalformed
	}
	var q packet.Quote
	if err := q.Decode(e.Quote); err != nil {
		return nil, ErrMalformed
	}
	port := q.SrcPort
	switch q.Protocol {
	case packet.ProtocolICMP, packet.ProtocolICMPv6:
		request := packet.ICMPv4Echo
		if in.version == 6 {
			request = packet.ICMPv6Echo
		}
		if q.ICMPType() != request {
			return nil, ErrNotOurs
		}
		port = q.ID()
	}
	c := t.codecs[port].Load()
	if c == nil || q.Version != in.version || q.Protocol != c.Protocol(in.version) {
		return nil, ErrNotOurs
	}
	a.QuotedTTL, a.QuotedTOS, a.MTU = q.TTL, q.TOS, e.MTU
	if err := c.quoted(&q, port, a); err != nil {
		return nil, err
	}
	if len(e.Extensions) > 0 {
		a.Labels = e.Extensions.AppendLabels(a.Labels)
	}
	return c, nil
}

// errorStatus says what an ICMP message means for the probe that it quotes, 0 if nothing.
func errorStatus(version int, typ, code uint8) probe.Status {
	if version == 4 {
		switch typ {
		case packet.ICMPv4TimeExceeded:
			return probe.TimeExceeded
		case packet.ICMPv4Unreachable:
			if code == packet.ICMPv4CodePort {
				return probe.Replied
			}
			return probe.HostUnreachable
		case packet.ICMPv4ParameterProblem:
			return probe.HostUnreachable
		}
		return 0
	}
	switch typ {
	case packet.ICMPv6TimeExceeded:
		return probe.TimeExceeded
	case packet.ICMPv6Unreachable:
		if code == packet.ICMPv6CodePort {
			return probe.Replied
		}
		return probe.HostUnreachable
	case packet.ICMPv6PacketTooBig, packet.ICMPv6ParameterProblem:
		return probe.HostUnreachable
	}
	return 0
}

var (
	errForgedQuote = fmt.Errorf("%w: quoted probe", ErrForged)
	errForgedReply = fmt.Errorf("%w: reply", ErrForged)
)

// quoted recognises a probe in an ICMP error by its quote, whose port and protocol are c's.
func (c *Codec) quoted(q *packet.Quote, port uint16, a *Answer) error {
	if c.cfg.Classic {
		return c.quotedClassic(q, port, a)
	}
	number := c.quotedNumber(q, port)
	if number > c.maxNumber || q.DstPort != c.cfg.DstPort {
		return errForgedQuote
	}
	id := identity{src: q.Src, dst: q.Dst, port: port, number: number}
	proof := c.prove(&id)
	switch c.quotedPayload(q.Transport[packet.UDPHeaderLen:], &id, &proof, a) {
	case wrong:
		return errForgedQuote
	case right:
		// Nothing that the short check could add: a rewritten IP identification does no harm.
		a.Strong = true
	case absent:
		short := c.short(&proof)
		switch {
		case q.Version == 4 && q.IPID != short.ipID() && q.IPID != bits.ReverseBytes16(short.ipID()):
			return errForgedQuote // byte-swapped is how some routers quote it
		case c.cfg.Kind == TCP && uint16(q.TCPSeq()) != short.tcpSeq():
			return errForgedQuote
		case c.cfg.Kind != TCP && q.Version == 6:
			return errForgedQuote
		}
	}
	a.Number, a.Flow, a.Target = number, port-c.cfg.FirstPort, q.Dst
	return nil
}

// quotedNumber reads the number where 8 bytes of transport header have it.
func (c *Codec) quotedNumber(q *packet.Quote, port uint16) uint16 {
	switch c.cfg.Kind {
	case ICMP:
		return q.Seq()
	case TCP:
		return uint16(q.TCPSeq() >> 16)
	case CHAOS:
		return port - c.cfg.FirstPort
	default:
		return checksumNumber(q.UDPChecksum())
	}
}

// verdict is what a quoted payload says about the long check.
type verdict uint8

const (
	absent verdict = iota // the quote ends before, or the kind has none
	right
	wrong
)

// quotedPayload looks for the long check behind 8 bytes of transport header.
func (c *Codec) quotedPayload(b []byte, id *identity, proof *proof, a *Answer) verdict {
	if c.cfg.Kind == TCP || allZero(b) {
		// Some routers pad a short quote with zeros in order to append extensions.
		return absent
	}
	switch c.cfg.Kind {
	case DNS:
		l, ok := c.quotedLabel(b)
		switch {
		case len(b) < labelOffset+labelLen:
			return absent
		case !ok || l.number != id.number || c.long(proof, l.time) != l.long:
			return wrong
		}
		a.Sent = l.time
		return right
	case CHAOS:
		switch {
		case len(b) < len(c.query):
			return absent
		case binary.BigEndian.Uint64(b[len(c.query)-cookieLen:]) != c.long(proof, 0):
			return wrong
		}
		return right
	default:
		p, ok := parsePayload(b, id.dst)
		switch {
		case !ok:
			return absent
		case p.number != id.number || p.dst != id.dst || c.long(proof, p.time) != p.long:
			return wrong
		}
		a.Sent = p.time
		return right
	}
}

func allZero(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}

// payload is what an ICMP or UDP probe carries, without the note.
type payload struct {
	number uint16
	long   uint64
	time   int64
	dst    netip.Addr
}

// parsePayload decodes the payload of a probe to an address of like's version. It is not ok if that is cut off.
func parsePayload(b []byte, like netip.Addr) (p payload, ok bool) {
	n := 4
	if like.Is6() {
		n = 16
	}
	if len(b) < dstOffset+n {
		return p, false
	}
	p.number = binary.BigEndian.Uint16(b[numberOffset:])
	p.long = binary.BigEndian.Uint64(b[checkOffset:])
	p.time = int64(binary.BigEndian.Uint64(b[timeOffset:]))
	if n == 4 {
		p.dst = netip.AddrFrom4([4]byte(b[dstOffset:]))
	} else {
		p.dst = netip.AddrFrom16([16]byte(b[dstOffset:]))
	}
	return p, true
}

// echoed recognises a payload that came back by itself. The responder may be another than the target, whose address is in it.
func (c *Codec) echoed(b []byte, port uint16, a *Answer) error {
	local := bare(a.Local)
	p, ok := parsePayload(b, local)
	if !ok || p.number > c.maxNumber {
		return errForgedReply
	}
	id := identity{src: local, dst: p.dst, port: port, number: p.number}
	proof := c.prove(&id)
	if c.long(&proof, p.time) != p.long {
		return errForgedReply
	}
	a.Number, a.Target, a.Sent, a.Strong = p.number, p.dst, p.time, true
	return nil
}

func (t *Table) echoReply(in *arrival, m packet.ICMP, a *Answer) (*Codec, error) {
	c := t.codecs[m.ID()].Load()
	if c == nil || c.cfg.Kind != ICMP {
		return nil, ErrNotOurs
	}
	a.Status = probe.Replied
	if c.cfg.Classic {
		if err := c.replyClassic(m, a); err != nil {
			return nil, err
		}
		return c, nil
	}
	if err := c.echoed(m.Body(), m.ID(), a); err != nil {
		return nil, err
	}
	if m.Code() != 0 || m.Seq() != a.Number {
		return nil, errForgedReply
	}
	a.Flow = m.ID() - c.cfg.FirstPort
	return c, nil
}

// replyTo is the identity of the probe that a datagram or segment to port answers, without its number.
func replyTo(src, dst netip.Addr, port uint16) identity {
	return identity{src: bare(dst), dst: bare(src), port: port}
}

// datagram recognises answers by UDP. To a UDP probe that is only its own payload: what else a port may send
// back proves nothing.
func (t *Table) datagram(in *arrival, a *Answer) (*Codec, error) {
	if len(in.data) < packet.UDPHeaderLen {
		return nil, ErrMalformed
	}
	u := packet.UDP(in.data)
	port := u.DstPort()
	c := t.codecs[port].Load()
	if c == nil || c.Protocol(in.version) != packet.ProtocolUDP {
		return nil, ErrNotOurs
	}
	if u.SrcPort() != c.cfg.DstPort || c.cfg.Classic {
		return nil, errForgedReply
	}
	body := u.Payload()
	if n := u.Length() - packet.UDPHeaderLen; n >= 0 && n < len(body) {
		body = body[:n]
	}
	a.Status, a.Flow = probe.Replied, port-c.cfg.FirstPort
	var err error
	switch c.cfg.Kind {
	case UDP:
		err = c.echoed(body, port, a)
	default:
		id := replyTo(in.src, in.dst, port)
		a.Target = id.dst
		if c.cfg.Kind == DNS {
			err = c.responseDNS(body, &id, a)
		} else {
			id.number = a.Flow
			err = c.responseCHAOS(body, &id, a)
		}
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// segment recognises answers to a SYN by what they acknowledge.
func (t *Table) segment(in *arrival, a *Answer) (*Codec, error) {
	if len(in.data) < packet.TCPHeaderLen {
		return nil, ErrMalformed
	}
	s := packet.TCP(in.data)
	port := s.DstPort()
	c := t.codecs[port].Load()
	if f := s.Flags(); c == nil || c.cfg.Kind != TCP || f&packet.TCPAck == 0 || f&(packet.TCPSyn|packet.TCPRst) == 0 {
		return nil, ErrNotOurs
	}
	seq := s.Ack() - 1
	id := replyTo(in.src, in.dst, port)
	id.number = uint16(seq >> 16)
	if s.SrcPort() != c.cfg.DstPort || id.number > c.maxNumber {
		return nil, errForgedReply
	}
	proof := c.prove(&id)
	if uint16(seq) != c.short(&proof).tcpSeq() {
		return nil, errForgedReply
	}
	a.Status, a.Number, a.Flow, a.Target = probe.Replied, id.number, port-c.cfg.FirstPort, id.dst
	return c, nil
}
