// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast_test

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/fleettest"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// instant is a fleet of one site whose probes are answered while they are sent: what is left is the cost of the
// programs.
type instant struct{ hops uint8 }

func (f *instant) Sites() []anycast.Site {
	return []anycast.Site{{Name: "fra", Native: true, Anycast: []netip.Addr{fleettest.Anycast4}}}
}

func (f *instant) RTT(_ string, sent int64, _ string, received int64) (rtt, uncertainty time.Duration, ok bool) {
	return time.Duration(received - sent), 0, true
}

func (f *instant) Open(_ context.Context, conf anycast.SessionConfig) (anycast.Session, error) {
	return &instantSession{f: f, h: conf.Handler}, nil
}

type instantSession struct {
	f *instant
	h anycast.Handler

	mu      sync.Mutex
	answers []anycast.Answer
	times   []int64
}

func (s *instantSession) Send(site string, b anycast.Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := b.Len()
	s.answers, s.times = s.answers[:0], s.times[:0]
	for i := range n {
		a := anycast.Answer{Site: site, Time: 2_000_000, Answer: stateless.Answer{
			Number: at(b.Numbers, i), Target: at(b.Targets, i), Responder: at(b.Targets, i), Status: probe.Replied, Sent: 1_000_000,
		}}
		if ttl := at(b.TTLs, i); ttl < s.f.hops {
			a.Status, a.Responder = probe.TimeExceeded, netip.AddrFrom4([4]byte{10, 0, 0, ttl})
		}
		s.answers = append(s.answers, a)
		s.times = append(s.times, 1_000_000)
	}
	if !b.Stamps {
		s.times = nil
	}
	s.h.HandleAnswers(s.answers)
	s.h.HandleSent(anycast.Sent{Site: site, Batch: b.ID, Count: n, Times: s.times})
	return nil
}

func at[T any](all []T, i int) T {
	if len(all) == 1 {
		return all[0]
	}
	return all[i]
}

func (*instantSession) FirstPort() uint16 { return 10000 }
func (*instantSession) Close()            {}

// BenchmarkCatchment is the cost of a target from the list to its result.
func BenchmarkCatchment(b *testing.B) {
	all := targets(200_000)
	d := anycast.Definition{Program: anycast.KindCatchment, Pace: anycast.Pace{Rate: anycast.MaxRate}}
	b.ReportAllocs()
	for b.Loop() {
		sink := &counting{}
		if err := anycast.Run(b.Context(), &instant{}, d, all, sink); err != nil || sink.heard != len(all) {
			b.Fatal(err, sink.heard)
		}
	}
	b.ReportMetric(float64(len(all)*b.N)/b.Elapsed().Seconds(), "answers/s")
}

// BenchmarkTraceroute is the cost of a traceroute of 20 hops with 3 probes each.
func BenchmarkTraceroute(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		t, err := anycast.NewTraceroute(anycast.TracerouteConf{Fleet: &instant{hops: 20}, Site: "fra", Target: target})
		if err != nil {
			b.Fatal(err)
		}
		if r, err := t.Run(b.Context()); err != nil || !r.Reached || len(r.Hops) != 20 {
			b.Fatal(err, r)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "traces/s")
}

// BenchmarkTable is the cost of a catch in a table of 100,000 networks.
func BenchmarkTable(b *testing.B) {
	all := targets(100_000)
	table := &anycast.Table{}
	c := &anycast.Catch{Receiver: "fra", Status: probe.Replied}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		c.Target = all[i%len(all)].Addr
		table.Add(c)
		i++
	}
}
