// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package stun asks others which address they see, answers them the same, and concludes what kind
// of NAT is in between.
//
// It is the part of STUN (RFC 8489) that peers need of each other: Binding requests without
// authentication, and their answers with XOR-MAPPED-ADDRESS. Messages are made and read by functions without I/O, so
// that they can share a socket with other protocols: the first byte of a STUN message is 0 or 1
// (RFC 7983). The bytes are those of github.com/pion/stun.
//
// What servers at different addresses have seen says how a NAT maps ([Classify], in the words of RFC 5780), and which ports
// it will probably use next ([Behaviour.Predict]).
//
// A server is not to be made a weapon. An answer is 12 bytes longer than the shortest request (24 for IPv6), goes to nobody
// but who asked, and a [Limiter] bounds how many of them any network can cause: a forged
// source gets no more than that.
package stun
