// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/relay/datagram"
	"github.com/seed5728abee/fathom/relay/drop"
	"github.com/seed5728abee/fathom/relay/guard"
	"github.com/seed5728abee/fathom/relay/mesh"
)

// settle is how long relays have to find each other, on their segments and in the mesh.
const settle = 3 * time.Second

// inWorld runs a scenario.
func inWorld(t *testing.T, wires int, f func(t *testing.T, w *world)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wires)
		defer w.stop()
		f(t, w)
	})
}

// wait lets time pass, and everything that it brings be done.
func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func numbered(from, to int) (texts []string) {
	for i := from; i < to; i++ {
		texts = append(texts, fmt.Sprintf("number %d", i))
	}
	return texts
}

// wantFrames checks that no more frames were on the wires than are explained.
func (w *world) wantFrames(t *testing.T, want int) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.frames != want {
		t.Errorf("%d frames on all wires, want %d", w.frames, want)
	}
	w.frames = 0
}

// three is the ordinary case: three segments with a relay each, and a host that listens and one that sends.
func three(w *world, change func(*Options)) (hosts []*host, relays []*node) {
	for i, each := range w.wires {
		var peers []int
		for j := range w.wires {
			if j != i {
				peers = append(peers, j+1)
			}
		}
		hosts = append(hosts, each.host(1))
		relays = append(relays, w.relay(i+1, []*wire{each}, peers, change))
	}
	return hosts, relays
}

func TestOnceEverywhere(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"open":   nil,
		"sealed": func(o *Options) { o.Keys = []mesh.Key{{1}} },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 3, func(t *testing.T, w *world) {
				hosts, relays := three(w, change)
				near := w.wires[0].host(2)
				wait(settle)
				texts := numbered(0, 500)
				for _, text := range texts {
					hosts[0].send(text)
					time.Sleep(100 * time.Microsecond)
				}
				wait(time.Second)
				hosts[0].wants(t)
				near.wants(t, texts...)
				hosts[1].wants(t, texts...)
				hosts[2].wants(t, texts...)
				// Applications on the relays' own hosts hear it as well.
				for _, x := range relays {
					x.ports[0].wants(t, texts...)
				}
				w.wantFrames(t, 3*500)
				for _, x := range relays {
					if m := x.e.meshDrops.Map(); len(m) > 0 {
						t.Errorf("relay %d dropped %v", x.n, m)
					}
				}
				// And what an application on a relay's host sends is for all.
				relays[1].ports[0].send("from the relay's host")
				wait(time.Second)
				for _, h := range hosts {
					h.wants(t, "from the relay's host")
				}
				w.wantFrames(t, 3)
			})
		})
	}
}

// A datagram arrives with its source, and addressed to all of the segment that it comes to.
func TestAddresses(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		hosts, _ := three(w, nil)
		wait(settle)
		hosts[0].send("limited")
		hosts[0].sendTo(netip.MustParseAddrPort("10.77.0.255:5076"), "directed")
		hosts[0].sendTo(netip.MustParseAddrPort("10.77.9.255:5076"), "another subnet's")
		hosts[0].sendTo(netip.MustParseAddrPort("255.255.255.255:5077"), "another port")
		wait(time.Second)
		for i, h := range hosts[1:] {
			got := h.take()
			if len(got) != 2 || got[0].text != "limited" || got[1].text != "directed" {
				t.Fatalf("host of wire %d: %v", i+1, got)
			}
			src := netip.AddrPortFrom(hosts[0].addr(), 40000)
			if got[0].src != src || got[1].src != src || got[0].dst != netip.MustParseAddrPort("255.255.255.255:5076") ||
				got[1].dst != netip.MustParseAddrPort(fmt.Sprintf("10.77.%d.255:5076", i+1)) {
				t.Errorf("host of wire %d: %v", i+1, got)
			}
		}
		w.wantFrames(t, 4+2*2)
	})
}

