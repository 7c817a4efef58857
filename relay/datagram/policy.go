// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/gaissmai/bart"

	"github.com/seed5728abee/fathom/relay/drop"
)

// ErrConfig is in every error about what a policy cannot be made of.
var ErrConfig = errors.New("not a policy")

// PortRange is the UDP ports from First to Last, both included. Port 0 is in none.
type PortRange struct{ First, Last uint16 }

// String is the range as [ParsePorts] reads it: "5064" or "5064-5065".
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// ParsePorts reads a list of ports and ranges of ports: "5064-5065,5076". Errors are [ErrConfig].
func ParsePorts(list string) ([]PortRange, error) {
	var ranges []PortRange
	for item := range strings.SplitSeq(list, ",") {
		first, last, both := strings.Cut(strings.TrimSpace(item), "-")
		if !both {
			last = first
		}
		a, err1 := strconv.ParseUint(strings.TrimSpace(first), 10, 16)
		b, err2 := strconv.ParseUint(strings.TrimSpace(last), 10, 16)
		r := PortRange{uint16(a), uint16(b)}
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("%w: %q is neither a port nor a range like 5064-5065", ErrConfig, item)
		}
		if err := r.check(); err != nil {
			return nil, err
		}
		ranges = append(ranges, r)
	}
	return ranges, nil
}

func (r PortRange) check() error {
	switch {
	case r.First == 0:
		return fmt.Errorf("%w: ports %v: port 0 cannot be sent to", ErrConfig, r)
	case r.First > r.Last:
		return fmt.Errorf("%w: ports %v: the first is greater than the last", ErrConfig, r)
	}
	return nil
}

// Group is a multicast group to relay.
type Group struct {
	Addr  netip.Addr  // IPv4 or IPv6, without a zone
	Ports []PortRange // none means those of the policy
}

// Config is what a [Policy] is made of. At least one port, or a group with one, has to be there.
type Config struct {
	// Ports are the destination ports of broadcasts to relay.
	Ports []PortRange
	// Groups are the multicast groups to relay; any number, at 8 KiB for each with ports of its own.
	Groups []Group
	// Prefixes are the interface's addresses with the lengths of their subnets, the main one first. Their
	// broadcast addresses are the segment's directed ones; subnets of one or two addresses have none (RFC 3021).
	// IPv6 ones do not matter.
	Prefixes []netip.Prefix
	// Broadcasts are directed broadcast addresses that the interface has been given beside those of its prefixes.
	Broadcasts []netip.Addr
	// Allow and Deny say which sources are relayed. The longest prefix that holds a source decides; a source in
	// none of them is relayed unless Allow names any. Both empty: all are.
	Allow, Deny []netip.Prefix
	// RewriteDirected makes limited broadcasts from elsewhere into directed ones of this segment, for
	// servers that listen on that address only. A segment without one keeps them.
	RewriteDirected bool
}

// Policy says what is relayed from and to one segment. It does not change once made: goroutines can share it, and
// a new one takes its place when an address or an option changes. Its cost does not depend on how
// many ports, groups or prefixes it names.
type Policy struct {
	ports     portSet
	groups    map[netip.Addr]*portSet
	broadcast []netip.Addr // directed, the main one first
	sources   *bart.Table[bool]
	others    bool // whether sources in no list are relayed
	rewrite   bool
}

// portSet has a bit for each port.
type portSet [1 << 16 / 64]uint64

func (s *portSet) has(port uint16) bool { return s[port/64]>>(port%64)&1 != 0 }

func (s *portSet) add(ranges []PortRange) error {
	for _, r := range ranges {
		if err := r.check(); err != nil {
			return err
		}
		for port := int(r.First); port <= int(r.Last); port++ {
			s[port/64] |= 1 << (port % 64)
		}
	}
	return nil
}

