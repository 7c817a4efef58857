// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Table is the figures of a run, in the order measured. The zero Table is empty.
type Table struct{ rows []row }

type row struct {
	section, name string
	value         string
	goal          string
	met           bool
	judged        bool
}

// Add records a figure without a goal.
func (t *Table) Add(section, name, value string) {
	t.rows = append(t.rows, row{section: section, name: name, value: value})
}

// Judge records a figure and whether it meets its goal.
func (t *Table) Judge(section, name, value, goal string, met bool) {
	t.rows = append(t.rows, row{section, name, value, goal, met, true})
}

// Print writes the day, the machine and the table, and tells whether all goals are met.
func (t *Table) Print(out io.Writer) bool {
	fmt.Fprintf(out, "%s, %d processors, %s, Linux %s\n\n", time.Now().UTC().Format("2006-01-02"), runtime.NumCPU(), runtime.Version(), release())
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "section\tfigure\tvalue\tgoal\t")
	ok := true
	for _, r := range t.rows {
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
	return ok
}

// JSON writes the day, the machine and the table as one JSON object, and tells whether all goals are met.
func (t *Table) JSON(out io.Writer) (ok bool, err error) {
	type figure struct {
		Section string `json:"section"`
		Figure  string `json:"figure"`
		Value   string `json:"value"`
		Goal    string `json:"goal,omitempty"`
		Met     *bool  `json:"met,omitempty"`
	}
	run := struct {
		Date       string   `json:"date"`
		Processors int      `json:"processors"`
		Go         string   `json:"go"`
		Linux      string   `json:"linux"`
		Figures    []figure `json:"figures"`
	}{time.Now().UTC().Format("2006-01-02"), runtime.NumCPU(), runtime.Version(), release(), nil}
	ok = true
	for _, r := range t.rows {
		f := figure{Section: r.section, Figure: r.name, Value: r.value, Goal: r.goal}
		if r.judged {
			f.Met = new(r.met)
			ok = ok && r.met
		}
		run.Figures = append(run.Figures, f)
	}
	return ok, json.NewEncoder(out).Encode(run)
}

func release() string {
	data, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "of unknown release"
	}
	return strings.TrimSpace(string(data))
}

// Median is the element in the middle, of which there must be one.
func Median[T cmp.Ordered](v []T) T { return Quantile(v, 0.5) }

// Quantile gives the element below which a share of the others is, of which there must be one.
func Quantile[T cmp.Ordered](v []T, share float64) T {
	s := slices.Sorted(slices.Values(v))
	return s[min(int(share*float64(len(s))), len(s)-1)]
}
