// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"errors"
	"testing"

	"github.com/seed5728abee/fathom/swarm/member"
)

// FuzzDecode holds that what Decode takes has exactly one encoding, and that what it refuses is said to be malformed.
func FuzzDecode(f *testing.F) {
	for _, s := range samples() {
		f.Add(Append(nil, s.m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			if m != nil || !errors.Is(err, ErrMessage) {
				t.Fatalf("%#v, %v", m, err)
			}
			return
		}
		if again := Append(nil, m); !bytes.Equal(again, b) {
			t.Fatalf("%#v\nis  %x\nwas %x", m, again, b)
		}
	})
}

func FuzzDecodeContact(f *testing.F) {
	for _, c := range append(contacts(1, 4), leaf(), member.Contact{}) {
		f.Add(AppendContact(nil, c))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeContact(b)
		if err != nil {
			if !errors.Is(err, ErrMessage) {
				t.Fatal(err)
			}
			return
		}
		if again := AppendContact(nil, c); !bytes.Equal(again, b) {
			t.Fatalf("%#v\nis  %x\nwas %x", c, again, b)
		}
		if d, err := DecodeContact(b); err != nil || !c.Equal(d) {
			t.Fatalf("read twice: %v, then %v, %v", c, d, err)
		}
	})
}
