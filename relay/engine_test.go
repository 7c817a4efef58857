// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/relay/datagram"
	"github.com/seed5728abee/fathom/relay/drop"
	"github.com/seed5728abee/fathom/relay/guard"
	"github.com/seed5728abee/fathom/relay/mesh"
)

// bare is an engine with one segment, worked by hand: what it sends and emits goes to functions.
type bare struct {
	*engine
	s    *segment
	w    *worker
	now  time.Time
	sent func(item mesh.Outgoing)
	out  func(ip []byte)
}

func (b *bare) send(items []mesh.Outgoing) {
	if b.sent != nil {
		for _, item := range items {
			b.sent(item)
		}
	}
}

func (b *bare) emit(packets [][]byte) (failed int, err error) {
	if b.out != nil {
		for _, ip := range packets {
			b.out(ip)
		}
	}
	return 0, nil
}

func newBare(tb testing.TB, o Options) *bare {
	tb.Helper()
	o.Interfaces = []string{"eth0"}
	if o.Ports == nil {
		o.Ports = onePort(testPort)
	}
	if err := o.complete(); err != nil {
		tb.Fatal(err)
	}
	e, err := newEngine(&o, datagram.MAC{2, 0, 1})
	if err != nil {
		tb.Fatal(err)
	}
	b := &bare{engine: e, w: newWorker(e), now: e.started}
	if b.s, err = newSegment(e, "eth0", guard.LocalSource(0)); err != nil {
		tb.Fatal(err)
	}
	b.s.emitter = b
	e.out = b
	e.addSegments(b.s)
	b.s.set(link{mac: datagram.MAC{2, 0, 1}, mtu: 1500, prefixes: []netip.Prefix{netip.MustParsePrefix("10.77.0.101/24")}}, "")
	return b
}

// serve waits until the segment is served.
func (b *bare) serve(tb testing.TB) {
	tb.Helper()
	nothing := func([]byte) {}
	for range 10 {
		b.now = b.now.Add(time.Second)
		b.s.periodic(b.w, b.now, nothing)
	}
	if !b.s.status(b.now).Serving {
		tb.Fatal("the segment is not served")
	}
}

// meet gives the engine so many peers of ours, and lets them greet each other.
func (b *bare) meet(tb testing.TB, peers int) []*mesh.Mesh {
	tb.Helper()
	self := meshAddress(200)
	ends := make(map[netip.AddrPort]*mesh.Mesh)
	var all []*mesh.Mesh
	var addrs []netip.AddrPort
	type flight struct {
		from netip.AddrPort
		item mesh.Outgoing
	}
	var flying []flight
	for i := range peers {
		m, err := mesh.New(mesh.Options{ID: [6]byte{2, 9, byte(i)}, Keys: b.opts.Keys})
		if err != nil {
			tb.Fatal(err)
		}
		m.SetPeers([]netip.AddrPort{self})
		addrs = append(addrs, meshAddress(i+1))
		ends[addrs[i]] = m
		all = append(all, m)
	}
	b.mesh.SetPeers(addrs)
	b.sent = func(item mesh.Outgoing) {
		flying = append(flying, flight{self, mesh.Outgoing{To: item.To, Data: bytes.Clone(item.Data)}})
	}
	for range 5 {
		b.now = b.now.Add(time.Second)
		b.w.tick(b.now)
		for addr, m := range ends {
			var out mesh.Outbox
			m.Tick(b.now, &out)
			for _, item := range out.Items {
				flying = append(flying, flight{addr, item})
			}
		}
		for len(flying) > 0 {
			f := flying[0]
			flying = flying[1:]
			if f.item.To == self {
				b.w.receive([]arrival{{f.from, f.item.Data}}, b.now)
				continue
			}
			var in mesh.Inbox
			var out mesh.Outbox
			ends[f.item.To].Receive(self, f.item.Data, &in, &out, b.now)
			for _, item := range out.Items {
				flying = append(flying, flight{f.item.To, item})
			}
		}
	}
	b.sent = nil
	for _, p := range b.mesh.Peers(b.now) {
		if p.Kind != mesh.Ours || p.State != mesh.Up {
			tb.Fatalf("peer %v is %v and %v", p.Address, p.Kind, p.State)
		}
	}
	return all
}

