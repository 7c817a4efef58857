// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/seed5728abee/fathom/probe"
)

// prober is the part of probe.Prober that the commands need. It is also a trace.Via.
type prober interface {
	// start sends a probe. done is called once, on another goroutine, unless start fails.
	start(req probe.Request, done func(probe.Result)) error
	// Probe sends a probe and waits for its end.
	Probe(ctx context.Context, req probe.Request) (probe.Result, error)
	Features() probe.Features
	// Close ends the probes in flight with probe.ErrClosed, and waits for that.
	Close() error
}

// realProber is probe.Prober as the commands use it.
type realProber struct{ *probe.Prober }

func (p realProber) start(req probe.Request, done func(probe.Result)) error {
	_, err := p.Start(req, done)
	return err
}

// newRealProber opens a prober and then drops the privileges that opening it took. A routing mark
// needs one of them for each probe.
func newRealProber(o probe.Options, mark uint32) (prober, error) {
	p, err := probe.New(o)
	if err != nil {
		return nil, err
	}
	if err := probe.DropPrivileges(mark != 0); err != nil {
		p.Close()
		return nil, err
	}
	return realProber{p}, nil
}

// socketOptions are the options about the sockets that probes go through.
type socketOptions struct{ unprivileged, sendEth bool }

func (o *socketOptions) register(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.unprivileged, "unprivileged", false, "do without raw sockets, even if they are allowed")
	cmd.Flags().BoolVar(&o.sendEth, "send-eth", false, "send Ethernet frames, past the firewall: faster (Linux)")
	// A frame takes raw sockets, for the answers, and cannot carry a mark.
	cmd.MarkFlagsMutuallyExclusive("unprivileged", "send-eth")
	cmd.MarkFlagsMutuallyExclusive("mark", "send-eth")
}

// options are those of a prober.
func (o *socketOptions) options() probe.Options {
	options := probe.Options{SendFrames: o.sendEth}
	if o.unprivileged {
		options.Mode = probe.Unprivileged
	}
	return options
}

func resolveHost(ctx context.Context, host string, version int) (netip.Addr, error) {
	return probe.Resolve(ctx, net.DefaultResolver, host, version)
}

// target gives the address of a host. A link-local address of IPv6 says nothing without an interface
// that exists: its own zone, or the one that is named to send through.
func (a *app) target(ctx context.Context, host string, version int, through string) (netip.Addr, error) {
	addr, err := a.resolve(ctx, host, version)
	if err != nil {
		return netip.Addr{}, err
	}
	switch zone := addr.Zone(); {
	case zone != "":
		if _, err := net.InterfaceByName(zone); err != nil && !interfaceNumber(zone) {
			return netip.Addr{}, &probe.ResolveError{Host: host, Version: version, Err: noInterfaceError(zone)}
		}
	case addr.Is6() && (addr.IsLinkLocalUnicast() || addr.IsLinkLocalMulticast()) && through == "":
		return netip.Addr{}, &probe.ResolveError{
			Host: host, Version: version,
			Err: fmt.Errorf("a link-local address needs its interface: write %s%%INTERFACE", addr),
		}
	}
	return addr, nil
}

// interfaceNumber tells whether a zone is the number of an interface.
func interfaceNumber(zone string) bool {
	number, err := strconv.Atoi(zone)
	if err == nil {
		_, err = net.InterfaceByIndex(number)
	}
	return err == nil
}

// noInterfaceError names an interface that does not exist. It is probe.ErrNoInterface.
type noInterfaceError string

func (e noInterfaceError) Error() string   { return fmt.Sprintf("there is no interface %q", string(e)) }
func (noInterfaceError) Is(err error) bool { return err == probe.ErrNoInterface }
