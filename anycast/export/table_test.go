// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package export_test

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/parquet-go/parquet-go"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/export"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
)

var update = flag.Bool("update", false, "write testdata/*.csv and atlas.jsonl anew")

// golden compares with a file of testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s: -want +got (go test -update writes it anew):\n%s", name, diff)
	}
}

func TestTables(t *testing.T) {
	m := measurement("m1", anycast.KindTrace)
	m.Definition.Command = "volta fra1 203.0.113.9"
	for _, k := range export.Kinds() {
		t.Run(string(k), func(t *testing.T) {
			text := write(t, export.CSV, k, all(m, everything()...))
			if k != export.Measurement { // whose definition is what package anycast makes of it
				golden(t, string(k)+".csv", text)
			}
			records, err := csv.NewReader(bytes.NewReader(text)).ReadAll()
			if err != nil {
				t.Fatal(err)
			}
			if len(records) < 2 {
				t.Fatalf("%d lines, want a header and rows", len(records))
			}
			header, rows := readParquet(t, write(t, export.Parquet, k, all(m, everything()...)))
			if diff := cmp.Diff(records[0], header); diff != "" {
				t.Errorf("columns: -csv +parquet:\n%s", diff)
			}
			if diff := cmp.Diff(records[1:], rows); diff != "" {
				t.Errorf("rows: -csv +parquet:\n%s", diff)
			}
			if got := write(t, export.CSV, k, all(m)); string(got) != strings.Join(header, ",")+"\n" {
				t.Errorf("a table without rows is %q, want a header", got)
			}
			if header, rows := readParquet(t, write(t, export.Parquet, k, all(m))); len(rows) != 0 || len(header) != len(records[0]) {
				t.Errorf("a Parquet file without rows has %d rows, %d columns", len(rows), len(header))
			}
		})
	}
}

