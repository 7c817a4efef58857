// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/nat"
	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/trust"
)

// DefaultPort is the port that peers listen on when none is given, as Cicada's do.
const DefaultPort = 49610

// MaxMessage is the size of the largest message and broadcast, in bytes.
const MaxMessage = 16<<20 - 1024

// Options say what kind of peer to make. The zero value is a peer of an open swarm.
type Options struct {
	// Identity is the peer's key pair. Nil: a new one, for as long as the peer lives.
	Identity *member.Identity

	// Binding is what IDs are taken from, the same in the whole swarm: addresses in an open swarm (the default), keys
	// in a secure one.
	Binding member.Binding

	// SwarmKeys close the swarm: only peers with one of these keys get in. The first is used, all are accepted, so that
	// keys can be changed peer by peer.
	SwarmKeys member.SwarmKeys

	// Originals says whether Cicada's peers are let in. They know neither keys nor encryption.
	Originals OriginalsPolicy

	// Name is published in the swarm, so that others can send to it: see ToName. Optional.
	Name string

	// External is the address that the peer is known by, where that is not the one it binds to: a port forwarded by
	// hand. PortMapping sets it by itself.
	External netip.AddrPort

	// PortMapping asks the router for a way in, by MappingMethod: by default any that the router knows.
	PortMapping   bool
	MappingMethod nat.Method

	// MappingLifetime is asked of the router; the mapping is renewed at half of what was granted. Default 1 hour.
	MappingLifetime time.Duration

	// Bootstrap are addresses of peers that are always worth asking, host:port: the peer comes back through them when
	// all whom it knew are gone, and rings that have split find each other there. Those given to Connect are added.
	Bootstrap []string

	// Trust has the keys shared with single members, for messages that are sealed from end to end. Optional.
	Trust *trust.Table

	// NoForwarding refuses to carry circuits for others.
	NoForwarding bool

	// Unreachable makes the peer a leaf without asking others, Reachable a member of the ring. By default others find out.
	Unreachable, Reachable bool

	// QueueLength is how many messages wait for Recv, at most; above it senders are told ErrQueueFull, and broadcasts
	// are dropped and counted. Default 65,536. QueueBytes bounds their sizes; default 64 MiB.
	QueueLength, QueueBytes int

	// Hooks are told what happens.
	Hooks Hooks

	// Logger is where the peer logs. Nil: nowhere.
	Logger *slog.Logger
}

// An OriginalsPolicy says whether Cicada's peers are let into the swarm.
type OriginalsPolicy uint8

const (
	// OriginalsByBinding lets originals into an open swarm without swarm keys, and nowhere else.
	OriginalsByBinding OriginalsPolicy = iota
	// OriginalsAllowed lets them in.
	OriginalsAllowed
	// OriginalsRefused keeps them out.
	OriginalsRefused
)

func (o Options) originals() bool {
	switch o.Originals {
	case OriginalsAllowed:
		return true
	case OriginalsRefused:
		return false
	default:
		return o.Binding == member.ByAddress && len(o.SwarmKeys) == 0
	}
}

// Hooks are called as things happen, from the goroutine that does them: they have to be quick, and must not call the
// peer. Any may be nil.
type Hooks struct {
	// Send is called with every message written to another member: ring, data, broadcast. The bytes are valid during
	// the call.
	Send func(to Member, message []byte)
	// Recv is called with every application message as it arrives, before it waits for Recv.
	Recv func(m Message)
	// NewPeer is called once when a link to a member is up that there was none to.
	NewPeer func(m Member)
	// Conflict is called when copies of one message that came by different ways differ, or different members claim one
	// ID: somebody on the way lies.
	Conflict func(c Conflict)
	// Mapping is called when the router's port mapping comes, changes, is renewed or goes.
	Mapping func(e nat.Event)
}

// A Conflict tells what did not agree.
type Conflict struct {
	Kind    string // "message", "broadcast", "owner" or "name"
	Subject Hash   // the sender, the origin, the key looked up, or the place of the name
	Between []Hash // the members that disagree, as far as known
}

// A Member is another peer, as seen from this one.
type Member struct {
	ID       Hash
	Addr     netip.AddrPort // the address it is known by; invalid if it has none
	Key      []byte         // Ed25519 public key; nil for originals
	Original bool           // one of Cicada's peers
	Leaf     bool           // cannot be reached from outside: takes no place on the ring
}

func (m Member) String() string { return memberContact(m).String() }

func memberOf(c member.Contact) Member {
	return Member{ID: c.ID, Addr: c.Addr(), Key: c.Key, Original: c.Dialect == member.Original, Leaf: c.Leaf}
}

func memberContact(m Member) member.Contact {
	c := member.Contact{ID: m.ID, Key: m.Key, Leaf: m.Leaf}
	if m.Addr.IsValid() {
		c.Addrs = []netip.AddrPort{m.Addr}
	}
	return c
}

// A Message is what Recv returns.
type Message struct {
	From      Member
	Data      []byte
	Broadcast bool
	Sealed    bool // was sealed from end to end with a key of Options.Trust
	Time      time.Time
}
