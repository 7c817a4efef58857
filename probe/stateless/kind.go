// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package stateless

import (
	"fmt"
	"strconv"
)

// Kind is what probes are made of.
type Kind uint8

// Kinds. The invalid zero catches a forgotten field.
const (
	_     Kind = iota
	ICMP       // echo request, of ICMP or ICMPv6; answered by an echo reply
	UDP        // datagram to a port where nobody listens; answered by ICMP port unreachable, or by an echo of the datagram
	TCP        // SYN; answered by SYN-ACK or RST
	DNS        // query for a name below Config.Name, type A; answered by any response, whatever its code
	CHAOS      // query for hostname.bind, class CHAOS, which name servers answer with their own name (RFC 4892)
)

var kindNames = [...]string{ICMP: "icmp", UDP: "udp", TCP: "tcp", DNS: "dns", CHAOS: "chaos"}

// String gives the lower-case name that command lines use, or the number as in Kind(37).
func (k Kind) String() string {
	if k.valid() {
		return kindNames[k]
	}
	return "Kind(" + strconv.Itoa(int(k)) + ")"
}

func (k Kind) valid() bool { return k >= ICMP && k <= CHAOS }

// ParseKind is the inverse of [Kind.String]. Another word is [ErrConfig].
func ParseKind(s string) (Kind, error) {
	for k := ICMP; k <= CHAOS; k++ {
		if kindNames[k] == s {
			return k, nil
		}
	}
	return 0, fmt.Errorf("%w: kind %q, want icmp, udp, tcp, dns or chaos", ErrConfig, s)
}

// MarshalText implements encoding.TextMarshaler. An unknown kind is [ErrConfig].
func (k Kind) MarshalText() ([]byte, error) {
	if !k.valid() {
		return nil, fmt.Errorf("%w: kind %d", ErrConfig, uint8(k))
	}
	return []byte(kindNames[k]), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *Kind) UnmarshalText(text []byte) (err error) {
	*k, err = ParseKind(string(text))
	return err
}
