// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ProgramMemory is where the program's own file is in memory: its code, and its constants.
type ProgramMemory struct {
	regions [][2]uintptr // from, to
	settled bool         // a call has come since it was given back: what is in use has come back
	faults  int64        // of the process, at that call
	pause   int          // calls between the last two times that it was given back
	calls   int          // since the last
}

const (
	// fewFaults bring back so little that it can stay: a page cache maps some 64 kB around each.
	fewFaults = 32
	// maxPause is how many calls a process is left alone that brings nothing back: it may have had more in use
	// when the last came. At one per second the cost of giving back is too small to be seen then.
	maxPause = 64
)

// FindProgramMemory looks for it. What it finds holds for as long as the program runs.
func FindProgramMemory() (m ProgramMemory, err error) {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return m, fmt.Errorf("find the program's memory: %w", err)
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return m, fmt.Errorf("find the program's memory: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// address perms offset dev inode pathname, proc_pid_maps(5)
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || !strings.HasPrefix(fields[1], "r-") || strings.Join(fields[5:], " ") != program {
			continue
		}
		var r [2]uintptr
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &r[0], &r[1]); err != nil {
			return m, fmt.Errorf("find the program's memory: %q: %w", fields[0], err)
		}
		m.regions = append(m.regions, r)
	}
	return m, lines.Err()
}

// Release gives the memory back. What is still needed comes back by itself, from the page cache, a few pages at a time: a
// large program that starts once, and then does one thing for months, occupies a fraction of its size. It costs some hundred
// microseconds, and as many for what comes back; nothing when, since then, hardly anything else has, but for a
// look more and more rarely. Call it every second or so.
//
// It touches only what is mapped from the file and cannot be written to, so that nothing is lost.
func (m *ProgramMemory) Release() error {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		return fmt.Errorf("release the program's memory: %w", err)
	}
	if m.calls++; m.pause > 0 {
		if !m.settled {
			m.settled, m.faults = true, usage.Minflt
			return nil
		}
		if usage.Minflt-m.faults >= fewFaults {
			m.pause = 1
		} else if m.calls <= m.pause {
			return nil
		}
	}
	for _, r := range m.regions {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, r[0], r[1]-r[0], unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("release the program's memory: %w", errno)
		}
	}
	m.pause = min(max(1, 2*m.pause), maxPause)
	m.calls, m.settled = 0, false
	return nil
}
