// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/relay/datagram"
	"github.com/seed5728abee/fathom/relay/discovery"
	"github.com/seed5728abee/fathom/relay/guard"
	"github.com/seed5728abee/fathom/relay/mesh"
)

// emitMark is on everything that a relay puts on a segment (SO_MARK), so that it does not take it for a broadcast of its
// own host's applications. The value is arbitrary; it is the same for all relays, because several on one host must not
// take each other's either.
const emitMark = 0xfa7503

const (
	// socketBuffer is for bursts: 12,800 broadcasts of 100 bytes from relays that send each on its own.
	socketBuffer = 16 << 20
	// retryInterval is how long an interface that could not be opened is left alone, unless something about it changes.
	retryInterval = 2 * time.Second
	// countInterval is how often the kernel is asked what it had to drop, and reassemblers what they gave up.
	countInterval = time.Second
)

// Relay carries broadcasts between segments.
type Relay struct {
	*engine
	conn    *meshConn
	ports   []*port
	sources *discovery.Union
	closed  atomic.Bool

	collector *collector // nil without metrics
}

// New opens the sockets of a relay: afterwards no privilege is needed, but CAP_NET_RAW to come back after an interface has
// been made anew. Errors are [ErrOptions], [fs.ErrPermission] without CAP_NET_RAW, and those of the system.
func New(o Options) (*Relay, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	// A relay that could never capture should not wait for its interface first.
	probe, err := rawio.OpenFrameConn("lo", rawio.FrameOptions{RingFrames: 1, Filter: rawio.FilterNone()})
	if err != nil && errors.Is(err, os.ErrPermission) {
		return nil, err
	} else if err == nil {
		probe.Close()
	}
	r := new(Relay)
	if err := r.open(&o); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

func (r *Relay) open(o *Options) (err error) {
	var first rawio.InterfaceState
	id := randomMAC()
	known := false
	for _, name := range o.Interfaces {
		info, err := rawio.LookupInterface(name)
		if err != nil && o.RequireInterfaces {
			return err
		}
		if err == nil && (!known || bytes.Compare(info.MAC[:], id[:]) < 0) {
			id, known = info.MAC, true
		}
		if name == o.Interfaces[0] {
			first = info
		}
	}
	listen := netip.AddrPortFrom(o.MeshAddress, o.MeshPort)
	if o.BindToInterface && !o.MeshAddress.IsValid() {
		i := slices.IndexFunc(first.Prefixes, func(p netip.Prefix) bool { return p.Addr().Is4() })
		if i < 0 {
			return fmt.Errorf("interface %s has no IPv4 address", o.Interfaces[0])
		}
		o.MeshAddress = first.Prefixes[i].Addr()
		listen = netip.AddrPortFrom(o.MeshAddress, o.MeshPort)
	}
	if r.engine, err = newEngine(o, id); err != nil {
		return err
	}
	if r.conn, err = openMeshConn(r.engine, listen); err != nil {
		return err
	}
	r.out = r.conn
	var segments []*segment
	for i, name := range o.Interfaces {
		p, err := newPort(r.engine, name, guard.LocalSource(i))
		if err != nil {
			return err
		}
		r.ports = append(r.ports, p)
		segments = append(segments, p.segment)
	}
	r.addSegments(segments...)
	for _, p := range r.ports {
		p.refresh(time.Now())
		if o.RequireInterfaces && !p.segment.up {
			return errors.New(p.segment.problem)
		}
	}
	r.sources = discovery.NewUnion(discovery.UnionOptions{
		Sources: o.Sources, Own: ownAddresses, Gone: r.gone, Log: o.Log,
	})
	return r.register()
}

// randomMAC is an identity for a relay whose interfaces are not there yet: of those that are given locally.
func randomMAC() (m datagram.MAC) {
	_, _ = rand.Read(m[:]) // it never fails
	m[0] = m[0]&^1 | 2
	return m
}

// ownAddresses are those at which a peer would be this host: sending there is of no use.
func ownAddresses(ctx context.Context) ([]netip.Addr, error) {
	var own []netip.Addr
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				own = append(own, addr.Unmap())
			}
		}
	}
	if name, err := os.Hostname(); err == nil {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		// A host that cannot resolve its own name has its addresses all the same.
		named, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		for _, a := range named {
			own = append(own, a.Unmap())
		}
	}
	return own, nil
}

