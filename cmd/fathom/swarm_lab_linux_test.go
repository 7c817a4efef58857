// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/seed5728abee/fathom/nat/nattest"
)

// TestSwarm runs members of swarms as users do, each in a process, behind the NATs of a lab. Most of it waits, so the parts go
// together, each in a lab of its own.
func TestSwarm(t *testing.T) {
	if !insideLab(t) {
		return
	}
	for _, part := range []struct {
		name string
		f    func(*testing.T)
	}{
		{"Pairs", swarmPairs},
		{"Homes", swarmHomes},
		{"Mapped", swarmPortMapped},
		{"Deaths", swarmDeaths},
		{"Restart", swarmRestart},
		{"Partition", swarmPartition},
		{"Secure", swarmSecure},
	} {
		t.Run(part.name, func(t *testing.T) {
			t.Parallel()
			part.f(t)
		})
	}
}

// swarmNATs are the kinds of NAT.
var swarmNATs = []struct{ name, options string }{
	{"full-cone", `type = "full-cone"`},
	{"restricted", `type = "restricted"`},
	{"port-restricted", `type = "port-restricted"`},
	{"sequential", "type = \"symmetric\"\nports = \"sequential\""},
	{"random", "type = \"symmetric\"\nports = \"random\""},
}

// swarmPairs: two members behind NATs of any two kinds exchange data soon after they start, over a circuit if need be, and
// then find a way of their own where the NATs let them. All homes use the same private addresses.
//
//	a --- nat-a --+-- isp --+-- nat-b --- b      for each pair of kinds
//	                   |
//	                m1, m2
func swarmPairs(t *testing.T) {
	type pair struct {
		a, b  int // kinds
		first time.Duration
		way   time.Duration
		how   string
		nodes [2]*swarmNode
	}
	var pairs []*pair
	file := "[router.isp]\n" + wiresTo("isp", "m1", "m2")
	for i := range swarmNATs {
		for j := i; j < len(swarmNATs); j++ {
			n := len(pairs)
			file += homeAt("isp", fmt.Sprint("a", n), swarmNATs[i].options) + homeAt("isp", fmt.Sprint("b", n), swarmNATs[j].options)
			pairs = append(pairs, &pair{a: i, b: j})
		}
	}
	n := newSwarmNet(t, file)
	public := n.members("m1", "m2")
	join := []string{"--listen", on, "--join", n.entry("m1"), "--join", n.entry("m2")}
	var wg sync.WaitGroup
	for i, p := range pairs {
		// One of two pairs at a time is under way: what is measured is NATs, and not how many programs this machine starts at once.
		time.Sleep(250 * time.Millisecond)
		a, b := n.node(fmt.Sprint("a", i), join...), n.node(fmt.Sprint("b", i), join...)
		p.nodes = [2]*swarmNode{a, b}
		wg.Go(func() {
			a.up()
			b.up()
			there := a.sendTo(b, "to b")
			back := b.sendTo(a, "to a")
			p.first = max(there.Sub(b.began), back.Sub(b.began))
			// A NAT that chooses ports at random, for each destination, passes only with one that does not mind the port.
			want := []string{"punched tcp", "punched udp"}
			if swarmNATs[p.b].name == "random" && p.a >= 2 {
				want = []string{"circuit"}
			}
			p.way = p.first + a.goes(b, want...)
			p.how = a.how(b)
		})
	}
	wg.Wait()
	all := public
	for _, p := range pairs {
		t.Logf("%-15s  %-15s  data both ways after %.1f s, %s after %.1f s", swarmNATs[p.a].name, swarmNATs[p.b].name,
			p.first.Seconds(), p.how, p.way.Seconds())
		if p.first > soon {
			t.Errorf("data after %v", p.first)
		}
		for _, m := range p.nodes {
			if s := m.state(); !s.Leaf || len(s.Hosts) == 0 {
				t.Errorf("%s has a place on the ring: %+v", m.host, s)
			}
			all = append(all, m)
		}
	}
	t.Logf("a broadcast reached all %d after %v", len(all), n.broadcast(pairs[0].nodes[0], "to all", all))
	n.ring(public)
}

