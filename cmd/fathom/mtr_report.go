// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/trace"
)

// mtrLabels says how hosts are written.
type mtrLabels struct {
	names   *trace.Annotator // nil: numbers only
	showIPs bool             // numbers beside the names
	origins *trace.Annotator
	fact    int // which of mtrFacts stands before the host, or noFact
}

// mtrFacts are what can be said about an address beside its name. The order is that of mtr's
// option --ipinfo, and width what a text usually needs.
var mtrFacts = []struct {
	width int
	text  func(*trace.Annotation) string
}{
	{8, func(a *trace.Annotation) string { return asnText(a.ASN) }},
	{18, func(a *trace.Annotation) string {
		if !a.Prefix.IsValid() {
			return ""
		}
		return a.Prefix.String()
	}},
	{3, func(a *trace.Annotation) string { return a.Country }},
	{8, func(a *trace.Annotation) string { return a.Registry }},
	{10, func(a *trace.Annotation) string { return a.Allocated }},
}

const (
	mtrFactASN = 0  // the place of the AS number in mtrFacts
	noFact     = -1 // shows nothing
)

// asnText gives "AS64500", and nothing for 0.
func asnText(asn uint32) string {
	if asn == 0 {
		return ""
	}
	return fmt.Sprintf("AS%d", asn)
}

// toggleFact shows the AS number, or nothing.
func (l *mtrLabels) toggleFact() {
	if l.fact == noFact {
		l.fact = mtrFactASN
	} else {
		l.fact = noFact
	}
}

// nextFact shows the next fact; after the last comes none.
func (l *mtrLabels) nextFact() {
	if l.fact++; l.fact >= len(mtrFacts) {
		l.fact = noFact
	}
}

// host gives the text for an address, with what is known of it by now.
func (l *mtrLabels) host(addr netip.Addr) string {
	text := addr.String()
	if name := l.name(addr); name != "" {
		if text = name; l.showIPs {
			text = fmt.Sprintf("%s (%s)", name, addr)
		}
	}
	if l.fact != noFact {
		a, _ := l.origins.Get(addr)
		fact := mtrFacts[l.fact]
		text = fmt.Sprintf("%-*s %s", fact.width, cmp.Or(fact.text(&a), "???"), text)
	}
	return text
}

// name gives the name of an address as far as it is known and wanted.
func (l *mtrLabels) name(addr netip.Addr) string {
	if l.names == nil {
		return ""
	}
	a, _ := l.names.Get(addr)
	return a.Name
}

// wait waits until all there is to know about the responders is known, or for ctx.
func (l *mtrLabels) wait(ctx context.Context, hops []trace.HopStats) {
	for i := range hops {
		for _, r := range hops[i].Responders {
			l.host(r.Addr) // starts what was not asked before, so that it goes on side by side
		}
	}
	for i := range hops {
		for _, r := range hops[i].Responders {
			if l.names != nil {
				l.names.Wait(ctx, r.Addr)
			}
			if l.fact != noFact {
				l.origins.Wait(ctx, r.Addr)
			}
		}
	}
}

// mtrMark tells why a path ends at a hop other than the target, and is empty otherwise.
func mtrMark(h *trace.HopStats) string {
	switch h.Status {
	case probe.HostUnreachable:
		return " (host unreachable)"
	case probe.NetUnreachable:
		return " (network unreachable)"
	case probe.NetworkDown:
		return " (network down)"
	case probe.HostDown:
		return " (host down)"
	case 0, probe.Replied, probe.TimeExceeded, probe.NoReply, probe.Failed:
	}
	return ""
}

// mtrReport is a finished measurement.
type mtrReport struct {
	source   string // the name of this host
	target   string // as the user wrote it
	request  probe.Request
	start    time.Time
	interval time.Duration
	rounds   int
	hops     []trace.HopStats
	fields   []trace.Field
	labels   mtrLabels
	mpls     bool
	wide     bool // columns as wide as the names
}

// mtrHostWidth is the width of the column of hosts in a report of ordinary width, so that the
// default columns fit in 80.
const mtrHostWidth = 25

