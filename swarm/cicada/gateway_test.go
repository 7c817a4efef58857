// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicada

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/swarm/broadcast"
	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
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

// Copies of what a native member broadcast, relayed by originals, are known by the tag among the visited.
func TestRelayedBroadcastIsAbsorbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		n := w.native(50001)
		o := w.original(50002)
		o.join(refAt(50001))
		w.settle(20 * time.Second)
		n.begin("known")
		time.Sleep(5 * time.Second)
		relay := func(payload string, visited ...member.ID) {
			t.Helper()
			o.broadcast(payload, visited)
			time.Sleep(5 * time.Second)
		}
		relay("known", tagID(wire.Tag{0: 1, 15: 1}), o.ref.ID)
		if got := n.g.Stats(); got.Absorbed != 1 || got.Injected != 0 {
			t.Errorf("%+v", got)
		}
		relay("known") // by its own will
		if got := n.g.Stats(); got.Absorbed != 1 || got.Injected != 1 || n.count("known") != 1 {
			t.Errorf("%+v, %d times", got, n.count("known"))
		}
	})
}

func TestTexts(t *testing.T) {
	a, b := refA.ID, refB.ID
	now := time.Unix(1e9, 0)
	texts := newTexts()
	steps := []struct {
		after time.Duration
		from  member.ID
		fresh bool
	}{
		{0, a, true},
		{0, b, false},
		{0, b, true},
		{0, a, false},
		{0, a, true},
		{textLife + 1, a, true},
		{textLife, a, true},
		{0, b, false},
	}
	tags := map[wire.Tag]bool{}
	for i, s := range steps {
		now = now.Add(s.after)
		tag, fresh := texts.copied([]byte("x"), s.from, now)
		if fresh != s.fresh || fresh && (tags[tag] || !broadcast.IsForeign(tag)) {
			t.Errorf("step %d: %v, %v", i, fresh, tag)
		}
		tags[tag] = true
	}
	// Another native member gives the same numbers, and one that it was told of is absorbed here.
	other := newTexts()
	tag, _ := other.copied([]byte("y"), a, now)
	texts.delivered([]byte("y"), tag, now)
	if _, fresh := texts.copied([]byte("y"), b, now); fresh {
		t.Error("delivered already")
	}
	second, _ := other.copied([]byte("y"), a, now)
	if here, fresh := texts.copied([]byte("y"), b, now); !fresh || here != second {
		t.Errorf("%v, %v; the other has %v", here, fresh, second)
	}
	for i := range 2 * maxTexts {
		texts.copied([]byte{byte(i), byte(i >> 8), 1}, a, now)
	}
	if len(texts) > maxTexts {
		t.Errorf("%d texts", len(texts))
	}
}

func TestTagMemoryForgets(t *testing.T) {
	m := newTagMemory()
	tag := func(i int) wire.Tag { return wire.Tag{byte(i), byte(i >> 8)} }
	for i := range maxTags + 1 {
		if !m.add(tag(i)) || m.add(tag(i)) {
			t.Fatal(i)
		}
	}
	if len(m.known) != maxTags || !m.add(tag(0)) || m.add(tag(maxTags)) {
		t.Error("not the oldest was forgotten")
	}
}
