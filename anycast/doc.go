// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package anycast measures networks from hosts that share an address.
//
// An anycast address is held by several sites at once. A probe sent from one of them with that address as its source
// is answered to whichever site routing considers nearest to the responder: where an answer comes home is the
// measurement. The programs here send probes from chosen sites, gather the answers at all of them, and
// say, hop by hop and network by network, which site hears what:
//
//   - [KindTrace]: paths whose answers may return elsewhere. [Via] lends a site to every algorithm of package trace,
//     [Traceroute] is the lean way for thousands of requests at once;
//   - [KindCatchment]: which site each network of a hit list reaches. [Table] is the map, [Compare] tells what moved;
//   - [KindLatency]: how far each network is from the site that catches it, and from the best one;
//   - [KindFlipping]: networks that reach different sites by flow, protocol or time;
//   - [KindWatch]: how catchments move while a site is announced or withdrawn.
//
// A [Definition] says what to measure, [Run] does it and gives a [Sink] what it finds. A program sees the sites as a [Fleet] and knows nothing of the connections to them; fleettest has a
// fleet in memory. Package controller is the real one, package agent what runs at a site, package
// client what a user's program talks to the controller with. Package volta is the language of
// Voltadomar, whose agents and clients are welcome.
//
// How probes are recognised at a site that did not send them is the business of package probe/stateless.
package anycast
