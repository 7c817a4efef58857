// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inNamespaces runs f on a thread of its own in a new network namespace; there is a second one to go to for a while:
//
//	here: a 192.0.2.1/24 ---- there: b 192.0.2.2/24
//	    2001:db8::1/64           2001:db8::2/64
//
// It skips without privileges.
func inNamespaces(t testing.TB, f func(there func(func()))) {
	t.Helper()
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked, see inNamespace
		var nss [2]netns.NsHandle
		for i := range nss {
			if nss[i], err = netns.New(); err != nil {
				return
			}
			defer nss[i].Close()
			// Addresses are valid at once.
			os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0)
		}
		if err = netns.Set(nss[0]); err != nil {
			return
		}
		there := func(f func()) {
			if err := netns.Set(nss[1]); err != nil {
				t.Error(err)
				return
			}
			defer func() {
				if err := netns.Set(nss[0]); err != nil {
					t.Error(err)
				}
			}()
			f()
		}
		err = netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "a"}, PeerName: "b", PeerNamespace: netlink.NsFd(nss[1]),
		})
		if err != nil {
			return
		}
		if err = setUp("a", "192.0.2.1/24", "2001:db8::1/64"); err != nil {
			return
		}
		there(func() { err = setUp("b", "192.0.2.2/24", "2001:db8::2/64") })
		if err == nil {
			f(there)
		}
	}()
	<-done
	if errors.Is(err, os.ErrPermission) {
		t.Skip("needs CAP_SYS_ADMIN to make a network namespace")
	} else if err != nil {
		t.Fatal(err)
	}
}

