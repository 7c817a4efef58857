// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package trace finds the paths that packets take through a network.
//
// Every algorithm works over a [Via]: anything that can send one probe with a hop limit and say
// what came back. This host's probe.Prober is one.
//
//   - [Run] finds one path: classic, or with one flow (Paris) so that its hops belong together.
//   - [Multipath] finds all paths through load balancers, as a [Graph], with a stated confidence.
//   - [Continuous] probes the path again and again and keeps mtr's statistics.
//   - An [Annotator] adds names, autonomous systems and countries.
//
// Time comes from the time package, so that everything can be tested in a testing/synctest
// bubble; package tracetest has a network in memory for that.
//
// A trace shows the routers that choose to answer, with the addresses that they choose. A hop
// that shows loss while the hops behind it do not only limits its answers.
//
// # References
//
//   - V. Jacobson, traceroute, 1988: the method.
//   - B. Augustin et al., Avoiding traceroute anomalies with Paris traceroute, IMC 2006.
//   - B. Augustin, T. Friedman, R. Teixeira, Multipath tracing with Paris traceroute, E2EMON
//     2007: the Multipath Detection Algorithm (MDA).
//   - D. Veitch, B. Augustin, R. Teixeira, T. Friedman, Failure control in multipath route
//     tracing, INFOCOM 2009: the stopping points.
//   - K. Vermeulen, S. Strowes, O. Fourmaux, T. Friedman, Multilevel MDA-Lite Paris Traceroute, IMC 2018.
//   - RFC 792, RFC 4443 (ICMP), RFC 4884 and RFC 4950 (MPLS labels in ICMP), RFC 3550 (jitter).
package trace
