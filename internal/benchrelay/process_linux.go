// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

var errProc = errors.New("unexpected content")

// cpuOf is the processor time of the process or thread with a directory in /proc, in steps of 10 ms.
func cpuOf(dir string) (time.Duration, error) {
	name := dir + "/stat"
	data, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may have anything in it; user and system time are fields 14 and 15.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("%s: %w", name, errProc)
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}

// memory is what a process has resident, in bytes.
type memory struct {
	all       int64
	anonymous int64
	file      int64 // pages of its files, which all processes that run the program share
}

func (m memory) String() string {
	return fmt.Sprintf("%.1f MB (anonymous %.1f, file %.1f)", float64(m.all)/1e6, float64(m.anonymous)/1e6, float64(m.file)/1e6)
}

// memoryOf reads what a process has resident now.
func memoryOf(pid int) (m memory, err error) {
	name := fmt.Sprintf("/proc/%d/status", pid)
	data, err := os.ReadFile(name)
	if err != nil {
		return m, err
	}
	fields := map[string]*int64{"VmRSS": &m.all, "RssAnon": &m.anonymous, "RssFile": &m.file}
	found := 0
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(line, ":")
		to := fields[key]
		if to == nil {
			continue
		}
		found++
		n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
		if err != nil {
			return m, fmt.Errorf("%s: %w", name, err)
		}
		*to = n << 10
	}
	if found != len(fields) {
		return m, fmt.Errorf("%s: %w", name, errProc)
	}
	return m, nil
}
