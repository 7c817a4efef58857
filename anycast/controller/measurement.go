// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/seed5728abee/fathom/anycast"
)

// newID makes the id of a measurement: when it was made, to the millisecond, and something random.
func newID(now time.Time) string {
	var b [4]byte
	rand.Read(b[:]) // never fails
	return now.UTC().Format("20060102T150405") + fmt.Sprintf("%03d", now.Nanosecond()/1e6) + "-" + hex.EncodeToString(b[:])
}

// resumable tells whether what was cut by the end of a controller goes on with the next one: a schedule does, and
// a catchment, whose targets do not depend on each other, unless they come from somebody who is gone then.
func resumable(d *anycast.Definition) bool {
	return d.Schedule != nil || d.Program == anycast.KindCatchment && !d.Feed
}

// begin starts a measurement, or a schedule of such, and gives its id. With a feed there are no targets yet.
func (c *Controller) begin(ctx context.Context, who caller, d anycast.Definition, targets []anycast.Target, feed anycast.Feed) (string, error) {
	if err := d.Check(); err != nil {
		return "", err
	}
	if d.Program == anycast.KindVolta {
		targets = nil
	} else if len(targets) == 0 && feed == nil {
		return "", fmt.Errorf("%w: no targets", errInvalid)
	}
	if err := c.checkPorts(&d); err != nil {
		return "", err
	}
	release, err := c.admitMeasurement(who, &d, len(targets))
	if err != nil {
		return "", err
	}
	m := anycast.Measurement{Definition: d, Owner: who.String(), State: anycast.Running}
	if d.Schedule != nil {
		m.State = anycast.Waiting
	}
	r, err := c.create(ctx, m, targets)
	if err != nil {
		release()
		return "", err
	}
	r.feed = feed // nobody executes it yet
	go func() {   // counted by create
		defer c.work.Done()
		defer release()
		c.execute(r)
	}()
	return r.m.ID, nil
}

// checkPorts refuses source ports that the controller does not have.
func (c *Controller) checkPorts(d *anycast.Definition) error {
	for i := range d.Origins {
		port := d.Origins[i].SourcePort
		if _, ok := c.fleet.ports.blocks.Index(port); port != 0 && !ok {
			first, n := c.fleet.ports.blocks.Ports()
			return &anycast.FieldError{
				Field: "origins.source_port", Value: port, Reason: fmt.Sprintf("the controller has %d to %d", first, int(first)+n-1),
			}
		}
	}
	return nil
}

// create makes a measurement known to the store and the controller, and counts it as work: whoever executes it says when
// that is done.
func (c *Controller) create(ctx context.Context, m anycast.Measurement, targets []anycast.Target) (*run, error) {
	m.Start = time.Now()
	m.ID = newID(m.Start)
	m.Targets = len(targets)
	m.Progress.Total = len(targets)
	if err := c.store.Begin(ctx, m, targets); err != nil {
		c.metrics.storeErrors.Inc()
		return nil, fmt.Errorf("%w: %w", errStore, err)
	}
	r := newRun(c.base, c.store, m, targets)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.base.Err() != nil {
		return nil, errStopping
	}
	c.runs[m.ID] = r
	c.work.Add(1) // here, so that the end of the controller waits for it
	return r, nil
}

// execute runs a measurement to its end and keeps how it ended.
func (c *Controller) execute(r *run) {
	defer close(r.ended)
	defer r.cancel(nil)
	programEnded := make(chan struct{})
	written := make(chan struct{})
	go func() { // waited for below
		defer close(written)
		r.write(c.storing, programEnded)
	}()
	err := c.program(r)
	close(programEnded)
	<-written

	r.mu.Lock()
	failure := r.failure
	d := &r.m.Definition
	r.mu.Unlock()
	cause := context.Cause(r.ctx)
	state := anycast.Done
	switch {
	case failure != nil:
		state, err = anycast.Failed, failure
		c.metrics.storeErrors.Inc()
	case errors.Is(cause, errStopping) && resumable(d):
		state, err = r.m.State, nil
	case errors.Is(cause, errStopping):
		state, err = anycast.Interrupted, errStopping
	case cause != nil:
		state, err = anycast.Cancelled, cause
	case errors.Is(err, errLeft): // a feed knows it first
		state, err = anycast.Cancelled, errLeft
	case err != nil:
		state = anycast.Failed
	}
	end := time.Now()
	if state == anycast.Running || state == anycast.Waiting {
		end = time.Time{}
	}
	m := r.end(state, err, end)
	if err != nil {
		c.log.Warn("measurement ended early", "measurement", m.ID, "state", m.State.String(), "error", err)
	} else {
		c.log.Info("measurement ended", "measurement", m.ID, "state", m.State.String())
	}
	c.metrics.ended(m.State)
	c.keep(r, m)
}

