// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"

	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/trace"
)

const (
	mtrReportRounds = 10
	// mtrLeastInterval keeps a typing error from becoming a flood.
	mtrLeastInterval = time.Millisecond
	// mtrNameWait is how long a report waits for names that are still being looked up.
	mtrNameWait = 5 * time.Second
)

type mtrOptions struct {
	request        probe.Request
	trace          trace.ContinuousOptions
	version        ipVersion
	udp, tcp, sctp bool
	pattern        int
	classic        bool
	order          string
	display        int
	noDNS, showIPs bool
	asn            bool
	ipInfo         int
	asnFile        string
	mpls           bool
	report, wide   bool
	json, csv      bool
	sockets        socketOptions
}

func newMtrCommand(a *app) *cobra.Command {
	var o mtrOptions
	cmd := &cobra.Command{
		Use:   "mtr HOST",
		Short: "Watch a path live, hop by hop",
		Long: `Trace the path to a host again and again, and show loss and round-trip times
of each hop. The options and keys are those that mtr has; press h for the keys.

With --report the figures are printed after --report-cycles rounds instead,
as a table, or as --json or --csv. Without a terminal that is the only way.

All probes keep to one flow, so that load balancers lead them one way and the
hops belong together. --classic lets them differ, as mtr's do.`,
		Example: `  fathom mtr example.net
  fathom mtr --tcp --port 443 example.net
  fathom mtr -r -c 20 -i 0.2 --json 192.0.2.1`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("name one host")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.runMtr(cmd, &o, args[0]) },
	}
	f := cmd.Flags()
	f.BoolVarP(&o.report, "report", "r", false, "print a table at the end instead of watching")
	f.BoolVarP(&o.wide, "report-wide", "w", false, "as --report, without cutting host names")
	f.BoolVarP(&o.json, "json", "j", false, "as --report, as JSON")
	f.BoolVarP(&o.csv, "csv", "C", false, "as --report, as comma-separated values")
	cmd.MarkFlagsMutuallyExclusive("json", "csv")
	f.IntVarP(&o.trace.Rounds, "report-cycles", "c", 0, "end after so many `rounds` (reports: 10; live: never)")
	durationVarP(f, &o.trace.Interval, "interval", "i", trace.DefaultInterval, "time from round to round")
	durationVarP(f, &o.trace.Timeout, "timeout", "Z", trace.DefaultContinuousTimeout, "how long to wait for each answer")
	durationVarP(f, &o.trace.Grace, "gracetime", "G", trace.DefaultGrace, "how long to wait for answers after the last round")
	f.IntVarP(&o.trace.FirstHop, "first-ttl", "f", 1, "first `hop` to probe")
	f.IntVarP(&o.trace.MaxHops, "max-ttl", "m", trace.DefaultMaxHops, "last `hop` to probe")
	f.IntVarP(&o.trace.MaxUnknown, "max-unknown", "U", trace.DefaultMaxUnknown, "go no further than so many silent `hops` in a row")
	o.version.register(cmd)
	f.BoolVarP(&o.udp, "udp", "u", false, "send UDP datagrams instead of ICMP echo requests")
	f.BoolVarP(&o.tcp, "tcp", "T", false, "send TCP SYN segments")
	f.BoolVarP(&o.sctp, "sctp", "S", false, "send SCTP INIT chunks")
	cmd.MarkFlagsMutuallyExclusive("udp", "tcp", "sctp")
	f.Uint16VarP(&o.request.Port, "port", "P", 0, "destination `port` (tcp and sctp: 80)")
	f.Uint16VarP(&o.request.LocalPort, "localport", "L", 0, "source `port` (udp)")
	f.IntVarP(&o.request.Size, "psize", "s", probe.DefaultSize, "length of the whole packet in `bytes`")
	f.IntVarP(&o.pattern, "bitpattern", "B", 0, "`byte` that fills the packet; above 255: a random one")
	f.Uint8VarP(&o.request.TOS, "tos", "Q", 0, "type of service, or traffic class (a `byte`)")
	f.VarP((*addrValue)(&o.request.LocalAddr), "address", "a", "send from this address")
	f.StringVarP(&o.request.Interface, "interface", "I", "", "send through the interface with this `name`")
	f.Uint32VarP(&o.request.Mark, "mark", "M", 0, "routing `mark` of the packets (Linux)")
	f.BoolVar(&o.classic, "classic", false, "let load balancers spread the probes")
	f.StringVarP(&o.order, "order", "o", trace.DefaultFields, "columns, in `letters`: "+trace.AllFields)
	f.IntVar(&o.display, "displaymode", 0, "begin with `display` 0 (figures), 1 (losses) or 2 (times)")
	f.BoolVarP(&o.noDNS, "no-dns", "n", false, "show numbers instead of names")
	f.BoolVarP(&o.showIPs, "show-ips", "b", false, "show numbers beside the names")
	f.BoolVarP(&o.asn, "aslookup", "z", false, "show AS numbers")
	f.IntVarP(&o.ipInfo, "ipinfo", "y", noFact, "show a `fact`: 0 AS number, 1 prefix, 2 country, 3 registry, 4 date")
	f.Lookup("ipinfo").DefValue = "none"
	f.StringVar(&o.asnFile, "asn-file", "", "take AS numbers and such from this `file` (.mmdb, or lines of prefix and number), not from the DNS")
	f.BoolVarP(&o.mpls, "mpls", "e", false, "show MPLS labels")
	o.sockets.register(cmd)
	return cmd
}

