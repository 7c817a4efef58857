// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package guard_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/relay/guard"
)

// A station is a relay on a segment of which the tests decide who hears whom.
type station struct {
	*guard.Election
	id, mac guard.MAC
	token   byte
	log     *bytes.Buffer
	off     bool
}

func newStation(id byte, configure func(*guard.ElectionConfig)) *station {
	s := &station{id: guard.MAC{2, 0, 0, 0, 0, id}, mac: guard.MAC{2, 0, 0, 0, 1, id}, token: id, log: new(bytes.Buffer)}
	config := guard.ElectionConfig{Relay: s.id, Token: [8]byte{id}, Log: slog.New(slog.NewTextHandler(s.log, nil))}
	if configure != nil {
		configure(&config)
	}
	s.Election = guard.NewElection(config)
	s.SetReady(true, []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, id}), 7124)})
	return s
}

// pass lets all stations announce themselves from one time until another.
func pass(t *testing.T, from, to time.Duration, stations ...*station) {
	t.Helper()
	for now := from; now < to; now += guard.Interval {
		for _, s := range stations {
			if s.off {
				continue
			}
			s.Tick(int64(now))
			a, mac, err := guard.Parse(s.AppendAnnouncement(nil, s.mac, int64(now)))
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range stations {
				if o != s && !o.off {
					o.Heard(a, mac, int64(now))
				}
			}
		}
	}
}

func serving(at time.Duration, stations ...*station) string {
	var ids []string
	for _, s := range stations {
		if !s.off && s.Serving(int64(at)) {
			ids = append(ids, fmt.Sprint(s.id[5]))
		}
	}
	return strings.Join(ids, " ")
}

func TestElection(t *testing.T) {
	a, b, c := newStation(3, nil), newStation(1, nil), newStation(2, nil)
	all := []*station{a, b, c}
	check := func(at time.Duration, want string) {
		t.Helper()
		if got := serving(at, all...); got != want {
			t.Errorf("at %v relays %q serve, want %q", at, got, want)
		}
	}
	check(0, "3 1 2") // nobody has heard anybody
	pass(t, 0, time.Second, all...)
	check(time.Second, "1")

	// The best dies; a second and a half after its last announcement the next one serves.
	b.off = true
	pass(t, time.Second, 2*time.Second, all...)
	check(2*time.Second, "")
	pass(t, 2*time.Second, 4*time.Second, all...)
	check(2300*time.Millisecond, "2")

	// It comes back.
	b.off = false
	pass(t, 4*time.Second, 5*time.Second, all...)
	check(5*time.Second, "1")

	// It says that it leaves: there is no gap.
	b.SetReady(false, nil)
	pass(t, 5*time.Second, 5*time.Second+1, all...)
	check(5*time.Second+1, "2")
	if n := c.Neighbours(int64(5*time.Second + 1)); n[0].Relay != b.id || n[0].Serving || n[0].Ready {
		t.Errorf("relay 1 says %+v, want neither ready nor serving", n[0].Announcement)
	}

	if !strings.Contains(c.log.String(), "relay=02:00:00:00:00:01") {
		t.Errorf("the log does not name relay 1:\n%s", c.log)
	}

	// None is ready: none yields.
	a.SetReady(false, nil)
	c.SetReady(false, nil)
	pass(t, 6*time.Second, 7*time.Second, all...)
	check(7*time.Second, "3 1 2")

	if got := strings.Count(c.log.String(), "serves the segment"); got != 4 {
		t.Errorf("relay 2 logged %d changes, want 4:\n%s", got, c.log)
	}
}

// TestNewcomer has a better relay come to a segment that is served: at no time
// do both serve it, but for the announcement's way.
func TestNewcomer(t *testing.T) {
	old, better := newStation(2, nil), newStation(1, nil)
	pass(t, 0, time.Second, old)
	better.SetReady(false, nil)
	now := time.Second
	if got := serving(now, better); got != "1" {
		t.Error("a relay that hears nobody does not serve")
	}
	a, _, err := guard.Parse(better.AppendAnnouncement(nil, better.mac, int64(now)))
	if err != nil || a.Ready || !a.Serving {
		t.Errorf("it says %+v, %v, want serving though not ready", a, err)
	}
	pass(t, now, now+2*guard.Interval, old, better)
	now += 2 * guard.Interval
	if got := serving(now, old, better); got != "2" {
		t.Errorf("relays %q serve, want 2, which is ready", got)
	}
	better.SetReady(true, nil)
	pass(t, now, now+1, better, old)
	if got := serving(now+1, old, better); got != "1" {
		t.Errorf("relays %q serve, want 1", got)
	}
}

