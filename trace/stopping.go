// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import "math"

// StoppingPoints gives n_1 to n_k for a failure probability above 0 and below 1: when the probes
// that went through a node, each with a flow of its own, have found i next nodes, and they were
// n_i or more, then there are no others, except with that probability.
//
// The table is that of Veitch et al. 2009: n_k is the smallest number such that a node that
// balances evenly over k+1 next nodes is taken for one with fewer, at n_k or at an earlier
// stopping point, with at most that probability. For 5 % they are 6, 11, 16, 21, 27, 33, ...
func StoppingPoints(failure float64, k int) []int {
	s := stopping{failure: failure}
	s.point(k)
	return s.points
}

// stopping computes stopping points as they are needed.
type stopping struct {
	failure float64
	points  []int
}

// point gives n_k, for k from 1.
func (s *stopping) point(k int) int {
	for len(s.points) < k {
		s.points = append(s.points, s.compute(len(s.points)+1))
	}
	return s.points[k-1]
}

// compute gives n_k from the points before it. It follows the number of next nodes that have
// been found, out of k+1, as a Markov chain in the number of probes, which ends at the stopping points.
func (s *stopping) compute(k int) int {
	total := float64(k + 1)
	found := make([]float64, k+2) // found[j]: probability of j found and not stopped
	found[1] = 1
	stopped := 0.0 // probability of having stopped too early
	for n := 1; ; n++ {
		for j := 1; j < k; j++ {
			if s.points[j-1] == n {
				stopped += found[j]
				found[j] = 0
			}
		}
		waiting := 0.0
		for j := 1; j <= k; j++ {
			waiting += found[j]
		}
		// Rounding may leave stopped a hair above the bound for good: then nothing waits any more.
		if (k == 1 || n > s.points[k-2]) && (stopped+waiting <= s.failure || waiting < 1e-12) {
			return n
		}
		for j := k + 1; j >= 1; j-- {
			found[j] = found[j] * float64(j) / total
			if j > 1 {
				found[j] += found[j-1] * (total - float64(j-1)) / total
			}
		}
	}
}

// missed gives the probability that n probes through a node that balances evenly over k+1 next
// nodes find k or fewer of them.
func missed(k, n int) float64 {
	if n <= 0 {
		return 1
	}
	total := float64(k + 1)
	found := make([]float64, k+2)
	found[1] = 1
	for range n - 1 {
		for j := k + 1; j >= 1; j-- {
			found[j] = found[j] * float64(j) / total
			if j > 1 {
				found[j] += found[j-1] * (total - float64(j-1)) / total
			}
		}
	}
	return math.Max(0, 1-found[k+1])
}