func checkMtrInterval(d time.Duration) error {
	if d < mtrLeastInterval || d > time.Hour {
		return fmt.Errorf("interval %s: want %s to %s", d, mtrLeastInterval, time.Hour)
	}
	return nil
}

// check completes the options, and refuses what makes no sense.
func (o *mtrOptions) check() error {
	switch {
	case o.udp:
		o.request.Protocol = probe.UDP
	case o.tcp:
		o.request.Protocol = probe.TCP
	case o.sctp:
		o.request.Protocol = probe.SCTP
	}
	if o.classic {
		o.trace.Method = trace.Classic
	}
	if o.wide || o.json || o.csv {
		o.report = true
	}
	if o.report && o.trace.Rounds == 0 {
		o.trace.Rounds = mtrReportRounds
	}
	if o.asn {
		o.ipInfo = mtrFactASN
	}
	o.request.Pattern = uint8(o.pattern)
	if o.pattern > 255 {
		o.request.Pattern = uint8(rand.IntN(256))
	}
	switch {
	case o.pattern < 0:
		return usagef("--bitpattern %d: want 0 or more", o.pattern)
	case o.request.Size < 0 || o.request.Size > probe.MaxSize:
		return usagef("--psize %d: want 0 to %d", o.request.Size, probe.MaxSize)
	case o.display < 0 || o.display >= mtrDisplays:
		return usagef("--displaymode %d: want 0 to %d", o.display, mtrDisplays-1)
	case o.ipInfo < noFact || o.ipInfo >= len(mtrFacts):
		return usagef("--ipinfo %d: want 0 to %d", o.ipInfo, len(mtrFacts)-1)
	case o.trace.Rounds < 0:
		return usagef("--report-cycles %d: want 1 or more", o.trace.Rounds)
	case o.trace.Timeout <= 0 || o.trace.Timeout > probe.MaxTimeout:
		return usagef("--timeout %s: want more than 0 and at most %s", o.trace.Timeout, probe.MaxTimeout)
	case o.trace.Grace <= 0:
		return usagef("--gracetime %s: want more than 0", o.trace.Grace)
	case o.trace.FirstHop < 1 || o.trace.FirstHop > 255:
		return usagef("--first-ttl %d: want 1 to 255", o.trace.FirstHop)
	case o.trace.MaxHops < 1 || o.trace.MaxHops > 255:
		return usagef("--max-ttl %d: want 1 to 255", o.trace.MaxHops)
	case o.trace.FirstHop > o.trace.MaxHops:
		return usagef("--first-ttl %d is beyond --max-ttl %d", o.trace.FirstHop, o.trace.MaxHops)
	case o.trace.MaxUnknown < 1:
		return usagef("--max-unknown %d: want 1 or more", o.trace.MaxUnknown)
	}
	if err := checkMtrInterval(o.trace.Interval); err != nil {
		return usagef("--%w", err)
	}
	return nil
}

