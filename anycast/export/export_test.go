// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package export_test

import (
	"bytes"
	"errors"
	"io"
	"iter"
	"net/netip"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/export"
	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
)

var start = time.Date(2026, 11, 20, 12, 33, 2, 33571000, time.UTC)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func measurement(id string, program anycast.ProgramKind) *anycast.Measurement {
	return &anycast.Measurement{
		ID: id, Definition: anycast.Definition{Program: program, Name: "weekly", Protocol: stateless.UDP, Timeout: time.Second},
		State: anycast.Done, Start: start, End: start.Add(time.Minute), Targets: 2,
	}
}

// all turns results of one measurement into what Write takes.
func all(m *anycast.Measurement, results ...anycast.Result) iter.Seq2[export.Record, error] {
	return func(yield func(export.Record, error) bool) {
		for _, r := range results {
			if !yield(export.Record{Measurement: m, Result: r}, nil) {
				return
			}
		}
	}
}

func write(t *testing.T, f export.Format, k export.Kind, records iter.Seq2[export.Record, error]) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := export.Write(&b, f, k, records); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// everything is one result of each kind.
func everything() []anycast.Result {
	catch := anycast.Catch{
		Target: addr("203.0.113.7"), Sender: "fra1", Receiver: "ams2", Protocol: stateless.CHAOS, Status: probe.Replied, Flow: 3, Round: 2,
		RTT: 12345678 * time.Nanosecond, ClockError: time.Millisecond, ReplyTTL: 55, Text: "ns1, \"ams\"\n\xff", Duplicates: 1, Time: start,
	}
	silent := anycast.Catch{Target: addr("2001:db8::7"), Sender: "fra1", Protocol: stateless.ICMP, Status: probe.NoReply, Time: start.Add(time.Second)}
	return []anycast.Result{
		multipath(), &catch, &silent,
		&anycast.LatencyResult{
			Target: addr("203.0.113.8"), Catcher: "ams2", RTT: 20 * time.Millisecond, Best: "lon3", Inflation: 5 * time.Millisecond, Time: start,
			Unicast: []anycast.SiteRTT{{Site: "lon3", RTT: 10 * time.Millisecond}, {Site: "ams2", RTT: 15 * time.Millisecond}},
		},
		&anycast.FlipResult{
			Target: addr("203.0.113.5"), Seen: map[string]int{"fra1": 3, "ams2": 1}, ByFlow: true, Catches: []anycast.Catch{catch, silent}, Spread: 7 * time.Microsecond,
			Parting: &anycast.Parting{TTL: 3, Common: addr("198.51.100.3"), Flows: [2]uint16{1, 4}, Hops: []netip.Addr{addr("198.51.100.4"), addr("198.51.100.5")}},
		},
		&anycast.Move{Target: addr("203.0.113.5"), From: "fra1", To: "ams2", Time: start, Gap: time.Second},
		&anycast.WatchResult{Time: start, Sites: map[string]int{"fra1": 10}, Lost: 1, Moved: 2},
		&anycast.Alarm{Before: "a", After: "b", Share: 0.5, Limit: 0.1, Time: start},
		&anycast.TextResult{Code: 200, Text: "Traceroute to ..."},
		&anycast.Summary{
			Targets: 5, Sent: 6, Answered: 4, Sites: map[string]int{"fra1": 3}, Skipped: map[string]int{"opt-out": 1}, Notes: []string{"site lon3 was lost"},
			Took: time.Minute,
		},
	}
}

