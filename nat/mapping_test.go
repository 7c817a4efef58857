// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fakeDoor is a gateway in memory, for the life of mappings over hours. Leases end, and what it forgets is gone.
type fakeDoor struct {
	mu       sync.Mutex
	external netip.Addr
	grants   time.Duration
	down     bool
	mapped   map[Protocol]lease
	until    map[Protocol]time.Time
	adds     int
	log      []string
}

func (d *fakeDoor) method() Method      { return PCP }
func (d *fakeDoor) client() netip.Addr  { return netip.MustParseAddr("192.0.2.7") }
func (d *fakeDoor) address() netip.Addr { return netip.MustParseAddr("192.0.2.1") }

func (d *fakeDoor) probe(context.Context) (Answer, error) { return Answer{}, nil }

func (d *fakeDoor) add(_ context.Context, l lease) (lease, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.adds++
	if d.down {
		return lease{}, ErrNoAnswer
	}
	l.external = netip.AddrPortFrom(d.external, l.external.Port())
	l.lifetime = min(d.grants, l.lifetime)
	d.mapped[l.protocol], d.until[l.protocol] = l, time.Now().Add(l.lifetime)
	return l, nil
}

func (d *fakeDoor) remove(_ context.Context, l lease) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return ErrNoAnswer
	}
	delete(d.mapped, l.protocol)
	return nil
}

func (d *fakeDoor) check(_ context.Context, l lease) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch have, ok := d.mapped[l.protocol]; {
	case d.down:
		return ErrNoAnswer
	case !ok || have.external.Addr() != d.external:
		return errStale
	}
	return nil
}

// set changes the gateway.
func (d *fakeDoor) set(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

// asked counts the requests for leases.
func (d *fakeDoor) asked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.adds
}

// forwards tells whether a protocol is mapped now.
func (d *fakeDoor) forwards(p Protocol) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.mapped[p]
	return ok && time.Now().Before(d.until[p])
}

// keeper is a mapper at a fake gateway.
func keeper(d *fakeDoor) *Mapper {
	m := &Mapper{finding: make(chan struct{}, 1), mappings: map[*Mapping]struct{}{}}
	m.o.Log = slog.New(slog.DiscardHandler)
	m.o.CheckInterval = DefaultCheckInterval
	m.find = func(context.Context, bool) (*site, error) {
		time.Sleep(DefaultTimeout)
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.down {
			return nil, ErrNoGateway
		}
		return &site{gateway: d.address(), local: d.client(), doors: []door{d}}, nil
	}
	m.route = func() (netip.Addr, netip.Addr, error) { return d.address(), d.client(), nil }
	m.site = &site{gateway: d.address(), local: d.client(), doors: []door{d}}
	return m
}

func newFakeDoor() *fakeDoor {
	return &fakeDoor{external: netip.MustParseAddr("203.0.113.1"), grants: time.Hour, mapped: map[Protocol]lease{}, until: map[Protocol]time.Time{}}
}

// record notes events with their time since the start.
func (d *fakeDoor) record(r Request) Request {
	began := time.Now()
	r.Notify = func(e Event) {
		d.set(func() {
			d.log = append(d.log, fmt.Sprintf("%v %v %v", time.Since(began), e.Kind, e.State.External))
		})
	}
	return r
}

func (d *fakeDoor) events() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.log)
}

// A day of renewals: each after half of what was granted, and the port never closed.
func TestRenewals(t *testing.T) {
	for _, tt := range []struct {
		granted time.Duration
		adds    int
	}{{time.Hour, 49}, {2 * time.Minute, 1441}, {7 * 24 * time.Hour, 49}} {
		synctest.Test(t, func(t *testing.T) {
			d := newFakeDoor()
			d.grants = tt.granted
			m := keeper(d)
			mapping, err := m.Map(t.Context(), Request{InternalPort: 49610})
			if err != nil {
				t.Fatal(err)
			}
			for range 24 * 60 {
				time.Sleep(time.Minute)
				if !d.forwards(TCP) {
					t.Fatal("the port is closed")
				}
			}
			synctest.Wait()
			if n := d.asked(); n != tt.adds {
				t.Errorf("granted %v: asked %d times in a day, want %d", tt.granted, n, tt.adds)
			}
			if err := mapping.Close(); err != nil || d.forwards(TCP) {
				t.Errorf("close: %v, still forwards: %v", err, d.forwards(TCP))
			}
		})
	}
}

