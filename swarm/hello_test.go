// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"bytes"
	"crypto/ed25519"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

func sampleHello() hello {
	return hello{
		binding: member.ByKey, forwards: true, private: true, observed: netip.MustParseAddrPort("203.0.113.5:4001"),
		contact: member.Contact{
			ID: HashOf("x"), Dialect: member.Native, Leaf: true, Key: make(ed25519.PublicKey, 32),
			Addrs: []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::1]:49610")},
		},
	}
}

var helloOptions = cmp.Options{
	cmp.AllowUnexported(hello{}, header{}), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
}

func TestHello(t *testing.T) {
	t.Parallel()
	for _, want := range []hello{sampleHello(), {contact: member.Contact{ID: HashOf("bare"), Dialect: member.Native}}} {
		b := appendHello(nil, want)
		got, err := decodeHello(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, helloOptions); diff != "" {
			t.Error(diff)
		}
		for n := range b {
			if _, err := decodeHello(b[:n]); err == nil {
				t.Errorf("%d bytes of %d pass", n, len(b))
			}
		}
	}
	b := appendHello(nil, sampleHello())
	b[0]++
	if _, err := decodeHello(b); err == nil {
		t.Error("another version passes")
	}
}

func TestHeader(t *testing.T) {
	t.Parallel()
	for _, want := range []header{
		{kind: headerService, service: "echo"},
		{kind: headerCircuit, to: HashOf("x")},
		{kind: headerMet, from: sampleHello().contact},
	} {
		got, err := decodeHeader(appendHeader(nil, want))
		if diff := cmp.Diff(want, got, helloOptions); err != nil || diff != "" {
			t.Error(err, diff)
		}
	}
	for _, b := range [][]byte{nil, {0}, {9, 1}, {headerCircuit, 1}, {headerMet}, append([]byte{headerService}, make([]byte, maxService+1)...)} {
		if _, err := decodeHeader(b); err == nil {
			t.Errorf("%x passes", b)
		}
	}
}

func FuzzHello(f *testing.F) {
	f.Add(appendHello(nil, sampleHello()))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHello(b)
		if err != nil {
			return
		}
		again, err := decodeHello(appendHello(nil, h))
		if diff := cmp.Diff(h, again, helloOptions); err != nil || diff != "" {
			t.Error(err, diff)
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add(appendHeader(nil, header{kind: headerService, service: "echo"}))
	f.Add(appendHeader(nil, header{kind: headerMet, from: sampleHello().contact}))
	f.Add([]byte{headerCircuit})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHeader(b)
		if err == nil && !bytes.Equal(appendHeader(nil, h), b) {
			t.Errorf("%x comes back as %x", b, appendHeader(nil, h))
		}
	})
}

func FuzzEnvelope(f *testing.F) {
	f.Add([]byte{envelopePlain, 1})
	f.Add(append([]byte{envelopeCopy}, make([]byte, 20)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		tag, copied, data, err := decodeEnvelope(b)
		if err != nil {
			return
		}
		again := []byte{envelopePlain}
		if copied {
			again = append([]byte{envelopeCopy}, tag[:]...)
		}
		if !bytes.Equal(append(again, data...), b) {
			t.Errorf("%x: tag %x, data %x", b, tag, data)
		}
	})
}

func TestCopies(t *testing.T) {
	t.Parallel()
	var c copies
	a, b := HashOf("a"), HashOf("b")
	tag := wire.Tag{1}
	for i, step := range []struct {
		from Hash
		tag  wire.Tag
		data string
		want copyState
	}{
		{a, tag, "x", copyNew},
		{a, tag, "x", copyRepeated},
		{a, tag, "y", copyDiffers},
		{b, tag, "x", copyNew},
		{a, wire.Tag{2}, "x", copyNew},
	} {
		if got := c.see(step.from, step.tag, []byte(step.data)); got != step.want {
			t.Errorf("step %d: %d, want %d", i, got, step.want)
		}
	}
	c.forget(a, tag)
	if got := c.see(a, tag, []byte("y")); got != copyNew {
		t.Errorf("after forgetting: %d", got)
	}
	for i := range copiesMax + 10 {
		c.see(a, wire.Tag{9, byte(i), byte(i >> 8), byte(i >> 16)}, nil)
	}
	if len(c.seen) > copiesMax || len(c.order) > copiesMax {
		t.Errorf("%d remembered, of at most %d", len(c.seen), copiesMax)
	}
}
