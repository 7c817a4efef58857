// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package wire

import "errors"

var (
	// ErrUnreachable says that a member cannot be reached, or did not answer in time.
	ErrUnreachable = errors.New("member unreachable")
	// ErrMessage says that bytes are not a message of this format.
	ErrMessage = errors.New("malformed message")
	// ErrKind says that a message is of a kind that this version does not know: a request of that kind is answered
	// with [Unsupported]. It comes with ErrMessage.
	ErrKind = errors.New("unknown kind")
	// ErrAnswer says that a member answered with something else than the answer to the request.
	ErrAnswer = errors.New("unexpected answer")
)
