// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// UnionOptions are what a [Union] is made of.
type UnionOptions struct {
	// Sources are where peers come from, the most important first: their order is that of the peers.
	Sources []Source
	// Own gives the addresses that are this host: no peer has one of them, nor a loopback address. It is asked every 10 s;
	// when it fails, the last ones stay. nil: there are none.
	Own func(ctx context.Context) ([]netip.Addr, error)
	// Gone tells of a peer, found by a name that can no longer be looked up, whether it may be forgotten before a day has
	// passed, because it stopped answering long ago. It must not wait. nil: none may.
	Gone func(netip.AddrPort) bool
	// Resolver looks names up. nil is [net.DefaultResolver].
	Resolver *net.Resolver
	// Log hears when a source begins to fail and when it works again. nil logs nothing.
	Log *slog.Logger
}

// A Union is what several sources know together. Its methods can be called from several goroutines.
type Union struct {
	o       UnionOptions
	pace    pace
	changed chan struct{} // has one element when peers has to be asked

	mu      sync.Mutex              // guards all below
	own     map[netip.Addr]struct{} // replaced, never changed
	watches []*watch
}

// A pace is what tests have no time for.
type pace struct {
	every, pause time.Duration // lookupEvery, lookupPause
	retention    time.Duration
}

// A watch is a source and what is known of its endpoints. The union's mu guards all but source.
type watch struct {
	source Source
	health health // of the list
	list   []endpoint
	listed time.Time          // when the list was made
	hosts  map[endpoint]*host // of those in list that are no literals
}

// A host is a name that is looked up again and again.
type host struct {
	health health
	known  []sighting
	ctx    context.Context // ends when the host is not listed any more
	cancel context.CancelFunc
}

// health is how asking for something goes.
type health struct {
	problem     string // now
	lastSuccess time.Time
	lastError   string
	lastErrorAt time.Time
}

// NewUnion makes a union. It asks nobody before [Union.Run].
func NewUnion(o UnionOptions) *Union {
	if o.Own == nil {
		o.Own = func(context.Context) ([]netip.Addr, error) { return nil, nil }
	}
	if o.Gone == nil {
		o.Gone = func(netip.AddrPort) bool { return false }
	}
	if o.Resolver == nil {
		o.Resolver = net.DefaultResolver
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	u := &Union{o: o, pace: pace{lookupEvery, lookupPause, retention}, changed: make(chan struct{}, 1)}
	for _, s := range o.Sources {
		u.watches = append(u.watches, &watch{source: s, hosts: map[endpoint]*host{}})
	}
	return u
}

// ownTimeout bounds how long the first peers have to wait for the own addresses, which may take a name service.
const ownTimeout = 2 * time.Second

// Run asks the sources until ctx ends, and calls update with all peers whenever they are others than before: without
// duplicates, without the own addresses, in the order of the sources and of what was typed, addresses of one name sorted. There
// are none at the beginning. The slice is update's to keep; while it works, there is no other call.
//
// Run returns nil when ctx has ended. It can be called once.
func (u *Union) Run(ctx context.Context, update func([]netip.AddrPort)) error {
	var group sync.WaitGroup
	defer group.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Before anybody is a peer it must be known that it is not us.
	ownFailed := u.refreshOwn(ctx, false)
	group.Go(func() {
		for pause(ctx, u.pace.every) {
			ownFailed = u.refreshOwn(ctx, ownFailed)
		}
	})
	for _, w := range u.watches {
		group.Go(func() { u.watch(ctx, w) })
	}
	var last []netip.AddrPort
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-u.changed:
		}
		if peers := u.peers(); !slices.Equal(peers, last) {
			last = peers
			update(slices.Clone(peers))
		}
	}
}

func (u *Union) wake() {
	select {
	case u.changed <- struct{}{}:
	default:
	}
}

func (u *Union) refreshOwn(ctx context.Context, failedBefore bool) (failed bool) {
	bounded, cancel := context.WithTimeout(ctx, ownTimeout)
	defer cancel()
	addrs, err := u.o.Own(bounded)
	if err != nil {
		if !failedBefore && ctx.Err() == nil {
			u.o.Log.Warn("cannot tell the own addresses", "error", err)
		}
		return true
	}
	own := map[netip.Addr]struct{}{}
	for _, a := range addrs {
		own[a.Unmap().WithZone("")] = struct{}{}
	}
	u.mu.Lock()
	u.own = own
	u.mu.Unlock()
	u.wake()
	return false
}

// ownsLocked gives what tells whether an address is this host.
func (u *Union) ownsLocked() func(netip.Addr) bool {
	own := u.own
	return func(a netip.Addr) bool {
		_, ok := own[a.WithZone("")]
		return ok || a.IsLoopback()
	}
}

// watch keeps what is known of a source up to date.
func (u *Union) watch(ctx context.Context, w *watch) {
	var followers sync.WaitGroup
	defer followers.Wait()
	for {
		start := time.Now()
		list, err := w.source.list(ctx, u.o.Resolver)
		if ctx.Err() != nil {
			return
		}
		for e, h := range u.setList(ctx, w, list) {
			followers.Go(func() { u.follow(h.ctx, w, e, h) })
		}
		u.report(&w.health, err, w.source.name, w.source.name, len(w.list))
		u.wake()
		if w.source.every == 0 {
			return
		}
		wait := w.source.every - time.Since(start)
		if list == nil {
			wait = w.source.pause
		}
		if !pause(ctx, wait) {
			return
		}
	}
}

