// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/probe"
)

// TestKeys holds that networks and their numbers belong together, in order.
func TestKeys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string) netip.Addr {
			if rapid.Bool().Draw(t, label+" is IPv6") {
				return netip.AddrFrom16([16]byte(append([]byte{0x2a}, rapid.SliceOfN(rapid.Byte(), 15, 15).Draw(t, label)...)))
			}
			return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, label)))
		}
		a, b := draw("a"), draw("b")
		if got, want := prefixOf(keyOf(a)), anycast.Network(a); got != want {
			t.Fatalf("%v is in %v, want %v", a, got, want)
		}
		if x, y := anycast.Network(a), anycast.Network(b); (keyOf(a) < keyOf(b)) != x.Addr().Less(y.Addr()) {
			t.Fatalf("%v and %v are in another order than their keys", x, y)
		}
	})
}

// TestVotes counts answers as a plain table does.
func TestVotes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := newAggregate()
		want := map[string]int{}
		for _, site := range rapid.SliceOfN(rapid.SampledFrom([]string{"", "b", "a", "c"}), 1, 30).Draw(t, "sites") {
			c := &anycast.Catch{Target: netip.MustParseAddr("1.2.3.4"), Receiver: site, Status: probe.Replied}
			if site == "" {
				c.Status = probe.NoReply
			} else {
				want[site]++
			}
			a.add(c)
		}
		home := ""
		for _, name := range []string{"a", "b", "c"} {
			if want[name] > want[home] {
				home = name
			}
		}
		row := a.row(&a.networks[0])
		if row.Site != home || fmt.Sprint(row.Seen) != fmt.Sprint(want) || row.Probes != a.results {
			t.Fatalf("%+v after %d results, want %s and %v", row, a.results, home, want)
		}
	})
}

// TestErrorsAreNoCatch: a router's error tells where the router is caught, not the target.
func TestErrorsAreNoCatch(t *testing.T) {
	a := newAggregate()
	a.add(&anycast.Catch{Target: netip.MustParseAddr("1.2.3.4"), Receiver: "fra", Responder: netip.MustParseAddr("10.0.0.1"), Status: probe.TimeExceeded})
	if row := a.row(&a.networks[0]); row.Site != "" || row.Probes != 1 {
		t.Errorf("got %+v", row)
	}
}

func TestWatchIsMerged(t *testing.T) {
	a := newAggregate()
	const rounds = 5*maxPoints + 7
	for i := range rounds {
		a.add(&anycast.WatchResult{Time: time.Unix(int64(i), 0), Sites: map[string]int{"fra": 2, "nyc": i % 2}, Lost: 1})
		a.add(&anycast.Move{From: "fra", To: "nyc", Time: time.Unix(int64(i), 0)})
	}
	w := a.watched()
	if len(w.Times) > maxPoints || len(w.Times) < maxPoints/4 {
		t.Errorf("%d points, want at most %d and not far fewer", len(w.Times), maxPoints)
	}
	lost, fra := 0, 0
	for i := range w.Times {
		lost += w.Lost[i]
		fra += w.Sites["fra"][i]
		if i > 0 && !w.Times[i].After(w.Times[i-1]) {
			t.Fatalf("time goes back at %d", i)
		}
	}
	if lost != rounds || fra != 2*rounds {
		t.Errorf("%d lost and %d at fra, want %d and %d: merging must lose nothing", lost, fra, rounds, 2*rounds)
	}
	if len(w.Moves) != maxMoves || w.Total != rounds || w.Matrix[0].Count != rounds {
		t.Errorf("%d moves of %d, matrix %v", len(w.Moves), w.Total, w.Matrix)
	}
	for i, m := range w.Moves {
		if want := int64(rounds - 1 - i); m.Time.Unix() != want {
			t.Fatalf("move %d is of second %d, want %d: newest first", i, m.Time.Unix(), want)
		}
	}
}

func TestWorst(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	a := newAggregate()
	most := time.Duration(0)
	for range 5000 {
		d := time.Duration(rng.IntN(1e9)) - 5e8
		most = max(most, d)
		a.add(&anycast.LatencyResult{Target: netip.MustParseAddr("1.2.3.4"), Catcher: "fra", RTT: time.Millisecond, Inflation: d})
	}
	if len(a.worst) != maxWorst || a.worst[0].Inflation != most {
		t.Errorf("%d, worst %v, want %d and %v", len(a.worst), a.worst[0].Inflation, maxWorst, most)
	}
	for i := 1; i < len(a.worst); i++ {
		if a.worst[i].Inflation > a.worst[i-1].Inflation {
			t.Fatalf("%v comes after %v", a.worst[i].Inflation, a.worst[i-1].Inflation)
		}
	}
}

// TestBounds holds that hostile results cannot make the sums grow without end.
func TestBounds(t *testing.T) {
	a := newAggregate()
	for i := range 3 * maxSites {
		a.add(&anycast.Catch{Target: netip.MustParseAddr("1.2.3.4"), Receiver: fmt.Sprint("site", i), Status: probe.Replied, Text: fmt.Sprint("text", i)})
	}
	if len(a.names) > maxSites+1 || len(a.texts) > maxTexts {
		t.Errorf("%d sites, %d texts", len(a.names), len(a.texts))
	}
	if got := a.networks[0].answered(); got != 3*maxSites {
		t.Errorf("%d answers, want %d", got, 3*maxSites)
	}
	a.add(&anycast.TextResult{Text: string(make([]byte, 10*maxText))})
	if got := len(a.answers[0].Text); got != maxText {
		t.Errorf("a text of %d bytes, want %d", got, maxText)
	}
	a.add(&anycast.Catch{}) // without an address
	a.summarize(&anycast.Measurement{})
}

func BenchmarkAdd(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	catches := make([]*anycast.Catch, 1<<17)
	for i := range catches {
		n := rng.Uint32()
		catches[i] = &anycast.Catch{
			Target: netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}), Receiver: [...]string{"fra", "nyc", "syd"}[n%3], Status: probe.Replied, RTT: time.Millisecond,
		}
	}
	a := newAggregate()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		a.add(catches[i%len(catches)])
	}
}
