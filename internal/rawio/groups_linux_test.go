// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestJoinGroups(t *testing.T) {
	inNamespaces(t, func(there func(func())) {
		linkLocal(t, "a") // MLD has a source from now on
		var wire *FrameConn
		there(func() { wire = openFrames(t, "b", FrameOptions{Promiscuous: true}) })
		var groups []netip.Addr
		for i := range 45 { // more than one socket holds
			groups = append(groups, netip.AddrFrom4([4]byte{239, 1, 2, byte(i)}), netip.MustParseAddr(fmt.Sprintf("ff05::1:%x", 100+i)))
		}
		groups = append(groups, groups[0], groups[1]) // twice is no error
		g, err := JoinGroups("a", groups)
		if err != nil {
			t.Fatal(err)
		}
		members := func() (n int) {
			t.Helper()
			for _, name := range []string{"igmp", "igmp6"} {
				b, err := os.ReadFile("/proc/thread-self/net/" + name)
				if err != nil {
					t.Fatal(err)
				}
				// IPv4 addresses stand there as a number of the machine's byte order.
				s := strings.ToUpper(string(b))
				n += strings.Count(s, "0201EF") + strings.Count(s, "EF0102") + strings.Count(s, "FF050000000000000000000000010")
			}
			return n
		}
		if n := members(); n != 90 {
			t.Errorf("member of %d groups, want 90", n)
		}
		// Both versions of IP tell the segment.
		reports := map[byte]bool{}
		for len(reports) < 2 {
			data, _ := receiveN(t, wire, 1)
			switch f := data[0]; {
			case f[12] == 0x08 && f[13] == 0 && f[23] == 2: // IGMP
				reports[4] = true
			case f[12] == 0x86 && f[20] == 0 && f[14+40] == protoICMP6: // MLD, behind a hop-by-hop header
				reports[6] = true
			}
		}
		for range 2 {
			if err := g.Close(); err != nil {
				t.Error(err)
			}
		}
		if n := members(); n != 0 {
			t.Errorf("member of %d groups after Close", n)
		}
		if _, err := JoinGroups("a", []netip.Addr{groups[0], netip.MustParseAddr("192.0.2.9")}); !errors.Is(err, unix.EINVAL) {
			t.Errorf("joining a host: %v, want EINVAL", err)
		}
		if n := members(); n != 0 {
			t.Errorf("member of %d groups after a failure", n)
		}
		if _, err := JoinGroups("no-such-if", nil); err == nil {
			t.Error("joining on an interface that is not there succeeded")
		}
	})
}

// An interface without IPv6 still gets its groups of IPv4.
func TestJoinGroupsWithoutIPv6(t *testing.T) {
	inNamespaces(t, func(func(func())) {
		a, err := netlink.LinkByName("a")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetMTU(a, 1200); err != nil {
			t.Fatal(err)
		}
		g, err := JoinGroups("a", []netip.Addr{netip.MustParseAddr("ff02::fb"), netip.MustParseAddr("239.1.2.3")})
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		b, err := os.ReadFile("/proc/thread-self/net/igmp")
		if err != nil {
			t.Fatal(err)
		}
		if s := strings.ToUpper(string(b)); !strings.Contains(s, "030201EF") && !strings.Contains(s, "EF010203") {
			t.Errorf("not a member of 239.1.2.3:\n%s", b)
		}
	})
}
