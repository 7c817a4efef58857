// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast_test

import (
	"context"
	"encoding/binary"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/fleettest"
	"github.com/seed5728abee/fathom/probe"
)

const ms = time.Millisecond

// memory is a sink that keeps everything.
type memory struct {
	mu       sync.Mutex
	results  []anycast.Result
	progress []anycast.Progress
	err      error // of every call
}

func (m *memory) Results(r []anycast.Result) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.results = append(m.results, r...)
	return m.err
}

func (m *memory) Progress(p anycast.Progress) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.progress = append(m.progress, p)
}

// of gives the results of one type.
func of[T anycast.Result](m *memory) []T {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []T
	for _, r := range m.results {
		if t, ok := r.(T); ok {
			all = append(all, t)
		}
	}
	return all
}

func (m *memory) summary(t *testing.T) *anycast.Summary {
	t.Helper()
	all := of[*anycast.Summary](m)
	if len(all) != 1 {
		t.Fatalf("%d summaries, want 1", len(all))
	}
	return all[0]
}

// targets gives n addresses, each in a network of its own.
func targets(n int) []anycast.Target {
	all := make([]anycast.Target, n)
	for i := range all {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], 0x14000000+uint32(i)<<8|7) // 20.0.0.7, 20.0.1.7, ...
		all[i].Addr = netip.AddrFrom4(b)
	}
	return all
}

// simulate runs a measurement in a bubble, with a fleet that prepare may change.
func simulate(t *testing.T, prepare func(f *fleettest.Fleet), job anycast.Job, check func(t *testing.T, f *fleettest.Fleet, m *memory, err error)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := fleettest.New(1, "fra", "nyc", "syd")
		defer f.Close()
		if prepare != nil {
			prepare(f)
		}
		m := &memory{}
		job.Fleet, job.Sink, job.Seed = f, m, 1
		err := job.Run(t.Context())
		check(t, f, m, err)
	})
}

func TestCatchment(t *testing.T) {
	job := anycast.Job{Definition: anycast.Definition{Program: anycast.KindCatchment}, Targets: targets(500)}
	simulate(t, nil, job, func(t *testing.T, f *fleettest.Fleet, m *memory, err error) {
		if err != nil {
			t.Fatal(err)
		}
		caught := of[*anycast.Catch](m)
		if len(caught) != 3*500 {
			t.Fatalf("%d results, want one for each of 3 senders and 500 targets", len(caught))
		}
		sum := m.summary(t)
		want := make(map[string]int)
		type pair struct{ sender, target string }
		seen := make(map[pair]bool)
		for _, c := range caught {
			if home := fleettest.Nearest(1, anycast.Network(c.Target).Addr(), []string{"fra", "nyc", "syd"}); c.Receiver != home || c.Status != probe.Replied {
				t.Errorf("%+v, want it to come home at %s", c, home)
			}
			way := f.Internet.Distance(c.Sender, c.Target) + f.Internet.Distance(c.Receiver, c.Target)
			if c.RTT != way {
				t.Errorf("%s: RTT %v, want %v", c.Target, c.RTT, way)
			}
			if p := (pair{c.Sender, c.Target.String()}); seen[p] {
				t.Errorf("%v twice", p)
			} else {
				seen[p] = true
			}
			if c.Sender == "fra" {
				want[c.Receiver]++
			}
		}
		for site, n := range want {
			if sum.Sites[site] != n {
				t.Errorf("%s catches %d, want %d", site, sum.Sites[site], n)
			}
		}
		if sum.Sent != 1500 || sum.Answered != 1500 || f.Sent() != 1500 || sum.Unknown+sum.Late+sum.Duplicates+sum.Refused != 0 {
			t.Errorf("summary %+v", sum)
		}
		t.Logf("%+v", sum)
	})
}

