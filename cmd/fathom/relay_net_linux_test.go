// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/lab"
)

// relayVariable is a command to test in place of "fathom relay": another relay that takes the same flags. What only ours
// promises is then left out.
const relayVariable = "FATHOM_TEST_RELAY"

// originVariable is the command of another relay, which is then put beside ours. It is for trying that by hand.
const originVariable = "FATHOM_TEST_ORIGIN"

const (
	broadcastPort = 5076
	relayMeshPort = 7124
)

var everyone = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// relayCommand is the relay under test.
func relayCommand() []string {
	if c := strings.Fields(os.Getenv(relayVariable)); len(c) > 0 {
		return c
	}
	return []string{"fathom", "relay"}
}

// foreignRelay tells that the relay under test is not ours.
func foreignRelay() bool { return os.Getenv(relayVariable) != "" }

// onlyOurs skips what other relays do not promise.
func onlyOurs(t *testing.T) {
	t.Helper()
	if foreignRelay() {
		t.Skip("a promise of ours alone")
	}
}

// needRelay skips a test while the program has no relay.
func needRelay(t *testing.T) {
	t.Helper()
	c := relayCommand()
	if out, err := exec.CommandContext(t.Context(), c[0], append(c[1:], "--help")...).CombinedOutput(); err != nil {
		t.Skipf("%s --help: %v: there is no relay yet\n%s", strings.Join(c, " "), err, tail(string(out)))
	}
}

// relayNet is segments that share only a router, which carries no broadcasts.
//
//	ha ha2 ra          hb rb
//	 |  |  |            |  |
//	=== seg1 === core === seg2 === ...
//
// Segment N is 10.77.N.0/24, and the interface of each host on it is called segN.
type relayNet struct {
	t   *testing.T
	lab *lab.Lab
	dir string
	n   int // processes so far
}

// newRelayNet builds segments, given by the names of their hosts. A host may be on several.
func newRelayNet(t *testing.T, segments ...string) *relayNet {
	t.Helper()
	topology := &lab.Topology{
		Name:    "relay",
		Hosts:   map[string]lab.HostConfig{},
		Routers: map[string]lab.RouterConfig{"core": {}},
		Bridges: map[string]lab.BridgeConfig{},
	}
	for i, hosts := range segments {
		seg := "seg" + strconv.Itoa(i+1)
		topology.Bridges[seg] = lab.BridgeConfig{Subnets: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(i + 1), 0}), 24)}}
		for h := range strings.FieldsSeq(hosts) {
			topology.Hosts[h] = lab.HostConfig{}
			topology.Wires = append(topology.Wires, lab.WireConfig{Ends: [2]string{h, seg}})
		}
		topology.Wires = append(topology.Wires, lab.WireConfig{Ends: [2]string{"core", seg}})
	}
	return &relayNet{t: t, lab: lab.New(t, topology), dir: t.TempDir()}
}

// addr is that of a host on a segment.
func (n *relayNet) addr(host string, segment int) netip.Addr {
	return n.lab.Host(host).AddrTowards("seg"+strconv.Itoa(segment), 4)
}

// directed is the broadcast address of a segment.
func directed(segment int) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, byte(segment), 255}) }

// relay starts a relay on a host, with its peers and more flags.
func (n *relayNet) relay(host string, segment int, peers []netip.Addr, flags ...string) *process {
	n.t.Helper()
	args := append([]string{
		"-t", "seg" + strconv.Itoa(segment), "-b", strconv.Itoa(broadcastPort), "-m", strconv.Itoa(relayMeshPort),
	}, flags...)
	if len(peers) > 0 {
		args = append(args, "--other-relays")
		for _, p := range peers {
			args = append(args, p.String())
		}
	}
	return n.start(host, nil, args...)
}

// start starts the relay program on a host, with arguments and variables.
func (n *relayNet) start(host string, env []string, args ...string) *process {
	n.t.Helper()
	return startProcess(n.t, n.name(host, args), n.command(host, env, args...))
}

func (n *relayNet) name(host string, args []string) string {
	n.n++
	return fmt.Sprintf("%d, relay %s on %s", n.n, strings.Join(args, " "), host)
}

