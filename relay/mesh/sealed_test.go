// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/relay/drop"
)

// testKey is a key that is the same every time.
func testKey(n byte) (k Key) {
	for i := range k {
		k[i] = n + byte(i)
	}
	return k
}

func keyed(n ...byte) Options {
	var o Options
	for _, k := range n {
		o.Keys = append(o.Keys, testKey(k))
	}
	return o
}

// pair is two relays that know each other, with their link up.
func pair(t *testing.T, seed uint64, o Options) (w *network, a, b *node) {
	w = newNetwork(t, seed)
	a, b = w.add(1, o), w.add(2, o)
	a.peers(2)
	b.peers(1)
	w.run(100 * time.Millisecond)
	a.wantState(2, Ours, Up)
	b.wantState(1, Ours, Up)
	return w, a, b
}

// sameSession holds that the two ends send in sessions that the other one receives in, and are one.
func sameSession(t *testing.T, a, b *node) {
	t.Helper()
	p, q := a.byAddr[b.addr].link.current, b.byAddr[a.addr].link.current
	if p == nil || q == nil || p.remote != q.local || q.remote != p.local {
		t.Fatalf("sessions %+v and %+v", p, q)
	}
}

func TestSealedLink(t *testing.T) {
	w := newNetwork(t, 1)
	a, b := w.add(1, keyed(1)), w.add(2, keyed(1))
	a.peers(2)
	b.peers(1)
	secret := ssFrame(1, 128)[ssHeader+minIP:]
	w.seen = func(from, to netip.AddrPort, data []byte) {
		if kind := framed(data); kind == 0 || kind == kindOpen || bytes.Contains(data, secret[4:20]) {
			t.Fatalf("in clear from %v to %v: %x", from, to, data)
		}
		if framed(data) == kindSealed && len(data) > DefaultPayload {
			t.Fatalf("%d bytes", len(data))
		}
	}
	// What comes before there is a session waits for it.
	a.send(frame(1), multicast(2, 100), multicast(3, 30000))
	w.run(100 * time.Millisecond)
	wantNumbers(t, b, 1, 2, 3)
	sameSession(t, a, b)
	if s := a.status(2); !s.Sealed || s.ID != "02:00:00:00:00:02" || s.RTT != 10*time.Millisecond || s.QueueDrops != 0 {
		t.Errorf("status %+v", s)
	}
	var batch []Frame
	for n := range uint32(100) {
		batch = append(batch, frame(n))
	}
	before := a.status(2).Sent.Datagrams
	a.send(batch...)
	w.run(100 * time.Millisecond)
	wantNumbers(t, b, seq(0, 100)...)
	if n := a.status(2).Sent.Datagrams - before; n > 13 {
		t.Errorf("100 small frames in %d datagrams", n)
	}
	b.send(frame(7), multicast(8, 65535))
	w.run(100 * time.Millisecond)
	wantNumbers(t, a, 7, 8)
	w.run(time.Hour)
	sameSession(t, a, b)
	a.send(frame(1))
	w.run(time.Second)
	wantNumbers(t, b, 1)
	if d := a.drops; d[drop.None] == 0 || d[drop.Unauthenticated]+d[drop.Malformed]+d[drop.Truncated] != 0 {
		t.Errorf("dropped %v", d)
	}
	for _, x := range []*node{a, b} {
		if len(x.indexes) > 3 || len(x.responses) > 1 {
			t.Errorf("%v: %d indexes, %d responses", x, len(x.indexes), len(x.responses))
		}
	}
}

// Different keys, no keys, and a key on one side only: nothing crosses, nothing breaks.
func TestKeysDiffer(t *testing.T) {
	for _, c := range []struct {
		name string
		a, b Options
		want drop.Reason
	}{
		{"other key", keyed(1), keyed(2), drop.Unauthenticated},
		{"no key", keyed(1), Options{}, drop.Unauthenticated},
		{"no key here", Options{}, keyed(2), drop.OpenRefused},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newNetwork(t, 1)
			a, b := w.add(1, c.a), w.add(2, c.b)
			a.peers(2)
			b.peers(1)
			for n := range uint32(30) {
				a.send(frame(n), multicast(n, 100))
				w.run(time.Second)
			}
			if len(c.b.Keys) > 0 || len(c.a.Keys) > 0 {
				wantNumbers(t, b)
			}
			if b.drops[c.want] == 0 {
				t.Errorf("dropped %v", b.drops)
			}
			if s := a.status(2); len(c.a.Keys) > 0 && (s.State != Connecting || s.QueueDrops < 50) {
				t.Errorf("status %+v", s)
			}
		})
	}
}

