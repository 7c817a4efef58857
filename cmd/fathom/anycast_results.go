// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/client"
	"github.com/seed5728abee/fathom/anycast/export"
	"github.com/seed5728abee/fathom/trace"
)

func newAnycastSitesCommand(a *app) *cobra.Command {
	var link anycastLink
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "sites",
		Short:   "List the connected sites",
		Example: `  fathom anycast sites`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withController(cmd.Context(), &link, func(ctx context.Context, c *client.Client) error {
				sites, err := c.Sites(ctx)
				if err != nil {
					return err
				}
				if asJSON {
					return a.printSitesJSON(sites)
				}
				return a.printSites(sites)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON document")
	link.register(a, cmd)
	return cmd
}

// withController runs f with a connection, and explains its errors.
func (a *app) withController(ctx context.Context, link *anycastLink, f func(context.Context, *client.Client) error) error {
	c, err := link.connect(ctx, a)
	if err != nil {
		return err
	}
	defer c.Close()
	return link.explain(f(ctx, c))
}

type siteRecord struct {
	Name          string       `json:"name"`
	Native        bool         `json:"native"`
	Anycast       []netip.Addr `json:"anycast"`
	Unicast       []netip.Addr `json:"unicast"`
	Rate          float64      `json:"rate,omitempty"`
	ClockOffsetNS int64        `json:"clock_offset_ns"`
	ClockErrorNS  int64        `json:"clock_error_ns,omitempty"` // 0: not known
	Since         time.Time    `json:"since"`
	Version       string       `json:"version,omitempty"`
}

func (a *app) printSitesJSON(sites []anycast.Site) error {
	list := make([]siteRecord, 0, len(sites))
	for _, s := range sites {
		list = append(list, siteRecord{
			s.Name, s.Native, append([]netip.Addr{}, s.Anycast...), append([]netip.Addr{}, s.Unicast...), s.Rate,
			int64(s.Clock.Offset), int64(s.Clock.Error), s.Since, s.Version,
		})
	}
	return a.printJSON(list)
}

func (a *app) printSites(sites []anycast.Site) error {
	if len(sites) == 0 {
		fmt.Fprintln(a.stderr, "No site is connected.")
		return nil
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SITE\tANYCAST\tUNICAST\tCLOCK\tSINCE\tVERSION")
	for _, s := range sites {
		clock := "not known"
		if s.Clock.Error > 0 {
			clock = fmt.Sprintf("%+.3f ± %.3f ms", float64(s.Clock.Offset)/1e6, float64(s.Clock.Error)/1e6)
		}
		version := s.Version
		if !s.Native {
			version = "Voltadomar's (hears, and sends for request only)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", s.Name, addressList(s.Anycast), addressList(s.Unicast), clock, s.Since.Local().Format(time.DateTime), version)
	}
	return w.Flush()
}

func addressList(addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return "-"
	}
	texts := make([]string, len(addrs))
	for i, a := range addrs {
		texts[i] = a.String()
	}
	return strings.Join(texts, ",")
}

// queryOptions choose measurements or results.
type queryOptions struct {
	q           anycast.Query
	target      string
	from, until string
}

func (o *queryOptions) register(cmd *cobra.Command, results bool) {
	f := cmd.Flags()
	f.StringVar((*string)(&o.q.Program), "program", "", "of this `program`: trace, catchment, latency, flipping, watch or volta")
	f.StringVar(&o.q.Name, "name", "", "with this `label`")
	f.StringVar(&o.target, "target", "", "about targets in this `network`, or this address")
	f.StringVar(&o.q.Site, "site", "", "sent or heard at this `site`")
	f.StringVar(&o.from, "from", "", "from this `time` on (RFC 3339), or so long ago (24h)")
	f.StringVar(&o.until, "until", "", "up to this `time`, or so long ago")
	what := "measurements, the newest"
	if results {
		what = "results, the first"
	}
	f.IntVar(&o.q.Limit, "limit", 0, "at most so many `"+strings.Fields(strings.ReplaceAll(what, ",", ""))[0]+"`; 0 for all")
}

func (o *queryOptions) query() (anycast.Query, error) {
	q := o.q
	if o.target != "" {
		if p, err := netip.ParsePrefix(o.target); err == nil {
			q.Target = p.Masked()
		} else if addr, err := netip.ParseAddr(o.target); err == nil {
			q.Target = netip.PrefixFrom(addr, addr.BitLen())
		} else {
			return q, usagef("--target %s: want a network such as 198.51.100.0/24, or an address", o.target)
		}
	}
	for _, t := range []struct {
		name, value string
		to          *time.Time
	}{{"from", o.from, &q.From}, {"until", o.until, &q.Until}} {
		if t.value == "" {
			continue
		}
		if ago, err := parseDuration(t.value); err == nil {
			*t.to = time.Now().Add(-ago)
		} else if *t.to, err = time.Parse(time.RFC3339, t.value); err != nil {
			return q, usagef("--%s %s: want a time such as 2026-12-31T23:59:59Z, or a duration such as 24h", t.name, t.value)
		}
	}
	return q, nil
}

func newAnycastListCommand(a *app) *cobra.Command {
	var link anycastLink
	var o queryOptions
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List measurements",
		Example: `  fathom anycast list
  fathom anycast list --program catchment --from 24h`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q, err := o.query()
			if err != nil {
				return err
			}
			return a.withController(cmd.Context(), &link, func(ctx context.Context, c *client.Client) error {
				list, err := c.List(ctx, q)
				if err != nil {
					return err
				}
				if asJSON {
					return a.printJSON(append([]anycast.Measurement{}, list...))
				}
				return a.printMeasurements(list)
			})
		},
	}
	o.register(cmd, false)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON document")
	link.register(a, cmd)
	return cmd
}

