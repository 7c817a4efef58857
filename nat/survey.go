// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// Report is what a survey has found.
type Report struct {
	// Gateway is the default gateway, and Local this host's address towards it.
	Gateway, Local netip.Addr
	// Answers are those to each method, the preferred one first.
	Answers []Answer
	// External is the gateway's external address; invalid if it does not tell.
	External netip.Addr
	// DoubleNAT: the gateway has no public address.
	DoubleNAT bool
	// Leases are what the gateway forwards, to any host, as far as it tells: UPnP only, and at most 256.
	Leases []Lease
}

// Lease is a mapping that a gateway has, for this host or another one.
type Lease struct {
	Protocol     Protocol
	ExternalPort uint16
	Internal     netip.AddrPort
	Description  string
	// Remaining is the rest of its lifetime; 0 if it has no end.
	Remaining time.Duration
}

// listTimeout is for the list of leases, whose entries are asked for one by one.
const listTimeout = 3 * time.Second

// Survey asks the gateway by every method and waits for all of them. It maps nothing. With [ErrNoGateway] the report says as much as is
// known.
func Survey(ctx context.Context, o Options) (Report, error) {
	if err := o.complete(); err != nil {
		return Report{}, err
	}
	s, err := find(ctx, &o, true, func() {})
	if s == nil {
		return Report{}, err
	}
	defer s.close()
	r := Report{Gateway: s.gateway, Local: s.local, Answers: s.answers}
	for _, a := range s.answers {
		if !r.External.IsValid() && a.External.IsValid() && !a.External.IsUnspecified() {
			r.External = a.External
		}
		r.DoubleNAT = r.DoubleNAT || errors.Is(a.Err, ErrDoubleNAT)
	}
	r.DoubleNAT = r.DoubleNAT || r.External.IsValid() && !IsPublic(r.External)
	for _, d := range s.doors {
		if u, ok := d.(*upnpDoor); ok {
			listing, cancel := context.WithTimeout(ctx, listTimeout)
			leases, listErr := u.leases(listing)
			cancel()
			if listErr != nil {
				o.Log.Debug("list the gateway's mappings", "error", listErr)
			}
			r.Leases = leases
		}
	}
	return r, err
}
