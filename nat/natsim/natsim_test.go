// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package natsim_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"

	"github.com/seed5728abee/fathom/nat/natsim"
)

var (
	addr = netip.MustParseAddr
	ap   = netip.MustParseAddrPort
)

// A host behind a NAT talks to a public one, which sees the NAT's address.
func Example() {
	n := natsim.New(natsim.Options{Delay: 10 * time.Millisecond})
	server := n.Host(addr("192.0.2.1"))
	home := n.NAT(addr("203.0.113.1"), natsim.NATConfig{Ports: natsim.Sequential})
	host := home.Host(addr("10.0.0.2"))

	s, _ := server.ListenUDP(ap("0.0.0.0:7"))
	defer s.Close()
	c, _ := host.ListenUDP(ap("0.0.0.0:4000"))
	defer c.Close()
	_, _ = c.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(ap("192.0.2.1:7")))
	b := make([]byte, 10)
	k, from, _ := s.ReadFrom(b)
	fmt.Printf("%s from %v\n", b[:k], from)
	// Output: hello from 203.0.113.1:20000
}

// hears tells whether a datagram arrives from somewhere.
func hears(t *testing.T, from net.PacketConn, to netip.AddrPort, at net.PacketConn) (netip.AddrPort, bool) {
	t.Helper()
	if _, err := from.WriteTo([]byte{1}, net.UDPAddrFromAddrPort(to)); err != nil {
		t.Fatal(err)
	}
	_ = at.SetReadDeadline(time.Now().Add(time.Second))
	_, src, err := at.ReadFrom(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return netip.AddrPort{}, false
	} else if err != nil {
		t.Fatal(err)
	}
	return src.(*net.UDPAddr).AddrPort(), true
}

func listenUDP(t *testing.T, h *natsim.Host, at string) net.PacketConn {
	t.Helper()
	c, err := h.ListenUDP(ap(at))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Every kind, by what RFC 4787 says that it maps and lets in.
func TestKinds(t *testing.T) {
	lets := map[string][3]bool{ // who was not sent to, another port of who was, who was
		"full-cone":              {true, true, true},
		"restricted":             {false, true, true},
		"port-restricted":        {false, false, true},
		"port-restricted-random": {false, false, true},
		"symmetric-sequential":   {false, false, true},
		"symmetric-random":       {false, false, true},
	}
	for _, kind := range natsim.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := natsim.New(natsim.Options{Delay: 10 * time.Millisecond, Seed: 1})
				one, two := n.Host(addr("192.0.2.1")), n.Host(addr("192.0.2.2"))
				a, b, c := listenUDP(t, one, "0.0.0.0:1"), listenUDP(t, one, "0.0.0.0:2"), listenUDP(t, two, "0.0.0.0:1")
				in := listenUDP(t, n.NAT(addr("203.0.113.1"), kind.NATConfig).Host(addr("10.0.0.2")), "0.0.0.0:4000")

				seen, ok := hears(t, in, ap("192.0.2.1:1"), a)
				if !ok || seen.Addr() != addr("203.0.113.1") {
					t.Fatalf("host was seen as %v (%v)", seen, ok)
				}
				if want := kind.Ports == natsim.Preserve; (seen.Port() == 4000) != want {
					t.Errorf("port 4000 became %d", seen.Port())
				}
				want := lets[kind.Name]
				for i, from := range []net.PacketConn{c, b, a} {
					if _, got := hears(t, from, seen, in); got != want[i] {
						t.Errorf("%v was let in: %v, want %v", from.LocalAddr(), got, want[i])
					}
				}
				again, _ := hears(t, in, ap("192.0.2.2:1"), c)
				if want := kind.Mapping == natsim.EndpointIndependent; (again == seen) != want {
					t.Errorf("seen as %v, and from elsewhere as %v", seen, again)
				}
				if kind.Ports == natsim.Sequential && again.Port() != seen.Port()+1 {
					t.Errorf("port %d after port %d", again.Port(), seen.Port())
				}
				time.Sleep(3 * time.Minute)
				if _, ok := hears(t, a, seen, in); ok {
					t.Error("a mapping has outlived its timeout")
				}
			})
		})
	}
}

func TestHairpinAndStaticMappings(t *testing.T) {
	for _, hairpin := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n := natsim.New(natsim.Options{})
			carrier := n.NAT(addr("203.0.113.1"), natsim.NATConfig{Hairpin: hairpin, Filtering: natsim.AddressAndPortDependent})
			home := carrier.NAT(addr("100.64.0.2"), natsim.NATConfig{})
			a := listenUDP(t, home.Host(addr("10.0.0.2")), "0.0.0.0:4000")
			b := listenUDP(t, carrier.Host(addr("100.64.0.3")), "0.0.0.0:5000")
			if err := carrier.Map(natsim.UDP, ap("100.64.0.3:5000"), 80); err != nil {
				t.Fatal(err)
			}
			if err := carrier.Map(natsim.UDP, ap("100.64.0.2:5000"), 80); err == nil {
				t.Error("a port was mapped twice")
			}
			seen, ok := hears(t, a, ap("203.0.113.1:80"), b)
			if ok != hairpin {
				t.Errorf("hairpin %v: a datagram came through: %v", hairpin, ok)
			}
			if ok && seen != ap("203.0.113.1:4000") {
				t.Errorf("hairpinned datagram came from %v", seen)
			}
			outside := listenUDP(t, n.Host(addr("192.0.2.1")), "0.0.0.0:1")
			if _, ok := hears(t, outside, ap("203.0.113.1:80"), b); !ok {
				t.Error("a static mapping does not let in")
			}
		})
	}
}

func TestLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := natsim.New(natsim.Options{Loss: 0.3, Seed: 2})
		a := listenUDP(t, n.Host(addr("192.0.2.1")), "0.0.0.0:1")
		b := listenUDP(t, n.Host(addr("192.0.2.2")), "0.0.0.0:1")
		arrived := 0
		for range 1000 {
			if _, ok := hears(t, a, ap("192.0.2.2:1"), b); ok {
				arrived++
			}
		}
		if arrived < 650 || arrived > 750 {
			t.Errorf("%d of 1000 arrived with a loss of 30 %%", arrived)
		}
	})
}

// Two hosts behind NATs that let in nobody uninvited connect to each other at once.
func TestSimultaneousOpen(t *testing.T) {
	for _, reject := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n := natsim.New(natsim.Options{Delay: 20 * time.Millisecond})
			cfg := natsim.NATConfig{Filtering: natsim.AddressAndPortDependent, Reject: reject}
			na, nb := n.NAT(addr("203.0.113.1"), cfg), n.NAT(addr("203.0.113.2"), cfg)
			a, b := na.Host(addr("10.0.0.2")), nb.Host(addr("10.0.0.2"))

			if _, err := b.DialTCP(t.Context(), ap("0.0.0.0:1"), ap("203.0.113.1:9")); reject != errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("reject %v: connected to who does not connect: %v", reject, err)
			}
			var conns [2]net.Conn
			var errs [2]error
			var wg sync.WaitGroup
			start := time.Now()
			wg.Go(func() { conns[0], errs[0] = a.DialTCP(t.Context(), ap("0.0.0.0:9"), ap("203.0.113.2:9")) })
			wg.Go(func() { conns[1], errs[1] = b.DialTCP(t.Context(), ap("0.0.0.0:9"), ap("203.0.113.1:9")) })
			wg.Wait()
			if errs[0] != nil || errs[1] != nil {
				t.Fatal(errs)
			}
			if took := time.Since(start); took > 50*time.Millisecond {
				t.Errorf("connected after %v", took)
			}
			if got := conns[0].RemoteAddr().String(); got != "203.0.113.2:9" {
				t.Errorf("connected to %s", got)
			}
			if _, err := conns[0].Write([]byte("x")); err != nil {
				t.Error(err)
			}
			_ = conns[0].Close()
			if got, err := io.ReadAll(conns[1]); string(got) != "x" || err != nil {
				t.Errorf("read %q, %v", got, err)
			}
			_ = conns[1].Close()
			time.Sleep(time.Minute) // what still waits to be sent again sees that it need not
		})
	}
}

func TestTCP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := natsim.New(natsim.Options{Delay: 20 * time.Millisecond})
		server := n.Host(addr("192.0.2.1"))
		client := n.NAT(addr("203.0.113.1"), natsim.NATConfig{}).Host(addr("10.0.0.2"))
		if _, err := client.DialTCP(t.Context(), netip.AddrPort{}, ap("192.0.2.1:7")); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("connected where nobody listens: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := client.DialTCP(ctx, netip.AddrPort{}, ap("192.0.2.9:7")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("connected to nobody: %v", err)
		}
		l, err := server.ListenTCP(ap("0.0.0.0:7"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := server.ListenTCP(ap("0.0.0.0:7")); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("listened twice: %v", err)
		}
		start := time.Now()
		c, err := client.DialTCP(t.Context(), ap("0.0.0.0:9"), ap("192.0.2.1:7"))
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 40*time.Millisecond || took > 41*time.Millisecond {
			t.Errorf("connected after %v, want a round trip", took)
		}
		if _, err := client.DialTCP(t.Context(), ap("0.0.0.0:9"), ap("192.0.2.1:7")); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("connected twice between the same endpoints: %v", err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accepted after closing: %v", err)
		}
		_ = c.Close()
		if _, err := s.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read from who has closed: %v", err)
		}
		if _, err := s.Write([]byte{1}); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("wrote to who has closed: %v", err)
		}
		_ = s.Close()
		time.Sleep(time.Minute)
	})
}

// The ends of a connection do as net.Conn promises.
func TestConn(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		n := natsim.New(natsim.Options{})
		server, client := n.Host(addr("192.0.2.1")), n.Host(addr("192.0.2.2"))
		l, err := server.ListenTCP(ap("0.0.0.0:7"))
		if err != nil {
			return nil, nil, nil, err
		}
		defer l.Close()
		if c1, err = client.DialTCP(context.Background(), netip.AddrPort{}, ap("192.0.2.1:7")); err != nil {
			return nil, nil, nil, err
		}
		c2, err = l.Accept()
		return c1, c2, func() { c1.Close(); c2.Close() }, err
	})
}
