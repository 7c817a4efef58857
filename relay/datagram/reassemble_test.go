// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/relay/drop"
)

// epoch is when the tests of this file begin.
var epoch = time.Unix(1_800_000_000, 0)

// cut cuts an IP packet by hand at the given places of its data, not by the code under test.
func cut(ip []byte, id uint32, places ...int) [][]byte {
	n := int(ip[0]&15) * 4
	if ip[0]>>4 == 6 {
		n = 40
	}
	data := ip[n:]
	places = append(append([]int{0}, places...), len(data))
	var pieces [][]byte
	for i := range len(places) - 1 {
		from, to := places[i], places[i+1]
		pieces = append(pieces, piece(ip, id, from, data[from:to], to < len(data)))
	}
	return pieces
}

// piece is a fragment of ip.
func piece(ip []byte, id uint32, offset int, data []byte, more bool) []byte {
	if ip[0]>>4 == 6 {
		b := bytes.Clone(ip[:40])
		b[6] = byte(packet.ProtocolFragment)
		binary.BigEndian.PutUint16(b[4:], uint16(8+len(data)))
		b, err := packet.AppendIPv6Fragment(b, packet.Protocol(ip[6]), uint16(offset), more, id)
		if err != nil {
			panic(err)
		}
		return append(b, data...)
	}
	n := int(ip[0]&15) * 4
	b := append(bytes.Clone(ip[:n]), data...)
	field := uint16(offset / 8)
	if more {
		field |= 0x2000
	}
	return change(b, 2, byte(len(b)>>8), byte(len(b)), byte(id>>8), byte(id), byte(field>>8), byte(field))
}

// add gives a piece to a reassembler; it is whole when the datagram comes back.
func add(t testing.TB, r *Reassembler, piece []byte, origin uint32, now time.Time) (*Datagram, drop.Reason) {
	t.Helper()
	d := new(Datagram)
	if reason := d.ParsePacket(link, piece); reason != drop.None {
		t.Fatalf("%x: %v", piece[:min(len(piece), 60)], reason)
	}
	if !d.Fragment {
		t.Fatalf("%x is not a fragment", piece[:min(len(piece), 60)])
	}
	whole, reason := r.Add(d, origin, now)
	if !whole {
		return nil, reason
	}
	return d, reason
}

// without clears what a reassembled packet does not keep.
func without(ip []byte, id uint32) []byte {
	if ip[0]>>4 == 6 {
		return ip
	}
	return change(ip, 4, byte(id>>8), byte(id), 0, 0)
}

func TestReassemble(t *testing.T) {
	for name, ip := range map[string][]byte{
		"IPv4":                 ip4("255.255.255.255:5076", payload(4000)),
		"IPv4, directed":       ip4("10.77.2.255:5076", payload(4000)),
		"IPv4 with options":    ip4("255.255.255.255:5076", payload(4000), 148, 4, 0, 0, 7, 7, 4, 0, 0, 0, 0, 0),
		"IPv4, multiple of 8":  ip4("255.255.255.255:5076", payload(4096)),
		"IPv4, longest":        ip4("255.255.255.255:5076", payload(65507)),
		"IPv4, without a sum":  func() []byte { b := ip4("255.255.255.255:5076", payload(4000)); b[26], b[27] = 0, 0; return b }(),
		"IPv6":                 ip6("[ff02::fb]:5353", payload(4000)),
		"IPv6 with options":    ip6("[ff02::fb]:5353", payload(4000), destination),
		"IPv6, longest":        ip6("[ff02::fb]:5353", payload(65487)),
		"IPv6, multiple of 8":  ip6("[ff02::fb]:5353", payload(4096)),
		"IPv4, just one block": ip4("255.255.255.255:5076", payload(blockLen-8)),
	} {
		var r Reassembler
		n := int(ip[0]&15) * 4
		if ip[0]>>4 == 6 {
			n = 40
		}
		var places []int
		for at := 1480; at < len(ip)-n; at += 1480 {
			places = append(places, at)
		}
		pieces := cut(ip, 77, places...)
		orders := [][]int{nil, nil}
		for i := range pieces {
			orders[0] = append(orders[0], i)
			orders[1] = append(orders[1], len(pieces)-1-i)
		}
		orders = append(orders, rand.New(rand.NewPCG(1, 1)).Perm(len(pieces)))
		for _, order := range orders {
			for i, k := range order {
				d, reason := add(t, &r, pieces[k], 0, epoch)
				if reason != drop.None || (d != nil) != (i == len(pieces)-1) {
					t.Fatalf("%s, order %v: after %d: %v, %v", name, order, i, d != nil, reason)
				}
				if d == nil {
					continue
				}
				if want := without(ip, 77); !bytes.Equal(d.IP, want) {
					t.Errorf("%s:\n got %x\nwant %x", name, d.IP[:60], want[:60])
				}
				if d.Fragment || d.Link != link || d.Finish() != drop.None || d.Dst.Port() == 0 {
					t.Errorf("%s: %+v", name, d.Dst)
				}
				if sets, bytes := r.Pending(); sets != 0 || bytes != 0 {
					t.Errorf("%s: %d datagrams with %d bytes are left", name, sets, bytes)
				}
			}
		}
	}
}

