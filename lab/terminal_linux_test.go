// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A command on a terminal has one of its own, as large as the user's, on which ^C interrupts.
func TestExecOnTerminal(t *testing.T) {
	c := launch(t, "two", two)
	// The terminal that the user sits at; we are the user.
	user, err := newPTY()
	if err != nil {
		t.Skipf("no pseudo-terminals: %v", err)
	}
	defer user.master.Close()
	defer user.slave.Close()
	if err := unix.IoctlSetWinsize(int(user.slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 111}); err != nil {
		t.Fatal(err)
	}
	code := make(chan int, 1)
	go func() {
		n, err := c.Exec(t.Context(), ExecRequest{
			Host: "a", Path: "/bin/sh",
			Args: []string{"sh", "-c", "trap 'echo caught; exit 5' INT; stty size; tty; echo ready; while :; do sleep 0.01; done"},
			Env:  os.Environ(), Dir: "/", Stdin: user.slave, Stdout: user.slave, Stderr: user.slave,
		})
		if err != nil {
			t.Errorf("exec: %v", err)
		}
		code <- n
	}()
	var seen strings.Builder
	b := make([]byte, 1024)
	_ = user.master.SetReadDeadline(time.Now().Add(10 * time.Second))
	until := func(word string) {
		t.Helper()
		for !strings.Contains(seen.String(), word) {
			n, err := user.master.Read(b)
			seen.Write(b[:n])
			if err != nil {
				t.Fatalf("waiting for %q: %v; the terminal shows %q", word, err, seen.String())
			}
		}
	}
	until("ready")
	if !strings.Contains(seen.String(), "33 111\r\n") || !strings.Contains(seen.String(), "/dev/pts/") {
		t.Errorf("the command's terminal: %q, want a size of 33 111 and a name", seen.String())
	}
	if _, err := io.WriteString(user.master, "\x03"); err != nil {
		t.Fatal(err)
	}
	until("caught")
	if got := <-code; got != 5 {
		t.Errorf("exit code %d, want 5", got)
	}
	state, err := unix.IoctlGetTermios(int(user.slave.Fd()), unix.TCGETS)
	if err != nil || state.Lflag&unix.ICANON == 0 {
		t.Errorf("the user's terminal is still raw: %+v, %v", state, err)
	}
}
