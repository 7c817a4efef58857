// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/seed5728abee/fathom/relay/datagram"
	"github.com/seed5728abee/fathom/relay/drop"
	"github.com/seed5728abee/fathom/relay/epics"
	"github.com/seed5728abee/fathom/relay/guard"
)

// talkers is how many sources a status shows of a segment.
const talkers = 10

func portsText(ranges []datagram.PortRange) string {
	texts := make([]string, len(ranges))
	for i, r := range ranges {
		texts[i] = r.String()
	}
	return strings.Join(texts, ",")
}

func (e *engine) mode() string {
	switch {
	case e.sealed && e.opts.Compat:
		return "sealed+compat"
	case e.sealed:
		return "sealed"
	}
	return "open"
}

// status tells what the engine knows.
func (e *engine) status(now time.Time) Status {
	s := Status{
		Version: e.opts.Version, ID: e.id.String(), Started: e.started, Ready: true, Ports: portsText(e.opts.Ports),
		Direction: e.opts.Direction.String(), Peers: e.mesh.Peers(now),
		Mesh: MeshStatus{
			Mode: e.mode(), Received: e.meshReceived.Load(), ReceivedBytes: e.meshBytes.Load(), Sent: e.meshSent.Load(),
			SentBytes: e.meshSentSize.Load(), SendErrors: e.meshErrors.Load(), Dropped: e.meshDrops.Map(),
		},
	}
	for _, g := range e.opts.Groups {
		text := g.Addr.String()
		if len(g.Ports) > 0 {
			text += " port " + portsText(g.Ports)
		}
		s.Groups = append(s.Groups, text)
	}
	for _, each := range e.segments {
		g := each.status(now)
		s.Ready = s.Ready && g.Up
		s.Segments = append(s.Segments, g)
	}
	return s
}

func (s *segment) status(now time.Time) SegmentStatus {
	stamp := s.engine.stamp(now)
	s.mu.Lock()
	defer s.mu.Unlock()
	g := SegmentStatus{
		Interface: s.name, Up: s.up, Problem: s.problem, Serving: s.election.Serving(stamp),
		Captured: s.captured.Load(), CapturedBytes: s.capturedBytes.Load(), Relayed: s.relayed.Load(),
		Emitted: s.emitted.Load(), EmittedBytes: s.emittedBytes.Load(), KernelDropped: s.kernelDropped.Load(),
		Dropped: s.drops.Map(), NotEmitted: s.notEmitted.Map(), Talkers: s.limiter.Talkers(talkers, stamp),
	}
	if s.mac != (datagram.MAC{}) {
		g.MAC, g.MTU, g.Prefixes = s.mac.String(), s.mtu, slices.Clone(s.prefixes)
	}
	for _, n := range s.election.Neighbours(stamp) {
		g.Relays = append(g.Relays, datagram.MAC(n.Relay).String())
	}
	return g
}

// look does what is due every second for a segment: it lets go of what was waited for in vain, and logs who
// broadcasts too much.
func (s *segment) look(now time.Time) {
	stamp := s.engine.stamp(now)
	s.election.Tick(stamp)
	s.mu.Lock()
	s.copies.Tick(stamp)
	s.copies.SetNeighbours(s.election.Neighbours(stamp), s.originals)
	s.excesses = s.limiter.AppendExcesses(s.excesses[:0], stamp)
	inward := len(s.excesses)
	s.excesses = s.inbound.AppendExcesses(s.excesses, stamp)
	excesses := s.excesses
	storms := s.drops.Get(drop.Storm) + s.notEmitted.Get(drop.Storm)
	storm := storms - s.storms
	s.storms = storms
	s.mu.Unlock()
	for i, x := range excesses {
		who := "all of the segment"
		if i >= inward {
			who = "all of the other segments"
		}
		if x.Source.IsValid() {
			who = x.Source.String()
		}
		if x.Over {
			s.engine.log.Info("back within the limit of broadcasts", "interface", s.name, "source", who, "dropped", x.Dropped)
		} else {
			s.engine.log.Warn("too many broadcasts: some are not relayed", "interface", s.name, "source", who)
		}
	}
	switch {
	case storm > 0 && !s.storming:
		s.engine.log.Warn("the same broadcast over and over: not all are relayed any more", "interface", s.name)
	case storm == 0 && s.storming:
		s.engine.log.Info("the repeating broadcast is over", "interface", s.name, "dropped", storms)
	}
	s.storming = storm > 0
}

// expire lets go of fragments that were waited for in vain.
func (w *worker) expire(now time.Time, drops *drop.Counters) {
	incomplete, overflow := w.reassembler.Expire(now)
	drops.Add(drop.Incomplete, uint64(incomplete))
	drops.Add(drop.Overflow, uint64(overflow))
}

// summaryInterval is how often a relay says in the log what it has done.
const summaryInterval = time.Minute

// summarize logs one line a minute, when there was something.
func (e *engine) summarize(ctx context.Context) error {
	ticker := time.NewTicker(summaryInterval)
	defer ticker.Stop()
	type totals struct{ relayed, emitted, dropped uint64 }
	var before totals
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		var sum totals
		for _, s := range e.segments {
			sum.relayed += s.relayed.Load()
			sum.emitted += s.emitted.Load()
			sum.dropped += s.kernelDropped.Load()
			for _, r := range drop.Reasons() {
				sum.dropped += s.drops.Get(r)
			}
		}
		for _, r := range drop.Reasons() {
			sum.dropped += e.meshDrops.Get(r)
		}
		if sum != before {
			e.log.Info("in the last minute", "relayed", sum.relayed-before.relayed, "emitted", sum.emitted-before.emitted, "dropped", sum.dropped-before.dropped)
		}
		before = sum
	}
}

// ErrNotCounted tells that searches are asked for and not counted.
var ErrNotCounted = errors.New("the relay does not count searches: start it with --count-searches")

// SearchReport says who searches for what.
type SearchReport struct {
	Summary epics.StatsSummary `json:"summary"`
	Names   []epics.NameStats  `json:"names"`
}

// Searches returns the top names, all if top is 0, of those that contain a text. The error is [ErrNotCounted].
func (e *engine) Searches(top int, contains string) (SearchReport, error) {
	if e.searches == nil {
		return SearchReport{}, ErrNotCounted
	}
	return SearchReport{
		Summary: e.searches.Summary(),
		Names:   e.searches.Top(time.Now(), epics.StatsQuery{Limit: top, Contains: contains}),
	}, nil
}

// Watch gives what the relay does with broadcasts, as it does it, until ctx ends: then the channel is closed. A watcher that is
// slow misses events, and the next one tells it how many.
func (e *engine) Watch(ctx context.Context) <-chan Event { return e.watch.add(ctx) }

// ownMACs are the addresses of all interfaces of this relay, those that it had before as well.
func (e *engine) ownMACs() []guard.MAC {
	e.macsMu.Lock()
	defer e.macsMu.Unlock()
	return slices.Clone(e.macs)
}

// addMAC notes an address of an interface, and reports whether it is a new one.
func (e *engine) addMAC(m datagram.MAC) bool {
	e.macsMu.Lock()
	defer e.macsMu.Unlock()
	if slices.Contains(e.macs, guard.MAC(m)) {
		return false
	}
	e.macs = append(e.macs, m)
	return true
}

// trust tells whom to yield to: in a sealed mesh, only to who has shown to be a member of it.
func (e *engine) trust() func(relay guard.MAC, token [8]byte) bool {
	if !e.sealed {
		return nil
	}
	return func(relay guard.MAC, token [8]byte) bool { return e.mesh.Confirmed(relay, token) }
}
