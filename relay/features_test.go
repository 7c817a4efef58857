// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/relay/datagram"
	"github.com/seed5728abee/fathom/relay/drop"
	"github.com/seed5728abee/fathom/relay/mesh"
)

// pvaSearch is a search for the channel two:val, as pvxget sends it.
const pvaSearch = "ca0280030000002d66696e6480000000000000000000000000000000000000008c0801037463700001123456780774776f3a76616c"

// Where messages are held against their protocol, what is none goes no further: neither from the segment nor from the mesh.
func TestValidate(t *testing.T) {
	search, err := hex.DecodeString(pvaSearch)
	if err != nil {
		t.Fatal(err)
	}
	inWorld(t, 2, func(t *testing.T, w *world) {
		a, b := w.wires[0].host(1), w.wires[1].host(1)
		careful := func(o *Options) { o.Validate = true }
		x := w.relay(1, w.wires[:1], []int{2}, careful)
		y := w.relay(2, w.wires[1:], []int{1}, nil)
		wait(settle)
		a.send("no search")
		a.send(string(search))
		b.send("no search")
		b.send(string(search))
		wait(time.Second)
		b.wants(t, string(search))
		a.wants(t, string(search))
		if x.e.segments[0].drops.Get(drop.Invalid) != 1 || x.e.meshDrops.Get(drop.Invalid) != 1 || y.e.meshDrops.Get(drop.Invalid) != 0 {
			t.Error("what is invalid is not counted as such")
		}
		// A test crosses all the same.
		if got := x.test(t, testPort); len(got) != 2 || got[0] != "192.0.2.2:7124 eth0: emitted true" {
			t.Errorf("%q", got)
		}
	})
}

func TestCountSearches(t *testing.T) {
	search, err := hex.DecodeString(pvaSearch)
	if err != nil {
		t.Fatal(err)
	}
	inWorld(t, 2, func(t *testing.T, w *world) {
		a, b := w.wires[0].host(1), w.wires[1].host(1)
		x := w.relay(1, w.wires[:1], []int{2}, func(o *Options) { o.CountSearches = true })
		y := w.relay(2, w.wires[1:], []int{1}, nil)
		wait(settle)
		for range 3 {
			a.send(string(search)) // from the segment
			b.send(string(search)) // from the mesh
			time.Sleep(time.Second)
		}
		wait(time.Second)
		got, err := x.e.Searches(10, "two")
		if err != nil || len(got.Names) != 1 || got.Names[0].Name != "two:val" || got.Names[0].Count != 6 {
			t.Errorf("%+v, %v", got, err)
		}
		if got, err := x.e.Searches(10, "three"); err != nil || len(got.Names) != 0 {
			t.Errorf("%+v, %v", got, err)
		}
		if _, err := y.e.Searches(0, ""); !errors.Is(err, ErrNotCounted) {
			t.Errorf("%v, want %v", err, ErrNotCounted)
		}
	})
}

// The origin's self test: without peers, each broadcast comes back once, and no more than once.
func TestEcho(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		h := w.wires[0].host(1)
		w.relay(1, w.wires, nil, func(o *Options) { o.Echo = true })
		wait(settle)
		for _, text := range numbered(0, 5) {
			h.send(text)
		}
		wait(10 * time.Second)
		h.wants(t, numbered(0, 5)...)
		w.wantFrames(t, 10)
	})
}

// An own address among the peers, and the same peer by two addresses, change nothing.
func TestOddPeers(t *testing.T) {
	for name, keys := range modes {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				a, b := w.wires[0].host(1), w.wires[1].host(1)
				change := func(o *Options) { o.Keys = keys }
				x := w.relay(1, w.wires[:1], []int{1, 2}, change)
				y := w.relay(2, w.wires[1:], []int{1, 2}, change)
				x.e.mesh.SetPeers([]netip.AddrPort{x.addr, y.addr, netip.AddrPortFrom(y.ports[0].addr(), DefaultMeshPort)})
				wait(settle)
				texts := numbered(0, 10)
				for _, text := range texts {
					a.send(text)
					b.send(text + " back")
					time.Sleep(100 * time.Millisecond)
				}
				wait(time.Second)
				b.wants(t, texts...)
				for i := range texts {
					texts[i] += " back"
				}
				a.wants(t, texts...)
				w.wantFrames(t, 40)
			})
		})
	}
}

