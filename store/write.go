// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/measurepb"
)

// chunkTargets is how many targets share a row.
const chunkTargets = 4096

// insertRows is how many catches one statement inserts: to start a statement costs as much as several rows.
const insertRows = 32

// catchColumns are the columns of catch.
const catchColumns = 17

// transact runs f in a transaction. The caller holds disk.
func (s *Store) transact(ctx context.Context, what string, f func(*sql.Tx) error) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return explain(what, err)
	}
	if err := f(tx); err != nil {
		_ = tx.Rollback()
		return explain(what, err)
	}
	return explain(what, tx.Commit())
}

// Begin implements [anycast.Store].
func (s *Store) Begin(ctx context.Context, m anycast.Measurement, targets []anycast.Target) error {
	definition, err := json.Marshal(&m.Definition)
	if err != nil {
		return fmt.Errorf("keep measurement %s: %w", m.ID, err)
	}
	progress, err := json.Marshal(&m.Progress)
	if err != nil {
		return fmt.Errorf("keep measurement %s: %w", m.ID, err)
	}
	if s.isClosed() {
		return fmt.Errorf("keep measurement %s: %w", m.ID, ErrClosed)
	}
	s.disk.Lock()
	defer s.disk.Unlock()
	var number int64
	err = s.transact(ctx, "keep measurement "+m.ID, func(tx *sql.Tx) error {
		r, err := tx.ExecContext(ctx, `INSERT INTO measurement (id, program, name, owner, parent, state, error, start, end, targets, definition, progress)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			m.ID, string(m.Definition.Program), m.Definition.Name, m.Owner, m.Parent, m.State.String(), m.Error,
			measurepb.FromTime(m.Start), measurepb.FromTime(m.End), m.Targets, string(definition), string(progress))
		if err != nil {
			return err
		}
		if number, err = r.LastInsertId(); err != nil {
			return err
		}
		for at := range targets {
			if name := targets[at].Name; name != "" {
				if _, err := tx.ExecContext(ctx, "INSERT INTO target_name VALUES (?, ?, ?)", number, at, name); err != nil {
					return err
				}
			}
		}
		for chunk := 0; len(targets) > 0; chunk++ {
			n, size := 1, targets[0].Addr.BitLen()/8
			for n < len(targets) && n < chunkTargets && targets[n].Addr.BitLen()/8 == size {
				n++
			}
			data := make([]byte, 0, n*size)
			for i := range targets[:n] {
				data = append(data, targets[i].Addr.AsSlice()...)
			}
			if _, err := tx.ExecContext(ctx, "INSERT INTO target VALUES (?, ?, ?, ?)", number, chunk, size, data); err != nil {
				return err
			}
			targets = targets[n:]
		}
		return nil
	})
	if err == nil {
		s.numbers[m.ID] = number
	}
	return err
}

// number finds a measurement in the file. The caller holds disk.
func (s *Store) number(ctx context.Context, id string) (int64, error) {
	if n, ok := s.numbers[id]; ok {
		return n, nil
	}
	var n int64
	err := s.write.QueryRowContext(ctx, "SELECT m FROM measurement WHERE id = ?", id).Scan(&n)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, fmt.Errorf("measurement %q: %w", id, anycast.ErrNoMeasurement)
	}
	if err != nil {
		return 0, explain("find measurement "+id, err)
	}
	s.numbers[id] = n
	return n, nil
}

// Append implements [anycast.Store]. It waits while the disk is far behind. An error tells of these results or earlier
// ones of the same measurement; each is told once.
func (s *Store) Append(ctx context.Context, id string, results []anycast.Result) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	// A caller who gives up must be able to: conditions know no contexts.
	defer context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.room.Broadcast()
	})()
	for len(s.pending) >= pendingRows && !s.closed && ctx.Err() == nil {
		s.room.Wait()
	}
	if err := s.takeFailure(id); err != nil {
		return err
	}
	if s.closed {
		return fmt.Errorf("keep results of %s: %w", id, ErrClosed)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("keep results of %s: %w", id, err)
	}
	for _, r := range results {
		s.pending = append(s.pending, row{id, r})
	}
	if len(s.pending) >= batchRows {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
	return nil
}

// takeFailure gives, once, the reason that earlier results of a measurement were not kept. The caller holds mu.
func (s *Store) takeFailure(id string) error {
	err := s.failed[id]
	delete(s.failed, id)
	return err
}

// untold gives the reasons that results were not kept, as far as nobody has taken them.
func (s *Store) untold() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for _, e := range s.failed {
		err = errors.Join(err, e)
	}
	return err
}

func (s *Store) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// writer writes what is waiting, in time.
func (s *Store) writer(ctx context.Context) {
	tick := time.NewTicker(batchDelay)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-tick.C:
		}
		// Whoever gave the results is told.
		if err := s.flush(ctx); err != nil && ctx.Err() == nil {
			s.opts.Log.Error("results were not kept", "err", err)
		}
	}
}

// flush writes what is waiting. What cannot be written is given up and noted for its owner.
func (s *Store) flush(ctx context.Context) error {
	s.disk.Lock()
	defer s.disk.Unlock()
	return s.flushLocked(ctx)
}

func (s *Store) flushLocked(ctx context.Context) error {
	s.mu.Lock()
	rows := s.pending
	s.pending = nil
	s.room.Broadcast()
	s.mu.Unlock()
	var first error
	for len(rows) > 0 {
		n := min(len(rows), batchRows)
		if err := s.writeBatch(ctx, rows[:n]); err != nil {
			if ctx.Err() != nil { // not the file's fault: they stay
				s.mu.Lock()
				s.pending = append(rows, s.pending...)
				s.mu.Unlock()
				return err
			}
			if first == nil {
				first = err
			}
			for _, r := range rows[:n] {
				s.fail(r.id, err)
			}
		}
		rows = rows[n:]
	}
	return first
}

// fail notes that results of a measurement were not kept.
func (s *Store) fail(id string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed[id] = fmt.Errorf("keep results of %s: %w", id, err)
}

// writeBatch writes rows in one transaction.
func (s *Store) writeBatch(ctx context.Context, rows []row) error {
	seq := s.seq
	var catches []any // arguments
	sites, origins := fresh{known: s.sites}, fresh{known: s.origins}
	err := s.transact(ctx, "write results", func(tx *sql.Tx) error {
		insert := tx.StmtContext(ctx, s.insert)
		flush := func(all bool) error {
			for len(catches) >= insertRows*catchColumns || all && len(catches) > 0 {
				n := min(len(catches)/catchColumns, insertRows)
				var err error
				if n == insertRows {
					_, err = insert.ExecContext(ctx, catches[:n*catchColumns]...)
				} else {
					_, err = tx.ExecContext(ctx, insertCatches(n), catches[:n*catchColumns]...)
				}
				if err != nil {
					return err
				}
				catches = catches[:copy(catches, catches[n*catchColumns:])]
			}
			return nil
		}
		for _, r := range rows {
			m, err := s.numberIn(ctx, tx, r.id)
			if errors.Is(err, anycast.ErrNoMeasurement) {
				continue // deleted in the meantime
			}
			if err != nil {
				return err
			}
			c, ok := r.r.(*anycast.Catch)
			if !ok {
				body, err := proto.Marshal(measurepb.FromResult(r.r))
				if err != nil { // of text that is none: no reason to lose those of others
					s.fail(r.id, err)
					continue
				}
				seq++
				if err := insertResult(ctx, tx, m, seq, r.r, body); err != nil {
					return err
				}
				continue
			}
			seq++
			sender, err := sites.number(ctx, tx, "site", c.Sender)
			if err != nil {
				return err
			}
			receiver, err := sites.number(ctx, tx, "site", c.Receiver)
			if err != nil {
				return err
			}
			origin, err := origins.number(ctx, tx, "origin", c.Origin)
			if err != nil {
				return err
			}
			p := measurepb.FromResult(c).GetCatch()
			catches = append(catches, m, seq, p.GetTarget(), sender, receiver, optional(p.GetResponder()), int64(p.GetProtocol()), int64(p.GetStatus()),
				int64(p.GetFlow()), int64(p.GetRound()), p.GetRtt(), p.GetClockError(), int64(p.GetReplyTtl()), optional(p.GetText()),
				int64(p.GetDuplicates()), p.GetTime(), origin)
			if err := flush(false); err != nil {
				return err
			}
		}
		if err := flush(true); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, "UPDATE counter SET seq = ?", seq)
		return err
	})
	if err != nil {
		return err
	}
	s.seq = seq
	maps.Copy(s.sites, sites.added)
	maps.Copy(s.origins, origins.added)
	return nil
}

// fresh is the numbers of names, with those that a transaction adds.
type fresh struct{ known, added map[string]int64 }

// number gives the number that a name has in a table of names.
func (f *fresh) number(ctx context.Context, tx *sql.Tx, table, name string) (int64, error) {
	if n, ok := f.known[name]; ok {
		return n, nil
	}
	if n, ok := f.added[name]; ok {
		return n, nil
	}
	r, err := tx.ExecContext(ctx, "INSERT INTO "+table+" (name) VALUES (?)", name)
	if err != nil {
		return 0, err
	}
	n, err := r.LastInsertId()
	if f.added == nil {
		f.added = map[string]int64{}
	}
	f.added[name] = n
	return n, err
}

// numberIn is number inside a transaction, which holds the only connection.
func (s *Store) numberIn(ctx context.Context, tx *sql.Tx, id string) (int64, error) {
	if n, ok := s.numbers[id]; ok {
		return n, nil
	}
	var n int64
	err := tx.QueryRowContext(ctx, "SELECT m FROM measurement WHERE id = ?", id).Scan(&n)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, anycast.ErrNoMeasurement
	}
	if err == nil {
		s.numbers[id] = n
	}
	return n, err
}

// optional makes NULL of what is empty.
func optional[T string | []byte](v T) any {
	if len(v) == 0 {
		return nil
	}
	return v
}

var catchStatements = func() (statements [insertRows + 1]string) {
	const one = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
	for n := 1; n <= insertRows; n++ {
		statements[n] = "INSERT INTO catch VALUES " + one + strings.Repeat(", "+one, n-1)
	}
	return statements
}()

func insertCatches(n int) string { return catchStatements[n] }

// insertResult writes a result whose encoding is body.
func insertResult(ctx context.Context, tx *sql.Tx, m, seq int64, r anycast.Result, body []byte) error {
	target, at, sites := about(r)
	_, err := tx.ExecContext(ctx, "INSERT INTO result VALUES (?, ?, ?, ?, ?, ?)",
		m, seq, optional(target.AsSlice()), measurepb.FromTime(at), joinSites(sites), body)
	return err
}

// joinSites writes names so that one of them can be searched for with its separators around it.
func joinSites(sites []string) string {
	slices.Sort(sites)
	sites = slices.Compact(sites)
	var b strings.Builder
	b.WriteByte('/')
	for _, s := range sites {
		if s != "" {
			b.WriteString(s)
			b.WriteByte('/')
		}
	}
	return b.String()
}

// about gives what results are searched by.
func about(r anycast.Result) (target netip.Addr, at time.Time, sites []string) {
	switch r := r.(type) {
	case *anycast.TraceResult:
		sites = append(sites, r.Site)
		for i := range r.Replies {
			sites = append(sites, r.Replies[i].Receiver)
		}
		return r.Target, r.Start, sites
	case *anycast.LatencyResult:
		sites = append(sites, r.Catcher)
		for _, u := range r.Unicast {
			sites = append(sites, u.Site)
		}
		return r.Target, r.Time, sites
	case *anycast.FlipResult:
		for s := range r.Seen {
			sites = append(sites, s)
		}
		if len(r.Catches) > 0 {
			at = r.Catches[0].Time
		}
		return r.Target, at, sites
	case *anycast.Move:
		return r.Target, r.Time, []string{r.From, r.To}
	case *anycast.WatchResult:
		for s := range r.Sites {
			sites = append(sites, s)
		}
		return target, r.Time, sites
	case *anycast.Summary:
		for s := range r.Sites {
			sites = append(sites, s)
		}
		return target, at, sites
	case *anycast.Alarm:
		return target, r.Time, nil
	case *anycast.Catch:
		return r.Target, r.Time, []string{r.Sender, r.Receiver}
	case *anycast.TextResult:
	}
	return target, at, nil
}

// Update implements [anycast.Store].
func (s *Store) Update(ctx context.Context, m anycast.Measurement) error {
	progress, err := json.Marshal(&m.Progress)
	if err != nil {
		return fmt.Errorf("update measurement %s: %w", m.ID, err)
	}
	if s.isClosed() {
		return fmt.Errorf("update measurement %s: %w", m.ID, ErrClosed)
	}
	s.disk.Lock()
	defer s.disk.Unlock()
	// Results that could not be written do not keep the state from being. Their error is noted.
	_ = s.flushLocked(ctx)
	number, err := s.number(ctx, m.ID)
	if err != nil {
		return err
	}
	err = s.transact(ctx, "update measurement "+m.ID, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE measurement SET state = ?, error = ?, end = ?, targets = ?, progress = ? WHERE m = ?",
			m.State.String(), m.Error, measurepb.FromTime(m.End), m.Targets, string(progress), number)
		return err
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.takeFailure(m.ID)
}

// Flush implements [anycast.Store]: it waits until everything given so far is on the disk. It fails as long as there are
// results that could not be kept, of any measurement, of which Append or Update has not told yet.
func (s *Store) Flush(ctx context.Context) error {
	if s.isClosed() {
		return fmt.Errorf("flush: %w", ErrClosed)
	}
	s.disk.Lock()
	defer s.disk.Unlock()
	if err := s.flushLocked(ctx); err != nil {
		return err
	}
	if err := s.untold(); err != nil {
		return err
	}
	// The log is written through to the disk only when it is folded into the file.
	var busy, log, done int
	err := s.write.QueryRowContext(ctx, "PRAGMA wal_checkpoint(PASSIVE)").Scan(&busy, &log, &done)
	return explain("flush", err)
}

// Delete implements [anycast.Store].
func (s *Store) Delete(ctx context.Context, id string) error {
	if s.isClosed() {
		return fmt.Errorf("delete measurement %s: %w", id, ErrClosed)
	}
	s.disk.Lock()
	defer s.disk.Unlock()
	if err := s.flushLocked(ctx); err != nil {
		s.opts.Log.Error("results were not kept", "err", err)
	}
	return s.deleteLocked(ctx, id)
}

// deleteStep is how many results are deleted in one transaction, so that writers need not wait for long. A variable for tests.
var deleteStep = 50_000

// deleteLocked lets others have the disk between its steps.
func (s *Store) deleteLocked(ctx context.Context, id string) error {
	number, err := s.number(ctx, id)
	if err != nil {
		return err
	}
	what := "delete measurement " + id
	s.mu.Lock()
	s.leaving[id] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.leaving, id)
		s.mu.Unlock()
	}()
	// The measurement goes last: a delete that was cut short can be repeated.
	for _, table := range []string{"catch", "result"} {
		for {
			var last sql.NullInt64
			err := s.write.QueryRowContext(ctx, "SELECT max(seq) FROM (SELECT seq FROM "+table+" WHERE m = ? ORDER BY seq LIMIT ?)", number, deleteStep).Scan(&last)
			if err != nil {
				return explain(what, err)
			}
			if !last.Valid {
				break
			}
			if _, err := s.write.ExecContext(ctx, "DELETE FROM "+table+" WHERE m = ? AND seq <= ?", number, last.Int64); err != nil {
				return explain(what, err)
			}
			s.disk.Unlock()
			s.disk.Lock()
		}
	}
	err = s.transact(ctx, what, func(tx *sql.Tx) error {
		// Of results only what came meanwhile.
		for _, table := range []string{"catch", "result", "target", "target_name", "measurement"} {
			if _, err := tx.ExecContext(ctx, "DELETE FROM "+table+" WHERE m = ?", number); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	delete(s.numbers, id)
	s.mu.Lock()
	delete(s.failed, id)
	s.mu.Unlock()
	_, err = s.write.ExecContext(ctx, "PRAGMA incremental_vacuum")
	return explain(what, err)
}