func TestCompat(t *testing.T) {
	w := newNetwork(t, 1)
	o := keyed(1)
	o.Compat = true
	a, b := w.add(1, o), w.add(2, o)
	a.peers(2, 3)
	b.peers(1)
	var ss int
	w.seen = func(_, to netip.AddrPort, data []byte) {
		if isSS(data) {
			ss++
			if to != address(3) {
				t.Errorf("SS to %v", to)
			}
		}
	}
	w.run(time.Second)
	a.send(frame(1), multicast(2, 100))
	w.run(time.Second)
	wantNumbers(t, b, 1, 2)
	if ss != 1 {
		t.Errorf("%d SS datagrams", ss)
	}
	w.seen = nil
	w.inject(netip.AddrPortFrom(address(3).Addr(), 5), address(1), ssFrame(3, 100))
	w.inject(netip.AddrPortFrom(address(2).Addr(), 5), address(1), ssFrame(4, 100))
	w.run(time.Millisecond)
	wantNumbers(t, a, 3)
	if a.drops[drop.OpenRefused] != 1 {
		t.Errorf("dropped %v", a.drops)
	}
	a.wantState(3, Original, Connecting)
	// One that is ours is never again sent anything in clear.
	delete(w.nodes, b.addr)
	w.run(time.Minute)
	w.seen = func(_, to netip.AddrPort, data []byte) {
		if isSS(data) && to != address(3) {
			t.Errorf("SS to %v", to)
		}
	}
	a.send(frame(1))
}

// One relay is started anew: what is sent two seconds later arrives, both ways, whoever knows whom.
func TestRestart(t *testing.T) {
	for _, mutual := range []bool{true, false} {
		for seed := range uint64(5) {
			t.Run(fmt.Sprintf("mutual=%v/%d", mutual, seed), func(t *testing.T) {
				t.Parallel()
				w := newNetwork(t, seed)
				a, b := w.add(1, keyed(1)), w.add(2, keyed(1))
				a.peers(2)
				if mutual {
					b.peers(1)
				}
				w.run(time.Duration(1000+seed*150) * time.Millisecond)
				b.wantState(1, Ours, Up)
				b = w.add(2, keyed(1))
				if mutual {
					b.peers(1)
				}
				w.run(2 * time.Second)
				a.send(frame(1))
				b.send(frame(2))
				w.run(100 * time.Millisecond)
				wantNumbers(t, b, 1)
				wantNumbers(t, a, 2)
				sameSession(t, a, b)
			})
		}
	}
}

// BYE: the other side knows at once, and the way back is open.
func TestBye(t *testing.T) {
	for _, o := range []Options{{}, keyed(1)} {
		w, a, b := pair(t, 1, o)
		var out Outbox
		b.Close(&out)
		w.post(b.addr, &out)
		delete(w.nodes, b.addr)
		w.run(10 * time.Millisecond)
		a.wantState(2, Ours, Down)
		w.run(time.Minute)
		b = w.add(2, o)
		b.peers(1)
		w.run(1500 * time.Millisecond)
		a.wantState(2, Ours, Up)
		a.send(multicast(1, 100))
		w.run(time.Second)
		wantNumbers(t, b, 1)
	}
}

// Broadcasts flow while keys are rotated in three steps, relay by relay: none is lost, though every link changes its keys.
func TestRotation(t *testing.T) {
	w := newNetwork(t, 3)
	nodes := []*node{w.add(1, keyed(1)), w.add(2, keyed(1)), w.add(3, keyed(1))}
	for _, x := range nodes {
		x.peers(1, 2, 3)
	}
	w.run(time.Second)
	next := uint32(0)
	stream := func(d time.Duration) {
		for range d / (20 * time.Millisecond) {
			nodes[0].send(frame(next))
			next++
			w.run(20 * time.Millisecond)
		}
	}
	for _, ring := range [][]byte{{1, 2}, {2, 1}, {2}} {
		for _, x := range nodes {
			var keys []Key
			for _, k := range ring {
				keys = append(keys, testKey(k))
			}
			if err := x.SetKeys(keys); err != nil {
				t.Fatal(err)
			}
			stream(3 * time.Second)
		}
	}
	stream(time.Minute)
	w.run(time.Second)
	for _, x := range nodes[1:] {
		wantNumbers(t, x, seq(0, next)...)
		for _, y := range nodes[1:] {
			if x != y && x.byAddr[y.addr].link.current.key != testKey(2) {
				t.Errorf("%v and %v still use the old key", x, y)
			}
		}
	}
}

