// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/seed5728abee/fathom/lab/dataplane"
)

// Validate reports the first fault of the topology, wrapping [ErrTopology]. A topology without
// faults can be built.
func (t *Topology) Validate() error {
	_, err := newPlan(t)
	return err
}

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrTopology}, args...)...)
}

// check covers what can be said of each part alone; newPlan checks how the parts fit.
func (t *Topology) check() error {
	if t.Name != "" && !validName(t.Name) {
		return bad("name %q: %s", t.Name, nameRule)
	}
	if n := len(t.Hosts) + len(t.Routers) + len(t.Bridges) + len(t.NATs); n == 0 {
		return bad("it has no nodes")
	} else if n > MaxNodes {
		return bad("%d nodes, more than %d", n, MaxNodes)
	}
	if len(t.Wires) > MaxWires {
		return bad("%d wires, more than %d", len(t.Wires), MaxWires)
	}
	kinds := map[string]Kind{}
	for _, set := range []struct {
		kind  Kind
		names []string
	}{
		{KindHost, slices.Sorted(maps.Keys(t.Hosts))},
		{KindRouter, slices.Sorted(maps.Keys(t.Routers))},
		{KindBridge, slices.Sorted(maps.Keys(t.Bridges))},
		{KindNAT, slices.Sorted(maps.Keys(t.NATs))},
	} {
		for _, name := range set.names {
			if !validName(name) {
				return bad("%s %q: %s", set.kind, name, nameRule)
			}
			if other, ok := kinds[name]; ok {
				return bad("%s is both a %s and a %s", name, other, set.kind)
			}
			kinds[name] = set.kind
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.Hosts)) {
		h := t.Hosts[name]
		if err := checkAddresses(h.Addresses); err != nil {
			return bad("host %s: %w", name, err)
		}
		if err := checkAnnounce(h.Announce); err != nil {
			return bad("host %s: %w", name, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.Routers)) {
		r := t.Routers[name]
		if err := checkAddresses(r.Addresses); err != nil {
			return bad("router %s: %w", name, err)
		}
		if err := checkAnnounce(r.Announce); err != nil {
			return bad("router %s: %w", name, err)
		}
		if r.Hops < 0 || r.Hops > dataplane.MaxHops {
			return bad("router %s: hops %d is not between 1 and %d", name, r.Hops, dataplane.MaxHops)
		}
		if err := checkBehaviour(&r.Behaviour); err != nil {
			return bad("router %s: %w", name, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.NATs)) {
		n := t.NATs[name]
		if err := checkAddresses(n.Addresses); err != nil {
			return bad("nat %s: %w", name, err)
		}
		if err := checkBehaviour(&n.Behaviour); err != nil {
			return bad("nat %s: %w", name, err)
		}
		if n.Outside == "" {
			return bad("nat %s: outside must name the neighbour on its outside wire", name)
		}
		if n.Ports > dataplane.RandomPort {
			return bad("nat %s: ports %s is unknown", name, n.Ports)
		}
		if n.Type > Symmetric {
			return bad("nat %s: type %s is unknown", name, n.Type)
		}
		if n.Timeout < 0 || n.Timeout > 24*time.Hour {
			return bad("nat %s: timeout %s is not between 0 and 24h", name, n.Timeout)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.Bridges)) {
		if err := checkSubnets(t.Bridges[name].Subnets); err != nil {
			return bad("bridge %s: %w", name, err)
		}
	}
	for i := range t.Wires {
		w := &t.Wires[i]
		if err := w.check(kinds); err != nil {
			return bad("wire %d (%s - %s): %w", i+1, w.Ends[0], w.Ends[1], err)
		}
	}
	return nil
}

const nameRule = "a name is 1 to 32 lower-case letters, digits, - and _, begins with a letter or digit, and is not lo, all or default"

// validName holds names to what is safe as an interface name, a directory below /proc/sys and a
// host name alike.
func validName(s string) bool {
	if len(s) == 0 || len(s) > 32 || s == "lo" || s == "all" || s == "default" {
		return false
	}
	for i, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case (c == '-' || c == '_') && i > 0:
		default:
			return false
		}
	}
	return true
}

