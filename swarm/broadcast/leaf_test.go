// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package broadcast_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/swarm/broadcast"
	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/simnet"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// leaf adds a leaf that is attached to the owner of its ID and the two after that.
func (w *world) leaf(i int) *node {
	c := simnet.Contact(i)
	c.Leaf, c.Addrs = true, nil
	for k := range 3 {
		c.Hosts = append(c.Hosts, w.at(w.index(c.ID)+k).contact)
	}
	n := w.add(c, i)
	for _, h := range c.Hosts {
		host := w.byID[h.ID]
		w.mu.Lock()
		host.leaves = append(slices.Clip(host.leaves), c)
		w.mu.Unlock()
		// Leaves keep a link to their hosts, which is the only way to them.
		if _, err := w.port(c.ID).Call(w.t.Context(), h, wire.Want{}); err != nil {
			w.t.Fatal(err)
		}
	}
	return n
}

func TestLeaves(t *testing.T) {
	inBubble(t, simnet.Options{}, 20, func(t *testing.T, w *world) {
		w.populate(20)
		var leaves []*node
		for i := range 10 {
			leaves = append(leaves, w.leaf(500+i))
		}
		time.Sleep(time.Second)
		for i, origin := range []*node{w.at(0), leaves[0], leaves[5]} {
			began := time.Now()
			tag := w.begin(origin, fmt.Sprint("hello ", i))
			time.Sleep(2 * time.Second)
			r := w.result(tag, origin, began)
			w.everyone(r)
			if r.members != 29 || r.last > 200*time.Millisecond {
				t.Errorf("%+v", r)
			}
		}
		for _, n := range w.live() {
			if s := n.Stats(); s.Duplicates > 0 {
				t.Errorf("%s got %d duplicates", n.contact, s.Duplicates)
			}
		}
		// With the first hosts gone, the others see to their leaves.
		var orphans []*node
		for _, l := range leaves {
			if first := w.byID[l.contact.Hosts[0].ID]; first != w.at(3) && !w.killed(first) && len(orphans) < 3 {
				w.kill(first)
				orphans = append(orphans, l)
			}
		}
		began := time.Now()
		tag := w.begin(w.at(3), "to orphans")
		time.Sleep(10 * time.Second)
		w.everyone(w.result(tag, w.at(3), began))
		// And a leaf whose first host is gone reaches all by way of the next.
		began = time.Now()
		tag = w.begin(orphans[0], "from an orphan")
		time.Sleep(10 * time.Second)
		w.everyone(w.result(tag, orphans[0], began))
	})
}

// TestForeign holds that what an original began goes to all once, also when several gateways hear it.
func TestForeign(t *testing.T) {
	inBubble(t, simnet.Options{}, 21, func(t *testing.T, w *world) {
		w.populate(30)
		origin := member.HashOf("192.0.2.200:49610")
		payload := []byte("hello from an original")
		tag := broadcast.ForeignTag(payload, 1)
		for _, i := range []int{4, 5, 20} {
			if err := w.at(i).Inject(tag, origin, payload); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		for i, n := range w.nodes {
			got := n.arrivals(tag)
			if len(got) != 1 || n.spreads(tag) != 1 {
				t.Errorf("member %d got it %d times, spread it %d times", i, len(got), n.spreads(tag))
			} else if m := got[0]; !m.Foreign || m.Origin != origin || !m.Sent.IsZero() || string(m.Payload) != string(payload) {
				t.Errorf("member %d: %+v", i, m)
			}
		}
		// The same again is something else when it has another number, and, after a while, when it has not.
		again := broadcast.ForeignTag(payload, 2)
		if err := w.at(4).Inject(again, origin, payload); err != nil {
			t.Fatal(err)
		}
		time.Sleep(broadcast.ForeignMemory + time.Second)
		if err := w.at(9).Inject(tag, origin, payload); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		for i, n := range w.nodes {
			if n.got(again) != 1 || n.got(tag) != 2 {
				t.Errorf("member %d: %d and %d times", i, n.got(again), n.got(tag))
			}
		}
		// What does not fit, or was begun by a native member, is not let in.
		if err := w.at(0).Inject(tag, origin, []byte("other")); err == nil || !strings.Contains(err.Error(), "differ") {
			t.Errorf("another payload: %v", err)
		}
		if err := w.at(0).Inject(wire.Tag{0: 1}, origin, payload); err == nil {
			t.Error("a native tag was injected")
		}
	})
}

func TestForeignTag(t *testing.T) {
	payload := []byte("hello")
	// SHA-256 over "fathom swarm foreign broadcast", a zero byte, 8003 and "hello".
	if got, want := broadcast.ForeignTag(payload, 3).String(), "8003b773cd5a553f2cde802d9b574e72"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if broadcast.ForeignTag(payload, 3) != broadcast.ForeignTag(payload, 3+broadcast.MaxForeignNumber+1) {
		t.Error("numbers do not start again")
	}
	if !broadcast.IsForeign(broadcast.ForeignTag(payload, 0)) || broadcast.IsForeign(wire.Tag{0: 0x7f}) {
		t.Error("IsForeign")
	}
}
