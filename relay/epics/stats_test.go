// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package epics_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/seed5728abee/fathom/relay/epics"
)

var (
	client1 = netip.MustParseAddr("192.0.2.1")
	client2 = netip.MustParseAddr("192.0.2.2")
	noon    = time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
)

func searchFor(client netip.Addr, names ...string) epics.Datagram {
	b := epics.CAVersionMessage(1).Append(nil)
	for i, name := range names {
		b = epics.CASearch(uint32(i), name).Append(b)
	}
	return epics.Datagram{Protocol: epics.ChannelAccess, Client: client, Payload: b}
}

// line writes names and counts in a short form.
func line(top []epics.NameStats) string {
	var all []string
	for _, n := range top {
		all = append(all, fmt.Sprintf("%s=%d", n.Name, n.Count))
	}
	return strings.Join(all, " ")
}

func TestStats(t *testing.T) {
	s := epics.NewStats(epics.StatsOptions{})
	s.Add(noon, []epics.Datagram{searchFor(client1, "A:x", "A:y"), searchFor(client2, "A:x")})
	s.Add(noon.Add(time.Second), []epics.Datagram{
		searchFor(client2, "A:x"), searchFor(client2, "B:x"), searchFor(client1),
		{Protocol: epics.PVAccess, Client: client1, Payload: vector(t, "pva search")},
		{Protocol: epics.PVAccess, Client: client1, Payload: vector(t, "pva beacon")},
		{Protocol: epics.PVAccess, Client: client1, Payload: []byte("not of PVAccess")},
		{Protocol: epics.None, Client: client1, Payload: vector(t, "pva search")},
	})
	now := noon.Add(2 * time.Second)
	for _, c := range []struct {
		q    epics.StatsQuery
		want string
	}{
		{epics.StatsQuery{}, "A:x=3 two:val=1 B:x=1 A:y=1"},
		{epics.StatsQuery{Limit: 1}, "A:x=3"},
		{epics.StatsQuery{Order: epics.ByRecent}, "two:val=1 B:x=1 A:x=3 A:y=1"},
		{epics.StatsQuery{Order: epics.ByRecent, Limit: 2, Contains: ":x"}, "B:x=1 A:x=3"},
		{epics.StatsQuery{Order: epics.ByRate, Limit: 2}, "A:x=3 two:val=1"},
		{epics.StatsQuery{Client: client2}, "A:x=3 B:x=1"},
		{epics.StatsQuery{Client: client1, Contains: "A"}, "A:x=3 A:y=1"},
		{epics.StatsQuery{Protocol: epics.PVAccess}, "two:val=1"},
		{epics.StatsQuery{Contains: "none"}, ""},
	} {
		if got := line(s.Top(now, c.q)); got != c.want {
			t.Errorf("%+v: %s, want %s", c.q, got, c.want)
		}
	}
	x := s.Top(now, epics.StatsQuery{Contains: "A:x"})[0]
	if !x.First.Equal(noon) || !x.Last.Equal(noon.Add(time.Second)) || x.PerMinute != 3 || x.MoreClients || x.Protocol != epics.ChannelAccess ||
		len(x.Clients) != 2 || x.Clients[0].Addr != client2 || x.Clients[0].Count != 2 || !x.Clients[1].Last.Equal(noon) {
		t.Errorf("A:x: %+v", x)
	}
	if sum := s.Summary(); sum.Datagrams != 5 || sum.Searches != 6 || sum.Names != 4 || sum.Clients != 5 || sum.Forgotten != 0 {
		t.Errorf("summary: %+v", sum)
	}
	s.Reset()
	if sum := s.Summary(); sum.Searches != 0 || sum.Names != 0 || sum.Clients != 0 || len(s.Top(now, epics.StatsQuery{})) != 0 {
		t.Errorf("after a reset: %+v", sum)
	}
}

