// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
	"github.com/seed5728abee/fathom/trace"
)

// scamper turns traces into scamper's terms, in which they are written as JSON or as warts. A measurement is a list
// there, and what one site contributes to it a cycle of that list, with the site as its host.
type scamper struct {
	out    scamperOut
	lists  map[string]*scamperList
	cycles []*scamperCycle // in the order begun
}

// scamperOut writes scamper's objects.
type scamperOut interface {
	list(*scamperList) error
	cycleStart(*scamperCycle) error
	trace(*scamperTrace) error
	cycleStop(*scamperCycle) error
}

type scamperList struct {
	id          uint32 // in the file, from 1
	name, descr string
	start, end  time.Time
	cycles      map[string]*scamperCycle // by site
}

type scamperCycle struct {
	id          uint32 // in the file, from 1
	list        *scamperList
	host        string
	start, stop time.Time
}

func newScamper(out scamperOut) *scamper {
	return &scamper{out: out, lists: make(map[string]*scamperList)}
}

func (s *scamper) begin(m *anycast.Measurement) error {
	l := &scamperList{
		id: uint32(len(s.lists) + 1), name: m.ID, descr: text(m.Definition.Name), start: m.Start, end: m.End, cycles: make(map[string]*scamperCycle),
	}
	s.lists[m.ID] = l
	return s.out.list(l)
}

// cycle gives that of a site, and begins it if need be.
func (s *scamper) cycle(l *scamperList, site string, start time.Time) (*scamperCycle, error) {
	if c := l.cycles[site]; c != nil {
		return c, nil
	}
	if !l.start.IsZero() {
		start = l.start
	}
	c := &scamperCycle{id: uint32(len(s.cycles) + 1), list: l, host: site, start: start, stop: l.end}
	l.cycles[site] = c
	s.cycles = append(s.cycles, c)
	return c, s.out.cycleStart(c)
}

func (s *scamper) write(m *anycast.Measurement, r anycast.Result) error {
	t, ok := r.(*anycast.TraceResult)
	if !ok {
		return nil
	}
	c, err := s.cycle(s.lists[m.ID], t.Site, t.Start)
	if err != nil {
		return err
	}
	if s.lists[m.ID].end.IsZero() && t.End.After(c.stop) { // the measurement is still running
		c.stop = t.End
	}
	st, err := newScamperTrace(m, t)
	if err != nil {
		return fmt.Errorf("trace from %s to %s: %w", t.Site, t.Target, err)
	}
	st.cycle = c
	if err := s.out.trace(st); err != nil {
		return fmt.Errorf("trace from %s to %s: %w", t.Site, t.Target, err)
	}
	return nil
}

func (s *scamper) end() error {
	for _, c := range s.cycles {
		if err := s.out.cycleStop(c); err != nil {
			return err
		}
	}
	return nil
}

// scamperMethod is how a trace probes.
type scamperMethod uint8

const (
	scamperICMP scamperMethod = 1 + iota
	scamperUDP
	scamperTCP
	scamperICMPParis
	scamperUDPParis
)

func (m scamperMethod) MarshalText() ([]byte, error) {
	return []byte([...]string{"", "icmp-echo", "udp", "tcp", "icmp-echo-paris", "udp-paris"}[m]), nil
}

// ports tells whether the method has any.
func (m scamperMethod) ports() bool { return m != scamperICMP && m != scamperICMPParis }

// scamperStop is why a trace ended.
type scamperStop uint8

const (
	scamperNone      scamperStop = 0
	scamperCompleted scamperStop = 1
	scamperUnreach   scamperStop = 2
	scamperLoop      scamperStop = 4
	scamperGapLimit  scamperStop = 5
	scamperHopLimit  scamperStop = 7
	scamperHalted    scamperStop = 9
)

func (s scamperStop) MarshalText() ([]byte, error) {
	return []byte([...]string{"NONE", "COMPLETED", "UNREACH", "ICMP", "LOOP", "GAPLIMIT", "ERROR", "HOPLIMIT", "GSS", "HALTED"}[s]), nil
}