// Run relays until ctx ends.
func (r *Relay) Run(ctx context.Context) error {
	o := r.opts
	r.log.Info("relaying", "interfaces", strings.Join(o.Interfaces, ","), "ports", portsText(o.Ports), "groups", len(o.Groups),
		"mesh", r.conn.local, "id", r.id, "mode", r.mode())
	if !r.sealed {
		r.log.Warn("the mesh is open: whoever reaches its port can put broadcasts on the segments; see fathom relay keygen")
	}
	if len(o.Sources) == 0 {
		if o.Echo {
			r.log.Warn("no other relays are configured: broadcasts are echoed on their own segment")
		} else {
			r.log.Warn("no other relays are configured: waiting for those that come by themselves")
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, p := range r.ports {
		group.Go(func() error { return p.run(ctx) })
	}
	group.Go(func() error { return r.conn.run(ctx) })
	group.Go(func() error {
		return rawio.WatchInterfaces(ctx, func() {
			for _, p := range r.ports {
				p.changed.Store(true)
				p.poller.Wake()
			}
		})
	})
	if len(o.Sources) > 0 {
		group.Go(func() error {
			return r.sources.Run(ctx, func(peers []netip.AddrPort) {
				r.log.Info("peers", "addresses", peers)
				r.mesh.SetPeers(peers)
				r.conn.poller.Wake()
			})
		})
	}
	group.Go(func() error { return r.summarize(ctx) })
	err := group.Wait()
	r.conn.farewell()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Status tells what the relay is doing.
func (r *Relay) Status() Status {
	s := r.status(time.Now())
	s.Mesh.Listen, s.Mesh.KernelDropped = r.conn.local, r.conn.dropped.Load()
	s.Sources = r.sources.Status()
	return s
}

// gone tells that a peer has been silent for so long that it need not be kept when its name can no longer be looked up.
func (r *Relay) gone(addr netip.AddrPort) bool {
	for _, p := range r.mesh.Peers(time.Now()) {
		if p.Address == addr {
			return p.State == mesh.Down && time.Since(p.LastHeard) > time.Hour
		}
	}
	return false
}

func (r *Relay) register() error {
	if r.opts.Metrics == nil {
		return nil
	}
	r.collector = &collector{r.Status}
	return r.opts.Metrics.Register(r.collector)
}

// SetKeys changes the keys of a mesh that has some: the first is used from now on, all are accepted.
func (r *Relay) SetKeys(keys []mesh.Key) error {
	defer r.conn.poller.Wake()
	return r.mesh.SetKeys(keys)
}

// SetIdentity changes the certificate, or the authorities, of a mesh that has some.
func (r *Relay) SetIdentity(id *mesh.Identity) error {
	defer r.conn.poller.Wake()
	return r.mesh.SetIdentity(id)
}

// Close closes the sockets of a relay that does not run.
func (r *Relay) Close() error {
	if r.closed.Swap(true) {
		return nil
	}
	var errs []error
	for _, p := range r.ports {
		errs = append(errs, p.close())
	}
	if r.conn != nil {
		errs = append(errs, r.conn.close())
	}
	if r.collector != nil {
		r.opts.Metrics.Unregister(r.collector)
	}
	return errors.Join(errs...)
}

// Test sends a broadcast to a port, 0 for the first that is relayed, on each segment, as an application of this host would, and
// gives what becomes of it: here, and at the peers, as they report. It goes on until ctx ends; then each peer that should have
// reported and has not is reported with the outcome "no report". SnowSignal's relays cannot report. The error is [ErrOptions].
func (r *Relay) Test(ctx context.Context, port uint16) (iter.Seq[TestReport], error) {
	return r.test(ctx, port, broadcast)
}

// broadcast sends a payload as an application of this host would.
func broadcast(ifname string, port uint16, payload []byte) error {
	lc := net.ListenConfig{Control: rawio.Broadcast(ifname)}
	c, err := lc.ListenPacket(context.Background(), "udp4", "0.0.0.0:0")
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.WriteTo(payload, net.UDPAddrFromAddrPort(netip.AddrPortFrom(datagram.Limited(), port)))
	return err
}

// meshConn is the socket of the mesh.
type meshConn struct {
	engine *engine
	conn   *rawio.UDPConn
	local  netip.AddrPort
	poller *rawio.Poller
	worker *worker

	counted time.Time
	dropped atomic.Uint64 // by the kernel

	mu       sync.Mutex // guards sending
	outgoing []rawio.Outgoing
	writable *rawio.Poller
	failures map[netip.AddrPort]failure // what is wrong with whom
}

// failure is why nothing can be sent to a peer.
type failure struct {
	errno unix.Errno
	last  time.Time
}

// count asks the kernel what it dropped, and forgets failures that are over.
func (c *meshConn) count(now time.Time) {
	c.counted = now
	if dropped, err := c.conn.Dropped(); err == nil {
		c.dropped.Store(dropped)
	}
	if f := c.engine.opts.Housekeeping; f != nil {
		f()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for to, f := range c.failures {
		if now.Sub(f.last) > failureOver {
			c.engine.log.Info("a peer can be sent to again", "peer", to)
			delete(c.failures, to)
		}
	}
}

// failureOver is how long nothing may have failed for a peer to count as one that can be sent to.
// Peers that have never answered are tried every ten seconds when there is nothing to relay.
const failureOver = 15 * time.Second

// failedLocked notes that a datagram could not be sent, and logs it if that is news.
func (c *meshConn) failedLocked(to netip.AddrPort, errno unix.Errno) {
	if f, known := c.failures[to]; !known || f.errno != errno {
		if !known && len(c.failures) >= mesh.MaxPeers {
			return
		}
		c.engine.log.Warn("cannot send to a peer", "peer", to, "error", errno)
	}
	c.failures[to] = failure{errno, time.Now()}
}

func openMeshConn(e *engine, listen netip.AddrPort) (c *meshConn, err error) {
	c = &meshConn{engine: e, worker: newWorker(e), failures: make(map[netip.AddrPort]failure)}
	if c.conn, err = rawio.OpenUDP(rawio.UDPOptions{Local: listen, ReceiveBuffer: socketBuffer, SendBuffer: socketBuffer}); err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("mesh port %d is in use, perhaps by another relay: %w", listen.Port(), err)
		}
		return nil, fmt.Errorf("mesh: %w", err)
	}
	c.local = c.conn.LocalAddr()
	if c.poller, err = rawio.NewPoller(); err == nil {
		c.writable, err = rawio.NewPoller()
	}
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	c.poller.Add(c.conn.FD(), rawio.Readable)
	c.writable.Add(c.conn.FD(), rawio.Writable)
	return c, nil
}

// linger is how long a loop that had something to do keeps its processor: broadcasts that come closer together than that
// cost a third less, and are late by less.
const linger = 3 * time.Millisecond

// maxArrivals is how many datagrams of the mesh are decided on at once: what a merged one can hold, twice.
const maxArrivals = 128

// fewArrivals are what came one by one. To ask again whether there is more costs a system call; the wait tells as well.
const fewArrivals = 16

func (c *meshConn) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, c.poller.Wake)
	defer stop()
	if err := c.poller.SetLinger(linger); err != nil {
		return err
	}
	incoming := make([]rawio.Incoming, maxArrivals)
	arrivals := make([]arrival, maxArrivals)
	w := c.worker
	var next time.Time // when there is something to do
	for ctx.Err() == nil {
		now := time.Now()
		if !now.Before(next) {
			next = w.tick(now)
		}
		if now.Sub(c.counted) >= countInterval {
			c.count(now)
		}
		for ctx.Err() == nil {
			n, err := c.conn.Receive(incoming)
			if err != nil {
				return fmt.Errorf("receive from the mesh: %w", err)
			}
			if n == 0 {
				break
			}
			for i := range n {
				arrivals[i] = arrival{incoming[i].From, incoming[i].Data}
			}
			now = time.Now()
			w.receive(arrivals[:n], now)
			if n < fewArrivals || !now.Before(next) {
				break
			}
		}
		// What was received, or set from elsewhere, may have brought the next thing to do forward.
		next = earlier(next, c.engine.mesh.Deadline())
		if wait := time.Until(next); wait > 0 {
			if err := c.poller.Wait(wait); err != nil {
				return err
			}
		}
	}
	return nil
}