// TestStatsRate searches once a second, and then no more.
func TestStatsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := epics.NewStats(epics.StatsOptions{})
		for range 330 {
			s.Add(time.Now(), []epics.Datagram{searchFor(client1, "a")})
			time.Sleep(time.Second)
		}
		for _, c := range []struct {
			after    time.Duration
			min, max float64
		}{{0, 59, 61}, {30 * time.Second, 29, 31}, {90 * time.Second, 0, 15}, {120 * time.Second, 0, 0}} {
			if got := s.Top(time.Now().Add(c.after), epics.StatsQuery{})[0].PerMinute; got < c.min || got > c.max {
				t.Errorf("%v after the last of one search a second: %.1f per minute, want %v to %v", c.after, got, c.min, c.max)
			}
		}
	})
}

func TestStatsForgetTheLeastRecent(t *testing.T) {
	s := epics.NewStats(epics.StatsOptions{MaxNames: 3, MaxClients: 2})
	for i, name := range strings.Fields("a b c a d a e") {
		s.Add(noon.Add(time.Duration(i)*time.Second), []epics.Datagram{searchFor(client1, name)})
	}
	if got, want := line(s.Top(noon, epics.StatsQuery{Order: epics.ByRecent})), "e=1 a=3 d=1"; got != want {
		t.Errorf("remembered %s, want %s", got, want)
	}
	if sum := s.Summary(); sum.Forgotten != 2 || sum.Names != 3 || sum.Clients != 3 {
		t.Errorf("summary: %+v", sum)
	}

	// Of the clients, too, the one that searched last is worth remembering.
	third := netip.MustParseAddr("2001:db8::3")
	s.Add(noon.Add(time.Minute), []epics.Datagram{searchFor(client2, "a")})
	s.Add(noon.Add(2*time.Minute), []epics.Datagram{searchFor(third, "a")})
	a := s.Top(noon.Add(2*time.Minute), epics.StatsQuery{Limit: 1})[0]
	if len(a.Clients) != 2 || a.Count != 5 || !a.MoreClients ||
		slices.ContainsFunc(a.Clients, func(c epics.ClientStats) bool { return c.Addr == client1 }) {
		t.Errorf("a: %+v", a)
	}
}

func TestStatsBoundPairs(t *testing.T) {
	s := epics.NewStats(epics.StatsOptions{MaxNames: 10, MaxClients: 4, MaxPairs: 3})
	s.Add(noon, []epics.Datagram{searchFor(client1, "a", "b"), searchFor(client2, "b")})
	if sum := s.Summary(); sum.Clients != 3 || sum.Names != 2 {
		t.Errorf("summary: %+v", sum)
	}
	s.Add(noon, []epics.Datagram{searchFor(client2, "c")}) // there is no room for its client while a is there
	if got := line(s.Top(noon, epics.StatsQuery{Order: epics.ByRecent})); got != "c=1 b=2" {
		t.Errorf("remembered %s", got)
	}
	for i := range byte(9) { // one name alone may fill the room, but not more
		s.Add(noon, []epics.Datagram{searchFor(netip.AddrFrom4([4]byte{198, 51, 100, i}), "d")})
	}
	if top := s.Top(noon, epics.StatsQuery{}); line(top) != "d=9" || len(top[0].Clients) != 3 || !top[0].MoreClients {
		t.Errorf("remembered %+v", top)
	}
}

func TestStatsLongAndHostileNames(t *testing.T) {
	s := epics.NewStats(epics.StatsOptions{})
	long := strings.Repeat("n", epics.MaxStatsName)
	s.Add(noon, []epics.Datagram{searchFor(client1, long, long+"n", "\x1b[2J\xff")})
	if got := line(s.Top(noon, epics.StatsQuery{Order: epics.ByRecent})); got != `\x1b[2J\xff=1 `+long+"=1" {
		t.Errorf("remembered %q", got)
	}
	if sum := s.Summary(); sum.TooLong != 1 || sum.Searches != 3 {
		t.Errorf("summary: %+v", sum)
	}
}