var scamperStops = map[string]scamperStop{
	trace.StopReached.String(): scamperCompleted, trace.StopUnreachable.String(): scamperUnreach, trace.StopLoop.String(): scamperLoop,
	trace.StopGapLimit.String(): scamperGapLimit, trace.StopMaxHops.String(): scamperHopLimit,
	trace.StopProbeLimit.String(): scamperHalted, trace.StopInterrupted.String(): scamperHalted,
}

// What a definition leaves to the defaults, and scamper's files name.
const (
	defaultTimeout  = 2 * time.Second
	defaultGapLimit = 8
	// scamperLoops says that the first loop ends a trace. Package trace waits a little longer before it calls
	// something a loop.
	scamperLoops = 1
)

// scamperTrace is a trace in the terms and the order of sc_warts2json. Keys of our own come last.
type scamperTrace struct {
	cycle *scamperCycle

	Type       string        `json:"type"`
	Version    string        `json:"version"`
	UserID     uint32        `json:"userid"`
	Method     scamperMethod `json:"method"`
	Src        netip.Addr    `json:"src,omitzero"`
	Dst        netip.Addr    `json:"dst"`
	SrcPort    *uint16       `json:"sport,omitempty"`
	DstPort    *uint16       `json:"dport,omitempty"`
	Stop       scamperStop   `json:"stop_reason"`
	StopData   uint8         `json:"stop_data"`
	Start      scamperTime   `json:"start"`
	HopCount   uint16        `json:"hop_count"` // at most 255: scamper refuses more
	Attempts   uint8         `json:"attempts"`
	HopLimit   uint8         `json:"hoplimit"`
	FirstHop   uint8         `json:"firsthop"`
	Wait       uint8         `json:"wait"`       // seconds
	WaitProbe  uint8         `json:"wait_probe"` // hundredths of a second
	TOS        uint8         `json:"tos"`
	ProbeSize  uint16        `json:"probe_size"`
	ProbeCount uint16        `json:"probe_count"`
	Hops       []scamperHop  `json:"hops,omitempty"`
	// Ours.
	Measurement string `json:"measurement"`
	Site        string `json:"site"`

	gapLimit uint8
}

// scamperHop is an answer. Probes without one are not there.
type scamperHop struct {
	Addr      netip.Addr   `json:"addr"`
	TTL       uint8        `json:"probe_ttl"`
	ID        uint8        `json:"probe_id"` // from 1
	ProbeSize uint16       `json:"probe_size"`
	Sent      *scamperTime `json:"tx,omitempty"`
	RTT       *scamperMs   `json:"rtt,omitempty"` // nil if it is not known
	ReplyTTL  uint8        `json:"reply_ttl"`
	ReplyTOS  uint8        `json:"reply_tos"`
	ReplyID   uint16       `json:"reply_ipid"`
	ReplySize uint16       `json:"reply_size"`
	ICMPType  *uint8       `json:"icmp_type,omitempty"`
	ICMPCode  *uint8       `json:"icmp_code,omitempty"`
	QuotedTTL *uint8       `json:"icmp_q_ttl,omitempty"`
	QuotedLen *uint16      `json:"icmp_q_ipl,omitempty"`
	QuotedTOS *uint8       `json:"icmp_q_tos,omitempty"`
	MTU       *uint16      `json:"icmp_nhmtu,omitempty"`
	TCPFlags  *uint8       `json:"tcp_flags,omitempty"`
	Ext       []scamperExt `json:"icmpext,omitempty"`
	// Ours.
	Receiver   string     `json:"receiver,omitempty"`
	ClockError *scamperMs `json:"clock_error,omitempty"`
	Flow       *uint16    `json:"flow,omitempty"`

	udp  bool // a datagram, not ICMP
	mpls []packet.Label
}

type scamperTime struct {
	Sec   int64  `json:"sec"`
	Usec  int64  `json:"usec"`
	FTime string `json:"ftime,omitempty"`
}