// A sealed mesh that still has originals in it: they get what they can read, ours what nobody else can.
func TestCompat(t *testing.T) {
	inWorld(t, 4, func(t *testing.T, w *world) {
		var hosts []*host
		for _, each := range w.wires {
			hosts = append(hosts, each.host(1))
		}
		change := func(o *Options) {
			o.Keys, o.Compat = []mesh.Key{{1}}, true
			o.Groups = []datagram.Group{{Addr: netip.MustParseAddr("224.0.0.128")}}
		}
		w.relay(1, w.wires[:1], others(4, 1), change)
		w.relay(2, w.wires[1:2], others(4, 2), change)
		w.original(3, w.wires[2], others(4, 3)...)
		w.original(4, w.wires[3], others(4, 4)...)
		wait(settle)
		clear, confidential := 0, []byte("for members")
		w.change(func() {
			w.seen = func(from, to netip.AddrPort, data []byte) {
				if bytes.Contains(data, confidential) {
					clear++
				}
			}
		})
		hosts[0].sendTo(netip.MustParseAddrPort("224.0.0.128:5076"), string(confidential))
		wait(time.Second)
		w.change(func() {
			w.seen = nil
			if clear != 0 {
				t.Errorf("%d datagrams in clear between members", clear)
			}
		})
		hosts[1].wants(t, string(confidential))
		for from := range hosts {
			texts := numbered(0, 20)
			for _, text := range texts {
				hosts[from].send(text)
				time.Sleep(5 * time.Millisecond)
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
		w.wantFrames(t, 2+4*4*20)
		// One that has shown to be a member is not believed in clear any more.
		ip := ipUDP(netip.MustParseAddrPort("192.0.2.77:9"), netip.MustParseAddrPort("255.255.255.255:5076"), []byte("forged"))
		w.post(meshAddress(2), meshAddress(1), append([]byte("SS"), ethernet(datagram.MAC{2, 9}, ip)...))
		wait(time.Second)
		hosts[0].wants(t)
	})
}

// An interface that goes and comes back with another address, on another network.
func TestInterfaceChanges(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		hosts, relays := three(w, nil)
		wait(settle)
		p := relays[0].ports[0]
		p.s.set(link{}, "interface eth0: no such device")
		hosts[1].send("into the void")
		wait(2 * time.Second)
		hosts[0].wants(t)
		if n := relays[0].drops(drop.NoInterface); n != 1 {
			t.Errorf("%d were for no interface, want 1", n)
		}
		p.wire.detach(p.host)
		old := p.mac
		p.mac, p.prefix = datagram.MAC{2, 0, 1, 7, 7, 7}, netip.MustParsePrefix("192.0.2.129/25")
		p.wire.attach(p.host)
		p.s.set(link{mac: p.mac, mtu: 1500, prefixes: []netip.Prefix{p.prefix}}, "")
		wait(settle)
		hosts[1].send("back again")
		hosts[1].sendTo(netip.MustParseAddrPort("10.77.1.255:5076"), "directed")
		hosts[0].sendTo(netip.MustParseAddrPort("192.0.2.255:5076"), "the new subnet's")
		hosts[0].sendTo(netip.MustParseAddrPort("10.77.0.255:5076"), "the old one's")
		wait(time.Second)
		got := hosts[0].take()
		if len(got) != 2 || got[0].text != "back again" || got[1].text != "directed" || got[1].dst.Addr() != netip.MustParseAddr("192.0.2.255") {
			t.Errorf("%v", got)
		}
		hosts[1].wants(t, "the new subnet's")
		// What still comes with its old address is its own as well.
		hosts[0].raw(ethernet(old, ipUDP(netip.MustParseAddrPort("192.0.2.7:1"), netip.MustParseAddrPort("255.255.255.255:5076"), nil)))
		wait(time.Second)
		hosts[1].wants(t)
		if n := relays[0].drops(drop.Echo); n != 1 {
			t.Errorf("%d were own ones, want 1", n)
		}
	})
}

// One line a minute, when there was something.
func TestSummary(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		hosts, relays := three(w, nil)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w.wg.Go(func() {
			if err := relays[0].e.summarize(ctx); err != nil {
				t.Error(err)
			}
		})
		wait(settle)
		for range 3 {
			hosts[0].send("there")
		}
		hosts[1].send("back")
		hosts[0].sendTo(hosts[0].broadcastTo(9), "another port")
		wait(10 * time.Minute)
		cancel()
		if n := relays[0].log.count("in the last minute"); n != 1 {
			t.Errorf("%d lines: %q", n, relays[0].log.lines)
		}
		if want := "relayed=3 emitted=1 dropped=1"; relays[0].log.count(want) != 1 {
			t.Errorf("want %s: %q", want, relays[0].log.lines)
		}
		if n := relays[0].log.count(""); n > 10 {
			t.Errorf("%d lines in ten minutes: %q", n, fmt.Sprint(relays[0].log.lines))
		}
	})
}
