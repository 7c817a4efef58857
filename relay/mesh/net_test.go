// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/relay/drop"
)

// network joins meshes in memory. Time is its own: run moves it from event to event.
type network struct {
	t       *testing.T
	now     time.Time
	rng     *rand.Rand
	nodes   map[netip.AddrPort]*node
	flying  []flight
	delay   time.Duration
	jitter  time.Duration // reorders
	loss    float64
	double  float64
	blocked func(from, to netip.AddrPort, data []byte) bool
	// nat says what source address a datagram gets on its way.
	nat func(from netip.AddrPort) netip.AddrPort
	// unnat says where a datagram really goes.
	unnat func(to netip.AddrPort) netip.AddrPort
	seen  func(from, to netip.AddrPort, data []byte)
}

type flight struct {
	at       time.Time
	from, to netip.AddrPort
	data     []byte
}

// node is a mesh at an address, and what it received.
type node struct {
	*Mesh
	net     *network
	addr    netip.AddrPort
	got     []received
	reports []Report
	drops   [drop.Count]int
	dead    bool
}

type received struct {
	peer uint32
	link [6]byte
	ip   []byte
	ss   bool
}

func newNetwork(t *testing.T, seed uint64) *network {
	return &network{
		t: t, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), rng: rand.New(rand.NewPCG(seed, 1)),
		nodes: make(map[netip.AddrPort]*node), delay: 5 * time.Millisecond,
	}
}

func address(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 7124)
}

// add makes node number n. A node that was there before is gone.
func (w *network) add(n int, o Options) *node {
	w.t.Helper()
	o.ID = [6]byte{2, 0, 0, 0, 0, byte(n)}
	o.Version = "test"
	m, err := New(o)
	if err != nil {
		w.t.Fatal(err)
	}
	addr := address(n)
	if old := w.nodes[addr]; old != nil {
		old.dead = true
	}
	x := &node{Mesh: m, net: w, addr: addr}
	w.nodes[addr] = x
	return x
}

func (x *node) peers(numbers ...int) {
	var list []netip.AddrPort
	for _, n := range numbers {
		list = append(list, address(n))
	}
	if ignored := x.SetPeers(list); ignored != 0 {
		x.net.t.Fatalf("%d peers ignored", ignored)
	}
}

func (w *network) post(from netip.AddrPort, out *Outbox) {
	for _, o := range out.Items {
		if len(o.Data) == 0 {
			w.t.Fatal("empty datagram")
		}
		if w.seen != nil {
			w.seen(from, o.To, o.Data)
		}
		if w.rng.Float64() < w.loss || w.blocked != nil && w.blocked(from, o.To, o.Data) {
			continue
		}
		copies := 1
		if w.rng.Float64() < w.double {
			copies = 2
		}
		for range copies {
			at := w.now.Add(w.delay)
			if w.jitter > 0 {
				at = at.Add(time.Duration(w.rng.Int64N(int64(w.jitter))))
			}
			w.flying = append(w.flying, flight{at: at, from: from, to: o.To, data: bytes.Clone(o.Data)})
		}
	}
}

// inject puts a datagram on its way.
func (w *network) inject(from, to netip.AddrPort, data []byte) {
	w.flying = append(w.flying, flight{at: w.now, from: from, to: to, data: bytes.Clone(data)})
}

// run lets d pass.
func (w *network) run(d time.Duration) {
	end := w.now.Add(d)
	for still := 0; ; still++ {
		if still > 100_000 {
			w.t.Fatal("somebody is never content")
		}
		next := end
		for _, x := range w.nodes {
			if t := x.Deadline(); t.Before(next) {
				next = t
			}
		}
		slices.SortStableFunc(w.flying, func(a, b flight) int { return a.at.Compare(b.at) })
		if len(w.flying) > 0 && w.flying[0].at.Before(next) {
			next = w.flying[0].at
		}
		if next.After(w.now) {
			w.now, still = next, 0
		}
		for len(w.flying) > 0 && !w.flying[0].at.After(w.now) {
			f := w.flying[0]
			w.flying = w.flying[1:]
			w.deliver(f)
		}
		for _, n := range w.order() {
			x := w.nodes[n]
			if !x.Deadline().After(w.now) {
				var out Outbox
				x.Tick(w.now, &out)
				w.post(x.addr, &out)
			}
		}
		if !w.now.Before(end) {
			return
		}
	}
}

