// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package swarm joins programs into a peer-to-peer swarm: each has one address and a place on a ring, sends to any other
// by name, address or hash, broadcasts to all, opens streams, and looks up who owns a key, wherever they sit: on a LAN,
// behind home routers, on IPv6.
//
//	p := swarm.New(swarm.Options{})
//	if err := p.Bind(ctx, "0.0.0.0:49610"); err != nil { ... }
//	defer p.Close()
//	if err := p.Connect(ctx, "swarm.example.net:49610"); err != nil { ... }
//	err := p.Send(ctx, swarm.ToAddr("192.0.2.7:49610"), []byte("hello"))
//	m, err := p.Recv(ctx)
//
// # What is promised
//
//   - Send returns nil when the addressed peer, and no other, has the message in its queue; it is there once.
//   - A broadcast reaches every live member exactly once, also while members come, go and die (package broadcast).
//   - A lookup answers with the first member at or after the key (package ring).
//   - Links between Fathom's peers are encrypted and have forward secrecy (package link). In a secure swarm
//     ([Options.Binding] ByKey) each member proves the key that its ID is the hash of; with [Options.SwarmKeys] only
//     those who have the key get in, and nothing is sent in the clear.
//   - A peer that others cannot reach, as they find out, takes no place on the ring: it keeps links to hosts, and is
//     met through them, by hole punching or through a circuit that the host carries and cannot read.
//
// Cicada's peers can be members of an open swarm (package cicada and docs/compatibility.md tell what that costs), and
// of a secure one where [Options.Originals] lets them in.
//
// Those who build an overlay of their own take package ring ([LocalNode]), which has the protocol alone, over any
// transport.
package swarm
