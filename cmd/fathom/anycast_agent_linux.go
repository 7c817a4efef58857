// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/seed5728abee/fathom/anycast/agent"
	"github.com/seed5728abee/fathom/anycast/enroll"
	"github.com/seed5728abee/fathom/probe"
)

type agentOptions struct {
	id               string
	controllers      []string
	credentials      []string
	insecure         bool
	anycast, unicast addrList
	dialect          string
	rate             float64
	sendEth          bool
	spool            int
	metrics          string
}

func newAnycastAgentCommand(a *app) *cobra.Command {
	var o agentOptions
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the agent of a site",
		Long: `Run what sends probes from a site of an anycast network, and hears answers
there. The agent connects to its controller, so it can sit behind a NAT, and it
comes back by itself after anything that happens to the connection.

Raw sockets need CAP_NET_RAW, and CAP_NET_ADMIN for receive buffers that take
bursts; all privileges are dropped once the sockets are open.

Routers' errors about other sites' probes belong to no connection of this host,
so a stateful firewall drops them as invalid: accept ICMP types 0, 3 and 11, or
ICMPv6 types 1, 2, 3 and 129, before that.

Several controllers: give --credentials, or --controller with --insecure,
several times. With --insecure the controller may be one of Voltadomar's.`,
		Example: `  fathom anycast agent --source 192.0.2.1
  fathom anycast agent -i fra1 -c anycast.example.net:50051 --insecure`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runAgent(cmd.Context(), &o) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.id, "id", "i", "", "the site's `name` (default: the one in the certificate; with --insecure the host's name)")
	f.StringArrayVarP(&o.controllers, "controller", "c", nil, "a controller's `host:port` (default: the one that was joined; with --insecure "+defaultController+")")
	f.StringArrayVar(&o.credentials, "credentials", nil, "`directory` of the certificate that join made (default "+a.anycastStateDir("credentials")+")")
	f.BoolVar(&o.insecure, "insecure", false, "connect in cleartext, without proof of who is who")
	cmd.MarkFlagsMutuallyExclusive("credentials", "insecure")
	f.Var(&o.anycast, "source", "anycast address to send from; may be given several times (default: what routing chooses)")
	f.Var(&o.unicast, "unicast", "address of the site's own (default: that of the link to the controller)")
	f.StringVar(&o.dialect, "dialect", "auto", "what to speak with the controller: auto, native, seed or go")
	f.Float64Var(&o.rate, "rate", 0, "send at most so many `probes` per second; 0 for no limit")
	f.BoolVar(&o.sendEth, "send-eth", false, "send the probes of traces as Ethernet frames, past the firewall: faster")
	f.IntVar(&o.spool, "spool", agent.DefaultSpool, "keep so many `bytes` of answers while the controller is away")
	f.StringVar(&o.metrics, "metrics", "", "serve Prometheus metrics on this `host:port`")
	return cmd
}

// links gives the links to the controllers, and the credentials to keep fresh, by address.
func (o *agentOptions) links(a *app) (links []agent.Link, fresh map[string]*enroll.Credentials, err error) {
	dialect, err := agent.ParseDialect(strings.ToLower(o.dialect))
	if err != nil {
		return nil, nil, usagef("--dialect %s: want auto, native, seed or go", o.dialect)
	}
	if o.insecure {
		a.log.Warn("cleartext connection: anybody on the way can read and change what is said")
		if len(o.controllers) == 0 {
			o.controllers = []string{defaultController}
		}
		for _, c := range o.controllers {
			links = append(links, agent.Link{Address: withPort(c), Dialect: dialect})
		}
		if o.id == "" {
			if o.id, err = os.Hostname(); err != nil {
				return nil, nil, usagef("name the site with --id: %w", err)
			}
		}
		return links, nil, nil
	}
	if len(o.credentials) == 0 {
		o.credentials = []string{a.anycastStateDir("credentials")}
	}
	if len(o.controllers) > len(o.credentials) {
		return nil, nil, usagef("%d controllers, but credentials for %d: give --credentials once for each", len(o.controllers), len(o.credentials))
	}
	fresh = make(map[string]*enroll.Credentials)
	for i, dir := range o.credentials {
		creds, err := a.loadCredentials(dir)
		if err != nil {
			return nil, nil, err
		}
		who := creds.Identity()
		switch {
		case who.Role != enroll.Agent:
			return nil, nil, withHint(fmt.Errorf("the certificate in %s is for %s, not for an agent", dir, who),
				"On the controller's host: fathom anycast enroll agent NAME.")
		case o.id == "":
			o.id = who.Name
		case o.id != who.Name:
			return nil, nil, usagef("--id %s: the certificate in %s is for the site %s", o.id, dir, who.Name)
		}
		address := creds.Controller()
		if i < len(o.controllers) {
			address = o.controllers[i]
		}
		address = withPort(address)
		links = append(links, agent.Link{Address: address, TLS: creds.ClientTLS(), Dialect: dialect})
		fresh[address] = creds
	}
	return links, fresh, nil
}

func (a *app) runAgent(ctx context.Context, o *agentOptions) error {
	log := a.serverLog()
	links, fresh, err := o.links(a)
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	ag, err := agent.New(agent.Options{
		ID: o.id, Links: links, Anycast: o.anycast, Unicast: o.unicast, Rate: o.rate, SendFrames: o.sendEth, Spool: o.spool,
		Version: buildVersion().Version, Log: log, Metrics: registry,
	})
	switch {
	case errors.Is(err, agent.ErrOptions):
		return usagef("%w", err)
	case err != nil:
		return err
	}
	defer ag.Close()
	if err := probe.DropPrivileges(false); err != nil {
		return fmt.Errorf("drop privileges: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	if err := serveMetrics(ctx, group, o.metrics, registry); err != nil {
		return err
	}
	for address, creds := range fresh {
		group.Go(func() error { return creds.KeepFresh(ctx, renewOver(address, creds)) })
	}
	group.Go(func() error { return ag.Run(ctx) })
	return group.Wait()
}
