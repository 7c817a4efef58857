// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package member says who the members of a swarm are: where each stands on the ring ([ID]), the key that proves it
// ([Identity]) and where it can be reached ([Contact]).
//
// The ring is the integers modulo 2^256, as in Chord (Stoica et al., 2001) with SHA-256 for its hash. Distances are
// clockwise: from a to b is (b - a) mod 2^256, and a value belongs to the first member at or after it.
//
// How an ID comes about is one choice for a whole swarm ([Binding]). In an open swarm it is the hash of the member's
// address, as Cicada's peers do it, so that both can share a ring; in a secure one it is the hash of the member's
// public key, so that nobody can choose a place or speak for another.
package member
