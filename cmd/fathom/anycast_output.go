// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/export"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/trace"
)

// jsonView prints everything as it comes.
type jsonView struct {
	w   *export.Writer
	err error
}

func newJSONView(w io.Writer) *jsonView {
	v := &jsonView{}
	v.w, v.err = export.NewWriter(w, export.JSONLines, "")
	return v
}

func (v *jsonView) began(*anycast.Measurement) {}
func (v *jsonView) progress(anycast.Progress)  {}

func (v *jsonView) results(m *anycast.Measurement, found []anycast.Result) error {
	for _, r := range found {
		if v.err == nil {
			v.err = v.w.Write(m, r)
		}
	}
	if v.err == nil {
		v.err = v.w.Flush()
	}
	return v.err
}

func (v *jsonView) ended(*anycast.Measurement) error {
	if v.err == nil {
		v.err = v.w.Close()
	}
	return v.err
}

// textView is what the views for eyes share.
type textView struct {
	app     *app
	drawn   time.Time
	shown   bool
	summary *anycast.Summary
}

func (v *textView) began(m *anycast.Measurement) {
	if v.app.stderrTerminal {
		from := siteList(m.Definition.Sites)
		if n := len(m.Definition.Origins); n > 0 {
			from += ", " + count(n, "origin")
		}
		fmt.Fprintf(v.app.stderr, "%s %s, from %s\n", m.Definition.Program, m.ID, from)
	}
}

func siteList(sites []string) string {
	if len(sites) == 0 {
		return "all sites"
	}
	return strings.Join(sites, ", ")
}

// progress draws a line of counters, on a terminal.
func (v *textView) progress(p anycast.Progress) {
	if !v.app.stderrTerminal || time.Since(v.drawn) < progressEvery {
		return
	}
	v.drawn, v.shown = time.Now(), true
	left := ""
	if p.Left > 0 {
		left = fmt.Sprintf("; %v left", p.Left.Round(time.Second))
	}
	done := count(p.Done, "target") // of a feed, nobody knows of how many
	if p.Total > 0 {
		done = fmt.Sprintf("%d of %s (%s)", p.Done, count(p.Total, "target"), percent(float64(p.Done)/float64(p.Total)))
	}
	fmt.Fprintf(v.app.stderr, "%s%s; %s sent, %d answered%s", eraseLine, done, count(p.Sent, "probe"), p.Answered, left)
}

func (v *textView) erase() {
	if v.shown {
		fmt.Fprint(v.app.stderr, eraseLine)
		v.shown = false
	}
}

// take keeps a summary, and tells whether r was one.
func (v *textView) take(r anycast.Result) bool {
	s, ok := r.(*anycast.Summary)
	if ok {
		v.summary = s
	}
	return ok
}

// closing prints what the summary says beside the tables.
func (v *textView) closing() {
	s := v.summary
	if s == nil {
		return
	}
	w := v.app.stdout
	line := fmt.Sprintf("%s, %s sent, %d answered", count(s.Targets, "target"), count(s.Sent, "probe"), s.Answered)
	if s.Duplicates > 0 {
		line += ", " + count(s.Duplicates, "duplicate")
	}
	if s.Late > 0 {
		line += fmt.Sprintf(", %d of them late", s.Late)
	}
	if s.Refused > 0 {
		line += fmt.Sprintf(", %d could not be sent", s.Refused)
	}
	fmt.Fprintf(w, "%s, in %s\n", line, shortDuration(s.Took))
	if len(s.Skipped) > 0 {
		var parts []string
		private := 0
		for _, why := range slices.Sorted(maps.Keys(s.Skipped)) {
			parts = append(parts, fmt.Sprintf("%d %s", s.Skipped[why], why))
			switch why {
			case anycast.SkipPrivate, anycast.SkipReserved, anycast.SkipLoopback, anycast.SkipLinkLocal:
				private += s.Skipped[why]
			}
		}
		fmt.Fprintf(w, "left out: %s\n", strings.Join(parts, ", "))
		if private > 0 {
			fmt.Fprintln(v.app.stderr, "--allow-private probes special addresses, too.")
		}
	}
	for _, note := range s.Notes {
		fmt.Fprintf(w, "note: %s\n", note)
	}
}

