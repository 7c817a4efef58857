// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
	"github.com/google/go-cmp/cmp"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/trace"
	"github.com/seed5728abee/fathom/trace/tracetest"
)

// pathProber is a prober whose probes go through a simulated network.
type pathProber struct{ *tracetest.Network }

func (pathProber) start(probe.Request, func(probe.Result)) error { return probe.ErrUnsupported }
func (pathProber) Features() probe.Features                      { return probe.Features{} }
func (pathProber) Close() error                                  { return nil }

// testPath is a path of four hops, 1 ms each: an ordinary router, one with an MPLS label, a silent one, and
// the target 192.0.2.4.
func testPath() pathProber {
	network, nodes := tracetest.Chain(1, 4, time.Millisecond)
	nodes[1].MPLS = []packet.Label{{Label: 16001, TC: 5, Bottom: true, TTL: 1}}
	nodes[2].Silent = true
	return pathProber{network}
}

// annotations is a trace.Source that knows a few addresses.
type annotations map[string]trace.Annotation

func (s annotations) Annotate(_ context.Context, addr netip.Addr, a *trace.Annotation) error {
	if known, ok := s[addr.String()]; ok {
		*a = known
	}
	return nil
}

func newMtrTestApp(p prober) *testApp {
	app := newTestApp(p)
	app.names = annotations{"10.0.0.1": {Name: "gateway.example"}}
	app.origins = annotations{
		"192.0.2.4": {ASN: 64500, Prefix: netip.MustParsePrefix("192.0.2.0/24"), Country: "NL", Registry: "ripencc", Allocated: "1992-03-12"},
	}
	return app
}

func TestMtrReport(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want string
	}{
		{
			name: "plain", args: []string{"-r", "-c3"},
			want: `  1.|-- gateway.example              0.0%     3   2.00  2.00  2.00  2.00  0.00
  2.|-- 10.0.0.2                     0.0%     3   4.00  4.00  4.00  4.00  0.00
  3.|-- ???                        100.0%     3   0.00  0.00  0.00  0.00  0.00
  4.|-- 192.0.2.4                    0.0%     3   8.00  8.00  8.00  8.00  0.00
`,
		},
		{
			name: "wide with everything", args: []string{"-wbez", "-c2", "-o", "S R"},
			want: `  1.|-- ???      gateway.example (10.0.0.1)     2      2
  2.|-- ???      10.0.0.2                       2      2
    |       mpls 16001 (tc 5, ttl 1)
  3.|-- ???                                     2      0
  4.|-- AS64500  192.0.2.4                      2      2
`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				app := newMtrTestApp(testPath())
				if code := app.fathom(t.Context(), append(append([]string{"mtr"}, tt.args...), "192.0.2.4")...); code != exitDone {
					t.Fatalf("exit code %d: %s", code, &app.err)
				}
				head, body, _ := strings.Cut(app.out.String(), "\n")
				if !strings.HasPrefix(head, "Start: 2000-01-01T00:00:00") {
					t.Errorf("first line %q", head)
				}
				head, body, _ = strings.Cut(body, "\n")
				if !strings.HasPrefix(head, "HOST:   ") {
					t.Errorf("second line %q", head)
				}
				if diff := cmp.Diff(tt.want, body); diff != "" {
					t.Errorf("report (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestMtrReportInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app := newMtrTestApp(testPath())
		ctx, cancel := context.WithTimeout(t.Context(), 4500*time.Millisecond)
		defer cancel()
		if code := app.fathom(ctx, "mtr", "-rn", "-c100", "192.0.2.4"); code != exitDone {
			t.Errorf("exit code %d, want %d: what is known gets printed", code, exitDone)
		}
		if want := "1.|-- 10.0.0.1                     0.0%     5"; !strings.Contains(app.out.String(), want) {
			t.Errorf("no %q in:\n%s", want, &app.out)
		}
	})
}

func TestMtrCSV(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app := newMtrTestApp(testPath())
		if code := app.fathom(t.Context(), "mtr", "--csv", "-c2", "192.0.2.4"); code != exitDone {
			t.Fatalf("exit code %d: %s", code, &app.err)
		}
		version := "FATHOM." + buildVersion().Version
		want := "Mtr_Version,Start_Time,Status,Host,Hop,Ip,Loss%,Snt,Last,Avg,Best,Wrst,StDev\n" +
			version + ",946684800,OK,192.0.2.4,1,gateway.example,0.0,2,2.000,2.000,2.000,2.000,0.000\n" +
			version + ",946684800,OK,192.0.2.4,2,10.0.0.2,0.0,2,4.000,4.000,4.000,4.000,0.000\n" +
			version + ",946684800,OK,192.0.2.4,3,???,100.0,2,0.000,0.000,0.000,0.000,0.000\n" +
			version + ",946684800,OK,192.0.2.4,4,192.0.2.4,0.0,2,8.000,8.000,8.000,8.000,0.000\n"
		if diff := cmp.Diff(want, app.out.String()); diff != "" {
			t.Errorf("output (-want +got):\n%s", diff)
		}
	})
}

