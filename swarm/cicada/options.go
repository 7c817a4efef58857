// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicada

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/netip"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// Options say for whom a gateway speaks. The functions are called from several goroutines, and must not call back into
// the gateway unless it says so.
type Options struct {
	// Self is the member that the gateway speaks for. Its first IPv4 address is the one that originals are told. Required.
	Self func() member.Contact

	// Ring answers for the member's place: State, Notify and Lookup. Required.
	Ring wire.Handler

	// Table returns the live members known, in any order. Nil: none but those that Ring names.
	Table func() []member.Contact

	// Transport carries messages to members of any dialect, to originals by way of this gateway. It is used to find out
	// what somebody is that originals name, and whether he is there. Required.
	Transport wire.Transport

	// Live reports whether a link to a native member stands. Nil: none does.
	Live func(member.ID) bool

	// Dial connects to an address. Nil: a plain TCP connection.
	Dial func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)

	// Deliver takes a message that an original sent to this member. It must be quick. The payload belongs to it.
	Deliver func(from member.Contact, payload []byte)

	// Forward sends on a message that an original sent to the owner of key, through whichever member the original
	// happened to know. Nil: it is lost, as it would be with an original.
	Forward func(ctx context.Context, key member.ID, from member.Contact, payload []byte) error

	// Inject takes a broadcast that an original began: for the native members, and back to Spread. It gets each at most
	// once from this gateway, and may get it from other members as well, under the same tag. Nil: they are lost.
	Inject func(tag wire.Tag, origin member.ID, payload []byte)

	// Learn is told of originals that there is a connection with, and Lost of those where the last one ended. Nil:
	// nobody is told.
	Learn func(member.Contact)
	Lost  func(member.ID)

	// Connections is how many connections there may be, and Memory how many bytes of large messages on their way in.
	// Defaults 1024 and 64 MiB.
	Connections int
	Memory      int

	// Log takes what an operator may want to know. Nil: nowhere.
	Log *slog.Logger
}

func (o Options) withDefaults() Options {
	o.Connections = cmp.Or(o.Connections, 1024)
	o.Memory = cmp.Or(o.Memory, 64<<20)
	if o.Table == nil {
		o.Table = func() []member.Contact { return nil }
	}
	if o.Live == nil {
		o.Live = func(member.ID) bool { return false }
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr.String())
		}
	}
	if o.Deliver == nil {
		o.Deliver = func(member.Contact, []byte) {}
	}
	if o.Forward == nil {
		o.Forward = func(context.Context, member.ID, member.Contact, []byte) error { return nil }
	}
	if o.Inject == nil {
		o.Inject = func(wire.Tag, member.ID, []byte) {}
	}
	if o.Learn == nil {
		o.Learn = func(member.Contact) {}
	}
	if o.Lost == nil {
		o.Lost = func(member.ID) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Stats counts what a gateway has done.
type Stats struct {
	Connections int    // open now
	Originals   int    // with a connection now
	Sent        uint64 // messages
	Received    uint64
	Malformed   uint64 // connections closed as something came that no original sends
	Strays      uint64 // answers that nobody waited for
	Unlinked    uint64 // messages whose hash chain is wrong
	Withheld    uint64 // messages not sent, as they would have done harm
	Refused     uint64 // connections beyond Options.Connections
	Delivered   uint64 // messages for this member
	Forwarded   uint64 // messages for others
	Injected    uint64 // broadcasts begun by originals
	Absorbed    uint64 // further copies of broadcasts
	Spread      uint64 // copies of broadcasts handed to originals
	SpreadLost  uint64 // those that an original did not take
	Healed      uint64 // requests to join that were sent to heal an original
}
