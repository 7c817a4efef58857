// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/charmbracelet/x/term"
	"github.com/muesli/cancelreader"
	"golang.org/x/sys/unix"
)

// A terminal is a pseudo-terminal for a command in a lab, joined to the terminal that the user sits at. The
// command's session has it as its controlling terminal, which the user's own, in use by
// another session, cannot be; so shells have job control and ^C reaches whom it should.
type terminal struct {
	stdin, stdout *os.File
	pty
	state   *term.State // of stdin, to go back to
	input   cancelreader.CancelReader
	resized chan os.Signal
	reading sync.WaitGroup // from stdin, and for changes of size
	writing chan struct{}  // closed when the command's output has ended
}

// drainTime is how long output may come after the command has ended: the kernel has it already, but a
// process that the command left in the background may hold the terminal open for ever.
const drainTime = 200 * time.Millisecond

func isTerminal(f *os.File) bool { return f != nil && term.IsTerminal(f.Fd()) }

// openTerminal returns nil unless both streams are terminals.
func openTerminal(stdin, stdout *os.File) (*terminal, error) {
	if !isTerminal(stdin) || !isTerminal(stdout) {
		return nil, nil
	}
	p, err := newPTY()
	if err != nil {
		return nil, fmt.Errorf("open pseudo-terminal: %w", err)
	}
	return &terminal{stdin: stdin, stdout: stdout, pty: p, writing: make(chan struct{})}, nil
}

// A pty is a pseudo-terminal: what is written to one end comes out of the other.
type pty struct {
	master, slave *os.File
}

func newPTY() (pty, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return pty{}, err
	}
	master := os.NewFile(uintptr(fd), "/dev/ptmx")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		master.Close()
		return pty{}, err
	}
	// The other end by descriptor: its path may lie in another mount namespace.
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		master.Close()
		return pty{}, errno
	}
	return pty{master, os.NewFile(peer, "pty")}, nil
}

// start joins the two terminals. The user's is raw from here on: the inner one does the editing.
func (t *terminal) start() error {
	var err error
	if t.input, err = cancelreader.NewReader(t.stdin); err != nil {
		return fmt.Errorf("read terminal: %w", err)
	}
	if t.state, err = term.MakeRaw(t.stdin.Fd()); err != nil {
		return fmt.Errorf("make terminal raw: %w", err)
	}
	t.resize()
	t.resized = make(chan os.Signal, 1)
	signal.Notify(t.resized, unix.SIGWINCH)
	t.reading.Go(func() {
		for range t.resized {
			t.resize()
		}
	})
	t.reading.Go(func() { _, _ = io.Copy(t.master, t.input) }) // ends when cancelled
	go func() {
		defer close(t.writing)
		_, _ = io.Copy(t.stdout, t.master) // ends with EIO when the last user of the slave closes it
	}()
	return nil
}

func (t *terminal) resize() {
	if size, err := unix.IoctlGetWinsize(int(t.stdin.Fd()), unix.TIOCGWINSZ); err == nil {
		_ = unix.IoctlSetWinsize(int(t.master.Fd()), unix.TIOCSWINSZ, size) // cosmetic
	}
}

func (t *terminal) close() {
	t.slave.Close()
	if t.resized != nil {
		select {
		case <-t.writing:
		case <-time.After(drainTime):
		}
		_ = t.master.SetReadDeadline(time.Unix(1, 0))
		<-t.writing
		signal.Stop(t.resized)
		close(t.resized)
		t.input.Cancel()
		t.reading.Wait()
	}
	if t.input != nil {
		t.input.Close()
	}
	t.master.Close()
	if t.state != nil {
		_ = term.Restore(t.stdin.Fd(), t.state) // nothing better is left to try
	}
}
