// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring_test

import (
	"context"
	"math/rand/v2"
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

// rounds is the bound of TestThereIsAlwaysOneRingAgain, in rounds of maintenance: the 30 s in which split rings
// merge. Without a split it takes a few.
const rounds = 30

// TestThereIsAlwaysOneRingAgain holds for random schedules of joins, deaths of both kinds, leaves and splits, over
// networks that are near or far and lose messages: when the schedule has ended, there is one ring of all that live, in
// order, within a bounded number of rounds. Two bootstrap members live on: parts of a ring that know of nobody else who
// is alive cannot find each other. It draws the schedules from seeds, and names the one that fails.
func TestThereIsAlwaysOneRingAgain(t *testing.T) {
	schedules := uint64(12)
	if testing.Short() {
		schedules = 2
	}
	for seed := range schedules {
		synctest.Test(t, func(t *testing.T) { schedule(t, seed) })
	}
}

func schedule(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 5))
	far := time.Duration(1+random.IntN(100)) * time.Millisecond
	loss := float64(random.IntN(2)) * 0.01
	s := ringtest.New(seed, simnet.Options{Near: far / 20, Far: far, Jitter: 0.2, Loss: loss},
		ring.Options{Bootstrap: []member.Contact{simnet.Contact(0), simnet.Contact(1)}})
	defer s.Close()
	grow := func(size int) {
		for len(s.Live()) < size {
			_ = s.Grow(t.Context(), size, 8) // a join may fail for a lost message: then another one comes
		}
	}
	grow(5 + random.IntN(20))
	mortal := func(list []*ringtest.Member) []*ringtest.Member {
		return slices.DeleteFunc(list, func(m *ringtest.Member) bool { return m.ID() == simnet.Contact(0).ID || m.ID() == simnet.Contact(1).ID })
	}
	split := false
	for range 30 {
		live := s.Live()
		switch event := random.IntN(10); {
		case event < 4 || len(live) < 6:
			// While it is split, some join on the one side and some on the other.
			var all sync.WaitGroup
			for range 1 + random.IntN(3) {
				all.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
					defer cancel()
					_, _ = s.Add(ctx) // may fail, if the entry dies
				})
			}
			all.Wait()
		case event < 6:
			s.Kill(mortal(s.Pick(0.1 + 0.2*random.Float64()))...)
		case event < 7:
			s.Crash(mortal(s.Pick(0.1 + 0.2*random.Float64()))...)
		case event < 9:
			_ = s.Leave(t.Context(), mortal(live)[0]) // cannot fail
		case !split && len(live) > 10:
			var side []member.ID
			for _, m := range s.Pick(0.3 + 0.4*random.Float64()) {
				side = append(side, m.ID())
			}
			s.Net.Partition(side)
			split = true
		}
		time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
	}
	s.Net.Heal()
	took, err := s.Settle(1, rounds*time.Second)
	if err != nil {
		t.Fatalf("seed %d: no ring of %d after %v: %v", seed, len(s.Live()), took, err)
	}
	t.Logf("seed %d: %d members, %v apart, loss %v, split %v: one ring after %v", seed, len(s.Live()), far, loss, split, took)
}
