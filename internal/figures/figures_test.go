// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package figures_test

import (
	"strings"
	"testing"

	"github.com/seed5728abee/fathom/internal/figures"
)

func TestTable(t *testing.T) {
	var table figures.Table
	var out strings.Builder
	table.Add("a", "rate", "7/s")
	table.Judge("a", "ratio", "2.0", "≥ 1.5", true)
	if !table.Print(&out) {
		t.Errorf("all goals are met, but:\n%s", out.String())
	}
	out.Reset()
	table.Judge("b", "time", "9 ms", "≤ 5 ms", false)
	if table.Print(&out) {
		t.Error("all goals are said to be met")
	}
	want := []string{"section figure value goal", "a rate 7/s", "a ratio 2.0 ≥ 1.5 met", "b time 9 ms ≤ 5 ms MISSED"}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for i, line := range lines[max(0, len(lines)-len(want)):] {
		if got := strings.Join(strings.Fields(line), " "); got != want[i] {
			t.Errorf("line %d: got %q, want %q", i, got, want[i])
		}
	}
}

func TestTableAsJSON(t *testing.T) {
	var table figures.Table
	table.Add("a", "rate", "7/s")
	table.Judge("b", "time", "9 ms", "≤ 5 ms", false)
	var out strings.Builder
	if ok, err := table.JSON(&out); ok || err != nil {
		t.Errorf("a missed goal is met: %v, %v", ok, err)
	}
	want := `"figures":[{"section":"a","figure":"rate","value":"7/s"},` +
		`{"section":"b","figure":"time","value":"9 ms","goal":"≤ 5 ms","met":false}]}`
	if !strings.HasSuffix(strings.TrimSpace(out.String()), want) {
		t.Errorf("got %s", out.String())
	}
}

func TestQuantile(t *testing.T) {
	v := []int{5, 1, 4, 2, 3}
	for share, want := range map[float64]int{0: 1, 0.5: 3, 0.95: 5, 1: 5} {
		if got := figures.Quantile(v, share); got != want {
			t.Errorf("%v: got %d, want %d", share, got, want)
		}
	}
	if got := figures.Median([]int{4, 1}); got != 4 {
		t.Errorf("got %d, want the upper of two", got)
	}
}
