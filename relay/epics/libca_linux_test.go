// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package epics_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/lab"
	"github.com/seed5728abee/fathom/relay/describe"
	"github.com/seed5728abee/fathom/relay/drop"
	"github.com/seed5728abee/fathom/relay/epics"
	"github.com/seed5728abee/fathom/relay/epics/epicstest"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// segment is two hosts that hear each other's broadcasts.
//
//	a ---- lan ---- b
const segment = `
	[host.a]
	[host.b]
	[bridge.lan]

	[[wire]]
	ends = ["a", "lan"]
	[[wire]]
	ends = ["b", "lan"]
`

// listen opens a socket on a host.
func listen(t *testing.T, h *lab.Host, port uint16) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	if err := h.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: int(port)})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestLibCASearches lets the client library of EPICS Base search for names, and hears what it broadcasts.
func TestLibCASearches(t *testing.T) {
	if testing.Short() {
		t.Skip("the library takes its time")
	}
	names := []string{"SR01:BPM:01:X", "SR01:BPM:02:X.DESC", "twoval88"} // the last one fills its eight bytes: its end takes eight more
	command, err := epicstest.LibCA(names...)
	if errors.Is(err, epicstest.ErrNoLibCA) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	l := lab.New(t, lab.MustParse(segment))
	a, b := l.Host("a"), l.Host("b")
	heard := listen(t, b, epics.CAPort)

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := a.Command(ctx, command[0], command[1:]...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "EPICS_") })
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the library's process: %v\n%s", err, stderr.String())
		}
	}()

	stats := epics.NewStats(epics.StatsOptions{})
	deadline, _ := ctx.Deadline()
	if err := heard.SetReadDeadline(deadline); err != nil {
		t.Fatal(err)
	}
	missing := slices.Clone(names)
	buf := make([]byte, 1500)
	for len(missing) > 0 {
		n, from, err := heard.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatalf("heard no search for %q: %v\n%s", missing, err, stderr.String())
		}
		payload := buf[:n]
		t.Logf("%v: %s", from, describe.Datagram(epics.CAPort, payload))
		if got := epics.Valid(epics.ChannelAccess, payload); got != drop.None {
			t.Errorf("%x is %v", payload, got)
		}
		if from.Addr().Unmap() != a.Addr() {
			t.Errorf("heard from %v, want %v", from, a.Addr())
		}
		if n > epics.CAMaxSearch {
			t.Errorf("a datagram of %d bytes", n)
		}
		for s := range epics.Searches(epics.ChannelAccess, payload) {
			if !slices.Contains(names, string(s.Name)) {
				t.Errorf("a search for %q", s.Name)
			}
			missing = slices.DeleteFunc(missing, func(name string) bool { return name == string(s.Name) })
		}
		stats.Add(time.Now(), []epics.Datagram{{Protocol: epics.ChannelAccess, Client: from.Addr().Unmap(), Payload: payload}})
	}
	for _, n := range stats.Top(time.Now(), epics.StatsQuery{Client: a.Addr()}) {
		if !slices.Contains(names, n.Name) || n.Count == 0 {
			t.Errorf("counted %+v", n)
		}
	}
	if sum := stats.Summary(); sum.Names != len(names) {
		t.Errorf("counted %+v", sum)
	}
}

// TestFakesOverBroadcast lets the fake client find the fake server by a real broadcast, in both protocols.
func TestFakesOverBroadcast(t *testing.T) {
	l := lab.New(t, lab.MustParse(segment))
	a, b := l.Host("a"), l.Host("b")
	for _, c := range []struct {
		protocol epics.Protocol
		port     uint16
	}{{epics.ChannelAccess, epics.CAPort}, {epics.PVAccess, epics.PVAPort}} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		conn := listen(t, b, c.port)
		ended := make(chan error)
		go func() {
			s := &epicstest.Server{Protocol: c.protocol, Names: []string{"two:val"}, Port: 5075}
			ended <- s.Run(ctx, conn)
		}()
		client := &epicstest.Client{Protocol: c.protocol, Interval: time.Second}
		last := a.Addr().As4()
		last[3] = 255 // a segment of the lab is a /24
		to := netip.AddrPortFrom(netip.AddrFrom4(last), c.port)
		answers, err := client.Search(ctx, listen(t, a, 0), to, "two:val")
		if err != nil || len(answers) != 1 || answers[0].From.Addr() != b.Addr() || answers[0].Server != netip.AddrPortFrom(b.Addr(), 5075) {
			t.Errorf("%v: %+v, %v, want an answer from %v", c.protocol, answers, err, b.Addr())
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("%v: the server ended with: %v", c.protocol, err)
		}
	}
}