// Two or three relays on one segment, in any combination: one copy everywhere, also when the one that serves dies.
func TestSeveralOnSegment(t *testing.T) {
	for _, keyed := range []bool{false, true} {
		for _, counts := range [][2]int{{2, 1}, {2, 2}, {3, 1}, {1, 3}} {
			if testing.Short() && counts[0]+counts[1] == 4 && counts[0] != counts[1] {
				continue
			}
			t.Run(fmt.Sprintf("%d-%d,keyed=%v", counts[0], counts[1], keyed), func(t *testing.T) {
				inWorld(t, 2, func(t *testing.T, w *world) {
					a, b := w.wires[0].host(1), w.wires[1].host(1)
					total := counts[0] + counts[1]
					var relays []*node
					for n := 1; n <= total; n++ {
						var peers []int
						for m := 1; m <= total; m++ {
							if m != n {
								peers = append(peers, m)
							}
						}
						on := w.wires[0]
						if n > counts[0] {
							on = w.wires[1]
						}
						relays = append(relays, w.relay(n, []*wire{on}, peers, func(o *Options) {
							if keyed {
								o.Keys = []mesh.Key{{7}}
							}
						}))
					}
					// While they do not know of each other yet, each may put it on its segment, once. In a sealed mesh it may be
					// lost: relays that are not there yet have no session.
					a.send("early")
					wait(settle)
					a.take()
					n := len(b.take())
					w.change(func() {
						if !keyed && n < 1 || n > counts[1] || w.frames > total+1 {
							t.Errorf("before they knew of each other, %d copies were heard, and %d frames were on the wires", n, w.frames)
						}
						w.frames = 0
					})
					for round := range 3 {
						texts := numbered(100*round, 100*round+20)
						for _, text := range texts {
							a.send(text)
							time.Sleep(5 * time.Millisecond)
						}
						b.send("answer")
						wait(time.Second)
						b.wants(t, texts...)
						a.wants(t, "answer")
						w.wantFrames(t, 2*21)
						serving := slices.IndexFunc(relays[:counts[0]], func(x *node) bool {
							return x.e.status(time.Now()).Segments[0].Serving && x.alive()
						})
						if round == 2 || round+1 >= counts[0] {
							break
						}
						relays[serving].kill()
						wait(4 * time.Second)
					}
				})
			})
		}
	}
}

// Segments that are joined while it all runs, and parted again.
func TestBridgedByAccident(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		hosts, _ := three(w, nil)
		wait(settle)
		bridge(w.wires[0], w.wires[1], true)
		// From the first moment on there is no storm; a host may hear a few twice until the relays have noticed.
		for i := range 100 {
			hosts[0].send(fmt.Sprintf("joined %d", i))
			time.Sleep(20 * time.Millisecond)
		}
		wait(time.Second)
		for _, h := range hosts[1:] {
			count := make(map[string]int)
			for _, x := range h.take() {
				count[x.text]++
			}
			for i := range 100 {
				if n := count[fmt.Sprintf("joined %d", i)]; n != 1 {
					t.Errorf("%v heard number %d %d times", h.addr(), i, n)
				}
			}
		}
		hosts[0].wants(t)
		w.wantFrames(t, 200)
		bridge(w.wires[0], w.wires[1], false)
		wait(4 * time.Second)
		hosts[0].send("parted")
		wait(time.Second)
		hosts[1].wants(t, "parted")
		hosts[2].wants(t, "parted")
		w.wantFrames(t, 3)
	})
}

// Relays with two interfaces each make a ring of segments. There is a way round it, and beside it the mesh.
//
//	wire 0 ── relay 1 ── wire 1 ── relay 2 ── wire 2 ── relay 3 ── wire 0
func TestRing(t *testing.T) {
	for _, meshed := range []bool{false, true} {
		t.Run(fmt.Sprintf("meshed=%v", meshed), func(t *testing.T) {
			inWorld(t, 3, func(t *testing.T, w *world) {
				var hosts []*host
				for i, each := range w.wires {
					hosts = append(hosts, each.host(1))
					var peers []int
					if meshed {
						peers = []int{(i+1)%3 + 1, (i+2)%3 + 1}
					}
					w.relay(i+1, []*wire{each, w.wires[(i+1)%3]}, peers, nil)
				}
				wait(settle)
				for round := range 3 {
					texts := numbered(10*round, 10*round+10)
					for _, text := range texts {
						hosts[round].send(text)
						time.Sleep(10 * time.Millisecond)
					}
					wait(time.Second)
					for i, h := range hosts {
						if i != round {
							h.wants(t, texts...)
						} else {
							h.wants(t)
						}
					}
					w.wantFrames(t, 30)
				}
			})
		})
	}
}

// A peer that sends back all it gets.
func TestEchoingPeer(t *testing.T) {
	for name, keys := range modes {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) { echoingPeer(t, w, keys) })
		})
	}
}

func echoingPeer(t *testing.T, w *world, keys []mesh.Key) {
	change := func(o *Options) { o.Keys = keys }
	a, b := w.wires[0].host(1), w.wires[1].host(1)
	echo := w.listen(9)
	var hellos atomic.Bool
	hellos.Store(true)
	w.wg.Go(func() {
		for echo.wait(w.ctx, time.Now().Add(time.Hour)) {
			for _, x := range echo.take() {
				if hellos.Load() || bytes.HasPrefix(x.data, []byte("SS")) {
					w.post(meshAddress(9), x.from, x.data)
				}
			}
		}
	})
	x := w.relay(1, w.wires[:1], []int{2, 9}, change)
	w.relay(2, w.wires[1:], []int{1, 9}, change)
	wait(settle)
	for i := range 2 {
		if i == 1 { // now it is not so stupid as to give itself away
			wait(10 * time.Second)
			hellos.Store(false)
			wait(time.Minute)
		}
		a.send("once")
		a.send("once")
		a.send("more")
		wait(time.Second)
		b.wants(t, "once", "once", "more")
		a.wants(t)
		w.wantFrames(t, 6)
	}
	if keys == nil && x.e.segments[0].notEmitted.Get(drop.Copy)+x.e.segments[0].notEmitted.Get(drop.Echo) == 0 {
		t.Error("nothing came back from the peer that echoes")
	}
}

