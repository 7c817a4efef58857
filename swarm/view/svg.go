// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package view

import (
	"bufio"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/seed5728abee/fathom/swarm/member"
)

// Measures of the SVG, in its own units.
const (
	svgWidth, svgHeight = 960, 780
	svgTop              = 40 // for the title
	svgLegend           = 60 // at the bottom
	svgLabelRoom        = 170

	// svgUpright is up to how many members labels stand upright; those of more point away from the centre.
	svgUpright = 28
)

var svgColours = [...]string{
	Plain: "#222", Faint: "#b8b8b8", Yellow: "#e3b505", Green: "#2a9d4e", Blue: "#2166d1", Red: "#cf3b31", Magenta: "#b5359c", Ochre: "#c7852d",
}

// SVG writes the picture as an SVG document of 960 by 780 units.
func (r *Ring) SVG(out io.Writer) error {
	w := bufio.NewWriter(out)
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" font-size="13">`+"\n", svgWidth, svgHeight)
	fmt.Fprintln(w, `<rect width="100%" height="100%" fill="#fff"/>`)
	if r.Title != "" {
		fmt.Fprintf(w, `<text x="%d" y="26" text-anchor="middle" font-size="17" font-weight="600" fill="%s">%s</text>`+"\n", svgWidth/2, svgColours[Plain], escape(r.Title))
	}
	members := r.sorted()
	n := len(members)
	cx, cy := float64(svgWidth)/2, float64(svgTop+svgHeight-svgLegend)/2
	radius := min(cx-svgLabelRoom, cy-svgTop-30)
	if n > svgUpright {
		radius = cy - svgTop - 120
	}
	at := func(i int) (x, y float64) {
		a := angle(i, n)
		return cx + radius*math.Sin(a), cy - radius*math.Cos(a)
	}
	if n == 1 {
		at = func(int) (float64, float64) { return cx, cy }
	}
	size := min(14, max(2.5, math.Pi*radius/float64(max(n, 1))*0.6)) // so that neighbours do not touch

	place := make(map[member.ID]int, n)
	for i, m := range members {
		place[m.ID] = i
	}
	for _, l := range r.links(members) {
		fmt.Fprintln(w, svgLink(l, at, cx, cy))
	}
	labels := size >= 5
	for i, m := range members {
		r.svgMember(w, m, at, i, n, size, labels)
	}
	for _, d := range r.Dots {
		from, ok := place[d.From]
		to, also := place[d.To]
		if !ok || !also || math.IsNaN(d.At) {
			continue
		}
		x1, y1 := at(from)
		x2, y2 := at(to)
		t := min(max(d.At, 0), 1)
		x, y := x1+(x2-x1)*t, y1+(y2-y1)*t
		fmt.Fprintf(w, `<circle cx="%.1f" cy="%.1f" r="8" fill="%s"/><text x="%.1f" y="%.1f" text-anchor="middle" font-size="10" fill="#fff">%s</text>`+"\n",
			x, y, svgColours[Plain], x, y+3.5, escape(d.Label))
	}
	svgLegendTo(w, n)
	fmt.Fprintln(w, "</svg>")
	return w.Flush()
}

// svgLink draws a line. Successors bend outwards and predecessors inwards, as they usually join the same members.
func svgLink(l link, at func(int) (float64, float64), cx, cy float64) string {
	x1, y1 := at(l.from)
	x2, y2 := at(l.to)
	bend := map[linkKind]float64{linkSuccessor: 0.10, linkPredecessor: -0.10, linkBoth: 0.06}[l.kind]
	mx, my := (x1+x2)/2, (y1+y2)/2
	// Away from the centre; lines through the centre are bent to the right of their way.
	dx, dy := mx-cx, my-cy
	length := math.Hypot(x2-x1, y2-y1)
	if d := math.Hypot(dx, dy); d > 1 {
		dx, dy = dx/d, dy/d
	} else {
		dx, dy = (y2-y1)/max(length, 1), (x1-x2)/max(length, 1)
	}
	width, opacity := 1.4, 0.9
	if l.kind == linkTable {
		width, opacity = 0.8, 0.45
	}
	if l.thick {
		width, opacity = 3, 1
	}
	return fmt.Sprintf(`<path d="M%.1f %.1fQ%.1f %.1f %.1f %.1f" fill="none" stroke="%s" stroke-width="%.1f" opacity="%.2f"/>`,
		x1, y1, mx+dx*bend*length, my+dy*bend*length, x2, y2, svgColours[l.colour], width, opacity)
}

