// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package volta

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// ErrNoIPv4 reports a destination without an IPv4 address. The originals measure over IPv4 only.
var ErrNoIPv4 = errors.New("no IPv4 address")

// Resolver turns names into addresses and routers' addresses into names. It remembers answers, asks
// once for what several want at once, and lets no server take longer than Timeout: a dead one costs a
// request that, once. A lookup goes on when who asked for it has no more time, for the rest of its Timeout, so that a slow
// server's answer is there for the next one. The zero value is ready to use, by any number of goroutines. The fields are not
// changed after that.
type Resolver struct {
	// DNS does the lookups. Nil means net.DefaultResolver.
	DNS *net.Resolver
	// Timeout bounds each lookup. 0 means 1 s.
	Timeout time.Duration
	// Parallel bounds the lookups at one time; others wait their turn. 0 means 64.
	Parallel int
	// TTL is how long an answer is remembered, NegativeTTL how long it is that there was none. 0 means
	// 5 minutes and 30 s.
	TTL, NegativeTTL time.Duration
	// Size bounds the answers remembered of each kind. 0 means 16384.
	Size int

	once  sync.Once
	slots chan struct{}
	names lookups[netip.Addr, string]
	addrs lookups[string, netip.Addr]
}

func (r *Resolver) setup() {
	r.once.Do(func() { r.slots = make(chan struct{}, cmp.Or(r.Parallel, 64)) })
}

func (r *Resolver) dns() *net.Resolver { return cmp.Or(r.DNS, net.DefaultResolver) }

// ResolveIP gives the first IPv4 address of a host, which may also be written as an address. The error is a
// *ResolveError; ErrNoIPv4 in it says that the host has none.
func (r *Resolver) ResolveIP(ctx context.Context, host string) (netip.Addr, error) {
	r.setup()
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr = addr.Unmap(); !addr.Is4() {
			return netip.Addr{}, &ResolveError{Name: host, Err: ErrNoIPv4}
		}
		return addr, nil
	}
	addr, err := r.addrs.get(ctx, r, host, func(ctx context.Context) (netip.Addr, error) {
		found, err := r.dns().LookupNetIP(ctx, "ip4", host)
		if err != nil {
			return netip.Addr{}, err
		}
		if len(found) == 0 {
			return netip.Addr{}, ErrNoIPv4
		}
		return found[0].Unmap(), nil
	})
	if err != nil {
		return netip.Addr{}, &ResolveError{Name: host, Err: err}
	}
	return addr, nil
}

// ResolveHostname gives the primary reverse name of an address, without a dot at the end, or the
// address as text when it has none, or none that is a host's, or none is known in time.
func (r *Resolver) ResolveHostname(ctx context.Context, addr netip.Addr) string {
	r.setup()
	name, err := r.names.get(ctx, r, addr, func(ctx context.Context) (string, error) {
		found, err := r.dns().LookupAddr(ctx, addr.String())
		if err != nil {
			return "", err
		}
		if len(found) == 0 || !isHostname(found[0]) {
			return "", nil
		}
		return strings.TrimSuffix(found[0], "."), nil
	})
	if err != nil || name == "" {
		return addr.String()
	}
	return name
}

// ResolveHostnames is ResolveHostname for many at once. When ctx ends, those that are not known yet are
// their addresses.
func (r *Resolver) ResolveHostnames(ctx context.Context, addrs []netip.Addr) map[netip.Addr]string {
	names := make(map[netip.Addr]string, len(addrs))
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, addr := range addrs {
		// Routers near a site are on every path: most names are known, and need no goroutine.
		if name, known := r.names.remembered(addr); known {
			if name == "" {
				name = addr.String()
			}
			mu.Lock()
			names[addr] = name
			mu.Unlock()
			continue
		}
		wg.Go(func() {
			name := r.ResolveHostname(ctx, addr)
			mu.Lock()
			defer mu.Unlock()
			names[addr] = name
		})
	}
	wg.Wait()
	return names
}

// namesMargin is how long before the asker's deadline NameResult has to be done.
const namesMargin = answerMargin / 2

