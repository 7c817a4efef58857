// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/relay/drop"
)

// seed adds all frames that the tests know: recorded ones, refused ones, fragments.
func seed(f *testing.F) {
	for _, b := range frames() {
		f.Add(b)
	}
	for _, r := range refusals() {
		f.Add(r.frame)
	}
	for _, ip := range [][]byte{
		ip4("224.0.0.251:5353", payload(40), 148, 4, 0, 0, 7, 7, 4, 0, 0, 0, 0, 0),
		ip6("[ff02::fb]:5353", payload(40), hopByHop, destination),
	} {
		f.Add(frame(ip))
		for _, p := range cut(ip, 7, 16) {
			f.Add(frame(p))
		}
	}
}

// everything is a policy that relays all ports.
var everything = func() *Policy {
	p, err := NewPolicy(Config{
		Ports:    []PortRange{{1, 65535}},
		Groups:   []Group{{Addr: netip.MustParseAddr("224.0.0.251")}, {Addr: netip.MustParseAddr("ff02::fb")}},
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.77.2.3/24")},
	})
	if err != nil {
		panic(err)
	}
	return p
}()

// FuzzParse holds what is promised of everything that comes through: that gopacket reads the same in it, that its
// checksums are right after Finish, that it stays so when it is readdressed, and that it is for all hosts or a group.
func FuzzParse(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		for way, parse := range map[string]func(*Datagram, []byte) drop.Reason{
			"captured": func(d *Datagram, b []byte) drop.Reason { return d.Parse(b, Capture{}) },
			"partial":  func(d *Datagram, b []byte) drop.Reason { return d.Parse(b, Capture{Partial: true}) },
			"SS":       func(d *Datagram, b []byte) drop.Reason { return d.ParseSS(b) },
			"packet": func(d *Datagram, b []byte) drop.Reason {
				return d.ParsePacket(link, b[min(len(b), EthernetHeaderLen):])
			},
		} {
			b := bytes.Clone(b)
			var d Datagram
			if reason := parse(&d, b); reason != drop.None {
				if reason >= drop.Port && reason != drop.Destination && reason != drop.BadSource {
					t.Fatalf("%s: %v, which the bytes alone do not tell", way, reason)
				}
				continue
			}
			compare(t, way, &d)
			if d.Fragment {
				if d.Payload() != nil || d.Src.Port() != 0 || d.Dst.Port() != 0 {
					t.Fatalf("%s: a fragment with %+v", way, d)
				}
				continue
			}
			segment, mesh := everything.Check(&d), everything.CheckMesh(&d)
			if segment == drop.None && mesh != drop.None {
				t.Fatalf("%s: taken from the segment, but not from the mesh: %v", way, mesh)
			}
			if d.Finish() != drop.None {
				if way == "partial" || way == "SS" {
					t.Fatalf("%s: a checksum that was to be computed is wrong", way)
				}
				continue
			}
			if d.Finish() != drop.None || !right(&d) {
				t.Fatalf("%s: %x is not right", way, d.IP)
			}
			if mesh != drop.None {
				continue
			}
			d.SetDestination(everything.Target(d.Dst.Addr()))
			if !right(&d) || everything.Check(&d) != drop.None {
				t.Fatalf("%s: to %v: %x is not right", way, d.Dst, d.IP)
			}
		}
	})
}

// right tells that both checksums are.
func right(d *Datagram) bool {
	if v, err := packet.ParseIPv4(d.IP); err == nil && (!v.ChecksumOK() || v.Dst() != d.Dst.Addr()) {
		return false
	}
	u, err := packet.ParseUDP(d.IP[d.at:])
	return err == nil && u.ChecksumOK(d.Src.Addr(), d.Dst.Addr()) && u.DstPort() == d.Dst.Port()
}

