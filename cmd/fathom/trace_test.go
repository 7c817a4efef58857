// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/trace/tracetest"
)

// networkProber is a simulated network as the command's prober.
type networkProber struct{ *tracetest.Network }

func (networkProber) start(probe.Request, func(probe.Result)) error { panic("not used by trace") }
func (networkProber) Features() probe.Features                      { return probe.Features{} }
func (networkProber) Close() error                                  { return nil }

// traceDiamond is 10.0.0.1 - (10.0.1.1 | 10.0.1.2) - * - 192.0.2.1.
func traceDiamond() (networkProber, []*tracetest.Node) {
	node := func(a string) *tracetest.Node {
		return &tracetest.Node{Addr: netip.MustParseAddr(a), Delay: 500 * time.Microsecond}
	}
	nodes := []*tracetest.Node{node("10.0.0.1"), node("10.0.1.1"), node("10.0.1.2"), node("10.0.2.1"), node("192.0.2.1")}
	net := tracetest.New(4)
	net.Source.Next = nodes[:1]
	nodes[0].Next = nodes[1:3]
	nodes[0].MPLS = []packet.Label{{Label: 16001, TC: 5, Bottom: true, TTL: 1}}
	tracetest.Link(nodes[1:3], nodes[3:4])
	nodes[3].Next = nodes[4:]
	nodes[3].Silent = true
	return networkProber{net}, nodes
}

func runTrace(t *testing.T, change func([]*tracetest.Node), args ...string) (code int, app *testApp) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p, nodes := traceDiamond()
		if change != nil {
			change(nodes)
		}
		app = newTestApp(p)
		code = app.fathom(t.Context(), append([]string{"trace", "-n"}, args...)...)
	})
	return code, app
}

func TestTraceOutput(t *testing.T) {
	prefixes := t.TempDir() + "/prefixes.csv"
	if err := os.WriteFile(prefixes, []byte("10.0.0.0/8,64496,Example,NZ\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		change func([]*tracetest.Node)
		args   []string
		code   int
		want   string
	}{
		{
			name: "paris", args: []string{"192.0.2.1"},
			want: `to 192.0.2.1: udp, 64 bytes, paris, at most 30 hops
HOP  HOST                                        RTT ms
  1  10.0.0.1                                     1.000     1.000     1.000  mpls 16001/5/1
  2  10.0.1.1                                     2.000     2.000     2.000
  3  *                                                *         *         *
  4  192.0.2.1                                    4.000     4.000     4.000
reached at hop 4; N probes in 0.200 s
`,
		},
		{
			name: "autonomous systems", args: []string{"-q1", "-m2", "--asn", prefixes, "--protocol", "tcp", "192.0.2.1"}, code: exitFailed,
			want: `to 192.0.2.1: tcp, paris, at most 2 hops
HOP  HOST                                     AS              RTT ms
  1  10.0.0.1                                 AS64496 NZ       1.000  mpls 16001/5/1
  2  10.0.1.1                                 AS64496 NZ       2.000
not reached: hop limit; N probes in 0.002 s
`,
		},
		{
			name: "refused", args: []string{"-q1", "192.0.2.1"}, code: exitFailed,
			change: func(n []*tracetest.Node) { n[1].Unreachable, n[1].Code = true, 13 },
			want: `to 192.0.2.1: udp, 64 bytes, paris, at most 30 hops
HOP  HOST                                        RTT ms
  1  10.0.0.1                                     1.000  mpls 16001/5/1
  2  10.0.1.1                                     2.000
  3  10.0.1.1                                     2.000  !X
not reached: hop 3 says unreachable; N probes in 0.002 s
`,
		},
		{
			name: "firewall", args: []string{"-q1", "-w1", "192.0.2.1"}, code: exitFailed,
			change: func(n []*tracetest.Node) { n[1].Firewall = true },
			want: `to 192.0.2.1: udp, 64 bytes, paris, at most 30 hops
HOP  HOST                                        RTT ms
  1  10.0.0.1                                     1.000  mpls 16001/5/1
  2  10.0.1.1                                     2.000
not reached: gap limit: 8 silent hops behind hop 2 (a firewall, most likely); N probes in 1.000 s
`,
		},
		{
			name: "multipath", args: []string{"--multipath", "192.0.2.1"},
			want: `to 192.0.2.1: udp, 64 bytes, multipath (MDA-Lite), at most 30 hops
HOP  HOST                                     RTT ms: min     avg       max  NEXT
  1  10.0.0.1                                     1.000     1.000     1.000  2a 2b  mpls 16001/5/1
 2a  10.0.1.1                                     2.000     2.000     2.000  3
 2b  10.0.1.2                                     2.000     2.000     2.000  3
  3  *                                                *         *         *  4
  4  192.0.2.1                                    4.000     4.000     4.000
reached at hop 4; N probes of 16 flows in 1.011 s; confidence 99.5 %
`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, app := runTrace(t, tt.change, tt.args...)
			// How many probes are under way when the end is known is a matter of scheduling.
			got := regexp.MustCompile(`\d+ probes`).ReplaceAllString(app.out.String(), "N probes")
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
			if code != tt.code || app.err.Len() > 0 {
				t.Errorf("exit code %d, want %d; on standard error: %s", code, tt.code, &app.err)
			}
		})
	}
}

