// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDnsmasq holds that a genuine name server is understood as the one in memory is: Compose and many sites use this one.
func TestDnsmasq(t *testing.T) {
	program, err := exec.LookPath("dnsmasq")
	if err != nil {
		program = "/usr/sbin/dnsmasq" // not in everybody's path
	}
	if _, err := os.Stat(program); err != nil {
		t.Skip("needs dnsmasq, of the package dnsmasq-base")
	}
	t.Parallel()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	hosts := filepath.Join(t.TempDir(), "hosts")
	write := func(lines ...string) {
		t.Helper()
		if err := os.WriteFile(hosts, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("192.0.2.1 tasks.relay", "192.0.2.2 tasks.relay", "2001:db8::2 tasks.relay", "192.0.2.3 a.example.net")

	address := freeAddress(t)
	var output bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	server := exec.CommandContext(ctx, program, "--keep-in-foreground", "--conf-file=/dev/null", "--log-facility=-", "--pid-file=",
		"--user="+me.Username, "--no-resolv", "--no-hosts",
		"--local=/relay/", "--local=/example.net/", // there is nobody else to ask, and it would refuse rather than deny
		"--bind-interfaces", "--listen-address=127.0.0.1",
		"--port="+strconv.Itoa(int(address.Port())), "--addn-hosts="+hosts, "--srv-host=_fathom._udp.example.net,a.example.net,7125")
	server.Stdout, server.Stderr = &output, &output
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = server.Wait() // it was killed
		if t.Failed() {
			t.Logf("dnsmasq:\n%s", &output)
		}
	}()

	u := NewUnion(UnionOptions{
		Sources: []Source{Tasks(7124, "relay"), SRV("_fathom._udp.example.net."), Name(7124, "nobody.example.net.")},
		Own: func(context.Context) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
		},
		Resolver: &net.Resolver{PreferGo: true, Dial: func(dial context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			c, err := d.DialContext(dial, network, address.String())
			if err == nil {
				// A question that is under way when the server goes would be waited for, five seconds after the test.
				context.AfterFunc(ctx, func() { c.Close() })
			}
			return c, err
		}},
	})
	// The server may start after the first question.
	u.pace = pace{100 * time.Millisecond, 100 * time.Millisecond, time.Hour}
	u.watches[1].source.pause = u.pace.pause
	updates := make(chan []netip.AddrPort, 100)
	done := make(chan error)
	go func() { done <- u.Run(ctx, func(peers []netip.AddrPort) { updates <- peers }) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	want := func(peers ...string) {
		t.Helper()
		late := time.After(20 * time.Second)
		var got []string
		for {
			select {
			case p := <-updates:
				if got = texts(p); slices.Equal(got, peers) {
					return
				}
			case <-late:
				t.Fatalf("peers are %v, want %v; status %+v", got, peers, u.Status())
			}
		}
	}
	reload := func() {
		t.Helper()
		if err := server.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	want("192.0.2.2:7124", "[2001:db8::2]:7124", "192.0.2.3:7125")
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		p := u.Status()[2].Problem
		if strings.Contains(p, "no such host") {
			break
		}
		if time.Since(start) > 20*time.Second {
			t.Fatalf("the problem with a name that is not there is %q", p)
		}
	}

	write("192.0.2.1 tasks.relay", "192.0.2.4 tasks.relay", "192.0.2.3 a.example.net")
	reload()
	want("192.0.2.4:7124", "192.0.2.3:7125")

	// The service is lost, and only what is not lost changes.
	write("192.0.2.5 a.example.net")
	reload()
	want("192.0.2.4:7124", "192.0.2.5:7125")
}

// freeAddress finds a port of the loopback address that is free for UDP and TCP.
func freeAddress(t *testing.T) netip.AddrPort {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := netip.MustParseAddrPort(l.Addr().String())
		c, err := net.ListenPacket("udp", address.String())
		l.Close()
		if err == nil {
			c.Close()
			return address
		}
	}
	t.Fatal("no port is free for UDP and TCP")
	return netip.AddrPort{}
}
