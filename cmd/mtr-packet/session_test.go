// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
)

// fakeProber keeps what is started until the test ends it.
type fakeProber struct {
	features probe.Features
	limit    int
	started  []probe.Request
	done     []func(probe.Result)
}

func newFakeProber() *fakeProber {
	return &fakeProber{limit: 1000, features: probe.Features{
		Mode: probe.Privileged, IPv4: true, IPv6: true, ICMP: true, UDP: true, TCP: true, SCTP: true, Mark: true, Interface: true,
	}}
}

func (p *fakeProber) Features() probe.Features { return p.features }

func (p *fakeProber) Start(r probe.Request, done func(probe.Result)) (probe.Handle, error) {
	if len(p.started) == p.limit {
		return probe.Handle{}, fmt.Errorf("%w: the limit is %d", probe.ErrExhausted, p.limit)
	}
	p.started = append(p.started, r)
	p.done = append(p.done, done)
	return probe.Handle{}, nil
}

// finish ends every probe in flight: the target answers, in the order of the requests.
func (p *fakeProber) finish() {
	for i, r := range p.started {
		from := r.Target
		if from == netip.IPv4Unspecified() {
			from = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		p.done[i](probe.Result{Tag: r.Tag, Target: r.Target, Status: probe.Replied, Responder: from, RTT: 123 * time.Microsecond})
	}
	p.started, p.done = p.started[:0], p.done[:0]
}

func newTestSession(p *fakeProber) *session {
	return newSession(p, &dialect096, func(keepMark bool) bool { return keepMark })
}

// say feeds text and gives back the answers so far.
func (s *session) say(text string) string {
	for len(text) > 0 {
		n := copy(s.lines.space(), text)
		s.lines.add(n)
		text = text[n:]
		s.run()
	}
	out := string(s.replies.chunk())
	s.replies.written(len(out))
	return out
}

// readDialogue reads testdata/dialogue.txt: commands, and for each the pattern of its answer.
func readDialogue(t *testing.T) (commands []string, answers []*regexp.Regexp) {
	t.Helper()
	f, err := os.Open("testdata/dialogue.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for in := bufio.NewScanner(f); in.Scan(); {
		switch line := in.Text(); {
		case strings.HasPrefix(line, ">"):
			commands = append(commands, strings.TrimPrefix(strings.TrimPrefix(line, ">"), " "))
		case strings.HasPrefix(line, "< "):
			pattern := strings.ReplaceAll(regexp.QuoteMeta(line[2:]), "#", "[0-9]+")
			answers = append(answers, regexp.MustCompile("^"+pattern+"$"))
		}
	}
	if len(commands) == 0 || len(commands) != len(answers) {
		t.Fatalf("%d commands, %d answers", len(commands), len(answers))
	}
	return commands, answers
}

func TestDialogue(t *testing.T) {
	p := newFakeProber()
	s := newTestSession(p)
	commands, answers := readDialogue(t)
	for i, c := range commands {
		got := s.say(c + "\n")
		p.finish()
		got += s.say("")
		line, ended := strings.CutSuffix(got, "\n")
		if !ended || !answers[i].MatchString(line) {
			t.Errorf("%q is answered %q, want %v", c, got, answers[i])
		}
	}
}

func TestOverflow(t *testing.T) {
	s := newTestSession(newFakeProber())
	got := s.say(strings.Repeat("x", 65536) + "\n")
	want := strings.Repeat("0 command-buffer-overflow\n", 16) + "0 command-parse-error\n"
	if got != want {
		t.Errorf("got %q, want 16 overflows and a parse error", got)
	}
	if got := s.say("5 check-support feature send-probe\n"); got != "5 feature-support support ok\n" {
		t.Errorf("after an overflow: %q", got)
	}
}

func TestSupport(t *testing.T) {
	p := newFakeProber()
	p.features = probe.Features{Mode: probe.Unprivileged, IPv4: true, UDP: true, TCP: true}
	s := newTestSession(p)
	for feature, want := range map[string]string{
		"version": "0.96-fathom", "send-probe": "ok", "ip-4": "ok", "ip-6": "no", "icmp": "no", "udp": "ok", "tcp": "ok",
		"sctp": "no", "mark": "no", "local-device": "no", "": "no", "ICMP": "no", "nonsense": "no",
	} {
		if got := s.support([]byte(feature)); got != want {
			t.Errorf("support(%q) = %q, want %q", feature, got, want)
		}
	}
	tests := []struct{ command, want string }{
		{"1 send-probe ip-6 ::1", "1 invalid-argument reason ip-version-not-supported\n"},
		{"2 send-probe ip-4 127.0.0.1", "2 invalid-argument reason protocol-not-supported\n"},
		{"3 send-probe ip-4 127.0.0.1 protocol sctp", "3 invalid-argument reason protocol-not-supported\n"},
		{"4 send-probe ip-4 127.0.0.1 protocol udp mark 1", "4 permission-denied\n"},
		{"5 send-probe ip-4 127.0.0.1 protocol udp local-device lo", "5 invalid-argument\n"},
	}
	for _, tt := range tests {
		if got := s.say(tt.command + "\n"); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.command, got, tt.want)
		}
	}
	if len(p.started) != 0 {
		t.Errorf("%d probes were sent", len(p.started))
	}
}

