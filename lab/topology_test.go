// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/seed5728abee/fathom/lab/dataplane"
)

// exampleFiles are the topologies of testdata.
func exampleFiles(t testing.TB) []string {
	files, err := filepath.Glob("testdata/*.toml")
	if err != nil || len(files) < 7 {
		t.Fatalf("examples: %v, %v", files, err)
	}
	return files
}

// Every key of the file arrives in its field.
func TestParse(t *testing.T) {
	got, err := Parse([]byte(`
		name = "every"
		[host.h]
		addresses = ["192.0.2.1", "2001:db8::1/64"]
		announce = [{ prefix = "192.0.2.1", cost = 3 }, { prefix = "2001:db8::/64", withdrawn = true }]
		routes = [{ to = "default", via = "r" }]
		[router.r]
		hops = 9
		adjustable = true
		silent = true
		silent_ping = true
		icmp_rate = 2.5
		icmp_burst = 4
		icmp_delay = "3ms"
		error_source = ["10.9.9.9", "fd00::9"]
		mpls = [{ label = 16, tc = 3, ttl = 9 }, { label = 17 }]
		balance = "packet-random"
		ttl = 255
		firewall = [{ action = "reject", protocol = "tcp", from = "10.0.0.0/8", to = "192.0.2.1", port = 80 }]
		[bridge.b]
		subnets = ["10.1.0.0/16"]
		[nat.n]
		outside = "r"
		type = "full-cone"
		ports = "random"
		hairpin = true
		timeout = "30s"
		silent = true
		[[wire]]
		ends = ["h", "r"]
		delay = "10ms"
		jitter = "1ms"
		jitter_uniform = true
		loss = 0.5
		loss_every = 7
		duplicate = 0.25
		reorder = 0.125
		corrupt = 0.0625
		rate = "2.5Mbit"
		queue_bytes = 1000
		forward = { delay = "1ms" }
		seed = 42
		mtu = 1400
		cost = 3
		adjustable = true
		addresses = [["10.7.0.1/24"], ["10.7.0.9/24"]]
		[[wire]]
		ends = ["r", "n"]
		cost = [2, 5]
		subnets = ["10.8.0.0/24"]
		[[wire]]
		ends = ["n", "b"]
		[[route]]
		at = "r"
		to = "10.99.0.0/16"
		reject = "unreachable"
		hops = [2, 9]
	`))
	if err != nil {
		t.Fatal(err)
	}
	p := netip.MustParsePrefix
	want := &Topology{
		Name: "every",
		Hosts: map[string]HostConfig{"h": {
			Addresses: []netip.Prefix{p("192.0.2.1/32"), p("2001:db8::1/64")},
			Announce:  []AnnounceConfig{{Prefix: p("192.0.2.1/32"), Cost: 3}, {Prefix: p("2001:db8::/64"), Withdrawn: true}},
			Routes:    []RouteConfig{{To: "default", Via: []string{"r"}}},
		}},
		Routers: map[string]RouterConfig{"r": {Hops: 9, Adjustable: true, Behaviour: Behaviour{
			Silent: true, SilentPing: true, ICMPRate: 2.5, ICMPBurst: 4, ICMPDelay: 3 * time.Millisecond,
			ErrorSource: []netip.Addr{netip.MustParseAddr("10.9.9.9"), netip.MustParseAddr("fd00::9")},
			MPLS:        []Label{{Label: 16, TC: 3, TTL: 9}, {Label: 17, TTL: 1}},
			Balance:     dataplane.BalancePacketRandom, TTL: 255,
			Firewall: []Rule{{Action: dataplane.RejectAdmin, Protocol: 6, From: p("10.0.0.0/8"), To: p("192.0.2.1/32"), PortMin: 80}},
		}}},
		Bridges: map[string]BridgeConfig{"b": {Subnets: []netip.Prefix{p("10.1.0.0/16")}}},
		NATs: map[string]NATConfig{"n": {
			Outside: "r", Type: FullCone, Ports: dataplane.RandomPort, Hairpin: true, Timeout: 30 * time.Second,
			Behaviour: Behaviour{Silent: true},
		}},
		Wires: []WireConfig{
			{
				Ends: [2]string{"h", "r"},
				Impairment: Impairment{
					Delay: 10 * time.Millisecond, Jitter: time.Millisecond, JitterUniform: true, Loss: 0.5, LossEvery: 7,
					Duplicate: 0.25, Reorder: 0.125, Corrupt: 0.0625, Rate: 2.5e6, QueueBytes: 1000,
				},
				Forward: &Impairment{Delay: time.Millisecond}, Seed: 42, MTU: 1400, Cost: 3, Adjustable: true,
				Addresses: [2][]netip.Prefix{{p("10.7.0.1/24")}, {p("10.7.0.9/24")}},
			},
			{Ends: [2]string{"r", "n"}, Costs: [2]int{2, 5}, Subnets: []netip.Prefix{p("10.8.0.0/24")}},
			{Ends: [2]string{"n", "b"}},
		},
		Routes: []RouteConfig{{At: "r", To: "10.99.0.0/16", Reject: "unreachable", Hops: [2]int{2, 9}}},
	}
	opts := []cmp.Option{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()}
	if diff := cmp.Diff(want, got, opts...); diff != "" {
		t.Errorf("topology (-want +got):\n%s", diff)
	}
}