func TestMtrJSON(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app := newMtrTestApp(testPath())
		if code := app.fathom(t.Context(), "mtr", "--json", "-z", "-c2", "-i0.5", "--udp", "192.0.2.4"); code != exitDone {
			t.Fatalf("exit code %d: %s", code, &app.err)
		}
		var got mtrDocument
		decoder := json.NewDecoder(&app.out)
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&got); err != nil {
			t.Fatal(err)
		}
		if got.Target != "192.0.2.4" || got.Protocol != "udp" || got.Cycles != 2 || got.Interval != 5e8 || len(got.Hops) != 4 {
			t.Errorf("document %+v", got)
		}
		want := mtrHop{
			TTL: 2, Status: "time-exceeded", Sent: 2, Received: 2,
			Last: 4e6, Best: 4e6, Avg: 4e6, Worst: 4e6, Gmean: got.Hops[1].Gmean,
			Answers: []mtrResponder{{
				Address: netip.MustParseAddr("10.0.0.2"), Received: 2,
				MPLS: []labelRecord{{Label: 16001, TrafficClass: 5, Bottom: true, TTL: 1}},
			}},
		}
		if diff := cmp.Diff(want, got.Hops[1], cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("hop 2 (-want +got):\n%s", diff)
		}
		if got := got.Hops[3].Answers[0]; got.ASN != 64500 || got.Prefix.String() != "192.0.2.0/24" || got.Country != "NL" {
			t.Errorf("facts of the target: %+v", got)
		}
		if got.Hops[2].Loss != 100 || len(got.Hops[2].Answers) != 0 {
			t.Errorf("the silent hop: %+v", got.Hops[2])
		}
	})
}

func TestMtrUsageErrors(t *testing.T) {
	tests := []struct{ args, want string }{
		{"mtr", "name one host"},
		{"mtr 10.0.0.1 10.0.0.2", "name one host"},
		{"mtr 10.0.0.1", "watching needs a terminal: use --report"},
		{"mtr -r -m0 10.0.0.1", "--max-ttl 0: want 1 to 255"},
		{"mtr -r -f9 -m8 10.0.0.1", "--first-ttl 9 is beyond --max-ttl 8"},
		{"mtr -r -i0 10.0.0.1", "--interval 0s: want 1ms to 1h0m0s"},
		{"mtr -r -oQ 10.0.0.1", `--order "Q": want letters of`},
		{"mtr -r -y5 10.0.0.1", "--ipinfo 5: want 0 to 4"},
		{"mtr -r -c-1 10.0.0.1", "--report-cycles -1: want 1 or more"},
		{"mtr -r -c0 10.0.0.1", "--report-cycles 0: want 1 or more"},
		{"mtr -r -u -T 10.0.0.1", "--udp and --tcp exclude each other"},
		{"mtr -j -C 10.0.0.1", "--json and --csv exclude each other"},
	}
	for _, tt := range tests {
		app := newMtrTestApp(testPath())
		if code := app.run(t.Context(), append([]string{"fathom"}, strings.Fields(tt.args)...)); code != exitUsage {
			t.Errorf("%s: exit code %d, want %d", tt.args, code, exitUsage)
		}
		if !strings.Contains(app.err.String(), tt.want) || app.out.Len() > 0 {
			t.Errorf("%s: stderr %q without %q, stdout %q", tt.args, &app.err, tt.want, &app.out)
		}
	}
}

// screen is a live view under test, without a terminal.
type screen struct {
	*mtrModel
	t *testing.T
}

// newScreen watches testPath for a while in a screen of 80 by 24. It needs a synctest bubble.
func newScreen(t *testing.T) *screen {
	ctx, cancel := context.WithCancel(t.Context())
	app := newMtrTestApp(nil)
	names, origins := trace.NewAnnotator(app.names), trace.NewAnnotator(app.origins)
	fields, _ := trace.ParseFields(trace.DefaultFields)
	others, _ := trace.ParseFields(mtrJitterFields)
	session := &mtrSession{
		via: testPath(), req: probe.Request{Target: netip.MustParseAddr("192.0.2.4"), Size: 64},
		opts: trace.ContinuousOptions{Interval: time.Second, FirstHop: 1, MaxHops: 30, Timeout: 2 * time.Second},
	}
	if err := session.start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		session.stop()
		names.Close()
		origins.Close()
	})
	s := &screen{t: t, mtrModel: &mtrModel{
		ctx: ctx, session: session, target: "target.example", source: "here", names: names, fields: fields, others: others,
		labels: mtrLabels{names: names, origins: origins, fact: noFact},
	}}
	s.Update(tea.WindowSizeMsg{Width: 80, Height: 24})
	s.watch(2900 * time.Millisecond)
	return s
}