// Sessions are replaced every ten minutes, and nothing is lost, reordered by the network as it may be.
func TestRekey(t *testing.T) {
	w, a, b := pair(t, 1, keyed(1))
	w.jitter = 15 * time.Millisecond
	first := a.byAddr[b.addr].link.current
	next := uint32(0)
	for range 400 {
		a.send(frame(next), frame(next+1))
		b.send(frame(next))
		next += 2
		w.run(2 * time.Second)
	}
	got := numbers(t, b.take())
	slices.Sort(got)
	if !slices.Equal(got, seq(0, next)) || len(a.take()) != 400 {
		t.Errorf("%d of %d arrived", len(got), next)
	}
	if a.byAddr[b.addr].link.current == first {
		t.Error("the same session for 13 minutes")
	}
	if len(a.indexes) > 4 || len(b.indexes) > 4 {
		t.Errorf("%d and %d indexes", len(a.indexes), len(b.indexes))
	}
	sameSession(t, a, b)
}

// A lossy, reordering, doubling network: links come up and stay up, nothing arrives twice.
func TestBadNetwork(t *testing.T) {
	seeds := uint64(6)
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := newNetwork(t, seed)
			w.loss, w.double, w.jitter = 0.15, 0.15, 40*time.Millisecond
			nodes := []*node{w.add(1, keyed(1)), w.add(2, keyed(1)), w.add(3, keyed(1))}
			for _, x := range nodes {
				x.peers(1, 2, 3)
			}
			w.run(15 * time.Second)
			for _, x := range nodes {
				x.take()
			}
			const count = 500
			for n := range uint32(count) {
				nodes[0].send(frame(n), multicast(n+count, 2000))
				w.run(50 * time.Millisecond)
			}
			w.run(5 * time.Second)
			for _, x := range nodes[1:] {
				got := numbers(t, x.take())
				slices.Sort(got)
				if n := len(slices.Compact(slices.Clone(got))); n != len(got) {
					t.Errorf("seed %d: %v: %d arrived twice", seed, x, len(got)-n)
				}
				// 15 % of one datagram for the small ones, of two for the large ones.
				if len(got) < count*13/10 {
					t.Errorf("seed %d: %v: %d of %d arrived", seed, x, len(got), 2*count)
				}
			}
			w.loss = 0
			w.run(5 * time.Second)
			for i, x := range nodes {
				for _, y := range nodes[:i] {
					sameSession(t, x, y)
				}
			}
		})
	}
}

func TestPartition(t *testing.T) {
	w, a, b := pair(t, 1, keyed(1))
	w.blocked = func(_, _ netip.AddrPort, _ []byte) bool { return true }
	w.run(5 * time.Minute)
	a.wantState(2, Ours, Down)
	for n := range uint32(100) {
		a.send(frame(n))
	}
	w.blocked = nil
	w.run(11 * time.Second)
	a.wantState(2, Ours, Up)
	b.wantState(1, Ours, Up)
	w.run(3 * time.Second)
	b.take() // nothing, or what waited for less than three seconds
	a.send(frame(1))
	w.run(time.Second)
	wantNumbers(t, b, 1)
	sameSession(t, a, b)
}

