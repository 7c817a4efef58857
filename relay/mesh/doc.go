// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package mesh is what relays say to each other: the origin's SS datagrams, a framing of our own on the same port, and
// sealed links.
//
// A [Mesh] is one relay's end of all links. It opens no socket and starts no goroutine: datagrams go in and out as bytes,
// and the time comes with each call.
//
//	segment --> Send ----> Outbox --> mesh socket --> Receive --> Inbox --> segment
//	clock ----> Tick ----> Outbox        (answers)  --> Outbox
//
// Relays of ours find out about each other by hellos, one a second, and from then on exchange what SS datagrams cannot
// carry: multicast, IPv6, broadcasts larger than a datagram of the path. To a peer that has not shown itself to be
// ours nothing but SS datagrams is sent, and a probe now and then.
//
// With keys ([ParseKeys]) or certificates ([ParseIdentity]) everything between relays of ours is authenticated and
// encrypted: a handshake Noise_XXpsk0_25519_AESGCM_SHA256 or Noise_XX_25519_AESGCM_SHA256 (the Noise Protocol Framework,
// revision 34) and a window against replays (RFC 6479). SS datagrams are then refused and not sent, unless
// [Options.Compat] is set.
//
// What a datagram looks like, byte by byte, is in docs/reference/relay-mesh.md. What is in the IP packets that a
// datagram carries is not looked at here: that is package datagram's part, and copies are package guard's.
package mesh
