// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"errors"
	"strings"
	"testing"
)

func FuzzParse(f *testing.F) {
	f.Add([]byte(file))
	f.Add([]byte(`{"trusted_hosts": []}`))
	f.Add([]byte(strings.ReplaceAll(file, ": ", ":1")))
	f.Fuzz(func(t *testing.T, text []byte) {
		table, err := Parse(text)
		if err != nil {
			if table != nil || !errors.Is(err, ErrFile) {
				t.Fatalf("%v, %v", table, err)
			}
			return
		}
		for _, h := range table.byID {
			if h.inbound == "" || h.outbound == "" {
				t.Fatal("a host without keys")
			}
		}
	})
}

// FuzzOpen gives what comes in to a member that trusts its sender, and to one that does not. Without the key nothing
// gets through to the first.
func FuzzOpen(f *testing.F) {
	for _, body := range vectors(f) {
		f.Add(body)
	}
	f.Add([]byte("hello"))
	f.Add([]byte(marker))
	a, b := two(f)
	f.Add(a.seal(f, b, "hello"))
	stranger := newSide(f, 9)
	f.Fuzz(func(t *testing.T, body []byte) {
		if payload, _, err := a.table.Open(a.id, b.id, b.addr, body); err == nil {
			t.Fatalf("delivered %q", payload)
		}
		payload, sealed, err := stranger.table.Open(stranger.id, b.id, b.addr, body)
		if marked := strings.HasPrefix(string(body), marker); sealed || marked != errors.Is(err, ErrNotListed) || !marked && string(payload) != string(body) {
			t.Fatalf("%q, %t, %v", payload, sealed, err)
		}
	})
}