// TestReassembleAnything cuts datagrams anywhere, and delivers the pieces in any order, some of them twice or
// overlapping, with those of other datagrams between them. Every datagram comes out as it went in, once.
func TestReassembleAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type sent struct {
			piece  []byte
			origin uint32
			which  int
		}
		var all []sent
		var wholes [][]byte
		count := rapid.IntRange(1, 4).Draw(t, "datagrams")
		for i := range count {
			data := payload(rapid.IntRange(1, 12000).Draw(t, "length"))
			data[0] = byte(i)
			v6 := rapid.Bool().Draw(t, "IPv6")
			ip := ip4("255.255.255.255:5076", data)
			if v6 {
				ip = ip6("[ff02::fb]:5353", data)
			}
			n := len(data) + 8
			var places []int
			for at := 8 * rapid.IntRange(1, 300).Draw(t, "piece"); at < n; at += 8 * rapid.IntRange(1, 300).Draw(t, "piece") {
				places = append(places, at)
			}
			if len(places) == 0 {
				places = []int{8} // a datagram has more than 8 bytes
			}
			// The same ID for all, but another origin for each.
			pieces := cut(ip, 9, places...)
			wholes = append(wholes, without(ip, 9))
			for _, p := range pieces {
				all = append(all, sent{p, uint32(i), i})
			}
			if !v6 && rapid.Bool().Draw(t, "overlap") {
				// Pieces that say the same as others, within other bounds. Not all: they might complete a second one.
				units := n / 8
				from := rapid.IntRange(0, units-1).Draw(t, "from")
				to := rapid.IntRange(from+1, units).Draw(t, "to")
				if 8*to < n && (from > 0 || 8*to < places[0]) {
					all = append(all, sent{piece(ip, 9, 8*from, ip[20+8*from:20+8*to], true), uint32(i), i})
				}
			}
		}
		order := rapid.Permutation(all).Draw(t, "order")
		var r Reassembler
		got := make([]int, count)
		for i, s := range order {
			var d Datagram
			if reason := d.ParsePacket(link, s.piece); reason != drop.None {
				t.Fatal(reason)
			}
			repeat := got[s.which] == 0 && rapid.Bool().Draw(t, "twice")
			d2 := d
			whole, reason := r.Add(&d, s.origin, epoch)
			if reason != drop.None {
				t.Fatalf("piece %d: %v", i, reason)
			}
			if whole {
				got[s.which]++
				if !bytes.Equal(d.IP, wholes[s.which]) {
					t.Fatalf("got %x, want %x", d.IP, wholes[s.which])
				}
			} else if repeat {
				if whole, reason := r.Add(&d2, s.origin, epoch); whole || reason != drop.None {
					t.Fatalf("piece %d again: %v, %v", i, whole, reason)
				}
			}
		}
		for i, n := range got {
			if n != 1 {
				t.Fatalf("datagram %d came out %d times", i, n)
			}
		}
	})
}

