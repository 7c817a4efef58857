// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/relay/drop"
)

// batchLen is what a relay under load takes from its ring at a time.
const batchLen = 64

// star is a mesh with a number of peers, and the first of them.
func star(tb testing.TB, peers int, o Options) (m, first *Mesh, now time.Time) {
	tb.Helper()
	now = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	m, err := New(o)
	if err != nil {
		tb.Fatal(err)
	}
	others := make(map[netip.AddrPort]*Mesh)
	var list []netip.AddrPort
	for n := range peers {
		p, err := New(o)
		if err != nil {
			tb.Fatal(err)
		}
		if first == nil {
			first = p
		}
		others[address(n+1)] = p
		list = append(list, address(n+1))
	}
	m.SetPeers(list)
	hub := address(200)
	var out Outbox
	m.Tick(now, &out)
	for range 8 {
		var back Outbox
		for _, i := range out.Items {
			var answers Outbox
			others[i.To].Receive(hub, bytes.Clone(i.Data), new(Inbox), &answers, now)
			for _, a := range answers.Items {
				m.Receive(i.To, bytes.Clone(a.Data), new(Inbox), &back, now)
			}
		}
		out = back
	}
	for _, s := range m.Peers(now) {
		if s.State != Up {
			tb.Fatalf("%+v", s)
		}
	}
	return m, first, now
}

func batch(ok bool) []Frame {
	frames := make([]Frame, batchLen)
	for i := range frames {
		frames[i] = Frame{SS: ssFrame(uint32(i), 128), SSOK: ok} // 100 bytes of UDP payload
	}
	return frames
}

func BenchmarkSend(b *testing.B) {
	for _, c := range []struct {
		name string
		o    Options
		ss   bool
	}{{"ss", Options{}, true}, {"open", Options{}, false}, {"sealed", keyed(1), true}} {
		for _, peers := range []int{1, 3, 10} {
			b.Run(fmt.Sprintf("%s/peers=%d", c.name, peers), func(b *testing.B) {
				m, _, now := star(b, peers, c.o)
				frames := batch(c.ss)
				var out Outbox
				b.ReportAllocs()
				for b.Loop() {
					out.Reset()
					m.Send(frames, &out, now)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batchLen*peers), "ns/frame")
			})
		}
	}
}

func BenchmarkReceive(b *testing.B) {
	b.Run("ss", func(b *testing.B) {
		m, _, now := star(b, 1, Options{})
		data := ssFrame(1, 128)
		var in Inbox
		var out Outbox
		b.ReportAllocs()
		for b.Loop() {
			in.Reset()
			for range batchLen {
				m.Receive(address(1), data, &in, &out, now)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batchLen), "ns/frame")
	})
	b.Run("sealed", func(b *testing.B) {
		m, peer, now := star(b, 1, keyed(1))
		frames := batch(true)
		var out Outbox
		var in Inbox
		n := 0
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			out.Reset()
			m.Send(frames, &out, now)
			b.StartTimer()
			in.Reset()
			for _, o := range out.Items {
				if r := peer.Receive(address(200), o.Data, &in, &out, now); r != drop.None {
					b.Fatal(r)
				}
			}
			n += len(in.Items)
		}
		if n != b.N*batchLen {
			b.Fatalf("%d of %d frames", n, b.N*batchLen)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/frame")
	})
}

// Nothing on the way of a broadcast allocates once the boxes have their size.
func TestNoAllocations(t *testing.T) {
	for _, c := range []struct {
		name string
		o    Options
		ss   bool
	}{{"ss", Options{}, true}, {"open", Options{}, false}, {"sealed", keyed(1), true}} {
		t.Run(c.name, func(t *testing.T) {
			m, peer, now := star(t, 1, c.o)
			frames := batch(c.ss)
			var out, answers Outbox
			var in Inbox
			received := 0
			n := testing.AllocsPerRun(100, func() {
				out.Reset()
				in.Reset()
				m.Send(frames, &out, now)
				for _, o := range out.Items {
					peer.Receive(address(200), o.Data, &in, &answers, now)
				}
				received += len(in.Items)
			})
			if n != 0 || received != 101*batchLen {
				t.Errorf("%v allocations for a batch; %d frames", n, received)
			}
		})
	}
}