// setUp gives an interface addresses and takes it, and the loopback, up.
func setUp(name string, addrs ...string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, s := range addrs {
		p := netip.MustParsePrefix(s)
		a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			return fmt.Errorf("add %s: %w", s, err)
		}
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func openUDP(t testing.TB, o UDPOptions) *UDPConn {
	t.Helper()
	c, err := OpenUDP(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// receiveDatagrams waits until n datagrams have come, with batches of some length, and returns copies.
func receiveDatagrams(t testing.TB, c *UDPConn, n, length int) []Incoming {
	t.Helper()
	p := newPoller(t)
	p.Add(c.FD(), Readable)
	var got []Incoming
	batch := make([]Incoming, length)
	deadline := time.Now().Add(5 * time.Second)
	for len(got) < n && time.Now().Before(deadline) {
		if err := p.Wait(100 * time.Millisecond); err != nil {
			t.Fatal(err)
		}
		for k := length; k == length; {
			var err error
			if k, err = c.Receive(batch); err != nil {
				t.Fatal(err)
			}
			for _, in := range batch[:k] {
				got = append(got, Incoming{in.From, bytes.Clone(in.Data)})
			}
		}
	}
	if len(got) != n {
		t.Fatalf("received %d datagrams, want %d", len(got), n)
	}
	return got
}

// payload is recognizable.
func payload(seq, size int) []byte {
	p := bytes.Repeat([]byte{byte(seq)}, size)
	if size >= 4 {
		binary.BigEndian.PutUint32(p, uint32(seq))
	}
	return p
}

func TestUDPConn(t *testing.T) {
	inNamespaces(t, func(there func(func())) {
		a := openUDP(t, UDPOptions{SendBuffer: 8 << 20})
		var b *UDPConn
		there(func() {
			b = openUDP(t, UDPOptions{Local: netip.MustParseAddrPort("[::]:7124"), ReceiveBuffer: 8 << 20})
		})
		to4, to6 := netip.MustParseAddrPort("192.0.2.2:7124"), netip.MustParseAddrPort("[2001:db8::2]:7124")
		mapped := netip.AddrPortFrom(netip.AddrFrom16(to4.Addr().As16()), 7124)

		type run struct {
			to          netip.AddrPort
			count, size int
		}
		tests := []struct {
			name string
			runs []run
		}{
			{"one", []run{{to4, 1, 142}}},
			{"run", []run{{to4, 300, 142}}},
			{"run with a short end", []run{{to4, 20, 142}, {to4, 1, 5}, {to4, 1, 142}}},
			{"runs of IPv6", []run{{to6, 130, 100}, {to6, 64, 90}, {to6, 2, 95}}},
			{"both in turn", slices.Repeat([]run{{to4, 3, 200}, {to6, 1, 200}}, 50)},
			{"mapped", []run{{mapped, 70, 64}}},
			{"empty ones", []run{{to4, 3, 0}, {to4, 2, 10}, {to4, 1, 0}, {to4, 2, 10}}},
			{"as long as merged ones may be", []run{{to4, 100, 1400}}},
			{"full frames and fragments", []run{{to4, 20, 1500}, {to6, 3, 9000}, {to4, 2, 65507}}},
			{"one byte", []run{{to4, 200, 1}}},
		}
		for _, test := range tests {
			var items []Outgoing
			for _, r := range test.runs {
				for range r.count {
					data := payload(len(items), r.size)
					head := len(data) % 3 // of some
					if len(items)%2 == 0 {
						head = 0
					}
					items = append(items, Outgoing{To: r.to, Head: data[:head], Data: data[head:]})
				}
			}
			n, failed, err := a.Send(items)
			if n != len(items) || len(failed) > 0 || err != nil {
				t.Fatalf("%s: Send of %d: %d, %v, %v", test.name, len(items), n, failed, err)
			}
			// Small batches must not lose what one message holds.
			for i, in := range receiveDatagrams(t, b, len(items), 7) {
				want := slices.Concat(items[i].Head, items[i].Data)
				if !bytes.Equal(in.Data, want) {
					t.Fatalf("%s: datagram %d is %d bytes %.20x, want %d bytes %.20x", test.name, i, len(in.Data), in.Data, len(want), want)
				}
				from := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), a.LocalAddr().Port())
				if items[i].To == to6 {
					from = netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), a.LocalAddr().Port())
				}
				if in.From != from {
					t.Fatalf("%s: datagram %d from %v, want %v", test.name, i, in.From, from)
				}
			}
		}
		if !a.tx.gso {
			t.Error("the kernel refused merged datagrams: this test proves less than it should")
		}
		if n, err := b.Dropped(); n != 0 || err != nil {
			t.Errorf("Dropped = %d, %v", n, err)
		}
		// A way back exists, to a link-local address as well.
		p := newPoller(t)
		p.Add(a.FD(), Readable)
		local := linkLocal(t, "a")
		var zoned netip.AddrPort
		there(func() { zoned = netip.AddrPortFrom(local.WithZone("b"), a.LocalAddr().Port()) })
		there(func() {
			for range 2 {
				if n, failed, err := b.Send([]Outgoing{{To: zoned, Data: []byte("x")}}); n != 1 || len(failed) > 0 || err != nil {
					t.Errorf("Send to %v: %d, %v, %v", zoned, n, failed, err)
				}
			}
		})
		in := receiveDatagrams(t, a, 2, 4)
		if from := in[1].From; from.Addr().Zone() != "a" || from.Port() != 7124 {
			t.Errorf("from %v, want a link-local address with zone a and port 7124", from)
		}
	})
}

func linkLocal(t testing.TB, name string) netip.Addr {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
				return netip.AddrFrom16([16]byte(a.IP))
			}
		}
	}
	t.Fatalf("%s has no link-local address", name)
	return netip.Addr{}
}