func TestOverlaps(t *testing.T) {
	ip := ip4("255.255.255.255:5076", payload(92)) // 100 bytes of data
	v6 := ip6("[ff02::fb]:5353", payload(92))
	other := bytes.Clone(ip)
	for i := 20; i < len(other); i++ {
		other[i] ^= 0x55
	}
	of := func(ip []byte, from, to int) []byte {
		n := 20
		if ip[0]>>4 == 6 {
			n = 40
		}
		return piece(ip, 5, from, ip[n+from:n+to], to < 100)
	}
	last := func(ip []byte, from, to int) []byte { return piece(ip, 5, from, ip[20+from:20+to], false) }
	for name, c := range map[string]struct {
		pieces [][]byte
		bad    int // the first that is refused; -1 for none, and the whole comes with the last
	}{
		"none":                               {[][]byte{of(ip, 0, 40), of(ip, 40, 100)}, -1},
		"the same piece":                     {[][]byte{of(ip, 0, 40), of(ip, 0, 40), of(ip, 40, 100)}, -1},
		"the last piece twice":               {[][]byte{of(ip, 40, 100), of(ip, 40, 100), of(ip, 0, 40)}, -1},
		"same bytes within other bounds":     {[][]byte{of(ip, 0, 40), of(ip, 24, 64), of(ip, 56, 100)}, -1},
		"same bytes, last over another":      {[][]byte{of(ip, 40, 96), of(ip, 0, 40), of(ip, 64, 100)}, -1},
		"same bytes around":                  {[][]byte{of(ip, 16, 24), of(ip, 40, 100), of(ip, 0, 64)}, -1},
		"other bytes at the same place":      {[][]byte{of(ip, 0, 40), of(other, 0, 40), of(ip, 40, 100)}, 1},
		"other bytes in the last":            {[][]byte{of(ip, 40, 100), of(other, 40, 100), of(ip, 0, 40)}, 1},
		"other bytes in part":                {[][]byte{of(ip, 8, 40), of(other, 32, 64), of(ip, 0, 8), of(ip, 40, 100)}, 1},
		"other bytes inside":                 {[][]byte{of(ip, 0, 64), of(other, 8, 16)}, 1},
		"another end":                        {[][]byte{last(ip, 40, 100), last(ip, 40, 90)}, 1},
		"an end before older data":           {[][]byte{of(ip, 40, 80), of(ip, 0, 40), last(ip, 40, 64)}, 2},
		"an end before other data":           {[][]byte{of(ip, 40, 80), last(ip, 8, 64)}, 1},
		"an end where data goes on":          {[][]byte{of(ip, 40, 80), last(ip, 72, 80)}, 1},
		"data behind the end":                {[][]byte{last(ip, 40, 64), of(ip, 64, 80)}, 1},
		"data that goes on at the end":       {[][]byte{last(ip, 40, 64), of(ip, 40, 64)}, 1},
		"IPv6: none":                         {[][]byte{of(v6, 0, 40), of(v6, 40, 100)}, -1},
		"IPv6: the same piece":               {[][]byte{of(v6, 0, 40), of(v6, 0, 40), of(v6, 40, 100)}, -1},
		"IPv6: same bytes, other bounds":     {[][]byte{of(v6, 0, 40), of(v6, 24, 64), of(v6, 64, 100)}, 1},
		"IPv6: same bytes, around":           {[][]byte{of(v6, 16, 24), of(v6, 8, 40), of(v6, 0, 8), of(v6, 40, 100)}, 1},
		"IPv6: last over another, same here": {[][]byte{of(v6, 0, 48), of(v6, 40, 100)}, 1},
	} {
		var r Reassembler
		for i, p := range c.pieces {
			d, reason := add(t, &r, p, 0, epoch)
			want := drop.None
			if c.bad >= 0 && i >= c.bad {
				want = drop.Overlapping // what comes later of that datagram as well
			}
			if reason != want {
				t.Errorf("%s: piece %d: %v, want %v", name, i, reason, want)
			}
			if whole := c.bad < 0 && i == len(c.pieces)-1; (d != nil) != whole {
				t.Errorf("%s: piece %d: whole is %v", name, i, d != nil)
			}
		}
		if c.bad >= 0 {
			if _, held := r.Pending(); held != 0 {
				t.Errorf("%s: %d bytes are held of a lost datagram", name, held)
			}
			if incomplete, overflow := r.Expire(epoch.Add(ReassemblyTimeout)); incomplete != 0 || overflow != 0 {
				t.Errorf("%s: a datagram is lost twice", name)
			}
			// Then its ID is free again.
			if _, reason := add(t, &r, c.pieces[0], 0, epoch.Add(ReassemblyTimeout)); reason != drop.None {
				t.Errorf("%s: after the timeout: %v", name, reason)
			}
		}
	}
}

