// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package view

import (
	"math"
	"strings"
	"unicode"

	"github.com/seed5728abee/fathom/swarm/member"
)

// Bounds of a canvas, in cells: more than any terminal has.
const (
	maxWidth, maxHeight = 1000, 500
)

// A Cell is one character of a canvas.
type Cell struct {
	Rune   rune
	Colour Colour
	Bold   bool
	// Reverse marks the cursor.
	Reverse bool
}

// A Canvas is a picture in the cells of a terminal. Each cell takes one column.
type Canvas struct {
	Width, Height int
	cells         []Cell
	spots         []spot
}

// A spot is where a member stands.
type spot struct {
	x, y int
	id   member.ID
}

// At returns the cell in a column and a row, counted from 0 at the top left. Outside the canvas it is blank.
func (c *Canvas) At(x, y int) Cell {
	if x < 0 || y < 0 || x >= c.Width || y >= c.Height {
		return Cell{Rune: ' '}
	}
	return c.cells[y*c.Width+x]
}

func (c *Canvas) set(x, y int, cell Cell) {
	if x >= 0 && y >= 0 && x < c.Width && y < c.Height {
		c.cells[y*c.Width+x] = cell
	}
}

// nearby is how far from a member, in columns, a click may be that means it. Rows count double: cells are higher than wide.
const nearby = 6

// MemberAt returns the member at a place or close to it, the closest one, for a click there.
func (c *Canvas) MemberAt(x, y int) (id member.ID, ok bool) {
	best := nearby + 1
	for _, s := range c.spots {
		if d := max(abs(s.x-x), 2*abs(s.y-y)); d < best {
			best, id, ok = d, s.id, true
		}
	}
	return id, ok
}

// String returns the picture without colours, a line per row, without spaces at the ends of lines.
func (c *Canvas) String() string {
	var b strings.Builder
	for y := range c.Height {
		line := make([]rune, c.Width)
		for x := range c.Width {
			line[x] = c.At(x, y).Rune
		}
		b.WriteString(strings.TrimRight(string(line), " "))
		b.WriteByte('\n')
	}
	return b.String()
}

var ansiColours = [...]string{
	Plain: "", Faint: "2", Yellow: "93", Green: "32", Blue: "94", Red: "31", Magenta: "35", Ochre: "38;5;172",
}

// ANSI returns the picture with the colours of a terminal (ECMA-48), lines joined by "\n".
func (c *Canvas) ANSI() string {
	var b strings.Builder
	for y := range c.Height {
		if y > 0 {
			b.WriteByte('\n')
		}
		last := Cell{}
		for x := range c.Width {
			cell := c.At(x, y)
			if cell.Rune == ' ' && !cell.Reverse {
				cell = Cell{Rune: ' '}
			}
			if cell.Colour != last.Colour || cell.Bold != last.Bold || cell.Reverse != last.Reverse {
				b.WriteString("\x1b[0")
				for _, code := range []string{ansiColours[cell.Colour], map[bool]string{true: "1"}[cell.Bold], map[bool]string{true: "7"}[cell.Reverse]} {
					if code != "" {
						b.WriteString(";" + code)
					}
				}
				b.WriteByte('m')
			}
			last = cell
			b.WriteRune(cell.Rune)
		}
		b.WriteString("\x1b[0m")
	}
	return b.String()
}

