// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// anycastExample is examples/anycast.toml, whose head has a drawing and the table of this test.
const anycastExample = "../examples/anycast.toml"

var anycast = [2]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

// The example's catchments are those that its head promises.
func TestAnycastCatchments(t *testing.T) {
	topology, err := ReadFile(anycastExample)
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPlan(topology)
	if err != nil {
		t.Fatal(err)
	}
	customers := []string{"eu1 eu2 eu3", "us1 us2 us3", "ap1 ap2", "la1 la2", "mix1 mix2"}
	for _, test := range []struct {
		withdrawn string
		want      []string // by group of customers
	}{
		{"", []string{"ams", "nyc", "sin", "ams", "nyc sin"}},
		{"ams", []string{"nyc", "nyc", "sin", "nyc", "nyc sin"}},
		{"nyc", []string{"ams", "ams", "sin", "ams", "sin"}},
		{"sin", []string{"ams", "nyc", "nyc", "ams", "nyc"}},
		{"ams nyc sin", []string{"", "", "", "", ""}},
	} {
		announced := p.announce
		for site := range strings.FieldsSeq(test.withdrawn) {
			if announced, err = new(AnnounceOptions).changed(announced, p.byName[site], true); err != nil {
				t.Fatal(err)
			}
		}
		routes, err := p.findRoutes(announced)
		if err != nil {
			t.Fatal(err)
		}
		for group, want := range test.want {
			for customer := range strings.FieldsSeq(customers[group]) {
				for _, to := range anycast {
					if got := strings.Join(p.catchment(routes, p.byName[customer], to), " "); got != want {
						t.Errorf("without %q: %s reaches %s at %q, want %q", test.withdrawn, customer, to, got, want)
					}
				}
			}
		}
		// A site that has withdrawn is itself reached as before.
		if got := p.catchment(routes, p.byName["sin"], netip.MustParseAddr("10.0.1.1")); !cmp.Equal(got, []string{"ams"}) {
			t.Errorf("without %q: sin reaches ams's own address at %q", test.withdrawn, got)
		}
	}
}

// With two costs the way back is another than the way there.
//
//	    +-- x --+
//	a - r       s - b
//	    +-- y --+
func TestCostsByDirection(t *testing.T) {
	p := mustPlan(t, strings.Replace(diamondTopology, "ends = ['r', 'x']", "ends = ['r', 'x']\ncost = [1, 9]", 1))
	if got, want := table(t, p, "r")[2], "10.0.6.0/24 10.0.2.2@x 10.0.3.2@y"; got != want {
		t.Errorf("there: got %q, want %q", got, want)
	}
	if got, want := table(t, p, "s")[0], "10.0.1.0/24 10.0.5.1@y"; got != want {
		t.Errorf("back: got %q, want %q", got, want)
	}
}

// twoSites has near and far at either end of a chain.
//
//	near --- r1 --- r2 --- r3 --- far
const twoSites = `
	[host.near]
	addresses = ['192.0.2.1', '198.51.100.1']
	[host.far]
	addresses = ['192.0.2.1']
	[router.r1]
	[router.r2]
	[router.r3]
	[[wire]]
	ends = ['near', 'r1']
	[[wire]]
	ends = ['r1', 'r2']
	[[wire]]
	ends = ['r2', 'r3']
	[[wire]]
	ends = ['r3', 'far']
`

// An announcement at a cost reaches less far.
func TestAnnounceCost(t *testing.T) {
	for announce, want := range map[string]string{
		"":                                      "far near", // r2 is between
		"{ prefix = '192.0.2.1', cost = 1 }":    "far",
		"{ prefix = '192.0.2.1', cost = 2 }":    "far",
		"{ prefix = '192.0.2.1', cost = 1000 }": "far",
		"{ prefix = '198.51.100.1', cost = 9 }": "far near",
	} {
		p := mustPlan(t, strings.Replace(twoSites, "[host.far]", "announce = ["+announce+"]\n[host.far]", 1))
		got := p.catchment(startRoutes(p), p.byName["r2"], anycast[0])
		if !cmp.Equal(got, strings.Fields(want)) {
			t.Errorf("%s: r2 reaches %q, want %q", announce, got, want)
		}
	}
	// From as far as it is announced to be, a site beyond another is out of sight: what passes by the other ends there.
	p := mustPlan(t, strings.Replace(twoSites, "[host.far]", "announce = [{ prefix = '192.0.2.1', cost = 1000 }]\n[host.far]", 1))
	if got := p.catchment(startRoutes(p), p.byName["r1"], anycast[0]); !cmp.Equal(got, []string{"far"}) {
		t.Errorf("beside the dear one: r1 reaches %q, want far", got)
	}
}

