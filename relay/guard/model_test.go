// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"cmp"
	"container/heap"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/seed5728abee/fathom/relay/drop"
)

// A world is segments that share nothing but the relays on them:
//
//	 segment 0          segment 1          segment 2
//	──┬────┬─────      ──┬────┬─────      ──┬────┬────┬──
//	host  ours         ours original      ours ours  original
//	       │              │    │             │   │     │
//	       └──────────────┴────┴─── mesh ────┴───┴─────┘
//
// A host says the same several times; every frame and every datagram of the mesh takes
// its time. An original relay does what SnowSignal does: it sends to all peers
// what others put on its segment, and puts on its segment what peers send.
type world struct {
	segments []*segment
	relays   []*modelRelay
	events   queue
	now      int64
	frames   int // put on segments, the host's included
	lost     int // datagrams of the mesh
	delay    func(from, to *modelRelay) int64
	loses    func() bool
}

type segment struct {
	copies int // that its hosts have got
	relays []*modelRelay
}

type modelRelay struct {
	n        int
	mac      MAC
	segment  *segment
	original bool
	standby  bool
	copies   *Copies
}

type event struct {
	at, order int64
	do        func()
}

type queue struct {
	events []event
	count  int64
}

func (q *queue) Len() int           { return len(q.events) }
func (q *queue) Less(i, j int) bool { return compareEvents(q.events[i], q.events[j]) < 0 }
func (q *queue) Swap(i, j int)      { q.events[i], q.events[j] = q.events[j], q.events[i] }
func (q *queue) Push(e any)         { q.events = append(q.events, e.(event)) }
func (q *queue) Pop() any {
	last := q.events[len(q.events)-1]
	q.events = q.events[:len(q.events)-1]
	return last
}

func compareEvents(a, b event) int {
	return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.order, b.order))
}

func (w *world) after(d int64, do func()) {
	w.events.count++
	heap.Push(&w.events, event{w.now + d, w.events.count, do})
}

// run lets time pass until nothing moves, or there are more frames than the limit.
func (w *world) run(limit int) {
	for w.events.Len() > 0 && w.frames <= limit {
		e := heap.Pop(&w.events).(event)
		w.now = e.at
		e.do()
	}
}

func (w *world) add(s *segment, original, standby bool) *modelRelay {
	r := &modelRelay{n: len(w.relays), segment: s, original: original, standby: standby, copies: new(Copies)}
	r.mac = MAC{2, 0, 0, 1, 0, byte(r.n)}
	r.copies.SetOwn([]MAC{r.mac})
	r.copies.SetStorm(DefaultStorm)
	w.relays = append(w.relays, r)
	s.relays = append(s.relays, r)
	return r
}

// introduce tells each relay of ours who else on its segment is a relay, as
// announcements and the addresses of peers do.
func (w *world) introduce() {
	for _, r := range w.relays {
		var ours []Neighbour
		var others []MAC
		for _, o := range r.segment.relays {
			switch {
			case o.original:
				others = append(others, o.mac)
			case o != r:
				ours = append(ours, Neighbour{Announcement: Announcement{Serving: !o.standby}, MAC: o.mac, Trusted: true})
			}
		}
		r.copies.SetNeighbours(ours, others)
	}
}

// emit puts a frame on a segment.
func (w *world) emit(s *segment, k Key, from MAC) {
	w.frames++
	s.copies++
	for _, r := range s.relays {
		if r.mac == from || r.standby {
			continue
		}
		w.after(int64(10*time.Microsecond), func() {
			if !r.original && r.copies.Captured(k, from, false, w.now) != drop.None {
				return
			}
			for _, peer := range w.relays {
				if peer != r {
					w.send(r, peer, k, from)
				}
			}
		})
	}
}

// send sends a datagram of the mesh.
func (w *world) send(from, to *modelRelay, k Key, inner MAC) {
	if w.loses() {
		w.lost++
		return
	}
	w.after(w.delay(from, to), func() {
		if to.standby || !to.original && to.copies.Received(k, inner, uint32(from.n), w.now) != drop.None {
			return
		}
		w.emit(to.segment, k, to.mac)
	})
}

// build draws a world and the times at which its host, on segment 0, speaks.
func build(t *rapid.T, ours func(segment int) int, original func(segment int) bool) (w *world, says []int64) {
	w = &world{loses: func() bool { return false }}
	for i := range rapid.IntRange(2, 4).Draw(t, "segments") {
		s := new(segment)
		w.segments = append(w.segments, s)
		for j := range ours(i) {
			w.add(s, false, j > 0)
		}
		if original(i) {
			w.add(s, true, false)
		}
	}
	micros := rapid.SampledFrom([]int64{1, 100, 1_000, 20_000, 150_000})
	links := make([]int64, len(w.relays)*len(w.relays))
	for i := range links {
		links[i] = micros.Draw(t, "delay") * int64(time.Microsecond)
	}
	jitter := rapid.Int64Range(0, int64(time.Millisecond))
	w.delay = func(from, to *modelRelay) int64 {
		d := links[from.n*len(w.relays)+to.n] + jitter.Draw(t, "jitter")
		if to.original {
			d += int64(200 * time.Microsecond)
		}
		return d
	}
	at := int64(0)
	for range rapid.IntRange(1, 8).Draw(t, "repeats") {
		at += rapid.SampledFrom([]int64{0, 1, 5, 50, 400, 900, 995, 1000, 1005, 1300, 3000}).Draw(t, "pause") * ms
		says = append(says, at)
	}
	return w, says
}

