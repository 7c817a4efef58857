// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/packet"
)

// wiredHosts makes
//
//	host A [eth0] ---- wire ---- [eth0] host B
//	192.0.2.1, 2001:db8::1       192.0.2.2, 2001:db8::2
func wiredHosts(t testing.TB, cfg WireConfig) (a, b *host, w *Wire) {
	t.Helper()
	hub := newNamespace(t)
	a = newHost(t, hub, "a", "192.0.2.1/24", "2001:db8::1/64")
	b = newHost(t, hub, "b", "192.0.2.2/24", "2001:db8::2/64")
	e := runEngine(t)
	w, err := e.AddWire([2]*rawio.FrameConn{a.conn, b.conn}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a, b, w
}

// listen opens a UDP socket on the host.
func (h *host) listen(t testing.TB, addr string) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	h.do(t, func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// echoServer answers datagrams with themselves.
func (h *host) echoServer(t testing.TB, addr string) netip.AddrPort {
	t.Helper()
	c := h.listen(t, addr)
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			c.WriteToUDPAddrPort(b[:n], from)
		}
	})
	t.Cleanup(func() { c.Close(); wg.Wait() })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// ping sends echo requests from the host and returns the round-trip times, by
// the kernel's clock on the way back: what the machine takes to wake this
// process is no part of the wire. ok is false when one had no answer.
func (h *host) ping(t testing.TB, to string, count int) (rtts []time.Duration, ok bool) {
	t.Helper()
	dst := netip.MustParseAddr(to).As4()
	h.do(t, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := rawio.AttachFilter(fd, rawio.FilterICMP4(0x4654, 0x4654)); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
			return err
		}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 3}); err != nil {
			return err
		}
		for seq := range count {
			req := []byte{8, 0, 0, 0, 0x46, 0x54, byte(seq >> 8), byte(seq)}
			binary.BigEndian.PutUint16(req[2:], packet.Checksum(req))
			start := time.Now()
			if err := unix.Sendto(fd, req, 0, &unix.SockaddrInet4{Addr: dst}); err != nil {
				return err
			}
			var b, oob [256]byte
			var n, oobn int
			for {
				if n, oobn, _, _, err = unix.Recvmsg(fd, b[:], oob[:], 0); err != unix.EINTR {
					break
				}
			}
			if err == unix.EAGAIN {
				return nil
			}
			if err != nil {
				return err
			}
			if b[n-1] != byte(seq) {
				return fmt.Errorf("answer %x to request %d", b[:n], seq)
			}
			cms, err := unix.ParseSocketControlMessage(oob[:oobn])
			if err != nil || len(cms) != 1 {
				return fmt.Errorf("control messages %x: %w", oob[:oobn], err)
			}
			ts := (*unix.Timespec)(unsafe.Pointer(&cms[0].Data[0]))
			rtts = append(rtts, time.Unix(ts.Unix()).Sub(start.Round(0)))
		}
		ok = true
		return nil
	})
	return rtts, ok
}

// exchange sends one datagram and waits for an answer.
func exchange(c *net.UDPConn, to netip.AddrPort, timeout time.Duration) (time.Duration, error) {
	var b [2048]byte
	c.SetReadDeadline(time.Now().Add(timeout))
	start := time.Now()
	if _, err := c.WriteToUDPAddrPort([]byte("fathom"), to); err != nil {
		return 0, err
	}
	_, _, err := c.ReadFromUDPAddrPort(b[:])
	return time.Since(start), err
}

// TestWireAccuracy holds the promise of the package: a wire of 5 ms each way
// measures 10 ms ± 0.2 ms, in the median, and one of 10 ms each way 20 ms.
func TestWireAccuracy(t *testing.T) {
	for _, delay := range []time.Duration{time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond} {
		t.Run(delay.String(), func(t *testing.T) {
			a, _, _ := wiredHosts(t, WireConfig{Forward: Params{Delay: delay}, Backward: Params{Delay: delay}})
			if _, ok := a.ping(t, "192.0.2.2", 1); !ok { // resolves the addresses
				t.Fatal("no answer")
			}
			// The best of three tries: others work on this machine too.
			var errs []time.Duration
			for range 3 {
				rtts, ok := a.ping(t, "192.0.2.2", 60)
				if !ok {
					t.Fatalf("request %d was not answered", len(rtts))
				}
				slices.Sort(rtts)
				if rtts[0] < 2*delay {
					t.Fatalf("a round trip took %v: faster than the wire", rtts[0])
				}
				t.Logf("round trip: min %v, median %v, p90 %v, max %v", rtts[0], rtts[30], rtts[54], rtts[59])
				errs = append(errs, rtts[30]-2*delay)
				if errs[len(errs)-1] <= 200*time.Microsecond {
					return
				}
			}
			t.Errorf("median round trips are %v over %v, want at most 200µs", errs, 2*delay)
		})
	}
}

