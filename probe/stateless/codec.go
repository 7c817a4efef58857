// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package stateless

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/seed5728abee/fathom/packet"
)

// Limits and defaults.
const (
	// MaxNumber is the highest Probe.Number: the UDP checksum carries the number, and has two values that it cannot use.
	MaxNumber = 65533
	// MaxNote is the greatest length of Config.Note in bytes.
	MaxNote = 256
	// MaxSize is the longest probe, IP header included, in bytes.
	MaxSize = 65535

	// DefaultUDPPort is where UDP probes go, traceroute's first port.
	DefaultUDPPort = 33434
	// DefaultTCPPort is where SYNs go.
	DefaultTCPPort = 80
	// DefaultDNSPort is where queries go.
	DefaultDNSPort = 53
)

// Config says what the probes of one measurement look like. All hosts that take part need the same.
type Config struct {
	// Key must be set, except for Classic.
	Key Key
	// Kind must be set.
	Kind Kind
	// FirstPort and Ports are the block of source ports, or for ICMP identifiers, [FirstPort, FirstPort+Ports), by
	// which a [Table] finds the measurement. Flow f uses port FirstPort + f%Ports. FirstPort is above 0; Ports 0 means 1.
	FirstPort, Ports uint16
	// DstPort is the destination port; 0 means DefaultUDPPort, DefaultTCPPort or DefaultDNSPort. ICMP ignores it.
	DstPort uint16
	// Size is the length of ICMP and UDP probes in bytes, IP header included, at most MaxSize. What is
	// needed is added to a smaller one. The other kinds ignore it.
	Size int
	// TOS is the type of service or traffic class, with the ECN bits.
	TOS uint8
	// Note tells those who look at the packets what they are for, such as an explanation's URL. It is put into ICMP
	// and UDP probes, at most MaxNote bytes.
	Note string
	// Name is the domain below which DNS probes ask, as in "example.com"; empty is the root. The question
	// is for a label of 36 hexadecimal digits in it, so a wildcard record makes resolvers answer well.
	Name string
	// Classic selects the scheme of Voltadomar: 28-byte UDP probes without checksum from port FirstPort + Number, or
	// echo requests with identifier FirstPort, sequence Number. There is no key: whoever knows a port can forge answers.
	// IPv4, UDP and ICMP only; DstPort (unless 33434), Size, Note and Name must not be set.
	Classic bool
	// Target is the one destination of a classic measurement: answers about others are refused. Without it every
	// answer to the right port is taken.
	Target netip.Addr
}

// Codec makes the probes of one measurement, and recognises their answers through a [Table].
// It is immutable and may be used by several goroutines.
type Codec struct {
	cfg       Config // with defaults filled in
	k0, k1    uint64
	maxNumber uint16
	query     []byte // the DNS message of DNS and CHAOS probes, to be completed
	suffix    []byte // DNS: what follows the first label of the question, from its dot on
}