// A gateway that forgets without a word is found out by looking.
func TestForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newFakeDoor()
		m := keeper(d)
		mapping, err := m.Map(t.Context(), d.record(Request{Protocol: TCP | UDP, InternalPort: 49610}))
		if err != nil {
			t.Fatal(err)
		}
		defer mapping.Close()
		time.Sleep(10 * time.Minute)
		d.set(func() { delete(d.mapped, UDP) })
		time.Sleep(30 * time.Second)
		if !d.forwards(TCP) || !d.forwards(UDP) {
			t.Error("not mapped again")
		}
		if got := d.events(); len(got) != 1 || !strings.HasSuffix(got[0], "renewed 203.0.113.1:49610") {
			t.Errorf("events: %q", got)
		}
	})
}

// A gateway that says that it has restarted gets at most two requests a second, however often it says so.
func TestWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newFakeDoor()
		m := keeper(d)
		mapping, err := m.Map(t.Context(), d.record(Request{InternalPort: 49610}))
		if err != nil {
			t.Fatal(err)
		}
		defer mapping.Close()
		time.Sleep(time.Minute)
		d.set(func() { clear(d.mapped) })
		m.wake()
		time.Sleep(time.Millisecond)
		if !d.forwards(TCP) {
			t.Error("not mapped again at once")
		}
		before := d.asked()
		for range 10_000 {
			m.wake()
			time.Sleep(time.Millisecond)
		}
		if n := d.asked() - before; n < 10 || n > 21 {
			t.Errorf("asked %d times in 10 s", n)
		}
	})
}

// A gateway that is gone for a while: one event when it is lost, and one when it is back, well within a minute.
func TestOutage(t *testing.T) {
	for _, outage := range []time.Duration{5 * time.Second, time.Minute, 10 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			d := newFakeDoor()
			m := keeper(d)
			mapping, err := m.Map(t.Context(), d.record(Request{InternalPort: 49610}))
			if err != nil {
				t.Fatal(err)
			}
			defer mapping.Close()
			time.Sleep(19 * time.Second)
			d.set(func() { d.down = true; clear(d.mapped) })
			time.Sleep(outage)
			d.set(func() { d.down = false; d.external = netip.MustParseAddr("203.0.113.2") })
			back := time.Now()
			for !d.forwards(TCP) && time.Since(back) < time.Minute {
				time.Sleep(100 * time.Millisecond)
			}
			if took := time.Since(back); took > 20*time.Second {
				t.Errorf("after %v: mapped again %v after the gateway was back", outage, took)
			}
			synctest.Wait()
			var kinds []string
			for _, e := range d.events() {
				kinds = append(kinds, strings.SplitN(e, " ", 2)[1])
			}
			if want := []string{"lost 203.0.113.1:49610", "mapped 203.0.113.2:49610"}; !slices.Equal(kinds, want) {
				t.Errorf("after %v: events %q, want %q", outage, kinds, want)
			}
			if got := mapping.External().String(); got != "203.0.113.2:49610" {
				t.Errorf("external is %s", got)
			}
		})
	}
}

// The external address changes while everything else stays.
func TestAddressChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newFakeDoor()
		m := keeper(d)
		mapping, err := m.Map(t.Context(), d.record(Request{InternalPort: 49610}))
		if err != nil {
			t.Fatal(err)
		}
		defer mapping.Close()
		d.set(func() { d.external = netip.MustParseAddr("203.0.113.9") })
		time.Sleep(30 * time.Second)
		if got := d.events(); len(got) != 1 || got[0] != "20s changed 203.0.113.9:49610" {
			t.Errorf("events: %q", got)
		}
	})
}