// TestUDPSendErrors sends to places that the kernel refuses, in between good ones.
func TestUDPSendErrors(t *testing.T) {
	inNamespaces(t, func(there func(func())) {
		a := openUDP(t, UDPOptions{})
		a4 := openUDP(t, UDPOptions{Local: netip.MustParseAddrPort("0.0.0.0:0")})
		var b *UDPConn
		there(func() { b = openUDP(t, UDPOptions{Local: netip.MustParseAddrPort("[::]:7124")}) })
		good := netip.MustParseAddrPort("192.0.2.2:7124")
		one, long := payload(1, 142), make([]byte, 65508)
		_, hole, _ := net.ParseCIDR("198.51.100.0/24")
		if err := netlink.RouteAdd(&netlink.Route{Dst: hole, Type: unix.RTN_BLACKHOLE}); err != nil {
			t.Fatal(err)
		}
		item := func(to string, data []byte) Outgoing { return Outgoing{To: netip.MustParseAddrPort(to), Data: data} }
		for _, test := range []struct {
			c      *UDPConn
			items  []Outgoing
			failed []SendError
		}{
			{a, []Outgoing{item("192.0.2.2:0", one)}, []SendError{{0, unix.EINVAL}}},
			{a, []Outgoing{{Data: one}}, []SendError{{0, unix.EINVAL}}},
			{a, []Outgoing{item("203.0.113.1:9", one), item("203.0.113.1:9", one)}, []SendError{{0, unix.ENETUNREACH}, {1, unix.ENETUNREACH}}},
			{a, []Outgoing{item("192.0.2.255:9", one)}, []SendError{{0, unix.EACCES}}}, // broadcast
			{a, []Outgoing{item("192.0.2.2:9", long)}, []SendError{{0, unix.EMSGSIZE}}},
			{a, []Outgoing{item("[fe80::1%nowhere]:9", one)}, []SendError{{0, unix.ENODEV}}},
			// EINVAL may also mean that merged datagrams are refused: not here.
			{a, []Outgoing{item("198.51.100.1:9", one), item("198.51.100.1:9", one)}, []SendError{{0, unix.EINVAL}, {1, unix.EINVAL}}},
			{a4, []Outgoing{item("[2001:db8::2]:9", one)}, []SendError{{0, unix.EAFNOSUPPORT}}},
		} {
			good := Outgoing{To: good, Data: one}
			items := slices.Concat([]Outgoing{good, good}, test.items, []Outgoing{good}, test.items)
			want := slices.Clone(test.failed)
			for i := range want {
				want[i].Index += 2
			}
			for _, f := range test.failed {
				want = append(want, SendError{f.Index + 3 + len(test.items), f.Errno})
			}
			n, failed, err := test.c.Send(items)
			if n != len(items) || err != nil || !slices.Equal(failed, want) {
				t.Errorf("Send to %v: %d, %v, %v; want %v", test.items[0].To, n, failed, err, want)
			}
			receiveDatagrams(t, b, 3, 8)
		}
		if !a.tx.gso {
			t.Error("places that are wrong, merged or not, made the socket give merging up")
		}
	})
}

// TestUDPMergingRefused has the kernel refuse merged datagrams.
func TestUDPMergingRefused(t *testing.T) {
	inNamespaces(t, func(there func(func())) {
		var b *UDPConn
		there(func() {
			b = openUDP(t, UDPOptions{Local: netip.MustParseAddrPort("[::]:7124"), ReceiveBuffer: 4 << 20})
		})
		send := func(a *UDPConn, size int) {
			t.Helper()
			items := make([]Outgoing, 100) // more may not fit an ordinary user's buffer
			for i := range items {
				items[i] = Outgoing{To: netip.MustParseAddrPort("192.0.2.2:7124"), Data: payload(i, size)}
			}
			if n, failed, err := a.Send(items); n != len(items) || len(failed) > 0 || err != nil {
				t.Fatalf("Send: %d, %v, %v", n, failed, err)
			}
			for i, in := range receiveDatagrams(t, b, len(items), 64) {
				if !bytes.Equal(in.Data, items[i].Data) {
					t.Fatalf("datagram %d is %.20x, want %.20x", i, in.Data, items[i].Data)
				}
			}
		}
		a := openUDP(t, UDPOptions{SendBuffer: 4 << 20})
		send(a, 142)
		// Datagrams without a checksum cannot be merged, whatever the place.
		if err := unix.SetsockoptInt(a.FD(), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
			t.Fatal(err)
		}
		send(a, 142)
		if a.tx.gso {
			t.Error("the socket still merges after the kernel has refused it")
		}

		// Datagrams of 800 bytes need fragments here, which is the business of this device only.
		a = openUDP(t, UDPOptions{SendBuffer: 4 << 20})
		link, err := netlink.LinkByName("a")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetMTU(link, 600); err != nil { // takes IPv6 away
			t.Fatal(err)
		}
		send(a, 800)
		t.Logf("after a device with a small MTU: merging %v", a.tx.gso)
	})
}

