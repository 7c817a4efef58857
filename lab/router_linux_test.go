// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func example(t *testing.T, file string) *Topology {
	t.Helper()
	topology, err := ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	return topology
}

// hop sends a UDP datagram with a hop limit and returns who answered with which error, as an
// ordinary user learns it (IP_RECVERR). The zero Addr is nobody within a while.
func hop(t *testing.T, h *Host, to netip.Addr, ttl int, port uint16, wait time.Duration) netip.Addr {
	t.Helper()
	var from netip.Addr
	err := h.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, opt := range []struct{ name, value int }{{unix.IP_TTL, ttl}, {unix.IP_RECVERR, 1}} {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, opt.name, opt.value); err != nil {
				return err
			}
		}
		if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: int(port), Addr: to.As4()}); err != nil {
			return err
		}
		poll := []unix.PollFd{{Fd: int32(fd)}}
		if n, err := unix.Poll(poll, int(wait.Milliseconds())); err != nil || n == 0 {
			return err
		}
		oob := make([]byte, 512)
		_, oobn, _, _, err := unix.Recvmsg(fd, make([]byte, 64), oob, unix.MSG_ERRQUEUE)
		if err != nil {
			return err
		}
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return err
		}
		for _, m := range messages {
			// struct sock_extended_err is 16 bytes; the offender's struct sockaddr_in follows.
			if m.Header.Type == unix.IP_RECVERR && len(m.Data) >= 24 {
				from = netip.AddrFrom4([4]byte(m.Data[20:24]))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("hop %d to %s: %v", ttl, to, err)
	}
	return from
}

// Each router misbehaves in its way.
//
//	a --- silent --- slow --- liar --- wall --- b
func TestMisbehavingRouters(t *testing.T) {
	topology := example(t, "misbehaving.toml")
	topology.Wires[1].Impairment.Loss = 0 // no luck in this test
	l := New(t, topology)
	a, b := l.Host("a"), l.Host("b").Addr()
	const soon = 300 * time.Millisecond
	if got := hop(t, a, b, 5, 33434, time.Second); got != b {
		t.Errorf("b answered as %v, want %s", got, b)
	}
	if got := hop(t, a, b, 1, 33434, soon); got.IsValid() {
		t.Errorf("the silent router answered as %s", got)
	}
	if got, want := hop(t, a, b, 3, 33434, time.Second), netip.MustParseAddr("192.168.255.1"); got != want {
		t.Errorf("the liar answered as %v, want %s", got, want)
	}
	if got, want := hop(t, a, b, 9, 53, time.Second), l.Host("wall").AddrTowards("liar", 4); got != want {
		t.Errorf("the wall answered as %v, want %s", got, want)
	}
	answers := 0
	for range 20 {
		if hop(t, a, b, 2, 33434, 10*time.Millisecond).IsValid() {
			answers++
		}
	}
	if answers < 3 || answers > 8 { // a burst of 3, and 10 per second for 170 ms
		t.Errorf("the slow router answered %d of 20, want 3 to 8", answers)
	}

	// The silent one learns to speak.
	r, err := l.Router("silent")
	if err != nil {
		t.Fatal(err)
	}
	if !r.Behaviour().Silent {
		t.Error("the silent router does not know that it is")
	}
	if err := r.SetBehaviour(Behaviour{}); err != nil {
		t.Fatal(err)
	}
	if got, want := hop(t, a, b, 1, 33434, time.Second), l.Host("silent").AddrTowards("a", 4); got != want {
		t.Errorf("the router that was silent answered as %v, want %s", got, want)
	}
	if err := r.SetBehaviour(Behaviour{ICMPRate: -1}); !errors.Is(err, ErrTopology) {
		t.Errorf("a negative rate: got %v, want %v", err, ErrTopology)
	}
}

