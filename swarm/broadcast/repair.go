// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package broadcast

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

const (
	// tellAfter is how long news waits for more of its kind. The tree is faster in any case.
	tellAfter = 20 * time.Millisecond
	// tellNear and tellFar are how many members on each side, and anywhere, are told of what is new.
	tellNear = 2
	tellFar  = 2
	// near is how many members on each side take part in what is told later.
	near = 4

	// Who hears of a broadcast waits for the tree as long as that is expected to take, in round trips to the one who told.
	// Where that is not known, links are still being made.
	graceTrips   = 8
	minGrace     = 100 * time.Millisecond
	maxGrace     = 1500 * time.Millisecond
	unknownGrace = 400 * time.Millisecond

	// joinSlack is how long before our start a broadcast may have been sent that is fetched: joining takes a while.
	joinSlack = 10 * time.Second

	maxMissing  = 8192 // broadcasts waited for; what is told above it will be told again
	maxSources  = 4    // of one
	maxFailed   = 3    // times that a source may not answer
	maxFetches  = 16   // at a time
	maxLarge    = 4    // of these, of payloads above maxPushed
	maxTogether = 256 << 10

	// A large payload may take fetchPatience, and as long as it takes at fetchSpeed, bytes per second.
	fetchPatience = 5 * time.Second
	fetchSpeed    = 64 << 10

	// retryAfter is when members that did not answer are asked again.
	retryAfter = 500 * time.Millisecond

	tickEvery = time.Second
	tidyEvery = time.Minute
)

// tellAgain is at which ages news is told again, to a few: a message may have been lost, and members have joined.
var tellAgain = [...]time.Duration{time.Second, 4 * time.Second, 16 * time.Second, 45 * time.Second}

// missing is a broadcast that has been heard of and has not come.
type missing struct {
	sources  []source // who has it; those that offered it first
	size     uint64
	due      time.Time // when it is fetched
	limit    member.ID // where duty says that a part comes with it
	duty     bool
	fetching bool
}

// A source is a member that has a broadcast.
type source struct {
	member.Contact
	failed int // times that it did not answer
}

// Run tells others what is here, and fetches what is not, until ctx ends. Then the engine is closed: what is under way
// is given up, and nothing is taken any more. It returns nil.
func (e *Engine) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			e.mu.Lock()
			e.closed = true
			e.mu.Unlock()
			e.cancel()
			e.running.Wait()
			return nil
		case <-e.wake:
		case <-timer.C:
		}
		if next := e.turn(); next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
	}
}

