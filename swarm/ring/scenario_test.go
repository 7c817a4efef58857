// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/ring"
	"github.com/seed5728abee/fathom/swarm/ring/ringtest"
	"github.com/seed5728abee/fathom/swarm/simnet"
)

// settles waits until the ring is right, and fails when that takes longer than limit.
func settles(t *testing.T, s *ringtest.Swarm, depth int, limit time.Duration) {
	t.Helper()
	took, err := s.Settle(depth, limit)
	if err != nil {
		t.Fatalf("after %v: %v", took, err)
	}
	t.Logf("right after %v", took)
}

func TestAHundredConvergeAfterTheLastJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ringtest.New(1, simnet.Options{Jitter: 0.1}, ring.Options{})
		defer s.Close()
		if err := s.Grow(t.Context(), 100, 100); err != nil {
			t.Fatal(err)
		}
		settles(t, s, 8, 2*time.Second)
	})
}

func TestAQuarterDiesAtOnce(t *testing.T) {
	for name, end := range map[string]func(*ringtest.Swarm, ...*ringtest.Member){
		"silently": (*ringtest.Swarm).Kill, "with broken links": (*ringtest.Swarm).Crash,
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 40, func(t *testing.T, s *ringtest.Swarm) {
				time.Sleep(10 * time.Second) // until they are at rest
				end(s, s.Pick(0.25)...)
				settles(t, s, 1, 3*time.Second)
				settles(t, s, 8, 30*time.Second)
			})
		})
	}
}

// Lookups are right in 99.9 % and more while a member goes and another one comes every five seconds.
func TestLookupsUnderChurn(t *testing.T) {
	if testing.Short() {
		t.Skip("thousands of lookups")
	}
	for name, end := range map[string]func(*ringtest.Swarm, *ringtest.Member){
		"silently":          func(s *ringtest.Swarm, m *ringtest.Member) { s.Kill(m) },
		"with broken links": func(s *ringtest.Swarm, m *ringtest.Member) { s.Crash(m) },
		"in good order":     func(s *ringtest.Swarm, m *ringtest.Member) { _ = s.Leave(context.Background(), m) }, // cannot fail
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 32, func(t *testing.T, s *ringtest.Swarm) {
				stop := time.Now().Add(time.Minute)
				var all sync.WaitGroup
				defer all.Wait()
				all.Go(func() {
					for time.Now().Before(stop) {
						time.Sleep(5 * time.Second)
						end(s, s.Random())
						if _, err := s.Add(t.Context()); err != nil {
							t.Error(err)
						}
					}
				})
				var mu sync.Mutex // guards right and total
				right, total := 0, 0
				for time.Now().Before(stop) {
					time.Sleep(30 * time.Millisecond)
					all.Go(func() {
						key, m := s.Key(), s.Random()
						before := s.Owner(key)
						found, err := m.Lookup(t.Context(), key, ring.LookupOptions{})
						if !s.Net.Alive(m.ID()) {
							return
						}
						mu.Lock()
						defer mu.Unlock()
						total++
						if err == nil && (found.Owner.ID == before || s.Right(key, found.Owner.ID)) {
							right++
						}
					})
				}
				all.Wait()
				if t.Logf("%d of %d right", right, total); right*1000 < total*999 || total < 1000 {
					t.Errorf("%d of %d right", right, total)
				}
			})
		})
	}
}

func TestSplitRingsMerge(t *testing.T) {
	bubble(t, 24, func(t *testing.T, s *ringtest.Swarm) {
		var half []member.ID
		for _, m := range s.Pick(0.5) {
			half = append(half, m.ID())
		}
		s.Net.Partition(half)
		time.Sleep(time.Minute)
		if s.Check(1) == nil {
			t.Fatal("the network was split, the ring was not")
		}
		s.Net.Heal()
		settles(t, s, 8, 30*time.Second)
	})
}

