// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicada

import (
	"errors"
	"fmt"

	"github.com/seed5728abee/fathom/swarm/wire"
)

var (
	// ErrMessage says that bytes are not what an original would send: a container, its data or a body.
	ErrMessage = errors.New("malformed message of an original")
	// ErrForbidden says that a message was not sent as it would have harmed the original that it was for.
	ErrForbidden = errors.New("an original must not be sent this")
	// ErrNative says that a native member answers where an original was expected.
	ErrNative = fmt.Errorf("%w: it is no original", wire.ErrUnreachable)
	// ErrTooLarge says that a payload is longer than an original can be handed in reasonable time: [MaxPayload].
	ErrTooLarge = errors.New("payload too large for an original")
	// ErrNoIPv4 says that a member cannot be part of a ring with originals: they know IPv4 addresses only.
	ErrNoIPv4 = errors.New("originals need an IPv4 address")
)
