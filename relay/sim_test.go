// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/relay/datagram"
	"github.com/seed5728abee/fathom/relay/drop"
	"github.com/seed5728abee/fathom/relay/guard"
	"github.com/seed5728abee/fathom/relay/mesh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testPort    = 5076
	wireLatency = 50 * time.Microsecond
)

// A world is Ethernet segments in memory, with hosts, relays that are the real engine, and relays that behave as the original
// does; and a network that joins the relays. It lives in a bubble of testing/synctest, with its time.
//
//	 wire 0            wire 1            wire 2
//	──┬────┬────      ──┬────┬────      ──┬────┬────┬──
//	host  relay       host  relay       host relay original
//	        │                 │                │      │
//	        └─────────────────┴── mesh ────────┴──────┘
//
// Each port of a relay and its mesh have a goroutine, as they have in a Relay.
type world struct {
	t      *testing.T
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	wires  []*wire

	mu      sync.Mutex
	rng     *rand.Rand
	ends    map[netip.AddrPort]*inbox[arrival]
	delay   time.Duration
	jitter  time.Duration // reorders
	loss    float64
	double  float64
	blocked func(from, to netip.AddrPort) bool
	seen    func(from, to netip.AddrPort, data []byte)
	frames  int // on all wires, announcements left out
	limit   int // more frames than this are a storm
	storm   bool
}

func newWorld(t *testing.T, wires int) *world {
	w := &world{
		t: t, rng: rand.New(rand.NewPCG(1, 2)), ends: make(map[netip.AddrPort]*inbox[arrival]),
		delay: time.Millisecond, limit: 20_000,
	}
	w.ctx, w.cancel = context.WithCancel(t.Context())
	for i := range wires {
		w.wires = append(w.wires, &wire{world: w, number: i})
	}
	return w
}

// stop ends everything and waits for it.
func (w *world) stop() {
	w.cancel()
	w.wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.storm {
		w.t.Errorf("a storm: more than %d frames", w.limit)
	}
}

// post sends a datagram of the mesh.
func (w *world) post(from, to netip.AddrPort, data []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen != nil {
		w.seen(from, to, data)
	}
	end := w.ends[to]
	if end == nil || w.storm || w.rng.Float64() < w.loss || w.blocked != nil && w.blocked(from, to) {
		return
	}
	copies := 1
	if w.rng.Float64() < w.double {
		copies = 2
	}
	for range copies {
		at := time.Now().Add(w.delay)
		if w.jitter > 0 {
			at = at.Add(time.Duration(w.rng.Int64N(int64(w.jitter))))
		}
		end.put(at, arrival{from, bytes.Clone(data)})
	}
}

// listen gives what comes to a mesh address where no relay is.
func (w *world) listen(n int) *inbox[arrival] {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ends[meshAddress(n)] = newInbox[arrival]()
	return w.ends[meshAddress(n)]
}

// change changes how the network is.
func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// alive tells whether a relay has not been killed.
func (x *node) alive() bool {
	x.world.mu.Lock()
	defer x.world.mu.Unlock()
	return x.world.ends[x.addr] == x.in
}

// An inbox keeps what is on its way to somebody, by the time when it arrives.
type inbox[T any] struct {
	mu    sync.Mutex
	items []timed[T]
	wake  chan struct{}
}

type timed[T any] struct {
	at   time.Time
	item T
}

func newInbox[T any]() *inbox[T] { return &inbox[T]{wake: make(chan struct{}, 1)} }

func (b *inbox[T]) put(at time.Time, item T) {
	b.mu.Lock()
	i := len(b.items)
	for i > 0 && b.items[i-1].at.After(at) {
		i--
	}
	b.items = slices.Insert(b.items, i, timed[T]{at, item})
	b.mu.Unlock()
	b.poke()
}

