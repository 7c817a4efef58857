// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/client"
	"github.com/seed5728abee/fathom/anycast/hitlist"
	"github.com/seed5728abee/fathom/probe/stateless"
	"github.com/seed5728abee/fathom/trace"
)

// kindValue is an option that names what anycast probes are made of.
type kindValue stateless.Kind

func (k *kindValue) String() string { return stateless.Kind(*k).String() }
func (k *kindValue) Type() string   { return "icmp|udp|tcp|dns|chaos" }

func (k *kindValue) Set(s string) error {
	parsed, err := stateless.ParseKind(strings.ToLower(s))
	if err != nil {
		return errors.New("want icmp, udp, tcp, dns or chaos")
	}
	*k = kindValue(parsed)
	return nil
}

// measureOptions are what the commands that measure share.
type measureOptions struct {
	link       anycastLink
	def        anycast.Definition
	sources    addrsValue
	origins    string // a file of them
	optOut     string
	weights    string
	every      time.Duration
	until      string
	alarm      float64
	background bool
	json       bool
	many       bool // of a program with many targets, which has options for them
}

// register adds the options of every program. many is for programs with many targets.
func (o *measureOptions) register(a *app, cmd *cobra.Command, protocol stateless.Kind, many bool) {
	o.many = many
	d := &o.def
	d.Protocol = protocol
	f := cmd.Flags()
	f.VarP((*kindValue)(&d.Protocol), "protocol", "p", "what to send")
	f.Uint16VarP(&d.Port, "port", "P", 0, "destination `port` (udp: 33434, tcp: 80, dns and chaos: 53)")
	f.IntVarP(&d.Size, "size", "s", 0, "length of the whole packet in `bytes` (icmp and udp; default: the least)")
	f.Uint8VarP(&d.TOS, "tos", "Q", 0, "type of service, or traffic class (a `byte`)")
	f.StringVar(&d.Query, "query", "", "`name` below which dns probes ask; a wildcard there makes resolvers answer well")
	f.StringVar(&d.Note, "note", "", "`text` for those who look at the packets, such as a page that explains them")
	f.Var(&o.sources, "source", "anycast `address` to send from (default: each site's first)")
	durationVarP(f, &d.Timeout, "timeout", "w", anycast.DefaultTimeout, "wait so long for an answer")
	f.StringVar(&d.Name, "name", "", "a `label` by which to find the measurement again")
	d.AllowPrivate = !many // a host that was named is meant
	if many {
		f.BoolVar(&d.AllowPrivate, "allow-private", false, "probe private and other special addresses, too")
		f.StringSliceVar(&d.Sites, "site", nil, "send from this `site`; may be given several times (default: all)")
		f.Float64Var(&d.Pace.Rate, "rate", anycast.DefaultRate, "`probes` per second in all")
		f.Float64Var(&d.Pace.PerNetwork, "per-network", anycast.DefaultPerNetwork, "`probes` per second to one /24 or /48; 0 for no limit")
		durationVarP(f, &d.Pace.SiteGap, "site-gap", "", anycast.DefaultSiteGap, "least time between probes from different sites to one target; 0 for none")
		f.StringVar(&o.optOut, "opt-out", "", "leave out the networks in this `file`")
	}
	durationVarP(f, &o.every, "every", "", 0, "repeat it at this interval")
	f.StringVar(&o.until, "until", "", "with --every: end at this `time` (RFC 3339), or after so long (24h)")
	f.BoolVar(&o.background, "background", false, "print the measurement's id, and leave it to the controller")
	f.BoolVar(&o.json, "json", false, "print one JSON object a line, as they come")
	o.link.register(a, cmd)
}

// registerOrigins adds what programs have that compare several things to send from.
func (o *measureOptions) registerOrigins(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Lookup("source").Usage = "anycast `address` to send from; several, or with commas: each of them, side by side (default: each site's first)"
	f.StringVar(&o.origins, "configuration", "", "send from each of the origins in this TOML `file`: addresses, ports, and the sites that use them")
	cmd.MarkFlagsMutuallyExclusive("source", "configuration")
}