func newScamperTime(t time.Time) scamperTime {
	if t.IsZero() {
		t = time.Unix(0, 0)
	}
	return scamperTime{Sec: t.Unix(), Usec: int64(t.Nanosecond() / 1000)}
}

// scamperMs is a time in milliseconds, printed with three digits.
type scamperMs time.Duration

func (d scamperMs) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, float64(time.Duration(d).Microseconds())/1000, 'f', 3, 64), nil
}

type scamperExt struct {
	Class  uint8          `json:"ie_cn"`
	Type   uint8          `json:"ie_ct"`
	Length int            `json:"ie_dl"`
	Labels []scamperLabel `json:"mpls_labels"`
}

type scamperLabel struct {
	TTL   uint8  `json:"mpls_ttl"`
	S     int    `json:"mpls_s"`
	Exp   uint8  `json:"mpls_exp"`
	Label uint32 `json:"mpls_label"`
}

func newScamperTrace(m *anycast.Measurement, t *anycast.TraceResult) (*scamperTrace, error) {
	d := &m.Definition
	s := &scamperTrace{
		Type: "trace", Version: "0.1", Src: t.Source.Unmap(), Dst: t.Target.Unmap(), Stop: scamperStops[t.Stop], Start: newScamperTime(t.Start),
		Attempts: clip[uint8](t.Attempts), HopLimit: clip[uint8](t.MaxHops), FirstHop: clip[uint8](t.FirstHop), TOS: t.TOS,
		ProbeSize: clip[uint16](t.Size), ProbeCount: clip[uint16](t.Probes), Measurement: m.ID, Site: t.Site,
		Wait:     clip[uint8](int(math.Ceil(cmp.Or(d.Timeout, defaultTimeout).Seconds()))),
		gapLimit: defaultGapLimit,
	}
	if o := d.Trace; o != nil && o.GapLimit != 0 {
		s.gapLimit = clip[uint8](o.GapLimit) // below 0, never, is 0 there
	}
	s.Start.FTime = time.Unix(s.Start.Sec, 0).UTC().Format(time.DateTime)
	switch paris := t.Method == anycast.MethodParis; t.Protocol {
	case stateless.ICMP:
		s.Method = scamperICMP
		if paris {
			s.Method = scamperICMPParis
		}
	case stateless.TCP:
		s.Method = scamperTCP
	case stateless.UDP, stateless.DNS, stateless.CHAOS:
		s.Method = scamperUDP
		if paris {
			s.Method = scamperUDPParis
		}
	default:
		return nil, fmt.Errorf("%w: a trace with probes of %s", ErrKind, t.Protocol)
	}
	if s.Method.ports() {
		s.SrcPort, s.DstPort = new(t.SrcPort), new(t.DstPort)
	}
	last, id := t.FirstHop-1, 0
	for i := range t.Replies {
		r := &t.Replies[i]
		if id++; i == 0 || r.TTL != t.Replies[i-1].TTL {
			id = 1
		}
		last = max(last, int(r.TTL))
		if isUnreachable(r) {
			s.StopData = r.ICMPCode
		}
		if r.Responder.IsValid() && r.TTL > 0 { // scamper refuses a file with a hop 0
			s.Hops = append(s.Hops, newScamperHop(t, r, clip[uint8](id)))
		}
	}
	if s.Stop != scamperUnreach {
		s.StopData = 0
	}
	if len(s.Hops) > math.MaxUint16 {
		return nil, fmt.Errorf("%w: %d answers", ErrTooLarge, len(s.Hops))
	}
	s.HopCount = uint16(clip[uint8](last + t.Silent))
	return s, nil
}

func isUnreachable(r *anycast.Reply) bool {
	return r.HasICMP && r.Status != probe.Replied && r.Status != probe.TimeExceeded
}

