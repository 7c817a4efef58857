// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"slices"
	"testing"
)

func TestExtensions(t *testing.T) {
	for name, labels := range map[string][]Label{"extension-1label": label1, "extension-3labels": labels3} {
		b := vector(t, name)
		e, err := ParseExtensions(b)
		if err != nil {
			t.Fatal(err)
		}
		if got := e.AppendLabels([]Label{{}}); !slices.Equal(got, append([]Label{{}}, labels...)) {
			t.Errorf("%s: got %v", name, got)
		}
		equalBytes(t, name, must(t)(AppendMPLS([]byte("before"), labels)), append([]byte("before"), b...))
		stack := must(t)(AppendLabelStack(nil, labels))
		equalBytes(t, name, must(t)(AppendExtensions(nil, ExtensionObject{Class: ExtensionMPLS, Type: 1, Payload: stack})), b)
	}
}

func TestExtensionObjects(t *testing.T) {
	stack := must(t)(AppendLabelStack(nil, label1))
	objects := []ExtensionObject{
		{Class: ExtensionInterface, Type: 0x0a, Payload: []byte{0, 0, 0, 3, 'e', 't', 'h'}}, // not a multiple of 4
		{Class: ExtensionMPLS, Type: 2, Payload: []byte{1, 2, 3, 4}},                        // not an incoming stack
		{Class: ExtensionMPLS, Type: 1, Payload: append(stack, 1, 2)},                       // and half a label
		{Class: ExtensionMPLS, Type: 1, Payload: stack},
		{Class: 255, Type: 255},
	}
	e, err := ParseExtensions(must(t)(AppendExtensions(nil, objects...)))
	if err != nil {
		t.Fatal(err)
	}
	i := 0
	for o := range e.All() {
		if o.Class != objects[i].Class || o.Type != objects[i].Type || !slices.Equal(o.Payload, objects[i].Payload) {
			t.Errorf("object %d: got %v, want %v", i, o, objects[i])
		}
		i++
	}
	if i != len(objects) {
		t.Errorf("%d objects, want %d", i, len(objects))
	}
	if got := e.AppendLabels(nil); !slices.Equal(got, label1) {
		t.Errorf("labels: got %v, want %v", got, label1)
	}
	for o := range e.All() {
		if o.Class != ExtensionInterface {
			t.Error("went on after break")
		}
		break
	}
	// Views that no Parse function made end early instead of panicking.
	for n := range len(e) {
		for range e[:n].All() {
		}
	}
	for range (Extensions{0x20, 0, 0, 0, 0, 0, 0, 0}).All() {
		t.Error("an object of length 0")
	}
}

func TestExtensionErrors(t *testing.T) {
	for _, tc := range []struct {
		b    []byte
		want error
	}{
		{nil, ErrTruncated},
		{[]byte{0x20, 0, 0}, ErrTruncated},
		{[]byte{0x30, 0, 0, 0}, ErrVersion},
		{[]byte{0x20, 0, 0, 1}, ErrChecksum},
		{[]byte{0x20, 0, 0, 0, 0, 4, 1}, ErrTruncated},
		{[]byte{0x20, 0, 0, 0, 0, 3, 1, 1}, ErrMalformed},
		{[]byte{0x20, 0, 0, 0, 0, 5, 1, 1}, ErrMalformed},
	} {
		if _, err := ParseExtensions(tc.b); !errors.Is(err, tc.want) {
			t.Errorf("%x: got %v, want %v", tc.b, err, tc.want)
		}
	}
	for _, l := range []Label{{Label: 1 << 20}, {TC: 8}} {
		if b, err := AppendMPLS([]byte("x"), []Label{{}, l}); !errors.Is(err, ErrMalformed) || string(b) != "x" {
			t.Errorf("%+v: %x, %v", l, b, err)
		}
	}
	if b, err := AppendMPLS([]byte("x"), make([]Label, 16383)); !errors.Is(err, ErrTooLong) || string(b) != "x" {
		t.Errorf("16383 labels: %v", err)
	}
	if b, err := AppendExtensions([]byte("x"), ExtensionObject{Payload: make([]byte, 65532)}); !errors.Is(err, ErrTooLong) || string(b) != "x" {
		t.Errorf("65532 bytes: %v", err)
	}
}

// A structure whose sum comes out as zero must not look as if it had no checksum.
func TestExtensionZeroChecksum(t *testing.T) {
	b := must(t)(AppendExtensions(nil, ExtensionObject{Class: 9, Payload: []byte{0, 0}}))
	sum := [2]byte{b[2], b[3]} // as data it makes the sum of all words ffff
	b = must(t)(AppendExtensions(nil, ExtensionObject{Class: 9, Payload: sum[:]}))
	if b[2] != 0xff || b[3] != 0xff {
		t.Fatalf("got %x", b)
	}
	if _, err := ParseExtensions(b); err != nil {
		t.Error(err)
	}
}
