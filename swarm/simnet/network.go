// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package simnet

import (
	"cmp"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// Options say what a network is like. The zero value is a continent: members scattered over a plane, 1 to 20 ms apart,
// nothing lost.
type Options struct {
	// Seed determines places, jitter and losses. Members that act at the same instant still do so in any order.
	Seed uint64

	// Near and Far are the one-way delays between members at the same place and at opposite corners of the plane.
	// 0 of Far: 20 ms, and 1 ms of Near.
	Near, Far time.Duration

	// Delay, when set, is the one-way delay in place of the one by distance.
	Delay func(from, to member.ID) time.Duration

	// Jitter is the share by which a delay varies, up and down. Messages of one member to another keep their order.
	Jitter float64

	// Handshake is how many round trips it takes to set up a link, which the first message to a member waits for; both
	// sides know the round trip from then on. 0: 2, one for TCP and one to agree on keys; below 0: none.
	Handshake int

	// Loss is the share of messages that vanish. Links are TCP connections, on which that is a stall: a lost request
	// or answer makes a call time out, and no more.
	Loss float64

	// Handlers is how many requests a member works on at a time; more are refused as overloaded. 0: 4096.
	Handlers int
}

// A Network carries messages between the members attached to it. It is safe for concurrent use.
type Network struct {
	o Options

	mu      sync.RWMutex
	random  *rand.Rand
	places  *rand.Rand
	byID    map[member.ID]*Port
	byAddr  map[netip.AddrPort]*Port
	ports   []*Port // by index
	divided bool

	handlers sync.WaitGroup

	messages [256]atomic.Uint64
	bytes    [256]atomic.Uint64
	lost     atomic.Uint64
	refused  atomic.Uint64
	timeouts atomic.Uint64
}

// New returns a network without members.
func New(o Options) *Network {
	if o.Far == 0 {
		o.Near, o.Far = time.Millisecond, 20*time.Millisecond
	}
	o.Handlers = cmp.Or(o.Handlers, 4096)
	o.Handshake = max(0, cmp.Or(o.Handshake, 2))
	return &Network{
		o:      o,
		random: rand.New(rand.NewPCG(o.Seed, 1)), //nolint:gosec // a simulation, which has to be repeatable
		places: rand.New(rand.NewPCG(o.Seed, 2)), //nolint:gosec // as above
		byID:   map[member.ID]*Port{},
		byAddr: map[netip.AddrPort]*Port{},
	}
}

// Contact returns the contact of the i-th member of a swarm that takes IDs from addresses, an example address of its
// own for each of the first 15 million.
func Contact(i int) member.Contact {
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i%250)}), uint16(1024+i/250))
	return member.Contact{ID: member.OfAddr(addr), Dialect: member.Native, Addrs: []netip.AddrPort{addr}}
}

// Attach connects a member. Its contact's addresses and ID are where others reach it, but for a Leaf: nobody reaches
// that but by the links that it made itself, or through one of its hosts. handler takes its messages and may be nil
// until [Port.Serve]; if it has a method Suspect(member.ID), as a ring's node does, that is told of broken links.
// A member that was attached before with the same ID is replaced.
func (n *Network) Attach(c member.Contact, handler wire.Handler) *Port {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := &Port{
		net: n, contact: c, index: uint32(len(n.ports)),
		x: n.places.Float64(), y: n.places.Float64(),
		links: map[uint32]*link{}, pending: map[*call]struct{}{},
	}
	p.life.Store(newLife())
	n.ports = append(n.ports, p)
	n.byID[c.ID] = p
	if !c.Leaf {
		for _, a := range c.Addrs {
			n.byAddr[a] = p
		}
	}
	if handler != nil {
		p.Serve(handler)
	}
	return p
}

// Kill makes a member vanish: nothing tells others that it is gone but its silence.
func (n *Network) Kill(id member.ID) { n.set(id, silent) }

// Crash ends a member as the end of its process does: its connections break, which the others learn as soon as the
// news can travel, and new ones are refused.
func (n *Network) Crash(id member.ID) {
	p := n.set(id, crashed)
	if p == nil {
		return
	}
	p.mu.Lock()
	pending, links := p.pending, p.links
	p.pending, p.links = map[*call]struct{}{}, map[uint32]*link{}
	p.mu.Unlock()
	for c := range pending {
		time.AfterFunc(n.delay(p, c.from), func() { c.finish(answer{err: errBroken}) })
	}
	for _, i := range sortedKeys(links) {
		other := n.at(i)
		time.AfterFunc(n.delay(p, other), func() { other.broken(p) })
	}
}

// Revive lets a member that was killed or crashed be reached again.
func (n *Network) Revive(id member.ID) { n.set(id, alive) }

// Alive reports whether a member is attached and neither killed nor crashed.
func (n *Network) Alive(id member.ID) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	p := n.byID[id]
	return p != nil && p.state.Load() == alive
}

