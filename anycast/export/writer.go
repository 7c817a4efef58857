// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/seed5728abee/fathom/anycast"
)

// Record is a result and the measurement that found it.
type Record struct {
	Measurement *anycast.Measurement
	Result      anycast.Result
}

// Records gives the results of a store that match, in the order found. They are those of the measurements that are there when
// it begins. After an error there are no more.
func Records(ctx context.Context, s anycast.Store, q anycast.Query) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		of := q
		// A measurement that began earlier may have results of the time asked for; the limit is one of results.
		of.From, of.Limit = time.Time{}, 0
		list, err := s.Measurements(ctx, of)
		if err != nil {
			yield(Record{}, err)
			return
		}
		measurements := make(map[string]*anycast.Measurement, len(list))
		for i := range list {
			measurements[list[i].ID] = &list[i]
		}
		more := true
		err = s.Results(ctx, q, func(id string, r anycast.Result) bool {
			if m := measurements[id]; m != nil {
				more = yield(Record{m, r}, nil)
			}
			return more
		})
		if err != nil && more {
			yield(Record{}, err)
		}
	}
}

// Write writes all records to w, as a [Writer] of that format and kind does. It ends at the first error,
// of w or among the records; what is written until then may not be a whole file.
func Write(w io.Writer, f Format, k Kind, records iter.Seq2[Record, error]) error {
	out, err := NewWriter(w, f, k)
	if err != nil {
		return err
	}
	for r, err := range records {
		if err == nil {
			err = out.Write(r.Measurement, r.Result)
		}
		if err != nil {
			out.abandon()
			return err
		}
	}
	return out.Close()
}

// encoder is one format.
type encoder interface {
	// begin is called before the first result of a measurement that is written.
	begin(m *anycast.Measurement) error
	// write writes a result, of a kind that the format holds.
	write(m *anycast.Measurement, r anycast.Result) error
	// end writes what belongs to the end.
	end() error
}

// Writer writes results in one format. Its methods must not be called at the same time.
type Writer struct {
	format Format
	kind   Kind // chosen, or "" for all
	chosen bool // by the caller
	out    *bufio.Writer
	enc    encoder // nil before the kind of a table is known
	seen   map[string]bool
	err    error
}

// NewWriter gives a writer of one kind of result, which leaves others out. For CSV and Parquet, "" is the main
// kind of the program that the first result is of, and a result of another program is an error; for the other
// formats it is all kinds, and one that the format cannot hold is an error. Either error is ErrKind, as is a kind that
// the format never holds. A summary or alarm is about a measurement: formats that cannot hold it just leave it out.
func NewWriter(w io.Writer, f Format, k Kind) (*Writer, error) {
	if !f.valid() {
		return nil, fmt.Errorf("%w: %s", ErrFormat, f)
	}
	if k != "" {
		if err := f.check(k); err != nil {
			return nil, err
		}
	}
	e := &Writer{format: f, kind: k, chosen: k != "", out: bufio.NewWriterSize(w, 64<<10), seen: make(map[string]bool)}
	switch f {
	case JSONLines:
		e.enc = newJSONLines(e.out)
	case Atlas:
		e.enc = newAtlas(e.out)
	case ScamperJSON:
		e.enc = newScamper(&scamperJSON{newJSON(e.out)})
	case Warts:
		e.enc = newScamper(&warts{out: e.out})
	case CSV, Parquet:
		if e.chosen {
			e.enc = newTable(e.out, f, k)
		}
	}
	return e, nil
}

// errClosed ends the use of a writer.
var errClosed = errors.New("export: the writer is closed")

// Write writes a result, or leaves it out if it is of another kind than the one chosen. After an error all calls fail.
func (w *Writer) Write(m *anycast.Measurement, r anycast.Result) error {
	if w.err != nil {
		return w.err
	}
	if err := w.write(m, r); err != nil {
		w.err = fmt.Errorf("export %s as %s: %w", m.ID, w.format, err)
	}
	return w.err
}

func (w *Writer) write(m *anycast.Measurement, r anycast.Result) error {
	kind := KindOf(r)
	if kind == "" {
		return fmt.Errorf("%w: %T", ErrKind, r)
	}
	if w.format.flat() && !w.chosen {
		main := MainKind(m.Definition.Program)
		if w.enc == nil {
			w.kind, w.enc = main, newTable(w.out, w.format, main)
		}
		if main != w.kind {
			return fmt.Errorf("%w: this table is of kind %s, and %s is a measurement of kind %s; choose one, or one measurement", ErrKind, w.kind, m.ID, main)
		}
	}
	if !w.takes(kind) {
		if w.chosen || w.format.flat() || kind == Summary || kind == Alarm {
			return nil
		}
		return w.format.check(kind)
	}
	if !w.seen[m.ID] {
		w.seen[m.ID] = true
		if err := w.enc.begin(m); err != nil {
			return err
		}
	}
	if w.kind == Measurement {
		return nil
	}
	return w.enc.write(m, r)
}

// takes tells whether a kind of result has something for the file.
func (w *Writer) takes(k Kind) bool {
	switch {
	case w.kind == "":
		return w.format.Holds(k)
	case w.kind == Measurement:
		return true // its first result, whatever it is, tells that it is there
	case w.kind == Link:
		return k == Trace
	case w.kind == Catch && k == Flip:
		return w.format != JSONLines // which has them inside of the flip
	}
	return k == w.kind
}

// Close writes what is left; it does not close what the writer writes to. Without a kind chosen and without a result, a
// Parquet file cannot be: that is ErrKind.
func (w *Writer) Close() error {
	if w.err != nil {
		if errors.Is(w.err, errClosed) {
			return nil
		}
		return w.err
	}
	w.err = errClosed
	if w.enc == nil {
		if w.format == Parquet {
			return fmt.Errorf("export as parquet: %w: there is no result, so that the kind has to be chosen", ErrKind)
		}
		return nil
	}
	if err := w.enc.end(); err != nil {
		return fmt.Errorf("export as %s: %w", w.format, err)
	}
	if err := w.out.Flush(); err != nil {
		return fmt.Errorf("export as %s: %w", w.format, err)
	}
	return nil
}

// rowHolder is an encoder that keeps rows until there are some to hand on.
type rowHolder interface{ handOn() error }

// Flush writes what is whole, for a reader who waits for it. Parquet keeps rows until a group of them is full.
func (w *Writer) Flush() error {
	if w.err != nil {
		return w.err
	}
	if h, ok := w.enc.(rowHolder); ok {
		w.err = h.handOn()
	}
	if w.err == nil {
		w.err = w.out.Flush()
	}
	return w.err
}

// abandon writes what is whole, for a user who looks at it, and ends the use of the writer.
func (w *Writer) abandon() {
	if w.format != Parquet { // nothing of which can be read without its end
		_ = w.out.Flush()
	}
	w.err = errClosed
}
