// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/trace"
)

// traceNameWait is how long the output waits for a name or an autonomous system; the trace itself
// does not wait for them.
const traceNameWait = 3 * time.Second

// vias are the ways to send probes that this version has.
const traceVias = "local"

type traceOptions struct {
	request                   probe.Request
	version                   ipVersion
	paris, classic, multipath bool
	mda                       bool
	confidence                float64
	first, maxHops, queries   int
	window, gapLimit          int
	noDNS, privateNames       bool
	asn, country              string
	graph                     string
	via                       string
	sockets                   socketOptions
	json                      bool
}

func newTraceCommand(a *app) *cobra.Command {
	var o traceOptions
	cmd := &cobra.Command{
		Use:   "trace HOST",
		Short: "Show the path to a host, or all paths",
		Long: `Show the routers on the way to a host.

All probes keep to one flow, so that load balancers lead them one way and the
hops belong together (--paris, the default). --classic lets the probes differ,
as old traceroutes do. --multipath finds all ways through load balancers, with
the stated confidence, and tells balancers per packet from those per flow.

All hops are probed at the same time; a silent hop does not hold up the rest.

Marks behind the times: !N network, !H host, !P protocol, !X communication
administratively prohibited, ! and a number: other codes of "unreachable".

The exit code is 0 if the host was reached, 1 if not.`,
		Example: `  fathom trace example.net
  fathom trace --multipath --graph paths.svg example.net
  fathom trace --protocol tcp --port 443 --asn dns example.net
  fathom trace -n --json 192.0.2.1`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("name one host to trace")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.window == 0 && cmd.Flags().Changed("window") {
				return usagef("--window 0: want at least 1")
			}
			for _, name := range []string{"mda", "confidence"} {
				if !o.multipath && given(cmd, name) {
					return usagef("--%s: only with --multipath", name)
				}
			}
			if err := checkPorts(cmd, o.request.Protocol); err != nil {
				return err
			}
			return a.runTrace(cmd.Context(), &o, args[0])
		},
	}
	o.request = probe.Request{Protocol: probe.UDP}
	f := cmd.Flags()
	f.VarP((*protocolValue)(&o.request.Protocol), "protocol", "p", "what to send")
	f.BoolVar(&o.paris, "paris", false, "one flow, one way (the default)")
	f.BoolVar(&o.classic, "classic", false, "probes that load balancers spread")
	f.BoolVar(&o.multipath, "multipath", false, "find all ways")
	cmd.MarkFlagsMutuallyExclusive("paris", "classic", "multipath")
	f.Float64Var(&o.confidence, "confidence", 100*trace.DefaultConfidence, "with --multipath: find everything with this probability, in `percent`")
	f.BoolVar(&o.mda, "mda", false, "with --multipath: probe node by node from the start (MDA instead of MDA-Lite)")
	f.Uint16Var(&o.request.Flow, "flow", 1, "the flow to keep to, or the first of them: a `number` above 0")
	f.IntVarP(&o.first, "first", "f", 1, "begin at this `hop`")
	f.IntVarP(&o.maxHops, "max-hops", "m", trace.DefaultMaxHops, "end at this `hop`")
	f.IntVarP(&o.queries, "queries", "q", trace.DefaultQueries, "`probes` for each hop")
	durationVarP(f, &o.request.Timeout, "timeout", "w", trace.DefaultTimeout, "wait so long for an answer, or less if others are in")
	f.IntVar(&o.window, "window", 0, fmt.Sprintf("at most so many `hops` at work (default %d), with --multipath probes in flight (default %d)", trace.DefaultWindow, trace.DefaultMultipathWindow))
	f.IntVar(&o.gapLimit, "gap-limit", trace.DefaultGapLimit, "end after so many silent `hops` in a row; 0 for no limit")
	f.Uint16VarP(&o.request.Port, "port", "P", 0, "destination `port` (tcp and sctp: 80; udp: 33434, with --classic and up)")
	f.VarP((*addrValue)(&o.request.LocalAddr), "local-address", "a", "send from this address")
	f.Uint16Var(&o.request.LocalPort, "local-port", 0, "send from this `port` (udp)")
	f.StringVarP(&o.request.Interface, "interface", "I", "", "send through the interface with this `name`")
	f.IntVarP(&o.request.Size, "size", "s", probe.DefaultSize, "length of the whole packet in `bytes` (icmp and udp)")
	f.Uint8VarP(&o.request.TOS, "tos", "Q", 0, "type of service, or traffic class (a `byte`)")
	f.Uint32Var(&o.request.Mark, "mark", 0, "routing `mark` of the packets (Linux)")
	o.version.register(cmd)
	f.BoolVarP(&o.noDNS, "no-dns", "n", false, "do not look names up")
	f.BoolVar(&o.privateNames, "private-names", false, "ask name servers for names of private addresses too")
	f.StringVar(&o.asn, "asn", "none", "show autonomous systems: none, dns (asks Team Cymru's service), or a `file` (.mmdb, or lines of network,number,name)")
	f.StringVar(&o.country, "country", "", "show countries from this `file` (.mmdb, or lines of network,number,name,country)")
	f.StringVar(&o.graph, "graph", "", "draw the paths into this `file` (.svg, .dot or .mmd)")
	f.StringVar(&o.via, "via", traceVias, "send the probes `from` here (local)")
	o.sockets.register(cmd)
	f.BoolVar(&o.json, "json", false, "print one JSON document")
	return cmd
}

