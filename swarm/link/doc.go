// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package link is what two native members of a swarm have between them: one connection, encrypted, on which each can
// ask the other ([Session.Call]), tell it something ([Session.Cast]), hand it messages that it acknowledges
// ([Session.Send], [Session.Post]) and open streams ([Session.Open]).
//
// A link runs over any net.Conn: TCP, a stream of another link, what hole punching brought about. [Client] and [Server]
// begin it with the handshake Noise_XX_25519_AESGCM_SHA256, or Noise_XXpsk0_25519_AESGCM_SHA256 with a swarm key (the
// Noise Protocol Framework, revision 34), in which both sides prove that they have the Ed25519 key they are known by.
// Then everything goes in encrypted records, made from what waits at that moment, in this order: control, requests and
// answers; messages; streams and whatever is large, turn by turn. A link costs one goroutine while nothing happens.
//
// Every queue is bounded, and what is slow holds up only its own kind: messages wait for the [Handler] that takes them,
// a stream waits for its reader, and each waits on the sender's side, within the credit that the receiver gave. What
// breaks the rules ends the link. The format is in docs/reference/swarm-link.md.
package link
