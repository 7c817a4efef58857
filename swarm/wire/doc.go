// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package wire is what the native members of a swarm say to each other: the messages, their encoding, and the
// [Transport] that carries them, which sockets implement (package swarm) as well as a simulated network (swarm/simnet).
//
// A message is one byte of [Kind] and its fields in the order of the struct: IDs as 32 bytes, numbers as unsigned
// varints, byte strings and lists with their length in front. [Decode] is strict: it takes a whole message and nothing
// else, bounds every list before it makes room for it, and shares no memory with its input but the payloads of [Push].
//
//	 0      1
//	+------+-----------------------------------------+
//	| kind | fields of the message, as its struct    |
//	+------+-----------------------------------------+
//
//	ID                    32 bytes, most significant first
//	Tag                   16 bytes
//	bool                  1 byte: 0 or 1
//	number                unsigned varint (LEB128), in its shortest form
//	bytes, string         number of bytes, then these
//	list                  number of items, then these
//
// A [member.Contact]:
//
//	 0              32      33
//	+---------------+-------+--------------+-----------------+---------------+
//	| ID            | flags | key, if said | addresses: list | hosts: list   |
//	+---------------+-------+--------------+-----------------+---------------+
//
//	flags                 0 0 0 0 K L D D: D dialect (0 unknown, 1 native, 2 original), L leaf, K the key follows
//	key                   32 bytes: Ed25519 (RFC 8032)
//	address               1 byte: 4 or 16; as many of IPv4 or IPv6; port, 2 bytes. Never IPv4 in IPv6 form; no zone
//	host                  a contact without hosts
package wire
