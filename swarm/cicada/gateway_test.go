// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicada

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
)

func TestNativeJoinsOriginal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		o := w.original(50001)
		n := w.native(50002)
		n.enter(o)
		w.settle(20 * time.Second)
		w.exchange(t)
		time.Sleep(2 * time.Minute) // it counts as dead who does not answer for 30 s
		w.settle(0)
		w.exchange(t)
	})
}

func TestOriginalJoinsNative(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		n := w.native(50001)
		o := w.original(50002)
		if !o.join(refAt(50001)) {
			t.Fatal("not joined")
		}
		w.settle(20 * time.Second)
		w.exchange(t)
		if !n.g.IsOriginal(o.ref.ID) || len(n.g.Linked()) != 1 {
			t.Errorf("linked: %v", n.g.Linked())
		}
	})
}

// exchange sends between all members, and broadcasts from all natives.
func (w *world) exchange(t *testing.T) {
	t.Helper()
	round := time.Now().String()
	for _, n := range w.natives {
		for _, id := range w.ids() {
			o := w.originals[id]
			if o == nil {
				continue
			}
			text := "to " + id.Short() + " from " + n.self.ID.Short() + round
			if err := n.g.Send(context.Background(), member.Contact{ID: id, Dialect: member.Original}, []byte(text)); err != nil {
				t.Errorf("send: %v", err)
			}
			for _, other := range w.originals {
				if got := other.got(text); got != 0 && other != o || got != 1 && other == o {
					t.Errorf("%s has %d times what was for %s", other.ref.ID.Short(), got, id.Short())
				}
			}
		}
		text := "all from " + n.self.ID.Short() + round
		n.begin(text)
		time.Sleep(8 * time.Second)
		for _, o := range w.originals {
			if got := o.got(text); got != 1 {
				t.Errorf("original %s has a broadcast %d times", o.ref.ID.Short(), got)
			}
		}
		for _, other := range w.natives {
			if got := other.count(text); got != 1 && other != n {
				t.Errorf("native %s has a broadcast %d times", other.self.ID.Short(), got)
			}
		}
	}
}

// mixed makes a ring of natives and originals, who join at each other.
func (w *world) mixed(natives, originals int) {
	w.t.Helper()
	first := w.native(51000)
	for i := range max(natives-1, originals) {
		if i < originals {
			o := w.original(uint16(52000 + i))
			entry := refOf(first.self)
			if i%2 == 1 {
				entry = refAt(uint16(52000 + i - 1))
			}
			for range 3 { // a ring that is settling may lose a request
				if o.join(entry) {
					break
				}
				time.Sleep(5 * time.Second)
			}
		}
		if i < natives-1 {
			n := w.native(uint16(51001 + i))
			n.enter(w.originals[refAt(52000).ID])
		}
		w.settle(3 * time.Minute)
	}
}

func TestMixedRing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.mixed(3, 5)
		time.Sleep(30 * time.Second)
		w.settle(0)
		w.exchange(t)
	})
}

func TestOriginalsBroadcast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.mixed(3, 5)
		time.Sleep(30 * time.Second)
		for i, o := range w.originals {
			for range 2 { // what is said twice is meant twice
				o.broadcast("from "+i.Short(), nil)
				time.Sleep(12 * time.Second)
			}
			for _, n := range w.natives {
				if got := n.count("from " + i.Short()); got != 2 {
					t.Errorf("%s has %d of 2 broadcasts of %s", n.self.ID.Short(), got, i.Short())
				}
			}
			for j, other := range w.originals {
				if got := other.got("from " + i.Short()); other != o && got != 2 {
					t.Errorf("original %s has %d of 2 broadcasts of %s", j.Short(), got, i.Short())
				}
			}
		}
	})
}

// What originals send to a member goes to whom they know, and has to come to whom it is for.
func TestOriginalsMessageIsForwarded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.mixed(3, 1)
		o := w.originals[refAt(52000).ID]
		for id, n := range w.natives {
			if !o.send(id, "for "+id.Short()) {
				t.Error("no answer")
			}
			if got := n.count("for " + id.Short()); got != 1 {
				t.Errorf("%s has its message %d times", id.Short(), got)
			}
		}
		// This is the ID of what a person has typed.
		if !o.send(member.HashOf("localhost:51000"), "hello") {
			t.Error("no answer")
		}
		total := 0
		for _, n := range w.natives {
			total += n.count("hello")
		}
		if total != 1 {
			t.Errorf("%d members have a message for localhost", total)
		}
	})
}

func TestDeathsHeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.mixed(2, 6)
		time.Sleep(20 * time.Second)
		for i := range 4 {
			if i == 2 {
				w.natives[refAt(51001).ID].stop()
			} else {
				w.kill(w.originals[refAt(uint16(52000+i)).ID])
			}
			t.Logf("healed in %v", w.settle(time.Minute))
			w.exchange(t)
		}
	})
}