func (b *inbox[T]) poke() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// take gives what has arrived.
func (b *inbox[T]) take() (items []T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, now := 0, time.Now()
	for n < len(b.items) && !b.items[n].at.After(now) {
		items = append(items, b.items[n].item)
		n++
	}
	b.items = slices.Delete(b.items, 0, n)
	return items
}

// wait waits until something has arrived, or until a time; false when ctx has ended.
func (b *inbox[T]) wait(ctx context.Context, until time.Time) bool {
	b.mu.Lock()
	if len(b.items) > 0 {
		until = earlier(until, b.items[0].at)
	}
	b.mu.Unlock()
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-b.wake:
	}
	return ctx.Err() == nil
}

// A wire is an Ethernet segment.
type wire struct {
	world  *world
	number int

	mu     sync.Mutex
	taps   []*host
	joined []*wire
}

// bridge joins two wires, or parts them.
func bridge(a, b *wire, joined bool) {
	for _, x := range [2][2]*wire{{a, b}, {b, a}} {
		x[0].mu.Lock()
		x[0].joined = slices.DeleteFunc(x[0].joined, func(o *wire) bool { return o == x[1] })
		if joined {
			x[0].joined = append(x[0].joined, x[1])
		}
		x[0].mu.Unlock()
	}
}

// transmit brings a frame to all but its sender.
func (w *wire) transmit(from *host, frame []byte) {
	if etherType(frame) != guard.EtherType {
		v := w.world
		v.mu.Lock()
		v.frames++
		v.storm = v.storm || v.frames > v.limit
		storm := v.storm
		v.mu.Unlock()
		if storm {
			return
		}
	}
	for seen, i := []*wire{w}, 0; i < len(seen); i++ {
		seen[i].mu.Lock()
		taps := slices.Clone(seen[i].taps)
		for _, o := range seen[i].joined {
			if !slices.Contains(seen, o) {
				seen = append(seen, o)
			}
		}
		seen[i].mu.Unlock()
		for _, tap := range taps {
			if tap != from {
				tap.arrive(frame, false)
			}
		}
	}
}

func (w *wire) attach(h *host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.taps = append(w.taps, h)
}

func (w *wire) detach(h *host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.taps = slices.DeleteFunc(w.taps, func(o *host) bool { return o == h })
}

// A host is on a wire, and hears what an application of it hears.
type host struct {
	wire    *wire
	mac     datagram.MAC
	prefix  netip.Prefix
	capture func(frame []byte, outgoing bool) // nil but of a relay's interface

	mu     sync.Mutex
	parts  datagram.Reassembler
	got    []heard
	broken int // frames that make no sense
}

// heard is a datagram that came to a host.
type heard struct {
	text     string
	src, dst netip.AddrPort
	at       time.Time
}

func (w *wire) address(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(w.number), byte(n)}), 24)
}

// host makes host number n of a wire.
func (w *wire) host(n int) *host {
	h := &host{wire: w, mac: datagram.MAC{2, 0, 0, byte(w.number), 0, byte(n)}, prefix: w.address(n)}
	w.attach(h)
	return h
}

func (h *host) arrive(frame []byte, outgoing bool) {
	if h.capture != nil {
		h.capture(bytes.Clone(frame), outgoing)
	}
	if !outgoing && etherType(frame) != guard.EtherType {
		h.hear(frame)
	}
}

func (h *host) hear(frame []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var d datagram.Datagram
	reason := d.Parse(frame, datagram.Capture{})
	if reason == drop.None && d.Fragment {
		whole, why := h.parts.Add(&d, 0, time.Now())
		if !whole && why == drop.None {
			return
		}
		reason = why
	}
	if reason == drop.None {
		reason = d.Finish()
	}
	if reason != drop.None {
		h.broken++
		return
	}
	h.got = append(h.got, heard{string(d.Payload()), d.Src, d.Dst, time.Now()})
}

// take gives what was heard since.
func (h *host) take() []heard {
	h.mu.Lock()
	defer h.mu.Unlock()
	got := h.got
	h.got = nil
	return got
}