// This host moves to another network: what it had there does not count.
func TestHostMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newFakeDoor()
		m := keeper(d)
		other := newFakeDoor()
		other.external = netip.MustParseAddr("198.51.100.1")
		here := netip.MustParseAddr("192.0.2.129")
		var moved atomic.Bool
		route, find := m.route, m.find
		m.route = func() (netip.Addr, netip.Addr, error) {
			if !moved.Load() {
				return route()
			}
			return here, d.client(), nil
		}
		m.find = func(ctx context.Context, all bool) (*site, error) {
			if !moved.Load() {
				return find(ctx, all)
			}
			return &site{gateway: here, local: d.client(), doors: []door{other}}, nil
		}
		mapping, err := m.Map(t.Context(), d.record(Request{InternalPort: 49610}))
		if err != nil {
			t.Fatal(err)
		}
		defer mapping.Close()
		moved.Store(true)
		time.Sleep(30 * time.Second)
		if got := mapping.External().String(); got != "198.51.100.1:49610" || !other.forwards(TCP) {
			t.Errorf("external is %s, the new gateway forwards: %v", got, other.forwards(TCP))
		}
		if got := d.events(); len(got) != 1 || !strings.Contains(got[0], "changed") {
			t.Errorf("events: %q", got)
		}
	})
}

// Mappings that are lost at the same time search once, and not one after the other.
func TestManyLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newFakeDoor()
		m := keeper(d)
		var searches atomic.Int32
		find := m.find
		m.find = func(ctx context.Context, all bool) (*site, error) {
			searches.Add(1)
			return find(ctx, all)
		}
		for port := range uint16(50) {
			if _, err := m.Map(t.Context(), Request{InternalPort: 50_000 + port}); err != nil {
				t.Fatal(err)
			}
		}
		d.set(func() { d.down = true })
		time.Sleep(2 * time.Minute)
		if n := searches.Load(); n > 20 {
			t.Errorf("searched %d times in 2 minutes", n)
		}
		d.set(func() { d.down = false })
		time.Sleep(30 * time.Second)
		m.mu.Lock()
		for mapping := range m.mappings {
			if mapping.mu.Lock(); mapping.lost {
				t.Errorf("%d is still lost", mapping.request.InternalPort)
			}
			mapping.mu.Unlock()
		}
		m.mu.Unlock()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A program that ends while its gateway is gone does not wait for it, and one that ends when the gateway is silent not long.
func TestCloseWhileDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newFakeDoor()
		m := keeper(d)
		mapping, err := m.Map(t.Context(), Request{InternalPort: 49610})
		if err != nil {
			t.Fatal(err)
		}
		d.set(func() { d.down = true })
		if err := mapping.Close(); !errors.Is(err, ErrNoAnswer) {
			t.Errorf("close: %v", err)
		}
		if again := mapping.Close(); !errors.Is(again, ErrNoAnswer) {
			t.Errorf("close, again: %v", again)
		}
	})
}

// When the gateway is found anew for one mapping, the others go on by the new way: also to be removed.
func TestFoundAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before, after := newFakeDoor(), newFakeDoor()
		m := keeper(before)
		var found atomic.Bool
		find := m.find
		m.find = func(ctx context.Context, all bool) (*site, error) {
			found.Store(true)
			s, err := find(ctx, all)
			if err == nil {
				s.doors = []door{after}
			}
			return s, err
		}
		first, err := m.Map(t.Context(), before.record(Request{InternalPort: 49610}))
		if err != nil {
			t.Fatal(err)
		}
		second, err := m.Map(t.Context(), Request{Protocol: UDP, InternalPort: 49610})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.search(t.Context(), m.current(), false); err != nil || !found.Load() {
			t.Fatal(err)
		}
		before.set(func() { before.down = true }) // its socket is closed
		if err := second.Close(); err != nil {
			t.Errorf("removed by the old way: %v", err)
		}
		time.Sleep(30 * time.Second)
		if !after.forwards(TCP) || after.forwards(UDP) {
			t.Errorf("by the new way: TCP %v, UDP %v", after.forwards(TCP), after.forwards(UDP))
		}
		if got := before.events(); len(got) != 1 || !strings.HasSuffix(got[0], "renewed 203.0.113.1:49610") {
			t.Errorf("events: %q", got)
		}
		if err := first.Close(); err != nil || after.forwards(TCP) {
			t.Errorf("close: %v", err)
		}
	})
}
