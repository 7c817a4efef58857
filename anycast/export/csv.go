// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// csvTable writes rows as RFC 4180 says, but with LF line ends as everything on Unix expects; readers take both.
type csvTable[T any] struct {
	w       io.Writer
	buf     []byte
	columns []column
	begun   bool
}

// column is a field of a row.
type column struct {
	name     string
	optional bool // empty if it is zero
}

func newCSV[T any](w io.Writer) *csvTable[T] {
	return &csvTable[T]{w: w, columns: columnsOf(reflect.TypeFor[T]())}
}

func columnsOf(row reflect.Type) []column {
	columns := make([]column, row.NumField())
	for i := range columns {
		tag := strings.Split(row.Field(i).Tag.Get("parquet"), ",")
		columns[i] = column{tag[0], slices.Contains(tag, "optional")}
	}
	return columns
}

func (c *csvTable[T]) writeRows(rows []T) error {
	c.header()
	for i := range rows {
		row := reflect.ValueOf(&rows[i]).Elem()
		for k := range c.columns {
			if k > 0 {
				c.buf = append(c.buf, ',')
			}
			if v := row.Field(k); !c.columns[k].optional || !v.IsZero() {
				c.buf = appendValue(c.buf, v)
			}
		}
		c.buf = append(c.buf, '\n')
	}
	return c.flush()
}

func (c *csvTable[T]) header() {
	if c.begun {
		return
	}
	c.begun = true
	for k := range c.columns {
		if k > 0 {
			c.buf = append(c.buf, ',')
		}
		c.buf = append(c.buf, c.columns[k].name...)
	}
	c.buf = append(c.buf, '\n')
}

func (c *csvTable[T]) flush() error {
	_, err := c.w.Write(c.buf)
	c.buf = c.buf[:0]
	return err
}

// end writes the header at least.
func (c *csvTable[T]) end() error {
	c.header()
	return c.flush()
}

// appendValue knows the types of the rows' fields.
func appendValue(b []byte, v reflect.Value) []byte {
	switch kind := v.Kind(); {
	case kind == reflect.String:
		return appendText(b, v.String())
	case kind == reflect.Bool:
		return strconv.AppendBool(b, v.Bool())
	case kind == reflect.Pointer:
		return appendValue(b, v.Elem())
	case v.CanInt():
		return strconv.AppendInt(b, v.Int(), 10)
	case v.CanUint():
		return strconv.AppendUint(b, v.Uint(), 10)
	case v.CanFloat():
		return strconv.AppendFloat(b, v.Float(), 'f', -1, 64)
	}
	if t, ok := reflect.TypeAssert[*time.Time](v.Addr()); ok {
		return t.UTC().AppendFormat(b, time.RFC3339Nano)
	}
	panic("export: a column of type " + v.Type().String())
}

// appendText quotes text that needs it.
func appendText(b []byte, s string) []byte {
	if !strings.ContainsAny(s, ",\"\r\n") && strings.TrimSpace(s) == s {
		return append(b, s...)
	}
	b = append(b, '"')
	b = append(b, strings.ReplaceAll(s, `"`, `""`)...)
	return append(b, '"')
}
