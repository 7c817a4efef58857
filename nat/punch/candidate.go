// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package punch

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Proto is the transport of a candidate, and of the connection that came about.
type Proto uint8

// Transports.
const (
	TCP Proto = iota + 1
	UDP       // the connection is a QUIC stream
)

// String is the transport's name, in lower case as in networks of package net.
func (p Proto) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	default:
		return fmt.Sprintf("Proto(%d)", uint8(p))
	}
}

// Kind is how an address came to be known.
type Kind uint8

// Kinds of candidates.
const (
	LAN       Kind = iota + 1 // of an interface
	Observed                  // seen by another peer
	Mapped                    // assigned by a gateway (UPnP, NAT-PMP, PCP), or configured
	Predicted                 // what the NAT will probably use next
)

// String is the kind in a word.
func (k Kind) String() string {
	switch k {
	case LAN:
		return "lan"
	case Observed:
		return "observed"
	case Mapped:
		return "mapped"
	case Predicted:
		return "predicted"
	default:
		return fmt.Sprintf("Kind(%d)", uint8(k))
	}
}

// A Candidate is an endpoint at which a peer may be reached.
type Candidate struct {
	Addr  netip.AddrPort
	Proto Proto
	Kind  Kind
}

// String is the candidate as logs have it: "udp 203.0.113.5:4001 observed".
func (c Candidate) String() string { return fmt.Sprintf("%v %v %v", c.Proto, c.Addr, c.Kind) }

// order sorts candidates into the order in which they are tried. What was predicted comes first: each destination moves
// a counting NAT on, so that the prediction of the other side comes true for the first that are tried. What is tried is
// the same for all in the end; nothing waits for anything.
func order(cs []Candidate) {
	rank := func(c Candidate) int {
		return slices.Index([]Kind{Predicted, Observed, Mapped, LAN}, c.Kind)
	}
	slices.SortStableFunc(cs, func(a, b Candidate) int { return cmp.Compare(rank(a), rank(b)) })
}

// usable tells whether an address that the other side names is one to send to from a local one. The other side is not
// trusted with more than it would have by sending from there itself: nothing goes to this host, to a group or to a network's broadcast.
func usable(to netip.AddrPort, local netip.Addr) bool {
	a := to.Addr()
	switch {
	case !a.IsValid(), to.Port() == 0, a.IsUnspecified(), a.IsMulticast(), a.IsLinkLocalUnicast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return false
	case a.IsLoopback() != local.IsLoopback():
		return false
	case a.Is4() != local.Is4():
		return local == netip.IPv6Unspecified() // a socket for both
	}
	return true
}
