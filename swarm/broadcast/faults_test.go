// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package broadcast_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/swarm/broadcast"
	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/simnet"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// TestDeathsUnderWay kills members that have taken parts in charge, before or after they could do anything for them.
func TestDeathsUnderWay(t *testing.T) {
	for _, after := range []time.Duration{3 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond} {
		t.Run(after.String(), func(t *testing.T) {
			inBubble(t, simnet.Options{Jitter: 0.2}, 3, func(t *testing.T, w *world) {
				w.populate(150)
				origin := w.at(0)
				began := time.Now()
				tag := w.begin(origin, "hello")
				time.Sleep(time.Until(began.Add(after)))
				for _, i := range w.random.Perm(149)[:45] {
					w.kill(w.at(1 + i))
				}
				time.Sleep(20 * time.Second)
				r := w.result(tag, origin, began)
				t.Logf("%+v", r)
				w.everyone(r)
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

// TestWrongTables holds that it is enough to know one's neighbours on the ring: tables are random subsets of what they
// should be, and nobody looks anything up.
func TestWrongTables(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inBubble(t, simnet.Options{Jitter: 0.2, Loss: 0.01}, seed, func(t *testing.T, w *world) {
				w.find = false
				w.populate(100)
				share := w.random.Float64()
				for _, n := range w.nodes {
					n.table = slices.DeleteFunc(n.table, func(member.Contact) bool { return w.random.Float64() > share })
				}
				var tags []wire.Tag
				began := time.Now()
				for i := range 5 {
					tags = append(tags, w.begin(w.at(17*i), fmt.Sprint("hello ", i)))
				}
				time.Sleep(30 * time.Second)
				var copies float64
				for i, tag := range tags {
					r := w.result(tag, w.at(17*i), began)
					t.Logf("share of the table %.2f: %+v", share, r)
					w.everyone(r)
					copies += r.copies / float64(len(tags))
				}
				if copies > 2 {
					t.Errorf("share of the table %.2f: %v copies per member", share, copies)
				}
			})
		})
	}
}

// TestNoTables holds that neighbours alone carry a broadcast around the ring.
func TestNoTables(t *testing.T) {
	inBubble(t, simnet.Options{}, 4, func(t *testing.T, w *world) {
		w.find = false
		w.populate(40)
		for _, n := range w.nodes {
			n.table = nil
		}
		began := time.Now()
		tag := w.begin(w.at(0), "hello")
		time.Sleep(20 * time.Second)
		w.everyone(w.result(tag, w.at(0), began))
	})
}

// TestChurn has members come and go while there are broadcasts. Those that are there all the time get all, those that
// come get what began since, and nobody gets anything twice.
func TestChurn(t *testing.T) {
	inBubble(t, simnet.Options{Jitter: 0.2}, 5, func(t *testing.T, w *world) {
		w.populate(60)
		type begun struct {
			tag    wire.Tag
			origin *node
			at     time.Time
		}
		var all []begun
		stays := w.nodes[0]
		for i := range 40 {
			time.Sleep(100 * time.Millisecond)
			switch i % 4 {
			case 0, 2:
				n := w.add(simnet.Contact(1000+i), 1000+i)
				table := w.tableOf(n.contact.ID)
				w.mu.Lock()
				n.table = table
				w.mu.Unlock()
			case 1:
				if n := w.nodes[w.random.IntN(len(w.nodes))]; n != stays && !w.killed(n) {
					w.kill(n)
				}
			}
			// Tables learn of the others now and then, as a ring's do.
			if n := w.nodes[w.random.IntN(len(w.nodes))]; !w.killed(n) {
				table := w.tableOf(n.contact.ID)
				w.mu.Lock()
				n.table = table
				w.mu.Unlock()
				all = append(all, begun{w.begin(n, fmt.Sprint(i)), n, time.Now()})
			}
		}
		time.Sleep(30 * time.Second)
		for _, n := range w.live() {
			for i, b := range all {
				got := n.got(b.tag)
				want := 1
				if n == b.origin {
					want = 0
				}
				// A broadcast whose origin died with it may be lost, and one from before a member came may reach it or not.
				if got > want || got < want && !w.killed(b.origin) && n.started.Before(b.at) {
					t.Errorf("broadcast %d of %s came %d times to %s, want %d", i, b.origin.contact, got, n.contact, want)
				}
			}
		}
	})
}

// TestPartition holds that both sides get what the other has sent meanwhile.
func TestPartition(t *testing.T) {
	inBubble(t, simnet.Options{Jitter: 0.2}, 6, func(t *testing.T, w *world) {
		w.populate(50)
		var one, other []member.ID
		for i, n := range w.nodes {
			if i%2 == 0 || i > 40 {
				one = append(one, n.contact.ID)
			} else {
				other = append(other, n.contact.ID)
			}
		}
		side := func(n *node) bool { return slices.Contains(one, n.contact.ID) }
		w.apart = func(a, b *node) bool { return side(a) != side(b) }
		w.net.Partition(one, other)
		began := time.Now()
		var tags []wire.Tag
		for _, n := range []*node{w.byID[one[0]], w.byID[other[0]]} {
			tags = append(tags, w.begin(n, "from "+n.contact.String()))
		}
		time.Sleep(20 * time.Second)
		for _, n := range w.nodes {
			for i, tag := range tags {
				if got := n.got(tag); got > 0 && side(n) != (i == 0) {
					t.Fatalf("%s got what began on the other side", n.contact)
				}
			}
		}
		w.net.Heal()
		w.mu.Lock()
		w.apart = nil
		w.mu.Unlock()
		time.Sleep(25 * time.Second)
		w.everyone(w.result(tags[0], w.byID[one[0]], began))
		w.everyone(w.result(tags[1], w.byID[other[0]], began))
	})
}

// TestLateJoiner holds that a member that was about to join gets what it missed, and nothing from before its time.
func TestLateJoiner(t *testing.T) {
	inBubble(t, simnet.Options{}, 7, func(t *testing.T, w *world) {
		w.populate(20)
		old := w.begin(w.at(0), "old")
		time.Sleep(30 * time.Second)
		recent := w.begin(w.at(1), "recent")
		time.Sleep(2 * time.Second)
		n := w.add(simnet.Contact(99), 99)
		time.Sleep(5 * time.Second)
		if got := n.got(recent); got != 1 {
			t.Errorf("what was sent 2 s before came %d times", got)
		}
		if got := n.got(old); got != 0 {
			t.Errorf("what was sent 32 s before came %d times", got)
		}
	})
}

// TestLargePayload holds that no payload above a bound goes to one member twice, and that it comes also when those who
// have it die.
func TestLargePayload(t *testing.T) {
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprint("kill ", kill), func(t *testing.T) {
			inBubble(t, simnet.Options{Jitter: 0.2}, 8, func(t *testing.T, w *world) {
				w.populate(60)
				origin := w.at(0)
				payload := bytes.Repeat([]byte("0123456789abcdef"), 1<<14) // 256 KiB
				began := time.Now()
				tag := w.begin(origin, string(payload))
				if kill {
					for _, i := range w.random.Perm(59)[:18] {
						w.kill(w.at(1 + i))
					}
				}
				time.Sleep(20 * time.Second)
				r := w.result(tag, origin, began)
				t.Logf("%+v", r)
				w.everyone(r)
				if r.copies != 1 {
					t.Errorf("%v copies per member", r.copies)
				}
				for _, n := range w.live() {
					if n != origin && !bytes.Equal(n.arrivals(tag)[0].Payload, payload) {
						t.Fatal("the payload has changed")
					}
				}
			})
		})
	}
}

func TestExcept(t *testing.T) {
	inBubble(t, simnet.Options{}, 9, func(t *testing.T, w *world) {
		w.populate(30)
		spared := w.at(7)
		tag := w.begin(w.at(0), "hello", spared.contact.ID)
		time.Sleep(5 * time.Second)
		for i, n := range w.nodes {
			want := 1
			if n == spared || i == 0 {
				want = 0
			}
			if got := n.got(tag); got != want {
				t.Errorf("member %d got it %d times, want %d", i, got, want)
			}
			if n.spreads(tag) != 1 {
				t.Errorf("member %d spread it %d times", i, n.spreads(tag))
			}
		}
	})
}

func TestBroadcastErrors(t *testing.T) {
	inBubble(t, simnet.Options{}, 10, func(t *testing.T, w *world) {
		w.populate(5)
		n := w.at(0)
		if _, err := n.Broadcast(t.Context(), make([]byte, wire.MaxPayload+1), nil); !errors.Is(err, broadcast.ErrTooLarge) {
			t.Errorf("too large: %v", err)
		}
		if _, err := n.Broadcast(t.Context(), nil, make([]member.ID, wire.MaxExcept+1)); !errors.Is(err, broadcast.ErrForm) {
			t.Errorf("too many exceptions: %v", err)
		}
		for _, other := range w.nodes[1:] {
			w.kill(other)
		}
		if _, err := n.Broadcast(t.Context(), []byte("hello"), nil); !errors.Is(err, wire.ErrUnreachable) {
			t.Errorf("nobody there: %v", err)
		}
		time.Sleep(10 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := n.Broadcast(ctx, []byte("hello"), nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("no time: %v", err)
		}
		n.stop()
		<-n.done
		if _, err := n.Broadcast(t.Context(), []byte("hello"), nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed: %v", err)
		}
		push := wire.Push{Tag: wire.Tag{1}}
		if r, ok := n.Handle(t.Context(), w.at(1).contact, push).(wire.Refused); !ok || r.Code != wire.Leaving {
			t.Errorf("a push to one that is closed: %v", r)
		}
	})
}

// A hole takes everything in charge and does nothing, and says that it has all there is and more.
type hole struct{ n *node }

func (h hole) Handle(_ context.Context, from member.Contact, m wire.Message) wire.Message {
	switch m := m.(type) {
	case wire.Push:
		h.n.port.Cast(from, wire.Have{News: []wire.News{{Tag: m.Tag, Size: 5}, {Tag: wire.Tag{1, 2, 3, m.Tag[15]}, Size: 5}}})
		return wire.Pushed{}
	case wire.Offer:
		return wire.Pushed{}
	case wire.Have:
		h.n.port.Cast(from, m)
		return nil
	case wire.Want:
		return wire.Payloads{}
	}
	return wire.Refused{Code: wire.Unsupported}
}

// TestHostileMembers holds that a fifth of members that swallow what they get keep nothing from the others.
func TestHostileMembers(t *testing.T) {
	inBubble(t, simnet.Options{Jitter: 0.2}, 11, func(t *testing.T, w *world) {
		w.populate(100)
		hostile := make(map[*node]bool)
		for _, i := range w.random.Perm(99)[:20] {
			n := w.at(1 + i)
			hostile[n] = true
			n.port.Serve(hole{n})
		}
		for i := range 5 {
			began := time.Now()
			tag := w.begin(w.at(0), fmt.Sprint("hello ", i))
			time.Sleep(20 * time.Second)
			var last time.Duration
			for _, n := range w.nodes[1:] {
				if hostile[n] {
					continue
				}
				got := n.arrivals(tag)
				if len(got) != 1 {
					t.Fatalf("%s got it %d times", n.contact, len(got))
				}
				last = max(last, got[0].at.Sub(began))
			}
			t.Logf("last delivery after %v", last)
			if last > 10*time.Second {
				t.Errorf("last delivery after %v", last)
			}
		}
	})
}

// TestLeaving holds that a member that leaves in good order takes nobody's part along.
func TestLeaving(t *testing.T) {
	inBubble(t, simnet.Options{}, 12, func(t *testing.T, w *world) {
		w.populate(60)
		left := make(map[*node]bool)
		for _, i := range w.random.Perm(59)[:20] {
			n := w.at(1 + i)
			n.stop()
			<-n.done
			left[n] = true
		}
		tag := w.begin(w.at(0), "hello")
		time.Sleep(5 * time.Second)
		for _, n := range w.nodes[1:] {
			if want := 1; !left[n] && n.got(tag) != want {
				t.Errorf("%s got it %d times", n.contact, n.got(tag))
			}
		}
	})
}