// NameResult gives the routers of a result their names, as far as they can be had until 100 ms before
// ctx's deadline: Traceroute.Run leaves as much time for that, and for the answer to get there.
func (r *Resolver) NameResult(ctx context.Context, result *Result) {
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-namesMargin))
		defer cancel()
	}
	names := r.ResolveHostnames(ctx, result.Gateways())
	for _, hop := range result.Hops {
		for i := range hop.Probes {
			hop.Probes[i].Name = names[hop.Probes[i].Gateway]
		}
	}
}

// isHostname keeps what a stranger's server made up off terminals.
func isHostname(name string) bool {
	return !strings.ContainsFunc(name, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '-' && r != '_' && r != '.'
	})
}

// lookups is a cache of lookups of one kind, those under way among them.
type lookups[K comparable, V any] struct {
	mu    sync.Mutex
	known map[K]*lookup[V]
}

// lookup is one question. Its own goroutine writes the fields below ready, then closes ready.
type lookup[V any] struct {
	ready   chan struct{}
	value   V
	err     error
	expires time.Time // zero: there was no turn for it, and it learnt nothing
}

// stale tells that the lookup is no use to anybody who has not begun to wait for it.
func (l *lookup[V]) stale(now time.Time) bool {
	select {
	case <-l.ready:
		return !now.Before(l.expires)
	default:
		return false
	}
}

// get gives what is remembered, or has it looked up.
func (c *lookups[K, V]) get(ctx context.Context, r *Resolver, key K, ask func(context.Context) (V, error)) (V, error) {
	l, mine := c.enter(key, cmp.Or(r.Size, 16384))
	if mine {
		// It ends by itself, after Timeout at the latest.
		go func() {
			l.value, l.expires, l.err = lookUp(context.WithoutCancel(ctx), r, ask)
			close(l.ready)
		}()
	}
	select {
	case <-l.ready:
		return l.value, l.err
	case <-ctx.Done():
		var none V
		return none, ctx.Err()
	}
}

// remembered gives what is known of a key; for one that is known not to have a value, the zero value.
func (c *lookups[K, V]) remembered(key K) (value V, known bool) {
	c.mu.Lock()
	l := c.known[key]
	c.mu.Unlock()
	if l == nil {
		return value, false
	}
	select {
	case <-l.ready:
		return l.value, time.Now().Before(l.expires)
	default:
		return value, false
	}
}

// enter finds the lookup of a key, or begins one, which is then the caller's to do.
func (c *lookups[K, V]) enter(key K, size int) (l *lookup[V], mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if l := c.known[key]; l != nil && !l.stale(now) {
		return l, false
	}
	if len(c.known) >= size {
		c.shrinkLocked(now, size)
	}
	if c.known == nil {
		c.known = map[K]*lookup[V]{}
	}
	l = &lookup[V]{ready: make(chan struct{})}
	c.known[key] = l
	return l, true
}

// shrinkLocked makes room: what is stale goes, and if that is not a quarter of all, any others until it is.
func (c *lookups[K, V]) shrinkLocked(now time.Time, size int) {
	for key, l := range c.known {
		if l.stale(now) {
			delete(c.known, key)
		}
	}
	for key := range c.known {
		if len(c.known) <= size-(size+3)/4 {
			break
		}
		delete(c.known, key)
	}
}

// lookUp asks, within the resolver's limits, and says how long the answer is worth remembering.
func lookUp[V any](ctx context.Context, r *Resolver, ask func(context.Context) (V, error)) (value V, expires time.Time, err error) {
	limited, cancel := context.WithTimeout(ctx, cmp.Or(r.Timeout, time.Second))
	defer cancel()
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-limited.Done():
		return value, time.Time{}, limited.Err()
	}
	value, err = ask(limited)
	if err != nil {
		return value, time.Now().Add(cmp.Or(r.NegativeTTL, 30*time.Second)), err
	}
	return value, time.Now().Add(cmp.Or(r.TTL, 5*time.Minute)), nil
}
