// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestLabScripts runs the scripts of testdata/lab, which take labs up and down.
func TestLabScripts(t *testing.T) { runLabScripts(t, "testdata/lab") }

// runLabScripts runs the scripts of a directory, each with labs of its own, and with copies of some files.
func runLabScripts(t *testing.T, dir string, files ...string) {
	if os.Getuid() != 0 {
		if err := exec.Command("unshare", "--user", "--net", "--pid", "--fork", "true").Run(); err != nil {
			t.Skipf("namespaces are not allowed here: %v", err)
		}
	}
	testscript.Run(t, testscript.Params{
		Dir:           dir,
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			for _, name := range files {
				data, err := os.ReadFile(name)
				if err == nil {
					err = os.WriteFile(filepath.Join(env.WorkDir, filepath.Base(name)), data, 0o644)
				}
				if err != nil {
					return err
				}
			}
			dir, err := os.MkdirTemp("", "lab") //nolint:usetesting // the path of a socket is short
			if err != nil {
				return err
			}
			env.Setenv("FATHOM_LAB_DIR", dir)
			env.Defer(func() {
				down := exec.Command("fathom", "lab", "down", "--all")
				down.Env = append(os.Environ(), "FATHOM_LAB_DIR="+dir)
				if out, err := down.CombinedOutput(); err != nil {
					t.Errorf("down: %v\n%s", err, out)
				}
				os.RemoveAll(dir)
			})
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": checkStatus, "until": untilMatch, "capture": capture},
	})
}

// untilMatch is the script command "until REGEXP COMMAND...": it repeats a command until its output matches.
func untilMatch(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until regexp command...")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_ = ts.Exec(args[1], args[2:]...) // it may fail at first
		if pattern.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s: no output matches %q", strings.Join(args[1:], " "), args[0])
		}
	}
}

// capture is the script command "capture NAME REGEXP": the first group of the regular expression in the last
// command's output becomes a variable.
func capture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: capture name regexp")
	}
	pattern, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	match := pattern.FindStringSubmatch(ts.ReadFile("stdout"))
	if len(match) < 2 {
		ts.Fatalf("no output matches %q", args[1])
	}
	ts.Setenv(args[0], match[1])
}