// NewPolicy makes a policy. Errors are [ErrConfig] and say which part of the configuration cannot be.
func NewPolicy(c Config) (*Policy, error) {
	p := &Policy{others: len(c.Allow) == 0, rewrite: c.RewriteDirected}
	if len(c.Ports) == 0 && len(c.Groups) == 0 {
		return nil, fmt.Errorf("%w: no port to relay", ErrConfig)
	}
	if err := p.ports.add(c.Ports); err != nil {
		return nil, err
	}
	for _, g := range c.Groups {
		if err := p.addGroup(g, len(c.Ports) > 0); err != nil {
			return nil, err
		}
	}
	for _, prefix := range c.Prefixes {
		if !prefix.IsValid() {
			return nil, fmt.Errorf("%w: invalid prefix of the interface", ErrConfig)
		}
		if a, ok := directed(prefix); ok && !slices.Contains(p.broadcast, a) {
			p.broadcast = append(p.broadcast, a)
		}
	}
	for _, a := range c.Broadcasts {
		if !a.Is4() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
			return nil, fmt.Errorf("%w: %v is not a broadcast address", ErrConfig, a)
		}
		if a != limited && !slices.Contains(p.broadcast, a) {
			p.broadcast = append(p.broadcast, a)
		}
	}
	if err := p.addSources(c.Allow, true); err != nil {
		return nil, err
	}
	if err := p.addSources(c.Deny, false); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Policy) addGroup(g Group, anyPort bool) error {
	switch {
	case !g.Addr.IsMulticast() || g.Addr.Is4In6() || g.Addr.Zone() != "":
		return fmt.Errorf("%w: %v is not a multicast group", ErrConfig, g.Addr)
	case g.Addr.Is6() && g.Addr.As16()[1]&15 <= 1:
		// RFC 4291 section 2.7: scope 1 is the interface, 0 is reserved.
		return fmt.Errorf("%w: group %v does not leave its host", ErrConfig, g.Addr)
	case len(g.Ports) == 0 && !anyPort:
		return fmt.Errorf("%w: group %v has no ports, and there are no others", ErrConfig, g.Addr)
	case p.groups[g.Addr] != nil:
		return fmt.Errorf("%w: group %v is named twice", ErrConfig, g.Addr)
	}
	ports := &p.ports
	if len(g.Ports) > 0 {
		ports = new(portSet)
		if err := ports.add(g.Ports); err != nil {
			return fmt.Errorf("group %v: %w", g.Addr, err)
		}
	}
	if p.groups == nil {
		p.groups = make(map[netip.Addr]*portSet)
	}
	p.groups[g.Addr] = ports
	return nil
}

func (p *Policy) addSources(prefixes []netip.Prefix, allow bool) error {
	for _, prefix := range prefixes {
		if !prefix.IsValid() || prefix.Addr().Is4In6() {
			return fmt.Errorf("%w: %v is not a prefix of sources", ErrConfig, prefix)
		}
		if p.sources == nil {
			p.sources = new(bart.Table[bool])
		}
		prefix = prefix.Masked()
		if was, ok := p.sources.Get(prefix); ok && was != allow {
			return fmt.Errorf("%w: sources %v are both allowed and denied", ErrConfig, prefix)
		}
		p.sources.Insert(prefix, allow)
	}
	return nil
}

// directed gives the address of all hosts of an IPv4 subnet.
func directed(prefix netip.Prefix) (netip.Addr, bool) {
	if !prefix.Addr().Is4() || prefix.Bits() == 0 || prefix.Bits() > 30 {
		return netip.Addr{}, false
	}
	a := prefix.Addr().As4()
	hosts := uint32(1)<<(32-prefix.Bits()) - 1
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])|hosts)
	return netip.AddrFrom4(a), true
}

// Check says whether a datagram captured on the segment is to be relayed: a broadcast to the segment or a
// datagram to one of the groups, to a port and from a source that are relayed. Of a fragment
// it tests the addresses, so that a reassembler need not hold what will be dropped; the whole is tested again.
func (p *Policy) Check(d *Datagram) drop.Reason {
	ports, dst := &p.ports, d.Dst.Addr()
	if dst != limited && !slices.Contains(p.broadcast, dst) {
		if ports = p.groups[dst]; ports == nil {
			return drop.Destination
		}
	}
	return p.check(d, ports)
}

// CheckMesh is [Policy.Check] for a datagram that came through the mesh, or from another segment. Its
// destination may be the broadcast address of any subnet, whose size is not known here, so it is any address of
// one host's form; [Policy.Target] then makes it this segment's. Nothing that CheckMesh lets pass goes out to any but
// all hosts of the segment, or a group that is relayed.
func (p *Policy) CheckMesh(d *Datagram) drop.Reason {
	ports, dst := &p.ports, d.Dst.Addr()
	if dst != limited {
		switch {
		case dst.IsMulticast():
			if ports = p.groups[dst]; ports == nil {
				return drop.Destination
			}
		default: // IPv4, for in IPv6 all are for a group
			if first := dst.As4()[0]; first == 0 || first == 127 || first >= 240 {
				return drop.Destination
			}
		}
	}
	return p.check(d, ports)
}

func (p *Policy) check(d *Datagram, ports *portSet) drop.Reason {
	if !d.Fragment && !ports.has(d.Dst.Port()) {
		return drop.Port
	}
	src := d.Src.Addr()
	if slices.Contains(p.broadcast, src) {
		return drop.BadSource
	}
	if p.sources != nil {
		allow, found := p.sources.Lookup(src)
		if !found {
			allow = p.others
		}
		if !allow {
			return drop.Filtered
		}
	}
	return drop.None
}

// Target is the address under which a datagram that was sent to dst goes out on the segment: groups and
// 255.255.255.255 stay, as do the segment's own broadcast addresses; any other becomes the segment's main broadcast
// address, because hosts take another subnet's for some other host's. A segment without one has 255.255.255.255.
func (p *Policy) Target(dst netip.Addr) netip.Addr {
	switch {
	case dst.IsMulticast() || slices.Contains(p.broadcast, dst):
		return dst
	case len(p.broadcast) == 0 || dst == limited && !p.rewrite:
		return limited
	}
	return p.broadcast[0]
}
