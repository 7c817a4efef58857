// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

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
	rows    []row
	missing []string
}

// row is a figure with its goal.
type row struct {
	section, name string
	value         string
	goal          string
	met           bool
	judged        bool
}

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
	for _, s := range []struct {
		name string
		f    func(context.Context) error
	}{
		{"icmp", b.rates},
		{"protocols", b.protocols},
		{"frames", b.frames},
		{"mtr-packet", b.textProtocol},
		{"accuracy", b.accuracy},
		{"many", b.many},
		{"trace", b.traces},
	} {
		if !b.only.MatchString(s.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s …\n", s.name)
		if err := s.f(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
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

// add records a figure without a goal.
func (b *bench) add(section, name, value string) {
	b.rows = append(b.rows, row{section: section, name: name, value: value})
}

// judge records a figure and whether it meets its goal.
func (b *bench) judge(section, name, value, goal string, met bool) {
	b.rows = append(b.rows, row{section, name, value, goal, met, true})
}

func (b *bench) report() bool {
	fmt.Printf("%s, %d processors, %s, Linux %s\n\n", time.Now().UTC().Format("2006-01-02"), runtime.NumCPU(), runtime.Version(), release())
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "section\tfigure\tvalue\tgoal\t")
	ok := true
	for _, r := range b.rows {
		verdict := ""
		if r.judged && r.met {
			verdict = "met"
		} else if r.judged {
			verdict = "MISSED"
			ok = false
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.section, r.name, r.value, r.goal, verdict)
	}
	_ = w.Flush() // to standard output
	for _, m := range b.missing {
		fmt.Println("note:", m)
	}
	return ok
}

func release() string {
	data, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "of unknown release"
	}
	return strings.TrimSpace(string(data))
}

func median[T cmp.Ordered](v []T) T {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

// ratios divides pair by pair and gives the median.
func ratios(a, b []float64) float64 {
	r := make([]float64, len(a))
	for i := range a {
		r[i] = a[i] / b[i]
	}
	return median(r)
}
