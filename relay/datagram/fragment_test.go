// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"bytes"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/ip4defrag"
	"github.com/gopacket/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/relay/drop"
)

func TestCutFits(t *testing.T) {
	var f Fragmenter
	d := finishedDatagram(t, ip4("255.255.255.255:5076", payload(1472)))
	pieces, reason := f.Cut(d, 1500, nil)
	if reason != drop.None || len(pieces) != 1 || &pieces[0][0] != &d.IP[0] {
		t.Errorf("1500 bytes in 1500: %d pieces, %v", len(pieces), reason)
	}
	pieces, reason = f.Cut(d, 1500, []byte("SS"))
	if reason != drop.None || len(pieces) != 1 || !bytes.Equal(pieces[0], append([]byte("SS"), d.IP...)) {
		t.Errorf("1500 bytes in 1500 with a prefix: %d pieces, %v", len(pieces), reason)
	}
	if pieces, _ = f.Cut(d, 1499, nil); len(pieces) != 2 {
		t.Errorf("1500 bytes in 1499: %d pieces", len(pieces))
	}
	for _, c := range []struct {
		ip  []byte
		mtu int // the least that works
	}{
		{ip4("255.255.255.255:5076", payload(64)), 28},
		{ip4("255.255.255.255:5076", payload(64), 148, 4, 0, 0), 32},
		{ip6("[ff02::fb]:5353", payload(64)), 56},
		{ip6("[ff02::fb]:5353", payload(64), hopByHop), 64},
	} {
		for mtu := range c.mtu + 3 {
			_, reason := f.Cut(finishedDatagram(t, c.ip), mtu, nil)
			if want := mtu < c.mtu; (reason == drop.TooLong) != want || !want && reason != drop.None {
				t.Errorf("%d bytes in %d: %v", len(c.ip), mtu, reason)
			}
		}
	}
}

func TestCutIDs(t *testing.T) {
	const unmarked, marked = 0x00, 0x40
	cut := func(f *Fragmenter, flags, id byte) uint16 {
		t.Helper()
		pieces, reason := f.Cut(finishedDatagram(t, change(ip4("255.255.255.255:5076", payload(3000)), 4, 0, id, flags, 0)), 1500, nil)
		if reason != drop.None || len(pieces) != 3 {
			t.Fatalf("%d pieces, %v", len(pieces), reason)
		}
		for _, p := range pieces {
			if v := packet.IPv4(p); v.ID() == 0 || v.ID() != packet.IPv4(pieces[0]).ID() || v.DontFragment() {
				t.Errorf("ID %d, then %d; marked %v", packet.IPv4(pieces[0]).ID(), v.ID(), v.DontFragment())
			}
		}
		return packet.IPv4(pieces[0]).ID()
	}
	f := &Fragmenter{id: 0xfffd, seeded: true}
	if got := cut(f, unmarked, 9); got != 9 {
		t.Errorf("the sender's ID 9 became %d", got)
	}
	for i, want := range []uint16{0xfffe, 0xffff, 1, 2} { // 0 is left out
		flags := byte(unmarked)
		id := byte(0)
		if i%2 == 1 {
			flags, id = marked, 9
		}
		if got := cut(f, flags, id); got != want {
			t.Errorf("ID %d, want %d", got, want)
		}
	}
	var a, b Fragmenter
	if a.nextID() == b.nextID() && a.nextID() == b.nextID()+1 {
		t.Error("two fragmenters begin alike")
	}
}

func TestCutOptions(t *testing.T) {
	// Router alert (copied), NOP, record route (not copied), stream ID (copied), end.
	options := []byte{148, 4, 0, 0, 1, 7, 7, 4, 0, 0, 0, 0, 136, 4, 1, 2, 0, 0, 0, 0}
	ip := ip4("255.255.255.255:5076", payload(200), options...)
	var f Fragmenter
	pieces, reason := f.Cut(finishedDatagram(t, ip), 100, nil)
	if reason != drop.None || len(pieces) < 3 {
		t.Fatalf("%d pieces, %v", len(pieces), reason)
	}
	if got := packet.IPv4(pieces[0]).Options(); !bytes.Equal(got, options) {
		t.Errorf("first: options %x, want %x", got, options)
	}
	for i, p := range pieces[1:] {
		if got, want := packet.IPv4(p).Options(), []byte{148, 4, 0, 0, 136, 4, 1, 2}; !bytes.Equal(got, want) {
			t.Errorf("piece %d: options %x, want %x", i+1, got, want)
		}
	}
	// One that is copied and does not fill 4 bytes is padded.
	ip = ip4("255.255.255.255:5076", payload(200), 130, 3, 9, 1)
	pieces, _ = f.Cut(finishedDatagram(t, ip), 100, nil)
	if got, want := packet.IPv4(pieces[1]).Options(), []byte{130, 3, 9, 0}; !bytes.Equal(got, want) {
		t.Errorf("options %x, want %x", got, want)
	}
}