// A relay behind a NAT is learned, and followed when the NAT forgets it.
func TestNAT(t *testing.T) {
	w := newNetwork(t, 1)
	inside, outside := w.add(1, keyed(1)), w.add(2, keyed(1))
	inside.peers(2)
	port := uint16(40000)
	public := netip.MustParseAddr("203.0.113.9")
	w.nat = func(from netip.AddrPort) netip.AddrPort {
		if from == inside.addr {
			return netip.AddrPortFrom(public, port)
		}
		return from
	}
	w.unnat = func(to netip.AddrPort) netip.AddrPort {
		switch to {
		case netip.AddrPortFrom(public, port):
			return inside.addr
		case inside.addr:
			t.Error("sent to an address behind the NAT")
		}
		return to
	}
	w.run(time.Second)
	outside.send(frame(1))
	inside.send(frame(2))
	w.run(time.Second)
	wantNumbers(t, inside, 1)
	wantNumbers(t, outside, 2)
	number := outside.Peers(w.now)[0].Number
	port++
	w.run(1200 * time.Millisecond) // until the next hello
	outside.send(frame(3))
	w.run(time.Second)
	wantNumbers(t, inside, 3)
	s := outside.Peers(w.now)
	if len(s) != 1 || s[0].Origin != "learned" || s[0].Address.Port() != port || s[0].Number != number {
		t.Errorf("peers %+v", s)
	}
	// It leaves for good: nobody is sent anything for ever.
	delete(w.nodes, inside.addr)
	w.run(2 * time.Minute)
	if s := outside.Peers(w.now); len(s) != 0 {
		t.Errorf("peers %+v", s)
	}
	if len(outside.indexes) != 0 {
		t.Errorf("%d indexes", len(outside.indexes))
	}
}

// A datagram that was on its way for long does not lead a learned peer back to where it was.
func TestLateDatagramMovesNothing(t *testing.T) {
	w := newNetwork(t, 1)
	inside, outside := w.add(1, keyed(1)), w.add(2, keyed(1))
	inside.peers(2)
	w.run(time.Second)
	var late []byte
	w.blocked = func(from, _ netip.AddrPort, data []byte) bool {
		if from != inside.addr || late != nil {
			return false
		}
		late = bytes.Clone(data)
		return true
	}
	inside.send(frame(1))
	inside.send(frame(2))
	w.run(100 * time.Millisecond)
	w.inject(netip.MustParseAddrPort("203.0.113.9:1"), outside.addr, late)
	w.run(time.Millisecond)
	wantNumbers(t, outside, 2, 1)
	if s := outside.Peers(w.now); len(s) != 1 || s[0].Address != inside.addr {
		t.Errorf("peers %+v", s)
	}
}

// A peer that was configured is sent to where it was configured, wherever it sends from.
func TestConfiguredStays(t *testing.T) {
	w, a, b := pair(t, 1, keyed(1))
	other := netip.MustParseAddrPort("203.0.113.9:1")
	w.nat = func(from netip.AddrPort) netip.AddrPort {
		if from == b.addr {
			return other
		}
		return from
	}
	w.unnat = func(to netip.AddrPort) netip.AddrPort {
		if to == other {
			return b.addr
		}
		return to
	}
	for n := range uint32(10) {
		b.send(frame(n))
		a.send(frame(n))
		w.run(time.Second)
	}
	wantNumbers(t, a, seq(0, 10)...)
	wantNumbers(t, b, seq(0, 10)...)
	a.wantState(2, Ours, Up)
	if s := a.Peers(w.now); len(s) != 1 || s[0].Address != b.addr {
		t.Errorf("peers %+v", s)
	}
}

// The last message of a handshake comes from where the first one came from, and the index in the second is the one that
// its sender meant.
func TestHandshakeDetours(t *testing.T) {
	for _, kind := range []byte{kindHandshake2, kindHandshake3} {
		w := newNetwork(t, 1)
		a, b := w.add(1, keyed(1)), w.add(2, keyed(1))
		a.peers(2)
		w.blocked = func(_, to netip.AddrPort, data []byte) bool {
			if framed(data) != kind {
				return false
			}
			if kind == kindHandshake2 {
				data = bytes.Clone(data)
				data[headerLen+4] ^= 1
				w.inject(b.addr, to, data)
			} else {
				w.inject(netip.MustParseAddrPort("203.0.113.9:1"), to, data)
			}
			return true
		}
		w.run(time.Minute)
		a.wantState(2, Unknown, Connecting)
		if s := b.Peers(w.now); len(s) != 0 {
			t.Errorf("peers %+v", s)
		}
		w.blocked = nil
		w.run(11 * time.Second)
		a.wantState(2, Ours, Up)
	}
}