func TestOrigins(t *testing.T) {
	m := measurement("m1", anycast.KindCatchment)
	m.Definition.Origins = []anycast.Origin{{Name: "east", Source: addr("192.0.2.1")}, {Name: "west", Source: addr("192.0.2.129")}, {Name: "any"}}
	var results []anycast.Result
	for _, o := range m.Definition.Origins {
		results = append(results, &anycast.Catch{
			Target: addr("203.0.113.7"), Sender: "fra1", Receiver: "ams2", Origin: o.Name, Protocol: stateless.UDP, Status: probe.Replied, Time: start,
		})
	}
	got := write(t, export.CSV, "", all(m, results...))
	want := `measurement,target,network,sender,receiver,origin,source,responder,protocol,status,flow,round,rtt_ms,clock_error_ms,reply_ttl,text,duplicates,time
m1,203.0.113.7,203.0.113.0/24,fra1,ams2,east,192.0.2.1,203.0.113.7,udp,reply,0,0,,,,,0,2026-11-20T12:33:02.033571Z
m1,203.0.113.7,203.0.113.0/24,fra1,ams2,west,192.0.2.129,203.0.113.7,udp,reply,0,0,,,,,0,2026-11-20T12:33:02.033571Z
m1,203.0.113.7,203.0.113.0/24,fra1,ams2,any,,203.0.113.7,udp,reply,0,0,,,,,0,2026-11-20T12:33:02.033571Z
`
	if string(got) != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	got = write(t, export.Atlas, "", all(m, results[1]))
	for _, part := range []string{`"src_addr":"192.0.2.129","from":"192.0.2.129"`, `"receiver":"ams2","origin":"west"`} {
		if !bytes.Contains(got, []byte(part)) {
			t.Errorf("%s is not in %s", part, got)
		}
	}
	// The times of the sites' own addresses come with each origin, and are written once.
	unicast := []anycast.SiteRTT{{Site: "lon3", RTT: 10 * time.Millisecond}}
	got = write(t, export.Atlas, "", all(m,
		&anycast.LatencyResult{Target: addr("203.0.113.8"), Origin: "east", Catcher: "ams2", Unicast: unicast, Time: start},
		&anycast.LatencyResult{Target: addr("203.0.113.8"), Origin: "west", Catcher: "lon3", Unicast: unicast, Time: start}))
	if n := bytes.Count(got, []byte("\n")); n != 3 || bytes.Count(got, []byte(`"unicast":true`)) != 1 {
		t.Errorf("%d pings, want one from each catcher and one by unicast:\n%s", n, got)
	}
}

// multipath is a trace that found two ways.
func multipath() *anycast.TraceResult {
	return &anycast.TraceResult{
		Site: "fra1", Source: addr("192.0.2.1"), Target: addr("203.0.113.9"), Name: "www.example.com", Protocol: stateless.UDP,
		Method: anycast.MethodMultipath, SrcPort: 10000, DstPort: 33434, Size: 64, FirstHop: 1, MaxHops: 30, Attempts: 3, Stop: "gap limit", Silent: 2,
		Confidence: 0.95, Probes: 42, Start: start, End: start.Add(time.Second),
		Replies: []anycast.Reply{
			{
				TTL: 1, Flow: 1, Status: probe.TimeExceeded, Responder: addr("198.51.100.1"), Receiver: "lon3", RTT: 1500 * time.Microsecond,
				ClockError: 250 * time.Microsecond, HasICMP: true, ICMPType: 11, ReplyTTL: 64, ReplySize: 96, ReplyID: 7, QuotedTTL: 2, QuotedTOS: 8,
				MPLS: []packet.Label{{Label: 24001, TC: 5, TTL: 1}, {Label: 16, TTL: 255, Bottom: true}}, Sent: start,
			},
			{TTL: 1, Flow: 2, Status: probe.NoReply, Sent: start.Add(time.Millisecond)},
		},
		Links: []anycast.Link{{TTL: 0, To: addr("198.51.100.1"), Flows: []uint16{1, 2}}, {TTL: 1, From: addr("198.51.100.1"), Uncertain: true}},
	}
}

func TestFormatNames(t *testing.T) {
	for f := export.JSONLines; f <= export.Warts; f++ {
		var got export.Format
		if err := got.UnmarshalText([]byte(f.String())); err != nil || got != f {
			t.Errorf("%s becomes %s, %v", f, got, err)
		}
	}
	for _, word := range []string{"", "JSONL", "Format(3)"} {
		var f export.Format
		if err := f.UnmarshalText([]byte(word)); !errors.Is(err, export.ErrFormat) {
			t.Errorf("%q is %s, %v; want ErrFormat", word, f, err)
		}
	}
	if got := export.Format(37).String(); got != "Format(37)" {
		t.Errorf("got %q", got)
	}
	if _, err := export.NewWriter(io.Discard, export.Format(37), ""); !errors.Is(err, export.ErrFormat) {
		t.Errorf("a writer of Format(37): %v, want ErrFormat", err)
	}
}

// TestKinds holds that every format writes every kind that it holds, refuses the others with the formats that can, and
// leaves out what was not chosen.
func TestKinds(t *testing.T) {
	m := measurement("m1", anycast.KindCatchment)
	for f := export.JSONLines; f <= export.Warts; f++ {
		for _, k := range export.Kinds() {
			if f.Holds(k) {
				only := write(t, f, k, all(m, everything()...))
				none := write(t, f, k, all(m))
				if len(only) <= len(none) {
					t.Errorf("%s of kind %s: %d bytes with results, %d without", f, k, len(only), len(none))
				}
				continue
			}
			_, err := export.NewWriter(io.Discard, f, k)
			if !errors.Is(err, export.ErrKind) || !bytes.Contains([]byte(err.Error()), []byte("csv, parquet")) {
				t.Errorf("%s of kind %s: %v, want ErrKind and the formats that can", f, k, err)
			}
		}
	}
	if _, err := export.NewWriter(io.Discard, export.CSV, "catches"); !errors.Is(err, export.ErrKind) {
		t.Errorf("got %v, want ErrKind", err)
	}
	err := export.Write(io.Discard, export.Warts, "", all(m, &anycast.Catch{}))
	if !errors.Is(err, export.ErrKind) || !bytes.Contains([]byte(err.Error()), []byte("atlas")) {
		t.Errorf("a catch as warts: %v, want ErrKind", err)
	}
	err = export.Write(io.Discard, export.Warts, "", all(m, &anycast.Summary{}, &anycast.Alarm{}))
	if err != nil {
		t.Errorf("a summary as warts: %v; it is to be left out", err)
	}
}

