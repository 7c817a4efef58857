// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nat_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/seed5728abee/fathom/lab"
	"github.com/seed5728abee/fathom/nat"
	"github.com/seed5728abee/fathom/nat/nattest"
	"github.com/seed5728abee/fathom/nat/pcp"
)

func TestMain(m *testing.M) {
	code := lab.Main(m)
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// home is a house with a router, and the Internet. miniupnpd is strict about what is public, so that the addresses outside
// are such as somebody has: nothing leaves the lab.
//
//	a --+
//	    +-- lan -- r -- wan        r = 11.22.33.1, wan = 11.22.33.2
//	b --+
const home = `
[host.a]
[host.b]
[host.wan]
[bridge.lan]
subnets = ["192.168.77.0/24"]
[router.r]
[[wire]]
ends = ["r", "lan"]
[[wire]]
ends = ["a", "lan"]
[[wire]]
ends = ["b", "lan"]
[[wire]]
ends = ["r", "wan"]
addresses = [["%s/24"], ["%s/24"]]
`

func newHome(t *testing.T, router, wan string) (*lab.Lab, *nattest.Miniupnpd) {
	t.Helper()
	l := lab.New(t, lab.MustParse(fmt.Sprintf(home, router, wan)))
	return l, nattest.NewMiniupnpd(t, l.Host("r"), "lan", "wan")
}

// at makes a host of the lab the one that maps.
func at(h *lab.Host, method nat.Method) nat.Options { return nat.Options{Method: method, Do: h.Do} }

func discoverAt(t *testing.T, h *lab.Host, method nat.Method) *nat.Mapper {
	t.Helper()
	m, err := nat.Discover(t.Context(), at(h, method))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// serve answers what comes to a port of a host, over TCP and UDP, with the host's name and what came.
func serve(t *testing.T, h *lab.Host, port uint16) {
	t.Helper()
	var l net.Listener
	var c net.PacketConn
	err := h.Do(func() (err error) {
		if l, err = net.Listen("tcp4", fmt.Sprintf(":%d", port)); err != nil {
			return err
		}
		c, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{}, 2)
	t.Cleanup(func() { l.Close(); c.Close(); <-done; <-done })
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			buf := make([]byte, 64)
			n, _ := conn.Read(buf)
			fmt.Fprintf(conn, "%s heard %s", h.Name(), buf[:n])
			conn.Close()
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		buf := make([]byte, 64)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo(fmt.Appendf(nil, "%s heard %s", h.Name(), buf[:n]), from)
		}
	}()
}

// call says something to an address, and returns what is answered, or nothing.
func call(h *lab.Host, network string, to netip.AddrPort) string {
	var conn net.Conn
	err := h.Do(func() (err error) {
		conn, err = net.DialTimeout(network, to.String(), 300*time.Millisecond)
		return err
	})
	if err != nil {
		return ""
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
	io.WriteString(conn, "hello")
	buf := make([]byte, 64)
	n, _ := conn.Read(buf)
	return string(buf[:n])
}

// reached waits until a call from outside is answered by a host.
func reached(t *testing.T, l *lab.Lab, network string, to netip.AddrPort, by string) {
	t.Helper()
	until(t, fmt.Sprintf("%s to %v reaches %s", network, to, by), func() bool { return call(l.Host("wan"), network, to) == by+" heard hello" })
}

// Debian's miniupnpd on a real NAT, by every method.
func TestMiniupnpd(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	l, daemon := newHome(t, "11.22.33.1", "11.22.33.2")
	a, b := l.Host("a"), l.Host("b")
	serve(t, a, 4100)
	serve(t, b, 4100)

	t.Run("Survey", func(t *testing.T) {
		r, err := nat.Survey(t.Context(), at(a, nat.Auto))
		if err != nil {
			t.Fatal(err)
		}
		if r.Gateway.String() != "192.168.77.1" || r.Local.String() != "192.168.77.2" || r.External.String() != "11.22.33.1" || r.DoubleNAT {
			t.Errorf("got %+v", r)
		}
		for _, answer := range r.Answers {
			if answer.Err != nil {
				t.Errorf("%v: %v", answer.Method, answer.Err)
			}
		}
	})

	for _, method := range methods {
		t.Run(method.String(), func(t *testing.T) {
			ours := discoverAt(t, a, method)
			mapping, err := ours.Map(t.Context(), nat.Request{Protocol: nat.TCP | nat.UDP, InternalPort: 4100, Lifetime: 10 * time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			s := mapping.State()
			if s.External.String() != "11.22.33.1:4100" || s.Internal.String() != "192.168.77.2:4100" || s.Method != method ||
				s.Lifetime < 9*time.Minute || s.Lifetime > 10*time.Minute {
				t.Errorf("state %+v", s)
			}
			reached(t, l, "tcp4", s.External, "a")
			reached(t, l, "udp4", s.External, "a")

			// The other host wants the same port: it gets the next one, and takes nothing away.
			theirs, err := discoverAt(t, b, method).Map(t.Context(), nat.Request{Protocol: nat.TCP | nat.UDP, InternalPort: 4100})
			if err != nil {
				t.Fatal(err)
			}
			if got := theirs.External().String(); got != "11.22.33.1:4101" {
				t.Errorf("the second host got %s", got)
			}
			reached(t, l, "udp4", theirs.External(), "b")
			reached(t, l, "udp4", s.External, "a")

			// Removing one leaves the other.
			if err := mapping.Close(); err != nil {
				t.Error(err)
			}
			until(t, "closed", func() bool { return call(l.Host("wan"), "udp4", s.External) == "" })
			reached(t, l, "tcp4", theirs.External(), "b")
			if err := theirs.Close(); err != nil {
				t.Error(err)
			}
			if got := daemon.Forwarded(); strings.Contains(got, "4100") {
				t.Errorf("after Close the NAT has %s", got)
			}
		})
	}

	t.Run("ShortLease", func(t *testing.T) {
		mapping, err := discoverAt(t, a, nat.Auto).Map(t.Context(), nat.Request{InternalPort: 4100, Lifetime: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		defer mapping.Close()
		if got := mapping.State().Lifetime; got != 2*time.Minute { // its minimum, which counts
			t.Errorf("granted %v", got)
		}
	})

	// What a program that was killed has left, it gets back when it is started again, by whatever method.
	t.Run("LeftBehind", func(t *testing.T) {
		for _, method := range append(methods, nat.Auto) {
			leaveBehind(t, a, 4100)
			mapping, err := discoverAt(t, a, method).Map(t.Context(), nat.Request{InternalPort: 4100})
			if err != nil {
				t.Errorf("%v: %v", method, err)
				continue
			}
			if got := mapping.External().Port(); got != 4100 {
				t.Errorf("%v: got port %d", method, got)
			}
			mapping.Close()
		}
	})
}

// leaveBehind maps a TCP port by PCP with a nonce that nobody knows any more.
func leaveBehind(t *testing.T, h *lab.Host, port uint16) {
	t.Helper()
	err := h.Do(func() error {
		conn, err := net.Dial("udp4", "192.168.77.1:5351")
		if err != nil {
			return err
		}
		defer conn.Close()
		r := pcp.Request{
			Opcode: pcp.Map, Lifetime: time.Hour, Client: h.Addr(),
			Mapping: pcp.Mapping{Nonce: pcp.Nonce{1}, Protocol: pcp.TCP, InternalPort: port, External: netip.AddrPortFrom(netip.IPv4Unspecified(), port)},
		}
		if _, err := conn.Write(r.Append(nil)); err != nil {
			return err
		}
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		buf := make([]byte, pcp.MaxSize)
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		if answer, err := pcp.ParseResponse(buf[:n]); err != nil || answer.Result != pcp.Success {
			return fmt.Errorf("got %+v: %w", answer, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The router is switched off and on. It announces that, which those hear who map by PCP or NAT-PMP; its UPnP service, which is at
// another port then, is found again by looking.
func TestMiniupnpdRestarts(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	l, daemon := newHome(t, "11.22.33.1", "11.22.33.2")
	var mappings []*nat.Mapping
	for i, method := range methods {
		port := uint16(4100 + i)
		serve(t, l.Host("a"), port)
		o := at(l.Host("a"), method)
		if method == nat.UPnP {
			o.CheckInterval = time.Second
		}
		m, err := nat.Discover(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		mapping, err := m.Map(t.Context(), nat.Request{InternalPort: port})
		if err != nil {
			t.Fatal(err)
		}
		reached(t, l, "tcp4", mapping.External(), "a")
		mappings = append(mappings, mapping)
	}
	time.Sleep(3 * time.Second) // for a clock that is seen to go back
	daemon.Kill()
	for _, mapping := range mappings {
		if got := call(l.Host("wan"), "tcp4", mapping.External()); got != "" {
			t.Fatalf("%v is open although the router is off: %q", mapping.External(), got)
		}
	}
	daemon.Start()
	for i, mapping := range mappings {
		reached(t, l, "tcp4", netip.AddrPortFrom(netip.MustParseAddr("11.22.33.1"), uint16(4100+i)), "a")
		if s := mapping.State(); s.External.Port() != s.Internal.Port() {
			t.Errorf("%v: %v became %v", s.Method, s.Internal, s.External)
		}
	}
}

// A router with a private address outside is behind another NAT.
func TestMiniupnpdDoubleNAT(t *testing.T) {
	l, _ := newHome(t, "10.99.0.1", "10.99.0.2")
	for _, method := range append(methods, nat.Auto) {
		m := discoverAt(t, l.Host("a"), method)
		if _, err := m.Map(t.Context(), nat.Request{InternalPort: 4100}); !errors.Is(err, nat.ErrDoubleNAT) {
			t.Errorf("%v: %v", method, err)
		}
	}
	r, err := nat.Survey(t.Context(), at(l.Host("a"), nat.Auto))
	if err != nil || !r.DoubleNAT {
		t.Errorf("survey: %+v, %v", r, err)
	}
}
