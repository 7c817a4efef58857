// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package export writes what anycast measurements found in the formats that other tools read.
//
//	format        results that it holds                     read by
//	jsonl         all                                       everything; the only one that leaves nothing out
//	csv, parquet  one kind per file, as a flat table        spreadsheets; DuckDB, Spark, ClickHouse, pandas
//	atlas         traces, catches, latencies, flips         tools for RIPE Atlas results
//	scamper-json  traces                                    tools for scamper's JSON
//	warts         traces                                    scamper's own tools
//
// Results are written as they come, with memory that does not grow with their number:
//
//	err := export.Write(os.Stdout, export.CSV, export.Catch, export.Records(ctx, store, anycast.Query{Measurement: id}))
//
// Every field and column, with its unit, is in docs/reference/export-formats.md. What a format has no place for goes
// into additional keys where there can be any (Atlas, scamper JSON: the site that heard an answer, above all), and is left
// out where there cannot (warts).
//
// References: RIPE Atlas measurement result format, version 5000 (atlas.ripe.net/docs/apis/measurement-result-format);
// scamper's warts(5) and sc_warts2json(1), version 20211212; RFC 4180 for CSV; Apache Parquet format 2.
package export
