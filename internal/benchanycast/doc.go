// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Command benchanycast measures a whole anycast fleet, as users run it: the fathom program as controller and as three
// agents, and a client that asks, each a process of its own in a lab that this program builds.
//
//	go run ./internal/benchanycast [-rounds N] [-seconds D] [-only REGEXP]
//
// Every line of every traceroute is compared with what the lab is known to be, and the answers that were shown are counted against
// those that reached the sites: a hop that is missing, an answer that became a star, or an answer
// booked at the wrong site counts. Rates include everything: the lab's routers, the fleet and the client share the
// processors, and the table says what each of them used. It exits with 1 if a goal is missed.
//
// Another controller that knows the same text requests, and its agents, can take the place of ours, to be measured beside
// it; both commands run in the lab by /bin/sh, with the variables CONTROLLER (host:port), PORT, SITE, and of an agent's way
// to the targets GATEWAY and INTERFACE:
//
//	go run ./internal/benchanycast -only requests -controller 'exec ...' -agent 'exec ...'
package main