// broadcasts are a batch of frames with 100 bytes of payload each.
func broadcasts() (frames []frame, b *backlog) {
	b = new(backlog)
	frames = make([]frame, batchSize)
	for i := range batchSize {
		payload := bytes.Repeat([]byte{byte(i)}, 100)
		ip := ipUDP(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 77, 0, byte(i)}), 40000), netip.AddrPortFrom(datagram.Limited(), testPort), payload)
		b.put(ethernet(datagram.MAC{2, 0, 0, 0, 0, byte(i)}, ip), datagram.Capture{}, false)
	}
	if n := b.take(frames); n != batchSize {
		panic(n)
	}
	return frames, b
}

// arrivals are the datagrams in which a peer sends a batch.
func arrivals(m *mesh.Mesh, frames []frame, now time.Time) (items []arrival) {
	var batch []mesh.Frame
	for _, f := range frames {
		batch = append(batch, mesh.Frame{SS: f.ss, SSOK: true})
	}
	var out mesh.Outbox
	m.Send(batch, &out, now)
	for _, item := range out.Items {
		items = append(items, arrival{meshAddress(1), bytes.Clone(item.Data)})
	}
	return items
}

var modes = map[string][]mesh.Key{"open": nil, "sealed": {{1}}}

// What is done for every broadcast takes no memory.
func TestNoAllocations(t *testing.T) {
	const runs = 100
	for name, keys := range modes {
		t.Run("captured/"+name, func(t *testing.T) {
			b := newBare(t, Options{Keys: keys})
			b.serve(t)
			b.meet(t, 3)
			sent := 0
			b.sent = func(mesh.Outgoing) { sent++ }
			frames, _ := broadcasts()
			if n := testing.AllocsPerRun(runs, func() {
				b.now = b.now.Add(time.Millisecond)
				b.w.capturedFrames(b.s, frames, b.now)
			}); n != 0 {
				t.Errorf("%v allocations for %d frames", n, len(frames))
			}
			if n := b.s.relayed.Load(); n != (runs+1)*batchSize || sent < 3*runs {
				t.Errorf("%d frames were relayed in %d datagrams: %v", n, sent, b.s.drops.Map())
			}
		})
		t.Run("received/"+name, func(t *testing.T) {
			b := newBare(t, Options{Keys: keys})
			b.serve(t)
			peers := b.meet(t, 3)
			frames, _ := broadcasts()
			var batches [][]arrival
			for range runs + 1 {
				batches = append(batches, arrivals(peers[0], frames, b.now))
			}
			if n := testing.AllocsPerRun(runs, func() {
				b.now = b.now.Add(time.Millisecond)
				b.w.receive(batches[0], b.now)
				batches = batches[1:]
			}); n != 0 {
				t.Errorf("%v allocations for %d broadcasts", n, len(frames))
			}
			if n := b.s.emitted.Load(); n != (runs+1)*batchSize {
				t.Errorf("%d broadcasts were emitted: %v %v", n, b.meshDrops.Map(), b.s.notEmitted.Map())
			}
		})
	}
}

// BenchmarkCaptured is what a broadcast costs from its capture to the system call that sends it to all peers.
func BenchmarkCaptured(b *testing.B) {
	for _, name := range []string{"open", "sealed"} {
		for _, peers := range []int{1, 3, 10} {
			b.Run(fmt.Sprintf("%s/%d", name, peers), func(b *testing.B) {
				x := newBare(b, Options{Keys: modes[name]})
				x.serve(b)
				x.meet(b, peers)
				frames, _ := broadcasts()
				b.ReportAllocs()
				done := 0
				for b.Loop() {
					x.now = x.now.Add(100 * time.Microsecond)
					x.w.capturedFrames(x.s, frames, x.now)
					done += len(frames)
				}
				if n := x.s.relayed.Load(); n != uint64(done) {
					b.Fatalf("%d of %d were relayed: %v", n, done, x.s.drops.Map())
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(done), "ns/broadcast")
			})
		}
	}
}

