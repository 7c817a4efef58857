// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	_ "embed"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
)

//go:embed testdata/vectors.txt
var vectorText string

// vectors maps the names in testdata/vectors.txt to bytes.
var vectors = func() map[string][]byte {
	m := map[string][]byte{}
	for line := range strings.Lines(vectorText) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, digits, _ := strings.Cut(line, " ")
		b, err := hex.DecodeString(digits)
		if err != nil || m[name] != nil {
			panic("testdata/vectors.txt: " + name)
		}
		m[name] = b
	}
	return m
}()

// vector returns a copy of the named vector.
func vector(t testing.TB, name string) []byte {
	t.Helper()
	b, ok := vectors[name]
	if !ok {
		t.Fatalf("no vector %q", name)
	}
	return bytes.Clone(b)
}

func equalBytes(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s:\n got %x\nwant %x", what, got, want)
	}
}

var (
	src4 = netip.MustParseAddr("10.88.1.2")
	dst4 = netip.MustParseAddr("10.88.3.2")
	src6 = netip.MustParseAddr("fd88:1::2")
	dst6 = netip.MustParseAddr("fd88:3::2")
	far4 = netip.MustParseAddr("203.0.113.10")
)

// must is for encoders whose arguments are right.
func must(t testing.TB) func(b []byte, err error) []byte {
	return func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}