// finish completes the definition from the options that are not fields of it.
func (o *measureOptions) finish(program anycast.ProgramKind) error {
	d := &o.def
	d.Program = program
	// The library's zero is its default, and below that is none.
	if o.many && d.Pace.PerNetwork == 0 {
		d.Pace.PerNetwork = -1
	}
	if o.many && d.Pace.SiteGap == 0 {
		d.Pace.SiteGap = -1
	}
	// The library's word for no limit is below 0; its 0 is the default.
	if d.Pace.SiteGap == 0 {
		d.Pace.SiteGap = -1
	}
	if d.Pace.PerNetwork == 0 {
		d.Pace.PerNetwork = -1
	}
	switch {
	case o.origins != "":
		origins, err := readOrigins(o.origins)
		if err != nil {
			return err
		}
		d.Origins = origins
	case len(o.sources) == 1:
		d.Source = o.sources[0]
	case len(o.sources) > 1:
		d.Origins = originsOf(o.sources)
	}
	if o.optOut != "" {
		networks, err := readFile(o.optOut, nil, hitlist.ReadPrefixes)
		if err != nil {
			return err
		}
		d.OptOut = networks
	}
	if o.weights != "" {
		weights, err := readFile(o.weights, nil, hitlist.ReadWeights)
		if err != nil {
			return err
		}
		d.Weights = weights
	}
	if o.every != 0 {
		d.Schedule = &anycast.Schedule{Every: o.every, Alarm: o.alarm / 100}
		if o.until != "" {
			if after, err := time.ParseDuration(o.until); err == nil {
				d.Schedule.Until = time.Now().Add(after)
			} else if d.Schedule.Until, err = time.Parse(time.RFC3339, o.until); err != nil {
				return usagef("--until %s: want a time such as 2026-12-31T23:59:59Z, or a duration such as 24h", o.until)
			}
		}
	} else if o.until != "" || o.alarm != 0 {
		return usagef("--until and --alarm: only with --every")
	}
	if err := d.Check(); err != nil {
		return &usageError{err}
	}
	return nil
}

// readFile reads a file, or standard input for "-", with one of package hitlist's readers.
func readFile[T any](name string, stdin io.Reader, read func(io.Reader) (T, error)) (T, error) {
	if name == "-" && stdin != nil {
		v, err := read(stdin)
		if err != nil {
			err = fmt.Errorf("standard input: %w", err)
		}
		return v, err
	}
	f, err := os.Open(name)
	if err != nil {
		var zero T
		return zero, err
	}
	defer f.Close()
	v, err := read(f)
	if err != nil {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return v, err
}

// targets gives what the arguments name: a hit list, or targets themselves.
func (o *measureOptions) targets(a *app, args []string) (client.Targets, error) {
	var t client.Targets
	for _, arg := range args {
		// What is a file is one, even if it could be a name.
		if _, err := os.Stat(arg); arg != "-" && err != nil {
			if strings.Contains(arg, "/") && !isPrefix(arg) || filepath.Ext(arg) == ".txt" {
				return t, err
			}
			t.Text = append(t.Text, arg)
			continue
		}
		list, err := readFile(arg, a.stdin, func(r io.Reader) (hitlist.List, error) { return hitlist.Read(r, 0) })
		if err != nil {
			return t, err
		}
		t.Addrs = append(t.Addrs, list.Addrs...)
		t.Text = append(t.Text, list.Text...)
	}
	if len(t.Text)+len(t.Addrs) == 0 {
		return t, errNoTargets
	}
	return t, nil
}

var errNoTargets = errors.New("there are no targets in the hit list")

func isPrefix(s string) bool {
	_, err := netip.ParsePrefix(s)
	return err == nil
}

// measureView shows what a measurement tells.
type measureView interface {
	// began is called once.
	began(m *anycast.Measurement)
	results(m *anycast.Measurement, found []anycast.Result) error
	progress(p anycast.Progress)
	// ended is called once, however it ended.
	ended(m *anycast.Measurement) error
}

// measure starts a measurement and shows it to its end. A user who interrupts it ends it, and sees what there is.
func (a *app) measure(ctx context.Context, o *measureOptions, targets client.Targets, view measureView) error {
	c, err := o.link.connect(ctx, a)
	if err != nil {
		return err
	}
	defer func() { c.Close() }()
	// The stream outlives an interrupt: what was found until then still comes.
	streamCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	s, err := c.Start(streamCtx, o.def, targets, false)
	if err != nil {
		return o.link.explain(err)
	}
	if o.background || o.def.Schedule != nil {
		s.Close()
		id := s.Measurement().ID
		if o.json {
			m := s.Measurement()
			return a.printJSON(&m)
		}
		fmt.Fprintf(a.stderr, "Started; `fathom anycast show %s` shows it, `fathom anycast cancel %s` ends it.\n", id, id)
		_, err := fmt.Fprintln(a.stdout, id)
		return err
	}
	f := &follower{app: a, link: &o.link, client: c, view: view, id: s.Measurement().ID}
	defer func() { c = f.client }() // it may have been made anew
	return f.runTo(ctx, streamCtx, stop, s)
}

// runTo is run until the user interrupts it.
func (f *follower) runTo(ctx, streamCtx context.Context, stop context.CancelFunc, s *client.Stream) error {
	release := context.AfterFunc(ctx, func() { f.interrupt(stop) })
	defer release()
	err := f.run(streamCtx, s)
	if err == nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return err
}

// Times of a follower.
const (
	// cancelTime is how long an interrupted command waits for the controller to end the measurement.
	cancelTime = 5 * time.Second
	// returnTime is how long it waits for a controller that went away.
	returnTime = time.Minute
)

// follower shows a measurement, and comes back when the connection breaks.
type follower struct {
	*app
	link   *anycastLink
	client *client.Client
	view   measureView
	id     string
	begun  bool
	seen   int // results shown
}

// interrupt ends the measurement, or the wait for it.
func (f *follower) interrupt(stop context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), cancelTime)
	defer cancel()
	if err := f.client.Cancel(ctx, f.id); err != nil {
		f.log.Warn("the measurement goes on", "measurement", f.id, "err", err)
		stop()
		return
	}
	<-ctx.Done() // it should be over before
	stop()
}

