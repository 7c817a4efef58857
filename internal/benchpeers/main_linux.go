// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/seed5728abee/fathom/internal/figures"
	"github.com/seed5728abee/fathom/lab"
)

// topology has the pair that rates are measured on, and the chain that traces are.
// "silent" is a network behind b, which does not forward: probes to it vanish.
func topology() *lab.Topology {
	var t strings.Builder
	t.WriteString("name = \"bench\"\n[host.a]\n[host.b]\n[host.c]\n[host.d]\n[[wire]]\nends = [\"a\", \"b\"]\n")
	last := "c"
	for i := 1; i < 20; i++ {
		name := fmt.Sprintf("r%d", i)
		fmt.Fprintf(&t, "[router.%s]\n", name)
		last, name = name, last
		fmt.Fprintf(&t, "[[wire]]\nends = [%q, %q]\n", name, last)
	}
	fmt.Fprintf(&t, "[[wire]]\nends = [%q, \"d\"]\n", last)
	return lab.MustParse(t.String())
}

// bench is one run.
type bench struct {
	lab     *lab.Lab
	self    string // this program, to be run on a host
	ours    string // our mtr-packet
	debian  string // Debian's mtr-packet, empty if not installed
	fping   string
	rounds  int
	seconds time.Duration
	only    *regexp.Regexp
	figures figures.Table
	missing []string
}

// row is a figure with its goal.
func main() {
	if len(os.Args) > 1 && os.Args[1] == "role" {
		if err := role(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "benchpeers:", err)
			os.Exit(1)
		}
		return
	}
	if err := lab.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, "benchpeers:", err)
		os.Exit(1)
	}
	b := &bench{}
	flag.IntVar(&b.rounds, "rounds", 5, "how often the candidates take turns")
	flag.DurationVar(&b.seconds, "seconds", time.Second, "how long each turn lasts")
	only := flag.String("only", "", "regular expression: run only the sections whose names match")
	flag.Parse()
	b.only = regexp.MustCompile(*only)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "benchpeers:", err)
		os.Exit(1)
	}
	if !b.report() {
		os.Exit(1)
	}
}

func (b *bench) run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "fathom-bench")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // it is a temporary directory
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	b.ours = filepath.Join(dir, "mtr-packet")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", b.ours, "./cmd/mtr-packet")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build mtr-packet (run this from the top of the repository): %w\n%s", err, out)
	}
	b.debian = b.find("mtr-packet", "mtr-tiny", "/usr/bin/mtr-packet", "/usr/sbin/mtr-packet")
	b.fping = b.find("fping", "fping", "/usr/bin/fping")
	if b.lab, err = lab.Start(ctx, topology(), lab.Options{}); err != nil {
		return err
	}
	defer b.lab.Close()
	if err := b.prepare(); err != nil {
		return err
	}
	return figures.RunSections(ctx, b.only,
		figures.Section{Name: "icmp", Run: b.rates},
		figures.Section{Name: "protocols", Run: b.protocols},
		figures.Section{Name: "frames", Run: b.frames},
		figures.Section{Name: "mtr-packet", Run: b.textProtocol},
		figures.Section{Name: "accuracy", Run: b.accuracy},
		figures.Section{Name: "many", Run: b.many},
		figures.Section{Name: "trace", Run: b.traces},
	)
}

func (b *bench) find(program, pkg string, places ...string) string {
	for _, p := range places {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	if p, err := exec.LookPath(program); err == nil {
		return p
	}
	b.missing = append(b.missing, fmt.Sprintf("%s (package %s) is not installed: no comparison with it", program, pkg))
	return ""
}

func (b *bench) report() bool {
	ok := b.figures.Print(os.Stdout)
	for _, m := range b.missing {
		fmt.Println("note:", m)
	}
	return ok
}

// ratios divides pair by pair and gives the median.
func ratios(a, b []float64) float64 {
	r := make([]float64, len(a))
	for i := range a {
		r[i] = a[i] / b[i]
	}
	return figures.Median(r)
}
