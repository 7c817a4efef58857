// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"encoding/json"
	"hash/fnv"
	"io"
	"net/netip"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// atlasFirmware is the version of the result format that these results are in.
const atlasFirmware = 5000

// atlas writes results in the format of RIPE Atlas, version 5000, one object per line: a traceroute per trace; a ping of
// one packet per catch and per time of a latency result. Keys that RIPE Atlas does not have come last.
type atlas struct {
	enc *json.Encoder
	// unicast is the target whose times from the sites' own addresses were written last: they come with each of its origins.
	unicast struct {
		measurement string
		target      netip.Addr
	}
}

func newAtlas(w io.Writer) *atlas { return &atlas{enc: newJSON(w)} }

// atlasHead is in all results.
type atlasHead struct {
	Firmware  int    `json:"fw"`
	LTS       int    `json:"lts"` // seconds since the clock was set, -1 for unknown
	Type      string `json:"type"`
	Name      string `json:"msm_name"`
	ID        uint32 `json:"msm_id"`
	Probe     uint32 `json:"prb_id"`
	Timestamp int64  `json:"timestamp"`
	Version   int    `json:"af"`
	DstName   string `json:"dst_name"`
	DstAddr   string `json:"dst_addr"`
	SrcAddr   string `json:"src_addr,omitempty"`
	From      string `json:"from"`
	Proto     string `json:"proto"`
	Size      *int   `json:"size,omitempty"` // of the data
}

type atlasTraceroute struct {
	atlasHead
	EndTime int64      `json:"endtime"`
	Paris   int        `json:"paris_id"`
	Result  []atlasHop `json:"result"`
	// Ours.
	Measurement string `json:"measurement"`
	Site        string `json:"site"`
	Stop        string `json:"stop"`
}

type atlasHop struct {
	Hop    int          `json:"hop"`
	Result []atlasReply `json:"result"`
}

// atlasReply is what became of a probe. Only one of X, Error and the rest is there.
type atlasReply struct {
	X       string    `json:"x,omitempty"`
	Error   string    `json:"error,omitempty"`
	Err     any       `json:"err,omitempty"` // a letter, or a number where there is none
	From    string    `json:"from,omitempty"`
	RTT     float64   `json:"rtt,omitempty"`
	Size    *int      `json:"size,omitempty"`
	TTL     uint8     `json:"ttl,omitempty"`
	ITTL    uint8     `json:"ittl,omitempty"` // if it is not 1
	ITOS    uint8     `json:"itos,omitempty"`
	MTU     uint32    `json:"mtu,omitempty"`
	ICMPExt *atlasExt `json:"icmpext,omitempty"`
	// Ours.
	Receiver   string  `json:"receiver,omitempty"`
	ClockError float64 `json:"clock_error,omitempty"` // ms
	Flow       *uint16 `json:"flow,omitempty"`
}

type atlasExt struct {
	Version int           `json:"version"`
	RFC4884 int           `json:"rfc4884"`
	Objects []atlasObject `json:"obj"`
}

type atlasObject struct {
	Class int         `json:"class"`
	Type  int         `json:"type"`
	MPLS  []atlasMPLS `json:"mpls"`
}

type atlasMPLS struct {
	Exp   uint8  `json:"exp"`
	Label uint32 `json:"label"`
	S     int    `json:"s"`
	TTL   uint8  `json:"ttl"`
}

type atlasPing struct {
	atlasHead
	Sent     int             `json:"sent"`
	Received int             `json:"rcvd"`
	Dup      int             `json:"dup"`
	Min      float64         `json:"min"` // -1 if there is none
	Avg      float64         `json:"avg"`
	Max      float64         `json:"max"`
	TTL      uint8           `json:"ttl,omitempty"`
	Result   []atlasPingItem `json:"result"`
	// Ours.
	Measurement string `json:"measurement"`
	Site        string `json:"site"`
	Receiver    string `json:"receiver,omitempty"`
	Origin      string `json:"origin,omitempty"`
	Text        string `json:"text,omitempty"`
	Unicast     bool   `json:"unicast,omitempty"`
}

type atlasPingItem struct {
	X       string  `json:"x,omitempty"`
	Error   string  `json:"error,omitempty"`
	RTT     float64 `json:"rtt,omitempty"`
	SrcAddr string  `json:"src_addr,omitempty"` // who answered, if it was not the target
	// Ours.
	ClockError float64 `json:"clock_error,omitempty"`
}