// Both homes have the same private addresses; nobody outside has a way in.
//
//	laptop --- nat1 --- isp --- isp2 --- nat2 --- phone
//	                     |
//	                   server
func TestNAT(t *testing.T) {
	l := New(t, example(t, "home.toml"))
	var server *net.UDPConn
	if err := l.Host("server").Do(func() (err error) {
		server, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(l.Host("server").Addr(), 0)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	port := server.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	for host, outside := range map[string]string{"laptop": "100.64.1.2", "phone": "100.64.2.2"} {
		var conn *net.UDPConn
		if err := l.Host(host).Do(func() (err error) {
			conn, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(l.Host("server").Addr(), port)))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		_ = server.SetReadDeadline(time.Now().Add(2 * time.Second))
		_, from, err := server.ReadFromUDPAddrPort(make([]byte, 64))
		if err != nil {
			t.Fatalf("from %s: %v", host, err)
		}
		if got := from.Addr().Unmap().String(); got != outside {
			t.Errorf("%s appears as %s, want %s", host, got, outside)
		}
		if _, err := server.WriteToUDPAddrPort([]byte("back"), from); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		if _, err := conn.Read(make([]byte, 64)); err != nil {
			t.Errorf("answer to %s: %v", host, err)
		}
	}
	stranger := echoServer(t, l.Host("isp2"), l.Host("isp2").AddrTowards("isp", 4))
	if _, err := ask(t, l.Host("laptop"), stranger); err != nil {
		t.Errorf("the laptop asks isp2: %v", err)
	}
	inside, isp := netip.MustParseAddr("192.168.1.2"), l.Host("isp").AddrTowards("server", 4)
	if got := hop(t, l.Host("server"), inside, 9, 33434, time.Second); got != isp {
		t.Errorf("a private address seen from the server: %v answers, want %s (unreachable)", got, isp)
	}
}

// What goes into the loop dies there; the rest is delivered.
//
//	a --- r1 === r2 --- b
func TestLoop(t *testing.T) {
	l := New(t, example(t, "loop.toml"))
	a, lost := l.Host("a"), netip.MustParseAddr("198.51.100.1")
	want := [2]netip.Addr{l.Host("r2").AddrTowards("r1", 4), l.Host("r1").AddrTowards("r2", 4)}
	for ttl := 2; ttl < 10; ttl++ {
		got := hop(t, a, lost, ttl, 33434, time.Second)
		// The kernel answers r1's share from the interface that leads back to a.
		if got != want[ttl%2] && got != l.Host("r1").AddrTowards("a", 4) {
			t.Errorf("hop %d: %v, want %s", ttl, got, want[ttl%2])
		}
	}
	if got := hop(t, a, netip.MustParseAddr("203.0.113.1"), 9, 33434, 200*time.Millisecond); got.IsValid() {
		t.Errorf("%s answered from a black hole", got)
	}
	if got, b := hop(t, a, l.Host("b").Addr(), 9, 33434, time.Second), l.Host("b").Addr(); got != b {
		t.Errorf("b answered as %v, want %s", got, b)
	}
}

// Every example can be built, and its first two hosts reach each other.
func TestExamplesRun(t *testing.T) {
	for _, file := range exampleFiles(t) {
		topology, err := ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(topology.Name, func(t *testing.T) {
			l := New(t, topology)
			var from, to *Host
			for _, h := range l.nodes {
				switch {
				case h.Kind() != KindHost:
				case from == nil:
					from = h
				default:
					to = h
				}
			}
			if _, err := ask(t, from, echoServer(t, to, to.Addr())); err != nil {
				t.Errorf("%s to %s: %v", from.Name(), to.Name(), err)
			}
		})
	}
}

// One router that stands for five is five hops of a path, each of which can be reached.
//
//	a --- long, five hops --- r --- b
func TestRouterOfSeveralHops(t *testing.T) {
	l := New(t, MustParse(`
		[host.a]
		[router.long]
		hops = 5
		[router.r]
		[host.b]
		[[wire]]
		ends = ['a', 'long']
		[[wire]]
		ends = ['long', 'r']
		[[wire]]
		ends = ['r', 'b']
	`))
	a, b := l.Host("a"), l.Host("b")
	addrs := l.Host("long").Addrs()
	for i := range 5 {
		want := addrs[2*i] // IPv4 and IPv6 in turn
		if got := hop(t, a, b.Addr(), i+1, 33434, 5*time.Second); got != want {
			t.Errorf("hop %d answered as %v, want %s", i+1, got, want)
		}
		if got := hop(t, b, a.Addr(), 6-i, 33434, 5*time.Second); got != want {
			t.Errorf("hop %d from behind answered as %v, want %s", 6-i, got, want)
		}
	}
	if got, want := hop(t, a, b.Addr(), 6, 33434, 5*time.Second), l.Host("r").AddrTowards("long", 4); got != want {
		t.Errorf("hop 6 answered as %v, want %s", got, want)
	}
	if got := hop(t, a, b.Addr(), 7, 33434, 5*time.Second); got != b.Addr() {
		t.Errorf("hop 7 answered as %v, want %s", got, b.Addr())
	}
	ping(t, l, "a", b.Addr6().String())
	ping(t, l, "b", addrs[0].String())
	ping(t, l, "a", addrs[9].String())
}