func (f *follower) run(ctx context.Context, s *client.Stream) error {
	for {
		err := f.read(s)
		if err == nil {
			return f.verdict(s.Measurement())
		}
		if !errors.Is(err, client.ErrUnavailable) {
			return f.link.explain(err)
		}
		fmt.Fprintf(f.stderr, "The connection to the controller broke; the measurement is %s. Waiting for the controller.\n", f.id)
		if s, err = f.comeBack(ctx, err); err != nil {
			return f.link.explain(err)
		}
	}
}

// comeBack connects again and follows the measurement from its start.
func (f *follower) comeBack(ctx context.Context, broken error) (*client.Stream, error) {
	deadline := time.Now().Add(returnTime)
	for wait := time.Second; ; wait = min(2*wait, 10*time.Second) {
		select {
		case <-ctx.Done():
			return nil, broken
		case <-time.After(wait):
		}
		c, err := f.link.connect(ctx, f.app)
		if err == nil {
			f.client.Close()
			f.client = c
			var s *client.Stream
			if s, err = c.Follow(ctx, f.id); err == nil {
				return s, nil
			}
		}
		if !errors.Is(err, client.ErrUnavailable) || time.Now().After(deadline) {
			return nil, err
		}
	}
}

// read shows a stream to its end. What was shown before is left out.
func (f *follower) read(s *client.Stream) error {
	skip := f.seen
	for e, err := range s.All() {
		if err != nil {
			return err
		}
		m := s.Measurement()
		if !f.begun {
			f.begun = true
			f.view.began(&m)
		}
		if e.Progress != nil {
			f.view.progress(*e.Progress)
		}
		found := e.Results[min(skip, len(e.Results)):]
		skip -= len(e.Results) - len(found)
		if len(found) == 0 {
			continue
		}
		f.seen += len(found)
		if err := f.view.results(&m, found); err != nil {
			return err
		}
	}
	m := s.Measurement()
	return f.view.ended(&m)
}

// verdict makes the end of a measurement that of the command.
func (f *follower) verdict(m anycast.Measurement) error {
	switch m.State {
	case anycast.Failed, anycast.Interrupted:
		err := fmt.Errorf("measurement %s %s: %s", m.ID, m.State, m.Error)
		if strings.Contains(m.Error, anycast.ErrNoSite.Error()) { // all that comes over the network is its text
			err = withHint(err, "`fathom anycast sites` lists the sites that are connected.")
		}
		return err
	case anycast.Cancelled:
		return fmt.Errorf("measurement %s was cancelled", m.ID)
	case anycast.Waiting, anycast.Running, anycast.Done:
	}
	return nil
}

