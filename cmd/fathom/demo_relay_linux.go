// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/lab"
	"github.com/seed5728abee/fathom/relay"
	"github.com/seed5728abee/fathom/relay/epics"
	"github.com/seed5728abee/fathom/relay/epics/epicstest"
	"github.com/seed5728abee/fathom/relay/mesh"
)

// relayFile is examples/relay.toml; a test holds them together.
//
//go:embed demo/relay.toml
var relayFile []byte

const (
	demoPV = "ring:current"
	// demoPlainPort takes broadcasts that are not of EPICS.
	demoPlainPort = 6112
	// demoRepeats is how often a datagram is repeated, byte for byte.
	demoRepeats = 20
	// demoLarge needs seven fragments on an Ethernet.
	demoLarge = 9000
	// takeOver is how long a segment may be without a relay when the one that serves it is killed.
	takeOver = 4 * time.Second
)

// demoRelays are the hosts with relays, and the interface of each.
var demoRelays = []struct{ host, segment string }{
	{"relay-o", "office"}, {"relay-c1", "control"}, {"relay-c2", "control"}, {"relay-b", "beamline"},
}

// relayDemo is the chapter's lab with relays in it.
type relayDemo struct {
	*demo
	lab    *lab.Lab
	ioc    *listener // asked for EPICS names
	heard  map[string]*listener
	key    string
	relays map[string]*lab.Cmd
}

// listener counts the datagrams that come to a host's port.
type listener struct {
	mu     sync.Mutex
	from   []netip.AddrPort
	length []int
}

func (l *listener) add(from netip.AddrPort, length int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.from = append(l.from, from)
	l.length = append(l.length, length)
}

// take gives what came since the last take.
func (l *listener) take() (from []netip.AddrPort, length []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	from, length = l.from, l.length
	l.from, l.length = nil, nil
	return from, length
}

func relayChapter(ctx context.Context, d *demo) (err error) {
	topology, err := lab.Parse(relayFile)
	if err != nil {
		return err
	}
	l, err := lab.Start(ctx, topology, lab.Options{})
	if err != nil {
		return err
	}
	defer l.Close()
	dir, err := os.MkdirTemp("", "fathom-demo")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // what is left is the system's to clear
	p := &relayDemo{demo: d, lab: l, heard: map[string]*listener{}, key: filepath.Join(dir, "mesh.key"), relays: map[string]*lab.Cmd{}}
	key, err := mesh.GenerateKey().AppendText(nil)
	if err != nil {
		return err
	}
	if err := os.WriteFile(p.key, append(key, '\n'), 0o600); err != nil {
		return err
	}
	p.picture(relayFile, "# Try it")

	ctx, stop := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	defer func() {
		stop()
		for _, r := range p.relays {
			_ = r.Wait() // killed with ctx, or before
		}
		err = errors.Join(err, group.Wait())
	}()
	if err := p.listen(ctx, group); err != nil {
		return err
	}
	for i, part := range []func(context.Context) error{p.without, p.start, p.search, p.others, p.stranger, p.kill} {
		if i > 0 {
			p.say("")
		}
		if err := part(ctx); err != nil {
			return err
		}
	}
	p.say("")
	return nil
}

// socket opens a UDP socket on a host, which may broadcast.
func (p *relayDemo) socket(ctx context.Context, host string, port int) (conn net.PacketConn, err error) {
	lc := net.ListenConfig{Control: rawio.Broadcast("")}
	err = p.lab.Host(host).Do(func() error {
		conn, err = lc.ListenPacket(ctx, "udp4", fmt.Sprintf(":%d", port))
		return err
	})
	return conn, err
}

// listen starts the ioc, and those who count what they hear.
func (p *relayDemo) listen(ctx context.Context, group *errgroup.Group) error {
	conn, err := p.socket(ctx, "ioc", epics.PVAPort)
	if err != nil {
		return err
	}
	p.ioc = new(listener)
	server := epicstest.Server{
		Protocol: epics.PVAccess, Names: []string{demoPV}, Port: 5075,
		Heard: func(from netip.AddrPort, _ []string) { p.ioc.add(from, 0) },
	}
	group.Go(func() error { defer conn.Close(); return server.Run(ctx, conn) })
	for _, at := range []struct {
		host string
		port int
	}{{"laptop", epics.PVAPort}, {"laptop", demoPlainPort}, {"ioc", demoPlainPort}, {"relay-b", demoPlainPort}} {
		conn, err := p.socket(ctx, at.host, at.port)
		if err != nil {
			return err
		}
		l := new(listener)
		p.heard[fmt.Sprint(at.host, at.port)] = l
		context.AfterFunc(ctx, func() { conn.Close() })
		group.Go(func() error {
			b := make([]byte, 1<<16)
			for {
				n, from, err := conn.ReadFrom(b)
				if err != nil {
					return nil // closed
				}
				l.add(from.(*net.UDPAddr).AddrPort(), n)
			}
		})
	}
	return nil
}