// soon is how long members may take from their start until they exchange data. The aim is 2 s, on a machine that has nothing else to do.
const soon = 10 * time.Second

// swarmHomes: members on one LAN, behind a NAT behind a NAT, and with IPv6, find the short way.
//
//	lan1, lan2 --- lan --- nat --+
//	cgn1 --- nat-cgn1 --+        +-- isp --- m1, m2
//	cgn2 --- nat-cgn2 --+- cgn --+
//	six1 --- nat-six1 -----------+
//	six2 --- nat-six2 -----------+
func swarmHomes(t *testing.T) {
	const random = "type = \"symmetric\"\nports = \"random\"\n"
	file := "[router.isp]\n" + wiresTo("isp", "m1", "m2") +
		"[bridge.lan]\nsubnets = [\"192.168.1.0/24\"]\n[nat.nat]\noutside = \"isp\"\n" + random +
		"[[wire]]\nends = [\"nat\", \"lan\"]\n[[wire]]\nends = [\"nat\", \"isp\"]\n" + wiresTo("lan", "lan1", "lan2") +
		"[nat.cgn]\noutside = \"isp\"\nhairpin = true\n[[wire]]\nends = [\"cgn\", \"isp\"]\n" + homeAt("cgn", "cgn1", "") + homeAt("cgn", "cgn2", "")
	for _, x := range []string{"six1", "six2"} { // their LANs have IPv6 as well
		file += strings.Replace(homeAt("isp", x, random), "subnets = [\"192.168.1.0/24\"]", "", 1)
	}
	n := newSwarmNet(t, file)
	all := n.members("m1", "m2")
	for _, h := range []string{"lan1", "lan2", "cgn1", "cgn2"} {
		all = append(all, n.node(h, "--listen", on, "--join", n.entry("m1")))
	}
	for _, h := range []string{"six1", "six2"} { // their ways in are of IPv4
		all = append(all, n.node(h, "--listen", ":"+swarmPort, "--join", n.entry("m1")))
	}
	for i, want := range [][]string{{"direct"}, {"punched tcp", "punched udp"}, {"direct"}} {
		a, b := all[2+2*i], all[3+2*i]
		a.up()
		b.up()
		there, back := a.sendTo(b, "to b"), b.sendTo(a, "to a")
		first := max(there.Sub(b.began), back.Sub(b.began))
		way := a.goes(b, want...)
		t.Logf("%s and %s: data both ways after %.1f s, %s after %.1f s", a.host, b.host, first.Seconds(), a.how(b), (first + way).Seconds())
		if first > soon {
			t.Errorf("data after %v", first)
		}
	}
	n.broadcast(all[3], "to all", all)
}

// swarmPortMapped: a router that maps ports makes a member of the ring of one that would be a leaf, as long as it runs.
//
//	a --- lan --- r --- isp --- m
//	                     |
//	              b --- nat-b
func swarmPortMapped(t *testing.T) {
	// The addresses outside are of those that miniupnpd takes for public ones. Nothing leaves the lab.
	n := newSwarmNet(t, `
		[host.a]
		[bridge.lan]
		subnets = ["192.168.77.0/24"]
		[router.r]
		[router.isp]
		[[wire]]
		ends = ["r", "lan"]
		[[wire]]
		ends = ["a", "lan"]
		[[wire]]
		ends = ["r", "isp"]
		addresses = [["11.22.33.1/24"], ["11.22.33.2/24"]]
		`+wiresTo("isp", "m")+homeAt("isp", "b", "type = \"symmetric\"\nports = \"random\""))
	router := nattest.NewMiniupnpd(t, n.lab.Host("r"), "lan", "isp")
	m := n.members("m")[0]
	a := n.node("a", "--listen", on, "--join", n.entry("m"), "--port-mapping", "auto")
	b := n.node("b", "--listen", on, "--join", n.entry("m"))
	a.up()
	b.up()
	t.Logf("mapped and joined after %v", a.ready.at.Sub(a.began))
	if s := a.state(); s.Leaf || s.Mapping == nil || s.Mapping.External != s.Addr || s.Addr.String() != "11.22.33.1:"+swarmPort {
		t.Errorf("state %+v", s)
	}
	n.ring([]*swarmNode{m, a})
	b.sendTo(a, "to a")
	a.sendTo(b, "to b")
	if how := b.how(a); how != "direct" {
		t.Errorf("the way to a mapped port is %q", how)
	}
	if !strings.Contains(router.Forwarded(), swarmPort) {
		t.Errorf("nothing is mapped: %s", router.Forwarded())
	}
	a.terminate()
	if got := router.Forwarded(); strings.Contains(got, swarmPort) {
		t.Errorf("after the end of the program the router has %s", got)
	}
}

