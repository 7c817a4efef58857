// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"io"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"
)

// rowGroup is how many rows of a Parquet file are in memory at once. A reader decompresses and skips by such groups;
// this many rows of the widest table are some tens of megabytes.
const rowGroup = 64 << 10

// parquetTable writes rows as Apache Parquet.
type parquetTable[T any] struct {
	w *parquet.GenericWriter[T]
}

func newParquet[T any](w io.Writer) *parquetTable[T] {
	return &parquetTable[T]{parquet.NewGenericWriter[T](
		w,
		// The default level makes catches 3 % smaller, with half the speed and twice the memory.
		parquet.Compression(&zstd.Codec{Level: zstd.SpeedFastest}),
		parquet.MaxRowsPerRowGroup(rowGroup),
		parquet.CreatedBy("fathom", "1", "0"),
	)}
}

func (p *parquetTable[T]) writeRows(rows []T) error {
	_, err := p.w.Write(rows)
	return err
}

func (p *parquetTable[T]) end() error { return p.w.Close() }