// TestCatchmentResponsive has targets of which only every tenth answers: the silent ones get one probe.
func TestCatchmentResponsive(t *testing.T) {
	const n = 500
	answers := func(a netip.Addr) bool { return a.As4()[2]%10 == 0 }
	job := anycast.Job{Definition: anycast.Definition{Program: anycast.KindCatchment, Responsive: true}, Targets: targets(n)}
	simulate(t, func(f *fleettest.Fleet) {
		f.Internet.Host = func(p fleettest.Probe) fleettest.Host { return fleettest.Host{Silent: !answers(p.Target)} }
	}, job, func(t *testing.T, f *fleettest.Fleet, m *memory, err error) {
		if err != nil {
			t.Fatal(err)
		}
		probes := make(map[netip.Addr]int)
		first := make(map[string]int) // who probed the silent ones
		for _, c := range of[*anycast.Catch](m) {
			probes[c.Target]++
			if !answers(c.Target) {
				first[c.Sender]++
			}
		}
		alive := 0
		for _, target := range job.Targets {
			want := 1
			if answers(target.Addr) {
				want = 3
				alive++
			}
			if probes[target.Addr] != want {
				t.Errorf("%s: %d probes, want %d", target.Addr, probes[target.Addr], want)
			}
		}
		if want := n + 2*alive; f.Sent() != want || m.summary(t).Sent != uint64(want) {
			t.Errorf("%d probes sent, the summary says %d, want %d", f.Sent(), m.summary(t).Sent, want)
		}
		if len(first) != 3 || m.summary(t).Answered != uint64(3*alive) {
			t.Errorf("silent targets were probed from %v, %d answered, want all sites to take turns, and %d", first, m.summary(t).Answered, 3*alive)
		}
	})
}

// TestCatchmentMillion maps a million networks: nothing is lost on the way, and it takes little.
func TestCatchmentMillion(t *testing.T) {
	if testing.Short() {
		t.Skip("some seconds")
	}
	n := 1_000_000
	job := anycast.Job{
		Definition: anycast.Definition{Program: anycast.KindCatchment, Sites: []string{"fra"}, Pace: anycast.Pace{Rate: 100_000}},
		Targets:    targets(n),
	}
	synctest.Test(t, func(t *testing.T) {
		f := fleettest.New(1, "fra", "nyc", "syd")
		defer f.Close()
		f.Internet.Host = func(p fleettest.Probe) fleettest.Host {
			return fleettest.Host{Silent: p.Target.As4()[2]%2 == 1, Duplicates: 0.01}
		}
		sink := &counting{weigh: true}
		job.Fleet, job.Sink = f, sink
		start := time.Now()
		if err := job.Run(context.Background()); err != nil {
			t.Fatal(err)
		}
		sum := sink.summary
		t.Logf("%v: %+v, %d answers delivered", time.Since(start), sum, f.Delivered())
		if sink.catches != n || sink.heard != n/2 || sum.Sent != uint64(n) || sum.Answered != uint64(n/2) {
			t.Errorf("%d results, %d of them answered; summary %+v", sink.catches, sink.heard, sum)
		}
		if int(sum.Answered+sum.Duplicates) != f.Delivered() {
			t.Errorf("%d answers and %d duplicates, but %d were delivered", sum.Answered, sum.Duplicates, f.Delivered())
		}
		// The list has 40 bytes for a target, and the run 24 for its address, 8 for the index and a bit; with what is
		// under way at 100,000 probes/s.
		if most := uint64(n*73 + 30<<20); sink.heap > most {
			t.Errorf("%d bytes in use, want at most %d", sink.heap, most)
		}
		t.Logf("%d bytes in use at most", sink.heap)
		if took := time.Since(start); took < 10*time.Second || took > 16*time.Second {
			t.Errorf("took %v of simulated time, want 10 s and the time of the last answers", took)
		}
	})
}

// counting is a sink that keeps nothing.
type counting struct {
	catches, heard int
	summary        *anycast.Summary
	weigh          bool
	heap           uint64
}

func (c *counting) Results(all []anycast.Result) error {
	for _, r := range all {
		switch r := r.(type) {
		case *anycast.Catch:
			c.catches++
			if r.Receiver != "" {
				c.heard++
			}
		case *anycast.Summary:
			c.summary = r
		}
	}
	return nil
}

// Progress notes how much memory is in use.
func (c *counting) Progress(anycast.Progress) {
	if c.weigh {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		c.heap = max(c.heap, m.HeapAlloc)
	}
}
