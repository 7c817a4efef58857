// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed5728abee/fathom/swarm/broadcast"
	"github.com/seed5728abee/fathom/swarm/cicada"
	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/record"
	"github.com/seed5728abee/fathom/swarm/ring"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// A LocalNode is the ring's protocol alone: for those who build an overlay of their own, over a transport of theirs.
type LocalNode = ring.Node

// A Peer is one member of a swarm. Its methods can be called from several goroutines.
type Peer struct {
	o   Options
	log *slog.Logger

	// Set by Bind, constant afterwards.
	identity  *member.Identity
	listener  net.Listener
	links     *links
	current   atomic.Pointer[place]
	broadcast *broadcast.Engine
	gateway   *cicada.Gateway // nil where originals are not let in
	records   *record.Store
	reacher   *reacher
	mapper    *mapper

	inbox    *inbox
	services services
	copies   copies
	counters counters
	tries    atomic.Int32 // requests to try under way

	// ctx ends when the peer is closed; wg counts what runs until then.
	ctx    context.Context
	cancel context.CancelFunc

	moving sync.Mutex // held while the peer's contact is changed; before mu

	// mu guards all that follows.
	mu         sync.Mutex
	wg         sync.WaitGroup // Add under mu, and only while not closed
	bound      bool
	connected  bool
	connecting *connecting // nil: no call of Connect is under way
	closed     bool
	entries    []string // bootstrap addresses: Options.Bootstrap, then those given to Connect
}

// New makes a peer that is bound to nothing yet.
func New(o Options) *Peer {
	if o.QueueLength <= 0 {
		o.QueueLength = 1 << 16
	}
	if o.QueueBytes <= 0 {
		o.QueueBytes = 64 << 20
	}
	p := &Peer{o: o, log: o.Logger, inbox: newInbox(o.QueueLength, o.QueueBytes), entries: o.Bootstrap}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Bind listens on an address, "host:port", and gives the peer its ID. An empty host is all addresses of the machine,
// port 0 any free port, and a missing port [DefaultPort]. With a port mapping it waits until the router has answered.
func (p *Peer) Bind(ctx context.Context, address string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return net.ErrClosed
	case p.bound:
		return ErrBound
	}
	if err := p.bindLocked(ctx, address); err != nil {
		return fmt.Errorf("bind %s: %w", address, err)
	}
	p.bound = true
	return nil
}

func (p *Peer) bindLocked(ctx context.Context, address string) error {
	if n := len(p.o.SwarmKeys); n > member.MaxSwarmKeys {
		return fmt.Errorf("%d swarm keys, at most %d", n, member.MaxSwarmKeys)
	}
	addr, err := resolve(ctx, address)
	if err != nil {
		return err
	}
	p.identity = p.o.Identity
	if p.identity == nil {
		p.identity = member.NewIdentity()
	}
	p.reacher, err = newReacher(p, addr)
	if err != nil {
		return err
	}
	p.listener = p.reacher.listener
	p.mapper = &mapper{peer: p}
	external := p.o.External
	if mapped := p.mapper.start(ctx, p.reacher.port()); mapped.IsValid() {
		external = mapped
	}
	p.links = newLinks(p)
	p.records = record.NewStore(record.StoreOptions{Binding: p.o.Binding})
	p.takeLocked(p.makeContact(external))
	p.broadcast = broadcast.New(p.broadcastOptions())
	if p.o.originals() {
		p.gateway = cicada.NewGateway(p.gatewayOptions())
		p.goLocked(func(ctx context.Context) {
			if err := p.gateway.Run(ctx); err != nil && ctx.Err() == nil {
				p.log.Error("gateway to originals", "error", err)
			}
		})
	}
	p.goLocked(p.accept)
	p.goLocked(p.maintain)
	p.goLocked(func(ctx context.Context) {
		if err := p.broadcast.Run(ctx); err != nil && ctx.Err() == nil {
			p.log.Error("broadcast", "error", err)
		}
	})
	return nil
}