// One of the originals beside one of ours, and one elsewhere: every host hears at least one copy, and at most four.
func TestOriginalBeside(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		hosts := []*host{w.wires[0].host(1), w.wires[1].host(1), w.wires[2].host(1)}
		w.relay(1, w.wires[:1], []int{2, 3, 4}, nil)
		w.original(2, w.wires[0], 1, 3, 4)
		w.original(3, w.wires[1], 1, 2, 4)
		w.relay(4, w.wires[2:], []int{1, 2, 3}, nil)
		wait(settle)
		for round := range 3 {
			for from := range hosts {
				text := fmt.Sprintf("%d from %d", round, from)
				hosts[from].send(text)
				wait(2 * time.Second)
				for i, h := range hosts {
					got := h.take()
					if len(got) > 4 || len(got) == 0 && i != from {
						t.Errorf("%s: host %d heard %d copies", text, i, len(got))
					}
				}
			}
		}
		// Once it is known what is what, a repeat every second does not add up to anything either.
		for range 20 {
			hosts[0].send("a beacon")
			time.Sleep(time.Second)
		}
		wait(time.Second)
		for i, h := range hosts[1:] {
			if n := len(h.take()); n < 20 || n > 80 {
				t.Errorf("host %d heard %d of 20 beacons", i+1, n)
			}
		}
	})
}

// A mesh of originals with one of ours among them, a relay per segment: as if all were ours.
func TestAmongOriginals(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		hosts := []*host{w.wires[0].host(1), w.wires[1].host(1), w.wires[2].host(1)}
		x := w.relay(1, w.wires[:1], []int{2, 3}, nil)
		probes := 0
		w.change(func() {
			w.seen = func(from, to netip.AddrPort, data []byte) {
				if from == meshAddress(1) && !bytes.HasPrefix(data, []byte("SS")) {
					probes++
				}
			}
		})
		w.original(2, w.wires[1], 1, 3)
		w.original(3, w.wires[2], 1, 2)
		wait(settle)
		for from := range hosts {
			texts := numbered(0, 50)
			for _, text := range texts {
				hosts[from].send(text)
				time.Sleep(2 * time.Millisecond)
			}
			wait(time.Second)
			for i, h := range hosts {
				if i == from {
					h.wants(t)
				} else {
					h.wants(t, texts...)
				}
			}
		}
		for _, p := range x.e.mesh.Peers(time.Now()) {
			if p.Kind != mesh.Original {
				t.Errorf("peer %v is %v", p.Address, p.Kind)
			}
		}
		wait(time.Minute)
		// At most three a second to each, and seldom in the long run.
		w.change(func() { w.seen = nil })
		if probes > 2*(3*5+10) {
			t.Errorf("%d probes in more than a minute to two originals", probes)
		}
	})
}

// What a sender repeats, byte for byte, arrives as often as it was sent.
func TestRepeats(t *testing.T) {
	for _, perSecond := range []int{1, 10, 50, 150} {
		t.Run(fmt.Sprint(perSecond), func(t *testing.T) {
			inWorld(t, 3, func(t *testing.T, w *world) {
				hosts, relays := three(w, nil)
				wait(settle)
				n := max(5, 4*perSecond)
				for range n {
					hosts[0].send("the same")
					time.Sleep(time.Second / time.Duration(perSecond))
				}
				wait(time.Second)
				for _, h := range hosts[1:] {
					if got := len(h.take()); got != n {
						t.Errorf("%v heard %d of %d", h.addr(), got, n)
					}
				}
				if n := relays[0].log.count("over and over"); n != 0 {
					t.Errorf("%d lines about a storm", n)
				}
			})
		})
	}
}

