// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/xml"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"unicode/utf8"

	"gonum.org/v1/gonum/graph/layout"
	"gonum.org/v1/gonum/graph/simple"
	"gonum.org/v1/gonum/spatial/r2"
)

// The measures of a drawing, in CSS pixels.
const (
	svgStep   = 150.0 // length of an average wire: room for a node and a label
	svgMargin = 90.0
	svgLine   = 15.0 // line height of 12 px text
	svgGlyph  = 6.8  // width of an average letter of it
)

// svg draws the nodes where a force-directed layout (Eades 1984) puts them, started from
// a fixed seed so that the drawing is the same each time.
func (p *plan) svg() (string, error) {
	at := p.layout()
	low, high := r2.Vec{X: math.Inf(1), Y: math.Inf(1)}, r2.Vec{X: math.Inf(-1), Y: math.Inf(-1)}
	for _, v := range at {
		low = r2.Vec{X: min(low.X, v.X), Y: min(low.Y, v.Y)}
		high = r2.Vec{X: max(high.X, v.X), Y: max(high.Y, v.Y)}
	}
	for i := range at {
		at[i] = r2.Add(r2.Sub(at[i], low), r2.Vec{X: svgMargin, Y: svgMargin / 2})
	}
	size := r2.Add(r2.Sub(high, low), r2.Vec{X: 2 * svgMargin, Y: svgMargin})

	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="12">`+"\n",
		size.X, size.Y, size.X, size.Y)
	b.WriteString(`<rect width="100%" height="100%" fill="white"/>` + "\n")
	var labels strings.Builder // over the lines, under the nodes
	for i, pair := range p.wires {
		from, to := at[pair[0].node.index], at[pair[1].node.index]
		dash := ""
		if !p.topology.Wires[i].plain() {
			dash = ` stroke-dasharray="6 3"`
		}
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#556" stroke-width="1.5"%s/>`+"\n", from.X, from.Y, to.X, to.Y, dash)
		if label := p.wireLabel(i); label != "" {
			writeText(&labels, r2.Scale(0.5, r2.Add(from, to)), strings.Split(label, "; "), true)
		}
	}
	b.WriteString(labels.String())
	for _, n := range p.nodes {
		writeNode(&b, n.kind, at[n.index], p.nodeLabel(n))
	}
	b.WriteString("</svg>\n")
	return b.String(), nil
}

// layout gives each node a place, such that an average wire is svgStep long.
func (p *plan) layout() []r2.Vec {
	g := simple.NewUndirectedMatrix(len(p.nodes), 0, 0, 0) // unlike other graphs, it has its nodes in order
	for _, pair := range p.wires {
		g.SetWeightedEdge(simple.WeightedEdge{F: simple.Node(pair[0].node.index), T: simple.Node(pair[1].node.index), W: 1})
	}
	eades := layout.EadesR2{Updates: 100 + 20*len(p.nodes), Repulsion: 1, Rate: 0.05, Theta: 0.2, Src: rand.NewPCG(1, 1)}
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
	if total > 0 {
		scale := svgStep * float64(len(p.wires)) / total
		for i := range at {
			at[i] = r2.Scale(scale, at[i])
		}
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

func writeNode(b *strings.Builder, kind Kind, at r2.Vec, lines []string) {
	longest := 4
	for _, s := range lines {
		longest = max(longest, utf8.RuneCountInString(s))
	}
	w, h := svgGlyph*float64(longest)+16, svgLine*float64(len(lines))+10
	x, y := at.X-w/2, at.Y-h/2
	switch kind {
	case KindHost:
		fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="#e8f0fe" stroke="#335"/>`+"\n", x, y, w, h)
	case KindBridge:
		fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="#f4f4f4" stroke="#335" stroke-width="3"/>`+"\n", x, y, w, h)
	case KindNAT:
		fmt.Fprintf(b, `<polygon points="%.1f,%.1f %.1f,%.1f %.1f,%.1f %.1f,%.1f %.1f,%.1f %.1f,%.1f" fill="#fde9d9" stroke="#335"/>`+"\n",
			x, y, x+w, y, x+w+12, at.Y, x+w, y+h, x, y+h, x-12, at.Y)
	default:
		fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="%.1f" fill="#e6f4ea" stroke="#335"/>`+"\n", x, y, w, h, h/2)
	}
	writeText(b, at, lines, false)
}

// writeText centres lines of text on a point, with a white halo where lines run below them.
func writeText(b *strings.Builder, at r2.Vec, lines []string, halo bool) {
	style := ""
	if halo {
		style = ` fill="#a33" font-size="11" stroke="white" stroke-width="4" paint-order="stroke"`
	}
	y := at.Y - svgLine*float64(len(lines)-1)/2 + 4
	for i, s := range lines {
		weight := ""
		if i == 0 && !halo {
			weight = ` font-weight="bold"`
		}
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle"%s%s>`, at.X, y+svgLine*float64(i), style, weight)
		_ = xml.EscapeText(b, []byte(s)) // a strings.Builder takes everything
		b.WriteString("</text>\n")
	}
}
