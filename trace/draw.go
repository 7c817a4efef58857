// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"cmp"
	"fmt"
	"html"
	"io"
	"math"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
)

// Format is a way to draw a graph.
type Format uint8

// The formats.
const (
	_       Format = iota
	SVG            // a picture that stands by itself
	DOT            // Graphviz
	Mermaid        // for Markdown pages
)

// String gives the file name's ending, without the dot.
func (f Format) String() string {
	switch f {
	case SVG:
		return "svg"
	case DOT:
		return "dot"
	case Mermaid:
		return "mmd"
	}
	return fmt.Sprintf("Format(%d)", uint8(f))
}

// FormatOf gives the format that a file name's ending asks for: .svg, .dot or .gv, .mmd or .mermaid.
func FormatOf(file string) (Format, error) {
	switch strings.ToLower(filepath.Ext(file)) {
	case ".svg":
		return SVG, nil
	case ".dot", ".gv":
		return DOT, nil
	case ".mmd", ".mermaid":
		return Mermaid, nil
	}
	return 0, fmt.Errorf("draw to %s: want a name that ends in .svg, .dot or .mmd: %w", file, probe.ErrInvalid)
}

// Draw writes a picture of the graph: the hops from left to right. If answers came home at several places, or elsewhere
// than at the sender, each place has a colour, which its nodes are filled with. About gives what to write beside an
// address; it may be nil.
func (g *Graph) Draw(w io.Writer, format Format, about func(netip.Addr) Annotation) error {
	given := about
	about = func(addr netip.Addr) (a Annotation) {
		if given != nil {
			a = given(addr)
		}
		a.Name, a.ASName, a.Country = cleanText(a.Name), cleanText(a.ASName), cleanText(a.Country)
		return a
	}
	var text string
	switch format {
	case SVG:
		text = g.svg(about)
	case DOT:
		text = g.dot(about)
	case Mermaid:
		text = g.mermaid(about)
	default:
		return fmt.Errorf("draw a graph as %v: %w", format, probe.ErrInvalid)
	}
	_, err := io.WriteString(w, text)
	return err
}

// label gives the lines that say what a node is: the address, and what is known about it.
func (g *Graph) label(n *Node, about func(netip.Addr) Annotation) []string {
	switch n.Kind {
	case SourceNode:
		return []string{cmp.Or(g.Source, "source")}
	case SilentNode:
		return []string{"*", "no answer"}
	case RouterNode, TargetNode, RefuseNode:
	}
	if !n.Addr.IsValid() {
		return []string{"this host", n.Status.String()}
	}
	lines := []string{n.Addr.String()}
	a := about(n.Addr)
	if a.Name != "" {
		lines = append(lines, a.Name)
	}
	if a.ASN != 0 || a.Country != "" {
		var parts []string
		if a.ASN != 0 {
			parts = append(parts, fmt.Sprintf("AS%d", a.ASN))
		}
		if a.Country != "" {
			parts = append(parts, a.Country)
		}
		if a.ASName != "" {
			parts = append(parts, a.ASName)
		}
		lines = append(lines, strings.Join(parts, " "))
	}
	switch {
	case n.Max > n.Min:
		lines = append(lines, fmt.Sprintf("%s / %s / %s ms", millis(n.Min), millis(n.Avg), millis(n.Max)))
	case n.Timed > 0:
		lines = append(lines, millis(n.Min)+" ms")
	}
	if len(n.Receivers) > 0 {
		lines = append(lines, "heard at "+cleanText(strings.Join(n.Receivers, ", ")))
	}
	if mark := Mark(&probe.Result{Target: g.Target, Status: n.Status, HasICMP: n.HasICMP, ICMPType: n.ICMPType, ICMPCode: n.ICMPCode}); mark != "" {
		lines = append(lines, "unreachable "+mark)
	}
	if len(n.MPLS) > 0 {
		lines = append(lines, "MPLS "+LabelsText(n.MPLS))
	}
	if n.PerPacket {
		lines = append(lines, "balances per packet")
	}
	return lines
}

// LabelsText writes a label stack, outermost first: "16001/5/1 24000/0/1", for each the label, the traffic class
// and the time to live.
func LabelsText(stack []packet.Label) string {
	parts := make([]string, len(stack))
	for i, l := range stack {
		parts[i] = fmt.Sprintf("%d/%d/%d", l.Label, l.TC, l.TTL)
	}
	return strings.Join(parts, " ")
}

func millis(d time.Duration) string { return fmt.Sprintf("%.3f", float64(d)/float64(time.Millisecond)) }

