// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/anycast/measurepb"
)

// ledger is what a controller that keeps its promises remembers of an agent.
type ledger struct {
	seq     uint64
	numbers map[uint32]int // how often the answer to each probe came
	reports map[uint64]int
}

// take counts a message unless it was there before.
func (l *ledger) take(t *testing.T, m *measurepb.FromAgent, number func(received) uint32) {
	var seq uint64
	switch {
	case m.GetSent() != nil:
		seq = m.GetSent().GetSeq()
	case m.GetAnswers() != nil:
		seq = m.GetAnswers().GetSeq()
	default:
		return
	}
	if seq <= l.seq {
		return
	}
	if seq != l.seq+1 {
		t.Errorf("number %d after %d", seq, l.seq)
	}
	l.seq = seq
	if r := m.GetSent(); r != nil {
		l.reports[r.GetBatch()]++
	}
	for _, r := range unpack(t, m.GetAnswers()) {
		l.numbers[number(r)]++
	}
}

// TestExactlyOnce breaks the connection again and again while orders are under way.
func TestExactlyOnce(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		s := start(t, Options{Links: oneLink, Dial: c.dial})
		o := open(1, measurepb.Protocol_PROTOCOL_UDP)
		tab := table(t, o)
		book := ledger{numbers: map[uint32]int{}, reports: map[uint64]int{}}
		number := func(r received) uint32 { return uint32(parse(t, tab, r).Number) }

		a := c.accept(0)
		a.order(o)
		const orders, each = 8, 250
		for i := range orders {
			order := send(1, uint64(i), i%2, each, uint32(i*each))
			order.Rate = 20 // 12.5 s
			a.order(order)
		}
		incarnation := a.hello.GetIncarnation()
		cut := func() <-chan time.Time { return time.After(time.Duration(rng.IntN(2000)) * time.Millisecond) }
		for end, timer := time.After(2*time.Minute), cut(); len(book.numbers) < orders*each || len(book.reports) < orders; {
			select {
			case m, ok := <-a.in:
				if !ok {
					a = c.accept(book.seq, 1)
					if h := a.hello; !slices.Equal(h.GetSessions(), []uint32{1}) || h.GetIncarnation() != incarnation {
						t.Errorf("second hello %v", h)
					}
					timer = cut()
					break
				}
				book.take(t, m, number)
				if rng.IntN(3) == 0 { // it is not always in a hurry
					a.order(&measurepb.Acknowledge{Seq: book.seq})
				}
			case <-timer:
				a.over <- errors.New("broken by the test")
			case <-end:
				t.Fatalf("%d answers and %d reports, want %d and %d; %+v", len(book.numbers), len(book.reports), orders*each, orders, s.Stats())
			}
		}
		for n, times := range book.numbers {
			if times != 1 {
				t.Errorf("answer %d came %d times", n, times)
			}
		}
		st := s.Stats()
		if st.Links[0].Dropped != 0 || st.Links[0].Connects < 3 {
			t.Errorf("%+v; want several connections, and nothing dropped", st.Links[0])
		}
	})
}

// TestWelcomeClosesSessions checks that the agent forgets what its controller forgot.
func TestWelcomeClosesSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		s := start(t, Options{Links: oneLink, Dial: c.dial})
		a := c.accept(0)
		for id := range uint32(3) {
			a.order(open(id, measurepb.Protocol_PROTOCOL_ICMP))
		}
		order := send(2, 9, 0, 100, 0)
		order.Rate = 1
		a.order(order)
		time.Sleep(10*time.Second + time.Millisecond)
		a.over <- nil
		a = c.accept(0, 1)
		if got := a.hello.GetSessions(); !slices.Equal(got, []uint32{0, 1, 2}) {
			t.Errorf("hello has sessions %v", got)
		}
		var r *measurepb.SentReport
		for r == nil {
			r = a.next().GetSent()
		}
		if r.GetBatch() != 9 || r.GetError() != errClosed.Error() || r.GetCount() < 10 || r.GetCount() > 12 {
			t.Errorf("report %v, want a closed session after some 11 probes", r)
		}
		time.Sleep(2 * time.Second)
		if st := s.Stats(); st.Sessions != 1 {
			t.Errorf("%d sessions are open, want 1", st.Sessions)
		}
	})
}

// TestBackoff looks at the pauses between attempts to connect.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tried []time.Time
		start(t, Options{Links: oneLink, Dial: func(context.Context, string) (net.Conn, error) {
			tried = append(tried, time.Now())
			return nil, errors.New("refused by the test")
		}})
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		want := firstPause
		for i := range len(tried) - 1 {
			if d := tried[i+1].Sub(tried[i]); d < want*3/4 || d > want*5/4 {
				t.Errorf("pause %d is %v, want %v or a quarter more or less", i, d, want)
			}
			want = min(2*want, maxPause)
		}
		if len(tried) < 10 {
			t.Errorf("%d attempts in 2 minutes", len(tried))
		}
	})
}

