// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"testing"
)

func TestRelayDemoIsTheExample(t *testing.T) {
	const name = "../../examples/relay.toml"
	example, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(relayFile, example) {
		t.Errorf("demo/relay.toml is not %s: copy it", name)
	}
}
