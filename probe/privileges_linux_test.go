// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// dropVariable makes the test program drop its privileges and start itself again, or show what it has.
const dropVariable = "FATHOM_TEST_DROP"

func dropAndRun() int {
	if err := DropPrivileges(false); err != nil {
		fmt.Println(err)
		return 1
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), dropVariable+"=show")
	cmd.Stdout = os.Stdout
	if err := cmd.Run(); err != nil {
		fmt.Println(err)
		return 1
	}
	return showPrivileges()
}

// showPrivileges prints what each thread has.
func showPrivileges() int {
	threads, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(threads) == 0 {
		fmt.Println("no threads", err)
		return 1
	}
	for _, name := range threads {
		status, err := os.ReadFile(name)
		if errors.Is(err, syscall.ESRCH) || errors.Is(err, os.ErrNotExist) {
			continue // the thread has ended
		} else if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Printf("%s\n", status)
	}
	return 0
}

// dropInChild runs a process that drops its privileges, and starts another one.
func dropInChild(t *testing.T, cloneFlags uintptr) (string, error) {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // it takes milliseconds, or for ever
	defer cancel()
	cmd := exec.CommandContext(ctx, program)
	cmd.Env = append(os.Environ(), dropVariable+"=drop")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: cloneFlags}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestDropForGood: root would get everything back with the next program that it starts.
func TestDropForGood(t *testing.T) {
	out, err := dropInChild(t, 0)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wantNothing(t, out)
}

// TestDropBesideForeignProc: the first process of a PID namespace, to which /proc shows that of its parent. Its threads
// have other numbers there, and its own number is another process's.
func TestDropBesideForeignProc(t *testing.T) {
	out, err := dropInChild(t, syscall.CLONE_NEWPID)
	if threadsFromProc {
		if err == nil || !strings.Contains(out, "mount it, or build with CGO_ENABLED=0") {
			t.Errorf("it does not say what to do: %v\n%s", err, out)
		}
		return
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wantNothing(t, out)
}

// wantNothing looks at what showPrivileges printed, in two processes.
func wantNothing(t *testing.T, out string) {
	t.Helper()
	found := regexp.MustCompile(`(?m)^Cap(?:Prm|Eff|Inh|Amb):\t(\w+)$`).FindAllStringSubmatch(out, -1)
	if len(found) < 4*4 { // programs in Go have two threads at least
		t.Fatalf("%d sets of capabilities of the threads of two processes\n%s", len(found), out)
	}
	for i, m := range found {
		if m[1] != "0000000000000000" {
			t.Errorf("thread %d has %s", i/4, m[0])
		}
	}
}
