// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/anycast"
)

// FileName is the name of the database in a store's directory.
const FileName = "results.sqlite"

const (
	// batchRows is how many results make a transaction: beyond some thousands the cost of its end no longer shows.
	batchRows = 5000
	// batchDelay is the longest that a result waits for others.
	batchDelay = 100 * time.Millisecond
	// pendingRows is where Append begins to wait for the disk.
	pendingRows = 8 * batchRows
	// readers is how many queries run at once.
	readers = 4
	// busyTimeout is how long another program may hold the file.
	busyTimeout = 10 * time.Second
)

// Options of [Open]. The zero value works.
type Options struct {
	// Retention is how long measurements are kept after their end; 0 is for ever.
	Retention time.Duration
	// MaxBytes bounds the database file. Near it the oldest measurements that are over are deleted; results for which
	// there is still no room fail with ErrFull. 0 is no bound but the disk's.
	MaxBytes int64
	// Sweep is how often the two are looked after: every minute unless set.
	Sweep time.Duration
	// Log tells of deleted measurements and of failures in the background; nil is silence.
	Log *slog.Logger
}

// Store is an [anycast.Store] in a SQLite file.
type Store struct {
	opts  Options
	read  *sql.DB
	write *sql.DB // of one connection
	// insert is the statement that almost all rows of catch come by: to compile it costs as much as a quarter of its work.
	insert *sql.Stmt

	// disk guards write, names, counter and the statements: what touches the file.
	disk    sync.Mutex
	sites   map[string]int64
	origins map[string]int64
	numbers map[string]int64 // of measurements, by id
	seq     int64

	// mu guards what is waiting to be written. It is taken after disk where both are.
	mu      sync.Mutex
	room    sync.Cond // pending shrank
	pending []row
	failed  map[string]error // by measurement: results that could not be kept, until somebody is told
	leaving map[string]bool  // measurements that are being deleted
	closed  bool

	wake chan struct{}
	stop context.CancelFunc
	done sync.WaitGroup
}

var _ anycast.Store = (*Store)(nil)

// row is a result that waits to be written.
type row struct {
	id string
	r  anycast.Result
}

// Open opens the store in a directory and makes both if they are not there. Errors: [ErrCorrupt], [ErrNewer],
// [ErrReadOnly], [ErrFull].
func Open(dir string, opts Options) (*Store, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Sweep == 0 {
		opts.Sweep = time.Minute
	}
	what := "open result store in " + dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, explain(what, err)
	}
	name := filepath.Join(dir, FileName)
	// SQLite gives the files beside it the mode of this one.
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, explain(what, err)
	}
	if err := f.Close(); err != nil {
		return nil, explain(what, err)
	}
	s := &Store{
		opts: opts, numbers: map[string]int64{}, failed: map[string]error{}, leaving: map[string]bool{},
		wake: make(chan struct{}, 1),
	}
	s.room.L = &s.mu
	if err := s.open(name); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", what, err), s.close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	s.done.Go(func() { s.writer(ctx) })
	s.done.Go(func() { s.sweeper(ctx) })
	return s, nil
}

// dsn names the file with what each connection is set to.
func dsn(name string, pragmas ...string) string {
	q := url.Values{}
	for _, p := range append([]string{
		fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds()), "temp_store(memory)",
	}, pragmas...) {
		q.Add("_pragma", p)
	}
	return (&url.URL{Scheme: "file", OmitHost: true, Path: name, RawQuery: q.Encode()}).String()
}

func (s *Store) open(name string) error {
	ctx := context.Background()
	var err error
	// In WAL mode "normal" loses no transaction when the process dies, and the last ones at worst when the machine
	// does; Flush asks for more. auto_vacuum takes effect only in a new file, and has to come first.
	if s.write, err = sql.Open("sqlite", dsn(name, "auto_vacuum(incremental)", "journal_mode(wal)", "synchronous(normal)", "cache_size(-16000)")); err != nil {
		return explain("connect", err)
	}
	s.write.SetMaxOpenConns(1)
	if err := migrate(ctx, s.write); err != nil {
		return err
	}
	if n := s.opts.MaxBytes; n > 0 {
		var size int64
		if err := s.write.QueryRowContext(ctx, "PRAGMA page_size").Scan(&size); err != nil {
			return explain("read page size", err)
		}
		if _, err := s.write.ExecContext(ctx, fmt.Sprintf("PRAGMA max_page_count = %d", max(n/size, 1))); err != nil {
			return explain("bound the file", err)
		}
	}
	if s.insert, err = s.write.PrepareContext(ctx, insertCatches(insertRows)); err != nil {
		return explain("prepare to write", err)
	}
	if err := s.write.QueryRowContext(ctx, "SELECT seq FROM counter").Scan(&s.seq); err != nil {
		return explain("read counter", err)
	}
	if s.sites, err = s.names(ctx, "site"); err != nil {
		return explain("read sites", err)
	}
	if s.origins, err = s.names(ctx, "origin"); err != nil {
		return explain("read origins", err)
	}
	if s.read, err = sql.Open("sqlite", dsn(name, "query_only(true)", "cache_size(-4000)")); err != nil {
		return explain("connect", err)
	}
	s.read.SetMaxOpenConns(readers)
	return nil
}

// names reads a table of names.
func (s *Store) names(ctx context.Context, table string) (map[string]int64, error) {
	rows, err := s.write.QueryContext(ctx, "SELECT "+table+", name FROM "+table)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	numbers := map[string]int64{}
	for rows.Next() {
		var number int64
		var name string
		if err := rows.Scan(&number, &name); err != nil {
			return nil, err
		}
		numbers[name] = number
	}
	return numbers, rows.Err()
}

// Close writes what is waiting and closes the file. Its error tells of results that could not be kept.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.room.Broadcast()
	s.mu.Unlock()
	s.stop()
	s.done.Wait()
	err := s.flush(context.Background())
	return errors.Join(err, s.untold(), s.close())
}

func (s *Store) close() error {
	var errs []error
	for _, db := range []*sql.DB{s.read, s.write} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}
