// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"testing"
	"time"
)

func TestRTTStats(t *testing.T) {
	const ms = time.Millisecond
	tests := []struct {
		name                        string
		samples                     []time.Duration
		min, mean, median, p95, p99 time.Duration
		max, jitter, deviation      time.Duration
	}{
		{name: "none"},
		{name: "one", samples: []time.Duration{7 * ms}, min: 7 * ms, mean: 7 * ms, median: 7 * ms, p95: 7 * ms, p99: 7 * ms, max: 7 * ms},
		{
			// |2-4| + |9-2| + |5-9| = 13, over 3. Deviations from 5: 1, 9, 16, 0: sqrt(26/3).
			name: "four", samples: []time.Duration{4 * ms, 2 * ms, 9 * ms, 5 * ms},
			min: 2 * ms, mean: 5 * ms, median: 4 * ms, p95: 9 * ms, p99: 9 * ms, max: 9 * ms,
			jitter: 13 * ms / 3, deviation: 2943920,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var s rttStats
			for _, d := range tt.samples {
				s.add(d)
			}
			q := s.quantiles(0.5, 0.95, 0.99)
			got := []time.Duration{s.min, s.mean(), q[0], q[1], q[2], s.max, s.jitter(), s.stddev()}
			want := []time.Duration{tt.min, tt.mean, tt.median, tt.p95, tt.p99, tt.max, tt.jitter, tt.deviation}
			for i, name := range []string{"min", "mean", "median", "p95", "p99", "max", "jitter", "stddev"} {
				if got[i] != want[i] {
					t.Errorf("%s = %v, want %v", name, got[i], want[i])
				}
			}
		})
	}
}

// Beyond exactSamples the quantiles come from a histogram. They must go on smoothly.
func TestRTTStatsLongRun(t *testing.T) {
	var s rttStats
	const n = 100_000
	for i := range n {
		// All of 1 to 100000 microseconds, in a scattered order: 7 and n have no common divisor.
		s.add(time.Duration(i*7%n+1) * time.Microsecond)
	}
	if s.histogram == nil || s.samples != nil {
		t.Fatal("still keeps every sample")
	}
	q := s.quantiles(0, 0.5, 0.95, 0.99, 1)
	for i, want := range []float64{1e3, 50_000e3, 95_000e3, 99_000e3, 100_000e3} {
		if got := float64(q[i]); math.Abs(got-want) > want/1000 {
			t.Errorf("quantile %d = %v, want %v within 0.1 %%", i, q[i], time.Duration(want))
		}
	}
	if s.min != time.Microsecond || s.max != 100*time.Millisecond || s.mean() != 50_000_500*time.Nanosecond {
		t.Errorf("min %v, max %v, mean %v", s.min, s.max, s.mean())
	}
	// Of 1 to n, the sample variance is n(n+1)/12.
	want := math.Sqrt(float64(n)*(n+1)/12) * 1e3
	if got := float64(s.stddev()); math.Abs(got-want) > 1 {
		t.Errorf("stddev %v, want %v", s.stddev(), time.Duration(want))
	}
}
