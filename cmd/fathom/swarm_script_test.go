// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/swarm"
)

func TestParseSwarmScript(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]scriptStep{
		"SEND localhost 49611 hello  all ": {op: scriptSend, to: "localhost:49611", data: []byte("hello  all ")},
		"\ts\t::1  1   x":                  {op: scriptSend, to: "[::1]:1", data: []byte("x")},
		"Send [::1] 1 # no comment":        {op: scriptSend, to: "[::1]:1", data: []byte("# no comment")},
		"BCAST \xff\x00":                   {op: scriptBroadcast, data: []byte("\xff\x00")},
		"b x":                              {op: scriptBroadcast, data: []byte("x")},
		"RECV":                             {op: scriptRecv, number: 1},
		"r 12":                             {op: scriptRecv, number: 12},
		"WAIT":                             {op: scriptWait, wait: -1},
		"wait ":                            {op: scriptWait, wait: -1},
		"W -1":                             {op: scriptWait, wait: -1},
		"w 1.5":                            {op: scriptWait, wait: 1500 * time.Millisecond},
		"OPT duplicates=3":                 {op: scriptOpt, number: 3},
		"o Duplicates=1 duplicates=2":      {op: scriptOpt, number: 2},
	} {
		want.line = 3
		for _, end := range []string{"", "\n", "\r\n"} {
			steps, err := parseSwarmScript([]byte("\n # a comment\n" + line + end))
			if err != nil || len(steps) != 1 || fmt.Sprint(steps[0]) != fmt.Sprint(want) {
				t.Errorf("%q: %v, %v; want %v", line, steps, err, want)
			}
		}
	}
	for line, want := range map[string]string{
		"SEND":                 "want a host, a port and data",
		"SEND h":               "want a host",
		"SEND h 1":             "want a host",
		"SEND h 1 ":            "want a host",
		"SEND h x data":        `port "x"`,
		"SEND h 0 data":        `port "0"`,
		"SEND h 65536 data":    `port "65536"`,
		"BCAST":                "want data",
		"RECV x":               `count "x"`,
		"RECV -1":              `count "-1"`,
		"RECV 1 2":             "takes one number",
		"WAIT soon":            `"soon"`,
		"WAIT NaN":             `"NaN"`,
		"WAIT 1e300":           `"1e300"`,
		"OPT":                  "want key=value",
		"OPT duplicates":       "want key=value",
		"OPT speed=1":          `unknown option "speed"`,
		"OPT duplicates=x":     `duplicates "x"`,
		"OPT duplicates=65":    `duplicates "65"`,
		"SING a song":          `unknown command "SING"`,
		"SENDlocalhost 1 data": "unknown command",
	} {
		_, err := parseSwarmScript([]byte("RECV\n\n" + line + "\nRECV\n"))
		if err == nil || !strings.HasPrefix(err.Error(), "line 3: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", line, err, want)
		}
	}
}

func FuzzParseSwarmScript(f *testing.F) {
	f.Add([]byte("WAIT -1\nOPT duplicates=3\nBCAST x\nSEND localhost 49611 hello\nRECV 2\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		steps, err := parseSwarmScript(text)
		if err != nil {
			return
		}
		if lines := bytes.Count(text, []byte("\n")) + 1; len(steps) > lines {
			t.Errorf("%d steps in %d lines", len(steps), lines)
		}
		for _, s := range steps {
			if s.op == 0 || s.number < 0 || len(s.data) > len(text) {
				t.Errorf("%+v", s)
			}
		}
	})
}

func runScript(ctx context.Context, t *testing.T, r *scriptRun, text string) error {
	t.Helper()
	steps, err := parseSwarmScript([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return r.all(ctx, "script", steps)
}

func TestRunScript(t *testing.T) {
	t.Parallel()
	p := newFakePeer("192.0.2.1:49610")
	from := swarm.Member{ID: swarm.Hash{1}, Addr: netip.MustParseAddrPort("192.0.2.2:49611")}
	p.inbox <- swarm.Message{From: from, Data: []byte("one\x1b[2J")}
	p.inbox <- swarm.Message{From: swarm.Member{ID: swarm.Hash{2}}, Data: []byte("two")}
	p.inbox <- swarm.Message{From: from, Data: []byte("three")}
	var out bytes.Buffer
	r := &scriptRun{peer: p, out: &out, timeout: time.Minute}
	err := runScript(t.Context(), t, r, "SEND h 1 a\nOPT duplicates=2\nSEND h 1 b\nBCAST c\nRECV 2\nR\nRECV 0\nOPT duplicates=0\nSEND h 1 d\n")
	if err != nil {
		t.Error(err)
	}
	if got, want := strings.Join(p.told(), ", "), `send h:1 "a", send h:1 "b" by 2 more, broadcast "c", send h:1 "d"`; got != want {
		t.Errorf("told to %s, want %s", got, want)
	}
	want := "1/2 -- 192.0.2.2:49611: one\x1b[2J\n2/2 -- 02" + strings.Repeat("0", 62) + ": two\n1/1 -- 192.0.2.2:49611: three\n"
	if out.String() != want {
		t.Errorf("printed %q, want %q", out.String(), want)
	}
	// A terminal is not to obey what others send.
	out.Reset()
	p.inbox <- swarm.Message{From: from, Data: []byte("\x1b[2J\xff")}
	r.clean = true
	if err := runScript(t.Context(), t, r, "RECV"); err != nil || out.String() != `1/1 -- 192.0.2.2:49611: \x1b[2J\xff`+"\n" {
		t.Errorf("printed %q, %v", out.String(), err)
	}
	p.fail = swarm.ErrNoSuchMember
	if err := runScript(t.Context(), t, r, "\nSEND h 1 a\n"); !errors.Is(err, swarm.ErrNoSuchMember) || !strings.HasPrefix(err.Error(), "script: line 2: ") {
		t.Errorf("%v", err)
	}
}

func TestScriptWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newFakePeer("192.0.2.1:49610")
		p.state.Successors = []swarm.Member{p.self} // itself is no company
		r := &scriptRun{peer: p, timeout: time.Second}
		began := time.Now()
		if err := runScript(t.Context(), t, r, "WAIT 2.5"); !errors.Is(err, errNobody) || time.Since(began) != 2500*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := runScript(ctx, t, r, "WAIT"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("for ever: %v", err)
		}
		// One send takes no longer than the timeout.
		p.slow = time.Minute
		began = time.Now()
		if err := runScript(t.Context(), t, r, "SEND h 1 x"); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		p.state.Leaves = []swarm.Member{{ID: swarm.Hash{1}}}
		if err := runScript(t.Context(), t, r, "WAIT 0"); err != nil {
			t.Errorf("in company: %v", err)
		}
	})
}
