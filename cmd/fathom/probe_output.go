// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
)

// probeJSON prints a campaign as JSON Lines. The field names are stable; docs/reference/probe.md lists them.
type probeJSON struct {
	w         *bufio.Writer
	enc       *json.Encoder
	protocol  probe.Protocol
	summaries bool // no lines for single probes
	problems  func(t *probeTarget)
}

type probeRecord struct {
	Type     string     `json:"type"`
	Target   string     `json:"target"`
	Address  netip.Addr `json:"address"`
	Protocol string     `json:"protocol"`
	Sequence uint64     `json:"sequence"`
	TTL      uint8      `json:"ttl"`
	Flow     uint16     `json:"flow,omitempty"`
	replyRecord
	Error string `json:"error,omitempty"`
}

type labelRecord struct {
	Label        uint32 `json:"label"`
	TrafficClass uint8  `json:"traffic_class"`
	Bottom       bool   `json:"bottom"`
	TTL          uint8  `json:"ttl"`
}

func labelRecords(stack []packet.Label) []labelRecord {
	var out []labelRecord
	for _, l := range stack {
		out = append(out, labelRecord{Label: l.Label, TrafficClass: l.TC, Bottom: l.Bottom, TTL: l.TTL})
	}
	return out
}

type summaryRecord struct {
	Type     string            `json:"type"`
	Target   string            `json:"target"`
	Address  *netip.Addr       `json:"address,omitempty"`
	Protocol string            `json:"protocol"`
	Sent     uint64            `json:"sent"`
	Received uint64            `json:"received"`
	Loss     *float64          `json:"loss_percent,omitempty"`
	Outcomes map[string]uint64 `json:"outcomes"`
	// The times are missing when nothing was received.
	Min    *int64 `json:"min_ns,omitempty"`
	Avg    *int64 `json:"avg_ns,omitempty"`
	Median *int64 `json:"median_ns,omitempty"`
	P95    *int64 `json:"p95_ns,omitempty"`
	P99    *int64 `json:"p99_ns,omitempty"`
	Max    *int64 `json:"max_ns,omitempty"`
	StdDev *int64 `json:"stddev_ns,omitempty"`
	Jitter *int64 `json:"jitter_ns,omitempty"`
	Error  string `json:"error,omitempty"`
}

func newProbeJSON(w io.Writer, protocol probe.Protocol, summaries bool, problems func(*probeTarget)) *probeJSON {
	buffered := bufio.NewWriterSize(w, 64<<10)
	enc := json.NewEncoder(buffered)
	enc.SetEscapeHTML(false)
	return &probeJSON{w: buffered, enc: enc, protocol: protocol, summaries: summaries, problems: problems}
}

func (p *probeJSON) admitted(*probeTarget) {}

// A failed write stays in the buffer as an error, which flush reports.

func (p *probeJSON) result(t *probeTarget, sequence uint64, r *probe.Result) {
	if p.summaries {
		return
	}
	record := probeRecord{
		Type: "probe", Target: t.name, Address: t.addr, Protocol: p.protocol.String(), Sequence: sequence,
		TTL: r.TTL, Flow: r.Flow, replyRecord: newReplyRecord(r),
	}
	if r.Err != nil {
		record.Error = r.Err.Error()
	}
	_ = p.enc.Encode(record)
}

func (p *probeJSON) finished(t *probeTarget) {
	record := summaryRecord{
		Type: "summary", Target: t.name, Protocol: p.protocol.String(), Sent: t.sent, Received: t.received(),
		Outcomes: outcomeCounts(t),
	}
	if t.addr.IsValid() {
		record.Address = &t.addr
	}
	if t.sent > 0 {
		record.Loss = new(t.loss() * 100)
	}
	if t.rtt.count > 0 {
		q := t.rtt.quantiles(0.5, 0.95, 0.99)
		ns := func(d time.Duration) *int64 { return new(d.Nanoseconds()) }
		record.Min, record.Avg, record.Max = ns(t.rtt.min), ns(t.rtt.mean()), ns(t.rtt.max)
		record.Median, record.P95, record.P99 = ns(q[0]), ns(q[1]), ns(q[2])
		record.StdDev, record.Jitter = ns(t.rtt.stddev()), ns(t.rtt.jitter())
	}
	if t.err != nil {
		record.Error = t.err.Error()
	}
	_ = p.enc.Encode(record)
	p.problems(t)
}