// TestSpoolIsBounded keeps the controller away until the spool is full: the oldest answers are kept, the others counted.
func TestSpoolIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		const limit = 20000
		s := start(t, Options{Links: oneLink, Dial: c.dial, Spool: limit})
		a := c.accept(0)
		o := open(1, measurepb.Protocol_PROTOCOL_ICMP)
		a.order(o)
		a.order(send(1, 1, 0, 500, 0))
		tab := table(t, o)
		var seen []uint16
		for len(seen) == 0 { // the first part arrives, and is not acknowledged
			for _, r := range unpack(t, a.next().GetAnswers()) {
				seen = append(seen, parse(t, tab, r).Number)
			}
		}
		a.over <- nil
		time.Sleep(time.Second)
		st := s.Stats().Links[0]
		if st.Spooled > limit+8*500+2*itemOverhead || st.Dropped == 0 {
			t.Errorf("%+v with a limit of %d", st, limit)
		}
		a = c.accept(0, 1)
		seen = seen[:0]
		for want := 500 - int(st.Dropped); len(seen) < want; {
			for _, r := range unpack(t, a.next().GetAnswers()) {
				seen = append(seen, parse(t, tab, r).Number)
			}
		}
		for i, n := range seen {
			if n != uint16(i) {
				t.Fatalf("answer %d is number %d: not the oldest were kept", i, n)
			}
		}
		// What is acknowledged makes room.
		a.order(&measurepb.Acknowledge{Seq: 1 << 40})
		time.Sleep(time.Second)
		if st := s.Stats().Links[0]; st.Spooled != 0 {
			t.Errorf("%d bytes are left after everything was acknowledged", st.Spooled)
		}
	})
}

func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		start(t, Options{Links: oneLink, Dial: c.dial})
		a := c.accept(0)
		a.order(&measurepb.Ping{Id: 3, T0: 77})
		now := time.Now().UnixNano()
		p := a.next().GetPong()
		if p.GetId() != 3 || p.GetT0() != 77 || p.GetT1() != now || p.GetT2() != now {
			t.Errorf("pong %v at %d", p, now)
		}
	})
}

// TestTwoControllers gives two the same names for everything: they do not hear of each other.
func TestTwoControllers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := [2]*controller{newController(t), newController(t)}
		start(t, Options{
			Links: []Link{{Address: "a.test:1", Dialect: Native}, {Address: "b.test:1", Dialect: Native}},
			Dial: func(ctx context.Context, address string) (net.Conn, error) {
				if address == "a.test:1" {
					return c[0].dial(ctx, address)
				}
				return c[1].dial(ctx, address)
			},
		})
		a := [2]*attachment{c[0].accept(0), c[1].accept(0)}
		o := [2]*measurepb.Open{open(1, measurepb.Protocol_PROTOCOL_ICMP), open(1, measurepb.Protocol_PROTOCOL_ICMP)}
		o[1].FirstPort += 16
		for i := range a {
			a[i].order(o[i])
			a[i].order(send(1, 1, 0, 20, uint32(100*i)))
		}
		for i := range a {
			_, as := a[i].collect(1, 20)
			tab := table(t, o[i])
			for k, r := range as {
				if n := parse(t, tab, r).Number; n != uint16(100*i+k) {
					t.Errorf("controller %d gets answer %d", i, n)
				}
			}
		}
		// Ports of the other are refused, and so is what is to be sent from them.
		o[1].Session, o[1].FirstPort = 2, o[0].FirstPort+8
		a[1].order(o[1])
		a[1].order(send(2, 5, 0, 1, 0))
		if r := a[1].next().GetSent(); r.GetBatch() != 5 || r.GetCount() != 0 || r.GetError() == "" {
			t.Errorf("report %v, want a refusal", r)
		}
	})
}

// TestLinger checks that late answers are recognised for a while after Close, and that ports can be used again at once.
func TestLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		s := start(t, Options{Links: oneLink, Dial: c.dial})
		s.net.delay = time.Second
		a := c.accept(0)
		for id, linger := range []time.Duration{2 * time.Second, 500 * time.Millisecond} {
			a.order(open(uint32(id), measurepb.Protocol_PROTOCOL_ICMP))
			a.order(send(uint32(id), uint64(id), 0, 4, 0))
			time.Sleep(100 * time.Millisecond)
			a.order(&measurepb.Close{Session: uint32(id), Linger: int64(linger)})
		}
		a.order(send(0, 2, 0, 1, 0))
		rs, _ := a.collect(3, 4)
		if rs[2].GetError() != errSession.Error() {
			t.Errorf("report %v, want one of a closed session", rs[2])
		}
		time.Sleep(5 * time.Second)
		if st := s.Stats(); st.Recognised != 4 || st.Received != 4+st.Stray || st.Sessions != 0 {
			t.Errorf("%+v", st)
		}
		// Ports that still listen for late answers of one session are free for the next of the same controller.
		a.order(open(3, measurepb.Protocol_PROTOCOL_ICMP))
		a.order(&measurepb.Close{Session: 3, Linger: int64(time.Minute)})
		next := open(3, measurepb.Protocol_PROTOCOL_ICMP)
		next.Session = 4
		a.order(next)
		a.order(send(4, 6, 0, 1, 0))
		if rs, _ := a.collect(1, 1); rs[0].GetError() != "" {
			t.Errorf("report %v", rs[0])
		}
	})
}

