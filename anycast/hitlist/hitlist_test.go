// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package hitlist_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/hitlist"
)

func TestRead(t *testing.T) {
	l, err := hitlist.Read(strings.NewReader("\ufeff# targets\r\n198.51.100.1\r\n\r\n  2001:db8::1 # here\n::ffff:192.0.2.9\nwww.example.com\n198.51.100.0/22\n_a-b.example.\n"))
	if err != nil {
		t.Fatal(err)
	}
	addrs := []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.9")}
	text := []string{"www.example.com", "198.51.100.0/22", "_a-b.example."}
	if !slices.Equal(l.Addrs, addrs) || !slices.Equal(l.Text, text) {
		t.Errorf("got %v and %q, want %v and %q", l.Addrs, l.Text, addrs, text)
	}
}

func TestReadNetworks(t *testing.T) {
	got, err := hitlist.ReadNetworks(strings.NewReader("198.51.100.7/24\n192.0.2.1\n2001:db8::/32\n"))
	want := []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::/32")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

func TestReadWeights(t *testing.T) {
	got, err := hitlist.ReadWeights(strings.NewReader("198.51.100.0/24 17\n192.0.2.1,2.5e3\n"))
	want := []anycast.Weight{{Network: netip.MustParsePrefix("198.51.100.0/24"), Queries: 17}, {Network: netip.MustParsePrefix("192.0.2.1/32"), Queries: 2500}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

func TestRefused(t *testing.T) {
	list := func(s string) error { _, err := hitlist.Read(strings.NewReader(s)); return err }
	networks := func(s string) error { _, err := hitlist.ReadNetworks(strings.NewReader(s)); return err }
	weights := func(s string) error { _, err := hitlist.ReadWeights(strings.NewReader(s)); return err }
	for _, test := range []struct {
		read func(string) error
		text string
		line int
		says string
	}{
		{list, "198.51.100.1\n198.51.100.300\n", 2, `"198.51.100.300"`},
		{list, "a b\n", 1, "one"},
		{list, "\n\n1.2.3.4/33\n", 3, "prefix"},
		{list, "12345\n", 1, "no address"},
		{list, "fe80::1%eth0\n", 1, "zone"},
		{list, "-a.example\n", 1, "no address"},
		{list, "a..b\n", 1, "no address"},
		{list, strings.Repeat("a.", 600) + "\n", 1, "longer"},
		{networks, "example.com\n", 1, "network"},
		{networks, "192.0.2.1 192.0.2.2\n", 1, "one"},
		{weights, "192.0.2.0/24\n", 1, "number"},
		{weights, "192.0.2.0/24 -1\n", 1, "-1"},
		{weights, "192.0.2.0/24 NaN\n", 1, "NaN"},
		{weights, "192.0.2.0/24 +Inf\n", 1, "Inf"},
	} {
		err := test.read(test.text)
		var e *hitlist.LineError
		if !errors.As(err, &e) || !errors.Is(err, hitlist.ErrLine) || e.Line != test.line || !strings.Contains(e.Reason, test.says) {
			t.Errorf("%.40q: got %v, want line %d and %q", test.text, err, test.line, test.says)
		}
	}
	if _, err := hitlist.Read(iotest.ErrReader(errors.ErrUnsupported)); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v, want the reader's error", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("198.51.100.1\nwww.example.com # x\n198.51.100.0/24 3\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := hitlist.Read(bytes.NewReader(data))
		if err == nil {
			// What was read can be read again.
			var again bytes.Buffer
			for _, a := range l.Addrs {
				fmt.Fprintln(&again, a)
			}
			for _, s := range l.Text {
				fmt.Fprintln(&again, s)
			}
			m, err := hitlist.Read(&again)
			if err != nil || !slices.Equal(l.Addrs, m.Addrs) || !slices.Equal(l.Text, m.Text) {
				t.Errorf("got %v, %v the second time, want %v", m, err, l)
			}
		}
		_, _ = hitlist.ReadNetworks(bytes.NewReader(data))
		_, _ = hitlist.ReadWeights(bytes.NewReader(data))
	})
}

func ExampleRead() {
	l, err := hitlist.Read(strings.NewReader(`
198.51.100.1
www.example.com   # by name
203.0.113.0/24    # one address of it
`))
	fmt.Println(l.Addrs, l.Text, err)
	// Output: [198.51.100.1] [www.example.com 203.0.113.0/24] <nil>
}