// Whatever is replayed, forged or damaged: nothing comes out of it, and the link stays up.
func TestForgeries(t *testing.T) {
	w := newNetwork(t, 1)
	a, b := w.add(1, keyed(1)), w.add(2, keyed(1))
	var recorded []flight
	w.seen = func(from, to netip.AddrPort, data []byte) {
		if to == b.addr {
			recorded = append(recorded, flight{from: from, to: to, data: bytes.Clone(data)})
		}
	}
	a.peers(2)
	w.run(time.Second)
	a.send(frame(1), multicast(2, 5000))
	w.run(time.Second)
	wantNumbers(t, b, 1, 2)
	kinds := map[byte]bool{}
	for _, f := range recorded {
		kinds[framed(f.data)] = true
	}
	if len(kinds) != 3 {
		t.Fatalf("recorded kinds %v, want handshakes 1 and 3 and sealed", kinds)
	}
	w.seen = nil
	session := b.byAddr[a.addr].link.current
	for _, f := range recorded {
		w.inject(f.from, f.to, f.data)
		w.inject(netip.MustParseAddrPort("203.0.113.1:1"), f.to, f.data)
		for i := range f.data {
			damaged := bytes.Clone(f.data)
			damaged[i] ^= 1 << (i % 8)
			w.inject(f.from, f.to, damaged)
			w.inject(f.from, f.to, f.data[:i])
			w.run(time.Millisecond)
		}
	}
	w.run(20 * time.Second)
	wantNumbers(t, b)
	if len(b.Peers(w.now)) != 1 || b.byAddr[a.addr].link.current != session {
		t.Errorf("peers %+v", b.Peers(w.now))
	}
	sameSession(t, a, b)
	for _, r := range []drop.Reason{drop.Replayed, drop.Unauthenticated, drop.Truncated, drop.Unframed, drop.Rate} {
		if b.drops[r] == 0 {
			t.Errorf("nothing was dropped for being %v", r)
		}
	}
	if len(b.responses) != 0 {
		t.Errorf("%d responses are kept", len(b.responses))
	}
}

// A flood of first messages, even with the right key, is bounded in memory and in work, and peers get through.
func TestHandshakeFlood(t *testing.T) {
	w, a, b := pair(t, 1, keyed(1))
	attacker, err := New(keyed(1))
	if err != nil {
		t.Fatal(err)
	}
	var answers int
	w.seen = func(_, to netip.AddrPort, data []byte) {
		if framed(data) == kindHandshake2 {
			answers++
		}
	}
	p := &peer{addr: b.addr}
	flood := 2000
	if testing.Short() {
		flood = 400
	}
	for i := range flood {
		var out Outbox
		p.link.attemptNext = time.Time{}
		attacker.startHandshake(p, &out, w.now)
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 7124)
		w.inject(from, b.addr, out.Items[0].Data)
		w.run(time.Millisecond)
	}
	if answers > 3*strangerRate+10 || len(b.responses) > maxResponses {
		t.Errorf("%d answers, %d responses", answers, len(b.responses))
	}
	if len(b.indexes) > maxResponses+3 {
		t.Errorf("%d indexes", len(b.indexes))
	}
	a.send(frame(1))
	w.run(time.Second)
	wantNumbers(t, b, 1)
	w.run(time.Minute)
	if len(b.indexes) > 3 {
		t.Errorf("%d indexes a minute later", len(b.indexes))
	}
}

func TestConfirmed(t *testing.T) {
	w, a, b := pair(t, 1, keyed(1))
	token := [8]byte{1, 2, 3}
	b.SetSegments([][8]byte{{9}, token})
	w.run(2 * time.Second)
	if !a.Confirmed([6]byte{2, 0, 0, 0, 0, 2}, token) || a.Confirmed([6]byte{2, 0, 0, 0, 0, 2}, [8]byte{1}) || a.Confirmed([6]byte{1}, token) {
		t.Error("the wrong ones are confirmed")
	}
	delete(w.nodes, b.addr)
	w.run(5 * time.Second)
	if a.Confirmed([6]byte{2, 0, 0, 0, 0, 2}, token) {
		t.Error("a relay that is gone is confirmed")
	}
}

