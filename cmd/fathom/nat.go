// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"github.com/seed5728abee/fathom/nat"
)

// maxNATTimeout bounds the search for a gateway, which is next door.
const maxNATTimeout = time.Minute

func newNATCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "nat",
		Short: "Open ports of this host at its router",
		Long: `Open ports of this host at the router that stands between it and the Internet, by
PCP, NAT-PMP or UPnP, whichever the router speaks, and show what it says.`,
		Example: `  fathom nat status
  fathom nat map 49610
  fathom nat map 8080 -- python3 -m http.server 8080`,
	}
	cmd.AddCommand(newNATStatusCommand(a), newNATMapCommand(a))
	return cmd
}

// natOptions are the options of all commands that talk to the gateway.
type natOptions struct {
	gateway addrValue
	timeout time.Duration
}

func (o *natOptions) register(cmd *cobra.Command) {
	cmd.Flags().Var(&o.gateway, "gateway", "the router to ask (default: that of the default route)")
	durationVarP(cmd.Flags(), &o.timeout, "timeout", "w", nat.DefaultTimeout, "how long to wait for the router's answers")
}

// options gives what package nat takes.
func (o *natOptions) options(a *app) (nat.Options, error) {
	opts := a.nat
	opts.Log = a.log
	opts.Timeout = o.timeout
	if o.timeout <= 0 || o.timeout > maxNATTimeout {
		return opts, usagef("--timeout %s: want more than 0 and at most %s", o.timeout, maxNATTimeout)
	}
	if gateway := netip.Addr(o.gateway); gateway.IsValid() {
		if !gateway.Is4() {
			return opts, usagef("--gateway %s: want an IPv4 address", gateway)
		}
		opts.Gateway = gateway
	}
	return opts, nil
}

// natHint adds to an error of package nat what the user can do about it.
func natHint(err error) error {
	switch {
	case errors.Is(err, nat.ErrDoubleNAT):
		return withHint(err, doubleNATHint)
	case errors.Is(err, nat.ErrNoGateway):
		return withHint(err, "Turn on UPnP, NAT-PMP or PCP in the router's settings, or forward the port there by hand.\n"+
			"If the router is not at the default route, name it with --gateway.")
	case errors.Is(err, nat.ErrPortTaken):
		return withHint(err, "'fathom nat status' shows who has which port, if the router tells. Ask for others with --external-port.")
	case errors.Is(err, nat.ErrRefused):
		return withHint(err, "The router's settings say what it allows: some let hosts map only ports from 1024, or nothing until that is turned on.")
	}
	return err
}

const doubleNATHint = `Ports that this router opens cannot be reached from the Internet. Either let the outer router forward to
this one, or make one of them a bridge; if the outer one is the provider's, ask for a public address.
Programs that can do so reach each other all the same, by hole punching or over a relay.`
