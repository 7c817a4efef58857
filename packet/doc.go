// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package packet encodes and decodes what is on the wire: IPv4, IPv6 with extension headers, UDP, TCP, SCTP,
// ICMP and ICMPv6 with their extension structures (MPLS label stacks), and Internet checksums.
//
// Nothing here does I/O, keeps state or starts anything. Decoding gives a view: a named []byte whose
// methods read the fields in place. Only the Parse functions make one, after checking once all that its methods rely on;
// calling a method of a hand-made view may panic. A view is as long valid, and as safe to share, as the
// bytes it was made from. Encoding appends to a slice and returns it, like append; on an error the
// slice comes back as it was. Neither allocates, as long as the slice has room. The two decoders with
// large results have a second form, [ICMPError.Decode] and [Quote.Decode], for hot loops that use
// one result again and again.
//
// Malformed bytes give an error to branch on ([ErrTruncated], [ErrMalformed], ...), never a panic.
// Checksums of received packets are not verified by parsing, because the kernel has done that for
// most of them, or a router has quoted only a part; each view has a ChecksumOK.
//
// An ICMP error on its way from a raw socket to the probe that it is about:
//
//	ip, err := packet.ParseIPv4(datagram)
//	e, err := packet.ParseICMPError(4, ip.Payload())
//	q, err := packet.ParseQuote(e.Quote)
//	// now q.Dst, q.SrcPort, q.UDPChecksum() name the probe, ip.Src() the router
//
// References: RFC 791 (IPv4), RFC 8200 (IPv6), RFC 768 (UDP), RFC 9293 (TCP), RFC 9260 (SCTP), RFC 792
// (ICMP), RFC 4443 (ICMPv6), RFC 4884 and RFC 4950 (ICMP extensions, MPLS), RFC 1071 and RFC 1624 (checksums).
package packet