func TestDialect095(t *testing.T) {
	s := newSession(newFakeProber(), &dialect095, func(bool) bool { return false })
	if got := s.say("1 check-support feature version\n"); got != "1 feature-support support 0.95-fathom\n" {
		t.Errorf("got %q", got)
	}
}

func TestTokensAreIndependent(t *testing.T) {
	p := newFakeProber()
	p.limit = 3
	s := newTestSession(p)
	got := s.say("7 send-probe ip-4 192.0.2.1\n7 send-probe ip-4 192.0.2.2\n8 send-probe ip-4 192.0.2.3\n9 send-probe ip-4 192.0.2.4\n")
	if want := "9 probes-exhausted\n"; got != want || s.inFlight != 3 {
		t.Errorf("got %q with %d in flight, want %q with 3", got, s.inFlight, want)
	}
	slices.Reverse(p.started)
	slices.Reverse(p.done)
	p.finish()
	want := "8 reply ip-4 192.0.2.3 round-trip-time 123\n7 reply ip-4 192.0.2.2 round-trip-time 123\n7 reply ip-4 192.0.2.1 round-trip-time 123\n"
	if got := s.say(""); got != want || s.inFlight != 0 {
		t.Errorf("got %q with %d in flight, want %q with none", got, s.inFlight, want)
	}
}

func TestLocalDevice(t *testing.T) {
	p := newFakeProber()
	s := newTestSession(p)
	s.say("1 send-probe ip-6 fe80::1 local-device eth7\n2 send-probe ip-6 fe80::1\n3 send-probe ip-4 192.0.2.1 local-device eth7\n")
	want := []struct{ target, device string }{{"fe80::1%eth7", "eth7"}, {"fe80::1", ""}, {"192.0.2.1", "eth7"}}
	for i, w := range want {
		if r := p.started[i]; r.Target.String() != w.target || r.Interface != w.device {
			t.Errorf("probe %d goes to %v through %q, want %v", i+1, r.Target, r.Interface, w)
		}
	}
	for i := range 10 * maxDevices {
		s.device(fmt.Appendf(nil, "device%d", i))
	}
	if len(s.devices) > maxDevices {
		t.Errorf("%d names are remembered, want at most %d", len(s.devices), maxDevices)
	}
}

// The privileges are settled once, before the first probe, by what the driver has asked for until then.
func TestSettle(t *testing.T) {
	tests := []struct {
		name   string
		say    string
		settle []bool // the calls
		marked string // the answer to a mark at the end; empty if it is sent
	}{
		{"nothing yet", "1 check-support feature icmp\n2 nonsense\n", nil, ""},
		{"refused probe", "1 send-probe ip-4 192.0.2.1 ttl 0\n", nil, ""},
		{"plain probe", "1 send-probe ip-4 192.0.2.1\n", []bool{false}, "9 permission-denied\n"},
		{"marked probe", "1 send-probe ip-4 192.0.2.1 mark 5\n2 send-probe ip-4 192.0.2.1\n", []bool{true}, ""},
		{"mark 0 is none", "1 send-probe ip-4 192.0.2.1 mark 0\n", []bool{false}, "9 permission-denied\n"},
		{"asked first", "1 check-support feature mark\n2 send-probe ip-4 192.0.2.1\n", []bool{true}, ""},
		{"asked too late", "1 send-probe ip-4 192.0.2.1\n2 check-support feature mark\n", []bool{false}, "9 permission-denied\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newFakeProber()
			var calls []bool
			s := newSession(p, &dialect096, func(keepMark bool) bool {
				if len(p.started) > 0 {
					t.Error("settled after the first probe")
				}
				calls = append(calls, keepMark)
				return keepMark
			})
			s.say(tt.say)
			if !slices.Equal(calls, tt.settle) {
				t.Errorf("settled with %v, want %v", calls, tt.settle)
			}
			before := len(p.started)
			if got := s.say("9 send-probe ip-4 192.0.2.1 mark 7\n"); got != tt.marked {
				t.Errorf("a mark is answered %q, want %q", got, tt.marked)
			}
			if sent := len(p.started) > before; sent != (tt.marked == "") {
				t.Errorf("marked probe sent: %v", sent)
			}
		})
	}
	t.Run("answer", func(t *testing.T) {
		s := newSession(newFakeProber(), &dialect096, func(bool) bool { return false })
		if got := s.say("1 check-support feature mark\n"); got != "1 feature-support support no\n" {
			t.Errorf("without the capability mark is answered %q", got)
		}
	})
}

