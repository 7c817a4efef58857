// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/swarm"
	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/view"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// A swarmScene is what a view looks at: a ring elsewhere, seen through a leaf of ours, and members that run here. Its methods
// can be called from several goroutines.
type swarmScene struct {
	options swarm.Options
	entries []string
	timeout time.Duration
	watcher *swarm.Peer // nil when there are local members only

	// mu guards all that follows.
	mu     sync.Mutex
	wg     sync.WaitGroup // Add under mu, and only while not closed
	closed bool
	locals []*swarm.Peer
	dots   []sceneDot // oldest first
	heard  map[string]int
}

// A sceneDot is a message that a local member has sent.
type sceneDot struct {
	from  *swarm.Peer
	to    swarm.Hash
	label string
	sent  time.Time
}

const (
	// dotTime is how long a dot is on its way: slow enough for eyes, whatever the message took.
	dotTime = 800 * time.Millisecond
	maxDots = 300
)

var errSceneClosed = errors.New("the view ends")

func newSwarmScene(o swarm.Options, entries []string, timeout time.Duration) *swarmScene {
	return &swarmScene{options: o, entries: entries, timeout: timeout, heard: make(map[string]int)}
}

// begin joins the swarm to look at, and starts local members.
func (s *swarmScene) begin(ctx context.Context, locals int) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if len(s.entries) > 0 {
		o := s.options
		o.Unreachable = true
		watcher, err := bindSwarmPeer(ctx, o, ":0")
		if err != nil {
			return err
		}
		s.watcher = watcher
		s.wg.Go(func() { s.hear(watcher) }) // as broadcasts come to it, too
		if err := watcher.Connect(ctx, s.entries...); err != nil {
			return err
		}
	}
	for range locals {
		p, err := s.start(ctx)
		if err != nil {
			return err
		}
		if s.watcher == nil {
			continue
		}
		if err := p.Connect(ctx, s.entries...); err != nil {
			return err
		}
	}
	return nil
}

// localAddress is where local members listen: where nobody else is to reach them, on this host only.
func (s *swarmScene) localAddress() string {
	for _, e := range s.entries {
		if addr, err := netip.ParseAddrPort(e); (err != nil || !addr.Addr().IsLoopback()) && !strings.HasPrefix(e, "localhost:") {
			return ":0"
		}
	}
	return "127.0.0.1:0"
}

// start starts a local member, which is alone.
func (s *swarmScene) start(ctx context.Context) (*swarm.Peer, error) {
	var p *swarm.Peer
	o := s.options
	o.Identity = nil // each has its own
	o.Hooks.Send = func(to swarm.Member, message []byte) { s.sent(p, to.ID, message) }
	p = swarm.New(o)
	if err := p.Bind(ctx, s.localAddress()); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.Join(errSceneClosed, p.Close())
	}
	s.locals = append(s.locals, p)
	s.wg.Go(func() { s.hear(p) })
	return p, nil
}

// sent remembers a message on its way; from is nil as long as the member is being made.
func (s *swarmScene) sent(from *swarm.Peer, to swarm.Hash, message []byte) {
	label := dotLabel(message)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.dots) >= maxDots {
		s.dots = append(s.dots[:0], s.dots[1:]...)
	}
	s.dots = append(s.dots, sceneDot{from, to, label, time.Now()})
}

// dotLabel gives the first letter of a message's kind, with an r behind it for answers. What members say to each other for
// the application has no kind: it is data.
func dotLabel(message []byte) string {
	m, err := wire.Decode(message)
	if err != nil {
		return "D"
	}
	label := strings.ToUpper(m.Kind().String()[:1])
	switch m.(type) {
	case wire.Pong, wire.Neighbours, wire.Found, wire.Closest, wire.Attached, wire.Stored, wire.Records, wire.Pushed, wire.Payloads, wire.Met, wire.Tried, wire.Refused:
		label += "r"
	}
	return label
}