// ask lets a host search for the process variable.
func (p *relayDemo) ask(ctx context.Context, host string, to netip.Addr, patience time.Duration) (found string, from netip.AddrPort, err error) {
	conn, err := p.socket(ctx, host, 0)
	if err != nil {
		return "", from, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	client := epicstest.Client{Protocol: epics.PVAccess}
	answers, err := client.Search(ctx, conn, netip.AddrPortFrom(to, epics.PVAPort), demoPV)
	from = netip.AddrPortFrom(p.lab.Host(host).Addr(), conn.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer", from, nil
	case err != nil:
		return "", from, err
	}
	return "at " + answers[0].From.Addr().String(), from, nil
}

var everybody = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// without shows that nobody is heard on another segment.
func (p *relayDemo) without(ctx context.Context) error {
	p.heading("without relays")
	found, _, err := p.ask(ctx, "console", everybody, 300*time.Millisecond)
	if err != nil {
		return err
	}
	p.check("console finds "+demoPV, found, "no answer", found == "no answer")
	return nil
}

// start starts the relays, and waits until broadcasts cross to each.
func (p *relayDemo) start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, r := range demoRelays {
		var others []string
		for _, o := range demoRelays {
			if o.host != r.host {
				others = append(others, p.lab.Host(o.host).Addr().String())
			}
		}
		args := append([]string{
			"relay", "-t", r.segment, "--preset", "epics-pva", "-b", fmt.Sprintf("%d,%d", epics.PVAPort, demoPlainPort),
			"--key", p.key, "--log-level", "error", "--other-relays",
		}, others...)
		cmd := p.lab.Host(r.host).Command(ctx, self, args...)
		if err := cmd.Start(); err != nil {
			return err
		}
		p.relays[r.host] = cmd
	}
	p.heading("fathom relay test, at relay-o")
	var reports map[string]string
	settled := func() bool { // of two relays on a segment, one is to stand by
		for _, outcome := range reports {
			if outcome == "standby" {
				return len(reports) == 3
			}
		}
		return false
	}
	for !settled() {
		if reports, err = p.test(ctx, self); err != nil {
			return err
		}
	}
	// The lowest Ethernet address serves, and that is of the host named first in the file.
	for i, r := range demoRelays[1:] {
		truth := []string{"emitted", "standby", "emitted"}[i]
		found := reports[p.lab.Host(r.host).Addr().String()+" "+r.segment]
		p.check(r.host+", on "+r.segment, found, truth, found == truth)
	}
	return nil
}

// test runs fathom relay test on the office's relay, and gives what the others report.
func (p *relayDemo) test(ctx context.Context, self string) (map[string]string, error) {
	out, err := p.lab.Host("relay-o").Command(ctx, self, "relay", "test", "--json", "--timeout", "300ms").Output()
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	reports := map[string]string{}
	for line := range strings.Lines(string(out)) { // none before the relay is there
		var r relay.TestReport
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			return nil, err
		}
		if peer, err := netip.ParseAddrPort(r.Peer); err == nil && r.OK {
			reports[peer.Addr().String()+" "+r.Segment] = r.Outcome
		}
	}
	return reports, nil
}

// settle is how long a broadcast may take to everywhere, on a busy machine.
const settle = 200 * time.Millisecond