// The last line: what repeats too fast, and who sends too much, is cut, counted, and logged once.
func TestFlood(t *testing.T) {
	t.Run("identical", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			hosts, relays := three(w, nil)
			wait(settle)
			for i := range 5000 {
				hosts[0].send("flood")
				if i%100 == 0 {
					hosts[0].send(fmt.Sprintf("other %d", i))
				}
				time.Sleep(time.Millisecond)
			}
			wait(time.Second)
			others, floods := 0, 0
			for _, x := range hosts[1].take() {
				if x.text == "flood" {
					floods++
				} else {
					others++
				}
			}
			if floods < 100 || floods > 5*DefaultRepeatRate || others != 50 {
				t.Errorf("%d of the flood and %d others were heard", floods, others)
			}
			if n := relays[0].e.segments[0].drops.Get(drop.Storm); n != uint64(5000-floods) {
				t.Errorf("%d dropped as a storm, of 5000 without %d", n, floods)
			}
			wait(5 * time.Second)
			if relays[0].log.count("over and over") != 1 || relays[0].log.count("is over") != 1 {
				t.Errorf("want one line when it begins and one when it ends: %q", relays[0].log.lines)
			}
			hosts[0].send("flood")
			wait(time.Second)
			hosts[1].wants(t, "flood")
		})
	})
	t.Run("source", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			hosts, relays := three(w, func(o *Options) { o.SourceRate, o.SegmentRate = 100, 1000 })
			modest := w.wires[0].host(2)
			wait(settle)
			for i := range 5000 {
				hosts[0].send(fmt.Sprintf("flood %d", i))
				if i%100 == 0 {
					modest.send(fmt.Sprintf("modest %d", i))
				}
				time.Sleep(time.Millisecond)
			}
			wait(time.Second)
			others, floods := 0, 0
			for _, x := range hosts[1].take() {
				if strings.HasPrefix(x.text, "flood") {
					floods++
				} else {
					others++
				}
			}
			// A burst of two seconds' worth, and then a hundred a second.
			if floods < 600 || floods > 800 || others != 50 {
				t.Errorf("%d of the flood and %d of another source were heard", floods, others)
			}
			if n := relays[0].drops(drop.Rate); n != uint64(5000-floods) {
				t.Errorf("%d dropped for their rate, of 5000 without %d", n, floods)
			}
			wait(10 * time.Second)
			if relays[0].log.count("too many broadcasts") != 1 || relays[0].log.count("back within the limit") != 1 {
				t.Errorf("want one line when it begins and one when it ends: %q", relays[0].log.lines)
			}
			if top := relays[0].e.status(time.Now()).Segments[0].Talkers; len(top) != 2 || top[0].Source != hosts[0].addr() || top[0].Dropped != uint64(5000-floods) {
				t.Errorf("talkers %+v", top)
			}
		})
	})
	t.Run("mesh", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			h := w.wires[0].host(1)
			x := w.relay(1, w.wires, []int{9}, nil)
			wait(settle)
			ss := append([]byte("SS"), ethernet(datagram.MAC{2, 9}, ipUDP(netip.MustParseAddrPort("192.0.2.77:9"), netip.MustParseAddrPort("255.255.255.255:5076"), []byte("flood")))...)
			for range 3000 {
				w.post(meshAddress(9), x.addr, ss)
				time.Sleep(time.Millisecond)
			}
			wait(time.Second)
			if n := len(h.take()); n < 100 || n > 3*DefaultRepeatRate {
				t.Errorf("%d of the flood were emitted", n)
			}
			if x.log.count("over and over") != 1 {
				t.Errorf("want one line: %q", x.log.lines)
			}
		})
	})
	t.Run("mesh, different ones", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			h := w.wires[0].host(1)
			x := w.relay(1, w.wires, []int{9}, func(o *Options) { o.SourceRate, o.SegmentRate = 100, 1000 })
			wait(settle)
			for i := range 5000 {
				ss := append([]byte("SS"), ethernet(datagram.MAC{2, 9}, ipUDP(netip.MustParseAddrPort("192.0.2.77:9"), netip.MustParseAddrPort("255.255.255.255:5076"), fmt.Appendf(nil, "flood %d", i)))...)
				w.post(meshAddress(9), x.addr, ss)
				time.Sleep(time.Millisecond)
			}
			wait(time.Second)
			if n := len(h.take()); n < 600 || n > 800 {
				t.Errorf("%d of the flood were emitted", n)
			}
			wait(10 * time.Second)
			if x.log.count("too many broadcasts") != 1 || x.log.count("back within the limit") != 1 {
				t.Errorf("want one line when it begins and one when it ends: %q", x.log.lines)
			}
		})
	})
}

// Loss, doubling and disorder in the mesh lose or reorder, and never multiply.
func TestBadMesh(t *testing.T) {
	for name, change := range map[string]func(*Options){"open": nil, "sealed": func(o *Options) { o.Keys = []mesh.Key{{1}} }} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 3, func(t *testing.T, w *world) {
				hosts, _ := three(w, change)
				wait(settle)
				w.change(func() { w.loss, w.double, w.jitter = 0.1, 0.1, 20*time.Millisecond })
				for _, text := range numbered(0, 1000) {
					hosts[0].send(text)
					time.Sleep(time.Millisecond)
				}
				wait(2 * time.Second)
				for _, h := range hosts[1:] {
					count := make(map[string]int)
					for _, x := range h.take() {
						count[x.text]++
					}
					twice := 0
					for _, n := range count {
						if n > 1 {
							twice++
						}
					}
					// SS datagrams have no number: which is a copy of the network's making cannot be told from a repeat.
					if len(count) < 800 || len(count) > 980 || change != nil && twice > 0 || twice > 200 {
						t.Errorf("%v heard %d different ones, %d more than once", h.addr(), len(count), twice)
					}
				}
				hosts[0].wants(t)
			})
		})
	}
}