func TestNeighbours(t *testing.T) {
	a, b, c := newStation(3, nil), newStation(1, nil), newStation(2, func(c *guard.ElectionConfig) { c.Mesh[0] = 1 })
	pass(t, 0, time.Second, a, b, c)
	if got := serving(time.Second, a, b, c); got != "1 2" {
		t.Errorf("relays %q serve, want the best of each mesh", got)
	}
	now := int64(time.Second)
	neighbours := a.Neighbours(now)
	if len(neighbours) != 2 || neighbours[0].Relay != b.id || !neighbours[0].Ours || neighbours[1].Relay != c.id || neighbours[1].Ours {
		t.Errorf("neighbours of 3: %+v", neighbours)
	}
	if got := neighbours[0].MeshAddrs; len(got) != 1 || got[0] != netip.MustParseAddrPort("192.0.2.1:7124") {
		t.Errorf("relay 1 is at %v", got)
	}
	if !neighbours[0].Trusted || neighbours[1].Trusted {
		t.Errorf("trusted: 1 %v, 2 of another mesh %v", neighbours[0].Trusted, neighbours[1].Trusted)
	}
	if n := b.Neighbours(now); !neighbours[0].Serving || n[1].Relay != a.id || n[1].Serving {
		t.Errorf("serving, by what they say: 1 %v, 3 %v", neighbours[0].Serving, n[1].Serving)
	}
	late := now + int64(guard.Lost)
	if got := a.Neighbours(late); len(got) != 0 {
		t.Errorf("neighbours long after: %+v", got)
	}
}

func TestTrust(t *testing.T) {
	confirmed := false
	careful := newStation(3, func(c *guard.ElectionConfig) {
		c.Trust = func(relay guard.MAC, token [8]byte) bool { return confirmed && relay[5] == 1 && token[0] == 1 }
	})
	friend := newStation(1, nil)
	pass(t, 0, time.Second, careful, friend)
	if !careful.Serving(int64(time.Second)) || careful.Neighbours(int64(time.Second))[0].Trusted {
		t.Error("yields to a relay that nobody knows")
	}
	confirmed = true
	pass(t, time.Second, 2*time.Second, careful, friend)
	if careful.Serving(int64(2 * time.Second)) {
		t.Error("does not yield to a relay that is confirmed")
	}
	// Another who uses its name is not listened to while it is there.
	forged := guard.Announcement{Relay: friend.id, Token: [8]byte{9}, Sequence: 1 << 40}
	careful.Heard(forged, friend.mac, int64(2*time.Second))
	if careful.Serving(int64(2 * time.Second)) {
		t.Error("was talked into serving")
	}
	// The link breaks.
	confirmed = false
	pass(t, 2*time.Second, 2*time.Second+1, careful, friend)
	if !careful.Serving(int64(2*time.Second + 1)) {
		t.Error("yields to a relay without a link to it")
	}
}

func TestOldAnnouncements(t *testing.T) {
	e := newStation(3, nil)
	a := guard.Announcement{Relay: guard.MAC{2, 0, 0, 0, 0, 1}, Sequence: 10, Ready: true}
	if !e.Heard(a, sender, 0) {
		t.Error("a new relay is not fresh")
	}
	// What is played back does not keep it alive.
	for now := time.Duration(0); now < 3*time.Second; now += guard.Interval {
		for a.Sequence = 1; a.Sequence <= 10; a.Sequence++ {
			if e.Heard(a, sender, int64(now)) {
				t.Error("an old announcement is fresh")
			}
		}
	}
	if !e.Serving(int64(guard.Lost)) {
		t.Error("yields to what is played back")
	}
	a.Sequence = 11
	if e.Heard(a, sender, int64(guard.Lost)) {
		t.Error("the next announcement is fresh")
	}
	a.Sequence, a.MeshAddrs = 12, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:7124")}
	if !e.Heard(a, sender, int64(guard.Lost)) {
		t.Error("a relay with other addresses is not fresh")
	}
	a.Sequence, a.Token = 1, [8]byte{7}
	if !e.Heard(a, sender, int64(guard.Lost)) || e.Serving(int64(guard.Lost)) {
		t.Error("a relay that was started again is not listened to")
	}
}

