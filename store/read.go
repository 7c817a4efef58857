// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/measurepb"
)

// where collects conditions and their arguments.
type where struct {
	conditions []string
	args       []any
}

func (w *where) add(condition string, args ...any) {
	w.conditions = append(w.conditions, condition)
	w.args = append(w.args, args...)
}

// target asks for targets inside a prefix. Addresses of one version sort among themselves; the length keeps the other one out.
func (w *where) target(p netip.Prefix) {
	if !p.IsValid() {
		return
	}
	p = p.Masked()
	last := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(last); i++ {
		last[i/8] |= 1 << (7 - i%8)
	}
	w.add("target BETWEEN ? AND ? AND length(target) = ?", p.Addr().AsSlice(), last, len(last))
}

func (w *where) String() string {
	if len(w.conditions) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(w.conditions, " AND ")
}

// measurement adds what a query says about measurements, whose table is there under the name t.
func (w *where) measurement(q *anycast.Query) {
	if q.Measurement != "" {
		w.add("t.id = ?", q.Measurement)
	}
	if q.Program != "" {
		w.add("t.program = ?", string(q.Program))
	}
	if q.Name != "" {
		w.add("t.name = ?", q.Name)
	}
}

// Measurements implements [anycast.Store]. From and Until bound their starts. With Target or Site
// it gives those that have a result to which that applies.
func (s *Store) Measurements(ctx context.Context, q anycast.Query) ([]anycast.Measurement, error) {
	if q.Target.IsValid() || q.Site != "" {
		if err := s.settle(ctx); err != nil {
			return nil, err
		}
	}
	var w where
	w.measurement(&q)
	if !q.From.IsZero() {
		w.add("t.start >= ?", measurepb.FromTime(q.From))
	}
	if !q.Until.IsZero() {
		w.add("t.start < ?", measurepb.FromTime(q.Until))
	}
	if q.Target.IsValid() || q.Site != "" {
		inner := q
		inner.Measurement, inner.Program, inner.Name = "", "", ""
		catch, result := resultConditions(&inner)
		w.add("(EXISTS (SELECT 1 FROM catch"+and(catch, "catch.m = t.m")+") OR EXISTS (SELECT 1 FROM result"+and(result, "result.m = t.m")+"))",
			append(append([]any{}, catch.args...), result.args...)...)
	}
	query := "SELECT t.id, t.owner, t.parent, t.state, t.error, t.start, t.end, t.targets, t.definition, t.progress FROM measurement t" + w.String() + " ORDER BY t.start DESC, t.m DESC"
	if q.Limit > 0 {
		query += fmt.Sprintf(" LIMIT %d", q.Limit)
	}
	rows, err := s.read.QueryContext(ctx, query, w.args...)
	if err != nil {
		return nil, explain("list measurements", err)
	}
	defer rows.Close()
	var list []anycast.Measurement
	for rows.Next() {
		var m anycast.Measurement
		var state, definition, progress string
		var start, end int64
		if err := rows.Scan(&m.ID, &m.Owner, &m.Parent, &state, &m.Error, &start, &end, &m.Targets, &definition, &progress); err != nil {
			return nil, explain("list measurements", err)
		}
		m.Start, m.End = measurepb.ToTime(start), measurepb.ToTime(end)
		err := errors.Join(m.State.UnmarshalText([]byte(state)), json.Unmarshal([]byte(definition), &m.Definition), json.Unmarshal([]byte(progress), &m.Progress))
		if err != nil {
			return nil, fmt.Errorf("read measurement %s: %w (%w)", m.ID, ErrCorrupt, err)
		}
		list = append(list, m)
	}
	return list, explain("list measurements", rows.Err())
}

// and gives the WHERE clause of w with one more condition.
func and(w where, condition string) string {
	w.conditions = append([]string{condition}, w.conditions...)
	return w.String()
}

// settle writes what is waiting, so that it is found.
func (s *Store) settle(ctx context.Context) error {
	if s.isClosed() {
		return ErrClosed
	}
	return s.flush(ctx)
}