// In a sealed mesh keys change one relay at a time, and a partition heals; nothing is doubled meanwhile, and once a relay on
// the segment is no longer trusted nothing is either.
func TestSealedChanges(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		old, fresh := mesh.Key{1}, mesh.Key{2}
		a, b := w.wires[0].host(1), w.wires[1].host(1)
		relays := []*node{
			w.relay(1, w.wires[:1], []int{2, 3}, func(o *Options) { o.Keys = []mesh.Key{old} }),
			w.relay(2, w.wires[:1], []int{1, 3}, func(o *Options) { o.Keys = []mesh.Key{old} }),
			w.relay(3, w.wires[1:], []int{1, 2}, func(o *Options) { o.Keys = []mesh.Key{old} }),
		}
		wait(settle)
		w.wantFrames(t, 0)
		sent := 0
		round := func(what string, exact bool) {
			t.Helper()
			texts := numbered(sent, sent+10)
			sent += 10
			for _, text := range texts {
				a.send(text)
				time.Sleep(100 * time.Millisecond)
			}
			wait(time.Second)
			got := b.take()
			count := make(map[string]int)
			for _, x := range got {
				count[x.text]++
			}
			for text, n := range count {
				if n > 1 {
					t.Errorf("%s: %q was heard %d times", what, text, n)
				}
			}
			if exact && len(count) != 10 {
				t.Errorf("%s: %d of 10 were heard", what, len(count))
			}
			if n := len(a.take()); n != 0 {
				t.Errorf("%s: %d came back", what, n)
			}
		}
		round("before", true)
		for _, keys := range [][]mesh.Key{{old, fresh}, {fresh, old}, {fresh}} {
			for _, x := range relays {
				if err := x.e.mesh.SetKeys(keys); err != nil {
					t.Fatal(err)
				}
				round(fmt.Sprintf("relay %d has %d keys", x.n, len(keys)), true)
			}
		}
		w.change(func() { w.blocked = func(_, _ netip.AddrPort) bool { return true } })
		round("in pieces", false)
		wait(10 * time.Second)
		w.change(func() { w.blocked = nil })
		wait(20 * time.Second)
		b.take() // what waited for a session
		a.take()
		round("healed", true)
		// One that has no key any more that the others have: it serves its segment as well, and nobody hears it.
		if err := relays[0].e.mesh.SetKeys([]mesh.Key{{3}}); err != nil {
			t.Fatal(err)
		}
		wait(3 * time.Minute)
		round("a stranger beside", true)
	})
}

func TestDirections(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		directions := []Direction{Both, ReadOnly, EmitOnly}
		var hosts []*host
		var relays []*node
		for i, each := range w.wires {
			hosts = append(hosts, each.host(1))
			relays = append(relays, w.relay(i+1, []*wire{each}, []int{1, 2, 3}, func(o *Options) { o.Direction = directions[i] }))
		}
		wait(settle)
		for i, h := range hosts {
			h.send(directions[i].String())
			wait(time.Second)
		}
		hosts[0].wants(t, "read-only")
		hosts[1].wants(t)
		hosts[2].wants(t, "both", "read-only")
		w.wantFrames(t, 6)
		if relays[1].e.segments[0].notEmitted.Get(drop.ReadOnly) == 0 || relays[2].e.segments[0].drops.Get(drop.ReadOnly) != 1 {
			t.Error("what goes against the direction is not counted")
		}
	})
}

// A relay with several interfaces carries between them, with peers and without.
func TestSeveralInterfaces(t *testing.T) {
	inWorld(t, 4, func(t *testing.T, w *world) {
		var hosts []*host
		for _, each := range w.wires {
			hosts = append(hosts, each.host(1))
		}
		w.relay(1, w.wires[:3], []int{2}, nil)
		w.relay(2, w.wires[3:], []int{1}, nil)
		wait(settle)
		for from, h := range hosts {
			h.sendTo(netip.MustParseAddrPort(fmt.Sprintf("10.77.%d.255:5076", from)), "directed")
			h.send("limited")
			wait(time.Second)
			for i, other := range hosts {
				if i == from {
					other.wants(t)
					continue
				}
				got := other.take()
				if len(got) != 2 || got[0].dst.Addr() != netip.AddrFrom4([4]byte{10, 77, byte(i), 255}) || got[1].dst.Addr() != datagram.Limited() {
					t.Errorf("from %d host %d heard %v", from, i, got)
				}
			}
		}
		w.wantFrames(t, 4*2*4)
	})
}

