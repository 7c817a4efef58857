// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/xml"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"unicode/utf8"

	"gonum.org/v1/gonum/graph/layout"
	"gonum.org/v1/gonum/graph/simple"
	"gonum.org/v1/gonum/spatial/r2"
)

// The measures of a drawing, in CSS pixels.
const (
	svgStep   = 100.0 // length of an average wire, if that leaves room for nodes and labels
	svgGap    = 14.0  // least space between any two of them
	svgMargin = 20.0
	svgLine   = 15.0 // line height of 12 px text
	svgGlyph  = 6.8  // width of an average letter of it
	svgBold   = 8.2  // width of an average bold letter
	svgPoint  = 12.0 // what the points of a NAT's hexagon add to either side

	svgNodeText = 24 // letters in a line of a node
	svgWireText = 14 // letters in a line of a wire
)

// A box is a rectangle with text: a node, or the label of a wire.
type box struct {
	at, size r2.Vec // the centre is at at
	lines    []string
}

// crowds reports whether there is less than svgGap between two boxes.
func (b *box) crowds(c box) bool {
	return math.Abs(b.at.X-c.at.X) < (b.size.X+c.size.X)/2+svgGap && math.Abs(b.at.Y-c.at.Y) < (b.size.Y+c.size.Y)/2+svgGap
}

// reach is how far a line from the centre in the direction of the unit vector d runs inside the box.
func (b *box) reach(d r2.Vec) float64 {
	return min(b.size.X/2/math.Abs(d.X), b.size.Y/2/math.Abs(d.Y)) // one may be +Inf
}

// svg draws the nodes where a force-directed layout (Eades 1984) puts them, started from
// a fixed seed so that the drawing is the same each time.
func (p *plan) svg() (string, error) {
	nodes, labels := p.boxes()
	low, high := r2.Vec{X: math.Inf(1), Y: math.Inf(1)}, r2.Vec{X: math.Inf(-1), Y: math.Inf(-1)}
	for _, list := range [][]box{nodes, labels} {
		for i := range list {
			half := r2.Scale(0.5, list[i].size)
			from, to := r2.Sub(list[i].at, half), r2.Add(list[i].at, half)
			low = r2.Vec{X: min(low.X, from.X), Y: min(low.Y, from.Y)}
			high = r2.Vec{X: max(high.X, to.X), Y: max(high.Y, to.Y)}
		}
	}
	for _, list := range [][]box{nodes, labels} {
		for i := range list {
			list[i].at = r2.Add(r2.Sub(list[i].at, low), r2.Vec{X: svgMargin, Y: svgMargin})
		}
	}
	size := r2.Add(r2.Sub(high, low), r2.Vec{X: 2 * svgMargin, Y: 2 * svgMargin})

	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="12">`+"\n",
		size.X, size.Y, size.X, size.Y)
	b.WriteString(`<rect width="100%" height="100%" fill="white"/>` + "\n")
	for i, pair := range p.wires {
		from, to := nodes[pair[0].node.index].at, nodes[pair[1].node.index].at
		dash := ""
		if !p.topology.Wires[i].plain() {
			dash = ` stroke-dasharray="6 3"`
		}
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#556" stroke-width="1.5"%s/>`+"\n", from.X, from.Y, to.X, to.Y, dash)
	}
	for _, n := range p.nodes {
		writeNode(&b, n.kind, &nodes[n.index])
	}
	for i := range labels {
		writeLabel(&b, &labels[i])
	}
	b.WriteString("</svg>\n")
	return b.String(), nil
}

