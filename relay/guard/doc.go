// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package guard keeps a relay from making loops, duplicates and storms. It does
// no I/O and starts nothing; time comes from the caller, as nanoseconds of any
// clock that does not go back.
//
// Four means, each for what the others cannot do:
//
//   - An [Election] lets one relay of a mesh serve a segment when several are on
//     it. They hear of each other by an [Announcement] every [Interval].
//   - [Copies] counts, for every datagram of the last second, how often the
//     segment has had it and how often each peer has sent it. A copy that a peer
//     sends is emitted only when that peer has sent more of them than the segment
//     has had. So a datagram that a host repeats N times, byte for byte, arrives
//     N times, and a second way between two segments adds nothing; a filter that
//     remembers what it has seen could not do both.
//   - [Copies] also knows a relay that cannot be asked by the Ethernet address
//     from which it repeats what others have sent first.
//   - A [Limiter] bounds what one source, and all sources together, may send.
//
// # What it takes
//
// A relay that stands by relays nothing, and leaves [Copies] alone. One that serves tells
// Copies who else on the segment is a relay (Copies.SetNeighbours), also by
// the Ethernet addresses of those peers that are neighbours there: without that,
// a relay of another kind is only found out by what it repeats, and if datagrams
// reach it much sooner than this one, the two may send one around until it
// arrives here too, or the limit for storms is reached.
//
// What a host on a segment sees, if all relays are of this kind: every broadcast
// of the others once. A relay of another kind beside one of these repeats what
// it gets without counting; then it is a few copies, never a loop.
//
// # Use
//
//	for _, d := range batch {
//		key := guard.KeyOf(d.Src, d.Dst.Port(), d.Payload())
//		if why := copies.Captured(key, d.Link, d.Outgoing, now); why != drop.None {
//			…
//		}
//	}
package guard