// TestTwins has two segments of one relay joined by accident: each hears the
// other under its own ID, and one of them yields.
func TestTwins(t *testing.T) {
	a, b := newStation(5, nil), newStation(5, func(c *guard.ElectionConfig) { c.Token[0] = 4 })
	b.mac[0] = 6
	pass(t, 0, 2*time.Second, a, b)
	if a.Serving(int64(2*time.Second)) || !b.Serving(int64(2*time.Second)) {
		t.Error("want the one with the lower token to serve")
	}
	if got := strings.Count(a.log.String(), "level=WARN"); got != 1 {
		t.Errorf("%d warnings, want 1:\n%s", got, a.log)
	}
	// Its own announcement that comes back says nothing.
	own := guard.Announcement{Relay: a.id, Token: [8]byte{5}, Sequence: 1 << 40, Ready: true}
	if a.Heard(own, a.mac, int64(2*time.Second)) || len(a.Neighbours(int64(2*time.Second))) != 1 {
		t.Error("a relay is its own neighbour")
	}
}

// TestInventedRelays has someone on the segment who invents relays.
func TestInventedRelays(t *testing.T) {
	friend := newStation(1, nil)
	e := newStation(9, func(c *guard.ElectionConfig) {
		c.Trust = func(relay guard.MAC, _ [8]byte) bool { return relay == friend.id }
	})
	pass(t, 0, time.Second, e, friend)
	for i := range 10_000 {
		a := guard.Announcement{Relay: guard.MAC{2, 0, 0, 1, byte(i >> 8), byte(i)}, Sequence: 1, Ready: true}
		e.Heard(a, a.Relay, int64(time.Second))
	}
	now := int64(time.Second)
	if got := len(e.Neighbours(now)); got != guard.MaxNeighbours {
		t.Errorf("%d neighbours, want %d", got, guard.MaxNeighbours)
	}
	if e.Serving(now) || !slices.ContainsFunc(e.Neighbours(now), func(n guard.Neighbour) bool { return n.Trusted }) {
		t.Error("the relay that is trusted was forgotten")
	}
	if got := strings.Count(e.log.String(), "\n"); got > 25 {
		t.Errorf("%d lines in the log", got)
	}
}

// TestManyRelays has more relays of ours than are remembered.
func TestManyRelays(t *testing.T) {
	trusted := func(relay guard.MAC) bool { return relay[3] == 0 }
	heard := func(e *station, kind byte, n int, now time.Duration) {
		a := guard.Announcement{Relay: guard.MAC{2, 0, 0, kind, 1, byte(n)}, Sequence: 1, Ready: true}
		e.Heard(a, a.Relay, int64(now))
	}
	careful := func(c *guard.ElectionConfig) {
		c.Trust = func(relay guard.MAC, _ [8]byte) bool { return trusted(relay) }
	}
	count := func(e *station, now time.Duration) (n int) {
		for _, o := range e.Neighbours(int64(now)) {
			if trusted(o.Relay) {
				n++
			}
		}
		return n
	}
	// One that is not trusted takes nobody's place, though all others are older.
	e := newStation(9, careful)
	for n := range guard.MaxNeighbours {
		heard(e, 0, n, 0)
	}
	heard(e, 1, 0, 1)
	if got := count(e, 1); got != guard.MaxNeighbours {
		t.Errorf("%d trusted relays of %d are left", got, guard.MaxNeighbours)
	}
	// One that is takes the place of one that is not, though a trusted one is older.
	e = newStation(9, careful)
	for n := range guard.MaxNeighbours {
		heard(e, byte(min(n, 1)), n, time.Duration(n))
	}
	heard(e, 0, 200, 100)
	if got := count(e, 100); got != 2 {
		t.Errorf("%d trusted relays of 2 are left", got)
	}
}