// Draw draws the ring into so many columns and rows.
func (r *Ring) Draw(width, height int) *Canvas {
	c := &Canvas{Width: min(max(width, 0), maxWidth), Height: min(max(height, 0), maxHeight)}
	c.cells = make([]Cell, c.Width*c.Height)
	for i := range c.cells {
		c.cells[i].Rune = ' '
	}
	members := r.sorted()
	n := len(members)
	if c.Width == 0 || c.Height == 0 || n == 0 {
		return c
	}
	room := 0 // for labels on either side
	for _, m := range members {
		room = max(room, len([]rune(m.Label))+2)
	}
	room = min(room, c.Width/3)
	cx, cy := float64(c.Width-1)/2, float64(c.Height-1)/2
	ry := max(cy-2, 0)
	rx := max(min(cx-float64(room), ry*2.2), 0) // cells are about twice as high as wide
	at := func(i int) (x, y float64) {
		a := angle(i, n)
		return cx + rx*math.Sin(a), cy - ry*math.Cos(a)
	}
	if n == 1 {
		at = func(int) (float64, float64) { return cx, cy }
	}

	place := make(map[member.ID]int, n)
	for i, m := range members {
		place[m.ID] = i
	}
	strokes := &braille{canvas: c, bits: make([]uint8, len(c.cells))}
	for _, l := range r.links(members) {
		if l.kind == linkPredecessor && !l.thick && mirrored(members, l) {
			continue // the line is there already, as the other's successor
		}
		x1, y1 := at(l.from)
		x2, y2 := at(l.to)
		colour := l.colour
		if l.kind == linkTable && !l.thick {
			colour = Faint
		}
		strokes.line(x1, y1, x2, y2, colour, l.thick)
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
		c.text(int(math.Round(x1+(x2-x1)*t)), int(math.Round(y1+(y2-y1)*t)), d.Label, Cell{Bold: true})
	}
	crowded := float64(n) > math.Pi*ry // labels would be written over each other
	for i, m := range members {
		fx, fy := at(i)
		c.member(r, m, int(math.Round(fx)), int(math.Round(fy)), angle(i, n), n, crowded)
	}
	return c
}

// mirrored reports whether a predecessor's successor is the member that names it.
func mirrored(members []*Member, l link) bool {
	successor := first(members[l.to].Successors, members[l.to].ID)
	return successor != nil && *successor == members[l.from].ID
}

// member draws one member, and its label outside of the ring.
func (c *Canvas) member(r *Ring, m *Member, x, y int, a float64, n int, crowded bool) {
	mark := '●'
	switch {
	case m.State == Silent:
		mark = '✗'
	case m.Original:
		mark = '■'
	case m.Local:
		mark = '◉'
	}
	selected := r.Selected != nil && *r.Selected == m.ID
	cursor := r.Cursor != nil && *r.Cursor == m.ID
	c.spots = append(c.spots, spot{x, y, m.ID})
	c.set(x, y, Cell{Rune: mark, Colour: r.colour(m), Bold: selected, Reverse: cursor})
	if crowded && !selected && !cursor {
		return
	}
	label := []rune(m.Label)
	style := Cell{Bold: selected, Reverse: cursor}
	switch s := math.Sin(a); {
	case n == 1 || math.Abs(s) < 0.15 && math.Cos(a) < 0:
		c.text(x-len(label)/2, y+1, m.Label, style)
	case math.Abs(s) < 0.15:
		c.text(x-len(label)/2, y-1, m.Label, style)
	case s > 0:
		c.set(x+1, y, Cell{Rune: ' '})
		c.text(x+2, y, m.Label, style)
	default:
		c.set(x-1, y, Cell{Rune: ' '})
		c.text(x-1-len(label), y, m.Label, style)
	}
}

// text writes from a place on; what is not one column wide becomes a question mark.
func (c *Canvas) text(x, y int, s string, style Cell) {
	for _, r := range s {
		if !unicode.IsPrint(r) || r >= 0x1100 { // from there on, letters may be wide
			r = '?'
		}
		style.Rune = r
		c.set(x, y, style)
		x++
	}
}

// braille draws lines with the eight points of braille characters, two wide and four high in each cell.
type braille struct {
	canvas *Canvas
	bits   []uint8
}

// brailleBits are the bits of the points, by row and column: U+2800 and what follows.
var brailleBits = [4][2]uint8{{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}}

// line draws a line between the middles of two cells.
func (b *braille) line(x1, y1, x2, y2 float64, colour Colour, bold bool) {
	x1, x2 = 2*x1+0.5, 2*x2+0.5
	y1, y2 = 4*y1+1.5, 4*y2+1.5
	steps := int(max(math.Abs(x2-x1), math.Abs(y2-y1))) + 1
	for i := range steps + 1 {
		t := float64(i) / float64(steps)
		b.point(int(math.Round(x1+(x2-x1)*t)), int(math.Round(y1+(y2-y1)*t)), colour, bold)
	}
}

func (b *braille) point(px, py int, colour Colour, bold bool) {
	if px < 0 || py < 0 || px >= 2*b.canvas.Width || py >= 4*b.canvas.Height {
		return
	}
	i := py/4*b.canvas.Width + px/2
	b.bits[i] |= brailleBits[py%4][px%2]
	b.canvas.cells[i] = Cell{Rune: 0x2800 + rune(b.bits[i]), Colour: colour, Bold: bold}
}

func abs(n int) int { return max(n, -n) }
