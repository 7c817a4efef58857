// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Command simswarm measures swarms of 32 to 10,000 members: the ring, its lookups and broadcasts as they are, on a
// simulated network, in simulated time. It exits with 1 if a goal is missed.
//
//	go run ./internal/simswarm [-seed N] [-json] [-only REGEXP]
//
// Members are scattered over a continent, 2 to 40 ms of round trip apart, and a link takes two more to set up. Figures
// vary a little from run to run with the same seed: members that act at the same instant do so in any order.
package main
