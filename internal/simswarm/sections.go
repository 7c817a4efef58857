// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/internal/figures"
	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/ring"
	"github.com/seed5728abee/fathom/swarm/ring/ringtest"
	"github.com/seed5728abee/fathom/swarm/simnet"
)

// An ending is how members go.
type ending struct {
	name string
	end  func(context.Context, *ringtest.Swarm, *ringtest.Member) error
}

var endings = []ending{
	{"silent", func(_ context.Context, r *ringtest.Swarm, m *ringtest.Member) error { r.Kill(m); return nil }},
	{"crashes", func(_ context.Context, r *ringtest.Swarm, m *ringtest.Member) error { r.Crash(m); return nil }},
	{"leaves", func(ctx context.Context, r *ringtest.Swarm, m *ringtest.Member) error { return r.Leave(ctx, m) }},
}

// lists is how many neighbours on either side have to be right for lists to be.
const lists = 8

// settled runs f in simulated time with a swarm of some members that know their neighbours.
func (s *simulation) settled(ctx context.Context, size int, f func(context.Context, *ringtest.Swarm) error) error {
	return bubble(ctx, func(ctx context.Context) error {
		r := ringtest.New(s.seed, simnet.Options{Jitter: 0.1}, ring.Options{})
		defer r.Close()
		if err := r.Grow(ctx, size, size/4); err != nil {
			return err
		}
		if _, err := r.Settle(lists, time.Minute); err != nil {
			return err
		}
		return f(ctx, r)
	})
}

// growth measures a swarm of a size from its first member to the death of a quarter.
func (s *simulation) growth(ctx context.Context, size int) error {
	section := fmt.Sprintf("%d members", size)
	return bubble(ctx, func(ctx context.Context) error {
		r, copies := s.withBroadcast()
		defer copies.close()
		defer r.Close()
		joins, err := grow(ctx, r, size)
		if err != nil {
			return err
		}
		s.figures.Add(section, "join, median / slowest", ms(figures.Median(joins))+" / "+ms(figures.Quantile(joins, 1)))
		took, err := r.Settle(lists, time.Minute)
		if err != nil {
			return err
		}
		s.figures.Judge(section, "all neighbours known after the last join", ms(took), "≤ 2 s", took <= 2*time.Second)
		time.Sleep(10 * time.Second) // for fingers, and until they are at rest
		s.idle(r, section)
		if err := s.lookups(ctx, r, section); err != nil {
			return err
		}
		if err := s.broadcasts(ctx, r, copies, section); err != nil {
			return err
		}
		r.Kill(r.Pick(0.25)...)
		took, err = r.Settle(1, time.Minute)
		if err != nil {
			return err
		}
		s.figures.Judge(section, "a quarter killed silently: ring right", ms(took), "≤ 3 s", took <= 3*time.Second)
		return nil
	})
}

// grow adds members, a tenth of the swarm at a time at most, and returns how long each took to join.
func grow(ctx context.Context, r *ringtest.Swarm, size int) (joins []time.Duration, err error) {
	var mu sync.Mutex // guards joins and err
	for have := 0; have < size; {
		batch := min(max(1, have/10), size-have)
		var all sync.WaitGroup
		for range batch {
			all.Go(func() {
				m := r.Start()
				start := time.Now()
				failure := r.Join(ctx, m)
				mu.Lock()
				defer mu.Unlock()
				joins = append(joins, time.Since(start))
				if failure != nil {
					err = failure
				}
			})
		}
		all.Wait()
		if have += batch; err != nil {
			return nil, err
		}
	}
	return joins, nil
}

// idle measures what members that have nothing to do send.
func (s *simulation) idle(r *ringtest.Swarm, section string) {
	const span = 5 * time.Second // each compares its lists once
	before := r.Net.Stats()
	time.Sleep(span)
	sent := r.Net.Stats().Sub(before)
	each := span.Seconds() * float64(len(r.Live()))
	s.figures.Add(section, "sent by an idle member", fmt.Sprintf("%.1f messages/s, %.0f B/s", float64(sent.Messages)/each, float64(sent.Bytes)/each))
}

// lookups measures how many members a lookup goes through, and how long it takes.
func (s *simulation) lookups(ctx context.Context, r *ringtest.Swarm, section string) error {
	var mu sync.Mutex // guards hops, times and wrong
	var hops []int
	var times []time.Duration
	wrong, sum := 0, 0
	for range 5 {
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() {
				key, m, start := r.Key(), r.Random(), time.Now()
				found, err := m.Lookup(ctx, key, ring.LookupOptions{})
				mu.Lock()
				defer mu.Unlock()
				if err != nil || found.Owner.ID != r.Owner(key) {
					wrong++
				}
				hops, times = append(hops, int(found.Hops)), append(times, time.Since(start))
				sum += int(found.Hops)
			})
		}
		all.Wait()
	}
	mean, p99 := float64(sum)/float64(len(hops)), figures.Quantile(hops, 0.99)
	s.figures.Judge(section, "lookups that were wrong", fmt.Sprintf("%d of %d", wrong, len(hops)), "none", wrong == 0)
	s.figures.Judge(section, "members a lookup goes to, mean / p99", fmt.Sprintf("%.2f / %d", mean, p99), "≤ 6 / ≤ 10", mean <= 6 && p99 <= 10)
	s.figures.Add(section, "time of a lookup, p50 / p99", ms(figures.Median(times))+" / "+ms(figures.Quantile(times, 0.99)))
	return ctx.Err()
}