// Targets implements [anycast.Store].
func (s *Store) Targets(ctx context.Context, id string) ([]anycast.Target, error) {
	what := "read targets of " + id
	var number int64
	var count int
	err := s.read.QueryRowContext(ctx, "SELECT m, targets FROM measurement WHERE id = ?", id).Scan(&number, &count)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("%s: %w", what, anycast.ErrNoMeasurement)
	}
	if err != nil {
		return nil, explain(what, err)
	}
	rows, err := s.read.QueryContext(ctx, "SELECT size, data FROM target WHERE m = ? ORDER BY chunk", number)
	if err != nil {
		return nil, explain(what, err)
	}
	defer rows.Close()
	var targets []anycast.Target
	for rows.Next() {
		var size int
		var data sql.RawBytes
		if err := rows.Scan(&size, &data); err != nil {
			return nil, explain(what, err)
		}
		if size != 4 && size != 16 || len(data)%size != 0 {
			return nil, fmt.Errorf("%s: %w", what, ErrCorrupt)
		}
		for ; len(data) > 0; data = data[size:] {
			a, _ := netip.AddrFromSlice(data[:size])
			targets = append(targets, anycast.Target{Addr: a})
		}
	}
	if err := rows.Err(); err != nil {
		return nil, explain(what, err)
	}
	return targets, s.nameTargets(ctx, what, number, targets)
}

// nameTargets gives targets the names that they were called by.
func (s *Store) nameTargets(ctx context.Context, what string, number int64, targets []anycast.Target) error {
	rows, err := s.read.QueryContext(ctx, "SELECT at, name FROM target_name WHERE m = ?", number)
	if err != nil {
		return explain(what, err)
	}
	defer rows.Close()
	for rows.Next() {
		var at int
		var name string
		if err := rows.Scan(&at, &name); err != nil {
			return explain(what, err)
		}
		if at < 0 || at >= len(targets) {
			return fmt.Errorf("%s: %w", what, ErrCorrupt)
		}
		targets[at].Name = name
	}
	return explain(what, rows.Err())
}

// resultConditions gives the conditions on each of the two tables of results.
func resultConditions(q *anycast.Query) (catch, result where) {
	for _, w := range []*where{&catch, &result} {
		w.measurement(q)
		w.target(q.Target)
		if !q.From.IsZero() {
			w.add("time >= ?", measurepb.FromTime(q.From))
		}
		if !q.Until.IsZero() {
			w.add("time < ? AND time > 0", measurepb.FromTime(q.Until))
		}
	}
	if q.Site != "" {
		catch.add("(SELECT site FROM site WHERE name = ?) IN (sender, receiver)", q.Site)
		result.add("instr(sites, ?) > 0", "/"+q.Site+"/")
	}
	return catch, result
}

// A page ends after so many results, or when their encodings have so many bytes.
const (
	pageRows  = 4096
	pageBytes = 4 << 20
)

// Results implements [anycast.Store]. From and Until bound the results' times: those that belong to no moment, such as a
// summary, are left out then. Those of one measurement are read a page at a time, and nothing is held while yield runs: a
// measurement that is deleted meanwhile is ErrNoMeasurement. Other queries hold one of a few connections until they end.
func (s *Store) Results(ctx context.Context, q anycast.Query, yield func(id string, r anycast.Result) bool) error {
	if err := s.settle(ctx); err != nil {
		return err
	}
	if q.Measurement == "" {
		n := 0
		return s.scan(ctx, &q, scope{}, func(c *cursor) bool {
			n++
			return yield(c.id, c.result) && n != q.Limit
		})
	}
	page := make([]anycast.Result, 0, pageRows)
	last := int64(0)
	for left := q.Limit; ; left -= len(page) {
		number, err := s.present(ctx, q.Measurement)
		if err != nil {
			return err
		}
		rows, bytes := pageRows, 0
		if q.Limit > 0 {
			rows = min(rows, left)
		}
		page = page[:0]
		err = s.scan(ctx, &q, scope{number, last, rows}, func(c *cursor) bool {
			page = append(page, c.result)
			last = c.seq
			bytes += c.bytes
			return len(page) < rows && bytes < pageBytes
		})
		if err != nil {
			return err
		}
		// Only now is it certain that nothing was missing.
		if _, err := s.present(ctx, q.Measurement); err != nil {
			return err
		}
		for _, r := range page {
			if !yield(q.Measurement, r) {
				return nil
			}
		}
		if len(page) < rows && bytes < pageBytes || q.Limit > 0 && len(page) == left {
			return nil
		}
	}
}

