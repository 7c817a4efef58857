// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package datagram is one broadcast as bytes: what a relay takes from a segment or from its mesh,
// tests, repairs, puts together, cuts and readdresses. It does no I/O and starts nothing.
//
// On its way from a segment into the mesh a broadcast goes through
//
//	reason := d.Parse(frame, datagram.Capture{Partial: f.PartialChecksum, Tagged: f.Tagged})
//	reason = policy.Check(&d)            // is it for us? costs less than the checksum, so it goes first
//	if d.Fragment {
//		whole, reason = reassembler.Add(&d, origin, now) // and policy.Check again when it is whole
//	}
//	reason = d.Finish()                  // now its checksums are right
//
// and on its way out of the mesh through [Datagram.ParseSS] or [Datagram.ParsePacket] instead of
// Parse, [Policy.CheckMesh] instead of Check, then [Policy.Target] with [Datagram.SetDestination],
// and [Fragmenter.Cut]. Every step gives a [drop.Reason], and the first that is not [drop.None] is the last.
//
// A Datagram is a view: it is as long valid as the buffer it was made from, which Finish and
// SetDestination write to. Nothing allocates once a reassembler and a fragmenter have seen their
// load. Policies are immutable and can be shared; all else belongs to one goroutine.
//
// What is taken is deliberately less than what the Internet allows: no source routes, no
// UDP lengths that leave bytes over, no IPv6 extension headers but hop-by-hop and destination options and
// fragments. A relay makes hosts believe that bytes came from a neighbour; what no sender of broadcasts needs, it
// does not carry.
//
// References: RFC 791 and RFC 6864 (IPv4, its fragments, options and IDs), RFC 768 (UDP), RFC 1122 section
// 3.2.1.3 (who can be a source), RFC 1112 and RFC 2464 (groups on Ethernet), RFC 8200 and RFC 5722 (IPv6, its fragments),
// RFC 1624 (changing a checksum).
package datagram