func (a *app) printMeasurements(list []anycast.Measurement) error {
	if len(list) == 0 {
		fmt.Fprintln(a.stderr, "No measurement matches.")
		return nil
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tPROGRAM\tNAME\tSTATE\tSTART\tTOOK\tTARGETS\tANSWERED\tOWNER")
	for i := range list {
		m := &list[i]
		took := "-"
		if !m.End.IsZero() {
			took = shortDuration(m.End.Sub(m.Start))
		}
		state := m.State.String()
		if m.State == anycast.Running && m.Progress.Total > 0 {
			state += " " + percent(float64(m.Progress.Done)/float64(m.Progress.Total))
		}
		if s := m.Definition.Schedule; s != nil {
			state += fmt.Sprintf(", every %v", s.Every)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d of %d\t%s\n", m.ID, m.Definition.Program, orDash(m.Definition.Name), state,
			m.Start.Local().Format(time.DateTime), took, m.Targets, m.Progress.Answered, m.Progress.Sent, orDash(m.Owner))
	}
	return w.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// oneMeasurement refuses a command line that does not name one.
func oneMeasurement(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usagef("name one measurement by its id; `fathom anycast list` has them")
	}
	return nil
}

func newAnycastShowCommand(a *app) *cobra.Command {
	var link anycastLink
	var asJSON, networks bool
	graph := ""
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show a measurement, and follow it if it is running",
		Example: `  fathom anycast show 20260102T030405-7
  fathom anycast show --json 20260102T030405-7`,
		Args: oneMeasurement,
		RunE: func(cmd *cobra.Command, args []string) error {
			picture, err := openPicture(graph)
			if err != nil {
				return usagef("--graph: %w", err)
			}
			defer picture.close()
			return a.withController(cmd.Context(), &link, func(ctx context.Context, c *client.Client) error {
				s, err := c.Follow(ctx, args[0])
				if err != nil {
					return err
				}
				m := s.Measurement()
				view := a.viewOf(&m, networks)
				if asJSON {
					view = newJSONView(a.stdout)
				}
				keep := &traceKeeper{measureView: view}
				f := &follower{app: a, link: &link, client: c, view: keep, id: args[0]}
				if err := f.run(ctx, s); err != nil || picture == nil {
					return err
				}
				for _, t := range keep.found {
					if len(t.Replies) > 0 {
						return picture.draw(t.Graph(), noAnnotation)
					}
				}
				return errors.New("--graph: the measurement has no trace to draw")
			})
		},
	}
	cmd.Flags().BoolVar(&networks, "networks", false, "show the networks of a catchment, too")
	cmd.Flags().StringVar(&graph, "graph", "", "draw a trace into this `file` (.svg, .dot or .mmd)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line, as they come")
	link.register(a, cmd)
	return cmd
}