func TestWireImpairments(t *testing.T) {
	a, b, w := wiredHosts(t, WireConfig{Seed: 1})
	from, to := a.listen(t, "192.0.2.1:0"), b.listen(t, "192.0.2.2:7")
	dst := netip.MustParseAddrPort("192.0.2.2:7")
	send := func(n int) (got []byte) {
		t.Helper()
		for i := range n {
			if _, err := from.WriteToUDPAddrPort([]byte{byte(i)}, dst); err != nil {
				t.Fatal(err)
			}
		}
		b := make([]byte, 2048)
		to.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		for {
			k, _, err := to.ReadFromUDPAddrPort(b)
			if err != nil {
				return got
			}
			got = append(got, b[:k]...)
		}
	}
	set := func(p Params) {
		t.Helper()
		if err := w.Set(Forward, p); err != nil {
			t.Fatal(err)
		}
	}
	send(1) // resolves the addresses
	if got := send(50); len(got) != 50 || !slices.IsSorted(got) {
		t.Errorf("perfect wire delivered %d of 50: %v", len(got), got)
	}
	set(Params{LossEvery: 1})
	if got := send(20); len(got) != 0 {
		t.Errorf("a cut wire delivered %v", got)
	}
	before := w.Counters(Forward)
	set(Params{Loss: 0.5, Delay: time.Millisecond})
	got := send(200)
	if lost := w.Counters(Forward).Lost - before.Lost; lost < 60 || lost > 140 || len(got) != 200-int(lost) {
		t.Errorf("of 200 frames with loss 0.5, %d arrived and %d were counted lost", len(got), lost)
	}
	set(Params{Duplicate: 1, Delay: time.Millisecond})
	if got := send(10); len(got) != 20 {
		t.Errorf("duplicate: got %v", got)
	}
	set(Params{Reorder: 0.3, Delay: 20 * time.Millisecond})
	if got := send(50); len(got) != 50 || slices.IsSorted(got) {
		t.Errorf("reorder: %d of 50 in the order %v", len(got), got)
	}
	set(Params{Jitter: 5 * time.Millisecond, Delay: 10 * time.Millisecond})
	if got := send(50); len(got) != 50 || !slices.IsSorted(got) {
		t.Errorf("jitter: %d of 50 in the order %v", len(got), got)
	}
	set(Params{Rate: 1e6}) // frames of 43 bytes: 344 µs each
	start := time.Now()
	if _, err := from.WriteToUDPAddrPort(make([]byte, 1250), dst); err != nil {
		t.Fatal(err)
	}
	to.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, _, err := to.ReadFromUDPAddrPort(make([]byte, 2048)); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < 10*time.Millisecond || d > 200*time.Millisecond {
		t.Errorf("1292 bytes at 1 Mbit/s took %v, want 10.3ms", d)
	}
	if p := w.Params(Forward); p.Rate != 1e6 {
		t.Errorf("Params = %+v", p)
	}
	if c := w.Counters(Forward); c.SendErrors != 0 || c.Oversize != 0 {
		t.Errorf("counters %+v", c)
	}
}

// TestWireTCP moves a megabyte over a delayed wire: checksums and segments are real.
func TestWireTCP(t *testing.T) {
	a, b, w := wiredHosts(t, WireConfig{Forward: Params{Delay: time.Millisecond}, Backward: Params{Delay: time.Millisecond}})
	var l net.Listener
	b.do(t, func() (err error) { l, err = net.Listen("tcp", "192.0.2.2:0"); return err })
	defer l.Close()
	const size = 1 << 20
	result := make(chan int, 1)
	go func() {
		total := 0
		defer func() { result <- total }()
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 1<<16)
		for {
			n, err := c.Read(buf)
			total += n
			if err != nil {
				return
			}
		}
	}()
	var c net.Conn
	a.do(t, func() (err error) {
		c, err = net.DialTimeout("tcp", l.Addr().String(), 5*time.Second)
		return err
	})
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if got := <-result; got != size {
		t.Errorf("received %d bytes of %d; wire %+v", got, size, w.Counters(Forward))
	}
	if n := w.Counters(Forward).Oversize; n != 0 {
		t.Errorf("%d frames were longer than the MTU", n)
	}
}

func TestEngineClose(t *testing.T) {
	hub := newNamespace(t)
	a, b := newHost(t, hub, "a"), newHost(t, hub, "b")
	e, err := NewEngine()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- e.Run(context.Background()) }()
	if _, err := e.AddWire([2]*rawio.FrameConn{a.conn, b.conn}, WireConfig{}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := e.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if err := <-done; err != nil && err != net.ErrClosed {
		t.Errorf("Run: %v", err)
	}
	if err := a.conn.Err(); err != net.ErrClosed {
		t.Errorf("Close left a FrameConn open: %v", err)
	}
	if err := e.Run(context.Background()); err != net.ErrClosed {
		t.Errorf("Run after Close: %v", err)
	}
}

// TestGather: frames that come while the engine gathers wait for it, and none is lost.
func TestGather(t *testing.T) {
	hub := newNamespace(t)
	a := newHost(t, hub, "a", "192.0.2.1/24")
	b := newHost(t, hub, "b", "192.0.2.2/24")
	e := runEngine(t)
	const gather = 20 * time.Millisecond
	e.Gather(gather)
	if _, err := e.AddWire([2]*rawio.FrameConn{a.conn, b.conn}, WireConfig{}); err != nil {
		t.Fatal(err)
	}
	rtts, ok := a.ping(t, "192.0.2.2", 10)
	if !ok {
		t.Fatalf("an answer was lost after %v", rtts)
	}
	// Each request but the first finds the engine asleep after the answer to the one before.
	for i, rtt := range rtts[1:] {
		if rtt < gather/2 {
			t.Errorf("answer %d after %v, want it to wait for %v", i+1, rtt, gather)
		}
	}
}