// order makes runs repeatable.
func (w *network) order() []netip.AddrPort {
	var all []netip.AddrPort
	for a := range w.nodes {
		all = append(all, a)
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return all
}

func (w *network) deliver(f flight) {
	to, from := f.to, f.from
	if w.unnat != nil {
		to = w.unnat(to)
	}
	if w.nat != nil {
		from = w.nat(from)
	}
	x := w.nodes[to]
	if x == nil {
		return
	}
	var in Inbox
	var out Outbox
	x.drops[x.Receive(from, f.data, &in, &out, w.now)]++
	for _, i := range in.Items {
		x.got = append(x.got, received{peer: i.Peer, link: i.Link, ip: bytes.Clone(i.IP), ss: i.Frame != nil})
	}
	x.reports = append(x.reports, in.Reports...)
	w.post(x.addr, &out)
}

// send sends frames to all peers.
func (x *node) send(frames ...Frame) {
	var out Outbox
	x.Send(frames, &out, x.net.now)
	x.net.post(x.addr, &out)
}

// take gives what was received since.
func (x *node) take() []received {
	got := x.got
	x.got = nil
	return got
}

// status gives what x knows of a peer.
func (x *node) status(n int) PeerStatus {
	for _, s := range x.Peers(x.net.now) {
		if s.Address == address(n) {
			return s
		}
	}
	return PeerStatus{}
}

func (x *node) wantState(n int, kind Kind, state State) {
	x.net.t.Helper()
	if s := x.status(n); s.Kind != kind || s.State != state {
		x.net.t.Fatalf("%v: peer %d is %v and %v, want %v and %v", x.addr, n, s.Kind, s.State, kind, state)
	}
}

var sender = [6]byte{2, 0, 0, 2, 0, 0x0b}

// ssFrame makes an SS datagram with n bytes of IP packet that carries a number.
func ssFrame(number uint32, n int) []byte {
	b := append([]byte("SS\xff\xff\xff\xff\xff\xff"), sender[:]...)
	b = append(b, 8, 0)
	ip := make([]byte, max(n, minIP+4))
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	binary.BigEndian.PutUint32(ip[minIP:], number)
	for i := minIP + 4; i < len(ip); i++ {
		ip[i] = byte(i * 7)
	}
	return append(b, ip...)
}

// frame is a broadcast that the origin can carry; large and multicast ones are not.
func frame(number uint32) Frame { return Frame{SS: ssFrame(number, 128), SSOK: true} }

func multicast(number uint32, n int) Frame { return Frame{SS: ssFrame(number, n)} }

// numbers gives the numbers of the frames that were received, and checks the rest of them.
func numbers(t *testing.T, got []received) []uint32 {
	t.Helper()
	var all []uint32
	for _, r := range got {
		n := binary.BigEndian.Uint32(r.ip[minIP:])
		if want := ssFrame(n, len(r.ip))[ssHeader:]; !bytes.Equal(r.ip, want) || r.link != sender {
			t.Fatalf("frame %d: got %x from %x, want %x", n, r.ip, r.link, want)
		}
		all = append(all, n)
	}
	return all
}

func wantNumbers(t *testing.T, x *node, want ...uint32) {
	t.Helper()
	if got := numbers(t, x.take()); !slices.Equal(got, want) {
		t.Fatalf("%v received %v, want %v", x.addr, got, want)
	}
}

func seq(from, to uint32) (all []uint32) {
	for n := from; n < to; n++ {
		all = append(all, n)
	}
	return all
}

func (x *node) String() string { return fmt.Sprint(x.addr) }
