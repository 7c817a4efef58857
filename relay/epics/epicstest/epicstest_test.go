// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package epicstest_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/relay/epics"
	"github.com/seed5728abee/fathom/relay/epics/epicstest"
)

func listen(tb testing.TB) (net.PacketConn, netip.AddrPort) {
	tb.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	return conn, conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// serve runs a server until the test ends.
func serve(t *testing.T, s *epicstest.Server) netip.AddrPort {
	t.Helper()
	conn, at := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx, conn) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the server ended with: %v", err)
		}
	})
	return at
}

func TestSearch(t *testing.T) {
	for _, p := range []epics.Protocol{epics.ChannelAccess, epics.PVAccess} {
		t.Run(p.String(), func(t *testing.T) {
			type search struct {
				from  netip.AddrPort
				names []string
			}
			heard := make(chan search, 10)
			at := serve(t, &epicstest.Server{
				Protocol: p, Names: []string{"a", "b", "other"}, Port: 5075,
				Heard: func(from netip.AddrPort, names []string) { heard <- search{from, names} },
			})
			conn, from := listen(t)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			client := &epicstest.Client{Protocol: p}
			answers, err := client.Search(ctx, conn, at, "a", "b")
			if err != nil || len(answers) != 2 {
				t.Fatalf("%+v, %v", answers, err)
			}
			for _, a := range answers {
				if a.From != at || a.Server != netip.AddrPortFrom(at.Addr(), 5075) {
					t.Errorf("answer: %+v, want from %v", a, at)
				}
			}
			if s := <-heard; s.from != from || !slices.Equal(s.names, []string{"a", "b"}) {
				t.Errorf("heard %+v, want from %v", s, from)
			}

			// What nobody has is searched for again and again, and what was found no more.
			client.Interval = 5 * time.Millisecond
			ctx, cancel = context.WithTimeout(t.Context(), 60*time.Millisecond)
			defer cancel()
			answers, err = client.Search(ctx, conn, at, "a", "none")
			if !errors.Is(err, context.DeadlineExceeded) || len(answers) != 1 || answers[0].Name != "a" {
				t.Errorf("%+v, %v", answers, err)
			}
			<-heard
			if s := <-heard; !slices.Equal(s.names, []string{"none"}) {
				t.Errorf("searched again for %q", s.names)
			}
		})
	}
}

// TestServerDiscovery asks for servers, at another address than the sender's.
func TestServerDiscovery(t *testing.T) {
	at := serve(t, &epicstest.Server{Protocol: epics.PVAccess, Port: 5075, GUID: epics.GUID{7}})
	conn, _ := listen(t)
	reply, replyTo := listen(t)
	for _, b := range [][]byte{
		[]byte("not of EPICS"),
		epics.AppendPVABeacon(nil, binary.LittleEndian, epics.PVABeacon{}),
		epics.AppendPVASearch(nil, binary.LittleEndian, epics.PVASearch{ReplyTo: replyTo}, nil),          // needs no answer
		epics.AppendPVASearch(nil, binary.LittleEndian, epics.PVASearch{Flags: epics.PVAMustReply}, nil), // cannot be answered: port 0
		epics.AppendPVASearch(nil, binary.LittleEndian, epics.PVASearch{Sequence: 9, Flags: epics.PVAMustReply, ReplyTo: replyTo}, nil),
	} {
		if _, err := conn.WriteTo(b, net.UDPAddrFromAddrPort(at)); err != nil {
			t.Fatal(err)
		}
	}
	if err := reply.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1500)
	n, _, err := reply.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	m, _, err := epics.ParsePVA(b[:n])
	if err != nil {
		t.Fatal(err)
	}
	r, err := m.SearchResponse()
	if err != nil || r.Found || r.Sequence != 9 || r.GUID != (epics.GUID{7}) || r.Server.Port() != 5075 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestBeacon(t *testing.T) {
	conn, _ := listen(t)
	to, at := listen(t)
	for _, p := range []epics.Protocol{epics.ChannelAccess, epics.PVAccess} {
		if err := (&epicstest.Server{Protocol: p, Port: 5064}).Beacon(conn, at, 3); err != nil {
			t.Fatal(err)
		}
		if err := to.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1500)
		n, _, err := to.ReadFrom(b)
		if err != nil {
			t.Fatal(err)
		}
		if p == epics.ChannelAccess {
			m, _, err := epics.ParseCA(b[:n])
			if server, ok := m.Server(); err != nil || m.Command != epics.CACommandBeacon || !ok || server.Port() != 5064 || m.Param1 != 3 {
				t.Errorf("%+v, %v", m, err)
			}
			continue
		}
		m, _, err := epics.ParsePVA(b[:n])
		if err != nil {
			t.Fatal(err)
		}
		if beacon, err := m.Beacon(); err != nil || beacon.Sequence != 3 || beacon.Server.Port() != 5064 {
			t.Errorf("%+v, %v", beacon, err)
		}
	}
}

func TestErrors(t *testing.T) {
	conn, at := listen(t)
	s, c := &epicstest.Server{}, &epicstest.Client{}
	if err := s.Run(t.Context(), conn); !errors.Is(err, epicstest.ErrProtocol) {
		t.Errorf("run: %v", err)
	}
	if err := s.Beacon(conn, at, 1); !errors.Is(err, epicstest.ErrProtocol) {
		t.Errorf("beacon: %v", err)
	}
	if _, err := c.Search(t.Context(), conn, at, "a"); !errors.Is(err, epicstest.ErrProtocol) {
		t.Errorf("search: %v", err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	s.Protocol, c.Protocol = epics.ChannelAccess, epics.ChannelAccess
	if err := s.Run(t.Context(), conn); !errors.Is(err, net.ErrClosed) {
		t.Errorf("run on a closed socket: %v", err)
	}
	if _, err := c.Search(t.Context(), conn, at, "a"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("search on a closed socket: %v", err)
	}
}

func Example() {
	listen := func() *net.UDPConn {
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			panic(err)
		}
		return conn
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	server := listen()
	defer server.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s := &epicstest.Server{Protocol: epics.PVAccess, Names: []string{"SR01:BPM:X"}, Port: 5075}
		if err := s.Run(ctx, server); err != nil {
			fmt.Println(err)
		}
	}()

	socket := listen()
	defer socket.Close()
	client := &epicstest.Client{Protocol: epics.PVAccess}
	answers, err := client.Search(ctx, socket, server.LocalAddr().(*net.UDPAddr).AddrPort(), "SR01:BPM:X")
	for _, a := range answers {
		fmt.Println(a.Name, "is at", a.Server)
	}
	if err != nil {
		fmt.Println(err)
	}
	cancel()
	<-ended
	// Output: SR01:BPM:X is at 127.0.0.1:5075
}