func TestSelfSealed(t *testing.T) {
	w := newNetwork(t, 1)
	a := w.add(1, keyed(1))
	a.peers(1)
	w.run(time.Minute)
	a.wantState(1, Self, Connecting)
	a.send(frame(1))
	w.run(time.Second)
	wantNumbers(t, a)
}

func TestNeighbour(t *testing.T) {
	w := newNetwork(t, 1)
	a, b := w.add(1, Options{}), w.add(2, Options{})
	a.AddNeighbour([]netip.AddrPort{b.addr}, w.now)
	a.send(frame(1))
	w.run(time.Second)
	wantNumbers(t, b)
	a.wantState(2, Ours, Up)
	a.send(frame(2))
	w.run(10 * time.Second)
	wantNumbers(t, b, 2)
	if s := a.Peers(w.now); len(s) != 0 {
		t.Errorf("peers %+v", s)
	}
}

// A forged reset makes the other side begin a new session, at most once a second, and go on with the old one.
func TestReset(t *testing.T) {
	w, a, b := pair(t, 1, keyed(1))
	s := a.byAddr[b.addr].link.current
	w.run(2 * time.Second)
	reset := binary.BigEndian.AppendUint32(appendHeader(nil, kindReset), s.remote)
	var begun int
	w.seen = func(from, _ netip.AddrPort, data []byte) {
		if from == a.addr && framed(data) == kindHandshake1 {
			begun++
		}
	}
	w.blocked = func(from, _ netip.AddrPort, data []byte) bool { return framed(data) == kindHandshake1 }
	for n := range uint32(20) {
		w.inject(b.addr, a.addr, reset)
		w.inject(netip.MustParseAddrPort("203.0.113.1:1"), a.addr, reset)
		a.send(frame(n))
		w.run(100 * time.Millisecond)
	}
	wantNumbers(t, b, seq(0, 20)...)
	if begun == 0 || begun > 3 {
		t.Errorf("%d handshakes in two seconds", begun)
	}
}

// Both sides begin at the same time, and the way is so long that both handshakes complete: one session is used,
// the same at both sides.
func TestSimultaneous(t *testing.T) {
	for seed := range uint64(10) {
		w := newNetwork(t, seed)
		w.delay = 600 * time.Millisecond
		a, b := w.add(1, keyed(1)), w.add(2, keyed(1))
		a.peers(2)
		b.peers(1)
		installed := 0
		w.seen = func(_, _ netip.AddrPort, data []byte) {
			if framed(data) == kindHandshake3 {
				installed++
			}
		}
		w.run(10 * time.Second)
		sameSession(t, a, b)
		if installed < 2 {
			t.Errorf("seed %d: only one handshake: the test does not test what it is for", seed)
		}
		for n := range uint32(60) {
			a.send(frame(n))
			b.send(frame(n))
			w.run(time.Second)
		}
		w.run(time.Second)
		wantNumbers(t, a, seq(0, 60)...)
		wantNumbers(t, b, seq(0, 60)...)
		sameSession(t, a, b)
	}
}

// Announcements of relays that are not there do not take the room of those that are.
func TestNeighbourFlood(t *testing.T) {
	w := newNetwork(t, 1)
	a := w.add(1, keyed(1))
	for n := range uint16(2000) {
		a.AddNeighbour([]netip.AddrPort{netip.AddrPortFrom(address(9).Addr(), n+1)}, w.now)
	}
	if n := len(a.Peers(w.now)); n != maxNeighbours {
		t.Errorf("%d peers", n)
	}
	w.run(time.Minute)
	if n := len(a.Peers(w.now)); n != 0 || len(a.indexes) != 0 {
		t.Errorf("%d peers and %d indexes a minute later", n, len(a.indexes))
	}
}

// Nor does a member of the mesh that comes under one name after the other.
func TestLearnedFlood(t *testing.T) {
	w := newNetwork(t, 1)
	a := w.add(1, keyed(1))
	for n := range uint16(2000) {
		a.peerOf(netip.AddrPortFrom(address(9).Addr(), n+1), [8]byte{byte(n), byte(n >> 8)})
	}
	if n := len(a.Peers(w.now)); n != maxLearned {
		t.Errorf("%d peers", n)
	}
	a.peers(2)
}

