// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import "strconv"

// Protocol is an IP protocol number, which IPv6 calls a next-header value.
type Protocol uint8

// Protocol numbers that this package knows by name, from IANA's registry.
const (
	ProtocolHopByHop    Protocol = 0 // IPv6 hop-by-hop options
	ProtocolICMP        Protocol = 1
	ProtocolTCP         Protocol = 6
	ProtocolUDP         Protocol = 17
	ProtocolIPv6        Protocol = 41 // IPv6 encapsulated in either version
	ProtocolRouting     Protocol = 43
	ProtocolFragment    Protocol = 44
	ProtocolESP         Protocol = 50
	ProtocolAH          Protocol = 51
	ProtocolICMPv6      Protocol = 58
	ProtocolNoNext      Protocol = 59 // nothing follows an IPv6 header
	ProtocolDestination Protocol = 60 // IPv6 destination options
	ProtocolSCTP        Protocol = 132
)

// String gives IANA's keyword, or the number as in Protocol(37).
func (p Protocol) String() string {
	switch p {
	case ProtocolHopByHop:
		return "HOPOPT"
	case ProtocolICMP:
		return "ICMP"
	case ProtocolTCP:
		return "TCP"
	case ProtocolUDP:
		return "UDP"
	case ProtocolIPv6:
		return "IPv6"
	case ProtocolRouting:
		return "IPv6-Route"
	case ProtocolFragment:
		return "IPv6-Frag"
	case ProtocolESP:
		return "ESP"
	case ProtocolAH:
		return "AH"
	case ProtocolICMPv6:
		return "IPv6-ICMP"
	case ProtocolNoNext:
		return "IPv6-NoNxt"
	case ProtocolDestination:
		return "IPv6-Opts"
	case ProtocolSCTP:
		return "SCTP"
	}
	return "Protocol(" + strconv.Itoa(int(p)) + ")"
}