// sendPatience is how long the mesh waits for room in the socket's buffer before it gives up on what it was to send:
// a network card empties it in less.
const sendPatience = 5 * time.Millisecond

func (c *meshConn) send(items []mesh.Outgoing) {
	if len(items) == 0 {
		return
	}
	e := c.engine
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outgoing = c.outgoing[:0]
	var size uint64
	for i := range items {
		c.outgoing = append(c.outgoing, rawio.Outgoing{To: items[i].To, Data: items[i].Data})
		size += uint64(len(items[i].Data))
	}
	rest := c.outgoing
	for patient := true; len(rest) > 0; {
		n, failed, err := c.conn.Send(rest)
		if err != nil {
			break
		}
		for _, f := range failed {
			c.failedLocked(rest[f.Index].To, f.Errno)
		}
		e.meshErrors.Add(uint64(len(failed)))
		rest = rest[n:]
		if len(rest) == 0 || n == 0 && !patient {
			break
		}
		patient = n > 0
		if err := c.writable.Wait(sendPatience); err != nil {
			break
		}
	}
	e.meshErrors.Add(uint64(len(rest)))
	e.meshSent.Add(uint64(len(items) - len(rest)))
	e.meshSentSize.Add(size)
}

// farewell tells peers that this relay is going.
func (c *meshConn) farewell() {
	var out mesh.Outbox
	c.engine.mesh.Close(&out)
	c.send(out.Items)
}

func (c *meshConn) close() error {
	var errs []error
	if c.conn != nil {
		errs = append(errs, c.conn.Close())
	}
	for _, p := range []*rawio.Poller{c.poller, c.writable} {
		if p != nil {
			errs = append(errs, p.Close())
		}
	}
	return errors.Join(errs...)
}
