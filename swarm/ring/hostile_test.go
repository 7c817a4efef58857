// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring_test

import (
	"sync"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/swarm/ring"
	"github.com/seed5728abee/fathom/swarm/ring/ringtest"
)

// With a fifth of the members working against it, a lookup over four disjoint paths is right in 99 % and more.
func TestDisjointPathsOutvoteHostileMembers(t *testing.T) {
	if testing.Short() {
		t.Skip("hundreds of lookups over many paths")
	}
	bubble(t, 200, func(t *testing.T, s *ringtest.Swarm) {
		time.Sleep(10 * time.Second) // for fingers
		var gang ringtest.Gang
		for _, m := range s.Pick(0.2) {
			m.Port.Serve(gang.Join(m))
		}
		const lookups = 200
		var mu sync.Mutex
		right, conflicts := map[int]int{}, 0
		var all sync.WaitGroup
		for range lookups {
			key, m := s.Key(), s.Random()
			for gang.Has(s.Owner(key)) {
				key = s.Key()
			}
			for gang.Has(m.ID()) {
				m = s.Random()
			}
			for _, disjoint := range []int{0, 4} {
				all.Go(func() {
					found, err := m.Lookup(t.Context(), key, ring.LookupOptions{Disjoint: disjoint})
					mu.Lock()
					defer mu.Unlock()
					if err == nil && found.Owner.ID == s.Owner(key) {
						right[disjoint]++
					}
					conflicts += min(1, len(found.Conflict))
				})
			}
		}
		all.Wait()
		t.Logf("of %d right: %d by the quick way, %d over four paths; %d conflicts", lookups, right[0], right[4], conflicts)
		if right[4] < lookups*99/100 {
			t.Errorf("%d of %d right", right[4], lookups)
		}
		if right[0] > lookups*9/10 {
			t.Errorf("the quick way is right in %d of %d: the hostile members do not try", right[0], lookups)
		}
		if conflicts < lookups/4 {
			t.Errorf("%d lookups say that there was a conflict", conflicts)
		}
	})
}
