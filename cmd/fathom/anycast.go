// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/seed5728abee/fathom/anycast/client"
	"github.com/seed5728abee/fathom/anycast/enroll"
)

func newAnycastCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "anycast",
		Short: "Measure an anycast network from its sites",
		Long: `Measure an anycast network from its own sites: which site hears the answers of
which networks, and of which routers.

One controller, and an agent at each site. An agent sends probes from the
shared address; the answers come home at whichever site routing chooses, and
the controller puts them together.

A start, on a host that all sites reach:

  fathom anycast controller --listen :50051
  fathom anycast enroll agent fra1 --address CONTROLLER:50051

and at the site, with the line that this printed:

  fathom anycast join 'fathom-join:...'
  fathom anycast agent --source 192.0.2.1

People join in the same way, as "operator NAME" or "viewer NAME". Without
certificates, as Voltadomar's programs work: --insecure everywhere.`,
		Example: `  fathom anycast sites
  fathom anycast trace fra1 example.net
  fathom anycast catchment hitlist.txt
  fathom anycast compare BEFORE AFTER`,
	}
	for _, g := range []struct {
		id, title string
		commands  []*cobra.Command
	}{
		{"measure", "Measure:", []*cobra.Command{
			newAnycastTraceCommand(a), newAnycastCatchmentCommand(a), newAnycastLatencyCommand(a),
			newAnycastFlippingCommand(a), newAnycastWatchCommand(a), newAnycastRequestCommand(a),
		}},
		{"results", "See and manage measurements:", []*cobra.Command{
			newAnycastListCommand(a), newAnycastShowCommand(a), newAnycastCompareCommand(a), newAnycastExportCommand(a),
			newAnycastCancelCommand(a), newAnycastDeleteCommand(a), newAnycastSitesCommand(a),
		}},
		{"fleet", "Run a fleet:", []*cobra.Command{
			newAnycastControllerCommand(a), newAnycastAgentCommand(a),
			newAnycastEnrollCommand(a), newAnycastJoinCommand(a), newAnycastMembersCommand(a), newAnycastRevokeCommand(a),
		}},
	} {
		cmd.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, sub := range g.commands {
			sub.GroupID = g.id
			cmd.AddCommand(sub)
		}
	}
	return cmd
}

// anycastStateDir is where a part of the anycast commands keeps its files unless told otherwise.
func (a *app) anycastStateDir(part string) string {
	base := "/var/lib"
	if os.Geteuid() != 0 {
		if dir, ok := a.lookupEnv("XDG_STATE_HOME"); ok && filepath.IsAbs(dir) {
			base = dir
		} else if home, err := os.UserHomeDir(); err == nil {
			base = filepath.Join(home, ".local", "state")
		}
	}
	return filepath.Join(base, "fathom", "anycast", part)
}

// anycastLink is how to reach a controller.
type anycastLink struct {
	controller  string
	credentials string
	insecure    bool
	warned      bool
}

// defaultController is where a controller without certificates is looked for, as the original's clients do.
const defaultController = "localhost:50051"

func (l *anycastLink) register(a *app, cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&l.controller, "controller", "c", "", "the controller's `host:port` (default: the one that was joined; with --insecure "+defaultController+")")
	f.StringVar(&l.credentials, "credentials", "", "`directory` of the certificate that join made (default "+a.anycastStateDir("credentials")+")")
	f.BoolVar(&l.insecure, "insecure", false, "connect in cleartext, without proof of who is who")
	cmd.MarkFlagsMutuallyExclusive("credentials", "insecure")
}

// options gives the address and how to connect to it.
func (l *anycastLink) options(a *app) (string, client.Options, error) {
	if l.insecure {
		if !l.warned {
			l.warned = true
			fmt.Fprintln(a.stderr, "Cleartext connection: anybody on the way can read and change what is said.")
		}
		address := l.controller
		if address == "" {
			address = defaultController
		}
		return withPort(address), client.Options{Insecure: true}, nil
	}
	creds, err := a.loadCredentials(l.credentials)
	if err != nil {
		return "", client.Options{}, err
	}
	address := l.controller
	if address == "" {
		address = creds.Controller()
	}
	return withPort(address), client.Options{TLS: creds.ClientTLS()}, nil
}

// withPort adds the port that controllers have unless told otherwise.
func withPort(address string) string {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return net.JoinHostPort(address, "50051")
	}
	return address
}

func (a *app) loadCredentials(dir string) (*enroll.Credentials, error) {
	if dir == "" {
		dir = a.anycastStateDir("credentials")
	}
	creds, err := enroll.Load(dir)
	if errors.Is(err, enroll.ErrNotEnrolled) || errors.Is(err, enroll.ErrExpired) {
		return nil, withHint(err, "On the controller's host: fathom anycast enroll operator NAME (or viewer, or agent),\n"+
			"then here: fathom anycast join, with the line that it prints. Or do without certificates: --insecure.")
	}
	return creds, err
}

// connectTime is how long a connection to the controller may take.
const connectTime = 10 * time.Second

// connect connects to the controller.
func (l *anycastLink) connect(ctx context.Context, a *app) (*client.Client, error) {
	address, opts, err := l.options(a)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, connectTime, fmt.Errorf("no answer within %v", connectTime))
	defer cancel()
	c, err := client.Dial(ctx, address, opts)
	return c, l.explain(err)
}

// explain adds to an error of a call what to do about it.
func (l *anycastLink) explain(err error) error {
	if err == nil {
		return nil
	}
	err = enroll.Explain(err)
	switch {
	case errors.Is(err, enroll.ErrRevoked), errors.Is(err, enroll.ErrExpired), errors.Is(err, enroll.ErrUntrusted):
		return withHint(err, "Ask for a new token (fathom anycast enroll, on the controller's host) and join again.")
	case errors.Is(err, client.ErrUnavailable) && l.insecure:
		return withHint(err, "Is the controller there, and was it started with --insecure?")
	case errors.Is(err, client.ErrUnavailable):
		return withHint(err, "Is the controller there? `fathom anycast controller` starts one.")
	case errors.Is(err, client.ErrDenied) && l.insecure:
		return withHint(err, "The controller wants certificates: join it (fathom anycast join --help), and leave --insecure out.")
	case errors.Is(err, client.ErrUnsupported):
		return withHint(err, "Only `fathom anycast request` works with Voltadomar's controllers.")
	}
	return err
}
