// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/probe"
)

// prior is what a catchment had found when the controller ended.
type prior struct {
	origins []anycast.Origin
	results int // in the store
	// caught has the site, by its position in sites, that each target with a result reached first; 0 is none.
	caught  map[priorKey]uint16
	sites   []string
	numbers map[string]uint16 // the inverse of sites
	seen    map[string]bool   // sites that sent, or heard something
	sent    uint64
	answers uint64
	done    int // targets that are not probed again
}

// priorKey is a target under one origin, by its position in the definition.
type priorKey struct {
	target netip.Addr
	origin uint8
}

func newPrior(d *anycast.Definition) *prior {
	return &prior{
		origins: d.OriginList(), caught: map[priorKey]uint16{}, sites: []string{""}, numbers: map[string]uint16{"": 0}, seen: map[string]bool{},
	}
}

// has tells whether a target has results from every origin of its IP version.
func (p *prior) has(a netip.Addr) bool {
	for i := range p.origins {
		if source := p.origins[i].Source; source.IsValid() && source.Is4() != a.Is4() {
			continue
		}
		if _, ok := p.caught[priorKey{a, uint8(i)}]; !ok {
			return false
		}
	}
	return true
}

// add takes a stored result.
func (p *prior) add(r anycast.Result) {
	p.results++
	c, ok := r.(*anycast.Catch)
	if !ok {
		return
	}
	p.sent++
	p.seen[c.Sender] = true
	if c.Receiver != "" {
		p.answers++
		p.seen[c.Receiver] = true
	}
	origin := slices.IndexFunc(p.origins, func(o anycast.Origin) bool { return o.Name == c.Origin })
	if origin < 0 {
		return
	}
	home := ""
	if c.Status == probe.Replied {
		home = c.Receiver
	}
	site, ok := p.numbers[home]
	if !ok {
		site = uint16(len(p.sites))
		p.sites, p.numbers[home] = append(p.sites, home), site
	}
	if key := (priorKey{c.Target, uint8(origin)}); p.caught[key] == 0 {
		p.caught[key] = site
	}
}

// each gives the targets that are not probed again, with the site that each reaches under each origin.
func (p *prior) each(yield func(netip.Addr, []string) bool) {
	homes := make([]string, len(p.origins))
	for key := range p.caught {
		if !p.has(key.target) || !p.isFirst(key) {
			continue
		}
		for i := range homes {
			homes[i] = p.sites[p.caught[priorKey{key.target, uint8(i)}]]
		}
		p.done++
		if !yield(key.target, homes) {
			return
		}
	}
}

// isFirst tells whether a target has no result from an earlier origin.
func (p *prior) isFirst(key priorKey) bool {
	for i := range key.origin {
		if _, ok := p.caught[priorKey{key.target, i}]; ok {
			return false
		}
	}
	return true
}

// addTo makes the summary of a resumed run one of the whole measurement.
func (p *prior) addTo(s *anycast.Summary) {
	if p == nil {
		return
	}
	s.Sent += p.sent
	s.Answered += p.answers
	delete(s.Skipped, anycast.SkipDone)
	s.Notes = append(s.Notes, fmt.Sprintf("the controller was restarted: %d of the targets were measured before", p.done))
}

func (p *prior) addToProgress(g *anycast.Progress) {
	if p == nil {
		return
	}
	g.Sent += p.sent
	g.Answered += p.answers
}

// resume goes on with what a controller before this one left: schedules and catchments run, the others are marked
// as cut, with what they had found.
func (c *Controller) resume(ctx context.Context) error {
	list, err := c.store.Measurements(ctx, anycast.Query{})
	if err != nil {
		return fmt.Errorf("measurements before the restart: %w", err)
	}
	// Runs of a schedule first: it looks whether one is under way.
	for _, schedules := range []bool{false, true} {
		for _, m := range list {
			cut := m.State == anycast.Running || m.State == anycast.Waiting
			if !cut || schedules != (m.Definition.Schedule != nil) {
				continue
			}
			if err := c.resumeOne(ctx, m); err != nil {
				c.log.Error("measurement cannot go on", "measurement", m.ID, "error", err)
				m.State, m.End, m.Error = anycast.Interrupted, time.Now(), "cut by a restart of the controller: "+err.Error()
				if err := c.store.Update(ctx, m); err != nil {
					return fmt.Errorf("%w: %w", errStore, err)
				}
			}
		}
	}
	return nil
}

func (c *Controller) resumeOne(ctx context.Context, m anycast.Measurement) error {
	if !resumable(&m.Definition) {
		if m.Definition.Feed {
			return errors.New("its targets came from somebody who is gone")
		}
		return fmt.Errorf("a %s starts from the beginning or not at all", m.Definition.Program)
	}
	targets, err := c.store.Targets(ctx, m.ID)
	if err != nil {
		return fmt.Errorf("targets: %w", err)
	}
	p := newPrior(&m.Definition)
	err = c.store.Results(ctx, anycast.Query{Measurement: m.ID}, func(_ string, r anycast.Result) bool {
		p.add(r)
		return true
	})
	if err != nil {
		return fmt.Errorf("results: %w", err)
	}
	r := newRun(c.base, c.store, m, targets)
	r.stored = p.results
	if m.Definition.Schedule == nil {
		r.prior = p
		c.log.Info("measurement goes on", "measurement", m.ID, "targets", len(targets), "results", p.results)
	}
	c.mu.Lock()
	c.runs[m.ID] = r
	c.mu.Unlock()
	c.work.Go(func() {
		// Those that only hear, too: without them, targets that answer there would count as silent.
		for _, site := range m.Definition.Sites {
			p.seen[site] = true
		}
		c.waitForSites(r.ctx, slices.Collect(maps.Keys(p.seen)))
		c.execute(r)
	})
	return nil
}

// reconnecting is how long agents are waited for after a restart: they try again every 15 s at least.
const reconnecting = 30 * time.Second

// waitForSites waits until the sites are connected, or any that can send if none is named.
func (c *Controller) waitForSites(ctx context.Context, names []string) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	timeout := time.NewTimer(reconnecting)
	defer timeout.Stop()
	for {
		connected := map[string]bool{}
		for _, s := range c.fleet.Sites() {
			if s.Native {
				connected[s.Name] = true
			}
		}
		missing := slices.ContainsFunc(names, func(name string) bool { return !connected[name] })
		if len(connected) > 0 && !missing {
			return
		}
		select {
		case <-tick.C:
		case <-timeout.C:
			return
		case <-ctx.Done():
			return
		}
	}
}
