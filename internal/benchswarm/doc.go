// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Command benchswarm measures real peers of a swarm on the loopback interface: joining, lookups, deaths, broadcasts,
// throughput, and what idle links cost. What needs thousands of peers is simulated: make sim.
//
//	go run ./internal/benchswarm [-only REGEXP] [-rounds N] [-churn D]
//
// The peers live in a few worker processes, which are this program too, so that death is a SIGKILL. All share the
// machine's processors with each other. Links are encrypted. It exits with 1 if a goal is missed.
package main