// setList replaces the endpoints of a source, unless list is nil, which means that the source failed. It gives those that have
// to be looked up from now on.
func (u *Union) setList(ctx context.Context, w *watch, list []endpoint) map[endpoint]*host {
	now := time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	if list == nil && now.Sub(w.listed) < u.pace.retention {
		return nil
	}
	w.list, w.listed = list, now
	added, listed := map[endpoint]*host{}, map[endpoint]bool{}
	for _, e := range list {
		if listed[e] = true; e.host != "" && w.hosts[e] == nil {
			h := &host{}
			h.ctx, h.cancel = context.WithCancel(ctx)
			w.hosts[e], added[e] = h, h
		}
	}
	for e, h := range w.hosts {
		if !listed[e] {
			h.cancel()
			delete(w.hosts, e)
		}
	}
	return added
}

// follow looks a host up until ctx ends.
func (u *Union) follow(ctx context.Context, w *watch, e endpoint, h *host) {
	gone := func(a netip.Addr) bool { return u.o.Gone(netip.AddrPortFrom(a, e.port)) }
	for {
		start := time.Now()
		a := lookup(ctx, u.o.Resolver, e.host)
		if ctx.Err() != nil {
			return
		}
		u.mu.Lock()
		before, own := h.known, u.ownsLocked()
		u.mu.Unlock()
		known, err := digest(before, a, time.Now(), u.pace.retention, own, gone)
		u.mu.Lock()
		h.known = known
		u.mu.Unlock()
		u.report(&h.health, err, w.source.name, e.host, len(known))
		u.wake()
		wait := u.pace.every - time.Since(start)
		if err != nil {
			wait = u.pace.pause
		}
		if !pause(ctx, wait) {
			return
		}
	}
}

// report keeps how asking for a name went, and tells when that changes. known is how many endpoints or addresses are known all the
// same.
func (u *Union) report(h *health, err error, source, name string, known int) {
	now := time.Now()
	u.mu.Lock()
	before := h.problem
	if h.problem = ""; err == nil {
		h.lastSuccess = now
	} else {
		h.problem = err.Error()
		h.lastError, h.lastErrorAt = h.problem, now
	}
	u.mu.Unlock()
	switch {
	case err != nil && before == "":
		u.o.Log.Warn("cannot find relays", "source", source, "name", name, "known", known, "error", err)
	case err == nil && before != "":
		u.o.Log.Info("can find relays again", "source", source, "name", name)
	}
}

// peersLocked gives the peers of a source, with duplicates.
func (w *watch) peersLocked(own func(netip.Addr) bool) (peers []netip.AddrPort) {
	for _, e := range w.list {
		if e.addr.IsValid() {
			if !own(e.addr) {
				peers = append(peers, netip.AddrPortFrom(e.addr, e.port))
			}
			continue
		}
		for _, s := range w.hosts[e].known {
			if !own(s.addr) {
				peers = append(peers, netip.AddrPortFrom(s.addr, e.port))
			}
		}
	}
	return peers
}

// peers gives the peers of all sources.
func (u *Union) peers() (peers []netip.AddrPort) {
	u.mu.Lock()
	defer u.mu.Unlock()
	own := u.ownsLocked()
	for _, w := range u.watches {
		peers = append(peers, w.peersLocked(own)...)
	}
	return unique(peers)
}

// unique removes what is in a list already; the first stays.
func unique(peers []netip.AddrPort) []netip.AddrPort {
	seen := make(map[netip.AddrPort]bool, len(peers))
	return slices.DeleteFunc(peers, func(p netip.AddrPort) bool {
		before := seen[p]
		seen[p] = true
		return before
	})
}

// SourceStatus is how a source does.
type SourceStatus struct {
	Name string `json:"name"`
	// Problem is what is wrong now, "" for nothing. Peers that were found before stay all the same.
	Problem string `json:"problem,omitempty"`
	// LastSuccess is when any name of the source was found last.
	LastSuccess time.Time `json:"last_success,omitzero"`
	// LastError is what was wrong last, also when it is over, and LastErrorTime when it was seen last.
	LastError     string    `json:"last_error,omitempty"`
	LastErrorTime time.Time `json:"last_error_time,omitzero"`
	// Peers are those of this source, which may be others' as well, but not this host. Never nil.
	Peers []netip.AddrPort `json:"peers"`
}

// Status tells how each source does, in the order of [UnionOptions].
func (u *Union) Status() []SourceStatus {
	u.mu.Lock()
	defer u.mu.Unlock()
	own := u.ownsLocked()
	all := make([]SourceStatus, 0, len(u.watches))
	for _, w := range u.watches {
		s := SourceStatus{Name: w.source.name, Peers: append([]netip.AddrPort{}, unique(w.peersLocked(own))...)}
		s.add(w.health)
		for _, e := range w.list {
			if h := w.hosts[e]; h != nil {
				s.add(h.health)
			}
		}
		all = append(all, s)
	}
	return all
}

// add counts a name in.
func (s *SourceStatus) add(h health) {
	if h.problem != "" {
		if s.Problem != "" {
			s.Problem += "; "
		}
		s.Problem += h.problem
	}
	if h.lastSuccess.After(s.LastSuccess) {
		s.LastSuccess = h.lastSuccess
	}
	if h.lastErrorAt.After(s.LastErrorTime) {
		s.LastError, s.LastErrorTime = h.lastError, h.lastErrorAt
	}
}