// TestStatsModel compares with a model that is slow and simple.
func TestStatsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const maxNames = 4
		s := epics.NewStats(epics.StatsOptions{MaxNames: maxNames})
		counts := map[string]uint64{}
		var recent []string // the last searched for first
		forgotten := uint64(0)
		for i, name := range rapid.SliceOf(rapid.SampledFrom(strings.Fields("a b c d e f g"))).Draw(t, "names") {
			s.Add(noon.Add(time.Duration(i)*time.Second), []epics.Datagram{searchFor(client1, name)})
			if at := slices.Index(recent, name); at >= 0 {
				recent = slices.Delete(recent, at, at+1)
			} else if len(recent) == maxNames {
				delete(counts, recent[maxNames-1])
				recent = recent[:maxNames-1]
				forgotten++
			}
			recent = slices.Insert(recent, 0, name)
			counts[name]++
		}
		var want []string
		for _, name := range recent {
			want = append(want, fmt.Sprintf("%s=%d", name, counts[name]))
		}
		if got := line(s.Top(noon, epics.StatsQuery{Order: epics.ByRecent})); got != strings.Join(want, " ") {
			t.Fatalf("remembered %s, want %v", got, want)
		}
		if sum := s.Summary(); sum.Forgotten != forgotten || sum.Names != len(recent) || sum.Clients != len(recent) {
			t.Fatalf("summary %+v, want %d forgotten and %d names", sum, forgotten, len(recent))
		}
	})
}

func TestStatsAllocateForNewNamesOnly(t *testing.T) {
	s := epics.NewStats(epics.StatsOptions{MaxClients: 1})
	batch := []epics.Datagram{
		searchFor(client1, "a", "b"), searchFor(client2, "a"),
		{Protocol: epics.PVAccess, Client: client2, Payload: vector(t, "pva search-little")},
	}
	s.Add(noon, batch)
	if n := testing.AllocsPerRun(100, func() { s.Add(noon, batch) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestStatsFromManyGoroutines(t *testing.T) {
	s := epics.NewStats(epics.StatsOptions{MaxNames: 5})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 200 {
				s.Add(noon, []epics.Datagram{searchFor(client1, fmt.Sprint(i*j%9))})
				s.Top(noon, epics.StatsQuery{Limit: 2})
			}
		})
	}
	wg.Wait()
	if sum := s.Summary(); sum.Searches != 800 || sum.Names != 5 {
		t.Errorf("summary: %+v", sum)
	}
}

func ExampleStats() {
	s := epics.NewStats(epics.StatsOptions{})
	now := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	s.Add(now, []epics.Datagram{{
		Protocol: epics.ChannelAccess,
		Client:   netip.MustParseAddr("192.0.2.7"),
		Payload:  epics.CASearch(1, "SR01:BPM:X").Append(nil),
	}})
	top, err := json.Marshal(s.Top(now, epics.StatsQuery{Limit: 10}))
	if err != nil {
		panic(err)
	}
	fmt.Printf("%s\n", top)
	// Output: [{"protocol":"ca","name":"SR01:BPM:X","count":1,"first":"2026-01-31T12:00:00Z","last":"2026-01-31T12:00:00Z","per_minute":1,"clients":[{"addr":"192.0.2.7","count":1,"last":"2026-01-31T12:00:00Z"}]}]
}

func ExampleSearches() {
	datagram := epics.CAVersionMessage(1).Append(nil)
	datagram = epics.CASearch(1, "SR01:BPM:X").Append(datagram)
	datagram = epics.CASearch(2, "SR01:BPM:Y").Append(datagram)
	fmt.Println(epics.Valid(epics.ChannelAccess, datagram).String(), epics.Valid(epics.PVAccess, datagram).String())
	for s := range epics.Searches(epics.ChannelAccess, datagram) {
		fmt.Printf("%d %s\n", s.ID, s.Name)
	}
	// Output:
	// none invalid
	// 1 SR01:BPM:X
	// 2 SR01:BPM:Y
}