// boxes are the nodes, and the labels of the wires that have one. The drawing grows until none of
// them covers another.
func (p *plan) boxes() (nodes, labels []box) {
	const (
		step = 1.1
		most = 6.0 // hundreds of nodes that are all neighbours may touch
	)
	at := p.layout()
	nodes = make([]box, len(p.nodes))
	for i, n := range p.nodes {
		lines := []string{n.name}
		for _, s := range p.nodeLabel(n)[1:] {
			lines = append(lines, wrap(s, svgNodeText)...)
		}
		width := svgBold * float64(utf8.RuneCountInString(n.name))
		for _, s := range lines[1:] {
			width = max(width, svgGlyph*float64(utf8.RuneCountInString(s)))
		}
		nodes[i] = box{size: r2.Vec{X: width + 16, Y: svgLine*float64(len(lines)) + 10}, lines: lines}
		if n.kind == KindNAT {
			nodes[i].size.X += 2 * svgPoint
		}
	}
	for scale := 1.0; ; scale *= step {
		for i := range nodes {
			nodes[i].at = r2.Scale(scale, at[i])
		}
		labels = p.labels(nodes)
		if scale*step > most || apart(append(slices.Clone(nodes), labels...)) {
			return nodes, labels
		}
	}
}

// apart reports whether no box crowds another.
func apart(all []box) bool {
	for i := range all {
		if slices.ContainsFunc(all[:i], all[i].crowds) {
			return false
		}
	}
	return true
}

// labels puts what there is to say about a wire near the middle of what can be seen of it, where there is room;
// wires that join the same two nodes share that part.
func (p *plan) labels(nodes []box) []box {
	type ends [2]int
	of := func(i int) ends {
		a, b := p.wires[i][0].node.index, p.wires[i][1].node.index
		return ends{min(a, b), max(a, b)}
	}
	total, seen := map[ends]int{}, map[ends]int{}
	for i := range p.wires {
		if p.wireLabel(i) != "" {
			total[of(i)]++
		}
	}
	var out []box
	for i := range p.wires {
		label := p.wireLabel(i)
		if label == "" {
			continue
		}
		pair := of(i)
		seen[pair]++
		from, to := &nodes[pair[0]], &nodes[pair[1]]
		way := r2.Sub(to.at, from.at)
		length := r2.Norm(way)
		d := r2.Vec{X: 1}
		if length > 0 {
			d = r2.Scale(1/length, way)
		}
		start, end := from.reach(d), length-to.reach(d)
		var lines []string
		width := 0
		for s := range strings.SplitSeq(label, "; ") {
			lines = append(lines, wrap(s, svgWireText)...)
		}
		for _, s := range lines {
			width = max(width, utf8.RuneCountInString(s))
		}
		l := box{size: r2.Vec{X: svgGlyph*float64(width) + 6, Y: svgLine * float64(len(lines))}, lines: lines}
		share := (end - start) / float64(total[pair]+1)
		for _, aside := range []float64{0, -0.2, 0.2, -0.4, 0.4, 0} { // the first that is free, or else the middle
			l.at = r2.Add(from.at, r2.Scale(start+share*(float64(seen[pair])+aside), d))
			if !slices.ContainsFunc(nodes, l.crowds) && !slices.ContainsFunc(out, l.crowds) {
				break
			}
		}
		out = append(out, l)
	}
	return out
}

// wrap breaks a text between words into lines of at most so many letters, or a single longer word.
func wrap(text string, most int) []string {
	var lines []string
	for word := range strings.FieldsSeq(text) {
		last := len(lines) - 1
		if last >= 0 && utf8.RuneCountInString(lines[last])+1+utf8.RuneCountInString(word) <= most {
			lines[last] += " " + word
		} else {
			lines = append(lines, word)
		}
	}
	return lines
}