// Rings that have never been one merge through a common bootstrap member.
func TestRingsMergeThroughBootstrap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ringtest.New(1, simnet.Options{}, ring.Options{Bootstrap: []member.Contact{simnet.Contact(0)}})
		defer s.Close()
		bootstrap, first, second := s.Start(), s.Start(), s.Start()
		s.Net.Partition([]member.ID{bootstrap.ID()})
		if err := s.Join(t.Context(), first); err != nil {
			t.Fatal(err)
		}
		if err := s.Join(t.Context(), second); err != nil { // through the first
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		s.Net.Heal()
		s.Count(bootstrap)
		settles(t, s, 2, 30*time.Second)
	})
}

// A member whose neighbours have all gone joins again through those it remembers.
func TestRejoinsWhenAllNeighboursAreLost(t *testing.T) {
	bubble(t, 12, func(t *testing.T, s *ringtest.Swarm) {
		alone := s.Random()
		s.Net.Partition([]member.ID{alone.ID()})
		time.Sleep(20 * time.Second)
		if before, after := alone.Neighbours(); len(before)+len(after) > 0 {
			t.Fatalf("still believes in %v and %v", before, after)
		}
		s.Net.Heal()
		settles(t, s, 8, 30*time.Second)
		if alone.Stats().Rejoined != 1 {
			t.Errorf("counted %+v", alone.Stats())
		}
	})
}

func TestLeaveHealsInOneRoundTrip(t *testing.T) {
	bubble(t, 20, func(t *testing.T, s *ringtest.Swarm) {
		time.Sleep(10 * time.Second)
		m := s.Random()
		before, after := m.Neighbours()
		trip := max(s.Net.RTT(m.ID(), before[0].ID), s.Net.RTT(m.ID(), after[0].ID))
		start := time.Now()
		if err := s.Leave(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > trip*12/10 {
			t.Errorf("leaving took %v, a round trip is %v", took, trip)
		}
		if err := s.Check(1); err != nil {
			t.Error(err)
		}
		for _, other := range s.Live() {
			if other.Stats().Died > 1 {
				t.Errorf("%s takes others for dead: %+v", other.ID().Short(), other.Stats())
			}
		}
	})
}

// Figures of lookups and idle traffic at some hundred members; `make sim` has those of ten thousand.
func TestLookupsTakeFewSteps(t *testing.T) {
	if testing.Short() {
		t.Skip("hundreds of members")
	}
	bubble(t, 300, func(t *testing.T, s *ringtest.Swarm) {
		time.Sleep(15 * time.Second)
		before := s.Net.Stats()
		time.Sleep(10 * time.Second)
		if each := float64(s.Net.Stats().Sub(before).Messages) / 10 / 300; each > 5 {
			t.Errorf("an idle member sends %.1f messages a second", each)
		}
		var hops []int
		sum := 0
		for range 500 {
			key := s.Key()
			found, err := s.Random().Lookup(t.Context(), key, ring.LookupOptions{})
			if err != nil || found.Owner.ID != s.Owner(key) {
				t.Fatalf("%v, %v", found, err)
			}
			if found.Hops > 0 && (uint64(len(found.Path)) != found.Hops || found.Path[len(found.Path)-1] != found.Owner.ID) {
				t.Fatalf("%d hops over %d members", found.Hops, len(found.Path))
			}
			for i := range found.Path[:max(0, len(found.Path)-1)] {
				if key.Distance(found.Path[i+1]).Compare(key.Distance(found.Path[i])) >= 0 {
					t.Fatalf("a path that leads away: %v", found.Path)
				}
			}
			hops, sum = append(hops, int(found.Hops)), sum+int(found.Hops)
		}
		slices.Sort(hops)
		mean, p99 := float64(sum)/float64(len(hops)), hops[len(hops)*99/100]
		if t.Logf("mean %.2f, p99 %d", mean, p99); mean > 3.5 || p99 > 7 {
			t.Errorf("mean %.2f, p99 %d", mean, p99)
		}
	})
}
