// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/probe/stateless"
)

func testFleet(t *testing.T) *fleet {
	t.Helper()
	b, err := volta.NewBlocks(10000, 20000, 100)
	if err != nil {
		t.Fatal(err)
	}
	return newFleet(b, quiet())
}

// left is how many sessions and kinds of shared ones there are.
func left(f *fleet) (sessions, kinds int) {
	f.shared.mu.Lock()
	defer f.shared.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.sessions), len(f.shared.kinds)
}

// openLease opens a session that shares another, for so many numbers.
func openLease(t *testing.T, f *fleet, probes stateless.Config, numbers int) (*lease, *recorder) {
	t.Helper()
	r := new(recorder)
	s, err := f.Open(t.Context(), anycast.SessionConfig{Probes: probes, Numbers: numbers, Handler: r})
	if err != nil {
		t.Fatal(err)
	}
	l, ok := s.(*lease)
	if !ok {
		t.Fatalf("%T, want a lease", s)
	}
	return l, r
}

// answerOf is an answer to a probe of a lease, as the fleet recognises it.
func answerOf(l *lease, number uint16) anycast.Answer {
	var a anycast.Answer
	a.Number, a.Flow, a.Target = number+uint16(l.first*unit), l.flow, target
	return a
}

var udp = stateless.Config{Kind: stateless.UDP}

// TestShared: leases of one session have numbers of their own, for good, and hear of nobody else's answers.
func TestShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := testFleet(t)
		type owned struct {
			session *session
			port    uint16
			unit    int
		}
		taken := map[owned]bool{}
		for i := range 2000 {
			l, r := openLease(t, f, udp, 1+i%200)
			for u := range l.units {
				k := owned{l.shared.session, l.FirstPort(), l.first + u}
				if taken[k] {
					t.Fatalf("lease %d has unit %v, which somebody had", i, k)
				}
				taken[k] = true
			}
			answers := []anycast.Answer{answerOf(l, 0), answerOf(l, uint16(i%200))}
			l.shared.HandleAnswers(answers)
			if len(r.answers) != 2 || r.answers[0].Number != 0 || r.answers[1].Number != uint16(i%200) || r.answers[1].Flow != 0 {
				t.Fatalf("lease %d hears %v", i, r.answers)
			}
			l.Close()
			l.Close() // again
			l.shared.HandleAnswers([]anycast.Answer{answerOf(l, 0)})
			if len(r.answers) != 2 {
				t.Fatalf("lease %d hears something after its end", i)
			}
			if err := l.Send("a", anycast.Batch{}); !errors.Is(err, net.ErrClosed) {
				t.Fatalf("send after close: %v", err)
			}
		}
		time.Sleep(sharedIdle + defaultLinger + time.Second)
		sessions, kinds := left(f)
		if n := f.ports.blocks.InUse(); n != 0 || sessions != 0 || kinds != 0 {
			t.Errorf("%d ports, %d sessions, %d kinds are left", n, sessions, kinds)
		}
	})
}

// TestSharedInterleaved: answers to several leases that come together go to each its own.
func TestSharedInterleaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := testFleet(t)
		a, heardA := openLease(t, f, udp, 60)
		b, heardB := openLease(t, f, udp, 60)
		if a.shared != b.shared || a.FirstPort() == b.FirstPort() {
			t.Fatalf("ports %d and %d of sessions %p and %p", a.FirstPort(), b.FirstPort(), a.shared, b.shared)
		}
		nobody := anycast.Answer{}
		nobody.Number = stateless.MaxNumber
		a.shared.HandleAnswers([]anycast.Answer{answerOf(a, 1), answerOf(b, 2), nobody, answerOf(b, 3), answerOf(a, 4)})
		for _, c := range []struct {
			heard *recorder
			want  [2]uint16
		}{{heardA, [2]uint16{1, 4}}, {heardB, [2]uint16{2, 3}}} {
			if got := c.heard.answers; len(got) != 2 || got[0].Number != c.want[0] || got[1].Number != c.want[1] {
				t.Errorf("heard %v, want %v", got, c.want)
			}
		}
		if err := a.Send("a", anycast.Batch{
			Targets: []netip.Addr{target}, TTLs: []uint8{1}, Flows: []uint16{0}, Numbers: []uint16{unit},
		}); !errors.Is(err, errNumbers) {
			t.Errorf("a number of the next lease: %v", err)
		}
		a.Close()
		b.Close()
		time.Sleep(time.Minute)
	})
}