// check refuses what cannot work.
func (o *traceOptions) check() error {
	switch {
	case strings.HasPrefix(o.via, "agent:"):
		return usagef("--via %s: that is `fathom anycast trace %s HOST`", o.via, strings.TrimPrefix(o.via, "agent:"))
	case o.via != "local":
		return usagef("--via %s: not available in this version; there is: %s", o.via, traceVias)
	case o.request.Flow == 0:
		return usagef("--flow 0: want 1 to 65535")
	case o.request.Size < 0 || o.request.Size > probe.MaxSize:
		return usagef("--size %d: want 0 to %d", o.request.Size, probe.MaxSize)
	case o.request.Timeout <= 0 || o.request.Timeout > probe.MaxTimeout:
		return usagef("--timeout %s: want more than 0 and at most %s", o.request.Timeout, probe.MaxTimeout)
	case o.first < 1 || o.first > 255:
		return usagef("--first %d: want 1 to 255", o.first)
	case o.maxHops < 1 || o.maxHops > 255:
		return usagef("--max-hops %d: want 1 to 255", o.maxHops)
	case o.first > o.maxHops:
		return usagef("--first %d is beyond --max-hops %d", o.first, o.maxHops)
	case o.queries < 1 || o.queries > trace.MaxQueries:
		return usagef("--queries %d: want 1 to %d", o.queries, trace.MaxQueries)
	case o.window < 0:
		return usagef("--window %d: want at least 1", o.window)
	case o.gapLimit < 0:
		return usagef("--gap-limit %d: want at least 0", o.gapLimit)
	case !(o.confidence > 0 && o.confidence < 100):
		return usagef("--confidence %g: want more than 0 and less than 100", o.confidence)
	}
	if o.gapLimit == 0 {
		o.gapLimit = -1 // the library's word for no limit
	}
	if o.graph != "" {
		if _, err := trace.FormatOf(o.graph); err != nil {
			return usagef("--graph %s: want a name that ends in .svg, .dot or .mmd", o.graph)
		}
	}
	return o.version.fit(o.request.LocalAddr)
}

