// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package discovery finds the other relays: by what was typed ([Static]), by the name of a service of Docker Swarm
// ([Tasks]), of Compose or Kubernetes ([Name]), by SRV records ([SRV]), in a file ([File]). A [Union] asks all
// of them again and again, and tells when the set of peers changes.
//
// Name services of container engines lose the records of running tasks for minutes or hours, and a relay that believed
// them would fall silent. So an answer that names peers is believed whole: whoever it leaves out is no peer any
// more. What names none is not an answer: a failure, no such host, no address, no address but our own. Then the last peers stay,
// until they have not been seen for a day or the mesh says that they stopped answering.
//
// Names are looked up every 10 s, and every 2 s while that fails; files are read every 2 s. Each name is waited for on
// its own, at most 9 s, so that one which hangs delays no other.
//
// A small use:
//
//	u := discovery.NewUnion(discovery.UnionOptions{
//		Sources: []discovery.Source{
//			discovery.Static(7124, "192.0.2.7", "relay.example.net:7125"),
//			discovery.Tasks(7124, "relay"),
//		},
//		Own: ownAddresses,
//	})
//	…
//	err := u.Run(ctx, func(peers []netip.AddrPort) { … })
//
// SRV records are those of RFC 2782. Priorities and weights say nothing here: all targets are peers.
package discovery
