// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"io"

	"github.com/seed5728abee/fathom/anycast"
)

// tableRows is how many rows are handed on at once.
const tableRows = 1024

// table writes rows of one type.
type table[T any] struct {
	rows func([]T, *anycast.Measurement, anycast.Result) ([]T, error)
	buf  []T
	out  rowWriter[T]
}

// rowWriter is a format for tables.
type rowWriter[T any] interface {
	writeRows(rows []T) error
	end() error
}

func newTable(w io.Writer, f Format, k Kind) encoder {
	switch k {
	case Measurement:
		return &measurementTable{*tableOf[measurementRow](w, f, nil)}
	case Trace:
		return tableOf(w, f, traceRows)
	case Link:
		return tableOf(w, f, linkRows)
	case Catch:
		return tableOf(w, f, catchRows)
	case Latency:
		return tableOf(w, f, latencyRows)
	case Flip:
		return tableOf(w, f, flipRows)
	case Move:
		return tableOf(w, f, moveRows)
	case Watch:
		return tableOf(w, f, watchRows)
	case Summary:
		return tableOf(w, f, summaryRows)
	case Alarm:
		return tableOf(w, f, alarmRows)
	case Text:
		return tableOf(w, f, textRows)
	}
	panic("export: no table for " + k) // Format.check lets no other kind in
}

func tableOf[T any](w io.Writer, f Format, rows func([]T, *anycast.Measurement, anycast.Result) ([]T, error)) *table[T] {
	t := &table[T]{rows: rows, buf: make([]T, 0, tableRows)}
	if f == Parquet {
		t.out = newParquet[T](w)
	} else {
		t.out = newCSV[T](w)
	}
	return t
}

func (t *table[T]) begin(*anycast.Measurement) error { return nil }

func (t *table[T]) write(m *anycast.Measurement, r anycast.Result) (err error) {
	t.buf, err = t.rows(t.buf, m, r)
	return t.handOnIfMany(err)
}

func (t *table[T]) handOnIfMany(err error) error {
	if err != nil || len(t.buf) < tableRows {
		return err
	}
	return t.handOn()
}

func (t *table[T]) handOn() error {
	err := t.out.writeRows(t.buf)
	clear(t.buf)
	t.buf = t.buf[:0]
	return err
}

func (t *table[T]) end() error {
	if err := t.handOn(); err != nil {
		return err
	}
	return t.out.end()
}

// measurementTable has rows of measurements, not of results.
type measurementTable struct{ table[measurementRow] }

func (t *measurementTable) begin(m *anycast.Measurement) (err error) {
	t.buf, err = measurementRows(t.buf, m)
	return t.handOnIfMany(err)
}
