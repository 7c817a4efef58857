// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/access"
	"github.com/seed5728abee/fathom/anycast/client"
	"github.com/seed5728abee/fathom/anycast/enroll"
	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// catchment is a definition whose targets may be the documentation's, at a rate of probes per second.
func catchment(rate float64, sites ...string) anycast.Definition {
	return anycast.Definition{
		Program: anycast.KindCatchment, Protocol: stateless.ICMP, Sites: sites, AllowPrivate: true,
		Timeout: 300 * time.Millisecond, Pace: anycast.Pace{Rate: rate, PerNetwork: -1, SiteGap: -1},
	}
}

// hitList is the first host of n networks.
func hitList(n int) []netip.Addr {
	list := make([]netip.Addr, n)
	for i := range list {
		list[i] = netip.AddrFrom4([4]byte{198, 18, byte(i), 1})
		if i > 255 {
			list[i] = netip.AddrFrom4([4]byte{100, byte(64 + i>>8), byte(i), 1})
		}
	}
	return list
}

// byTarget has each target caught by a or b.
func byTarget(_ int, target netip.Addr) string {
	if target.As4()[2]%4 == 0 {
		return "b"
	}
	return "a"
}

// measuring is a controller with two sites.
func measuring(t testing.TB, o Options, w *world) *started {
	t.Helper()
	s := start(t, o)
	for _, name := range []string{"a", "b"} {
		w.mu.Lock()
		old := w.agents[name]
		w.mu.Unlock()
		if old == nil {
			w.agent(name)
		}
	}
	w.agents["a"].attach(s)
	w.agents["b"].attach(s)
	s.connected("a", "b")
	return s
}

// told is everything a stream says.
type told struct {
	states  []anycast.State
	results []anycast.Result
	last    anycast.Measurement
}

func (w *told) catches() map[netip.Addr]int {
	seen := map[netip.Addr]int{}
	for _, r := range w.results {
		if c, ok := r.(*anycast.Catch); ok {
			seen[c.Target]++
		}
	}
	return seen
}

func (w *told) summaries() (all []*anycast.Summary) {
	for _, r := range w.results {
		if s, ok := r.(*anycast.Summary); ok {
			all = append(all, s)
		}
	}
	return all
}

func listen(t testing.TB, stream *client.Stream, err error) *told {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	w := &told{}
	for e, err := range stream.All() {
		if err != nil {
			t.Fatal(err)
		}
		if e.Measurement != nil {
			w.states = append(w.states, e.Measurement.State)
			w.last = *e.Measurement
		}
		w.results = append(w.results, e.Results...)
	}
	return w
}

