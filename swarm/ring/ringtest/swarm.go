// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ringtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/ring"
	"github.com/seed5728abee/fathom/swarm/simnet"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// A Member is one node of a swarm.
type Member struct {
	*ring.Node
	Port *simnet.Port
	stop context.CancelFunc
	done chan struct{}
}

// ID returns the member's place.
func (m *Member) ID() member.ID { return m.Port.Contact().ID }

// A Swarm is the members of a ring that are alive, and the network between them. It is safe for concurrent use.
type Swarm struct {
	Net *simnet.Network

	// Wrap, when set, may put a handler of its own before that of a node: to watch, or to misbehave.
	Wrap func(*Member) wire.Handler

	// Options, when set, changes the options of one node.
	Options func(*ring.Options)

	options ring.Options

	mu     sync.Mutex
	random *rand.Rand
	next   int
	live   []*Member // in ring order
	coming map[member.ID]bool
	others []*Member // started, not in live: they have not joined, or have no place
}

// New returns a swarm without members. Their options are o, with a source of chance each, from the seed.
func New(seed uint64, net simnet.Options, o ring.Options) *Swarm {
	net.Seed = seed
	return &Swarm{
		Net: simnet.New(net), options: o,
		random: rand.New(rand.NewPCG(seed, 3)), //nolint:gosec // a simulation, which has to be repeatable
		coming: map[member.ID]bool{},
	}
}

// Start attaches a new member and runs its node, which does not join yet.
func (s *Swarm) Start() *Member { return s.StartAs(nil) }

// StartAs is Start with a contact that is changed first.
func (s *Swarm) StartAs(change func(*member.Contact)) *Member {
	s.mu.Lock()
	c := simnet.Contact(s.next)
	s.next++
	o := s.options
	o.Random = rand.NewPCG(s.random.Uint64(), 4)
	s.mu.Unlock()
	if s.Options != nil {
		s.Options(&o)
	}
	if change != nil {
		change(&c)
	}
	m := &Member{Port: s.Net.Attach(c, nil), done: make(chan struct{})}
	m.Node = ring.New(c, m.Port, o)
	var handler wire.Handler = m.Node
	if s.Wrap != nil {
		handler = s.Wrap(m)
	}
	m.Port.Serve(handler)
	ctx, stop := context.WithCancel(context.Background())
	m.stop = stop
	s.mu.Lock()
	s.others = append(s.others, m)
	s.mu.Unlock()
	go func() {
		defer close(m.done)
		_ = m.Run(ctx) // nil, when ctx has ended
	}()
	return m
}

// Add starts a member and joins it through a random live one. It is part of the swarm when Add returns, or ended if
// that failed.
func (s *Swarm) Add(ctx context.Context) (*Member, error) {
	m := s.Start()
	if err := s.Join(ctx, m); err != nil {
		s.Kill(m)
		return nil, err
	}
	return m, nil
}

// Join joins a member through a random live one, if there is one.
func (s *Swarm) Join(ctx context.Context, m *Member) error {
	entry := s.Random()
	s.mu.Lock()
	s.coming[m.ID()] = true
	s.mu.Unlock()
	var err error
	if entry != nil {
		err = m.Node.Join(ctx, entry.Port.Contact())
	}
	s.mu.Lock()
	delete(s.coming, m.ID())
	s.mu.Unlock()
	if err == nil {
		s.Count(m)
	}
	return err
}

// Count makes a member that was started one of the live ones, though it has not been asked to join.
func (s *Swarm) Count(m *Member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, _ := s.search(m.ID())
	s.live = slices.Insert(s.live, i, m)
	s.others = slices.DeleteFunc(s.others, func(other *Member) bool { return other == m })
}

// Grow adds members, some of them at the same time, until there are size.
func (s *Swarm) Grow(ctx context.Context, size, atATime int) error {
	for {
		have := len(s.Live())
		if have >= size {
			return nil
		}
		errs := make([]error, min(size-have, max(1, min(atATime, have))))
		var all sync.WaitGroup
		for i := range errs {
			all.Go(func() { _, errs[i] = s.Add(ctx) })
		}
		all.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
}

// Live returns the live members in ring order.
func (s *Swarm) Live() []*Member {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.live)
}