// title says in one line what the picture shows.
func (g *Graph) title(about func(netip.Addr) Annotation) string {
	target := g.Target.String()
	if name := about(g.Target).Name; name != "" {
		target = name + " (" + target + ")"
	}
	s := fmt.Sprintf("To %s: %v, %d probes, %s", target, g.Protocol, g.Probes, g.Stop)
	if g.Silent > 0 {
		s += fmt.Sprintf(", %d silent hops", g.Silent)
	}
	if g.Confidence > 0 {
		s += fmt.Sprintf(", confidence %.1f %%", 100*g.Confidence)
	}
	return s
}

// palette are the colours of the places where answers come home: light enough for black text, and chosen to stay
// apart for eyes that do not see all colours (after Okabe and Ito 2008).
var palette = [...]string{"#a6d8f5", "#fbd27a", "#8fe0c4", "#f3b6d4", "#f5ef9a", "#c9c5f2", "#f4b08f", "#cfd4da"}

// colours gives each receiver its colour, in the order of their names. With more receivers than colours some share one;
// the nodes say their names.
func (g *Graph) colours() (receivers []string, colour map[string]string) {
	for i := range g.Nodes {
		for _, r := range g.Nodes[i].Receivers {
			if at, found := slices.BinarySearch(receivers, r); !found {
				receivers = slices.Insert(receivers, at, r)
			}
		}
	}
	colour = make(map[string]string, len(receivers))
	for i, r := range receivers {
		colour[r] = palette[i%len(palette)]
	}
	return receivers, colour
}

// The measures of an SVG picture, in CSS pixels.
const (
	svgMargin = 20.0
	svgTop    = 76.0 // room for the title and the hop numbers
	svgGapX   = 70.0 // between columns: room for the links
	svgGapY   = 22.0 // between the nodes of a column
	svgPad    = 9.0  // around a node's text
	svgLine   = 15.0 // line height
	svgGlyph  = 6.7  // width of a character at 11 px, which is monospaced
	svgMost   = 44   // characters in a line: an IPv6 address, or a longish name
	svgLegend = 26.0 // height of the line that says which colour is whose
)

// box is where a node is drawn.
type box struct {
	x, y, w, h float64
	lines      []string
}

