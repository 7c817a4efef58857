// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package access

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// lines decodes every line of the log and of the files that were put aside.
func lines(t *testing.T, path string) []map[string]string {
	t.Helper()
	names, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	var all []map[string]string
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			var m map[string]string
			if err := json.Unmarshal(s.Bytes(), &m); err != nil {
				t.Errorf("%s: %q: %v", name, s.Text(), err)
			}
			all = append(all, m)
		}
	}
	return all
}

func openAudit(t *testing.T, path string, o AuditOptions) *Audit {
	t.Helper()
	a, err := OpenAudit(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func TestAudit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	a := openAudit(t, path, AuditOptions{})
	at := time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)
	from := netip.MustParseAddrPort("[2001:db8::7]:40112")
	for _, e := range []Event{
		{Time: at, Who: alice, From: from, Action: "start", Object: "m-17"},
		{Time: at, Action: "enroll", Object: "x\n{\"who\":\"forged\"}", Err: errors.New("no")},
		{Time: at, Action: "start", Object: strings.Repeat("ü", 1e6)},
	} {
		if err := a.Record(e); err != nil {
			t.Fatal(err)
		}
	}
	stamp := "2026-01-02T03:04:05.678Z"
	want := []map[string]string{
		{"time": stamp, "who": "operator/alice", "from": "[2001:db8::7]:40112", "action": "start", "object": "m-17", "result": "ok"},
		{"time": stamp, "action": "enroll", "object": "x\n{\"who\":\"forged\"}", "result": "refused", "error": "no"},
		{"time": stamp, "action": "start", "object": strings.Repeat("ü", maxText/2) + "...", "result": "ok"},
	}
	if diff := cmp.Diff(want, lines(t, path)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := errors.Join(a.Close(), a.Close()); err != nil {
		t.Error(err)
	}
	if err := a.Record(Event{Action: "start"}); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("after Close: %v, want fs.ErrClosed", err)
	}
}

// TestAuditRotates has two logs of one file, as two processes would have them, written from several goroutines.
func TestAuditRotates(t *testing.T) {
	const goroutines, events = 4, 100
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	o := AuditOptions{MaxSize: 4 << 10, Keep: 1000}
	var wg sync.WaitGroup
	for g := range goroutines {
		a := openAudit(t, path, o)
		wg.Go(func() {
			for i := range events {
				if err := a.Record(Event{Action: "start", Object: fmt.Sprintf("%d/%d", g, i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	seen := map[string]int{}
	for _, m := range lines(t, path) {
		seen[m["object"]]++
	}
	if len(seen) != goroutines*events {
		t.Errorf("%d events are on record, want %d", len(seen), goroutines*events)
	}
	names, err := filepath.Glob(path + "*")
	if err != nil || len(names) < 5 {
		t.Errorf("%d files: the log was not put aside", len(names))
	}
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		// The other processes may add the line that they were about to write.
		if info.Size() > o.MaxSize+goroutines*200 {
			t.Errorf("%s has %d bytes, want at most about %d", name, info.Size(), o.MaxSize)
		}
		if runtime.GOOS != "windows" && info.Mode() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}

	// Now fewer are to be kept. Other files of similar names are not touched.
	other := path + ".old"
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a := openAudit(t, path, AuditOptions{MaxSize: 1, Keep: 2})
	for range 5 {
		if err := a.Record(Event{Action: "start"}); err != nil {
			t.Fatal(err)
		}
	}
	names, err = filepath.Glob(path + "*")
	if err != nil || len(names) != 4 {
		t.Errorf("left are %v, want the log, two put aside, and %s", names, other)
	}
}

// TestAuditTorn: a line that a full disk cut short does not spoil the next.
func TestAuditTorn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	if err := os.WriteFile(path, []byte(`{"time":"20`), 0o600); err != nil {
		t.Fatal(err)
	}
	a := openAudit(t, path, AuditOptions{})
	for range 2 {
		if err := a.Record(Event{Action: "start"}); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(string(data)), "\n")
	if len(got) != 3 || got[0] != `{"time":"20` || !json.Valid([]byte(got[1])) || !json.Valid([]byte(got[2])) {
		t.Errorf("got %q", got)
	}
}

func TestAuditMode(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no modes")
	}
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAudit(path, AuditOptions{}); !errors.Is(err, ErrMode) || !strings.Contains(err.Error(), "chmod") {
		t.Errorf("got %v, want ErrMode and the command that helps", err)
	}
}
