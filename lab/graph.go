// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"strings"

	"github.com/seed5728abee/fathom/lab/dataplane"
)

// Graph draws the topology. The format is "mermaid", a flowchart in the language of
// mermaid.js, which many web pages draw, or "svg".
func (t *Topology) Graph(format string) (string, error) {
	p, err := newPlan(t)
	if err != nil {
		return "", err
	}
	switch format {
	case "mermaid":
		return p.mermaid(), nil
	case "svg":
		return p.svg()
	}
	return "", fmt.Errorf("graph format %q is not mermaid or svg", format)
}

// mermaid draws hosts as boxes, routers as rounded boxes, bridges as subroutines and NATs as hexagons.
func (p *plan) mermaid() string {
	shapes := map[Kind][2]string{
		KindHost: {"[", "]"}, KindRouter: {"(", ")"}, KindBridge: {"[[", "]]"}, KindNAT: {"{{", "}}"},
	}
	var b strings.Builder
	b.WriteString("flowchart LR\n")
	for _, n := range p.nodes {
		// The nodes have numbers because some names, such as "end", are words of the language.
		fmt.Fprintf(&b, "    n%d%s\"%s\"%s\n", n.index, shapes[n.kind][0], strings.Join(p.nodeLabel(n), "<br/>"), shapes[n.kind][1])
	}
	for i, pair := range p.wires {
		line := "---"
		if !p.topology.Wires[i].plain() {
			line = "-.-"
		}
		if label := p.wireLabel(i); label != "" {
			line += fmt.Sprintf("|\"%s\"|", label)
		}
		fmt.Fprintf(&b, "    n%d %s n%d\n", pair[0].node.index, line, pair[1].node.index)
	}
	return b.String()
}

// nodeLabel are the lines of a node: its name, its address, and what is odd about it.
func (p *plan) nodeLabel(n *planNode) []string {
	lines := []string{n.name}
	if n.kind == KindBridge {
		if len(n.ifaces) > 0 {
			lines = append(lines, n.ifaces[0].seg.subnets[0].String())
		}
		return lines
	}
	if n.kind == KindHost || len(n.loopback) > 0 {
		if a := n.address(0); a.IsValid() {
			lines = append(lines, a.String())
		} else if a := n.address(1); a.IsValid() {
			lines = append(lines, a.String())
		}
	}
	var b Behaviour
	switch n.kind {
	case KindNAT:
		c := p.topology.NATs[n.name]
		lines, b = append(lines, c.Type.String()+" NAT"), c.Behaviour
	case KindRouter:
		b = p.topology.Routers[n.name].Behaviour
	case KindHost, KindBridge: // behave
	}
	var odd []string
	add := func(is bool, format string, args ...any) {
		if is {
			odd = append(odd, fmt.Sprintf(format, args...))
		}
	}
	for _, a := range n.announce {
		add(a.Withdrawn, "%s withdrawn", prefixString(a.Prefix))
		add(!a.Withdrawn && a.Cost != 0, "%s at cost %d", prefixString(a.Prefix), a.Cost)
	}
	add(n.hops > 1, "%d hops", n.hops)
	add(b.Silent, "silent")
	add(b.SilentPing, "no echo")
	add(b.ICMPRate != 0, "%g ICMP/s", b.ICMPRate)
	add(b.ICMPDelay != 0, "ICMP +%s", b.ICMPDelay)
	add(len(b.ErrorSource) > 0, "answers as %s", strings.Trim(fmt.Sprint(b.ErrorSource), "[]"))
	add(len(b.MPLS) > 0, "MPLS")
	add(b.Balance != dataplane.BalanceFlow, "balances by %s", b.Balance)
	add(len(b.Firewall) > 0, "firewall")
	if len(odd) > 0 {
		lines = append(lines, strings.Join(odd, ", "))
	}
	return lines
}

// wireLabel describes the impairments of a wire, by direction where they differ.
func (p *plan) wireLabel(i int) string {
	w := &p.topology.Wires[i]
	there, back := FormatImpairment(w.direction(dataplane.Forward)), FormatImpairment(w.direction(dataplane.Backward))
	switch {
	case there == back:
		return there
	case there == "":
		there = "perfect"
	case back == "":
		back = "perfect"
	}
	return fmt.Sprintf("→ %s: %s; → %s: %s", w.Ends[1], there, w.Ends[0], back)
}
