// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"testing"
)

func TestSwarmDemoIsTheExample(t *testing.T) {
	const name = "../../examples/swarm.toml"
	example, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(swarmFile, example) {
		t.Errorf("demo/swarm.toml is not %s: copy it", name)
	}
}
