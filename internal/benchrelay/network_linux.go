// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/seed5728abee/fathom/lab"
)

const (
	broadcastPort = 5076
	meshPort      = 7124
)

// fan is a segment with a sender s1 and a relay's host r1, right behind which is the host "peers" with many addresses.
//
//	s1 -- seg1 -- r1 -- peers
func fan() *lab.Topology {
	t := &lab.Topology{
		Name:    "fan",
		Hosts:   map[string]lab.HostConfig{"s1": {}, "r1": {}},
		Bridges: map[string]lab.BridgeConfig{"seg1": {}},
		Wires:   []lab.WireConfig{{Ends: [2]string{"s1", "seg1"}}, {Ends: [2]string{"r1", "seg1"}}, {Ends: [2]string{"r1", "peers"}}},
	}
	var peers lab.HostConfig
	for _, a := range fanPeers(10) {
		peers.Addresses = append(peers.Addresses, netip.PrefixFrom(a, 32))
	}
	t.Hosts["peers"] = peers
	return t
}

// fanPeers are the first n addresses of the host "peers".
func fanPeers(n int) (addrs []netip.Addr) {
	for i := range n {
		addrs = append(addrs, netip.AddrFrom4([4]byte{203, 0, 113, byte(1 + i)}))
	}
	return addrs
}

// segments is a number of segments, each with a sender sN and a relay's host rN. Wires between the relays' hosts, over
// which they reach each other's addresses on the segments, are all that joins them. The first has a second host, "near".
//
//	s1 ---- seg1 -- r1 -- r2 -- seg2 -- s2
//	near --'          \  /
//	                   r3 -- seg3 -- s3
func segments(n int) *lab.Topology {
	t := &lab.Topology{
		Name:    "segments",
		Hosts:   map[string]lab.HostConfig{"near": {}},
		Bridges: map[string]lab.BridgeConfig{},
	}
	subnet := func(i int) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(i), 0}), 24) }
	for i := 1; i <= n; i++ {
		seg, sender, relay := "seg"+strconv.Itoa(i), "s"+strconv.Itoa(i), "r"+strconv.Itoa(i)
		t.Bridges[seg] = lab.BridgeConfig{Subnets: []netip.Prefix{subnet(i)}}
		t.Hosts[sender] = lab.HostConfig{}
		var c lab.HostConfig
		for j := 1; j <= n; j++ {
			if j != i {
				c.Routes = append(c.Routes, lab.RouteConfig{To: subnet(j).String(), Via: []string{"r" + strconv.Itoa(j)}})
			}
		}
		t.Hosts[relay] = c
		t.Wires = append(t.Wires, lab.WireConfig{Ends: [2]string{sender, seg}}, lab.WireConfig{Ends: [2]string{relay, seg}})
		for j := 1; j < i; j++ {
			t.Wires = append(t.Wires, lab.WireConfig{Ends: [2]string{"r" + strconv.Itoa(j), relay}})
		}
	}
	t.Wires = append(t.Wires, lab.WireConfig{Ends: [2]string{"near", "seg1"}})
	return t
}

// subject is what is measured.
type subject struct {
	name    string
	command func(ctx context.Context, host *lab.Host, p place) *lab.Cmd
	ours    bool
}

// place is where a relay works.
type place struct {
	ifname string
	peers  []netip.Addr
	ports  string   // of the broadcasts; default broadcastPort
	more   []string // flags that only ours has
}

// ours is the fathom program.
func (b *bench) ours() subject {
	return subject{"fathom", func(ctx context.Context, host *lab.Host, p place) *lab.Cmd {
		// The limits, which are made for what people send, are out of the way but not out of the path.
		args := []string{
			"relay", "-t", p.ifname, "-b", p.ports, "-m", strconv.Itoa(meshPort),
			"--source-rate", "10000000", "--segment-rate", "10000000",
		}
		args = append(args, p.more...)
		args = append(args, "--other-relays")
		for _, a := range p.peers {
			args = append(args, a.String())
		}
		return host.Command(ctx, b.program, args...)
	}, true}
}

// subjects are ours and, if it was given, the other one.
func (b *bench) subjects() []subject {
	all := []subject{b.ours()}
	if b.origin != "" {
		all = append(all, subject{"original", func(ctx context.Context, host *lab.Host, p place) *lab.Cmd {
			var peers []string
			for _, a := range p.peers {
				peers = append(peers, a.String())
			}
			c := host.Command(ctx, "/bin/sh", "-c", b.origin)
			c.Env = append(os.Environ(), "INTERFACE="+p.ifname, "PORT="+p.ports, "MESH="+strconv.Itoa(meshPort), "PEERS="+strings.Join(peers, " "))
			return c
		}, false})
	}
	return all
}

// relay is a running one.
type relay struct{ cmd *lab.Cmd }

