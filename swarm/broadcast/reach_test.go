// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package broadcast_test

import (
	"fmt"
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
				began := time.Now()
				tag := w.begin(w.at(3), "hello")
				time.Sleep(time.Minute + 5*time.Second)
				r := w.result(tag, w.at(3), began)
				w.everyone(r)
				if r.copies > 1 {
					t.Errorf("%v copies per member", r.copies)
				}
				t.Logf("%+v %+v", r, w.net.Stats().ByKind)
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
				t.Logf("%+v %+v", r, w.net.Stats().ByKind)
			})
		})
	}
}
