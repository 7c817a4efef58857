// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"errors"

	"github.com/seed5728abee/fathom/swarm/wire"
)

// Errors to branch on with errors.Is. After Close every call returns [net.ErrClosed].
var (
	// ErrNotBound says that Bind has to come first.
	ErrNotBound = errors.New("the peer is not bound to an address: call Bind first")
	// ErrBound says that the peer is bound already.
	ErrBound = errors.New("the peer is bound already")
	// ErrConnected says that the peer is in a swarm already.
	ErrConnected = errors.New("the peer is in a swarm already: it has to leave that one first")
	// ErrNoEntry says that none of the addresses given to Connect led into a swarm.
	ErrNoEntry = errors.New("no entry into the swarm")
	// ErrAlone says that there is nobody else to send to.
	ErrAlone = errors.New("nobody else is in the swarm")
	// ErrNoSuchMember says that nobody with this ID, address or name is in the swarm.
	ErrNoSuchMember = errors.New("no such member in the swarm")
	// ErrUnreachable says that the member is known and cannot be reached, or did not answer.
	ErrUnreachable = wire.ErrUnreachable
	// ErrTooLarge says that a message is larger than MaxMessage.
	ErrTooLarge = errors.New("message too large")
	// ErrNoService says that the member has no listener for the service.
	ErrNoService = errors.New("no such service at the member")
	// ErrServiceTaken says that this peer listens for the service already.
	ErrServiceTaken = errors.New("the service has a listener already")
	// ErrOriginal says that the member speaks the original protocol, which has messages and broadcasts only.
	ErrOriginal = errors.New("the member is an original peer, which cannot do this")
	// ErrQueueFull says that the receiver's application does not fetch its messages.
	ErrQueueFull = errors.New("the receiver's queue is full")
)