// BenchmarkReceived is what a broadcast costs from the mesh socket to the system call that emits it.
func BenchmarkReceived(b *testing.B) {
	for _, name := range []string{"open", "sealed"} {
		b.Run(name, func(b *testing.B) {
			x := newBare(b, Options{Keys: modes[name]})
			x.serve(b)
			peers := x.meet(b, 1)
			frames, _ := broadcasts()
			b.ReportAllocs()
			done := 0
			var batches [][]arrival
			for b.Loop() {
				if len(batches) == 0 {
					b.StopTimer()
					for range 64 {
						batches = append(batches, arrivals(peers[0], frames, x.now))
					}
					b.StartTimer()
				}
				x.now = x.now.Add(100 * time.Microsecond)
				x.w.receive(batches[0], x.now)
				batches = batches[1:]
				done += len(frames)
			}
			if n := x.s.emitted.Load(); n != uint64(done) {
				b.Fatalf("%d of %d were emitted: %v %v", n, done, x.meshDrops.Map(), x.s.notEmitted.Map())
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(done), "ns/broadcast")
		})
	}
}

// Mesh datagrams recorded from the original, and what may go out for them on 10.77.0.0/24.
var recorded = []struct{ name, mesh, emitted string }{
	{"limited", "5353ffffffffffff02000002000b080045000021574e40004011d7260a4d020bffffffff9c4013d4000d0c7668656c6c6f", "45000021574e40004011d7260a4d020bffffffff9c4013d4000dff9568656c6c6f"},
	{"empty", "5353ffffffffffff02000002000b08004500001c576740004011d7120a4d020bffffffff9c4013d400080c71", "4500001c576740004011d7120a4d020bffffffff9c4013d400084372"},
	{"finished checksum", "5353ffffffffffff02000002000b080045000021597e40004011d4f60a4d020bffffffff9c4013d4000dff9568656c6c6f", "45000021597e40004011d4f60a4d020bffffffff9c4013d4000dff9568656c6c6f"},
	{"padded", "5353ffffffffffff02000002000b0800450000210000000040116e750a4d020bffffffff9c4013d4000dff9568656c6c6f00000000000000000000000000", "450000210000000040116e750a4d020bffffffff9c4013d4000dff9568656c6c6f"},
	{"directed", "5353ffffffffffff02000002000b0800450000219baf4000401185790a4d020b0a4d02ff9c4013d4000d19c268656c6c6f", "450000219baf4000401187790a4d020b0a4d00ff9c4013d4000df44968656c6c6f"},
}

func TestRecorded(t *testing.T) {
	for _, tt := range recorded {
		t.Run(tt.name, func(t *testing.T) {
			b := newBare(t, Options{})
			b.serve(t)
			data, err := hex.DecodeString(tt.mesh)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			b.out = func(ip []byte) { got = append(got, hex.EncodeToString(ip)) }
			b.w.receive([]arrival{{meshAddress(1), data}}, b.now)
			if !slices.Equal(got, []string{tt.emitted}) {
				t.Errorf("emitted %q, want %s", got, tt.emitted)
			}
			// The way in, from a sender with an unfinished checksum, to the bytes in the mesh.
			b = newBare(t, Options{})
			b.serve(t)
			b.mesh.SetPeers([]netip.AddrPort{meshAddress(1)})
			var sent []string
			b.sent = func(item mesh.Outgoing) { sent = append(sent, hex.EncodeToString(item.Data)) }
			data, _ = hex.DecodeString(tt.mesh)
			b.w.capturedFrames(b.s, []frame{{ss: data, capture: datagram.Capture{Partial: true}}}, b.now)
			ip, _ := hex.DecodeString(tt.emitted)
			want := hex.EncodeToString(append([]byte("SS"), ethernet(datagram.MAC{2, 0, 0, 2, 0, 0x0b}, ip)...))
			if tt.name == "directed" { // it is not this segment's
				if len(sent) != 0 || b.s.drops.Get(drop.Destination) != 1 {
					t.Errorf("sent %q", sent)
				}
			} else if !slices.Equal(sent, []string{want}) {
				t.Errorf("sent %q, want %s", sent, want)
			}
		})
	}
}