func checkPrefix(p netip.Prefix) error {
	a := p.Addr()
	switch {
	case !p.IsValid():
		return fmt.Errorf("%s is not a prefix", p)
	case a.Is4In6():
		return fmt.Errorf("%s is an IPv4 address in IPv6 clothes", p)
	case a.IsUnspecified(), a.IsMulticast(), a.IsLoopback(), a.IsLinkLocalUnicast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("%s is not a unicast address that can be routed", p)
	}
	return nil
}

func checkAddresses(list []netip.Prefix) error {
	if len(list) > MaxAddresses {
		return fmt.Errorf("%d addresses, more than %d", len(list), MaxAddresses)
	}
	for i, p := range list {
		if err := checkPrefix(p); err != nil {
			return err
		}
		if slices.ContainsFunc(list[:i], func(q netip.Prefix) bool { return q.Addr() == p.Addr() }) {
			return fmt.Errorf("duplicate address %s", p.Addr())
		}
	}
	return nil
}

func checkAnnounce(list []AnnounceConfig) error {
	if len(list) > MaxAddresses {
		return fmt.Errorf("announce: %d prefixes, more than %d", len(list), MaxAddresses)
	}
	for _, a := range list {
		if a.Cost < 0 || a.Cost > MaxCost {
			return fmt.Errorf("announce: cost %d of %s is not between 0 and %d", a.Cost, a.Prefix, MaxCost)
		}
	}
	return nil
}

func checkSubnets(list []netip.Prefix) error {
	var seen [2]bool
	for _, p := range list {
		if err := checkPrefix(p); err != nil {
			return err
		}
		if p != p.Masked() {
			return fmt.Errorf("subnet %s has host bits set; did you mean %s?", p, p.Masked())
		}
		f := family(p.Addr())
		if seen[f] {
			return fmt.Errorf("more than one subnet of a version: %s", p)
		}
		seen[f] = true
	}
	return nil
}

func checkBehaviour(b *Behaviour) error {
	switch {
	case !(b.ICMPRate >= 0 && b.ICMPRate <= 1e9):
		return fmt.Errorf("icmp_rate %g is not between 0 and 1e9 per second", b.ICMPRate)
	case b.ICMPBurst < 0 || b.ICMPBurst > 1e6:
		return fmt.Errorf("icmp_burst %d is not between 0 and 1e6", b.ICMPBurst)
	case b.ICMPBurst > 0 && b.ICMPRate == 0:
		return fmt.Errorf("icmp_burst without icmp_rate")
	case b.ICMPDelay < 0 || b.ICMPDelay > MaxDelay:
		return fmt.Errorf("icmp_delay %s is not between 0 and %s", b.ICMPDelay, MaxDelay)
	case b.Balance > dataplane.BalancePacketRandom:
		return fmt.Errorf("balance %s is unknown", b.Balance)
	case len(b.MPLS) > 16:
		return fmt.Errorf("mpls: a stack of %d labels, more than 16", len(b.MPLS))
	case len(b.Firewall) > 1024:
		return fmt.Errorf("firewall: %d rules, more than 1024", len(b.Firewall))
	}
	var seen [2]bool
	for _, a := range b.ErrorSource {
		if !a.IsValid() || a.IsUnspecified() || a.Is4In6() || a.Zone() != "" {
			return fmt.Errorf("error_source %s is not an address", a)
		}
		if seen[family(a)] {
			return fmt.Errorf("error_source has two addresses of one version")
		}
		seen[family(a)] = true
	}
	for _, l := range b.MPLS {
		if l.Label >= 1<<20 {
			return fmt.Errorf("mpls: label %d does not fit 20 bits", l.Label)
		}
		if l.TC > 7 {
			return fmt.Errorf("mpls: traffic class %d does not fit 3 bits", l.TC)
		}
	}
	for i, r := range b.Firewall {
		if r.Action == 0 || r.Action > dataplane.RejectAdmin {
			return fmt.Errorf("firewall rule %d: action must be accept, drop or reject", i+1)
		}
		if r.PortMin != 0 && r.Protocol != 6 && r.Protocol != 17 && r.Protocol != 132 {
			return fmt.Errorf("firewall rule %d: port needs protocol udp, tcp or sctp", i+1)
		}
		if r.PortMax != 0 && r.PortMax < r.PortMin {
			return fmt.Errorf("firewall rule %d: ports %d to %d are none", i+1, r.PortMin, r.PortMax)
		}
		if r.From.IsValid() && r.To.IsValid() && family(r.From.Addr()) != family(r.To.Addr()) {
			return fmt.Errorf("firewall rule %d: from and to are of different IP versions", i+1)
		}
	}
	return nil
}

