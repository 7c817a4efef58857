// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"math"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
)

// HopStats is what a [Continuous] trace knows about one hop. The definitions are mtr's.
type HopStats struct {
	// TTL is the hop's distance.
	TTL int
	// Responders are the addresses that answered, the one that answered last first. Empty for a silent hop.
	Responders []Responder
	// Sent counts the probes, Received the answers. InTransit is 1 while the latest probe still
	// waits for its answer, else 0: only that one is not yet called lost.
	Sent, Received, InTransit int
	// Status, ICMPType and ICMPCode are of the latest answer; Status is 0 before the first.
	Status             probe.Status
	ICMPType, ICMPCode uint8
	// Timed counts the answers whose round-trip time is known (see probe.Result); the figures below are of those.
	Timed int
	// Last, Best, Avg and Worst are round-trip times, Gmean their geometric mean and StDev their
	// standard deviation (of a sample: divided by Timed-1).
	Last, Best, Avg, Worst, StDev, Gmean time.Duration
	// Jitter is the distance of the latest round-trip time from the one before, 0 for the first; JitterAvg is the
	// mean of all jitters including that 0, JitterMax the largest.
	Jitter, JitterAvg, JitterMax time.Duration
	// JitterInt is the interarrival jitter: each answer adds its jitter and takes a sixteenth of
	// the sum away. That is 16 times the estimate of RFC 3550 section 6.4.1.
	JitterInt time.Duration
}

// Responder is one of the addresses that answered for a hop.
type Responder struct {
	Addr netip.Addr
	// Received counts its answers.
	Received int
	// MPLS is the label stack in the latest of them.
	MPLS []packet.Label
}

// Dropped counts the probes that are lost, as far as is known now.
func (h *HopStats) Dropped() int { return h.Sent - h.InTransit - h.Received }

// Loss is the share of the probes that are lost, in percent.
func (h *HopStats) Loss() float64 {
	settled := h.Sent - h.InTransit
	if settled <= 0 {
		return 0
	}
	return 100 * float64(h.Dropped()) / float64(settled)
}

// Addr is the address that answered last, the zero Addr if none did.
func (h *HopStats) Addr() netip.Addr {
	if len(h.Responders) == 0 {
		return netip.Addr{}
	}
	return h.Responders[0].Addr
}

// sample collects round-trip times. The sums are those of Welford's method, which does not lose
// digits when times are long and close together.
type sample struct {
	n, timed                     int
	last, best, worst            time.Duration
	mean, squares, logs          float64 // of nanoseconds
	jitter, jitterMax            time.Duration
	jitterMean, jitterInterarriv float64
}

// add takes the round-trip time of one answer, 0 if it is not known.
func (s *sample) add(rtt time.Duration) {
	s.n++
	if rtt == 0 {
		return
	}
	s.timed++
	n, x := float64(s.timed), float64(rtt)
	if s.timed == 1 {
		s.best, s.worst, s.last = rtt, rtt, rtt
	}
	s.best, s.worst = min(s.best, rtt), max(s.worst, rtt)
	d := x - s.mean
	s.mean += d / n
	s.squares += d * (x - s.mean)
	s.logs += (math.Log(max(x, 1)) - s.logs) / n

	s.jitter = (rtt - s.last).Abs()
	s.jitterMax = max(s.jitterMax, s.jitter)
	s.jitterMean += (float64(s.jitter) - s.jitterMean) / n
	s.jitterInterarriv += float64(s.jitter) - s.jitterInterarriv/16
	s.last = rtt
}

// fill writes the figures into h.
func (s *sample) fill(h *HopStats) {
	h.Received, h.Timed = s.n, s.timed
	if s.timed == 0 {
		return
	}
	h.Last, h.Best, h.Worst = s.last, s.best, s.worst
	h.Avg = time.Duration(math.Round(s.mean))
	h.Gmean = time.Duration(math.Round(math.Exp(s.logs)))
	if s.timed > 1 {
		h.StDev = time.Duration(math.Round(math.Sqrt(s.squares / float64(s.timed-1))))
	}
	h.Jitter, h.JitterMax = s.jitter, s.jitterMax
	h.JitterAvg = time.Duration(math.Round(s.jitterMean))
	h.JitterInt = time.Duration(math.Round(s.jitterInterarriv))
}
