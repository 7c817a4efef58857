// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package member

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// A Binding is what the members of a swarm take their IDs from. All members of one swarm use the same.
type Binding uint8

const (
	// ByAddress takes the ID from the address: [OfAddr]. Anyone who can be reached at an address can have its place.
	ByAddress Binding = iota
	// ByKey takes the ID from the public key: [OfKey].
	ByKey
)

func (b Binding) String() string {
	switch b {
	case ByAddress:
		return "address"
	case ByKey:
		return "key"
	default:
		return fmt.Sprintf("Binding(%d)", uint8(b))
	}
}

// A Dialect is how a member speaks.
type Dialect uint8

const (
	// Unknown is what is heard about from a peer that cannot tell: Cicada's messages name others by ID and address.
	Unknown Dialect = iota
	// Native members speak Fathom's protocol.
	Native
	// Original members are Cicada's peers.
	Original
)

func (d Dialect) String() string {
	switch d {
	case Unknown:
		return "unknown"
	case Native:
		return "native"
	case Original:
		return "original"
	default:
		return fmt.Sprintf("Dialect(%d)", uint8(d))
	}
}

// Bounds on what a contact can hold. More is refused by decoders.
const (
	MaxAddrs = 8
	MaxHosts = 4
)

// A Contact is what has to be known about a member to reach it. Contacts are values: nothing changes one that has been
// handed on, so they can be shared between goroutines.
type Contact struct {
	ID      ID
	Dialect Dialect

	// Leaf members cannot be reached from outside. They are not in anyone's routing table; they keep links to their
	// Hosts, the members at and after their place on the ring, through which others meet them.
	Leaf bool

	// Key is the member's public key, 32 bytes, or nil when not known (and with an Original).
	Key ed25519.PublicKey

	// Addrs are where the member listens, at most MaxAddrs, the one it is known by first; the rest are further
	// candidates: on its LAN, IPv6, as others see it. They are unicast addresses with a port, without a zone; IPv4 is
	// never in IPv6 form, so that equal addresses compare equal.
	Addrs []netip.AddrPort

	// Hosts are the members a Leaf keeps links to, at most MaxHosts. Hosts are no leaves and have no hosts.
	Hosts []Contact
}

// Addr returns the address that the member is known by, the zero AddrPort if none.
func (c Contact) Addr() netip.AddrPort {
	if len(c.Addrs) == 0 {
		return netip.AddrPort{}
	}
	return c.Addrs[0]
}

// String returns the short ID and the address: for logs and tables.
func (c Contact) String() string {
	if len(c.Addrs) == 0 {
		return c.ID.Short()
	}
	return c.ID.Short() + " (" + c.Addrs[0].String() + ")"
}

// Equal reports whether two contacts say the same.
func (c Contact) Equal(d Contact) bool {
	return c.ID == d.ID && c.Dialect == d.Dialect && c.Leaf == d.Leaf && slices.Equal(c.Key, d.Key) &&
		slices.Equal(c.Addrs, d.Addrs) && slices.EqualFunc(c.Hosts, d.Hosts, Contact.Equal)
}

// Errors of [Contact.Verify].
var (
	ErrUnbound = errors.New("the member's ID is not that of its address or key")
	ErrForm    = errors.New("the contact is malformed")
)

// Verify checks that a contact is well formed and that its ID is bound as the swarm demands: to the key ([ByKey]) or
// to the first address ([ByAddress]). An Original is always bound by its address, or by 0.0.0.0
// and its port.
func (c Contact) Verify(b Binding) error {
	if len(c.Addrs) > MaxAddrs || len(c.Hosts) > MaxHosts || len(c.Key) != 0 && len(c.Key) != ed25519.PublicKeySize {
		return ErrForm
	}
	for _, a := range c.Addrs {
		if !dialable(a) {
			return ErrForm
		}
	}
	if !c.Leaf && len(c.Hosts) != 0 {
		return ErrForm
	}
	for _, h := range c.Hosts {
		if h.Leaf {
			return ErrForm
		}
		if err := h.Verify(b); err != nil {
			return err
		}
	}
	switch {
	case b == ByKey && c.Dialect != Original:
		if len(c.Key) == 0 || c.ID != OfKey(c.Key) {
			return ErrUnbound
		}
	case len(c.Addrs) == 0 || c.ID != OfAddr(c.Addrs[0]) && (c.Dialect != Original || c.ID != ofAnyAddr(c.Addrs[0])):
		return ErrUnbound
	}
	return nil
}

// ofAnyAddr returns the ID of an original that is bound to all interfaces, as it is when its command line does not say
// otherwise: it takes 0.0.0.0 for its address.
func ofAnyAddr(addr netip.AddrPort) ID {
	return OfAddr(netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port()))
}

// dialable tells whether an address can be a member's. An unspecified one would be taken for this host by connect.
func dialable(a netip.AddrPort) bool {
	ip := a.Addr()
	return ip.IsValid() && !ip.Is4In6() && ip.Zone() == "" && a.Port() != 0 &&
		!ip.IsUnspecified() && !ip.IsMulticast() && ip != broadcast
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})
