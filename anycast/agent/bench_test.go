// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/internal/rawio/rawiotest"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// void is a network that answers nothing and costs nothing: what is measured is the plane.
type void struct {
	*rawiotest.Host
	rx [2]*replay
}

// replay is a receiver that finds the same packets again and again.
type replay struct {
	rawio.Conn
	packets [][]byte
	left    int
}

func (r *replay) Receive(msgs []rawio.Message) (int, error) {
	n := min(len(msgs), r.left)
	for k := range msgs[:n] {
		m := &msgs[k]
		m.N = copy(m.Data, r.packets[k%len(r.packets)])
		m.Time = 1
		m.Addr, m.Local, m.TTL = addrPort(target[1]), shared[1], 60
	}
	r.left -= n
	return n, nil
}

func (v *void) Open(s rawio.Spec) (rawio.Conn, error) {
	c, err := v.Host.Open(s)
	if err != nil {
		return nil, err
	}
	switch {
	case s.Kind == rawio.RawHeader:
		return sink{c}, nil
	case s.Kind == rawio.Raw && s.Protocol == 1:
		v.rx[0] = &replay{Conn: c}
		return v.rx[0], nil
	case s.Kind == rawio.Raw && s.Protocol == 58:
		v.rx[1] = &replay{Conn: c}
		return v.rx[1], nil
	}
	return c, nil
}

type sink struct{ rawio.Conn }

func (sink) Send(msgs []rawio.Message) (int, error) { return len(msgs), nil }

// bench is a plane that runs turn by turn.
type bench struct {
	*plane
	link *link
	host *void

	items []item // of next
}