// Each fault is found, and its message names it.
func TestParseFaults(t *testing.T) {
	const pair = "[host.a]\n[host.b]\n[[wire]]\nends = ['a', 'b']\n"
	const routed = "[host.a]\n[router.r]\n[host.b]\n[[wire]]\nends = ['a', 'r']\n[[wire]]\nends = ['r', 'b']\n"
	for _, test := range []struct{ name, text, want string }{
		{"empty", "", "it has no nodes"},
		{"not TOML", "[host", "1| [host"},
		{"unknown key", "[host.a]\ncolour = 'red'", "unknown key \"host.a.colour\"\n2| colour = 'red'"},
		{"unknown table", "[host.a]\n[hots.b]", "unknown table \"hots\" (did you mean host?); want one of host, router, bridge, nat, wire, route\n2| [hots.b]"},
		{"unlike any table", "[host.a]\n[[lan]]\nx = 1", `unknown table "lan"; want one of host`},
		{"table in a table", "[host.a.eth0]\nx = 1", `unknown table "host.a.eth0"`},
		{"address", "[host.a]\naddresses = ['1.2.3.400']", `"1.2.3.400" is no address or prefix; want one like 192.0.2.1 or 192.0.2.0/24`},
		{"name", "name = 'A b'\n[host.a]", `name "A b"`},
		{"node name", "[host.'Ä']", `host "Ä"`},
		{"reserved name", "[host.lo]", `host "lo"`},
		{"two kinds", "[host.a]\n[router.a]", "both a host and a router"},
		{"unknown node", "[host.a]\n[[wire]]\nends = ['a', 'x']", `no node is called "x"`},
		{"one end", "[host.a]\n[[wire]]\nends = ['a']", "two node names, not 1"},
		{"same end", "[host.a]\n[[wire]]\nends = ['a', 'a']", "same node"},
		{"loss", pair + "loss = 1.5", "loss 1.5 is not a probability"},
		{"loss not a number", pair + "loss = nan", "loss NaN"},
		{"backward loss", pair + "backward = { loss = -1 }", "backward: loss -1"},
		{"delay", pair + "delay = '-1s'", "delay -1s"},
		{"delay without unit", pair + "delay = 5", "missing unit"},
		{"rate", pair + "rate = '5 apples'", `rate "5 apples"`},
		{"rate too high", pair + "rate = '1e300Gbit'", "between 0 and"},
		{"reorder", pair + "reorder = 0.5", "reorder needs a delay"},
		{"mtu", pair + "mtu = 100", "mtu 100"},
		{"cost", pair + "cost = -1", "cost -1"},
		{"three costs", pair + "cost = [1, 2, 3]", "cost must be a number or two, not 3"},
		{"no cost one way", pair + "cost = [1, 0]", "cost 0 is not a whole number from 1"},
		{"high cost one way", pair + "cost = [1, 9999999999999]", "cost 2147483647 is not between"},
		{"cost in words", pair + "cost = 'dear'", "cost must be a whole number"},
		{"announce without address", "[host.a]\nannounce = [{ prefix = '192.0.2.1' }]", "host a: announce: 192.0.2.1/32 is not among its addresses"},
		{"announce nothing", "[host.a]\nannounce = [{ cost = 1 }]", "is not among its addresses"},
		{"announce twice", "[router.a]\naddresses = ['192.0.2.1']\nannounce = [{ prefix = '192.0.2.1' }, { prefix = '192.0.2.1/32' }]", "router a: announce: 192.0.2.1/32 is there twice"},
		{"announce cost", "[host.a]\naddresses = ['192.0.2.1']\nannounce = [{ prefix = '192.0.2.1', cost = -1 }]", "cost -1 of 192.0.2.1/32"},
		{"subnet", pair + "subnets = ['10.0.0.1/24']", "did you mean 10.0.0.0/24?"},
		{"two subnets", pair + "subnets = ['10.0.0.0/24', '10.0.1.0/24']", "more than one subnet"},
		{"small subnet", pair + "subnets = ['10.0.0.0/32']", "too small"},
		{"address outside", pair + "subnets = ['10.0.0.0/24']\naddresses = [['10.1.0.1/24']]", "outside the subnets"},
		{"duplicate address", pair + "addresses = [['10.0.0.1/24'], ['10.0.0.1/24']]", "duplicate address 10.0.0.1"},
		{"multicast", "[host.a]\naddresses = ['224.0.0.1']", "224.0.0.1/32 is not a unicast address"},
		{"service address twice", "[host.a]\naddresses = ['192.0.2.1', '192.0.2.1/24']", "duplicate address 192.0.2.1"},
		{"service address of a wire", "[host.c]\naddresses = ['10.0.1.1']\n" + pair + "[[wire]]\nends = ['b', 'c']", "duplicate address 10.0.1.1"},
		{"overlap", routed + "subnets = ['10.0.0.0/16']", "overlap"},
		{"bridge loop", "[bridge.a]\n[bridge.b]\n[[wire]]\nends = ['a', 'b']\n[[wire]]\nends = ['a', 'b']", "loop of bridges"},
		{"twice on a bridge", "[host.a]\n[bridge.b]\n[[wire]]\nends = ['a', 'b']\n[[wire]]\nends = ['a', 'b']", "two wires to b"},
		{"bridge address", "[host.a]\n[bridge.b]\n[[wire]]\nends = ['a', 'b']\naddresses = [[], ['10.0.0.1/24']]", "bridge b has no addresses"},
		{"nat without outside", "[nat.n]", "outside must name"},
		{"nat outside unknown", "[nat.n]\noutside = 'x'", `no wire leads to "x"`},
		{"nat type", "[nat.n]\noutside = 'x'\ntype = 'open'", `"open" is not one of full-cone, port-restricted`},
		{"balance", "[router.r]\nbalance = 'none'", `"none" is not one of destination, flow, packet`},
		{"label", "[router.r]\nmpls = [{ label = 1048576 }]", "20 bits"},
		{"traffic class", "[router.r]\nmpls = [{ label = 1, tc = 8 }]", "3 bits"},
		{"error source", "[router.r]\nerror_source = ['10.0.0.1', '10.0.0.2']", "two addresses of one version"},
		{"hops", "[router.r]\nhops = 65", "hops 65 is not between 1 and 64"},
		{"route hop", "[router.r]\nroutes = [{ to = '192.0.2.0/24', reject = 'blackhole', hops = [1] }]", "hops must be two numbers"},
		{"route of no hop", "[router.r]\nroutes = [{ to = '192.0.2.0/24', reject = 'blackhole', hops = [1, 2] }]", "hops 1 to 2 are not among its 1"},
		{"route of hop beyond", "[router.r]\nhops = 3\nroutes = [{ to = '192.0.2.0/24', reject = 'blackhole', hops = [2, 4] }]", "hops 2 to 4 are not among its 3"},
		{"route of hops reversed", "[router.r]\nhops = 3\nroutes = [{ to = '192.0.2.0/24', reject = 'blackhole', hops = [3, 2] }]", "hops 3 to 2 are not among its 3"},
		{"burst", "[router.r]\nicmp_burst = 2", "icmp_burst without icmp_rate"},
		{"rule without action", "[router.r]\nfirewall = [{ protocol = 'udp' }]", "action must be"},
		{"rule with port", "[router.r]\nfirewall = [{ action = 'drop', port = 5 }]", "port needs protocol"},
		{"route at", routed + "[[route]]\nto = 'b'\nvia = 'r'", "at must name"},
		{"route to", routed + "[[route]]\nat = 'a'\nto = 'x'\nvia = 'r'", `"x" is not a node, an address, a prefix or default`},
		{"route to host bits", routed + "[[route]]\nat = 'a'\nto = '10.5.0.1/16'\nvia = 'r'", "did you mean 10.5.0.0/16?"},
		{"route without via", routed + "[[route]]\nat = 'a'\nto = 'b'", "needs via or reject"},
		{"route via stranger", routed + "[[route]]\nat = 'a'\nto = 'b'\nvia = 'b'", "not a neighbour"},
		{"route via far address", routed + "[[route]]\nat = 'a'\nto = 'b'\nvia = '192.0.2.9'", "no interface is on that network"},
		{"route via number", routed + "[[route]]\nat = 'a'\nto = 'b'\nvia = 7", "via must be"},
		{"route version", routed + "[[route]]\nat = 'a'\nto = '192.0.2.0/24'\nvia = 'fd00:1ab:0:1::2'", "same IP version"},
		{"route to neighbour", routed + "[[route]]\nat = 'a'\nto = '10.0.1.0/24'\nvia = 'r'", "directly connected"},
		{"route reject", routed + "[[route]]\nat = 'a'\nto = 'b'\nreject = 'lose'", `reject "lose"`},
		{"too long", strings.Repeat("#", MaxFileSize+1), "longer than"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Parse([]byte(test.text))
			if !errors.Is(err, ErrTopology) {
				t.Fatalf("got %+v, %v; want %v", got, err, ErrTopology)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %q, want a message with %q", err, test.want)
			}
		})
	}
}

