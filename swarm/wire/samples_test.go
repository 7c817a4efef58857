// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"crypto/ed25519"
	"net/netip"
	"strings"

	"github.com/seed5728abee/fathom/swarm/member"
)

// contact n is at 192.0.2.n; the even ones have a key, too.
func contact(n byte) member.Contact {
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, n}), 49610)
	c := member.Contact{ID: member.OfAddr(addr), Dialect: member.Native, Addrs: []netip.AddrPort{addr}}
	if n%2 == 0 {
		c.Key = ed25519.PublicKey(bytes.Repeat([]byte{n}, ed25519.PublicKeySize))
	}
	return c
}

func contacts(first, last byte) (list []member.Contact) {
	for n := first; n <= last; n++ {
		list = append(list, contact(n))
	}
	return list
}

// leaf has all that a contact can have.
func leaf() member.Contact {
	c := contact(100)
	c.Leaf = true
	for n := byte(1); len(c.Addrs) < member.MaxAddrs; n++ {
		c.Addrs = append(c.Addrs, netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), uint16(n)))
	}
	c.Hosts = contacts(101, 100+member.MaxHosts)
	return c
}

func tags(n int) (list []Tag) {
	for i := range n {
		list = append(list, Tag{0: byte(i >> 8), 1: byte(i), 15: 0xff})
	}
	return list
}

func news(n int) (list []News) {
	for i, t := range tags(n) {
		list = append(list, News{Tag: t, Age: uint64(1000 * i), Size: uint64(i)})
	}
	return list
}

// A sample is a message and the name of the vector that encodes it.
type sample struct {
	name string
	m    Message
}

// samples has every kind, empty and full.
func samples() []sample {
	id, other := contact(1).ID, contact(2).ID
	original := contact(3)
	original.Dialect = member.Original
	push := Push{Tag: Tag{1, 2, 3}, Origin: id, Sent: 1767225600e9, Limit: other, Hops: 3, Payload: []byte("hello")}
	signed := push
	signed.Except = []member.ID{other}
	signed.Key, signed.Signature = bytes.Repeat([]byte{4}, ed25519.PublicKeySize), bytes.Repeat([]byte{5}, ed25519.SignatureSize)
	exclusive := push
	exclusive.Except = make([]member.ID, MaxExcept)
	path := make([]member.ID, MaxPath)
	for i := range path {
		path[i] = contact(byte(i)).ID
	}
	return []sample{
		{"ping", Ping{}},
		{"pong", Pong{}},
		{"state", State{}},
		{"notify", Notify{contact(1)}},
		{"notify from an original", Notify{original}},
		{"notify with a bare ID", Notify{member.Contact{ID: id}}},
		{"neighbours", Neighbours{Self: contact(1), Predecessors: contacts(2, 3), Successors: contacts(4, 6)}},
		{"neighbours, none", Neighbours{Self: contact(2)}},
		{"neighbours, full", Neighbours{Self: leaf(), Predecessors: contacts(1, MaxNeighbours), Successors: contacts(40, 39+MaxNeighbours)}},
		{"lookup", Lookup{Key: id}},
		{"lookup, on its way", Lookup{Key: id, Hops: 300}},
		{"found", Found{Key: id, Owner: contact(2), Hops: 1}},
		{"found a leaf", Found{Key: id, Owner: contact(2), Leaf: []member.Contact{leaf()}, Hops: 2, Path: []member.ID{id, other}}},
		{"found, full", Found{Key: id, Owner: leaf(), Leaf: []member.Contact{leaf()}, Hops: 1<<64 - 1, Path: path}},
		{"step", Step{Key: id, Count: 8}},
		{"closest", Closest{Contacts: contacts(1, 3)}},
		{"closest, owner", Closest{Owner: true, Leaf: []member.Contact{leaf()}}},
		{"attach", Attach{leaf()}},
		{"attached", Attached{contacts(1, 4)}},
		{"store", Store{[]byte("record")}},
		{"store, full", Store{bytes.Repeat([]byte{1}, MaxRecord)}},
		{"stored", Stored{}},
		{"fetch", Fetch{id}},
		{"records", Records{[][]byte{[]byte("one"), nil, []byte("three")}}},
		{"records, none", Records{}},
		{"push", push},
		{"push, empty", Push{Tag: Tag{1}, Origin: id, Limit: id}},
		{"push, signed", signed},
		{"push, full", exclusive},
		{"pushed", Pushed{}},
		{"offer", Offer{Tag: push.Tag, Limit: other, Hops: 3, Size: 1 << 20}},
		{"want", Want{tags(2)}},
		{"want, full", Want{tags(MaxTags)}},
		{"payloads", Payloads{[]Push{push, signed, {Origin: other}}}},
		{"payloads, none", Payloads{}},
		{"try", Try{leaf()}},
		{"tried", Tried{[]bool{true, false, true}}},
		{"meet", Meet{From: leaf(), To: id, Offer: []byte("offer")}},
		{"met", Met{[]byte("offer")}},
		{"refused", Refused{Code: Overloaded, Reason: "try elsewhere"}},
		{"refused, no word", Refused{Code: 200}},
		{"refused, full", Refused{Code: Invalid, Reason: strings.Repeat("é", maxReason/2)}},
		{"leave", Leave{From: contact(1), Predecessors: contacts(2, 2), Successors: contacts(3, 4)}},
		{"have", Have{[]News{{Tag: Tag{1}, Age: 300, Size: 5}, {Tag: Tag{2}}}}},
		{"have, full", Have{news(MaxTags)}},
		{"have, none", Have{}},
	}
}