func TestUDPFull(t *testing.T) {
	inNamespaces(t, func(there func(func())) {
		a := openUDP(t, UDPOptions{SendBuffer: 1})
		// Nobody has this address: datagrams wait in the send buffer for somebody to answer.
		items := make([]Outgoing, 1000)
		for i := range items {
			items[i] = Outgoing{To: netip.MustParseAddrPort("192.0.2.9:9"), Data: payload(i, 1000)}
		}
		n, failed, err := a.Send(items)
		if n <= 0 || n >= len(items) || len(failed) > 0 || err != nil {
			t.Errorf("Send into a full buffer: %d of %d, %v, %v", n, len(items), failed, err)
		}

		var b *UDPConn
		there(func() { b = openUDP(t, UDPOptions{Local: netip.MustParseAddrPort("[::]:7124"), ReceiveBuffer: 1}) })
		c := openUDP(t, UDPOptions{SendBuffer: 4 << 20})
		c.tx.gso = false // merged datagrams are dropped as one
		for i := range items {
			items[i] = Outgoing{To: netip.MustParseAddrPort("192.0.2.2:7124"), Data: payload(i, 10)}
		}
		for n := 0; n < len(items); {
			k, failed, err := c.Send(items[n:])
			if len(failed) > 0 || err != nil {
				t.Fatalf("Send: %v, %v", failed, err)
			}
			n += k
		}
		batch := make([]Incoming, len(items))
		received := uint64(0)
		var dropped uint64
		for deadline := time.Now().Add(5 * time.Second); received+dropped < uint64(len(items)) && time.Now().Before(deadline); {
			k, err := b.Receive(batch)
			if err != nil {
				t.Fatal(err)
			}
			received += uint64(k)
			if dropped, err = b.Dropped(); err != nil {
				t.Fatal(err)
			}
		}
		if received == 0 || dropped == 0 || received+dropped != uint64(len(items)) {
			t.Errorf("received %d and dropped %d of %d", received, dropped, len(items))
		}
		if r, s, err := buffersOf(b); r <= 0 || s <= 0 || r > 10000 || err != nil {
			t.Errorf("buffers = %d, %d, %v", r, s, err)
		}
	})
}

// buffersOf tells how large the kernel has made the buffers, in the unit of [UDPOptions].
func buffersOf(c *UDPConn) (receive, send int, err error) {
	receive, err = unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err == nil {
		send, err = unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("look at the buffers: %w", err)
	}
	return receive / 2, send / 2, nil // the kernel doubles what it is given, for its bookkeeping
}

func TestUDPClosed(t *testing.T) {
	c := openUDP(t, UDPOptions{Local: netip.MustParseAddrPort("127.0.0.1:0")})
	if _, err := OpenUDP(UDPOptions{Local: c.LocalAddr()}); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a second socket on %v: %v, want EADDRINUSE", c.LocalAddr(), err)
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if _, _, err := c.Send(nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Send after Close: %v", err)
	}
	if _, err := c.Receive(nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Receive after Close: %v", err)
	}
	if _, err := c.Dropped(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Dropped after Close: %v", err)
	}
}

func TestUDPDropCounter(t *testing.T) {
	var d dropCounter
	for i, step := range []struct {
		now  uint32
		want uint64
	}{{5, 5}, {5, 5}, {1<<32 - 1, 1<<32 - 1}, {3, 1<<32 + 3}} {
		if got := d.add(step.now); got != step.want {
			t.Errorf("step %d: %d, want %d", i, got, step.want)
		}
	}
}