// All methods at once, from several goroutines: for the race detector.
func TestConcurrent(t *testing.T) {
	m, peer, now := star(t, 1, keyed(1))
	frames := batch(true)
	var wg sync.WaitGroup
	for _, f := range []func(out *Outbox){
		func(out *Outbox) {
			m.Send(frames, out, now)
			var in Inbox
			var answers Outbox
			for _, o := range out.Items {
				peer.Receive(address(200), o.Data, &in, &answers, now)
			}
		},
		func(out *Outbox) { m.Tick(now, out) },
		func(*Outbox) { m.Peers(now) },
		func(*Outbox) { m.SetPeers([]netip.AddrPort{address(1), address(2)}) },
		func(*Outbox) { m.Confirmed([6]byte{}, [8]byte{}) },
		func(*Outbox) { m.SetSegments([][8]byte{{1}}) },
		func(*Outbox) { m.AddNeighbour([]netip.AddrPort{address(3)}, now) },
		func(out *Outbox) { m.SendReport(1, TestReport{}, out, now) },
		func(*Outbox) {
			if err := m.SetKeys([]Key{testKey(1), testKey(2)}); err != nil {
				t.Error(err)
			}
		},
		func(*Outbox) { m.Deadline() },
	} {
		wg.Go(func() {
			var out Outbox
			for range 50 {
				out.Reset()
				f(&out)
			}
		})
	}
	wg.Wait()
}

// Two relays that begin at the same time over a short way do with one handshake.
func TestOneHandshake(t *testing.T) {
	for seed := range uint64(8) {
		w := newNetwork(t, seed)
		a, b := w.add(1, keyed(1)), w.add(2, keyed(1))
		a.peers(2)
		b.peers(1)
		counts := map[byte]int{}
		w.seen = func(_, _ netip.AddrPort, data []byte) { counts[framed(data)]++ }
		w.run(time.Second)
		sameSession(t, a, b)
		if counts[kindHandshake1] != 2 || counts[kindHandshake2] != 1 || counts[kindHandshake3] != 1 {
			t.Errorf("seed %d: datagrams by kind %v", seed, counts)
		}
	}
}

// Whichever message of a handshake is lost, the link is up soon after.
func TestHandshakeLosses(t *testing.T) {
	for kind, within := range map[byte]time.Duration{
		kindHandshake1: 1200 * time.Millisecond, // the next attempt
		kindHandshake2: 1200 * time.Millisecond,
		kindHandshake3: 300 * time.Millisecond, // repeated
		kindSealed:     1200 * time.Millisecond,
	} {
		w := newNetwork(t, 1)
		a, b := w.add(1, keyed(1)), w.add(2, keyed(1))
		a.peers(2)
		lost := false
		w.blocked = func(_, _ netip.AddrPort, data []byte) bool {
			if lost || framed(data) != kind {
				return false
			}
			lost = true
			return true
		}
		w.run(within)
		a.wantState(2, Ours, Up)
		b.wantState(1, Ours, Up)
		sameSession(t, a, b)
	}
}

// A session that only one side has left is given up after two hellos, even where resets do not get through.
func TestRestartWithoutReset(t *testing.T) {
	w := newNetwork(t, 1)
	w.blocked = func(_, _ netip.AddrPort, data []byte) bool { return framed(data) == kindReset }
	a, b := w.add(1, keyed(1)), w.add(2, keyed(1))
	a.peers(2)
	w.run(1500 * time.Millisecond)
	b.wantState(1, Ours, Up)
	b = w.add(2, keyed(1))
	w.run(2100 * time.Millisecond)
	a.send(frame(1))
	w.run(time.Second)
	wantNumbers(t, b, 1)
}

// A member of the mesh that says to be another one gets no link, and takes nothing away from that one.
func TestInstanceOfAnother(t *testing.T) {
	w := newNetwork(t, 1)
	a, b, evil := w.add(1, keyed(1)), w.add(2, keyed(1)), w.add(3, keyed(1))
	evil.instance = b.instance
	a.peers(3, 2)
	w.run(time.Second)
	a.wantState(2, Ours, Up)
	if s := a.status(3); s.State == Up {
		t.Errorf("status %+v", s)
	}
	a.send(frame(1))
	w.run(time.Second)
	wantNumbers(t, b, 1)
}
