// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/measurepb"
)

// fullShare is the share of Options.MaxBytes above which old measurements go.
const fullShare = 0.9

// sweeper deletes what is too old or too much.
func (s *Store) sweeper(ctx context.Context) {
	tick := time.NewTicker(s.opts.Sweep)
	defer tick.Stop()
	for {
		if err := s.sweep(ctx, time.Now()); err != nil && ctx.Err() == nil {
			s.opts.Log.Error("old results were not deleted", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *Store) sweep(ctx context.Context, now time.Time) error {
	for {
		id, why, err := s.oldest(ctx, now)
		if err != nil || id == "" {
			return err
		}
		s.disk.Lock()
		err = s.deleteLocked(ctx, id)
		s.disk.Unlock()
		if err != nil {
			return err
		}
		s.opts.Log.Info("deleted old measurement", "measurement", id, "reason", why)
	}
}

// oldest gives a measurement that has to go, or nothing.
func (s *Store) oldest(ctx context.Context, now time.Time) (id, why string, err error) {
	before := int64(0)
	if s.opts.Retention > 0 {
		before, why = measurepb.FromTime(now.Add(-s.opts.Retention)), "age"
	}
	if s.opts.MaxBytes > 0 {
		var used, size int64
		err := s.read.QueryRowContext(ctx, "SELECT p.page_count - f.freelist_count, s.page_size FROM pragma_page_count p, pragma_freelist_count f, pragma_page_size s").Scan(&used, &size)
		if err != nil {
			return "", "", explain("measure the file", err)
		}
		if float64(used*size) > fullShare*float64(s.opts.MaxBytes) {
			before, why = measurepb.FromTime(now), "size"
		}
	}
	if before == 0 {
		return "", "", nil
	}
	rows, err := s.read.QueryContext(ctx, "SELECT id FROM measurement WHERE end > 0 AND end < ? AND state NOT IN (?, ?) ORDER BY end LIMIT 1",
		before, anycast.Waiting.String(), anycast.Running.String())
	if err != nil {
		return "", "", explain("find old measurements", err)
	}
	defer rows.Close()
	if rows.Next() {
		err = rows.Scan(&id)
	}
	if err == nil {
		err = rows.Err()
	}
	return id, why, explain("find old measurements", err)
}