// pile packs datagrams, each with who sends it, into one input of a fuzz target.
func pile(items ...[]byte) (b []byte) {
	for i, item := range items {
		b = append(b, byte(i%4))
		b = binary.BigEndian.AppendUint16(b, uint16(len(item)))
		b = append(b, item...)
	}
	return b
}

func unpile(b []byte) (items []arrival) {
	for len(b) >= 3 && len(items) < 64 {
		n := min(int(binary.BigEndian.Uint16(b[1:])), len(b)-3)
		items = append(items, arrival{meshAddress(1 + int(b[0]%4)), bytes.Clone(b[3 : 3+n])})
		b = b[3+n:]
	}
	return items
}

// fuzzOptions relay a port and two groups.
func fuzzOptions(keys []mesh.Key) Options {
	return Options{
		Keys: keys, Ports: onePort(testPort),
		Groups: []datagram.Group{{Addr: netip.MustParseAddr("224.0.0.128"), Ports: onePort(testPort)}, {Addr: netip.MustParseAddr("ff02::fb"), Ports: onePort(5353)}},
	}
}

// allowed are the destinations that may leave the relay of fuzzOptions.
var allowed = []netip.AddrPort{
	netip.MustParseAddrPort("255.255.255.255:5076"), netip.MustParseAddrPort("10.77.0.255:5076"),
	netip.MustParseAddrPort("224.0.0.128:5076"), netip.MustParseAddrPort("[ff02::fb]:5353"),
}

// Whatever comes to the mesh socket, from whom ever: nothing goes out on the segment but sound datagrams to all of it, or to a
// group that is relayed, on a port that is relayed. In a sealed mesh, from who has no key, nothing does.
func FuzzReceive(f *testing.F) {
	for _, tt := range recorded {
		data, err := hex.DecodeString(tt.mesh)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(pile(data, data))
	}
	src := netip.MustParseAddrPort("10.77.2.11:40000")
	big := ipUDP(src, allowed[0], bytes.Repeat([]byte("x"), 3000))
	var fragments [][]byte
	for _, ip := range cut(big, 1500) {
		fragments = append(fragments, append([]byte("SS"), ethernet(datagram.MAC{2, 7}, ip)...))
	}
	f.Add(pile(fragments...))
	record := func(kind byte, body ...byte) []byte {
		return append([]byte{'F', 'R', 1, 1, kind, byte(len(body) >> 8), byte(len(body))}, body...)
	}
	link := []byte{2, 7, 0, 0, 0, 1}
	for _, dst := range allowed {
		from := src
		if dst.Addr().Is6() {
			from = netip.MustParseAddrPort("[fe80::7]:5353")
		}
		f.Add(pile(record(1, append(slices.Clone(link), ipUDP(from, dst, []byte("ours"))...)...)))
	}
	total := len(link) + len(big)
	whole := append(slices.Clone(link), big...)
	part := func(index, from, to int) []byte {
		h := binary.BigEndian.AppendUint32(nil, 1)
		h = binary.BigEndian.AppendUint32(h, uint32(total))
		h = binary.BigEndian.AppendUint16(h, 1100)
		return record(2, append(binary.BigEndian.AppendUint16(h, uint16(index)), whole[from:to]...)...)
	}
	parts := pile(part(0, 0, 1100), part(1, 1100, 2200), part(2, 2200, total))
	for at := 0; at < len(parts); at += 3 + int(binary.BigEndian.Uint16(parts[at+1:])) {
		parts[at] = 0 // all from one
	}
	f.Add(parts)
	f.Add(pile([]byte{'F', 'R', 1, 5, 0, 0, 0, 0}, []byte("SS"), nil))

	f.Fuzz(func(t *testing.T, data []byte) {
		for name, keys := range modes {
			b := newBare(t, fuzzOptions(keys))
			b.serve(t)
			b.mesh.SetPeers([]netip.AddrPort{meshAddress(1), meshAddress(2)})
			var together datagram.Reassembler
			b.out = func(ip []byte) {
				var d datagram.Datagram
				if keys != nil {
					t.Fatalf("%s: emitted %x", name, ip)
				}
				if reason := d.ParsePacket(datagram.MAC{2}, ip); reason != drop.None || len(ip) > 1500 {
					t.Fatalf("emitted %d bytes: %v: %x", len(ip), reason, ip)
				}
				if d.Fragment {
					whole, reason := together.Add(&d, 0, b.now)
					if reason != drop.None {
						t.Fatalf("emitted a fragment: %v: %x", reason, ip)
					}
					if !whole {
						return
					}
				}
				if reason := d.Finish(); reason != drop.None {
					t.Fatalf("emitted %x: %v", ip, reason)
				}
				if !slices.Contains(allowed, d.Dst) {
					t.Fatalf("emitted to %v: %x", d.Dst, ip)
				}
			}
			_ = b.Watch(t.Context()) // what is told is looked at as well
			items := unpile(data)
			b.w.receive(items, b.now)
			b.w.tick(b.now.Add(time.Second))
			if b.meshReceived.Load() != uint64(len(items)) {
				t.Fatal("not all were counted")
			}
		}
	})
}

