// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package web_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
	"github.com/seed5728abee/fathom/web"
)

// memory is a source in memory.
type memory struct {
	mu       sync.Mutex // guards all following fields
	sites    []anycast.Site
	kept     []*kept // oldest first
	changed  chan struct{}
	fail     error // instead of an answer
	followed map[string]int
}

type kept struct {
	m       anycast.Measurement
	results []anycast.Result
}

var _ web.Source = (*memory)(nil)

func newMemory() *memory {
	return &memory{changed: make(chan struct{}), followed: make(map[string]int)}
}

func (s *memory) Sites() []anycast.Site {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sites)
}

func (s *memory) Measurements(_ context.Context, q anycast.Query) ([]anycast.Measurement, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return nil, s.fail
	}
	var list []anycast.Measurement
	for _, k := range slices.Backward(s.kept) {
		if (q.Measurement == "" || q.Measurement == k.m.ID) && (q.Program == "" || q.Program == k.m.Definition.Program) &&
			(q.Until.IsZero() || k.m.Start.Before(q.Until)) && (q.Limit == 0 || len(list) < q.Limit) {
			list = append(list, k.m)
		}
	}
	return list, nil
}

func (s *memory) find(id string) *kept {
	if i := slices.IndexFunc(s.kept, func(k *kept) bool { return k.m.ID == id }); i >= 0 {
		return s.kept[i]
	}
	return nil
}

func (s *memory) Results(_ context.Context, q anycast.Query, yield func(string, anycast.Result) bool) error {
	s.mu.Lock()
	k := s.find(q.Measurement)
	fail := s.fail
	s.mu.Unlock()
	if fail != nil {
		return fail
	}
	if k == nil {
		return anycast.ErrNoMeasurement
	}
	for _, r := range k.results {
		if !yield(k.m.ID, r) {
			break
		}
	}
	return nil
}