// origin starts a relay of another kind on a host.
func (n *relayNet) origin(host string, segment int, peers ...netip.Addr) *process {
	n.t.Helper()
	words := append(strings.Fields(os.Getenv(originVariable)), "-t", "seg"+strconv.Itoa(segment), "--other-relays")
	for _, p := range peers {
		words = append(words, p.String())
	}
	c := n.lab.Host(host).Command(context.Background(), words[0], words[1:]...)
	return startProcess(n.t, n.name(host, words), c)
}

func (n *relayNet) command(host string, env []string, args ...string) *lab.Cmd {
	words := append(relayCommand(), args...)
	c := n.lab.Host(host).Command(context.Background(), words[0], words[1:]...)
	c.Env = append(append(os.Environ(), "HOME="+n.dir), env...)
	return c
}

// listen opens a UDP socket on a host.
func (n *relayNet) listen(host string, at netip.AddrPort) *net.UDPConn {
	n.t.Helper()
	var c *net.UDPConn
	if err := n.lab.Host(host).Do(func() (err error) {
		c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { c.Close() })
	return c
}

// mouth is a program that sends broadcasts, from one port.
type mouth struct {
	t    *testing.T
	from netip.AddrPort
	conn *net.UDPConn
}

func (n *relayNet) mouth(host string, segment int) *mouth {
	n.t.Helper()
	c := n.listen(host, netip.AddrPortFrom(n.addr(host, segment), 0))
	at, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		n.t.Fatal(err)
	}
	return &mouth{n.t, at, c}
}

// say sends a payload to a broadcast address.
func (m *mouth) say(to netip.Addr, payload string) {
	m.t.Helper()
	if _, err := m.conn.WriteToUDPAddrPort([]byte(payload), netip.AddrPortFrom(to, broadcastPort)); err != nil {
		m.t.Fatal(err)
	}
}

// sayAll sends payloads one after the other, 1 ms apart.
func (m *mouth) sayAll(to netip.Addr, payloads []string) {
	m.t.Helper()
	for _, p := range payloads {
		m.say(to, p)
		time.Sleep(time.Millisecond)
	}
}

// ear is a program that hears broadcasts.
type ear struct {
	t    *testing.T
	name string
	ip   netip.Addr

	mu    sync.Mutex // guards heard
	heard []hearing
}

// hearing is a datagram that an ear has heard.
type hearing struct {
	from    netip.AddrPort
	payload string
}

// ear listens on a host: at all addresses, or at one.
func (n *relayNet) ear(host string, segment int, at ...netip.Addr) *ear {
	n.t.Helper()
	local := netip.AddrPortFrom(netip.IPv4Unspecified(), broadcastPort)
	if len(at) > 0 {
		local = netip.AddrPortFrom(at[0], broadcastPort)
	}
	c := n.listen(host, local)
	_ = c.SetReadBuffer(4 << 20) // as far as the system allows
	e := &ear{t: n.t, name: host, ip: n.addr(host, segment)}
	go func() {
		b := make([]byte, 1<<16)
		for {
			k, from, err := c.ReadFromUDPAddrPort(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			e.mu.Lock()
			e.heard = append(e.heard, hearing{netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), string(b[:k])})
			e.mu.Unlock()
		}
	}()
	return e
}

// from is what was heard from a sender, in order, but for what only tried the way.
func (e *ear) from(sender netip.AddrPort) (payloads []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, h := range e.heard {
		if h.from == sender && !strings.HasPrefix(h.payload, trial) {
			payloads = append(payloads, h.payload)
		}
	}
	return payloads
}

func (e *ear) hears(payload string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.ContainsFunc(e.heard, func(h hearing) bool { return h.payload == payload })
}

func (e *ear) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.heard = nil
}

// trial begins the payloads of open.
const trial = "trial "

