// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package tracetest has a network in memory that probes go through: a trace.Via for tests.
//
// A [Network] is made of [Node]s that point at the nodes behind them. They delay, lose, balance
// per flow or per packet, keep silent, limit their rate, loop, refuse, add MPLS labels and change
// header fields. Randomness is seeded. Time comes from the time package, so that in a
// testing/synctest bubble traces take exactly the simulated time:
//
//	synctest.Test(t, func(t *testing.T) {
//		net, nodes := tracetest.Chain(1, 20, time.Millisecond)
//		nodes[4].Silent = true
//		path, err := trace.Run(t.Context(), net, probe.Request{Target: nodes[19].Addr}, trace.Options{})
//		...
//	})
//
// A path without end conditions may loop, as a hop limit bounds every probe's way.
package tracetest
