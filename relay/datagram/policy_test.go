// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/seed5728abee/fathom/relay/drop"
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func mustPolicy(t testing.TB, c Config) *Policy {
	t.Helper()
	p, err := NewPolicy(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCheck(t *testing.T) {
	p := mustPolicy(t, Config{
		Ports: []PortRange{{5064, 5065}, {5076, 5076}, {65535, 65535}},
		Groups: []Group{
			{Addr: netip.MustParseAddr("224.0.0.128")},
			{Addr: netip.MustParseAddr("224.0.0.251"), Ports: []PortRange{{5353, 5353}}},
			{Addr: netip.MustParseAddr("ff02::fb"), Ports: []PortRange{{5353, 5353}}},
			{Addr: netip.MustParseAddr("ff02::42:1")},
		},
		Prefixes: prefixes("10.77.2.3/24", "192.0.2.3/25", "192.0.2.4/25", "203.0.113.1/32", "198.51.100.2/31", "2001:db8::3/64"),
	})
	for _, c := range []struct {
		dst           string
		segment, mesh drop.Reason
	}{
		{"255.255.255.255:5076", drop.None, drop.None},
		{"255.255.255.255:5064", drop.None, drop.None},
		{"255.255.255.255:5065", drop.None, drop.None},
		{"255.255.255.255:65535", drop.None, drop.None},
		{"255.255.255.255:5063", drop.Port, drop.Port},
		{"255.255.255.255:5066", drop.Port, drop.Port},
		{"255.255.255.255:65534", drop.Port, drop.Port},
		{"255.255.255.255:0", drop.Port, drop.Port},
		{"255.255.255.255:5353", drop.Port, drop.Port}, // only to the group
		{"10.77.2.255:5076", drop.None, drop.None},
		{"192.0.2.127:5076", drop.None, drop.None},
		{"10.77.1.255:5076", drop.Destination, drop.None}, // another segment's
		{"192.0.2.255:5076", drop.Destination, drop.None},
		{"10.77.2.7:5076", drop.Destination, drop.None}, // may be the broadcast address of 10.77.2.0/29
		{"203.0.113.1:5076", drop.Destination, drop.None},
		{"198.51.100.3:5076", drop.Destination, drop.None},
		{"10.77.2.255:99", drop.Port, drop.Port},
		{"0.0.0.0:5076", drop.Destination, drop.Destination},
		{"0.255.255.255:5076", drop.Destination, drop.Destination},
		{"127.255.255.255:5076", drop.Destination, drop.Destination},
		{"240.0.0.1:5076", drop.Destination, drop.Destination},
		{"254.255.255.255:5076", drop.Destination, drop.Destination},
		{"224.0.0.128:5076", drop.None, drop.None},
		{"224.0.0.128:5353", drop.Port, drop.Port},
		{"224.0.0.251:5353", drop.None, drop.None},
		{"224.0.0.251:5076", drop.Port, drop.Port},
		{"224.0.0.1:5076", drop.Destination, drop.Destination},
		{"239.255.255.250:1900", drop.Destination, drop.Destination},
		{"[ff02::fb]:5353", drop.None, drop.None},
		{"[ff02::fb]:5076", drop.Port, drop.Port},
		{"[ff02::42:1]:5076", drop.None, drop.None},
		{"[ff05::fb]:5353", drop.Destination, drop.Destination},
	} {
		var ip []byte
		if dst := netip.MustParseAddrPort(c.dst); dst.Addr().Is4() {
			ip = ip4(c.dst, payload(64))
		} else {
			ip = ip6(c.dst, payload(64))
		}
		var d Datagram
		if reason := d.ParsePacket(link, ip); reason != drop.None {
			t.Fatalf("%s: %v", c.dst, reason)
		}
		if got := p.Check(&d); got != c.segment {
			t.Errorf("to %s on the segment: %v, want %v", c.dst, got, c.segment)
		}
		if got := p.CheckMesh(&d); got != c.mesh {
			t.Errorf("to %s from the mesh: %v, want %v", c.dst, got, c.mesh)
		}
		// Fragments show no port.
		if d.Dst.Addr().Is4() {
			without := func(r drop.Reason) drop.Reason {
				if r == drop.Port {
					return drop.None
				}
				return r
			}
			if reason := d.ParsePacket(link, change(ip[:20+64], 2, 0, 84, 0, 1, 0x20, 2)); reason != drop.None || !d.Fragment {
				t.Fatalf("fragment to %s: %v", c.dst, reason)
			}
			if got := p.Check(&d); got != without(c.segment) {
				t.Errorf("fragment to %s on the segment: %v, want %v", c.dst, got, without(c.segment))
			}
			if got := p.CheckMesh(&d); got != without(c.mesh) {
				t.Errorf("fragment to %s from the mesh: %v, want %v", c.dst, got, without(c.mesh))
			}
		}
	}
	// The segment's broadcast address sends nothing.
	d := parsed(t, change(ip4("255.255.255.255:5076", nil), 12, 192, 0, 2, 127))
	if got := p.Check(d); got != drop.BadSource {
		t.Errorf("from a broadcast address on the segment: %v, want %v", got, drop.BadSource)
	}
	if got := p.CheckMesh(d); got != drop.BadSource {
		t.Errorf("from a broadcast address by the mesh: %v, want %v", got, drop.BadSource)
	}
}

func TestSources(t *testing.T) {
	for name, c := range map[string]struct {
		allow, deny []netip.Prefix
		pass, stop  []string
	}{
		"no lists": {pass: []string{"10.0.0.1", "192.0.2.1", "0.0.0.0", "2001:db8::1"}},
		"allow":    {allow: prefixes("10.0.0.0/8"), pass: []string{"10.0.0.1", "10.255.0.1"}, stop: []string{"11.0.0.1", "0.0.0.0", "2001:db8::1"}},
		"deny":     {deny: prefixes("10.0.0.0/8", "2001:db8::/64"), pass: []string{"11.0.0.1", "0.0.0.0", "2001:db8:1::1"}, stop: []string{"10.0.0.1", "2001:db8::1"}},
		"longest": {
			allow: prefixes("10.0.0.0/8", "10.1.2.3/32"), deny: prefixes("10.1.0.0/16", "0.0.0.0/0"),
			pass: []string{"10.0.0.1", "10.1.2.3"}, stop: []string{"10.1.2.4", "192.0.2.1", "2001:db8::1"},
		},
		"an address with its subnet": {allow: prefixes("10.1.2.3/24"), pass: []string{"10.1.2.4"}, stop: []string{"10.1.3.4"}},
		"twice the same":             {deny: prefixes("10.0.0.0/8", "10.0.0.0/8"), stop: []string{"10.0.0.1"}, pass: []string{"11.0.0.1"}},
	} {
		p := mustPolicy(t, Config{Ports: []PortRange{{5353, 5353}}, Groups: []Group{{Addr: netip.MustParseAddr("ff02::fb")}}, Allow: c.allow, Deny: c.deny})
		for _, src := range slices.Concat(c.pass, c.stop) {
			want := drop.None
			if slices.Contains(c.stop, src) {
				want = drop.Filtered
			}
			a := netip.MustParseAddr(src)
			var d Datagram
			if a.Is4() {
				b := a.As4()
				d = *parsed(t, change(ip4("255.255.255.255:5353", nil), 12, b[:]...))
			} else {
				ip, b := ip6("[ff02::fb]:5353", nil), a.As16()
				copy(ip[8:], b[:])
				d = *parsed(t, ip)
			}
			if got := p.Check(&d); got != want {
				t.Errorf("%s: %s on the segment: %v, want %v", name, src, got, want)
			}
			if got := p.CheckMesh(&d); got != want {
				t.Errorf("%s: %s from the mesh: %v, want %v", name, src, got, want)
			}
		}
	}
}

func TestTarget(t *testing.T) {
	ports := []PortRange{{5076, 5076}}
	plain := mustPolicy(t, Config{Ports: ports, Prefixes: prefixes("10.77.1.3/24", "192.0.2.3/25")})
	rewrite := mustPolicy(t, Config{Ports: ports, Prefixes: prefixes("10.77.1.3/24", "192.0.2.3/25"), RewriteDirected: true})
	bare := mustPolicy(t, Config{Ports: ports, Prefixes: prefixes("10.77.1.3/32", "2001:db8::1/64"), RewriteDirected: true})
	for _, c := range []struct{ dst, plain, rewrite, bare string }{
		{"255.255.255.255", "255.255.255.255", "10.77.1.255", "255.255.255.255"},
		{"10.77.2.255", "10.77.1.255", "10.77.1.255", "255.255.255.255"},
		{"10.77.1.255", "10.77.1.255", "10.77.1.255", "255.255.255.255"},
		{"192.0.2.127", "192.0.2.127", "192.0.2.127", "255.255.255.255"},
		{"224.0.0.128", "224.0.0.128", "224.0.0.128", "224.0.0.128"},
		{"ff02::fb", "ff02::fb", "ff02::fb", "ff02::fb"},
	} {
		for _, got := range []struct {
			name, got, want string
		}{
			{"plain", plain.Target(netip.MustParseAddr(c.dst)).String(), c.plain},
			{"RewriteDirected", rewrite.Target(netip.MustParseAddr(c.dst)).String(), c.rewrite},
			{"without a broadcast address", bare.Target(netip.MustParseAddr(c.dst)).String(), c.bare},
		} {
			if got.got != got.want {
				t.Errorf("%s: %s becomes %s, want %s", got.name, c.dst, got.got, got.want)
			}
		}
	}
}

func TestDirected(t *testing.T) {
	for prefix, want := range map[string]string{
		"10.77.1.3/24": "10.77.1.255", "10.0.0.1/8": "10.255.255.255", "172.16.5.4/12": "172.31.255.255", "192.0.2.9/30": "192.0.2.11",
		"192.0.2.9/31": "", "192.0.2.9/32": "", "0.0.0.0/0": "", "128.0.0.1/1": "", "2001:db8::1/64": "",
	} {
		got, ok := directed(netip.MustParsePrefix(prefix))
		if prefix == "128.0.0.1/1" {
			want = "255.255.255.255" // which is no news, and does no harm
		}
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%s: %v, %v, want %q", prefix, got, ok, want)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	ports := []PortRange{{5076, 5076}}
	group := func(a string, ports ...PortRange) []Group { return []Group{{netip.MustParseAddr(a), ports}} }
	for _, c := range []struct {
		config Config
		want   string
	}{
		{Config{}, "not a policy: no port to relay"},
		{Config{Ports: []PortRange{{0, 5}}}, "not a policy: ports 0-5: port 0 cannot be sent to"},
		{Config{Ports: []PortRange{{}}}, "not a policy: ports 0: port 0 cannot be sent to"},
		{Config{Ports: []PortRange{{6, 5}}}, "not a policy: ports 6-5: the first is greater than the last"},
		{Config{Ports: ports, Groups: group("10.0.0.1")}, "not a policy: 10.0.0.1 is not a multicast group"},
		{Config{Ports: ports, Groups: []Group{{}}}, "not a policy: invalid IP is not a multicast group"},
		{Config{Ports: ports, Groups: group("255.255.255.255")}, "not a policy: 255.255.255.255 is not a multicast group"},
		{Config{Ports: ports, Groups: group("ff02::fb%eth0")}, "not a policy: ff02::fb%eth0 is not a multicast group"},
		{Config{Ports: ports, Groups: group("::ffff:224.0.0.1")}, "not a policy: ::ffff:224.0.0.1 is not a multicast group"},
		{Config{Ports: ports, Groups: group("ff01::1")}, "not a policy: group ff01::1 does not leave its host"},
		{Config{Groups: group("224.0.0.251")}, "not a policy: group 224.0.0.251 has no ports, and there are no others"},
		{Config{Groups: group("224.0.0.251", PortRange{2, 1})}, "group 224.0.0.251: not a policy: ports 2-1: the first is greater than the last"},
		{Config{Ports: ports, Groups: append(group("ff02::fb"), group("ff02::fb")...)}, "not a policy: group ff02::fb is named twice"},
		{Config{Ports: ports, Prefixes: []netip.Prefix{{}}}, "not a policy: invalid prefix of the interface"},
		{Config{Ports: ports, Allow: []netip.Prefix{{}}}, "not a policy: invalid Prefix is not a prefix of sources"},
		{Config{Ports: ports, Deny: prefixes("::ffff:10.0.0.0/104")}, "not a policy: ::ffff:10.0.0.0/104 is not a prefix of sources"},
		{Config{Ports: ports, Allow: prefixes("10.0.0.0/8"), Deny: prefixes("10.0.0.1/8")}, "not a policy: sources 10.0.0.0/8 are both allowed and denied"},
	} {
		p, err := NewPolicy(c.config)
		if p != nil || !errors.Is(err, ErrConfig) || err.Error() != c.want {
			t.Errorf("%+v:\n got %v\nwant %s", c.config, err, c.want)
		}
	}
	if _, err := NewPolicy(Config{Groups: group("224.0.0.251", PortRange{5353, 5353})}); err != nil {
		t.Errorf("only a group: %v", err)
	}
}

func TestParsePorts(t *testing.T) {
	for list, want := range map[string][]PortRange{
		"5076":               {{5076, 5076}},
		"5064-5065,5076":     {{5064, 5065}, {5076, 5076}},
		" 7 , 9 - 11 ,65535": {{7, 7}, {9, 11}, {65535, 65535}},
	} {
		got, err := ParsePorts(list)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v, want %v", list, got, err, want)
		}
	}
	for _, list := range []string{"", "0", "65536", "-1", "5-", "-", "6-5", "0-5", "a", "1,,2", "1,", "+5", "0x10", "1-2-3", "99999999999999999999"} {
		if got, err := ParsePorts(list); !errors.Is(err, ErrConfig) {
			t.Errorf("%q: %v, %v, want %v", list, got, err, ErrConfig)
		}
	}
	if got := (PortRange{5064, 5065}).String() + "," + (PortRange{7, 7}).String(); got != "5064-5065,7" {
		t.Errorf("got %s", got)
	}
}

// A broadcast address that is not the last of a prefix is one all the same, where the interface has it.
func TestBroadcasts(t *testing.T) {
	ports := []PortRange{{5076, 5076}}
	p := mustPolicy(t, Config{Ports: ports, Prefixes: prefixes("10.77.1.3/24"), Broadcasts: []netip.Addr{
		netip.MustParseAddr("10.77.1.0"), netip.MustParseAddr("10.77.1.255"), limited,
	}})
	if want := []netip.Addr{netip.MustParseAddr("10.77.1.255"), netip.MustParseAddr("10.77.1.0")}; !slices.Equal(p.broadcast, want) {
		t.Errorf("broadcast addresses are %v, want %v", p.broadcast, want)
	}
	for _, text := range []string{"0.0.0.0", "127.255.255.255", "224.0.0.1", "2001:db8::1"} {
		if _, err := NewPolicy(Config{Ports: ports, Broadcasts: []netip.Addr{netip.MustParseAddr(text)}}); !errors.Is(err, ErrConfig) {
			t.Errorf("broadcast address %s: %v, want an error", text, err)
		}
	}
}
