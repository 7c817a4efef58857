// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Command benchpeers measures Fathom's probe engine side by side with what
// people run today, in one run, in a lab of its own: two hosts on a plain veth
// pair, and a chain of 19 routers. It needs no root. Peers that are not installed are left out, and said to be.
//
//	go run ./internal/benchpeers [-rounds N] [-seconds D] [-only REGEXP]
//
// Every figure is the median over rounds in which the candidates take turns,
// so that a ratio holds on a machine whose speed drifts. It exits with 1 if a goal is missed.
package main
