// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/access"
	"github.com/seed5728abee/fathom/anycast/enroll"
)

// account is whom a caller's quota belongs to: its identity, or over cleartext its host.
func (c caller) account() enroll.Identity {
	if c.secure() {
		return c.id
	}
	return enroll.Identity{Name: c.addr}
}

// audit notes who did what. What is refused for want of a record would be every call when the disk is full, so a
// failure is only logged.
func (c *Controller) audit(who caller, action, object string, err error) {
	if c.opts.Audit == nil {
		return
	}
	e := access.Event{Who: who.id, From: who.from, Action: action, Object: object, Err: err}
	if err := c.opts.Audit.Record(e); err != nil {
		c.auditFailed.Do(func() { c.log.Error("audit log fails", "error", err) })
	}
}

// admitRequest applies the caller's quota of requests.
func (c *Controller) admitRequest(who caller) error {
	if c.opts.Quotas == nil {
		return nil
	}
	return c.opts.Quotas.Request(who.account())
}

// admitMeasurement applies the caller's quota of measurements. What it takes is given back by release.
func (c *Controller) admitMeasurement(who caller, d *anycast.Definition, targets int) (release func(), err error) {
	if c.opts.Quotas == nil {
		return func() {}, nil
	}
	full := d.WithDefaults()
	demand := access.Demand{Targets: targets, ProbeRate: full.Pace.Rate}
	if d.Program == anycast.KindVolta {
		demand.ProbeRate = 0
	}
	lease, err := c.opts.Quotas.Start(who.account(), demand)
	return lease.Release, err
}

// call notes a call of a person's or a program's, within its quota.
func (c *Controller) call(ctx context.Context, action, object string) error {
	who := callerOf(ctx)
	err := c.admitRequest(who)
	c.audit(who, action, object, err)
	return err
}
