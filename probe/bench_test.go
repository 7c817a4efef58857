// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
)

// flyingEngine gives an engine with n echo requests in flight to as many targets, and one probe of each protocol and version
// behind them, with answers to those.
func flyingEngine(t testing.TB, n int) (*engine, []benchAnswer) {
	net := &internet{silent: true}
	p, e := openEngine(t, net.carry, Options{MaxInFlight: n + 100, FirstSequence: 1024})
	start := func(req Request) {
		req.Timeout = MaxTimeout
		if _, err := p.Start(req, func(Result) {}); err != nil {
			t.Fatal(err)
		}
	}
	a := netip.MustParseAddr("11.0.0.0")
	for range n {
		a = a.Next()
		start(Request{Target: a})
	}
	send := func() {
		for e.take(); e.queue != 0; {
			e.clock()
			e.transmit()
			net.sent = net.sent[:0]
		}
	}
	send()
	var answers []benchAnswer
	for v, name := range []string{"IPv4", "IPv6"} {
		for _, proto := range protocols {
			for _, kind := range []string{"error", "answer"} {
				start(Request{Target: target[v], Protocol: proto, Port: openPort})
				e.take()
				e.clock()
				i := e.queue
				e.transmit()
				sent := net.sent[0]
				net.sent = net.sent[:0]
				b := respond(sent)[0]
				if kind == "error" {
					b = timeExceeded(router[v], dying(sent))
				}
				d := dissect(b)
				m := rawio.Message{Data: b, Time: e.wall + 1000}
				p := proto
				if kind == "error" {
					p = ICMP
				}
				if v == 1 {
					m.Data, m.Addr, m.TTL = d.upper, netip.AddrPortFrom(d.src, 0), d.ttl
				}
				m.N = len(m.Data)
				answers = append(answers, benchAnswer{fmt.Sprintf("%v %v %s", name, proto, kind), v, p, i, m})
			}
		}
	}
	return e, answers
}

type benchAnswer struct {
	name  string
	v     int
	proto Protocol
	slot  uint32
	m     rawio.Message
}

// take handles the answer, and puts the probe that it ended back in flight as if nothing had happened.
func (a *benchAnswer) take(e *engine) {
	keep := *e.slots.at(a.slot)
	if a.v == 0 {
		e.packet4(&a.m)
	} else {
		e.packet6(a.proto, &a.m)
	}
	s := e.slots.at(a.slot)
	if s.state == slotFlying {
		panic("not matched")
	}
	e.slots.remove(&e.freed, a.slot, byTime)
	s.req, s.done, s.state, s.src, s.dst = keep.req, keep.done, slotFlying, keep.src, keep.dst
	s.sentMono, s.sentWall, s.deadline = keep.sentMono, keep.sentWall, keep.deadline
	e.identify(a.slot, identity{
		proto: keep.req.Protocol, v6: keep.dst.Is6(), a: keep.a, b: keep.b, token: keep.token, dst: keep.dst,
	}, keep.linked[byFlow])
	e.wheel.add(a.slot)
	e.p.inFlight.Add(1)
}

// TestMatchAllocates checks that taking in an answer allocates nothing.
func TestMatchAllocates(t *testing.T) {
	e, answers := flyingEngine(t, 1000)
	for k := range answers {
		a := &answers[k]
		if n := testing.AllocsPerRun(100, func() { a.take(e) }); n != 0 {
			t.Errorf("%s: %v allocations", a.name, n)
		}
	}
}

// BenchmarkMatch is decoding an answer, finding its probe and ending it, with a thousand in flight; and
// putting that probe back, which is part of every round.
func BenchmarkMatch(b *testing.B) {
	e, answers := flyingEngine(b, 1000)
	for k := range answers {
		a := &answers[k]
		b.Run(a.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				a.take(e)
			}
		})
	}
}

// BenchmarkFind looks probes up with more and more in flight: the cost is memory's, and does not grow with their number.
func BenchmarkFind(b *testing.B) {
	for _, n := range []int{1000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			e, _ := flyingEngine(b, n)
			b.ReportAllocs()
			i := uint32(0)
			for b.Loop() {
				if i++; i > uint32(n) {
					i = 1
				}
				s := e.slots.at(i)
				if e.find(identity{proto: ICMP, a: s.a, b: s.b}) != i {
					b.Fatal("not found")
				}
			}
		})
	}
}

// TestChains checks that a look-up compares a probe or two, however many are in flight.
func TestChains(t *testing.T) {
	for _, n := range []int{1000, 10_000, 100_000} {
		e, _ := flyingEngine(t, n)
		steps := 0
		for _, head := range e.exact.heads {
			l := e.slots.length(head, byIdentity)
			steps += l * (l + 1) / 2
		}
		if mean := float64(steps) / float64(e.exact.n); mean > 2 {
			t.Errorf("%d in flight: %.2f comparisons on average", n, mean)
		}
	}
}

// BenchmarkWheel moves deadlines of 10 000 probes.
func BenchmarkWheel(b *testing.B) {
	const n = 10_000
	b.ReportAllocs()
	e, _ := flyingEngine(b, n)
	for b.Loop() {
		for i := uint32(1); i <= n; i++ {
			e.wheel.remove(i)
			s := e.slots.at(i)
			s.deadline += int64(time.Millisecond)
			e.wheel.add(i)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/probe")
}
