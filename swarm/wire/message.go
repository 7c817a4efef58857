// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"

	"github.com/seed5728abee/fathom/swarm/member"
)

// Bounds that decoders hold. They are far above what members send.
const (
	MaxNeighbours = 32      // contacts in a list
	MaxPath       = 64      // IDs in a path
	MaxRecord     = 1 << 12 // bytes of a record
	MaxRecords    = 16      // records in an answer
	MaxTags       = 512     // broadcast tags in one message
	MaxExcept     = 32      // members that a broadcast is not for
	MaxOffer      = 1 << 11 // bytes of an offer to meet
	MaxPayload    = 16 << 20
)

// A Kind says which message follows. Requests are even, their answers one more; what has no answer stands alone.
type Kind uint8

// Values are part of the format and never change.
const (
	_ Kind = iota

	KindPing       Kind = 2
	KindPong       Kind = 3
	KindState      Kind = 4 // asks for Neighbours
	KindNotify     Kind = 6 // answered with Neighbours
	KindNeighbours Kind = 7
	KindLookup     Kind = 8
	KindFound      Kind = 9
	KindStep       Kind = 10
	KindClosest    Kind = 11
	KindAttach     Kind = 12
	KindAttached   Kind = 13
	KindStore      Kind = 14
	KindStored     Kind = 15
	KindFetch      Kind = 16
	KindRecords    Kind = 17
	KindPush       Kind = 18
	KindPushed     Kind = 19
	KindWant       Kind = 20 // answered with Payloads
	KindPayloads   Kind = 21
	KindTry        Kind = 22
	KindTried      Kind = 23
	KindMeet       Kind = 24
	KindMet        Kind = 25
	KindRefused    Kind = 27 // the answer to any request
	KindOffer      Kind = 28 // answered with Pushed

	KindLeave Kind = 32
	KindHave  Kind = 34
)

// A Message is one of the structs of this package. They are passed by value and not changed once handed on.
type Message interface {
	Kind() Kind
	append(b []byte) []byte
	decode(d *decoder) Message
}

// Ping asks whether the other is there. It is answered with Pong.
type Ping struct{}

// Pong answers Ping.
type Pong struct{}

// State asks a member for its Neighbours.
type State struct{}

// Notify tells a member that the sender, named by From, takes it for its successor (rectify, in Zave's words). It is
// answered with Neighbours.
type Notify struct{ From member.Contact }

// Neighbours is what a member knows of its part of the ring: itself, up to MaxNeighbours members before it, nearest
// first, and up to MaxNeighbours after it, nearest first.
type Neighbours struct {
	Self         member.Contact
	Predecessors []member.Contact
	Successors   []member.Contact
}

// Lookup asks for the owner of Key; the member asked passes it on as needed, never to one farther from the key.
// Hops is how many members have passed it on so far.
type Lookup struct {
	Key  member.ID
	Hops uint64
}

// Found answers Lookup. Hops counts the members that the question went to: 1 when the one asked knew the answer.
// Path names them in order. When Key is the ID of a leaf that is attached to the owner, Leaf holds its contact.
type Found struct {
	Key   member.ID
	Owner member.Contact
	Leaf  []member.Contact // none or one
	Hops  uint64
	Path  []member.ID
}

// Step asks for what a member knows about the way to Key without going it: the iterative form of Lookup.
type Step struct {
	Key   member.ID
	Count uint64 // contacts wanted; at most MaxNeighbours
}

// Closest answers Step: the members nearest to the key by clockwise distance from the key to the member, nearest
// first. Owner says that the member answering owns the key.
type Closest struct {
	Owner    bool
	Leaf     []member.Contact // as in Found, from any of its hosts
	Contacts []member.Contact
}

// Attach asks a member to be a host of the leaf From, until the link between them ends. It is renewed within
// [AttachLife].
type Attach struct{ From member.Contact }

// Attached answers Attach: the hosts that the leaf should attach to, the owner of its ID first, nearest first.
type Attached struct{ Hosts []member.Contact }

