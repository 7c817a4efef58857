// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ping runs the system's ping on a host, and fails the test unless all is answered.
func ping(t *testing.T, l *Lab, from string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("ping"); err != nil {
		t.Log("ping is not installed")
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	args = append([]string{"-n", "-c", "2", "-i", "0.05", "-W", "2"}, args...)
	if out, err := l.Host(from).Command(ctx, "ping", args...).CombinedOutput(); err != nil {
		t.Errorf("%s: ping %v: %v\n%s", from, args, err, out)
	}
}

// echoServer answers datagrams to a UDP port of a host until the test ends.
func echoServer(t *testing.T, h *Host, addr netip.Addr) netip.AddrPort {
	t.Helper()
	var conn *net.UDPConn
	if err := h.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = conn.WriteToUDPAddrPort(b[:n], from) // a refusal by the asker's host is no concern of ours
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// ask sends a datagram from a host and waits for the answer.
func ask(t *testing.T, h *Host, to netip.AddrPort) (time.Duration, error) {
	t.Helper()
	var conn *net.UDPConn
	if err := h.Do(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	}); err != nil {
		return 0, err
	}
	defer conn.Close()
	start := time.Now()
	if err := conn.SetDeadline(start.Add(time.Second)); err != nil {
		return 0, err
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		return 0, err
	}
	_, err := conn.Read(make([]byte, 16))
	return time.Since(start), err
}

// poll waits until a condition holds, or fails the test.
func poll(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// Host b has service addresses.
//
//	a --- r1 --- r2 --- b
func TestKernelRouters(t *testing.T) {
	l := New(t, MustParse(`
		[host.a]
		[router.r1]
		[router.r2]
		[host.b]
		addresses = ["192.0.2.1", "2001:db8::1"]
		[[wire]]
		ends = ["a", "r1"]
		[[wire]]
		ends = ["r1", "r2"]
		[[wire]]
		ends = ["r2", "b"]
	`))
	b := l.Host("b")
	if got, want := fmt.Sprint(b.Addrs()), "[192.0.2.1 2001:db8::1 10.0.3.2 fd00:1ab:0:3::2]"; got != want {
		t.Errorf("addresses of b: got %s, want %s", got, want)
	}
	for _, addr := range b.Addrs() {
		server := echoServer(t, b, addr)
		if _, err := ask(t, l.Host("a"), server); err != nil {
			t.Errorf("from a to %s: %v", server, err)
		}
	}
	ping(t, l, "a", b.Addr().String())
	ping(t, l, "a", b.Addr6().String())
	if got := l.Host("r2").AddrTowards("r1", 4); got != netip.MustParseAddr("10.0.2.2") {
		t.Errorf("r2 towards r1: got %s, want 10.0.2.2", got)
	}
}

// Two bridges are one LAN, of an explicit IPv4 subnet.
//
//	a --+
//	b --+-- lan1 --- lan2 -- r -- far
func TestBridge(t *testing.T) {
	l := New(t, MustParse(`
		[host.a]
		[host.b]
		[host.far]
		[router.r]
		[bridge.lan1]
		subnets = ["192.168.7.0/24"]
		[bridge.lan2]
		[[wire]]
		ends = ["a", "lan1"]
		[[wire]]
		ends = ["b", "lan1"]
		[[wire]]
		ends = ["lan1", "lan2"]
		[[wire]]
		ends = ["lan2", "r"]
		[[wire]]
		ends = ["r", "far"]
	`))
	for _, h := range []string{"b", "far"} {
		if _, err := ask(t, l.Host("a"), echoServer(t, l.Host(h), l.Host(h).Addr())); err != nil {
			t.Errorf("a to %s: %v", h, err)
		}
	}
	if got := l.Host("b").Addrs(); !slices.Equal(got, []netip.Addr{netip.MustParseAddr("192.168.7.2")}) {
		t.Errorf("addresses of b: got %v, want 192.168.7.2 alone", got)
	}
}

// All paths of a diamond are of equal cost, and flows use both.
//
//	     +-- x --+
//	a - r         s - b
//	     +-- y --+
func TestEqualCostPaths(t *testing.T) {
	l := New(t, MustParse(diamondTopology))
	server := echoServer(t, l.Host("b"), l.Host("b").Addr())
	for range 64 {
		if _, err := ask(t, l.Host("a"), server); err != nil {
			t.Fatal(err)
		}
	}
	x, y := forwarded(t, l, "x"), forwarded(t, l, "y")
	if x == 0 || y == 0 || x+y != 128 {
		t.Errorf("64 questions and answers: %d by x and %d by y, want some by each and 128 in all", x, y)
	}
}

// forwarded is how many IPv4 packets a kernel router has forwarded.
func forwarded(t *testing.T, l *Lab, router string) (n int) {
	t.Helper()
	err := l.Host(router).Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		lines := strings.Split(string(b), "\n")
		names, values := strings.Fields(lines[0]), strings.Fields(lines[1])
		_, err = fmt.Sscan(values[slices.Index(names, "ForwDatagrams")], &n)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// The way there goes by x, the way back by y.
//
//	     +-> x --+
//	a - r         s - b
//	     +-- y <-+
func TestExplicitRoutes(t *testing.T) {
	l := New(t, MustParse(diamondTopology+`
		[[route]]
		at = "r"
		to = "b"
		via = "x"
		[[route]]
		at = "s"
		to = "a"
		via = ["y"]
		[[route]]
		at = "a"
		to = "198.51.100.0/24"
		reject = "prohibit"
	`))
	server := echoServer(t, l.Host("b"), l.Host("b").Addr())
	for range 20 {
		if _, err := ask(t, l.Host("a"), server); err != nil {
			t.Fatal(err)
		}
	}
	if x, y := forwarded(t, l, "x"), forwarded(t, l, "y"); x != 20 || y != 20 {
		t.Errorf("forwarded: %d by x and %d by y, want 20 by each", x, y)
	}
	if _, err := ask(t, l.Host("a"), netip.MustParseAddrPort("198.51.100.1:7")); !errors.Is(err, syscall.EACCES) {
		t.Errorf("to a prohibited network: got %v, want %v", err, syscall.EACCES)
	}
}

// A wire of 15 ms there and 5 ms back is adjusted while running.
//
//	a ~~~~ b
func TestImpairedWire(t *testing.T) {
	l := New(t, MustParse(`
		[host.a]
		[host.b]
		[[wire]]
		ends = ["a", "b"]
		forward = { delay = "15ms" }
		backward = { delay = "5ms" }
	`))
	server := echoServer(t, l.Host("b"), l.Host("b").Addr6())
	if _, err := ask(t, l.Host("a"), server); err != nil { // resolves the neighbour
		t.Fatal(err)
	}
	median := func() time.Duration {
		var all []time.Duration
		for range 11 {
			d, err := ask(t, l.Host("a"), server)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, d)
		}
		slices.Sort(all)
		return all[5]
	}
	if got := median(); got < 20*time.Millisecond || got > 25*time.Millisecond {
		t.Errorf("median round trip %v, want 20 ms", got)
	}
	w, err := l.Wire("b", "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.SetFrom("a", Impairment{}); err != nil {
		t.Fatal(err)
	}
	if got := median(); got < 5*time.Millisecond || got > 9*time.Millisecond {
		t.Errorf("median round trip after the change %v, want 5 ms", got)
	}
	if err := w.Set(Impairment{Loss: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(t, l.Host("a"), server); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("over a wire that loses all: got %v, want %v", err, os.ErrDeadlineExceeded)
	}
	c, err := w.Counters("a")
	if err != nil || c.Lost == 0 || c.Delivered < 23 {
		t.Errorf("counters from a: %+v, %v; want frames delivered and lost", c, err)
	}
	if err := w.Set(Impairment{Loss: 2}); !errors.Is(err, ErrTopology) {
		t.Errorf("loss 2: got %v, want %v", err, ErrTopology)
	}
}

func TestWhatCannotBeSet(t *testing.T) {
	l := New(t, MustParse(diamondTopology))
	w, err := l.Wire("a", "r")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Set(Impairment{Delay: time.Millisecond}); !errors.Is(err, ErrPlainWire) {
		t.Errorf("plain wire: got %v, want %v", err, ErrPlainWire)
	}
	if _, err := l.Wire("a", "b"); !errors.Is(err, ErrNoWire) {
		t.Errorf("wire between strangers: got %v, want %v", err, ErrNoWire)
	}
	if _, err := l.Router("r"); !errors.Is(err, ErrKernelRouter) {
		t.Errorf("kernel router: got %v, want %v", err, ErrKernelRouter)
	}
	if _, err := l.Lookup("nobody"); !errors.Is(err, ErrNoNode) {
		t.Errorf("lookup: got %v, want %v", err, ErrNoNode)
	}
}

// An ordinary user has ping sockets in a lab, and no raw ones.
func TestUnprivileged(t *testing.T) {
	l := New(t, MustParse(`[host.a]`))
	err := l.Host("a").DoUnprivileged(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
		if err == nil {
			unix.Close(fd)
			t.Error("a raw socket without capabilities")
		}
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP); err != nil {
			return fmt.Errorf("ping socket: %w", err)
		}
		return unix.Close(fd)
	})
	if err != nil {
		t.Error(err)
	}
	c := l.Host("a").Command(t.Context(), "sh", "-c", "grep CapEff /proc/self/status")
	c.Unprivileged = true
	out, err := c.Output()
	if got, want := strings.TrimSpace(string(out)), "CapEff:\t0000000000000000"; err != nil || got != want {
		t.Errorf("capabilities of an unprivileged command: got %q, %v; want %q", got, err, want)
	}
}

// Close kills what commands have left behind; afterwards a lab refuses.
func TestCloseKillsDescendants(t *testing.T) {
	l := New(t, MustParse(`[host.a]`))
	pidFile := filepath.Join(t.TempDir(), "pid")
	// The shell ends at once; its child, in a session of its own, would live for an hour.
	orphan := l.Host("a").Command(t.Context(), "sh", "-c", "setsid sleep 3600 >/dev/null 2>&1 & echo $! > "+pidFile)
	if err := orphan.Run(); err != nil {
		t.Fatal(err)
	}
	waiting := l.Host("a").Command(t.Context(), "sleep", "3600")
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := waiting.Wait(); err == nil {
		t.Error("a command survived Close")
	}
	b, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	status := "/proc/" + strings.TrimSpace(string(b)) + "/status"
	poll(t, "the grandchild to die", func() bool {
		b, err := os.ReadFile(status)
		return err != nil || strings.Contains(string(b), "State:\tZ")
	})
	if err := l.Host("a").Do(func() error { return nil }); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Do after Close: got %v, want %v", err, net.ErrClosed)
	}
	if err := l.Host("a").Command(t.Context(), "true").Run(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run after Close: got %v, want %v", err, net.ErrClosed)
	}
}

func TestStartStopsWithContext(t *testing.T) {
	if !capable() {
		t.Skip("needs namespaces")
	}
	ctx, cancel := context.WithCancel(t.Context())
	l, err := Start(ctx, MustParse(diamondTopology), Options{})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	poll(t, "the lab to close", l.closed)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
