// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"github.com/seed5728abee/fathom/relay/drop"
)

// BenchmarkIngress is what a captured frame costs until it can be sent: parsed, checked, its checksum verified.
func BenchmarkIngress(b *testing.B) {
	p := mustPolicy(b, Config{Ports: []PortRange{{5064, 5065}, {5076, 5076}}, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.77.2.3/24")}, Deny: prefixes("192.0.2.0/24")})
	for _, n := range []int{0, 100, 1400} {
		f := frame(ip4("255.255.255.255:5076", payload(n)))
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			var d Datagram
			for b.Loop() {
				if d.Parse(f, Capture{}) != drop.None || p.Check(&d) != drop.None || d.Finish() != drop.None {
					b.Fatal("dropped")
				}
			}
		})
	}
}

// BenchmarkEgress is what a datagram of the mesh costs until it can be emitted.
func BenchmarkEgress(b *testing.B) {
	p := mustPolicy(b, Config{
		Ports: []PortRange{{5076, 5076}}, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.77.1.3/24")},
		Groups: []Group{{Addr: netip.MustParseAddr("ff02::fb")}},
	})
	for name, ip := range map[string][]byte{
		"limited":  ip4("255.255.255.255:5076", payload(100)),
		"directed": ip4("10.77.2.255:5076", payload(100)),
		"IPv6":     ip6("[ff02::fb]:5076", payload(100)),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			f, buffer := frame(ip), make([]byte, 200)
			var fragments Fragmenter
			var d Datagram
			for b.Loop() {
				f := buffer[:copy(buffer, f)]
				var reason drop.Reason
				if f[12] == 8 {
					reason = d.ParseSS(f)
				} else {
					reason = d.ParsePacket(link, f[14:])
				}
				if reason != drop.None || p.CheckMesh(&d) != drop.None || d.Finish() != drop.None {
					b.Fatal("dropped")
				}
				d.SetDestination(p.Target(d.Dst.Addr()))
				fragments.Reset()
				if pieces, _ := fragments.Cut(&d, 1500, nil); len(pieces) != 1 {
					b.Fatal("cut")
				}
			}
		})
	}
}

func BenchmarkFragments(b *testing.B) {
	ip := ip4("255.255.255.255:5076", payload(9000))
	d := finishedDatagram(b, ip)
	var f Fragmenter
	pieces, _ := f.Cut(d, 1500, nil)
	for i := range pieces {
		pieces[i] = bytes.Clone(pieces[i])
	}
	b.Run("cut 9000", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			f.Reset()
			f.Cut(d, 1500, nil)
		}
	})
	b.Run("put 9000 together", func(b *testing.B) {
		b.ReportAllocs()
		var r Reassembler
		for b.Loop() {
			whole := false
			for _, p := range pieces {
				var d Datagram
				if d.ParsePacket(link, p) != drop.None {
					b.Fatal("refused")
				}
				whole, _ = r.Add(&d, 0, epoch)
			}
			if !whole {
				b.Fatal("not whole")
			}
		}
	})
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	p := mustPolicy(t, Config{
		Ports: []PortRange{{5076, 5076}}, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.77.1.3/24")}, Deny: prefixes("192.0.2.0/24", "2001:db8:1::/64"),
		Groups: []Group{{Addr: netip.MustParseAddr("ff02::fb")}, {Addr: netip.MustParseAddr("224.0.0.251")}},
	})
	all := [][]byte{
		frame(ip4("255.255.255.255:5076", payload(100))), frame(ip4("10.77.2.255:5076", payload(100))),
		frame(ip4("224.0.0.251:5076", payload(100))), frame(ip6("[ff02::fb]:5076", payload(100))),
	}
	for _, r := range refusals() {
		all = append(all, r.frame)
	}
	buffer := make([]byte, 2000)
	if n := testing.AllocsPerRun(20, func() {
		for i, f := range all {
			f := buffer[:copy(buffer, f)]
			var d Datagram
			if d.Parse(f, Capture{}) != drop.None || d.Finish() != drop.None || p.CheckMesh(&d) != drop.None {
				if i < 4 {
					t.Fatal("dropped")
				}
				continue
			}
			p.Check(&d)
			d.SetDestination(p.Target(d.Dst.Addr()))
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
