// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/measurepb"
)

// What follows is for those in the same process who look at measurements, such as the controller's page. Nobody's
// permission is asked for.

// Sites gives the connected sites, by name.
func (c *Controller) Sites() []anycast.Site { return c.fleet.Sites() }

// Measurements gives those that match, newest first, also those that are under way.
func (c *Controller) Measurements(ctx context.Context, q anycast.Query) ([]anycast.Measurement, error) {
	return c.list(ctx, q)
}

// Results gives the kept results that match, in the order found, until yield returns false.
func (c *Controller) Results(ctx context.Context, q anycast.Query, yield func(id string, r anycast.Result) bool) error {
	return c.store.Results(ctx, q, yield)
}

// Follow tells all about a measurement, as the call of that name does, until it is over, ctx ends, or yield
// returns an error. Errors: anycast.ErrNoMeasurement, yield's, those of ctx and the store.
func (c *Controller) Follow(ctx context.Context, id string, yield func(*measurepb.Event) error) error {
	return c.follow(ctx, id, yield)
}
