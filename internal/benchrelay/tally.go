// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
)

// A payload begins with the number of its run, its own number in the run, and when it was sent:
//
//	| run 4 | number 4 | ns since 1970, 8 | zeros
const headerLen = 16

// putHeader writes the beginning of a payload.
func putHeader(b []byte, run, number uint32, now int64) {
	binary.BigEndian.PutUint32(b, run)
	binary.BigEndian.PutUint32(b[4:], number)
	binary.BigEndian.PutUint64(b[8:], uint64(now))
}

// tally is what came of a run at one receiver. The zero tally takes nothing; see begin.
type tally struct {
	run  uint32
	seen []uint64 // a bit per number
	want int      // how many were, or will be, sent
	next uint32   // after the highest number so far

	received int // different ones
	copies   int // of those
	disorder int // came after one with a higher number
	last     int64
}

// begin starts a run of want payloads.
func (t *tally) begin(run uint32, want int) {
	words := (want + 63) / 64
	seen := t.seen
	if cap(seen) < words {
		seen = make([]uint64, words)
	}
	seen = seen[:words]
	clear(seen)
	*t = tally{run: run, seen: seen, want: want}
}

// take notes a payload that arrived, and tells when it was sent; 0 if it is not of this run.
func (t *tally) take(b []byte, now int64) (sent int64) {
	if len(b) < headerLen || binary.BigEndian.Uint32(b) != t.run {
		return 0
	}
	n := binary.BigEndian.Uint32(b[4:])
	if int64(n) >= int64(t.want) {
		return 0
	}
	t.last = now
	if bit := uint64(1) << (n % 64); t.seen[n/64]&bit != 0 {
		t.copies++
	} else {
		t.seen[n/64] |= bit
		t.received++
		if n < t.next {
			t.disorder++
		} else {
			t.next = n + 1
		}
	}
	return int64(binary.BigEndian.Uint64(b[8:]))
}

// lost is how many have not arrived.
func (t *tally) lost() int { return t.want - t.received }

// exact tells that each arrived once, in order.
func (t *tally) exact() bool { return t.lost() == 0 && t.copies == 0 && t.disorder == 0 }

func (t *tally) String() string {
	return fmt.Sprintf("%d of %d lost, %d copies, %d out of order", t.lost(), t.want, t.copies, t.disorder)
}

// chances is how often a rate is tried: a pause of the machine is no fault of what is measured.
const chances = 3

// highest looks for the highest rate, to within 5 %, at which try says that all is well. try gives the rate that it
// reached, which may be less than asked: then there is no use in asking for more.
func highest(first float64, try func(rate float64) (reached float64, ok bool, err error)) (best float64, err error) {
	var low, high float64 // the highest that passed, and the lowest above it that did not
	for rate := first; rate >= 1; {
		passed, full := false, false // full: at the rate that was asked for
		for range chances {
			reached, ok, err := try(rate)
			if err != nil {
				return 0, err
			}
			if ok {
				passed, best = true, max(best, reached)
			}
			if full = ok && reached >= rate*0.95; full {
				break
			}
		}
		switch {
		case full:
			low = rate
		case passed:
			return best, nil
		default:
			high = rate
		}
		switch {
		case high == 0:
			rate *= 1.5
		case low == 0:
			rate /= 2
		case high < low*1.05:
			return best, nil
		default:
			rate = (low + high) / 2
		}
	}
	return best, nil
}
