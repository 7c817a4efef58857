// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/lab"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// startAt runs an agent on a host of a lab. Its controller is in memory.
func startAt(t testing.TB, h *lab.Host, o Options) *Agent {
	t.Helper()
	if o.ID == "" {
		o.ID = h.Name()
	}
	var a *Agent
	if err := h.Do(func() (err error) {
		a, err = New(o)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return a
}

// pair is the lab of the measurements of speed: a --- b, a bare pair of interfaces.
func pair(t testing.TB) *lab.Lab {
	return lab.New(t, lab.MustParse(`
		[host.a]
		addresses = ["192.0.2.1", "2001:db8::1"]
		[host.b]
		addresses = ["203.0.113.10", "2001:db8:1::10"]
		[[wire]]
		ends = ["a", "b"]
	`))
}

// count takes in answers, and acknowledges them, until there are so many or none comes for a while.
func (a *attachment) count(want int) (answers int) {
	idle := time.NewTimer(3 * time.Second)
	for answers < want {
		select {
		case m, ok := <-a.in:
			if !ok {
				return answers
			}
			idle.Reset(3 * time.Second)
			if got := m.GetAnswers(); got != nil {
				answers += len(got.GetTimes())
				a.order(&measurepb.Acknowledge{Seq: got.GetSeq()})
			}
		case <-idle.C:
			return answers
		}
	}
	return answers
}

// TestThroughput has one agent send and forward as fast as it can. It prints the rates; what it checks is that nothing is lost.
func TestThroughput(t *testing.T) {
	l := pair(t)
	c := newController(t)
	a := startAt(t, l.Host("a"), Options{Links: oneLink, Dial: c.dial, Anycast: shared[:]})
	at := c.accept(0)
	at.order(open(1, measurepb.Protocol_PROTOCOL_ICMP))
	const orders, each = 10, 20000
	began := time.Now()
	for i := range orders {
		s := send(1, uint64(i), 0, each, 0)
		s.Stamps = false
		at.order(s)
	}
	answers := at.count(orders * each)
	took := time.Since(began)
	s := a.Stats()
	t.Logf("%d probes sent and %d answers forwarded in %v: %.0f /s; overrun %d", s.Sent, answers, took, float64(answers)/took.Seconds(), s.Overrun)
	if answers != orders*each {
		t.Errorf("%d answers to %d probes; statistics %+v", answers, orders*each, s)
	}
}

// TestBurst has 100,000 answers arrive as fast as another host can send them.
func TestBurst(t *testing.T) {
	l := pair(t)
	c := newController(t)
	a := startAt(t, l.Host("a"), Options{Links: oneLink, Dial: c.dial, Anycast: shared[:]})
	at := c.accept(0)
	o := open(1, measurepb.Protocol_PROTOCOL_ICMP)
	at.order(o)
	// The order is done when its report is here, and then so is the session open.
	at.order(send(1, 1, 0, 1, 0))
	if at.count(1) != 1 {
		t.Fatal("no answer before the burst")
	}
	conf, err := sessionConfig(o)
	if err != nil {
		t.Fatal(err)
	}
	codec, err := stateless.New(conf)
	if err != nil {
		t.Fatal(err)
	}
	const burst = 100000
	msgs := make([]rawio.Message, burst)
	for i := range msgs {
		p := stateless.Probe{Src: shared[0], Dst: target[0], TTL: 64, Number: uint16(i % 60000), Flow: uint16(i / 60000), Time: 1}
		b, err := codec.Append(nil, &p)
		if err != nil {
			t.Fatal(err)
		}
		msgs[i] = rawio.Message{Data: answer(b), Addr: netip.AddrPortFrom(shared[0], 0)}
	}
	var sender rawio.Conn
	if err := l.Host("b").Do(func() error {
		h, err := rawio.NewHost()
		if err != nil {
			return err
		}
		t.Cleanup(func() { h.Close() })
		sender, err = h.Open(rawio.Spec{Version: 4, Kind: rawio.RawHeader})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for rest := msgs; len(rest) > 0; {
		n, err := sender.Send(rest)
		if err != nil && !transient(err) {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	sent := time.Since(began)
	answers := at.count(burst)
	t.Logf("%d answers that arrived within %v forwarded in %v", answers, sent, time.Since(began))
	if answers != burst {
		t.Errorf("%d of %d answers; statistics %+v", answers, burst, a.Stats())
	}
}

// TestSites sends from one place of an anycast address, and hears the answers at another: see the drawing in
// examples/anycast.toml. What nyc sends to la1 is answered to ams; what it sends to us1, to itself.
func TestSites(t *testing.T) {
	topology, err := lab.ReadFile("../../examples/anycast.toml")
	if err != nil {
		t.Fatal(err)
	}
	l := lab.New(t, topology)
	c := newController(t)
	names := []string{"ams", "nyc", "sin"}
	for _, name := range names {
		startAt(t, l.Host(name), Options{Links: oneLink, Dial: c.dial, Anycast: shared[:]})
	}
	sites := map[string]*attachment{}
	for range names {
		a := c.accept(0)
		sites[a.hello.GetAgentId()] = a
	}
	var opens []*measurepb.Open
	for i, proto := range []measurepb.Protocol{measurepb.Protocol_PROTOCOL_ICMP, measurepb.Protocol_PROTOCOL_UDP, measurepb.Protocol_PROTOCOL_TCP} {
		opens = append(opens, open(uint32(i+1), proto))
	}
	tab := table(t, opens...)
	for _, a := range sites {
		for _, o := range opens {
			a.order(o)
			a.confirmed(o.GetSession())
		}
	}
	const hops = 5 // core-us, core-eu or the provider, the provider, the customer: fewer than that
	for i, name := range []string{"la1", "us1"} {
		catcher := []string{"ams", "nyc"}[i]
		dst := [2]netip.Addr{l.Host(name).Addr(), l.Host(name).Addr6()}
		for v := range 2 {
			for _, o := range opens {
				s := &measurepb.Send{Session: o.GetSession(), Batch: 1, Ipv6: v == 1, Targets: dst[v].AsSlice(), Stamps: true}
				for ttl := range uint32(hops) {
					s.Ttls = append(s.Ttls, ttl+1)
					s.Numbers = append(s.Numbers, ttl+1)
				}
				began := time.Now().UnixNano()
				sites["nyc"].order(s)
				sent := false
				var arrived [3]bool
				for end := time.After(patience); !sent || !arrived[0] || !arrived[2]; {
					var got *measurepb.FromAgent
					var at string
					select {
					case got = <-sites["ams"].in:
						at = "ams"
					case got = <-sites["nyc"].in:
						at = "nyc"
					case got = <-sites["sin"].in:
						at = "sin"
					case <-end:
						t.Fatalf("%s over IPv%d to %s: sent %v, answers %v", o.GetProtocol(), 4+2*v, name, sent, arrived)
					}
					if r := got.GetSent(); r != nil {
						sent = true
						if r.GetError() != "" || r.GetCount() != hops || !r.GetKernel() {
							t.Fatalf("report %v", r)
						}
						for _, when := range absolute(r.GetTimes()) {
							if when < began || when > time.Now().UnixNano() {
								t.Errorf("left at %d, asked for at %d", when, began)
							}
						}
					}
					for _, r := range unpack(t, got.GetAnswers()) {
						a := parse(t, tab, r)
						if a.Target != dst[v] || a.Local != shared[v] || r.time < began {
							t.Errorf("at %s: %+v, arrived at %d", at, a, r.time)
						}
						if a.Responder == dst[v] {
							arrived[2] = true
							if at != catcher {
								t.Errorf("%s's answer came home at %s, want %s", name, at, catcher)
							}
						} else if a.Number == 1 {
							arrived[0] = true // the router before nyc
							if at != "nyc" {
								t.Errorf("answer of %v came home at %s", a.Responder, at)
							}
						}
					}
				}
				// The other answers to this order may still come.
				time.Sleep(50 * time.Millisecond)
				for _, a := range sites {
					for len(a.in) > 0 {
						<-a.in
					}
				}
			}
		}
	}
}

// TestFilterSwaps replaces the filter while answers come: none is lost.
func TestFilterSwaps(t *testing.T) {
	l := pair(t)
	c := newController(t)
	a := startAt(t, l.Host("a"), Options{Links: oneLink, Dial: c.dial, Anycast: shared[:]})
	at := c.accept(0)
	at.order(open(1, measurepb.Protocol_PROTOCOL_ICMP))
	at.confirmed(1)
	const probes, swaps = 20000, 400
	s := send(1, 1, 0, probes, 0)
	s.Rate, s.Stamps = 50000, false
	at.order(s)
	for id := uint32(2); id < 2+swaps; id++ {
		at.order(open(id, measurepb.Protocol_PROTOCOL_ICMP))
		if id%2 == 1 {
			at.order(&measurepb.Close{Session: id - 1})
		}
		time.Sleep(time.Millisecond)
	}
	if got := at.count(probes); got != probes {
		t.Errorf("%d of %d answers; statistics %+v", got, probes, a.Stats())
	}
}
