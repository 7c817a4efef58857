// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"regexp"
	"runtime/debug"
	"testing"
	"testing/synctest"

	"github.com/seed5728abee/fathom/internal/figures"
)

// simulation is one run.
type simulation struct {
	seed    uint64
	figures figures.Table
}

func main() {
	s := &simulation{}
	flags := flag.NewFlagSet("simswarm", flag.ExitOnError)
	flags.Uint64Var(&s.seed, "seed", 1, "what places, keys and deaths are drawn from")
	asJSON := flags.Bool("json", false, "print the figures as JSON")
	only := flags.String("only", "", "regular expression: run only the sections whose names match")
	_ = flags.Parse(os.Args[1:]) // exits on an error
	// Simulated time comes from package testing, which takes its own options from the command line.
	testing.Init()
	_ = flag.CommandLine.Parse(nil) // there are none
	debug.SetGCPercent(400)         // memory is for time here
	if err := s.run(context.Background(), regexp.MustCompile(*only)); err != nil {
		fmt.Fprintln(os.Stderr, "simswarm:", err)
		os.Exit(1)
	}
	met := false
	if *asJSON {
		var err error
		if met, err = s.figures.JSON(os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "simswarm:", err)
			os.Exit(1)
		}
	} else {
		met = s.figures.Print(os.Stdout)
	}
	if !met {
		os.Exit(1)
	}
}

func (s *simulation) run(ctx context.Context, only *regexp.Regexp) error {
	var sections []figures.Section
	for _, size := range []int{32, 100, 1000, 10000} {
		sections = append(sections, figures.Section{
			Name: fmt.Sprintf("%d members", size), Run: func(ctx context.Context) error { return s.growth(ctx, size) },
		})
	}
	for _, end := range endings {
		sections = append(sections, figures.Section{
			Name: "churn of 32, " + end.name, Run: func(ctx context.Context) error { return s.churn(ctx, end) },
		})
	}
	sections = append(sections,
		figures.Section{Name: "split of 32", Run: func(ctx context.Context) error { return s.split(ctx, 32) }},
		figures.Section{Name: "split of 100", Run: func(ctx context.Context) error { return s.split(ctx, 100) }},
		figures.Section{Name: "hostile of 1000", Run: s.hostile},
	)
	return figures.RunSections(ctx, only, sections...)
}

// bubble runs f in simulated time, which only tests have: one that stands alone.
func bubble(ctx context.Context, f func(context.Context) error) (err error) {
	synctest.Test(new(testing.T), func(*testing.T) { err = f(ctx) })
	return err
}
