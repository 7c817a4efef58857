// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/seed5728abee/fathom/nat"
	"github.com/seed5728abee/fathom/swarm"
)

func newSwarmRunCommand(a *app) *cobra.Command {
	var o swarmOptions
	r := swarmRunOptions{}
	cmd := &cobra.Command{
		Use:   "run SCRIPT",
		Short: "Run a script of sends, receives and broadcasts",
		Long: `Run a script as one member of a swarm, and leave. SCRIPT is a file, or - for
standard input. It has one command per line; blank lines and lines that begin
with # are skipped, and the first letter of a command is enough.

    WAIT [SECONDS]          until somebody else is in the swarm; -1 or nothing: for ever
    SEND HOST PORT DATA...  send the rest of the line
    BCAST DATA...           send it to everybody
    RECV [COUNT]            wait for so many messages (1) and print them: 1/2 -- HOST:PORT: DATA
    OPT duplicates=N        for the lines that follow: send by N more ways

The options are those of Cicada's program, and some more.`,
		Example: `  fathom swarm run --listen 127.0.0.1:49610 first.txt
  fathom swarm run -p 49611 --join 127.0.0.1:49610 second.txt`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("give one script, or - for standard input")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.runSwarmScript(cmd, &o, &r, args[0]) },
	}
	f := cmd.Flags()
	f.Var(&o.listen, "listen", "address to be reached at; in place of the next two")
	f.StringVar(&r.host, "interface", "", "`address` to be reached at (default: all of this machine)")
	f.Uint16VarP(&r.port, "port", "p", swarm.DefaultPort, "TCP `port` to be reached at")
	cmd.MarkFlagsMutuallyExclusive("listen", "interface")
	cmd.MarkFlagsMutuallyExclusive("listen", "port")
	f.Var(&o.identity, "identity", "address that others know this member by, where it is another one: a port forwarded by hand")
	f.Var(&o.join, "join", "join the swarm that the member at this address is in; several are tried in turn")
	durationVarP(f, &r.timeout, "timeout", "", swarmTimeout, "longest `time` for joining, and for one send or broadcast")
	o.registerMapping(f, nat.Auto)
	f.BoolVar(&r.noMapping, "no-port-mapping", false, "the same as --port-mapping off")
	cmd.MarkFlagsMutuallyExclusive("port-mapping", "no-port-mapping")
	f.IntVar(&r.attempts, "mapping-attempts", 5, "accepted for Cicada's sake: the `number` of free ports that are tried is the router's business")
	o.registerTrust(f)
	f.StringVar(&o.name, "name", "", "publish this `name` in the swarm, so that others can send to it")
	f.BoolVar(&o.noForwarding, "no-forwarding", false, "carry no circuits for members that cannot reach each other")
	f.BoolVar(&r.toStdout, "stdout", false, "write the log to standard output as well")
	f.BoolVarP(&r.debug, "debug", "d", false, "log everything")
	return cmd
}

type swarmRunOptions struct {
	host                       string
	port                       uint16
	timeout                    time.Duration
	noMapping, toStdout, debug bool
	attempts                   int
}