func (p *probeJSON) progress(*campaignTotals) {}
func (p *probeJSON) flush() error             { return p.w.Flush() }

// outcomeCounts gives how often each status was seen, by its name.
func outcomeCounts(t *probeTarget) map[string]uint64 {
	counts := make(map[string]uint64)
	for s := probe.Replied; s <= probe.Failed; s++ {
		if n := t.outcomes[s]; n > 0 {
			counts[s.String()] = n
		}
	}
	return counts
}

// probeText prints a campaign for people.
type probeText struct {
	w        *bufio.Writer
	request  probe.Request
	interval time.Duration
	lines    bool // a heading, and a line for each result
	problems func(t *probeTarget)

	// hold keeps the targets until closing, to show them in the user's order and with columns that
	// fit. A list of unknown length is printed as it comes instead.
	hold bool
	held []*probeTarget
	rows int

	// progressTo is where the counters are shown; nil shows none.
	progressTo io.Writer
	shown      bool // the counters stand in the terminal's current line
	began      time.Time
	drawn      time.Time
}

// probeColumns are the columns of the table with their least widths. Together they are narrow enough for
// a line of 80 with any IPv4 address, and with names and IPv6 addresses of usual length.
var probeColumns = [...]struct {
	title string
	width int
}{
	{"TARGET", len("255.255.255.255")},
	{"SENT", 4},
	{"RECV", 4},
	{"LOSS", 5},
	{"MIN ms", 6},
	{"AVG", 5},
	{"MED", 5},
	{"P95", 5},
	{"P99", 5},
	{"MAX", 5},
	{"JITTER", 6},
}

// probeRow is a line of the table.
type probeRow [len(probeColumns)]string

// probeWidths are the widths of the columns of the table.
type probeWidths [len(probeColumns)]int

// streamedNameWidth is the width of the column of names when they are not known yet: what fits a line
// of 80. What is wider pushes its own line only.
const streamedNameWidth = 20

// leastWidths gives the widths of the columns before anything is known.
func leastWidths() (widths probeWidths) {
	for i, c := range probeColumns {
		widths[i] = c.width
	}
	return widths
}

// fit makes the columns as wide as a row needs.
func (w *probeWidths) fit(row *probeRow) {
	for i, cell := range row {
		w[i] = max(w[i], len(cell))
	}
}

// line puts a row into the columns: names to the left, figures to the right.
func (w *probeWidths) line(row *probeRow) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-*s", w[0], row[0])
	for i, cell := range row[1:] {
		fmt.Fprintf(&b, " %*s", w[i+1], cell)
	}
	return b.String()
}

// newProbeRow gives the figures of a target. The target stands there as the user gave it.
func newProbeRow(t *probeTarget) *probeRow {
	row := probeRow{t.name, strconv.FormatUint(t.sent, 10), strconv.FormatUint(t.received(), 10), percent(t.loss())}
	q := t.rtt.quantiles(0.5, 0.95, 0.99)
	for i, d := range []time.Duration{t.rtt.min, t.rtt.mean(), q[0], q[1], q[2], t.rtt.max, t.rtt.jitter()} {
		row[4+i] = "-"
		if t.rtt.count > 0 {
			row[4+i] = shortMilliseconds(d)
		}
	}
	return &row
}

func (p *probeText) admitted(t *probeTarget) {
	if !p.lines || t.err != nil {
		return
	}
	what := p.request.Protocol.String()
	if p.request.Protocol == probe.ICMP || p.request.Protocol == probe.UDP {
		what = fmt.Sprintf("%s, %d bytes", what, p.request.Size)
	}
	if p.request.Port != 0 && p.request.Protocol != probe.ICMP {
		what += fmt.Sprintf(", port %d", p.request.Port)
	}
	fmt.Fprintf(p.w, "%s: %s, every %s\n", targetName(t), what, p.interval)
}

