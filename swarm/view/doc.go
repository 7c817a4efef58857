// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package view draws the ring of a swarm: as SVG, and in the cells of a terminal. It has no sockets and does not know
// where its data come from.
//
//	r := view.Ring{Members: []view.Member{{ID: a, Label: "192.0.2.1:49610", Successors: []member.ID{b}}, ...}}
//	err := r.SVG(w)
//	fmt.Println(r.Draw(100, 30))
//
// Members stand on a circle in the order of their IDs, clockwise from the top, at equal distances: by ID they would sit
// on each other. The colours are those of Cicada's visualizer: a member is yellow while it is alone, green in a ring,
// blue when selected; its successor is joined to it by a line of its own colour, its predecessor by a red one, both by a
// magenta one if they are the same, and other members that it knows by ochre ones. Messages on their way are dots with
// the first letter of their kind.
package view
