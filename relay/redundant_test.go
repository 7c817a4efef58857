// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/relay/mesh"
)

// others are the numbers from 1 to n but one.
func others(n, but int) []int {
	return slices.DeleteFunc([]int{1, 2, 3, 4, 5, 6, 7, 8}[:n:n], func(i int) bool { return i == but })
}

// Two relays, each with an interface on both of two segments, and a third one elsewhere.
//
//	wire 0 ──┬── relay 1 ──┬── wire 1      wire 2
//	         └── relay 2 ──┘                relay 3
func TestRedundantPair(t *testing.T) {
	for name, keys := range modes {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 3, func(t *testing.T, w *world) {
				change := func(o *Options) { o.Keys = keys }
				hosts := []*host{w.wires[0].host(1), w.wires[1].host(1), w.wires[2].host(1)}
				first := w.relay(1, w.wires[:2], []int{2, 3}, change)
				w.relay(2, w.wires[:2], []int{1, 3}, change)
				w.relay(3, w.wires[2:], []int{1, 2}, change)
				wait(settle)
				round := func(what string) {
					t.Helper()
					for from := range hosts {
						texts := numbered(10*from, 10*from+10)
						for _, text := range texts {
							hosts[from].send(text)
							time.Sleep(5 * time.Millisecond)
						}
						wait(2 * time.Second)
						for i, h := range hosts {
							if i == from {
								h.wants(t)
							} else {
								h.wants(t, texts...)
							}
						}
					}
					w.wantFrames(t, 3*30)
					if t.Failed() {
						t.Fatal(what)
					}
				}
				round("both")
				first.kill()
				wait(4 * time.Second)
				round("one is dead")
				w.relay(1, w.wires[:2], []int{2, 3}, change)
				wait(settle + time.Second)
				round("it is back")
			})
		})
	}
}

// Segments with two relays each that are joined, and parted.
func TestBridgedPairs(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		var hosts []*host
		for i, each := range w.wires {
			hosts = append(hosts, each.host(1))
			w.relay(2*i+1, []*wire{each}, others(6, 2*i+1), nil)
			w.relay(2*i+2, []*wire{each}, others(6, 2*i+2), nil)
		}
		wait(settle)
		for _, joined := range []bool{true, false, true} {
			bridge(w.wires[0], w.wires[1], joined)
			for i := range 20 { // the moment of the change is the worst
				hosts[i%3].send(fmt.Sprintf("at once %v %d", joined, i))
				time.Sleep(10 * time.Millisecond)
			}
			wait(4 * time.Second)
			for _, h := range hosts {
				h.take()
			}
			w.mu.Lock()
			if w.frames > 20*6 {
				t.Errorf("joined %v: %d frames for 20 broadcasts", joined, w.frames)
			}
			w.frames = 0
			w.mu.Unlock()
			texts := numbered(0, 20)
			for _, text := range texts {
				hosts[2].send(text)
				time.Sleep(10 * time.Millisecond)
			}
			wait(time.Second)
			hosts[0].wants(t, texts...)
			hosts[1].wants(t, texts...)
			hosts[2].wants(t)
			if joined {
				w.wantFrames(t, 2*20)
			} else {
				w.wantFrames(t, 3*20)
			}
		}
	})
}

// One that only reads beside one that only emits.
func TestReaderBesideEmitter(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		a, b := w.wires[0].host(1), w.wires[1].host(1)
		w.relay(1, w.wires[:1], []int{3, 2}, func(o *Options) { o.Direction = ReadOnly })
		w.relay(2, w.wires[:1], []int{3, 1}, func(o *Options) { o.Direction = EmitOnly })
		w.relay(3, w.wires[1:], []int{1, 2}, nil)
		wait(settle)
		texts := numbered(0, 20)
		for _, text := range texts {
			a.send(text)
			time.Sleep(10 * time.Millisecond)
		}
		wait(time.Second)
		b.wants(t, texts...)
		a.wants(t)
		for _, text := range texts {
			b.send(text)
			time.Sleep(10 * time.Millisecond)
		}
		wait(time.Second)
		a.wants(t, texts...)
		b.wants(t)
		w.wantFrames(t, 4*20)
	})
}

// A long way: what is on it for most of a second is no other broadcast for that.
func TestLongWay(t *testing.T) {
	for name, keys := range modes {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				w.delay = 600 * time.Millisecond
				a, b := w.wires[0].host(1), w.wires[1].host(1)
				var relays []*node
				for n := 1; n <= 4; n++ {
					relays = append(relays, w.relay(n, []*wire{w.wires[(n-1)/2]}, others(4, n), func(o *Options) { o.Keys = keys }))
				}
				wait(20 * time.Second)
				w.wantFrames(t, 0)
				for _, p := range relays[0].e.mesh.Peers(time.Now()) {
					if p.State != mesh.Up && !p.Through.IsValid() {
						t.Errorf("peer %v is %v", p.Address, p.State)
					}
				}
				for range 3 {
					a.send("the same")
					b.send("as there")
					time.Sleep(time.Second)
				}
				wait(3 * time.Second)
				b.wants(t, "the same", "the same", "the same")
				a.wants(t, "as there", "as there", "as there")
				w.wantFrames(t, 4*3)
			})
		})
	}
}

// A relay that is told to end says so: the next one serves at once, and nothing is lost but what was under way.
func TestTakeover(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		a, b := w.wires[0].host(1), w.wires[1].host(1)
		first := w.relay(1, w.wires[:1], []int{2, 3}, nil)
		second := w.relay(2, w.wires[:1], []int{1, 3}, nil)
		w.relay(3, w.wires[1:], []int{1, 2}, nil)
		wait(settle)
		a.send("before")
		wait(100 * time.Millisecond)
		first.leave()
		wait(10 * time.Millisecond)
		if !second.e.status(time.Now()).Segments[0].Serving {
			t.Error("the other relay does not serve at once")
		}
		a.send("after")
		wait(time.Second)
		b.wants(t, "before", "after")
		w.wantFrames(t, 4)
	})
}
