// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/seed5728abee/fathom/probe"
)

// exactSamples is how many round-trip times a target keeps one by one. Few samples give exact
// quantiles and cost little, which matters with many targets; a long run goes on in a histogram
// of fixed size (about 300 KB, three significant digits).
const exactSamples = 1024

// rttStats gathers the round-trip times of one target.
type rttStats struct {
	count    uint64
	min, max time.Duration
	sum      time.Duration
	// meanSoFar and squares are Welford's running mean and sum of squared differences.
	meanSoFar, squares float64
	// last is the previous time and variation the sum of |differences| between neighbours.
	last, variation time.Duration

	samples   []time.Duration         // until there are exactSamples
	histogram *hdrhistogram.Histogram // from then on
}

func (s *rttStats) add(rtt time.Duration) {
	if s.count == 0 {
		s.min, s.max = rtt, rtt
	} else {
		s.variation += (rtt - s.last).Abs()
	}
	s.count++
	s.min, s.max, s.last = min(s.min, rtt), max(s.max, rtt), rtt
	s.sum += rtt
	delta := float64(rtt) - s.meanSoFar
	s.meanSoFar += delta / float64(s.count)
	s.squares += delta * (float64(rtt) - s.meanSoFar)

	if s.histogram == nil && len(s.samples) < exactSamples {
		s.samples = append(s.samples, rtt)
		return
	}
	if s.histogram == nil {
		s.histogram = hdrhistogram.New(1, int64(probe.MaxTimeout), 3)
		for _, sample := range s.samples {
			s.record(sample)
		}
		s.samples = nil
	}
	s.record(rtt)
}

func (s *rttStats) record(rtt time.Duration) {
	// Clamped, so that RecordValue cannot refuse it.
	_ = s.histogram.RecordValue(int64(min(max(rtt, 0), probe.MaxTimeout)))
}

func (s *rttStats) mean() time.Duration {
	if s.count == 0 {
		return 0
	}
	return s.sum / time.Duration(s.count)
}

// stddev is the sample standard deviation, 0 for fewer than two samples.
func (s *rttStats) stddev() time.Duration {
	if s.count < 2 {
		return 0
	}
	return time.Duration(math.Sqrt(s.squares / float64(s.count-1)))
}

// jitter is the mean absolute difference between each time and the one before it, 0 for fewer than two.
func (s *rttStats) jitter() time.Duration {
	if s.count < 2 {
		return 0
	}
	return s.variation / time.Duration(s.count-1)
}

// quantiles gives, for each q from 0 to 1 in ascending order, the smallest sample that at least q of all samples do not
// exceed (the nearest rank). Beyond exactSamples the answer is within 0.1 %.
func (s *rttStats) quantiles(qs ...float64) []time.Duration {
	out := make([]time.Duration, len(qs))
	if s.count == 0 {
		return out
	}
	if s.histogram != nil {
		for i, q := range qs {
			// A histogram's bucket can reach beyond the extremes that were seen.
			out[i] = min(max(time.Duration(s.histogram.ValueAtQuantile(q*100)), s.min), s.max)
		}
		return out
	}
	sorted := slices.Sorted(slices.Values(s.samples))
	for i, q := range qs {
		rank := int(math.Ceil(q * float64(len(sorted))))
		out[i] = sorted[min(max(rank, 1), len(sorted))-1]
	}
	return out
}
