// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/vishvananda/netlink"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/relay/datagram"
	"github.com/seed5728abee/fathom/relay/drop"
	"github.com/seed5728abee/fathom/relay/mesh"
)

// networkEnv marks the process that has a network namespace of its own.
const networkEnv = "FATHOM_RELAY_NETWORK"

// inNetwork runs a test again in a process with a network namespace of its own, and returns true in there.
func inNetwork(t *testing.T) bool {
	t.Helper()
	if os.Getenv(networkEnv) != "" {
		return true
	}
	if testing.Short() {
		t.Skip("takes seconds")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), networkEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if uid := os.Getuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, os.ErrPermission):
		t.Skip("needs a network namespace:", err)
	case err != nil:
		t.Errorf("%v\n%s", err, out)
	case bytes.Contains(out, []byte("--- SKIP")):
		t.Skipf("%s", out)
	}
	return false
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// cable makes a segment: an interface for the relay, with an address, and one for a host, which is that with a 1 in its name.
func cable(t *testing.T, name, addr string) {
	t.Helper()
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name + "0"}, PeerName: name + "1"}))
	for _, end := range []string{name + "0", name + "1"} {
		l, err := netlink.LinkByName(end)
		must(t, err)
		if end == name+"0" {
			a, err := netlink.ParseAddr(addr)
			must(t, err)
			must(t, netlink.AddrAdd(l, a))
		}
		must(t, netlink.LinkSetUp(l))
	}
}

// listener is a host's end of a segment.
type listener struct {
	*rawio.FrameConn
	got []string
}

func listenOn(t *testing.T, name string) *listener {
	t.Helper()
	c, err := rawio.OpenFrameConn(name, rawio.FrameOptions{
		RingFrames: 1024, SnapLen: 2048, Filter: rawio.FilterBroadcast([]rawio.PortRange{{Lo: testPort, Hi: testPort}}, rawio.BroadcastFilter{}),
	})
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return &listener{FrameConn: c}
}

