// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"slices"
	"time"

	"github.com/seed5728abee/fathom/relay/drop"
)

// DefaultStorm is how often per second the same datagram may show up on a
// segment before it is taken for a storm.
const DefaultStorm = 200

const (
	// lifetime is for how many milliseconds a datagram is remembered after it was
	// there last. All its counts are forgotten together: if the segment's could go
	// before a source's, or after it, the next repeat would arrive twice or never.
	lifetime = 1000

	// A host that is taken for a relay is not served, so one coincidence does not
	// do: only who is accused again, for another datagram, is a relay.
	suspicion  = 10 * time.Second
	conviction = 5 * time.Minute

	maxRelays = 64
)

// LocalSource numbers the segment of this process that a datagram comes from,
// for [Copies.Received]; peers of the mesh have numbers below 1<<31.
func LocalSource(segment int) uint32 { return 1<<31 | uint32(segment) }

// Copies keeps the accounts of one segment: how often each datagram of the last
// second was there, and how often each source has sent it. It is for a relay
// that serves its segment; one that stands by calls neither Captured nor Received, so
// that all accounts begin at nought when it takes over.
//
// Its size follows the traffic, from 160 kB to 1.3 MB. Beyond that (some 25,000 different
// datagrams per second) the oldest are forgotten early.
//
// The zero value is ready, without a limit for storms. It is for one goroutine at a
// time: the caller has a lock, which it takes once for a batch.
type Copies struct {
	limit  uint32
	table  table
	births uint16

	own     []MAC
	relays  []MAC              // that are known
	honest  []MAC              // of ours, that say themselves when they serve
	learned [maxRelays]suspect // that were found out
	nlearn  int                // how many of them
	used    uint64             // how often the table was used since the last Tick
	idle    int64              // since when it has been far too large; 0 when it is not
}

// A suspect is an address that repeats what others have sent.
type suspect struct {
	mac   MAC
	birth uint16 // of the datagram for which it was accused first
	until int64
}

// SetStorm sets how often per second the same datagram may show up on the segment,
// at most 65534; 0 is without limit. Beyond it nothing of it is relayed until a second
// has passed with fewer.
func (c *Copies) SetStorm(limit int) { c.limit = uint32(max(0, min(limit, 1<<16-2))) }

// SetOwn sets the addresses of the interfaces of this host.
func (c *Copies) SetOwn(own []MAC) { c.own = append(c.own[:0], own...) }

// SetNeighbours says who else on the segment is a relay: those that an [Election]
// hears, and the addresses of peers of another kind that are neighbours there.
// What comes from a relay that serves is never relayed again. What comes from one of ours that
// stands by is its host's own, and relayed as that of any host.
func (c *Copies) SetNeighbours(ours []Neighbour, others []MAC) {
	c.relays = append(c.relays[:0], others...)
	c.honest = c.honest[:0]
	for _, n := range ours {
		if !n.Trusted {
			continue
		}
		c.honest = append(c.honest, n.MAC)
		if n.Serving {
			c.relays = append(c.relays, n.MAC)
		}
		for i := range c.learned[:c.nlearn] {
			if c.learned[i].mac == n.MAC {
				c.learned[i].until = 0
			}
		}
	}
}

// Captured takes down that a datagram was seen on the segment, in a frame from a
// host on it or, outgoing, of this host. It is to be relayed when the result is
// [drop.None]; otherwise it is one of
//
//   - [drop.Echo]: a frame from one of this host's addresses came in from outside,
//     as it does when two of its segments are joined,
//   - [drop.Rebroadcast]: it comes from a relay, or may come from one,
//   - [drop.Storm]: the segment has had it too often within a second.
func (c *Copies) Captured(k Key, from MAC, outgoing bool, now int64) drop.Reason {
	e := c.segment(k, ticks(now))
	e.present()
	own := slices.Contains(c.own, from)
	switch {
	case own && !outgoing:
		return drop.Echo
	case !own && e.flags&owned != 0 && e.owner != from:
		c.accuse(k, e.birth, from, now)
		return drop.Rebroadcast
	case !own && c.relay(from, now):
		return drop.Rebroadcast
	}
	e.owner, e.flags = from, e.flags|owned|seen
	switch {
	case c.storm(e):
		return drop.Storm
	case !own && e.flags&(contested|contestedBefore) != 0:
		// Either this owner is a relay that was faster than the peer who named another one,
		// or that peer has taken a relay on its own segment for the owner: from here the two
		// look alike. To relay a relay makes a loop; to be silent for a second or two
		// loses repeats at most, for the first one was relayed.
		return drop.Rebroadcast
	}
	return drop.None
}

