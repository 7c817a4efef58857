// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func TestLookupInterface(t *testing.T) {
	inNamespace(t, func() {
		link, err := netlink.LinkByName("a")
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range []struct{ addr, broadcast string }{
			{"192.0.2.1/24", "192.0.2.255"},
			{"198.51.100.1/25", "198.51.100.42"}, // some do
			{"203.0.113.5/31", ""},
			{"203.0.113.9/32", ""},
			{"10.1.2.3/8", ""},
		} {
			p := netip.MustParsePrefix(a.addr)
			err := netlink.AddrAdd(link, &netlink.Addr{
				IPNet:     &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)},
				Broadcast: net.ParseIP(a.broadcast).To4(),
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		got, err := LookupInterface("a")
		if err != nil {
			t.Fatal(err)
		}
		ifi, err := net.InterfaceByName("a")
		if err != nil {
			t.Fatal(err)
		}
		want := InterfaceState{Name: "a", Index: ifi.Index, MAC: [6]byte(ifi.HardwareAddr), MTU: 1500, Up: true}
		for _, s := range []string{"192.0.2.1/24", "198.51.100.1/25", "203.0.113.5/31", "203.0.113.9/32", "10.1.2.3/8"} {
			want.Prefixes = append(want.Prefixes, netip.MustParsePrefix(s))
		}
		for _, s := range []string{"192.0.2.255", "198.51.100.42", "198.51.100.127", "10.255.255.255"} {
			want.Broadcasts = append(want.Broadcasts, netip.MustParseAddr(s))
		}
		sort := cmpopts.SortSlices(func(a, b netip.Prefix) bool { return a.String() < b.String() })
		sortAddrs := cmpopts.SortSlices(netip.Addr.Less)
		if d := cmp.Diff(want, got, sort, sortAddrs, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
			cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
			t.Errorf("(-want +got)\n%s", d)
		}

		peer, err := netlink.LinkByName("b")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetDown(peer); err != nil {
			t.Fatal(err)
		}
		if got, err = LookupInterface("a"); err != nil || !got.Up {
			t.Errorf("with the peer down: up %v, %v", got.Up, err)
		}
		if got, err = LookupInterface("lo"); err != nil || got.MAC != [6]byte{} || got.Up || got.Index != 1 {
			t.Errorf("lo: %+v, %v", got, err)
		}
		if _, err := LookupInterface("no-such-if"); !errors.Is(err, unix.ENODEV) {
			t.Errorf("an interface that is not there: %v, want ENODEV", err)
		}
	})
}

func TestWatchInterfaces(t *testing.T) {
	t.Parallel()
	inNamespace(t, func() {
		ns, err := netns.Get()
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		calls := make(chan struct{}, 1000)
		done := make(chan error, 1)
		go func() {
			runtime.LockOSThread() // never unlocked, see inNamespace
			if err := netns.Set(ns); err != nil {
				done <- err
				return
			}
			done <- WatchInterfaces(ctx, func() { calls <- struct{}{} })
		}()
		// called waits for calls until there are no more.
		called := func(what string) (n int) {
			t.Helper()
			quiet := 5 * time.Second
			for {
				select {
				case <-calls:
					n++
					quiet = 3 * changesSettle
				case err := <-done:
					t.Fatalf("%s: WatchInterfaces returned %v", what, err)
				case <-time.After(quiet):
					if n == 0 {
						t.Errorf("no call after %s", what)
					}
					return n
				}
			}
		}
		called("the start") // more than once perhaps: a new veth takes its time
		link, err := netlink.LinkByName("a")
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		for i := range 100 {
			err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 0, 0, byte(i+1)), Mask: net.CIDRMask(24, 32)}})
			if err != nil {
				t.Fatal(err)
			}
		}
		// On a busy machine it takes long enough for several.
		if n := called("100 addresses"); n > 2+int(time.Since(start)/changesSettle) || n > 50 {
			t.Errorf("%d calls for 100 addresses at once", n)
		}
		if err := netlink.LinkSetDown(link); err != nil {
			t.Fatal(err)
		}
		called("down")
		if err := netlink.LinkDel(link); err != nil {
			t.Fatal(err)
		}
		called("the end of the interface")
		cancel()
		if err := <-done; err != nil {
			t.Errorf("WatchInterfaces: %v", err)
		}
		if err := WatchInterfaces(ctx, func() {}); err != nil {
			t.Errorf("WatchInterfaces of a context that has ended: %v", err)
		}
	})
}

// A list that changes while it is told is asked for again, and taken as it is when that does not help.
func TestDumpInterrupted(t *testing.T) {
	for _, test := range []struct {
		interrupted, asked int
		err, want          error
	}{
		{0, 1, nil, nil},
		{2, 3, nil, nil},
		{100, dumpAttempts, nil, nil},
		{0, 1, unix.EPERM, unix.EPERM},
		{1, 2, unix.EPERM, unix.EPERM},
	} {
		asked := 0
		got, err := dump(func() ([]int, error) {
			if asked++; asked <= test.interrupted {
				return []int{1}, fmt.Errorf("list: %w", netlink.ErrDumpInterrupted)
			}
			return []int{1}, test.err
		})
		if !errors.Is(err, test.want) || asked != test.asked || len(got) != 1 {
			t.Errorf("%+v: asked %d times, got %v, %v", test, asked, got, err)
		}
	}
}