func TestGroups(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		hosts, _ := three(w, func(o *Options) {
			o.Groups = []datagram.Group{{Addr: netip.MustParseAddr("224.0.0.251"), Ports: onePort(5353)}, {Addr: netip.MustParseAddr("ff02::fb"), Ports: onePort(5353)}}
		})
		wait(settle)
		for _, dst := range []string{"224.0.0.251:5353", "[ff02::fb]:5353"} {
			hosts[0].sendTo(netip.MustParseAddrPort(dst), dst)
		}
		long := strings.Repeat("x", 5000)
		hosts[0].sendTo(netip.MustParseAddrPort("[ff02::fb]:5353"), long)
		for _, dst := range []string{"224.0.0.252:5353", "224.0.0.251:5076", "[ff02::fc]:5353", "255.255.255.255:5353"} {
			hosts[0].sendTo(netip.MustParseAddrPort(dst), "not "+dst)
		}
		wait(time.Second)
		for _, h := range hosts[1:] {
			h.wants(t, "224.0.0.251:5353", "[ff02::fb]:5353", long)
		}
	})
}

// Datagrams of all lengths, also to originals' successors, which get one SS datagram for each fragment.
func TestLengths(t *testing.T) {
	for name, change := range map[string]func(*Options){"open": nil, "sealed": func(o *Options) { o.Keys = []mesh.Key{{1}} }} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 3, func(t *testing.T, w *world) {
				hosts, relays := three(w, change)
				x := w.listen(9)
				relays[0].peers(2, 3, 9)
				wait(settle)
				var texts []string
				for _, n := range []int{0, 1, 17, 18, 982, 983, 1472, 1473, 2952, 8000, 65507} {
					texts = append(texts, strings.Repeat("L", n))
				}
				for _, text := range texts {
					hosts[0].send(text)
					wait(100 * time.Millisecond)
				}
				hosts[1].wants(t, texts...)
				hosts[2].wants(t, texts...)
				hosts[0].wants(t)
				if change != nil {
					return
				}
				var lengths []string
				var r datagram.Reassembler
				for _, a := range x.take() {
					if !bytes.HasPrefix(a.data, []byte("SS")) {
						continue
					}
					var d datagram.Datagram
					if reason := d.ParseSS(a.data[2:]); reason != drop.None || len(d.IP) > 1500 {
						t.Fatalf("to an original: %v, %d bytes", reason, len(d.IP))
					}
					whole, reason := r.Add(&d, 0, time.Now())
					if reason != drop.None {
						t.Fatal(reason)
					}
					if whole {
						lengths = append(lengths, string(d.Payload()))
					}
				}
				if !slices.Equal(lengths, texts) {
					t.Errorf("an original got %s", brief(lengths))
				}
			})
		})
	}
}

