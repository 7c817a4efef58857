// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"github.com/charmbracelet/x/term"

	"github.com/seed5728abee/fathom/nat"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/trace"
)

// The exit codes of every command.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// app is what the commands share: the standard streams, the environment and the log.
// Commands write results to stdout and everything else to stderr.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	// The streams that are terminals, as far as colours, progress and live views go.
	stdinTerminal, stdoutTerminal, stderrTerminal bool

	lookupEnv func(string) (string, bool)

	// calledAs is the name that the program was started under.
	calledAs string

	// log is for diagnostics; it shows warnings, and everything with --verbose.
	log   *slog.Logger
	level slog.LevelVar

	// What reaches the network, so that tests can put something else in its place.
	newProber      func(o probe.Options, mark uint32) (prober, error)
	resolve        func(ctx context.Context, host string, version int) (netip.Addr, error)
	names, origins trace.Source
	nat            nat.Options

	// started is set when a command's own work begins: an error before that is one of usage.
	started bool
}

func newApp() *app {
	a := &app{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		stdinTerminal:  term.IsTerminal(os.Stdin.Fd()),
		stdoutTerminal: term.IsTerminal(os.Stdout.Fd()),
		stderrTerminal: term.IsTerminal(os.Stderr.Fd()),
		lookupEnv:      os.LookupEnv,
		newProber:      newRealProber,
		resolve:        resolveHost,
		names:          &trace.Names{AskPrivate: true}, // sites name their private addresses too
		origins:        &trace.OriginDNS{},
	}
	a.level.Set(slog.LevelWarn)
	a.log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: &a.level}))
	return a
}

// run runs the command line and gives the exit code.
func (a *app) run(ctx context.Context, argv []string) int {
	out := &checkedWriter{Writer: a.stdout}
	a.stdout = out
	if len(argv) > 0 {
		a.calledAs = programName(argv[0])
	}
	root := newRootCommand(a)
	root.SetArgs(commandLine(root, argv))
	cmd, err := root.ExecuteContextC(ctx)
	if out.err != nil {
		a.started = true // the command line was right
		if err == nil || errors.Is(err, errQuiet) {
			err = out.err
		}
	}
	if err == nil {
		return exitDone
	}
	if exit, ok := errors.AsType[*exitError](err); ok {
		return exit.code
	}
	code := exitFailed
	if _, ok := errors.AsType[*usageError](err); ok || !a.started {
		code = exitUsage
	}
	path := cmd.CommandPath()
	if sub, ok := calledAs[a.calledAs]; ok {
		path = a.calledAs + strings.TrimPrefix(path, root.Name()+" "+sub)
	}
	switch {
	case errors.Is(err, errQuiet), errors.Is(err, syscall.EPIPE):
		// Already reported, or nobody is reading.
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		fmt.Fprintf(a.stderr, "%s: interrupted\n", path)
	default:
		fmt.Fprintf(a.stderr, "%s: %v\n", path, err)
		if h := hintFor(err); h != "" {
			fmt.Fprintf(a.stderr, "%s\n", h)
		}
		if code == exitUsage {
			fmt.Fprintf(a.stderr, "See '%s --help'.\n", path)
		}
	}
	return code
}

// checkedWriter remembers the first failed write, for those who print without looking: help, and
// texts for eyes. A result that nobody got is a failure.
type checkedWriter struct {
	io.Writer
	err error
}

func (w *checkedWriter) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	if w.err == nil {
		w.err = err
	}
	return n, err
}

// printJSON writes v to stdout as indented JSON, for commands whose result is one document.
// Commands with a stream of results write JSON Lines instead.
func (a *app) printJSON(v any) error {
	w := bufio.NewWriter(a.stdout)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	return w.Flush()
}

// count gives a number with the noun that it counts, in the singular: "1 probe", "2 probes".
func count[N int | uint64](n N, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

// errQuiet makes the program exit with exitFailed without another word: the command has said why.
var errQuiet = errors.New("failed")

// usageError makes the program exit with exitUsage.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// usagef makes an error that says that the command was called wrongly.
func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// exitError makes the program exit as the command that it ran did, without another word.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// hintError carries a line that tells the user what to do about an error.
type hintError struct {
	error
	hint string
}

func (e *hintError) Unwrap() error { return e.error }

// withHint adds a line to an error that tells what to do about it. It keeps a nil error nil.
func withHint(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &hintError{err, hint}
}

func hintFor(err error) string {
	if e, ok := errors.AsType[*hintError](err); ok {
		return e.hint
	}
	return ""
}