// TestSharedReplaced: a session whose numbers have run out is closed with its last lease.
func TestSharedReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := testFleet(t)
		first, _ := openLease(t, f, udp, unit)
		prepared := 0
		for {
			if sessions, _ := left(f); sessions == 2 {
				prepared++
			}
			l, _ := openLease(t, f, udp, maxLease)
			l.Close()
			if l.shared != first.shared {
				break
			}
		}
		if sessions, _ := left(f); !first.shared.retired || sessions != 2 {
			t.Errorf("retired: %v, %d sessions", first.shared.retired, sessions)
		}
		if want := sharedPorts * units / 4 / (maxLease / unit); prepared < want-sharedPorts || prepared > want+sharedPorts {
			t.Errorf("its successor was open for %d leases, want some %d", prepared, want)
		}
		first.Close()
		if sessions, _ := left(f); sessions != 1 {
			t.Errorf("%d sessions, want the new one", sessions)
		}
		time.Sleep(time.Minute)
		if sessions, _ := left(f); sessions != 0 || f.ports.blocks.InUse() != 0 {
			t.Errorf("%d sessions, %d ports are left", sessions, f.ports.blocks.InUse())
		}
	})
}

// TestSharedRests: with the current session its successor is closed.
func TestSharedRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := testFleet(t)
		for {
			l, _ := openLease(t, f, udp, maxLease)
			l.Close()
			if sessions, _ := left(f); sessions == 2 {
				break
			}
		}
		time.Sleep(sharedIdle + defaultLinger + time.Second)
		if sessions, kinds := left(f); sessions != 0 || kinds != 0 || f.ports.blocks.InUse() != 0 {
			t.Errorf("%d sessions, %d kinds, %d ports are left", sessions, kinds, f.ports.blocks.InUse())
		}
	})
}

// TestSharedWithoutPorts: where there are none for a successor, requests go on until the session is used up, and then wait.
func TestSharedWithoutPorts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := volta.NewBlocks(1000, 1000+sharedPorts, sharedPorts)
		if err != nil {
			t.Fatal(err)
		}
		f := newFleet(b, quiet())
		first, _ := openLease(t, f, udp, unit)
		leases := 0
		for begin := time.Now(); ; leases++ {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			l, err := f.Open(ctx, anycast.SessionConfig{Probes: udp, Numbers: maxLease, Handler: new(recorder)})
			cancel()
			if err == nil {
				l.Close()
				continue
			}
			if took := time.Since(begin); !errors.Is(err, anycast.ErrNoPorts) || took != time.Second {
				t.Errorf("after %v: %v", took, err)
			}
			break
		}
		if most := sharedPorts * units / (maxLease / unit); leases < most-sharedPorts || leases > most {
			t.Errorf("%d leases, want some %d", leases, most)
		}
		first.Close()
		time.Sleep(time.Minute)
		again, _ := openLease(t, f, udp, unit)
		again.Close()
		time.Sleep(time.Minute)
	})
}