// keep writes how a measurement ended. One that cannot be kept stays in memory, so that it is listed, and is tried
// again with every tick.
func (c *Controller) keep(r *run, m anycast.Measurement) {
	err := c.store.Update(c.storing, m)
	if err == nil {
		err = c.store.Flush(c.storing)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		delete(c.runs, m.ID)
		delete(c.unkept, m.ID)
		return
	}
	c.metrics.storeErrors.Inc()
	if len(c.unkept) < maxUnkept {
		if c.unkept[m.ID] == nil {
			c.log.Error("measurement cannot be kept", "measurement", m.ID, "error", err)
		}
		c.unkept[m.ID] = r
	} else {
		delete(c.runs, m.ID)
	}
}

// maxUnkept bounds how many measurements stay in memory because the store fails.
const maxUnkept = 1000

// program runs what a measurement consists of.
func (c *Controller) program(r *run) error {
	d := r.m.Definition
	switch {
	case d.Schedule != nil:
		return c.schedule(r)
	case d.Program == anycast.KindVolta:
		code, text := c.command(r.ctx, d.Command)
		if err := r.Results([]anycast.Result{&anycast.TextResult{Code: code, Text: text}}); err != nil {
			return err
		}
		if code != http.StatusOK {
			return errors.New(text)
		}
		return nil
	}
	job := anycast.Job{Fleet: c.fleet, Definition: d, Targets: r.targets, Feed: r.feed, Sink: r, Log: c.log.With("measurement", r.m.ID)}
	if r.prior != nil {
		job.Done, job.Prior = r.prior.has, r.prior.each
	}
	return job.Run(r.ctx)
}

// cancelRun ends a run, if it has not ended.
func (c *Controller) cancelRun(id string, why error) bool {
	c.mu.Lock()
	r := c.runs[id]
	c.mu.Unlock()
	if r == nil {
		return false
	}
	r.cancel(why)
	return true
}

// cancelMeasurement ends a measurement. One that is over stays as it is.
func (c *Controller) cancelMeasurement(ctx context.Context, id string) error {
	if c.cancelRun(id, errCancelled) {
		return nil
	}
	_, err := c.measurement(ctx, id)
	return err
}

// deleteMeasurement forgets a measurement that is over.
func (c *Controller) deleteMeasurement(ctx context.Context, id string) error {
	c.mu.Lock()
	r := c.runs[id]
	if r != nil && c.unkept[id] == nil {
		c.mu.Unlock()
		return fmt.Errorf("%w: %s is not over; cancel it first", errInvalid, id)
	}
	delete(c.runs, id)
	delete(c.unkept, id)
	c.mu.Unlock()
	if _, err := c.measurement(ctx, id); err != nil {
		return err
	}
	if err := c.store.Delete(ctx, id); err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	return nil
}

// measurement gives one, running or kept.
func (c *Controller) measurement(ctx context.Context, id string) (anycast.Measurement, error) {
	if id == "" {
		return anycast.Measurement{}, anycast.ErrNoMeasurement
	}
	list, err := c.list(ctx, anycast.Query{Measurement: id})
	if err != nil {
		return anycast.Measurement{}, err
	}
	if len(list) == 0 {
		return anycast.Measurement{}, fmt.Errorf("%s: %w", printable(id, 64), anycast.ErrNoMeasurement)
	}
	return list[0], nil
}

// list gives the measurements that match, newest first. What runs, and what could not be kept, is as the controller
// knows it.
func (c *Controller) list(ctx context.Context, q anycast.Query) ([]anycast.Measurement, error) {
	list, err := c.store.Measurements(ctx, q)
	if err != nil && !errors.Is(err, anycast.ErrNoMeasurement) {
		if list = c.inMemory(q); len(list) > 0 || ctx.Err() != nil {
			return list, ctx.Err() // better than nothing
		}
		return nil, fmt.Errorf("%w: %w", errStore, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range list {
		if r := c.runs[list[i].ID]; r != nil {
			list[i] = r.snapshot()
		}
	}
	return list, nil
}

// inMemory gives what matches of the measurements that run or could not be kept.
func (c *Controller) inMemory(q anycast.Query) []anycast.Measurement {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []anycast.Measurement
	for _, r := range c.runs {
		m := r.snapshot()
		if q.Measurement != "" && m.ID != q.Measurement || q.Program != "" && m.Definition.Program != q.Program || q.Name != "" && m.Definition.Name != q.Name {
			continue
		}
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b anycast.Measurement) int { return cmp.Compare(b.ID, a.ID) })
	return list
}
