// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/nat/natpmp"
	"github.com/seed5728abee/fathom/nat/pcp"
)

// firstRetry is when an unanswered request is sent again for the first time; each further pause is twice the one before (RFC 6886, section
// 3.1). It goes on until the context ends: a minute, as the RFCs would have it, is longer than anybody waits for a neighbour.
const firstRetry = 250 * time.Millisecond

// askTimeout bounds an exchange with a gateway that has answered before: five tries.
const askTimeout = 4 * time.Second

// control speaks PCP and NAT-PMP with one gateway, over one connected socket: the kernel hands in only what comes from
// the gateway's address and port, and says when nobody listens there.
type control struct {
	conn           *net.UDPConn
	announcements  *net.UDPConn // nil where another program has the port for itself
	gateway, local netip.Addr
	allowPrivate   bool
	log            *slog.Logger
	// reset is called, on a goroutine of this control, when the gateway turns out to have lost its mappings.
	reset func()

	reading sync.WaitGroup

	mu      sync.Mutex
	waiting map[*exchange]struct{}
	epochs  [pcp.Version + 1]epoch // by version
	since   time.Time              // of the first answer, or of the latest announcement of a restart
}

// exchange is a question under way.
type exchange struct {
	accept func(packet []byte) bool
	done   chan error // takes one: nil for an answer that was accepted
}

// dialControl opens the socket, inside o.Do.
func dialControl(o *Options, gateway netip.Addr, reset func()) (*control, error) {
	c := &control{gateway: gateway, allowPrivate: o.AllowPrivate, log: o.Log, reset: reset, waiting: map[*exchange]struct{}{}}
	err := o.Do(func() (err error) {
		to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(gateway, o.ControlPort))
		if c.conn, err = net.DialUDP("udp4", nil, to); err != nil {
			return err
		}
		if o.ControlPort == pcp.Port {
			// Several programs may listen: Go shares the ports of multicast sockets.
			group := &net.UDPAddr{IP: net.IPv4(224, 0, 0, 1), Port: pcp.AnnouncePort}
			if c.announcements, err = net.ListenMulticastUDP("udp4", nil, group); err != nil {
				o.Log.Debug("no announcements of gateways will be heard", "error", err)
				c.announcements = nil
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reach gateway %v: %w", gateway, err)
	}
	c.local = c.conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	c.reading.Go(c.read)
	if c.announcements != nil {
		c.reading.Go(c.hear)
	}
	return c, nil
}

// close ends all exchanges, and waits for the goroutines.
func (c *control) close() {
	c.conn.Close()
	if c.announcements != nil {
		c.announcements.Close()
	}
	c.reading.Wait()
}

// read takes the gateway's answers until the socket is closed.
func (c *control) read() {
	defer c.fail(net.ErrClosed)
	buf := make([]byte, 2*pcp.MaxSize)
	for {
		n, err := c.conn.Read(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // an ICMP error: nobody listens there, or there is no way there
			c.fail(fmt.Errorf("%w: %w", ErrNoAnswer, err))
			time.Sleep(10 * time.Millisecond) // whatever the error, do not spin
		default:
			c.take(buf[:n])
		}
	}
}

// hear takes announcements until the socket is closed.
func (c *control) hear() {
	buf := make([]byte, 2*pcp.MaxSize)
	for {
		n, from, err := c.announcements.ReadFromUDPAddrPort(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			time.Sleep(10 * time.Millisecond)
		case from.Addr().Unmap() == c.gateway:
			c.announced(buf[:n])
		}
	}
}

// announced looks at the clock in an announcement, which may be of the other protocol than the one in use: miniupnpd announces its start
// by PCP only. A gateway that has answered already, and says that it began later than that, has lost its mappings.
func (c *control) announced(packet []byte) {
	_, value, ok := clock(packet)
	if !ok {
		return
	}
	c.mu.Lock()
	// The same is announced ten times over minutes.
	restarted := !c.since.IsZero() && time.Duration(value)*time.Second+2*time.Second < time.Since(c.since)
	if restarted {
		c.since = time.Now()
	}
	c.mu.Unlock()
	if restarted {
		c.log.Debug("gateway announces a restart", "gateway", c.gateway)
		c.reset()
	}
}

// take looks at the clock in a packet of the gateway, and gives the packet to whoever waits for it.
func (c *control) take(packet []byte) {
	version, value, ok := clock(packet)
	if !ok {
		return
	}
	c.mu.Lock()
	if c.since.IsZero() {
		c.since = time.Now()
	}
	restarted := c.epochs[version].restarted(version, value, time.Now())
	for x := range c.waiting {
		if x.accept(packet) {
			delete(c.waiting, x)
			x.done <- nil
		}
	}
	c.mu.Unlock()
	if restarted {
		c.log.Debug("gateway has restarted", "gateway", c.gateway)
		c.reset()
	}
}

// clock finds the version and the epoch of an answer.
func clock(packet []byte) (version byte, value uint32, ok bool) {
	if r, err := natpmp.ParseResponse(packet); err == nil {
		return natpmp.Version, r.Epoch, true
	}
	if r, err := pcp.ParseResponse(packet); err == nil {
		return pcp.Version, r.Epoch, true
	}
	return 0, 0, false
}

// fail ends all exchanges.
func (c *control) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for x := range c.waiting {
		delete(c.waiting, x)
		x.done <- err
	}
}

// ask sends a request, again and again, until an answer comes that accept takes, or ctx ends. accept is called on another
// goroutine, but never after ask has returned, and must not keep the packet.
func (c *control) ask(ctx context.Context, request []byte, accept func(packet []byte) bool) error {
	x := &exchange{accept: accept, done: make(chan error, 1)}
	c.mu.Lock()
	c.waiting[x] = struct{}{}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, x)
		c.mu.Unlock()
	}()
	for pause := firstRetry; ; pause *= 2 {
		if _, err := c.conn.Write(request); err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			// An ICMP error about an earlier packet, of any exchange, may come back from here as well.
			err = fmt.Errorf("%w: %w", ErrNoAnswer, err)
			c.fail(err)
			return err
		}
		retry := time.NewTimer(pause)
		select {
		case err := <-x.done:
			retry.Stop()
			return err
		case <-ctx.Done():
			retry.Stop()
			return fmt.Errorf("%w: %w", ErrNoAnswer, ctx.Err())
		case <-retry.C:
		}
	}
}

