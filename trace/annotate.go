// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Annotation is what is known about an address beside the address. What is not known is zero.
type Annotation struct {
	// Name is the host name, without the final dot.
	Name string
	// ASN is the number of the autonomous system that announces the address, and ASName its name.
	ASN    uint32
	ASName string
	// Prefix is the announced network that has the address.
	Prefix netip.Prefix
	// Country is the two-letter code of the country that the registry or the data base gives.
	Country string
	// Registry is the one that allocated the network, and Allocated the day ("1998-09-25").
	Registry, Allocated string
}

// Source knows something about addresses.
type Source interface {
	// Annotate adds to a what the source knows about addr. What is set already stays. Not knowing
	// the address is no error. It is called from several goroutines at once, for ctx's time at most.
	Annotate(ctx context.Context, addr netip.Addr, a *Annotation) error
}

// Limits of an [Annotator].
const (
	annotateConcurrency = 16
	annotateTimeout     = 5 * time.Second // as long as a resolver waits for a server
	annotateMaxAge      = time.Hour
	annotateMaxCached   = 16384
)

// Annotator looks addresses up in its sources, one after the other, in the background. It
// remembers what they say for an hour. Its methods may be called from any goroutine.
type Annotator struct {
	sources []Source
	ctx     context.Context
	cancel  context.CancelFunc
	slots   chan struct{}
	wg      sync.WaitGroup

	mu    sync.Mutex // guards all following fields
	cache map[netip.Addr]*entry
	// closed tells that no more look-ups may begin.
	closed bool
}

// entry is an address in the cache.
type entry struct {
	since time.Time
	done  chan struct{} // closed when a is complete
	a     Annotation
}

// NewAnnotator makes an annotator. It must be closed.
func NewAnnotator(sources ...Source) *Annotator {
	ctx, cancel := context.WithCancel(context.Background())
	return &Annotator{
		sources: sources, ctx: ctx, cancel: cancel,
		slots: make(chan struct{}, annotateConcurrency), cache: make(map[netip.Addr]*entry),
	}
}

// Get gives what is known about addr now, and whether that is all. If it is not, looking it up goes on: ask again later.
// Get does not wait.
func (n *Annotator) Get(addr netip.Addr) (a Annotation, complete bool) {
	e := n.entry(addr)
	if e == nil {
		return Annotation{}, true
	}
	select {
	case <-e.done:
		return e.a, true
	default:
		return Annotation{}, false
	}
}

// Wait gives what is known about addr when the look-up is complete, or nothing when ctx ends before.
func (n *Annotator) Wait(ctx context.Context, addr netip.Addr) Annotation {
	e := n.entry(addr)
	if e == nil {
		return Annotation{}
	}
	select {
	case <-e.done:
		return e.a
	case <-ctx.Done():
		return Annotation{}
	}
}

// Close ends the look-ups and waits for them. After it, addresses that were not known are unknown.
func (n *Annotator) Close() {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.cancel()
	n.wg.Wait()
}

// entry gives the cache's entry for addr, after starting a look-up if need be. It is nil if there
// is nothing to know.
func (n *Annotator) entry(addr netip.Addr) *entry {
	if !addr.IsValid() || len(n.sources) == 0 {
		return nil
	}
	addr = addr.Unmap().WithZone("")
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.cache[addr]
	if e != nil && (n.closed || time.Since(e.since) < annotateMaxAge) {
		return e
	}
	if n.closed {
		return nil
	}
	if len(n.cache) >= annotateMaxCached {
		n.evictLocked()
	}
	e = &entry{since: time.Now(), done: make(chan struct{})}
	n.cache[addr] = e
	n.wg.Go(func() { n.find(addr, e) })
	return e
}

// evictLocked makes room for a quarter of the cache. Which addresses go does not matter much: a
// path has few, and those in use come back.
func (n *Annotator) evictLocked() {
	for addr, e := range n.cache {
		if len(n.cache) <= annotateMaxCached*3/4 {
			return
		}
		select {
		case <-e.done:
			delete(n.cache, addr)
		default:
		}
	}
}

func (n *Annotator) find(addr netip.Addr, e *entry) {
	defer close(e.done)
	select {
	case n.slots <- struct{}{}:
		defer func() { <-n.slots }()
	case <-n.ctx.Done():
		return
	}
	for _, s := range n.sources {
		ctx, cancel := context.WithTimeout(n.ctx, annotateTimeout)
		_ = s.Annotate(ctx, addr, &e.a) // what one source does not know, the next may
		cancel()
	}
}

// special are the networks that no registry gives to anybody, so that nothing outside knows them,
// beside those that netip knows: RFC 6890, RFC 6598, RFC 5737, RFC 3849, RFC 9637.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("100::/64"),
	netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("3fff::/20"),
}

// public tells whether an address means the same host everywhere.
func public(addr netip.Addr) bool {
	addr = addr.Unmap()
	if !addr.IsGlobalUnicast() || addr.IsPrivate() {
		return false
	}
	for _, p := range special {
		if p.Contains(addr) {
			return false
		}
	}
	return true
}

// Names is a [Source] of host names.
type Names struct {
	// Resolver is net.DefaultResolver unless set.
	Resolver *net.Resolver
	// AskPrivate lets the resolver ask name servers for private addresses too. Otherwise their
	// names come from the hosts file alone, and no server learns about them.
	AskPrivate bool
}

// hostsFile is a resolver that cannot reach any server.
var hostsFile = &net.Resolver{
	PreferGo: true,
	Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, net.UnknownNetworkError("name servers are not asked for private addresses")
	},
}

// Annotate is [Source]'s method. It sets Name.
func (s *Names) Annotate(ctx context.Context, addr netip.Addr, a *Annotation) error {
	if a.Name != "" {
		return nil
	}
	r := s.Resolver
	switch {
	case !s.AskPrivate && !public(addr):
		r = hostsFile
	case r == nil:
		r = net.DefaultResolver
	}
	names, err := r.LookupAddr(ctx, addr.String())
	if err != nil || len(names) == 0 {
		return ignoreNotFound(err)
	}
	a.Name = cleanText(strings.TrimSuffix(names[0], "."))
	return nil
}

// ignoreNotFound drops the error that says that a name does not exist.
func ignoreNotFound(err error) error {
	if e, ok := err.(*net.DNSError); ok && e.IsNotFound { //nolint:errorlint // Resolver does not wrap it
		return nil
	}
	return err
}

// maxText bounds texts from outside. A domain name has at most 253 bytes.
const maxText = 256

// cleanText makes a text from outside fit to be shown: control characters and what is not UTF-8
// become "?", and it is cut at maxText.
func cleanText(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' || r == '\uFFFD' || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
