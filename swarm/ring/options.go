// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"cmp"
	crand "crypto/rand"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// Options say how a node keeps its place. The zero value suits most swarms.
type Options struct {
	// Binding is what the members of the swarm take their IDs from. A contact that breaks it is refused.
	Binding member.Binding

	// Neighbours is the length of the lists of successors and of predecessors: a ring stays whole when fewer than
	// that many members in a row die at the same moment. 0: 8; at most 16.
	Neighbours int

	// Interval is how often a node asks its successor whether it is there; everything else that is done from time to
	// time goes by it. Half of it is the mean time until a silent death is noticed. 0: 1 s.
	Interval time.Duration

	// Bootstrap are members to fall back to when all neighbours are lost, and to ask now and then whether the ring
	// they are in is this one. Those given to [Node.Join] are added.
	Bootstrap []member.Contact

	// Records keeps the records that the node is in charge of. nil: none; requests to store them are refused.
	Records Records

	// MaxLeaves is how many leaves the node is a host of. 0: 1024.
	MaxLeaves int

	// Random is where chance comes from: which fingers are tried, and whom to ask first. nil: seeded by the system.
	Random rand.Source

	// Log takes what an operator may want to know. nil: nowhere.
	Log *slog.Logger
}

// Records is a store of records; package record has one. It checks what it is given, bounds what it holds, and is safe
// for concurrent use.
type Records interface {
	// Put keeps a record, in place of an older one of the same origin, and returns the key it belongs to. The error
	// says why it is not kept.
	Put(record []byte, now time.Time) (key member.ID, err error)
	// Get returns the records under a key.
	Get(key member.ID) [][]byte
	// Range returns the records with keys in (from, to], clockwise.
	Range(from, to member.ID) [][]byte
}

func (o Options) withDefaults() Options {
	o.Neighbours = min(cmp.Or(max(o.Neighbours, 0), 8), wire.MaxNeighbours/2)
	o.Interval = cmp.Or(max(o.Interval, 0), time.Second)
	o.MaxLeaves = cmp.Or(max(o.MaxLeaves, 0), 1024)
	if o.Random == nil {
		var seed [32]byte
		_, _ = crand.Read(seed[:]) // never fails, as its documentation says
		o.Random = rand.NewChaCha8(seed)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// What is done how often, in multiples of Options.Interval unless it is a time.
const (
	quickDivisor = 2  // full rounds while neighbours change: twice per interval
	quickFor     = 5  // intervals without a change until the pace slows down
	fullEvery    = 5  // rounds at rest until lists are compared again; the others only ask whether the other is there
	fingerEvery  = 20 // intervals between refreshes of one finger at rest
	mergeEvery   = 8  // intervals between questions to members that may be in another ring

	originalPace = 4 * time.Second  // between questions to an original, which has little to spare
	memoryLife   = 10 * time.Minute // until a member that was here once is given up

	// bootstrapAsked is how many members of a ring ask the bootstrap members each time, on average.
	bootstrapAsked = 32
	// hearsayRest is how long a member that did not answer is not asked again because somebody names it.
	hearsayRest = 5 * time.Second
	// patience is how long a node waits for the answer to a lookup from a member that is alive.
	patience         = 2 * time.Second
	originalPatience = 10 * time.Second // the same with originals, which read 64 bytes at a time
	// hush is how long the answer to a lookup may take before the next member is asked whether it is alive: above
	// what a lookup takes across a continent.
	hush = 250 * time.Millisecond
)

// Bounds of what a node remembers and does at a time.
const (
	maxTasks      = 16  // probes and introductions at a time
	maxQueue      = 128 // of those waiting
	maxRemembered = 64  // members that were here once
	maxFailed     = 256 // members not to be asked again for a while
	maxBootstrap  = 32
	maxJoinSteps  = 64 // members that the way to one's own place may lead over
)