func shortDuration(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(100 * time.Microsecond).String()
	case d < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// siteNames gives the names of a map in order, the heaviest first.
func siteNames[N int | float64](m map[string]N) []string {
	return slices.SortedFunc(maps.Keys(m), func(a, b string) int { return cmp.Or(cmp.Compare(m[b], m[a]), cmp.Compare(a, b)) })
}

// siteOr gives a site's name, or what stands for none.
func siteOr(name string) string {
	if name == "" {
		return "(none)"
	}
	return name
}

// ---- catchment ----

type catchmentView struct {
	textView
	networks bool
	tables   anycast.Tables
	origins  map[string]*originView
}

// originView is what the map of one origin shows beside the networks.
type originView struct {
	rtts  map[string]*siteTimes
	texts map[string]map[string]int // what CHAOS queries brought, by site
}

// siteTimes are the round-trip times to one site that are worth a median.
type siteTimes struct {
	answers int
	times   []time.Duration
}

// mostTimes bounds the times kept for a site's median.
const mostTimes = 1 << 16

func newCatchmentView(a *app, networks bool) *catchmentView {
	return &catchmentView{textView: textView{app: a}, networks: networks, origins: map[string]*originView{}}
}

// origin gives what is known of an origin.
func (v *catchmentView) origin(name string) *originView {
	o := v.origins[name]
	if o == nil {
		o = &originView{rtts: map[string]*siteTimes{}, texts: map[string]map[string]int{}}
		v.origins[name] = o
	}
	return o
}

func (v *catchmentView) results(_ *anycast.Measurement, found []anycast.Result) error {
	for _, r := range found {
		c, ok := r.(*anycast.Catch)
		if !ok {
			v.take(r)
			continue
		}
		v.tables.Add(c)
		if c.Receiver != "" && c.Status == probe.Replied {
			v.origin(c.Origin).add(c)
		}
	}
	return nil
}

// add takes an answer.
func (o *originView) add(c *anycast.Catch) {
	t := o.rtts[c.Receiver]
	if t == nil {
		t = &siteTimes{}
		o.rtts[c.Receiver] = t
	}
	t.answers++
	if c.RTT > 0 && c.Sender == c.Receiver && len(t.times) < mostTimes {
		t.times = append(t.times, c.RTT)
	}
	if c.Text != "" {
		if o.texts[c.Receiver] == nil {
			o.texts[c.Receiver] = map[string]int{}
		}
		o.texts[c.Receiver][c.Text]++
	}
}

func (v *catchmentView) ended(m *anycast.Measurement) error {
	v.erase()
	d := &m.Definition
	known := v.summary != nil
	for _, o := range d.OriginList() {
		known = known || len(v.origins[o.Name].sites()) > 0
	}
	if !known {
		return nil // it failed before it found anything
	}
	for i, o := range d.OriginList() {
		if o.Name != "" {
			if i > 0 {
				fmt.Fprintln(v.app.stdout)
			}
			fmt.Fprintf(v.app.stdout, "from %s:\n", originText(&o))
		}
		if err := v.printMap(o.Name, d.Weights); err != nil {
			return err
		}
	}
	if len(d.Origins) > 0 {
		v.printDifferences(d)
	}
	if v.networks {
		if err := v.printNetworks(d); err != nil {
			return err
		}
	}
	v.closing()
	return nil
}

// sites are those that heard something.
func (o *originView) sites() []string {
	if o == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(o.rtts))
}

// originText says what an origin is.
func originText(o *anycast.Origin) string {
	var parts []string
	if source := o.Source.String(); o.Source.IsValid() && source != o.Name {
		parts = append(parts, source)
	}
	if o.SourcePort != 0 {
		parts = append(parts, fmt.Sprintf("source port %d", o.SourcePort))
	}
	if o.Port != 0 {
		parts = append(parts, fmt.Sprintf("destination port %d", o.Port))
	}
	if len(o.Sites) > 0 {
		parts = append(parts, "at "+strings.Join(o.Sites, " "))
	}
	if len(parts) == 0 {
		return o.Name
	}
	return fmt.Sprintf("%s (%s)", o.Name, strings.Join(parts, ", "))
}