func noAnnotation(netip.Addr) trace.Annotation { return trace.Annotation{} }

// viewOf gives the view for eyes of a measurement that is there already.
func (a *app) viewOf(m *anycast.Measurement, networks bool) measureView {
	if m.Definition.Schedule != nil && m.Parent == "" {
		return &scheduleView{textView: textView{app: a}}
	}
	switch m.Definition.Program {
	case anycast.KindTrace:
		return &anycastTraceView{textView: textView{app: a}, about: noAnnotation, seen: func(netip.Addr) {}}
	case anycast.KindLatency:
		return newLatencyView(a)
	case anycast.KindFlipping:
		return newFlippingView(a)
	case anycast.KindWatch:
		return newWatchView(a)
	case anycast.KindCatchment:
		return newCatchmentView(a, networks)
	case anycast.KindVolta:
	}
	return &plainView{textView{app: a}}
}

// scheduleView prints the alarms of a schedule. What its runs found is theirs.
type scheduleView struct {
	textView
	alarms int
}

func (v *scheduleView) began(m *anycast.Measurement) {
	v.textView.began(m)
	name := ""
	if m.Definition.Name != "" {
		name = " --name " + m.Definition.Name
	}
	fmt.Fprintf(v.app.stderr, "A schedule, every %v; fathom anycast list%s has its runs. Its alarms:\n", m.Definition.Schedule.Every, name)
}

func (v *scheduleView) results(_ *anycast.Measurement, found []anycast.Result) error {
	for _, r := range found {
		if alarm, ok := r.(*anycast.Alarm); ok {
			v.alarms++
			origin := ""
			if alarm.Origin != "" {
				origin = "origin " + alarm.Origin + ": "
			}
			fmt.Fprintf(v.app.stdout, "%s  %s%s moved (limit %s), from %s to %s\n", alarm.Time.Local().Format(time.DateTime),
				origin, percent(alarm.Share), percent(alarm.Limit), alarm.Before, alarm.After)
		} else {
			v.take(r)
		}
	}
	return nil
}

func (v *scheduleView) ended(*anycast.Measurement) error {
	if v.alarms == 0 {
		fmt.Fprintln(v.app.stdout, "none")
	}
	v.closing()
	return nil
}

// plainView prints the answers to text requests.
type plainView struct{ textView }

func (v *plainView) results(m *anycast.Measurement, found []anycast.Result) error {
	for _, r := range found {
		if t, ok := r.(*anycast.TextResult); ok {
			fmt.Fprintf(v.app.stdout, "%s (code %d)\n%s\n", m.Definition.Command, t.Code, t.Text)
		} else {
			v.take(r)
		}
	}
	return nil
}

func (v *plainView) ended(*anycast.Measurement) error {
	v.erase()
	v.closing()
	return nil
}

