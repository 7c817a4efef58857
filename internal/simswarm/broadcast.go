// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/internal/figures"
	"github.com/seed5728abee/fathom/swarm/broadcast"
	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/ring"
	"github.com/seed5728abee/fathom/swarm/ring/ringtest"
	"github.com/seed5728abee/fathom/swarm/simnet"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// A tally is what arrived of broadcasts, and when.
type tally struct {
	mu      sync.Mutex
	engines map[member.ID]*broadcast.Engine
	arrived map[wire.Tag]map[member.ID]int
	last    map[wire.Tag]time.Time
	running sync.WaitGroup
	stop    []context.CancelFunc
}

// both gives each message to the part of a member that it is for.
type both struct {
	*ringtest.Member
	engine *broadcast.Engine
}

// Handle implements wire.Handler.
func (b both) Handle(ctx context.Context, from member.Contact, m wire.Message) wire.Message {
	switch m.(type) {
	case wire.Ping, wire.State, wire.Notify, wire.Lookup, wire.Step, wire.Attach, wire.Store, wire.Fetch, wire.Leave:
		return b.Member.Handle(ctx, from, m)
	}
	return b.engine.Handle(ctx, from, m)
}

// withBroadcast returns a swarm whose members also broadcast, and the tally of what they got.
func (s *simulation) withBroadcast() (*ringtest.Swarm, *tally) {
	r := ringtest.New(s.seed, simnet.Options{Jitter: 0.1}, ring.Options{})
	t := &tally{engines: map[member.ID]*broadcast.Engine{}, arrived: map[wire.Tag]map[member.ID]int{}, last: map[wire.Tag]time.Time{}}
	r.Wrap = func(m *ringtest.Member) wire.Handler {
		id := m.ID()
		e := broadcast.New(broadcast.Options{
			Self: m.Self, Table: m.Table, Neighbours: m.Neighbours, Transport: m.Port, Tags: 64,
			Find: func(ctx context.Context, place member.ID) (member.Contact, error) {
				found, err := m.Lookup(ctx, place, ring.LookupOptions{})
				return found.Owner, err
			},
			Deliver: func(b broadcast.Message) { t.deliver(id, b.Tag) },
		})
		ctx, stop := context.WithCancel(context.Background())
		t.mu.Lock()
		t.engines[id], t.stop = e, append(t.stop, stop)
		t.mu.Unlock()
		t.running.Go(func() { _ = e.Run(ctx) }) // nil, when ctx has ended
		return both{m, e}
	}
	return r, t
}

func (t *tally) deliver(id member.ID, tag wire.Tag) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.arrived[tag] == nil {
		t.arrived[tag] = map[member.ID]int{}
	}
	t.arrived[tag][id]++
	t.last[tag] = time.Now()
}

// await waits until a broadcast has reached as many members as it should, and a second more for copies.
func (t *tally) await(tag wire.Tag, members int, limit time.Duration) {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		t.mu.Lock()
		reached := len(t.arrived[tag])
		t.mu.Unlock()
		if reached >= members {
			time.Sleep(time.Second)
			return
		}
	}
}

// close ends the engines.
func (t *tally) close() {
	for _, stop := range t.stop {
		stop()
	}
	t.running.Wait()
}

// broadcasts measures a few of them, with everybody alive.
func (s *simulation) broadcasts(ctx context.Context, r *ringtest.Swarm, t *tally, section string) error {
	const count = 5
	live := r.Live()
	payloads := func() (n uint64) {
		for _, m := range live {
			n += t.engines[m.ID()].Stats().Copies
		}
		return n
	}
	before := payloads()
	var delays []time.Duration
	reached, exactly := 0, 0
	for range count {
		m := r.Random()
		start := time.Now()
		tag, err := t.engines[m.ID()].Broadcast(ctx, make([]byte, 100), nil)
		if err != nil {
			return fmt.Errorf("broadcast: %w", err)
		}
		t.await(tag, len(live)-1, 10*time.Second)
		t.mu.Lock()
		delays = append(delays, t.last[tag].Sub(start))
		for _, times := range t.arrived[tag] {
			reached++
			if times == 1 {
				exactly++
			}
		}
		t.mu.Unlock()
	}
	all := count * (len(live) - 1)
	s.figures.Judge(section, "broadcasts delivered exactly once", fmt.Sprintf("%d of %d", exactly, all), "all", exactly == all && reached == all)
	copies := float64(payloads()-before) / float64(all)
	s.figures.Judge(section, "copies of a broadcast that a member gets", fmt.Sprintf("%.2f", copies), "≤ 2", copies <= 2)
	s.figures.Add(section, "last delivery of a broadcast, median", ms(figures.Median(delays)))
	return nil
}
