// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/seed5728abee/fathom/anycast"
)

var (
	// ErrFormat means that there is no format of that name.
	ErrFormat = errors.New("unknown format")
	// ErrKind means that a format cannot hold that kind of result, or that a kind has to be chosen; the text says
	// which formats or kinds there are.
	ErrKind = errors.New("not this kind of result")
	// ErrTooLarge means that a result has more of something than the format can count: a trace of more than 65535
	// answers in warts, say.
	ErrTooLarge = errors.New("too large for the format")
)

// Format is a file format.
type Format uint8

// The formats.
const (
	_           Format = iota
	JSONLines          // one JSON object per line, with all that is known
	CSV                // RFC 4180, with a header; one kind of result
	Parquet            // Apache Parquet, compressed with zstd; one kind of result
	Atlas              // results as RIPE Atlas gives them, one JSON object per line
	ScamperJSON        // what sc_warts2json prints
	Warts              // scamper's binary format
)

var formatNames = [...]string{JSONLines: "jsonl", CSV: "csv", Parquet: "parquet", Atlas: "atlas", ScamperJSON: "scamper-json", Warts: "warts"}

// String gives the lower-case name that command lines use.
func (f Format) String() string {
	if f.valid() {
		return formatNames[f]
	}
	return fmt.Sprintf("Format(%d)", uint8(f))
}

func (f Format) valid() bool { return f >= JSONLines && f <= Warts }

// flat tells that a file of this format is one table.
func (f Format) flat() bool { return f == CSV || f == Parquet }

// MarshalText gives String.
func (f Format) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText is the inverse of MarshalText. Another word is ErrFormat.
func (f *Format) UnmarshalText(text []byte) error {
	i := slices.Index(formatNames[:], string(text))
	if i <= 0 {
		return fmt.Errorf("%w %q, want %s", ErrFormat, text, strings.Join(formatNames[1:], ", "))
	}
	*f = Format(i)
	return nil
}

// Kind is a kind of result, and the name of its table.
type Kind string

// The kinds. A type of result has one each; links are the part of a multipath trace that is a table of its own, and a
// measurement's own record has its definition.
const (
	Measurement Kind = "measurement"
	Trace       Kind = "trace" // a row per probe
	Link        Kind = "link"  // a row per way between two routers
	Catch       Kind = "catch" // those of a flip, too
	Latency     Kind = "latency"
	Flip        Kind = "flip"
	Move        Kind = "move"
	Watch       Kind = "watch" // a row per interval
	Summary     Kind = "summary"
	Alarm       Kind = "alarm"
	Text        Kind = "text"
)

// Kinds gives all kinds.
func Kinds() []Kind {
	return []Kind{Measurement, Trace, Link, Catch, Latency, Flip, Move, Watch, Summary, Alarm, Text}
}

// KindOf gives the kind of a result, "" for a type that this package does not know.
func KindOf(r anycast.Result) Kind {
	switch r.(type) {
	case *anycast.TraceResult:
		return Trace
	case *anycast.Catch:
		return Catch
	case *anycast.LatencyResult:
		return Latency
	case *anycast.FlipResult:
		return Flip
	case *anycast.Move:
		return Move
	case *anycast.WatchResult:
		return Watch
	case *anycast.Summary:
		return Summary
	case *anycast.Alarm:
		return Alarm
	case *anycast.TextResult:
		return Text
	}
	return ""
}

// MainKind gives the kind of result that a program is there for.
func MainKind(p anycast.ProgramKind) Kind {
	switch p {
	case anycast.KindTrace:
		return Trace
	case anycast.KindCatchment:
		return Catch
	case anycast.KindLatency:
		return Latency
	case anycast.KindFlipping:
		return Flip
	case anycast.KindWatch:
		return Watch
	case anycast.KindVolta:
		return Text
	}
	return Summary // a program of the user's own
}

// Holds tells whether a format can hold a kind of result.
func (f Format) Holds(k Kind) bool {
	switch f {
	case JSONLines: // links are inside their traces
		return k != Link && slices.Contains(Kinds(), k)
	case CSV, Parquet:
		return slices.Contains(Kinds(), k)
	case Atlas:
		return k == Trace || k == Catch || k == Latency || k == Flip
	case ScamperJSON, Warts:
		return k == Trace
	}
	return false
}

// check is nil if f can hold k.
func (f Format) check(k Kind) error {
	if f.Holds(k) {
		return nil
	}
	if !slices.Contains(Kinds(), k) {
		return fmt.Errorf("%w: there is no kind %q, want %s", ErrKind, k, list(Kinds()))
	}
	var able []Format
	for f := JSONLines; f <= Warts; f++ {
		if f.Holds(k) {
			able = append(able, f)
		}
	}
	return fmt.Errorf("%w: %s cannot hold a %s, but %s can", ErrKind, f, k, list(able))
}

func list[T any](values []T) string {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = fmt.Sprint(v)
	}
	return strings.Join(words, ", ")
}