func (h *host) addr() netip.Addr { return h.prefix.Addr() }

// broadcastTo is the limited broadcast address with a port.
func (h *host) broadcastTo(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(datagram.Limited(), port)
}

// wants checks that exactly these datagrams were heard, in this order.
func (h *host) wants(t *testing.T, texts ...string) {
	t.Helper()
	var got []string
	for _, x := range h.take() {
		got = append(got, x.text)
	}
	if !slices.Equal(got, texts) {
		t.Errorf("%v heard %s, want %s", h.addr(), brief(got), brief(texts))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken > 0 {
		t.Errorf("%v heard %d frames that make no sense", h.addr(), h.broken)
	}
}

func brief(texts []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d:", len(texts))
	for i, s := range texts {
		if i == 40 {
			b.WriteString(" …")
			break
		}
		fmt.Fprintf(&b, " %.20q", s)
	}
	return b.String()
}

// ipUDP is an IP packet, with its checksums, as Linux sends it: the same bytes for the same datagram.
func ipUDP(src, dst netip.AddrPort, payload []byte) []byte {
	b, err := packet.AppendUDPProbe(nil, src, dst, 64, payload)
	if err != nil {
		panic(err)
	}
	return b
}

// ethernet frames an IP packet for all, or for a group.
func ethernet(from datagram.MAC, ip []byte) []byte {
	to, kind := datagram.Broadcast, [2]byte{8, 0}
	switch {
	case ip[0]>>4 == 6:
		to, kind = datagram.MAC{0x33, 0x33, ip[36], ip[37], ip[38], ip[39]}, [2]byte{0x86, 0xdd}
	case ip[16]>>4 == 14:
		to = datagram.MAC{1, 0, 0x5e, ip[17] & 127, ip[18], ip[19]}
	}
	b := append(append(bytes.Clone(to[:]), from[:]...), kind[:]...)
	return append(b, ip...)
}

// cut gives the fragments of a packet.
func cut(ip []byte, mtu int) [][]byte {
	var d datagram.Datagram
	var f datagram.Fragmenter
	if reason := d.ParsePacket(datagram.MAC{2}, ip); reason != drop.None {
		panic(reason)
	}
	if reason := d.Finish(); reason != drop.None {
		panic(reason)
	}
	pieces, reason := f.Cut(&d, mtu, nil)
	if reason != drop.None {
		panic(reason)
	}
	return pieces
}

// raw puts a frame on the wire as this host.
func (h *host) raw(frame []byte) {
	if h.capture != nil {
		h.arrive(frame, true)
	}
	h.wire.transmit(h, frame)
}

// sendTo sends a datagram to a broadcast address or a group.
func (h *host) sendTo(dst netip.AddrPort, text string) {
	src := netip.AddrPortFrom(h.addr(), 40000)
	if dst.Addr().Is6() {
		src = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfe, 0x80, 15: h.mac[5]}), 40000)
	}
	for _, ip := range cut(ipUDP(src, dst, []byte(text)), 1500) {
		h.raw(ethernet(h.mac, ip))
	}
}

// send broadcasts.
func (h *host) send(text string) { h.sendTo(netip.AddrPortFrom(datagram.Limited(), testPort), text) }

// node is a relay: the engine with ports in memory.
type node struct {
	world  *world
	n      int
	e      *engine
	addr   netip.AddrPort
	ports  []*simPort
	in     *inbox[arrival]
	cancel context.CancelFunc
	wg     sync.WaitGroup
	log    *logs
}

// simPort does with wires in memory what port does with sockets.
type simPort struct {
	*host
	node    *node
	s       *segment
	w       *worker
	in      *inbox[captured]
	backlog backlog
}

type captured struct {
	ethernet []byte
	outgoing bool
}

// logs keeps what is logged.
type logs struct {
	mu    sync.Mutex
	lines []string
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(b))
	return len(b), nil
}