// start starts a relay on a host.
func (b *bench) start(ctx context.Context, s subject, host *lab.Host, p place) (*relay, error) {
	if p.ports == "" {
		p.ports = strconv.Itoa(broadcastPort)
	}
	c := s.command(ctx, host, p)
	log, err := os.Create(filepath.Join(b.dir, host.Name()+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own copy
	c.Stdout, c.Stderr = log, log
	if b.verbose {
		c.Stdout, c.Stderr = os.Stderr, os.Stderr
	}
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", s.name, host.Name(), err)
	}
	return &relay{c}, nil
}

// stop ends a relay and waits for its end.
func (r *relay) stop() {
	_ = r.cmd.Process.Signal(syscall.SIGTERM) // one that has ended already needs none
	kill := time.AfterFunc(5*time.Second, func() { _ = r.cmd.Process.Kill() })
	defer kill.Stop()
	_ = r.cmd.Wait() // how it ends does not matter here
}

func (r *relay) cpu() (time.Duration, error) {
	return cpuOf(fmt.Sprintf("/proc/%d", r.cmd.Process.Pid))
}
func (r *relay) memory() (memory, error) { return memoryOf(r.cmd.Process.Pid) }

// mesh is a lab with relays in it, all of them peers of each other, and what is sent and counted there.
type mesh struct {
	lab       *lab.Lab
	relays    []*relay
	sender    *sender     // at s1
	receivers []*receiver // at all other sN; or at near alone
}

// startMesh builds segments joined by relays of a subject.
func (b *bench) startMesh(ctx context.Context, l *lab.Lab, s subject, n int, prompt bool, more ...string) (m *mesh, err error) {
	m = &mesh{lab: l}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	at := func(i int) netip.Addr { return l.Host("r"+strconv.Itoa(i)).AddrTowards("seg"+strconv.Itoa(i), 4) }
	for i := 1; i <= n; i++ {
		p := place{ifname: "seg" + strconv.Itoa(i), more: more}
		for j := 1; j <= n; j++ {
			if j != i {
				p.peers = append(p.peers, at(j))
			}
		}
		r, err := b.start(ctx, s, l.Host("r"+strconv.Itoa(i)), p)
		if err != nil {
			return m, err
		}
		m.relays = append(m.relays, r)
		if i == 1 {
			continue
		}
		c, err := receive(l.Host("s"+strconv.Itoa(i)), broadcastPort, 0, prompt)
		if err != nil {
			return m, err
		}
		m.receivers = append(m.receivers, c)
	}
	if m.sender, err = broadcaster(l.Host("s1"), "seg1", broadcastPort); err != nil {
		return m, err
	}
	return m, b.await(ctx, m.sender, m.receivers...)
}

func (m *mesh) close() {
	for _, r := range m.receivers {
		_ = r.close() // its errors have ended the measurement
	}
	if m.sender != nil {
		_ = m.sender.close()
	}
	for _, r := range slices.Backward(m.relays) {
		r.stop()
	}
}

// cpu is what the relays have used so far, the sender's first.
func (m *mesh) cpu() (all []time.Duration, err error) {
	for _, r := range m.relays {
		t, err := r.cpu()
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}

var errSilent = errors.New("nothing comes through")

// await waits until what is sent arrives at all receivers, some times in a row.
func (b *bench) await(ctx context.Context, s *sender, receivers ...*receiver) error {
	deadline := time.Now().Add(15 * time.Second)
	for good := 0; good < 3; {
		f, err := flow(ctx, s, 1, 0, receivers...)
		if err != nil {
			return err
		}
		if f.sum.lost() == 0 {
			good++
			continue
		}
		good = 0
		if time.Now().After(deadline) {
			return fmt.Errorf("%w; the relays say:\n%s", errSilent, b.logs())
		}
	}
	return nil
}

// logs are the ends of what relays wrote, for when something is wrong.
func (b *bench) logs() string {
	var all strings.Builder
	names, _ := filepath.Glob(filepath.Join(b.dir, "*.log")) // the pattern is right
	for _, name := range names {
		if data, err := os.ReadFile(name); err == nil {
			fmt.Fprintf(&all, "%s: %s\n", filepath.Base(name), data[max(0, len(data)-2000):])
		}
	}
	return all.String()
}

// outcome is what became of a run.
type outcome struct {
	sum     tally
	reached float64       // per second
	late    time.Duration // how long after the last was sent the last arrived
}

// flow sends count broadcasts at a rate, as fast as possible if that is 0, and counts what becomes of them.
func flow(ctx context.Context, s *sender, count int, rate float64, receivers ...*receiver) (o outcome, err error) {
	run := nextRun()
	for _, r := range receivers {
		r.begin(run, count)
	}
	if o.reached, err = s.send(ctx, run, count, rate); err != nil {
		return o, err
	}
	end := time.Now().UnixNano()
	for _, r := range receivers {
		t, err := r.settle(ctx)
		if err != nil {
			return o, err
		}
		o.sum.want += t.want
		o.sum.received += t.received
		o.sum.copies += t.copies
		o.sum.disorder += t.disorder
		o.sum.last = max(o.sum.last, t.last)
	}
	o.late = time.Duration(o.sum.last - end)
	return o, nil
}

// backlog is how much later than sent the last broadcast may arrive for a rate to be one that can be kept up.
const backlog = 50 * time.Millisecond

// sustained looks for the highest rate at which everything arrives once, and at once.
func (b *bench) sustained(ctx context.Context, first float64, s *sender, receivers ...*receiver) (float64, error) {
	return highest(first, func(rate float64) (float64, bool, error) {
		o, err := flow(ctx, s, max(1, int(rate*b.seconds.Seconds())), rate, receivers...)
		if err != nil {
			return 0, false, err
		}
		ok := o.sum.lost() == 0 && o.sum.copies == 0 && o.late < backlog
		b.logf("%.0f/s (%.0f/s): %v, the last after %v", rate, o.reached, &o.sum, o.late.Round(time.Millisecond/10))
		return o.reached, ok, nil
	})
}