// search shows that a search is heard once, as if it came from next door, and that the answer comes straight back.
func (p *relayDemo) search(ctx context.Context) error {
	p.heading("with relays")
	truth := "at " + p.lab.Host("ioc").Addr().String()
	p.ioc.take()
	p.heard[fmt.Sprint("laptop", epics.PVAPort)].take()
	found, from, err := p.ask(ctx, "console", everybody, takeOver)
	if err != nil {
		return err
	}
	p.check("console finds "+demoPV, found, truth, found == truth)
	time.Sleep(settle)
	asked, _ := p.ioc.take()
	p.check("who asked the ioc", fmt.Sprint(asked), fmt.Sprint([]netip.AddrPort{from}), len(asked) == 1 && asked[0] == from)
	also, _ := p.heard[fmt.Sprint("laptop", epics.PVAPort)].take()
	p.check("copies of it at the laptop", fmt.Sprint(len(also)), "1", len(also) == 1)
	directed := netip.MustParseAddr("10.0.3.255")
	if found, _, err = p.ask(ctx, "laptop", directed, takeOver); err != nil {
		return err
	}
	p.check("laptop finds it, by "+directed.String(), found, truth, found == truth)
	return nil
}

// others shows what simple relays lose or double.
func (p *relayDemo) others(ctx context.Context) error {
	p.heading("other broadcasts of the console")
	conn, err := p.socket(ctx, "console", 0)
	if err != nil {
		return err
	}
	defer conn.Close()
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(everybody, demoPlainPort))
	counts := func() []int {
		time.Sleep(settle)
		var n []int
		for _, host := range []string{"ioc", "laptop", "relay-b"} {
			from, _ := p.heard[fmt.Sprint(host, demoPlainPort)].take()
			n = append(n, len(from))
		}
		return n
	}
	counts()
	for range demoRepeats {
		if _, err := conn.WriteTo([]byte("the same, byte for byte"), to); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	found := fmt.Sprint(counts())
	truth := fmt.Sprint([]int{demoRepeats, demoRepeats, demoRepeats})
	p.check(fmt.Sprintf("%d alike: ioc, laptop, relay-b", demoRepeats), found, truth, found == truth)
	if _, err := conn.WriteTo(make([]byte, demoLarge), to); err != nil {
		return err
	}
	time.Sleep(settle)
	_, lengths := p.heard[fmt.Sprint("ioc", demoPlainPort)].take()
	found, truth = fmt.Sprint(lengths), fmt.Sprint([]int{demoLarge})
	p.check(fmt.Sprintf("one of %d bytes, at the ioc", demoLarge), found, truth, found == truth)
	return nil
}

// stranger shows that the mesh takes nothing from who has not its key.
func (p *relayDemo) stranger(ctx context.Context) error {
	p.heading("forged, to the mesh port")
	conn, err := p.socket(ctx, "console", 0)
	if err != nil {
		return err
	}
	defer conn.Close()
	p.heard[fmt.Sprint("laptop", demoPlainPort)].take()
	// A broadcast to port 6112 that claims to be 10.0.2.4's, as SnowSignal's relays send it.
	forged := "SS\xff\xff\xff\xff\xff\xff\x02\x00\x00\x02\x00\x0b\x08\x00" +
		"E\x00\x00\x21\x00\x00\x40\x00\x40\x11\x2e\xc9\x0a\x00\x02\x04\xff\xff\xff\xff" + "\x9c\x40\x17\xe0\x00\x0d\x00\x00" + "trust"
	for range 5 {
		if _, err := conn.WriteTo([]byte(forged), net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.lab.Host("relay-b").Addr(), relay.DefaultMeshPort))); err != nil {
			return err
		}
	}
	time.Sleep(settle)
	from, _ := p.heard[fmt.Sprint("laptop", demoPlainPort)].take()
	p.check("broadcasts at the laptop", fmt.Sprint(len(from)), "0", len(from) == 0)
	return nil
}

// kill shows that the relay that stood by takes over.
func (p *relayDemo) kill(ctx context.Context) error {
	p.heading("relay-c1 is killed")
	if err := p.relays["relay-c1"].Process.Kill(); err != nil {
		return err
	}
	killed := time.Now()
	found := "no answer"
	for time.Since(killed) < takeOver && found == "no answer" {
		var err error
		if found, _, err = p.ask(ctx, "console", everybody, settle); err != nil {
			return err
		}
	}
	truth := "at " + p.lab.Host("ioc").Addr().String()
	took := fmt.Sprintf(", after %.1f s", time.Since(killed).Seconds())
	p.check("console finds "+demoPV, found+took, truth+fmt.Sprintf(", within %.0f s", takeOver.Seconds()), found == truth)
	return nil
}