func (n *Network) set(id member.ID, state int32) *Port {
	n.mu.RLock()
	defer n.mu.RUnlock()
	p := n.byID[id]
	if p == nil || p.state.Swap(state) == state {
		return p
	}
	if state == alive {
		p.life.Store(newLife())
	} else {
		p.life.Load().end()
	}
	return p
}

// Close kills every member, and waits until none is at work on a request. The handlers have to end with their context.
func (n *Network) Close() {
	n.mu.RLock()
	ports := slices.Clone(n.ports)
	n.mu.RUnlock()
	for _, p := range ports {
		n.set(p.contact.ID, silent)
	}
	n.handlers.Wait()
}

// Partition splits the network: members of different groups hear nothing of each other, silently. Members in no group
// are one more group together.
func (n *Network) Partition(groups ...[]member.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.ports {
		p.group = 0
	}
	for i, group := range groups {
		for _, id := range group {
			if p := n.byID[id]; p != nil {
				p.group = i + 1
			}
		}
	}
	n.divided = len(groups) > 0
}

// Heal ends the partition.
func (n *Network) Heal() { n.Partition() }

// RTT returns the round trip between two members, without jitter, and 0 if one is not attached.
func (n *Network) RTT(a, b member.ID) time.Duration {
	n.mu.RLock()
	p, q := n.byID[a], n.byID[b]
	n.mu.RUnlock()
	if p == nil || q == nil {
		return 0
	}
	return n.base(p, q) + n.base(q, p)
}

func (n *Network) at(i uint32) *Port {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.ports[i]
}

// base is the one-way delay without jitter.
func (n *Network) base(from, to *Port) time.Duration {
	if n.o.Delay != nil {
		return n.o.Delay(from.contact.ID, to.contact.ID)
	}
	share := math.Hypot(from.x-to.x, from.y-to.y) / math.Sqrt2
	return n.o.Near + time.Duration(share*float64(n.o.Far-n.o.Near))
}

func (n *Network) delay(from, to *Port) time.Duration {
	d := n.base(from, to)
	if n.o.Jitter == 0 {
		return d
	}
	return d + time.Duration((2*n.chance()-1)*n.o.Jitter*float64(d))
}

func (n *Network) chance() float64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.random.Float64()
}

// passes decides whether a message that is sent now arrives.
func (n *Network) passes(from, to *Port) bool {
	n.mu.RLock()
	cut := n.divided && from.group != to.group
	n.mu.RUnlock()
	if cut || from.state.Load() != alive || to.state.Load() == silent || n.o.Loss > 0 && n.chance() < n.o.Loss {
		n.lost.Add(1)
		return false
	}
	return true
}

// find returns the member that a contact leads to, and for a leaf that the caller has no link with, the host to go
// through.
func (n *Network) find(from *Port, to member.Contact) (target, through *Port) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	target = n.byID[to.ID]
	if target == nil && to.ID == (member.ID{}) {
		target = n.byAddr[to.Addr()]
	}
	if target == nil || !target.contact.Leaf || target.linked(from) {
		return target, nil
	}
	for _, h := range to.Hosts {
		host := n.byID[h.ID]
		if host != nil && host.state.Load() == alive && target.linked(host) && (!n.divided || host.group == from.group) {
			return target, host
		}
	}
	return nil, nil
}

// Stats counts what a network carried since it was made.
type Stats struct {
	Messages uint64 // sent: requests, answers and casts
	Bytes    uint64 // of these, as encoded
	Lost     uint64 // sent to the silent and across partitions, and by chance
	Refused  uint64 // calls to members that had crashed, were never there, or cannot be reached
	Timeouts uint64 // calls without an answer
	ByKind   map[wire.Kind]Count
}

// A Count is of the messages of one kind.
type Count struct{ Messages, Bytes uint64 }

// Stats returns the counters.
func (n *Network) Stats() Stats {
	s := Stats{Lost: n.lost.Load(), Refused: n.refused.Load(), Timeouts: n.timeouts.Load(), ByKind: map[wire.Kind]Count{}}
	for k := range n.messages {
		c := Count{n.messages[k].Load(), n.bytes[k].Load()}
		if c.Messages > 0 {
			s.ByKind[wire.Kind(k)] = c
			s.Messages += c.Messages
			s.Bytes += c.Bytes
		}
	}
	return s
}

// Sub returns what was counted since an earlier snapshot.
func (s Stats) Sub(before Stats) Stats {
	d := Stats{
		Messages: s.Messages - before.Messages, Bytes: s.Bytes - before.Bytes, Lost: s.Lost - before.Lost,
		Refused: s.Refused - before.Refused, Timeouts: s.Timeouts - before.Timeouts, ByKind: map[wire.Kind]Count{},
	}
	for k, c := range s.ByKind {
		b := before.ByKind[k]
		if c.Messages > b.Messages {
			d.ByKind[k] = Count{c.Messages - b.Messages, c.Bytes - b.Bytes}
		}
	}
	return d
}

func sortedKeys[V any](m map[uint32]V) []uint32 {
	keys := make([]uint32, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
