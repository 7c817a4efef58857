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
	dir     string // temporary
	program string // fathom
	origin  string // command to measure beside it
	key     string // file of the mesh's key
	rounds  int
	seconds time.Duration
	verbose bool
	figures figures.Table
}

func main() {
	if err := lab.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, "benchrelay:", err)
		os.Exit(1)
	}
	b := &bench{}
	flag.IntVar(&b.rounds, "rounds", 3, "how often the candidates take turns")
	flag.DurationVar(&b.seconds, "seconds", time.Second, "how long each rate is tried; other times grow with it")
	flag.StringVar(&b.program, "program", "", "the fathom program; built from ./cmd/fathom unless given")
	flag.StringVar(&b.origin, "origin", "", "shell command of another relay, to measure beside ours")
	flag.StringVar(&b.key, "key", "", "file of the keys for the sealed mesh; made unless given")
	flag.BoolVar(&b.verbose, "v", false, "show what the relays log, and each rate that is tried")
	only := flag.String("only", "", "regular expression: run only the sections whose names match")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.run(ctx, regexp.MustCompile(*only)); err != nil {
		fmt.Fprintln(os.Stderr, "benchrelay:", err)
		os.Exit(1)
	}
	met := b.figures.Print(os.Stdout)
	if b.origin == "" {
		fmt.Println("note: -origin was not given: no comparison with another relay")
	}
	if !met {
		os.Exit(1)
	}
}

func (b *bench) run(ctx context.Context, only *regexp.Regexp) (err error) {
	if b.dir, err = os.MkdirTemp("", "fathom-bench"); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(b.dir) }() // it is a temporary directory
	if b.program == "" {
		if b.program, err = figures.BuildFathom(ctx, b.dir); err != nil {
			return err
		}
	}
	return figures.RunSections(ctx, only,
		figures.Section{Name: "ingress", Run: b.ingress},
		figures.Section{Name: "egress", Run: b.egress},
		figures.Section{Name: "through", Run: b.through},
		figures.Section{Name: "latency", Run: b.latency},
		figures.Section{Name: "exact", Run: b.exact},
		figures.Section{Name: "burst", Run: b.burst},
		figures.Section{Name: "memory", Run: b.memory},
		figures.Section{Name: "cost", Run: b.cost},
	)
}

// logf shows what is being tried, to those who asked.
func (b *bench) logf(format string, args ...any) {
	if b.verbose {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	}
}
