// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
	"github.com/seed5728abee/fathom/store"
)

// crashDir tells the test binary that it is the process that is to die.
const crashDir = "FATHOM_TEST_STORE_CRASH"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		writeUntilKilled(dir)
	}
	goleak.VerifyTestMain(m)
}

var exact = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.EquateEmpty(),
}

var start = time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)

func open(t testing.TB, dir string, opts store.Options) *store.Store {
	t.Helper()
	s, err := store.Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func measurement(id string, program anycast.ProgramKind, at time.Time) anycast.Measurement {
	return anycast.Measurement{
		ID: id, Owner: "alice", State: anycast.Running, Start: at,
		Definition: anycast.Definition{Program: program, Name: "weekly", Protocol: stateless.ICMP, Timeout: time.Second},
	}
}

func begin(t testing.TB, s *store.Store, m anycast.Measurement, targets ...netip.Addr) {
	t.Helper()
	m.Targets = len(targets)
	list := make([]anycast.Target, len(targets))
	for i, a := range targets {
		list[i].Addr = a
		if i%2 == 1 {
			list[i].Name = nameOf(a)
		}
	}
	if err := s.Begin(t.Context(), m, list); err != nil {
		t.Fatal(err)
	}
}

// nameOf is the name of every second target.
func nameOf(a netip.Addr) string { return "host-" + a.String() }

func appendAll(t testing.TB, s *store.Store, id string, results ...anycast.Result) {
	t.Helper()
	if err := s.Append(t.Context(), id, results); err != nil {
		t.Fatal(err)
	}
}

func results(t testing.TB, s *store.Store, q anycast.Query) (ids []string, list []anycast.Result) {
	t.Helper()
	err := s.Results(t.Context(), q, func(id string, r anycast.Result) bool {
		ids = append(ids, id)
		list = append(list, r)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids, list
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// everything is one result of each kind, with most fields set.
func everything() []anycast.Result {
	catch := anycast.Catch{
		Target: addr("203.0.113.7"), Sender: "fra1", Receiver: "ams2", Responder: addr("203.0.113.1"), Protocol: stateless.CHAOS,
		Status: probe.Replied, Flow: 3, Round: 2, RTT: 12345 * time.Microsecond, ClockError: time.Millisecond, ReplyTTL: 55, Text: "ns1.ams",
		Duplicates: 1, Time: start, Origin: "east",
	}
	silent := anycast.Catch{Target: addr("2001:db8::7"), Sender: "fra1", Protocol: stateless.ICMP, Status: probe.NoReply, Time: start.Add(time.Second)}
	return []anycast.Result{
		&catch,
		&anycast.TraceResult{
			Site: "fra1", Source: addr("192.0.2.1"), Target: addr("203.0.113.9"), Name: "www.example.com", Protocol: stateless.UDP, Method: anycast.MethodMultipath,
			SrcPort: 10000, DstPort: 33434, Size: 64, FirstHop: 1, MaxHops: 30, Attempts: 3, Stop: "reached", Confidence: 0.95, Probes: 42, Start: start, End: start.Add(time.Second),
			Replies: []anycast.Reply{{
				TTL: 1, Flow: 1, Status: probe.TimeExceeded, Responder: addr("198.51.100.1"), Receiver: "lon3", RTT: time.Millisecond, HasICMP: true, ICMPType: 11,
				ReplyTTL: 64, QuotedTTL: 1, MPLS: []packet.Label{{Label: 24001, TTL: 1, Bottom: true}}, Sent: start,
			}},
			Links: []anycast.Link{{TTL: 0, To: addr("198.51.100.1"), Flows: []uint16{1, 2}}},
		},
		&silent,
		&anycast.LatencyResult{Target: addr("203.0.113.8"), Catcher: "ams2", RTT: time.Second, Unicast: []anycast.SiteRTT{{Site: "lon3", RTT: 1}}, Best: "lon3", Inflation: 5, Time: start},
		&anycast.FlipResult{
			Target: addr("203.0.113.5"), Seen: map[string]int{"fra1": 3, "ams2": 1}, ByFlow: true, Catches: []anycast.Catch{catch}, Spread: 7,
			Parting: &anycast.Parting{TTL: 3, Common: addr("198.51.100.3"), Flows: [2]uint16{1, 4}, Hops: []netip.Addr{addr("198.51.100.4"), addr("198.51.100.5")}},
		},
		&anycast.Move{Target: addr("203.0.113.5"), From: "fra1", To: "ams2", Time: start, Gap: time.Second},
		&anycast.WatchResult{Time: start, Sites: map[string]int{"fra1": 10}, Lost: 1, Moved: 2},
		&anycast.Alarm{Before: "a", After: "b", Share: 0.5, Limit: 0.1, Time: start},
		&anycast.TextResult{Code: 200, Text: "Traceroute to ..."},
		&anycast.Summary{Targets: 5, Sent: 6, Answered: 4, Sites: map[string]int{"fra1": 3}, Notes: []string{"site lon3 was lost"}, Took: time.Minute},
	}
}

func TestResultsComeBack(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, store.Options{})
	m := measurement("m1", anycast.KindCatchment, start)
	m.Definition.Schedule = &anycast.Schedule{Every: time.Hour, Alarm: 0.1}
	targets := []netip.Addr{addr("203.0.113.7"), addr("2001:db8::7"), addr("2001:db8::8"), addr("203.0.113.8")}
	begin(t, s, m, targets...)
	want := everything()
	appendAll(t, s, "m1", want...)

	check := func(s *store.Store) {
		t.Helper()
		_, got := results(t, s, anycast.Query{Measurement: "m1"})
		if diff := cmp.Diff(want, got, exact); diff != "" {
			t.Errorf("results changed (-given +kept):\n%s", diff)
		}
		kept, err := s.Targets(t.Context(), "m1")
		if err != nil || len(kept) != len(targets) {
			t.Fatalf("got %d targets, %v, want %d", len(kept), err, len(targets))
		}
		for i, target := range kept {
			if target.Addr != targets[i] || (target.Name != "") != (i%2 == 1) || target.Name != "" && target.Name != nameOf(targets[i]) {
				t.Errorf("target %d is %v, want %v", i, target, targets[i])
			}
		}
	}
	check(s)

	m.Targets, m.State, m.End, m.Error = 4, anycast.Failed, start.Add(time.Minute), "why not"
	m.Progress = anycast.Progress{Done: 4, Total: 4, Sent: 8, Answered: 7}
	if err := s.Update(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, store.Options{})
	check(s)
	list, err := s.Measurements(t.Context(), anycast.Query{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]anycast.Measurement{m}, list, exact); diff != "" {
		t.Errorf("the measurement changed (-given +kept):\n%s", diff)
	}
	info, err := os.Stat(filepath.Join(dir, store.FileName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got file mode %v, %v, want 0600", info.Mode(), err)
	}
}

func TestQueries(t *testing.T) {
	s := open(t, t.TempDir(), store.Options{})
	for i, id := range []string{"a", "b", "c"} {
		m := measurement(id, anycast.KindCatchment, start.Add(time.Duration(i)*time.Hour))
		if id == "c" {
			m.Definition.Name, m.Definition.Program = "other", anycast.KindTrace
		}
		begin(t, s, m)
		for k := range 4 {
			appendAll(t, s, id, &anycast.Catch{
				Target: netip.AddrFrom4([4]byte{203, 0, byte(k), byte(i)}), Sender: "fra1", Receiver: []string{"fra1", "ams2"}[k%2],
				Protocol: stateless.ICMP, Status: probe.Replied, Time: m.Start.Add(time.Duration(k) * time.Minute),
			})
		}
	}
	appendAll(t, s, "c", &anycast.Catch{Target: addr("cb00:100::1"), Sender: "lon3", Receiver: "lon3", Protocol: stateless.ICMP, Status: probe.Replied, Time: start})
	appendAll(t, s, "c", &anycast.TraceResult{
		Site: "lon3", Target: addr("203.0.1.9"), Protocol: stateless.ICMP, Method: anycast.MethodParis, Stop: "reached", Start: start.Add(3 * time.Hour),
		Replies: []anycast.Reply{{Receiver: "ams2"}},
	})
	appendAll(t, s, "c", &anycast.Summary{Targets: 5})

	for _, test := range []struct {
		name         string
		q            anycast.Query
		results      int
		measurements string
	}{
		{"everything", anycast.Query{}, 15, "cba"},
		{"a measurement", anycast.Query{Measurement: "b"}, 4, "b"},
		{"a network", anycast.Query{Target: netip.MustParsePrefix("203.0.1.0/24")}, 4, "cba"},
		{"an address", anycast.Query{Target: netip.MustParsePrefix("203.0.1.1/32")}, 1, "b"},
		{"an IPv6 network", anycast.Query{Target: netip.MustParsePrefix("cb00:100::/32")}, 1, "c"},
		{"all of IPv4", anycast.Query{Target: netip.MustParsePrefix("0.0.0.0/0")}, 13, "cba"},
		{"a site", anycast.Query{Site: "lon3"}, 2, "c"},
		{"a site that heard", anycast.Query{Site: "ams2"}, 7, "cba"},
		{"a site and a network", anycast.Query{Site: "ams2", Target: netip.MustParsePrefix("203.0.1.0/24")}, 4, "cba"},
		{"an unknown site", anycast.Query{Site: "nowhere"}, 0, ""},
		{"a part of a site's name", anycast.Query{Site: "ms"}, 0, ""},
		{"a program", anycast.Query{Program: anycast.KindTrace}, 7, "c"},
		{"a name", anycast.Query{Name: "weekly"}, 8, "ba"},
		{"a limit", anycast.Query{Limit: 2}, 2, "cb"},
		{"a time", anycast.Query{From: start.Add(time.Hour), Until: start.Add(time.Hour + 2*time.Minute)}, 2, "b"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, got := results(t, s, test.q)
			if len(got) != test.results {
				t.Errorf("got %d results, want %d", len(got), test.results)
			}
			list, err := s.Measurements(t.Context(), test.q)
			if err != nil {
				t.Fatal(err)
			}
			ids := ""
			for _, m := range list {
				ids += m.ID
			}
			if ids != test.measurements {
				t.Errorf("got measurements %q, want %q", ids, test.measurements)
			}
		})
	}
	n := 0
	err := s.Results(t.Context(), anycast.Query{}, func(string, anycast.Result) bool { n++; return n < 3 })
	if err != nil || n != 3 {
		t.Errorf("got %d results, %v, want the 3 that were asked for", n, err)
	}
}

func TestUnknownMeasurement(t *testing.T) {
	s := open(t, t.TempDir(), store.Options{})
	_, err := s.Targets(t.Context(), "x")
	for what, err := range map[string]error{
		"targets": err,
		"update":  s.Update(t.Context(), measurement("x", anycast.KindTrace, start)),
		"delete":  s.Delete(t.Context(), "x"),
		"results": s.Results(t.Context(), anycast.Query{Measurement: "x"}, func(string, anycast.Result) bool { return true }),
	} {
		if !errors.Is(err, anycast.ErrNoMeasurement) {
			t.Errorf("%s: got %v, want ErrNoMeasurement", what, err)
		}
	}
}

func TestDelete(t *testing.T) {
	s := open(t, t.TempDir(), store.Options{})
	for _, id := range []string{"a", "b"} {
		begin(t, s, measurement(id, anycast.KindCatchment, start), addr("203.0.113.7"))
		appendAll(t, s, id, everything()...)
	}
	if err := s.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	// Results that come too late disturb nobody.
	appendAll(t, s, "a", everything()...)
	ids, got := results(t, s, anycast.Query{})
	if len(got) != len(everything()) || slices.Contains(ids, "a") {
		t.Errorf("got %d results of %v, want only those of b", len(got), ids)
	}
}

// TestSlowReaders holds that who reads slowly keeps nobody from reading and writing, and sees all of it.
func TestSlowReaders(t *testing.T) {
	s := open(t, t.TempDir(), store.Options{})
	begin(t, s, measurement("a", anycast.KindCatchment, start))
	const rows, slow = 5000, 5
	var want []string
	called := func(r anycast.Result) string {
		switch r := r.(type) {
		case *anycast.Catch:
			return r.Target.String()
		case *anycast.TextResult:
			return fmt.Sprint(r.Code)
		}
		return "something else"
	}
	for i := 0; i < rows; i += 1000 {
		page := slab(i, 1000)
		page[500] = &anycast.TextResult{Code: int32(i)} // of the other table
		for _, r := range page {
			want = append(want, called(r))
		}
		appendAll(t, s, "a", page...)
	}
	begun, release := make(chan struct{}), make(chan struct{})
	errs := make(chan error, slow)
	for range slow {
		go func() { // waited for below
			n := 0
			err := s.Results(t.Context(), anycast.Query{Measurement: "a", Limit: rows - 1}, func(id string, r anycast.Result) bool {
				if n == 0 {
					begun <- struct{}{}
					<-release
				}
				if called(r) != want[n] {
					t.Errorf("result %d is %s, want %s", n, called(r), want[n])
					return false
				}
				n++
				return true
			})
			if err == nil && n != rows-1 {
				err = fmt.Errorf("%d results", n)
			}
			errs <- err
		}()
	}
	for range slow {
		<-begun
	}
	if list, err := s.Measurements(t.Context(), anycast.Query{}); err != nil || len(list) != 1 {
		t.Errorf("%d measurements, %v", len(list), err)
	}
	appendAll(t, s, "a", slab(rows, 1)...)
	if _, all := results(t, s, anycast.Query{Measurement: "a"}); len(all) != rows+1 {
		t.Errorf("%d results, want %d", len(all), rows+1)
	}
	close(release)
	for range slow {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	n := 0
	err := s.Results(t.Context(), anycast.Query{Measurement: "a"}, func(string, anycast.Result) bool {
		if n++; n == 100 {
			if err := s.Delete(t.Context(), "a"); err != nil {
				t.Error(err)
			}
		}
		return true
	})
	if !errors.Is(err, anycast.ErrNoMeasurement) || n >= rows {
		t.Errorf("deleted while it was read: %d results, %v", n, err)
	}
}

func TestRetention(t *testing.T) {
	s := open(t, t.TempDir(), store.Options{Retention: time.Hour, Sweep: 10 * time.Millisecond})
	for id, age := range map[string]time.Duration{"old": 2 * time.Hour, "new": time.Minute, "running": 3 * time.Hour} {
		m := measurement(id, anycast.KindCatchment, time.Now().Add(-age))
		begin(t, s, m)
		if id != "running" {
			m.State, m.End = anycast.Done, m.Start.Add(time.Second)
			if err := s.Update(t.Context(), m); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, func() error {
		list, err := s.Measurements(t.Context(), anycast.Query{})
		if err == nil && (len(list) != 2 || list[0].ID != "new" || list[1].ID != "running") {
			err = fmt.Errorf("got %d measurements, want new and running", len(list))
		}
		return err
	})
}

func eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// slab gives n catches of addresses from number i on.
func slab(i, n int) []anycast.Result {
	catches := make([]anycast.Catch, n)
	list := make([]anycast.Result, n)
	for k := range catches {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], uint32(i+k)*2654435761) // as shuffled as a catchment's targets
		catches[k] = anycast.Catch{
			Target: netip.AddrFrom4(a), Sender: "fra1", Receiver: "ams2", Protocol: stateless.ICMP, Status: probe.Replied,
			RTT: time.Millisecond, ReplyTTL: 50, Time: start.Add(time.Duration(i+k) * 10 * time.Microsecond),
		}
		list[k] = &catches[k]
	}
	return list
}

// TestFull fills a store up to its bound: its owner is told, what was kept stays, and there is room again after a delete.
func TestFull(t *testing.T) {
	s := open(t, t.TempDir(), store.Options{MaxBytes: 2 << 20, Sweep: time.Hour})
	begin(t, s, measurement("a", anycast.KindCatchment, start))
	begin(t, s, measurement("b", anycast.KindCatchment, start))
	appendAll(t, s, "b", slab(0, 100)...)
	fillUp(t, s, "a")
	if _, got := results(t, s, anycast.Query{Measurement: "b"}); len(got) != 100 {
		t.Errorf("got %d results that were kept before the disk was full, want 100", len(got))
	}
	if err := s.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	appendAll(t, s, "b", slab(0, 100)...)
	if err := s.Flush(t.Context()); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// failures tells of what is logged.
type failures chan string

func (f failures) Write(b []byte) (int, error) {
	select {
	case f <- string(b):
	default:
	}
	return len(b), nil
}

// TestLostInTheBackground has the store fail while nobody waits for it: neither Flush nor Update may say that all is well.
func TestLostInTheBackground(t *testing.T) {
	logged := make(failures, 1)
	s := open(t, t.TempDir(), store.Options{MaxBytes: 1 << 20, Sweep: time.Hour, Log: slog.New(slog.NewTextHandler(logged, nil))})
	m := measurement("a", anycast.KindCatchment, start)
	begin(t, s, m)
	appendAll(t, s, "a", slab(0, 30000)...)
	select {
	case <-logged:
	case <-time.After(20 * time.Second):
		t.Fatal("30,000 results fit into a megabyte")
	}
	for range 2 {
		if err := s.Flush(t.Context()); !errors.Is(err, store.ErrFull) {
			t.Errorf("flush: got %v, want ErrFull", err)
		}
	}
	if err := s.Update(t.Context(), m); !errors.Is(err, store.ErrFull) {
		t.Errorf("update: got %v, want ErrFull", err)
	}
	if err := errors.Join(s.Update(t.Context(), m), s.Flush(t.Context())); err != nil {
		t.Errorf("told again: %v", err)
	}
}

// fillUp appends until the owner is told that there is no room.
func fillUp(t *testing.T, s *store.Store, id string) {
	t.Helper()
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		if err = s.Append(t.Context(), id, slab(i*5000, 5000)); err == nil {
			// Append tells it too, but later.
			_ = s.Flush(t.Context())
		}
	}
	if !errors.Is(err, store.ErrFull) || !strings.Contains(err.Error(), id) {
		t.Fatalf("got %v, want ErrFull and the measurement's name", err)
	}
	if err := s.Append(t.Context(), id, nil); err != nil {
		t.Errorf("told twice: %v", err)
	}
}

// TestSizeRetention keeps a store below its bound by deleting what is old.
func TestSizeRetention(t *testing.T) {
	s := open(t, t.TempDir(), store.Options{MaxBytes: 4 << 20, Sweep: 5 * time.Millisecond})
	for i := range 20 {
		m := measurement(fmt.Sprintf("m%02d", i), anycast.KindCatchment, start.Add(time.Duration(i)*time.Minute))
		begin(t, s, m)
		eventually(t, func() error {
			appendAll(t, s, m.ID, slab(0, 5000)...)
			return s.Flush(t.Context())
		})
		m.State, m.End = anycast.Done, m.Start.Add(time.Second)
		if err := s.Update(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() error {
		list, err := s.Measurements(t.Context(), anycast.Query{})
		if err == nil && (len(list) == 20 || len(list) == 0 || list[0].ID != "m19") {
			err = fmt.Errorf("got %d measurements, want some, the newest among them", len(list))
		}
		return err
	})
}

// TestUnwritable gives a result that cannot be encoded among others.
func TestUnwritable(t *testing.T) {
	s := open(t, t.TempDir(), store.Options{Sweep: time.Hour})
	begin(t, s, measurement("a", anycast.KindVolta, start))
	begin(t, s, measurement("b", anycast.KindCatchment, start))
	appendAll(t, s, "b", slab(0, 10)...)
	appendAll(t, s, "a", &anycast.TextResult{Code: 200, Text: "\xff"})
	appendAll(t, s, "b", slab(10, 10)...)
	if err := s.Flush(t.Context()); err == nil {
		t.Error("nobody was told")
	}
	if err := s.Append(t.Context(), "b", nil); err != nil {
		t.Errorf("another measurement's owner was told: %v", err)
	}
	if err := s.Append(t.Context(), "a", nil); err == nil || !strings.Contains(err.Error(), "of a:") {
		t.Errorf("its owner was told %v", err)
	}
	if _, got := results(t, s, anycast.Query{}); len(got) != 20 {
		t.Errorf("%d results are left, want 20", len(got))
	}
}

// TestWriteWhileDeleting: what takes long to delete keeps nobody from writing.
func TestWriteWhileDeleting(t *testing.T) {
	store.SetDeleteStep(20)
	defer store.SetDeleteStep(50_000)
	s := open(t, t.TempDir(), store.Options{Sweep: time.Hour})
	begin(t, s, measurement("a", anycast.KindCatchment, start))
	begin(t, s, measurement("b", anycast.KindCatchment, start))
	const many = 10000
	appendAll(t, s, "a", slab(0, many)...)
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	deleted := make(chan error, 1)
	go func() { deleted <- s.Delete(t.Context(), "a") }()
	for n := 0; ; n++ {
		select {
		case err := <-deleted:
			if err != nil {
				t.Fatal(err)
			}
			if n < 10 {
				t.Errorf("%d results were written meanwhile", n)
			}
			if _, got := results(t, s, anycast.Query{}); len(got) != n {
				t.Errorf("%d results are left, want %d", len(got), n)
			}
			return
		default:
		}
		appendAll(t, s, "b", slab(n, 1)...)
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBadFiles(t *testing.T) {
	t.Run("not a store", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, store.FileName), []byte(strings.Repeat("no database\n", 1000)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Open(dir, store.Options{}); !errors.Is(err, store.ErrCorrupt) {
			t.Errorf("got %v, want ErrCorrupt", err)
		}
	})
	t.Run("newer", func(t *testing.T) {
		dir := t.TempDir()
		if err := store.MakeVersion(dir, 1000); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Open(dir, store.Options{}); !errors.Is(err, store.ErrNewer) {
			t.Errorf("got %v, want ErrNewer", err)
		}
	})
	t.Run("of the first version", func(t *testing.T) {
		dir := t.TempDir()
		// As it was written then: there were no origins.
		err := store.MakeVersion(dir, 1,
			`INSERT INTO measurement VALUES (1, 'old', 'catchment', 'weekly', 'alice', '', 'done', '', 1767323045000000600, 1767323046000000000, 1,
				'{"program":"catchment","name":"weekly","source":"192.0.2.1","protocol":"icmp","pace":{"rate":100}}', '{"done":1,"total":1,"sent":1,"answered":1}')`,
			`INSERT INTO target VALUES (1, 0, 4, x'cb007107')`,
			`INSERT INTO site VALUES (1, 'fra1'), (2, 'ams2')`,
			`INSERT INTO catch VALUES (1, 1, x'cb007107', 1, 2, NULL, 1, 1, 0, 0, 12345000, 0, 55, NULL, 0, 1767323045000000600)`,
			`UPDATE counter SET seq = 1`)
		if err != nil {
			t.Fatal(err)
		}
		s := open(t, dir, store.Options{})
		if targets, err := s.Targets(t.Context(), "old"); err != nil || len(targets) != 1 || targets[0] != (anycast.Target{Addr: addr("203.0.113.7")}) {
			t.Errorf("targets %v, %v", targets, err)
		}
		list, err := s.Measurements(t.Context(), anycast.Query{})
		if err != nil || len(list) != 1 || list[0].Definition.Source != addr("192.0.2.1") || list[0].Definition.Origins != nil {
			t.Fatalf("measurements %+v, %v", list, err)
		}
		appendAll(t, s, "old", &anycast.Catch{Target: addr("203.0.113.8"), Sender: "fra1", Origin: "west", Protocol: stateless.ICMP, Status: probe.NoReply, Time: start})
		_, got := results(t, s, anycast.Query{Measurement: "old"})
		want := []anycast.Result{
			&anycast.Catch{
				Target: addr("203.0.113.7"), Sender: "fra1", Receiver: "ams2", Protocol: stateless.ICMP, Status: probe.Replied,
				RTT: 12345 * time.Microsecond, ReplyTTL: 55, Time: start,
			},
			&anycast.Catch{Target: addr("203.0.113.8"), Sender: "fra1", Origin: "west", Protocol: stateless.ICMP, Status: probe.NoReply, Time: start},
		}
		if diff := cmp.Diff(want, got, exact); diff != "" {
			t.Errorf("want -, got +:\n%s", diff)
		}
	})
	t.Run("a file where the directory should be", func(t *testing.T) {
		name := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Open(name, store.Options{}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want an error that names %s", err, name)
		}
	})
}

func TestClosed(t *testing.T) {
	s := open(t, t.TempDir(), store.Options{})
	begin(t, s, measurement("a", anycast.KindCatchment, start))
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	_, err := s.Measurements(t.Context(), anycast.Query{Site: "x"})
	for what, err := range map[string]error{
		"begin":        s.Begin(t.Context(), measurement("b", anycast.KindTrace, start), nil),
		"append":       s.Append(t.Context(), "a", everything()),
		"update":       s.Update(t.Context(), measurement("a", anycast.KindTrace, start)),
		"flush":        s.Flush(t.Context()),
		"delete":       s.Delete(t.Context(), "a"),
		"measurements": err,
	} {
		if !errors.Is(err, store.ErrClosed) {
			t.Errorf("%s: got %v, want ErrClosed", what, err)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	s := open(t, t.TempDir(), store.Options{})
	const writers, each = 4, 20
	var wg sync.WaitGroup
	for w := range writers {
		id := fmt.Sprintf("m%d", w)
		begin(t, s, measurement(id, anycast.KindCatchment, start))
		wg.Go(func() {
			for i := range each {
				if err := s.Append(t.Context(), id, slab(i*100, 100)); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range each {
				if _, err := s.Measurements(t.Context(), anycast.Query{}); err != nil {
					t.Error(err)
				}
				if err := s.Results(t.Context(), anycast.Query{Measurement: id}, func(string, anycast.Result) bool { return true }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if _, got := results(t, s, anycast.Query{}); len(got) != writers*each*100 {
		t.Errorf("got %d results, want %d", len(got), writers*each*100)
	}
}

func TestAppendGivesUp(t *testing.T) {
	s := open(t, t.TempDir(), store.Options{})
	begin(t, s, measurement("a", anycast.KindCatchment, start))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Append(ctx, "a", everything()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

// writeUntilKilled appends and flushes for ever, and prints how many results were confirmed.
func writeUntilKilled(dir string) {
	s, err := store.Open(dir, store.Options{})
	if err == nil {
		err = s.Begin(context.Background(), measurement("a", anycast.KindCatchment, start), nil)
	}
	for n := 0; err == nil; n += 700 {
		if err = s.Append(context.Background(), "a", slab(n, 700)); err == nil {
			err = s.Flush(context.Background())
		}
		if err == nil {
			fmt.Println(n + 700)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func TestKilled(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	confirmed := 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if _, err := fmt.Sscan(lines.Text(), &confirmed); err != nil {
			t.Fatal(err)
		}
		if confirmed >= 7000 {
			_ = cmd.Process.Kill()
		}
	}
	_ = cmd.Wait()
	if confirmed < 7000 {
		t.Fatalf("it died by itself after %d results", confirmed)
	}
	s := open(t, dir, store.Options{})
	_, got := results(t, s, anycast.Query{Measurement: "a"})
	want := slab(0, max(len(got), confirmed))
	if len(got) < confirmed {
		t.Fatalf("got %d results, but %d were confirmed", len(got), confirmed)
	}
	if diff := cmp.Diff(want, got, exact); diff != "" {
		t.Errorf("results changed:\n%.1000s", diff)
	}
}

func BenchmarkAppend(b *testing.B) {
	s := open(b, b.TempDir(), store.Options{})
	begin(b, s, measurement("a", anycast.KindCatchment, start))
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		if err := s.Append(b.Context(), "a", slab(n, 1000)); err != nil {
			b.Fatal(err)
		}
		n += 1000
	}
	if err := s.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "rows/s")
}

func BenchmarkQuery(b *testing.B) {
	s := open(b, b.TempDir(), store.Options{})
	begin(b, s, measurement("a", anycast.KindCatchment, start))
	const rows = 200_000
	for i := 0; i < rows; i += 5000 {
		if err := s.Append(b.Context(), "a", slab(i, 5000)); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.Run("network", func(b *testing.B) {
		for b.Loop() {
			results(b, s, anycast.Query{Target: netip.MustParsePrefix("203.0.113.0/24")})
		}
	})
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			n := 0
			err := s.Results(b.Context(), anycast.Query{Measurement: "a"}, func(string, anycast.Result) bool { n++; return true })
			if err != nil || n != rows {
				b.Fatal(n, err)
			}
		}
		b.ReportMetric(float64(rows*b.N)/b.Elapsed().Seconds(), "rows/s")
	})
}