// printMap prints the map of an origin.
func (v *catchmentView) printMap(origin string, weights []anycast.Weight) error {
	o := v.origin(origin)
	total := v.tables.Table(origin).Total(weights)
	w := tabwriter.NewWriter(v.app.stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	head := "NETWORKS\tSHARE\tANSWERS\tMEDIAN RTT ms\t"
	if total.Weight != nil {
		head = "NETWORKS\tSHARE\tQUERIES\tSHARE\tANSWERS\tMEDIAN RTT ms\t"
	}
	sum, queries := 0, total.Unmapped
	for _, n := range total.Networks {
		sum += n
	}
	for _, q := range total.Weight {
		queries += q
	}
	width := len("SITE")
	for site := range total.Networks {
		width = max(width, len(site))
	}
	width = max(width, len("(split)"))
	fmt.Fprintf(w, "%s\t%s\n", pad("SITE", width), head)
	for _, site := range siteNames(total.Networks) {
		median, answers := "-", 0
		if t := o.rtts[site]; t != nil {
			answers = t.answers
			if len(t.times) > 0 {
				slices.Sort(t.times)
				median = milliseconds(t.times[len(t.times)/2])
			}
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t", pad(site, width), total.Networks[site], percent(float64(total.Networks[site])/float64(sum)))
		if total.Weight != nil {
			fmt.Fprintf(w, "%.0f\t%s\t", total.Weight[site], percent(total.Weight[site]/queries))
		}
		fmt.Fprintf(w, "%d\t%s\t\n", answers, median)
	}
	if total.Unmapped > 0 { // only with weights
		fmt.Fprintf(w, "%s\t%d\t\t%.0f\t%s\t\n", pad("(none)", width), total.Silent, total.Unmapped, percent(total.Unmapped/queries))
	} else if total.Silent > 0 {
		fmt.Fprintf(w, "%s\t%d\t\n", pad("(none)", width), total.Silent)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if total.Split > 0 {
		fmt.Fprintf(v.app.stdout, "%s split between sites\n", isOrAre(count(total.Split, "network"), total.Split))
	}
	for _, site := range slices.Sorted(maps.Keys(o.texts)) {
		names := siteNames(o.texts[site])
		shown := names[:min(len(names), 5)]
		for i, n := range shown {
			shown[i] = fmt.Sprintf("%q %d", n, o.texts[site][n])
		}
		fmt.Fprintf(v.app.stdout, "answers heard at %s name: %s\n", site, strings.Join(shown, ", "))
	}
	return nil
}

// printDifferences tells, of each two origins that reach the same networks, how many of these they have at different sites.
func (v *catchmentView) printDifferences(d *anycast.Definition) {
	fmt.Fprintln(v.app.stdout)
	for i := range d.Origins {
		for k := range i {
			a, b := d.Origins[k].Name, d.Origins[i].Name
			c := anycast.Compare(v.tables.Table(a), v.tables.Table(b), d.Weights)
			if c.Same+c.Moved == 0 {
				continue
			}
			line := fmt.Sprintf("%s and %s: %d of %s at different sites (%s", a, b, c.Moved, count(c.Same+c.Moved, "network"),
				percent(float64(c.Moved)/float64(c.Same+c.Moved)))
			if queries := c.SameQueries + c.MovedQueries; queries > 0 {
				line += fmt.Sprintf(", %s of the queries", percent(c.MovedQueries/queries))
			}
			fmt.Fprintln(v.app.stdout, line+")")
		}
	}
	if v.summary != nil {
		fmt.Fprintf(v.app.stdout, "%s caught by different sites under different origins\n", isOrAre(count(v.summary.Differ, "target"), v.summary.Differ))
	}
}

func isOrAre(what string, n int) string {
	if n == 1 {
		return what + " is"
	}
	return what + " are"
}

func (v *catchmentView) printNetworks(d *anycast.Definition) error {
	if len(d.Origins) > 0 {
		return v.printNetworksByOrigin(d)
	}
	w := tabwriter.NewWriter(v.app.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nNETWORK\tSITE\tSHARE\tANSWERS\tSILENT")
	for r := range v.tables.Table("").Rows() {
		share := "-"
		if r.Answers > 0 {
			share = percent(r.Share)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\n", r.Network, siteOr(r.Site), share, r.Answers, r.Silent)
	}
	fmt.Fprintln(w)
	return w.Flush()
}

// printNetworksByOrigin prints the networks with the site that each origin reaches them from side by side; a share that is not all stands behind it.
func (v *catchmentView) printNetworksByOrigin(d *anycast.Definition) error {
	w := tabwriter.NewWriter(v.app.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "\nNETWORK")
	networks := map[netip.Prefix]bool{}
	for i := range d.Origins {
		fmt.Fprintf(w, "\t%s", d.Origins[i].Name)
		for r := range v.tables.Table(d.Origins[i].Name).Rows() {
			networks[r.Network] = true
		}
	}
	fmt.Fprintln(w)
	for _, n := range slices.SortedFunc(maps.Keys(networks), func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) }) {
		fmt.Fprint(w, n)
		for i := range d.Origins {
			r, probed := v.tables.Table(d.Origins[i].Name).Lookup(n.Addr())
			site := siteOr(r.Site)
			switch {
			case !probed:
				site = "-"
			case r.Answers > 0 && r.Share < 1:
				site += " " + percent(r.Share)
			}
			fmt.Fprintf(w, "\t%s", site)
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w)
	return w.Flush()
}

// ---- latency ----

type latencyView struct {
	textView
	rows []*anycast.LatencyResult
}

func newLatencyView(a *app) *latencyView { return &latencyView{textView: textView{app: a}} }

func (v *latencyView) results(_ *anycast.Measurement, found []anycast.Result) error {
	for _, r := range found {
		if l, ok := r.(*anycast.LatencyResult); ok {
			v.rows = append(v.rows, l)
		} else {
			v.take(r)
		}
	}
	return nil
}

// mostRows bounds the rows of a table for eyes; --json and export have them all.
const mostRows = 50

func (v *latencyView) ended(m *anycast.Measurement) error {
	v.erase()
	if v.summary == nil && len(v.rows) == 0 {
		return nil
	}
	slices.SortFunc(v.rows, func(a, b *anycast.LatencyResult) int {
		if (a.Catcher == "") != (b.Catcher == "") { // silent ones last
			return cmp.Compare(b.Catcher, a.Catcher)
		}
		return cmp.Or(cmp.Compare(b.Inflation, a.Inflation), a.Target.Compare(b.Target), cmp.Compare(a.Origin, b.Origin))
	})
	w := tabwriter.NewWriter(v.app.stdout, 0, 0, 2, ' ', 0)
	several := len(m.Definition.Origins) > 0
	fmt.Fprintln(w, "TARGET\t"+ifSeveral(several, "ORIGIN")+"CATCHER\tRTT ms\tBEST\tINFLATION ms\tUNICAST ms")
	for _, l := range v.rows[:min(len(v.rows), mostRows)] {
		rtt, inflation := "-", "-"
		if l.RTT > 0 {
			rtt = milliseconds(l.RTT)
		}
		if l.Best != "" && l.Catcher != "" {
			inflation = milliseconds(l.Inflation)
		}
		var unicast []string
		for _, u := range l.Unicast {
			unicast = append(unicast, u.Site+" "+milliseconds(u.RTT))
		}
		if len(unicast) == 0 {
			unicast = []string{"-"}
		}
		fmt.Fprintf(w, "%s\t%s%s\t%s\t%s\t%s\t%s\n", l.Target, ifSeveral(several, l.Origin), siteOr(l.Catcher), rtt, siteOr(l.Best), inflation, strings.Join(unicast, ", "))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if n := len(v.rows) - mostRows; n > 0 {
		fmt.Fprintf(v.app.stdout, "and %d more with less inflation; --json has all\n", n)
	}
	v.closing()
	return nil
}

// ifSeveral is a cell of a column that is only there with several origins.
func ifSeveral(several bool, cell string) string {
	if !several {
		return ""
	}
	return cell + "\t"
}

// ---- flipping ----

type flippingView struct {
	textView
	flips []*anycast.FlipResult
}

func newFlippingView(a *app) *flippingView { return &flippingView{textView: textView{app: a}} }

func (v *flippingView) results(_ *anycast.Measurement, found []anycast.Result) error {
	for _, r := range found {
		if f, ok := r.(*anycast.FlipResult); ok {
			v.flips = append(v.flips, f)
		} else {
			v.take(r)
		}
	}
	return nil
}

func (v *flippingView) ended(m *anycast.Measurement) error {
	v.erase()
	if v.summary == nil && len(v.flips) == 0 {
		return nil
	}
	o := m.Definition.Flipping
	noPaths := o != nil && o.NoPaths
	w := tabwriter.NewWriter(v.app.stdout, 0, 0, 2, ' ', 0)
	several := len(m.Definition.Origins) > 0
	fmt.Fprintln(w, "TARGET\t"+ifSeveral(several, "ORIGIN")+"SITES\tCHANGES WITH\tSPREAD ms\tPATHS PART")
	for _, f := range v.flips[:min(len(v.flips), mostRows)] {
		var sites, with []string
		for _, s := range siteNames(f.Seen) {
			sites = append(sites, fmt.Sprintf("%s %d", s, f.Seen[s]))
		}
		for _, by := range []struct {
			is   bool
			name string
		}{{f.ByFlow, "flow"}, {f.ByProtocol, "protocol"}, {f.ByTime, "time"}} {
			if by.is {
				with = append(with, by.name)
			}
		}
		spread, part := "-", "-"
		if f.Spread > 0 {
			spread = milliseconds(f.Spread)
		}
		if p := f.Parting; p != nil {
			part = partingText(p)
		} else if f.ByFlow && !noPaths {
			part = "not on the way there, so on the way back"
		}
		fmt.Fprintf(w, "%s\t%s%s\t%s\t%s\t%s\n", f.Target, ifSeveral(several, f.Origin), strings.Join(sites, ", "), strings.Join(with, ", "), spread, part)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(v.flips) == 0 {
		fmt.Fprintln(v.app.stdout, "no target reached more than one site")
	}
	if n := len(v.flips) - mostRows; n > 0 {
		fmt.Fprintf(v.app.stdout, "and %d more; --json has all\n", n)
	}
	v.closing()
	return nil
}

func partingText(p *anycast.Parting) string {
	hops := make([]string, len(p.Hops))
	for i, h := range p.Hops {
		hops[i] = addrOr(h, "*")
	}
	if p.TTL == 0 {
		return "at the source, to " + strings.Join(hops, " and ")
	}
	return fmt.Sprintf("behind hop %d (%s), to %s", p.TTL, addrOr(p.Common, "*"), strings.Join(hops, " and "))
}

func addrOr(a netip.Addr, otherwise string) string {
	if !a.IsValid() {
		return otherwise
	}
	return a.String()
}

// ---- watch ----

type watchView struct {
	textView
	first time.Time
	last  *anycast.WatchResult
	moves int
}

func newWatchView(a *app) *watchView { return &watchView{textView: textView{app: a}} }

func (v *watchView) results(m *anycast.Measurement, found []anycast.Result) error {
	for _, r := range found {
		switch r := r.(type) {
		case *anycast.WatchResult:
			if v.first.IsZero() {
				v.first = r.Time
				v.print(r.Time, "at first: %s", sharesText(r))
			}
			v.last = r
		case *anycast.Move:
			if v.first.IsZero() {
				v.first = m.Start
			}
			gap := ""
			if r.Gap > 0 {
				gap = fmt.Sprintf(", heard nowhere for %v", r.Gap.Round(time.Millisecond))
			}
			if v.moves++; v.moves <= mostRows {
				v.print(r.Time, "%s moved from %s to %s%s", r.Target, siteOr(r.From), siteOr(r.To), gap)
			} else if v.moves == mostRows+1 {
				v.print(r.Time, "more moves follow; --json has all")
			}
		default:
			v.take(r)
		}
	}
	return nil
}

func (v *watchView) print(at time.Time, format string, args ...any) {
	v.erase()
	fmt.Fprintf(v.app.stdout, "%8.2f s  %s\n", at.Sub(v.first).Seconds(), fmt.Sprintf(format, args...))
}

func sharesText(r *anycast.WatchResult) string {
	var parts []string
	for _, s := range siteNames(r.Sites) {
		parts = append(parts, fmt.Sprintf("%s %d", s, r.Sites[s]))
	}
	if r.Lost > 0 || len(parts) == 0 {
		parts = append(parts, fmt.Sprintf("no answer %d", r.Lost))
	}
	return strings.Join(parts, ", ")
}

func (v *watchView) ended(*anycast.Measurement) error {
	v.erase()
	if v.last != nil {
		v.print(v.last.Time, "at last: %s", sharesText(v.last))
	}
	if s := v.summary; s != nil {
		switch {
		case s.Moved == 0:
			fmt.Fprintln(v.app.stdout, "nothing moved")
		case s.Moved == 1 && s.Converged > 0:
			fmt.Fprintln(v.app.stdout, "1 move; settled with it")
		case s.Converged > 0:
			fmt.Fprintf(v.app.stdout, "%s; settled %v after the first\n", count(s.Moved, "move"), s.Converged.Round(time.Millisecond))
		default:
			fmt.Fprintf(v.app.stdout, "%s; not settled at the end\n", count(s.Moved, "move"))
		}
	}
	v.closing()
	return nil
}

// ---- trace ----

type anycastTraceView struct {
	textView
	about  func(netip.Addr) trace.Annotation
	seen   func(netip.Addr) // an address that will be asked about
	showAS bool
	found  []*anycast.TraceResult
}

func (v *anycastTraceView) results(_ *anycast.Measurement, found []anycast.Result) error {
	for _, r := range found {
		t, ok := r.(*anycast.TraceResult)
		if !ok {
			v.take(r)
			continue
		}
		v.found = append(v.found, t)
		for i := range t.Replies {
			v.seen(t.Replies[i].Responder)
		}
		if err := v.print(t); err != nil {
			return err
		}
	}
	return nil
}

func (v *anycastTraceView) ended(*anycast.Measurement) error {
	v.erase()
	if v.summary != nil && len(v.found) == 0 {
		v.closing() // it tells why
	} else if v.summary != nil {
		for _, note := range v.summary.Notes {
			fmt.Fprintf(v.app.stderr, "note: %s\n", note)
		}
	}
	return nil
}

const heardWidth = 12

func (v *anycastTraceView) print(t *anycast.TraceResult) error {
	v.erase()
	name := t.Target.String()
	if t.Name != "" && t.Name != name {
		name = t.Name + " (" + name + ")"
	}
	table := &traceTable{w: v.app.stdout, showAS: v.showAS}
	table.print(fmt.Sprintf("from %s (%s) to %s: %s, %s, at most %s", t.Site, addrOr(t.Source, "?"), name, t.Protocol, t.Method, count(t.MaxHops, "hop")))
	table.row("HOP", "HOST", "AS", pad("HEARD AT", heardWidth)+fmt.Sprintf("%*s", traceRTTWidth, "RTT ms"))
	for ttl, replies := range byHop(t.Replies) {
		v.hop(table, ttl, t.TOS, replies)
	}
	graph := t.Graph()
	last := 0
	if n := len(t.Replies); n > 0 {
		last = int(t.Replies[n-1].TTL)
	}
	end := fmt.Sprintf("%s; %s in %s", stopText(graph.Stop, last, t.Silent), count(t.Probes, "probe"), traceDuration(t.End.Sub(t.Start)))
	if t.Method == anycast.MethodMultipath {
		end += "; confidence " + confidenceText(t.Confidence)
	}
	table.print(end)
	if t.Method == anycast.MethodMultipath {
		v.links(table, t)
	}
	return table.err
}

// byHop gives the replies of each hop.
func byHop(replies []anycast.Reply) iter.Seq2[int, []anycast.Reply] {
	return func(yield func(int, []anycast.Reply) bool) {
		for len(replies) > 0 {
			n := 1
			for n < len(replies) && replies[n].TTL == replies[0].TTL {
				n++
			}
			if !yield(int(replies[0].TTL), replies[:n]) {
				return
			}
			replies = replies[n:]
		}
	}
}

// heard is one router heard at one site.
type heard struct {
	responder netip.Addr
	receiver  string
}

// hop prints a line for each router and site of a hop.
func (v *anycastTraceView) hop(table *traceTable, ttl int, tos uint8, replies []anycast.Reply) {
	var order []heard
	times := map[heard][]string{}
	notes := map[heard][]string{}
	silent := 0
	for i := range replies {
		r := &replies[i]
		if !r.Responder.IsValid() {
			silent++
			continue
		}
		h := heard{r.Responder, r.Receiver}
		if _, ok := times[h]; !ok {
			order = append(order, h)
		}
		times[h] = append(times[h], rttText(r))
		said := replyNotes(&probe.Result{
			Status: r.Status, HasICMP: r.HasICMP, ICMPType: r.ICMPType, ICMPCode: r.ICMPCode, QuotedTTL: r.QuotedTTL, MTU: r.MTU, MPLS: r.MPLS,
			Responder: r.Responder,
		})
		if r.HasICMP && r.QuotedTTL > 0 && r.QuotedTOS != tos { // somebody on the way changed DSCP or ECN
			said = append(said, fmt.Sprintf("tos %#02x", r.QuotedTOS))
		}
		for _, note := range said {
			if !slices.Contains(notes[h], note) {
				notes[h] = append(notes[h], note)
			}
		}
	}
	number := fmt.Sprint(ttl)
	for _, h := range order {
		host, as := describe(h.responder, v.about(h.responder))
		all := times[h]
		if len(all) > traceMostColumns {
			all = append(all[:traceMostColumns:traceMostColumns], fmt.Sprintf("... %d", len(times[h])))
		}
		var line strings.Builder
		line.WriteString(pad(h.receiver, heardWidth-1) + " ")
		for _, t := range all {
			line.WriteString(strings.Repeat(" ", max(2, traceRTTWidth-len([]rune(t)))) + t)
		}
		if silent > 0 && len(order) == 1 {
			line.WriteString(strings.Repeat(fmt.Sprintf("%*s", traceRTTWidth, "*"), min(silent, traceMostColumns)))
		}
		if len(notes[h]) > 0 {
			line.WriteString("  " + strings.Join(notes[h], " "))
		}
		table.row(number, host, as, line.String())
		number = ""
	}
	if len(order) == 0 {
		table.row(number, "*", "", pad("", heardWidth)+fmt.Sprintf("%*s", traceRTTWidth, "*"))
	}
}

// rttText gives a time with its uncertainty, or ? if it is not known.
func rttText(r *anycast.Reply) string {
	switch {
	case r.RTT <= 0:
		return "?"
	case r.ClockError >= time.Millisecond/10: // more digits would say nothing, and not fit
		return fmt.Sprintf("%.1f±%.1f", r.RTT.Seconds()*1e3, r.ClockError.Seconds()*1e3)
	case r.ClockError > 0:
		return fmt.Sprintf("%.2f±%.2f", r.RTT.Seconds()*1e3, r.ClockError.Seconds()*1e3)
	}
	return milliseconds(r.RTT)
}

// links prints the ways between the hops of a multipath trace.
func (v *anycastTraceView) links(table *traceTable, t *anycast.TraceResult) {
	for _, l := range t.Links {
		mark := ""
		if l.Uncertain {
			mark = " (uncertain)"
		}
		from := addrOr(l.From, "*")
		if l.TTL < t.FirstHop {
			from = t.Site
		}
		table.print(fmt.Sprintf("%3d  %s -> %s, %s%s", l.TTL+1, from, addrOr(l.To, "*"), count(len(l.Flows), "flow"), mark))
	}
}

// runAnycastTrace is the command trace.
func (a *app) runAnycastTrace(ctx context.Context, o *measureOptions, look *traceOptions, host string) error {
	sources, closeSources, err := look.sources()
	if err != nil {
		return err
	}
	defer closeSources()
	picture, err := openPicture(look.graph)
	if err != nil {
		return err
	}
	defer picture.close()
	annotator := trace.NewAnnotator(sources...)
	defer annotator.Close()
	about := func(addr netip.Addr) trace.Annotation {
		if a, complete := annotator.Get(addr); complete {
			return a
		}
		ctx, cancel := context.WithTimeout(ctx, traceNameWait)
		defer cancel()
		return annotator.Wait(ctx, addr)
	}
	text := &anycastTraceView{
		textView: textView{app: a}, about: about, showAS: look.asn != "none" && look.asn != "" || look.country != "",
		seen: func(addr netip.Addr) {
			if addr.IsValid() {
				annotator.Get(addr)
			}
		},
	}
	keep := &traceKeeper{measureView: o.view(a, text)}
	if err := a.measureAndShow(ctx, o, anycast.KindTrace, []string{host}, keep); err != nil {
		return err
	}
	if o.background || o.def.Schedule != nil {
		return nil
	}
	reached := false
	for _, t := range keep.found {
		reached = reached || t.Stop == trace.StopReached.String()
		if picture != nil && len(t.Replies) > 0 {
			if err := picture.draw(t.Graph(), about); err != nil {
				return err
			}
		}
	}
	if !reached {
		return errQuiet // the output says why
	}
	return nil
}

// traceKeeper is a view that keeps the traces for those who come after it.
type traceKeeper struct {
	measureView
	found []*anycast.TraceResult
}

func (k *traceKeeper) results(m *anycast.Measurement, found []anycast.Result) error {
	for _, r := range found {
		if t, ok := r.(*anycast.TraceResult); ok {
			k.found = append(k.found, t)
		}
	}
	return k.measureView.results(m, found)
}
