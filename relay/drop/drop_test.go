// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package drop_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/seed5728abee/fathom/relay/drop"
)

func TestReasonsHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range append(drop.Reasons(), drop.None) {
		if r.String() == "" || seen[r.String()] {
			t.Errorf("reason %d is called %q, want a name of its own", uint8(r), r)
		}
		if r.Meaning() == "" {
			t.Errorf("nobody says what %q means", r)
		}
		if found, ok := drop.Find(r.String()); !ok || found != r {
			t.Errorf("reason %q is not found by its name, but %v, %t", r, found, ok)
		}
		seen[r.String()] = true
	}
	if _, ok := drop.Find("because"); ok {
		t.Error("found a reason that does not exist")
	}
	if got := drop.Reason(250).Meaning(); got != "" {
		t.Errorf("unknown reason means %q", got)
	}
	if got := drop.Reason(250).String(); got != "Reason(250)" {
		t.Errorf("unknown reason is called %q", got)
	}
}

func TestReasonIsAnError(t *testing.T) {
	var err error
	if n := testing.AllocsPerRun(100, func() { err = drop.BadChecksum }); n != 0 {
		t.Errorf("a reason as an error takes %v allocations", n)
	}
	if err = fmt.Errorf("frame 3: %w", err); !errors.Is(err, drop.BadChecksum) || errors.Is(err, drop.Copy) {
		t.Errorf("cannot branch on %v", err)
	}
}

func ExampleCounters() {
	var c drop.Counters
	c.Add(drop.Port, 2)
	c.Add(drop.Copy, 1)
	fmt.Println(c.Map())
	// Output: map[copy:1 port:2]
}
