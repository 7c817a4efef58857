// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package broadcast_test

import (
	"fmt"
	"math/bits"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/swarm/simnet"
)

func TestReach(t *testing.T) {
	for _, size := range []int{1, 2, 3, 10, 100, 1000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			if size > 100 && testing.Short() {
				t.Skip("takes over a second")
			}
			inBubble(t, simnet.Options{Jitter: 0.2}, 1, func(t *testing.T, w *world) {
				w.populate(size)
				// The second time links are up, as they are in a ring that has been there for some time.
				for _, copies := range []float64{1.5, 1} {
					began := time.Now()
					tag := w.begin(w.at(3), "hello")
					time.Sleep(10 * time.Second)
					r := w.result(tag, w.at(3), began)
					t.Logf("%+v", r)
					w.everyone(r)
					if r.copies > copies {
						t.Errorf("%v copies per member", r.copies)
					}
					if r.hops > 2+bits.Len(uint(size)) {
						t.Errorf("%d steps", r.hops)
					}
				}
			})
		})
	}
}

func TestReachWhenManyDie(t *testing.T) {
	for _, size := range []int{10, 100, 1000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			if size > 100 && testing.Short() {
				t.Skip("takes over a second")
			}
			inBubble(t, simnet.Options{Jitter: 0.2}, 2, func(t *testing.T, w *world) {
				w.populate(size)
				origin := w.at(0)
				for _, i := range w.random.Perm(size - 1)[:size*3/10] {
					w.kill(w.at(1 + i))
				}
				began := time.Now()
				tag := w.begin(origin, "hello")
				time.Sleep(20 * time.Second)
				r := w.result(tag, origin, began)
				w.everyone(r)
				t.Logf("%+v", r)
				if r.copies > 2 {
					t.Errorf("%v copies per member", r.copies)
				}
				if r.last > 5*time.Second {
					t.Errorf("the last member got it after %v", r.last)
				}
			})
		})
	}
}