// measureAndShow is the whole of a command that measures.
func (a *app) measureAndShow(ctx context.Context, o *measureOptions, program anycast.ProgramKind, args []string, view measureView) error {
	if err := o.finish(program); err != nil {
		return err
	}
	targets := client.Targets{Text: args}
	feeds := program == anycast.KindCatchment || program == anycast.KindLatency || program == anycast.KindFlipping
	if feeds && len(args) == 1 && args[0] == "-" && !o.background && o.def.Schedule == nil {
		return a.measureFeed(ctx, o, view)
	}
	if program != anycast.KindTrace {
		var err error
		if targets, err = o.targets(a, args); err != nil {
			return err
		}
	}
	return a.measure(ctx, o, targets, view)
}

// view gives the view for eyes, or the one for programs.
func (o *measureOptions) view(a *app, forEyes measureView) measureView {
	if o.json {
		return newJSONView(a.stdout)
	}
	return forEyes
}

// needTargets refuses a command line without targets.
func needTargets(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usagef("name a hit list (a file, or - for standard input) or targets")
	}
	return nil
}

const hitListHelp = `A HITLIST is a file, or - for standard input: one address, name or prefix a line;
# begins a comment. Of a prefix, each /24 or /48 gets one probe, at its first host.
Targets may also be given directly.`

const feedHelp = `
Standard input may stay open: what comes is probed as it comes, and the measurement
ends with it.`

func newAnycastTraceCommand(a *app) *cobra.Command {
	var o measureOptions
	var topt anycast.TraceOptions
	var look traceOptions // names, autonomous systems, picture
	var classic, multipath, paris bool
	confidence := 100 * anycast.DefaultConfidence
	cmd := &cobra.Command{
		Use:   "trace SITE HOST",
		Short: "Trace from a site, and show which site hears each hop",
		Long: `Trace the path from a site to a host. The answers of routers on the way go to the
anycast address, so they may come home at any site: the column HEARD AT says
where. A round-trip time between two sites needs both clocks; it is shown with
its uncertainty, or left out (?) where that would be more than the time itself.

The exit code is 0 if the host was reached, 1 if not.`,
		Example: `  fathom anycast trace fra1 example.net
  fathom anycast trace --multipath --graph paths.svg fra1 198.51.100.1`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usagef("name a site and a host")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case classic:
				topt.Method = anycast.MethodClassic
			case multipath:
				topt.Method = anycast.MethodMultipath
			}
			if given(cmd, "confidence") && !multipath {
				return usagef("--confidence: only with --multipath")
			}
			if topt.GapLimit == 0 {
				topt.GapLimit = -1 // the library's word for no limit
			}
			topt.Confidence = confidence / 100
			o.def.Sites, o.def.Trace = args[:1], &topt
			if o.def.Name == "" {
				o.def.Name = args[0] + " to " + args[1]
			}
			if look.graph != "" {
				if _, err := trace.FormatOf(look.graph); err != nil {
					return usagef("--graph %s: want a name that ends in .svg, .dot or .mmd", look.graph)
				}
			}
			return a.runAnycastTrace(cmd.Context(), &o, &look, args[1])
		},
	}
	f := cmd.Flags()
	f.BoolVar(&paris, "paris", false, "one flow, one way (the default)")
	f.BoolVar(&classic, "classic", false, "probes that load balancers spread")
	f.BoolVar(&multipath, "multipath", false, "find all ways")
	cmd.MarkFlagsMutuallyExclusive("paris", "classic", "multipath")
	f.Float64Var(&confidence, "confidence", confidence, "with --multipath: find everything with this probability, in `percent`")
	f.IntVarP(&topt.FirstHop, "first", "f", 1, "begin at this `hop`")
	f.IntVarP(&topt.MaxHops, "max-hops", "m", anycast.DefaultMaxHops, "end at this `hop`")
	f.IntVarP(&o.def.Attempts, "queries", "q", anycast.DefaultTraceAttempts, "`probes` for each hop")
	f.IntVar(&topt.GapLimit, "gap-limit", anycast.DefaultGapLimit, "end after so many silent `hops` in a row; 0 for no limit")
	f.BoolVarP(&look.noDNS, "no-dns", "n", false, "do not look names up")
	f.StringVar(&look.asn, "asn", "none", "show autonomous systems: none, dns (asks Team Cymru's service), or a `file` (.mmdb, or lines of network,number,name)")
	f.StringVar(&look.country, "country", "", "show countries from this `file` (.mmdb, or lines of network,number,name,country)")
	f.StringVar(&look.graph, "graph", "", "draw the paths into this `file` (.svg, .dot or .mmd), coloured by where they were heard")
	o.register(a, cmd, stateless.UDP, false)
	return cmd
}

