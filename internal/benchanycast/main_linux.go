// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"github.com/seed5728abee/fathom/internal/figures"
	"github.com/seed5728abee/fathom/lab"
)

// bench is one run.
type bench struct {
	self       string // this program, to be run on a host
	dir        string // temporary
	program    string // fathom
	controller string // commands in place of it
	agent      string
	kernel     bool
	rounds     int
	seconds    time.Duration
	targets    int
	verbose    bool
	sendEth    bool // agents send frames
	gather     time.Duration
	figures    figures.Table
}

// row is a figure with its goal.
func main() {
	if len(os.Args) > 1 && os.Args[1] == "role" {
		if err := role(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "benchanycast:", err)
			os.Exit(1)
		}
		return
	}
	if err := lab.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, "benchanycast:", err)
		os.Exit(1)
	}
	b := &bench{}
	flag.IntVar(&b.rounds, "rounds", 5, "how often the numbers of requests at once take turns")
	flag.DurationVar(&b.seconds, "seconds", 4*time.Second, "how long each turn lasts")
	flag.IntVar(&b.targets, "targets", 1_000_000, "how many targets the catchment has")
	flag.StringVar(&b.program, "program", "", "the fathom program; built from ./cmd/fathom unless given")
	flag.StringVar(&b.controller, "controller", "", "shell command to measure in place of our controller")
	flag.StringVar(&b.agent, "agent", "", "shell command to measure in place of our agents")
	flag.BoolVar(&b.kernel, "kernel", false, "a path of 19 routers of the kernel, in place of one that stands for them")
	flag.DurationVar(&b.gather, "gather", 100*time.Microsecond, "how long the lab's routers let frames gather, as network cards do; 0 moves each at once")
	flag.BoolVar(&b.verbose, "v", false, "show what the fleet logs, and the first answer that is wrong")
	only := flag.String("only", "", "regular expression: run only the sections whose names match")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.run(ctx, regexp.MustCompile(*only)); err != nil {
		fmt.Fprintln(os.Stderr, "benchanycast:", err)
		os.Exit(1)
	}
	if !b.figures.Print(os.Stdout) {
		os.Exit(1)
	}
}

func (b *bench) run(ctx context.Context, only *regexp.Regexp) (err error) {
	if b.dir, err = os.MkdirTemp("", "fathom-bench"); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(b.dir) }() // it is a temporary directory
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.program == "" {
		if b.program, err = figures.BuildFathom(ctx, b.dir); err != nil {
			return err
		}
	}
	return figures.RunSections(ctx, only,
		figures.Section{Name: "requests", Run: b.requests},
		figures.Section{Name: "frames", Run: b.frames},
		figures.Section{Name: "queue", Run: b.queue},
		figures.Section{Name: "agent", Run: b.alone},
		figures.Section{Name: "burst", Run: b.burst},
		figures.Section{Name: "catchment", Run: b.catchment},
	)
}
