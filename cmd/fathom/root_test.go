// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

func TestCommandLineOfALink(t *testing.T) {
	calledAs["fathometer"] = "probe"
	t.Cleanup(func() { delete(calledAs, "fathometer") })
	tests := []struct{ argv, want []string }{
		{nil, []string{}},
		{[]string{"fathom"}, []string{}},
		{[]string{"/usr/bin/fathom", "probe", "h"}, []string{"probe", "h"}},
		{[]string{"/usr/bin/fathometer", "-c1", "h"}, []string{"probe", "-c1", "h"}},
		{[]string{"fathometer.exe"}, []string{"probe"}},
		{[]string{"fathometers", "h"}, []string{"h"}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, commandLine(newRootCommand(newApp()), tt.argv)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.argv, diff)
		}
	}
}

// What a command's error does to the exit code and to standard error.
func TestExitCodes(t *testing.T) {
	interrupted, cancel := context.WithCancel(t.Context())
	cancel()
	tests := []struct {
		name string
		err  error
		ctx  context.Context
		code int
		want string
	}{
		{"done", nil, t.Context(), exitDone, ""},
		{"failed", errors.New("no luck"), t.Context(), exitFailed, "fathom try: no luck\n"},
		{"with a hint", withHint(errors.New("no luck"), "Try again."), t.Context(), exitFailed, "fathom try: no luck\nTry again.\n"},
		{"told already", errQuiet, t.Context(), exitFailed, ""},
		{"nobody reads", fmt.Errorf("write: %w", syscall.EPIPE), t.Context(), exitFailed, ""},
		{"usage", usagef("want %d", 7), t.Context(), exitUsage, "fathom try: want 7\nSee 'fathom try --help'.\n"},
		{"interrupted", context.Canceled, interrupted, exitFailed, "fathom try: interrupted\n"},
		{"another's code", &exitError{42}, t.Context(), 42, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			saved := commands
			t.Cleanup(func() { commands = saved })
			commands = slices.Clone(commands)
			commands[0].new = func(*app) *cobra.Command {
				return &cobra.Command{Use: "try", RunE: func(*cobra.Command, []string) error { return tt.err }}
			}
			app := newTestApp(nil)
			if code := app.fathom(tt.ctx, "try"); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if app.err.String() != tt.want {
				t.Errorf("standard error %q, want %q", &app.err, tt.want)
			}
		})
	}
}

func TestBadEnvironmentNamesTheVariable(t *testing.T) {
	app := newTestApp(nil)
	app.env["FATHOM_COUNT"] = "many"
	if code := app.fathom(t.Context(), "probe", "h"); code != exitUsage {
		t.Errorf("exit code %d, want %d", code, exitUsage)
	}
	if want := `environment variable FATHOM_COUNT="many": want a whole number`; !strings.Contains(app.err.String(), want) {
		t.Errorf("no %q in %q", want, &app.err)
	}
	// The option wins, and its variable is not even looked at.
	app = newTestApp(&fakeProber{rule: replyAfter(0)})
	app.env["FATHOM_COUNT"] = "many"
	if code := app.fathom(t.Context(), "probe", "--count=1", "10.0.0.1"); code != exitDone {
		t.Errorf("exit code %d, want %d: %s", code, exitDone, &app.err)
	}
}

func TestDurations(t *testing.T) {
	for in, want := range map[string]string{
		"0.2": "200ms", "1": "1s", "0": "0s", "250ms": "250ms", "1m30s": "1m30s", "1e-3": "1ms",
		"-1": "", "-1s": "", "soon": "", "": "", "NaN": "", "Inf": "", "1e300": "",
	} {
		got, err := parseDuration(in)
		if want == "" {
			if err == nil {
				t.Errorf("parseDuration(%q) = %v, want an error", in, got)
			}
		} else if err != nil || got.String() != want {
			t.Errorf("parseDuration(%q) = %v, %v; want %s", in, got, err, want)
		}
	}
}

// Help that nobody got is a failure, though cobra does not look.
func TestHelpTellsOfAFailedWrite(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"help", "probe"}, {"probe", "--help"}, {"--version"}} {
		app := newTestApp(nil)
		app.stdout = failingWriter{}
		if code := app.fathom(t.Context(), args...); code != exitFailed || !strings.HasSuffix(app.err.String(), ": no space left\n") {
			t.Errorf("%q: exit code %d, standard error %q", args, code, &app.err)
		}
	}
}