func newAnycastCatchmentCommand(a *app) *cobra.Command {
	var o measureOptions
	var networks bool
	cmd := &cobra.Command{
		Use:   "catchment HITLIST...",
		Short: "Map which site each network reaches",
		Long: `Probe every target of a hit list from the anycast address, and show at which
site the answers come home: the catchment of each site, in targets and in
networks (/24 and /48), and with --weights in queries.

` + hitListHelp + feedHelp + `

A measurement survives a restart of the controller, unless it is fed that way.`,
		Example: `  fathom anycast catchment hitlist.txt
  fathom anycast catchment --site fra1 --rate 10000 --name weekly hitlist.txt
  fathom anycast catchment --source 192.0.2.1,192.0.2.129 hitlist.txt
  tail -f seen.txt | fathom anycast catchment --json -
  fathom anycast catchment --every 1h --alarm 5 hitlist.txt`,
		Args: needTargets,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.measureAndShow(cmd.Context(), &o, anycast.KindCatchment, args, o.view(a, newCatchmentView(a, networks)))
		},
	}
	f := cmd.Flags()
	o.register(a, cmd, stateless.ICMP, true)
	f.IntVar(&o.def.Attempts, "attempts", anycast.DefaultAttempts, "probe a target that does not answer so many `times`")
	f.StringVar(&o.weights, "weights", "", "`file` of your query counts: a network and a number a line")
	f.Float64Var(&o.alarm, "alarm", 0, "with --every: alarm when so many `percent` of the networks have moved since the run before")
	f.BoolVar(&o.def.Responsive, "responsive", false, "spare targets that do not answer the first site the probes of the others")
	f.BoolVar(&networks, "networks", false, "show the table of networks, too")
	o.registerOrigins(cmd)
	return cmd
}

func newAnycastLatencyCommand(a *app) *cobra.Command {
	var o measureOptions
	cmd := &cobra.Command{
		Use:   "latency HITLIST...",
		Short: "Show how far targets are from the site that catches them, and from the best",
		Long: `Find the site that catches each target, measure the round-trip time from there,
and from every site by its own address: which site would be best, and how much
longer the way to the anycast address is than that.

` + hitListHelp + feedHelp,
		Example: `  fathom anycast latency hitlist.txt`,
		Args:    needTargets,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.measureAndShow(cmd.Context(), &o, anycast.KindLatency, args, o.view(a, newLatencyView(a)))
		},
	}
	o.register(a, cmd, stateless.ICMP, true)
	cmd.Flags().IntVar(&o.def.Attempts, "attempts", anycast.DefaultAttempts, "probe a target that does not answer so many `times`")
	o.registerOrigins(cmd)
	return cmd
}

func newAnycastFlippingCommand(a *app) *cobra.Command {
	var o measureOptions
	var fopt anycast.FlippingOptions
	var protocols []string
	cmd := &cobra.Command{
		Use:   "flipping HITLIST...",
		Short: "Find targets that reach several sites, and where their paths part",
		Long: `Probe every target with several flows, protocols and rounds. Targets whose
answers come home at different sites are shown with what the site changed
with, and with the hop where two flows part.

` + hitListHelp + feedHelp,
		Example: `  fathom anycast flipping --flows 16 hitlist.txt
  fathom anycast flipping --protocols icmp,tcp hitlist.txt`,
		Args: needTargets,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, p := range protocols {
				kind, err := stateless.ParseKind(strings.ToLower(p))
				if err != nil {
					return usagef("--protocols %s: want icmp, udp, tcp, dns or chaos", p)
				}
				fopt.Protocols = append(fopt.Protocols, kind)
			}
			o.def.Flipping = &fopt
			return a.measureAndShow(cmd.Context(), &o, anycast.KindFlipping, args, o.view(a, newFlippingView(a)))
		},
	}
	f := cmd.Flags()
	f.IntVar(&fopt.Flows, "flows", anycast.DefaultFlows, "`flows` for each target")
	f.StringSliceVar(&protocols, "protocols", nil, "`protocols` to compare (default: that of --protocol)")
	f.IntVar(&fopt.Rounds, "rounds", anycast.DefaultRounds, "how `often` to repeat it all")
	durationVarP(f, &fopt.Interval, "interval", "", anycast.DefaultRoundInterval, "time between the rounds")
	f.BoolVar(&fopt.NoPaths, "no-paths", false, "do not trace to where the paths part")
	o.register(a, cmd, stateless.ICMP, true)
	o.registerOrigins(cmd)
	return cmd
}

