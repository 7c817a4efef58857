// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/seed5728abee/fathom/internal/rawio"
)

// carriers are ways to get a frame from host a to host b: wires, and a router.
var carriers = []struct {
	name string
	add  func(e *Engine, a, b *host) error
}{
	{"wire", func(e *Engine, a, b *host) error { return addTestWire(e, a, b, Params{}) }},
	{"wire/delay=10ms", func(e *Engine, a, b *host) error {
		return addTestWire(e, a, b, Params{Delay: 10 * time.Millisecond, Jitter: time.Microsecond})
	}},
	{"router", func(e *Engine, a, b *host) error {
		r, err := e.AddRouter([]*rawio.FrameConn{a.conn, b.conn}, RouterConfig{
			Ports: []PortConfig{{Addrs: prefixes("10.1.0.1/24")}, {Addrs: prefixes("10.2.0.1/24")}},
		})
		if err == nil {
			r.neighbours[neighbourKey{1, netip.MustParseAddr("10.2.0.2")}] = &neighbour{mac: macAddr(b.mac), known: true, confirmed: 1 << 62}
		}
		return err
	}},
}

func addTestWire(e *Engine, a, b *host, p Params) error {
	_, err := e.AddWire([2]*rawio.FrameConn{a.conn, b.conn}, WireConfig{Forward: p})
	return err
}

// carrierBench sends batches from the interface of one host and takes them
// from that of another; the engine turns on the calling goroutine.
func carrierBench(t testing.TB, add func(e *Engine, a, b *host) error) (send func(), received func() int, e *Engine) {
	t.Helper()
	hub := newNamespace(t)
	a, b := newHost(t, hub, "a"), newHost(t, hub, "b")
	e, err := NewEngine()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	if err := add(e, a, b); err != nil {
		t.Fatal(err)
	}
	var out, in *rawio.FrameConn
	open := func(h *host, c **rawio.FrameConn) {
		h.do(t, func() (err error) {
			*c, err = rawio.OpenFrameConn("eth0", rawio.FrameOptions{RingFrames: 4096, EtherType: 0x0800})
			return err
		})
		t.Cleanup(func() { (*c).Close() })
	}
	open(a, &out)
	open(b, &in)
	var mac macAddr // of the engine's end, for a router
	hub.do(t, func() error {
		l, err := netlink.LinkByName("a")
		if err == nil {
			mac = macAddr(l.Attrs().HardwareAddr)
		}
		return err
	})
	ip := udp("10.1.0.2:5", "10.2.0.2:7", 64)
	frame := append(append(mac[:], a.mac...), 0x08, 0x00)
	frame = append(frame, ip...)
	batch := make([][]byte, 64)
	for i := range batch {
		batch[i] = frame
	}
	frames := make([]rawio.Frame, 256)
	send = func() {
		if _, err := out.Send(batch); err != nil {
			t.Error(err)
		}
	}
	received = func() (total int) {
		for {
			n, err := in.Receive(frames)
			if err != nil {
				t.Error(err)
			}
			if n == 0 {
				return total
			}
			total += n
		}
	}
	return send, received, e
}

// TestEngineAllocs: in steady state no frame costs an allocation.
func TestEngineAllocs(t *testing.T) {
	for _, c := range carriers {
		t.Run(c.name, func(t *testing.T) {
			send, received, e := carrierBench(t, c.add)
			total := 0
			for range 300 { // fills the pools
				send()
				e.turn()
				total += received()
			}
			// How many frames are under way, and with it how large the pools are, follows the machine's speed
			// of the moment: the state is steady when a run finds them large enough.
			n := 1.0
			for range 10 {
				if n = testing.AllocsPerRun(200, func() {
					send()
					e.turn()
					total += received()
				}); n == 0 {
					break
				}
			}
			if n != 0 {
				t.Errorf("%v allocations per batch of 64 frames, want 0", n)
			}
			if total == 0 {
				t.Error("no frame arrived")
			}
		})
	}
}

// BenchmarkEngine is the cost of a frame of 49 bytes from the sender's system
// call to the receiver's ring, on one thread.
func BenchmarkEngine(b *testing.B) {
	for _, c := range carriers {
		b.Run(c.name, func(b *testing.B) {
			send, received, e := carrierBench(b, c.add)
			total, sent := 0, 0
			b.ReportAllocs()
			for b.Loop() {
				send()
				sent += 64
				e.turn()
				total += received()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(sent), "ns/frame")
			b.ReportMetric(float64(total)/float64(sent), "received/sent")
		})
	}
}

// TestWireUnderLoad: a wire among many, with traffic on the others, still has its delay.
func TestWireUnderLoad(t *testing.T) {
	const delay = 5 * time.Millisecond
	a, b, w := wiredHosts(t, WireConfig{Forward: Params{Delay: delay}, Backward: Params{Delay: delay}})
	from, to := a.listen(t, "192.0.2.1:0"), b.listen(t, "192.0.2.2:9")
	stop, stopped := make(chan struct{}), make(chan int)
	go func() { // some 5000 frames per second
		n := 0
		for {
			select {
			case <-stop:
				stopped <- n
				return
			case <-time.After(time.Millisecond):
				for range 5 {
					from.WriteToUDPAddrPort([]byte("load"), to.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort())
					n++
				}
			}
		}
	}()
	var medians []time.Duration
	for range 3 {
		rtts, ok := a.ping(t, "192.0.2.2", 100)
		if !ok {
			t.Fatalf("request %d was not answered", len(rtts))
		}
		slices.Sort(rtts)
		medians = append(medians, rtts[50])
		if rtts[50] <= 2*delay+200*time.Microsecond {
			break
		}
	}
	close(stop)
	t.Logf("median round trips %v with %d other frames; %s", medians, <-stopped, fmt.Sprintf("%+v", w.Counters(Forward)))
	if m := medians[len(medians)-1]; m > 2*delay+200*time.Microsecond || m < 2*delay {
		t.Errorf("median round trips %v, want within 200µs of %v", medians, 2*delay)
	}
	if c := w.Counters(Forward); c.QueueDrops+c.SendErrors+c.Oversize != 0 {
		t.Errorf("counters %+v", c)
	}
}