// hear fetches what a member receives, until it is closed.
func (s *swarmScene) hear(p *swarm.Peer) {
	for {
		m, err := p.Recv(context.Background())
		if err != nil {
			return
		}
		s.mu.Lock()
		if _, ok := s.heard[string(m.Data)]; ok && p != s.watcher {
			s.heard[string(m.Data)]++
		}
		s.mu.Unlock()
	}
}

// close ends all local members, and the look at the others.
func (s *swarmScene) close() {
	s.mu.Lock()
	s.closed = true
	peers := s.locals
	s.mu.Unlock()
	if s.watcher != nil {
		s.watcher.Close()
	}
	for _, p := range peers { // one by one: all at once would wait for each other's goodbye
		p.Close()
	}
	s.wg.Wait()
}

// peers gives the local members.
func (s *swarmScene) peers() []*swarm.Peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*swarm.Peer(nil), s.locals...)
}

// local gives the local member with an ID, nil if it is none.
func (s *swarmScene) local(id swarm.Hash) *swarm.Peer {
	for _, p := range s.peers() {
		if p.ID() == id {
			return p
		}
	}
	return nil
}

// asker gives the member to do something from: the local one with the ID, or else the one that looks.
func (s *swarmScene) asker(id *swarm.Hash) (*swarm.Peer, error) {
	if id != nil {
		if p := s.local(*id); p != nil {
			return p, nil
		}
	}
	if s.watcher != nil {
		return s.watcher, nil
	}
	return nil, errors.New("select a member that runs here")
}

// look asks everyone for the neighbours, and returns the picture of them, without dots.
func (s *swarmScene) look(ctx context.Context) (view.Ring, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	var r view.Ring
	place := make(map[swarm.Hash]int)
	add := func(m view.Member) {
		if i, ok := place[m.ID]; ok {
			r.Members[i] = m
			return
		}
		place[m.ID] = len(r.Members)
		r.Members = append(r.Members, m)
	}
	if s.watcher != nil {
		members, err := walkRing(ctx, s.watcher)
		if err != nil {
			return r, err
		}
		for _, n := range members {
			m := viewMember(n.Self)
			m.Successors, m.Predecessors = memberIDs(n.Successors), memberIDs(n.Predecessors)
			m.State = view.InRing
			switch {
			case len(members) == 1:
				m.State = view.Alone
			case len(n.Successors) == 0 && len(n.Predecessors) == 0:
				m.State = view.Silent
			}
			m.Note = memberNote(n.Self, -1)
			add(m)
		}
	}
	for _, p := range s.peers() {
		state := p.State()
		m := viewMember(state.Self)
		m.Local = true
		m.Successors, m.Predecessors = memberIDs(state.Successors), memberIDs(state.Predecessors)
		m.Table = memberIDs(state.Forward, state.Backward, state.Hosts)
		if hasCompany(state) {
			m.State = view.InRing
		}
		m.Note = memberNote(state.Self, len(state.Peers))
		add(m)
	}
	return r, nil
}

// onTheirWay gives the dots of this moment.
func (s *swarmScene) onTheirWay(now time.Time) []view.Dot {
	s.mu.Lock()
	kept := s.dots[:0]
	for _, d := range s.dots {
		if now.Sub(d.sent) < dotTime {
			kept = append(kept, d)
		}
	}
	s.dots = kept
	recent := append([]sceneDot(nil), kept...)
	s.mu.Unlock()
	var dots []view.Dot
	for _, d := range recent {
		if d.from != nil {
			dots = append(dots, view.Dot{From: d.from.ID(), To: d.to, At: float64(now.Sub(d.sent)) / float64(dotTime), Label: d.label})
		}
	}
	return dots
}

// others gives the addresses of members in a state, without the one itself.
func (s *swarmScene) others(r view.Ring, self swarm.Hash, state view.State) []string {
	var addresses []string
	for _, m := range r.Members {
		if _, err := netip.ParseAddrPort(m.Label); err == nil && m.ID != self && m.State == state {
			addresses = append(addresses, m.Label)
		}
	}
	return addresses
}

