// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package view_test

import (
	"fmt"
	"strings"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/view"
)

// Three members: a and b in a ring of two, and one that has not joined it.
func Example() {
	a, b, c := member.HashOf("a"), member.HashOf("b"), member.HashOf("c")
	r := view.Ring{Members: []view.Member{
		{ID: a, Label: "a", State: view.InRing, Successors: []member.ID{b}, Predecessors: []member.ID{b}},
		{ID: b, Label: "b", State: view.InRing, Successors: []member.ID{a}, Predecessors: []member.ID{a}},
		{ID: c, Label: "c"},
	}}
	for line := range strings.Lines(r.Draw(30, 9).String()) {
		fmt.Print("|", line)
	}
	// Output:
	// |
	// |               c
	// |               ●
	// |
	// |
	// |         a ●⠤⠤⠤⠤⠤⠤● b
	// |
	// |
	// |
}