func checkImpairment(i *Impairment) error {
	for _, p := range []struct {
		name  string
		value float64
	}{{"loss", i.Loss}, {"duplicate", i.Duplicate}, {"reorder", i.Reorder}, {"corrupt", i.Corrupt}} {
		if !(p.value >= 0 && p.value <= 1) {
			return fmt.Errorf("%s %g is not a probability between 0 and 1", p.name, p.value)
		}
	}
	switch {
	case i.Delay < 0 || i.Delay > MaxDelay:
		return fmt.Errorf("delay %s is not between 0 and %s", i.Delay, MaxDelay)
	case i.Jitter < 0 || i.Jitter > MaxDelay:
		return fmt.Errorf("jitter %s is not between 0 and %s", i.Jitter, MaxDelay)
	case !(i.Rate >= 0 && i.Rate <= MaxRate):
		return fmt.Errorf("rate %g is not between 0 and %g bits per second", i.Rate, float64(MaxRate))
	case i.Reorder > 0 && i.Delay == 0:
		return fmt.Errorf("reorder needs a delay to skip")
	case i.QueueBytes < 0 || i.QueueBytes > 1<<30:
		return fmt.Errorf("queue_bytes %d is not between 0 and 2^30", i.QueueBytes)
	case i.MaxInFlight < 0 || i.MaxInFlight > 1<<24:
		return fmt.Errorf("%d frames in flight are not between 0 and 2^24", i.MaxInFlight)
	}
	return nil
}

func (w *WireConfig) check(kinds map[string]Kind) error {
	for end, name := range w.Ends {
		if _, ok := kinds[name]; !ok {
			return fmt.Errorf("no node is called %q", name)
		}
		if err := checkAddresses(w.Addresses[end]); err != nil {
			return err
		}
		if kinds[name] == KindBridge {
			if len(w.Addresses[end]) > 0 {
				return fmt.Errorf("bridge %s has no addresses", name)
			}
			if len(w.Subnets) > 0 {
				return fmt.Errorf("subnets belong to bridge %s, not to its wires", name)
			}
		}
	}
	if w.Ends[0] == w.Ends[1] {
		return fmt.Errorf("both ends are at the same node")
	}
	for d, i := range []*Impairment{&w.Impairment, w.Forward, w.Backward} {
		if i == nil {
			continue
		}
		if err := checkImpairment(i); err != nil {
			return fmt.Errorf("%s%w", [...]string{"", "forward: ", "backward: "}[d], err)
		}
	}
	// IPv6 needs 1280 (RFC 8200, section 5); veth carries no more than 65535.
	if w.MTU != 0 && (w.MTU < 1280 || w.MTU > 65535) {
		return fmt.Errorf("mtu %d is not between 1280 and 65535", w.MTU)
	}
	for _, cost := range []int{w.Cost, w.Costs[0], w.Costs[1]} {
		if cost < 0 || cost > MaxCost {
			return fmt.Errorf("cost %d is not between 1 and %d", cost, MaxCost)
		}
	}
	return checkSubnets(w.Subnets)
}

// family is 0 for IPv4 and 1 for IPv6.
func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}