// layout gives each node a place, such that an average wire is svgStep long.
func (p *plan) layout() []r2.Vec {
	g := simple.NewUndirectedMatrix(len(p.nodes), 0, 0, 0) // unlike other graphs, it has its nodes in order
	for _, pair := range p.wires {
		g.SetWeightedEdge(simple.WeightedEdge{F: simple.Node(pair[0].node.index), T: simple.Node(pair[1].node.index), W: 1})
	}
	const (
		steady = 4       // wires at a node that the layout's usual steps suit
		moves  = 400_000 // of all nodes together: some seconds for the largest topologies
	)
	// The more wires pull at a node, the shorter its steps must be, lest it swings ever farther.
	degree := steady
	for _, n := range p.nodes {
		degree = max(degree, len(n.ifaces))
	}
	slower := float64(degree) / steady
	updates := min(int(slower*float64(100+20*len(p.nodes))), moves/len(p.nodes))
	eades := layout.EadesR2{Updates: updates, Repulsion: 1, Rate: 0.05 / slower, Theta: 0.2, Src: rand.NewPCG(1, 1)}
	o := layout.NewOptimizerR2(g, eades.Update)
	for o.Update() {
	}
	at := make([]r2.Vec, len(p.nodes))
	for i := range at {
		at[i] = o.Coord2(int64(i))
	}
	turn(at)
	total := 0.0
	for _, pair := range p.wires {
		total += r2.Norm(r2.Sub(at[pair[0].node.index], at[pair[1].node.index]))
	}
	scale := svgStep // without wires: the layout's unit is the room that a node likes to have
	if total > 0 {
		scale = svgStep * float64(len(p.wires)) / total
	}
	for i := range at {
		at[i] = r2.Scale(scale, at[i])
	}
	return at
}

// turn rotates a drawing about its centre so that its longest axis (the first principal
// component) lies across, as text does, with the first node on the left.
func turn(at []r2.Vec) {
	var centre r2.Vec
	for _, v := range at {
		centre = r2.Add(centre, r2.Scale(1/float64(len(at)), v))
	}
	var xx, xy, yy float64
	for i := range at {
		at[i] = r2.Sub(at[i], centre)
		xx, xy, yy = xx+at[i].X*at[i].X, xy+at[i].X*at[i].Y, yy+at[i].Y*at[i].Y
	}
	angle := -math.Atan2(2*xy, xx-yy) / 2
	if r2.Rotate(at[0], angle, r2.Vec{}).X > 0 {
		angle += math.Pi
	}
	for i := range at {
		at[i] = r2.Rotate(at[i], angle, r2.Vec{})
	}
}

func writeNode(b *strings.Builder, kind Kind, n *box) {
	w, h := n.size.X, n.size.Y
	x, y := n.at.X-w/2, n.at.Y-h/2
	switch kind {
	case KindHost:
		fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="#e8f0fe" stroke="#335"/>`+"\n", x, y, w, h)
	case KindBridge:
		fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="#f4f4f4" stroke="#335" stroke-width="3"/>`+"\n", x, y, w, h)
	case KindNAT:
		fmt.Fprintf(b, `<polygon points="%.1f,%.1f %.1f,%.1f %.1f,%.1f %.1f,%.1f %.1f,%.1f %.1f,%.1f" fill="#fde9d9" stroke="#335"/>`+"\n",
			x+svgPoint, y, x+w-svgPoint, y, x+w, n.at.Y, x+w-svgPoint, y+h, x+svgPoint, y+h, x, n.at.Y)
	default:
		fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="%.1f" fill="#e6f4ea" stroke="#335"/>`+"\n", x, y, w, h, min(h/2, svgLine))
	}
	writeText(b, n, func(line int) string {
		if line == 0 {
			return ` font-weight="bold"`
		}
		return ""
	})
}

// writeLabel writes the label of a wire on the colour of the page, which hides the wire.
func writeLabel(b *strings.Builder, l *box) {
	fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="white"/>`+"\n",
		l.at.X-l.size.X/2, l.at.Y-l.size.Y/2, l.size.X, l.size.Y)
	writeText(b, l, func(int) string { return ` fill="#a33" font-size="11"` })
}

// writeText centres the lines of a box, each in its style.
func writeText(b *strings.Builder, in *box, style func(line int) string) {
	y := in.at.Y - svgLine*float64(len(in.lines)-1)/2 + 4
	for i, s := range in.lines {
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle"%s>`, in.at.X, y+svgLine*float64(i), style(i))
		_ = xml.EscapeText(b, []byte(s)) // a strings.Builder takes everything
		b.WriteString("</text>\n")
	}
}
