// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"bytes"
	"cmp"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Interval is the time between two announcements of a relay.
	Interval = 400 * time.Millisecond

	// Lost is how long a relay is counted on after its last announcement: two may be lost
	// on the way, and a third be late.
	Lost = 1500 * time.Millisecond

	// MaxNeighbours is how many other relays a segment may have. One more takes the
	// place of one that is not trusted, or was heard longest ago.
	MaxNeighbours = 64

	// maxLines is how many lines per minute are logged of relays that come and go:
	// anyone on the segment can invent them.
	maxLines = 20
)

// An Election decides whether this relay serves a segment. Of the relays of one
// mesh that hear each other, are ready and trusted, the one with the lowest ID does. A relay
// begins by serving and yields when it hears a better one, so a segment is never
// without; for the moment that it may have two, there is [Copies].
//
// All methods can be called from any goroutine.
type Election struct {
	// Set once by NewElection.
	config ElectionConfig
	log    *slog.Logger

	yield atomic.Int64 // the time until which another relay serves

	mu         sync.Mutex
	ready      bool
	addrs      []netip.AddrPort
	sequence   uint64
	neighbours []Neighbour // in the order of their ID
	serving    bool        // what was logged last
	twin       bool        // that an own ID was heard was logged
	lines      int         // logged of neighbours in the minute …
	minute     int64       // … that began then
}

// ElectionConfig says who takes part in an election.
type ElectionConfig struct {
	Relay MAC     // this relay's ID: the lowest address of its interfaces, the same on all segments
	Mesh  [8]byte // the mesh: relays of others are not elected with
	Token [8]byte // random, for this segment and this run

	// Trust tells whether a relay is who it says: in a mesh with a key, whether a
	// live link to it has confirmed the token. It is called with every announcement and
	// must not call back. By default everyone is trusted.
	Trust func(relay MAC, token [8]byte) bool

	// Log gets a line when the serving relay changes and when a relay comes or
	// goes. The default is slog.Default.
	Log *slog.Logger
}

// A Neighbour is another relay on the segment.
type Neighbour struct {
	Announcement
	MAC     MAC   // the address that its frames come from
	Heard   int64 // when it was heard last
	Ours    bool  // of the same mesh
	Trusted bool
}

// NewElection returns an election in which this relay is not ready yet.
func NewElection(config ElectionConfig) *Election {
	log := config.Log
	if log == nil {
		log = slog.Default()
	}
	return &Election{config: config, log: log, serving: true}
}

// SetReady says whether this relay can serve, and where the mesh finds it. It takes effect
// with the next announcement.
//
// A relay that begins is best not ready for one Interval: it then yields to
// whoever is there already, and the segment never has two; if nobody is, it serves
// all the same. One that is about to leave announces at once that it is not ready:
// the others do not wait then.
func (e *Election) SetReady(ready bool, meshAddrs []netip.AddrPort) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ready, e.addrs = ready, slices.Clone(meshAddrs)
}

// AppendAnnouncement appends the frame to send on the segment every Interval, and
// at once when this relay leaves.
func (e *Election) AppendAnnouncement(b []byte, from MAC, now int64) []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.electLocked(now)
	e.sequence++
	a := Announcement{
		Relay: e.config.Relay, Mesh: e.config.Mesh, Token: e.config.Token, Sequence: e.sequence,
		Ready: e.ready, Serving: e.Serving(now), MeshAddrs: e.addrs,
	}
	return a.Append(b, from)
}

