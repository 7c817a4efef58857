// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package stun

import (
	"fmt"
	"net/netip"
	"slices"
)

// Mapping is how a NAT chooses the outside endpoint of an inside one, in the words of RFC 4787 section 4.1.
type Mapping uint8

// Mappings.
const (
	MappingUnknown          Mapping = iota // too few answers to tell
	NoMapping                              // no NAT in between: what others see is ours
	EndpointIndependent                    // one for all destinations: what one peer sees, another can use
	AddressDependent                       // one for each address
	AddressAndPortDependent                // one for each address and port
	Dependent                              // one of the last two; servers at different addresses, with one port each, cannot tell which
)

var mappingNames = [...]string{"unknown", "no NAT", "endpoint-independent", "address-dependent", "address-and-port-dependent", "dependent on the destination"}

// String is what RFC 4787 calls it.
func (m Mapping) String() string {
	if int(m) < len(mappingNames) {
		return mappingNames[m]
	}
	return fmt.Sprintf("Mapping(%d)", uint8(m))
}

// Stable tells whether an observed address is of use to others than who observed it.
func (m Mapping) Stable() bool { return m == NoMapping || m == EndpointIndependent }

// Observation is what one server has seen of a socket.
type Observation struct {
	Server netip.AddrPort
	Mapped netip.AddrPort // invalid if the server has not answered: a NAT made a mapping all the same
}

// Behaviour is what is known of the NATs between a socket and others.
type Behaviour struct {
	Mapping Mapping
	// Mapped are the distinct addresses that others have seen, the latest first.
	Mapped []netip.AddrPort
	// Preserves tells that outside ports were the inside one.
	Preserves bool
	// Step is how far the outside port moves from one destination to the next, if it does so evenly; 0 if it does
	// not. Of a NAT that counts up it is 1, or 2 when pairs are kept for RTP.
	Step int
	// Silent is how many servers that have not answered were asked after the one that told the latest of Mapped.
	Silent int
}

// maxStep is the largest difference of ports that is taken for counting. A random choice comes this close once in
// four thousand.
const maxStep = 8

// Classify concludes from what servers have seen of one socket, in the order in which they were asked, with as little in
// between as possible. local are the addresses of the socket, with its port. Two servers at different
// addresses tell whether mappings depend on the destination; one with two ports besides, on which part of it. If there
// are servers of both versions of IP, it is IPv4 that all but Mapped is about.
func Classify(local []netip.AddrPort, seen []Observation) Behaviour {
	var b Behaviour
	for _, o := range slices.Backward(seen) {
		if o.Mapped.IsValid() && !slices.Contains(b.Mapped, o.Mapped) {
			b.Mapped = append(b.Mapped, o.Mapped)
		}
	}
	is4 := func(o Observation) bool { return o.Server.Addr().Is4() }
	answered4 := func(o Observation) bool { return o.Mapped.IsValid() && is4(o) }
	if slices.ContainsFunc(seen, answered4) {
		seen = slices.DeleteFunc(slices.Clone(seen), func(o Observation) bool { return !is4(o) })
	}

	none, preserves := len(b.Mapped) > 0, len(b.Mapped) > 0
	var byAddress, byPort struct{ same, differ bool }
	for i, x := range seen {
		if !x.Mapped.IsValid() {
			continue
		}
		none = none && slices.Contains(local, x.Mapped)
		preserves = preserves && slices.ContainsFunc(local, func(l netip.AddrPort) bool { return l.Port() == x.Mapped.Port() })
		for _, y := range seen[:i] {
			pair := &byAddress
			switch {
			case !y.Mapped.IsValid() || x.Server == y.Server:
				continue
			case x.Server.Addr() == y.Server.Addr():
				pair = &byPort
			}
			if x.Mapped == y.Mapped {
				pair.same = true
			} else {
				pair.differ = true
			}
		}
	}
	b.Preserves = preserves
	switch {
	case none:
		b.Mapping = NoMapping
	case byPort.differ:
		b.Mapping = AddressAndPortDependent
	case byAddress.differ && byPort.same:
		b.Mapping = AddressDependent
	case byAddress.differ:
		b.Mapping = Dependent
	case byAddress.same:
		b.Mapping = EndpointIndependent
	}
	if !b.Mapping.Stable() {
		b.Step, b.Silent = step(seen)
	}
	return b
}

// step finds the even difference between the ports of successive observations, or 0, and
// how many were asked in vain after the last of them.
func step(seen []Observation) (s, silent int) {
	var before netip.AddrPort
	for _, o := range seen {
		silent++
		if !o.Mapped.IsValid() {
			continue
		}
		if before.IsValid() {
			d := int(o.Mapped.Port()) - int(before.Port())
			if o.Mapped.Addr() != before.Addr() || d == 0 || d%silent != 0 {
				return 0, 0
			}
			if d /= silent; max(d, -d) > maxStep || s != 0 && s != d {
				return 0, 0
			}
			s = d
		}
		before, silent = o.Mapped, 0
	}
	if s == 0 {
		return 0, 0
	}
	return s, silent
}

// Predict gives the n outside endpoints that a NAT which counts will probably use next, in order, or none if it
// does not count.
func (b Behaviour) Predict(n int) []netip.AddrPort {
	latest := slices.IndexFunc(b.Mapped, func(m netip.AddrPort) bool { return m.Addr().Is4() })
	if b.Step == 0 || len(b.Mapped) == 0 {
		return nil
	}
	last := b.Mapped[max(latest, 0)]
	var next []netip.AddrPort
	for i := 1; i <= n; i++ {
		port := int(last.Port()) + (b.Silent+i)*b.Step
		if port < 1024 || port > 0xffff {
			break // where it goes on from here is anybody's guess
		}
		next = append(next, netip.AddrPortFrom(last.Addr(), uint16(port)))
	}
	return next
}