func TestSetsAreKeptApart(t *testing.T) {
	ip := ip4("255.255.255.255:5076", payload(92))
	first, rest := cut(ip, 5, 40)[0], cut(ip, 5, 40)[1]
	for name, p := range map[string][]byte{
		"ID":          cut(ip, 6, 40)[1],
		"source":      change(rest, 12, 10, 77, 2, 12),
		"destination": change(rest, 16, 10, 77, 2, 255),
	} {
		var r Reassembler
		add(t, &r, first, 0, epoch)
		if d, reason := add(t, &r, p, 0, epoch); d != nil || reason != drop.None {
			t.Errorf("another %s: %v, %v", name, d != nil, reason)
		}
	}
	var r Reassembler
	add(t, &r, first, 1, epoch)
	if d, _ := add(t, &r, rest, 2, epoch); d != nil {
		t.Error("fragments of two origins make one datagram")
	}
	var d Datagram
	d.ParsePacket(MAC{2, 0, 0, 0, 0, 9}, rest)
	if whole, _ := r.Add(&d, 1, epoch); whole {
		t.Error("fragments of two hosts make one datagram")
	}
	if d, _ := add(t, &r, rest, 1, epoch); d == nil {
		t.Error("fragments of one origin make none")
	}
	// An IPv6 fragment that is all of its datagram is that datagram, whatever else has its ID (RFC 6946).
	v6 := ip6("[ff02::fb]:5353", payload(92))
	add(t, &r, cut(v6, 5, 40)[1], 1, epoch)
	if d, reason := add(t, &r, cut(v6, 5)[0], 1, epoch); d == nil || reason != drop.None || !bytes.Equal(d.IP, v6) {
		t.Errorf("fragment that is the whole: %v", reason)
	}
	if d, _ := add(t, &r, cut(v6, 5, 40)[0], 1, epoch); d == nil {
		t.Error("the others no longer make one")
	}
}

func TestWholeIsTested(t *testing.T) {
	damaged := ip4("255.255.255.255:5076", payload(92))
	damaged[70] ^= 1
	damaged6 := ip6("[ff02::fb]:5353", payload(92))
	damaged6[100] ^= 1
	unfinished6 := ip6("[ff02::fb]:5353", payload(92))
	unfinished6[46], unfinished6[47] = 0, 0
	nested := ip6("[ff02::fb]:5353", payload(96), extension{packet.ProtocolFragment, []byte{0, 0, 0, 9, 0, 0, 0, 5}})
	hidden := ip6("[ff02::fb]:5353", payload(92))
	hidden[6] = 6
	for name, c := range map[string]struct {
		ip     []byte
		reason drop.Reason
	}{
		"damaged":                  {damaged, drop.BadChecksum},
		"UDP length short":         {change(ip4("255.255.255.255:5076", payload(92)), 24, 0, 92), drop.Malformed},
		"UDP length long":          {change(ip4("255.255.255.255:5076", payload(92)), 24, 0, 108), drop.Malformed},
		"IPv6 damaged":             {damaged6, drop.BadChecksum},
		"IPv6 without a checksum":  {unfinished6, drop.BadChecksum},
		"IPv6, fragment inside":    {nested, drop.Malformed},
		"IPv6, TCP in the pieces":  {hidden, drop.NotUDP},
		"nothing but ports to see": {change(ip4("255.255.255.255:5076", payload(92)), 24, 0, 0), drop.Malformed},
	} {
		var r Reassembler
		pieces := cut(c.ip, 5, 24, 48)
		add(t, &r, pieces[0], 0, epoch)
		add(t, &r, pieces[1], 0, epoch)
		if d, reason := add(t, &r, pieces[2], 0, epoch); d != nil || reason != c.reason {
			t.Errorf("%s: %v, %v, want %v", name, d != nil, reason, c.reason)
		}
	}
	// The header of the first piece may make the whole too long when that of the others did not.
	long := ip4("255.255.255.255:5076", payload(65507))
	pieces := cut(long, 5, 1480)
	withOptions := piece(ip4("255.255.255.255:5076", payload(65507-4), 148, 4, 0, 0), 5, 0, long[20:20+1480], true)
	for _, order := range [][][]byte{{withOptions, pieces[1]}, {pieces[1], withOptions}} {
		var r Reassembler
		add(t, &r, order[0], 0, epoch)
		if d, reason := add(t, &r, order[1], 0, epoch); d != nil || reason != drop.Malformed {
			t.Errorf("65539 bytes: %v, %v", d != nil, reason)
		}
	}
	// Options that are longer than the room for them.
	options := extension{packet.ProtocolHopByHop, append([]byte{0, 15, 1, 124}, make([]byte, 124)...)}
	ip := ip6("[ff02::fb]:5353", payload(92), options, extension{packet.ProtocolFragment, []byte{0, 0, 0, 0, 0, 0, 0, 5}})
	var r Reassembler
	if d, reason := add(t, &r, ip, 0, epoch); d != nil || reason != drop.Overflow {
		t.Errorf("168 bytes of header: %v, %v, want %v", d != nil, reason, drop.Overflow)
	}
}

