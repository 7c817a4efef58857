// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"hash/maphash"
	"net/netip"
	"time"
)

// A limit lets so many per second pass on average, and burst at once: a token bucket.
type limit struct {
	rate, burst float64
	tokens      float64
	last        time.Time
}

func newLimit(rate, burst float64) limit { return limit{rate: rate, burst: burst, tokens: burst} }

func (l *limit) allow(now time.Time) bool {
	if d := now.Sub(l.last); d > 0 {
		if !l.last.IsZero() {
			l.tokens = min(l.burst, l.tokens+d.Seconds()*l.rate)
		}
		l.last = now
	}
	if l.tokens < 1 {
		return false
	}
	l.tokens--
	return true
}

// sourceLimits is a limit for each source address. It has a fixed number of them: sources whose
// addresses fall on the same one share it, which nobody can bring about on purpose.
type sourceLimits struct {
	seed   maphash.Seed
	limits [256]limit
}

func newSourceLimits(rate, burst float64) *sourceLimits {
	s := &sourceLimits{seed: maphash.MakeSeed()}
	for i := range s.limits {
		s.limits[i] = newLimit(rate, burst)
	}
	return s
}

func (s *sourceLimits) allow(a netip.Addr, now time.Time) bool {
	return s.limits[maphash.Comparable(s.seed, a)%uint64(len(s.limits))].allow(now)
}