// New checks a Config and makes its Codec. Errors: [ErrConfig].
func New(cfg Config) (*Codec, error) {
	if cfg.Ports == 0 {
		cfg.Ports = 1
	}
	cfg.Target = bare(cfg.Target)
	switch {
	case !cfg.Kind.valid():
		return nil, fmt.Errorf("%w: kind %d", ErrConfig, uint8(cfg.Kind))
	case cfg.FirstPort == 0 || int(cfg.FirstPort)+int(cfg.Ports) > 65536:
		return nil, fmt.Errorf("%w: %d ports from %d, want them in [1, 65535]", ErrConfig, cfg.Ports, cfg.FirstPort)
	case cfg.Size < 0 || cfg.Size > MaxSize:
		return nil, fmt.Errorf("%w: size %d, want at most %d", ErrConfig, cfg.Size, MaxSize)
	case len(cfg.Note) > MaxNote:
		return nil, fmt.Errorf("%w: note of %d bytes, want at most %d", ErrConfig, len(cfg.Note), MaxNote)
	case cfg.Name != "" && cfg.Kind != DNS:
		return nil, fmt.Errorf("%w: a name is for DNS probes, not %s", ErrConfig, cfg.Kind)
	case cfg.Classic:
		return newClassic(cfg)
	case cfg.Key == Key{}:
		return nil, fmt.Errorf("%w: no key", ErrConfig)
	case cfg.Target.IsValid():
		return nil, fmt.Errorf("%w: a target is for classic probes; others prove theirs", ErrConfig)
	}
	c := &Codec{
		cfg: cfg, maxNumber: MaxNumber,
		k0: binary.LittleEndian.Uint64(cfg.Key[:]), k1: binary.LittleEndian.Uint64(cfg.Key[8:]),
	}
	defaultPort := uint16(0)
	var err error
	switch cfg.Kind {
	case ICMP:
		c.cfg.DstPort = 0
	case UDP:
		defaultPort = DefaultUDPPort
	case TCP:
		defaultPort = DefaultTCPPort
	case DNS:
		defaultPort = DefaultDNSPort
		err = c.prepareDNS()
	case CHAOS:
		defaultPort = DefaultDNSPort
		c.maxNumber = min(cfg.Ports-1, MaxNumber)
		err = c.prepareCHAOS()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if c.cfg.DstPort == 0 {
		c.cfg.DstPort = defaultPort
	}
	return c, nil
}

// Config gives the configuration with its defaults filled in.
func (c *Codec) Config() Config { return c.cfg }

// MaxNumber is the highest [Probe.Number]: [MaxNumber], or Config.Ports-1 where the number selects the port
// (CHAOS and classic UDP).
func (c *Codec) MaxNumber() uint16 { return c.maxNumber }

// Protocol is the one inside IP packets of version 4 or 6: it tells which raw socket gets the direct answers.
func (c *Codec) Protocol(version int) packet.Protocol {
	switch {
	case c.cfg.Kind == TCP:
		return packet.ProtocolTCP
	case c.cfg.Kind != ICMP:
		return packet.ProtocolUDP
	case version == 6:
		return packet.ProtocolICMPv6
	}
	return packet.ProtocolICMP
}

// Probe is what differs from probe to probe of a measurement.
type Probe struct {
	// Src and Dst decide the IP version. Src is the address that answers go to, not what a NAT makes of it.
	Src, Dst netip.Addr
	// TTL is the time to live or hop limit. It does not come back: derive it from Number.
	TTL uint8
	// Flow selects the source port. Probes of one flow to one destination agree in all that load balancers hash. CHAOS and
	// classic UDP probes have no flows: they ignore it, and each Number is one.
	Flow uint16
	// Number comes back in the answer, at most [Codec.MaxNumber].
	Number uint16
	// Time is the time of sending in nanoseconds since 1970 by the sender's clock. It is carried in the payload of
	// ICMP, UDP and DNS probes and comes back where that does.
	Time int64
}

// Append appends a whole IP packet, of version 4 or 6 by p.Dst, ready for a socket that takes headers
// (IP_HDRINCL, or an IPv6 raw socket with IPV6_HDRINCL). It allocates only if b lacks the room. Errors: [ErrProbe].
func (c *Codec) Append(b []byte, p *Probe) ([]byte, error) {
	src, dst := bare(p.Src), bare(p.Dst)
	switch {
	case !src.IsValid() || !dst.IsValid() || src.Is4() != dst.Is4():
		return b, errAddresses
	case p.Number > c.maxNumber:
		return b, errNumber
	case c.cfg.Classic:
		return c.appendClassic(b, src, dst, p)
	}
	flow := c.flow(p)
	id := identity{src: src, dst: dst, port: c.cfg.FirstPort + flow, number: p.Number}
	proof := c.prove(&id)
	short := c.short(&proof)

	start := len(b)
	n := c.transportLen(dst)
	b = slices.Grow(b, packet.IPv6HeaderLen+n)
	var err error
	if dst.Is4() {
		h := packet.IPv4Header{TOS: c.cfg.TOS, ID: short.ipID(), TTL: p.TTL, Protocol: c.Protocol(4), Src: src, Dst: dst}
		b, err = h.Append(b, n)
	} else {
		h := packet.IPv6Header{TrafficClass: c.cfg.TOS, FlowLabel: flowLabel(flow), NextHeader: c.Protocol(6), HopLimit: p.TTL, Src: src, Dst: dst}
		b, err = h.Append(b, n)
	}
	if err != nil {
		return b[:start], err
	}
	at := len(b)
	switch c.cfg.Kind {
	case ICMP:
		b, err = c.appendEcho(b, &id, c.long(&proof, p.Time), p.Time, n)
	case UDP:
		b, err = packet.AppendUDPHeader(b, id.port, c.cfg.DstPort, n-packet.UDPHeaderLen)
		b = b[:at+n]
		c.putPayload(b[at+packet.UDPHeaderLen:], &id, c.long(&proof, p.Time), p.Time)
		if err == nil {
			err = packet.BalanceUDP(b[at:], src, dst, numberChecksum(id.number))
		}
	case TCP:
		b, err = c.appendSYN(b, &id, short)
	case DNS:
		b, err = c.appendDNS(b, &id, c.long(&proof, p.Time), p.Time)
	case CHAOS:
		b, err = c.appendCHAOS(b, &id, short, c.long(&proof, 0))
	}
	if err != nil {
		return b[:start], err
	}
	return b, nil
}

// bare is the form in which addresses are compared and checked.
func bare(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// flow is what p.Flow amounts to: the offset of the source port.
func (c *Codec) flow(p *Probe) uint16 {
	if c.cfg.Kind == CHAOS {
		return p.Number
	}
	return p.Flow % c.cfg.Ports
}

// flowLabel is the IPv6 flow label of a flow: 20 bits, not 0, well spread, another one for each flow, because
// multiplication by an odd number is a bijection.
func flowLabel(flow uint16) uint32 { return (uint32(flow) + 1) * 0x9e3b & 0xfffff }

// numberChecksum is the UDP checksum that stands for a number. 0 would mean "no checksum", and 0xffff is its other form,
// which some turn into 0.
func numberChecksum(number uint16) uint16 { return number + 1 }

// checksumNumber is the inverse of numberChecksum. The two values that stand for nothing give numbers above MaxNumber.
func checksumNumber(sum uint16) uint16 { return sum - 1 }

// What ICMP and UDP probes carry.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-------------------------------+-------------------------------+
//	|     Balances the checksum     |            Number             |
//	+-------------------------------+-------------------------------+
//	|                                                               |
//	|                          Long check                           |
//	+---------------------------------------------------------------+
//	|                                                               |
//	|      Time of sending, nanoseconds since 1970                  |
//	+---------------------------------------------------------------+
//	|     Destination address, 4 or 16 bytes; note; zeros           |
//	+---------------------------------------------------------------+
const (
	numberOffset = 2
	checkOffset  = 4
	timeOffset   = 12
	dstOffset    = 20
)

func (c *Codec) putPayload(b []byte, id *identity, long uint64, time int64) {
	b[0], b[1] = 0, 0
	binary.BigEndian.PutUint16(b[numberOffset:], id.number)
	binary.BigEndian.PutUint64(b[checkOffset:], long)
	binary.BigEndian.PutUint64(b[timeOffset:], uint64(time))
	at := dstOffset + putAddr(b[dstOffset:], id.dst)
	at += copy(b[at:], c.cfg.Note)
	clear(b[at:])
}

func putAddr(b []byte, a netip.Addr) int {
	if a.Is4() {
		a4 := a.As4()
		return copy(b, a4[:])
	}
	a16 := a.As16()
	return copy(b, a16[:])
}

// transportLen is how long the part behind the IP header of a probe to dst is.
func (c *Codec) transportLen(dst netip.Addr) int {
	header, addr := packet.IPv4HeaderLen, 4
	if dst.Is6() {
		header, addr = packet.IPv6HeaderLen, 16
	}
	switch c.cfg.Kind {
	case TCP:
		return synLen
	case DNS, CHAOS:
		return packet.UDPHeaderLen + len(c.query)
	default: // ICMP's header is as long as UDP's
		return max(c.cfg.Size-header, packet.UDPHeaderLen+dstOffset+addr+len(c.cfg.Note))
	}
}

// appendEcho appends an echo request whose checksum belongs to its flow.
func (c *Codec) appendEcho(b []byte, id *identity, long uint64, time int64, n int) ([]byte, error) {
	at := len(b)
	typ := packet.ICMPv4Echo
	if id.dst.Is6() {
		typ = packet.ICMPv6Echo
	}
	b = append(b, typ, 0, 0, 0, byte(id.port>>8), byte(id.port), byte(id.number>>8), byte(id.number))[:at+n]
	m := b[at:]
	c.putPayload(m[packet.ICMPHeaderLen:], id, long, time)
	sum := id.port % 0xffff // 0xffff is no checksum, 0 stands for it
	if id.dst.Is6() {
		return b, packet.BalanceICMPv6(m, id.src, id.dst, sum, packet.ICMPHeaderLen)
	}
	return b, packet.BalanceICMP(m, sum, packet.ICMPHeaderLen)
}

// synLen is the length of a SYN with the option that systems send; some firewalls drop one without.
const synLen = packet.TCPHeaderLen + 4

func (c *Codec) appendSYN(b []byte, id *identity, short shortCheck) ([]byte, error) {
	var options [4]byte
	mss := uint16(1460)
	if id.dst.Is6() {
		mss = 1440
	}
	h := packet.TCPHeader{
		SrcPort: id.port, DstPort: c.cfg.DstPort, Seq: uint32(id.number)<<16 | uint32(short.tcpSeq()),
		Flags: packet.TCPSyn, Window: 64240, Options: packet.AppendTCPOptionMSS(options[:0], mss),
	}
	return h.Append(b, id.src, id.dst, nil)
}