func newBench(t testing.TB) *bench {
	b := &bench{host: &void{Host: rawiotest.NewHost(rawiotest.Config{Addrs: shared[:]})}}
	a, err := New(Options{ID: "x", Links: oneLink, Anycast: shared[:], Host: func() (rawio.Host, error) { return b.host, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	b.plane, b.link = a.plane, a.links[0]
	for id, proto := range []measurepb.Protocol{measurepb.Protocol_PROTOCOL_ICMP, measurepb.Protocol_PROTOCOL_UDP, measurepb.Protocol_PROTOCOL_TCP} {
		conf, err := sessionConfig(open(uint32(id), proto))
		b.openSession(b.link, uint32(id), conf, err)
	}
	// Per version: an echo reply, an error, and a reply to what somebody else has sent.
	for v := range 2 {
		forged := b.sessions[sessionKey{b.link, 0}].codec.Config()
		forged.Key[0]++
		forger, err := stateless.New(forged)
		if err != nil {
			t.Fatal(err)
		}
		for i, codec := range []*stateless.Codec{b.sessions[sessionKey{b.link, 0}].codec, b.sessions[sessionKey{b.link, 1}].codec, forger} {
			p, err := codec.Append(nil, &stateless.Probe{Src: shared[v], Dst: target[v], TTL: uint8(64 - 63*(i%2)), Number: 5})
			if err != nil {
				t.Fatal(err)
			}
			a := answer(p)
			if v == 1 {
				a = a[ip6Header:]
			}
			b.host.rx[v].packets = append(b.host.rx[v].packets, a)
		}
	}
	return b
}

func addrPort(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 0) }

// sends has the plane send n probes.
func (b *bench) sends(t testing.TB, v, n int, rate float64) {
	s := send(0, 1, v, 1, 0)
	s.Numbers, s.Stamps, s.Rate = zero, false, rate
	s.Ttls = make([]uint32, n)
	for i := range s.Ttls {
		s.Ttls[i] = uint32(i%64) + 1
	}
	o, err := newOrder(b.link, s)
	if err != nil {
		t.Fatal(err)
	}
	b.accept(o)
}

// next is what a writer of a controller of Voltadomar's does.
func (b *bench) next() (item, bool) {
	if b.items = b.link.spool.next(b.items[:0], 0); len(b.items) == 0 {
		return item{}, false
	}
	return b.items[0], true
}

// drain does what a writer and its controller do.
func (b *bench) drain() {
	for {
		it, ok := b.next()
		if !ok {
			return
		}
		b.link.spool.acknowledge(it.seq)
	}
}

// turn is one of the loop.
func (b *bench) turn() {
	b.clock()
	b.receive()
	b.expire()
	b.transmit()
	b.notify()
}

// TestAllocations holds that packets cost none: sending with and without a rate, over both IP versions, and receiving
// what is right, what is forged, and what goes to a controller.
func TestAllocations(t *testing.T) {
	b := newBench(t)
	const turns = 200
	for v := range 2 {
		b.sends(t, v, 80*rawio.BatchSize*2, 0)
		b.sends(t, v, 80*rawio.BatchSize*2, 1e9)
	}
	for range 50 { // buffers grow to their size
		for v := range 2 {
			b.host.rx[v].left = 100
		}
		b.turn()
		b.drain()
	}
	before := b.counters
	if n := testing.AllocsPerRun(turns, func() {
		for v := range 2 {
			b.host.rx[v].left = 100
		}
		b.turn()
		b.drain()
	}); n != 0 {
		t.Errorf("%v allocations per turn", n)
	}
	if sent, got := b.counters.sent-before.sent, b.counters.recognised-before.recognised; sent < turns*rawio.BatchSize || got < turns*120 || b.counters.forged == 0 {
		t.Errorf("only %d sent and %d recognised", sent, got)
	}
}

// BenchmarkPlane sends a probe and takes in its answer, without a system.
func BenchmarkPlane(b *testing.B) {
	for v := range 2 {
		b.Run([2]string{"IPv4", "IPv6"}[v], func(b *testing.B) {
			p := newBench(b)
			b.ReportAllocs()
			b.ResetTimer()
			for done := 0; done < b.N; {
				if p.express.n == 0 {
					p.sends(b, v, maxOrder, 0)
				}
				p.host.rx[v].left = rawio.BatchSize
				p.turn()
				p.drain()
				done += rawio.BatchSize
			}
		})
	}
}

// BenchmarkLab is the same in a lab, with a connection to a controller in memory. Its unit is a probe and its answer.
func BenchmarkLab(b *testing.B) {
	l := pair(b)
	c := newController(b)
	startAt(b, l.Host("a"), Options{Links: oneLink, Dial: c.dial, Anycast: shared[:]})
	at := c.accept(0)
	at.order(open(1, measurepb.Protocol_PROTOCOL_ICMP))
	b.ResetTimer()
	began := time.Now()
	for left := b.N; left > 0; {
		n := min(left, 20000)
		s := send(1, 1, 0, n, 0)
		s.Stamps = false
		at.order(s)
		if got := at.count(n); got != n {
			b.Fatalf("%d answers to %d probes", got, n)
		}
		left -= n
	}
	b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "answers/s")
}

// BenchmarkSessions opens a session, sends eight probes, hears the answers and closes it, as for a trace; 64 at once.
func BenchmarkSessions(b *testing.B) {
	l := pair(b)
	c := newController(b)
	a := startAt(b, l.Host("a"), Options{Links: oneLink, Dial: c.dial, Anycast: shared[:]})
	at := c.accept(0)
	const atOnce, each, ports = 64, 8, 8
	began := time.Now()
	begun := 0
	begin := func() {
		id := uint32(begun)
		o := open(id, measurepb.Protocol_PROTOCOL_ICMP)
		o.FirstPort, o.Ports = 10000+id*ports%20000, ports
		at.order(o)
		at.order(send(id, uint64(id), 0, each, 0))
		begun++
	}
	b.ResetTimer()
	for range min(atOnce, b.N) {
		begin()
	}
	for done, answers := 0, 0; done < b.N || answers < b.N*each; {
		m := at.next()
		if got := m.GetAnswers(); got != nil {
			answers += len(got.GetTimes())
			at.order(&measurepb.Acknowledge{Seq: got.GetSeq()})
		}
		if r := m.GetSent(); r != nil {
			if r.GetCount() != each {
				b.Fatal(r)
			}
			done++
			at.order(&measurepb.Close{Session: r.GetSession(), Linger: int64(100 * time.Millisecond)})
			if begun < b.N {
				begin()
			}
		}
	}
	b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "sessions/s")
	if st := a.Stats(); st.Links[0].Dropped+st.Overrun > 0 {
		b.Errorf("%+v", st)
	}
}