func (p *probeText) result(t *probeTarget, sequence uint64, r *probe.Result) {
	if !p.lines || t.err != nil { // problem tells the error
		return
	}
	fmt.Fprintf(p.w, "%5d  %s\n", sequence, describeResult(r, p.request.Timeout))
}

// describeResult tells the outcome of a probe in one line.
func describeResult(r *probe.Result, timeout time.Duration) string {
	var b strings.Builder
	from := func(what string) {
		b.WriteString(what)
		if r.Responder.IsValid() {
			fmt.Fprintf(&b, " from %s", r.Responder)
		}
	}
	switch r.Status {
	case probe.Replied:
		from("reply")
	case probe.TimeExceeded:
		from("time exceeded")
	case probe.HostUnreachable:
		from(unreachableText(r))
	case probe.NetUnreachable:
		from("no route from this host")
	case probe.NetworkDown:
		from("network down")
	case probe.HostDown:
		from("host down")
	case probe.NoReply:
		fmt.Fprintf(&b, "no reply within %s", timeout)
	case probe.Failed:
		fmt.Fprintf(&b, "failed: %v", r.Err)
	default:
		b.WriteString(r.Status.String())
	}
	if r.Answered() {
		fmt.Fprintf(&b, "  %s ms", milliseconds(r.RTT))
	}
	if r.ReplyTTL != 0 {
		fmt.Fprintf(&b, "  ttl %d", r.ReplyTTL)
	}
	if r.HasICMP && r.Status != probe.Replied && r.Status != probe.TimeExceeded {
		fmt.Fprintf(&b, "  icmp type %d code %d", r.ICMPType, r.ICMPCode)
	}
	if r.MTU != 0 {
		fmt.Fprintf(&b, "  mtu %d", r.MTU)
	}
	if len(r.MPLS) > 0 {
		fmt.Fprintf(&b, "  %s", describeLabels(r.MPLS))
	}
	return b.String()
}

// unreachableText says what a router, or the kernel, means by unreachable.
func unreachableText(r *probe.Result) string {
	if !r.HasICMP {
		return "host unreachable"
	}
	texts := unreachable4
	if r.Target.Is6() {
		switch r.ICMPType {
		case packet.ICMPv6PacketTooBig:
			return "packet too big"
		case packet.ICMPv6ParameterProblem:
			return "protocol unreachable"
		}
		texts = unreachable6
	}
	if text, ok := texts[r.ICMPCode]; ok {
		return text
	}
	return "unreachable"
}

// What the codes of destination unreachable mean: RFC 792, RFC 1122 and RFC 1812; RFC 4443. The marks
// of trace are those of the same codes.
var (
	unreachable4 = map[uint8]string{
		0: "network unreachable", 1: "host unreachable", 2: "protocol unreachable", 3: "port unreachable",
		4: "packet too big", 5: "source route failed", 6: "network unknown", 7: "host unknown", 8: "source host isolated",
		9: "network prohibited", 10: "host prohibited",
		11: "network unreachable for this type of service", 12: "host unreachable for this type of service",
		13: "communication prohibited", 14: "host precedence violation", 15: "precedence cut off",
	}
	unreachable6 = map[uint8]string{
		0: "no route to the network", 1: "communication prohibited", 2: "beyond the scope of the source address",
		3: "host unreachable", 4: "port unreachable", 5: "source address prohibited", 6: "route rejected",
		7: "error in the source routing header",
	}
)

// describeLabels gives an MPLS label stack as "mpls 16001 (tc 0, ttl 1)", outermost first.
func describeLabels(stack []packet.Label) string {
	var b strings.Builder
	b.WriteString("mpls")
	for i, l := range stack {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, " %d (tc %d, ttl %d)", l.Label, l.TC, l.TTL)
	}
	return b.String()
}

// milliseconds prints a duration as milliseconds down to the microsecond.
func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.3f", float64(d)/float64(time.Millisecond))
}

