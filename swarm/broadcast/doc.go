// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package broadcast brings a payload to every live member of a swarm, exactly once.
//
// An [Engine] is one member's part. It promises that
//
//   - every member that is alive and can be reached through others gets a broadcast once: also when members die at that
//     moment, when they join and leave, when tables are out of date, and, up to a minute later, after a partition;
//   - no payload is delivered that its tag does not name: who changes one on its way is found out by the next member;
//   - in a secure swarm, no payload is delivered that its origin has not signed, and none that is replayed.
//
// It does not promise an order between broadcasts, not even of one origin.
//
// # The tree
//
// A member that has a broadcast is in charge of a part of the ring, the places between itself and a limit, and splits it
// at members it knows; each of them gets the part up to the next one (El-Ansary, Alima, Brand, Haridi: Efficient
// Broadcast in Structured P2P Networks, 2003). With the fingers of Chord that reaches all in O(log N) steps, and parts
// never overlap, so that each gets one copy.
//
//	        part of A: the whole ring
//	A ──┬──────────────┬──────────────────────┬─────────────────── A
//	    B (B, C)       C (C, D)               D (D, A)
//	      part of B      part of C              part of D
//
// Each step is acknowledged. The part of a member that does not answer goes to others at once: to the next one known
// in it, and, for what lies between, to the one that a lookup finds behind the dead one. Payloads above 16 KiB are
// offered rather than pushed, and so is everything given out for a second time: who is offered something fetches it
// only if it does not have it.
//
// # The repair
//
// Members tell a few others, neighbours on the ring and some at random, which broadcasts they have: soon after they
// got them, again after 1, 4, 16 and 45 seconds, and whenever a new neighbour shows up. Who misses one waits for the
// tree a little, and then asks for it (Leitão, Pereira, Rodrigues: Epidemic Broadcast Trees, 2007). It is enough for
// that to know one's neighbours.
//
// # Tags
//
// A [wire.Tag] is half of the SHA-256 over origin, time and payload, so a copy proves itself, and two payloads under
// one tag cannot be had. Tags are remembered for 10 minutes by the time they were sent, and what was sent before that,
// or will be sent 10 minutes from now, is refused as [ErrStale]: clocks in a swarm may differ by that much. When more
// broadcasts come than can be remembered, it is the time that gives way, not the promise: the oldest are forgotten, and
// all that is as old is refused from then on. After a start, what others have from before it is not fetched.
//
// In an open swarm there is nothing to prove the origin with: any member can begin a broadcast in the name of any other.
// In a secure one the origin signs, and who passes on something unsigned is refused for a while.
//
// Broadcasts that an original member (Cicada's) began have tags of their own kind; see [ForeignTag].
package broadcast
