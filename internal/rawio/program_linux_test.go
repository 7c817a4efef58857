// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// programPages is how many kilobytes of files are in this process's memory.
func programPages(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "RssFile:"); ok {
			n, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no RssFile in /proc/self/status")
	return 0
}

func TestProgramMemory(t *testing.T) {
	memory, err := FindProgramMemory()
	if err != nil || len(memory.regions) == 0 {
		t.Fatalf("found %d regions, %v", len(memory.regions), err)
	}
	before := programPages(t)
	if err := memory.Release(); err != nil {
		t.Fatal(err)
	}
	// Looking at it brings some of it back.
	if after := programPages(t); after >= before {
		t.Errorf("%d kB of files in memory, and %d kB after they were given back", before, after)
	}
}
