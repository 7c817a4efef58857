// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/packet"
)

// twoRouters makes, with a wire of 1 ms each way in the middle,
//
//	A [eth0] ---- [0] R1 [1] ---- wire ---- [0] R2 [1] ---- [eth0] B
//	10.1.0.2      10.1.0.1       10.9.0.1-2       10.2.0.1   10.2.0.2
//
// and the same with fd0N:: for IPv6.
func twoRouters(t testing.TB, nat *NATConfig) (a, b *host, r1, r2 *Router) {
	t.Helper()
	hub := newNamespace(t)
	a = newHost(t, hub, "a", "10.1.0.2/24", "fd01::2/64")
	b = newHost(t, hub, "b", "10.2.0.2/24", "fd02::2/64")
	a.route(t, "10.1.0.1", "fd01::1")
	b.route(t, "10.2.0.1", "fd02::1")
	// The middle: the routers' ports are eth0 of two bare hosts.
	m1, m2 := newHost(t, hub, "m1"), newHost(t, hub, "m2")
	e := runEngine(t)
	open := func(h *host) (c *rawio.FrameConn) {
		h.do(t, func() (err error) {
			c, err = rawio.OpenFrameConn("eth0", rawio.FrameOptions{})
			return err
		})
		return c
	}
	if _, err := e.AddWire([2]*rawio.FrameConn{m1.conn, m2.conn},
		WireConfig{Name: "middle", Forward: Params{Delay: time.Millisecond}, Backward: Params{Delay: time.Millisecond}}); err != nil {
		t.Fatal(err)
	}
	add := func(cfg RouterConfig, ports ...*rawio.FrameConn) *Router {
		t.Helper()
		r, err := e.AddRouter(ports, cfg)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r1 = add(RouterConfig{
		Name:  "R1",
		Ports: []PortConfig{{Addrs: prefixes("10.1.0.1/24", "fd01::1/64")}, {Addrs: prefixes("10.9.0.1/24", "fd09::1/64")}},
		Routes: []Route{
			{Prefix: netip.MustParsePrefix("0.0.0.0/0"), NextHops: []NextHop{{1, netip.MustParseAddr("10.9.0.2")}}},
			{Prefix: netip.MustParsePrefix("::/0"), NextHops: []NextHop{{1, netip.MustParseAddr("fd09::2")}}},
		},
		NAT: nat,
	}, a.conn, open(m1))
	r2 = add(RouterConfig{
		Name:  "R2",
		Ports: []PortConfig{{Addrs: prefixes("10.9.0.2/24", "fd09::2/64")}, {Addrs: prefixes("10.2.0.1/24", "fd02::1/64")}},
		Routes: []Route{
			{Prefix: netip.MustParsePrefix("10.1.0.0/24"), NextHops: []NextHop{{0, netip.MustParseAddr("10.9.0.1")}}},
			{Prefix: netip.MustParsePrefix("fd01::/64"), NextHops: []NextHop{{0, netip.MustParseAddr("fd09::1")}}},
		},
	}, open(m2), b.conn)
	return a, b, r1, r2
}

func prefixes(s ...string) (p []netip.Prefix) {
	for _, s := range s {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

// command runs a program on the host; it skips when there is no such program.
func (h *host) command(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("needs %s", name)
	}
	var out []byte
	h.do(t, func() error {
		out, err = exec.Command(path, args...).CombinedOutput()
		return nil
	})
	return string(out), err
}

func TestRouterPing(t *testing.T) {
	a, b, r1, r2 := twoRouters(t, nil)
	for _, to := range []string{"10.1.0.1", "10.9.0.2", "10.2.0.1", "10.2.0.2", "fd01::1", "fd09::2", "fd02::1", "fd02::2"} {
		if out, err := a.command(t, "ping", "-n", "-c", "2", "-i", "0.05", "-W", "2", to); err != nil {
			t.Errorf("ping %s: %v\n%s\nR1 %+v\nR2 %+v", to, err, out, r1.Counters(), r2.Counters())
		}
	}
	for _, tt := range []struct{ ttl, to, want string }{
		{"1", "10.2.0.2", "From 10.1.0.1"},
		{"2", "10.2.0.2", "From 10.9.0.2"},
		{"1", "fd02::2", "From fd01::1"},
		{"2", "fd02::2", "From fd09::2"},
	} {
		if out, _ := a.command(t, "ping", "-n", "-c", "1", "-W", "2", "-t", tt.ttl, tt.to); !strings.Contains(out, tt.want) {
			t.Errorf("ping -t %s %s: want %q\n%s", tt.ttl, tt.to, tt.want, out)
		}
	}
	// A neighbour that does not exist, a network that does not.
	for _, tt := range []struct{ to, want string }{
		{"10.2.0.77", "Destination Host Unreachable"},
		{"fd02::77", "Address unreachable"},
		{"10.3.0.1", "Time to live exceeded"}, // R1 and R2 have no such network: R2 has no default route
	} {
		if tt.to == "10.3.0.1" {
			tt.want = "Destination Net Unreachable"
		}
		if out, _ := a.command(t, "ping", "-n", "-c", "1", "-W", "3", tt.to); !strings.Contains(out, tt.want) {
			t.Errorf("ping %s: want %q\n%s", tt.to, tt.want, out)
		}
	}
	if c := r2.Counters(); c.Malformed != 0 || c.SendErrors != 0 {
		t.Errorf("R2 counters %+v", c)
	}
	_ = b
}

func TestRouterUDPAndTCP(t *testing.T) {
	a, b, _, r2 := twoRouters(t, nil)
	for _, v := range []struct{ from, to, router string }{
		{"10.1.0.2:0", "10.2.0.2:7", "10.2.0.1:7"}, {"[fd01::2]:0", "[fd02::2]:7", "[fd02::1]:7"},
	} {
		to := b.echoServer(t, v.to)
		c := a.listen(t, v.from)
		for range 5 {
			if _, err := exchange(c, to, 3*time.Second); err != nil {
				t.Errorf("exchange with %v: %v; R2 %+v", to, err, r2.Counters())
			}
		}
		// The router itself has no ports: UDP is unreachable, TCP refused.
		var err error
		a.do(t, func() error {
			var u net.Conn
			if u, err = net.Dial("udp", v.router); err != nil {
				return err
			}
			defer u.Close()
			u.SetDeadline(time.Now().Add(3 * time.Second))
			u.Write([]byte("x"))
			_, err = u.Read(make([]byte, 1))
			return nil
		})
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("UDP to the router %s: %v, want connection refused", v.router, err)
		}
		a.do(t, func() error {
			_, err = net.DialTimeout("tcp", v.router, 3*time.Second)
			return nil
		})
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("TCP to the router %s: %v, want connection refused", v.router, err)
		}
	}
}

