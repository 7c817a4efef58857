// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/swarm/ring"
	"github.com/seed5728abee/fathom/swarm/ring/ringtest"
	"github.com/seed5728abee/fathom/swarm/simnet"
)

// bubble runs f with a swarm of some members that has settled, in simulated time.
func bubble(t *testing.T, size int, f func(t *testing.T, s *ringtest.Swarm)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := ringtest.New(1, simnet.Options{Jitter: 0.1}, ring.Options{})
		defer s.Close()
		if err := s.Grow(t.Context(), size, 8); err != nil {
			t.Fatal(err)
		}
		if took, err := s.Settle(8, time.Minute); err != nil {
			t.Fatalf("after %v: %v", took, err)
		}
		f(t, s)
	})
}

func TestEveryMemberFindsTheOwner(t *testing.T) {
	for _, size := range []int{1, 2, 3, 5, 8, 9, 10, 17, 40} {
		bubble(t, size, func(t *testing.T, s *ringtest.Swarm) {
			time.Sleep(10 * time.Second)
			for range 100 {
				key := s.Key()
				for _, disjoint := range []int{0, 1, 3} {
					m := s.Random()
					found, err := m.Lookup(t.Context(), key, ring.LookupOptions{Disjoint: disjoint})
					if err != nil || found.Owner.ID != s.Owner(key) {
						t.Fatalf("of %d, over %d paths: %v, %v, not %v", size, disjoint, found.Owner, err, s.Owner(key))
					}
				}
			}
		})
	}
}