func (r *Ring) svgMember(w io.Writer, m *Member, at func(int) (float64, float64), i, n int, size float64, labels bool) {
	x, y := at(i)
	note := m.Label + "\n" + m.ID.String()
	if m.Note != "" {
		note += "\n" + m.Note
	}
	stroke, dash := "#fff", ""
	switch {
	case r.Cursor != nil && *r.Cursor == m.ID:
		stroke = svgColours[Plain]
	case m.State == Silent:
		stroke, dash = svgColours[Red], ` stroke-dasharray="3 2"`
	}
	fmt.Fprintf(w, `<g><title>%s</title>`, escape(note))
	if m.Original { // Cicada's peers are squares
		fmt.Fprintf(w, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f"`, x-size*0.9, y-size*0.9, size*1.8, size*1.8)
	} else {
		fmt.Fprintf(w, `<circle cx="%.1f" cy="%.1f" r="%.1f"`, x, y, size)
	}
	fmt.Fprintf(w, ` fill="%s" stroke="%s" stroke-width="2"%s/></g>`+"\n", svgColours[r.colour(m)], stroke, dash)
	if m.Local && size >= 5 {
		fmt.Fprintf(w, `<circle cx="%.1f" cy="%.1f" r="%.1f" fill="#fff"/>`+"\n", x, y, size/4)
	}
	if !labels {
		return
	}
	a := angle(i, n)
	lx, ly := x+(size+8)*math.Sin(a), y-(size+8)*math.Cos(a)+4.5
	anchor := "middle"
	switch s := math.Sin(a); {
	case n == 1:
		ly = y + size + 20
	case n > svgUpright:
		turn := a*180/math.Pi - 90
		anchor = "start"
		if s < 0 { // nobody likes to read upside down
			turn, anchor = turn+180, "end"
		}
		lx, ly = x+(size+5)*math.Sin(a), y-(size+5)*math.Cos(a)
		fmt.Fprintf(w, `<text transform="translate(%.1f %.1f) rotate(%.1f)" y="4" text-anchor="%s" font-size="11" fill="%s">%s</text>`+"\n",
			lx, ly, turn, anchor, svgColours[Plain], escape(m.Label))
		return
	case s > 0.2:
		anchor = "start"
	case s < -0.2:
		anchor = "end"
	case math.Cos(a) < 0:
		ly += 6
	}
	fmt.Fprintf(w, `<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s">%s</text>`+"\n", lx, ly, anchor, svgColours[Plain], escape(m.Label))
}

func svgLegendTo(w io.Writer, n int) {
	y := svgHeight - svgLegend + 24
	x := 40
	for _, e := range []struct {
		colour Colour
		line   bool
		text   string
	}{
		{Green, false, "in the ring"},
		{Yellow, false, "alone"},
		{Blue, false, "selected"},
		{Green, true, "successor"},
		{Red, true, "predecessor"},
		{Magenta, true, "both"},
		{Ochre, true, "known"},
	} {
		if e.line {
			fmt.Fprintf(w, `<path d="M%d %dh22" stroke="%s" stroke-width="3"/>`, x-6, y, svgColours[e.colour])
		} else {
			fmt.Fprintf(w, `<circle cx="%d" cy="%d" r="7" fill="%s"/>`, x, y, svgColours[e.colour])
		}
		fmt.Fprintf(w, `<text x="%d" y="%d" fill="%s">%s</text>`+"\n", x+20, y+4, svgColours[Plain], e.text)
		x += 120
	}
	noun := "members"
	if n == 1 {
		noun = "member"
	}
	fmt.Fprintf(w, `<text x="34" y="%d" fill="%s">%d %s; squares are Cicada's, and those with a white point run here</text>`+"\n", y+26, svgColours[Plain], n, noun)
}

// escape makes text safe inside an element of XML.
func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}
