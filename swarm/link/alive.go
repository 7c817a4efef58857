// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// maxPings is how many pings may be under way; more have to wait.
const maxPings = 64

type ping struct {
	sent     time.Time
	answered chan time.Duration // capacity 1
}

// Ping measures the round trip, with what the other side takes to notice.
func (s *Session) Ping(ctx context.Context) (time.Duration, error) {
	s.mu.Lock()
	if err := s.wait(&s.callers, func() bool { return len(s.pings) < maxPings }, ctx.Done(), nil); err != nil {
		s.mu.Unlock()
		return 0, canceled(ctx, err)
	}
	p := s.ping()
	s.mu.Unlock()
	select {
	case rtt := <-p.answered:
		return rtt, nil
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-s.done:
		return 0, s.Err()
	}
}

// RTT returns the smoothed round trip. The handshake gives the first; each keep-alive and Ping adds to it.
func (s *Session) RTT() time.Duration { return time.Duration(s.rtt.Load()) }

// ping is called with mu locked.
func (s *Session) ping() *ping {
	if s.pings == nil {
		s.pings = make(map[uint64]*ping)
	}
	p := &ping{sent: time.Now(), answered: make(chan time.Duration, 1)}
	s.token++
	s.pings[s.token] = p
	s.control(&frame{kind: kindPing, number: s.token})
	return p
}

func (s *Session) onPong(f *frame) error {
	s.mu.Lock()
	p := s.pings[f.number]
	delete(s.pings, f.number)
	if len(s.pings) == 0 {
		s.pings = nil // maps do not shrink
	}
	s.callers.wake()
	s.mu.Unlock()
	if p == nil {
		return fmt.Errorf("%w: a pong without a ping", ErrProtocol)
	}
	rtt := time.Since(p.sent)
	s.rtt.Store(smoothed(s.rtt.Load(), int64(rtt)))
	p.answered <- rtt
	return nil
}

// smoothed takes in one more round trip. Whatever goes wrong makes one longer, the handshake's work above all, so
// that a shorter one tells more.
func smoothed(rtt, sample int64) int64 {
	if sample < rtt {
		return max(1, (rtt+sample)/2)
	}
	return max(1, (7*rtt+sample)/8)
}

// startTimer begins to watch over a link that has come up.
func (s *Session) startTimer() {
	s.heard.Store(int64(time.Since(s.began)))
	if s.config.KeepAlive < 0 {
		return
	}
	s.mu.Lock()
	s.timer = time.AfterFunc(s.silence(), s.tick)
	s.mu.Unlock()
}

// silence is after how much of it the other side is asked: by chance, so that not both ask, nor all links at once.
func (s *Session) silence() time.Duration {
	return s.config.KeepAlive - rand.N(s.config.KeepAlive/4+1)
}

// tick looks whether the other side was heard. The timer is set anew each time to when the next look is due, so traffic
// does not touch it.
func (s *Session) tick() {
	heard := s.began.Add(time.Duration(s.heard.Load()))
	now := time.Now()
	silent := now.Sub(heard)
	if silent >= 2*s.config.KeepAlive {
		s.end(fmt.Errorf("%w: silent for %v", ErrTimeout, silent.Round(time.Millisecond)))
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	next := 2*s.config.KeepAlive - silent
	if !s.asked.After(heard) { // not asked yet in this silence
		if wanted := s.silence(); silent < 3*s.config.KeepAlive/4 {
			next = wanted - silent
		} else {
			s.asked = now
			s.ping()
		}
	}
	s.timer.Reset(max(next, time.Millisecond))
}