func (a *atlas) begin(*anycast.Measurement) error { return nil }

func (a *atlas) end() error { return nil }

func (a *atlas) write(m *anycast.Measurement, r anycast.Result) error {
	switch r := r.(type) {
	case *anycast.TraceResult:
		return a.trace(m, r)
	case *anycast.Catch:
		return a.catch(m, r)
	case *anycast.FlipResult:
		for i := range r.Catches {
			if err := a.catch(m, &r.Catches[i]); err != nil {
				return err
			}
		}
	case *anycast.LatencyResult:
		return a.latency(m, r)
	}
	return nil
}

// atlasNumber stands in for a number of RIPE Atlas's: the same for the same text, and not 0.
func atlasNumber(s string) uint32 {
	h := fnv.New32a()
	_, _ = io.WriteString(h, s) // cannot fail
	return max(1, h.Sum32()&0x7fffffff)
}

var atlasProtocols = [...]string{stateless.ICMP: "ICMP", stateless.UDP: "UDP", stateless.TCP: "TCP", stateless.DNS: "UDP", stateless.CHAOS: "UDP"}

func newAtlasHead(m *anycast.Measurement, site string, source, target netip.Addr, name string, protocol stateless.Kind, size int) atlasHead {
	h := atlasHead{
		Firmware: atlasFirmware, LTS: -1, ID: atlasNumber(m.ID), Probe: atlasNumber(site), Version: 4,
		DstName: text(name), DstAddr: address(target), SrcAddr: address(source), From: address(source),
	}
	if name == "" {
		h.DstName = h.DstAddr
	}
	if int(protocol) < len(atlasProtocols) {
		h.Proto = atlasProtocols[protocol]
	}
	header := 8
	if protocol == stateless.TCP {
		header = 20
	}
	if target.Is6() && !target.Is4In6() {
		h.Version = 6
	}
	if size > 0 {
		h.Size = new(max(0, size-ipHeader(target)-header))
	}
	return h
}

func ipHeader(a netip.Addr) int {
	if a.Is6() && !a.Is4In6() {
		return 40
	}
	return 20
}

func (a *atlas) trace(m *anycast.Measurement, t *anycast.TraceResult) error {
	r := atlasTraceroute{
		atlasHead: newAtlasHead(m, t.Site, t.Source, t.Target, t.Name, t.Protocol, t.Size),
		EndTime:   t.End.Unix(), Result: []atlasHop{}, Measurement: m.ID, Site: t.Site, Stop: t.Stop,
	}
	r.Type, r.Name, r.Timestamp = "traceroute", "Traceroute", t.Start.Unix()
	if t.Method == anycast.MethodParis {
		r.Paris = 1
	}
	last := t.FirstHop - 1
	for i := range t.Replies {
		reply := &t.Replies[i]
		hop := int(reply.TTL)
		if n := len(r.Result); n == 0 || r.Result[n-1].Hop != hop {
			r.Result = append(r.Result, atlasHop{Hop: hop})
		}
		at := &r.Result[len(r.Result)-1]
		at.Result = append(at.Result, newAtlasReply(t, reply))
		last = max(last, hop)
	}
	// The silent hops at the end, which RIPE Atlas shows.
	for hop := last + 1; hop <= min(last+t.Silent, 255); hop++ {
		silent := atlasHop{Hop: hop}
		for range min(max(t.Attempts, 1), 255) {
			silent.Result = append(silent.Result, atlasReply{X: "*"})
		}
		r.Result = append(r.Result, silent)
	}
	return a.enc.Encode(&r)
}

func newAtlasReply(t *anycast.TraceResult, r *anycast.Reply) atlasReply {
	var a atlasReply
	if t.Method == anycast.MethodMultipath {
		a.Flow = new(r.Flow)
	}
	if !r.Responder.IsValid() {
		a.X, a.Error = atlasSilence(r.Status)
		return a
	}
	a.From, a.RTT, a.TTL, a.Receiver, a.ClockError, a.MTU = address(r.Responder), millis(r.RTT), r.ReplyTTL, r.Receiver, millis(r.ClockError), r.MTU
	if r.ReplySize > 0 {
		header := 8 // ICMP's, which all answers have that end no TCP trace
		if t.Protocol == stateless.TCP && !r.HasICMP {
			header = 20
		}
		a.Size = new(max(0, int(r.ReplySize)-ipHeader(r.Responder)-header))
	}
	if r.QuotedTTL > 1 {
		a.ITTL = r.QuotedTTL
	}
	if r.QuotedTTL != 0 {
		a.ITOS = r.QuotedTOS
	}
	if r.HasICMP && r.Status != probe.TimeExceeded && r.Status != probe.Replied {
		a.Err = atlasErr(r.Responder.Is6(), r.ICMPType, r.ICMPCode)
	}
	if len(r.MPLS) > 0 {
		o := atlasObject{Class: int(packet.ExtensionMPLS), Type: 1}
		for _, l := range r.MPLS {
			o.MPLS = append(o.MPLS, atlasMPLS{Exp: l.TC, Label: l.Label, S: bit(l.Bottom), TTL: l.TTL})
		}
		a.ICMPExt = &atlasExt{Version: 2, Objects: []atlasObject{o}}
	}
	return a
}