// churn measures lookups while a member dies and another one joins every five seconds.
func (s *simulation) churn(ctx context.Context, e ending) error {
	return s.settled(ctx, 32, func(ctx context.Context, r *ringtest.Swarm) error {
		end := time.Now().Add(5 * time.Minute)
		var all sync.WaitGroup
		var mu sync.Mutex // guards right, total, slowest and failure
		right, total, slowest := 0, 0, time.Duration(0)
		var failure error
		all.Go(func() {
			for time.Now().Before(end) {
				time.Sleep(5 * time.Second)
				err := e.end(ctx, r, r.Random())
				if _, joinErr := r.Add(ctx); err == nil {
					err = joinErr
				}
				if err != nil {
					mu.Lock()
					failure = err
					mu.Unlock()
				}
			}
		})
		for time.Now().Before(end) {
			time.Sleep(20 * time.Millisecond)
			all.Go(func() {
				key, m, start := r.Key(), r.Random(), time.Now()
				before := r.Owner(key)
				found, err := m.Lookup(ctx, key, ring.LookupOptions{})
				if !r.Net.Alive(m.ID()) {
					return // who asked died
				}
				mu.Lock()
				defer mu.Unlock()
				total++
				slowest = max(slowest, time.Since(start))
				if err == nil && (found.Owner.ID == before || r.Right(key, found.Owner.ID)) {
					right++
				}
			})
		}
		all.Wait()
		share := 100 * float64(right) / float64(total)
		section := "churn of 32, " + e.name
		s.figures.Judge(section, "lookups right, a death and a join every 5 s", fmt.Sprintf("%.3f %% of %d", share, total), "≥ 99.9 %", share >= 99.9)
		s.figures.Add(section, "slowest lookup", ms(slowest))
		return failure
	})
}

// split measures how long it takes until a ring is one again after the network was split for a minute.
func (s *simulation) split(ctx context.Context, size int) error {
	return s.settled(ctx, size, func(_ context.Context, r *ringtest.Swarm) error {
		var half []member.ID
		for _, m := range r.Pick(0.5) {
			half = append(half, m.ID())
		}
		r.Net.Partition(half)
		time.Sleep(time.Minute)
		r.Net.Heal()
		took, err := r.Settle(1, 2*time.Minute)
		if err != nil {
			return err
		}
		s.figures.Judge(fmt.Sprintf("split of %d", size), "one ring again after the network is", ms(took), "≤ 30 s", took <= 30*time.Second)
		return nil
	})
}

// hostile measures lookups over disjoint paths with a fifth of the members working against them.
func (s *simulation) hostile(ctx context.Context) error {
	return s.settled(ctx, 1000, func(ctx context.Context, r *ringtest.Swarm) error {
		time.Sleep(20 * time.Second) // for fingers
		var gang ringtest.Gang
		for _, m := range r.Pick(0.2) {
			m.Port.Serve(gang.Join(m))
		}
		honest := func(pick func() member.ID) member.ID {
			for {
				if id := pick(); !gang.Has(id) {
					return id
				}
			}
		}
		for _, disjoint := range []int{0, 1, 2, 4} {
			var all sync.WaitGroup
			var mu sync.Mutex // guards right
			const lookups = 1000
			right := 0
			for range lookups {
				var key member.ID
				honest(func() member.ID { key = r.Key(); return r.Owner(key) })
				var m *ringtest.Member
				honest(func() member.ID { m = r.Random(); return m.ID() })
				all.Go(func() {
					found, err := m.Lookup(ctx, key, ring.LookupOptions{Disjoint: disjoint})
					mu.Lock()
					defer mu.Unlock()
					if err == nil && found.Owner.ID == r.Owner(key) {
						right++
					}
				})
			}
			all.Wait()
			share := 100 * float64(right) / lookups
			name, value := fmt.Sprintf("lookups right over %d disjoint paths", disjoint), fmt.Sprintf("%.1f %%", share)
			switch disjoint {
			case 0:
				s.figures.Add("hostile of 1000", "lookups right, the quick way", value)
			case 4:
				s.figures.Judge("hostile of 1000", name, value, "≥ 99 %", share >= 99)
			default:
				s.figures.Add("hostile of 1000", name, value)
			}
		}
		return nil
	})
}

func ms(d time.Duration) string {
	return fmt.Sprintf("%.4g ms", float64(d)/float64(time.Millisecond))
}