// compare holds a datagram against what gopacket makes of it.
func compare(t *testing.T, way string, d *Datagram) {
	t.Helper()
	var payload []byte
	if d.IP[0]>>4 == 4 {
		var g layers.IPv4
		if err := g.DecodeFromBytes(d.IP, gopacket.NilDecodeFeedback); err != nil {
			if packet.IPv4(d.IP).HeaderLen() > packet.IPv4HeaderLen {
				return // it minds the inside of some options
			}
			t.Fatalf("%s: %x: gopacket: %v", way, d.IP, err)
		}
		if int(g.Length) != len(d.IP) || !g.SrcIP.Equal(net.IP(d.Src.Addr().AsSlice())) || !g.DstIP.Equal(net.IP(d.Dst.Addr().AsSlice())) || g.Protocol != layers.IPProtocolUDP {
			t.Fatalf("%s: %+v, gopacket: %+v", way, d, g)
		}
		if fragment := g.FragOffset != 0 || g.Flags&layers.IPv4MoreFragments != 0; fragment != d.Fragment {
			t.Fatalf("%s: fragment %v, gopacket: %v", way, d.Fragment, fragment)
		}
		payload = g.Payload
	} else {
		p := gopacket.NewPacket(d.IP, layers.LayerTypeIPv6, gopacket.NoCopy)
		g, ok := p.NetworkLayer().(*layers.IPv6)
		if !ok || !g.SrcIP.Equal(net.IP(d.Src.Addr().AsSlice())) || !g.DstIP.Equal(net.IP(d.Dst.Addr().AsSlice())) {
			return // it minds the inside of options
		}
		if fragment := p.Layer(layers.LayerTypeIPv6Fragment) != nil; fragment && !d.Fragment {
			t.Fatalf("%s: %x is a fragment to gopacket", way, d.IP)
		}
		u, ok := p.TransportLayer().(*layers.UDP)
		if !ok {
			return
		}
		payload = append(bytes.Clone(u.Contents), u.Payload...)
	}
	if d.Fragment {
		return
	}
	var u layers.UDP
	if err := u.DecodeFromBytes(payload, gopacket.NilDecodeFeedback); err != nil || uint16(u.SrcPort) != d.Src.Port() || uint16(u.DstPort) != d.Dst.Port() || !bytes.Equal(u.Payload, d.Payload()) {
		t.Fatalf("%s: %v to %v %x, gopacket: %v %+v", way, d.Src, d.Dst, d.Payload(), err, u)
	}
}

// FuzzReassembler feeds a reassembler with fragments as the input says: a sequence of offset (2 bytes, with MF as the
// last bit and IPv6 as the one before), ID (1), milliseconds since the one before divided by 10 (1), length / 8 (1), fill (1).
func FuzzReassembler(f *testing.F) {
	f.Add([]byte{0, 1, 1, 0, 2, 0xff, 0, 16, 1, 0, 2, 0xff})
	f.Add([]byte{0, 3, 1, 0, 2, 7, 0, 18, 1, 0, 2, 7, 0, 18, 1, 0, 2, 8, 0, 34, 1, 0, 2, 8})
	f.Add([]byte{0xff, 0xc0, 1, 0, 2, 0, 0, 1, 1, 255, 255, 0, 0xff, 1, 1, 255, 255, 0})
	f.Add([]byte{0, 1, 1, 0, 255, 8, 7, 0xf8, 1, 0, 2, 8}) // a whole one: 2056 bytes, without a checksum
	f.Fuzz(func(t *testing.T, b []byte) {
		r := Reassembler{MaxDatagrams: 4, MaxBytes: 1 << 17}
		now := epoch
		datagrams := 0 // that were begun, at most
		ended := 0
		b = b[:min(len(b), 6*300)]
		for ; len(b) >= 6; b = b[6:] {
			field := binary.BigEndian.Uint16(b)
			base := ip4("255.255.255.255:5076", nil)
			if field&2 != 0 {
				base = ip6("[ff02::fb]:5353", nil)
			}
			data := bytes.Repeat(b[5:6], int(b[4])*8)
			if field>>3 == 0 && len(data) >= 8 { // a UDP header that can be right, of a length that the fill says
				copy(data, []byte{1, 2, 3, 4, b[5], b[5], 0, 0})
			}
			p := piece(base, uint32(b[2]), int(field&^7), data, field&1 != 0)
			now = now.Add(time.Duration(b[3]) * 10 * time.Millisecond)
			var d Datagram
			if d.ParsePacket(link, p) != drop.None || !d.Fragment {
				continue
			}
			datagrams++
			whole, reason := r.Add(&d, uint32(b[2]>>7), now)
			if whole {
				if ended++; reason != drop.None || d.Fragment || !right(&d) {
					t.Fatalf("whole: %v %x", reason, d.IP)
				}
				if d.ParsePacket(link, d.IP) != drop.None || d.Finish() != drop.None {
					t.Fatalf("what came out would not be taken: %x", d.IP)
				}
			}
			sets, held := r.Pending()
			if sets > 4 || held > 1<<17 || sets != len(r.sets) {
				t.Fatalf("%d datagrams with %d bytes are held", sets, held)
			}
			blocks, n := 0, 0
			for s := r.oldest; s != nil; s = s.newer {
				n++
				units := 0
				for _, b := range s.blocks {
					if b != nil {
						blocks++
						for _, w := range b.have {
							units += bits.OnesCount64(w)
						}
					}
				}
				if s.dropped == drop.None && units != s.units || !now.Before(s.deadline) || r.sets[s.key] != s {
					t.Fatalf("%d units are there, %d counted", units, s.units)
				}
			}
			if n != sets || blocks != r.blocks {
				t.Fatalf("%d datagrams and %d blocks in the list, want %d and %d", n, blocks, sets, r.blocks)
			}
		}
		incomplete, overflow := r.Expire(now.Add(ReassemblyTimeout))
		if sets, held := r.Pending(); sets != 0 || held != 0 || incomplete+overflow+ended > datagrams {
			t.Fatalf("%d datagrams with %d bytes are left; %d incomplete, %d pushed out, %d whole of %d", sets, held, incomplete, overflow, ended, datagrams)
		}
	})
}