// pmpDoor asks by NAT-PMP.
type pmpDoor struct{ *control }

func (d pmpDoor) method() Method      { return NATPMP }
func (d pmpDoor) client() netip.Addr  { return d.local }
func (d pmpDoor) address() netip.Addr { return d.gateway }

func (d pmpDoor) ask(ctx context.Context, r natpmp.Request) (natpmp.Response, error) {
	var got natpmp.Response
	err := d.control.ask(ctx, r.Append(nil), func(packet []byte) bool {
		var err error
		got, err = natpmp.ParseResponse(packet)
		// "Unsupported version" is an answer to somebody's PCP.
		return err == nil && got.Op == r.Op && got.Result != natpmp.UnsupportedVersion && (r.Op == natpmp.ExternalAddress || got.InternalPort == r.InternalPort ||
			got.Result != natpmp.Success && got.InternalPort == 0) // some leave out what they refuse
	})
	if err != nil {
		return natpmp.Response{}, err
	}
	switch got.Result {
	case natpmp.Success:
		return got, nil
	case natpmp.UnsupportedOpcode:
		return got, fmt.Errorf("%w: NAT-PMP: %v", ErrNoAnswer, got.Result)
	case natpmp.NetworkFailure:
		return got, fmt.Errorf("NAT-PMP: %v: %w", got.Result, doubleNAT(d.gateway, netip.Addr{}))
	default:
		return got, fmt.Errorf("%w: NAT-PMP: %v", ErrRefused, got.Result)
	}
}

func (d pmpDoor) external(ctx context.Context) (netip.Addr, error) {
	r, err := d.ask(ctx, natpmp.Request{Op: natpmp.ExternalAddress})
	return r.External, err
}

func (d pmpDoor) add(ctx context.Context, l lease) (lease, error) {
	external, err := d.external(ctx)
	switch {
	case err != nil:
		return lease{}, err
	case !IsPublic(external) && !d.allowPrivate:
		return lease{}, doubleNAT(d.gateway, external)
	}
	r, err := d.ask(ctx, d.request(l, l.external.Port(), max(l.lifetime, time.Second)))
	switch {
	case err != nil:
		return lease{}, err
	case r.ExternalPort == 0 || r.Lifetime == 0:
		return lease{}, fmt.Errorf("%w: NAT-PMP: mapped port %d for %v", ErrRefused, r.ExternalPort, r.Lifetime)
	}
	l.external = netip.AddrPortFrom(external, r.ExternalPort)
	l.lifetime = r.Lifetime
	return l, nil
}

func (d pmpDoor) remove(ctx context.Context, l lease) error {
	_, err := d.ask(ctx, d.request(l, 0, 0))
	return err
}

// check looks whether the external address is the same. That the gateway has lost its mappings, take sees.
func (d pmpDoor) check(ctx context.Context, l lease) error {
	external, err := d.external(ctx)
	if err == nil && external != l.external.Addr() {
		err = fmt.Errorf("%w: external address is %v", errStale, external)
	}
	return err
}

func (d pmpDoor) request(l lease, port uint16, lifetime time.Duration) natpmp.Request {
	op := natpmp.MapTCP
	if l.protocol == UDP {
		op = natpmp.MapUDP
	}
	return natpmp.Request{Op: op, InternalPort: l.internal.Port(), ExternalPort: port, Lifetime: lifetime}
}

