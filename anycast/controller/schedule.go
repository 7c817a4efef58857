// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"time"

	"github.com/seed5728abee/fathom/anycast"
)

// schedule runs a measurement again and again, each time under an id of its own, and raises an alarm when the
// catchments moved between two runs. It is the program of a measurement with a schedule.
func (c *Controller) schedule(r *run) error {
	s := r.m.Definition.Schedule
	before, underWay, err := c.lastRun(r.ctx, r.m.ID, r.m.Start)
	if err != nil {
		return err
	}
	next := r.m.Start
	if before != nil {
		next = before.Start.Add(s.Every)
	}
	previous := ""
	if underWay != nil {
		if m, ok := c.await(r.ctx, underWay); ok && m.State == anycast.Done {
			previous = m.ID
		}
	} else if before != nil && before.State == anycast.Done {
		previous = before.ID
	}
	for {
		if !s.Until.IsZero() && next.After(s.Until) {
			return nil
		}
		if !sleepUntil(r.ctx, next) {
			return context.Cause(r.ctx)
		}
		child := r.m.Definition
		child.Schedule = nil
		m := anycast.Measurement{Definition: child, Owner: r.m.Owner, Parent: r.m.ID, State: anycast.Running}
		run, err := c.create(r.ctx, m, r.targets)
		if err != nil { // a store that fails now may work when the next run is due
			c.log.Error("scheduled measurement does not start", "measurement", r.m.ID, "error", err)
		} else {
			go func() { // counted by create
				defer c.work.Done()
				c.execute(run)
			}()
			ended, ok := c.await(r.ctx, run)
			if !ok {
				return context.Cause(r.ctx)
			}
			if ended.State == anycast.Done {
				if err := c.compare(r, previous, ended.ID); err != nil {
					c.log.Error("catchments cannot be compared", "measurement", ended.ID, "error", err)
				}
				previous = ended.ID
			}
			next = run.m.Start
		}
		next = later(next.Add(s.Every), time.Now())
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func sleepUntil(ctx context.Context, at time.Time) bool {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// lastRun finds the latest run of a schedule, and the controller's grip on it if it is under way.
func (c *Controller) lastRun(ctx context.Context, parent string, since time.Time) (*anycast.Measurement, *run, error) {
	list, err := c.list(ctx, anycast.Query{From: since})
	if err != nil {
		return nil, nil, err
	}
	for i := range list {
		if list[i].Parent == parent {
			c.mu.Lock()
			defer c.mu.Unlock()
			r := c.runs[list[i].ID]
			if c.unkept[list[i].ID] != nil {
				r = nil
			}
			return &list[i], r, nil
		}
	}
	return nil, nil, nil
}

// await waits for a run to end. When ctx ends first, the run is cancelled with it.
func (c *Controller) await(ctx context.Context, r *run) (anycast.Measurement, bool) {
	select {
	case <-r.ended:
		return r.snapshot(), true
	case <-ctx.Done():
		r.cancel(context.Cause(ctx))
		<-r.ended
		return r.snapshot(), false
	}
}

// compare raises an alarm if more of the catchments moved between two runs than the schedule allows. The alarm belongs to the
// schedule, which outlives its runs.
func (c *Controller) compare(r *run, before, after string) error {
	d := &r.m.Definition
	if before == "" || d.Schedule.Alarm == 0 || d.Program != anycast.KindCatchment {
		return nil
	}
	a, err := c.catchments(r.ctx, before)
	if err != nil {
		return err
	}
	b, err := c.catchments(r.ctx, after)
	if err != nil {
		return err
	}
	for _, o := range d.OriginList() {
		share := anycast.Compare(a.Table(o.Name), b.Table(o.Name), d.Weights).Share()
		if share <= d.Schedule.Alarm {
			continue
		}
		alarm := &anycast.Alarm{Origin: o.Name, Before: before, After: after, Share: share, Limit: d.Schedule.Alarm, Time: time.Now()}
		c.metrics.alarms.Inc()
		c.log.Warn("catchments moved", "measurement", after, "before", before, "origin", o.Name, "share", alarm.Share, "limit", alarm.Limit)
		if err := r.Results([]anycast.Result{alarm}); err != nil {
			return err
		}
	}
	return nil
}

// catchments gives the tables of a run.
func (c *Controller) catchments(ctx context.Context, id string) (*anycast.Tables, error) {
	if err := c.store.Flush(ctx); err != nil {
		return nil, err
	}
	tables := new(anycast.Tables)
	err := c.store.Results(ctx, anycast.Query{Measurement: id}, func(_ string, r anycast.Result) bool {
		if catch, ok := r.(*anycast.Catch); ok {
			tables.Add(catch)
		}
		return true
	})
	return tables, err
}