func newAnycastCompareCommand(a *app) *cobra.Command {
	var link anycastLink
	var asJSON bool
	var origins []string
	cmd := &cobra.Command{
		Use:   "compare BEFORE AFTER | NAME",
		Short: "Compare two catchments: who moved, from where to where",
		Long: `Compare two catchment measurements by network: which of them moved, from which
site to which. BEFORE and AFTER are ids; a NAME alone compares the last two
measurements with that name. Measurements with several origins are compared
origin by origin.

With --origins, compare what two origins of one measurement (an id, or the last
with a name) reach: who would move from the one to the other.

The exit code is 0 whether or not something moved.`,
		Example: `  fathom anycast compare 20260102T030405-7 20260103T030405-2
  fathom anycast compare weekly
  fathom anycast compare --origins 192.0.2.1,192.0.2.129 weekly`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 && len(args) != 2 {
				return usagef("name two measurements by their ids, or one name")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(origins) > 0 && (len(origins) != 2 || len(args) != 1) {
				return usagef("--origins: name two origins, and one measurement that has them")
			}
			return a.withController(cmd.Context(), &link, func(ctx context.Context, c *client.Client) error {
				return a.compare(ctx, c, args, origins, asJSON)
			})
		},
	}
	cmd.Flags().StringSliceVar(&origins, "origins", nil, "compare these two `origins` of one measurement")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON document")
	link.register(a, cmd)
	return cmd
}

// comparisonRecord is the document of compare --json. Of measurements with several origins there is a list of such.
type comparisonRecord struct {
	Before string `json:"before"`
	After  string `json:"after"`
	// BeforeOrigin and AfterOrigin are what it is about, of several.
	BeforeOrigin string          `json:"before_origin,omitempty"`
	AfterOrigin  string          `json:"after_origin,omitempty"`
	Same         int             `json:"same"`
	Moved        int             `json:"moved"`
	Appeared     int             `json:"appeared"`
	Vanished     int             `json:"vanished"`
	Share        float64         `json:"share"` // of what answers in both, in networks or, with weights, in queries
	Matrix       []matrixRecord  `json:"matrix"`
	Shifts       []anycast.Shift `json:"shifts"`
}

type matrixRecord struct {
	From     string `json:"from"`
	To       string `json:"to"`
	Networks int    `json:"networks"`
}

// catchmentMap is a catchment measurement with its tables.
type catchmentMap struct {
	anycast.Measurement
	tables anycast.Tables
}

// lastCatchments gives the newest catchments with a name that are done: so many, or all there are if these are fewer.
func lastCatchments(ctx context.Context, c *client.Client, name string, n int) ([]anycast.Measurement, error) {
	list, err := c.List(ctx, anycast.Query{Program: anycast.KindCatchment, Name: name})
	// A schedule itself finds nothing; its runs do.
	list = slices.DeleteFunc(list, func(m anycast.Measurement) bool {
		return m.State != anycast.Done || m.Definition.Schedule != nil && m.Parent == ""
	})
	return list[:min(len(list), n)], err
}

// readCatchment reads a catchment.
func readCatchment(ctx context.Context, c *client.Client, id string) (*catchmentMap, error) {
	list, err := c.List(ctx, anycast.Query{Measurement: id})
	if err != nil {
		return nil, err
	}
	if len(list) != 1 {
		return nil, fmt.Errorf("measurement %q: %w", id, anycast.ErrNoMeasurement)
	}
	if p := list[0].Definition.Program; p != anycast.KindCatchment {
		return nil, fmt.Errorf("measurement %s is a %s: only catchments can be compared", id, p)
	}
	m := &catchmentMap{Measurement: list[0]}
	for r, err := range c.Results(ctx, anycast.Query{Measurement: id}) {
		if err != nil {
			return nil, err
		}
		if catch, ok := r.Result.(*anycast.Catch); ok {
			m.tables.Add(catch)
		}
	}
	return m, nil
}