// swarmDeaths: members end, are killed and vanish, and the ring closes at once or soon. A leaf whose host is killed is met through
// another one.
func swarmDeaths(t *testing.T) {
	const random = "type = \"symmetric\"\nports = \"random\""
	hosts := []string{"m0", "m1", "m2", "m3", "m4", "m5", "m6"}
	n := newSwarmNet(t, "[router.isp]\n"+wiresTo("isp", hosts...)+homeAt("isp", "a", random)+homeAt("isp", "b", random))
	ring := n.members(hosts...)
	join := []string{"--listen", on, "--join", n.entry("m0"), "--join", n.entry("m1")}
	a, b := n.node("a", join...), n.node("b", join...)
	a.up()
	b.up()
	a.sendTo(b, "to b")
	a.goes(b, "circuit")
	end := func(addr netip.AddrPort) *swarmNode {
		i := slices.IndexFunc(ring, func(m *swarmNode) bool { return m.state().Addr == addr })
		if i < 0 {
			t.Fatalf("%v is none of the members", addr)
		}
		m := ring[i]
		ring = slices.Delete(slices.Clone(ring), i, i+1)
		return m
	}

	host := end(b.state().Hosts[0])
	host.kill()
	t.Logf("%s, host of b, is killed: a reaches b after %v", host.host, a.reaches(b, "again"))
	t.Logf("and %s does after %v", ring[0].host, ring[0].reaches(b, "from a member"))
	t.Logf("the ring is whole again %v later", n.ring(ring))

	leaver := end(ring[2].state().Addr)
	began := time.Now()
	leaver.terminate()
	n.ring(ring)
	t.Logf("%s ends: the ring is whole after %v", leaver.host, time.Since(began))
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("a member that leaves in good order is missed for %v", took)
	}

	silent := end(ring[1].state().Addr)
	n.cut(silent.host, "isp", 1)
	t.Logf("%s vanishes: the ring is whole after %v", silent.host, n.ring(ring))
	t.Logf("and a broadcast reaches all after %v", n.broadcast(a, "to all", append(slices.Clone(ring), a, b)))
	t.Logf("a lookup takes %v s", ring[0].do("lookup", map[string]any{"key": "k"}).Seconds)
}

// swarmRestart: when a router is restarted, and has forgotten all connections, who is behind it is reached again soon.
//
//	a --- r --- isp --- m0, m1, m2
func swarmRestart(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("nft is not installed")
	}
	n := newSwarmNet(t, "[router.isp]\n[router.r]\n[host.a]\n"+wiresTo("isp", "m0", "m1", "m2")+
		"[[wire]]\nends = [\"r\", \"a\"]\n[[wire]]\nends = [\"isp\", \"r\"]\n")
	// Connections that the router has forgotten get other ports, at random, so that they are good for nothing.
	rules := n.lab.Host("r").Command(t.Context(), "nft", `
table ip home {
	chain translate {
		type nat hook postrouting priority srcnat;
		oifname "isp" masquerade fully-random
	}
	chain through {
		type filter hook forward priority filter;
		iifname "isp" ct state { new, invalid } drop
	}
}`)
	if out, err := rules.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
	ring := n.members("m0", "m1", "m2")
	a := n.node("a", "--listen", on, "--join", n.entry("m0"))
	a.up()
	ring[1].sendTo(a, "to a")
	if err := n.lab.Host("r").Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) }); err != nil {
		t.Fatal(err)
	}
	t.Logf("the router is restarted: a is reached after %v", ring[1].reaches(a, "to a"))
	t.Logf("and reaches others %v later", a.reaches(ring[2], "to m2"))
	n.broadcast(ring[0], "to all", append(ring, a))
}

