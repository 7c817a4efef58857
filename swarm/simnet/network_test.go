// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package simnet_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/simnet"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// echo answers pings, counts what it is told, and remembers whom it was told to suspect.
type echo struct {
	casts     atomic.Int64
	suspected chan member.ID
	pause     time.Duration
}

func (e *echo) Handle(_ context.Context, _ member.Contact, m wire.Message) wire.Message {
	if _, ok := m.(wire.Ping); ok {
		time.Sleep(e.pause)
		return wire.Pong{}
	}
	e.casts.Add(1)
	return nil
}

func (e *echo) Suspect(id member.ID) { e.suspected <- id }

func newEcho() *echo { return &echo{suspected: make(chan member.ID, 10)} }

// pair attaches two members, 10 ms apart unless o says otherwise.
func pair(o simnet.Options) (n *simnet.Network, a, b *simnet.Port, ea, eb *echo) {
	if o.Handshake == 0 {
		o.Handshake = -1
	}
	if o.Far == 0 {
		o.Near, o.Far = 10*time.Millisecond, 10*time.Millisecond
	}
	n, ea, eb = simnet.New(o), newEcho(), newEcho()
	return n, n.Attach(simnet.Contact(0), ea), n.Attach(simnet.Contact(1), eb), ea, eb
}

func ping(t *testing.T, from *simnet.Port, to member.Contact) (time.Duration, error) {
	t.Helper()
	start := time.Now()
	m, err := from.Call(t.Context(), to, wire.Ping{})
	if _, ok := m.(wire.Pong); err == nil && !ok {
		t.Fatalf("ping was answered with %v", m)
	}
	return time.Since(start), err
}

func TestRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, _, eb := pair(simnet.Options{})
		if rtt := a.RTT(b.Contact().ID); rtt != 0 {
			t.Errorf("an RTT of %v before there was a call", rtt)
		}
		took, err := ping(t, a, b.Contact())
		if err != nil || took != 20*time.Millisecond {
			t.Fatalf("a call took %v, %v", took, err)
		}
		if rtt := a.RTT(b.Contact().ID); rtt != took || n.RTT(a.Contact().ID, b.Contact().ID) != took {
			t.Errorf("RTT %v, want %v", rtt, took)
		}
		a.Cast(b.Contact(), wire.Have{})
		time.Sleep(time.Second)
		if eb.casts.Load() != 1 {
			t.Error("a cast did not arrive")
		}
		s := n.Stats()
		if s.Messages != 3 || s.Bytes != 4 || s.ByKind[wire.KindPing] != (simnet.Count{Messages: 1, Bytes: 1}) {
			t.Errorf("counted %+v", s)
		}
	})
}

func TestHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b, _, _ := pair(simnet.Options{Handshake: 2})
		if took, err := ping(t, a, b.Contact()); err != nil || took != 60*time.Millisecond {
			t.Errorf("with a handshake a call took %v, %v", took, err)
		}
		if ab, ba := a.RTT(b.Contact().ID), b.RTT(a.Contact().ID); ab != 20*time.Millisecond || ba != ab {
			t.Errorf("measured %v and %v", ab, ba)
		}
		if took, err := ping(t, b, a.Contact()); err != nil || took != 20*time.Millisecond {
			t.Errorf("over the same link, from the other end: %v, %v", took, err)
		}
	})
}

func TestKilledIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, ea, _ := pair(simnet.Options{})
		_, _ = ping(t, a, b.Contact())
		n.Kill(b.Contact().ID)
		took, err := ping(t, a, b.Contact())
		if !errors.Is(err, wire.ErrUnreachable) || took < 20*time.Millisecond || took > 200*time.Millisecond {
			t.Errorf("a call to the dead: %v after %v", err, took)
		}
		if _, err := ping(t, b, a.Contact()); !errors.Is(err, wire.ErrUnreachable) {
			t.Errorf("a call of the dead: %v", err)
		}
		if len(ea.suspected) > 0 {
			t.Error("a silent death was reported")
		}
		n.Revive(b.Contact().ID)
		if _, err := ping(t, a, b.Contact()); err != nil {
			t.Errorf("after reviving: %v", err)
		}
	})
}

func TestCrashBreaksLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, ea, eb := pair(simnet.Options{})
		eb.pause = time.Hour
		start := time.Now()
		time.AfterFunc(15*time.Millisecond, func() { n.Crash(b.Contact().ID) })
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := a.Call(ctx, b.Contact(), wire.Ping{}); !errors.Is(err, wire.ErrUnreachable) || time.Since(start) != 25*time.Millisecond {
			t.Errorf("a call at work: %v after %v", err, time.Since(start))
		}
		if id := <-ea.suspected; id != b.Contact().ID {
			t.Errorf("suspected %v", id)
		}
		if took, err := ping(t, a, b.Contact()); !errors.Is(err, wire.ErrUnreachable) || took != 20*time.Millisecond {
			t.Errorf("a new call: %v after %v", err, took)
		}
		time.Sleep(2 * time.Hour) // until the handler that paused is gone
	})
}

func TestPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, _, _ := pair(simnet.Options{})
		n.Partition([]member.ID{b.Contact().ID})
		if _, err := ping(t, a, b.Contact()); err == nil {
			t.Error("a call got across")
		}
		n.Heal()
		if _, err := ping(t, a, b.Contact()); err != nil {
			t.Errorf("after healing: %v", err)
		}
	})
}

func TestLeafIsReachedByItsLinksAndHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, host, _, _ := pair(simnet.Options{})
		c := simnet.Contact(2)
		c.Leaf = true
		leaf := n.Attach(c, newEcho())
		if _, err := ping(t, a, c); !errors.Is(err, wire.ErrUnreachable) {
			t.Errorf("a leaf was reached from outside: %v", err)
		}
		if _, err := ping(t, leaf, host.Contact()); err != nil {
			t.Fatal(err)
		}
		if took, err := ping(t, host, c); err != nil || took != 20*time.Millisecond {
			t.Errorf("by the link it made: %v after %v", err, took)
		}
		c.Hosts = []member.Contact{host.Contact()}
		if took, err := ping(t, a, c); err != nil || took != 40*time.Millisecond {
			t.Errorf("through the host: %v after %v", err, took)
		}
	})
}

func TestLossAndJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, _, eb := pair(simnet.Options{Loss: 0.25, Jitter: 0.5, Seed: 7})
		for range 1000 {
			a.Cast(b.Contact(), wire.Have{})
		}
		time.Sleep(15*time.Millisecond + 1000) // each keeps its place behind the one before it
		got := eb.casts.Load()
		if got < 700 || got > 800 || n.Stats().Lost != uint64(1000-got) {
			t.Errorf("%d of 1000 arrived, %d counted as lost", got, n.Stats().Lost)
		}
	})
}

func TestOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b, _, eb := pair(simnet.Options{Handlers: 1})
		eb.pause = 5 * time.Millisecond
		results := make(chan error, 2)
		for range 2 {
			go func() {
				_, err := a.Call(t.Context(), b.Contact(), wire.Ping{})
				results <- err
			}()
		}
		first, second := <-results, <-results
		if refused, ok := errors.AsType[wire.Refused](errors.Join(first, second)); !ok || refused.Code != wire.Overloaded {
			t.Errorf("got %v and %v", first, second)
		}
	})
}

func Example() {
	network := simnet.New(simnet.Options{Near: time.Millisecond, Far: 2 * time.Millisecond})
	alice := network.Attach(simnet.Contact(1), nil)
	bob := network.Attach(simnet.Contact(2), newEcho())

	answer, err := alice.Call(context.Background(), bob.Contact(), wire.Ping{})
	fmt.Println(answer.Kind(), err)
	// Output: pong <nil>
}
