// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"sync/atomic"
	"time"
)

// drift is how fast two undisciplined clocks may part: 15 ppm, as RFC 5905 (section 11) assumes.
const drift = 15e-6

// clockWindow is how many samples of a site's clock are kept: the best of about a minute.
const clockWindow = 32

// clock estimates how far a site's clock is ahead of the controller's, from NTP-style exchanges: the one with the least
// delay says most (RFC 5905, section 10). One goroutine adds samples; any may ask for the estimate.
type clock struct {
	samples [clockWindow]clockSample
	n       int // samples added
	best    atomic.Pointer[clockSample]
}

// clockSample says that at the controller's time at, the site's clock was ahead by offset, give or take err.
type clockSample struct {
	at, offset, err int64 // nanoseconds
}

func (s *clockSample) errorAt(now int64) int64 { return s.err + int64(drift*float64(now-s.at)) }

// add takes an exchange: t0 and t3 by the controller's clock, t1 and t2 by the site's. What is impossible is ignored.
func (c *clock) add(t0, t1, t2, t3 int64) {
	delay := (t3 - t0) - (t2 - t1)
	if t3 < t0 || t2 < t1 || delay < 0 {
		return
	}
	// The sum of two differences, halved one by one so that no clock can make it overflow.
	s := clockSample{at: t3, offset: (t1-t0)/2 + (t2-t3)/2, err: delay/2 + int64(time.Microsecond)}
	if best := c.best.Load(); best != nil {
		// Outside of what both allow, the site's clock was set: what was known of it is worth nothing.
		if apart := s.offset - best.offset; max(apart, -apart) > s.err+best.errorAt(t3) {
			c.n = 0
		}
	}
	c.samples[c.n%clockWindow] = s
	c.n++
	best := s
	for i := range min(c.n, clockWindow) {
		if old := &c.samples[i]; old.errorAt(t3) < best.errorAt(t3) {
			best = *old
		}
	}
	c.best.Store(&best)
}

// estimate is the offset at the controller's time now, and a bound of its error, 0 if nothing is known.
func (c *clock) estimate(now int64) (offset, err time.Duration) {
	best := c.best.Load()
	if best == nil {
		return 0, 0
	}
	return time.Duration(best.offset), time.Duration(best.errorAt(now))
}