// Nothing that is no broadcast goes out, whoever sends it.
func TestForged(t *testing.T) {
	src := netip.MustParseAddrPort("192.0.2.77:40000")
	good := ipUDP(src, netip.MustParseAddrPort("255.255.255.255:5076"), []byte("hello"))
	change := func(f func(ip []byte)) []byte {
		ip := bytes.Clone(good)
		f(ip)
		ip[10], ip[11] = 0, 0
		sum := packet.Checksum(ip[:20])
		ip[10], ip[11] = byte(sum>>8), byte(sum)
		return ip
	}
	frame := func(ip []byte) []byte { return append([]byte("SS"), ethernet(datagram.MAC{2, 9}, ip)...) }
	own := func(ip []byte) []byte {
		b := append([]byte{'F', 'R', 1, 1, 1, byte((len(ip) + 6) >> 8), byte(len(ip) + 6), 2, 9, 0, 0, 0, 0}, ip...)
		return b
	}
	group := frame(change(func(ip []byte) { copy(ip[16:], []byte{224, 0, 0, 1}) }))
	copy(group[2:], datagram.Broadcast[:])
	unicast := frame(good)
	unicast[2] = 2
	tests := []struct {
		name   string
		data   []byte
		reason drop.Reason
		late   bool // found out on the segment
	}{
		{"empty", nil, drop.Unframed, false},
		{"noise", []byte("XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX"), drop.Unframed, false},
		{"two letters", []byte("SS"), drop.Truncated, false},
		{"cut", frame(good)[:40], drop.Truncated, false},
		{"frame to one host", unicast, drop.NotBroadcast, false},
		{"IPv6 in SS", frame(ipUDP(netip.MustParseAddrPort("[fe80::1]:9"), netip.MustParseAddrPort("[ff02::1]:5076"), nil)), drop.NotUDP, false},
		{"TCP", frame(change(func(ip []byte) { ip[9] = 6 })), drop.NotUDP, false},
		{"ICMP", frame(change(func(ip []byte) { ip[9] = 1 })), drop.NotUDP, false},
		{"version 5", frame(change(func(ip []byte) { ip[0] = 0x55 })), drop.Malformed, false},
		{"reserved flag", frame(change(func(ip []byte) { ip[6] |= 0x80 })), drop.Malformed, false},
		{"UDP length", frame(change(func(ip []byte) { ip[25]++ })), drop.Malformed, false},
		{"header checksum", frame(func() []byte { b := bytes.Clone(good); b[8]--; return b }()), drop.BadChecksum, false},
		{"loopback source", frame(change(func(ip []byte) { ip[12] = 127 })), drop.BadSource, false},
		{"group as source", frame(change(func(ip []byte) { ip[12] = 225 })), drop.BadSource, false},
		{"segment's broadcast as source", frame(change(func(ip []byte) { copy(ip[12:], []byte{10, 77, 0, 255}) })), drop.BadSource, true},
		{"to a group", group, drop.Destination, false},
		{"to loopback", frame(change(func(ip []byte) { copy(ip[16:], []byte{127, 0, 0, 1}) })), drop.Destination, true},
		{"to class E", frame(change(func(ip []byte) { copy(ip[16:], []byte{240, 0, 0, 1}) })), drop.Destination, true},
		{"another port", frame(change(func(ip []byte) { ip[22], ip[23] = 0, 53 })), drop.Port, true},
		{"denied source", frame(ipUDP(netip.MustParseAddrPort("198.51.100.1:9"), netip.MustParseAddrPort("255.255.255.255:5076"), nil)), drop.Filtered, true},
		{"own frame", append([]byte("SS"), ethernet(datagram.MAC{2, 0, 1, 0, 1, 0}, good)...), drop.Echo, true},
		{"ours: another checksum", own(func() []byte { b := bytes.Clone(good); b[len(b)-1]++; return b }()), drop.BadChecksum, false},
		{"ours: too short", own(good[:10]), drop.Malformed, false},
		{"ours: TCP", own(change(func(ip []byte) { ip[9] = 6 })), drop.NotUDP, false},
		{"ours: IPv6 to one host", own(ipUDP(netip.MustParseAddrPort("[fe80::1]:9"), netip.MustParseAddrPort("[fe80::2]:5076"), nil)), drop.NotBroadcast, false},
		{"ours: another group", own(ipUDP(src, netip.MustParseAddrPort("224.0.0.99:5076"), nil)), drop.Destination, true},
		{"ours: broken record", []byte{'F', 'R', 1, 1, 1, 255, 255, 0}, drop.Truncated, false},
		{"sealed, to an open mesh", append([]byte{'F', 'R', 1, 5}, make([]byte, 60)...), drop.Unauthenticated, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, 1, func(t *testing.T, w *world) {
				x := w.relay(1, w.wires, []int{9}, func(o *Options) { o.DenySources = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")} })
				wait(10 * time.Millisecond)
				w.post(meshAddress(9), x.addr, tt.data)
				wait(5 * time.Second)
				w.wantFrames(t, 0)
				counters := &x.e.meshDrops
				if tt.late {
					counters = &x.e.segments[0].notEmitted
				}
				if m := counters.Map(); len(m) != 1 || counters.Get(tt.reason) != 1 {
					t.Errorf("counted %v, want one %v", m, tt.reason)
				}
			})
		})
	}
	t.Run("as it should be", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			h := w.wires[0].host(1)
			x := w.relay(1, w.wires, []int{9}, nil)
			wait(10 * time.Millisecond)
			w.post(meshAddress(9), x.addr, frame(good))
			w.post(meshAddress(9), x.addr, own(ipUDP(src, netip.MustParseAddrPort("255.255.255.255:5076"), []byte("ours"))))
			wait(time.Second)
			h.wants(t, "hello", "ours")
		})
	})
	t.Run("in clear to a sealed mesh", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			x := w.relay(1, w.wires, []int{9}, func(o *Options) { o.Keys = []mesh.Key{{1}} })
			wait(10 * time.Millisecond)
			w.post(meshAddress(9), x.addr, frame(good))
			w.post(meshAddress(9), x.addr, own(good))
			wait(time.Second)
			w.wantFrames(t, 0)
			if n := x.e.meshDrops.Get(drop.OpenRefused); n != 2 {
				t.Errorf("%d refused, want 2", n)
			}
		})
	})
	t.Run("a stranger, where only peers are heard", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			x := w.relay(1, w.wires, []int{9}, func(o *Options) { o.OnlyPeers = true })
			wait(10 * time.Millisecond)
			w.post(meshAddress(8), x.addr, frame(good))
			wait(time.Second)
			w.wantFrames(t, 0)
			if n := x.e.meshDrops.Get(drop.UnknownPeer); n != 1 {
				t.Errorf("%d from strangers, want 1", n)
			}
		})
	})
}

