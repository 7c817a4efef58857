// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package punch connects two peers that are both behind NATs, with the help of one that both can reach.
//
//	       a's NAT                    b's NAT
//	a ------>|--- SYN, probes ----------->|        the first of them open the NAT they leave by
//	  |      |<---------- SYN, probes ----|<------ b
//	  |      |                            |
//	  +-- offer ---> common peer --- offer --+     beforehand, by whatever way there is
//
// Each peer has a [Puncher]. It makes an [Offer], the common peer carries the offers, and both sides call
// [Puncher.Punch] at the same moment. TCP and UDP are tried in parallel, at all addresses:
//
//   - TCP by connecting from the port that the peer listens on, again and again, while the other side does the same
//     (simultaneous open, RFC 9293 section 3.5). Connections that come to the listener instead are given in by
//     [Puncher.Take].
//   - UDP by small authenticated probes until one comes back, and then by QUIC (RFC 9000) on that path, whose
//     only stream is the connection.
//
// The initiator chooses the first connection over which the responder has proved itself, TCP rather than UDP
// when both come at the same time, and both sides return that one.
//
// # What is authenticated
//
// The offers are the secret. Both hold half of a key that is good for one attempt, and everything that comes from the network is
// without effect until it has proved that key: a probe may cause an echo of the same length, a TCP connection a
// greeting, and QUIC begins only where a probe came from. Over UDP each side also insists on the certificate whose hash
// is in the other's offer. Whoever carries the offers can read them, and pass for either side: swarms make their own handshake on
// the connection.
//
// # Which NATs can be passed
//
// All pairs of those that map independently of the destination. A NAT whose mapping depends on it
// ("symmetric") passes with one that filters by address or not at all. If it counts its ports up, it also passes with one that filters by
// port, and with another that counts, as long as others behind it are not too busy at that moment. One that chooses ports at random does
// neither; that pair needs a relay. [Puncher.Observe] finds out which kind there is, from two peers, and predicts ports. Package natsim
// has NATs of all kinds, and the tests every pair.
//
// References: RFC 4787 (behaviour of NATs for UDP), RFC 5382 (for TCP), RFC 5780 (finding out), RFC 5128 (state of the art), RFC 8489 (STUN);
// B. Ford et al., "Peer-to-Peer Communication Across Network Address Translators" (2005); M. Seemann et al.,
// "Decentralized Hole Punching" (2022), from which the timing is.
package punch
