// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/nat/pcp"
)

// lease is a mapping of one protocol, as a gateway is asked for it and has granted it.
type lease struct {
	protocol           Protocol // one
	internal, external netip.AddrPort
	lifetime           time.Duration // 0, if granted: until removed
	description        string
	nonce              pcp.Nonce // PCP only; chosen by the first request
}

// errStale: the gateway does not have the lease any more as it was granted.
var errStale = errors.New("mapping is no longer there")

// door is one method of one gateway.
type door interface {
	method() Method
	// client is this host's address as the gateway sees it, address the gateway's.
	client() netip.Addr
	address() netip.Addr
	// probe asks for what can be known without a mapping.
	probe(ctx context.Context) (Answer, error)
	// add maps a port, or extends the lease of one that is mapped. The external port of what is returned may be another one
	// than asked for. ErrPortTaken asks to try another one.
	add(ctx context.Context, l lease) (lease, error)
	// remove ends a lease; one that is not there is no error.
	remove(ctx context.Context, l lease) error
	// check returns errStale for a lease that has to be asked for again, and another error if the gateway does not answer.
	check(ctx context.Context, l lease) error
}

// Answer is how a gateway takes one method.
type Answer struct {
	Method Method
	// Gateway is who was asked.
	Gateway netip.Addr
	// Took is the time until the answer, or until it was given up.
	Took time.Duration
	// External is the gateway's external address; invalid if it did not tell, as PCP does not without a mapping.
	External netip.Addr
	// Uptime is for how long the gateway has kept its mappings, or with UPnP its connection; 0 if it did not tell.
	Uptime time.Duration
	// Device is the name that the gateway gives itself; UPnP only.
	Device string
	// Err is nil if the gateway maps ports by this method, [ErrNoAnswer] if it does not speak it.
	Err error
}

// site is what a discovery has found: where this host is.
type site struct {
	gateway, local netip.Addr
	doors          []door // the preferred one first
	answers        []Answer
	// partial means that methods were not waited for, because a better one had answered.
	partial bool
	control *control // nil if no method needs one
}

func (s *site) close() {
	if s != nil && s.control != nil {
		s.control.close()
	}
}

// route finds the gateway, and the address that this host has towards it. Both are invalid where the system does not tell.
func route(o *Options) (gateway, local netip.Addr, err error) {
	err = o.Do(func() (err error) {
		if gateway = o.Gateway; !gateway.IsValid() {
			if gateway, err = defaultGateway(); err != nil {
				return err
			}
		}
		local, err = localAddr(gateway)
		return err
	})
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return netip.Addr{}, netip.Addr{}, nil
	case errors.Is(err, errNoRoute):
		return netip.Addr{}, netip.Addr{}, fmt.Errorf("%w: %w", ErrNoGateway, err)
	case err != nil:
		return netip.Addr{}, netip.Addr{}, fmt.Errorf("find the gateway: %w", err)
	}
	return gateway, local, nil
}

// localAddr is the address that packets to another one leave from. A UDP socket finds out without sending any.
func localAddr(to netip.Addr) (netip.Addr, error) {
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, pcp.Port)))
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

// grace is how long a discovery waits for a method that it would prefer, once another one has answered.
const grace = 200 * time.Millisecond