// readParquet gives the columns' names, and the values as CSV prints them.
func readParquet(t *testing.T, file []byte) (header []string, rows [][]string) {
	t.Helper()
	f, err := parquet.OpenFile(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	fields := f.Schema().Fields()
	for _, field := range fields {
		header = append(header, field.Name())
	}
	for _, group := range f.RowGroups() {
		r := group.Rows()
		defer r.Close()
		buf := make([]parquet.Row, 100)
		for {
			n, err := r.ReadRows(buf)
			for _, row := range buf[:n] {
				words := make([]string, len(fields))
				for i, v := range row {
					words[i] = printed(fields[i], v)
				}
				rows = append(rows, words)
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return header, rows
}

func printed(n parquet.Node, v parquet.Value) string {
	if v.IsNull() {
		return ""
	}
	logical := ""
	if l := n.Type().LogicalType(); l != nil {
		logical = l.String()
	}
	switch {
	case strings.HasPrefix(logical, "TIMESTAMP"):
		return time.Unix(0, v.Int64()).UTC().Format(time.RFC3339Nano)
	case v.Kind() == parquet.Double:
		return strconv.FormatFloat(v.Double(), 'f', -1, 64)
	case v.Kind() == parquet.ByteArray && logical != "STRING":
		return "not text but " + logical
	}
	return v.String()
}

func TestJSONLines(t *testing.T) {
	m := measurement("m1", anycast.KindTrace)
	text := write(t, export.JSONLines, "", all(m, everything()...))
	lines := bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
	if len(lines) != 1+len(everything()) {
		t.Fatalf("%d lines, want the measurement and its results", len(lines))
	}
	var back anycast.Measurement
	if err := json.Unmarshal(lines[0], &back); err != nil || !reflect.DeepEqual(&back, m) {
		t.Errorf("the measurement comes back as %+v, %v", back, err)
	}
	for i, want := range everything() {
		got := reflect.New(reflect.TypeOf(want).Elem())
		if err := json.Unmarshal(lines[1+i], got.Interface()); err != nil {
			t.Fatal(err)
		}
		if c, ok := want.(*anycast.Catch); ok { // JSON is UTF-8
			c.Text = strings.ToValidUTF8(c.Text, "\uFFFD")
		}
		if f, ok := want.(*anycast.FlipResult); ok {
			f.Catches[0].Text = strings.ToValidUTF8(f.Catches[0].Text, "\uFFFD")
		}
		if diff := cmp.Diff(want, got.Interface(), cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("-written +read:\n%s", diff)
		}
	}
	only := write(t, export.JSONLines, export.Move, all(m, everything()...))
	if n := bytes.Count(only, []byte("\n")); n != 2 {
		t.Errorf("%d lines of moves, want the measurement and a move:\n%s", n, only)
	}
}

func TestAtlas(t *testing.T) {
	m := measurement("m1", anycast.KindTrace)
	m.Definition.Source, m.Definition.Size = addr("192.0.2.1"), 44
	var results []anycast.Result
	for _, r := range everything() {
		if export.Atlas.Holds(export.KindOf(r)) {
			results = append(results, r)
		}
	}
	_, paris := scampers()
	paris.Replies[1].Status, paris.Replies[1].ICMPType, paris.Replies[1].ICMPCode = probe.HostUnreachable, 3, 13
	paris.Replies = append(paris.Replies, anycast.Reply{TTL: 4, Status: probe.Failed})
	six := *paris
	six.Source, six.Target, six.Protocol, six.Name = addr("2001:db8::1"), addr("2001:db8::9"), stateless.TCP, "example.com"
	six.Replies = []anycast.Reply{
		{TTL: 1, Status: probe.HostUnreachable, Responder: addr("2001:db8::2"), HasICMP: true, ICMPType: 2, MTU: 1280, ReplySize: 1280, QuotedTTL: 1},
		{TTL: 1, Status: probe.HostUnreachable, Responder: addr("2001:db8::2"), HasICMP: true, ICMPType: 1, ICMPCode: 1},
		{TTL: 2, Status: probe.Replied, Responder: six.Target, Receiver: "ams2", RTT: time.Millisecond, ReplySize: 64},
	}
	text := write(t, export.Atlas, "", all(m, append(results, paris, &six)...))
	golden(t, "atlas.jsonl", text)

	// What every reader of such results insists on.
	types := map[string]string{
		"fw": "n", "lts": "n", "type": "s", "msm_name": "s", "msm_id": "n", "prb_id": "n", "timestamp": "n", "af": "n", "dst_name": "s", "dst_addr": "s",
		"from": "s", "proto": "s", "result": "l",
	}
	of := map[string]map[string]string{
		"traceroute": {"endtime": "n", "paris_id": "n", "size": "n"},
		"ping":       {"sent": "n", "rcvd": "n", "dup": "n", "min": "n", "avg": "n", "max": "n"},
	}
	for _, o := range objects(t, text) {
		kind, _ := o["type"].(string)
		for _, keys := range []map[string]string{types, of[kind]} {
			for key, want := range keys {
				got := map[string]string{"json.Number": "n", "string": "s", "[]interface {}": "l"}[fmt.Sprintf("%T", o[key])]
				if got != want {
					t.Errorf("a %s has %s %T", kind, key, o[key])
				}
			}
		}
		if !slices.Contains([]any{"UDP", "ICMP", "TCP"}, o["proto"]) {
			t.Errorf("got protocol %v", o["proto"])
		}
	}
}

// TestBoundedMemory holds that many rows take no more memory than some.
func TestBoundedMemory(t *testing.T) {
	m := measurement("m1", anycast.KindCatchment)
	for _, f := range []export.Format{export.JSONLines, export.CSV, export.Parquet} {
		peak := func(n int) uint64 {
			var most uint64
			var stats runtime.MemStats
			i := 0
			err := export.Write(io.Discard, f, export.Catch, func(yield func(export.Record, error) bool) {
				for c := range catches(n) {
					if i++; i%(n/8) == 0 {
						runtime.GC()
						runtime.ReadMemStats(&stats)
						most = max(most, stats.HeapAlloc)
					}
					if !yield(export.Record{Measurement: m, Result: c}, nil) {
						return
					}
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			return most
		}
		few, many := peak(140_000), peak(560_000)
		// Of Parquet a row group is in memory, 20 to 40 MB; 420,000 rows more would be 60 MB and more.
		if many > few+40<<20 {
			t.Errorf("%s: %d KB with 140,000 rows, %d KB with 560,000", f, few>>10, many>>10)
		}
	}
}

// catches is a catchment of n networks. It gives the same Catch again and again.
func catches(n int) func(func(*anycast.Catch) bool) {
	return func(yield func(*anycast.Catch) bool) {
		sites := []string{"ams2", "fra1", "lon3", "nyc1"}
		c := anycast.Catch{Protocol: stateless.ICMP, Status: probe.Replied, Sender: "fra1"}
		a := addr("11.0.0.1").As4()
		for i := range n {
			a[1], a[2], a[3] = byte(i>>16), byte(i>>8), byte(i)
			c.Target = netip.AddrFrom4(a)
			c.Receiver, c.ReplyTTL = sites[i*7%4], byte(40+i%20)
			c.RTT = time.Duration(math.Abs(math.Sin(float64(i))) * 1e8)
			c.Time = start.Add(time.Duration(i) * 10 * time.Microsecond)
			if !yield(&c) {
				return
			}
		}
	}
}

func BenchmarkCatches(b *testing.B) {
	m := measurement("m1", anycast.KindCatchment)
	for _, f := range []export.Format{export.JSONLines, export.CSV, export.Parquet, export.Atlas} {
		b.Run(f.String(), func(b *testing.B) {
			b.ReportAllocs()
			size := counter(0)
			w, err := export.NewWriter(&size, f, export.Catch)
			if err != nil {
				b.Fatal(err)
			}
			for c := range catches(b.N) {
				if err := w.Write(m, c); err != nil {
					b.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
			b.ReportMetric(float64(size)/float64(b.N), "bytes/row")
		})
	}
}

func BenchmarkTraces(b *testing.B) {
	m, r := scampers()
	for f := export.JSONLines; f <= export.Warts; f++ {
		b.Run(f.String(), func(b *testing.B) {
			b.ReportAllocs()
			size := counter(0)
			w, err := export.NewWriter(&size, f, export.Trace)
			if err != nil {
				b.Fatal(err)
			}
			for range b.N {
				if err := w.Write(m, r); err != nil {
					b.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "traces/s")
			b.ReportMetric(float64(size)/float64(b.N), "bytes/trace")
		})
	}
}

// counter counts what is written.
type counter int64

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

// TestColumnsAreDocumented holds that the reference names every column below the heading of its table.
func TestColumnsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/reference/export-formats.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range export.Kinds() {
		section := ""
		for s := range strings.SplitSeq(string(doc), "\n### ") {
			heading, _, _ := strings.Cut(s, "\n")
			if slices.Contains(strings.Split(heading, ", "), string(k)) {
				section = s
			}
		}
		header, _, _ := strings.Cut(string(write(t, export.CSV, k, all(measurement("m1", anycast.KindTrace)))), "\n")
		for column := range strings.SplitSeq(header, ",") {
			if column != "measurement" && !strings.Contains(section, "`"+column+"`") {
				t.Errorf("docs/reference/export-formats.md does not tell what %s of %s is", column, k)
			}
		}
	}
}
