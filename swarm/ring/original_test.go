// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/ring"
	"github.com/seed5728abee/fathom/swarm/ring/ringtest"
	"github.com/seed5728abee/fathom/swarm/simnet"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// An original stands for one of Cicada's peers behind the gateway: it knows one predecessor and one successor, whose
// dialects it cannot tell, and takes nothing but State, Notify, Lookup and Ping.
type original struct {
	port *simnet.Port

	mu                     sync.Mutex
	predecessor, successor member.Contact
	asked                  int
	forbidden              []wire.Kind
}

func (o *original) Handle(ctx context.Context, _ member.Contact, m wire.Message) wire.Message {
	o.mu.Lock()
	self, before, after := o.port.Contact(), o.predecessor, o.successor
	o.asked++
	o.mu.Unlock()
	switch m := m.(type) {
	case wire.Ping:
		return wire.Pong{}
	case wire.State:
		return o.state()
	case wire.Notify:
		o.mu.Lock()
		if len(o.predecessor.Addrs) == 0 || m.From.ID.Between(o.predecessor.ID, self.ID) {
			o.predecessor = unknown(m.From)
		}
		o.mu.Unlock()
		return o.state()
	case wire.Lookup:
		if len(before.Addrs) == 0 || m.Key.In(before.ID, self.ID) {
			return wire.Found{Key: m.Key, Owner: self, Hops: 1, Path: []member.ID{self.ID}}
		}
		next := after
		if m.Key.Distance(before.ID).Compare(m.Key.Distance(after.ID)) < 0 {
			next = before
		}
		a, err := o.port.Call(ctx, next, m)
		if err != nil {
			return wire.Refused{Code: wire.Overloaded}
		}
		found := a.(wire.Found)
		found.Hops++
		found.Path = nil
		return found
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.forbidden = append(o.forbidden, m.Kind())
	return wire.Refused{Code: wire.Unsupported}
}

func (o *original) state() wire.Neighbours {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := wire.Neighbours{Self: o.port.Contact()}
	if len(o.predecessor.Addrs) > 0 {
		n.Predecessors = []member.Contact{o.predecessor}
	}
	if len(o.successor.Addrs) > 0 {
		n.Successors = []member.Contact{o.successor}
	}
	return n
}

// stabilize does what an original does every few seconds.
func (o *original) stabilize(ctx context.Context) {
	o.mu.Lock()
	next := o.successor
	o.mu.Unlock()
	if len(next.Addrs) == 0 {
		return
	}
	a, err := o.port.Call(ctx, next, wire.State{})
	if err != nil {
		return
	}
	self := o.port.Contact()
	if p := a.(wire.Neighbours).Predecessors; len(p) > 0 && p[0].ID.Between(self.ID, next.ID) {
		next = unknown(p[0])
		o.mu.Lock()
		o.successor = next
		o.mu.Unlock()
	}
	_, _ = o.port.Call(ctx, next, wire.Notify{From: self}) // the answer is ignored
}

func unknown(c member.Contact) member.Contact {
	c.Dialect = member.Unknown
	return c
}

func TestOriginalsHaveTheirPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ringtest.New(1, simnet.Options{}, ring.Options{})
		defer s.Close()
		if err := s.Grow(t.Context(), 10, 8); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		defer stop()
		var originals []*original
		for i := range 4 {
			o := &original{}
			c := simnet.Contact(2000 + i)
			c.Dialect = member.Original
			o.port = s.Net.Attach(c, nil)
			o.port.Serve(o)
			a, err := o.port.Call(ctx, s.Random().Port.Contact(), wire.Lookup{Key: c.ID})
			if err != nil {
				t.Fatal(err)
			}
			o.successor = unknown(a.(wire.Found).Owner)
			originals = append(originals, o)
			running.Go(func() {
				for ctx.Err() == nil {
					o.stabilize(ctx)
					select {
					case <-ctx.Done():
					case <-time.After(5 * time.Second):
					}
				}
			})
			time.Sleep(10 * time.Second)
		}
		time.Sleep(40 * time.Second)
		var ids []member.ID
		for _, m := range s.Live() {
			ids = append(ids, m.ID())
		}
		for _, o := range originals {
			ids = append(ids, o.port.Contact().ID)
		}
		slices.SortFunc(ids, member.ID.Compare)
		after := func(id member.ID) member.ID { return ids[(slices.Index(ids, id)+1)%len(ids)] }
		for _, m := range s.Live() {
			if _, next := m.Neighbours(); next[0].ID != after(m.ID()) || next[0].Dialect == member.Unknown {
				t.Errorf("%s has %s (%s) for its successor, not %s", m.ID().Short(), next[0], next[0].Dialect, after(m.ID()).Short())
			}
		}
		for _, o := range originals {
			id, next := o.port.Contact().ID, o.state().Successors
			if len(next) == 0 || next[0].ID != after(id) {
				t.Errorf("original %s has %v for its successor, not %s", id.Short(), next, after(id).Short())
			}
		}
		for range 100 {
			key := s.Key()
			i, _ := slices.BinarySearchFunc(ids, key, member.ID.Compare)
			owner := ids[i%len(ids)]
			for _, disjoint := range []int{0, 3} {
				found, err := s.Random().Lookup(t.Context(), key, ring.LookupOptions{Disjoint: disjoint})
				if err != nil || found.Owner.ID != owner {
					t.Fatalf("%s over %d paths: %s, %v, not %s", key.Short(), disjoint, found.Owner, err, owner.Short())
				}
			}
		}
		questions := func() (sum int) {
			for _, o := range originals {
				o.mu.Lock()
				sum += o.asked
				if len(o.forbidden) > 0 {
					t.Errorf("an original was sent %v", o.forbidden)
				}
				o.mu.Unlock()
			}
			return sum
		}
		before := questions()
		const rest = 60
		time.Sleep(rest * time.Second)
		if each := float64(questions()-before) / rest / float64(len(originals)); each > 1.5 {
			t.Errorf("an original at rest is asked %.1f times a second", each)
		}
		// One dies silently. The natives heal around it.
		s.Net.Kill(originals[0].port.Contact().ID)
		time.Sleep(20 * time.Second)
		ids = slices.DeleteFunc(ids, func(id member.ID) bool { return id == originals[0].port.Contact().ID })
		for _, m := range s.Live() {
			_, next := m.Neighbours()
			if next[0].ID == originals[0].port.Contact().ID {
				t.Errorf("%s believes in the dead", m.ID().Short())
			}
		}
	})
}