// svg draws the graph. Nothing in it depends on fonts or files that a viewer may lack.
func (g *Graph) svg(about func(netip.Addr) Annotation) string {
	hops := g.ordered()
	receivers, colour := g.colours()
	top := svgTop
	if len(receivers) > 0 {
		top += svgLegend
	}
	boxes := make([]box, len(g.Nodes))
	x, tallest := svgMargin, 0.0
	heights := make([]float64, len(hops))
	for i, hop := range hops {
		width := 0
		for _, n := range hop {
			lines := g.label(&g.Nodes[n], about)
			for j := range lines {
				lines[j] = shorten(lines[j], svgMost)
				width = max(width, utf8.RuneCountInString(lines[j]))
			}
			boxes[n].lines = lines
			boxes[n].h = 2*svgPad + svgLine*float64(len(lines)) - 4
			heights[i] += boxes[n].h
		}
		heights[i] += svgGapY * float64(len(hop)-1)
		tallest = max(tallest, heights[i])
		for _, n := range hop {
			boxes[n].x, boxes[n].w = x, float64(width)*svgGlyph+2*svgPad
		}
		x += float64(width)*svgGlyph + 2*svgPad + svgGapX
	}
	for i, hop := range hops {
		y := top + (tallest-heights[i])/2
		for _, n := range hop {
			boxes[n].y = y
			y += boxes[n].h + svgGapY
		}
	}
	title := g.title(about)
	width := max(x-svgGapX+svgMargin, float64(utf8.RuneCountInString(title))*8.2+2*svgMargin)
	height := top + tallest + svgMargin
	legend := svgMargin
	for i := range receivers {
		receivers[i] = shorten(cleanText(receivers[i]), svgMost)
		legend += legendWidth(receivers[i])
	}
	width = max(width, legend)

	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f" role="img">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, "<title>%s</title>\n", html.EscapeString(title))
	b.WriteString(`<style>text{font:11px ui-monospace,"DejaVu Sans Mono",monospace;fill:#1f2933}.t{font:600 14px sans-serif}.h{font:11px sans-serif;fill:#7b8794}.a{font-weight:700}</style>` + "\n")
	b.WriteString(`<rect width="100%" height="100%" fill="#ffffff"/>` + "\n")
	fmt.Fprintf(&b, `<text class="t" x="%.0f" y="28">%s</text>`+"\n", svgMargin, html.EscapeString(title))
	if len(receivers) > 0 {
		g.drawLegend(&b, receivers)
	}
	for i, hop := range hops {
		if i > 0 {
			at := boxes[hop[0]]
			fmt.Fprintf(&b, `<text class="h" x="%.1f" y="%.0f" text-anchor="middle">hop %d</text>`+"\n", at.x+at.w/2, top-16, g.Nodes[hop[0]].TTL)
		}
	}
	for i := range g.Edges {
		g.drawEdge(&b, &g.Edges[i], boxes)
	}
	for i := range g.Nodes {
		g.drawNode(&b, &g.Nodes[i], boxes[i], colour)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func legendWidth(receiver string) float64 {
	return 20 + float64(utf8.RuneCountInString(receiver))*svgGlyph + 18
}

// drawLegend says which colour is whose. The names are as they are to be shown.
func (g *Graph) drawLegend(b *strings.Builder, receivers []string) {
	x := svgMargin
	for i, r := range receivers {
		fmt.Fprintf(b, `<rect x="%.1f" y="44" width="12" height="12" rx="2" fill="%s" stroke="#52606d"/><text x="%.1f" y="54">%s</text>`+"\n",
			x, palette[i%len(palette)], x+18, html.EscapeString(r))
		x += legendWidth(r)
	}
}

func (g *Graph) drawEdge(b *strings.Builder, e *Edge, boxes []box) {
	from, to := boxes[e.From], boxes[e.To]
	x1, y1, x2, y2 := from.x+from.w, from.y+from.h/2, to.x, to.y+to.h/2
	style := `stroke="#52606d"`
	switch {
	case e.Uncertain:
		style = `stroke="#9aa5b1" stroke-dasharray="2 4"`
	case g.Nodes[e.From].Kind == SilentNode || g.Nodes[e.To].Kind == SilentNode:
		style = `stroke="#9aa5b1" stroke-dasharray="6 4"`
	}
	// More flows make a thicker line, in steps that can be told apart.
	thick := 1.2 + min(2.4, 0.6*math.Log2(float64(max(1, len(e.Flows)))))
	bend := (x2 - x1) / 2
	note := ""
	if len(e.Flows) > 0 {
		note = fmt.Sprintf("<title>%d flows</title>", len(e.Flows))
	}
	fmt.Fprintf(b, `<path d="M%.1f %.1fC%.1f %.1f %.1f %.1f %.1f %.1f" fill="none" %s stroke-width="%.1f">%s</path>`+"\n",
		x1, y1, x1+bend, y1, x2-bend, y2, x2, y2, style, thick, note)
}

func (g *Graph) drawNode(b *strings.Builder, n *Node, at box, colour map[string]string) {
	fill, stroke, more := "#f5f7fa", "#7b8794", ""
	switch n.Kind {
	case SourceNode:
		fill, stroke = "#e0f2fe", "#0369a1"
	case TargetNode:
		fill, stroke = "#dcfce7", "#15803d"
	case RefuseNode:
		fill, stroke = "#fee2e2", "#b91c1c"
	case SilentNode:
		fill, stroke, more = "#ffffff", "#9aa5b1", ` stroke-dasharray="6 4"`
	case RouterNode:
		if n.PerPacket {
			fill, stroke = "#fef3c7", "#b45309"
		}
	}
	if len(n.Receivers) > 0 {
		// A stripe for each receiver under an outline.
		for i, r := range n.Receivers {
			w := at.w / float64(len(n.Receivers))
			round := ""
			if len(n.Receivers) == 1 {
				round = ` rx="6"`
			}
			fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"%s/>`+"\n", at.x+w*float64(i), at.y, w, at.h, colour[r], round)
		}
		fill = "none"
		if n.Kind == TargetNode || n.Kind == RefuseNode {
			more = ` style="stroke-width:2.6"`
		}
	}
	fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="6" fill="%s" stroke="%s" stroke-width="1.3"%s/>`+"\n",
		at.x, at.y, at.w, at.h, fill, stroke, more)
	for i, line := range at.lines {
		class := ""
		if i == 0 {
			class = ` class="a"`
		}
		fmt.Fprintf(b, `<text%s x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n",
			class, at.x+at.w/2, at.y+svgPad+svgLine*float64(i)+8, html.EscapeString(line))
	}
}

