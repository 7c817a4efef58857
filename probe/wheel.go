// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"math/bits"
	"time"
)

const (
	wheelTick    = int64(time.Millisecond)
	wheelBuckets = 8192 // one turn takes 8.2 s: with the default timeout a probe is looked at twice
)

// wheel is a hashed timer wheel (Varghese and Lauck 1987, scheme 6): adding and
// removing a deadline take constant time, whatever the number of probes. Its
// resolution is a millisecond; no deadline fires early.
type wheel struct {
	slots   *slots
	buckets [wheelBuckets]uint32
	used    [wheelBuckets / 64]uint64 // a bit per bucket that is not empty
	tick    int64                     // the last tick that expire has seen
	n       int
}

// tickOf is the first tick at which deadline has passed.
func tickOf(deadline int64) int64 { return (deadline + wheelTick - 1) / wheelTick }

func (w *wheel) add(i uint32) {
	s := w.slots.at(i)
	// A deadline that has passed already belongs to the next tick, or it would wait a whole turn.
	b := max(tickOf(s.deadline), w.tick+1) % wheelBuckets
	s.bucket = uint16(b)
	w.slots.push(&w.buckets[b], i, byTime)
	w.used[b/64] |= 1 << (b % 64)
	w.n++
}

func (w *wheel) remove(i uint32) {
	b := w.slots.at(i).bucket
	w.slots.remove(&w.buckets[b], i, byTime)
	if w.buckets[b] == 0 {
		w.used[b/64] &^= 1 << (b % 64)
	}
	w.n--
}

// expire takes every slot off whose deadline has passed at now and hands it to f.
func (w *wheel) expire(now int64, f func(i uint32)) {
	to := now / wheelTick
	if w.n == 0 || to <= w.tick {
		w.tick = max(w.tick, to)
		return
	}
	// After a long sleep one turn over the buckets sees everything.
	for t := max(w.tick+1, to-wheelBuckets+1); t <= to; t++ {
		b := t % wheelBuckets
		if w.used[b/64]&(1<<(b%64)) == 0 {
			continue
		}
		head := &w.buckets[b]
		for n, i := w.slots.length(*head, byTime), *head; n > 0; n-- {
			next := w.slots.at(i).links[byTime].next
			if w.slots.at(i).deadline <= now {
				w.remove(i)
				w.tick = t // so that what f adds lands in a bucket still to come
				f(i)
			}
			i = next
		}
	}
	w.tick = to
}

// next is the time until some bucket is due, negative if there is none. A
// bucket may hold only slots of a later turn; expire then finds nothing, once in 8 s.
func (w *wheel) next(now int64) time.Duration {
	if w.n == 0 {
		return -1
	}
	start := w.tick + 1
	for off := int64(0); off < wheelBuckets; {
		b := (start + off) % wheelBuckets
		if word := w.used[b/64] >> (b % 64); word != 0 {
			off += int64(bits.TrailingZeros64(word))
			return time.Duration(max(0, (start+off)*wheelTick-now))
		}
		off += 64 - b%64
	}
	return -1
}