func newScamperHop(t *anycast.TraceResult, r *anycast.Reply, id uint8) scamperHop {
	h := scamperHop{
		Addr: r.Responder.Unmap().WithZone(""), TTL: r.TTL, ID: id, ProbeSize: clip[uint16](t.Size), ReplyTTL: r.ReplyTTL, ReplyTOS: r.ReplyTOS,
		ReplyID: r.ReplyID, ReplySize: r.ReplySize, Receiver: r.Receiver,
	}
	if !r.Sent.IsZero() {
		h.Sent = new(newScamperTime(r.Sent))
	}
	if r.RTT > 0 {
		h.RTT = new(scamperMs(r.RTT))
	}
	if r.ClockError > 0 {
		h.ClockError = new(scamperMs(r.ClockError))
	}
	if t.Method == anycast.MethodMultipath {
		h.Flow = new(r.Flow)
	}
	switch {
	case r.HasICMP:
		h.ICMPType, h.ICMPCode = new(r.ICMPType), new(r.ICMPCode)
	case t.Protocol == stateless.ICMP: // an echo reply
		h.ICMPType, h.ICMPCode = new(packet.ICMPv4EchoReply), new(uint8(0))
		if h.Addr.Is6() {
			*h.ICMPType = packet.ICMPv6EchoReply
		}
		return h
	case t.Protocol == stateless.TCP:
		h.TCPFlags = new(uint8(0)) // SYN-ACK or RST: which is not kept
		return h
	default:
		h.udp = true
		return h
	}
	if quotes(h.Addr.Is6(), r.ICMPType) {
		h.QuotedTTL, h.QuotedLen = new(max(r.QuotedTTL, 1)), new(h.ProbeSize)
		if h.Addr.Is4() {
			h.QuotedTOS = new(r.QuotedTOS)
		}
	}
	if tellsMTU(h.Addr.Is6(), r.ICMPType, r.ICMPCode) {
		h.MTU = new(uint16(min(r.MTU, math.MaxUint16)))
	}
	if len(r.MPLS) > 0 {
		h.mpls = r.MPLS
		e := scamperExt{Class: packet.ExtensionMPLS, Type: 1, Length: 4 * len(r.MPLS)}
		for _, l := range r.MPLS {
			e.Labels = append(e.Labels, scamperLabel{l.TTL, bit(l.Bottom), l.TC, l.Label})
		}
		h.Ext = []scamperExt{e}
	}
	return h
}

// quotes tells whether scamper takes such a message for one about a probe: time exceeded or unreachable.
func quotes(six bool, typ uint8) bool {
	if six {
		return typ == packet.ICMPv6TimeExceeded || typ == packet.ICMPv6Unreachable || typ == packet.ICMPv6PacketTooBig
	}
	return typ == packet.ICMPv4TimeExceeded || typ == packet.ICMPv4Unreachable
}

// tellsMTU tells whether such a message has the MTU of the next hop.
func tellsMTU(six bool, typ, code uint8) bool {
	if six {
		return typ == packet.ICMPv6PacketTooBig
	}
	return typ == packet.ICMPv4Unreachable && code == packet.ICMPv4CodeFragNeeded
}

// clip brings a number into the range of a field.
func clip[T uint8 | uint16](n int) T {
	return T(min(max(n, 0), int(^T(0))))
}

// scamperJSON writes what sc_warts2json prints.
type scamperJSON struct {
	enc *json.Encoder
}

func (j *scamperJSON) list(*scamperList) error { return nil }

func (j *scamperJSON) cycleStart(c *scamperCycle) error {
	return j.enc.Encode(struct {
		Type  string `json:"type"`
		List  string `json:"list_name"`
		ID    uint32 `json:"id"`
		Host  string `json:"hostname"`
		Start int64  `json:"start_time"`
	}{"cycle-start", c.list.name, 0, c.host, newScamperTime(c.start).Sec})
}

func (j *scamperJSON) cycleStop(c *scamperCycle) error {
	return j.enc.Encode(struct {
		Type string `json:"type"`
		List string `json:"list_name"`
		ID   uint32 `json:"id"`
		Host string `json:"hostname"`
		Stop int64  `json:"stop_time"`
	}{"cycle-stop", c.list.name, 0, c.host, newScamperTime(c.stop).Sec})
}

func (j *scamperJSON) trace(t *scamperTrace) error { return j.enc.Encode(t) }
