// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"strings"
	"testing"
	"time"
)

// loopTest is a loop between two pipes. The test plays the prober's part and calls the hooks.
type loopTest struct {
	*loop
	p        *fakeProber
	commands *os.File // write end of the loop's input
	answers  *os.File // read end of its output
}

func newLoopTest(t *testing.T) *loopTest {
	t.Helper()
	in, commands, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	answers, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, f := range []*os.File{in, commands, answers, out} {
			f.Close()
		}
	})
	lt := &loopTest{newLoop(int(in.Fd()), int(out.Fd())), newFakeProber(), commands, answers}
	lt.begin(newTestSession(lt.p))
	return lt
}

func (lt *loopTest) say(t *testing.T, text string) {
	t.Helper()
	if _, err := lt.commands.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// turn is what the prober does when input is readable.
func (lt *loopTest) turn() {
	if lt.wantRead() {
		lt.onReadable()
	}
	lt.p.finish()
	lt.afterTurn()
}

func (lt *loopTest) hear(t *testing.T) string {
	t.Helper()
	b := make([]byte, 1<<20)
	if err := lt.answers.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, err := lt.answers.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func (lt *loopTest) code() int {
	select {
	case code := <-lt.exit:
		return code
	default:
		return -1
	}
}

func TestLoopAnswers(t *testing.T) {
	lt := newLoopTest(t)
	lt.say(t, "1 send-probe ip-4 192.0.2.1\n2 nonsense\n3 send-pro")
	lt.turn()
	if got, want := lt.hear(t), "2 unknown-command\n1 reply ip-4 192.0.2.1 round-trip-time 123\n"; got != want {
		t.Errorf("heard %q, want %q in one piece", got, want)
	}
	lt.say(t, "be ip-4 192.0.2.1\n")
	lt.turn()
	if got, want := lt.hear(t), "3 reply ip-4 192.0.2.1 round-trip-time 123\n"; got != want {
		t.Errorf("heard %q, want %q", got, want)
	}
	if code := lt.code(); code >= 0 {
		t.Errorf("exit with %d", code)
	}
}

func TestLoopEnd(t *testing.T) {
	lt := newLoopTest(t)
	lt.say(t, "1 send-probe ip-4 192.0.2.1\n2 unfinished")
	lt.commands.Close()
	lt.onReadable()
	lt.afterTurn()
	lt.onReadable()
	lt.afterTurn()
	if code := lt.code(); code >= 0 {
		t.Fatalf("exit with %d while a probe is in flight", code)
	}
	if lt.wantRead() {
		t.Error("wants to read after the end")
	}
	lt.p.finish()
	lt.afterTurn()
	if got, want := lt.hear(t), "1 reply ip-4 192.0.2.1 round-trip-time 123\n"; got != want {
		t.Errorf("heard %q, want %q", got, want)
	}
	if code := lt.code(); code != exitDone {
		t.Errorf("exit with %d, want %d", code, exitDone)
	}
}

// A driver that has gone wants no answers, but only the end of the commands shows that it has.
func TestLoopOrphaned(t *testing.T) {
	lt := newLoopTest(t)
	gone := true
	lt.orphaned = func() bool { return gone }
	lt.say(t, "1 send-probe ip-4 192.0.2.1\n")
	lt.onReadable()
	lt.afterTurn()
	if code := lt.code(); code >= 0 {
		t.Fatalf("exit with %d while commands may come", code)
	}
	gone = false
	lt.commands.Close()
	lt.onReadable()
	lt.afterTurn()
	if code := lt.code(); code >= 0 {
		t.Fatalf("exit with %d while the driver waits", code)
	}
	gone = true
	lt.afterTurn()
	if code := lt.code(); code != exitFailed {
		t.Errorf("exit with %d, want %d", code, exitFailed)
	}
}

// A driver that does not read must not lose answers, nor make the prober's memory grow without bound.
func TestLoopSlowReader(t *testing.T) {
	lt := newLoopTest(t)
	const line = "1 check-support feature send-probe\n"
	block := strings.Repeat(line, 1000)
	asked := 0
	for lt.wantRead() {
		lt.say(t, block)
		asked += 1000
		lt.turn()
		if asked > 1_000_000 {
			t.Fatal("it reads for ever")
		}
	}
	if pending := lt.session.replies.pending(); pending < maxBacklog || pending > maxBacklog+2*readSize {
		t.Errorf("%d bytes are pending", pending)
	}
	if !lt.wantWrite() {
		t.Error("does not want to write")
	}
	heard := 0
	for heard < asked {
		got := lt.hear(t)
		checkReplies(t, got)
		heard += strings.Count(got, "\n")
		if lt.wantWrite() {
			lt.flush()
		}
	}
	if heard != asked || !lt.wantRead() || lt.wantWrite() {
		t.Errorf("heard %d answers of %d, wants to read %v, to write %v", heard, asked, lt.wantRead(), lt.wantWrite())
	}
}

func TestLoopBroken(t *testing.T) {
	lt := newLoopTest(t)
	lt.say(t, "1 send-probe ip-4 192.0.2.1\n2 nonsense\n")
	lt.answers.Close()
	lt.onReadable()
	lt.afterTurn()
	if code := lt.code(); code != exitFailed {
		t.Errorf("exit with %d, want %d", code, exitFailed)
	}
	lt.p.finish() // comes too late, and must not matter
	lt.afterTurn()
	if lt.wantRead() || lt.wantWrite() {
		t.Error("goes on")
	}
}