func (s *memory) Follow(ctx context.Context, id string, yield func(web.Event) error) error {
	s.mu.Lock()
	s.followed[id]++
	s.mu.Unlock()
	at := 0
	for first := true; ; first = false {
		s.mu.Lock()
		k := s.find(id)
		if k == nil {
			s.mu.Unlock()
			return anycast.ErrNoMeasurement
		}
		m, results, changed := k.m, k.results[at:], s.changed
		s.mu.Unlock()
		if first {
			if err := yield(web.Event{Measurement: &anycast.Measurement{ID: m.ID, Definition: m.Definition, State: anycast.Running, Start: m.Start, Targets: m.Targets}}); err != nil {
				return err
			}
		}
		for chunk := range slices.Chunk(results, 1000) {
			if err := yield(web.Event{Results: chunk}); err != nil {
				return err
			}
		}
		at += len(results)
		if m.State > anycast.Running {
			return yield(web.Event{Measurement: &m})
		}
		if err := yield(web.Event{Progress: &m.Progress}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// change runs f, and tells those who follow.
func (s *memory) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// add keeps a measurement.
func (s *memory) add(m anycast.Measurement, results ...anycast.Result) *kept {
	k := &kept{m: m, results: results}
	s.change(func() { s.kept = append(s.kept, k) })
	return k
}

// append adds results to a measurement and says how far it is.
func (s *memory) append(k *kept, p anycast.Progress, results ...anycast.Result) {
	s.change(func() {
		k.results = append(slices.Clip(k.results), results...)
		k.m.Progress = p
	})
}

func (s *memory) end(k *kept, state anycast.State) {
	s.change(func() {
		k.m.State = state
		k.m.End = k.m.Start.Add(time.Minute)
	})
}

var begun = time.Date(2026, 3, 14, 9, 30, 0, 0, time.UTC)

// measured is a measurement that is over.
func measured(id string, kind anycast.ProgramKind, name string, targets int) anycast.Measurement {
	return anycast.Measurement{
		ID: id, Definition: anycast.Definition{Program: kind, Name: name, Protocol: stateless.ICMP}, State: anycast.Done,
		Start: begun, End: begun.Add(72 * time.Second), Targets: targets, Progress: anycast.Progress{Done: targets, Total: targets, Sent: uint64(targets), Answered: uint64(targets * 9 / 10)},
	}
}

func address(s string) netip.Addr { return netip.MustParseAddr(s) }

func catch(target, site string) *anycast.Catch {
	c := &anycast.Catch{Target: address(target), Sender: "fra", Receiver: site, Protocol: stateless.ICMP, Status: probe.NoReply, Time: begun}
	if site != "" {
		c.Status, c.RTT = probe.Replied, 20*time.Millisecond
	}
	return c
}

// names are the sites of the world below.
var names = []string{"ams", "fra", "lax", "nyc", "sin", "syd"}

// regions are where blocks of 8 bits are said to be, by the index of their nearest site.
func region(block int) int { return int(uint32(block/3)*2654435761>>13) % len(names) }

// world fills a source with what a busy controller may have: the same each time.
func world(t testing.TB) *memory {
	t.Helper()
	rng := rand.New(rand.NewPCG(8, 18))
	s := newMemory()
	for i, name := range names {
		s.sites = append(s.sites, anycast.Site{
			Name: name, Anycast: []netip.Addr{address("192.0.2.1"), address("2001:db8::1")}, Native: i != 3, Rate: float64(i%3) * 10_000,
			Clock: anycast.Clock{Offset: time.Duration(i*i-9) * 310 * time.Microsecond, Error: time.Duration(i) * 140 * time.Microsecond},
			Since: time.Now().Add(-time.Duration(i*i+1) * 47 * time.Minute), Version: "1.0.0",
		})
	}
	before, after := catchments(rng)
	s.add(withStart(measured("m1", anycast.KindCatchment, "hit list, Friday", len(before)), -26*time.Hour), before...)
	s.add(withStart(measured("m2", anycast.KindCatchment, "hit list, after prepending at fra", len(after)), -2*time.Hour), after...)
	s.add(withStart(measured("m3", anycast.KindLatency, "latency, weekly", 4000), -90*time.Minute), latencies(rng)...)
	s.add(withStart(measured("m4", anycast.KindWatch, "fra withdrawn", 600), -50*time.Minute), watched(rng)...)
	s.add(withStart(measured("m5", anycast.KindFlipping, "flows and protocols", 3000), -35*time.Minute), flips(rng)...)
	s.add(withStart(measured("m6", anycast.KindTrace, "", 2), -30*time.Minute), traces()...)
	chaos := measured("m7", anycast.KindCatchment, "which instance answers?", 3)
	chaos.Definition.Protocol = stateless.CHAOS
	s.add(withStart(chaos, -20*time.Minute), chaosAnswers()...)
	volta := measured("m8", anycast.KindVolta, "", 1)
	volta.Definition.Command = "volta fra 198.51.100.7 -m 3"
	s.add(withStart(volta, -10*time.Minute), &anycast.TextResult{Code: 200, Text: "Traceroute to 198.51.100.7 (198.51.100.7) from fra, 3 probes, 3 hops max\n1  10.0.0.1 (10.0.0.1) fra  0.412 ms  0.398 ms  0.401 ms\n2  *  *  *\n3  198.51.100.7 (198.51.100.7) nyc  84.1 ms  84.0 ms  84.3 ms"})
	return s
}

func withStart(m anycast.Measurement, before time.Duration) anycast.Measurement {
	took := m.End.Sub(m.Start)
	m.Start = time.Now().Add(before)
	m.End = m.Start.Add(took)
	return m
}

// catchments makes two runs over the same networks, the second with part of fra's moved away.
func catchments(rng *rand.Rand) (before, after []anycast.Result) {
	sums := [2]map[string]int{{}, {}}
	for block := 1; block < 224; block++ {
		if block == 10 || block == 127 || block%11 == 6 {
			continue
		}
		for range 90 + rng.IntN(200) {
			second := rng.IntN(256)
			a := netip.AddrFrom4([4]byte{byte(block), byte(second), byte(rng.IntN(256)), 7})
			home := region(block)
			if second/16%5 == 3 || rng.IntN(14) == 0 {
				home = (home + 1 + second/64) % len(names)
			}
			silent := rng.IntN(9) == 0
			moved := home
			if names[home] == "fra" && rng.IntN(5) < 3 {
				moved = []int{0, 0, 3}[rng.IntN(3)]
			}
			for run, site := range []int{home, moved} {
				c := &anycast.Catch{Target: a, Sender: "fra", Status: probe.NoReply, Protocol: stateless.ICMP, Time: begun}
				if !silent && rng.IntN(60) != 0 {
					c.Status, c.Receiver = probe.Replied, names[site]
					c.RTT = time.Duration((8 + 30*float64(site%4) + 25*rng.ExpFloat64()) * float64(time.Millisecond))
					sums[run][names[site]]++
				}
				if run == 0 {
					before = append(before, c)
				} else {
					after = append(after, c)
				}
			}
			if rng.IntN(40) == 0 { // several flows of one network reach several sites
				before = append(before, &anycast.Catch{Target: a.Next(), Sender: "fra", Status: probe.Replied, Receiver: names[(home+1)%len(names)], Protocol: stateless.ICMP, Time: begun})
			}
		}
	}
	for i := range 300 {
		a := netip.AddrFrom16([16]byte{0x2a, byte(i), 0x01, byte(rng.IntN(256)), 0, byte(i % 7), 15: 1})
		before = append(before, &anycast.Catch{Target: a, Sender: "fra", Status: probe.Replied, Receiver: names[i%4], Protocol: stateless.ICMP, Time: begun})
	}
	sum := func(results []anycast.Result, sites map[string]int) *anycast.Summary {
		return &anycast.Summary{
			Targets: len(results), Sent: uint64(len(results)), Answered: uint64(len(results) * 9 / 10), Sites: sites,
			Skipped: map[string]int{anycast.SkipOptOut: 41, anycast.SkipPrivate: 3}, Notes: []string{"the connection to site syd was lost on the way"}, Took: 72 * time.Second,
		}
	}
	return append(before, sum(before, sums[0])), append(after, sum(after, sums[1]))
}

func latencies(rng *rand.Rand) (results []anycast.Result) {
	for i := range 4000 {
		a := netip.AddrFrom4([4]byte{byte(1 + i%222), byte(rng.IntN(256)), byte(rng.IntN(256)), 1})
		home := region(int(a.As4()[0]))
		r := &anycast.LatencyResult{Target: a, Catcher: names[home], RTT: time.Duration((3 + 12*float64(home) + 18*rng.ExpFloat64()) * float64(time.Millisecond)), Best: names[home], Time: begun}
		if rng.IntN(7) == 0 {
			r.Best = names[(home+2)%len(names)]
			r.Inflation = time.Duration(rng.ExpFloat64() * 40 * float64(time.Millisecond))
			r.RTT += r.Inflation
		}
		results = append(results, r)
	}
	return results
}

func watched(rng *rand.Rand) (results []anycast.Result) {
	const targets, rounds, withdrawn, back = 600, 300, 80, 210
	home := func(i, round int) int {
		site := region(i * 3)
		if site == 1 && round >= withdrawn+i%17 && round < back+i%9 {
			return []int{0, 3, 4}[i%3]
		}
		return site
	}
	for round := range rounds {
		at := begun.Add(time.Duration(round) * 200 * time.Millisecond)
		w := &anycast.WatchResult{Time: at, Sites: make(map[string]int)}
		for i := range targets {
			now, then := home(i, round), home(i, max(0, round-1))
			lost := rng.IntN(80) == 0 || region(i%211+1) == 1 && round >= withdrawn && round < withdrawn+i%17
			if lost {
				w.Lost++
			} else {
				w.Sites[names[now]]++
			}
			if now != then {
				w.Moved++
				results = append(results, &anycast.Move{Target: netip.AddrFrom4([4]byte{203, 0, byte(i / 250), byte(i%250 + 1)}), From: names[then], To: names[now], Time: at, Gap: time.Duration(i%17) * 200 * time.Millisecond})
			}
		}
		results = append(results, w)
	}
	return append(results, &anycast.Summary{Targets: targets, Sent: targets * rounds, Answered: targets * rounds * 98 / 100, Converged: 3400 * time.Millisecond, Took: time.Minute})
}

func flips(rng *rand.Rand) (results []anycast.Result) {
	for i := range 47 {
		one := rng.IntN(len(names))
		f := &anycast.FlipResult{
			Target: netip.AddrFrom4([4]byte{198, 51, byte(i), byte(rng.IntN(255))}), Seen: map[string]int{names[one]: 9 + i%5, names[(one+1+i%3)%len(names)]: 3 + i%4},
			ByFlow: i%3 != 1, ByProtocol: i%5 == 0, ByTime: i%3 == 1, Spread: time.Duration(rng.IntN(120)) * time.Millisecond,
		}
		if i%2 == 0 {
			f.Parting = &anycast.Parting{TTL: 3 + i%6, Common: address("10.9.8.7"), Flows: [2]uint16{0, 3}}
		}
		results = append(results, f)
	}
	return append(results, &anycast.Summary{Targets: 3000, Sent: 48_000, Answered: 44_000})
}

// traces are a path through a diamond whose answers come home at three sites, and a plain one.
func traces() []anycast.Result {
	r := func(ttl uint8, flow uint16, from, at string, ms float64) anycast.Reply {
		reply := anycast.Reply{TTL: ttl, Flow: flow, Receiver: at, RTT: time.Duration(ms * float64(time.Millisecond)), Status: probe.TimeExceeded, HasICMP: true, ICMPType: 11}
		if at != "fra" {
			reply.ClockError = 310 * time.Microsecond
		}
		if from == "" {
			return anycast.Reply{TTL: ttl, Flow: flow, Status: probe.NoReply}
		}
		reply.Responder = address(from)
		if from == "198.51.100.7" {
			reply.Status, reply.HasICMP = probe.Replied, false
		}
		return reply
	}
	link := func(ttl int, from, to string, flows ...uint16) anycast.Link {
		l := anycast.Link{TTL: ttl, Flows: flows}
		if from != "" {
			l.From = address(from)
		}
		if to != "" {
			l.To = address(to)
		}
		return l
	}
	multi := &anycast.TraceResult{
		Site: "fra", Source: address("192.0.2.1"), Target: address("198.51.100.7"), Name: "www.example.net", Protocol: stateless.UDP, Method: anycast.MethodMultipath,
		SrcPort: 10000, DstPort: 33434, Size: 60, FirstHop: 1, MaxHops: 30, Attempts: 1, Stop: "reached", Confidence: 0.95, Probes: 118, Start: begun, End: begun.Add(time.Second),
		Replies: []anycast.Reply{
			r(1, 0, "10.0.0.1", "fra", 0.4), r(1, 1, "10.0.0.1", "fra", 0.5), r(2, 0, "10.1.0.1", "fra", 1.8), r(2, 1, "10.1.0.2", "fra", 1.9),
			r(3, 0, "10.2.0.1", "ams", 7.2), r(3, 1, "10.2.0.2", "fra", 2.4), r(3, 2, "10.2.0.3", "nyc", 46), r(4, 0, "10.3.0.1", "ams", 9.1), r(4, 1, "10.3.0.1", "nyc", 48),
			r(5, 0, "", "", 0), r(6, 0, "198.51.100.7", "nyc", 84), r(6, 1, "198.51.100.7", "nyc", 84.4),
		},
		Links: []anycast.Link{
			link(0, "", "10.0.0.1", 0, 1, 2, 3), link(1, "10.0.0.1", "10.1.0.1", 0, 3), link(1, "10.0.0.1", "10.1.0.2", 1, 2), link(2, "10.1.0.1", "10.2.0.1", 0, 3),
			link(2, "10.1.0.2", "10.2.0.2", 1), link(2, "10.1.0.2", "10.2.0.3", 2), link(3, "10.2.0.1", "10.3.0.1", 0, 3), link(3, "10.2.0.2", "10.3.0.1", 1),
			link(3, "10.2.0.3", "10.3.0.1", 2), link(4, "10.3.0.1", "", 0, 1), link(5, "", "198.51.100.7", 0, 1),
		},
	}
	plain := &anycast.TraceResult{
		Site: "fra", Source: address("192.0.2.1"), Target: address("203.0.113.9"), Protocol: stateless.ICMP, Method: anycast.MethodParis, Stop: "reached", FirstHop: 1, MaxHops: 30, Attempts: 3, Probes: 6,
		Replies: []anycast.Reply{r(1, 0, "10.0.0.1", "fra", 0.4), r(2, 0, "10.7.0.1", "lax", 140), {TTL: 3, Status: probe.Replied, Responder: address("203.0.113.9"), Receiver: "syd", RTT: 290 * time.Millisecond}},
	}
	return []anycast.Result{multi, plain}
}

// hostile is text that would be a program if it were put into a page as HTML.
const hostile = `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>`

func chaosAnswers() (results []anycast.Result) {
	for i := range 40 {
		c := catch(fmt.Sprintf("198.51.%d.53", i), names[i%3])
		c.Protocol, c.Text = stateless.CHAOS, "ns1."+names[i%3]+".example.net"
		if i == 7 {
			c.Text = hostile
		}
		results = append(results, c)
	}
	return results
}
