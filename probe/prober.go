// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Prober sends probes and matches what comes back. It has one goroutine, which
// Close ends, and a handful of sockets. All methods may be called from any goroutine.
type Prober struct {
	opts     Options
	features Features
	done     chan struct{} // closed when the engine has ended
	wake     func()
	inFlight atomic.Int64

	mu      sync.Mutex // guards what follows, and growing slots
	slots   slots
	free    uint32 // list of slots, byTime
	queue   uint32 // list of slots to send, byTime
	cancels []Handle
	closed  bool
	err     error // why the engine closed by itself
	counted Counters
}

// Handle names a probe that was started, for [Prober.Cancel].
type Handle struct{ slot, gen uint32 }

// New opens the sockets. It fails if it can open none: with [ErrPermission] if
// privileges are what is missing. Sockets belong to the network namespace of the
// calling thread. A privileged prober needs its privileges only here (but see
// Request.Mark): call [DropPrivileges] afterwards.
func New(opts Options) (*Prober, error) {
	p, e, err := newEngine(opts)
	if err != nil {
		return nil, err
	}
	started := make(chan error)
	go func() {
		defer close(p.done)
		// Some sockets are opened, and some questions asked, later on.
		if host, ok := e.host.(interface{ Adopt() error }); ok {
			if err := host.Adopt(); err != nil {
				started <- err
				return
			}
		}
		close(started)
		e.run()
	}()
	if err := <-started; err != nil {
		e.back.close()
		e.host.Close()
		return nil, fmt.Errorf("open prober: %w", err)
	}
	return p, nil
}

// newEngine is New without the goroutine.
func newEngine(opts Options) (*Prober, *engine, error) {
	if opts.MaxInFlight < 0 || opts.MaxInFlight > 1<<26 {
		return nil, nil, &RequestError{Field: "max in flight", Value: opts.MaxInFlight, Reason: "want 1 to 67108864"}
	}
	if opts.MaxInFlight == 0 {
		opts.MaxInFlight = DefaultMaxInFlight
	}
	if opts.FirstSequence == 0 {
		opts.FirstSequence = DefaultFirstSequence
	}
	if opts.ReceiveBuffer <= 0 {
		opts.ReceiveBuffer = 4 << 20
	}
	p := &Prober{opts: opts, done: make(chan struct{})}
	e := &engine{
		p: p, epoch: time.Now(), seed: rand.Uint64(),
		firstID: opts.ICMPID, firstSeq: opts.FirstSequence, ids: 1,
	}
	if opts.ICMPID == 0 {
		// Twice as many numbers as probes, so that a free one is found at once and a
		// late answer finds its number unused.
		space := 65536 - int(opts.FirstSequence)
		e.ids = uint32(min(2*opts.MaxInFlight/space+2, 256))
		e.firstID = uint16(1024 + rand.IntN(65536-1024-int(e.ids)))
	}
	p.slots.chunks = []*[chunkSize]slot{new([chunkSize]slot)}
	for i := uint32(1); i < chunkSize; i++ { // 0 is no slot
		p.slots.push(&p.free, i, byTime)
	}
	e.slots = p.slots
	e.exact, e.flows = newIndex(&e.slots, byIdentity), newIndex(&e.slots, byFlow)
	e.wheel.slots = &e.slots
	e.clock()
	if err := e.open(); err != nil {
		return nil, nil, err
	}
	p.wake = e.host.Wake
	p.features = e.back.features()
	if opts.SendFrames && p.features.Mode != Privileged {
		p.features.Missing = append(p.features.Missing, "Ethernet frames: only with raw sockets, on Linux")
	}
	return p, e, nil
}

// Close ends the probes in flight with [ErrClosed], waits for the last callback
// and closes the sockets. It is idempotent. It must not be called from a callback.
func (p *Prober) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.wake()
	<-p.done
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// fail closes a prober whose sockets broke.
func (p *Prober) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.err == nil {
		p.err = err
	}
}

// Features tells what this prober can do.
func (p *Prober) Features() Features {
	f := p.features
	f.Missing = append([]string(nil), f.Missing...)
	return f
}

// Counters returns the counts as of the engine's last turn.
func (p *Prober) Counters() Counters {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counted
}

// InFlight is the number of probes between Start and result.
func (p *Prober) InFlight() int { return int(p.inFlight.Load()) }

