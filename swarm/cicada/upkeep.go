// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicada

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// How often what is looked after.
const (
	upkeepEvery = time.Second
	askEvery    = 4 * time.Second // an original for its neighbours; it counts a peer as dead after 30 s
	askHurried  = cachedFor
	hurryFor    = 30 * time.Second // after somebody is gone
	silentFor   = 15 * time.Second // an original that does not notify its successor that long has none
	rejoinEvery = 5 * time.Second  // between attempts to heal the same original
	censusEvery = 20 * time.Second // between looks around the whole ring, for those that the originals may know
	maxArc      = 255              // originals that one native member looks after
)

// Run keeps originals in order until ctx ends, and returns nil then: it looks which originals stand between this member
// and the next native one, asks them what they see, and heals those that have lost their successor.
func (g *Gateway) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(g.ctx, cancel)()
	tick := time.NewTicker(upkeepEvery)
	defer tick.Stop()
	var counted time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		g.survey(ctx)
		g.heal(ctx)
		if time.Since(counted) >= censusEvery {
			g.takeCensus(ctx)
			counted = time.Now()
		}
		g.mu.Lock()
		now := time.Now()
		g.texts.sweep(now)
		g.sweepLocked(now, peerLife)
		g.mu.Unlock()
	}
}

// survey finds the originals between us and the next native member: of all that are known or named to be there, those
// that answer.
func (g *Gateway) survey(ctx context.Context) {
	self := g.o.Self()
	if self.Leaf { // it has no place on the ring: the originals around its ID are those of the member before
		g.mu.Lock()
		g.arc, g.arcStart, g.arcEnd = nil, self.ID, self.ID
		g.mu.Unlock()
		return
	}
	state := g.ring(ctx, self)
	end := self.ID // the nearest native member after us, or we
	open := map[member.ID]member.Contact{}
	closed := map[member.ID]bool{self.ID: true}
	add := func(c member.Contact) {
		switch {
		case closed[c.ID] || c.Leaf || len(closed)+len(open) > 2*maxArc:
		case !c.ID.Between(self.ID, end):
		case c.Dialect == member.Native && g.o.Live(c.ID):
			end = c.ID
		case c.Dialect == member.Native: // may be dead: not for us to say
		default:
			open[c.ID] = c
		}
	}
	for _, c := range g.known(state) {
		add(c)
	}
	var arc []member.ID
	for len(open) > 0 && ctx.Err() == nil {
		round := slices.Collect(maps.Values(open))
		clear(open)
		for _, c := range round {
			closed[c.ID] = true
		}
		for i, answer := range g.askAll(ctx, round) {
			c := round[i]
			if answer == nil {
				continue
			}
			if answer.Self.Dialect == member.Native {
				if c.ID.Between(self.ID, end) {
					end = c.ID
				}
				continue
			}
			arc = append(arc, c.ID)
			for _, named := range append(answer.Predecessors, answer.Successors...) {
				add(named)
			}
		}
		maps.DeleteFunc(open, func(id member.ID, _ member.Contact) bool { return !id.Between(self.ID, end) })
	}
	arc = slices.DeleteFunc(arc, func(id member.ID) bool { return !id.Between(self.ID, end) })
	slices.SortFunc(arc, func(a, b member.ID) int { return self.ID.Distance(a).Compare(self.ID.Distance(b)) })
	if ctx.Err() != nil {
		return
	}
	g.mu.Lock()
	g.arc, g.arcStart, g.arcEnd = arc, self.ID, end
	g.mu.Unlock()
}

// askAll asks members for their neighbours. The answer of one that gives none is nil.
func (g *Gateway) askAll(ctx context.Context, members []member.Contact) []*wire.Neighbours {
	answers := make([]*wire.Neighbours, len(members))
	var asked sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i, c := range members {
		slots <- struct{}{}
		asked.Go(func() {
			defer func() { <-slots }()
			if n, ok := g.toldLately(c.ID); ok {
				answers[i] = &n
				return
			}
			ctx, cancel := context.WithTimeout(ctx, requestTimeout)
			defer cancel()
			answer, err := g.o.Transport.Call(ctx, c, wire.State{})
			if n, ok := answer.(wire.Neighbours); ok && err == nil {
				answers[i] = &n
			}
		})
	}
	asked.Wait()
	return answers
}

