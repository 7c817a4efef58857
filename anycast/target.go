// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
	"net/netip"

	"github.com/gaissmai/bart"
)

// Target is an address to measure.
type Target struct {
	Addr netip.Addr
	// Name is what the user called it, empty if that was the address.
	Name string
}

// Network is the unit in which catchments are counted and networks are spared: the /24 of an IPv4 address, the
// /48 of an IPv6 address. That is the longest prefix that is routed globally.
func Network(a netip.Addr) netip.Prefix {
	bits := 24
	if a = a.Unmap().WithZone(""); a.Is6() {
		bits = 48
	}
	p, _ := a.Prefix(bits) // fails only for the zero Addr, whose Prefix is the zero one
	return p
}

// Why targets are left out, as in [Summary.Skipped].
const (
	SkipInvalid   = "invalid"
	SkipDuplicate = "duplicate"
	SkipOptOut    = "opt-out"
	SkipPrivate   = "private"
	SkipLoopback  = "loopback"
	SkipLinkLocal = "link-local"
	SkipMulticast = "multicast"
	SkipReserved  = "reserved"
	// SkipNoSource means that no sender has an address of the target's IP version.
	SkipNoSource = "no source"
	// SkipUnresolved means that a name of a feed has no address.
	SkipUnresolved = "unresolved"
	// SkipDone means that there are results already, of a run that is being resumed.
	SkipDone = "done"
)

// reserved are networks without hosts of the public Internet, beside those that package netip knows: RFC 6890 and
// its registries at IANA.
var reserved = func() *bart.Lite {
	t := new(bart.Lite)
	for _, p := range []string{
		"0.0.0.0/8", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24",
		"203.0.113.0/24", "240.0.0.0/4",
		"::/8", "64:ff9b:1::/48", "100::/64", "2001:2::/48", "2001:db8::/32", "3fff::/20", "5f00::/16",
	} {
		t.Insert(netip.MustParsePrefix(p))
	}
	return t
}()

// shared is the address space of carriers' NATs (RFC 6598).
var shared = netip.MustParsePrefix("100.64.0.0/10")

// Special tells why an address is not one to measure on the public Internet, in the words of [Summary.Skipped];
// it is empty for the others.
func Special(a netip.Addr) string {
	a = a.Unmap()
	switch {
	case !a.IsValid() || a.IsUnspecified():
		return SkipInvalid
	case a.IsMulticast():
		return SkipMulticast
	case a.IsLoopback():
		return SkipLoopback
	case a.IsLinkLocalUnicast():
		return SkipLinkLocal
	case a.IsPrivate() || shared.Contains(a):
		return SkipPrivate
	case reserved.Contains(a):
		return SkipReserved
	}
	return ""
}

// filter decides which targets are probed.
type filter struct {
	allowPrivate bool
	optOut       bart.Lite
	done         func(netip.Addr) bool
	four, six    bool // there are senders for it
	skipped      map[string]int
}

func newFilter(d *Definition, done func(netip.Addr) bool, origins []sender) *filter {
	f := &filter{allowPrivate: d.AllowPrivate, done: done, skipped: make(map[string]int)}
	for _, p := range d.OptOut {
		f.optOut.Insert(p.Masked())
	}
	for i := range origins {
		for _, sources := range origins[i].sources {
			f.four, f.six = f.four || sources[0].IsValid(), f.six || sources[1].IsValid()
		}
	}
	return f
}

// takes tells whether a target is probed, and counts why not.
func (f *filter) takes(a netip.Addr) bool {
	why := Special(a)
	if f.allowPrivate && why != SkipInvalid && why != SkipMulticast {
		why = ""
	}
	switch {
	case why != "":
	case f.optOut.Contains(a):
		why = SkipOptOut
	case a.Is4() && !f.four || a.Is6() && !f.six:
		why = SkipNoSource
	case f.done != nil && f.done(a):
		why = SkipDone
	default:
		return true
	}
	f.skipped[why]++
	return false
}

// sourceOf is the address that a site sends anycast probes of an IP version from: the one asked for, or else its
// first. It is the zero Addr if there is none.
func sourceOf(s *Site, asked netip.Addr, six bool) netip.Addr {
	for _, a := range s.Anycast {
		if a.Is6() == six && (!asked.IsValid() || a == asked) {
			return a
		}
	}
	return netip.Addr{}
}

// unicastOf is the first address of the site's own of an IP version.
func unicastOf(s *Site, six bool) netip.Addr {
	for _, a := range s.Unicast {
		if a.Is6() == six {
			return a
		}
	}
	return netip.Addr{}
}