// watch lets time pass.
func (s *screen) watch(d time.Duration) {
	time.Sleep(d)
	s.Update(mtrTickMsg(time.Now()))
	s.View() // asks for names
	synctest.Wait()
}

// press gives keys: a name such as "enter" alone, or text.
func (s *screen) press(keys ...string) (cmd tea.Cmd) {
	for _, key := range keys {
		switch key {
		case "enter":
			_, cmd = s.Update(tea.KeyPressMsg{Code: tea.KeyEnter})
		case "esc":
			_, cmd = s.Update(tea.KeyPressMsg{Code: tea.KeyEscape})
		case "backspace":
			_, cmd = s.Update(tea.KeyPressMsg{Code: tea.KeyBackspace})
		case "ctrl+u":
			_, cmd = s.Update(tea.KeyPressMsg{Code: 'u', Mod: tea.ModCtrl})
		case "ctrl+c":
			_, cmd = s.Update(tea.KeyPressMsg{Code: 'c', Mod: tea.ModCtrl})
		default:
			for _, r := range key {
				_, cmd = s.Update(tea.KeyPressMsg{Code: r, Text: string(r)})
			}
		}
	}
	synctest.Wait() // what a key begins anew has begun
	return cmd
}

// text is the screen without colours and trailing blanks.
func (s *screen) text() string {
	lines := strings.Split(ansi.Strip(s.View().Content), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

func (s *screen) want(texts ...string) {
	s.t.Helper()
	screen := s.text()
	for _, text := range texts {
		if !strings.Contains(screen, text) {
			s.t.Errorf("no %q on the screen:\n%s", text, screen)
		}
	}
}

func (s *screen) wantNot(text string) {
	s.t.Helper()
	if screen := s.text(); strings.Contains(screen, text) {
		s.t.Errorf("%q is on the screen:\n%s", text, screen)
	}
}

func TestMtrScreen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScreen(t)
		want := `here → target.example (192.0.2.4)                            2000-01-01 00:00:02
icmp · 64 bytes · every 1s · round 3
h help  d display  r reset  p pause  n names  o columns  j jitter  q quit

     Host                             Loss%   Snt   Last   Avg  Best  Wrst StDev
  1. gateway.example                   0.0%     3   2.00  2.00  2.00  2.00  0.00
  2. 10.0.0.2                          0.0%     3   4.00  4.00  4.00  4.00  0.00
  3. (waiting for an answer)         100.0%     3   0.00  0.00  0.00  0.00  0.00
  4. 192.0.2.4                         0.0%     3   8.00  8.00  8.00  8.00  0.00`
		if diff := cmp.Diff(want, s.text()); diff != "" {
			t.Errorf("screen (-want +got):\n%s", diff)
		}
	})
}

func TestMtrKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScreen(t)

		s.press("n")
		s.want("1. 10.0.0.1")
		s.press("n")
		s.want("1. gateway.example")

		s.press("e")
		s.want("mpls 16001 (tc 5, ttl 1)")
		s.press("e")
		s.wantNot("mpls")

		s.press("z")
		s.watch(0)
		s.want("AS64500  192.0.2.4")
		s.press("y", "y")
		s.want("NL  192.0.2.4")
		s.press("y", "y", "y")
		s.want("4. 192.0.2.4")

		s.press("j")
		s.want("Drop   Rcv    Avg Gmean Jttr Javg Jmax Jint")
		s.press("j")
		s.want("Loss%   Snt")

		s.press("d")
		s.want("Last 51 probes", "1. gateway.example", "···\n", " ?\n", "· answered")
		s.press("d")
		s.want("▁ 2.000 ms   █ 8.000 ms")
		s.press("d")
		s.want("Loss%   Snt")

		s.press("h")
		s.want("space go on", "Any key goes back")
		s.press("x")
		s.wantNot("Any key goes back")

		s.press("p")
		s.want("paused")
		s.watch(5 * time.Second)
		s.want("round 3")
		s.press(" ")
		s.watch(2500 * time.Millisecond)
		s.want("round 6")

		s.press("r")
		s.want("round 0")
	})
}