func (a *app) runSwarmScript(cmd *cobra.Command, o *swarmOptions, r *swarmRunOptions, script string) error {
	ctx := cmd.Context()
	if r.timeout <= 0 {
		return usagef("--timeout 0s: want more than 0")
	}
	if r.attempts < 1 {
		return usagef("--mapping-attempts %d: want 1 or more", r.attempts)
	}
	if r.debug {
		a.level.Set(slog.LevelDebug)
	}
	log := a.log
	if r.toStdout {
		log = slog.New(slog.NewMultiHandler(log.Handler(), slog.NewTextHandler(a.stdout, &slog.HandlerOptions{Level: &a.level})))
	}
	listen := string(o.listen)
	if listen == "" {
		listen = net.JoinHostPort(r.host, strconv.Itoa(int(r.port)))
	}
	if r.noMapping {
		o.mapping = swarmMapping(nat.Off)
	}
	options, err := o.finish(ctx, cmd, log)
	if err != nil {
		return err
	}
	steps, err := a.readSwarmScript(script)
	if err != nil {
		return err
	}
	peer, err := bindSwarmPeer(ctx, options, listen)
	if err != nil {
		return err
	}
	defer peer.Close()
	log.Info("listening", "addr", peer.Addr(), "id", peer.ID().String())
	if len(o.join) > 0 {
		joining, cancel := context.WithTimeout(ctx, r.timeout)
		defer cancel()
		if err := peer.Connect(joining, o.join...); err != nil {
			return err
		}
	}
	run := scriptRun{peer: peer, out: a.stdout, timeout: r.timeout, clean: a.stdoutTerminal}
	if err := run.all(ctx, script, steps); err != nil {
		return err
	}
	return peer.Close()
}

// readSwarmScript reads and checks a script.
func (a *app) readSwarmScript(name string) ([]scriptStep, error) {
	in := a.stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, swarmMaxScript+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	steps, err := parseSwarmScript(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return steps, nil
}

// scriptRun runs the steps of a script.
type scriptRun struct {
	peer       swarmPeer
	out        io.Writer
	timeout    time.Duration // of one send
	clean      bool          // out is a terminal, which must not obey what others send
	duplicates int
}

func (r *scriptRun) all(ctx context.Context, name string, steps []scriptStep) error {
	for _, step := range steps {
		if err := r.step(ctx, step); err != nil {
			return fmt.Errorf("%s: line %d: %w", name, step.line, err)
		}
	}
	return nil
}

func (r *scriptRun) step(ctx context.Context, s scriptStep) error {
	switch s.op {
	case scriptOpt:
		r.duplicates = s.number
		return nil
	case scriptWait:
		return r.wait(ctx, s.wait)
	case scriptRecv:
		return r.recv(ctx, s.number)
	default:
		ctx, cancel := context.WithTimeout(ctx, r.timeout)
		defer cancel()
		return r.send(ctx, s)
	}
}

func (r *scriptRun) send(ctx context.Context, s scriptStep) error {
	switch {
	case s.op == scriptBroadcast:
		return r.peer.Broadcast(ctx, s.data)
	case r.duplicates > 0:
		return r.peer.SendDisjoint(ctx, swarm.ToAddr(s.to), s.data, r.duplicates)
	}
	return r.peer.Send(ctx, swarm.ToAddr(s.to), s.data)
}

func (r *scriptRun) recv(ctx context.Context, count int) error {
	for i := range count {
		m, err := r.peer.Recv(ctx)
		if err != nil {
			return err
		}
		from := m.From.ID.String()
		if m.From.Addr.IsValid() {
			from = m.From.Addr.String()
		}
		data := string(m.Data)
		if r.clean {
			data = printable(data)
		}
		if _, err := fmt.Fprintf(r.out, "%d/%d -- %s: %s\n", i+1, count, from, data); err != nil {
			return err
		}
	}
	return nil
}

var errNobody = errors.New("nobody connected in time")

// scriptPoll is how often a script that waits looks for company.
const scriptPoll = 10 * time.Millisecond

// wait waits until there is another member; with a limit below 0, for ever.
func (r *scriptRun) wait(ctx context.Context, limit time.Duration) error {
	var late <-chan time.Time
	if limit >= 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		late = timer.C
	}
	tick := time.NewTicker(scriptPoll)
	defer tick.Stop()
	for !hasCompany(r.peer.State()) {
		select {
		case <-tick.C:
		case <-late:
			return errNobody
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// hasCompany reports whether the peer is not alone in its swarm: a link alone does not make a member.
func hasCompany(s swarm.State) bool {
	for _, list := range [][]swarm.Member{s.Successors, s.Predecessors, s.Leaves, s.Hosts} {
		for _, m := range list {
			if m.ID != s.Self.ID {
				return true
			}
		}
	}
	return false
}
