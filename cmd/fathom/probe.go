// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/seed5728abee/fathom/probe"
)

const (
	probeDefaultTimeout = 2 * time.Second
	probeDefaultCount   = 4
	probeDefaultRate    = 10_000
	probeDefaultWindow  = 16_384
	probeMaxWindow      = 1 << 20
	// probeResolvers is how many names are looked up at the same time.
	probeResolvers = 16
	// probeMaxLine bounds a line of standard input. A DNS name has at most 253 bytes.
	probeMaxLine = 4096
)

type probeOptions struct {
	request  probe.Request
	version  ipVersion
	count    uint64
	interval time.Duration
	rate     float64
	window   int
	sockets  socketOptions
	quiet    bool
	json     bool
}

func newProbeCommand(a *app) *cobra.Command {
	var o probeOptions
	cmd := &cobra.Command{
		Use:   "probe HOST...",
		Short: "Measure loss and round-trip times to one or many hosts",
		Long: `Send probes to one host or to many, and tell what came back.

One host gets a line for each answer and a summary; many hosts get a summary
line each, as they finish. The host - stands for a list on standard input:
one host per line, comments after #.

One host is probed until interrupted (^C) when standard output is a terminal.
Otherwise each host gets 4 probes. --count decides differently.

The exit code is 0 if every host has answered, 1 if one has not.`,
		Example: `  fathom probe example.net
  fathom probe -c 100 -i 0.01 --json 192.0.2.1
  fathom probe --protocol tcp --port 443 example.net example.org
  fathom probe -c 1 --rate 50000 --quiet - < hosts.txt`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("name a host to probe, or - to read a list from standard input")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runProbe(cmd, &o, args)
		},
	}
	o.request = probe.Request{Protocol: probe.ICMP}
	f := cmd.Flags()
	f.VarP((*protocolValue)(&o.request.Protocol), "protocol", "p", "what to send")
	f.Uint16VarP(&o.request.Port, "port", "P", 0, "destination `port` (tcp and sctp: 80; udp: one that changes with each probe)")
	f.Uint64VarP(&o.count, "count", "c", probeDefaultCount, "`probes` for each host; 0 goes on until interrupted")
	durationVarP(f, &o.interval, "interval", "i", time.Second, "time between the probes to one host")
	durationVarP(f, &o.request.Timeout, "timeout", "w", probeDefaultTimeout, "how long to wait for each answer")
	f.Float64Var(&o.rate, "rate", probeDefaultRate, "at most so many `probes` per second in all; 0 for no limit")
	f.IntVar(&o.window, "window", probeDefaultWindow, "at most so many `probes` in flight, and hosts at work")
	o.version.register(cmd)
	f.Uint8VarP(&o.request.TTL, "ttl", "t", probe.DefaultTTL, "time to live, or hop limit, in `hops`")
	f.IntVarP(&o.request.Size, "size", "s", probe.DefaultSize, "length of the whole packet in `bytes` (icmp and udp)")
	f.Uint8Var(&o.request.Pattern, "pattern", 0, "`byte` that fills the packet")
	f.Uint8VarP(&o.request.TOS, "tos", "Q", 0, "type of service, or traffic class (a `byte`)")
	f.Uint16Var(&o.request.Flow, "flow", 0, "keep to one path through load balancers: each `number` above 0 is a flow")
	f.VarP((*addrValue)(&o.request.LocalAddr), "local-address", "a", "send from this address")
	f.Uint16Var(&o.request.LocalPort, "local-port", 0, "send from this `port` (udp)")
	f.StringVarP(&o.request.Interface, "interface", "I", "", "send through the interface with this `name`")
	f.Uint32Var(&o.request.Mark, "mark", 0, "routing `mark` of the packets (Linux)")
	o.sockets.register(cmd)
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print the summaries only")
	f.BoolVar(&o.json, "json", false, "print JSON Lines: a record for each probe and for each host")
	return cmd
}

// check refuses what would fail for every probe.
func (o *probeOptions) check() error {
	switch {
	case o.request.TTL == 0:
		return usagef("--ttl 0: want 1 to 255")
	case o.request.Size < 0 || o.request.Size > probe.MaxSize:
		return usagef("--size %d: want 0 to %d", o.request.Size, probe.MaxSize)
	case o.request.Timeout <= 0 || o.request.Timeout > probe.MaxTimeout:
		return usagef("--timeout %s: want more than 0 and at most %s", o.request.Timeout, probe.MaxTimeout)
	case o.window < 1 || o.window > probeMaxWindow:
		return usagef("--window %d: want 1 to %d", o.window, probeMaxWindow)
	case !(o.rate >= 0 && o.rate <= 1e9):
		return usagef("--rate %g: want 0 to 1000000000", o.rate)
	}
	return o.version.fit(o.request.LocalAddr)
}

