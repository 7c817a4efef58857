// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

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

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/relay/epics"
	"github.com/seed5728abee/fathom/relay/epics/epicstest"
)

// epicsNet is two segments with a relay each: hosts ha and hb, relays on ra and rb.
func epicsNet(t *testing.T, flags ...string) *relayNet {
	t.Helper()
	n := newRelayNet(t, "ha ha2 ra", "hb rb")
	for i, host := range []string{"ra", "rb"} {
		other := n.addr([]string{"rb", "ra"}[i], 2-i)
		n.start(host, nil, append([]string{"-t", "seg" + string(rune('1'+i)), "--other-relays=" + other.String()}, flags...)...)
	}
	return n
}

// nextSearch gives the sender of the next search for a name that a host hears.
func nextSearch(t *testing.T, c *net.UDPConn, p epics.Protocol, name string) netip.AddrPort {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(15 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for b := make([]byte, 1<<16); ; {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			t.Fatalf("no search for %s was heard: %v", name, err)
		}
		for s := range epics.Searches(p, b[:n]) {
			if string(s.Name) == name {
				return netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			}
		}
	}
}

// relayLibCA: a search of the Channel Access library of EPICS is heard on the other segment as it is heard on its own: from the
// same address and port.
func relayLibCA(t *testing.T) {
	const name = "ring:current"
	words, err := epicstest.LibCA(name)
	if errors.Is(err, epicstest.ErrNoLibCA) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	n := epicsNet(t, "--preset", "epics-ca")
	here := n.listen("ha2", netip.AddrPortFrom(netip.IPv4Unspecified(), epics.CAPort))
	there := n.listen("hb", netip.AddrPortFrom(netip.IPv4Unspecified(), epics.CAPort))
	cmd := n.lab.Host("ha").Command(t.Context(), words[0], words[1:]...)
	// Nobody's settings are to change where it searches.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "EPICS_") })
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		stdin.Close() // it ends then
		if err := cmd.Wait(); err != nil {
			t.Errorf("the client: %v", err)
		}
	}()
	heard, sent := nextSearch(t, there, epics.ChannelAccess, name), nextSearch(t, here, epics.ChannelAccess, name)
	if heard != sent || heard.Addr() != n.addr("ha", 1) {
		t.Errorf("the search came from %v, and from %v on its own segment; the client is on %v", heard, sent, n.addr("ha", 1))
	}
}

// relayPVAccess: what is searched for on one segment is found on the other, and both protocols' validation lets real messages pass.
func relayPVAccess(t *testing.T) {
	n := epicsNet(t, "--preset", "epics-pva", "--preset", "epics-ca", "--validate", "--count-searches")
	for _, test := range []struct {
		protocol epics.Protocol
		port     uint16
	}{{epics.PVAccess, epics.PVAPort}, {epics.ChannelAccess, epics.CAPort}} {
		server := epicstest.Server{Protocol: test.protocol, Names: []string{"two:val"}, Port: 5075}
		conn := n.listen("hb", netip.AddrPortFrom(netip.IPv4Unspecified(), test.port))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- server.Run(ctx, conn) }()

		var from net.PacketConn
		if err := n.lab.Host("ha").Do(func() (err error) {
			from, err = (&net.ListenConfig{Control: rawio.Broadcast("")}).ListenPacket(ctx, "udp4", ":0")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		client := epicstest.Client{Protocol: test.protocol, Interval: 100 * time.Millisecond}
		patience, stop := context.WithTimeout(ctx, 15*time.Second)
		answers, err := client.Search(patience, from, netip.AddrPortFrom(everyone, test.port), "two:val")
		if err != nil {
			t.Errorf("%v: %v", test.protocol, err)
		} else if got := answers[0].From.Addr(); got != n.addr("hb", 2) {
			t.Errorf("%v: the answer came from %v, the server is on %v", test.protocol, got, n.addr("hb", 2))
		}
		stop()
		from.Close()
		cancel()
		<-done
	}
	out, err := n.command("ra", nil, "searches", "--json").Output()
	if err != nil || !strings.Contains(string(out), `"two:val"`) || !strings.Contains(string(out), n.addr("ha", 1).String()) {
		t.Errorf("fathom relay searches: %v\n%s\nwant who searched for what", err, out)
	}
}

// TestRelayEPICS runs relays between genuine clients and servers.
func TestRelayEPICS(t *testing.T) {
	needRelay(t)
	if !insideLab(t) {
		return
	}
	onlyOurs(t)
	t.Run("LibCA", func(t *testing.T) { t.Parallel(); relayLibCA(t) })
	t.Run("PVAccess", func(t *testing.T) { t.Parallel(); relayPVAccess(t) })
}
