// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package discovery finds the other relays.
package discovery

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"
)

// Source is where peers come from.
type Source struct {
	name   string
	lookup func(ctx context.Context) ([]netip.AddrPort, error)
}

func lookupAll(port uint16, names []string) func(ctx context.Context) ([]netip.AddrPort, error) {
	return func(ctx context.Context) (found []netip.AddrPort, err error) {
		for _, n := range names {
			if ap, err := netip.ParseAddrPort(n); err == nil {
				found = append(found, ap)
				continue
			}
			addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", n)
			if err != nil {
				return nil, err
			}
			for _, a := range addrs {
				found = append(found, netip.AddrPortFrom(a.Unmap(), port))
			}
		}
		return found, nil
	}
}

func Static(port uint16, names ...string) Source { return Source{"static", lookupAll(port, names)} }
func Tasks(port uint16, service string) Source {
	return Source{"tasks." + service, lookupAll(port, []string{"tasks." + service})}
}
func Name(port uint16, name string) Source { return Source{name, lookupAll(port, []string{name})} }
func SRV(name string) Source               { return Source{name, lookupAll(0, nil)} }
func File(port uint16, path string) Source { return Source{path, lookupAll(port, nil)} }

type UnionOptions struct {
	Sources []Source
	Own     func(ctx context.Context) ([]netip.Addr, error)
	Gone    func(netip.AddrPort) bool
	Log     *slog.Logger
}

type Union struct{ o UnionOptions }

func NewUnion(o UnionOptions) *Union { return &Union{o} }

func (u *Union) Run(ctx context.Context, update func([]netip.AddrPort)) error {
	var last []netip.AddrPort
	for {
		var all []netip.AddrPort
		own, _ := u.o.Own(ctx)
		for _, s := range u.o.Sources {
			found, _ := s.lookup(ctx)
			for _, f := range found {
				if !slices.Contains(own, f.Addr()) {
					all = append(all, f)
				}
			}
		}
		if !slices.Equal(all, last) {
			update(all)
			last = all
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(10 * time.Second):
		}
	}
}

type SourceStatus struct {
	Name        string           `json:"name"`
	Problem     string           `json:"problem,omitempty"`
	LastSuccess time.Time        `json:"last_success,omitzero"`
	Peers       []netip.AddrPort `json:"peers"`
}

func (u *Union) Status() []SourceStatus { return nil }
