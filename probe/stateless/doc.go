// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package stateless makes probes that carry all that is needed to recognise their answers, so that any
// host that holds the key of a measurement can do it, also one that has not sent the probe. In an anycast network that is
// the rule: a probe leaves at one site and its answer comes home at another.
//
// It does no I/O and keeps no state per probe. A [Codec] makes the packets of one measurement; a [Table] takes packets from
// raw sockets, finds the measurement by a port, verifies, and says which probe is answered, by whom and how:
//
//	c, err := stateless.New(stateless.Config{Key: stateless.NewKey(), Kind: stateless.UDP, FirstPort: 20000, Ports: 8})
//	pkt, err := c.Append(buf[:0], &stateless.Probe{Src: src, Dst: dst, TTL: 5, Flow: 2, Number: 41})
//	...
//	var table stateless.Table
//	err = table.Add(c)
//	c, err = table.Parse4(received, &answer)
//
// # What proves an answer
//
// A check made of the key, kind, addresses, ports and number is in every probe (SipHash-2-4; Aumasson and Bernstein,
// 2012): 16 bits where nothing else comes back, 64 bits, which cover the time of sending as well, where there is room.
//
//	          number              check of 16 bits           check of 64 bits
//	ICMP      sequence number     IPv4 identification        payload
//	UDP       UDP checksum        IPv4 identification        payload
//	TCP       TCP sequence, high  TCP sequence, low; IPv4    –
//	                              identification in quotes
//	DNS       UDP checksum        IPv4 identification        first label of the question
//	CHAOS     source port         message identifier; IPv4   DNS cookie
//	                              identification in quotes
//
// Whatever comes back must be right. An ICMP error of IPv4 may quote as little as 28 bytes; of IPv6 the payload has to be there,
// except TCP's, of which the sequence number is taken. A datagram from the port that a UDP probe went to counts only if it
// repeats the payload. What has the right port but no proof is [ErrForged], and there is no other way to be counted.
//
// Tolerated are changes that routers make: TTL, TOS, total length, byte-swapped identification, any identification
// where the long check is there, zeros in place of a payload. A NAT before the sender is tolerated if it restores what it has
// changed in the packets that ICMP errors quote (RFC 5508 section 4.2), UDP checksum included; answers through other
// NATs are refused.
//
// # Flows
//
// Probes of one flow agree in all that load balancers hash: addresses, protocol, ports, the first 4 bytes of the transport
// header, IPv6 flow label (Paris traceroute; Augustin et al., 2006). Flows differ in at least one of these.
//
// # Classic
//
// [Config].Classic speaks the scheme of Voltadomar's agents, which has none of this: the source port is the number, and
// whoever knows that can forge.
package stateless