// find asks by all methods at once, and waits for all of them, or until it is clear which is the best. reset is called, later, when
// the gateway turns out to have lost its mappings.
func find(ctx context.Context, o *Options, all bool, reset func()) (*site, error) {
	methods := o.methods()
	if len(methods) == 0 {
		return nil, fmt.Errorf("%w: port mapping is off", ErrNoGateway)
	}
	s := &site{}
	var err error
	if s.gateway, s.local, err = route(o); err != nil {
		return nil, err
	}
	if s.gateway.IsValid() && slices.ContainsFunc(methods, func(m Method) bool { return m != UPnP }) {
		if s.control, err = dialControl(o, s.gateway, reset); err != nil {
			return nil, err
		}
	}

	type outcome struct {
		door   door
		answer Answer
	}
	asker := ctx
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	outcomes := make(chan outcome, len(methods))
	var asking sync.WaitGroup
	began := time.Now()
	for _, m := range methods {
		asking.Go(func() {
			d, a, err := ask(ctx, o, s, m)
			a.Method, a.Took, a.Err = m, time.Since(began), err
			if !a.Gateway.IsValid() {
				a.Gateway = s.gateway
			}
			outcomes <- outcome{d, a}
		})
	}
	defer asking.Wait()
	defer cancel()

	byMethod := map[Method]outcome{}
	var enough <-chan time.Time
	for len(byMethod) < len(methods) && !s.partial {
		select {
		case got := <-outcomes:
			byMethod[got.answer.Method] = got
			if got.answer.Err != nil || all {
				break
			}
			if enough == nil {
				enough = time.After(grace)
			}
		case <-enough:
			s.partial = true
		}
		// The best of those that have not failed is there: nothing that may still come is better.
		for _, m := range methods {
			got, ok := byMethod[m]
			if ok && got.answer.Err == nil && !all {
				s.partial = len(byMethod) < len(methods)
			}
			if !ok || got.answer.Err == nil {
				break
			}
		}
	}
	var failures []error
	for _, m := range methods {
		got, ok := byMethod[m]
		switch {
		case !ok:
			continue
		case got.door != nil:
			s.doors = append(s.doors, got.door)
		default:
			failures = append(failures, fmt.Errorf("%v: %w", m, got.answer.Err))
		}
		s.answers = append(s.answers, got.answer)
	}
	if s.gateway.IsValid() {
		o.Log.Debug("gateway", "address", s.gateway, "local", s.local, "methods", len(s.doors), "took", time.Since(began))
	}
	if len(s.doors) == 0 {
		s.close()
		s.control = nil
		if err := asker.Err(); err != nil {
			return nil, err
		}
		return s, fmt.Errorf("%w: %w", ErrNoGateway, errors.Join(failures...))
	}
	if !s.gateway.IsValid() {
		s.gateway, s.local = s.doors[0].address(), s.doors[0].client()
	}
	return s, nil
}

// ask tries one method. The door is not nil if the gateway speaks it, even if what it says is that it cannot map.
func ask(ctx context.Context, o *Options, s *site, m Method) (door, Answer, error) {
	var d door
	switch {
	case m == UPnP:
		u, err := findUPnP(ctx, o, s.gateway, s.local)
		if err != nil {
			return nil, Answer{}, err
		}
		d = u
	case s.control == nil:
		return nil, Answer{}, fmt.Errorf("%w: the default gateway is not known", ErrNoAnswer)
	case m == PCP:
		d = pcpDoor{s.control}
	default:
		d = pmpDoor{s.control}
	}
	a, err := d.probe(ctx)
	a.Gateway = d.address()
	if err != nil && (errors.Is(err, ErrNoAnswer) || errors.Is(err, net.ErrClosed)) {
		return nil, a, err
	}
	return d, a, err
}

// findUPnP searches, and gives the first device that maps ports.
func findUPnP(ctx context.Context, o *Options, gateway, local netip.Addr) (*upnpDoor, error) {
	var d *upnpDoor
	var failed error
	err := search(ctx, o, gateway, local, func(f found) bool {
		client := local
		if !client.IsValid() {
			err := o.Do(func() (err error) {
				client, err = localAddr(f.from)
				return err
			})
			if err != nil {
				failed = err
				return false
			}
		}
		opened, err := openUPnP(ctx, o, f, client)
		if err != nil {
			failed = err
			o.Log.Debug("UPnP device", "location", f.location, "error", err)
			return false
		}
		d = opened
		return true
	})
	switch {
	case d != nil:
		return d, nil
	case failed != nil:
		return nil, fmt.Errorf("%w: %w", ErrNoAnswer, failed)
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("%w: no UPnP gateway answers the search", ErrNoAnswer)
	}
	return nil, fmt.Errorf("%w: %w", ErrNoAnswer, err)
}