func (w *world) say(from MAC, times []int64) {
	for _, at := range times {
		w.after(at, func() { w.emit(w.segments[0], testKey(1), from) })
	}
}

func (w *world) String() string {
	text := ""
	for i, s := range w.segments {
		text += fmt.Sprintf("segment %d, %d copies:", i, s.copies)
		for _, r := range s.relays {
			text += fmt.Sprintf(" [%d original=%v standby=%v]", r.n, r.original, r.standby)
		}
		text += "\n"
	}
	return text
}

// TestModelOurs has one or two relays of ours on each segment, elected: every
// repeat arrives once, and on the own segment not again.
func TestModelOurs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, says := build(t, func(int) int { return rapid.IntRange(1, 2).Draw(t, "ours") }, func(int) bool { return false })
		w.introduce()
		from := host
		if s := w.segments[0]; len(s.relays) == 2 && rapid.Bool().Draw(t, "host of the standby") {
			from = s.relays[1].mac
		}
		w.say(from, says)
		w.run(1000)
		for i, s := range w.segments {
			if s.copies != len(says) {
				t.Fatalf("segment %d has %d copies of %d\n%v", i, s.copies, len(says), w)
			}
		}
	})
}

// TestModelOursLosing has a mesh that loses datagrams: what arrives, arrives once.
func TestModelOursLosing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, says := build(t, func(int) int { return 1 }, func(int) bool { return false })
		percent := rapid.IntRange(0, 100)
		w.loses = func() bool { return percent.Draw(t, "lose") < 30 }
		w.introduce()
		w.say(host, says)
		w.run(1000)
		if want := len(says)*len(w.segments) - w.lost; w.frames != want {
			t.Fatalf("%d frames of %d, of which %d were lost\n%v", w.frames, len(says)*len(w.segments), w.lost, w)
		}
	})
}

// TestModelOursUnelected has two relays of ours that both serve and know nothing
// of each other, as in the first moment. Where one is alone it is once all the same;
// where there are two, each may be faster than what the other has emitted.
func TestModelOursUnelected(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, says := build(t, func(int) int { return rapid.IntRange(1, 2).Draw(t, "ours") }, func(int) bool { return false })
		for _, r := range w.relays {
			r.standby = false
		}
		says = says[:1] // repeats may suffer for a moment
		w.say(host, says)
		w.run(1000)
		for i, s := range w.segments {
			most := len(s.relays)
			if i == 0 {
				most = 1
			}
			if s.copies < 1 || s.copies > most {
				t.Fatalf("segment %d has %d copies, want 1 to %d\n%v", i, s.copies, most, w)
			}
		}
	})
}

// TestModelOriginalBeside has one relay of ours beside an original, and originals
// alone on the other segments.
func TestModelOriginalBeside(t *testing.T) {
	beside := func(t *rapid.T) (*world, []int64) {
		pair := rapid.IntRange(0, 1).Draw(t, "pair")
		return build(t, func(i int) int {
			if i == pair {
				return 1
			}
			return 0
		}, func(int) bool { return true })
	}
	check := func(t *rapid.T, w *world, says []int64) {
		w.say(host, says)
		w.run(5000)
		for i, s := range w.segments {
			if s.copies < len(says) || s.copies > 4*len(says) {
				t.Fatalf("segment %d has %d copies, want %d to %d\n%v", i, s.copies, len(says), 4*len(says), w)
			}
		}
	}
	t.Run("known", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			w, says := beside(t)
			w.introduce()
			check(t, w, says)
		})
	})
	// As long as ours does not know the original by its address, it has to hear from
	// the mesh first: both have the same way from there, and ours is faster.
	t.Run("unknown", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			w, says := beside(t)
			w.delay = func(_, to *modelRelay) int64 {
				d := rapid.Int64Range(20_000, 120_000).Draw(t, "delay")
				if to.original {
					d += int64(200 * time.Microsecond)
				}
				return d
			}
			check(t, w, says)
		})
	})
	// Where the way to the original is far shorter, the two send a datagram around until
	// it comes by the other way: never without end.
	t.Run("unknown, faster", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			w, says := beside(t)
			w.say(host, says[:1])
			const most = 4 * DefaultStorm
			w.run(most * len(w.segments))
			for i, s := range w.segments {
				if s.copies < 1 || s.copies > most {
					t.Fatalf("segment %d has %d copies, want 1 to %d\n%v", i, s.copies, most, w)
				}
			}
		})
	})
}

// TestModelNoStorm has any relays anywhere, at most one original on a segment,
// and a mesh that loses datagrams: it comes to rest.
func TestModelNoStorm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, says := build(t, func(int) int { return rapid.IntRange(0, 2).Draw(t, "ours") },
			func(int) bool { return rapid.Bool().Draw(t, "original") })
		percent := rapid.IntRange(0, 100)
		w.loses = func() bool { return percent.Draw(t, "lose") < 20 }
		w.introduce()
		w.say(host, says)
		limit := len(says) * len(w.segments) * (len(w.relays) + 1)
		w.run(limit)
		if w.frames > limit {
			t.Fatalf("more than %d frames for %d\n%v", limit, len(says), w)
		}
	})
}