// hear takes in what has come.
func (l *listener) hear(t *testing.T) []string {
	t.Helper()
	frames := make([]rawio.Frame, 64)
	for {
		n, err := l.Receive(frames)
		must(t, err)
		for _, f := range frames[:n] {
			var d datagram.Datagram
			if reason := d.Parse(f.Data, datagram.Capture{Partial: f.PartialChecksum}); reason != drop.None || d.Fragment || d.Finish() != drop.None {
				t.Errorf("%v: %x", reason, f.Data)
				continue
			}
			l.got = append(l.got, string(d.Payload()))
		}
		l.Release()
		if n == 0 {
			return l.got
		}
	}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// Relays with sockets: one with two interfaces, and a peer of it with one.
//
//	x1 ─── x0 ── first ── y0 ─── y1
//	               └── mesh, sealed, over lo ── second ── z0 ─── z1
func TestSockets(t *testing.T) {
	if !inNetwork(t) {
		return
	}
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	cable(t, "x", "10.77.0.1/24")
	cable(t, "y", "10.77.1.1/24")
	cable(t, "z", "10.77.2.1/24")

	registry := prometheus.NewRegistry()
	options := func(port uint16, interfaces ...string) Options {
		return Options{
			Interfaces: interfaces, Ports: onePort(testPort), MeshPort: port, Keys: []mesh.Key{{1}}, Version: "test",
			SourceRate: DefaultSourceRate, SegmentRate: DefaultSegmentRate, RepeatRate: DefaultRepeatRate,
		}
	}
	o := options(7124, "x0", "y0")
	o.Metrics = registry
	first, err := New(o)
	if errors.Is(err, os.ErrPermission) {
		t.Skip(err)
	}
	must(t, err)
	second, err := New(options(7125, "z0"))
	must(t, err)
	if _, err := New(options(7125, "z0")); err == nil || !strings.Contains(err.Error(), "7125 is in use") {
		t.Errorf("a second relay on a mesh port: %v", err)
	}
	missing := options(7126, "w0")
	missing.RequireInterfaces = true
	if _, err := New(missing); err == nil || !strings.Contains(err.Error(), "w0") {
		t.Errorf("an interface that is not there: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 2)
	for _, r := range []*Relay{first, second} {
		go func() { ended <- r.Run(ctx) }()
	}
	// Sources leave out own addresses, as both of these are.
	local := func(port uint16) []netip.AddrPort {
		return []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)}
	}
	first.mesh.SetPeers(local(7125))
	second.mesh.SetPeers(local(7124))
	first.conn.poller.Wake()
	serving := func(r *Relay) bool {
		s := r.Status()
		for _, g := range s.Segments {
			if !g.Up || !g.Serving {
				return false
			}
		}
		return s.Ready && len(s.Peers) == 1 && s.Peers[0].State == mesh.Up
	}
	eventually(t, "both serve, and know each other", func() bool { return serving(first) && serving(second) })

	x, y, z := listenOn(t, "x1"), listenOn(t, "y1"), listenOn(t, "z1")
	frame := func(from byte, text string) []byte {
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 77, from, 9}), 40000)
		return ethernet(datagram.MAC{2, 0, 0, 0, from, 9}, ipUDP(src, netip.AddrPortFrom(datagram.Limited(), testPort), []byte(text)))
	}
	crosses := func(n int) {
		t.Helper()
		x.got, y.got, z.got = nil, nil, nil
		var want []string
		for i := range n {
			want = append(want, fmt.Sprintf("from x %d", i))
			_, err := x.Send([][]byte{frame(0, want[i])})
			must(t, err)
		}
		eventually(t, "all have come to y and z", func() bool { return len(y.hear(t)) >= n && len(z.hear(t)) >= n })
		_, err := z.Send([][]byte{frame(2, "from z")})
		must(t, err)
		eventually(t, "the answer has come to x", func() bool { return len(x.hear(t)) >= 1 })
		want = append(want, "from z")
		eventually(t, "the answer has come to y", func() bool { return len(y.hear(t)) >= n+1 })
		if !slices.Equal(y.got, want) || !slices.Equal(z.hear(t), want[:n]) || !slices.Equal(x.got, want[n:]) {
			t.Errorf("x heard %s, y %s, z %s", brief(x.got), brief(y.got), brief(z.got))
		}
	}
	crosses(200)

	// A test from one end to the other, as the command does it.
	soon, stop := context.WithTimeout(ctx, time.Second)
	reports, err := first.Test(soon, 0)
	must(t, err)
	var outcomes []string
	for r := range reports {
		outcomes = append(outcomes, fmt.Sprint(r.Segment, " ", r.Outcome, " ", r.OK))
	}
	stop()
	slices.Sort(outcomes)
	for _, want := range []string{"x0 captured and relayed true", "y0 captured and relayed true", "z0 emitted true"} {
		if !slices.Contains(outcomes, want) {
			t.Errorf("%q does not have %q", outcomes, want)
		}
	}
	for _, l := range []*listener{x, y, z} {
		l.hear(t)
	}

	// New keys, one relay after the other.
	for _, r := range []*Relay{first, second} {
		must(t, r.SetKeys([]mesh.Key{{2}, {1}}))
	}
	// The cable is pulled, and put in again.
	y0, err := netlink.LinkByName("y0")
	must(t, err)
	must(t, netlink.LinkSetDown(y0))
	eventually(t, "y is down", func() bool { return !first.Status().Ready })
	must(t, netlink.LinkSetUp(y0))
	eventually(t, "y is up", func() bool { return serving(first) })
	// An interface is gone, and there is another one by its name.
	must(t, netlink.LinkDel(y0))
	eventually(t, "y is gone", func() bool {
		s := first.Status().Segments[1]
		return !s.Up && strings.Contains(s.Problem, "y0")
	})
	cable(t, "y", "10.77.3.1/24")
	y = listenOn(t, "y1")
	eventually(t, "y is there again", func() bool { return serving(first) && serving(second) })
	crosses(50)

	if n, err := testutil.GatherAndCount(registry, "fathom_relay_relayed_broadcasts_total"); n != 2 || err != nil {
		t.Errorf("%d series of an interface each, %v", n, err)
	}
	cancel()
	for range 2 {
		must(t, <-ended)
	}
	for _, r := range []*Relay{first, second, first} { // twice does no harm
		must(t, r.Close())
	}
	if n, err := testutil.GatherAndCount(registry); n != 0 || err != nil {
		t.Errorf("a relay that is closed still has %d metrics, %v", n, err)
	}
}
