// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package ring keeps a member's place in the ring, and finds others in it: Chord, made correct.
//
// A [Node] knows the members next to it, several on either side, and fingers ahead and back. Every member in its table
// has spoken for itself; what one says of others is hearsay, which is followed up and never taken for granted. That is
// how the ring heals as Zave's corrected Chord does ("Reasoning about identifier spaces: how to make Chord correct",
// 2017): a node is part of the ring when its successor has answered and knows of it, the first live one of the
// successors is the one, and a predecessor makes way only for one that is nearer, or when it does not answer. A ring stays
// whole as long as no [Options.Neighbours] members in a row die at once.
//
// Lookups come to their key from the far side, counter-clockwise: the next member is the one with the smallest
// clockwise distance from the key to it, and each is nearer than the one before. That is the rule of Cicada's peers,
// with which a ring can be shared; fingers back make it take O(log N) steps. [Node.Lookup] passes the question along the
// members' links or, when some are not to be trusted, asks over disjoint paths.
//
// A member at rest asks its successor every second whether it is there, and compares lists with both neighbours every
// five: with the refreshing of fingers it sends some 3 messages, or 350 bytes, a second. Silent deaths are noticed within
// about a second, broken links at once. Rings that were split find each other through members that were known before, or
// through bootstrap members, within 30 seconds of the network's being whole again.
//
// Messages are those of package wire, and so is the [wire.Transport] that carries them: sockets, or the simulated
// network of swarm/simnet.
package ring
