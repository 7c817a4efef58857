// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
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

// TestProgramMemoryPause: what is in use is not given back time and again, what comes back besides is at once.
func TestProgramMemoryPause(t *testing.T) {
	memory, err := FindProgramMemory()
	if err != nil {
		t.Fatal(err)
	}
	release := func() (gave bool) {
		t.Helper()
		if err := memory.Release(); err != nil {
			t.Fatal(err)
		}
		return memory.calls == 0
	}
	if !release() {
		t.Error("the first call gives nothing back")
	}
	gave := 0
	for range 200 {
		if release() {
			gave++
		}
	}
	if gave == 0 || gave > 40 { // 7, and some for what the test itself touches
		t.Errorf("of 200 calls, %d give something back, want a few", gave)
	}
	for memory.calls == 0 || !memory.settled {
		release()
	}
	touched, err := unix.Mmap(-1, 0, 2*fewFaults*os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err == nil {
		defer unix.Munmap(touched)
		err = unix.Madvise(touched, unix.MADV_NOHUGEPAGE) // a fault for each page
	}
	if err != nil {
		t.Fatal(err)
	}
	for i := range touched {
		touched[i] = 1
	}
	if !release() {
		t.Errorf("nothing is given back after %d pages were touched", len(touched)/os.Getpagesize())
	}
}