func TestMtrPrompts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScreen(t)

		s.press("o")
		s.want("Columns (LDRSNBAWVGJMXI, space for a gap): LS NABWV▏")
		s.press("ctrl+u", "SR", "enter")
		s.want("Snt   Rcv")
		s.wantNot("Loss%")
		s.press("o", "ctrl+u", "LQ", "enter")
		s.want("want letters of LDRSNBAWVGJMXI")

		s.press("i", "esc")
		s.want("every 1s · round 3")
		s.press("i", "0.5", "enter") // typing replaces the value
		s.want("every 500ms · round 1")
		s.watch(1400 * time.Millisecond)
		s.want("round 3")
		s.press("i", "ctrl+u", "0", "enter")
		s.want("interval 0s: want 1ms to 1h0m0s", "every 500ms")

		s.press("s", "backspace", "5", "enter") // backspace edits it
		s.want("65 bytes")
		s.press("s", "1500", "enter")
		s.want("icmp · 1500 bytes")
		s.press("s", "ctrl+u", "99999", "enter")
		s.want("want a number from 0 to 65535", "1500 bytes")
		s.press("b", "ctrl+u", "0xff", "enter", "Q", "ctrl+u", "16", "enter")
		if r := s.session.req; r.Pattern != 255 || r.TOS != 16 {
			t.Errorf("pattern %d and type of service %d, want 255 and 16", r.Pattern, r.TOS)
		}

		s.press("m", "ctrl+u", "2", "enter")
		s.watch(1400 * time.Millisecond)
		s.want("2. 10.0.0.2")
		s.wantNot("3. ")
		s.press("f", "ctrl+u", "3", "enter")
		s.want("invalid max hops 2: want 3 to 255")
		s.press("f", "ctrl+u", "2", "enter")
		s.watch(1400 * time.Millisecond)
		s.wantNot("1. gateway")

		s.press("u")
		s.want("udp · 1500 bytes")
		s.press("t")
		s.want("tcp · every")
		s.press("t")
		s.want("icmp · 1500 bytes")
	})
}

func TestMtrScreenFitsSmallTerminals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScreen(t)
		for _, size := range [][2]int{{20, 6}, {1, 1}, {200, 3}, {40, 10}} {
			s.Update(tea.WindowSizeMsg{Width: size[0], Height: size[1]})
			for _, key := range []string{"d", "d", "d", "h", "h"} {
				s.press(key)
				lines := strings.Split(s.text(), "\n")
				if len(lines) > size[1] {
					t.Errorf("%d lines on a screen of %d", len(lines), size[1])
				}
				for _, line := range lines {
					if w := ansi.StringWidth(line); w > size[0] {
						t.Errorf("a line of %d on a screen %d wide: %q", w, size[0], line)
					}
				}
			}
		}
		// Scrolling shows the hops that do not fit.
		s.Update(tea.WindowSizeMsg{Width: 80, Height: 8})
		s.wantNot("4. 192.0.2.4")
		s.press("+")
		s.want("4. 192.0.2.4")
		s.wantNot("1. gateway")
		s.press("-")
		s.want("1. gateway.example")
	})
}

func TestMtrScreenEndsWithTheTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScreen(t)
		if cmd := s.press("q"); cmd == nil {
			t.Error("key q does not quit")
		}
		if cmd := s.press("o", "q", "ctrl+c"); cmd == nil {
			t.Error("ctrl+c does not quit from a prompt")
		}
		s.press("esc", "c", "ctrl+u", "2", "enter")
		time.Sleep(10 * time.Second)
		_, cmd := s.Update(mtrTickMsg(time.Now()))
		if _, quit := cmd().(tea.QuitMsg); !quit || s.err != nil {
			t.Errorf("the view does not end after its last round; error %v", s.err)
		}
	})
}

// The whole command, with bubbletea, on something that only claims to be a terminal.
func TestMtrLive(t *testing.T) {
	app := newMtrTestApp(testPath())
	app.stdinTerminal, app.stdoutTerminal = true, true
	keys, press := io.Pipe()
	defer press.Close()
	app.stdin = keys
	go func() {
		time.Sleep(300 * time.Millisecond)
		_, _ = io.WriteString(press, "q")
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if code := app.fathom(ctx, "mtr", "-n", "-i0.1", "192.0.2.4"); code != exitDone || ctx.Err() != nil {
		t.Fatalf("exit code %d: %s", code, &app.err)
	}
	// What was watched is left behind as a report.
	if !strings.Contains(app.out.String(), "  1.|-- 10.0.0.1  ") {
		t.Errorf("no report at the end of %q", &app.out)
	}
}
