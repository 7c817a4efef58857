// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/trace"
)

// traceTable prints a path for eyes, hop by hop as they become known. Widths are fixed, as what comes later
// is not known; what is wider pushes its own line only.
type traceTable struct {
	w       io.Writer
	showAS  bool
	queries int
	err     error // the first failed write
}

const (
	traceHostWidth = 40
	traceASWidth   = 12
	traceRTTWidth  = 10
	// traceMostColumns bounds the columns of times: more wrap on ordinary terminals.
	traceMostColumns = 10
)

func (t *traceTable) print(line string) {
	if t.err == nil {
		_, t.err = io.WriteString(t.w, strings.TrimRight(line, " ")+"\n")
	}
}

// row prints a line of the table.
func (t *traceTable) row(hop, host, as, rest string) {
	line := fmt.Sprintf("%3s  %s", hop, pad(host, traceHostWidth))
	if t.showAS {
		line += " " + pad(as, traceASWidth)
	}
	t.print(line + rest)
}

func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s)))
}

func (t *traceTable) header(headline string) {
	t.print(headline)
	t.row("HOP", "HOST", "AS", fmt.Sprintf("%*s", traceRTTWidth, "RTT ms"))
}

// hop prints one hop: a line for each responder, with its times in the columns of the probes.
func (t *traceTable) hop(h trace.Hop, about func(netip.Addr) trace.Annotation) {
	number := strconv.Itoa(h.TTL)
	responders := h.Responders()
	if len(responders) == 0 {
		responders = []netip.Addr{{}}
	}
	for i, addr := range responders {
		var times, notes strings.Builder
		seen := make(map[string]bool)
		column := 0
		cell := func(s string) {
			if column > 0 && column%traceMostColumns == 0 {
				times.WriteString("\n" + strings.Repeat(" ", t.indent()))
			}
			column++
			fmt.Fprintf(&times, "%*s", traceRTTWidth, s)
		}
		for q := range h.Replies {
			r := &h.Replies[q]
			switch {
			case r.Responder == addr && r.Answered():
				cell(fmt.Sprintf("%.3f", float64(r.RTT)/float64(time.Millisecond)))
			case i == 0 && !r.Answered():
				cell("*")
			default: // another responder's
				cell("")
			}
			if r.Responder == addr {
				for _, note := range replyNotes(r) {
					if !seen[note] {
						seen[note] = true
						notes.WriteString("  " + note)
					}
				}
			}
		}
		host, as := "*", ""
		if addr.IsValid() {
			host, as = describe(addr, about(addr))
		}
		t.row(number, host, as, times.String()+notes.String())
		number = ""
	}
}

// indent is where the times begin.
func (t *traceTable) indent() int {
	if t.showAS {
		return 5 + traceHostWidth + 1 + traceASWidth
	}
	return 5 + traceHostWidth
}

// describe gives the texts for an address: with its name, and its autonomous system and country.
func describe(addr netip.Addr, a trace.Annotation) (host, as string) {
	host = addr.String()
	if a.Name != "" {
		host = a.Name + " (" + host + ")"
	}
	if a.ASN != 0 {
		as = fmt.Sprintf("AS%d", a.ASN)
	}
	if a.Country != "" {
		as = strings.TrimSpace(as + " " + a.Country)
	}
	return host, as
}

// replyNotes says what else a reply tells.
func replyNotes(r *probe.Result) []string {
	var notes []string
	if m := trace.Mark(r); m != "" {
		notes = append(notes, m)
	}
	if r.QuotedTTL > 1 && r.Status == probe.TimeExceeded {
		notes = append(notes, fmt.Sprintf("arrived with ttl %d", r.QuotedTTL))
	}
	if r.MTU > 0 {
		notes = append(notes, fmt.Sprintf("mtu %d", r.MTU))
	}
	if len(r.MPLS) > 0 {
		notes = append(notes, "mpls "+trace.LabelsText(r.MPLS))
	}
	return notes
}