// Start sends a probe and returns at once. When it ends, done is called with
// the result, exactly once, on the prober's goroutine: it must not block and
// not call Close; it may call Start. If Start fails (ErrInvalid, ErrExhausted, ErrUnsupported,
// ErrClosed), done is not called.
func (p *Prober) Start(req Request, done func(Result)) (Handle, error) {
	if err := p.normalize(&req); err != nil {
		return Handle{}, err
	}
	if p.inFlight.Add(1) > int64(p.opts.MaxInFlight) {
		p.inFlight.Add(-1)
		return Handle{}, fmt.Errorf("%w: the limit is %d", ErrExhausted, p.opts.MaxInFlight)
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		p.inFlight.Add(-1)
		return Handle{}, fmt.Errorf("start probe: %w", ErrClosed)
	}
	i := p.alloc()
	s := p.slots.at(i)
	s.req, s.done, s.state = req, done, slotQueued
	s.dst = req.Target.WithZone("")
	if s.dst.IsUnspecified() {
		s.dst = loopback(s.dst)
	}
	h := Handle{i, s.gen}
	p.slots.push(&p.queue, i, byTime)
	p.mu.Unlock()
	p.wake()
	return h, nil
}

// alloc takes a free slot. p.mu is held.
func (p *Prober) alloc() uint32 {
	if p.free == 0 {
		n := uint32(len(p.slots.chunks)) * chunkSize
		p.slots.chunks = append(p.slots.chunks, new([chunkSize]slot))
		for i := n; i < n+chunkSize; i++ {
			p.slots.push(&p.free, i, byTime)
		}
	}
	return p.slots.pop(&p.free, byTime)
}

// Cancel ends a probe before its time: its result is Failed with
// [context.Canceled]. A probe that has ended is left alone.
func (p *Prober) Cancel(h Handle) {
	if h == (Handle{}) {
		return
	}
	p.mu.Lock()
	if !p.closed { // then all probes end anyway
		p.cancels = append(p.cancels, h)
	}
	p.mu.Unlock()
	p.wake()
}

// Probe sends a probe and waits for its result. The error is non-nil if ctx
// ended first, the request is wrong, or the probe could not be sent; that nothing
// came back is not an error but a status.
func (p *Prober) Probe(ctx context.Context, req Request) (Result, error) {
	ch := make(chan Result, 1)
	h, err := p.Start(req, func(r Result) { ch <- r })
	if err != nil {
		return Result{Tag: req.Tag, Target: req.Target, Status: Failed, Err: err}, err
	}
	select {
	case r := <-ch:
		return r, r.Err
	case <-ctx.Done():
		p.Cancel(h)
		r := <-ch // at once; it may have been answered in the meantime
		if r.Status == Failed {
			r.Err = context.Cause(ctx)
		}
		return r, r.Err
	}
}

// Send is Probe without the wait: the result comes through the channel, which has room for it.
// The probe ends early when ctx does.
func (p *Prober) Send(ctx context.Context, req Request) (<-chan Result, error) {
	ch := make(chan Result, 1)
	var stop func() bool
	ready := make(chan struct{}) // stop is set
	h, err := p.Start(req, func(r Result) {
		<-ready
		stop()
		if r.Status == Failed && ctx.Err() != nil {
			r.Err = context.Cause(ctx)
		}
		ch <- r
	})
	if err != nil {
		return nil, err
	}
	stop = context.AfterFunc(ctx, func() { p.Cancel(h) })
	close(ready)
	return ch, nil
}

// Stream sends requests with at most window in flight and yields the results
// in the order in which they come. It asks for the next request when one ends, so
// the requests may be endless. A request that Start refuses yields a Failed
// result, and is the last one if the prober is closed. When ctx ends, or the loop over the results does, what is in flight
// is cancelled; results of cancelled probes are not yielded.
func (p *Prober) Stream(ctx context.Context, window int, reqs iter.Seq[Request]) iter.Seq[Result] {
	return func(yield func(Result) bool) {
		window = max(1, min(window, p.opts.MaxInFlight))
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		next, stop := iter.Pull(reqs)
		defer stop()
		// The engine fills one slice of results while the loop works on the other: a
		// lock per turn instead of a channel operation per result.
		var (
			mu      sync.Mutex
			filled  []Result
			arrived = make(chan struct{}, 1)
		)
		flying := make(map[uint64]Handle, window)
		tags := make(map[uint64]uint64, window)
		deliver := func(r Result) {
			mu.Lock()
			filled = append(filled, r)
			mu.Unlock()
			select {
			case arrived <- struct{}{}:
			default:
			}
		}
		defer func() { // nothing of ours outlives the loop
			for _, h := range flying {
				p.Cancel(h)
			}
			for len(flying) > 0 {
				<-arrived
				mu.Lock()
				for _, r := range filled {
					delete(flying, r.Tag)
				}
				filled = filled[:0]
				mu.Unlock()
			}
		}()
		var batch []Result
		more := true
		for n := uint64(0); ; {
			for more && len(flying) < window && ctx.Err() == nil {
				var req Request
				if req, more = next(); !more {
					break
				}
				n++
				tag := req.Tag
				req.Tag = n
				h, err := p.Start(req, deliver)
				if err != nil {
					more = !errors.Is(err, ErrClosed) // or endless requests would be refused for ever
					if !yield(Result{Tag: tag, Target: req.Target, TTL: req.TTL, Flow: req.Flow, Status: Failed, Err: err}) {
						return
					}
					continue
				}
				flying[n], tags[n] = h, tag
			}
			if len(flying) == 0 || ctx.Err() != nil {
				return
			}
			select {
			case <-arrived:
			case <-ctx.Done():
				return
			}
			mu.Lock()
			batch, filled = filled, batch[:0]
			mu.Unlock()
			for _, r := range batch {
				delete(flying, r.Tag)
			}
			for k := range batch {
				r := &batch[k]
				n := r.Tag
				r.Tag = tags[n]
				delete(tags, n)
				if !yield(*r) {
					return
				}
			}
		}
	}
}