// startRoutes are the routes at the start.
func startRoutes(p *plan) routing {
	var t routing
	for _, n := range p.nodes {
		t = append(t, n.routes)
	}
	return t
}

// What passes a router that holds the prefix ends there, and so nobody is led past one that has withdrawn.
//
//	a --- r1 --- r2 --- r3
//	  \-------- x ------/
func TestWithdrawnRouterEndsPaths(t *testing.T) {
	p := mustPlan(t, `
		[host.a]
		[router.r1]
		[router.r2]
		addresses = ['192.0.2.1']
		announce = [{ prefix = '192.0.2.1', withdrawn = true }]
		[router.r3]
		addresses = ['192.0.2.1']
		[router.x]
		[[wire]]
		ends = ['a', 'r1']
		[[wire]]
		ends = ['r1', 'r2']
		[[wire]]
		ends = ['r2', 'r3']
		[[wire]]
		ends = ['r1', 'x']
		cost = 5
		[[wire]]
		ends = ['x', 'r3']
		cost = 5
	`)
	if got := p.catchment(startRoutes(p), p.byName["a"], anycast[0]); !cmp.Equal(got, []string{"r3"}) {
		t.Errorf("a reaches %q, want r3", got)
	}
}

func TestAnnounceFaults(t *testing.T) {
	p := mustPlan(t, twoSites)
	prefix := netip.MustParsePrefix
	for _, test := range []struct {
		node string
		o    AnnounceOptions
		want error
		text string
	}{
		{"r1", AnnounceOptions{}, ErrNotHeld, "r1 has no addresses"},
		{"far", AnnounceOptions{Prefixes: []netip.Prefix{prefix("198.51.100.1/32")}}, ErrNotHeld, "198.51.100.1 at far"},
		{"far", AnnounceOptions{Prefixes: []netip.Prefix{{}}}, ErrNotHeld, "at far"},
		{"far", AnnounceOptions{Prefixes: []netip.Prefix{prefix("192.0.2.0/24")}}, ErrNotHeld, "192.0.2.0/24 at far"},
		{"far", AnnounceOptions{Stagger: -1}, ErrTopology, "stagger"},
		{"far", AnnounceOptions{Stagger: MaxDelay + 1}, ErrTopology, "stagger"},
		{"far", AnnounceOptions{Cost: new(-1)}, ErrTopology, "cost -1"},
		{"far", AnnounceOptions{Cost: new(MaxCost + 1)}, ErrTopology, "cost 1000001"},
	} {
		_, err := test.o.changed(p.announce, p.byName[test.node], true)
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s %+v: got %v, want %v with %q", test.node, test.o, err, test.want, test.text)
		}
	}
	// A change leaves what it came from alone, and a plain announcement leaves nothing.
	before := announcements{}
	withdrawn, err := (&AnnounceOptions{Stagger: time.Second}).changed(before, p.byName["near"], true)
	if err != nil || len(withdrawn) != 2 || len(before) != 0 {
		t.Fatalf("withdrawn: %v, %v; before: %v", withdrawn, err, before)
	}
	if plain, err := new(AnnounceOptions).changed(withdrawn, p.byName["near"], false); err != nil || len(plain) != 0 || len(withdrawn) != 2 {
		t.Errorf("announced again: %v, %v", plain, err)
	}
}

func TestHops(t *testing.T) {
	p := mustPlan(t, twoSites+"[host.apart]\n")
	got := map[string]int{}
	for i, hops := range p.hops(p.byName["near"]) {
		got[p.nodes[i].name] = hops
	}
	want := map[string]int{"near": 0, "r1": 1, "r2": 2, "r3": 3, "far": 4, "apart": 4}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("hops (-want +got):\n%s", diff)
	}
}
