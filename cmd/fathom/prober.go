// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net"
	"net/netip"

	"github.com/seed5728abee/fathom/probe"
)

// realProber is probe.Prober as the commands use it.
type realProber struct{ *probe.Prober }

func (p realProber) start(req probe.Request, done func(probe.Result)) error {
	_, err := p.Start(req, done)
	return err
}

func newRealProber(o probe.Options) (prober, error) {
	p, err := probe.New(o)
	if err != nil {
		return nil, err
	}
	return realProber{p}, nil
}

func resolveHost(ctx context.Context, host string, version int) (netip.Addr, error) {
	return probe.Resolve(ctx, net.DefaultResolver, host, version)
}
