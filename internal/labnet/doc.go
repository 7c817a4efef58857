// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package labnet has topologies that several tests and benchmarks measure in, for package lab. [Chain] is a
// long path with several sites of one anycast address, fast enough to measure senders rather than routers:
//
//	l := lab.New(t, labnet.Chain(20, "a", "b", "c"))
//	// A probe from any of the sites to labnet.Target4 that ends at hop 10 ...
//	from, at := labnet.HopAddr(l, 10), labnet.Home(20, 10, "a", "b", "c") // ... is answered so, and heard at b.
package labnet