// TestSources checks that a controller can not make the site lie about its address.
func TestSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		s := start(t, Options{Links: oneLink, Dial: c.dial})
		a := c.accept(0)
		a.order(open(1, measurepb.Protocol_PROTOCOL_ICMP))
		for i, src := range []netip.Addr{{}, own[0], shared[0], netip.MustParseAddr("198.51.100.7")} {
			order := send(1, uint64(i), 0, 1, 0)
			if src.IsValid() {
				order.Source = src.AsSlice()
			}
			a.order(order)
		}
		rs, as := a.collect(4, 3)
		slices.SortFunc(rs, func(a, b *measurepb.SentReport) int { return cmp.Compare(a.GetBatch(), b.GetBatch()) })
		if rs[3].GetCount() != 0 || rs[3].GetError() == "" {
			t.Errorf("report %v, want a refusal", rs[3])
		}
		// Orders are carried out in any order.
		var got []netip.Addr
		for i := range 3 {
			got = append(got, netip.AddrFrom4([4]byte(as[i].pkt[16:])))
			if rs[i].GetError() != "" {
				t.Errorf("report %v", rs[i])
			}
		}
		want := []netip.Addr{shared[0], own[0], shared[0]}
		slices.SortFunc(got, netip.Addr.Compare)
		slices.SortFunc(want, netip.Addr.Compare)
		if !slices.Equal(got, want) {
			t.Errorf("answers came to %v, want %v", got, want)
		}
		if n := len(s.net.packets()); n != 3 {
			t.Errorf("%d packets sent, want 3", n)
		}
	})
}

// TestHello checks which addresses an agent says that it has.
func TestHello(t *testing.T) {
	list := func(bs [][]byte) (out []netip.Addr) {
		for _, b := range bs {
			a, ok := netip.AddrFromSlice(b)
			if !ok {
				t.Fatalf("%x is no address", b)
			}
			out = append(out, a)
		}
		return out
	}
	other := netip.MustParseAddr("10.88.7.7")
	for _, test := range []struct {
		name                     string
		anycast, unicast         []netip.Addr
		wantAnycast, wantUnicast []netip.Addr
	}{
		{"given", shared[:], []netip.Addr{other, own[1]}, shared[:], []netip.Addr{other, own[1]}},
		{"by routes", shared[:], []netip.Addr{}, shared[:], own[:]},
		{"one version", shared[:1], []netip.Addr{other}, shared[:1], []netip.Addr{other, own[1]}},
		{"none", []netip.Addr{}, nil, own[:], nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newController(t)
				start(t, Options{Links: oneLink, Dial: c.dial, Anycast: test.anycast, Unicast: test.unicast})
				h := c.accept(0).hello
				if got := list(h.GetAnycast()); !slices.Equal(got, test.wantAnycast) {
					t.Errorf("anycast %v, want %v", got, test.wantAnycast)
				}
				if got := list(h.GetUnicast()); !slices.Equal(got, test.wantUnicast) {
					t.Errorf("unicast %v, want %v", got, test.wantUnicast)
				}
			})
		})
	}
}

// TestOverfull has reports pile up, since the controller cannot take them in as fast as it orders them. What it acknowledges then
// must make room, where a new order must not.
func TestOverfull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		s := start(t, Options{Links: oneLink, Dial: c.dial, Spool: 1000})
		a := c.accept(0)
		l := s.links[0]
		many := func() {
			s.plane.ask(func() {
				for !l.spool.overfull() {
					l.report(&report{times: make([]int64, maxOrder), count: maxOrder})
				}
			})
		}
		many()
		time.Sleep(10 * time.Millisecond) // reports are told together with what comes soon after
		var last uint64
		for len(a.in) > 0 {
			if r := (<-a.in).GetSent(); r != nil {
				last = r.GetSeq()
			}
		}
		a.order(&measurepb.Acknowledge{Seq: last})
		synctest.Wait()
		if got := s.Stats().Links[0]; got.Connects != 1 || got.Spooled != 0 {
			t.Errorf("acknowledged: %+v", got)
		}
		many()
		a.order(&measurepb.Send{Session: 1})
		for m, ok := <-a.in; ok; m, ok = <-a.in {
			if m.GetSent().GetError() != "" {
				t.Errorf("an order was taken: %v", m.GetSent())
			}
		}
		if last = s.Stats().Links[0].Connects; last != 1 {
			t.Errorf("%d connections", last)
		}
	})
}
