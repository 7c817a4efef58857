// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package guard_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/relay/drop"
	"github.com/seed5728abee/fathom/relay/guard"
)

const second = int64(time.Second)

func address(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

// flood sends so many datagrams per second, evenly, and counts those that pass.
func flood(l *guard.Limiter, src netip.Addr, perSecond, bytes int, from, to int64) (passed int) {
	for i := range int64(perSecond) * (to - from) / second {
		if l.Allow(src, bytes, from+i*second/int64(perSecond)) == drop.None {
			passed++
		}
	}
	return passed
}

func TestRates(t *testing.T) {
	for _, test := range []struct {
		name      string
		rates     guard.Rates
		perSecond int
		bytes     int
		length    int64 // seconds
		want      int
	}{
		{"no bound", guard.Rates{}, 50_000, 1500, 1, 50_000},
		{"within the rate", guard.Rates{SourcePackets: 1000, TotalPackets: 1000}, 1000, 100, 10, 10_000},
		{"burst and rate", guard.Rates{SourcePackets: 1000}, 10_000, 100, 10, 12_000},
		{"a short burst", guard.Rates{SourcePackets: 1000, Burst: 100 * time.Millisecond}, 10_000, 100, 10, 10_100},
		{"bytes", guard.Rates{SourceBytes: 100_000}, 10_000, 100, 10, 12_000},
		{"total", guard.Rates{TotalPackets: 1000}, 10_000, 100, 10, 12_000},
		{"total bytes", guard.Rates{TotalBytes: 100_000}, 10_000, 100, 10, 12_000},
		{"longer than a burst", guard.Rates{SourceBytes: 1000}, 10, 10_000, 100, 10},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := guard.NewLimiter(test.rates)
			got := flood(l, address(1), test.perSecond, test.bytes, 5*second, (5+test.length)*second)
			if got < test.want-2 || got > test.want+2 {
				t.Errorf("%d passed, want %d", got, test.want)
			}
		})
	}
}

// TestSourcesShare has one source that floods and one that does not.
func TestSourcesShare(t *testing.T) {
	l := guard.NewLimiter(guard.Rates{SourcePackets: 1000, TotalPackets: 2000})
	loud, quiet := 0, 0
	for i := range int64(100_000) {
		now := i * second / 10_000
		if l.Allow(address(1), 100, now) == drop.None {
			loud++
		}
		if i%100 == 0 && l.Allow(address(2), 100, now) == drop.None {
			quiet++
		}
	}
	if loud < 11_990 || loud > 12_010 || quiet != 1000 {
		t.Errorf("%d of the loud one and %d of 1000 of the other passed, want 12000 and 1000", loud, quiet)
	}
}

func TestExcesses(t *testing.T) {
	l := guard.NewLimiter(guard.Rates{SourcePackets: 100, TotalPackets: 150})
	report := func(now int64) []guard.Excess { return l.AppendExcesses(nil, now) }

	flood(l, address(1), 90, 100, 0, 5*second)
	if got := report(5 * second); len(got) != 0 {
		t.Errorf("within the rates: %+v", got)
	}
	passed := flood(l, address(1), 1000, 100, 5*second, 10*second)
	got := report(10 * second)
	if len(got) != 1 || got[0].Source != address(1) || got[0].Over || got[0].Since < 5*second || got[0].Since > 8*second {
		t.Fatalf("in an excess: %+v", got)
	}
	if got := report(11 * second); len(got) != 0 {
		t.Errorf("the same excess again: %+v", got)
	}
	if got := report(16 * second); len(got) != 1 || !got[0].Over || got[0].Dropped != uint64(5000-passed) {
		t.Errorf("after the excess: %+v, want %d dropped", got, 5000-passed)
	}
	if got := report(17 * second); len(got) != 0 {
		t.Errorf("long after the excess: %+v", got)
	}

	// All together send more than all may, and none too much for one.
	for i := range 20_000 {
		l.Allow(address(i%500), 100, 30*second+int64(i)*second/2000)
	}
	if got := report(40 * second); len(got) != 1 || got[0].Source.IsValid() {
		t.Errorf("in an excess of all: %+v", got)
	}

	// Many are too much each: the report stays short, and has room for the segment.
	l = guard.NewLimiter(guard.Rates{SourcePackets: 1})
	for i := range 5000 {
		l.Allow(address(i%1000), 100, second)
	}
	l.SetRates(guard.Rates{TotalPackets: 1})
	for range 5 {
		l.Allow(address(0), 100, second)
	}
	got = report(second)
	if len(got) != 65 || got[64].Source.IsValid() || got[64].Dropped != 3 {
		t.Errorf("%d excesses reported, the last %+v", len(got), got[len(got)-1])
	}
}

func TestTalkers(t *testing.T) {
	l := guard.NewLimiter(guard.Rates{SourcePackets: 100})
	v6 := netip.MustParseAddr("2001:db8::1")
	flood(l, address(1), 10, 200, 0, 150*second)
	flood(l, v6, 200, 100, 60*second, 150*second)
	flood(l, address(2), 1, 1000, 0, 30*second)

	got := l.Talkers(5, 150*second)
	if len(got) != 2 || got[0].Source != v6 || got[1].Source != address(1) {
		t.Fatalf("talkers %+v, want %v and %v", got, v6, address(1))
	}
	near := func(what string, got uint64, want float64) {
		t.Helper()
		if float64(got) < 0.98*want || float64(got) > 1.02*want {
			t.Errorf("%s: %d, want about %v", what, got, want)
		}
	}
	near("packets", got[0].Packets, 200*60)
	near("bytes", got[0].Bytes, 200*60*100)
	near("dropped", got[0].Dropped, 100*60)
	near("packets", got[1].Packets, 10*60)
	near("bytes", got[1].Bytes, 10*60*200)
	near("dropped", got[1].Dropped, 0)
	if got := l.Talkers(1, 150*second); len(got) != 1 || got[0].Source != v6 {
		t.Errorf("the first of the talkers: %+v", got)
	}
	if got := l.Talkers(5, 300*second); len(got) != 0 {
		t.Errorf("talkers after silence: %+v", got)
	}
}

// TestManySources invents sources: those who speak are kept, and nothing is allocated.
func TestManySources(t *testing.T) {
	l := guard.NewLimiter(guard.DefaultRates())
	for i := range 30_000 {
		l.Allow(address(i), 100, int64(i)*10_000)
		if i%100 == 0 {
			l.Allow(netip.MustParseAddr("192.0.2.1"), 100, int64(i)*10_000)
		}
	}
	got := l.Talkers(1<<20, second)
	if len(got) > 8192 || got[0].Source != netip.MustParseAddr("192.0.2.1") || got[0].Packets != 300 {
		t.Errorf("%d sources, first of them %+v", len(got), got[0])
	}
	n := 0
	if got := testing.AllocsPerRun(1000, func() {
		n++
		l.Allow(address(n), 100, 2*second)
	}); got != 0 {
		t.Errorf("%v allocations per datagram", got)
	}
}

func BenchmarkAllow(b *testing.B) {
	l := guard.NewLimiter(guard.Rates{SourcePackets: 20_000, SourceBytes: 1 << 30, TotalPackets: 200_000, TotalBytes: 1 << 30})
	now, n := int64(0), 0
	b.ReportAllocs()
	for b.Loop() {
		n++
		now += 10_000
		l.Allow(address(n&1023), 128, now)
	}
}