// TestCutAndPutTogether takes packets of any kind through a fragmenter and back through the reassembler here, and
// for IPv4 through gopacket's.
func TestCutAndPutTogether(t *testing.T) {
	var f Fragmenter
	var r Reassembler
	rapid.Check(t, func(t *rapid.T) {
		data := payload(rapid.IntRange(0, 9000).Draw(t, "length"))
		v6 := rapid.Bool().Draw(t, "IPv6")
		withOptions := rapid.Bool().Draw(t, "options")
		mtu := rapid.IntRange(100, 2000).Draw(t, "MTU")
		prefix := rapid.SampledFrom([]string{"", "SS", "SS0123456789abcd"}).Draw(t, "prefix")
		var ip []byte
		switch {
		case v6 && withOptions:
			ip = ip6("[ff02::fb]:5353", data, hopByHop, destination)
		case v6:
			ip = ip6("[ff02::fb]:5353", data)
		case withOptions:
			ip = ip4("255.255.255.255:5076", data, 148, 4, 0, 0, 7, 7, 4, 0, 0, 0, 0, 0)
		default:
			ip = ip4("255.255.255.255:5076", data)
		}
		var d Datagram
		if d.ParsePacket(link, ip) != drop.None || d.Finish() != drop.None {
			t.Fatal("not a datagram")
		}
		f.Reset()
		if _, reason := f.Cut(&d, 576, nil); reason != drop.None { // something of an earlier packet in the arena
			t.Fatal(reason)
		}
		pieces, reason := f.Cut(&d, mtu, []byte(prefix))
		if reason != drop.None {
			t.Fatal(reason)
		}
		if len(ip) <= mtu {
			if len(pieces) != 1 || string(pieces[0]) != prefix+string(ip) {
				t.Fatalf("%d pieces of what fits", len(pieces))
			}
			return
		}
		oracle := ip4defrag.NewIPv4Defragmenter()
		for i, p := range pieces {
			p, ok := bytes.CutPrefix(p, []byte(prefix))
			if !ok || len(p) > mtu || i < len(pieces)-1 && len(p) <= mtu-16-8 {
				t.Fatalf("piece %d has %d bytes of %d", i, len(p), mtu)
			}
			var d Datagram
			if reason := d.ParsePacket(link, p); reason != drop.None || !d.Fragment {
				t.Fatalf("piece %d: %v, fragment %v", i, reason, d.Fragment)
			}
			whole, reason := r.Add(&d, 0, epoch)
			if reason != drop.None || whole != (i == len(pieces)-1) {
				t.Fatalf("piece %d: %v, whole %v", i, reason, whole)
			}
			if whole && !bytes.Equal(d.IP, ip) { // with ID and all, for it was not marked
				t.Fatalf("\n got %x\nwant %x", d.IP, ip)
			}
			if v6 {
				continue
			}
			var g layers.IPv4
			if err := g.DecodeFromBytes(p, gopacket.NilDecodeFeedback); err != nil {
				t.Fatal(err)
			}
			out, err := oracle.DefragIPv4(&g)
			if err != nil || (out != nil) != whole {
				t.Fatalf("gopacket: piece %d: %v, whole %v", i, err, out != nil)
			}
			if whole && !bytes.Equal(out.Payload, packet.IPv4(ip).Payload()) {
				t.Fatalf("gopacket: %x, want %x", out.Payload, packet.IPv4(ip).Payload())
			}
		}
	})
}

// TestPiecesStay has results of before still be right when the arena had to grow.
func TestPiecesStay(t *testing.T) {
	var f Fragmenter
	var all [][]byte
	var want [][]byte
	for i := range 50 {
		d := finishedDatagram(t, ip4("255.255.255.255:5076", payload(3000+i)))
		pieces, _ := f.Cut(d, 1500, []byte("SS"))
		for _, p := range pieces {
			all, want = append(all, p), append(want, bytes.Clone(p))
		}
	}
	for i := range all {
		if !bytes.Equal(all[i], want[i]) {
			t.Fatalf("piece %d has changed", i)
		}
	}
}

func TestCutDoesNotAllocate(t *testing.T) {
	long := finishedDatagram(t, ip4("255.255.255.255:5076", payload(9000), 148, 4, 0, 0))
	long6 := finishedDatagram(t, ip6("[ff02::fb]:5353", payload(9000)))
	short := finishedDatagram(t, ip4("255.255.255.255:5076", payload(100)))
	var f Fragmenter
	prefix := []byte("SS0123456789abcd")
	if n := testing.AllocsPerRun(100, func() {
		f.Reset()
		f.Cut(long, 1500, prefix)
		f.Cut(long6, 1500, nil)
		f.Cut(short, 1500, nil)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