// A classic trace shows both ways, each probe's time in its own column.
func TestTraceClassic(t *testing.T) {
	code, app := runTrace(t, nil, "--classic", "-q6", "192.0.2.1")
	if code != exitDone {
		t.Errorf("exit code %d", code)
	}
	hop2 := regexp.MustCompile(`(?m)^  2  10\.0\.1\.(1|2) .*\n     10\.0\.1\.(1|2) `)
	if !hop2.MatchString(app.out.String()) {
		t.Errorf("hop 2 does not have two lines:\n%s", &app.out)
	}
	if got := strings.Count(app.out.String(), "2.000"); got != 6 {
		t.Errorf("%d times at hop 2, want 6:\n%s", got, &app.out)
	}
}

func TestTraceJSON(t *testing.T) {
	picture := t.TempDir() + "/paths.svg"
	_, app := runTrace(t, nil, "--json", "--graph", picture, "192.0.2.1")
	var doc traceRecord
	if err := json.Unmarshal(app.out.Bytes(), &doc); err != nil {
		t.Fatalf("%v:\n%s", err, &app.out)
	}
	if doc.Stop != "reached" || doc.Method != "paris" || doc.Flow != 1 || len(doc.Hops) != 4 || doc.Hops[2].Replies[0].Status != "no-reply" ||
		*doc.Hops[3].Replies[2].RTT != 4_000_000 || doc.Hops[0].Replies[0].MPLS[0].Label != 16001 {
		t.Errorf("%+v", doc)
	}
	if svg, err := os.ReadFile(picture); err != nil || !strings.Contains(string(svg), "10.0.1.1") {
		t.Errorf("picture: %v\n%.200s", err, svg)
	}

	_, app = runTrace(t, nil, "--json", "--multipath", "--confidence", "99", "192.0.2.1")
	doc = traceRecord{}
	if err := json.Unmarshal(app.out.Bytes(), &doc); err != nil {
		t.Fatalf("%v:\n%s", err, &app.out)
	}
	if doc.Method != "mda-lite" || *doc.Confidence < 0.99 || len(doc.Nodes) != 6 || len(doc.Edges) != 6 || doc.Nodes[0].Kind != "source" ||
		doc.Nodes[4].Kind != "silent" || doc.Nodes[5].Kind != "target" {
		t.Errorf("%+v", doc)
	}
}

// A trace that found nothing leaves an older picture alone, and no empty file behind.
func TestTraceWithoutAnswersDrawsNothing(t *testing.T) {
	older, fresh := t.TempDir()+"/older.svg", t.TempDir()+"/fresh.svg"
	if err := os.WriteFile(older, []byte("a picture"), 0o600); err != nil {
		t.Fatal(err)
	}
	silence := func(n []*tracetest.Node) { n[0].Firewall, n[0].Silent = true, true }
	for _, args := range [][]string{{}, {"--json"}, {"--multipath"}} {
		for _, file := range []string{older, fresh} {
			code, app := runTrace(t, silence, append(args, "-w1", "--graph", file, "192.0.2.1")...)
			if want := "nothing answered: no picture in " + file + "\n"; code != exitFailed || app.err.String() != want {
				t.Errorf("%v: exit code %d, standard error %q, want %q", args, code, &app.err, want)
			}
		}
		if got, err := os.ReadFile(older); string(got) != "a picture" {
			t.Errorf("%v: the older picture is now %q, %v", args, got, err)
		}
		if _, err := os.Stat(fresh); err == nil {
			t.Errorf("%v: %s exists", args, fresh)
		}
	}
}