func (a *app) compare(ctx context.Context, c *client.Client, args, origins []string, asJSON bool) error {
	if len(args) == 1 {
		want := 2
		if len(origins) > 0 {
			want = 1
		}
		last, err := lastCatchments(ctx, c, args[0], want)
		switch {
		case err != nil:
			return err
		case len(last) == want:
			args = nil
			for _, m := range slices.Backward(last) {
				args = append(args, m.ID)
			}
		case want == 2:
			return fmt.Errorf("want two finished catchments with the name %q, there is %d", args[0], len(last))
		}
	}
	before, err := readCatchment(ctx, c, args[0])
	if err != nil {
		return err
	}
	after := before
	if len(args) == 2 {
		if after, err = readCatchment(ctx, c, args[1]); err != nil {
			return err
		}
	}
	var pairs [][2]string
	if len(origins) > 0 {
		for _, o := range origins {
			if _, ok := before.Definition.Origin(o); !ok {
				return fmt.Errorf("measurement %s has no origin %q, only %s", before.ID, o, originNames(&before.Definition))
			}
		}
		pairs = append(pairs, [2]string(origins))
	} else {
		for _, o := range before.Definition.OriginList() {
			if _, ok := after.Definition.Origin(o.Name); ok {
				pairs = append(pairs, [2]string{o.Name, o.Name})
			}
		}
		if len(pairs) == 0 {
			return fmt.Errorf("the measurements have no origin in common: %s has %s, %s has %s",
				before.ID, originNames(&before.Definition), after.ID, originNames(&after.Definition))
		}
	}
	records := make([]comparisonRecord, len(pairs))
	for i, p := range pairs {
		records[i] = compareMaps(before, after, p)
	}
	switch {
	case asJSON && len(before.Definition.Origins) > 0 && len(origins) == 0:
		return a.printJSON(records)
	case asJSON:
		return a.printJSON(records[0])
	}
	for i := range records {
		if i > 0 {
			fmt.Fprintln(a.stdout)
		}
		if err := a.printComparison(&records[i]); err != nil {
			return err
		}
	}
	return nil
}

// originNames lists the origins of a definition.
func originNames(d *anycast.Definition) string {
	if len(d.Origins) == 0 {
		return "one without a name"
	}
	names := make([]string, len(d.Origins))
	for i := range d.Origins {
		names[i] = d.Origins[i].Name
	}
	return strings.Join(names, ", ")
}

// compareMaps compares an origin of one catchment with an origin of another, by the weights of the later one.
func compareMaps(before, after *catchmentMap, origins [2]string) comparisonRecord {
	cmp := anycast.Compare(before.tables.Table(origins[0]), after.tables.Table(origins[1]), after.Definition.Weights)
	record := comparisonRecord{
		Before: before.ID, After: after.ID, BeforeOrigin: origins[0], AfterOrigin: origins[1],
		Same: cmp.Same, Moved: cmp.Moved, Appeared: cmp.Appeared, Vanished: cmp.Vanished,
		Share: cmp.Share(), Shifts: append([]anycast.Shift{}, cmp.Shifts...), Matrix: []matrixRecord{},
	}
	for pair, n := range cmp.Matrix {
		record.Matrix = append(record.Matrix, matrixRecord{pair[0], pair[1], n})
	}
	slices.SortFunc(record.Matrix, func(x, y matrixRecord) int {
		return strings.Compare(x.From+"\x00"+x.To, y.From+"\x00"+y.To)
	})
	return record
}