// footer says how the trace ended.
func (t *traceTable) footer(p *trace.Path) {
	hop := 0
	if n := len(p.Hops); n > 0 {
		hop = p.Hops[n-1].TTL
	}
	t.print(fmt.Sprintf("%s; %s in %s", stopText(p.Stop, hop, p.Silent), count(p.Probes, "probe"), traceDuration(p.Duration)))
}

func traceDuration(d time.Duration) string {
	return fmt.Sprintf("%.3f s", d.Seconds())
}

// confidenceText never rounds up to certainty.
func confidenceText(confidence float64) string {
	if confidence < 1 && confidence >= 0.9995 {
		return "above 99.9 %"
	}
	return fmt.Sprintf("%.1f %%", 100*confidence)
}

// stopText says why a trace ended; hop is the last one shown.
func stopText(s trace.StopReason, hop, silent int) string {
	behind := ""
	if silent > 0 {
		behind = fmt.Sprintf(": %s behind hop %d", count(silent, "silent hop"), hop)
	}
	switch s {
	case trace.StopReached:
		return fmt.Sprintf("reached at hop %d", hop)
	case trace.StopUnreachable:
		return fmt.Sprintf("not reached: hop %d says unreachable", hop)
	case trace.StopLoop:
		return fmt.Sprintf("not reached: the path loops, as of hop %d", hop)
	case trace.StopGapLimit:
		return "not reached: gap limit" + behind + " (a firewall, most likely)"
	case trace.StopMaxHops:
		return "not reached: hop limit" + behind
	case trace.StopProbeLimit:
		return "not complete: out of probes"
	case trace.StopInterrupted:
		return "interrupted"
	}
	return s.String()
}

// graph prints what a multipath trace found. Nodes are named by hop and letter, and each line
// ends with the nodes that come next.
func (t *traceTable) graph(headline string, g *trace.Graph, about func(netip.Addr) trace.Annotation) {
	names := make([]string, len(g.Nodes))
	hops := g.Hops()
	for _, hop := range hops {
		for i, n := range hop {
			names[n] = strconv.Itoa(g.Nodes[n].TTL)
			if len(hop) > 1 {
				names[n] += letters(i)
			}
		}
	}
	t.print(headline)
	t.row("HOP", "HOST", "AS", fmt.Sprintf("%*s%*s  NEXT", 2*traceRTTWidth, "RTT ms: min     avg", traceRTTWidth, "max"))
	for i := range g.Nodes {
		n := &g.Nodes[i]
		if n.Kind == trace.SourceNode {
			continue
		}
		host, as := "*", ""
		if n.Addr.IsValid() {
			host, as = describe(n.Addr, about(n.Addr))
		}
		var rest strings.Builder
		if n.Answers > 0 {
			for _, d := range []time.Duration{n.Min, n.Avg, n.Max} {
				fmt.Fprintf(&rest, "%*.3f", traceRTTWidth, float64(d)/float64(time.Millisecond))
			}
		} else {
			fmt.Fprintf(&rest, "%*s%*s%*s", traceRTTWidth, "*", traceRTTWidth, "*", traceRTTWidth, "*")
		}
		rest.WriteString("  ")
		for _, e := range g.Edges {
			if e.From == i {
				rest.WriteString(names[e.To])
				if e.Uncertain {
					rest.WriteByte('?')
				}
				rest.WriteByte(' ')
			}
		}
		if n.PerPacket {
			rest.WriteString(" balances per packet")
		}
		for _, note := range replyNotes(nodeReply(g, n)) {
			rest.WriteString(" " + note)
		}
		t.row(names[i], host, as, rest.String())
	}
	last := g.Nodes[len(g.Nodes)-1].TTL
	t.print(fmt.Sprintf("%s; %s of %s in %s; confidence %s", stopText(g.Stop, last, g.Silent),
		count(g.Probes, "probe"), count(g.Flows, "flow"), traceDuration(g.Duration), confidenceText(g.Confidence)))
	for _, ttl := range g.Switched {
		t.print(fmt.Sprintf("hop %d is meshed or uneven: probed node by node (MDA)", ttl))
	}
}