// count tells how many lines contain a text.
func (l *logs) count(text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func meshAddress(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), DefaultMeshPort)
}

// relay starts relay number n with an interface on each of some wires. Its peers are numbers as well.
func (w *world) relay(n int, wires []*wire, peers []int, change func(*Options)) *node {
	w.t.Helper()
	x := &node{world: w, n: n, addr: meshAddress(n), in: newInbox[arrival](), log: new(logs)}
	o := &Options{
		Ports: onePort(testPort), SourceRate: DefaultSourceRate, SegmentRate: DefaultSegmentRate, RepeatRate: DefaultRepeatRate,
		Log: slog.New(slog.NewTextHandler(x.log, nil)),
	}
	for i := range wires {
		o.Interfaces = append(o.Interfaces, fmt.Sprintf("eth%d", i))
	}
	if change != nil {
		change(o)
	}
	if err := o.complete(); err != nil {
		w.t.Fatal(err)
	}
	mac := func(i int) datagram.MAC { return datagram.MAC{2, 0, 1, 0, byte(n), byte(i)} }
	var err error
	if x.e, err = newEngine(o, mac(0)); err != nil {
		w.t.Fatal(err)
	}
	x.e.out = x
	var ctx context.Context
	ctx, x.cancel = context.WithCancel(w.ctx)
	var segments []*segment
	for i, each := range wires {
		p := &simPort{node: x, w: newWorker(x.e), in: newInbox[captured](), host: &host{wire: each, mac: mac(i), prefix: each.address(100 + n)}}
		p.capture = func(frame []byte, outgoing bool) { p.in.put(time.Now().Add(wireLatency), captured{frame, outgoing}) }
		if p.s, err = newSegment(x.e, o.Interfaces[i], guard.LocalSource(i)); err != nil {
			w.t.Fatal(err)
		}
		p.s.emitter = p
		segments = append(segments, p.s)
		x.ports = append(x.ports, p)
	}
	x.e.addSegments(segments...)
	w.mu.Lock()
	w.ends[x.addr] = x.in
	for _, p := range x.ports { // where it announces that it can be reached
		w.ends[netip.AddrPortFrom(p.addr(), DefaultMeshPort)] = x.in
	}
	w.mu.Unlock()
	x.peers(peers...)
	for _, p := range x.ports {
		p.s.set(link{mac: p.mac, mtu: 1500, prefixes: []netip.Prefix{p.prefix}}, "")
		p.wire.attach(p.host)
		x.goes(func() { p.run(ctx) })
	}
	x.goes(func() { x.run(ctx) })
	return x
}

func (x *node) goes(f func()) {
	x.wg.Add(1)
	x.world.wg.Go(func() {
		defer x.wg.Done()
		f()
	})
}

func (x *node) peers(numbers ...int) {
	var addrs []netip.AddrPort
	for _, n := range numbers {
		addrs = append(addrs, meshAddress(n))
	}
	x.e.mesh.SetPeers(addrs)
	x.in.poke()
}

// leave ends a relay in order.
func (x *node) leave() {
	x.cancel()
	x.wg.Wait()
	for _, p := range x.ports {
		p.s.leave(time.Now(), func(frame []byte) { p.wire.transmit(p.host, frame) })
	}
	x.kill()
}

// kill ends a relay without a word.
func (x *node) kill() {
	for _, p := range x.ports {
		p.wire.detach(p.host)
	}
	x.world.mu.Lock()
	for addr, end := range x.world.ends {
		if end == x.in {
			delete(x.world.ends, addr)
		}
	}
	x.world.mu.Unlock()
	x.cancel()
	x.wg.Wait()
}

func (x *node) send(items []mesh.Outgoing) {
	for _, item := range items {
		x.world.post(x.addr, item.To, item.Data)
	}
}