// ordered gives the nodes by hop, each hop's in an order that keeps links short: a few sweeps of the barycentre
// method (Sugiyama et al. 1981) from left to right and back.
func (g *Graph) ordered() [][]int {
	hops := g.Hops()
	place := make([]float64, len(g.Nodes))
	settle := func(hop []int) {
		for i, n := range hop {
			place[n] = (float64(i) + 0.5) / float64(len(hop))
		}
	}
	next, before := make([][]int, len(g.Nodes)), make([][]int, len(g.Nodes))
	for _, e := range g.Edges {
		next[e.From] = append(next[e.From], e.To)
		before[e.To] = append(before[e.To], e.From)
	}
	for _, hop := range hops {
		settle(hop)
	}
	sweep := func(hop []int, neighbours [][]int) {
		for _, n := range hop {
			if len(neighbours[n]) > 0 {
				sum := 0.0
				for _, o := range neighbours[n] {
					sum += place[o]
				}
				place[n] = sum / float64(len(neighbours[n]))
			}
		}
		slices.SortStableFunc(hop, func(a, b int) int {
			switch {
			case place[a] < place[b]:
				return -1
			case place[a] > place[b]:
				return 1
			}
			return 0
		})
		settle(hop)
	}
	for range 4 {
		for _, hop := range hops {
			sweep(hop, before)
		}
		for _, hop := range slices.Backward(hops) {
			sweep(hop, next)
		}
	}
	for _, hop := range hops {
		sweep(hop, before)
	}
	return hops
}

// shorten cuts a text at a number of characters.
func shorten(s string, most int) string {
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most-1]) + "…"
}

// dot writes the graph for Graphviz.
func (g *Graph) dot(about func(netip.Addr) Annotation) string {
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	var b strings.Builder
	fmt.Fprintf(&b, "digraph trace {\n\trankdir=LR;\n\tlabel=\"%s\";\n\tnode [shape=box, style=rounded, fontname=monospace];\n", quote.Replace(g.title(about)))
	_, colour := g.colours()
	for i := range g.Nodes {
		lines := g.label(&g.Nodes[i], about)
		for j := range lines {
			lines[j] = quote.Replace(lines[j])
		}
		style := ""
		switch here := g.Nodes[i].Receivers; {
		case g.Nodes[i].Kind == SilentNode:
			style = `, style="rounded,dashed"`
		case len(here) == 1:
			style = fmt.Sprintf(`, style="rounded,filled", fillcolor="%s"`, colour[here[0]])
		case len(here) > 1: // stripes; they do not go with round corners
			fills := make([]string, len(here))
			for j, r := range here {
				fills[j] = colour[r]
			}
			style = fmt.Sprintf(`, style=striped, fillcolor="%s"`, strings.Join(fills, ":"))
		}
		fmt.Fprintf(&b, "\tn%d [label=\"%s\"%s];\n", i, strings.Join(lines, `\n`), style)
	}
	for _, e := range g.Edges {
		style := ""
		if e.Uncertain {
			style = " [style=dotted]"
		}
		fmt.Fprintf(&b, "\tn%d -> n%d%s;\n", e.From, e.To, style)
	}
	for _, hop := range g.Hops() {
		b.WriteString("\t{rank=same;")
		for _, n := range hop {
			fmt.Fprintf(&b, " n%d;", n)
		}
		b.WriteString("}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// mermaid writes the graph for Mermaid. Its texts are HTML, with & written as # in entities.
func (g *Graph) mermaid(about func(netip.Addr) Annotation) string {
	quote := func(s string) string {
		s = strings.ReplaceAll(s, "#", "#35;")
		return strings.NewReplacer(`"`, "#quot;", "<", "#lt;", ">", "#gt;", "&", "#amp;", "`", "#96;", "*", "#42;", `\`, "#92;").Replace(s)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%%%% %s\nflowchart LR\n", g.title(about))
	_, colour := g.colours()
	for i := range g.Nodes {
		lines := g.label(&g.Nodes[i], about)
		for j := range lines {
			lines[j] = quote(lines[j])
		}
		fmt.Fprintf(&b, "  n%d[\"%s\"]\n", i, strings.Join(lines, "<br/>"))
		if g.Nodes[i].Kind == SilentNode {
			fmt.Fprintf(&b, "  style n%d stroke-dasharray: 6 4\n", i)
		}
		if here := g.Nodes[i].Receivers; len(here) > 0 {
			fmt.Fprintf(&b, "  style n%d fill:%s\n", i, colour[here[0]])
		}
	}
	for _, e := range g.Edges {
		arrow := "-->"
		if e.Uncertain {
			arrow = "-.->"
		}
		fmt.Fprintf(&b, "  n%d %s n%d\n", e.From, arrow, e.To)
	}
	return b.String()
}