func TestHopByHopOptionsSurvive(t *testing.T) {
	ip := ip6("[ff02::fb]:5353", payload(3000), hopByHop, destination)
	var f Fragmenter
	pieces, reason := f.Cut(finishedDatagram(t, ip), 1280, nil)
	if reason != drop.None || len(pieces) != 3 {
		t.Fatalf("%d pieces, %v", len(pieces), reason)
	}
	var r Reassembler
	for i, p := range pieces {
		d, reason := add(t, &r, p, 0, epoch)
		if reason != drop.None || (d != nil) != (i == 2) {
			t.Fatalf("piece %d: %v", i, reason)
		}
		if d != nil && !bytes.Equal(d.IP, ip) {
			t.Errorf("\n got %x\nwant %x", d.IP[:80], ip[:80])
		}
	}
}

func TestTimeout(t *testing.T) {
	ip := ip4("255.255.255.255:5076", payload(92))
	pieces := cut(ip, 5, 24, 48)
	var r Reassembler
	add(t, &r, pieces[0], 0, epoch)
	add(t, &r, pieces[1], 0, epoch.Add(2*time.Second)) // does not prolong it
	if d, _ := add(t, &r, pieces[2], 0, epoch.Add(ReassemblyTimeout-1)); d == nil {
		t.Error("not whole just before the timeout")
	}
	add(t, &r, pieces[0], 0, epoch)
	add(t, &r, pieces[1], 0, epoch.Add(2*time.Second))
	if d, _ := add(t, &r, pieces[2], 0, epoch.Add(ReassemblyTimeout)); d != nil {
		t.Error("whole at the timeout")
	}
	if incomplete, overflow := r.Expire(epoch.Add(ReassemblyTimeout)); incomplete != 1 || overflow != 0 {
		t.Errorf("%d incomplete, %d pushed out, want 1 and 0", incomplete, overflow)
	}
	if incomplete, _ := r.Expire(epoch.Add(2 * ReassemblyTimeout)); incomplete != 1 {
		t.Errorf("%d incomplete later, want the one begun at the timeout", incomplete)
	}
	if incomplete, _ := r.Expire(epoch.Add(3 * ReassemblyTimeout)); incomplete != 0 {
		t.Errorf("%d incomplete of nothing", incomplete)
	}
}