func (a *app) runMtr(cmd *cobra.Command, o *mtrOptions, host string) error {
	ctx := cmd.Context()
	if o.trace.Rounds == 0 && cmd.Flags().Changed("report-cycles") {
		return usagef("--report-cycles 0: want 1 or more")
	}
	if err := o.check(); err != nil {
		return err
	}
	fields, err := trace.ParseFields(o.order)
	if err != nil {
		return usagef("--order %q: want letters of %s and spaces", o.order, trace.AllFields)
	}
	if !o.report && (!a.stdinTerminal || !a.stdoutTerminal) {
		return usagef("watching needs a terminal: use --report, --json or --csv to print the figures")
	}
	originSource := a.origins
	if o.asnFile != "" {
		file, err := trace.OpenFile(o.asnFile)
		if err != nil {
			return err
		}
		defer file.Close()
		originSource = file
	}
	if o.request.Target, err = a.target(ctx, host, o.version.number(), o.request.Interface); err != nil {
		return probeHint(err)
	}
	p, err := a.newProber(o.sockets.options(), o.request.Mark)
	if err != nil {
		return probeHint(err)
	}
	defer p.Close()

	session := &mtrSession{via: p, req: o.request, opts: o.trace}
	start := time.Now()
	if err := session.start(ctx); err != nil {
		return err
	}
	defer session.stop()
	names := trace.NewAnnotator(a.names)
	defer names.Close()
	origins := trace.NewAnnotator(originSource)
	defer origins.Close()
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "localhost"
	}
	labels := mtrLabels{names: names, showIPs: o.showIPs, origins: origins, fact: o.ipInfo}
	if o.noDNS {
		labels.names = nil
	}

	if !o.report {
		others, err := trace.ParseFields(mtrJitterFields)
		if err != nil {
			return err
		}
		m := &mtrModel{
			ctx: ctx, session: session, target: host, source: hostname, labels: labels, names: names,
			mpls: o.mpls, fields: fields, others: others, display: o.display, now: start,
		}
		if err := a.watch(ctx, m); err != nil {
			return proberHint(p, session.req, err)
		}
		// The screen is gone: leave the figures behind, as they were shown.
		labels, fields, o.mpls = m.labels, m.fields, m.mpls
	} else if err := a.waitForReport(ctx, session); err != nil {
		return proberHint(p, session.req, err)
	}

	report := &mtrReport{
		source: hostname, target: host, request: session.req, start: start, interval: session.opts.Interval,
		rounds: session.trace.Rounds(), hops: session.trace.Snapshot(), fields: fields, labels: labels,
		mpls: o.mpls, wide: o.wide,
	}
	if o.report && ctx.Err() == nil {
		wait, cancel := context.WithTimeout(ctx, mtrNameWait)
		defer cancel()
		labels.wait(wait, report.hops)
	}
	switch {
	case o.json:
		return a.printJSON(report.document())
	case o.csv:
		return report.csv(a.stdout)
	}
	return report.print(a.stdout)
}

// watch shows the live view until the user leaves it, or ctx or the trace ends.
func (a *app) watch(ctx context.Context, m *mtrModel) error {
	screen := a.stdout
	if w, ok := screen.(*checkedWriter); ok {
		screen = w.Writer // bubbletea asks whether it is a terminal
	}
	program := tea.NewProgram(m, tea.WithContext(ctx), tea.WithInput(a.stdin), tea.WithOutput(screen), tea.WithoutSignalHandler())
	if _, err := program.Run(); err != nil && ctx.Err() == nil {
		return err
	}
	return m.err
}

// waitForReport waits for the last round, and shows on a terminal how far it is.
func (a *app) waitForReport(ctx context.Context, s *mtrSession) error {
	ended := make(chan error, 1)
	go func() { ended <- s.wait(ctx) }()
	ticker := time.NewTicker(mtrTick)
	defer ticker.Stop()
	shown := false
	for {
		select {
		case err := <-ended:
			if shown {
				fmt.Fprint(a.stderr, eraseLine)
			}
			return err
		case <-ticker.C:
			if a.stderrTerminal {
				shown = true
				fmt.Fprintf(a.stderr, "%sround %d of %d", eraseLine, s.trace.Rounds(), s.opts.Rounds)
			}
		}
	}
}