func TestRouterLargePing(t *testing.T) {
	a, _, r1, _ := twoRouters(t, nil)
	// 3000 bytes travel as fragments that the routers just forward.
	for _, to := range []string{"10.2.0.2", "fd02::2"} {
		if out, err := a.command(t, "ping", "-n", "-c", "1", "-W", "3", "-s", "3000", to); err != nil {
			t.Errorf("ping -s 3000 %s: %v\n%s\nR1 %+v", to, err, out, r1.Counters())
		}
	}
}

// TestNATNamespaces sends real packets through a NAT: UDP, TCP, ping, and
// errors from behind it.
func TestNATNamespaces(t *testing.T) {
	a, b, r1, _ := twoRouters(t, &NATConfig{Outside: 1, Ports: SequentialPort, PortMin: 40000, PortMax: 40099})
	// B sees the external address.
	s := b.listen(t, "10.2.0.2:9")
	c := a.listen(t, "10.1.0.2:5555")
	if _, err := c.WriteToUDPAddrPort([]byte("hello"), netip.MustParseAddrPort("10.2.0.2:9")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	s.SetReadDeadline(time.Now().Add(3 * time.Second))
	n, from, err := s.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatalf("%v; R1 %+v", err, r1.Counters())
	}
	if want := netip.MustParseAddrPort("10.9.0.1:40000"); from != want || string(buf[:n]) != "hello" {
		t.Errorf("B got %q from %v, want hello from %v", buf[:n], from, want)
	}
	s.WriteToUDPAddrPort([]byte("back"), from)
	c.SetReadDeadline(time.Now().Add(3 * time.Second))
	if n, from, err := c.ReadFromUDPAddrPort(buf); err != nil || string(buf[:n]) != "back" || from.String() != "10.2.0.2:9" {
		t.Errorf("A got %q from %v, %v", buf[:n], from, err)
	}
	m := r1.Mappings()
	if len(m) != 1 || m[0].Internal.String() != "10.1.0.2:5555" || m[0].External.String() != "10.9.0.1:40000" || m[0].Protocol != packet.ProtocolUDP {
		t.Errorf("mappings %+v", m)
	}
	if out, err := a.command(t, "ping", "-n", "-c", "2", "-i", "0.05", "-W", "2", "10.2.0.2"); err != nil {
		t.Errorf("ping through the NAT: %v\n%s", err, out)
	}
	if out, err := a.command(t, "ping", "-n", "-c", "1", "-W", "3", "-s", "3000", "10.2.0.2"); err != nil {
		t.Errorf("fragmented ping through the NAT: %v\n%s", err, out)
	}
	// Traceroute through the NAT: hop 2 is R2, whose error quotes the translated packet.
	if out, _ := a.command(t, "ping", "-n", "-c", "1", "-W", "2", "-t", "2", "10.2.0.2"); !strings.Contains(out, "From 10.9.0.2") {
		t.Errorf("ping -t 2: want an answer from 10.9.0.2\n%s", out)
	}
	// A closed port of B: the port unreachable finds the socket that sent.
	a.do(t, func() error {
		var u net.Conn
		if u, err = net.Dial("udp", "10.2.0.2:11"); err != nil {
			return err
		}
		defer u.Close()
		u.SetDeadline(time.Now().Add(3 * time.Second))
		u.Write([]byte("x"))
		_, err = u.Read(make([]byte, 1))
		return nil
	})
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("UDP to a closed port: %v, want connection refused", err)
	}
	// TCP.
	var l net.Listener
	b.do(t, func() (err error) { l, err = net.Listen("tcp", "10.2.0.2:0"); return err })
	defer l.Close()
	peer := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			peer <- err.Error()
			return
		}
		defer c.Close()
		peer <- c.RemoteAddr().(*net.TCPAddr).IP.String()
	}()
	a.do(t, func() error {
		c, err := net.DialTimeout("tcp", l.Addr().String(), 3*time.Second)
		if err == nil {
			c.Close()
		}
		return err
	})
	if got := <-peer; got != "10.9.0.1" {
		t.Errorf("B sees a TCP connection from %s, want 10.9.0.1", got)
	}
	// B cannot reach A's inside address, nor an external port without mapping.
	if _, err := exchange(s, netip.MustParseAddrPort("10.1.0.2:5555"), 200*time.Millisecond); err == nil {
		t.Error("B reached the inside address")
	}
}
