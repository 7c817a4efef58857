// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package broadcast

import (
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
)

// How members that misbehave are treated.
const (
	maxStrikes = 3           // provable misdeeds, then nothing is taken
	penalty    = time.Minute // for that long
	maxWatched = 2048        // members known; above it one is forgotten

	// What one member can ask of payloads: bytes per second, which is more than large broadcasts need on a fast network,
	// and at once.
	serveRate  = 64 << 20
	serveBurst = 256 << 20
)

// A guard bounds what each member can make us do. The engine's mutex guards it.
type guard struct {
	rate    float64
	members map[member.ID]*watched
}

// watched is what is known about one member.
type watched struct {
	last    time.Time // when the budgets were filled up
	pushes  float64
	bytes   float64
	strikes int
	struck  time.Time // when the last strike was
	until   time.Time // nothing is taken before
	told    time.Time // when it was last reported that it sends too much
}

func (g *guard) watch(id member.ID, now time.Time) *watched {
	w := g.members[id]
	if w == nil {
		if len(g.members) >= maxWatched {
			for other, v := range g.members {
				if !now.Before(v.until) {
					delete(g.members, other)
					break
				}
			}
		}
		w = &watched{last: now, pushes: 2 * g.rate, bytes: serveBurst}
		if len(g.members) < maxWatched {
			g.members[id] = w
		}
	}
	past := now.Sub(w.last).Seconds()
	w.last = now
	w.pushes = min(w.pushes+past*g.rate, 2*g.rate)
	w.bytes = min(w.bytes+past*serveRate, serveBurst)
	return w
}

// admits takes a broadcast from the budget of a member. If there is none left, report says whether to make it known.
func (g *guard) admits(id member.ID, now time.Time) (ok, report bool) {
	w := g.watch(id, now)
	if now.Before(w.until) {
		return false, false
	}
	if w.pushes < 1 {
		report = now.Sub(w.told) > penalty
		if report {
			w.told = now
		}
		return false, report
	}
	w.pushes--
	return true, false
}

// serves takes n bytes from the budget of a member.
func (g *guard) serves(id member.ID, n int, now time.Time) bool {
	w := g.watch(id, now)
	if now.Before(w.until) || w.bytes < float64(n) {
		return false
	}
	w.bytes -= float64(n)
	return true
}

// strike notes a misdeed, and reports whether the member is refused from now on.
func (g *guard) strike(id member.ID, now time.Time) bool {
	w := g.watch(id, now)
	if now.Sub(w.struck) > penalty {
		w.strikes = 0
	}
	w.struck = now
	w.strikes++
	if w.strikes < maxStrikes {
		return false
	}
	w.strikes, w.until = 0, now.Add(penalty)
	return true
}