func TestBounds(t *testing.T) {
	const window, total = 16, 100
	r := Reassembler{MaxDatagrams: window}
	pieces := make([][][]byte, total)
	for i := range pieces {
		pieces[i] = cut(ip4("255.255.255.255:5076", payload(92)), uint32(i), 40)
		add(t, &r, pieces[i][0], 0, epoch)
		if n, _ := r.Pending(); n > window {
			t.Fatalf("%d datagrams are waited for", n)
		}
	}
	for i := total - 1; i >= total-window; i-- { // the newest are there
		if d, _ := add(t, &r, pieces[i][1], 0, epoch); d == nil {
			t.Errorf("datagram %d was pushed out", i)
		}
	}
	if incomplete, overflow := r.Expire(epoch); incomplete != 0 || overflow != total-window {
		t.Errorf("%d incomplete, %d pushed out, want 0 and %d", incomplete, overflow, total-window)
	}

	// Long datagrams fill the bytes first; each has 17 blocks but for its last piece.
	r = Reassembler{MaxBytes: 1 << 20}
	long := ip4("255.255.255.255:5076", payload(65507))
	for i := range 50 {
		p := cut(long, uint32(i), 65512)
		add(t, &r, p[0], 0, epoch)
		if _, held := r.Pending(); held > 1<<20 {
			t.Fatalf("%d bytes are held", held)
		}
	}
	if d, _ := add(t, &r, cut(long, 49, 65512)[1], 0, epoch); d == nil {
		t.Error("the newest was pushed out")
	}
	// A bound below one datagram leaves room for one.
	r = Reassembler{MaxBytes: 1}
	add(t, &r, cut(long, 1, 40000)[0], 0, epoch)
	add(t, &r, cut(long, 2, 40000)[0], 0, epoch)
	if d, reason := add(t, &r, cut(long, 2, 40000)[1], 0, epoch); d == nil {
		t.Errorf("one datagram does not fit: %v", reason)
	}
	// When the oldest is the one that grows, others make room for it.
	r = Reassembler{MaxBytes: 1}
	add(t, &r, cut(long, 1, 40000)[0], 0, epoch)
	for i := range 20 {
		add(t, &r, cut(long, uint32(i+2), 8)[0], 0, epoch)
	}
	if n, held := r.Pending(); n == 0 || held > maxBlocks*blockLen {
		t.Errorf("%d datagrams with %d bytes", n, held)
	}

	// What is idle gives its memory back.
	r.Expire(epoch.Add(time.Hour))
	r.Expire(epoch.Add(time.Hour))
	if r.freeBlocks != nil || r.freeSets != nil || r.whole != nil || r.sets != nil {
		t.Error("memory is held while idle")
	}
}

// TestFirstHeaderCounts has the first fragment come twice, with another time to live.
func TestFirstHeaderCounts(t *testing.T) {
	ip := ip4("255.255.255.255:5076", payload(92))
	pieces := cut(ip, 5, 40)
	var r Reassembler
	add(t, &r, pieces[0], 0, epoch)
	add(t, &r, change(pieces[0], 8, 3), 0, epoch)
	d, reason := add(t, &r, pieces[1], 0, epoch)
	if d == nil || !bytes.Equal(d.IP, without(ip, 5)) {
		t.Errorf("%v: %+v", reason, d)
	}
}

// TestOldestGrows has the first datagram need more blocks while it is the oldest: it must not push itself out.
func TestOldestGrows(t *testing.T) {
	long := ip4("255.255.255.255:5076", payload(65507))
	r := Reassembler{MaxBytes: 1}
	p := cut(long, 1, 8, 40000)
	add(t, &r, p[0], 0, epoch)
	for i := range 10 {
		add(t, &r, cut(long, uint32(i+2), 8)[0], 0, epoch)
	}
	add(t, &r, p[1], 0, epoch)
	d, reason := add(t, &r, p[2], 0, epoch)
	if d == nil || !bytes.Equal(d.IP, without(long, 1)) {
		t.Errorf("the oldest is lost: %v", reason)
	}
}

func TestReassemblyDoesNotAllocate(t *testing.T) {
	var r Reassembler
	var ids uint32
	ip := ip4("255.255.255.255:5076", payload(9000))
	pieces := cut(ip, 0, 1480, 2960, 4440, 5920, 7400, 8880)
	now := epoch
	round := func() {
		for range 200 { // some complete, some do not
			ids++
			now = now.Add(time.Millisecond)
			for i, p := range pieces {
				if ids%5 == 0 && i == 2 {
					continue
				}
				binary.BigEndian.PutUint16(p[4:], uint16(ids))
				clear(p[10:12])
				binary.BigEndian.PutUint16(p[10:], packet.Checksum(p[:20]))
				var d Datagram
				if d.ParsePacket(link, p) != drop.None {
					t.Fatal("not a fragment")
				}
				if whole, _ := r.Add(&d, 0, now); whole && len(d.Payload()) != 9000 {
					t.Fatal("not the whole")
				}
			}
		}
		r.Expire(now)
	}
	for range 10 { // until as many are waited for as can be
		round()
	}
	if n := testing.AllocsPerRun(5, round); n != 0 {
		t.Errorf("%v allocations for 200 datagrams", n)
	}
}