// add starts a member, and lets it join a random one.
func (s *swarmScene) add(ctx context.Context, r view.Ring) (string, error) {
	if len(s.peers()) >= maxLocalMembers {
		return "", fmt.Errorf("%d members run here already", maxLocalMembers)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	p, err := s.start(ctx)
	if err != nil {
		return "", err
	}
	others := s.others(r, p.ID(), view.InRing)
	if len(others) == 0 {
		others = s.others(r, p.ID(), view.Alone)
	}
	if len(others) == 0 {
		return fmt.Sprintf("%s is here, alone", p.Addr()), nil
	}
	return s.joinTo(ctx, p, others[rand.N(len(others))])
}

// join lets a local member join another one.
func (s *swarmScene) join(ctx context.Context, id swarm.Hash, address string) (string, error) {
	p := s.local(id)
	if p == nil {
		return "", errors.New("only members that run here can be made to join")
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	return s.joinTo(ctx, p, address)
}

func (s *swarmScene) joinTo(ctx context.Context, p *swarm.Peer, address string) (string, error) {
	began := time.Now()
	if err := p.Connect(ctx, address); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s joined %s in %v", p.Addr(), address, time.Since(began).Round(time.Microsecond)), nil
}

// joinAll lets every local member that is alone join a random one that is not: so that there is one ring in the end.
func (s *swarmScene) joinAll(ctx context.Context, r view.Ring) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	var alone []*swarm.Peer
	for _, p := range s.peers() {
		if !hasCompany(p.State()) {
			alone = append(alone, p)
		}
	}
	rand.Shuffle(len(alone), func(i, j int) { alone[i], alone[j] = alone[j], alone[i] })
	ring := s.others(r, swarm.Hash{}, view.InRing)
	if len(ring) == 0 && len(alone) > 0 {
		ring, alone = append(ring, alone[0].Addr().String()), alone[1:]
	}
	began := time.Now()
	for _, p := range alone {
		if err := p.Connect(ctx, ring[rand.N(len(ring))]); err != nil {
			return "", err
		}
		ring = append(ring, p.Addr().String())
	}
	return fmt.Sprintf("%s joined in %v", count(len(alone), "member"), time.Since(began).Round(time.Millisecond)), nil
}

// lookup lets a member look up another's place.
func (s *swarmScene) lookup(ctx context.Context, from *swarm.Hash, key swarm.Hash) (string, error) {
	p, err := s.asker(from)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	r, err := p.Lookup(ctx, key, swarm.LookupOptions{})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s has %s, %s says after %s and %.2f ms", memberName(r.Owner), key.Short(), memberName(p.Self()), count(r.Hops, "hop"), r.Took.Seconds()*1e3), nil
}

// broadcast sends something to everybody, and tells how many of the local members have it.
func (s *swarmScene) broadcast(ctx context.Context, from *swarm.Hash) (string, error) {
	p, err := s.asker(from)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	text := fmt.Sprintf("broadcast %s", member.HashOf(time.Now().String()).Short())
	want := 0
	for _, other := range s.peers() {
		if other != p && hasCompany(other.State()) {
			want++
		}
	}
	s.mu.Lock()
	s.heard[text] = 0
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.heard, text)
		s.mu.Unlock()
	}()
	began := time.Now()
	if err := p.Broadcast(ctx, []byte(text)); err != nil {
		return "", err
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(2 * time.Second); ; {
		s.mu.Lock()
		got := s.heard[text]
		s.mu.Unlock()
		report := fmt.Sprintf("the broadcast of %s reached %d of %s here in %.1f ms", memberName(p.Self()), got, count(want, "other"), time.Since(began).Seconds()*1e3)
		if got >= want {
			return report, nil
		}
		select {
		case <-tick.C:
		case <-late:
			return report, nil // those of other rings do not get it
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// leave lets a local member leave.
func (s *swarmScene) leave(ctx context.Context, id swarm.Hash) (string, error) {
	p := s.local(id)
	if p == nil {
		return "", errors.New("only members that run here can be made to leave")
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if err := p.Disconnect(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s has left", p.Addr()), nil
}