// Frames that claim to be broadcasts, on the segment itself.
func TestBadFrames(t *testing.T) {
	src, all := netip.MustParseAddrPort("10.77.0.1:40000"), netip.MustParseAddrPort("255.255.255.255:5076")
	good := ipUDP(src, all, []byte("hello"))
	mac := datagram.MAC{2, 0, 0, 0, 0, 1}
	// A packet with a source route: the header is 24 bytes long.
	routed := append(append(bytes.Clone(good[:20]), 131, 3, 4, 0), good[20:]...)
	routed[0], routed[3] = 0x46, byte(len(routed))
	routed[10], routed[11] = 0, 0
	sum := packet.Checksum(routed[:24])
	routed[10], routed[11] = byte(sum>>8), byte(sum)
	toOne := ethernet(mac, good)
	toOne[0] = 2
	damaged := bytes.Clone(good)
	damaged[len(damaged)-1]++
	tests := []struct {
		name   string
		frame  []byte
		reason drop.Reason
	}{
		{"empty", nil, drop.Truncated},
		{"short", ethernet(mac, good)[:13], drop.Truncated},
		{"to one host", toOne, drop.NotBroadcast},
		{"a source route", ethernet(mac, routed), drop.Destination},
		{"damaged", ethernet(mac, damaged), drop.BadChecksum},
		{"a tag", append(append(ethernet(mac, good)[:12:12], 0x81, 0, 0, 1, 8, 0), good...), drop.Tagged},
		{"another subnet's", ethernet(mac, ipUDP(src, netip.MustParseAddrPort("10.78.0.255:5076"), nil)), drop.Destination},
		{"an own address", ethernet(datagram.MAC{2, 0, 1, 0, 1, 0}, good), drop.Echo},
		{"an announcement", append(ethernet(mac, good)[:12:12], 0x88, 0xb5), drop.Malformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				hosts, relays := three(w, nil)
				events := relays[0].e.Watch(t.Context())
				wait(settle)
				hosts[0].raw(tt.frame)
				wait(5 * time.Second)
				hosts[1].wants(t)
				s := relays[0].e.segments[0]
				if m := s.drops.Map(); len(m) != 1 || s.drops.Get(tt.reason) != 1 {
					t.Errorf("counted %v, want one %v", m, tt.reason)
				}
				select {
				case e := <-events:
					if e.Action != Dropped || e.Reason != tt.reason.String() {
						t.Errorf("told of %+v", e)
					}
				default:
					if tt.reason != drop.Malformed {
						t.Error("a watcher was told nothing")
					}
				}
			})
		})
	}
}

// Who has no key silences nobody: announcements of a better relay than all there are, made up by someone on the segment.
// In an open mesh they are believed, for as long as they go on.
func TestForgedAnnouncements(t *testing.T) {
	for name, keys := range modes {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				hosts, relays := three(w, func(o *Options) { o.Keys = keys })
				wait(settle)
				lines := relays[0].log.count("")
				for round := range 10 {
					for i := range 50 { // also: more than can be remembered
						a := guard.Announcement{
							Relay: datagram.MAC{0, 0, 0, 0, 1, byte(i)}, Mesh: relays[0].e.mesh.MeshID(), Token: [8]byte{byte(i)}, Sequence: uint64(round + 1),
							Ready: true, Serving: true, MeshAddrs: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 9)},
						}
						if round >= 5 {
							a.Relay[3] = byte(round)
						}
						hosts[0].raw(a.Append(nil, datagram.MAC{2, 6, 6, byte(round), 0, byte(i)}))
					}
					time.Sleep(200 * time.Millisecond)
				}
				hosts[0].send("is anybody there")
				hosts[1].send("over here")
				wait(100 * time.Millisecond)
				if keys != nil {
					hosts[1].wants(t, "is anybody there")
					hosts[0].wants(t, "over here")
				} else {
					hosts[1].wants(t)
					hosts[0].wants(t)
				}
				if n := relays[0].log.count("") - lines; n > 25 {
					t.Errorf("%d lines", n)
				}
				wait(2 * time.Second)
				hosts[0].send("and now")
				wait(time.Second)
				hosts[1].wants(t, "and now")
				// It does not send to whoever is named there, for ever.
				wait(2 * time.Minute)
				if n := len(relays[0].e.mesh.Peers(time.Now())); n > 2 {
					t.Errorf("%d peers", n)
				}
			})
		})
	}
}
