// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package broadcast

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// What can be wrong with a broadcast. [Incident.Err], and what [Engine.Broadcast] and [Engine.Inject] return, wraps one.
var (
	// ErrConflict says that a copy is not what its tag names: somebody has changed it on its way.
	ErrConflict = errors.New("copies of a broadcast differ")
	// ErrForged says that a broadcast does not carry its origin's signature.
	ErrForged = errors.New("broadcast not signed by its origin")
	// ErrStale says that a broadcast was sent too long ago, or in the future: a replay, or a clock that is wrong.
	ErrStale = errors.New("broadcast too old or from the future")
	// ErrForm says that a broadcast breaks a rule of the format.
	ErrForm = errors.New("malformed broadcast")
	// ErrForeign says that broadcasts of originals are not let in.
	ErrForeign = errors.New("broadcast of an original member")
	// ErrFlood says that a member sends more than is taken from one.
	ErrFlood = errors.New("too many broadcasts from one member")
	// ErrTooLarge says that a payload is above [wire.MaxPayload].
	ErrTooLarge = errors.New("payload too large")
	// ErrBusy says that too much waits to be sent; try again.
	ErrBusy = errors.New("too many broadcasts under way")
)

// Options say who the member is, whom it knows, and what becomes of broadcasts. The functions are called from several
// goroutines.
type Options struct {
	// Self is the member itself. A Leaf hands its own broadcasts to its Hosts and passes on nothing.
	Self func() member.Contact
	// Table returns the live members known, in any order. Those that are not native, and leaves, are passed over.
	Table func() []member.Contact
	// Neighbours returns the members before and after this one on the ring, nearest first.
	Neighbours func() (predecessors, successors []member.Contact)
	// Leaves returns the leaves that the member is a host of. Nil: none.
	Leaves func() []member.Contact
	// Find looks up the first member at or after a place. Nil: what lies behind a member that died is left to the repair.
	Find func(ctx context.Context, place member.ID) (member.Contact, error)
	// Transport carries the messages.
	Transport wire.Transport

	// Deliver takes each broadcast of another member, once. It must be quick, and not change the payload.
	Deliver func(Message)
	// Spread takes each broadcast, once, this member's own too: for a gateway to members of another kind. It must be
	// quick. Nil: there are none.
	Spread func(Message)
	// Report is told what members do that they should not, at most a few times a minute for one member. It must be quick.
	// Nil: nobody is told.
	Report func(Incident)

	// Binding says how the swarm is bound. With ByKey broadcasts are signed, and those that are not are refused.
	Binding member.Binding
	// Sign signs with the key of Self; needed with ByKey.
	Sign func(message []byte) []byte
	// Originals lets broadcasts of originals, which are not signed, into a secure swarm. All members need to agree.
	Originals bool

	// Memory is how long tags are remembered. All members need to agree. Default 10 minutes.
	Memory time.Duration
	// Tags is how many are remembered; with more, Memory gets shorter. Default 131,072, some 6 MB.
	Tags int
	// Keep is how long a payload is kept for those who missed it. Default 1 minute.
	Keep time.Duration
	// KeepBytes is how many bytes of payloads are kept; with more, Keep gets shorter. Default 64 MiB; the newest is always
	// kept.
	KeepBytes int
	// Rate is how many broadcasts are taken from one neighbour, per second, with a burst of two seconds. Default 20,000.
	Rate float64

	// Random decides whom to tell. Nil: one that nobody can predict.
	Random rand.Source
}

func (o Options) withDefaults() Options {
	o.Memory = cmp.Or(o.Memory, 10*time.Minute)
	o.Tags = cmp.Or(o.Tags, 1<<17)
	o.Keep = min(cmp.Or(o.Keep, time.Minute), o.Memory/2)
	o.KeepBytes = cmp.Or(o.KeepBytes, 64<<20)
	o.Rate = cmp.Or(o.Rate, 20000)
	if o.Leaves == nil {
		o.Leaves = func() []member.Contact { return nil }
	}
	if o.Deliver == nil {
		o.Deliver = func(Message) {}
	}
	return o
}

// A Message is one broadcast, as it is delivered.
type Message struct {
	Tag     wire.Tag
	Origin  member.ID // who began it: proved if there is a Key, claimed if not
	Key     ed25519.PublicKey
	Foreign bool      // an original began it: Origin is who was seen to send it, and Sent is zero
	Sent    time.Time // by the origin's clock
	From    member.ID // the member that it came from
	Hops    int       // members that passed it on, the origin among them; 0 for what began here
	Payload []byte    // shared: not to be changed
}

// An Incident is something that a member did.
type Incident struct {
	From   member.ID // the neighbour that did it
	Tag    wire.Tag
	Origin member.ID // of the broadcast, as claimed
	Err    error     // wraps ErrConflict, ErrForged, ErrForm or ErrFlood
	// Refused says that nothing is taken from From for the next minute.
	Refused bool
}