// sources opens what is to be told about addresses.
func (o *traceOptions) sources() (sources []trace.Source, closeAll func(), err error) {
	var files []trace.FileSource
	closeAll = func() {
		for _, f := range files {
			_ = f.Close() // only read
		}
	}
	open := func(name string) error {
		f, err := trace.OpenFile(name)
		if err == nil {
			files = append(files, f)
			sources = append(sources, f)
		}
		return err
	}
	if o.country != "" {
		err = open(o.country)
	}
	switch {
	case err != nil || o.asn == "none" || o.asn == "":
	case o.asn == "dns":
		sources = append(sources, &trace.OriginDNS{})
	default:
		err = open(o.asn)
	}
	if err != nil {
		closeAll()
		return nil, nil, err
	}
	if !o.noDNS {
		sources = append(sources, &trace.Names{AskPrivate: o.privateNames})
	}
	return sources, closeAll, nil
}

func (a *app) runTrace(ctx context.Context, o *traceOptions, host string) error {
	if err := o.check(); err != nil {
		return err
	}
	sources, closeSources, err := o.sources()
	if err != nil {
		return err
	}
	defer closeSources()
	target, err := a.target(ctx, host, o.version.number(), o.request.Interface)
	if err != nil {
		return probeHint(err)
	}
	o.request.Target = target

	// Before the privileges go, which may be what it takes to write there.
	picture, err := openPicture(o.graph)
	if err != nil {
		return err
	}
	defer picture.close()
	p, err := a.newProber(o.sockets.options(), o.request.Mark)
	if err != nil {
		return probeHint(err)
	}
	defer p.Close()

	annotator := trace.NewAnnotator(sources...)
	defer annotator.Close()
	t := &traceRun{app: a, options: o, host: host, via: p, annotator: annotator, picture: picture}
	if o.multipath {
		return t.paths(ctx)
	}
	return t.path(ctx)
}

// traceRun is one run of the command.
type traceRun struct {
	*app
	options   *traceOptions
	host      string
	via       prober
	annotator *trace.Annotator
	picture   *picture // nil without --graph
}

// about gives what is known about an address, and waits for it, but not for ever.
func (t *traceRun) about(ctx context.Context, addr netip.Addr) trace.Annotation {
	if a, complete := t.annotator.Get(addr); complete {
		return a // even if ctx has ended
	}
	ctx, cancel := context.WithTimeout(ctx, traceNameWait)
	defer cancel()
	return t.annotator.Wait(ctx, addr)
}

// path runs a trace of one path.
func (t *traceRun) path(ctx context.Context) error {
	o := t.options
	opts := trace.Options{
		FirstHop: o.first, MaxHops: o.maxHops, Queries: o.queries, Timeout: o.request.Timeout,
		Window: o.window, GapLimit: o.gapLimit,
		// A look-up begins as soon as there is an address, long before it is printed.
		OnReply: func(r probe.Result) { t.annotator.Get(r.Responder) },
	}
	if o.classic {
		opts.Method = trace.Classic
	}
	table := &traceTable{w: t.stdout, showAS: o.asn != "none" && o.asn != "" || o.country != "", queries: o.queries}
	if o.json {
		path, err := trace.Run(ctx, t.via, o.request, opts)
		if path == nil {
			return err
		}
		return t.finish(ctx, path.Graph(), t.jsonPath(ctx, path, opts.Method), err)
	}

	// The printer waits for names, the trace does not wait for the printer.
	hops := make(chan trace.Hop, o.maxHops)
	opts.OnHop = func(h trace.Hop) { hops <- h }
	var printer sync.WaitGroup
	printer.Go(func() {
		table.header(t.headline(opts.Method.String()))
		for h := range hops {
			table.hop(h, func(addr netip.Addr) trace.Annotation { return t.about(ctx, addr) })
		}
	})
	path, err := trace.Run(ctx, t.via, o.request, opts)
	close(hops)
	printer.Wait()
	if path == nil {
		return err
	}
	if err == nil || ctx.Err() != nil {
		table.footer(path)
	}
	if table.err != nil {
		return table.err
	}
	return t.finish(ctx, path.Graph(), nil, err)
}

