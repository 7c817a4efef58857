// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// elsewhere is the answer to a probe of a session that another site has sent.
func elsewhere(t *testing.T, o *measurepb.Open, v int, number uint16) []byte {
	t.Helper()
	conf, err := sessionConfig(o)
	if err != nil {
		t.Fatal(err)
	}
	c, err := stateless.New(conf)
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Append(nil, &stateless.Probe{Src: shared[v], Dst: target[v], TTL: 1, Number: number})
	if err != nil {
		t.Fatal(err)
	}
	return answer(p)
}

// passing is the ports that the filters of an agent pass, by receiver.
func (s *site) passing() (out [6][]rawio.PortRange) {
	s.plane.ask(func() {
		for i := range s.plane.receivers {
			out[i] = slices.Clone(s.plane.receivers[i].passing)
		}
	})
	return out
}

// TestFilter: nothing passes but what belongs to open sessions, and that does from the moment that they are confirmed.
func TestFilter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		s := start(t, Options{Links: oneLink, Dial: c.dial})
		a := c.accept(0)
		synctest.Wait()
		mine, other := open(1, measurepb.Protocol_PROTOCOL_UDP), open(2, measurepb.Protocol_PROTOCOL_TCP)
		all := func() {
			for v := range 2 {
				s.host.Deliver(elsewhere(t, mine, v, 7))
				s.host.Deliver(elsewhere(t, other, v, 7))
			}
			synctest.Wait()
		}
		received := func(what string, want uint64) {
			t.Helper()
			time.Sleep(time.Millisecond)
			if st := s.Stats(); st.Received != want || st.Recognised != want {
				t.Errorf("%s: %+v, want %d", what, st, want)
			}
		}
		all()
		received("before", 0)

		a.order(mine)
		a.confirmed(1)
		all()
		received("one session", 2)
		a.collect(0, 2)
		ports := rawio.PortRange{Lo: 20016, Hi: 20031}
		want := [6][]rawio.PortRange{0: {ports}, 1: {ports}, 3: {ports}, 4: {ports}} // not those of TCP
		if got := s.passing(); !equal(got, want) {
			t.Errorf("filters pass %v, want %v", got, want)
		}

		a.order(other)
		a.confirmed(2)
		all()
		received("two sessions", 6)
		a.collect(0, 4)
		both := rawio.PortRange{Lo: 20016, Hi: 20047} // they touch
		tcp := rawio.PortRange{Lo: 20032, Hi: 20047}
		want = [6][]rawio.PortRange{{both}, {ports}, {tcp}, {both}, {ports}, {tcp}}
		if got := s.passing(); !equal(got, want) {
			t.Errorf("filters pass %v, want %v", got, want)
		}

		a.order(&measurepb.Close{Session: 1})
		a.order(&measurepb.Close{Session: 2})
		time.Sleep(time.Duration(narrowEvery) + time.Millisecond)
		if got := s.passing(); !equal(got, [6][]rawio.PortRange{}) {
			t.Errorf("filters pass %v when nothing runs", got)
		}
		all()
		received("after", 6)
	})
}

func equal(a, b [6][]rawio.PortRange) bool {
	return slices.EqualFunc(a[:], b[:], func(x, y []rawio.PortRange) bool { return slices.Equal(x, y) })
}

// TestFilterLinger: what is late for a session that has been closed passes for as long as it counts.
func TestFilterLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		s := start(t, Options{Links: oneLink, Dial: c.dial})
		a := c.accept(0)
		o := open(1, measurepb.Protocol_PROTOCOL_ICMP)
		a.order(o)
		a.confirmed(1)
		a.order(&measurepb.Close{Session: 1, Linger: int64(5 * time.Second)})
		time.Sleep(4 * time.Second)
		s.host.Deliver(elsewhere(t, o, 0, 7))
		a.collect(0, 1)
		time.Sleep(3 * time.Second)
		if got := s.passing(); !equal(got, [6][]rawio.PortRange{}) {
			t.Errorf("filters pass %v when nothing runs", got)
		}
	})
}

// TestConfirmRefused: a controller need not wait for a session that can not be.
func TestConfirmRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		start(t, Options{Links: oneLink, Dial: c.dial})
		a := c.accept(0)
		a.order(&measurepb.Open{Session: 8, Key: key[:], FirstPort: 30000}) // of no protocol
		a.order(open(9, measurepb.Protocol_PROTOCOL_ICMP))
		a.order(open(9, measurepb.Protocol_PROTOCOL_ICMP)) // again
		a.confirmed(8)
		a.confirmed(9)
	})
}

// TestManyFilters: the filters stay small, whatever controllers open.
func TestManyFilters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		s := start(t, Options{Links: oneLink, Dial: c.dial})
		a := c.accept(0)
		const n = 1000
		for id := range uint32(n) {
			o := open(2*id, measurepb.Protocol_PROTOCOL_UDP) // every other 16 ports
			a.order(o)
		}
		a.confirmed(2 * (n - 1))
		first, last := elsewhere(t, open(0, measurepb.Protocol_PROTOCOL_UDP), 0, 1), elsewhere(t, open(2*(n-1), measurepb.Protocol_PROTOCOL_UDP), 0, 1)
		s.host.Deliver(first)
		s.host.Deliver(last)
		a.collect(0, 2)
		if got := s.passing(); len(got[0]) == 0 || len(got[0]) > 32 {
			t.Errorf("%d ranges of ports", len(got[0]))
		}
	})
}
