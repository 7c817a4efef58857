// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
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
//	a --- na --+         +-- nb --- b      for each pair of kinds
//	           +-- isp --+
//	                |
//	         member1, member2
func swarmPairs(t *testing.T) {
	type pair struct {
		a, b       int // kinds
		name       string
		first, way time.Duration
		how        string
	}
	var pairs []*pair
	var file strings.Builder
	file.WriteString("[host.member1]\naddresses = [\"203.0.113.80/32\"]\n[host.member2]\naddresses = [\"203.0.113.81/32\"]\n" +
		"[router.isp]\n[[wire]]\nends = [\"isp\", \"member1\"]\n[[wire]]\nends = [\"isp\", \"member2\"]\n")
	for i := range swarmNATs {
		for j := i; j < len(swarmNATs); j++ {
			n := len(pairs)
			for side, kind := range []int{i, j} {
				x := fmt.Sprintf("%d%c", n, 'a'+side)
				fmt.Fprintf(&file, "[host.h%s]\n[nat.n%s]\noutside = \"isp\"\n%s\n", x, x, swarmNATs[kind].options)
				fmt.Fprintf(&file, "[[wire]]\nends = [\"n%s\", \"h%s\"]\nsubnets = [\"192.168.1.0/24\"]\n[[wire]]\nends = [\"isp\", \"n%s\"]\n", x, x, x)
			}
			pairs = append(pairs, &pair{a: i, b: j, name: swarmNATs[i].name + " - " + swarmNATs[j].name})
		}
	}
	n := newSwarmNet(t, file.String())
	const entry = "203.0.113.80:" + swarmPort
	public := []*swarmNode{n.node("member1", "--listen", entry)}
	public[0].up()
	public = append(public, n.node("member2", "--listen", "203.0.113.81:"+swarmPort, "--join", entry))
	public[1].up()

	var wg sync.WaitGroup
	for i, p := range pairs {
		if i > 0 && i%5 == 0 {
			time.Sleep(time.Second)
		}
		a := n.node(fmt.Sprintf("h%da", i), "--listen", on, "--join", entry)
		b := n.node(fmt.Sprintf("h%db", i), "--listen", on, "--join", entry)
		wg.Go(func() {
			a.up()
			b.up()
			there := a.sendTo(b, "to b")
			back := b.sendTo(a, "to a")
			p.first = max(there.Sub(b.began), back.Sub(b.began))
			// NATs that choose ports at random and by destination pass only with those that do not mind the port.
			circuit := p.b == 4 && p.a >= 2
			for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
				p.way = time.Since(b.began)
				if p.how = a.how(b); p.how != "circuit" || circuit {
					break
				}
			}
		})
	}
	wg.Wait()
	for _, p := range pairs {
		t.Logf("%-32s data after %4d ms; %s after %d ms", p.name, p.first.Milliseconds(), p.how, p.way.Milliseconds())
	}
}