// atlasSilence is how a probe without an answer is shown.
func atlasSilence(s probe.Status) (x, failure string) {
	if s == probe.NoReply {
		return "*", ""
	}
	return "", s.String()
}

// atlasErr gives the letter of an unreachable destination (type 3, or 1 of ICMPv6), or the code where there is none.
func atlasErr(six bool, typ, code uint8) any {
	letters := map[uint8]string{0: "N", 1: "H", 2: "P", 3: "p", 9: "A", 10: "A", 13: "A"}
	unreachable := packet.ICMPv4Unreachable
	if six {
		letters = map[uint8]string{0: "N", 1: "A", 3: "H", 4: "p"}
		unreachable = packet.ICMPv6Unreachable
	}
	if letter, ok := letters[code]; ok && typ == unreachable {
		return letter
	}
	return code
}

func (a *atlas) catch(m *anycast.Measurement, c *anycast.Catch) error {
	p := newAtlasPing(m, c.Sender, c.Origin, c.Target, c.Protocol, millis(c.RTT))
	p.Timestamp, p.Dup, p.TTL, p.Receiver, p.Text = c.Time.Unix(), c.Duplicates, c.ReplyTTL, c.Receiver, text(c.Text)
	item := &p.Result[0]
	if c.Receiver == "" {
		p.Received = 0
		item.X, item.Error = atlasSilence(c.Status)
		if item.Error != "" && c.Responder.IsValid() {
			item.SrcAddr = address(c.Responder)
		}
	} else {
		item.ClockError = millis(c.ClockError)
		if c.Responder.IsValid() && c.Responder != c.Target {
			item.SrcAddr = address(c.Responder)
		}
	}
	return a.enc.Encode(p)
}

func (a *atlas) latency(m *anycast.Measurement, l *anycast.LatencyResult) error {
	if l.Catcher != "" {
		p := newAtlasPing(m, l.Catcher, l.Origin, l.Target, m.Definition.Protocol, millis(l.RTT))
		p.Timestamp, p.Receiver = l.Time.Unix(), l.Catcher
		if err := a.enc.Encode(p); err != nil {
			return err
		}
	}
	if len(l.Unicast) == 0 || a.unicast.measurement == m.ID && a.unicast.target == l.Target {
		return nil
	}
	a.unicast.measurement, a.unicast.target = m.ID, l.Target
	for _, s := range l.Unicast {
		p := newAtlasPing(m, s.Site, "", l.Target, m.Definition.Protocol, millis(s.RTT))
		p.Timestamp, p.Receiver, p.Unicast = l.Time.Unix(), s.Site, true
		p.SrcAddr, p.From = "", "" // the site's own, which the result does not have
		if err := a.enc.Encode(p); err != nil {
			return err
		}
	}
	return nil
}

// newAtlasPing is a ping of one packet that was answered, after rtt ms if that is known.
func newAtlasPing(m *anycast.Measurement, site, origin string, target netip.Addr, protocol stateless.Kind, rtt float64) *atlasPing {
	d := &m.Definition
	source := sourceOf(m, origin)
	if source.Is4() != target.Is4() {
		source = netip.Addr{}
	}
	p := &atlasPing{
		atlasHead: newAtlasHead(m, site, source, target, "", protocol, d.Size),
		Sent:      1, Received: 1, Min: -1, Avg: -1, Max: -1, Result: []atlasPingItem{{RTT: rtt}}, Measurement: m.ID, Site: site,
		Origin: origin,
	}
	p.Type, p.Name = "ping", "Ping"
	if rtt > 0 {
		p.Min, p.Avg, p.Max = rtt, rtt, rtt
	}
	return p
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}
