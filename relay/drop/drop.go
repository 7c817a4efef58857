// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package drop

import (
	"fmt"
	"slices"
	"sync/atomic"
)

// A Reason says why something was dropped.
type Reason uint8

// The reasons, in the order in which something on its way meets them.
const (
	None Reason = iota // carry on

	// What a frame or an IP packet is.

	NotBroadcast // to one host, by its Ethernet or its IP address
	Tagged       // with a VLAN tag: another segment's
	Truncated    // shorter than its headers say
	Malformed    // headers that contradict themselves or each other
	BadChecksum  // damaged on its way
	NotUDP       // another protocol over IP
	Port         // to a port that is not relayed
	Destination  // to an address that is not a broadcast address of the segment, nor a group that is relayed
	BadSource    // from an address that nothing can be sent from: broadcast, group, loopback, class E
	Filtered     // from an address that the allow and deny lists keep out
	Incomplete   // a fragment whose others did not come in time
	Overlapping  // a fragment that contradicts another one
	Overflow     // a fragment, or a part, for which there was no room any more
	Invalid      // not a message of the protocol that the port is for

	// What a relay has done before.

	Echo        // put on its way by this relay itself
	Rebroadcast // put on the segment by another relay
	Copy        // the segment has had it
	Storm       // the same datagram over and over
	Rate        // more per second than allowed
	Standby     // another relay serves the segment
	ReadOnly    // this relay only listens, to its segment or to the mesh

	// What a datagram of the mesh is.

	Unframed        // neither an SS datagram nor one of ours
	OpenRefused     // in clear, to a relay that has a key
	Unauthenticated // not sealed with a key that is known
	UnknownPeer     // from an address that is not a peer's, where only peers are heard
	Replayed        // received before, or too old to tell

	// What became of it at the end.

	TooLong     // longer than can be sent
	NoInterface // the interface is down, or not there
	SendError   // refused by the system
	QueueFull   // arrived faster than it could be worked off

	count
)

// Count is the number of reasons, None included.
const Count = int(count)

var names = [Count]string{
	None: "none", NotBroadcast: "not-broadcast", Tagged: "tagged", Truncated: "truncated", Malformed: "malformed",
	BadChecksum: "bad-checksum", NotUDP: "not-udp", Port: "port", Destination: "destination", BadSource: "bad-source",
	Filtered: "filtered", Incomplete: "incomplete", Overlapping: "overlapping", Overflow: "overflow", Invalid: "invalid",
	Echo: "echo", Rebroadcast: "rebroadcast", Copy: "copy", Storm: "storm", Rate: "rate", Standby: "standby",
	ReadOnly: "read-only", Unframed: "unframed", OpenRefused: "open-refused", Unauthenticated: "unauthenticated",
	UnknownPeer: "unknown-peer", Replayed: "replayed", TooLong: "too-long", NoInterface: "no-interface",
	SendError: "send-error", QueueFull: "queue-full",
}

// meanings say what is behind a reason, to those who run a relay.
var meanings = [Count]string{
	None:            "carried on",
	NotBroadcast:    "sent to one host, not to all",
	Tagged:          "has a VLAN tag: belongs to another segment",
	Truncated:       "shorter than its headers say",
	Malformed:       "headers that contradict each other",
	BadChecksum:     "damaged on its way to the relay",
	NotUDP:          "another protocol than UDP",
	Port:            "to a UDP port that is not relayed",
	Destination:     "to an address that is not a broadcast address of the segment, nor a relayed group",
	BadSource:       "from an address that no host can have",
	Filtered:        "from a network that --allow-source and --deny-source keep out",
	Incomplete:      "fragments or parts of a large broadcast did not all come in time",
	Overlapping:     "fragments that contradict each other",
	Overflow:        "more large broadcasts at a time than there is room for",
	Invalid:         "no message of the port's protocol (--validate)",
	Echo:            "put on the segment, or sent, by this relay itself",
	Rebroadcast:     "put on the segment by another relay",
	Copy:            "the segment has had it already",
	Storm:           "the same broadcast over and over (--repeat-rate)",
	Rate:            "more per second than --source-rate or --segment-rate allow",
	Standby:         "another relay serves the segment",
	ReadOnly:        "this relay carries broadcasts one way only (--read-only, --emit-only)",
	Unframed:        "not of a relay",
	OpenRefused:     "in clear, to a relay with a key",
	Unauthenticated: "not sealed with a key that is known",
	UnknownPeer:     "from an address that is not a peer's (--only-peers)",
	Replayed:        "received before, or too old to tell",
	TooLong:         "longer than can be sent",
	NoInterface:     "the interface is down or missing",
	SendError:       "the system refused to send it",
	QueueFull:       "came faster than it could be worked off",
}

// Meaning says in a few words what is behind the reason.
func (r Reason) Meaning() string {
	if int(r) < Count {
		return meanings[r]
	}
	return ""
}

// Find returns the reason with a name, as [Reason.String] gives it.
func Find(name string) (r Reason, ok bool) {
	i := slices.Index(names[:], name)
	return Reason(max(i, 0)), i >= 0
}

// String is the reason's name in metrics and JSON.
func (r Reason) String() string {
	if int(r) < Count {
		return names[r]
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// Error is "dropped: " with the reason's name.
func (r Reason) Error() string { return "dropped: " + r.String() }

// Reasons returns all reasons but None.
func Reasons() []Reason {
	all := make([]Reason, 0, Count-1)
	for r := None + 1; r < count; r++ {
		all = append(all, r)
	}
	return all
}

// Counters count by reason. The zero value is ready; all methods can be called
// from any goroutine.
type Counters struct{ n [Count]atomic.Uint64 }

// Add counts n more for a reason.
func (c *Counters) Add(r Reason, n uint64) { c.n[r].Add(n) }

// Get returns what was counted for a reason.
func (c *Counters) Get(r Reason) uint64 { return c.n[r].Load() }

// Map returns what was counted, without the reasons that did not occur.
func (c *Counters) Map() map[string]uint64 {
	m := make(map[string]uint64)
	for _, r := range Reasons() {
		if n := c.Get(r); n > 0 {
			m[r.String()] = n
		}
	}
	return m
}