// print prints the table.
func (r *mtrReport) print(out io.Writer) error {
	w := bufio.NewWriter(out)
	width, decimals := mtrHostWidth, mtrDecimals(r.hops)
	if r.wide {
		for i := range r.hops {
			for _, p := range r.hops[i].Responders {
				width = max(width, ansi.StringWidth(r.labels.host(p.Addr)+mtrMark(&r.hops[i])))
			}
		}
	}
	cell := func(text string) string {
		return fmt.Sprintf("%-*s", width, ansi.Truncate(text, width, "…"))
	}
	line := func(prefix, host string, h *trace.HopStats) {
		fmt.Fprint(w, prefix, cell(host))
		for _, f := range r.fields {
			fmt.Fprintf(w, "%*s", f.Width(), mtrText(f, h, decimals))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "Start: %s\n", r.start.Format("2006-01-02T15:04:05-0700"))
	fmt.Fprintf(w, "%-8s%s", "HOST:", cell(r.source))
	for _, f := range r.fields {
		fmt.Fprintf(w, "%*s", f.Width(), f.Title())
	}
	fmt.Fprintln(w)
	for i := range r.hops {
		h := &r.hops[i]
		prefix := fmt.Sprintf("%3d.|-- ", h.TTL)
		if len(h.Responders) == 0 {
			line(prefix, "???", h)
			continue
		}
		for n, p := range h.Responders {
			if n == 0 {
				line(prefix, r.labels.host(p.Addr)+mtrMark(h), h)
			} else {
				fmt.Fprintf(w, "    |  `|-- %s\n", r.labels.host(p.Addr))
			}
			if r.mpls && len(p.MPLS) > 0 {
				fmt.Fprintf(w, "    |       %s\n", describeLabels(p.MPLS))
			}
		}
	}
	return w.Flush()
}

// csv prints a line for each hop, with a heading: the columns of mtr's, times in milliseconds.
func (r *mtrReport) csv(out io.Writer) error {
	w := csv.NewWriter(out)
	head := []string{"Mtr_Version", "Start_Time", "Status", "Host", "Hop", "Ip"}
	for _, f := range r.fields {
		if f != trace.FieldSpace {
			head = append(head, f.Title())
		}
	}
	_ = w.Write(head) // Error gives it
	for i := range r.hops {
		h := &r.hops[i]
		host := "???"
		if addr := h.Addr(); addr.IsValid() {
			host = r.labels.host(addr)
		}
		row := []string{
			"FATHOM." + buildVersion().Version, strconv.FormatInt(r.start.Unix(), 10), "OK", r.target,
			strconv.Itoa(h.TTL), host,
		}
		for _, f := range r.fields {
			if f != trace.FieldSpace {
				row = append(row, strings.TrimSuffix(mtrText(f, h, 3), "%"))
			}
		}
		_ = w.Write(row)
	}
	w.Flush()
	return w.Error()
}

// mtrText is a field's value with times to so many decimals of a millisecond.
func mtrText(f trace.Field, h *trace.HopStats, decimals int) string {
	var d time.Duration
	switch f {
	case trace.FieldLast:
		d = h.Last
	case trace.FieldBest:
		d = h.Best
	case trace.FieldAvg:
		d = h.Avg
	case trace.FieldWorst:
		d = h.Worst
	case trace.FieldStDev:
		d = h.StDev
	case trace.FieldGmean:
		d = h.Gmean
	case trace.FieldJitter:
		d = h.Jitter
	case trace.FieldJitterAvg:
		d = h.JitterAvg
	case trace.FieldJitterMax:
		d = h.JitterMax
	case trace.FieldJitterInt:
		d = h.JitterInt
	case trace.FieldLoss, trace.FieldDropped, trace.FieldReceived, trace.FieldSent, trace.FieldSpace:
		return f.Text(h)
	default:
		return f.Text(h)
	}
	return strconv.FormatFloat(float64(d)/float64(time.Millisecond), 'f', decimals, 64)
}

// mtrDecimals is how many decimals the times of a table get: mtr's single one says nothing about
// a path within a building.
func mtrDecimals(hops []trace.HopStats) int {
	for i := range hops {
		if hops[i].Worst >= 10*time.Millisecond {
			return 1
		}
	}
	return 2
}

// mtrDocument is what --json prints. docs/reference/mtr.md describes it.
type mtrDocument struct {
	Target   string     `json:"target"`
	Address  netip.Addr `json:"address"`
	Source   string     `json:"source"`
	Protocol string     `json:"protocol"`
	Port     uint16     `json:"port,omitempty"`
	Size     int        `json:"size"`
	TOS      uint8      `json:"tos"`
	Pattern  uint8      `json:"pattern"`
	Start    time.Time  `json:"start"`
	Interval int64      `json:"interval_ns"`
	Cycles   int        `json:"cycles"`
	Hops     []mtrHop   `json:"hops"`
}

type mtrHop struct {
	TTL       int            `json:"ttl"`
	Status    string         `json:"status,omitempty"`
	Answers   []mtrResponder `json:"responders"`
	Sent      int            `json:"sent"`
	Received  int            `json:"received"`
	Loss      float64        `json:"loss_percent"`
	Last      int64          `json:"last_ns"`
	Best      int64          `json:"best_ns"`
	Avg       int64          `json:"avg_ns"`
	Worst     int64          `json:"worst_ns"`
	StDev     int64          `json:"stddev_ns"`
	Gmean     int64          `json:"gmean_ns"`
	Jitter    int64          `json:"jitter_ns"`
	JitterAvg int64          `json:"jitter_avg_ns"`
	JitterMax int64          `json:"jitter_max_ns"`
	JitterInt int64          `json:"jitter_interarrival_ns"`
}

type mtrResponder struct {
	Address  netip.Addr    `json:"address"`
	Name     string        `json:"name,omitempty"`
	ASN      uint32        `json:"asn,omitempty"`
	ASName   string        `json:"as_name,omitempty"`
	Prefix   *netip.Prefix `json:"prefix,omitempty"`
	Country  string        `json:"country,omitempty"`
	Received int           `json:"received"`
	MPLS     []labelRecord `json:"mpls,omitempty"`
}

func (r *mtrReport) document() mtrDocument {
	d := mtrDocument{
		Target: r.target, Address: r.request.Target, Source: r.source, Protocol: r.request.Protocol.String(),
		Port: r.request.Port, Size: r.request.Size, TOS: r.request.TOS, Pattern: r.request.Pattern,
		Start: r.start, Interval: int64(r.interval), Cycles: r.rounds, Hops: []mtrHop{},
	}
	for i := range r.hops {
		h := &r.hops[i]
		hop := mtrHop{
			TTL: h.TTL, Answers: []mtrResponder{}, Sent: h.Sent, Received: h.Received, Loss: h.Loss(),
			Last: int64(h.Last), Best: int64(h.Best), Avg: int64(h.Avg), Worst: int64(h.Worst),
			StDev: int64(h.StDev), Gmean: int64(h.Gmean), Jitter: int64(h.Jitter), JitterAvg: int64(h.JitterAvg),
			JitterMax: int64(h.JitterMax), JitterInt: int64(h.JitterInt),
		}
		if h.Status != 0 {
			hop.Status = h.Status.String()
		}
		for _, p := range h.Responders {
			answer := mtrResponder{Address: p.Addr, Received: p.Received, MPLS: labelRecords(p.MPLS)}
			answer.Name = r.labels.name(p.Addr)
			if r.labels.fact != noFact {
				a, _ := r.labels.origins.Get(p.Addr)
				answer.ASN, answer.ASName, answer.Country = a.ASN, a.ASName, a.Country
				if a.Prefix.IsValid() {
					answer.Prefix = &a.Prefix
				}
			}
			hop.Answers = append(hop.Answers, answer)
		}
		d.Hops = append(d.Hops, hop)
	}
	return d
}