func TestUDPAllocs(t *testing.T) {
	inNamespaces(t, func(there func(func())) {
		a := openUDP(t, UDPOptions{})
		var b *UDPConn
		there(func() { b = openUDP(t, UDPOptions{Local: netip.MustParseAddrPort("[::]:7124")}) })
		// Merged, single, to a link-local address, and failing.
		local := netip.AddrPortFrom(netip.Addr{}, 7124)
		there(func() { local = netip.AddrPortFrom(linkLocal(t, "b").WithZone("a"), 7124) })
		good, bad := netip.MustParseAddrPort("192.0.2.2:7124"), netip.MustParseAddrPort("203.0.113.1:9")
		var items []Outgoing
		for _, to := range []netip.AddrPort{good, good, good, local, bad, bad, local, good} {
			items = append(items, Outgoing{To: to, Head: []byte("SS"), Data: payload(1, 140)})
		}
		batch := make([]Incoming, 16)
		received := 0
		round := func() {
			if n, failed, err := a.Send(items); n != len(items) || len(failed) != 2 || err != nil {
				t.Errorf("Send: %d, %v, %v", n, failed, err)
			}
			n, err := b.Receive(batch)
			if err != nil {
				t.Error(err)
			}
			received += n
		}
		for range 10 {
			round()
		}
		if n := testing.AllocsPerRun(100, round); n != 0 {
			t.Errorf("%v allocations per batch, want 0", n)
		}
		if received < 100 {
			t.Errorf("received %d datagrams: this test proves less than it should", received)
		}
	})
}

// BenchmarkUDP sends datagrams of 142 bytes (one of 100 on the mesh of relays) to a socket in another namespace. Receiving
// begins when all are sent: the kernel's half of it is in what sending costs.
func BenchmarkUDP(b *testing.B) {
	for _, mode := range []struct {
		name     string
		gso, gro bool
	}{{"plain", false, false}, {"merged", true, true}, {"merged, to a plain receiver", true, false}} {
		b.Run(mode.name, func(b *testing.B) {
			inNamespaces(b, func(there func(func())) {
				tx := openUDP(b, UDPOptions{SendBuffer: 8 << 20})
				var rx *UDPConn
				there(func() {
					rx = openUDP(b, UDPOptions{Local: netip.MustParseAddrPort("[::]:7124"), ReceiveBuffer: 8 << 20})
				})
				tx.tx.gso = mode.gso
				if !mode.gro {
					if err := unix.SetsockoptInt(rx.FD(), unix.SOL_UDP, unix.UDP_GRO, 0); err != nil {
						b.Fatal(err)
					}
				}
				items := make([]Outgoing, 1024)
				for i := range items {
					items[i] = Outgoing{To: netip.MustParseAddrPort("192.0.2.2:7124"), Data: payload(i, 142)}
				}
				if _, _, err := tx.Send(items[:1]); err != nil { // the neighbour is found
					b.Fatal(err)
				}
				receiveDatagrams(b, rx, 1, 8)
				batch := make([]Incoming, 256)
				var sending, receiving time.Duration
				total := 0
				b.ReportAllocs()
				for b.Loop() {
					start := time.Now()
					if n, failed, err := tx.Send(items); n != len(items) || len(failed) > 0 || err != nil {
						b.Fatal(n, failed, err)
					}
					middle := time.Now()
					for {
						n, err := rx.Receive(batch)
						if err != nil {
							b.Fatal(err)
						}
						if n == 0 {
							break
						}
						total += n
					}
					sending += middle.Sub(start)
					receiving += time.Since(middle)
				}
				b.ReportMetric(float64(sending.Nanoseconds())/float64(b.N*len(items)), "ns-to-send/datagram")
				b.ReportMetric(float64(receiving.Nanoseconds())/float64(total), "ns-to-receive/datagram")
				b.ReportMetric(float64(total)/float64(b.N*len(items)), "received/sent")
			})
		})
	}
}
