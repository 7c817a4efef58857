// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/seed5728abee/fathom/probe"
)

// enterLab moves the test program into namespaces if insideLab asks for that, where there are any.
var enterLab = func() {}

func TestMain(m *testing.M) {
	enterLab()
	testscript.Main(m, map[string]func(){"fathom": main, "snowsignal": main})
}

// TestScripts runs the program as a user does, by the scripts in testdata/script.
// UPDATE_SCRIPTS=1 accepts new output.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Condition: func(cond string) (bool, error) {
			if cond != "sockets" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			p, err := probe.New(probe.Options{})
			if err != nil {
				return false, nil
			}
			defer p.Close()
			f := p.Features()
			return f.Supports(probe.ICMP, 4), nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": checkStatus, "usage": checkUsage},
	})
}

// checkStatus is the script command "status CODE COMMAND...": the command must end with that code.
func checkStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status code command...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%s: exit code %d, want %d", strings.Join(args[1:], " "), got, want)
	}
}

// checkUsage is the script command "usage REGEXP COMMAND...": the command must say in one line, which matches, what is wrong
// with it, and where to read more, and end with the exit code for that.
func checkUsage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: usage regexp command...")
	}
	want, err := regexp.Compile(args[0])
	ts.Check(err)
	checkStatus(ts, false, append([]string{strconv.Itoa(exitUsage)}, args[1:]...))
	if out := ts.ReadFile("stdout"); out != "" {
		ts.Fatalf("standard output has %q", out)
	}
	first, rest, _ := strings.Cut(ts.ReadFile("stderr"), "\n")
	if !want.MatchString(first) {
		ts.Fatalf("said %q, want what matches %q", first, want)
	}
	if !regexp.MustCompile("^See '[a-z ]+ --help'\\.\n$").MatchString(rest) {
		ts.Fatalf("said more: %q", rest)
	}
}

// testApp is an app in a box: streams in memory, no environment, a few names that resolve, and
// whatever prober a test puts in.
type testApp struct {
	*app
	out, err bytes.Buffer
	env      map[string]string
}

func newTestApp(p prober) *testApp {
	ta := &testApp{env: make(map[string]string)}
	ta.app = &app{
		stdin: strings.NewReader(""), stdout: &ta.out, stderr: &ta.err,
		lookupEnv: func(name string) (string, bool) { v, ok := ta.env[name]; return v, ok },
		newProber: func(probe.Options, uint32) (prober, error) { return p, nil },
		resolve: func(_ context.Context, host string, version int) (netip.Addr, error) {
			if host == "router.example" {
				host = "10.0.0.1"
			}
			addr, err := netip.ParseAddr(host)
			if err != nil {
				return netip.Addr{}, &probe.ResolveError{Host: host, Version: version, Err: errors.New("no such host")}
			}
			return addr, nil
		},
		log: slog.New(slog.DiscardHandler),
	}
	return ta
}

// fathom runs a command line and gives the exit code.
func (ta *testApp) fathom(ctx context.Context, args ...string) int {
	return ta.run(ctx, append([]string{"fathom"}, args...))
}