func (a *app) printComparison(r *comparisonRecord) error {
	what := fmt.Sprintf("from %s to %s", r.Before, r.After)
	switch {
	case r.BeforeOrigin != r.AfterOrigin:
		what = fmt.Sprintf("from %s to %s", r.BeforeOrigin, r.AfterOrigin)
	case r.BeforeOrigin != "":
		what = fmt.Sprintf("origin %s, %s", r.BeforeOrigin, what)
	}
	fmt.Fprintf(a.stdout, "%s: %s moved (%s), %d same, %d appeared, %d vanished\n",
		what, count(r.Moved, "network"), percent(r.Share), r.Same, r.Appeared, r.Vanished)
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nFROM\tTO\tNETWORKS")
	for _, m := range r.Matrix {
		if m.From != m.To {
			fmt.Fprintf(w, "%s\t%s\t%d\n", siteOr(m.From), siteOr(m.To), m.Networks)
		}
	}
	if len(r.Shifts) > 0 {
		fmt.Fprintln(w, "\nNETWORK\tFROM\tTO")
	}
	for _, s := range r.Shifts[:min(len(r.Shifts), mostRows)] {
		fmt.Fprintf(w, "%s\t%s\t%s\n", s.Network, siteOr(s.From), siteOr(s.To))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if n := len(r.Shifts) - mostRows; n > 0 {
		fmt.Fprintf(a.stdout, "and %d more; --json has all\n", n)
	}
	return nil
}

func newAnycastExportCommand(a *app) *cobra.Command {
	var link anycastLink
	var o queryOptions
	format, kind, output := export.JSONLines, "", ""
	cmd := &cobra.Command{
		Use:   "export [ID]",
		Short: "Write results for other tools",
		Long: `Write the results of one measurement, or of all that match, in one of these
formats:

  jsonl         one JSON object a line, everything (the default)
  csv, parquet  one kind of result (--kind), as a table
  atlas         RIPE Atlas result JSON
  scamper-json  traces, as scamper's JSON
  warts         traces, as scamper's binary format`,
		Example: `  fathom anycast export 20260102T030405-7 --format parquet --output catchment.parquet
  fathom anycast export --format warts --program trace --from 24h > traces.warts`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("name one measurement, or choose several with options")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := o.query()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				q.Measurement = args[0]
			}
			w, err := a.exportTo(output, format)
			if err != nil {
				return err
			}
			return a.withController(cmd.Context(), &link, func(ctx context.Context, c *client.Client) error {
				err := export.Write(w, format, export.Kind(kind), recordsOf(ctx, c, q))
				return errors.Join(err, w.Close())
			})
		},
	}
	f := cmd.Flags()
	f.TextVarP(&format, "format", "f", format, "jsonl, csv, parquet, atlas, scamper-json or warts")
	f.StringVar(&kind, "kind", "", "write only this `kind` of result (default: the main one for csv and parquet, else all)")
	f.StringVarP(&output, "output", "o", "", "write to this `file` (default: standard output)")
	o.register(cmd, true)
	link.register(a, cmd)
	return cmd
}

// exportTo opens what is written to. Formats that are not text do not go to a terminal.
func (a *app) exportTo(name string, f export.Format) (io.WriteCloser, error) {
	if name != "" {
		return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	}
	if a.stdoutTerminal && (f == export.Parquet || f == export.Warts) {
		return nil, usagef("%s is not for terminals: give --output", f)
	}
	return nopCloser{a.stdout}, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// recordsOf gives a controller's results with their measurements.
func recordsOf(ctx context.Context, c *client.Client, q anycast.Query) iter.Seq2[export.Record, error] {
	return func(yield func(export.Record, error) bool) {
		known := map[string]*anycast.Measurement{}
		for r, err := range c.Results(ctx, q) {
			if err != nil {
				yield(export.Record{}, err)
				return
			}
			m := known[r.Measurement]
			if m == nil {
				list, err := c.List(ctx, anycast.Query{Measurement: r.Measurement})
				if err != nil || len(list) != 1 {
					if err == nil {
						continue // deleted in the meantime
					}
					yield(export.Record{}, err)
					return
				}
				m = &list[0]
				known[r.Measurement] = m
			}
			if !yield(export.Record{Measurement: m, Result: r.Result}, nil) {
				return
			}
		}
	}
}

func newAnycastCancelCommand(a *app) *cobra.Command {
	var link anycastLink
	cmd := &cobra.Command{
		Use:     "cancel ID",
		Short:   "End a measurement, or a schedule",
		Example: `  fathom anycast cancel 20260102T030405-7`,
		Args:    oneMeasurement,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withController(cmd.Context(), &link, func(ctx context.Context, c *client.Client) error { return c.Cancel(ctx, args[0]) })
		},
	}
	link.register(a, cmd)
	return cmd
}

func newAnycastDeleteCommand(a *app) *cobra.Command {
	var link anycastLink
	cmd := &cobra.Command{
		Use:     "delete ID",
		Short:   "Forget a measurement that is over, and its results",
		Example: `  fathom anycast delete 20260102T030405-7`,
		Args:    oneMeasurement,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withController(cmd.Context(), &link, func(ctx context.Context, c *client.Client) error { return c.Delete(ctx, args[0]) })
		},
	}
	link.register(a, cmd)
	return cmd
}
