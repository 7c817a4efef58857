// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

const (
	// lookupEvery and lookupPause, after a failure, are what SnowSignal's users are used to, and what makes up for its
	// outages quickly.
	lookupEvery = 10 * time.Second
	lookupPause = 2 * time.Second
	// lookupTimeout is enough for a resolver that is asked in vain first: resolvers wait five seconds for one.
	lookupTimeout = 9 * time.Second
	// familyPatience is how much later than the addresses of one family those of the other may come. There are name services
	// that never answer for IPv6.
	familyPatience = time.Second
	// filePeriod is how often a file is read.
	filePeriod = 2 * time.Second
	// retention is for how long peers are kept that no answer names any more, because none names a peer.
	retention = 24 * time.Hour
)

// An answer is what a name service says about a host.
type answer struct {
	addrs []netip.Addr // sorted
	// failed tells, for IPv4 and IPv6, whether the question failed; otherwise what is not in addrs does not exist.
	failed [2]bool
	err    error // set when a question failed, and when there are no addresses
}

// unknown tells whether the answer says nothing about addresses of addr's family.
func (a answer) unknown(addr netip.Addr) bool {
	if addr.Is4() {
		return a.failed[0]
	}
	return a.failed[1]
}

// lookup asks for the addresses of a host: for each family on its own, because one question for both does not tell when
// half of the answer is missing.
func lookup(ctx context.Context, r *net.Resolver, host string) (a answer) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	type result struct {
		family int
		addrs  []netip.Addr
		err    error
	}
	results := make(chan result, 2)
	for family, network := range [2]string{"ip4", "ip6"} {
		go func() {
			addrs, err := r.LookupNetIP(ctx, network, host)
			results <- result{family, addrs, err}
		}()
	}
	var failure, missing error // one of two is enough: they say the same
	for range 2 {
		res := <-results
		switch {
		case res.err == nil:
		case notFound(res.err):
			missing = res.err
		default:
			a.failed[res.family] = true
			failure = res.err
		}
		for _, addr := range res.addrs[:min(len(res.addrs), maxAddresses)] {
			if addr = addr.Unmap(); usable(addr) {
				a.addrs = append(a.addrs, addr)
			}
		}
		if len(a.addrs) > 0 {
			defer time.AfterFunc(familyPatience, cancel).Stop()
		}
	}
	switch {
	case failure != nil:
		a.err = failure
	case len(a.addrs) > 0:
	case missing != nil:
		a.err = missing
	default:
		a.err = fmt.Errorf("lookup %s: no usable address", host)
	}
	slices.SortFunc(a.addrs, netip.Addr.Compare)
	a.addrs = slices.Compact(a.addrs)
	return a
}

// notFound tells whether an error of a resolver is a name service's word that there is no such name, or nothing of the kind
// that was asked for.
func notFound(err error) bool {
	// This one is about a host that has addresses, of the other family.
	if _, ok := errors.AsType[*net.AddrError](err); ok {
		return true
	}
	e, ok := errors.AsType[*net.DNSError](err)
	return ok && e.IsNotFound
}

// A sighting is an address of a host, and when an answer named it last.
type sighting struct {
	addr netip.Addr
	seen time.Time
}

// errAlone is about an answer that names nobody but this relay while there are others to remember.
var errAlone = errors.New("the answer names no relay but this one")

// digest makes what is known of a host after an answer from what was known before, for at most retention. own tells which addresses are this relay,
// gone which ones need not be kept. The error says why some of what is known is not from this answer, or why
// nothing is known.
func digest(before []sighting, a answer, now time.Time, retention time.Duration, own, gone func(netip.Addr) bool) (known []sighting, err error) {
	self := false
	for _, addr := range a.addrs {
		if own(addr) {
			self = true
		} else {
			known = append(known, sighting{addr, now})
		}
	}
	others := len(known)
	kept := false
	for _, s := range before {
		switch {
		case others > 0 && !a.unknown(s.addr): // what the answer does not name is no more
		case slices.ContainsFunc(known[:others], func(k sighting) bool { return k.addr == s.addr }):
		case own(s.addr), now.Sub(s.seen) >= retention, gone(s.addr):
		default:
			known, kept = append(known, s), true
		}
	}
	slices.SortFunc(known, func(x, y sighting) int { return x.addr.Compare(y.addr) })
	switch {
	case kept && a.err == nil:
		return known, errAlone
	case kept, others == 0 && !self:
		return known, a.err
	}
	// Half of the answer may be missing, but nobody misses it.
	return known, nil
}