// nodeReply gives the latest reply of a node, as far as the graph keeps it.
func nodeReply(g *trace.Graph, n *trace.Node) *probe.Result {
	return &probe.Result{
		Target: g.Target, Status: n.Status, HasICMP: n.HasICMP,
		ICMPType: n.ICMPType, ICMPCode: n.ICMPCode, MPLS: n.MPLS,
	}
}

// letters counts a, b, ... z, aa, ab, ...
func letters(i int) string {
	if i < 26 {
		return string(rune('a' + i))
	}
	return letters(i/26-1) + letters(i%26)
}

// traceRecord is the document that --json prints. docs/reference/trace.md explains it.
type traceRecord struct {
	Target   string    `json:"target"`
	Address  string    `json:"address"`
	Protocol string    `json:"protocol"`
	Method   string    `json:"method"`
	Flow     uint16    `json:"flow,omitempty"`
	Start    time.Time `json:"start"`
	Duration int64     `json:"duration_ns"`
	Probes   int       `json:"probes"`
	Stop     string    `json:"stop"`
	Silent   int       `json:"silent_hops"`

	Hops []hopRecord `json:"hops,omitempty"`

	Flows       int          `json:"flows,omitempty"`
	Confidence  *float64     `json:"confidence,omitempty"`
	NodeFailure *float64     `json:"node_failure,omitempty"`
	Switched    []int        `json:"switched,omitempty"`
	Nodes       []nodeRecord `json:"nodes,omitempty"`
	Edges       []edgeRecord `json:"edges,omitempty"`

	Addresses map[string]aboutRecord `json:"addresses"`
}

type hopRecord struct {
	TTL     int           `json:"ttl"`
	Replies []replyRecord `json:"replies"`
}

type replyRecord struct {
	Status      string        `json:"status"`
	SentAt      *time.Time    `json:"sent_at,omitempty"`
	Responder   *netip.Addr   `json:"responder,omitempty"`
	RTT         *int64        `json:"rtt_ns,omitempty"`
	KernelTimed *bool         `json:"kernel_timed,omitempty"`
	ReplyTTL    uint8         `json:"reply_ttl,omitempty"`
	ICMPType    *uint8        `json:"icmp_type,omitempty"`
	ICMPCode    *uint8        `json:"icmp_code,omitempty"`
	QuotedTTL   uint8         `json:"quoted_ttl,omitempty"`
	QuotedTOS   *uint8        `json:"quoted_tos,omitempty"`
	MTU         uint32        `json:"mtu,omitempty"`
	MPLS        []labelRecord `json:"mpls,omitempty"`
}

type nodeRecord struct {
	TTL       int           `json:"ttl"`
	Kind      string        `json:"kind"`
	Address   *netip.Addr   `json:"address,omitempty"`
	PerPacket bool          `json:"per_packet,omitempty"`
	Answers   int           `json:"answers"`
	Min       *int64        `json:"min_ns,omitempty"`
	Avg       *int64        `json:"avg_ns,omitempty"`
	Max       *int64        `json:"max_ns,omitempty"`
	Status    string        `json:"status,omitempty"`
	ICMPType  *uint8        `json:"icmp_type,omitempty"`
	ICMPCode  *uint8        `json:"icmp_code,omitempty"`
	MPLS      []labelRecord `json:"mpls,omitempty"`
	Flows     []uint16      `json:"flows"`
}

type edgeRecord struct {
	From      int      `json:"from"`
	To        int      `json:"to"`
	Flows     []uint16 `json:"flows"`
	Uncertain bool     `json:"uncertain,omitempty"`
}

type aboutRecord struct {
	Name      string `json:"name,omitempty"`
	ASN       uint32 `json:"asn,omitempty"`
	ASName    string `json:"as_name,omitempty"`
	Prefix    string `json:"prefix,omitempty"`
	Country   string `json:"country,omitempty"`
	Registry  string `json:"registry,omitempty"`
	Allocated string `json:"allocated,omitempty"`
}

// aboutAll gives what is known about the addresses, and leaves out those of which nothing is.
func (t *traceRun) aboutAll(ctx context.Context, addrs []netip.Addr) map[string]aboutRecord {
	all := make(map[string]aboutRecord)
	for _, addr := range addrs {
		if a := t.about(ctx, addr); a != (trace.Annotation{}) {
			r := aboutRecord{Name: a.Name, ASN: a.ASN, ASName: a.ASName, Country: a.Country, Registry: a.Registry, Allocated: a.Allocated}
			if a.Prefix.IsValid() {
				r.Prefix = a.Prefix.String()
			}
			all[addr.String()] = r
		}
	}
	return all
}

