// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package cicada is how members of a swarm live with originals: peers that run Cicada (0.2.2-alpha, protocol version 5),
// the Python library that Fathom's swarm takes the place of. It has the originals' messages ([Message], [Node],
// [Search], [Body]), and a [Gateway], which speaks for one native member to all the originals that it meets.
//
// Originals are delicate. They read 64 bytes ten times a second, a message that they do not expect ends the thread that
// reads, and a neighbour named to them that cannot be reached ends the one that keeps the ring. So everything that goes
// to one passes a single check (see check.go) that knows what it is able to bear; what does not pass is not sent.
//
// The protocol has no description that is right; docs/reference/swarm-cicada.md describes what originals do.
package cicada