// normalize checks a request and fills in the defaults.
func (p *Prober) normalize(r *Request) error {
	bad := func(field string, value any, reason string) error {
		return &RequestError{Field: field, Value: value, Reason: reason}
	}
	if r.Target.Is4In6() {
		r.Target = r.Target.Unmap()
	}
	if r.LocalAddr.Is4In6() {
		r.LocalAddr = r.LocalAddr.Unmap()
	}
	switch {
	case !r.Target.IsValid():
		return bad("target", "", "there is none")
	case r.Protocol > SCTP:
		return bad("protocol", r.Protocol, "want ICMP, UDP, TCP or SCTP")
	case r.Size < 0 || r.Size > MaxSize:
		return bad("size", r.Size, fmt.Sprintf("want 0 to %d bytes", MaxSize))
	case r.Timeout > MaxTimeout:
		return bad("timeout", r.Timeout, fmt.Sprintf("want at most %v", MaxTimeout))
	case r.LocalAddr.IsValid() && r.LocalAddr.Is4() != r.Target.Is4():
		return bad("local address", r.LocalAddr, fmt.Sprintf("is not of the same IP version as the target %v", r.Target))
	case len(r.Interface) > 15 || containsNUL(r.Interface):
		return bad("interface", fmt.Sprintf("%q", r.Interface), "names have at most 15 bytes")
	}
	if r.LocalAddr.IsUnspecified() {
		r.LocalAddr = netip.Addr{}
	}
	version := 6
	if r.Target.Is4() {
		version = 4
	}
	f := &p.features
	switch {
	case version == 4 && !f.IPv4 || version == 6 && !f.IPv6:
		return fmt.Errorf("IPv%d: %w on this host", version, ErrUnsupported)
	case !f.Supports(r.Protocol, version):
		return fmt.Errorf("%v probes in %v mode: %w", r.Protocol, f.Mode, ErrUnsupported)
	case r.Mark != 0 && !f.Mark:
		return fmt.Errorf("a routing mark in %v mode: %w", f.Mode, ErrUnsupported)
	case r.Interface != "" && !f.Interface:
		return fmt.Errorf("choosing the interface: %w on this system", ErrUnsupported)
	case r.Flow != 0 && !f.Flow:
		return fmt.Errorf("constant flows: %w on this system", ErrUnsupported)
	}
	if r.TTL == 0 {
		r.TTL = DefaultTTL
	}
	if r.Size == 0 {
		r.Size = DefaultSize
	}
	if r.Timeout == 0 {
		r.Timeout = DefaultTimeout
	}
	if r.Port == 0 && (r.Protocol == TCP || r.Protocol == SCTP) {
		r.Port = DefaultTCPPort
	}
	return nil
}

func containsNUL(s string) bool {
	for i := range len(s) {
		if s[i] == 0 {
			return true
		}
	}
	return false
}

// Resolve gives the first address of host in the resolver's order, of the
// wanted version (4, 6, or 0 for either). A numeric address is taken as it is, with its zone. A nil
// resolver means [net.DefaultResolver]. The error is a *[ResolveError].
func Resolve(ctx context.Context, r *net.Resolver, host string, version int) (netip.Addr, error) {
	fits := func(a netip.Addr) bool { return version == 0 || a.Is4() == (version == 4) }
	if a, err := netip.ParseAddr(host); err == nil {
		a = a.Unmap()
		if !fits(a) {
			return netip.Addr{}, &ResolveError{host, version, fmt.Errorf("it is an address of the other IP version")}
		}
		return a, nil
	}
	if r == nil {
		r = net.DefaultResolver
	}
	network := "ip"
	if version != 0 {
		network = fmt.Sprintf("ip%d", version)
	}
	addrs, err := r.LookupNetIP(ctx, network, host)
	if err != nil {
		return netip.Addr{}, &ResolveError{host, version, err}
	}
	for _, a := range addrs {
		if a = a.Unmap(); fits(a) {
			return a, nil
		}
	}
	return netip.Addr{}, &ResolveError{host, version, fmt.Errorf("no such address")}
}
