// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"testing"
)

// TestDemoLab holds that the lab that the demo shows is the one that users can start themselves.
func TestDemoLab(t *testing.T) {
	example, err := os.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(anycastFile, example) {
		t.Errorf("demo/anycast.toml is not %s: copy it", exampleFile)
	}
}

// TestAnycastScripts runs the scripts of testdata/anycast, in the lab of the example.
func TestAnycastScripts(t *testing.T) {
	if testing.Short() {
		t.Skip("a fleet of processes takes some seconds")
	}
	runLabScripts(t, "testdata/anycast", exampleFile)
}
