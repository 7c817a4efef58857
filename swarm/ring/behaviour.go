// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
)

// How misbehaviour is punished. An honest member earns a strike only when messages cross in odd ways.
const (
	strikesAllowed = 3
	strikeLife     = time.Minute     // a strike is forgotten after
	banTime        = 2 * time.Minute // a member with more strikes is refused for
	maxOffenders   = 256

	// What one member may ask in a row, and per second in the long run, of what changes or copies tables. Lookups are
	// not counted: a neighbour passes on those of many.
	burstAllowed = 200
	rateAllowed  = 50
	maxRates     = 1024
)

// behaviour is what is held against members. The zero value holds nothing against anyone.
type behaviour struct {
	offenders map[member.ID]offender
	rates     map[member.ID]rate
}

type offender struct {
	strikes int
	last    time.Time
	until   time.Time // banned
}

type rate struct {
	tokens float64
	last   time.Time
}

// strike holds something against a member. It reports whether that was one too many.
func (b *behaviour) strike(id member.ID, now time.Time) (banned bool) {
	if b.offenders == nil {
		b.offenders = map[member.ID]offender{}
	}
	o, known := b.offenders[id]
	if !known && len(b.offenders) >= maxOffenders {
		for other, p := range b.offenders {
			if now.Sub(p.last) > strikeLife && now.After(p.until) {
				delete(b.offenders, other)
			}
		}
		if len(b.offenders) >= maxOffenders {
			return false
		}
	}
	if now.Sub(o.last) > strikeLife {
		o.strikes = 0
	}
	o.strikes++
	o.last = now
	if o.strikes > strikesAllowed {
		o.strikes, o.until, banned = 0, now.Add(banTime), true
	}
	b.offenders[id] = o
	return banned
}

// banned reports whether a member is refused.
func (b *behaviour) banned(id member.ID, now time.Time) bool {
	return len(b.offenders) > 0 && now.Before(b.offenders[id].until)
}

// floods counts a request and reports whether the member asks too much.
func (b *behaviour) floods(id member.ID, now time.Time) bool {
	r, known := b.rates[id]
	if !known {
		if b.rates == nil || len(b.rates) >= maxRates {
			b.rates = map[member.ID]rate{} // everyone gets a full measure: the bound on memory goes before
		}
		r = rate{burstAllowed, now}
	}
	r.tokens = min(burstAllowed, r.tokens+now.Sub(r.last).Seconds()*rateAllowed) - 1
	r.last = now
	flooding := r.tokens < 0
	r.tokens = max(r.tokens, 0)
	b.rates[id] = r
	return flooding
}

// misbehaved holds something against a member, and drops it when that is too much.
func (n *Node) misbehaved(id member.ID) {
	n.count.strikes.Add(1)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.behaviour.strike(id, time.Now()) {
		n.count.banned.Add(1)
		n.o.Log.Warn("member refused for misbehaviour", "member", id.Short(), "for", banTime)
		n.dropLocked(id)
		n.memory.forget(id)
		delete(n.leaves, id)
	}
}
