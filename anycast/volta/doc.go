// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package volta speaks the language of Voltadomar, the anycast traceroute that Fathom is compatible
// with: the messages between its controllers and agents in both dialects, its command, its result
// text, its session blocks, and the state of one traceroute. It is pure: nothing here opens a
// connection or starts anything, except a Resolver, which asks the DNS.
//
// A controller takes what any agent sends, and answers in the same dialect:
//
//	m, dialect, err := volta.Decode(message) // a volta.Register, Done, Reply or Error
//	answer, err := volta.Encode(dialect, volta.Job{...})
//
// What a message holds was sent by somebody else: Decode checks its form, and the types say
// which of their fields still want checking. Nothing here panics on hostile input.
//
// docs/compatibility.md lists what is as in the originals and what is better.
package volta
