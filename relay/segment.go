// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/relay/datagram"
	"github.com/seed5728abee/fathom/relay/guard"
)

// lookInterval is how often a segment looks at what it has counted, and lets go of what it waited for in vain.
const lookInterval = time.Second

// newSegment makes the segment behind an interface. Nothing is known of that yet: see set.
func newSegment(e *engine, name string, number uint32) (*segment, error) {
	s := &segment{engine: e, name: name, number: number, problem: "not looked at yet"}
	s.copies.SetStorm(e.opts.RepeatRate)
	rates := guard.Rates{SourcePackets: e.opts.SourceRate, TotalPackets: e.opts.SegmentRate}
	s.limiter, s.inbound = guard.NewLimiter(rates), guard.NewLimiter(rates)
	_, _ = rand.Read(s.token[:]) // it never fails
	s.election = guard.NewElection(guard.ElectionConfig{
		Relay: e.id, Mesh: e.mesh.MeshID(), Token: s.token, Trust: e.trust(), Log: e.log.With("interface", name),
	})
	var err error
	if s.policy, err = datagram.NewPolicy(e.opts.policy(nil, nil)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOptions, err)
	}
	return s, nil
}

// addSegments makes segments part of the engine, all of them at once and before it works.
func (e *engine) addSegments(segments ...*segment) {
	e.segments = segments
	var tokens [][8]byte
	for _, s := range segments {
		tokens = append(tokens, s.token)
	}
	e.mesh.SetSegments(tokens)
}

// link is what a segment needs to know of its interface.
type link struct {
	mac      datagram.MAC
	mtu      int
	prefixes []netip.Prefix
	// broadcasts are its directed broadcast addresses, as far as they are not the last of a prefix.
	broadcasts []netip.Addr
	// unmarked tells that what this relay emits cannot be told from what the host's applications send.
	unmarked bool
}

// set notes what the interface is like now. The segment is up if there is no problem.
func (s *segment) set(l link, problem string) {
	e := s.engine
	up := problem == ""
	var addrs []netip.AddrPort
	for _, prefix := range l.prefixes {
		addrs = append(addrs, netip.AddrPortFrom(prefix.Addr(), e.opts.MeshPort))
	}
	policy, err := datagram.NewPolicy(e.opts.policy(l.prefixes, l.broadcasts))
	if !up {
		s.election.SetReady(false, addrs)
	}
	isNew := l.mac != (datagram.MAC{}) && e.addMAC(l.mac)
	s.mu.Lock()
	was, before := s.up, s.problem
	s.up, s.problem, s.addrs = up, problem, addrs
	s.mac, s.mtu, s.prefixes, s.unmarked = l.mac, l.mtu, l.prefixes, l.unmarked
	if err == nil { // else there is an address that makes no sense: what was known before is better than nothing
		s.policy = policy
	}
	s.mu.Unlock()
	if isNew {
		own := e.ownMACs()
		for _, each := range e.segments {
			each.mu.Lock()
			each.copies.SetOwn(own)
			each.mu.Unlock()
		}
	}
	switch {
	case up && !was:
		e.log.Info("the segment is up", "interface", s.name, "mac", l.mac, "addresses", l.prefixes)
	case !up && problem != before:
		e.log.Warn("the segment is down", "interface", s.name, "problem", problem)
	}
}

// periodic does what is due, and tells when something will be. w is the worker of the segment's own goroutine, send puts a frame on
// the segment; nil while there is no interface.
func (s *segment) periodic(w *worker, now time.Time, send func(frame []byte)) (next time.Time) {
	if now.Sub(s.looked) >= lookInterval {
		s.looked = now
		w.expire(now, &s.drops)
		s.look(now)
	}
	if send == nil {
		return s.looked.Add(lookInterval)
	}
	// To look again can wait for the announcement after that: each time to wake up costs.
	if due := s.announced.Add(guard.Interval); due.After(now) {
		return due
	}
	s.announced = now
	s.announce(now, send)
	return now.Add(guard.Interval)
}

// announce tells other relays on the segment that this one is here. It is not ready before it has listened for the time
// between two announcements, so that it does not serve beside one that is there already.
func (s *segment) announce(now time.Time, send func(frame []byte)) {
	s.mu.Lock()
	up, addrs := s.up, s.addrs
	s.mu.Unlock()
	s.election.SetReady(up && s.listened && s.engine.opts.Direction == Both, addrs)
	s.listened = up
	s.say(now, send)
}

func (s *segment) say(now time.Time, send func(frame []byte)) {
	s.mu.Lock()
	mac := s.mac
	s.mu.Unlock()
	s.announcement = s.election.AppendAnnouncement(s.announcement[:0], mac, s.engine.stamp(now))
	send(s.announcement)
}

// leave tells other relays on the segment that this one is going, so that the next serves at once.
func (s *segment) leave(now time.Time, send func(frame []byte)) {
	s.election.SetReady(false, nil)
	s.say(now, send)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// tick does what is due between this relay and its peers, and tells when something will be.
func (w *worker) tick(now time.Time) (next time.Time) {
	w.outbox.Reset()
	next = w.engine.mesh.Tick(now, &w.outbox)
	w.engine.out.send(w.outbox.Items)
	if now.Sub(w.looked) >= lookInterval {
		w.looked = now
		w.expire(now, &w.engine.meshDrops)
	}
	// With peers there is something to do every second anyway.
	return earlier(next, w.looked.Add(2*lookInterval))
}
