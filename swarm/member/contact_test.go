// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package member

import (
	"crypto/ed25519"
	"errors"
	"net/netip"
	"slices"
	"testing"
)

// at is a native member at an address, with a key that its ID may be bound to.
func at(addr string, b Binding) Contact {
	c := Contact{Dialect: Native, Key: slices.Repeat([]byte{7}, ed25519.PublicKeySize), Addrs: []netip.AddrPort{netip.MustParseAddrPort(addr)}}
	if b == ByKey {
		c.ID = OfKey(c.Key)
	} else {
		c.ID = OfAddr(c.Addrs[0])
	}
	return c
}

func TestVerify(t *testing.T) {
	const addr = "192.0.2.1:49610"
	hosts := func(n int, b Binding) []Contact { return slices.Repeat([]Contact{at("192.0.2.9:1", b)}, n) }
	for _, c := range []struct {
		name        string
		change      func(c *Contact, b Binding)
		byAddr, key error
	}{
		{"as it should be", func(*Contact, Binding) {}, nil, nil},
		{"more addresses", func(c *Contact, _ Binding) {
			c.Addrs = append(c.Addrs, netip.MustParseAddrPort("[2001:db8::1]:49610"), netip.MustParseAddrPort("[fe80::1]:1"))
		}, nil, nil},
		{"leaf", func(c *Contact, b Binding) { c.Leaf, c.Hosts = true, hosts(MaxHosts, b) }, nil, nil},
		{"another address", func(c *Contact, _ Binding) { c.Addrs[0] = netip.MustParseAddrPort("192.0.2.2:49610") }, ErrUnbound, nil},
		{"no address", func(c *Contact, _ Binding) { c.Addrs = nil }, ErrUnbound, nil},
		{"another key", func(c *Contact, _ Binding) { c.Key = make([]byte, ed25519.PublicKeySize) }, nil, ErrUnbound},
		{"no key", func(c *Contact, _ Binding) { c.Key = nil }, nil, ErrUnbound},
		{"original", func(c *Contact, _ Binding) { c.ID, c.Dialect, c.Key = OfAddr(c.Addrs[0]), Original, nil }, nil, nil},
		{"original bound to all interfaces", func(c *Contact, _ Binding) {
			c.ID, c.Dialect = OfAddr(netip.MustParseAddrPort("0.0.0.0:49610")), Original
		}, nil, nil},
		{"native bound to all interfaces", func(c *Contact, _ Binding) {
			c.ID = OfAddr(netip.MustParseAddrPort("0.0.0.0:49610"))
		}, ErrUnbound, ErrUnbound},
		{"original with a key's ID", func(c *Contact, _ Binding) { c.ID, c.Dialect = OfKey(c.Key), Original }, ErrUnbound, ErrUnbound},
		{"key of 31 bytes", func(c *Contact, _ Binding) { c.Key = c.Key[:31] }, ErrForm, ErrForm},
		{"too many addresses", func(c *Contact, _ Binding) { c.Addrs = slices.Repeat(c.Addrs, MaxAddrs+1) }, ErrForm, ErrForm},
		{"too many hosts", func(c *Contact, b Binding) { c.Leaf, c.Hosts = true, hosts(MaxHosts+1, b) }, ErrForm, ErrForm},
		{"hosts of one that is no leaf", func(c *Contact, b Binding) { c.Hosts = hosts(1, b) }, ErrForm, ErrForm},
		{"host that is a leaf", func(c *Contact, b Binding) { c.Leaf, c.Hosts = true, hosts(1, b); c.Hosts[0].Leaf = true }, ErrForm, ErrForm},
		{"host with hosts", func(c *Contact, b Binding) { c.Leaf, c.Hosts = true, hosts(1, b); c.Hosts[0].Hosts = hosts(1, b) }, ErrForm, ErrForm},
		{"host with another's ID", func(c *Contact, b Binding) { c.Leaf, c.Hosts = true, hosts(1, b); c.Hosts[0].ID = ID{} }, ErrUnbound, ErrUnbound},
		{"port 0", also("192.0.2.1:0"), ErrForm, ErrForm},
		{"zone", also("[fe80::1%eth0]:1"), ErrForm, ErrForm},
		{"IPv4 in IPv6 form", also("[::ffff:192.0.2.1]:1"), ErrForm, ErrForm},
		{"unspecified", also("0.0.0.0:1"), ErrForm, ErrForm},
		{"unspecified, IPv6", also("[::]:1"), ErrForm, ErrForm},
		{"multicast", also("224.0.0.1:1"), ErrForm, ErrForm},
		{"multicast, IPv6", also("[ff02::1]:1"), ErrForm, ErrForm},
		{"broadcast", also("255.255.255.255:1"), ErrForm, ErrForm},
		{"zero", func(c *Contact, _ Binding) { c.Addrs = append(c.Addrs, netip.AddrPort{}) }, ErrForm, ErrForm},
	} {
		for b, want := range map[Binding]error{ByAddress: c.byAddr, ByKey: c.key} {
			contact := at(addr, b)
			c.change(&contact, b)
			if err := contact.Verify(b); !errors.Is(err, want) || (err == nil) != (want == nil) {
				t.Errorf("%s, bound by %s: %v, want %v", c.name, b, err, want)
			}
		}
	}
}

// also adds a further candidate.
func also(addr string) func(*Contact, Binding) {
	return func(c *Contact, _ Binding) { c.Addrs = append(c.Addrs, netip.MustParseAddrPort(addr)) }
}

func TestEqual(t *testing.T) {
	leaf := func() Contact {
		c := at("192.0.2.1:1", ByKey)
		c.Leaf, c.Hosts = true, []Contact{at("192.0.2.2:1", ByKey)}
		return c
	}
	if !leaf().Equal(leaf()) {
		t.Error("a contact does not equal its copy")
	}
	for name, change := range map[string]func(*Contact){
		"ID":      func(c *Contact) { c.ID[31]++ },
		"dialect": func(c *Contact) { c.Dialect = Unknown },
		"leaf":    func(c *Contact) { c.Leaf = false },
		"key":     func(c *Contact) { c.Key = nil },
		"address": func(c *Contact) { c.Addrs = append(c.Addrs, c.Addrs[0]) },
		"host":    func(c *Contact) { c.Hosts[0].ID[31]++ },
	} {
		c := leaf()
		if change(&c); c.Equal(leaf()) {
			t.Errorf("a change of %s goes unnoticed", name)
		}
	}
}

func TestContactString(t *testing.T) {
	c := at("192.0.2.1:49610", ByAddress)
	if got, want := c.String(), "e533355d (192.0.2.1:49610)"; got != want || c.Addr() != c.Addrs[0] {
		t.Errorf("got %s, %s, want %s", got, c.Addr(), want)
	}
	c.Addrs = nil
	if got := c.String(); got != "e533355d" || c.Addr().IsValid() {
		t.Errorf("got %s, %s", got, c.Addr())
	}
	for _, c := range []struct{ got, want string }{
		{ByKey.String(), "key"},
		{ByAddress.String(), "address"},
		{Binding(37).String(), "Binding(37)"},
		{Unknown.String(), "unknown"},
		{Native.String(), "native"},
		{Original.String(), "original"},
		{Dialect(37).String(), "Dialect(37)"},
	} {
		if c.got != c.want {
			t.Errorf("got %s, want %s", c.got, c.want)
		}
	}
}