// swarmPartition: a swarm in two halves is two rings, and one again soon after the halves can reach each other.
//
//	l0, l1, l2 --- left --- right --- r0, r1, r2
func swarmPartition(t *testing.T) {
	n := newSwarmNet(t, "[router.left]\n[router.right]\n[[wire]]\nends = [\"left\", \"right\"]\nadjustable = true\n"+
		wiresTo("left", "l0", "l1", "l2")+wiresTo("right", "r0", "r1", "r2"))
	all := n.members("l0", "l1", "l2", "r0", "r1", "r2")
	n.cut("left", "right", 1)
	parted := time.Now()
	left, right := all[:3], all[3:]
	n.ring(left)
	n.ring(right)
	t.Logf("parted: two rings after %v", time.Since(parted))
	n.broadcast(left[0], "to the left", left)
	n.broadcast(right[0], "to the right", right)
	time.Sleep(time.Until(parted.Add(20 * time.Second)))
	n.cut("left", "right", 0)
	healed := time.Now()
	n.ring(all)
	t.Logf("healed: one ring after %v", time.Since(healed))
	n.broadcast(left[0], "to all", all)
	for _, m := range right {
		if k := m.copies("to the left"); k > 1 { // neighbours hand on what one has missed, if it is not long ago
			t.Errorf("%s heard what was said while it was away %d times", m.host, k)
		}
	}
}

// swarmSecure: of a secure swarm with a key nothing can be read on the way, and nobody gets in without the key.
//
//	a --- nat-a --+-- isp --- m0, m1, stranger
//	b --- nat-b --+
func swarmSecure(t *testing.T) {
	n := newSwarmNet(t, "[router.isp]\n"+wiresTo("isp", "m0", "m1", "stranger")+homeAt("isp", "a", "")+
		homeAt("isp", "b", "type = \"symmetric\"\nports = \"random\""))
	var taps []*wiretap
	for _, x := range []string{"m0", "m1", "stranger", "nat-a", "nat-b"} {
		taps = append(taps, tap(t, n.lab.Host("isp"), x))
	}
	seen := func(text string) bool {
		return slices.ContainsFunc(taps, func(w *wiretap) bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return slices.ContainsFunc(w.frames, func(f []byte) bool { return bytes.Contains(f, []byte(text)) })
		})
	}
	key := filepath.Join(t.TempDir(), "swarm.key")
	if out, err := exec.CommandContext(t.Context(), "fathom", "swarm", "keygen", key).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	secure := []string{"--secure", "--swarm-key", key}
	m0 := n.public("m0", secure...)
	m0.up()
	join := append([]string{"--join", n.entry("m0")}, secure...)
	m1 := n.public("m1", append(join, "--name", "a-telling-name")...)
	a, b := n.node("a", append(join, "--listen", on)...), n.node("b", append(join, "--listen", on)...)
	all := []*swarmNode{m0, m1, a, b}
	for _, m := range all {
		m.up()
	}
	const secret = "the quick brown fox jumps over the lazy dog"
	a.sendTo(b, secret+" 1")
	a.goes(b, "circuit")
	b.sendTo(m1, secret+" 2")
	n.broadcast(m1, secret+" 3", all)

	// The stranger speaks in the clear, as is seen, and does not get in.
	stranger := n.public("stranger", "--join", n.entry("m0"), "--secure")
	stranger.up()
	if s := stranger.state(); s.Connected {
		t.Errorf("a member without the key is in the swarm: %+v", s)
	}
	err := n.lab.Host("stranger").Do(func() error {
		c, err := net.Dial("tcp", n.entry("m0"))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("words in the clear"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the taps see what is not sealed", func() bool { return seen("words in the clear") })
	for _, text := range []string{"quick brown", "telling-name"} {
		if seen(text) {
			t.Errorf("%q can be read on the way", text)
		}
	}
}
