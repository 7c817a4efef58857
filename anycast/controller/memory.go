// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"sync"

	"github.com/seed5728abee/fathom/anycast"
)

// keepInMemory is how many measurements are kept without a store.
const keepInMemory = 100

// memory is a store for controllers without one: it keeps the last few measurements for as long as the process lives.
type memory struct {
	max int

	mu   sync.Mutex
	kept map[string]*kept
}

type kept struct {
	m       anycast.Measurement
	targets []anycast.Target
	results []anycast.Result
}

var _ anycast.Store = (*memory)(nil)

func newMemory(limit int) *memory { return &memory{max: limit, kept: map[string]*kept{}} }

// Begin keeps a new measurement, in place of the oldest that is over if there are too many.
func (s *memory) Begin(_ context.Context, m anycast.Measurement, targets []anycast.Target) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.kept) >= s.max {
		for _, old := range slices.Backward(s.sortedLocked()) {
			if !old.m.End.IsZero() {
				delete(s.kept, old.m.ID)
				break
			}
		}
	}
	s.kept[m.ID] = &kept{m: m, targets: targets}
	return nil
}

// Append keeps results.
func (s *memory) Append(_ context.Context, id string, results []anycast.Result) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kept[id]
	if k == nil {
		return anycast.ErrNoMeasurement
	}
	k.results = append(k.results, results...)
	return nil
}

// Update keeps a change of state.
func (s *memory) Update(_ context.Context, m anycast.Measurement) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kept[m.ID]
	if k == nil {
		return anycast.ErrNoMeasurement
	}
	k.m = m
	return nil
}

// Flush has nothing to do.
func (s *memory) Flush(context.Context) error { return nil }

// sortedLocked gives what is kept, newest first.
func (s *memory) sortedLocked() []*kept {
	all := make([]*kept, 0, len(s.kept))
	for _, k := range s.kept {
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b *kept) int { return cmp.Compare(b.m.ID, a.m.ID) })
	return all
}

func matches(m *anycast.Measurement, q anycast.Query) bool {
	return (q.Measurement == "" || m.ID == q.Measurement) && (q.Program == "" || m.Definition.Program == q.Program) &&
		(q.Name == "" || m.Definition.Name == q.Name) && (q.From.IsZero() || !m.Start.Before(q.From)) &&
		(q.Until.IsZero() || m.Start.Before(q.Until))
}

// Measurements gives those that match, newest first.
func (s *memory) Measurements(_ context.Context, q anycast.Query) ([]anycast.Measurement, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []anycast.Measurement
	for _, k := range s.sortedLocked() {
		if matches(&k.m, q) && (q.Limit == 0 || len(out) < q.Limit) {
			out = append(out, k.m)
		}
	}
	return out, nil
}

// Targets gives those of a measurement.
func (s *memory) Targets(_ context.Context, id string) ([]anycast.Target, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kept[id]
	if k == nil {
		return nil, anycast.ErrNoMeasurement
	}
	return k.targets, nil
}

// Results gives those that match, oldest measurement first.
func (s *memory) Results(ctx context.Context, q anycast.Query, yield func(string, anycast.Result) bool) error {
	type part struct {
		id      string
		results []anycast.Result
	}
	s.mu.Lock()
	var parts []part
	for _, k := range slices.Backward(s.sortedLocked()) {
		if matches(&k.m, q) {
			parts = append(parts, part{k.m.ID, slices.Clip(k.results)})
		}
	}
	s.mu.Unlock()
	n := 0
	for _, p := range parts {
		for _, r := range p.results {
			if !concerns(r, q) {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			if !yield(p.id, r) {
				return nil
			}
			if n++; n == q.Limit {
				return nil
			}
		}
	}
	return nil
}

// concerns tells whether a result is about a target and a site as asked for.
func concerns(r anycast.Result, q anycast.Query) bool {
	var target netip.Addr
	var sites []string
	switch r := r.(type) {
	case *anycast.TraceResult:
		target, sites = r.Target, []string{r.Site}
		for i := range r.Replies {
			sites = append(sites, r.Replies[i].Receiver)
		}
	case *anycast.Catch:
		target, sites = r.Target, []string{r.Sender, r.Receiver}
	case *anycast.LatencyResult:
		target, sites = r.Target, []string{r.Catcher}
		for _, u := range r.Unicast {
			sites = append(sites, u.Site)
		}
	case *anycast.FlipResult:
		target = r.Target
		for site := range r.Seen {
			sites = append(sites, site)
		}
	case *anycast.Move:
		target, sites = r.Target, []string{r.From, r.To}
	}
	return (!q.Target.IsValid() || q.Target.Contains(target)) && (q.Site == "" || slices.Contains(sites, q.Site))
}

// Delete forgets a measurement.
func (s *memory) Delete(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept[id] == nil {
		return anycast.ErrNoMeasurement
	}
	delete(s.kept, id)
	return nil
}