// shortMilliseconds is milliseconds in five characters: long times lose decimals.
func shortMilliseconds(d time.Duration) string {
	for decimals := 3; ; decimals-- {
		s := fmt.Sprintf("%.*f", decimals, float64(d)/float64(time.Millisecond))
		if len(s) <= 5 || decimals == 0 {
			return s
		}
	}
}

// targetName is the name with the address, unless they are the same.
func targetName(t *probeTarget) string {
	if !t.addr.IsValid() || t.name == t.addr.String() {
		return t.name
	}
	return fmt.Sprintf("%s (%s)", t.name, t.addr)
}

func (p *probeText) finished(t *probeTarget) {
	if p.hold {
		p.held = append(p.held, t)
		return
	}
	widths := leastWidths()
	widths[0] = streamedNameWidth
	p.row(t, &widths)
	p.problem(t)
}

// row prints a target's line of the table, and the table's heading before the first one. A target
// that got no probe has none.
func (p *probeText) row(t *probeTarget, widths *probeWidths) {
	if t.sent == 0 {
		return
	}
	if p.rows == 0 {
		if p.lines {
			fmt.Fprintln(p.w)
		}
		var titles probeRow
		for i, c := range probeColumns {
			titles[i] = c.title
		}
		fmt.Fprintln(p.w, widths.line(&titles))
	}
	p.rows++
	fmt.Fprintln(p.w, widths.line(newProbeRow(t)))
	var others []string
	for s := probe.TimeExceeded; s <= probe.Failed; s++ {
		if n := t.outcomes[s]; n > 0 && s != probe.NoReply {
			others = append(others, fmt.Sprintf("%d %s", n, s))
		}
	}
	if len(others) > 0 {
		fmt.Fprintf(p.w, "    %s\n", strings.Join(others, ", "))
	}
}

// problem prints why a target had to be given up, after what was printed before it.
func (p *probeText) problem(t *probeTarget) {
	if t.err != nil {
		_ = p.flush()
		p.problems(t)
	}
}

// percent prints a share: a decimal only where it says something.
func percent(share float64) string {
	if share == 0 || share == 1 {
		return fmt.Sprintf("%.0f%%", share*100)
	}
	return fmt.Sprintf("%.1f%%", share*100)
}

// eraseLine goes to the beginning of a terminal's line and clears it.
const eraseLine = "\r\x1b[K"

// progressEvery is how often the counters are redrawn.
const progressEvery = 200 * time.Millisecond

func (p *probeText) progress(c *campaignTotals) {
	if p.progressTo == nil || time.Since(p.drawn) < progressEvery {
		return
	}
	_ = p.flush()
	p.drawn = time.Now()
	p.shown = true
	perSecond := float64(c.sent) / time.Since(p.began).Seconds()
	fmt.Fprintf(p.progressTo, "%s%d targets done, %d at work; %d probes sent, %d answered, %.0f/s",
		eraseLine, c.finished, c.started-c.finished, c.sent, c.received, perSecond)
}

func (p *probeText) flush() error {
	if p.w.Buffered() == 0 {
		return nil
	}
	p.eraseProgress()
	return p.w.Flush()
}

func (p *probeText) eraseProgress() {
	if p.shown {
		fmt.Fprint(p.progressTo, eraseLine)
		p.shown = false
	}
}

// closing prints the targets that were held back, and the sum over many.
func (p *probeText) closing(c *campaignTotals) error {
	p.eraseProgress()
	slices.SortFunc(p.held, func(a, b *probeTarget) int { return cmp.Compare(a.number, b.number) })
	widths := leastWidths()
	for _, t := range p.held {
		if t.sent > 0 {
			widths.fit(newProbeRow(t))
		}
	}
	for _, t := range p.held {
		p.row(t, &widths)
	}
	for _, t := range p.held {
		p.problem(t)
	}
	if c.started > 1 {
		loss := 0.0
		if c.sent > 0 {
			loss = 1 - float64(c.received)/float64(c.sent)
		}
		fmt.Fprintf(p.w, "\n%s, %d answered, %d silent; %s sent, %d answered, %s loss\n",
			count(c.started, "target"), c.finished-c.silent, c.silent, count(c.sent, "probe"), c.received, percent(loss))
	}
	return p.w.Flush()
}