// Heard takes in an announcement. It reports whether the relay was not known, or has changed its
// addresses, so that the mesh can try them.
func (e *Election) Heard(a Announcement, from MAC, now int64) (fresh bool) {
	if a.Relay == e.config.Relay && a.Token == e.config.Token {
		return false // this relay's own, from a loop in the segment
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	n := Neighbour{Announcement: a, MAC: from, Heard: now, Ours: a.Mesh == e.config.Mesh}
	n.Trusted = n.Ours && (e.config.Trust == nil || e.config.Trust(a.Relay, a.Token))
	i := slices.IndexFunc(e.neighbours, func(o Neighbour) bool { return o.Relay == a.Relay && o.MAC == from })
	switch {
	case i < 0:
		if fresh = e.addLocked(n); !fresh {
			return false
		}
	default:
		o := &e.neighbours[i]
		if o.Token == a.Token && a.Sequence <= o.Sequence {
			return false // late, or played back
		}
		if o.Trusted && !n.Trusted && o.Token != a.Token && now-o.Heard < int64(Lost) {
			return false // someone else under its name
		}
		fresh = o.Token != a.Token || !slices.Equal(o.MeshAddrs, a.MeshAddrs)
		*o = n
	}
	if a.Relay == e.config.Relay && n.Ours && !e.twin {
		e.twin = true
		e.log.Warn("another relay has this relay's ID: two segments of this host are joined, or an address is used twice",
			"relay", macString(a.Relay), "address", macString(from))
	}
	e.electLocked(now)
	return fresh
}

// addLocked remembers a relay, if there is room.
func (e *Election) addLocked(n Neighbour) bool {
	if len(e.neighbours) == MaxNeighbours {
		worst := 0
		for i, o := range e.neighbours {
			w := e.neighbours[worst]
			if o.Trusted == w.Trusted && o.Heard < w.Heard || !o.Trusted && w.Trusted {
				worst = i
			}
		}
		if w := e.neighbours[worst]; w.Trusted && !n.Trusted {
			return false
		}
		e.neighbours = slices.Delete(e.neighbours, worst, worst+1)
	}
	at, _ := slices.BinarySearchFunc(e.neighbours, n, compareNeighbours)
	e.neighbours = slices.Insert(e.neighbours, at, n)
	if e.mayLogLocked(n.Heard) {
		e.log.Info("another relay is on the segment", "relay", macString(n.Relay), "address", macString(n.MAC),
			"same_mesh", n.Ours, "trusted", n.Trusted)
	}
	return true
}

// mayLogLocked tells whether there is a line left for a relay that comes or goes.
func (e *Election) mayLogLocked(now int64) bool {
	if now-e.minute >= int64(time.Minute) {
		e.minute, e.lines = now, 0
	}
	e.lines++
	return e.lines <= maxLines
}

// Serving tells whether this relay serves the segment.
func (e *Election) Serving(now int64) bool { return now >= e.yield.Load() }

// Tick forgets who was not heard any more and logs what that changes. Call it
// with every announcement; Serving does not wait for it.
func (e *Election) Tick(now int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.neighbours = slices.DeleteFunc(e.neighbours, func(n Neighbour) bool {
		lost := now-n.Heard >= int64(Lost)
		if lost && e.mayLogLocked(now) {
			e.log.Info("a relay is no longer heard on the segment", "relay", macString(n.Relay), "address", macString(n.MAC))
		}
		return lost
	})
	e.electLocked(now)
}

// electLocked finds out for how long another relay serves.
func (e *Election) electLocked(now int64) {
	var until int64
	var by Neighbour
	for _, n := range e.neighbours {
		better := cmp.Or(bytes.Compare(n.Relay[:], e.config.Relay[:]), bytes.Compare(n.Token[:], e.config.Token[:])) < 0
		// Whoever is not ready itself yields to anyone who is.
		if end := n.Heard + int64(Lost); n.Trusted && n.Ready && (better || !e.ready) && end > until {
			until, by = end, n
		}
	}
	e.yield.Store(until)
	if serving := now >= until; serving != e.serving {
		e.serving = serving
		if serving {
			e.log.Info("this relay serves the segment")
		} else {
			e.log.Info("another relay serves the segment", "relay", macString(by.Relay))
		}
	}
}

// Neighbours returns the other relays on the segment, in the order of their ID;
// for [Copies.SetNeighbours] too.
func (e *Election) Neighbours(now int64) []Neighbour {
	e.mu.Lock()
	defer e.mu.Unlock()
	var live []Neighbour
	for _, n := range e.neighbours {
		if now-n.Heard < int64(Lost) {
			live = append(live, n)
		}
	}
	return live
}

func compareNeighbours(a, b Neighbour) int {
	return cmp.Or(bytes.Compare(a.Relay[:], b.Relay[:]), bytes.Compare(a.MAC[:], b.MAC[:]))
}

func macString(m MAC) string { return net.HardwareAddr(m[:]).String() }
