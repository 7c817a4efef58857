// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/seed5728abee/fathom/nat"
	"github.com/seed5728abee/fathom/swarm"
)

func newSwarmNodeCommand(a *app) *cobra.Command {
	o := swarmOptions{listen: swarmAddress(net.JoinHostPort("", "49610"))}
	var control, metrics string
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Be a member of a swarm",
		Long: `Be a member of a swarm until told to end: find one's place, help others to find
theirs, carry what they send to each other. The first member of a swarm joins
nobody.

With --control stdio a program drives the member: commands come as JSON lines on
standard input, answers and events go to standard output. The reference has them
all. End of input and SIGTERM both give back the port mapping, leave the swarm
in good order, and end with code 0.`,
		Example: `  fathom swarm node --listen 192.0.2.1:49610 --metrics 127.0.0.1:9110
  fathom swarm node --join 192.0.2.1:49610 --port-mapping auto
  echo '{"seq":1,"op":"state"}' | fathom swarm node --listen 127.0.0.1:0 --control stdio`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if control != "" && control != "stdio" {
				return usagef("--control %q: want stdio", control)
			}
			if _, _, err := net.SplitHostPort(metrics); err != nil && metrics != "" {
				return usagef("--metrics %q: want host:port", metrics)
			}
			return a.runSwarmNode(cmd, &o, control != "", metrics)
		},
	}
	f := cmd.Flags()
	f.Var(&o.listen, "listen", "address to be reached at; no host means all addresses, port 0 any free port")
	f.Var(&o.identity, "identity", "address that others know this member by, where it is another one: a port forwarded by hand")
	f.Var(&o.join, "join", "join the swarm that the member at this address is in; several are tried in turn, until one lets us in")
	f.Var(&o.bootstrap, "bootstrap", "member to come back through when all others are gone, and to look for other parts of the swarm at; may be given several times")
	o.registerMapping(f, nat.Off)
	o.registerTrust(f)
	f.StringVar(&o.name, "name", "", "publish this `name` in the swarm, so that others can send to it")
	f.BoolVar(&o.noForwarding, "no-forwarding", false, "carry no circuits for members that cannot reach each other")
	f.StringVar(&control, "control", "", "`stdio`: take commands from standard input, and write answers and events to standard output")
	f.StringVar(&metrics, "metrics", "", "serve Prometheus metrics, /healthz and /readyz on this `host:port`")
	return cmd
}

func (a *app) runSwarmNode(cmd *cobra.Command, o *swarmOptions, control bool, metrics string) error {
	ctx := cmd.Context()
	if !control && a.level.Level() == slog.LevelWarn {
		a.level.Set(slog.LevelInfo)
	}
	options, err := o.finish(ctx, cmd, a.log)
	if err != nil {
		return err
	}
	var out *lineWriter
	if control {
		out = newLineWriter(a.stdout)
		options.Hooks.Mapping = func(e nat.Event) { mappingEvents(out, e) }
	}
	err = a.swarmNode(ctx, o, options, out, metrics)
	if control {
		err = errors.Join(err, out.close())
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil // told to end while it began
	}
	return err
}

// swarmNode runs a member until ctx ends, or with out by commands.
func (a *app) swarmNode(ctx context.Context, o *swarmOptions, options swarm.Options, out *lineWriter, metrics string) error {
	peer, err := bindSwarmPeer(ctx, options, string(o.listen))
	if err != nil {
		return err
	}
	defer peer.Close()
	registry := prometheus.NewRegistry()
	if err := registry.Register(peer.Collector()); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	ready := func() bool { return len(o.join) == 0 || peer.State().Connected }
	if err := serveHealth(ctx, group, metrics, registry, ready); err != nil {
		return err
	}
	tried := make(chan struct{})
	group.Go(func() error {
		a.keepJoining(ctx, peer, o.join, tried)
		return nil
	})
	if out == nil {
		a.log.Info("listening", "addr", peer.Addr(), "id", peer.ID().String())
		group.Go(func() error {
			a.discard(ctx, peer)
			return nil
		})
		<-ctx.Done()
		cancel()
		return errors.Join(peer.Close(), group.Wait())
	}
	engine := newSwarmControl(peer, out)
	if len(o.join) == 0 {
		engine.ready() // before any answer
	} else {
		group.Go(func() error {
			select {
			case <-tried:
				engine.ready()
			case <-ctx.Done():
			}
			return nil
		})
	}
	group.Go(func() error {
		defer cancel()
		return engine.run(ctx, a.stdin)
	})
	return group.Wait()
}

// discard fetches what is sent to a member that has no program behind it: left in the queue it would take up memory, and
// senders would be told that it is full.
func (a *app) discard(ctx context.Context, peer swarmPeer) {
	for {
		m, err := peer.Recv(ctx)
		if err != nil {
			return
		}
		a.log.Debug("message", "from", memberName(m.From), "bytes", len(m.Data), "broadcast", m.Broadcast)
	}
}

// How long to wait between attempts to get into a swarm: short at first, as members often start together.
const (
	swarmJoinFirst = 250 * time.Millisecond
	swarmJoinMost  = 15 * time.Second
)

// keepJoining gets the peer into the swarm, trying until ctx ends. It closes tried after the first attempt.
func (a *app) keepJoining(ctx context.Context, peer swarmPeer, entries []string, tried chan<- struct{}) {
	if len(entries) == 0 {
		close(tried)
		return
	}
	for delay := swarmJoinFirst; ; delay = min(2*delay, swarmJoinMost) {
		attempt, cancel := context.WithTimeout(ctx, swarmTimeout)
		err := peer.Connect(attempt, entries...)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if tried != nil {
			close(tried)
			tried = nil
		}
		switch {
		case err == nil:
			a.log.Info("joined", "addr", peer.Self().Addr, "id", peer.Self().ID.String())
			return
		case errors.Is(err, swarm.ErrConnected): // by a command, meanwhile
			return
		case errors.Is(err, net.ErrClosed):
			return
		}
		a.log.Warn("cannot join", "error", err, "retry_in", delay)
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
	}
}
