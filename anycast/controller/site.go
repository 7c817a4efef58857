// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/anycast/volta/anycastpb"
)

// site is an agent, from when it registers until it has been lost for siteGrace. One that comes back in that
// time as the same process (incarnation) is the same site.
type site struct {
	// Set when the site is made, then constant.
	name        string
	native      bool
	dialect     volta.Dialect // unless native
	secure      bool          // its name was proven by a certificate
	incarnation uint64
	displaced   []uint64 // other processes that the name was taken from

	clock clock
	// late is set while the site has not said for long that it listens for a session: new ones do not wait for it.
	late                    atomic.Bool
	answers, forged, probes atomic.Uint64

	mu        sync.Mutex
	info      anycast.Site // without Clock
	link      *link        // nil while the site is lost
	lost      time.Time    // since when it is
	pending   map[uint64]*pendingBatch
	nextBatch uint64
	lastSeq   uint64 // of the agent's reports, as far as they were handled
	stats     *measurepb.AgentStats
}

// link is one connection of a site.
type link struct {
	native  *orders[*measurepb.ToAgent] // one of these two
	origin  *orders[*anycastpb.Message]
	end     chan struct{} // closed when the connection is to end
	endOnce sync.Once
	cause   error // why; valid when end is closed
}

// stop ends the connection. The first cause counts.
func (l *link) stop(cause error) {
	l.endOnce.Do(func() {
		l.cause = cause
		close(l.end)
	})
}

// pendingBatch is probes that a site has not reported on.
type pendingBatch struct {
	session  *session
	handler  anycast.Handler
	id       uint64 // the caller's
	count    int
	stamps   bool
	rate     float64
	sent     time.Time
	deadline time.Time // zero while the site is there
}

// fail tells the program that a batch is lost.
func (p *pendingBatch) fail(site string, err error) {
	p.handler.HandleSent(anycast.Sent{Site: site, Batch: p.id, Err: err})
}

// describe is false while the site is lost.
func (s *site) describe(now int64) (anycast.Site, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	info := s.info
	info.Clock.Offset, info.Clock.Error = s.clock.estimate(now)
	return info, s.link != nil
}

// source is the address that probes leave from: the one asked for if the site holds it, or its default.
func (s *site) source(want netip.Addr, is4 bool) (netip.Addr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, held := range [][]netip.Addr{s.info.Anycast, s.info.Unicast} {
		for _, a := range held {
			if a == want || !want.IsValid() && a.Is4() == is4 {
				return a, nil
			}
		}
	}
	return netip.Addr{}, anycast.ErrNoSource
}

// tell sends a message to a native agent; a lost one gets it not, and need not.
func (s *site) tell(m *measurepb.ToAgent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tellLocked(m)
}

func (s *site) tellLocked(m *measurepb.ToAgent) {
	if s.native && s.link != nil && !s.link.native.push(2, m) {
		s.link.stop(errSlowLink)
	}
}

// begin has a native agent open a session, which then waits for that. The caller holds fleet.mu.
func (s *site) begin(session *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tellLocked(session.open)
	if s.native && s.link != nil && !s.late.Load() {
		session.awaited[s.link] = s
	}
}

// send queues probes and remembers them. It is false if the site is lost.
func (s *site) send(order *measurepb.Send, p *pendingBatch) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link == nil {
		return false
	}
	s.nextBatch++
	order.Batch = s.nextBatch
	p.sent = time.Now()
	s.pending[order.Batch] = p
	if !s.link.native.push(1+proto.Size(order)/64, &measurepb.ToAgent{Order: &measurepb.ToAgent_Send{Send: order}}) {
		s.link.stop(errSlowLink)
	}
	return true
}

// job queues a job for one of the originals' agents. It is false if the site is lost.
func (s *site) job(j volta.Job) (bool, error) {
	m, err := volta.Encode(s.dialect, j)
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link == nil {
		return false, nil
	}
	if !s.link.origin.push(2, m) {
		s.link.stop(errSlowLink)
		return false, nil
	}
	return true, nil
}

// detach tells that a connection has ended. It is false if the site has another one by now.
func (s *site) detach(l *link, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link != l {
		return false
	}
	s.link, s.lost = nil, now
	for _, p := range s.pending {
		p.deadline = now
		if p.rate > 0 { // it may go on without us
			if over := p.sent.Add(time.Duration(float64(p.count) / p.rate * float64(time.Second))); over.After(now) {
				p.deadline = over
			}
		}
		p.deadline = p.deadline.Add(siteGrace)
	}
	return true
}

// expire takes the batches that are given up: whose reports did not come in time after a connection ended, or all when
// the site has been lost for siteGrace.
func (s *site) expire(now time.Time) []*pendingBatch {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*pendingBatch
	gone := s.link == nil && now.Sub(s.lost) > siteGrace
	for id, p := range s.pending {
		if gone || !p.deadline.IsZero() && now.After(p.deadline) {
			out = append(out, p)
			delete(s.pending, id)
		}
	}
	return out
}

// goneFor is how long the site has been lost, 0 if it is there.
func (s *site) goneFor(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link != nil {
		return 0
	}
	return now.Sub(s.lost)
}

// abandon takes all batches: the process that was to send them is no more.
func (s *site) abandon() []*pendingBatch {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*pendingBatch
	for _, p := range s.pending {
		out = append(out, p)
	}
	clear(s.pending)
	return out
}

// reported is what the agent said last about itself, nil if it has not.
func (s *site) reported() *measurepb.AgentStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// fresh tells whether a report of this number is new, and remembers it.
func (s *site) fresh(seq uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if seq <= s.lastSeq {
		return false
	}
	s.lastSeq = seq
	return true
}
