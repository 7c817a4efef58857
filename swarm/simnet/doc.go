// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package simnet is a simulated network for the members of a swarm: it carries their messages (package wire) in
// memory, in the format that sockets carry, over distances that have delays, and breaks as networks break. Members
// die silently or with broken connections, networks split and heal, messages get lost, and some members cannot be
// reached from outside. Thousands of members are affordable: one that is idle costs no goroutine.
//
// All time is taken from package time, so that in a bubble of testing/synctest an hour passes in moments.
package simnet