// toldLately returns what an original answered, if that is not too long ago and the connection still stands.
func (g *Gateway) toldLately(id member.ID) (wire.Neighbours, bool) {
	g.mu.Lock()
	p := g.peers[id]
	age := askEvery
	if time.Now().Before(g.hurry) {
		age = askHurried
	}
	if p == nil || len(p.conns) == 0 || time.Since(p.toldAt) > age {
		g.mu.Unlock()
		return wire.Neighbours{}, false
	}
	told, n := p.told, wire.Neighbours{Self: p.contact()}
	g.mu.Unlock()
	if c, ok := g.heardOf(told.Predecessor); ok {
		n.Predecessors = []member.Contact{c}
	}
	if c, ok := g.heardOf(told.Successor); ok {
		n.Successors = []member.Contact{c}
	}
	return n, true
}

// heal asks originals that have lost their successor to join at us: one without a successor takes the sender for it, and
// keeps its place again from then on; to any other the request is a lookup. From us it learns who really follows it.
func (g *Gateway) heal(ctx context.Context) {
	self := g.ref()
	state := g.ring(ctx, g.o.Self())
	known := g.known(state)
	live := known[:0:0]
	for _, c := range known {
		if r := refOf(c); g.mayName(r, c, self) {
			live = append(live, c)
		}
	}
	var before member.ID
	if len(state.Predecessors) > 0 {
		before = state.Predecessors[0].ID
	}
	now := time.Now()
	g.mu.Lock()
	var sick []*conn
	for _, p := range g.peers {
		if len(p.conns) == 0 {
			continue
		}
		if p.id != before {
			p.placed = time.Time{}
		} else if p.placed.IsZero() {
			p.placed = now
		}
		if now.Sub(p.joined) < rejoinEvery {
			continue
		}
		between := func() bool {
			end := p.told.Successor.ID
			return self.ID.Between(p.id, end) || slices.ContainsFunc(live, func(c member.Contact) bool { return c.ID.Between(p.id, end) })
		}
		switch {
		case !p.failed.IsZero() && p.failed.After(p.toldAt):
			// It knows nobody, most likely: then it does not answer.
		case now.Sub(p.toldAt) <= askEvery && !p.told.Successor.IsZero() && p.told.Successor == p.told.Predecessor && between():
			// One without a successor names its predecessor in its place.
		case !p.placed.IsZero() && now.Sub(p.placed) > silentFor && now.Sub(p.notify) > silentFor && now.Sub(p.joined) > silentFor:
			// It does not know that we are its successor, and nobody tells it.
		default:
			continue
		}
		p.joined, p.follows = now, now
		g.stats.Healed++
		sick = append(sick, p.bestLocked())
	}
	g.mu.Unlock()
	for _, c := range sick {
		g.background(func(ctx context.Context) {
			answer, err := c.request(ctx, Join, AppendJoin(nil, self.Addr), nil)
			if err == nil {
				g.rejoined(c, answer)
			}
			g.o.Log.Debug("healing an original", "address", c.remote.String(), "error", err)
		})
	}
}

// rejoined takes note of what an original answered to a request to join that was to heal it.
func (g *Gateway) rejoined(c *conn, answer Message) {
	a, err := DecodeJoinAnswer(answer.Data)
	if err != nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	p := c.peer
	if p == nil {
		return
	}
	p.failed = time.Time{}
	if a.Node.Successor.ID == g.selfID() {
		c.interest = time.Now() // we are among its peers now
	} else {
		p.follows = time.Time{}
	}
}

// takeCensus looks around the ring for all members that originals may have in their tables: whom a broadcast names as
// visited, they do not relay it to.
func (g *Gateway) takeCensus(ctx context.Context) {
	g.mu.Lock()
	none := len(g.arc) == 0
	g.mu.Unlock()
	if none {
		return // nobody to hand broadcasts to
	}
	self := g.o.Self()
	open := map[member.ID]member.Contact{}
	closed := map[member.ID]bool{self.ID: true}
	add := func(c member.Contact) {
		if !closed[c.ID] && !c.Leaf {
			open[c.ID] = c
		}
	}
	for _, c := range g.known(g.ring(ctx, self)) {
		add(c)
	}
	var census []member.ID
	for len(open) > 0 && len(census) < MaxVisited && ctx.Err() == nil {
		round := slices.Collect(maps.Values(open))
		round = round[:min(len(round), MaxVisited)]
		clear(open)
		for _, c := range round {
			closed[c.ID] = true
		}
		for i, answer := range g.askAll(ctx, round) {
			if answer == nil {
				continue
			}
			census = append(census, round[i].ID)
			for _, c := range append(answer.Predecessors, answer.Successors...) {
				add(c)
			}
		}
	}
	g.mu.Lock()
	g.census = census
	g.mu.Unlock()
}