func TestTableOfTheProgram(t *testing.T) {
	catchment, trace := measurement("m1", anycast.KindCatchment), measurement("m2", anycast.KindTrace)
	records := func(yield func(export.Record, error) bool) {
		_ = yield(export.Record{Measurement: catchment, Result: &anycast.Catch{Target: addr("203.0.113.7")}}, nil) &&
			yield(export.Record{Measurement: catchment, Result: &anycast.Summary{}}, nil) &&
			yield(export.Record{Measurement: trace, Result: multipath()}, nil)
	}
	err := export.Write(io.Discard, export.CSV, "", records)
	if !errors.Is(err, export.ErrKind) {
		t.Errorf("two programs in one table: %v, want ErrKind", err)
	}
	chosen := write(t, export.CSV, export.Catch, records)
	if got := write(t, export.CSV, "", all(catchment, everything()[1], everything()[9])); bytes.Count(got, []byte("m1,")) != 1 || bytes.Count(chosen, []byte("m1,")) != 1 {
		t.Errorf("got\n%s\nand\n%s\nwant a catch each", got, chosen)
	}
	if err := export.Write(io.Discard, export.Parquet, "", all(catchment)); !errors.Is(err, export.ErrKind) {
		t.Errorf("a Parquet file of nothing: %v, want ErrKind", err)
	}
}

// failing is a disk that becomes full.
type failing struct{ left int }

var errFull = errors.New("disk full")

func (f *failing) Write(b []byte) (int, error) {
	if f.left -= len(b); f.left < 0 {
		return 0, errFull
	}
	return len(b), nil
}

func TestFullDisk(t *testing.T) {
	m := measurement("m1", anycast.KindTrace)
	for f := export.JSONLines; f <= export.Warts; f++ {
		for _, room := range []int{0, 100 << 10} {
			err := export.Write(&failing{room}, f, export.Trace, func(yield func(export.Record, error) bool) {
				for range 200_000 {
					if !yield(export.Record{Measurement: m, Result: multipath()}, nil) {
						return
					}
				}
				t.Errorf("%s: went on although the disk was full", f)
			})
			if !errors.Is(err, errFull) {
				t.Errorf("%s: got %v", f, err)
			}
		}
	}
}

func TestErrorAmongRecords(t *testing.T) {
	broken := errors.New("broken")
	for f := export.JSONLines; f <= export.Warts; f++ {
		err := export.Write(io.Discard, f, export.Trace, func(yield func(export.Record, error) bool) {
			if yield(export.Record{}, broken) {
				t.Error("went on after an error")
			}
		})
		if !errors.Is(err, broken) {
			t.Errorf("%s: got %v", f, err)
		}
	}
}

func TestClosedWriter(t *testing.T) {
	w, err := export.NewWriter(io.Discard, export.JSONLines, "")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Write(measurement("m1", anycast.KindTrace), multipath()); err == nil {
		t.Error("a closed writer writes")
	}
}

// TestFlush holds that a reader who waits sees every result that was written before a Flush.
func TestFlush(t *testing.T) {
	m := measurement("m1", anycast.KindTrace)
	for f := export.JSONLines; f <= export.Warts; f++ {
		if f == export.Parquet {
			continue
		}
		var b bytes.Buffer
		w, err := export.NewWriter(&b, f, export.Trace)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			before := b.Len()
			if err := errors.Join(w.Write(m, multipath()), w.Flush()); err != nil {
				t.Fatal(err)
			}
			if b.Len() == before {
				t.Errorf("%s: nothing is there of result %d", f, i)
			}
		}
		whole := write(t, f, export.Trace, all(m, multipath(), multipath(), multipath()))
		if err := w.Close(); err != nil || !bytes.Equal(b.Bytes(), whole) {
			t.Errorf("%s: %v, got\n%q\nwant\n%q", f, err, b.Bytes(), whole)
		}
		if err := w.Flush(); err == nil {
			t.Errorf("%s: a closed writer flushes", f)
		}
	}
}
