// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
)

// AttachLife is how long a host keeps a leaf that does not renew.
const AttachLife = 30 * time.Second

// A Transport carries messages from one member to others. It is safe for concurrent use.
type Transport interface {
	// Call sends a request and waits for its answer. A Refused answer comes back as the error. Without a deadline in
	// ctx the transport waits as long as an answer from that member can be expected to take, from the round trips it
	// has measured; an error that wraps [ErrUnreachable] says that the member cannot be reached or did not answer.
	Call(ctx context.Context, to member.Contact, request Message) (Message, error)

	// Cast sends a message that is not answered. It does not wait, and the message may be lost.
	Cast(to member.Contact, message Message)

	// RTT returns the measured round trip to a member, and 0 when none has been measured.
	RTT(id member.ID) time.Duration
}

// A Handler takes the messages that come in. from is who sent it, as far as the transport has proved; its contact may
// be bare but for the ID. Handle returns the answer to a request and nil to a message without one. It may be called
// from several goroutines, and may itself use the transport; the transport bounds how many run at a time per member.
// It must not change request, nor keep its byte slices when it has returned.
type Handler interface {
	Handle(ctx context.Context, from member.Contact, request Message) Message
}
