// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/nat"
	"github.com/seed5728abee/fathom/nat/nattest"
)

// newNATApp is an app whose router is one for tests.
func newNATApp(g *nattest.Gateway) *testApp {
	ta := newTestApp(nil)
	ta.nat = g.Options()
	return ta
}

func TestNATStatus(t *testing.T) {
	g := nattest.New(t, nattest.Behaviour{Methods: []nat.Method{nat.NATPMP, nat.UPnP}})
	g.Age(time.Hour)
	g.Put(nattest.Mapping{
		Protocol: nat.UDP, External: 4100, Internal: netip.MustParseAddrPort("192.0.2.66:4000"), Description: "a game", Expires: time.Now().Add(time.Hour),
	})
	ta := newNATApp(g)
	if code := ta.fathom(t.Context(), "nat", "status"); code != exitDone {
		t.Errorf("exit code %d: %s", code, &ta.err)
	}
	for _, want := range []string{
		"router            127.0.0.1\n", "external address  203.0.113.1\n", "pcp     does not answer", "natpmp  yes", "Test router",
		"udp       4100  192.0.2.66:4000  1h0m0s  a game\n",
	} {
		if !strings.Contains(ta.out.String(), want) {
			t.Errorf("lacks %q:\n%s", want, &ta.out)
		}
	}

	ta = newNATApp(g)
	ta.fathom(t.Context(), "nat", "status", "--json")
	var got natReportJSON
	if err := json.Unmarshal(ta.out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.External.String() != "203.0.113.1" || got.DoubleNAT || len(got.Methods) != 3 || got.Methods[0].Maps || got.Methods[0].Error == "" ||
		!got.Methods[2].Maps || len(got.Leases) != 1 || got.Leases[0].ExternalPort != 4100 {
		t.Errorf("got %s", &ta.out)
	}

	g.Set(func(b *nattest.Behaviour) { b.External = netip.MustParseAddr("192.168.1.2") })
	ta = newNATApp(g)
	if code := ta.fathom(t.Context(), "nat", "status"); code != exitFailed {
		t.Errorf("behind another NAT: exit code %d", code)
	}
	if !strings.Contains(ta.out.String(), "192.168.1.2, which is not public: the router is behind another NAT") || !strings.Contains(ta.err.String(), "bridge") {
		t.Errorf("behind another NAT: %s\n%s", &ta.out, &ta.err)
	}

	g.Down()
	ta = newNATApp(g)
	if code := ta.fathom(t.Context(), "nat", "status", "--timeout", "0.3"); code != exitFailed {
		t.Errorf("nobody there: exit code %d", code)
	}
	if !strings.Contains(ta.err.String(), "no gateway here maps ports") || !strings.Contains(ta.out.String(), "upnp    does not answer") {
		t.Errorf("nobody there: %s\n%s", &ta.out, &ta.err)
	}
}

// lockedBuffer is written by one goroutine and read by another.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// natUntil waits for something that another goroutine does.
func natUntil(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// A mapping is there until the program is asked to end; what happens to it is told.
func TestNATMap(t *testing.T) {
	for _, asJSON := range []bool{false, true} {
		g := nattest.New(t, nattest.Behaviour{Methods: []nat.Method{nat.NATPMP}})
		g.Put(nattest.Mapping{Protocol: nat.TCP, External: 4100, Internal: netip.MustParseAddrPort("192.0.2.66:4000")})
		ta := newNATApp(g)
		ta.nat.CheckInterval = 10 * time.Millisecond
		var out lockedBuffer
		ta.stdout = &out
		ctx, interrupt := context.WithCancel(t.Context())
		code := make(chan int, 1)
		args := []string{"nat", "map", "4100", "--protocol", "both", "--lifetime", "600"}
		if asJSON {
			args = append(args, "--json")
		}
		go func() { code <- ta.fathom(ctx, args...) }()
		natUntil(t, "mapped", func() bool { return strings.Contains(out.String(), "203.0.113.1:4101") })
		g.Set(func(b *nattest.Behaviour) { b.External = netip.MustParseAddr("203.0.113.9") })
		natUntil(t, "changed", func() bool { return strings.Contains(out.String(), "203.0.113.9:4101") })
		if n := len(g.Mappings()); n != 3 {
			t.Errorf("the router has %d mappings", n)
		}
		interrupt()
		if got := <-code; got != exitDone {
			t.Errorf("exit code %d: %s", got, &ta.err)
		}
		if n := len(g.Mappings()); n != 1 {
			t.Errorf("afterwards the router has %d mappings", n)
		}
		if !strings.Contains(ta.err.String(), "port 4100 is taken outside: it is 4101\n") {
			t.Errorf("says %q", &ta.err)
		}
		if !asJSON {
			want := "203.0.113.1:4101/tcp+udp leads to 127.0.0.1:4100 (natpmp, for 10m0s, renewed in time)\n" +
				"203.0.113.9:4101/tcp+udp leads to 127.0.0.1:4100 (natpmp, for 10m0s, renewed in time)\n" +
				"203.0.113.9:4101/tcp+udp is closed\n"
			if out.String() != want {
				t.Errorf("printed %q", out.String())
			}
			continue
		}
		var events []string
		for line := range strings.Lines(out.String()) {
			var e natEventJSON
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			if e.Method != nat.NATPMP || e.Protocol != nat.TCP|nat.UDP || e.Lifetime != 10*time.Minute || e.Expires == nil {
				t.Errorf("got %s", line)
			}
			events = append(events, e.Event)
		}
		if got := strings.Join(events, " "); got != "mapped changed unmapped" {
			t.Errorf("events %s", got)
		}
	}
}

// A command runs while a port is mapped, knows where, and its exit code is ours.
func TestNATMapCommand(t *testing.T) {
	g := nattest.New(t, nattest.Behaviour{})
	for _, tt := range []struct {
		command string
		code    int
		out     string
	}{
		{"echo $FATHOM_NAT_EXTERNAL", 0, "203.0.113.1:4100\n"},
		{"exit 7", 7, ""},
		{"kill -9 $$", 128 + 9, ""},
	} {
		ta := newNATApp(g)
		if got := ta.fathom(t.Context(), "nat", "map", "4100", "--", "sh", "-c", tt.command); got != tt.code {
			t.Errorf("%s: exit code %d: %s", tt.command, got, &ta.err)
		}
		if ta.out.String() != tt.out || !strings.Contains(ta.err.String(), "203.0.113.1:4100/tcp leads to 127.0.0.1:4100") {
			t.Errorf("%s: printed %q, said %q", tt.command, &ta.out, &ta.err)
		}
		if got := g.Mappings(); len(got) != 0 {
			t.Errorf("%s: the router has %+v", tt.command, got)
		}
	}
	ta := newNATApp(g)
	if got := ta.fathom(t.Context(), "nat", "map", "4100", "--", "no-such-program"); got != exitFailed || len(g.Mappings()) != 0 {
		t.Errorf("no such program: exit code %d, mappings %v", got, g.Mappings())
	}

	// Asked to end, we ask the command, and remove the mapping afterwards.
	ta = newNATApp(g)
	var out lockedBuffer
	ta.stdout = &out
	ctx, interrupt := context.WithCancel(t.Context())
	code := make(chan int, 1)
	go func() {
		code <- ta.fathom(ctx, "nat", "map", "4100", "--", "sh", "-c", "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done")
	}()
	natUntil(t, "ready", func() bool { return out.String() == "ready\n" })
	interrupt()
	if got := <-code; got != exitDone || out.String() != "ready\nbye\n" || len(g.Mappings()) != 0 {
		t.Errorf("exit code %d, printed %q, mappings %v", got, out.String(), g.Mappings())
	}
}

func TestNATMapFails(t *testing.T) {
	for _, tt := range []struct {
		name string
		b    nattest.Behaviour
		want string
	}{
		{"refused", nattest.Behaviour{Refuse: true}, "The router's settings say what it allows"},
		{"double NAT", nattest.Behaviour{External: netip.MustParseAddr("100.64.1.1")}, "behind its provider's NAT"},
	} {
		g := nattest.New(t, tt.b)
		ta := newNATApp(g)
		if code := ta.fathom(t.Context(), "nat", "map", "4100"); code != exitFailed || !strings.Contains(ta.err.String(), tt.want) || ta.out.Len() > 0 {
			t.Errorf("%s: exit code %d, printed %q, said %q", tt.name, code, &ta.out, &ta.err)
		}
	}
}