func TestCatchment(t *testing.T) {
	w := &world{hops: 3, receiver: byTarget, silent: func(_ int, target netip.Addr) bool { return target.As4()[2] == 5 }}
	s := measuring(t, Options{}, w)
	c := s.client()
	stream, err := c.Start(t.Context(), catchment(2000, "a"), client.Targets{Text: []string{"198.18.0.0/18"}, Addrs: hitList(3)}, false)
	got := listen(t, stream, err)
	if len(got.states) != 2 || got.states[0] != anycast.Running || got.last.State != anycast.Done || got.last.Error != "" || got.last.End.IsZero() {
		t.Fatalf("states %v, last %+v", got.states, got.last)
	}
	seen := got.catches()
	if len(seen) != 64 {
		t.Errorf("%d targets, want the 64 networks of the prefix", len(seen))
	}
	for _, r := range got.results {
		if catch, ok := r.(*anycast.Catch); ok {
			want := byTarget(0, catch.Target)
			if catch.Target.As4()[2] == 5 {
				want = ""
			}
			if catch.Receiver != want || catch.Sender != "a" {
				t.Errorf("%+v, want it caught at %q", catch, want)
			}
		}
	}
	sums := got.summaries()
	if len(sums) != 1 || sums[0].Sites["a"] != 47 || sums[0].Sites["b"] != 16 || sums[0].Answered != 63 {
		t.Errorf("summary %+v", sums)
	}

	// All of it is kept.
	again := listen(t, must(c.Follow(t.Context(), got.last.ID)), nil)
	if len(again.results) != len(got.results) || again.last.ID != got.last.ID || again.last.State != anycast.Done {
		t.Errorf("followed later: %d results, %+v", len(again.results), again.last)
	}
	list, err := c.List(t.Context(), anycast.Query{Program: anycast.KindCatchment})
	if err != nil || len(list) != 1 || list[0].Targets != 67 || list[0].Owner == "" {
		t.Errorf("list %+v, %v", list, err)
	}
	n := 0
	for r, err := range c.Results(t.Context(), anycast.Query{Target: netip.MustParsePrefix("198.18.7.0/24")}) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; r.Measurement != got.last.ID {
			t.Errorf("result %+v", r)
		}
	}
	if n != 1 {
		t.Errorf("%d results about one network", n)
	}
	if err := c.Cancel(t.Context(), got.last.ID); err != nil {
		t.Errorf("cancel what is over: %v", err)
	}
	if err := c.Delete(t.Context(), got.last.ID); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"cancel": c.Cancel(t.Context(), got.last.ID), "delete": c.Delete(t.Context(), "nothing"),
		"follow": second(c.Follow(t.Context(), got.last.ID)),
	} {
		if !errors.Is(err, anycast.ErrNoMeasurement) {
			t.Errorf("%s what is not there: %v", what, err)
		}
	}
	sites, err := c.Sites(t.Context())
	if err != nil || len(sites) != 2 || sites[0].Name != "a" || !sites[0].Native || !slices.Equal(sites[0].Anycast, []netip.Addr{shared}) {
		t.Errorf("sites %+v, %v", sites, err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func second[T any](_ T, err error) error { return err }

func TestStartRefusals(t *testing.T) {
	s := measuring(t, Options{Resolver: noResolver()}, &world{hops: 3, receiver: byTarget})
	c := s.client()
	one := client.Targets{Text: []string{"198.18.1.1"}}
	fast := catchment(1000)
	fast.Timeout = time.Hour
	for name, v := range map[string]struct {
		d       anycast.Definition
		targets client.Targets
	}{
		"no program":       {anycast.Definition{Program: "x"}, one},
		"no targets":       {catchment(1000), client.Targets{}},
		"wrong option":     {fast, one},
		"malformed prefix": {catchment(1000), client.Targets{Text: []string{"198.18.0.0/99"}}},
		"whole internet":   {catchment(1000), client.Targets{Text: []string{"::/0"}}},
		"long name":        {catchment(1000), client.Targets{Text: []string{strings.Repeat("x", 300)}}},
		"unknown name":     {catchment(1000), client.Targets{Text: []string{"nowhere.invalid"}}},
	} {
		if _, err := c.Start(t.Context(), v.d, v.targets, false); !errors.Is(err, client.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if list, err := c.List(t.Context(), anycast.Query{}); err != nil || len(list) != 0 {
		t.Errorf("list %v, %v", list, err)
	}
}

func TestPrefixes(t *testing.T) {
	for text, want := range map[string][]string{
		"198.18.2.0/23":        {"198.18.2.1", "198.18.3.1"},
		"198.18.255.0/24":      {"198.18.255.1"},
		"198.18.255.128/25":    {"198.18.255.129"},
		"198.18.255.6/31":      {"198.18.255.6"},
		"198.18.255.7/32":      {"198.18.255.7"},
		"198.18.255.255/22":    {"198.18.252.1", "198.18.253.1", "198.18.254.1", "198.18.255.1"},
		"2001:db8:0:1::/47":    {"2001:db8::1", "2001:db8:1::1"},
		"2001:db8:0:ff00::/56": {"2001:db8:0:ff00::1"},
	} {
		l := &targetList{}
		if err := l.addText(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		var got []string
		for _, target := range l.targets {
			got = append(got, target.Addr.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", text, got, want)
		}
	}
	l := &targetList{}
	if err := l.addText("0.0.0.0/0"); err != nil || len(l.targets) != 1<<24 || l.targets[1<<24-1].Addr != netip.MustParseAddr("255.255.255.1") {
		t.Errorf("all of IPv4: %d targets, %v", len(l.targets), err)
	}
	if err := l.addText("198.18.0.1"); !errors.Is(err, errInvalid) {
		t.Errorf("one more: %v", err)
	}
}

// TestFollowers: some join early, some late, one reads slowly; each hears everything once and in order.
func TestFollowers(t *testing.T) {
	w := &world{hops: 3, receiver: byTarget}
	s := measuring(t, Options{}, w)
	c := s.client()
	const targets = 12000 // more than what stays in memory for followers
	var addrs []netip.Addr
	for i := range targets {
		addrs = append(addrs, netip.AddrFrom4([4]byte{100, byte(64 + i>>8), byte(i), 1}))
	}
	stream, err := c.Start(t.Context(), catchment(20000, "a"), client.Targets{Addrs: addrs}, false)
	if err != nil {
		t.Fatal(err)
	}
	id := stream.Measurement().ID
	var group sync.WaitGroup
	check := func(who string, stream *client.Stream, pause time.Duration) {
		group.Go(func() {
			w := &told{}
			for e, err := range stream.All() {
				if err != nil {
					t.Errorf("%s: %v", who, err)
				}
				w.results = append(w.results, e.Results...)
				time.Sleep(pause)
			}
			seen := w.catches()
			for a, n := range seen {
				if n != 1 {
					t.Errorf("%s: %s told %d times", who, a, n)
					break
				}
			}
			if len(seen) != targets || len(w.results) != targets+1 || len(w.summaries()) != 1 {
				t.Errorf("%s: %d targets, %d results", who, len(seen), len(w.results))
			}
			if _, ok := w.results[len(w.results)-1].(*anycast.Summary); !ok {
				t.Errorf("%s: the summary is not last", who)
			}
		})
	}
	check("first", stream, 0)
	for i := range 3 {
		time.Sleep(100 * time.Millisecond)
		check(fmt.Sprint("follower ", i), must(c.Follow(t.Context(), id)), time.Duration(i)*20*time.Millisecond)
	}
	group.Wait()
}

func TestCancelAndLeave(t *testing.T) {
	w := &world{hops: 3, receiver: byTarget}
	s := measuring(t, Options{}, w)
	c := s.client()
	slow := catchment(5, "a")
	targets := client.Targets{Addrs: hitList(200)}
	state := func(id string) anycast.State {
		list := must(c.List(t.Context(), anycast.Query{Measurement: id}))
		if len(list) != 1 {
			t.Fatalf("%d of %s", len(list), id)
		}
		return list[0].State
	}

	stream := must(c.Start(t.Context(), slow, targets, false))
	id := stream.Measurement().ID
	stream.Close()
	time.Sleep(20 * time.Millisecond)
	if got := state(id); got != anycast.Running {
		t.Errorf("it ended when its client left: %v", got)
	}
	if err := c.Delete(t.Context(), id); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("delete what runs: %v", err)
	}
	follower := must(c.Follow(t.Context(), id))
	if err := c.Cancel(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	got := listen(t, follower, nil)
	if got.last.State != anycast.Cancelled || got.last.Error == "" || len(got.summaries()) != 1 {
		t.Errorf("cancelled: %+v, %d summaries", got.last, len(got.summaries()))
	}

	attached := must(c.Start(t.Context(), slow, targets, true))
	attached.Close()
	eventually(t, "cancelled", func() bool { return state(attached.Measurement().ID) == anycast.Cancelled })
}

// fullStore fails after some results, as a full disk does, until it is told not to.
type fullStore struct {
	anycast.Store
	room atomic.Int64 // results
	full atomic.Bool
}

var errFull = errors.New("no space left on device")

func (s *fullStore) Append(ctx context.Context, id string, results []anycast.Result) error {
	if s.room.Add(-int64(len(results))) < 0 {
		s.full.Store(true)
	}
	if s.full.Load() {
		return errFull
	}
	return s.Store.Append(ctx, id, results)
}

func (s *fullStore) Update(ctx context.Context, m anycast.Measurement) error {
	if s.full.Load() {
		return errFull
	}
	return s.Store.Update(ctx, m)
}

func (s *fullStore) Begin(ctx context.Context, m anycast.Measurement, targets []anycast.Target) error {
	if s.full.Load() {
		return errFull
	}
	return s.Store.Begin(ctx, m, targets)
}

// TestDiskFull: a measurement whose results cannot be kept fails and says why; the controller lives, and goes on when there is
// room again.
func TestDiskFull(t *testing.T) {
	store := &fullStore{Store: newMemory(100)}
	store.room.Store(100)
	w := &world{hops: 3, receiver: byTarget}
	s := measuring(t, Options{Store: store}, w)
	c := s.client()
	stream, err := c.Start(t.Context(), catchment(1000, "a"), client.Targets{Addrs: hitList(250)}, false)
	got := listen(t, stream, err)
	if got.last.State != anycast.Failed || !strings.Contains(got.last.Error, errFull.Error()) {
		t.Errorf("%v: %s", got.last.State, got.last.Error)
	}
	list, err := c.List(t.Context(), anycast.Query{})
	if err != nil || len(list) != 1 || list[0].State != anycast.Failed {
		t.Errorf("list %+v, %v", list, err)
	}
	if _, err := c.Start(t.Context(), catchment(1000), client.Targets{Addrs: hitList(1)}, false); !errors.Is(err, client.ErrUnavailable) || !strings.Contains(err.Error(), errFull.Error()) {
		t.Errorf("another measurement: %v", err)
	}
	if code, output := s.request("volta a 203.0.113.10 -w 3"); code != 200 {
		t.Errorf("requests: %d %s", code, output)
	}
	store.room.Store(1 << 40)
	store.full.Store(false)
	eventually(t, "the failure is kept", func() bool {
		list, err := store.Measurements(t.Context(), anycast.Query{Measurement: got.last.ID})
		return err == nil && len(list) == 1 && list[0].State == anycast.Failed
	})
	again := listen(t, must(c.Start(t.Context(), catchment(1000, "a"), client.Targets{Addrs: hitList(10)}, false)), nil)
	if again.last.State != anycast.Done || len(again.catches()) != 10 {
		t.Errorf("with room again: %+v", again.last)
	}
}

// TestRestart: a controller ends while it measures. The next one goes on with the catchment and the schedule, and
// reports the watch as cut.
func TestRestart(t *testing.T) {
	store := newMemory(100)
	w := &world{hops: 3, receiver: byTarget}
	s := measuring(t, Options{Store: store}, w)
	c := s.client()
	const targets = 200
	stream := must(c.Start(t.Context(), catchment(100, "a"), client.Targets{Addrs: hitList(targets)}, false))
	id := stream.Measurement().ID
	watch := catchment(100, "a")
	watch.Program = anycast.KindWatch
	watched := must(c.Start(t.Context(), watch, client.Targets{Addrs: hitList(3)}, false)).Measurement().ID
	for e, err := range stream.All() {
		if err != nil {
			t.Fatal(err)
		}
		if len(e.Results) > 0 {
			break
		}
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	kept := 0
	store.Results(t.Context(), anycast.Query{Measurement: id}, func(_ string, r anycast.Result) bool {
		if _, ok := r.(*anycast.Summary); ok {
			t.Error("a summary before the end")
		}
		kept++
		return true
	})
	if kept == 0 || kept >= targets {
		t.Fatalf("%d results were kept", kept)
	}

	s = measuring(t, Options{Store: store}, w)
	c = s.client()
	got := listen(t, must(c.Follow(t.Context(), id)), nil)
	seen := got.catches()
	for a, n := range seen {
		if n != 1 {
			t.Errorf("%s has %d results", a, n)
		}
	}
	if len(seen) != targets || got.last.State != anycast.Done {
		t.Errorf("%d targets, %+v", len(seen), got.last)
	}
	sums := got.summaries()
	if len(sums) != 1 || sums[0].Sites["a"]+sums[0].Sites["b"] != targets || sums[0].Answered != targets || len(sums[0].Notes) == 0 || sums[0].Skipped[anycast.SkipDone] != 0 {
		t.Errorf("summary %+v", sums)
	}
	cut := listen(t, must(c.Follow(t.Context(), watched)), nil)
	if cut.last.State != anycast.Interrupted || cut.last.Error == "" {
		t.Errorf("watch: %+v", cut.last)
	}
}

// TestCrash: a controller that could not tidy up leaves measurements that seem to run.
func TestCrash(t *testing.T) {
	store := newMemory(100)
	now := time.Now()
	for _, m := range []anycast.Measurement{
		{ID: "1", Definition: catchment(1000, "a"), State: anycast.Running, Start: now, Targets: 4},
		{ID: "2", Definition: anycast.Definition{Program: anycast.KindTrace, Sites: []string{"a"}}, State: anycast.Running, Start: now, Targets: 4},
	} {
		if err := store.Begin(t.Context(), m, []anycast.Target{{Addr: hitList(4)[0]}, {Addr: hitList(4)[1]}, {Addr: hitList(4)[2]}, {Addr: hitList(4)[3]}}); err != nil {
			t.Fatal(err)
		}
	}
	store.Append(t.Context(), "1", []anycast.Result{&anycast.Catch{Target: hitList(1)[0], Sender: "a", Receiver: "b"}})
	s := measuring(t, Options{Store: store}, &world{hops: 3, receiver: byTarget})
	got := listen(t, must(s.client().Follow(t.Context(), "1")), nil)
	if got.last.State != anycast.Done || len(got.catches()) != 4 || len(got.results) != 5 {
		t.Errorf("%+v, %d results", got.last, len(got.results))
	}
	cut := listen(t, must(s.client().Follow(t.Context(), "2")), nil)
	if cut.last.State != anycast.Interrupted || !strings.Contains(cut.last.Error, "restart") || cut.last.End.IsZero() {
		t.Errorf("%+v", cut.last)
	}
}

// TestSchedule: a catchment every second; between two runs a quarter of the networks moves, which raises an alarm.
func TestSchedule(t *testing.T) {
	var moved atomic.Bool
	w := &world{hops: 3, receiver: func(hop int, target netip.Addr) string {
		if moved.Load() && target.As4()[2]%4 == 1 {
			return "b"
		}
		return byTarget(hop, target)
	}}
	store := newMemory(100)
	s := measuring(t, Options{Store: store}, w)
	c := s.client()
	d := catchment(1000, "a")
	d.Origins = []anycast.Origin{{Name: "only"}}
	d.Schedule = &anycast.Schedule{Every: time.Second, Alarm: 0.2}
	stream := must(c.Start(t.Context(), d, client.Targets{Addrs: hitList(16)}, false))
	id := stream.Measurement().ID
	if got := stream.Measurement(); got.State != anycast.Waiting || got.Parent != "" {
		t.Errorf("schedule %+v", got)
	}
	runs := func() (done []anycast.Measurement) {
		for _, m := range must(c.List(t.Context(), anycast.Query{})) {
			if m.Parent == id && m.State == anycast.Done {
				done = append(done, m)
			}
		}
		return done
	}
	eventually(t, "the first run", func() bool { return len(runs()) == 1 })
	moved.Store(true)
	var alarm *anycast.Alarm
	for e, err := range stream.All() {
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range e.Results {
			alarm = r.(*anycast.Alarm)
		}
		if alarm != nil {
			break
		}
	}
	if alarm.Origin != "only" || alarm.Share != 0.25 || alarm.Limit != 0.2 || alarm.Before >= alarm.After {
		t.Errorf("alarm %+v", alarm)
	}

	// The schedule outlives the controller, and keeps its time.
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	before := len(must(store.Measurements(t.Context(), anycast.Query{})))
	s = measuring(t, Options{Store: store}, w)
	c = s.client()
	eventually(t, "another run", func() bool { return len(must(c.List(t.Context(), anycast.Query{}))) > before })
	if err := c.Cancel(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	got := listen(t, must(c.Follow(t.Context(), id)), nil)
	if got.last.State != anycast.Cancelled {
		t.Errorf("%+v", got.last)
	}
	all := runs()
	slices.SortFunc(all, func(a, b anycast.Measurement) int { return a.Start.Compare(b.Start) })
	for i := 1; i < len(all); i++ {
		if gap := all[i].Start.Sub(all[i-1].Start); gap < 900*time.Millisecond {
			t.Errorf("runs %v apart", gap)
		}
	}
}

func TestVoltaMeasurement(t *testing.T) {
	s := measuring(t, Options{}, &world{hops: 3, receiver: byTarget})
	c := s.client()
	d := anycast.Definition{Program: anycast.KindVolta, Command: "volta a 203.0.113.10 -w 3"}
	got := listen(t, must(c.Start(t.Context(), d, client.Targets{}, false)), nil)
	if got.last.State != anycast.Done || len(got.results) != 1 {
		t.Fatalf("%+v, %d results", got.last, len(got.results))
	}
	text := got.results[0].(*anycast.TextResult)
	if text.Code != 200 || !strings.HasPrefix(text.Text, "Traceroute to 203.0.113.10") {
		t.Errorf("%+v", text)
	}
	d.Command = "volta nosuch 203.0.113.10"
	got = listen(t, must(c.Start(t.Context(), d, client.Targets{}, false)), nil)
	if got.last.State != anycast.Failed || !strings.Contains(got.last.Error, "not connected") {
		t.Errorf("%+v", got.last)
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	s := measuring(t, Options{Registry: registry}, &world{hops: 3, receiver: byTarget})
	eventually(t, "clocks known", func() bool {
		sites := s.fleet.Sites()
		return sites[0].Clock.Error > 0 && sites[1].Clock.Error > 0
	})
	w := s.fleet.site("a")
	w.mu.Lock()
	w.stats = &measurepb.AgentStats{Dropped: 7, Overrun: 8}
	w.mu.Unlock()
	listen(t, must(s.client().Start(t.Context(), catchment(1000, "a"), client.Targets{Addrs: hitList(16)}, false)), nil)
	s.request("volta a 203.0.113.10 -w 3")
	problems, err := testutil.GatherAndLint(registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	want := `
# HELP fathom_anycast_site_answers_total Answers to probes that came home at a site.
# TYPE fathom_anycast_site_answers_total counter
fathom_anycast_site_answers_total{site="a"} 36
fathom_anycast_site_answers_total{site="b"} 4
# HELP fathom_anycast_site_overrun_total Packets that a site's kernel dropped because the agent was not fast enough.
# TYPE fathom_anycast_site_overrun_total counter
fathom_anycast_site_overrun_total{site="a"} 8
# HELP fathom_anycast_measurements_ended_total Measurements that ended, by state.
# TYPE fathom_anycast_measurements_ended_total counter
fathom_anycast_measurements_ended_total{state="done"} 1
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "fathom_anycast_site_answers_total", "fathom_anycast_site_overrun_total", "fathom_anycast_measurements_ended_total"); err != nil {
		t.Error(err)
	}
}

func TestQuotasAndAudit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	audit := must(access.OpenAudit(path, access.AuditOptions{}))
	defer audit.Close()
	quotas := access.NewQuotas(func(enroll.Identity) access.Limits {
		return access.Limits{Requests: 6, Measurements: 1, Targets: 10, ProbeRate: 2000}
	})
	s := measuring(t, Options{Audit: audit, Quotas: quotas}, &world{hops: 3, receiver: byTarget})
	c := s.client()
	for name, v := range map[string]struct {
		rate    float64
		targets int
	}{"targets": {1000, 11}, "rate": {3000, 10}} {
		if _, err := c.Start(t.Context(), catchment(v.rate, "a"), client.Targets{Addrs: hitList(v.targets)}, false); !errors.Is(err, client.ErrQuota) {
			t.Errorf("%s: %v", name, err)
		}
	}
	first := must(c.Start(t.Context(), catchment(1, "a"), client.Targets{Addrs: hitList(10)}, true))
	if _, err := c.Start(t.Context(), catchment(1, "a"), client.Targets{Addrs: hitList(10)}, false); !errors.Is(err, client.ErrQuota) {
		t.Errorf("a second one at once: %v", err)
	}
	first.Close()
	code := int32(200)
	for range 5 {
		if code != 200 {
			break
		}
		code, _, _ = c.Request(t.Context(), "volta a 203.0.113.10 -w 3")
	}
	if code != 429 {
		t.Errorf("too many requests are answered with %d", code)
	}
	text := string(must(os.ReadFile(path)))
	for _, want := range []string{`"action":"start"`, `"result":"refused","error":"quota exceeded`, `"action":"request","object":"volta a 203.0.113.10 -w 3","result":"ok"`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in the audit log:\n%s", want, text)
		}
	}
}

func clientTargets(n int) client.Targets { return client.Targets{Addrs: hitList(n)} }

// TestOrigins: two origins, one with a source port of its own. A controller that ends in between goes on with what each of them lacks.
func TestOrigins(t *testing.T) {
	store := newMemory(100)
	w := &world{hops: 3, receiver: byTarget}
	s := measuring(t, Options{Store: store}, w)
	const targets = 200
	d := catchment(200, "a")
	d.Protocol = stateless.UDP
	d.Origins = []anycast.Origin{{Name: "x"}, {Name: "y", SourcePort: 12345, Port: 4444}}
	d.Weights = []anycast.Weight{{Network: netip.MustParsePrefix("198.18.0.0/15"), Queries: 100}}
	stream := must(s.client().Start(t.Context(), d, client.Targets{Addrs: hitList(targets)}, false))
	id := stream.Measurement().ID
	seen := 0
	for e, err := range stream.All() {
		if err != nil {
			t.Fatal(err)
		}
		if seen += len(e.Results); seen > targets/4 {
			break
		}
	}
	if s.fleet.ports.blocks.AllocatePort(12345) == nil {
		t.Error("the source port of an origin is free while it is used")
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	s = measuring(t, Options{Store: store}, w)
	got := listen(t, must(s.client().Follow(t.Context(), id)), nil)
	perOrigin := map[string]map[netip.Addr]bool{"x": {}, "y": {}}
	caught := 0
	for _, r := range got.results {
		if c, ok := r.(*anycast.Catch); ok {
			if c.Receiver != byTarget(0, c.Target) || perOrigin[c.Origin] == nil {
				t.Fatalf("%+v", c)
			}
			caught++
			perOrigin[c.Origin][c.Target] = true
		}
	}
	if len(perOrigin["x"]) != targets || len(perOrigin["y"]) != targets || got.last.State != anycast.Done {
		t.Errorf("%d and %d targets, %+v", len(perOrigin["x"]), len(perOrigin["y"]), got.last)
	}
	sum := got.summaries()[0]
	if len(sum.Origins) != 2 || sum.Differ != 0 || sum.Sent != uint64(caught) || !strings.Contains(sum.Notes[0], "restarted") {
		t.Fatalf("summary %+v", sum)
	}
	for _, o := range sum.Origins {
		// A quarter of the targets is b's, of those before the restart and of those after it.
		if o.Sites["a"] != targets*3/4 || o.Sites["b"] != targets/4 || o.Weight["a"] != 75 || o.Weight["b"] != 25 {
			t.Errorf("origin %+v", o)
		}
	}
}

// TestFixedPort: who needs one port and no other waits for it, and stands in nobody's way.
func TestFixedPort(t *testing.T) {
	s := start(t, Options{Start: 10000, End: 10100, Block: 100})
	p := s.fleet.ports
	if err := p.allocateFixed(t.Context(), 10050); err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() { got <- p.allocateFixed(t.Context(), 10050) }()
	eventually(t, "it waits", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.fixed) == 1
	})
	if _, err := p.allocate(t.Context(), 10); err != nil {
		t.Errorf("other ports: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := p.allocateFixed(ctx, 10050); !errors.Is(err, anycast.ErrNoPorts) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a port in use: %v", err)
	}
	p.release(10050)
	if err := <-got; err != nil {
		t.Error(err)
	}
	if err := p.allocateFixed(t.Context(), 10100); !errors.Is(err, volta.ErrRange) {
		t.Errorf("a port of others: %v", err)
	}
}