func TestNoAllocations(t *testing.T) {
	p := newFakeProber()
	s := newTestSession(p)
	text := "33000 send-probe ip-4 10.88.3.2 local-ip-4 10.88.1.2 protocol icmp size 64 bit-pattern 0 tos 0 ttl 1 timeout 10 local-device eth0\n" +
		"33001 send-probe ip-6 fd88:3::2 local-ip-6 fd88:1::2 protocol udp port 53 local-port 2000 timeout 0.25 mark 7\n" +
		"33002 check-support feature icmp\n33003 nonsense\nnonsense\n"
	stack := []packet.Label{{Label: 16001, TTL: 1}, {Label: 299776, TC: 7, Bottom: true, TTL: 254}}
	router := netip.MustParseAddr("fd88:67::1")
	turn := func() {
		s.lines.add(copy(s.lines.space(), text))
		s.run()
		s.inFlight++
		s.finish(probe.Result{Status: probe.TimeExceeded, Responder: router, RTT: time.Second, MPLS: stack})
		p.finish()
		for s.replies.pending() > 0 {
			s.replies.written(len(s.replies.chunk()))
		}
	}
	turn()
	if n := testing.AllocsPerRun(100, turn); n != 0 {
		t.Errorf("%v allocations per turn, want none", n)
	}
}

// replyForm is what every answer looks like: a number, words with single spaces, whole pairs.
var replyForm = regexp.MustCompile(`^-?[0-9]+ [a-z-]+( [a-z0-9-]+ [!-~]+)*$`)

func checkReplies(t *testing.T, out string) {
	t.Helper()
	if out == "" {
		return
	}
	lines, ended := strings.CutSuffix(out, "\n")
	if !ended {
		t.Fatalf("no newline at the end of %q", out)
	}
	for line := range strings.SplitSeq(lines, "\n") {
		if !replyForm.MatchString(line) || len(line) >= 4095 || strings.Count(line, " ") > 33 {
			t.Fatalf("answer %q is malformed", line)
		}
	}
}

// FuzzSession feeds bytes, cut into reads at will. Every line has one answer, and every answer is well formed.
func FuzzSession(f *testing.F) {
	commands, _ := os.ReadFile("testdata/dialogue.txt")
	for line := range strings.SplitSeq(string(commands), "\n") {
		f.Add([]byte(strings.TrimPrefix(line, "> ")+"\n"), uint16(7))
	}
	f.Add([]byte(strings.Repeat("x", 5000)+"\n1 check-support\x00 a b\n"), uint16(4096))
	f.Add([]byte("1 send-probe ip-4 1.2.3.4 timeout 1.5 ttl -0 mark -1 size +9\n\r\n"), uint16(1))
	f.Fuzz(func(t *testing.T, in []byte, size uint16) {
		p := newFakeProber()
		s := newTestSession(p)
		want := 0
		for line := range strings.SplitAfterSeq(string(in), "\n") {
			want += len(line) / maxLine // what overflows, or a line that just fits
			if strings.HasSuffix(line, "\n") && len(line)%maxLine != 0 {
				want++
			}
		}
		var out strings.Builder
		for len(in) > 0 {
			n := copy(s.lines.space(), in[:min(len(in), 1+int(size))])
			s.lines.add(n)
			in = in[n:]
			s.run()
			p.finish()
			for s.replies.pending() > 0 {
				c := s.replies.chunk()
				out.Write(c)
				s.replies.written(len(c))
			}
		}
		checkReplies(t, out.String())
		if got := strings.Count(out.String(), "\n"); got != want {
			t.Fatalf("%d answers, want %d: %q", got, want, out.String())
		}
		if s.inFlight != 0 {
			t.Fatalf("%d probes are still in flight", s.inFlight)
		}
	})
}

func TestConfigure(t *testing.T) {
	tests := []struct {
		dialect, probes string
		want            config
		bad             bool
	}{
		{"", "", config{&dialect096, 10240}, false},
		{"0.96", "32000", config{&dialect096, 32000}, false},
		{"0.95", "1", config{&dialect095, 1}, false},
		{"0.94", "", config{}, true},
		{"", "0", config{}, true},
		{"", "32001", config{}, true},
		{"", "many", config{}, true},
	}
	for _, tt := range tests {
		got, err := configure(func(name string) string {
			return map[string]string{envDialect: tt.dialect, envProbes: tt.probes}[name]
		})
		if (err != nil) != tt.bad || err == nil && got != tt.want {
			t.Errorf("dialect %q, probes %q: %+v, %v", tt.dialect, tt.probes, got, err)
		}
	}
}

// A probe given up when the prober closes is none of the driver's business, but must not be a crash.
func TestCancelled(t *testing.T) {
	s := newTestSession(newFakeProber())
	s.inFlight = 1
	s.finish(probe.Result{Status: probe.Failed, Err: context.Canceled, Tag: 3})
	checkReplies(t, s.say(""))
}
