// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package view_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/view"
)

// circle returns a whole ring of n members, whose IDs are in the order of their numbers.
func circle(n int) view.Ring {
	id := func(i int) (id member.ID) {
		i = (i%n + n) % n
		id[0], id[1] = byte(i>>8), byte(i)
		return id
	}
	var r view.Ring
	for i := range n {
		r.Members = append(r.Members, view.Member{
			ID: id(i), Label: fmt.Sprintf("127.0.0.1:%d", 10000+i), State: view.InRing,
			Successors: []member.ID{id(i + 1), id(i + 2)}, Predecessors: []member.ID{id(i - 1)},
		})
	}
	return r
}

// elements counts the elements of an SVG by name and attribute, and fails when it is not well-formed.
func elements(t *testing.T, r view.Ring) map[string]int {
	t.Helper()
	var b bytes.Buffer
	if err := r.SVG(&b); err != nil {
		t.Fatal(err)
	}
	found := make(map[string]int)
	for d := xml.NewDecoder(&b); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatalf("not well-formed: %v", err)
		}
		if e, ok := token.(xml.StartElement); ok {
			found[e.Name.Local]++
			for _, a := range e.Attr {
				found[e.Name.Local+" "+a.Name.Local+"="+a.Value]++
			}
		}
	}
}

const legendLines = 1 // of each colour

func TestSVG(t *testing.T) {
	t.Parallel()
	r := circle(5)
	r.Members[2].Original = true
	r.Members[3].Label = `<&"label">`
	got := elements(t, r)
	if n := got["path stroke=#2a9d4e"]; n != 5+legendLines {
		t.Errorf("%d lines to successors", n)
	}
	if n := got["path stroke=#cf3b31"]; n != 5+legendLines {
		t.Errorf("%d lines to predecessors", n)
	}
	if n := got["path stroke=#c7852d"]; n != 5+legendLines {
		t.Errorf("%d lines to others", n)
	}
	if n := got["title"]; n != 5 {
		t.Errorf("%d members", n)
	}
	if n := got["rect"]; n != 2 { // and the ground
		t.Errorf("%d squares", n)
	}
	// Two members are each other's successor and predecessor.
	if got := elements(t, circle(2)); got["path stroke=#b5359c"] != 2+legendLines || got["path stroke=#2a9d4e"] != legendLines {
		t.Errorf("a ring of two: %v", got)
	}
	r = circle(5)
	r.Selected = &r.Members[1].ID
	if got := elements(t, r); got["path stroke-width=3.0"] != 3 || got["circle fill=#2166d1"] != 1+legendLines {
		t.Errorf("selected: %v", got)
	}
	for _, n := range []int{0, 1, 300} {
		elements(t, circle(max(n, 1)))
	}
}

// The picture is whole at any size, and nothing is drawn outside of it.
func TestDrawSizes(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2, 3, 10, 500} {
		for _, size := range [][2]int{{0, 0}, {-1, 5}, {1, 1}, {3, 2}, {20, 5}, {100, 30}, {5000, 5000}} {
			r := circle(n)
			r.Dots = []view.Dot{{From: r.Members[0].ID, To: r.Members[n-1].ID, At: 0.5, Label: "L"}, {At: math.NaN()}, {At: 7}}
			c := r.Draw(size[0], size[1])
			if got := strings.Count(c.String(), "\n"); got != c.Height {
				t.Errorf("%d members in %v: %d lines of %d", n, size, got, c.Height)
			}
			for line := range strings.Lines(c.String()) {
				if len([]rune(line)) > c.Width+1 {
					t.Errorf("%d members in %v: a line of %d", n, size, len([]rune(line)))
				}
			}
		}
	}
	var empty view.Ring
	if s := empty.Draw(10, 2).String(); s != "\n\n" {
		t.Errorf("nobody: %q", s)
	}
}

func TestDrawMembers(t *testing.T) {
	t.Parallel()
	r := circle(10)
	r.Members[3].State, r.Members[4].Original, r.Members[5].Local = view.Silent, true, true
	r.Dots = []view.Dot{{From: r.Members[0].ID, To: r.Members[5].ID, At: 0.5, Label: "Lr"}}
	c := r.Draw(100, 40)
	text := c.String()
	for _, m := range r.Members {
		if !strings.Contains(text, m.Label) {
			t.Errorf("no %s in\n%s", m.Label, text)
		}
	}
	for mark, want := range map[string]int{"●": 7, "✗": 1, "■": 1, "◉": 1, "Lr": 1} {
		if got := strings.Count(text, mark); got != want {
			t.Errorf("%d of %q, want %d in\n%s", got, mark, want, text)
		}
	}
	// A click on a mark, or beside it, finds its member.
	for y := range c.Height {
		for x := range c.Width {
			if c.At(x, y).Rune != '■' {
				continue
			}
			for _, dx := range []int{0, 2} {
				if id, ok := c.MemberAt(x+dx, y); !ok || id != r.Members[4].ID {
					t.Errorf("click at %d, %d: %v, %v", x+dx, y, id, ok)
				}
			}
		}
	}
	if id, ok := c.MemberAt(50, 20); ok {
		t.Errorf("a click in the middle finds %v", id)
	}
}

// A member's label must not be able to command the terminal.
func TestDrawHostileLabel(t *testing.T) {
	t.Parallel()
	r := circle(3)
	r.Members[1].Label = "\x1b[2J\u202e\U0001f600\r\n"
	for _, s := range []string{r.Draw(80, 20).String(), strings.ReplaceAll(r.Draw(80, 20).ANSI(), "\x1b[0", "")} {
		if strings.ContainsAny(s, "\x1b\u202e\U0001f600\r") {
			t.Errorf("%q", s)
		}
	}
}

// With a selection, its links are thick and reach all whom it knows; without, a large ring shows its successors only.
func TestDrawColours(t *testing.T) {
	t.Parallel()
	colours := func(r view.Ring) map[view.Colour]bool {
		c := r.Draw(120, 50)
		found := make(map[view.Colour]bool)
		for y := range c.Height {
			for x := range c.Width {
				if cell := c.At(x, y); cell.Rune != ' ' {
					found[cell.Colour] = true
				}
			}
		}
		return found
	}
	r := circle(20)
	if got := colours(r); !got[view.Green] || got[view.Red] || got[view.Ochre] || got[view.Blue] {
		t.Errorf("nobody selected: %v", got)
	}
	r.Selected = &r.Members[7].ID
	if got := colours(r); !got[view.Green] || !got[view.Red] || !got[view.Ochre] || !got[view.Blue] {
		t.Errorf("selected: %v", got)
	}
	// A predecessor that does not know its successor shows in red.
	r = circle(20)
	r.Members[7].Predecessors[0] = r.Members[2].ID
	if got := colours(r); !got[view.Red] {
		t.Errorf("a wrong predecessor: %v", got)
	}
	r.Members[3].State = view.Alone
	if got := colours(r); !got[view.Yellow] {
		t.Errorf("alone: %v", got)
	}
}
