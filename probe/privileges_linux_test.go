// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"testing"
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

func showPrivileges() int {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Printf("%s\n", status)
	return 0
}

// TestDropForGood: root would get everything back with the next program that it starts.
func TestDropForGood(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Env = append(os.Environ(), dropVariable+"=drop")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	found := regexp.MustCompile(`(?m)^Cap(?:Prm|Eff|Inh|Amb):\t(\w+)$`).FindAllStringSubmatch(string(out), -1)
	if len(found) != 8 {
		t.Fatalf("%d sets of capabilities of two processes, want 8\n%s", len(found), out)
	}
	for i, m := range found {
		if m[1] != "0000000000000000" {
			t.Errorf("process %d has %s", i/4, m[0])
		}
	}
}
