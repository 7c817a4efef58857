// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
	"net/netip"
	"time"
)

// tokens is a bucket: it says how many probes may be sent now. Its burst is what comes in within bucketSpan, so that
// a pause is not made up for.
type tokens struct {
	rate   float64 // per second
	have   float64
	filled time.Time
}

const bucketSpan = 50 * time.Millisecond

// fill brings the bucket up to date.
func (t *tokens) fill(now time.Time) {
	if !t.filled.IsZero() {
		t.have += t.rate * now.Sub(t.filled).Seconds()
	}
	t.have = min(t.have, max(1, t.rate*bucketSpan.Seconds()))
	t.filled = now
}

// wait is how long it takes until there are n.
func (t *tokens) wait(n float64) time.Duration {
	if t.have >= n {
		return 0
	}
	return time.Duration((n-t.have)/t.rate*float64(time.Second)) + 1
}

// spacer keeps probes to one network apart.
type spacer struct {
	gap   time.Duration // 0 keeps nothing apart
	start time.Time
	// next is when, since start, the next probe may go to a network. Networks not probed lately are forgotten: all are
	// in recent or old, and what is old and past is dropped when these change places, each gap.
	recent, old map[uint64]time.Duration
	turn        time.Duration
}

func newSpacer(rate float64) *spacer {
	s := &spacer{start: time.Now()}
	if rate > 0 {
		s.gap = time.Duration(float64(time.Second) / rate)
		s.recent, s.old = make(map[uint64]time.Duration), make(map[uint64]time.Duration)
	}
	return s
}

// reserve gives the time at which a probe to an address may be sent, now or later, and keeps it for that.
func (s *spacer) reserve(a netip.Addr, now time.Time) time.Time {
	if s.gap == 0 {
		return now
	}
	at := now.Sub(s.start)
	if at-s.turn >= s.gap {
		for key, next := range s.old {
			if next > at && s.recent[key] == 0 {
				s.recent[key] = next
			}
		}
		clear(s.old)
		s.recent, s.old, s.turn = s.old, s.recent, at
	}
	key := networkKey(a)
	at = max(at, s.recent[key], s.old[key])
	s.recent[key] = at + s.gap
	return s.start.Add(at)
}

// networkKey is a number for each [Network].
func networkKey(a netip.Addr) uint64 {
	if a.Is4() {
		b := a.As4()
		return uint64(b[0])<<16 | uint64(b[1])<<8 | uint64(b[2])
	}
	b := a.As16()
	return 1<<63 | uint64(b[0])<<40 | uint64(b[1])<<32 | uint64(b[2])<<24 | uint64(b[3])<<16 | uint64(b[4])<<8 | uint64(b[5])
}

// keyNetwork is the inverse of networkKey.
func keyNetwork(key uint64) netip.Prefix {
	if key>>63 == 0 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(key >> 16), byte(key >> 8), byte(key)}), 24)
	}
	var b [16]byte
	for i := range 6 {
		b[i] = byte(key >> (40 - 8*i))
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), 48)
}