// paths runs a trace of all paths.
func (t *traceRun) paths(ctx context.Context) error {
	o := t.options
	opts := trace.MultipathOptions{
		Confidence: o.confidence / 100, FirstHop: o.first, MaxHops: o.maxHops, Timeout: min(o.request.Timeout, trace.DefaultTimeout),
		Window: o.window, GapLimit: o.gapLimit,
		OnReply: func(r probe.Result) { t.annotator.Get(r.Responder) },
	}
	if o.request.Timeout == trace.DefaultTimeout {
		opts.Timeout = trace.DefaultMultipathTimeout
	}
	if o.mda {
		opts.Algorithm = trace.MDA
	}
	g, err := trace.Multipath(ctx, t.via, o.request, opts)
	if g == nil {
		return err
	}
	if o.json {
		return t.finish(ctx, g, t.jsonGraph(ctx, g, opts.Algorithm), err)
	}
	if err != nil && ctx.Err() == nil && len(g.Nodes) < 2 {
		return proberHint(t.via, t.options.request, err) // it could not begin
	}
	table := &traceTable{w: t.stdout, showAS: o.asn != "none" && o.asn != "" || o.country != ""}
	table.graph(t.headline(fmt.Sprintf("multipath (%v)", opts.Algorithm)), g, func(addr netip.Addr) trace.Annotation { return t.about(ctx, addr) })
	if table.err != nil {
		return table.err
	}
	return t.finish(ctx, g, nil, err)
}

// finish prints the document, if any, draws the picture, and says whether the target was reached. A trace
// that found nothing leaves an older picture alone.
func (t *traceRun) finish(ctx context.Context, g *trace.Graph, document any, err error) error {
	if document != nil {
		if err := t.printJSON(document); err != nil {
			return err
		}
	}
	answered := slices.ContainsFunc(g.Nodes, func(n trace.Node) bool { return n.Answers > 0 })
	switch {
	case t.picture == nil:
	case !answered:
		fmt.Fprintf(t.stderr, "nothing answered: no picture in %s\n", t.options.graph)
	default:
		about := func(addr netip.Addr) trace.Annotation { return t.about(ctx, addr) }
		if err := t.picture.draw(g, about); err != nil {
			return err
		}
	}
	switch {
	case err != nil:
		return proberHint(t.via, t.options.request, err)
	case g.Stop != trace.StopReached:
		return errQuiet // the output says why
	}
	return nil
}

// picture is the file that --graph names.
type picture struct {
	file   *os.File
	format trace.Format
	drawn  bool
}

// openPicture opens the file, or creates it, without touching what is in it. It gives nil for no name.
func openPicture(name string) (*picture, error) {
	if name == "" {
		return nil, nil
	}
	format, err := trace.FormatOf(name)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	return &picture{file: f, format: format}, nil
}

func (p *picture) draw(g *trace.Graph, about func(netip.Addr) trace.Annotation) error {
	if err := p.file.Truncate(0); err != nil && !errors.Is(err, syscall.EINVAL) { // a pipe has no length
		return err
	}
	p.drawn = true
	return errors.Join(g.Draw(p.file, p.format, about), p.file.Close())
}

// close removes an empty file that no picture came into.
func (p *picture) close() {
	if p == nil || p.drawn {
		return
	}
	if info, err := p.file.Stat(); err == nil && info.Mode().IsRegular() && info.Size() == 0 {
		os.Remove(p.file.Name())
	}
	p.file.Close()
}

// headline says what is traced, and how.
func (t *traceRun) headline(method string) string {
	r := &t.options.request
	name := t.host
	if name != r.Target.String() {
		name += " (" + r.Target.String() + ")"
	}
	size := ""
	if r.Protocol == probe.ICMP || r.Protocol == probe.UDP {
		size = fmt.Sprintf(", %d bytes", r.Size)
	}
	return fmt.Sprintf("to %s: %v%s, %s, at most %s", name, r.Protocol, size, method, count(t.options.maxHops, "hop"))
}
