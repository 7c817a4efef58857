// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package fleettest has a fleet in memory: an anycast.Fleet for tests and examples, with a simulated Internet behind it.
//
// A [Fleet] has sites whose clocks are off, an Internet of routers and hosts described by functions that may be replaced, and
// faults: loss, duplicates, sites that withdraw their route or lose their connection, routers that limit their answers.
// What is random follows from the seed and from each probe, so that runs are the same however goroutines take turns.
// Time comes from the time package: in a testing/synctest bubble a measurement of hours takes no time, and exactly the simulated one.
//
//	f := fleettest.New(1, "fra", "nyc", "syd")
//	defer f.Close()
//	err := anycast.Run(ctx, f, definition, targets, sink)
//
// Answers are made directly, by the rules that package stateless recognises them by. With Fleet.Wire they take the way
// through packets. One that is forged or garbled does not get as far as a handler, except through [Fleet.Inject].
package fleettest