// probe asks for what tells that somebody speaks NAT-PMP. That a gateway has no address is an answer too.
func (d pmpDoor) probe(ctx context.Context) (Answer, error) {
	r, err := d.ask(ctx, natpmp.Request{Op: natpmp.ExternalAddress})
	a := Answer{Uptime: time.Duration(r.Epoch) * time.Second}
	if !r.External.IsUnspecified() {
		a.External = r.External
	}
	return a, err
}

// pcpDoor asks by PCP.
type pcpDoor struct{ *control }

func (d pcpDoor) method() Method      { return PCP }
func (d pcpDoor) client() netip.Addr  { return d.local }
func (d pcpDoor) address() netip.Addr { return d.gateway }

func (d pcpDoor) ask(ctx context.Context, r pcp.Request) (pcp.Response, error) {
	r.Client = d.local
	var got pcp.Response
	older := false
	err := d.control.ask(ctx, r.Append(nil), func(packet []byte) bool {
		if pmp, err := natpmp.ParseResponse(packet); err == nil && pmp.Result == natpmp.UnsupportedVersion {
			older = true
			return true
		}
		var err error
		got, err = pcp.ParseResponse(packet)
		// "Unsupported version" 2 is an answer to somebody's NAT-PMP.
		if err != nil || got.Opcode != r.Opcode || got.Result == pcp.UnsupportedVersion {
			return false
		}
		return r.Opcode != pcp.Map || got.Mapping.Nonce == r.Mapping.Nonce && got.Mapping.Protocol == r.Mapping.Protocol &&
			got.Mapping.InternalPort == r.Mapping.InternalPort
	})
	switch {
	case err != nil:
		return pcp.Response{}, err
	case older:
		return pcp.Response{}, fmt.Errorf("%w: the gateway speaks NAT-PMP, not PCP", ErrNoAnswer)
	case got.Result == pcp.Success:
		return got, nil
	case got.Result == pcp.CannotProvideExternal:
		return got, fmt.Errorf("%w: PCP: %v", ErrPortTaken, got.Result)
	case got.Result == pcp.AddressMismatch, got.Result == pcp.NetworkFailure:
		return got, fmt.Errorf("PCP: %v: %w", got.Result, doubleNAT(d.gateway, netip.Addr{}))
	}
	if a := got.Mapping.External.Addr(); r.Opcode == pcp.Map && a.IsValid() && !a.IsUnspecified() && !IsPublic(a) {
		// miniupnpd says that it lacks resources when what it lacks is a public address, and shows which one it has.
		return got, fmt.Errorf("PCP: %v: %w", got.Result, doubleNAT(d.gateway, a))
	}
	return got, fmt.Errorf("%w: PCP: %v", ErrRefused, got.Result)
}

func (d pcpDoor) add(ctx context.Context, l lease) (lease, error) {
	if l.nonce == (pcp.Nonce{}) {
		rand.Read(l.nonce[:]) // never fails: crypto/rand
	}
	r, err := d.ask(ctx, d.request(l, max(l.lifetime, time.Second)))
	switch {
	case err != nil:
		return lease{}, err
	case r.Mapping.External.Port() == 0 || r.Lifetime == 0:
		return lease{}, fmt.Errorf("%w: PCP: mapped %v for %v", ErrRefused, r.Mapping.External, r.Lifetime)
	}
	l.external = r.Mapping.External
	l.lifetime = r.Lifetime
	if external := l.external.Addr(); !IsPublic(external) && !d.allowPrivate {
		// Only a mapping tells the address. If it cannot be removed, its lease will end.
		if err := d.remove(ctx, l); err != nil {
			d.log.Debug("remove a mapping that leads nowhere", "error", err)
		}
		return lease{}, doubleNAT(d.gateway, external)
	}
	return l, nil
}

func (d pcpDoor) remove(ctx context.Context, l lease) error {
	_, err := d.ask(ctx, d.request(l, 0))
	return err
}

// check makes the gateway show its clock, which take looks at: it starts again when the external address changes, too (RFC
// 6887, section 8.5). Whatever else the answer says, even that ANNOUNCE is unknown, it is one.
func (d pcpDoor) check(ctx context.Context, _ lease) error {
	_, err := d.ask(ctx, pcp.Request{Opcode: pcp.Announce})
	if errors.Is(err, ErrRefused) {
		return nil
	}
	return err
}

func (d pcpDoor) request(l lease, lifetime time.Duration) pcp.Request {
	protocol := uint8(pcp.TCP)
	if l.protocol == UDP {
		protocol = pcp.UDP
	}
	return pcp.Request{
		Opcode: pcp.Map, Lifetime: lifetime,
		Mapping: pcp.Mapping{Nonce: l.nonce, Protocol: protocol, InternalPort: l.internal.Port(), External: l.external},
	}
}

func (d pcpDoor) probe(ctx context.Context) (Answer, error) {
	r, err := d.ask(ctx, pcp.Request{Opcode: pcp.Announce})
	if errors.Is(err, ErrRefused) { // in the language
		err = nil
	}
	return Answer{Uptime: time.Duration(r.Epoch) * time.Second}, err
}