// TestSharedKinds: probes that look different are of different sessions, and there are not too many of these.
func TestSharedKinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := testFleet(t)
		var open []anycast.Session
		for tos := range uint8(maxShared) {
			l, _ := openLease(t, f, stateless.Config{Kind: stateless.UDP, TOS: tos}, unit)
			if got := l.shared.session.codec.Config().TOS; got != tos {
				t.Errorf("TOS %d, want %d", got, tos)
			}
			open = append(open, l)
		}
		for _, conf := range []anycast.SessionConfig{
			{Probes: stateless.Config{Kind: stateless.UDP, TOS: 99}, Numbers: unit},
			{Probes: udp},
			{Probes: udp, Numbers: maxLease + 1},
			{Probes: udp, Numbers: unit, Linger: time.Minute},
			{Probes: stateless.Config{Kind: stateless.UDP, Ports: 2}, Numbers: unit},
			{Probes: stateless.Config{Kind: stateless.CHAOS}, Numbers: 1},
		} {
			conf.Handler = new(recorder)
			s, err := f.Open(t.Context(), conf)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := s.(*session); !ok {
				t.Errorf("%+v is %T, want a session of its own", conf, s)
			}
			open = append(open, s)
		}
		for _, s := range open {
			s.Close()
		}
		time.Sleep(2 * time.Minute)
		if n := f.ports.blocks.InUse(); n != 0 {
			t.Errorf("%d ports are left", n)
		}
	})
}

// TestAwait: probes do not leave before all sites listen; one that does not is waited for once, and then not until it has
// said something.
func TestAwait(t *testing.T) {
	t.Parallel()
	s := start(t, Options{})
	w := &world{hops: 2, receiver: atSite("a")}
	a, slow := w.agent("a"), w.agent("slow")
	slow.deaf = true
	var told time.Time
	a.onSend = func(*measurepb.Send) { told = time.Now() }
	a.attach(s)
	slow.attach(s)
	s.connected("a", "slow")
	open := func(wait time.Duration) (anycast.Session, time.Duration) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		defer cancel()
		begin := time.Now()
		session, err := s.fleet.Open(ctx, anycast.SessionConfig{Probes: udp, Handler: new(recorder)})
		if err != nil {
			t.Fatal(err)
		}
		return session, time.Since(begin)
	}
	one, took := open(50 * time.Millisecond)
	if took < 50*time.Millisecond || took > time.Second {
		t.Errorf("waited %v, want until the deadline", took)
	}
	id := one.(*session).id
	slow.mu.Lock()
	codec := slow.sessions[id]
	slow.stream.Send(&measurepb.FromAgent{Event: &measurepb.FromAgent_Opened{Opened: &measurepb.Opened{Sessions: []uint32{id, 12345}}}})
	slow.mu.Unlock()
	if codec == nil {
		t.Error("the site was not told")
	}
	begin := time.Now()
	one.(*session).await(t.Context())
	if took := time.Since(begin); took > time.Second {
		t.Errorf("waited %v for a site that listens", took)
	}

	if testing.Short() {
		return
	}
	begin = time.Now()
	if code, output := s.request("volta a 203.0.113.10 -w 10"); code != 200 {
		t.Errorf("%d %s", code, output)
	}
	if took := told.Sub(begin); took < openPatience || took > openPatience+5*time.Second {
		t.Errorf("probes were ordered after %v, want %v", took, openPatience)
	}
	two, took := open(time.Minute)
	if took > time.Second {
		t.Errorf("waited %v for a site that is known to be slow", took)
	}
	one.Close()
	two.Close()
}

// TestAwaitLost: a site that is lost is not waited for.
func TestAwaitLost(t *testing.T) {
	s := start(t, Options{})
	slow := (&world{}).agent("slow")
	slow.deaf = true
	slow.attach(s)
	s.connected("slow")
	opened := make(chan time.Duration)
	begin := time.Now()
	go func() {
		session, err := s.fleet.Open(t.Context(), anycast.SessionConfig{Probes: udp, Handler: new(recorder)})
		if err != nil {
			t.Error(err)
		} else {
			session.Close()
		}
		opened <- time.Since(begin)
	}()
	time.Sleep(50 * time.Millisecond)
	slow.detach()
	if took := <-opened; took < 50*time.Millisecond || took >= openPatience {
		t.Errorf("waited %v", took)
	}
}