func newAnycastWatchCommand(a *app) *cobra.Command {
	var o measureOptions
	var wopt anycast.WatchOptions
	cmd := &cobra.Command{
		Use:   "watch HITLIST...",
		Short: "Watch catchments move while a site comes or goes",
		Long: `Probe a sample of targets again and again, and show each that changes site, when,
and for how long it was heard nowhere; at the end, how long the catchments took
to settle.

` + hitListHelp,
		Example: `  fathom anycast watch --interval 50ms --duration 2m sample.txt`,
		Args:    needTargets,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.def.Watch = &wopt
			return a.measureAndShow(cmd.Context(), &o, anycast.KindWatch, args, o.view(a, newWatchView(a)))
		},
	}
	f := cmd.Flags()
	durationVarP(f, &wopt.Interval, "interval", "", anycast.DefaultWatchInterval, "how often to probe each target")
	durationVarP(f, &wopt.Duration, "duration", "", anycast.DefaultWatchDuration, "how long to watch")
	durationVarP(f, &wopt.Settle, "settle", "", anycast.DefaultSettle, "nothing may move for so long before it counts as settled")
	o.register(a, cmd, stateless.ICMP, true)
	return cmd
}

func newAnycastRequestCommand(a *app) *cobra.Command {
	var link anycastLink
	format := "text"
	cmd := &cobra.Command{
		Use:   "request COMMAND...",
		Short: "Send a text request, as Voltadomar's clients do",
		Long: `Send a request in Voltadomar's language to a controller of any kind, and print
the answer:

  volta SOURCE DESTINATION [-m MAX-TTLS] [-w WAITTIME] [-q NQUERIES] [-t TOS] [-I]

The command may be one word or several. The exit code is 0 for the answer's
code 200, 1 for others, and 2 if there is no connection.`,
		Example: `  fathom anycast request --controller localhost:50051 --insecure "volta fra1 example.net -q 1"
  fathom anycast request -- volta fra1 example.net -q 1`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("give a command, such as \"volta SITE HOST\"")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "text" && format != "json" {
				return usagef("--format %s: want text or json", format)
			}
			return a.runRequest(cmd.Context(), &link, strings.Join(args, " "), format == "json")
		},
	}
	// The command's own options follow it.
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringVar(&format, "format", format, "how to print the answer: text or json")
	cmd.Flags().BoolFunc("json", "as --format json", func(string) error { format = "json"; return nil })
	link.register(a, cmd)
	return cmd
}

// exitNoConnection is the exit code of a request without an answer.
const exitNoConnection = 2

func (a *app) runRequest(ctx context.Context, link *anycastLink, command string, asJSON bool) error {
	c, err := link.connect(ctx, a)
	var code int32
	var output string
	if err == nil {
		defer c.Close()
		code, output, err = c.Request(ctx, command)
	}
	if err != nil {
		if err = link.explain(err); ctx.Err() != nil || !errors.Is(err, client.ErrUnavailable) {
			return err
		}
		fmt.Fprintf(a.stderr, "fathom anycast request: %v\n", err)
		if h := hintFor(err); h != "" {
			fmt.Fprintln(a.stderr, h)
		}
		return &exitError{exitNoConnection}
	}
	if asJSON {
		err = a.printJSON(anycast.TextResult{Code: code, Text: output})
	} else {
		_, err = fmt.Fprintln(a.stdout, output)
	}
	if err == nil && code != 200 {
		err = errQuiet
	}
	return err
}