// Whatever is captured: what goes to peers are SS datagrams that the original, too, can make use of.
func FuzzCaptured(f *testing.F) {
	for _, tt := range recorded {
		data, err := hex.DecodeString(tt.mesh)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(pile(data[2:], data[2:]))
	}
	src := netip.MustParseAddrPort("10.77.0.11:40000")
	for _, dst := range allowed[:3] {
		f.Add(pile(ethernet(datagram.MAC{2, 7}, ipUDP(src, dst, []byte("x")))))
		var frames [][]byte
		for _, ip := range cut(ipUDP(src, dst, make([]byte, 3000)), 1500) {
			frames = append(frames, ethernet(datagram.MAC{2, 7}, ip))
		}
		f.Add(pile(frames...))
	}
	e := guard.NewElection(guard.ElectionConfig{Relay: datagram.MAC{2, 0, 0, 9}})
	e.SetReady(true, []netip.AddrPort{meshAddress(9)})
	f.Add(pile(e.AppendAnnouncement(nil, datagram.MAC{2, 0, 0, 9}, 1)))
	f.Fuzz(func(t *testing.T, data []byte) {
		b := newBare(t, fuzzOptions(nil))
		b.serve(t)
		b.mesh.SetPeers([]netip.AddrPort{meshAddress(1), meshAddress(2)})
		var together datagram.Reassembler
		b.sent = func(item mesh.Outgoing) {
			if item.To == meshAddress(2) {
				return // the same
			}
			var d datagram.Datagram
			if !bytes.HasPrefix(item.Data, []byte("SS")) {
				t.Fatalf("sent %x", item.Data)
			}
			reason := d.ParseSS(item.Data[2:])
			if reason != drop.None || len(item.Data) != 16+len(d.IP) || len(d.IP) > maxSSPacket {
				t.Fatalf("sent %v: %x", reason, item.Data)
			}
			if d.Fragment {
				whole, reason := together.Add(&d, 0, b.now)
				if reason != drop.None {
					t.Fatalf("sent a fragment: %v: %x", reason, item.Data)
				}
				if !whole {
					return
				}
			}
			if !slices.Contains(allowed[:2], d.Dst) {
				t.Fatalf("sent to %v: %x", d.Dst, item.Data)
			}
		}
		b.out = func(ip []byte) { t.Fatalf("emitted %x at home", ip) }
		_ = b.Watch(t.Context())
		var frames []frame
		var queue backlog
		for i, item := range unpile(data) {
			queue.put(item.data, datagram.Capture{Partial: i%3 == 1, Tagged: i%7 == 6}, i%5 == 4)
		}
		frames = make([]frame, batchSize)
		b.w.capturedFrames(b.s, frames[:queue.take(frames)], b.now)
	})
}
