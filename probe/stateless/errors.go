// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package stateless

import (
	"errors"
	"fmt"
)

// Errors to branch on with [errors.Is]. Those of the hot path are values made once, so that refusing costs nothing.
var (
	// ErrConfig: a Config contradicts itself, or a name in a text is unknown.
	ErrConfig = errors.New("invalid probe configuration")
	// ErrProbe: a Probe does not fit its Codec: number too high, or addresses missing or of two IP versions.
	ErrProbe = errors.New("invalid probe")
	// ErrPortsTaken: the Table has another Codec for one of the ports.
	ErrPortsTaken = errors.New("ports are taken")

	// ErrNotOurs: the packet has nothing to do with any Codec of the Table.
	ErrNotOurs = errors.New("not an answer to a probe")
	// ErrForged: the packet came to a port of a Codec but does not prove that it answers a probe. It was made up,
	// answers other traffic that uses the port, or was changed on the way beyond recognition.
	ErrForged = errors.New("unproven answer")
	// ErrMalformed: the packet ends too early or contradicts its protocol.
	ErrMalformed = errors.New("malformed answer")
)

var (
	errAddresses = fmt.Errorf("%w: source and destination must be addresses of one IP version", ErrProbe)
	errNumber    = fmt.Errorf("%w: number above Codec.MaxNumber", ErrProbe)
	errClassic6  = fmt.Errorf("%w: the classic scheme is for IPv4", ErrProbe)
)