// FuzzCut cuts and readdresses whatever was taken.
func FuzzCut(f *testing.F) {
	for _, b := range frames() {
		f.Add(b, uint16(48))
	}
	f.Add(frame(ip4("255.255.255.255:5076", payload(300), 1, 1, 148, 4, 0, 0, 136, 4, 0, 0, 0, 0)), uint16(76))
	f.Add(frame(ip6("[ff02::fb]:5353", payload(300), hopByHop, destination)), uint16(100))
	f.Fuzz(func(t *testing.T, b []byte, mtu uint16) {
		var d Datagram
		if d.Parse(b, Capture{Partial: true}) != drop.None || d.Fragment {
			return
		}
		d.Finish()
		want := bytes.Clone(d.IP)
		var f Fragmenter
		pieces, reason := f.Cut(&d, int(mtu), []byte("SS"))
		if reason != drop.None {
			return
		}
		var r Reassembler
		for i, p := range pieces {
			if p = p[2:]; len(p) > int(mtu) {
				t.Fatalf("%d bytes of %d", len(p), mtu)
			}
			var piece Datagram
			if reason := piece.ParsePacket(link, p); reason != drop.None {
				t.Fatalf("piece %d, %x: %v", i, p, reason)
			}
			whole, reason := r.Add(&piece, 0, epoch)
			if len(want)-packet.IPv6HeaderLen > maxHead && reason == drop.Overflow {
				return
			}
			if reason != drop.None || whole != (i == len(pieces)-1) {
				t.Fatalf("piece %d of %d: %v, %v", i, len(pieces), whole, reason)
			}
			if !whole || len(pieces) == 1 {
				continue
			}
			if want[0]>>4 == 4 { // ID and mark may have changed
				want = change(want, 4, piece.IP[4:8]...)
			}
			if !bytes.Equal(piece.IP, want) {
				t.Fatalf("\n got %x\nwant %x", piece.IP, want)
			}
		}
	})
}

func FuzzParsePorts(f *testing.F) {
	f.Add("5064-5065,5076")
	f.Fuzz(func(t *testing.T, list string) {
		ranges, err := ParsePorts(list)
		if err != nil {
			return
		}
		if _, err := NewPolicy(Config{Ports: ranges}); err != nil {
			t.Fatal(err)
		}
	})
}