func (a *app) runProbe(cmd *cobra.Command, o *probeOptions, args []string) error {
	ctx := cmd.Context()
	if err := cmp.Or(o.check(), checkPorts(cmd, o.request.Protocol)); err != nil {
		return err
	}
	single := len(args) == 1 && args[0] != "-"
	if single && a.stdoutTerminal && !cmd.Flags().Changed("count") {
		o.count = 0
	}

	options := o.sockets.options()
	options.MaxInFlight = o.window
	p, err := a.newProber(options, o.request.Mark)
	if err != nil {
		return probeHint(err)
	}
	defer p.Close()
	features := p.Features()
	a.log.Debug("prober", "mode", features.Mode, "frames", features.Frames, "missing", features.Missing)
	hinted := make(map[string]bool)
	problems := func(t *probeTarget) {
		if t.err == nil {
			return
		}
		msg := t.err.Error()
		if _, ok := errors.AsType[*probe.ResolveError](t.err); !ok {
			msg = targetName(t) + ": " + msg // a ResolveError names the host itself
		}
		fmt.Fprintf(a.stderr, "%s: %s\n", cmd.CommandPath(), msg)
		request := o.request
		request.Target = t.addr
		if h := hintFor(proberHint(p, request, t.err)); h != "" && !hinted[h] {
			hinted[h] = true
			fmt.Fprintln(a.stderr, h)
		}
	}

	c := &campaign{
		request: o.request, count: o.count, interval: o.interval, window: o.window,
		limiter: newLimiter(o.rate), prober: p,
	}
	text := &probeText{
		w: bufio.NewWriterSize(a.stdout, 64<<10), request: o.request, interval: o.interval, lines: single && !o.quiet,
		problems: problems, hold: !slices.Contains(args, "-"), began: time.Now(), drawn: time.Now(),
	}
	if !single && a.stderrTerminal {
		text.progressTo = a.stderr
	}
	c.report = text
	if o.json {
		c.report = newProbeJSON(a.stdout, o.request.Protocol, o.quiet, problems)
	}

	source := &targetSource{
		args: args, stdin: a.stdin, targets: make(chan *probeTarget),
		resolve: func(ctx context.Context, host string) (netip.Addr, error) {
			return a.target(ctx, host, o.version.number(), o.request.Interface)
		},
	}
	sourceCtx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- source.run(sourceCtx) }()
	err = c.run(ctx, source.targets)
	if ctx.Err() == nil && err == nil {
		err = <-ended
	} // Otherwise it may be waiting for a line of standard input, which nothing can interrupt.
	if !o.json {
		if closing := text.closing(&c.totals); err == nil {
			err = closing
		} // else the same failed write, most likely
	}
	switch {
	case err != nil:
		return err
	case c.totals.started == 0 && ctx.Err() == nil:
		return errors.New("no hosts on standard input")
	case c.totals.silent > 0 || c.totals.started == 0:
		return errQuiet
	}
	return nil
}

// targetSource turns arguments and lines into targets.
type targetSource struct {
	args    []string
	stdin   io.Reader
	resolve func(context.Context, string) (netip.Addr, error)
	// targets is closed when there are no more.
	targets chan *probeTarget
}

// run sends every target, until ctx ends. Numeric addresses do not wait behind names.
func (s *targetSource) run(ctx context.Context) error {
	defer close(s.targets)
	names := make(chan *probeTarget)
	var resolvers sync.WaitGroup
	defer resolvers.Wait()
	defer close(names)
	for range probeResolvers {
		resolvers.Go(func() {
			for t := range names {
				t.addr, t.err = s.resolve(ctx, t.name)
				s.send(ctx, s.targets, t)
			}
		})
	}
	number := 0
	add := func(host string) bool {
		number++
		t := &probeTarget{name: host, number: number}
		if _, err := netip.ParseAddr(host); err != nil {
			return s.send(ctx, names, t)
		}
		t.addr, t.err = s.resolve(ctx, host) // checks the IP version
		return s.send(ctx, s.targets, t)
	}
	for _, arg := range s.args {
		if arg != "-" {
			if !add(arg) {
				return ctx.Err()
			}
			continue
		}
		lines := bufio.NewScanner(s.stdin)
		lines.Buffer(nil, probeMaxLine)
		line := 0
		for lines.Scan() {
			line++
			host, _, _ := strings.Cut(lines.Text(), "#")
			if host = strings.TrimSpace(host); host != "" && !add(host) {
				return ctx.Err()
			}
		}
		if err := lines.Err(); err != nil {
			return fmt.Errorf("read hosts from standard input, line %d: %w", line+1, err)
		}
	}
	return nil
}

func (s *targetSource) send(ctx context.Context, ch chan<- *probeTarget, t *probeTarget) bool {
	select {
	case ch <- t:
		return true
	case <-ctx.Done():
		return false
	}
}