// makeContact makes the peer's contact: external is the address it is known by outside, if that is known.
func (p *Peer) makeContact(external netip.AddrPort) member.Contact {
	c := member.Contact{Dialect: member.Native, Key: p.identity.Public()}
	add := func(a netip.AddrPort) {
		if a.IsValid() && len(c.Addrs) < member.MaxAddrs && !slices.Contains(c.Addrs, a) {
			c.Addrs = append(c.Addrs, a)
		}
	}
	add(external)
	for _, a := range p.reacher.candidates() {
		add(a)
	}
	c.ID = member.OfKey(c.Key)
	if p.o.Binding == member.ByAddress && len(c.Addrs) > 0 {
		c.ID = member.OfAddr(c.Addrs[0])
	}
	return c
}

// A place is the peer's part in the ring as long as it has one ID.
type place struct {
	node *ring.Node
	stop context.CancelFunc
	done chan struct{} // closed when node.Run has returned
}

// takeLocked takes a place on the ring.
func (p *Peer) takeLocked(self member.Contact) {
	ctx, cancel := context.WithCancel(p.ctx)
	at := &place{
		node: ring.New(self, p.links, ring.Options{Binding: p.o.Binding, Records: p.records, Log: p.log}),
		stop: cancel, done: make(chan struct{}),
	}
	p.current.Store(at)
	if !p.goLocked(func(context.Context) {
		defer close(at.done)
		if err := at.node.Run(ctx); err != nil && ctx.Err() == nil {
			p.log.Error("ring", "error", err)
		}
	}) {
		close(at.done)
	}
}

// node returns the peer's part in the ring.
func (p *Peer) node() *ring.Node { return p.current.Load().node }

// setSelf changes what the peer says about itself. It reports whether that moves it to another place on the ring: then
// it has left the old one, its links are closed, and it has to join again.
func (p *Peer) setSelf(ctx context.Context, change func(c *member.Contact)) bool {
	p.moving.Lock()
	defer p.moving.Unlock()
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	c := p.contact()
	change(&c)
	if p.o.Binding == member.ByAddress && len(c.Addrs) > 0 {
		c.ID = member.OfAddr(c.Addrs[0])
	}
	if p.node().SetSelf(c) == nil {
		return false
	}
	old := p.current.Load()
	if err := old.node.Leave(ctx); err != nil {
		p.log.Debug("leave", "error", err)
	}
	old.stop()
	<-old.done
	p.mu.Lock()
	c.Hosts = nil
	p.takeLocked(c)
	p.mu.Unlock()
	p.links.drop() // they know the peer under its old ID
	p.log.Info("moved", "from", old.node.Self().ID.Short(), "to", c.String())
	return true
}

// contact returns what the peer tells others about itself.
func (p *Peer) contact() member.Contact {
	if p.current.Load() == nil {
		return member.Contact{}
	}
	return p.node().Self()
}

// ID returns the peer's place on the ring; the zero Hash before Bind. In an open swarm it changes with the address that
// the peer is known by.
func (p *Peer) ID() Hash { return p.contact().ID }

// Addr returns the address that the peer is known by.
func (p *Peer) Addr() netip.AddrPort { return p.contact().Addr() }

// Self returns the peer as others see it.
func (p *Peer) Self() Member { return memberOf(p.contact()) }

// Connect joins the swarm that the peers at the given addresses, "host:port", are in, trying one after the other, then
// those of Options.Bootstrap. It returns when the peer has its place and others know it, or when its hosts do.
// The error wraps [ErrNoEntry] and tells why each address failed.
func (p *Peer) Connect(ctx context.Context, addresses ...string) error {
	p.mu.Lock()
	switch {
	case p.closed:
		p.mu.Unlock()
		return net.ErrClosed
	case !p.bound:
		p.mu.Unlock()
		return ErrNotBound
	case p.connected || p.connecting != nil:
		p.mu.Unlock()
		return ErrConnected
	}
	ctx, cancel := context.WithCancelCause(ctx)
	attempt := &connecting{cancel: cancel, done: make(chan struct{})}
	p.connecting = attempt
	defer func() {
		p.mu.Lock()
		p.connecting = nil
		p.mu.Unlock()
		cancel(nil)
		close(attempt.done)
	}()
	for _, a := range addresses {
		p.addEntryLocked(a)
	}
	entries := append(append([]string(nil), addresses...), p.o.Bootstrap...)
	p.mu.Unlock()
	if len(entries) == 0 {
		return fmt.Errorf("%w: give the address of a peer that is in it", ErrNoEntry)
	}
	var failures []error
	for _, a := range entries {
		err := p.enter(ctx, a)
		if err == nil {
			p.mu.Lock()
			p.connected = true
			p.mu.Unlock()
			p.publishName(ctx)
			return nil
		}
		failures = append(failures, fmt.Errorf("%s: %w", a, err))
		if ctx.Err() != nil {
			failures = append(failures, context.Cause(ctx))
			break
		}
	}
	return fmt.Errorf("%w: %w", ErrNoEntry, errors.Join(failures...))
}

