// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"net/netip"
)

// probePayload is the payload of [BuildICMPProbe].
const probePayload = "ubiquitousubiquitousubiquitousubiquitous"

// BuildUDPProbe returns an IPv4 traceroute probe: a UDP datagram without payload, id 0, TOS 0, from 0.0.0.0.
// All lengths and checksums are computed, the UDP one for that source. A raw socket with IP_HDRINCL fills in
// the real source and then the UDP checksum no longer fits; where the target itself must answer, name
// the source with [AppendUDPProbe], or use [BuildUDPProbeTemplate], which has no UDP checksum.
// A destination that is not IPv4 is [ErrAddress].
func BuildUDPProbe(dst netip.Addr, ttl uint8, srcPort, dstPort uint16) ([]byte, error) {
	if !dst.Unmap().Is4() {
		return nil, errIPv4Address
	}
	return AppendUDPProbe(nil, netip.AddrPortFrom(netip.IPv4Unspecified(), srcPort), netip.AddrPortFrom(dst, dstPort), ttl, nil)
}

// BuildUDPProbeTemplate is [BuildUDPProbe] in the form for a raw socket with IP_HDRINCL, whose kernel fills
// in total length, header checksum, id and source: total length 20, all the others zero, UDP
// checksum 0 (none).
func BuildUDPProbeTemplate(dst netip.Addr, ttl uint8, srcPort, dstPort uint16) ([]byte, error) {
	h := IPv4Header{TTL: ttl, Protocol: ProtocolUDP, Dst: dst}
	b, err := templateFor(&h, UDPHeaderLen)
	if err != nil {
		return nil, err
	}
	return AppendUDPHeader(b, srcPort, dstPort, 0)
}

// BuildICMPProbe returns an IPv4 echo request with 40 bytes of payload, id field 0, TOS 0, from 0.0.0.0.
// All lengths and checksums are computed. A destination that is not IPv4 is [ErrAddress].
func BuildICMPProbe(dst netip.Addr, ttl uint8, seq, id uint16) ([]byte, error) {
	if !dst.Unmap().Is4() {
		return nil, errIPv4Address
	}
	return AppendICMPProbe(nil, netip.IPv4Unspecified(), dst, ttl, id, seq, []byte(probePayload))
}

// BuildICMPProbeTemplate is [BuildICMPProbe] in the form for a raw socket with IP_HDRINCL: see [BuildUDPProbeTemplate].
func BuildICMPProbeTemplate(dst netip.Addr, ttl uint8, seq, id uint16) ([]byte, error) {
	h := IPv4Header{TTL: ttl, Protocol: ProtocolICMP, Dst: dst}
	b, err := templateFor(&h, ICMPHeaderLen+len(probePayload))
	if err != nil {
		return nil, err
	}
	return AppendICMPEcho(b, ICMPv4Echo, id, seq, []byte(probePayload)), nil
}

func templateFor(h *IPv4Header, payloadLen int) ([]byte, error) {
	if !h.Dst.Unmap().Is4() {
		return nil, errIPv4Address
	}
	return h.AppendTemplate(make([]byte, 0, IPv4HeaderLen+payloadLen))
}

// AppendUDPProbe appends a whole IP packet of the addresses' version with a UDP datagram, all lengths and checksums computed.
// Errors: [ErrAddress] for addresses of two versions, [ErrTooLong].
func AppendUDPProbe(b []byte, src, dst netip.AddrPort, ttl uint8, payload []byte) ([]byte, error) {
	start := len(b)
	b, err := appendProbeHeader(b, ProtocolUDP, src.Addr(), dst.Addr(), ttl, UDPHeaderLen+len(payload))
	if err != nil {
		return b, err
	}
	b, err = AppendUDP(b, src, dst, payload)
	if err != nil {
		return b[:start], err
	}
	return b, nil
}

// AppendICMPProbe appends a whole IP packet of the addresses' version with an echo request, all lengths and checksums computed.
// Errors: [ErrAddress] for addresses of two versions, [ErrTooLong].
func AppendICMPProbe(b []byte, src, dst netip.Addr, ttl uint8, id, seq uint16, payload []byte) ([]byte, error) {
	p, typ := ProtocolICMP, ICMPv4Echo
	if dst.Is6() && !dst.Is4In6() {
		p, typ = ProtocolICMPv6, ICMPv6Echo
	}
	b, err := appendProbeHeader(b, p, src, dst, ttl, ICMPHeaderLen+len(payload))
	if err != nil {
		return b, err
	}
	at := len(b)
	b = AppendICMPEcho(b, typ, id, seq, payload)
	if p == ProtocolICMPv6 {
		SetICMPv6Checksum(b[at:], src, dst)
	}
	return b, nil
}

func appendProbeHeader(b []byte, p Protocol, src, dst netip.Addr, ttl uint8, payloadLen int) ([]byte, error) {
	if dst.Is6() && !dst.Is4In6() {
		h := IPv6Header{NextHeader: p, HopLimit: ttl, Src: src, Dst: dst}
		return h.Append(b, payloadLen)
	}
	h := IPv4Header{TTL: ttl, Protocol: p, Src: src, Dst: dst}
	return h.Append(b, payloadLen)
}
