// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package probe sends network probes, tens of thousands at a time over a handful of sockets, and tells what
// became of each: who answered, after how long by the kernel's clock, and what the answer said.
//
//	p, err := probe.New(probe.Options{})
//	if err != nil { ... }
//	defer p.Close()
//	r, err := p.Probe(ctx, probe.Request{Target: netip.MustParseAddr("192.0.2.1"), TTL: 3})
//	fmt.Println(r.Status, r.Responder, r.RTT)
//
// [Prober.Probe] waits, [Prober.Start] calls back, [Prober.Send] gives a channel, and [Prober.Stream] turns an
// iterator of requests into one of results. All may be used at once, from any goroutine.
//
// # Modes and privileges
//
// [Auto] uses raw sockets where the process may open them. [Prober.Features] tells which mode it is and what
// is missing.
//
//	                 Privileged                    Unprivileged
//	needs            CAP_NET_RAW, for New only     nothing
//	ICMP             raw sockets                   ping sockets: the group must be in the sysctl net.ipv4.ping_group_range
//	UDP              raw sockets                   UDP sockets with an error queue (IP_RECVERR)
//	TCP              SYN by raw socket             a connection per probe, reset when it is established
//	SCTP             INIT by raw socket            –
//	Mark             CAP_NET_RAW at each probe     –
//	ReplyTTL         all protocols                 ICMP; UDP when the service answers
//	QuotedTTL, -TOS  all protocols                 –
//
// With [Options.SendFrames] the privileged mode sends Ethernet frames, faster and past the host's firewall.
//
// The table is Linux's. On other systems there is what package net offers: ICMP and UDP without kernel time stamps.
//
// # Where probes keep their numbers
//
// An answer has to say which probe it is about, and an ICMP error quotes no more than 8 bytes behind
// the IP header with certainty. A probe has its number in these:
//
//	ICMP   identifier and sequence number
//	UDP    destination port; source port if the request names the destination's; the checksum if it
//	       names both, or a Flow
//	TCP    source port and sequence number
//	SCTP   source port and initiate tag, which some quotes lack
//
// With [Request.Flow] everything that load balancers hash is the same for all probes of a flow, so that they take
// one path: the idea of Paris traceroute. Over IPv6 that includes the flow label.
//
// # What is never accepted
//
// A quote must agree with a probe in flight in IP version, protocol, destination, and ports and number as
// above. An echo reply must have identifier and number; its source may be any, because
// answers to broadcasts and from anycast addresses come from another. A datagram, segment or SCTP packet must come from the
// target's address and port to ours; the segment must acknowledge our SYN and the SCTP packet carry our tag, which are random.
// Everything else is counted, see [Counters], and dropped: late answers, duplicates, answers to others,
// malformed packets. Checksums of UDP, TCP and SCTP answers are not looked at, because network cards
// and virtual links leave them to each other; ICMP's is.
//
// # Caveats
//
//   - A datagram from a service carries no number. If several probes of the same ports are in flight it is taken
//     to answer the oldest; so is a quote of SCTP that ends before the tag.
//   - The kernel of this host does not know of the raw mode's SYNs: it answers a SYN-ACK with a reset, which
//     ends the connection on the other side.
//   - Sockets belong to the network namespace of the thread that calls New.
//   - A prober does not pace. Hosts and routers limit the rate of the ICMP errors that they send.
//
// References: RFC 792 (ICMP), RFC 4443 (ICMPv6), RFC 4884 and RFC 4950 (extensions, MPLS), RFC 768 (UDP), RFC 9293 (TCP),
// RFC 9260 (SCTP); Augustin et al., "Avoiding traceroute anomalies with Paris traceroute", IMC 2006.
package probe
