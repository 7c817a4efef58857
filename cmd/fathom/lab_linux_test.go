// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestLabScripts runs the scripts of testdata/lab, which take labs up and down.
func TestLabScripts(t *testing.T) {
	if os.Getuid() != 0 {
		if err := exec.Command("unshare", "--user", "--net", "--pid", "--fork", "true").Run(); err != nil {
			t.Skipf("namespaces are not allowed here: %v", err)
		}
	}
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/lab",
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			dir, err := os.MkdirTemp("", "lab") // the path of a socket is short
			if err != nil {
				return err
			}
			env.Setenv("FATHOM_LAB_DIR", dir)
			env.Defer(func() {
				down := exec.Command("fathom", "lab", "down", "--all")
				down.Env = append(os.Environ(), "FATHOM_LAB_DIR="+dir)
				if out, err := down.CombinedOutput(); err != nil {
					t.Errorf("down: %v\n%s", err, out)
				}
				os.RemoveAll(dir)
			})
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": checkStatus},
	})
}
