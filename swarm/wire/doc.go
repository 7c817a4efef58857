// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package wire is what the native members of a swarm say to each other: the messages, their encoding, and the
// [Transport] that carries them, which sockets implement (package swarm) as well as a simulated network (swarm/simnet).
//
// A message is one byte of [Kind] and its fields in the order of the struct: IDs as 32 bytes, numbers as unsigned
// varints, byte strings and lists with their length in front. [Decode] is strict: it takes a whole message and nothing
// else, bounds every list before it makes room for it, and shares no memory with its input but the payloads of [Push].
package wire