// Received takes down that a source, a peer of the mesh or another segment of this process
// ([LocalSource]), has sent a datagram that is to be emitted on this segment;
// inner is the Ethernet source that came with it. It is to be emitted, and is
// counted as there, when the result is [drop.None]; otherwise it is one of
//
//   - [drop.Echo]: this host has sent it itself,
//   - [drop.Copy]: the segment has had at least as many as this source has sent,
//   - [drop.Storm]: the segment has had it too often within a second.
func (c *Copies) Received(k Key, inner MAC, source uint32, now int64) drop.Reason {
	local := source>>31 != 0
	if !local && slices.Contains(c.own, inner) {
		return drop.Echo
	}
	tick := ticks(now)
	e := c.segment(k, tick)
	switch {
	case e.flags&owned != 0 && e.owner == inner, c.relay(inner, now):
	case e.flags&owned == 0:
		e.owner, e.flags = inner, e.flags|owned
	case e.flags&seen != 0:
		e.flags |= contested
	}
	if e.flags&sourced == 0 {
		e.source, e.flags = source, e.flags|sourced
	}
	came := &e.came
	if e.source != source {
		e, came = c.child(e, k.of(source), tick)
	}
	*came = max(min(*came, e.count), e.settled()) + 1
	if *came <= e.count {
		return drop.Copy
	}
	e.present()
	if c.storm(e) {
		return drop.Storm
	}
	return drop.None
}

// Tick gives memory back after a minute with little to remember. Call it every
// few seconds.
func (c *Copies) Tick(now int64) {
	used := c.used
	c.used = 0
	switch {
	case len(c.table.entries) <= minEntries || used > uint64(len(c.table.entries)/16):
		c.idle = 0
	case c.idle == 0:
		c.idle = now
	case now-c.idle >= int64(time.Minute):
		c.table.resize(minEntries, ticks(now))
		c.idle = 0
	}
}

// Memory is how many bytes the accounts take.
func (c *Copies) Memory() int { return len(c.table.entries) * entrySize }

// segment returns what is known of a datagram.
func (c *Copies) segment(k Key, tick uint32) *entry {
	c.used++
	e, found := c.place(k, 0, tick)
	if !found || !e.alive(tick) {
		c.births++
		*e = entry{key: k, birth: c.births, second: uint16(tick)}
	}
	e.touch(tick)
	return e
}

// child returns e, which may have moved, and how often it came from the source
// with key k.
func (c *Copies) child(e *entry, k Key, tick uint32) (moved *entry, came *uint32) {
	key, birth := e.key, e.birth
	s, found := c.place(k, key, tick)
	if !found || s.birth != birth {
		*s = entry{key: k, birth: birth}
	}
	s.last = tick
	e, _ = c.table.at(key, 0, tick)
	return e, &s.count
}

// place finds a key or a place for it, and makes the table larger when that place
// is still in use.
func (c *Copies) place(key, keep Key, tick uint32) (e *entry, found bool) {
	if len(c.table.entries) == 0 {
		c.table.resize(minEntries, tick)
	}
	e, found = c.table.at(key, keep, tick)
	if !found && e.alive(tick) && len(c.table.entries) < maxEntries {
		c.table.resize(2*len(c.table.entries), tick)
		e, found = c.table.at(key, keep, tick)
	}
	return e, found
}

func (c *Copies) storm(e *entry) bool {
	return c.limit > 0 && (uint32(e.now) > c.limit || uint32(e.before) > c.limit)
}

// relay tells whether an address is a relay's.
func (c *Copies) relay(mac MAC, now int64) bool {
	if slices.Contains(c.relays, mac) {
		return true
	}
	for i := range c.learned[:c.nlearn] {
		if s := &c.learned[i]; s.mac == mac {
			return s.until > now
		}
	}
	return false
}

// accuse remembers an address as a relay's, because it has repeated the datagram
// k of another.
func (c *Copies) accuse(k Key, birth uint16, mac MAC, now int64) {
	// Two hosts without an address yet may well say the same.
	if k&anonymous != 0 || slices.Contains(c.relays, mac) || slices.Contains(c.honest, mac) {
		return
	}
	oldest := 0
	for i := range c.learned[:c.nlearn] {
		s := &c.learned[i]
		switch {
		case s.mac != mac:
			if s.until < c.learned[oldest].until {
				oldest = i
			}
		case s.until <= now:
			*s = suspect{mac, birth, now + int64(suspicion)}
			return
		case s.birth != birth:
			s.until = now + int64(conviction)
			return
		default:
			return
		}
	}
	if c.nlearn < maxRelays {
		oldest = c.nlearn
		c.nlearn++
	}
	c.learned[oldest] = suspect{mac, birth, now + int64(suspicion)}
}

func ticks(now int64) uint32 { return uint32(now / int64(time.Millisecond)) }