// connecting is a call of Connect under way.
type connecting struct {
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when it is over
}

func (p *Peer) addEntryLocked(address string) {
	if !slices.Contains(p.entries, address) {
		p.entries = append(slices.Clip(p.entries), address)
	}
}

// Disconnect leaves the swarm in good order: the neighbours close the gap at once. A Connect under way is given up. The
// peer stays bound, and can be connected again.
func (p *Peer) Disconnect(ctx context.Context) error {
	p.mu.Lock()
	if !p.bound || p.closed {
		defer p.mu.Unlock()
		if p.closed {
			return net.ErrClosed
		}
		return ErrNotBound
	}
	attempt := p.connecting
	p.mu.Unlock()
	if attempt != nil {
		attempt.cancel(fmt.Errorf("the peer is being disconnected: %w", net.ErrClosed))
		select {
		case <-attempt.done:
		case <-ctx.Done():
		}
	}
	p.mu.Lock()
	was := p.connected
	p.connected = false
	p.mu.Unlock()
	if was || !p.alone() {
		p.withdrawName(ctx)
	}
	return p.node().Leave(ctx)
}

// leaveTimeout bounds how long Close waits for neighbours to hear of it.
const leaveTimeout = 2 * time.Second

// settleTimeout bounds how long Close waits for originals to take the broadcasts that this peer is to hand them: they read
// half a kilobyte per second.
const settleTimeout = 5 * time.Second

// Close leaves the swarm, gives back the port mapping, ends all links, and waits for all that the peer has started. Calls
// that wait return [net.ErrClosed]; messages that have arrived can still be fetched.
func (p *Peer) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		p.wg.Wait()
		return nil
	}
	bound := p.bound
	p.mu.Unlock()
	if bound {
		if p.gateway != nil {
			ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
			p.gateway.Settle(ctx)
			cancel()
		}
		ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
		if err := p.Disconnect(ctx); err != nil && !errors.Is(err, net.ErrClosed) {
			p.log.Debug("leave", "error", err)
		}
		cancel()
	}
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.inbox.close()
	p.services.close()
	if bound {
		p.listener.Close()
		p.links.close()
		if p.gateway != nil {
			p.gateway.Close()
		}
		p.mapper.close()
		p.reacher.close()
	}
	p.wg.Wait()
	return nil
}

// background runs f until it returns; f's context ends when the peer closes. It reports whether the peer was open.
func (p *Peer) background(f func(ctx context.Context)) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.goLocked(f)
}

func (p *Peer) goLocked(f func(ctx context.Context)) bool {
	if p.closed {
		return false
	}
	p.wg.Go(func() { f(p.ctx) })
	return true
}

// resolve turns "host:port" into an address. An empty host is all addresses, no port the default one.
func resolve(ctx context.Context, address string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		if addrErr := (*net.AddrError)(nil); !errors.As(err, &addrErr) || addrErr.Err != "missing port in address" {
			return netip.AddrPort{}, err
		}
		host, port = address, strconv.Itoa(DefaultPort)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port %q: not a number from 0 to 65535", port)
	}
	if host == "" {
		return netip.AddrPortFrom(netip.IPv6Unspecified(), uint16(number)), nil
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return netip.AddrPortFrom(addr.Unmap(), uint16(number)), nil
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	best := addrs[0].Unmap()
	for _, a := range addrs {
		if a = a.Unmap(); a.Is4() { // originals know IPv4 only, and a name stands for one member
			best = a
			break
		}
	}
	return netip.AddrPortFrom(best, uint16(number)), nil
}

// newTag returns a random tag.
func newTag() (t wire.Tag) {
	rand.Read(t[:]) // never fails
	return t
}