// table is the routes of a node, for comparing.
func table(t *testing.T, p *plan, node string) []string {
	t.Helper()
	var out []string
	for _, r := range p.byName[node].routes {
		s := r.to.String()
		for _, hop := range r.via {
			s += fmt.Sprintf(" %s@%s", hop.gateway, hop.iface.name)
		}
		out = append(out, strings.TrimSpace(s+" "+r.reject))
	}
	return out
}

func mustPlan(t *testing.T, text string) *plan {
	t.Helper()
	topology, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPlan(topology)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAutomaticRoutes(t *testing.T) {
	p := mustPlan(t, diamondTopology)
	for node, want := range map[string][]string{
		// A host with one way out has a default route.
		"a": {"0.0.0.0/0 10.0.1.2@r", "::/0 fd00:1ab:0:1::2@r"},
		// Equal costs share, and unequal ones do not.
		"r": {
			"10.0.4.0/24 10.0.2.2@x", "10.0.5.0/24 10.0.3.2@y", "10.0.6.0/24 10.0.2.2@x 10.0.3.2@y",
			"fd00:1ab:0:4::/64 fd00:1ab:0:2::2@x", "fd00:1ab:0:5::/64 fd00:1ab:0:3::2@y",
			"fd00:1ab:0:6::/64 fd00:1ab:0:2::2@x fd00:1ab:0:3::2@y",
		},
	} {
		if diff := cmp.Diff(want, table(t, p, node)); diff != "" {
			t.Errorf("routes of %s (-want +got):\n%s", node, diff)
		}
	}
	// A dear wire is shunned.
	p = mustPlan(t, strings.Replace(diamondTopology, "ends = ['r', 'x']", "ends = ['r', 'x']\ncost = 2", 1))
	if got, want := table(t, p, "r")[2], "10.0.6.0/24 10.0.3.2@y"; got != want {
		t.Errorf("route beside a dear wire: got %q, want %q", got, want)
	}
}

const diamondTopology = `
	[host.a]
	[host.b]
	[router.r]
	[router.x]
	[router.y]
	[router.s]
	[[wire]]
	ends = ['a', 'r']
	[[wire]]
	ends = ['r', 'x']
	[[wire]]
	ends = ['r', 'y']
	[[wire]]
	ends = ['x', 's']
	[[wire]]
	ends = ['y', 's']
	[[wire]]
	ends = ['s', 'b']
`

// Anycast addresses are routed to the nearest node that has them.
func TestAnycastRoutes(t *testing.T) {
	p := mustPlan(t, `
		[host.near]
		addresses = ['192.0.2.1']
		[host.far]
		addresses = ['192.0.2.1']
		[router.r1]
		[router.r2]
		[[wire]]
		ends = ['near', 'r1']
		[[wire]]
		ends = ['r1', 'r2']
		[[wire]]
		ends = ['r2', 'far']
	`)
	for node, want := range map[string]string{"r1": "192.0.2.1/32 10.0.1.1@near", "r2": "192.0.2.1/32 10.0.3.2@far"} {
		if got := table(t, p, node); !strings.Contains(strings.Join(got, "\n"), want) {
			t.Errorf("routes of %s: got %q, want %q among them", node, got, want)
		}
	}
}

// Nobody outside has an IPv4 route to the inside of a NAT, which may use the addresses of another.
func TestRoutesAroundNAT(t *testing.T) {
	topology, err := ReadFile("testdata/home.toml")
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPlan(topology)
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{"isp", "isp2", "server"} {
		for _, r := range table(t, p, node) {
			if strings.HasPrefix(r, "192.168.") {
				t.Errorf("%s has the route %s to the inside of a NAT", node, r)
			}
		}
	}
	if got, want := table(t, p, "laptop"), []string{"0.0.0.0/0 192.168.1.1@nat1"}; !cmp.Equal(got, want) {
		t.Errorf("routes of laptop: got %q, want %q", got, want)
	}
}

func TestExplicitRoutePlan(t *testing.T) {
	p := mustPlan(t, diamondTopology+`
		[[route]]
		at = 'r'
		to = '10.0.6.0/24'
		via = ['y', '10.0.2.2']
		[[route]]
		at = 'a'
		to = 'b'
		via = 'r'
		[[route]]
		at = 'a'
		to = 'default'
		reject = 'unreachable'
	`)
	if got, want := table(t, p, "r")[2], "10.0.6.0/24 10.0.2.2@x 10.0.3.2@y"; got != want {
		t.Errorf("route of r: got %q, want %q", got, want)
	}
	want := []string{
		"0.0.0.0/0 unreachable", "10.0.6.2/32 10.0.1.2@r", "::/0 unreachable", "fd00:1ab:0:6::2/128 fd00:1ab:0:1::2@r",
	}
	if diff := cmp.Diff(want, table(t, p, "a")); diff != "" {
		t.Errorf("routes of a (-want +got):\n%s", diff)
	}
}

func TestNames(t *testing.T) {
	p := mustPlan(t, `
		[host.a]
		[router.a-name-longer-than-fifteen]
		[[wire]]
		ends = ['a', 'a-name-longer-than-fifteen']
		[[wire]]
		ends = ['a', 'a-name-longer-than-fifteen']
	`)
	a := p.byName["a"]
	if a.ifaces[0].name != "a-name-longer-t" || a.ifaces[1].name != "a-name-longer.2" {
		t.Errorf("got %q and %q", a.ifaces[0].name, a.ifaces[1].name)
	}
}

func TestHostsFile(t *testing.T) {
	p := mustPlan(t, `
		[host.a]
		[router.r]
		addresses = ['2001:db8::1', '192.0.2.1']
		[[wire]]
		ends = ['a', 'r']
		[[wire]]
		ends = ['a', 'r']
		subnets = ['10.9.0.0/24']
	`)
	const want = `127.0.0.1 localhost
::1 localhost
10.0.1.1 a
10.9.0.1 a
fd00:1ab:0:1::1 a
192.0.2.1 r
10.0.1.2 r
10.9.0.2 r
2001:db8::1 r
fd00:1ab:0:1::2 r
`
	if diff := cmp.Diff(want, p.hostsFile()); diff != "" {
		t.Errorf("hosts file (-want +got):\n%s", diff)
	}
}

func TestExamples(t *testing.T) {
	for _, file := range exampleFiles(t) {
		topology, err := ReadFile(file)
		if err != nil {
			t.Error(err)
			continue
		}
		if want := strings.TrimSuffix(filepath.Base(file), ".toml"); topology.Name != want {
			t.Errorf("%s: named %q, want %q", file, topology.Name, want)
		}
	}
}

func TestSetImpairment(t *testing.T) {
	values := map[string]string{
		"delay": "20ms", "jitter": "2ms", "jitter_uniform": "true", "loss": "0.1", "loss_every": "3", "duplicate": "0.2",
		"reorder": "0.3", "corrupt": "0.4", "rate": "1.5Gbit", "queue_bytes": "99",
	}
	var got Impairment
	for _, key := range ImpairmentKeys {
		if err := SetImpairment(&got, key, values[key]); err != nil {
			t.Error(err)
		}
		if err := SetImpairment(new(Impairment), key, "x"); !errors.Is(err, ErrTopology) {
			t.Errorf("%s = x: got %v, want %v", key, err, ErrTopology)
		}
	}
	want := Impairment{
		Delay: 20 * time.Millisecond, Jitter: 2 * time.Millisecond, JitterUniform: true, Loss: 0.1, LossEvery: 3, Duplicate: 0.2,
		Reorder: 0.3, Corrupt: 0.4, Rate: 1.5e9, QueueBytes: 99,
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if err := SetImpairment(&got, "colour", "red"); !errors.Is(err, ErrTopology) {
		t.Errorf("unknown key: got %v, want %v", err, ErrTopology)
	}
	const words = "20ms ±2ms, loss 10%, duplicate 20%, reorder 30%, corrupt 40%, loses 1 in 3, 1.5Gbit"
	if got := FormatImpairment(want); got != words {
		t.Errorf("in words: got %q, want %q", got, words)
	}
}

func TestGraph(t *testing.T) {
	topology, err := ReadFile("testdata/home.toml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := topology.Graph("mermaid")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"flowchart LR\n", `n3{{"nat1<br/>port-restricted NAT"}}`, `n0 -.-|"8ms, 50Mbit"| n3`} {
		if !strings.Contains(got, want) {
			t.Errorf("mermaid: want %q in\n%s", want, got)
		}
	}
	for _, file := range exampleFiles(t) {
		topology, err := ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		first, err := topology.Graph("svg")
		if err != nil {
			t.Fatal(err)
		}
		if again, _ := topology.Graph("svg"); again != first {
			t.Errorf("%s: two drawings differ", file)
		}
		for name := range topology.Hosts {
			if !strings.Contains(first, ">"+name+"</text>") {
				t.Errorf("%s: host %s is not in the drawing", file, name)
			}
		}
		if strings.Contains(first, "NaN") || strings.Contains(first, "Inf") {
			t.Errorf("%s: a place that is no number:\n%s", file, first)
		}
	}
	if _, err := topology.Graph("png"); err == nil {
		t.Error("png was drawn")
	}
}

// Nothing in a drawing covers anything else, not even the labels of wires between the same two nodes.
func TestGraphOverlaps(t *testing.T) {
	topologies := map[string]*Topology{
		"alone":   MustParse("[host.a]\n[host.b]\n[host.c]"),
		"one":     MustParse("[host.a]"),
		"doubled": MustParse(strings.Repeat("[[wire]]\nends = ['a', 'b']\ndelay = '10ms'\njitter = '1ms'\nloss = 0.02\n", 3) + "[host.a]\n[host.b]"),
	}
	hub := "[bridge.hub]\n"
	for i := range 24 {
		hub += fmt.Sprintf("[host.h%d]\n[[wire]]\nends = ['hub', 'h%d']\nrate = '10Mbit'\n", i, i)
	}
	topologies["hub"] = MustParse(hub)
	for _, file := range append(exampleFiles(t), "../examples/diamond.toml", "../examples/anycast.toml") {
		topology, err := ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		topologies[file] = topology
	}
	for name, topology := range topologies {
		p, err := newPlan(topology)
		if err != nil {
			t.Fatal(err)
		}
		nodes, labels := p.boxes()
		all := append(nodes, labels...)
		for i := range all {
			for j := range i {
				if all[i].crowds(all[j]) {
					t.Errorf("%s: %q and %q are too close: %+v, %+v", name, all[i].lines, all[j].lines, all[i], all[j])
				}
			}
			if math.IsNaN(all[i].at.X) || math.IsInf(all[i].at.X, 0) {
				t.Errorf("%s: %q is nowhere", name, all[i].lines)
			}
		}
	}
}

func TestWrap(t *testing.T) {
	for text, want := range map[string][]string{
		"":                           nil,
		"10ms":                       {"10ms"},
		"10ms ±1ms, loss 2%":         {"10ms ±1ms,", "loss 2%"},
		"an-endless-single-word and": {"an-endless-single-word", "and"},
	} {
		if got := wrap(text, 14); !cmp.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

// FuzzParse holds the parser and the planner to their word: no panic, and a topology
// that is accepted can be planned and drawn.
func FuzzParse(f *testing.F) {
	for _, file := range exampleFiles(f) {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		topology, err := Parse(b)
		if err != nil {
			if !errors.Is(err, ErrTopology) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		if _, err := topology.Graph("mermaid"); err != nil {
			t.Fatalf("accepted, and then: %v", err)
		}
		for _, n := range topology.Hosts {
			for _, a := range n.Addresses {
				if !a.IsValid() {
					t.Fatalf("invalid address accepted")
				}
			}
		}
	})
}
