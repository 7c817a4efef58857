// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicada

import (
	"context"
	"crypto/sha256"
	"slices"
	"time"

	"github.com/seed5728abee/fathom/swarm/broadcast"
	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// Bounds of what is remembered about broadcasts.
const (
	maxTexts    = 1024             // texts that originals have broadcast of late
	maxSenders  = 64               // originals that one of them came from
	textLife    = 30 * time.Second // after its last copy
	maxTags     = 4096             // broadcasts handed to originals
	maxSpreads  = 256              // copies on their way at a time
	roomVisited = 16               // entries of a visited list left for originals to add to
)

// tagPrefix makes the tag of a broadcast an entry of its visited list: an ID that nobody has. Originals carry it along
// when they relay, so that a copy that comes back is known.
const tagPrefix = "fathom broadcast"

func tagID(t wire.Tag) (id member.ID) {
	copy(id[copy(id[:], tagPrefix):], t[:])
	return id
}

func tagOf(id member.ID) (t wire.Tag, ok bool) {
	if string(id[:len(tagPrefix)]) != tagPrefix {
		return t, false
	}
	copy(t[:], id[len(tagPrefix):])
	return t, true
}

// texts remembers what originals have broadcast. They do not name their broadcasts, and hand on each as often as they
// get it. So a text is taken for a new broadcast when one single neighbour has sent it more often than it was delivered:
// copies that come by other ways are absorbed, and what an application says twice is delivered twice.
type texts map[[sha256.Size]byte]*text

type text struct {
	counts map[member.ID]int // copies, by the neighbour that sent them
	have   []member.ID       // who has the last of them, besides those it is spread to
	number int               // of the first broadcast of it; see [broadcast.ForeignTag]
	tags   []wire.Tag        // delivered, in order
	last   time.Time
}

func newTexts() texts { return texts{} }

// sweep forgets what has not been said again for some time. Then the same text begins anew.
func (t texts) sweep(now time.Time) {
	for sum, e := range t {
		if now.Sub(e.last) > textLife {
			delete(t, sum)
		}
	}
}

func (t texts) entry(payload []byte, now time.Time) *text {
	sum := sha256.Sum256(payload)
	e := t[sum]
	if e != nil && now.Sub(e.last) > textLife {
		e = nil
	}
	if e == nil {
		if len(t) >= maxTexts {
			t.sweep(now)
		}
		if len(t) >= maxTexts {
			return nil
		}
		// Every native member that hears a text has to number it alike, and differently from the last time that it was
		// said: tags are remembered longer than texts. They take the number from their clocks, as far as those agree.
		e = &text{counts: map[member.ID]int{}, number: int(now.Unix()/int64(textLife/time.Second)) % 512 * 64}
		t[sum] = e
	}
	e.last = now
	return e
}

// copied counts a copy that a neighbour sent. If that makes it a new broadcast, it returns its tag.
func (t texts) copied(payload []byte, from member.ID, now time.Time) (tag wire.Tag, fresh bool) {
	e := t.entry(payload, now)
	if e == nil {
		return tag, false
	}
	if _, known := e.counts[from]; !known && len(e.counts) >= maxSenders {
		return tag, false
	}
	if e.counts[from]++; e.counts[from] <= len(e.tags) {
		return tag, false
	}
	tag = broadcast.ForeignTag(payload, e.number+len(e.tags))
	e.tags = append(e.tags, tag)
	return tag, true
}

// have takes note of who has the last broadcast of a text.
func (t texts) have(payload []byte, members []member.ID) {
	if e := t[sha256.Sum256(payload)]; e != nil {
		e.have = members
	}
}

// delivered takes note of a broadcast of an original that came by way of another native member.
// It returns who has it already, as far as this gateway has seen.
func (t texts) delivered(payload []byte, tag wire.Tag, now time.Time) []member.ID {
	e := t.entry(payload, now)
	if e == nil {
		return nil
	}
	if !slices.Contains(e.tags, tag) {
		e.tags, e.have = append(e.tags, tag), nil
	}
	return e.have
}

// tagMemory knows the last broadcasts that were handed to originals.
type tagMemory struct {
	known map[wire.Tag]struct{}
	order []wire.Tag // a ring
	next  int
}

func newTagMemory() tagMemory { return tagMemory{known: map[wire.Tag]struct{}{}} }

// add reports whether a tag is new.
func (m *tagMemory) add(t wire.Tag) bool {
	if _, ok := m.known[t]; ok {
		return false
	}
	m.known[t] = struct{}{}
	if len(m.order) < maxTags {
		m.order = append(m.order, t)
		return true
	}
	delete(m.known, m.order[m.next])
	m.order[m.next] = t
	m.next = (m.next + 1) % maxTags
	return true
}

// heardBroadcast handles a broadcast that came from an original.
func (g *Gateway) heardBroadcast(c *conn, from member.Contact, body Body) {
	for _, id := range body.Visited {
		if _, ok := tagOf(id); ok {
			// A native member began it, or has passed it on: it goes round among the natives by itself.
			g.count(&g.stats.Absorbed)
			return
		}
	}
	payload := append([]byte(nil), body.Payload...)
	g.mu.Lock()
	tag, fresh := g.texts.copied(payload, from.ID, time.Now())
	if fresh {
		g.stats.Injected++
		g.texts.have(payload, append(body.Visited, from.ID))
	} else {
		g.stats.Absorbed++
	}
	g.mu.Unlock()
	if fresh {
		g.o.Inject(tag, g.first(from.ID, body.Visited), payload)
	}
}

// first returns where a broadcast of originals most likely began. They hand one on to their successors, mostly: so it
// is the first of an unbroken row of members before us that have it. Others that have it too lie elsewhere.
func (g *Gateway) first(sender member.ID, visited []member.ID) member.ID {
	self := g.selfID()
	have := append(slices.Clone(visited), sender)
	slices.SortFunc(have, func(a, b member.ID) int { return a.Distance(self).Compare(b.Distance(self)) })
	known := g.known(g.ring(g.ctx, member.Contact{ID: sender, Dialect: member.Original}))
	origin := self
	for _, id := range have {
		gap := slices.ContainsFunc(known, func(c member.Contact) bool {
			return !c.Leaf && c.ID.Between(id, origin) && !slices.Contains(have, c.ID)
		})
		switch {
		case id == self, id == origin:
		case gap && origin == self:
			return sender
		case gap:
			return origin
		default:
			origin = id
		}
	}
	return origin
}

// Spread hands a broadcast to all originals between this member and the next native one, clockwise, without waiting. It
// is to be called for every broadcast of the swarm, once, also for those that this gateway injected. Originals in except
// are left out.
func (g *Gateway) Spread(tag wire.Tag, origin member.ID, payload []byte, except ...member.ID) {
	g.mu.Lock()
	foreign := broadcast.IsForeign(tag)
	if foreign {
		except = append(slices.Clone(except), g.texts.delivered(payload, tag, time.Now())...)
	}
	if !g.tags.add(tag) || len(payload) > MaxPayload {
		g.mu.Unlock()
		return
	}
	var targets []member.ID
	for _, id := range g.arc {
		// What originals began goes on from where it began, to the next native member.
		if foreign && (id == origin || id.Between(origin, g.arcEnd)) && origin.Between(g.arcStart, g.arcEnd) {
			continue
		}
		if !slices.Contains(except, id) && id != origin {
			targets = append(targets, id)
		}
	}
	g.mu.Unlock()
	if len(targets) == 0 {
		return
	}
	visited := g.visited(tag, origin, targets, except)
	for _, id := range targets {
		g.spreading.Add(1)
		if !g.background(func(ctx context.Context) {
			defer g.spreading.Add(-1)
			g.spreadTo(ctx, id, Body{Broadcast: true, Visited: visited, Payload: payload})
		}) {
			g.spreading.Add(-1)
		}
	}
}

// Settle waits until the broadcasts that were given to Spread are with the originals, or ctx ends: nobody else sees to
// them when this member leaves.
func (g *Gateway) Settle(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for g.spreading.Load() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// visited lists whom an original is not to relay a broadcast to: all that it may know.
func (g *Gateway) visited(tag wire.Tag, origin member.ID, targets, except []member.ID) []member.ID {
	list := make([]member.ID, 0, MaxVisited-roomVisited)
	seen := map[member.ID]bool{}
	add := func(id member.ID) {
		if len(list) < cap(list) && !seen[id] {
			seen[id] = true
			list = append(list, id)
		}
	}
	add(tagID(tag))
	add(g.selfID())
	add(origin)
	for _, id := range append(slices.Clone(targets), except...) {
		add(id)
	}
	g.mu.Lock()
	for _, id := range targets { // whom they have named
		if p := g.peers[id]; p != nil {
			add(p.told.Predecessor.ID)
			add(p.told.Successor.ID)
		}
	}
	census := g.census
	g.mu.Unlock()
	for _, c := range g.known(g.ring(g.ctx, g.o.Self())) {
		add(c.ID)
	}
	for _, id := range census {
		add(id)
	}
	return list
}

// spreadTo hands a broadcast to one original. Its application takes it only from somebody that the original knows: where
// that is not us, it is sent in the name of the predecessor that it names.
func (g *Gateway) spreadTo(ctx context.Context, id member.ID, body Body) {
	to := member.Contact{ID: id, Dialect: member.Original}
	_, err := g.ready(ctx, to)
	if err == nil {
		var as *Ref
		g.mu.Lock()
		p := g.peers[id]
		if p != nil && !g.knowsUsLocked(p, time.Now()) && p.told.Predecessor.ID != g.selfID() && !p.told.Predecessor.IsZero() {
			named := p.told.Predecessor
			as = &named
		}
		g.mu.Unlock()
		err = g.deliver(ctx, to, body, as)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil {
		g.stats.SpreadLost++
		g.o.Log.Debug("broadcast to an original", "member", id.Short(), "error", err)
		return
	}
	g.stats.Spread++
}