func (t *traceRun) jsonPath(ctx context.Context, p *trace.Path, method trace.Method) *traceRecord {
	doc := &traceRecord{
		Target: t.host, Address: p.Target.String(), Protocol: p.Protocol.String(), Method: method.String(), Flow: p.Flow,
		Start: p.Start.UTC(), Duration: p.Duration.Nanoseconds(), Probes: p.Probes, Stop: p.Stop.String(), Silent: p.Silent,
		Hops: make([]hopRecord, len(p.Hops)),
	}
	var addrs []netip.Addr
	for i := range p.Hops {
		h := &p.Hops[i]
		addrs = append(addrs, h.Responders()...)
		rec := hopRecord{TTL: h.TTL, Replies: make([]replyRecord, len(h.Replies))}
		for q := range h.Replies {
			rec.Replies[q] = newReplyRecord(&h.Replies[q])
		}
		doc.Hops[i] = rec
	}
	doc.Addresses = t.aboutAll(ctx, addrs)
	return doc
}

func newReplyRecord(r *probe.Result) replyRecord {
	rec := replyRecord{
		Status: r.Status.String(), ReplyTTL: r.ReplyTTL, QuotedTTL: r.QuotedTTL, MTU: r.MTU, MPLS: labelRecords(r.MPLS),
	}
	if !r.Sent.IsZero() {
		rec.SentAt = new(r.Sent.UTC())
	}
	if r.Answered() {
		rec.Responder, rec.RTT, rec.KernelTimed = &r.Responder, new(r.RTT.Nanoseconds()), &r.KernelTimed
	}
	if r.HasICMP {
		rec.ICMPType, rec.ICMPCode = &r.ICMPType, &r.ICMPCode
	}
	if r.QuotedTTL != 0 {
		rec.QuotedTOS = &r.QuotedTOS
	}
	return rec
}

func (t *traceRun) jsonGraph(ctx context.Context, g *trace.Graph, algorithm trace.Algorithm) *traceRecord {
	doc := &traceRecord{
		Target: t.host, Address: g.Target.String(), Protocol: g.Protocol.String(), Method: strings.ToLower(algorithm.String()),
		Start: g.Start.UTC(), Duration: g.Duration.Nanoseconds(), Probes: g.Probes, Stop: g.Stop.String(), Silent: g.Silent,
		Flows: g.Flows, Confidence: &g.Confidence, NodeFailure: &g.NodeFailure, Switched: g.Switched,
		Nodes: make([]nodeRecord, len(g.Nodes)), Edges: make([]edgeRecord, len(g.Edges)),
	}
	var addrs []netip.Addr
	for i := range g.Nodes {
		n := &g.Nodes[i]
		rec := nodeRecord{
			TTL: n.TTL, Kind: n.Kind.String(), PerPacket: n.PerPacket, Answers: n.Answers, MPLS: labelRecords(n.MPLS),
			Flows: append([]uint16{}, n.Flows...), // an empty list, not null
		}
		if n.Status != 0 {
			rec.Status = n.Status.String()
		}
		if n.Addr.IsValid() {
			addrs = append(addrs, n.Addr)
			rec.Address = &n.Addr
			rec.Min, rec.Avg, rec.Max = new(n.Min.Nanoseconds()), new(n.Avg.Nanoseconds()), new(n.Max.Nanoseconds())
		}
		if n.HasICMP {
			rec.ICMPType, rec.ICMPCode = &n.ICMPType, &n.ICMPCode
		}
		doc.Nodes[i] = rec
	}
	for i, e := range g.Edges {
		doc.Edges[i] = edgeRecord{From: e.From, To: e.To, Flows: append([]uint16{}, e.Flows...), Uncertain: e.Uncertain}
	}
	doc.Addresses = t.aboutAll(ctx, addrs)
	return doc
}
