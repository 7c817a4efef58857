// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package relay carries UDP broadcasts between network segments that only
// unicast joins. One relay per segment captures what is broadcast there, sends it
// to its peers, and puts on the segment what they send: with its real source, so
// that the answer goes back directly.
//
//	segment A                                                     segment B
//	  host ── broadcast ──> relay ))) UDP unicast, the mesh ))) relay ── broadcast ──> hosts
//	  host <───────────────────────── the answer, directly ──────────────────────────── host
//
// It promises that
//
//   - every host of every other segment gets each broadcast once, in the order in which one sender sent
//     them, also when a segment has several relays, when segments are joined by accident, and when a
//     peer sends back what it gets: no loop, no storm;
//   - a broadcast that its sender repeats, byte for byte, arrives as often as it was sent;
//   - nothing that a peer sends makes it emit anything but a broadcast, or a datagram to a group, on a port that
//     is relayed;
//   - interfaces, names and peers come and go, and it goes on with what is there.
//
// It speaks SnowSignal's protocol with relays of that kind, and with its own kind an authenticated and
// sealed one when there is a key or a certificate; see docs/reference/relay-mesh.md.
//
// A small use:
//
//	r, err := relay.New(relay.Options{
//		Interfaces: []string{"eth0"},
//		Ports:      []datagram.PortRange{{First: 5076, Last: 5076}},
//		Sources:    []discovery.Source{discovery.Static(relay.DefaultMeshPort, "198.51.100.7")},
//	})
//	…
//	err = r.Run(ctx)
//
// Capturing needs CAP_NET_RAW. The packages below are parts that can be used alone: datagram (a broadcast as bytes),
// guard (no loops), mesh (links between relays), discovery (who they are), epics and describe (what broadcasts say),
// drop (why something goes no further), control (asking a relay that runs).
package relay
