// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio_test

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/seed5728abee/fathom/internal/rawio"
)

// TestNextHop looks up routes of every kind that host a of a pair can have.
func TestNextHop(t *testing.T) {
	l := pair(t)
	a, b := l.Host("a"), l.Host("b")
	var h *rawio.KernelHost
	if err := a.Do(func() (err error) {
		h, err = rawio.NewHost()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	network := func(s string) *net.IPNet {
		p := netip.MustParsePrefix(s)
		return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
	}
	var index int
	var mac rawio.LinkAddr
	if err := b.Do(func() error {
		link, err := netlink.LinkByName("a")
		if err == nil {
			copy(mac[:], link.Attrs().HardwareAddr)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := a.Do(func() error {
		link, err := netlink.LinkByName("b")
		if err != nil {
			return err
		}
		index = link.Attrs().Index
		gateway, gateway6 := net.IP(b.Addr().AsSlice()), net.IP(b.Addr6().AsSlice())
		if err := netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tun0"}, Mode: netlink.TUNTAP_MODE_TUN}); err != nil {
			t.Logf("no route over something else than Ethernet: %v", err)
		} else {
			tun, err := netlink.LinkByName("tun0")
			if err != nil {
				return err
			}
			if err := errors.Join(netlink.LinkSetUp(tun), netlink.RouteAdd(&netlink.Route{LinkIndex: tun.Attrs().Index, Dst: network("203.0.113.64/26")})); err != nil {
				return err
			}
		}
		for _, r := range []*netlink.Route{
			{Dst: network("198.51.100.0/25"), Gw: gateway},
			{Dst: network("198.51.100.128/25"), Gw: gateway, MTU: 1280},
			{Dst: network("203.0.113.0/26"), LinkIndex: index, Via: &netlink.Via{AddrFamily: syscall.AF_INET6, Addr: gateway6}},
			{Dst: network("203.0.113.128/26"), Type: syscall.RTN_UNREACHABLE},
			{Dst: network("2001:db8:1::/64"), Gw: gateway6},
			{Dst: network("2001:db8:2::/64"), Gw: gateway6, MTU: 1300},
			{Dst: network("2001:db8:3::/64"), Type: syscall.RTN_UNREACHABLE},
		} {
			if err := netlink.RouteAdd(r); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		dst  string
		mtu  int
		want error
	}{
		{b.Addr().String(), 1500, nil},
		{"198.51.100.1", 1500, nil},
		{"198.51.100.200", 1280, nil},
		{"203.0.113.1", 1500, nil},
		{"203.0.113.130", 0, syscall.EHOSTUNREACH},
		{"203.0.113.65", 0, errUnframed},
		{b.Addr6().String(), 1500, nil},
		{"2001:db8:1::1", 1500, nil},
		{"2001:db8:2::1", 1300, nil},
		{"2001:db8:3::1", 0, syscall.EHOSTUNREACH},
		// Nobody has asked for them yet.
		{b.Addr().Next().Next().String(), 0, rawio.ErrNoNeighbour},
		{b.Addr6().Next().Next().String(), 0, rawio.ErrNoNeighbour},
		{"255.255.255.255", 0, errUnframed},
	} {
		dst := netip.MustParseAddr(tt.dst)
		want := rawio.NextHop{Source: a.Addr(), IfIndex: index, Link: mac, MTU: tt.mtu, Fresh: true}
		if dst.Is6() {
			want.Source = a.Addr6()
		}
		via := rawio.Route{}
		if tt.want == rawio.ErrNoNeighbour {
			via.Interface = "b"
		}
		var hop rawio.NextHop
		err := a.Do(func() (err error) {
			hop, err = h.NextHop(dst, via)
			return err
		})
		switch {
		case tt.want == errUnframed && err != nil: // one of several, by the kernel's version
		case tt.want != nil && !errors.Is(err, tt.want), tt.want == nil && (err != nil || hop != want):
			t.Errorf("next hop to %v: %+v, %v; want %+v, %v", dst, hop, err, want, tt.want)
		}
	}
}

// errUnframed stands for any error: the packets take a raw socket, which says what is wrong, if something is.
var errUnframed = errors.New("an error")

// TestNextHopNeighbours: what is remembered about a neighbour is for a moment, and its state is followed.
func TestNextHopNeighbours(t *testing.T) {
	l := pair(t)
	a, b := l.Host("a"), l.Host("b")
	var h *rawio.KernelHost
	var link netlink.Link
	if err := a.Do(func() (err error) {
		if link, err = netlink.LinkByName("b"); err != nil {
			return err
		}
		h, err = rawio.NewHost()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	mac := rawio.LinkAddr{2, 0, 0, 0, 0, 7}
	for _, dst := range []netip.Addr{b.Addr(), b.Addr6()} {
		for _, tt := range []struct {
			state int // 0: there is none
			fresh bool
			want  error
		}{
			{netlink.NUD_REACHABLE, true, nil},
			{netlink.NUD_STALE, false, nil},
			{netlink.NUD_PERMANENT, true, nil},
			{0, false, rawio.ErrNoNeighbour},
			{netlink.NUD_NOARP, true, nil},
			{netlink.NUD_FAILED, false, rawio.ErrNoNeighbour},
		} {
			if err := a.Do(func() error {
				n := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: dst.AsSlice(), State: tt.state, HardwareAddr: mac[:]}
				if tt.state == 0 {
					return netlink.NeighDel(n)
				}
				return netlink.NeighSet(n)
			}); err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				var hop rawio.NextHop
				err := a.Do(func() (err error) {
					hop, err = h.NextHop(dst, rawio.Route{})
					return err
				})
				if tt.want != nil && errors.Is(err, tt.want) || tt.want == nil && err == nil && hop.Link == mac && hop.Fresh == tt.fresh {
					break
				} else if time.Now().After(deadline) {
					t.Fatalf("%v in state %#x: %+v, %v; want fresh %v, %v", dst, tt.state, hop, err, tt.fresh, tt.want)
				}
			}
		}
	}
}

// BenchmarkNextHop is the price of a destination: a route that is looked up, behind a gateway that is not.
func BenchmarkNextHop(b *testing.B) {
	l := pair(b)
	if err := l.Host("a").Do(func() error {
		h, err := rawio.NewHost()
		if err != nil {
			return err
		}
		defer h.Close()
		dst := l.Host("b").Addr()
		b.ReportAllocs()
		for b.Loop() {
			if _, err := h.NextHop(dst, rawio.Route{}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
}