// planLocked makes sure that Run wakes up at a time.
func (e *Engine) planLocked(at time.Time) {
	if !e.planned.IsZero() && !at.Before(e.planned) {
		return
	}
	e.planned = at
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// newsLocked notes that a broadcast is here and has to be told.
func (e *Engine) newsLocked(it *item, now time.Time) {
	if len(e.fresh) == 0 {
		e.freshAt = now.Add(tellAfter)
		e.planLocked(e.freshAt)
	}
	e.fresh = append(e.fresh, it)
}

// turn does what is due, and returns when to do so next; zero if there is nothing to wait for.
func (e *Engine) turn() time.Time {
	now := time.Now()
	e.mu.Lock()
	e.planned = now // nobody needs to wake us while we are here
	tells := len(e.fresh) > 0 && !now.Before(e.freshAt)
	tellsAgain := !e.tick.IsZero() && !now.Before(e.tick)
	e.mu.Unlock()
	if tells || tellsAgain {
		e.tell(now, tellsAgain)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.fetchLocked(now)

	next := e.tick
	sooner := func(at time.Time) {
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	if len(e.fresh) > 0 {
		sooner(e.freshAt)
	}
	if e.fetches < maxFetches {
		for _, m := range e.missing {
			if !m.fetching && (m.size <= maxPushed || e.large < maxLarge) {
				sooner(m.due)
			}
		}
	}
	if len(e.memory.tags) > 0 {
		sooner(now.Add(tidyEvery))
	}
	e.planned = next
	return next
}

// An audience is whom news can be told to.
type audience struct {
	leaf          bool             // we are one: only our hosts are to be told
	before, after []member.Contact // native, nearest first, at most near of each
	far           []member.Contact
	leaves        []member.Contact
}

// audience returns whom news can be told to. Far members, and leaves as they were a moment ago, are in it only if there
// is something to tell for certain: to find them costs the most.
func (e *Engine) audience(certain bool) audience {
	self := e.o.Self()
	if self.Leaf {
		return audience{leaf: true, after: self.Hosts}
	}
	natives := func(list []member.Contact) (out []member.Contact) {
		for _, c := range list {
			if c.Dialect == member.Native && !c.Leaf && c.ID != self.ID && len(out) < near {
				out = append(out, c)
			}
		}
		return out
	}
	var a audience
	before, after := e.o.Neighbours()
	a.before, a.after = natives(before), natives(after)
	if certain {
		v := e.look(self)
		a.far, a.leaves = v.members, v.leaves
	} else {
		a.leaves = e.attached()
	}
	return a
}

// tell tells what is new, and, if it is time, some of what is old.
func (e *Engine) tell(now time.Time, again bool) {
	var casts []cast
	var fresh, due []*item
	e.mu.Lock()
	if !now.Before(e.freshAt) {
		fresh, e.fresh = e.fresh, nil
	}
	if again {
		due = e.dueLocked(now)
	}
	idle := len(e.order) == 0
	e.mu.Unlock()
	if idle && len(fresh) == 0 {
		return
	}
	a := e.audience(len(fresh)+len(due) > 0)
	e.mu.Lock()
	if len(fresh) > 0 {
		casts = e.freshLocked(casts, a, fresh, now)
	}
	if again {
		casts = e.againLocked(casts, a, due, now)
	}
	e.stats.Told += uint64(len(casts))
	e.mu.Unlock()
	for _, c := range casts {
		e.o.Transport.Cast(c.to, c.have)
	}
}

type cast struct {
	to   member.Contact
	have wire.Have
}

// freshLocked tells what is new to the nearest, and to some that are anywhere.
func (e *Engine) freshLocked(casts []cast, a audience, fresh []*item, now time.Time) []cast {
	targets := slices.Concat(first(a.before, tellNear), first(a.after, tellNear))
	if a.leaf {
		targets = slices.Clone(a.after)
	}
	for range tellFar {
		if len(a.far) > 0 {
			targets = append(targets, a.far[e.random.IntN(len(a.far))])
		}
	}
	targets = append(targets, a.leaves...)
	done := make(map[member.ID]bool, len(targets))
	for _, to := range targets {
		if done[to.ID] {
			continue
		}
		done[to.ID] = true
		casts = e.newsFor(casts, to, fresh, now, func(it *item) bool { return !slices.Contains(it.holders, to.ID) })
	}
	for _, it := range fresh {
		it.holders, it.isTold = nil, true
	}
	if e.told == nil {
		e.told = make(map[member.ID]bool)
		for _, c := range slices.Concat(a.before, a.after, a.leaves) {
			e.told[c.ID] = true
		}
	}
	return casts
}

// dueLocked returns what is old enough to be told again, and lets go of what is too old for that.
func (e *Engine) dueLocked(now time.Time) (due []*item) {
	for len(e.order) > 0 && now.Sub(e.order[0].got) >= e.o.Keep {
		e.releaseLocked()
	}
	if len(e.order) == 0 {
		e.order, e.told, e.tick = nil, nil, time.Time{}
		e.view.Store(nil)
		e.memory.forget(now)
		return nil
	}
	e.tick = now.Add(tickEvery)
	for _, it := range e.order {
		if it.again < len(tellAgain) && now.Sub(it.got) >= tellAgain[it.again] {
			due = append(due, it)
			it.again++
		}
	}
	return due
}

// againLocked tells what is due to a few, and all that is here to neighbours that are new.
func (e *Engine) againLocked(casts []cast, a audience, due []*item, now time.Time) []cast {
	if len(due) > 0 {
		var targets []member.Contact
		for _, list := range [][]member.Contact{a.before, a.after, a.far} {
			if len(list) > 0 {
				targets = append(targets, list[e.random.IntN(len(list))])
			}
		}
		for _, to := range append(targets, a.leaves...) {
			casts = e.newsFor(casts, to, due, now, nil)
		}
	}
	if a.leaf {
		return casts
	}
	neighbours := make(map[member.ID]bool)
	for _, c := range slices.Concat(a.before, a.after, a.leaves) {
		neighbours[c.ID] = true
		if e.told != nil && !e.told[c.ID] {
			casts = e.newsFor(casts, c, e.order[max(0, len(e.order)-maxDigest):], now, nil)
		}
	}
	e.told = neighbours
	return casts
}

// maxDigest is how much a new neighbour is told: the newest of what is here.
const maxDigest = 8 * wire.MaxTags

// newsFor adds what a member is told, of those broadcasts that it may want.
func (e *Engine) newsFor(casts []cast, to member.Contact, items []*item, now time.Time, wants func(*item) bool) []cast {
	var news []wire.News
	for i, it := range items {
		age := now.Sub(it.got)
		if e.servable(it, now) && (wants == nil || wants(it)) {
			if news == nil {
				news = make([]wire.News, 0, min(len(items)-i, wire.MaxTags))
			}
			news = append(news, wire.News{Tag: it.push.Tag, Age: uint64(age.Milliseconds()), Size: uint64(len(it.push.Payload))})
		}
		if len(news) == wire.MaxTags || i == len(items)-1 && len(news) > 0 {
			casts = append(casts, cast{to, wire.Have{News: news}})
			news = nil
		}
	}
	return casts
}

// servable reports whether a broadcast may still be given to those who missed it: they must not have forgotten it.
func (e *Engine) servable(it *item, now time.Time) bool {
	return !IsForeign(it.push.Tag) || now.Sub(it.got) < ForeignMemory/3
}

// hear takes news from another member.
func (e *Engine) hear(from member.Contact, m wire.Have) {
	if e.admit(from.ID) != nil {
		return
	}
	grace := unknownGrace
	if rtt := e.o.Transport.RTT(from.ID); rtt > 0 {
		grace = min(max(graceTrips*rtt, minGrace), maxGrace)
	}
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, n := range m.News {
		if e.memory.has(n.Tag) {
			if it := e.items[n.Tag]; it != nil {
				it.holds(from.ID)
			}
			continue
		}
		if n.Size > wire.MaxPayload || n.Age > uint64(e.o.Memory.Milliseconds()) {
			continue
		}
		age := time.Duration(n.Age) * time.Millisecond
		if now.Add(-age).Before(e.began.Add(-joinSlack)) {
			continue // from before our time
		}
		due := now.Add(max(grace-age, 0))
		e.missLocked(from, n.Tag, n.Size, due, false)
	}
}

// offered takes an offer from another member.
func (e *Engine) offered(from member.Contact, o wire.Offer) error {
	if err := e.admit(from.ID); err != nil {
		return err
	}
	if o.Size > wire.MaxPayload || o.Hops > maxHops {
		return e.refuse(from.ID, wire.Push{Tag: o.Tag}, fmt.Errorf("%w: offer of %d bytes, %d hops", ErrForm, o.Size, o.Hops))
	}
	self := e.o.Self()
	e.mu.Lock()
	if it := e.items[o.Tag]; it != nil && !self.Leaf {
		return e.extend(self, it, from.ID, o.Limit) // unlocks
	}
	defer e.mu.Unlock()
	if e.memory.has(o.Tag) {
		return nil
	}
	m := e.missLocked(from, o.Tag, o.Size, time.Now(), true)
	if m == nil {
		return ErrBusy
	}
	if !m.duty || reach(self.ID, m.limit).Compare(reach(self.ID, o.Limit)) < 0 {
		m.limit, m.duty = o.Limit, true
	}
	return nil
}

// missLocked notes that a member has a broadcast that is not here. It returns nil if too many are missing already.
func (e *Engine) missLocked(from member.Contact, tag wire.Tag, size uint64, due time.Time, offered bool) *missing {
	m := e.missing[tag]
	if m == nil {
		if len(e.missing) >= maxMissing {
			e.stats.Dropped++
			return nil
		}
		m = &missing{size: size, due: due}
		e.missing[tag] = m
	}
	known := slices.ContainsFunc(m.sources, func(s source) bool { return s.ID == from.ID })
	switch {
	case known:
	case offered:
		m.sources = first(slices.Insert(m.sources, 0, source{Contact: from}), maxSources)
	case len(m.sources) < maxSources:
		m.sources = append(m.sources, source{Contact: from})
	}
	if due.Before(m.due) {
		m.due = due
	}
	if !m.fetching {
		e.planLocked(m.due)
	}
	return m
}

// fetchLocked asks for what is due, as much at a time as is good.
func (e *Engine) fetchLocked(now time.Time) {
	type wish struct {
		from member.Contact
		tags []wire.Tag
		size uint64
	}
	var wishes map[member.ID]*wish
	for tag, m := range e.missing {
		if m.fetching || now.Before(m.due) {
			continue
		}
		if m.size > maxPushed {
			if e.large < maxLarge && e.fetches < maxFetches {
				m.fetching = true
				e.startLocked(e.choose(m), []wire.Tag{tag}, m.size)
			}
			continue
		}
		from := e.choose(m)
		w := wishes[from.ID]
		if w == nil {
			if e.fetches+len(wishes) >= maxFetches {
				continue
			}
			if wishes == nil {
				wishes = make(map[member.ID]*wish)
			}
			w = &wish{from: from}
			wishes[from.ID] = w
		}
		if len(w.tags) == wire.MaxTags || w.size+m.size+itemOverhead > maxTogether {
			continue // when this has come
		}
		m.fetching = true
		w.tags, w.size = append(w.tags, tag), w.size+m.size+itemOverhead
	}
	for _, w := range wishes {
		e.startLocked(w.from, w.tags, w.size)
	}
}

// choose chooses whom to ask, of those that failed least: who offered it, or anyone who has it.
func (e *Engine) choose(m *missing) member.Contact {
	best := slices.MinFunc(m.sources, func(a, b source) int { return a.failed - b.failed }).failed
	var fit [maxSources]member.Contact
	n := 0
	for _, s := range m.sources {
		if s.failed == best {
			fit[n] = s.Contact
			n++
		}
	}
	if m.duty {
		return fit[0]
	}
	return fit[e.random.IntN(n)]
}

func (e *Engine) startLocked(from member.Contact, tags []wire.Tag, size uint64) {
	if e.closed {
		return
	}
	large := len(tags) == 1 && size > maxPushed+itemOverhead
	e.fetches++
	if large {
		e.large++
	}
	e.running.Go(func() {
		answered := e.fetch(from, tags, size)
		e.mu.Lock()
		defer e.mu.Unlock()
		e.fetches--
		if large {
			e.large--
		}
		now := time.Now()
		for _, tag := range tags {
			m := e.missing[tag]
			if m == nil {
				continue // it is here
			}
			m.fetching = false
			// Who answers without it does not have it any more. Who does not answer may be slow, or gone.
			m.sources = slices.DeleteFunc(m.sources, func(s source) bool {
				return s.ID == from.ID && (answered || s.failed+1 >= maxFailed)
			})
			if len(m.sources) == 0 {
				delete(e.missing, tag) // until it is told again
				continue
			}
			m.due = now.Add(retryAfter)
			for i := range m.sources {
				if s := &m.sources[i]; s.ID == from.ID {
					s.failed++
				} else if s.failed == 0 {
					m.due = now // there is another to ask
				}
			}
		}
		e.planLocked(now)
	})
}

// fetch asks a member for broadcasts and takes them in. It reports whether the member answered.
func (e *Engine) fetch(from member.Contact, tags []wire.Tag, size uint64) bool {
	ctx := e.ctx
	if size > maxPushed {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, fetchPatience+time.Duration(size/fetchSpeed)*time.Second)
		defer cancel()
	}
	reply, err := e.o.Transport.Call(ctx, from, wire.Want{Tags: tags})
	if err != nil {
		if refused, ok := errors.AsType[wire.Refused](err); ok {
			return refused.Code != wire.Overloaded
		}
		if errors.Is(err, wire.ErrUnreachable) {
			e.mu.Lock()
			e.suspectsLocked(from.ID)
			e.mu.Unlock()
		}
		return false
	}
	payloads, ok := reply.(wire.Payloads)
	if !ok {
		return true
	}
	for _, p := range payloads.Pushes {
		if !slices.Contains(tags, p.Tag) {
			_ = e.refuse(from.ID, p, fmt.Errorf("%w: a payload that was not asked for", ErrForm))
			return true
		}
		// What is wrong with it has been counted and reported.
		_ = e.take(from.ID, p, fetched)
	}
	return true
}

// serve answers a wish with what is here, as much as goes into one answer.
func (e *Engine) serve(from member.Contact, m wire.Want) wire.Message {
	if err := e.admit(from.ID); err != nil {
		return answer(err)
	}
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	var reply wire.Payloads
	total := 0
	for _, tag := range m.Tags {
		it := e.items[tag]
		if it == nil || !e.servable(it, now) {
			continue
		}
		if total > 0 && total+it.size() > maxTogether {
			break
		}
		total += it.size()
		p := it.push
		p.Hops++
		reply.Pushes = append(reply.Pushes, p)
	}
	if !e.guard.serves(from.ID, total, now) {
		e.stats.Limited++
		return answer(ErrFlood)
	}
	e.stats.Served += uint64(len(reply.Pushes))
	return reply
}

// first returns the list, or its first n.
func first[T any](list []T, n int) []T { return list[:min(len(list), n)] }
