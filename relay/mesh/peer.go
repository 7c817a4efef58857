// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"net/netip"
	"time"
)

// Kind is what a peer has shown itself to be.
type Kind uint8

// The kinds of peers.
const (
	Unknown  Kind = iota // has not shown what it is
	Ours                 // has answered a hello, or completed a handshake
	Original             // has sent SS datagrams and never answered a hello
	Self                 // is an address of this relay: nothing but a probe now and then is sent there
)

var kindNames = [...]string{Unknown: "unknown", Ours: "ours", Original: "original", Self: "self"}

// String is the kind's name.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// MarshalText gives the kind's name.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads the kind's name.
func (k *Kind) UnmarshalText(b []byte) error {
	for i, name := range kindNames {
		if name == string(b) {
			*k = Kind(i)
			return nil
		}
	}
	return fmt.Errorf("mesh: no kind of peer is called %q", b)
}

// State is whether a peer answers.
type State uint8

// The states of peers.
const (
	Connecting State = iota // has not answered yet; a relay of the origin never does
	Up                      // answers
	Down                    // has answered, and does no longer
)

var stateNames = [...]string{Connecting: "connecting", Up: "up", Down: "down"}

// String is the state's name.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// MarshalText gives the state's name.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the state's name.
func (s *State) UnmarshalText(b []byte) error {
	for i, name := range stateNames {
		if name == string(b) {
			*s = State(i)
			return nil
		}
	}
	return fmt.Errorf("mesh: no state of a peer is called %q", b)
}

// Traffic counts what went one way between this relay and a peer.
type Traffic struct {
	Datagrams  uint64 `json:"datagrams"`
	Broadcasts uint64 `json:"broadcasts"`
	Bytes      uint64 `json:"bytes"` // UDP payload
}

// PeerStatus is what is known of a peer.
type PeerStatus struct {
	Number  uint32         `json:"number"` // as in [Incoming]
	Address netip.AddrPort `json:"address"`
	Name    string         `json:"name,omitempty"` // from its certificate
	ID      string         `json:"id,omitempty"`   // its relay ID, in hex with colons
	Version string         `json:"version,omitempty"`
	Kind    Kind           `json:"kind"`
	State   State          `json:"state"`
	Sealed  bool           `json:"sealed"` // what is said to it now is encrypted
	// Origin says how it became a peer: configured, neighbour (heard on a segment), learned (it
	// authenticated itself), heard (in clear, not a peer), joined by "+".
	Origin string `json:"origin"`
	// Through is another address of the same relay, which is used instead of this one.
	Through   netip.AddrPort `json:"through,omitzero"`
	RTT       time.Duration  `json:"rtt_ns,omitempty"`      // smoothed: 7/8 old, 1/8 new (RFC 6298)
	LastRTT   time.Duration  `json:"last_rtt_ns,omitempty"` // of the last hello
	LastHeard time.Time      `json:"last_heard,omitzero"`
	Sent      Traffic        `json:"sent"`
	Received  Traffic        `json:"received"`
	// QueueDrops are broadcasts that found no session and no room to wait for one, or waited too long.
	QueueDrops uint64 `json:"queue_drops"`
	// PartDrops are large broadcasts of which not all parts came in time.
	PartDrops uint64 `json:"part_drops"`
}

// origin is how a peer came to be one.
type origin uint8

const (
	configured origin = 1 << iota
	neighbour
	learned
)

func (o origin) String() string {
	s := ""
	for i, name := range [...]string{"configured", "neighbour", "learned"} {
		if o&(1<<i) != 0 {
			if s != "" {
				s += "+"
			}
			s += name
		}
	}
	return s
}

// Liveness.
const (
	helloInterval = time.Second
	// missedHellos is after how many hellos without an answer a peer counts as down.
	missedHellos = 3
	// A peer that has not shown itself to be ours gets at most three probes a second
	// (docs/compatibility.md): the first few quickly, then seldom.
	probeInterval   = 400 * time.Millisecond
	quickProbes     = 5
	patientInterval = 10 * time.Second
	// neighbourTime is for how long a neighbour stays a peer after it was heard last.
	neighbourTime = 10 * time.Second
	// learnedTime is for how long a peer that was learned stays one when it does not answer.
	learnedTime = time.Minute
)

// sentHello is a hello that may still be answered.
type sentHello struct {
	token uint64
	at    time.Time
}

// peer is one address of a relay.
type peer struct {
	number uint32 // of the relay: shared by its addresses
	addr   netip.AddrPort
	origin origin

	kind     Kind
	state    State
	id       [6]byte
	instance [8]byte // zero until it has shown itself
	version  string
	name     string
	segments [][8]byte
	shown    bool // has authenticated itself: never again is anything said to it in clear

	neighbourUntil time.Time
	downSince      time.Time
	lastHeard      time.Time

	next       time.Time // when Tick has something to do for it
	helloNext  time.Time
	helloLast  time.Time
	probes     int // sent since it is not up
	unanswered int // hellos
	hellos     [4]sentHello
	helloTurn  int
	answers    limit // hellos of its
	handshakes limit
	rtt        time.Duration
	lastRTT    time.Duration

	sent, received        Traffic
	queueDrops, partDrops uint64

	parts     assemblies
	frameTurn uint32 // counts frames sent in parts

	link link
}

// ours tells whether what SS cannot carry can be sent to the peer.
func (p *peer) ours() bool { return p.kind == Ours && p.state == Up }

// smooth adds a measured round trip.
func (p *peer) smooth(d time.Duration) {
	p.lastRTT = d
	if p.rtt == 0 {
		p.rtt = d
	} else {
		p.rtt += (d - p.rtt) / 8
	}
}