// Store asks the owner of the record's key to keep it; package record says what is inside.
type Store struct{ Record []byte }

// Stored answers Store.
type Stored struct{}

// Fetch asks for the records under a key.
type Fetch struct{ Key member.ID }

// Records answers Fetch.
type Records struct{ Records [][]byte }

// A Tag names one broadcast: the first half of a hash over what the broadcast is. Package broadcast says over what.
type Tag [16]byte

func (t Tag) String() string { return fmt.Sprintf("%x", t[:]) }

// Push hands a broadcast on. The receiver is in charge of the members between itself and Limit, clockwise, both
// excluded: with Limit equal to its own ID that is the whole ring.
type Push struct {
	Tag       Tag
	Origin    member.ID
	Sent      uint64      // by the origin's clock, nanoseconds since 1970; 0 when an original began it
	Except    []member.ID // members whose application does not get it, at most MaxExcept
	Key       []byte      // the origin's public key, 32 bytes, in a secure swarm; else empty
	Signature []byte      // by the origin, 64 bytes, where there is a key
	Limit     member.ID
	Hops      uint64 // members that have passed it on
	Payload   []byte
}

// Offer is Push without the payload, for one that is large or that the receiver may well have: it asks for it with
// Want if not.
type Offer struct {
	Tag   Tag
	Limit member.ID
	Hops  uint64
	Size  uint64 // bytes of payload
}

// Pushed answers Push and Offer: the receiver has the broadcast and takes its part in charge.
type Pushed struct{}

// Have tells which broadcasts a member has, at most MaxTags. It is not answered.
type Have struct{ News []News }

// News is one broadcast that a member has.
type News struct {
	Tag  Tag
	Age  uint64 // milliseconds since the member got it
	Size uint64 // bytes of payload
}

// Want asks for the payloads of broadcasts that were missed.
type Want struct{ Tags []Tag }

// Payloads answers Want, with those that the member still has and that fit. Limit says nothing in them.
type Payloads struct{ Pushes []Push }

// Try asks a member to dial the sender's candidates, from a fresh connection, to find out which can be reached.
type Try struct{ From member.Contact }

// Tried answers Try: for each of From.Addrs whether the member there proved to be From.
type Tried struct{ Reached []bool }

// Meet carries an offer to meet (package nat/punch) to the member To, through one that has a link to it.
type Meet struct {
	From  member.Contact
	To    member.ID
	Offer []byte
}

// Met carries the other's offer back.
type Met struct{ Offer []byte }

// Refused answers a request that the member will not or cannot do.
type Refused struct {
	Code   RefusalCode
	Reason string // for people, at most 200 bytes
}

// A RefusalCode says why, for programs.
type RefusalCode uint8

const (
	_            RefusalCode = iota
	NotOwner                 // the member does not own the key
	NotConnected             // the member has no link to the one asked for
	Overloaded               // try later or elsewhere
	Invalid                  // the request breaks a rule
	Leaving                  // the member is about to leave
	Unsupported              // the member does not know the request
	Stale                    // what was sent is too old, or from the future
)

func (c RefusalCode) String() string {
	names := [...]string{NotOwner: "not the owner", NotConnected: "not connected", Overloaded: "overloaded", Invalid: "invalid", Leaving: "leaving", Unsupported: "not supported", Stale: "stale"}
	if int(c) < len(names) && c > 0 {
		return names[c]
	}
	return fmt.Sprintf("RefusalCode(%d)", uint8(c))
}

// Error makes a refusal an error, which a Transport's Call returns in place of the answer. The reason is quoted: it is
// the other's text.
func (m Refused) Error() string { return fmt.Sprintf("refused: %s: %q", m.Code, m.Reason) }

// Leave tells neighbours that a member leaves the ring in good order, and who stood beside it.
type Leave struct {
	From         member.Contact
	Predecessors []member.Contact
	Successors   []member.Contact
}
