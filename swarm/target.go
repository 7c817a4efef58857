// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/seed5728abee/fathom/swarm/member"
)

// A Hash is a place on the ring: the ID of a member, or of a key that a member owns.
type Hash = member.ID

// HashOf returns the hash of a value: SHA-256.
func HashOf(value string) Hash { return member.HashOf(value) }

// A Target says whom to send to: [ToID], [ToAddr], [ToName], [ToMember], or [ParseTarget].
type Target struct {
	kind targetKind
	id   Hash
	text string
	addr netip.AddrPort
}

type targetKind uint8

const (
	_ targetKind = iota
	targetID
	targetAddr
	targetName
)

// ToID is the member with this ID.
func ToID(id Hash) Target { return Target{kind: targetID, id: id} }

// ToAddr is the member that is known by this address, "host:port". A host name is resolved when the target is used.
func ToAddr(hostport string) Target { return Target{kind: targetAddr, text: hostport} }

// ToAddrPort is ToAddr for an address that needs no resolving.
func ToAddrPort(addr netip.AddrPort) Target {
	return Target{kind: targetAddr, text: addr.String(), addr: addr}
}

// ToName is the member that has published this name: [Options.Name].
func ToName(name string) Target { return Target{kind: targetName, text: name} }

// ToMember is the member that a message came from, or that a lookup found.
func ToMember(m Member) Target { return ToID(m.ID) }

// ParseTarget reads what a person types: 64 hexadecimal digits are an ID, host:port an address, all else a name.
func ParseTarget(s string) (Target, error) {
	switch {
	case s == "":
		return Target{}, fmt.Errorf("an empty target: give an ID, host:port, or a name")
	case len(s) == 2*len(Hash{}) && strings.Trim(s, "0123456789abcdefABCDEF") == "":
		id, err := member.ParseID(s)
		return ToID(id), err
	case strings.Contains(s, ":"):
		return ToAddr(s), nil
	default:
		return ToName(s), nil
	}
}

// String returns the target as ParseTarget reads it.
func (t Target) String() string {
	if t.kind == targetID {
		return t.id.String()
	}
	return t.text
}
