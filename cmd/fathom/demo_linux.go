// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/seed5728abee/fathom/lab"
)

// chapters are the demo's parts in their order. To add one, write a function that builds a
// lab from a file, measures in it, and calls demo.check with what was found beside what the
// file says; and add it here.
var chapters = []chapter{
	{"paths", "Probes and paths, measured through a network that we know", pathsChapter},
	{"anycast", "One address at three sites: who reaches which, and what moves when one goes", anycastChapter},
	{"relay", "A search that is cried on one segment is heard on all", relayChapter},
	{"swarm", "Peers that find each other through NATs", swarmChapter},
}

// chapter is a part of the demo.
type chapter struct {
	name, title string
	run         func(context.Context, *demo) error
}

// demoTime is how long the whole demo may take.
const demoTime = 30 * time.Second

func newDemoCommand(a *app) *cobra.Command {
	var asJSON bool
	names := make([]string, len(chapters))
	var list strings.Builder
	for i, c := range chapters {
		names[i] = c.name
		fmt.Fprintf(&list, "  %-10s %s\n", c.name, c.title)
	}
	cmd := &cobra.Command{
		Use:   "demo [CHAPTER...]",
		Short: "See it all at work, in a lab, without root",
		Long: `Build a network with known properties on this machine, measure it, and show
what was found beside what is true. Root is not needed, the network of this
machine is not touched, and nothing is left behind.

Chapters (all of them unless named):
` + list.String() + `
The exit code is 0 only if everything that was found agrees with the truth.`,
		Example: `  fathom demo
  fathom demo paths --json`,
		ValidArgs: names,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, arg := range args {
				if !slices.Contains(names, arg) {
					return usagef("there is no chapter %q; there is %s", arg, strings.Join(names, ", "))
				}
			}
			if err := lab.Enter(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), demoTime, fmt.Errorf("the demo took more than %v", demoTime))
			defer cancel()
			return runDemo(ctx, a, args, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line: each check, then the summary")
	return cmd
}

// demo is a run.
type demo struct {
	out      io.Writer
	json     *json.Encoder // nil without --json
	chapter  string
	checks   int
	disagree int
}

// demoCheck is a line of --json output.
type demoCheck struct {
	Type    string `json:"type"` // "check"
	Chapter string `json:"chapter"`
	What    string `json:"what"`
	Found   string `json:"found"`
	True    string `json:"true"`
	Agrees  bool   `json:"agrees"`
}

// demoSummary is the last line of --json output.
type demoSummary struct {
	Type      string  `json:"type"` // "summary"
	Checks    int     `json:"checks"`
	Disagree  int     `json:"disagree"`
	DurationS float64 `json:"duration_s"`
}

func runDemo(ctx context.Context, a *app, only []string, asJSON bool) error {
	d := &demo{out: a.stdout}
	if asJSON {
		d.out, d.json = io.Discard, json.NewEncoder(a.stdout)
		d.json.SetEscapeHTML(false)
	}
	start := time.Now()
	for _, c := range chapters {
		if len(only) > 0 && !slices.Contains(only, c.name) {
			continue
		}
		d.chapter = c.name
		fmt.Fprintf(d.out, "%s\n%s\n\n", c.title, strings.Repeat("=", len(c.title)))
		if err := c.run(ctx, d); err != nil {
			if cause := context.Cause(ctx); cause != nil && errors.Is(err, ctx.Err()) {
				err = cause
			}
			return fmt.Errorf("chapter %s: %w", c.name, err)
		}
	}
	took := time.Since(start)
	if d.json != nil {
		if err := d.json.Encode(demoSummary{"summary", d.checks, d.disagree, took.Seconds()}); err != nil {
			return err
		}
	}
	fmt.Fprintf(d.out, "%d of %d findings agree with the truth, in %.1f s.\n", d.checks-d.disagree, d.checks, took.Seconds())
	if d.disagree > 0 {
		return fmt.Errorf("%d of %d findings disagree with the truth", d.disagree, d.checks)
	}
	return nil
}

// say prints text for eyes.
func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

// picture shows the comment at the head of a lab file, up to a line that begins with end; all of it if that is empty.
func (d *demo) picture(file []byte, end string) {
	for line := range strings.Lines(string(file)) {
		if !strings.HasPrefix(line, "#") || end != "" && strings.HasPrefix(line, end) {
			break
		}
		d.say("%s", strings.TrimRight(strings.TrimPrefix(line, "#"), "\n"))
	}
}

// heading begins a table of checks.
func (d *demo) heading(what string) {
	d.say("%-33s%-41s%s", what, "found", "the lab file says")
}

// check prints what was found beside what is true.
func (d *demo) check(what, found, truth string, agrees bool) {
	d.checks++
	verdict := "ok"
	if !agrees {
		d.disagree++
		verdict = "WRONG"
	}
	if d.json != nil {
		// A failure to write shows at the summary.
		_ = d.json.Encode(demoCheck{"check", d.chapter, what, found, truth, agrees})
	}
	d.say("  %-31s%-41s%-39s%s", what, found, truth, verdict)
}