func TestTraceUsage(t *testing.T) {
	for want, args := range map[string][]string{
		"name one host": {},
		"--via agent:7: that is `fathom anycast trace 7 HOST`": {"--via", "agent:7", "192.0.2.1"},
		"--max-hops 300: want 1 to 255":                        {"-m", "300", "192.0.2.1"},
		"--first 0: want 1 to 255":                             {"-f", "0", "192.0.2.1"},
		"--queries 0":                                          {"-q", "0", "192.0.2.1"},
		"--mda: only with --multipath":                         {"--mda", "192.0.2.1"},
		"--confidence: only with --multipath":                  {"--classic", "--confidence", "99", "192.0.2.1"},
		"--port: icmp has no ports":                            {"-p", "icmp", "-P", "80", "192.0.2.1"},
		"--local-port: only with --protocol udp":               {"-p", "tcp", "--local-port", "80", "192.0.2.1"},
		"--confidence 100: want more than 0":                   {"--multipath", "--confidence", "100", "192.0.2.1"},
		"--graph a.png: want a name that ends in":              {"--graph", "a.png", "192.0.2.1"},
		"--first 9 is beyond --max-hops 8":                     {"-f", "9", "-m", "8", "192.0.2.1"},
		"--window 0: want at least 1":                          {"--window", "0", "192.0.2.1"},
		"--flow 0":                                             {"--flow", "0", "192.0.2.1"},
		"--local-address 10.0.0.1 is not an IPv6 address":      {"-6", "-a", "10.0.0.1", "192.0.2.1"},
		"--classic and --multipath exclude each other":         {"--classic", "--multipath", "192.0.2.1"},
	} {
		code, app := runTrace(t, nil, args...)
		if code != exitUsage || !strings.Contains(app.err.String(), want) {
			t.Errorf("%v: exit code %d, %s; want %s", args, code, &app.err, want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		p, _ := traceDiamond()
		app := newTestApp(p)
		// The environment may hold what only some traces need.
		app.env["FATHOM_CONFIDENCE"], app.env["FATHOM_MDA"], app.env["FATHOM_PORT"] = "99", "true", "80"
		if code := app.fathom(t.Context(), "trace", "-n", "-p", "icmp", "192.0.2.1"); code != exitDone {
			t.Errorf("exit code %d: %s", code, &app.err)
		}
	})
	code, app := runTrace(t, nil, "--asn", "no-such-file.csv", "192.0.2.1")
	if code != exitFailed || !strings.Contains(app.err.String(), "no-such-file.csv") {
		t.Errorf("missing file: exit code %d, %s", code, &app.err)
	}
}

// A trace that cannot begin was not interrupted, and says how it could.
func TestTraceTellsWhatTheProberLacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app := newTestApp(&fakeProber{rule: func(probe.Request) probe.Result {
			return probe.Result{Status: probe.Failed, RTT: -1, Err: fmt.Errorf("a mark: %w", probe.ErrUnsupported)}
		}})
		if code := app.fathom(t.Context(), "trace", "-n", "--max-hops", "1", "10.0.0.1"); code != exitFailed {
			t.Errorf("exit code %d, want %d", code, exitFailed)
		}
		want := "fathom trace: trace 10.0.0.1: hop 1: a mark: unsupported operation\nwhat it lacks, and how to get it\nUDP and TCP without a mark need none of this.\n"
		if diff := cmp.Diff(want, app.err.String()); diff != "" {
			t.Errorf("standard error (-want +got):\n%s", diff)
		}
		if strings.Contains(app.out.String(), "interrupted") {
			t.Errorf("standard output: %q", &app.out)
		}
	})
}

func TestConfidenceTextIsNotCertain(t *testing.T) {
	for confidence, want := range map[float64]string{0.95: "95.0 %", 0.9994: "99.9 %", 0.9999: "above 99.9 %", 1: "100.0 %"} {
		if got := confidenceText(confidence); got != want {
			t.Errorf("%v: %q, want %q", confidence, got, want)
		}
	}
}