// Random returns one of the live members, nil if there is none.
func (s *Swarm) Random() *Member {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.live) == 0 {
		return nil
	}
	return s.live[s.random.IntN(len(s.live))]
}

// Key returns a random key.
func (s *Swarm) Key() (key member.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range key {
		key[i] = byte(s.random.Uint32())
	}
	return key
}

// Chance returns a random number in [0, n).
func (s *Swarm) Chance(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.random.IntN(n)
}

// Owner returns the live member that owns a key.
func (s *Swarm) Owner(key member.ID) member.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, _ := s.search(key)
	return s.live[i%len(s.live)].ID()
}

// Right reports whether a member may be taken for the owner of a key at this moment: it is, or is about to be as it is
// joining.
func (s *Swarm) Right(key, owner member.ID) bool {
	right := s.Owner(key)
	if owner == right {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.coming[owner] && owner.Between(key, right)
}

func (s *Swarm) search(id member.ID) (int, bool) {
	return slices.BinarySearchFunc(s.live, id, func(m *Member, id member.ID) int { return m.ID().Compare(id) })
}

// Kill ends members silently.
func (s *Swarm) Kill(list ...*Member) { s.end(list, s.Net.Kill) }

// Crash ends members so that their connections break.
func (s *Swarm) Crash(list ...*Member) { s.end(list, s.Net.Crash) }

// Leave lets a member leave in good order, then ends it.
func (s *Swarm) Leave(ctx context.Context, m *Member) error {
	s.mu.Lock()
	if i, found := s.search(m.ID()); found {
		s.live = slices.Delete(s.live, i, i+1)
	}
	s.mu.Unlock()
	err := m.Node.Leave(ctx)
	s.end([]*Member{m}, s.Net.Crash)
	return err
}

func (s *Swarm) end(list []*Member, how func(member.ID)) {
	for _, m := range list {
		s.mu.Lock()
		if i, found := s.search(m.ID()); found {
			s.live = slices.Delete(s.live, i, i+1)
		}
		s.mu.Unlock()
		how(m.ID())
		m.stop()
	}
	for _, m := range list {
		<-m.done
	}
}

// Close ends all members and waits for them.
func (s *Swarm) Close() {
	s.mu.Lock()
	all := slices.Concat(s.live, s.others)
	s.mu.Unlock()
	s.Kill(all...)
	s.Net.Close()
}

// Check says what is wrong with the ring, if anything is: every live member's lists hold, in order, the members that
// are next to it. depth is how many of each list are looked at.
func (s *Swarm) Check(depth int) error {
	live := s.Live()
	depth = min(depth, len(live)-1)
	for i, m := range live {
		before, after := m.Neighbours()
		if len(before) < depth || len(after) < depth {
			return fmt.Errorf("%s knows %d before and %d after it, not %d", m.ID().Short(), len(before), len(after), depth)
		}
		for k := range depth {
			next, previous := live[(i+k+1)%len(live)].ID(), live[(i-k-1+len(live))%len(live)].ID()
			if after[k].ID != next {
				return fmt.Errorf("%s has %s for its successor %d, not %s", m.ID().Short(), after[k].ID.Short(), k+1, next.Short())
			}
			if before[k].ID != previous {
				return fmt.Errorf("%s has %s for its predecessor %d, not %s", m.ID().Short(), before[k].ID.Short(), k+1, previous.Short())
			}
		}
	}
	return nil
}

// Settle waits until Check finds nothing wrong, and returns how long that took.
func (s *Swarm) Settle(depth int, limit time.Duration) (time.Duration, error) {
	start := time.Now()
	for {
		err := s.Check(depth)
		if took := time.Since(start); err == nil || took >= limit {
			return took, err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Pick returns a share of the live members, chosen at random.
func (s *Swarm) Pick(share float64) []*Member {
	list := s.Live()
	s.mu.Lock()
	s.random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	s.mu.Unlock()
	return list[:int(share*float64(len(list)))]
}
