// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package drop names the reasons for which a relay lets a frame or a datagram
// go no further, and counts them.
//
// Every decision of a relay ends in a [Reason]; the zero Reason is to carry on.
// A Reason is an error as well, made without allocation, so that decoders can
// return it and callers branch on it:
//
//	if _, err := datagram.Parse(frame); errors.Is(err, drop.BadChecksum) { … }
package drop