// open waits until what a mouth says is heard by all of some ears, and tells how long it took.
func (m *mouth) open(within time.Duration, ears ...*ear) time.Duration {
	m.t.Helper()
	start := time.Now()
	for i := 0; ; i++ {
		payload := fmt.Sprintf("%s%v %d %d", trial, m.from, i, start.UnixNano())
		m.say(everyone, payload)
		for range 10 {
			time.Sleep(10 * time.Millisecond)
			if !slices.ContainsFunc(ears, func(e *ear) bool { return !e.hears(payload) }) {
				return time.Since(start)
			}
		}
		if time.Since(start) > within {
			var deaf []string
			for _, e := range ears {
				if !e.hears(payload) {
					deaf = append(deaf, e.name)
				}
			}
			m.t.Fatalf("what %v says is not heard within %v by %v", m.from, within, deaf)
		}
	}
}

// settled is how long after the last broadcast a copy that should not be might still come.
const settled = 300 * time.Millisecond

// hears holds that each ear hears from the mouth exactly some payloads, in order, since it last forgot.
func (m *mouth) heardBy(want []string, ears ...*ear) {
	m.t.Helper()
	deadline := time.Now().Add(patience)
	for _, e := range ears {
		for len(e.from(m.from)) < len(want) && time.Now().Before(deadline) {
			time.Sleep(10 * time.Millisecond)
		}
	}
	time.Sleep(settled)
	for _, e := range ears {
		if got := e.from(m.from); !slices.Equal(got, want) {
			m.t.Errorf("%s heard %d broadcasts of %v, want %d:\n%s", e.name, len(got), m.from, len(want), tail(cmp.Diff(brief(want), brief(got))))
		}
	}
}

// brief cuts payloads to what one wants to read.
func brief(payloads []string) []string {
	var short []string
	for _, p := range payloads {
		short = append(short, fmt.Sprintf("%d: %.40q", len(p), p))
	}
	return short
}

// numbered makes n payloads that differ, between which some are the same each time, as beacons are.
func numbered(who string, n int) (payloads []string) {
	for i := range n {
		if i%5 == 4 {
			payloads = append(payloads, who+" beacon")
			continue
		}
		payloads = append(payloads, fmt.Sprintf("%s %d", who, i))
	}
	return payloads
}

// wiretap records the frames that come to a host on a segment.
type wiretap struct {
	t    *testing.T
	conn *rawio.FrameConn

	mu     sync.Mutex // guards frames
	frames [][]byte
}

// tap listens on a host's interface, for IPv4 only.
func (n *relayNet) tap(host string, segment int) *wiretap {
	n.t.Helper()
	return tap(n.t, n.lab.Host(host), "seg"+strconv.Itoa(segment))
}

// tap records what comes in by an interface.
func tap(t *testing.T, host *lab.Host, iface string) *wiretap {
	t.Helper()
	w := &wiretap{t: t}
	if err := host.Do(func() (err error) {
		w.conn, err = rawio.OpenFrameConn(iface, rawio.FrameOptions{EtherType: 0x0800, Promiscuous: true})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		batch := make([]rawio.Frame, 64)
		for {
			k, err := w.conn.Receive(batch)
			if err != nil {
				return
			}
			w.mu.Lock()
			for _, f := range batch[:k] {
				w.frames = append(w.frames, slices.Clone(f.Data))
			}
			w.mu.Unlock()
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-stopped
		w.conn.Close()
	})
	return w
}

// broadcasts are the IP packets in the broadcast frames so far, with who sent them.
func (w *wiretap) broadcasts() (from []net.HardwareAddr, packets [][]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.frames {
		if len(f) > 14 && f[0]&1 == 1 {
			from = append(from, net.HardwareAddr(f[6:12]))
			packets = append(packets, f[14:])
		}
	}
	return from, packets
}

func (w *wiretap) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frames = nil
}

// hardwareAddr is that of a host's interface on a segment.
func (n *relayNet) hardwareAddr(host string, segment int) (a net.HardwareAddr) {
	n.t.Helper()
	if err := n.lab.Host(host).Do(func() error {
		ifi, err := net.InterfaceByName("seg" + strconv.Itoa(segment))
		if err == nil {
			a = ifi.HardwareAddr
		}
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	return a
}