// run works off the mesh.
func (x *node) run(ctx context.Context) {
	w := newWorker(x.e)
	for {
		next := w.tick(time.Now())
		if items := x.in.take(); len(items) > 0 {
			w.receive(items, time.Now())
		}
		if !x.in.wait(ctx, next) {
			return
		}
	}
}

// run works off what is captured.
func (p *simPort) run(ctx context.Context) {
	send := func(frame []byte) { p.wire.transmit(p.host, bytes.Clone(frame)) }
	var frames [batchSize]frame
	for {
		next := p.s.periodic(p.w, time.Now(), send)
		for _, c := range p.in.take() {
			p.backlog.put(c.ethernet, datagram.Capture{}, c.outgoing)
		}
		for n := p.backlog.take(frames[:]); n > 0; n = p.backlog.take(frames[:]) {
			p.w.capturedFrames(p.s, frames[:n], time.Now())
		}
		if !p.in.wait(ctx, next) {
			return
		}
	}
}

// emit puts packets on the wire; the filter on the mark keeps them from being captured.
func (p *simPort) emit(packets [][]byte) (failed int, err error) {
	for _, ip := range packets {
		frame := ethernet(p.mac, ip)
		p.hear(frame)
		p.wire.transmit(p.host, frame)
	}
	return 0, nil
}

// drops gives a segment's count for a reason: of frames, and of what was not emitted.
func (x *node) drops(r drop.Reason) (n uint64) {
	for _, s := range x.e.segments {
		n += s.drops.Get(r) + s.notEmitted.Get(r)
	}
	return n
}

// original is a relay that behaves as SnowSignal 0.1.1 does, but for the length of its buffer.
type original struct {
	*host
	world *world
	addr  netip.AddrPort
	peers []netip.AddrPort
	in    *inbox[arrival]
}

// original starts an original with number n on a wire.
func (w *world) original(n int, on *wire, peers ...int) *original {
	x := &original{
		host: &host{wire: on, mac: datagram.MAC{2, 0, 9, 0, 0, byte(n)}, prefix: on.address(200 + n)}, world: w,
		addr: meshAddress(n), in: newInbox[arrival](),
	}
	for _, p := range peers {
		x.peers = append(x.peers, meshAddress(p))
	}
	x.capture = x.captured
	on.attach(x.host)
	w.mu.Lock()
	w.ends[x.addr] = x.in
	w.mu.Unlock()
	w.wg.Go(func() { x.run(w.ctx) })
	return x
}

// captured sends a frame to all peers, each time from another port, unless it has an own address.
func (x *original) captured(frame []byte, outgoing bool) {
	if outgoing || len(frame) < 42 || datagram.MAC(frame[:6]) != datagram.Broadcast || etherType(frame) != 0x0800 || datagram.MAC(frame[6:12]) == x.mac {
		return
	}
	ip := frame[datagram.EthernetHeaderLen:]
	if u := ip[int(ip[0]&15)*4:]; ip[9] != 17 || len(u) < 8 || int(u[2])<<8|int(u[3]) != testPort {
		return
	}
	for _, to := range x.peers {
		x.world.mu.Lock()
		from := netip.AddrPortFrom(x.addr.Addr(), uint16(32768+x.world.rng.IntN(28000)))
		x.world.mu.Unlock()
		x.world.post(from, to, append([]byte("SS"), frame...))
	}
}

// run puts on the wire what peers send, whatever it is.
func (x *original) run(ctx context.Context) {
	for {
		for _, a := range x.in.take() {
			if len(a.data) < 44 || !bytes.HasPrefix(a.data, []byte("SS")) {
				continue
			}
			ip := bytes.Clone(a.data[16:])
			packet.SetUDPChecksum(ip[20:], packet.IPv4(ip).Src(), packet.IPv4(ip).Dst())
			frame := ethernet(x.mac, ip)
			x.hear(frame)
			x.wire.transmit(x.host, frame)
		}
		if !x.in.wait(ctx, time.Now().Add(time.Hour)) {
			return
		}
	}
}
