// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package fleettest_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/fleettest"
	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
)

const ms = time.Millisecond

// log is a handler that keeps everything.
type log struct {
	mu      sync.Mutex
	sent    []anycast.Sent
	answers []anycast.Answer
}

func (l *log) HandleSent(s anycast.Sent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent = append(l.sent, s)
}

func (l *log) HandleAnswers(all []anycast.Answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answers = append(l.answers, all...)
}

// take gives what came since the last call.
func (l *log) take() (sent []anycast.Sent, answers []anycast.Answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sent, answers = l.sent, l.answers
	l.sent, l.answers = nil, nil
	return sent, answers
}

func batch(target string, ttl uint8, numbers ...uint16) anycast.Batch {
	return anycast.Batch{ID: 7, Targets: []netip.Addr{netip.MustParseAddr(target)}, TTLs: []uint8{ttl}, Flows: []uint16{0}, Numbers: numbers, Stamps: true}
}

func ExampleFleet() {
	f := fleettest.New(1, "fra", "nyc")
	defer f.Close()
	f.Internet.Distance = func(string, netip.Addr) time.Duration { return 5 * time.Millisecond }
	l := &log{}
	session, err := f.Open(context.Background(), anycast.SessionConfig{Probes: stateless.Config{Kind: stateless.ICMP}, Handler: l})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := session.Send("fra", batch("203.0.113.10", 64, 1)); err != nil {
		fmt.Println(err)
	}
	time.Sleep(100 * time.Millisecond)
	session.Close()
	_, answers := l.take()
	a := answers[0]
	rtt, _, _ := f.RTT("fra", a.Sent, a.Site, a.Time)
	fmt.Println(a.Responder, "is heard at", a.Site, "after", rtt)
	// Output: 203.0.113.10 is heard at nyc after 10ms
}

// TestWire has every kind of probe answered by the target and by routers, through packets: what programs see is the same as without.
func TestWire(t *testing.T) {
	for _, kind := range []stateless.Kind{stateless.ICMP, stateless.UDP, stateless.TCP, stateless.DNS, stateless.CHAOS} {
		for _, to := range []string{"203.0.113.10", "2001:db8:7::10"} {
			for _, ttl := range []uint8{1, 2, 3, 64} {
				synctest.Test(t, func(t *testing.T) {
					var got [2][]anycast.Answer
					for i, wire := range []bool{false, true} {
						f := fleettest.New(1, "fra", "nyc", "syd")
						f.Wire = wire
						f.Internet.Path = func(p fleettest.Probe) []fleettest.Hop {
							hops := fleettest.Chain(3, p.Target.Is6(), ms)
							hops[2].MPLS = []packet.Label{{Label: 16001, TTL: 1, Bottom: true}}
							return hops
						}
						l := &log{}
						session, err := f.Open(t.Context(), anycast.SessionConfig{Probes: stateless.Config{Kind: kind, Ports: 16}, Handler: l})
						if err != nil {
							t.Fatal(err)
						}
						if err := session.Send("fra", batch(to, ttl, 3, 14)); err != nil {
							t.Fatal(err)
						}
						time.Sleep(time.Second)
						session.Close()
						f.Close()
						var sent []anycast.Sent
						sent, got[i] = l.take()
						if len(sent) != 1 || sent[0].Count != 2 || len(sent[0].Times) != 2 || sent[0].Batch != 7 {
							t.Errorf("%+v", sent)
						}
					}
					if len(got[0]) != 2 || len(got[1]) != 2 {
						t.Fatalf("%v %s ttl %d: %d and %d answers", kind, to, ttl, len(got[0]), len(got[1]))
					}
					for i := range got[0] {
						a, b := got[0][i], got[1][i]
						if a.Site != b.Site || a.Number != b.Number || a.Flow != b.Flow || a.Target != b.Target || a.Responder != b.Responder ||
							a.Status != b.Status || a.HasICMP != b.HasICMP || a.ICMPType != b.ICMPType || a.ICMPCode != b.ICMPCode ||
							a.ReplyTTL != b.ReplyTTL || a.QuotedTTL != b.QuotedTTL || a.Local != b.Local || len(a.Labels) != len(b.Labels) {
							t.Errorf("%v %s ttl %d:\n%+v without packets\n%+v with", kind, to, ttl, a, b)
						}
					}
				})
			}
		}
	}
}

func TestFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fleettest.New(1, "fra", "nyc")
		defer f.Close()
		l := &log{}
		session, err := f.Open(t.Context(), anycast.SessionConfig{Probes: stateless.Config{Kind: stateless.ICMP}, Handler: l})
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		send := func(site string) (sent []anycast.Sent, answers []anycast.Answer, err error) {
			err = session.Send(site, batch("203.0.113.10", 64, 1))
			time.Sleep(time.Second)
			sent, answers = l.take()
			return sent, answers, err
		}
		home := fleettest.Nearest(1, netip.MustParseAddr("203.0.113.0"), []string{"fra", "nyc"})
		if sent, answers, err := send("fra"); len(sent) != 1 || len(answers) != 1 || err != nil || answers[0].Site != home {
			t.Errorf("%v, %v, %v", sent, answers, err)
		}
		f.Withdraw(home)
		if _, answers, _ := send("fra"); len(answers) != 1 || answers[0].Site == home {
			t.Errorf("withdrawn, and %+v", answers)
		}
		f.Announce(home)
		f.Disconnect(home)
		if _, answers, err := send(home); len(answers) != 0 || !errors.Is(err, anycast.ErrNoSite) {
			t.Errorf("disconnected: %+v, %v", answers, err)
		}
		f.Connect(home)
		if err := session.Send("fra", anycast.Batch{
			Targets: []netip.Addr{netip.MustParseAddr("203.0.113.10")}, Source: netip.MustParseAddr("203.0.113.99"),
			TTLs: []uint8{1}, Flows: []uint16{0}, Numbers: []uint16{1},
		}); !errors.Is(err, anycast.ErrNoSource) {
			t.Errorf("another's address: %v", err)
		}
		// A batch that is on its way when the connection ends is reported as lost, once.
		if err := session.Send("fra", batch("203.0.113.10", 64, 1)); err != nil {
			t.Fatal(err)
		}
		f.Disconnect("fra")
		time.Sleep(time.Second)
		if sent, _ := l.take(); len(sent) != 1 || !errors.Is(sent[0].Err, anycast.ErrSiteLost) {
			t.Errorf("%+v", sent)
		}
		f.Inject("nyc", stateless.Answer{Number: 99, Status: probe.Replied})
		time.Sleep(10 * ms)
		if _, answers := l.take(); len(answers) != 1 || answers[0].Number != 99 {
			t.Errorf("%+v", answers)
		}
	})
}

// TestRateLimit has a router that gives ten answers a second.
func TestRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fleettest.New(1, "fra")
		defer f.Close()
		f.Internet.Path = func(fleettest.Probe) []fleettest.Hop {
			hops := fleettest.Chain(1, false, ms)
			hops[0].RateLimit = 10
			return hops
		}
		l := &log{}
		session, err := f.Open(t.Context(), anycast.SessionConfig{Probes: stateless.Config{Kind: stateless.UDP}, Handler: l})
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		numbers := make([]uint16, 100)
		for i := range numbers {
			numbers[i] = uint16(i)
		}
		b := batch("203.0.113.10", 1, numbers...)
		b.Rate = 50 // over two seconds
		if err := session.Send("fra", b); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		if _, answers := l.take(); len(answers) < 28 || len(answers) > 31 {
			t.Errorf("%d answers, want the burst of 10 and 10 a second", len(answers))
		}
	})
}