// present gives the number of a measurement that is there, and not being deleted.
func (s *Store) present(ctx context.Context, id string) (int64, error) {
	what := fmt.Sprintf("read results of %q", id)
	var number int64
	err := s.read.QueryRowContext(ctx, "SELECT m FROM measurement WHERE id = ?", id).Scan(&number)
	s.mu.Lock()
	leaving := s.leaving[id]
	s.mu.Unlock()
	switch {
	case errors.Is(err, sql.ErrNoRows), leaving:
		return 0, fmt.Errorf("%s: %w", what, anycast.ErrNoMeasurement)
	case err != nil:
		return 0, explain(what, err)
	}
	return number, nil
}

// scope is a part of one measurement's results: so many behind a number. The zero scope is all of all.
type scope struct {
	measurement, after int64
	rows               int
}

// scan reads what a query finds in a scope, in order.
func (s *Store) scan(ctx context.Context, q *anycast.Query, in scope, yield func(*cursor) bool) error {
	catch, result := resultConditions(q)
	order := " ORDER BY r.seq"
	if in.measurement != 0 {
		for _, w := range []*where{&catch, &result} {
			w.add("r.m = ? AND r.seq > ?", in.measurement, in.after)
		}
		order = fmt.Sprintf(" ORDER BY r.m, r.seq LIMIT %d", in.rows) // as the table is
	}
	// Two cursors in step, merged by number: a UNION would sort everything first.
	tx, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return explain("read results", err)
	}
	defer func() { _ = tx.Rollback() }()
	catches, err := tx.QueryContext(ctx, `SELECT t.id, r.seq, r.target, s.name, h.name, r.responder, r.protocol, r.status, r.flow, r.round, r.rtt,
		r.clock_error, r.reply_ttl, r.text, r.duplicates, r.time, o.name
		FROM catch r JOIN measurement t ON t.m = r.m JOIN site s ON s.site = r.sender JOIN site h ON h.site = r.receiver
		JOIN origin o ON o.origin = r.origin`+catch.String()+order, catch.args...)
	if err != nil {
		return explain("read results", err)
	}
	defer catches.Close()
	others, err := tx.QueryContext(ctx, "SELECT t.id, r.seq, r.body FROM result r JOIN measurement t ON t.m = r.m"+result.String()+order, result.args...)
	if err != nil {
		return explain("read results", err)
	}
	defer others.Close()
	a, b := cursor{rows: catches, scan: scanCatch}, cursor{rows: others, scan: scanResult}
	if err := errors.Join(a.next(), b.next()); err != nil {
		return explain("read results", err)
	}
	for a.ok || b.ok {
		c := &a
		if !a.ok || b.ok && b.seq < a.seq {
			c = &b
		}
		if !yield(c) {
			return nil
		}
		if err := c.next(); err != nil {
			return explain("read results", err)
		}
	}
	return nil
}

// cursor is a place in a table of results.
type cursor struct {
	rows   *sql.Rows
	scan   func(*cursor) error
	ok     bool
	id     string
	seq    int64
	bytes  int // of an encoding; what catches have does not count
	result anycast.Result
}

func (c *cursor) next() error {
	if c.ok = c.rows.Next(); !c.ok {
		return c.rows.Err()
	}
	return c.scan(c)
}

func scanCatch(c *cursor) error {
	var p measurepb.Catch
	var text sql.NullString
	err := c.rows.Scan(&c.id, &c.seq, &p.Target, &p.Sender, &p.Receiver, &p.Responder, &p.Protocol, &p.Status, &p.Flow, &p.Round, &p.Rtt, &p.ClockError,
		&p.ReplyTtl, &text, &p.Duplicates, &p.Time, &p.Origin)
	if err != nil {
		return err
	}
	p.Text = text.String
	return c.take(&measurepb.Result{Result: &measurepb.Result_Catch{Catch: &p}})
}

func scanResult(c *cursor) error {
	var body sql.RawBytes
	if err := c.rows.Scan(&c.id, &c.seq, &body); err != nil {
		return err
	}
	c.bytes = len(body)
	var p measurepb.Result
	if err := proto.Unmarshal(body, &p); err != nil {
		return fmt.Errorf("%w (%w)", ErrCorrupt, err)
	}
	return c.take(&p)
}

func (c *cursor) take(p *measurepb.Result) error {
	r, err := measurepb.ToResult(p)
	if err != nil {
		return fmt.Errorf("%w (%w)", ErrCorrupt, err)
	}
	c.result = r
	return nil
}
