// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package stun

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

const (
	limiterBuckets = 1024
	// A peer asks a handful of times when it starts and when its address has changed. Many peers can
	// share a network.
	limiterRate  = 10.0 // answers per second and network
	limiterBurst = 40.0
)

// A Limiter bounds how many answers a network can cause, so that a server does not flood
// who never asked: 10 per second to a /24 of IPv4 or a /48 of IPv6, 40 at once. Its memory does not depend on who
// asks: networks that meet in one of its 1024 buckets share one allowance, and which do is not known outside.
// The zero value is ready; it may be used from several goroutines.
type Limiter struct {
	mu      sync.Mutex
	seed    maphash.Seed
	buckets []bucket
}

type bucket struct {
	tokens float64
	last   time.Time
}

// Allow takes one answer from the allowance of an address's network, if there is one left.
func (l *Limiter) Allow(to netip.Addr) bool {
	if !to.IsValid() {
		return false
	}
	to = to.Unmap()
	bits := 24
	if to.Is6() {
		bits = 48
	}
	network, err := to.WithZone("").Prefix(bits)
	if err != nil {
		return false // cannot be: both lengths are possible
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buckets == nil {
		l.seed = maphash.MakeSeed()
		l.buckets = make([]bucket, limiterBuckets)
	}
	b := &l.buckets[maphash.Comparable(l.seed, network)%limiterBuckets]
	now := time.Now()
	if b.last.IsZero() {
		b.tokens = limiterBurst
	} else {
		b.tokens = min(limiterBurst, b.tokens+limiterRate*now.Sub(b.last).Seconds())
	}
	b.last = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
