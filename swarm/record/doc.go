// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package record holds the records by which members of a swarm are found by name: each binds a name to the contact of
// a member, for at most a day, and is signed with the key of that member.
//
// A record lives at the place that its name hashes to ([Key]): the member that owns the place, and those after it,
// keep it in a [Store]. They check that it is signed with the contact's key and that the contact's ID is bound as the
// swarm demands; so nobody can publish a record of another member's key.
//
// # Names have no owner
//
// Anyone may publish any name. A store keeps what came first at the head of its list, and shows all publishers of a
// name: several are a conflict, and [Select] returns them all. That is first come, first served, as far as one store
// can know: stores do not agree among themselves about who came first, a name is free for others as soon as its record
// expires, and a store that lies can hide a record or put another first (but not make one up). Whoever has to be sure
// whom it talks to compares [member.Contact.Key] with one that it knows from elsewhere. In a swarm that is bound by
// address, the key in a contact is merely the one that published it: nothing ties it to the address.
//
// # Format
//
// Numbers are big-endian; times are milliseconds since 1970, UTC.
//
//	 0     1           65         73       81        89         90     90+N
//	+-----+-----------+----------+--------+---------+----------+------+---------+
//	|  1  | signature | sequence | issued | expires | N: 1 ... | name | contact |
//	+-----+-----------+----------+--------+---------+----------+------+---------+
//
//	signature   Ed25519 (RFC 8032), by the key in the contact, over "fathom swarm record", a zero byte, the version (1),
//	            and everything after the signature
//	name        N bytes of UTF-8, 1 to 255, in normal form C ([Normal])
//	contact     as package wire writes it, with its key
package record
