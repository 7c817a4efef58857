// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package trust keeps what hosts that share keys say to each other secret from everyone in between: the key file that
// Cicada's README promises, and the sealing of messages from end to end.
//
// # The key file
//
//	{"trusted_hosts": [
//	  {"peer": "1234...", "outbound_key": "...", "inbound_key": "..."},
//	  {"address": "192.0.2.101:7000", "outbound_key": "...", "inbound_key": "..."},
//	  {}
//	]}
//
// peer is a member's ID, in decimal or hexadecimal; address is IP:PORT, or an IP address for all members on that host.
// Names are not looked up, as whoever answers would then decide who is trusted; localhost is 127.0.0.1. An empty
// object is skipped. What we send to the host is sealed with outbound_key, what comes from it is opened with
// inbound_key: the outbound_key of one is the inbound_key of the other. When several entries fit a member, peer goes
// before IP:PORT, and that before IP. In a swarm that is bound by key, and for members behind a NAT, peer is the way to
// name a host: addresses there are what members say of themselves.
//
// Keys may be any strings. They are not stretched: whoever can record a message can try words against it, so they
// should be random, of 128 bits or more, as `openssl rand -base64 32` makes them. Keys are changed on both hosts, one
// after the other; what is said in between is refused.
//
// # What is promised
//
// Between two hosts that list each other, a message that arrives was sent by the other, to this member, and arrives
// once; nobody in between can read it. A message from a listed host that is not sealed, or that is sealed with another
// key, is refused, and so is one that was there before. Messages may overtake each other.
//
// # What is not
//
//   - Lengths, times and the two members are not hidden.
//   - There is no forward secrecy: who gets hold of a key can read all that was recorded under it. The links between
//     Fathom's members have forward secrecy, so what was recorded there stays closed.
//   - Broadcasts are for everyone and are not sealed. They are delivered from listed hosts as from others, never as
//     sealed ones, and prove nothing about who sent them. A swarm key keeps a whole swarm among itself.
//   - Replays are told by what a process remembers and by time: a message is good for [Window] around its time of
//     sending, and not when it was sent before this table was loaded (to the millisecond). So the clocks of both hosts have to agree within
//     Window, and when the other's clock is behind, its messages are refused for as much time after this host's start.
//     When it is ahead, messages from just before the start, by as much, can be repeated once.
//
// # Format
//
// A sealed message is the body of an ordinary data message. Numbers are big-endian.
//
//	 0        7         8         24        32      40          40+N
//	+--------+---------+---------+---------+-------+-----------+-----+
//	| marker | version | session | counter | time  | encrypted | tag |
//	+--------+---------+---------+---------+-------+-----------+-----+
//
//	marker     ff 66 61 74 68 6f 6d: 0xff and "fathom"
//	version    1
//	session    16 random bytes, new with each process of the sender
//	counter    which message of the session it is, from 0
//	time       of sending, milliseconds since 1970, UTC
//	encrypted  N bytes, as long as the payload
//	tag        16 bytes
//
// The cipher is AES-256-GCM with the first 40 bytes as associated data; its nonce is 4 zero bytes and the counter. Its
// key is HKDF-SHA256 (RFC 5869) of the shared key, with the session as salt and, as info, "fathom swarm trust 1", the
// ID of the sender and the ID of the receiver. So each session, direction and pair of members has a key of its own, and
// no nonce is used twice under it, whatever restarts and whichever keys are the same.
package trust
