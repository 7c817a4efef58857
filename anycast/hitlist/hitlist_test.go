// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package hitlist_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/hitlist"
)

func ExampleRead() {
	list, err := hitlist.Read(strings.NewReader("# resolvers\n192.0.2.53\n198.51.100.0/22\nwww.example.com\n"), 1000)
	fmt.Println(list.Addrs, list.Text, err)
	// Output: [192.0.2.53] [198.51.100.0/22 www.example.com] <nil>
}

func ExampleReadWeights() {
	weights, err := hitlist.ReadWeights(strings.NewReader("192.0.2.53 100\n192.0.2.54 20\n198.51.100.0/22 1e3\n"))
	fmt.Println(weights, err)
	// Output: [{192.0.2.0/24 120} {198.51.100.0/22 1000}] <nil>
}

var compare = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func TestLines(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	for line, want := range map[string]hitlist.Entry{
		"":                              {},
		" \t\r":                         {},
		"# all of it":                   {},
		"#":                             {},
		"\t# 192.0.2.1":                 {},
		"192.0.2.1":                     {Addr: addr("192.0.2.1")},
		"192.0.2.1\r":                   {Addr: addr("192.0.2.1")},
		"  192.0.2.1 # a comment":       {Addr: addr("192.0.2.1")},
		"192.0.2.1 rest of # the line":  {Addr: addr("192.0.2.1"), Rest: "rest of"},
		"192.0.2.1,12.5,x\r":            {Addr: addr("192.0.2.1"), Rest: "12.5,x"},
		"192.0.2.1;  12.5":              {Addr: addr("192.0.2.1"), Rest: "12.5"},
		"192.0.2.1\tnot#acomment":       {Addr: addr("192.0.2.1"), Rest: "not#acomment"},
		"::ffff:192.0.2.1":              {Addr: addr("192.0.2.1")},
		"2001:DB8::1":                   {Addr: addr("2001:db8::1")},
		"192.0.2.77/24":                 {Prefix: prefix("192.0.2.0/24")},
		"::ffff:192.0.2.77/120":         {Prefix: prefix("192.0.2.0/24")},
		"0.0.0.0/0":                     {Prefix: prefix("0.0.0.0/0")},
		"2001:db8::/32":                 {Prefix: prefix("2001:db8::/32")},
		"www.example.com":               {Name: "www.example.com"},
		"www.example.com.":              {Name: "www.example.com."},
		"_dns.3com.example":             {Name: "_dns.3com.example"},
		"localhost":                     {Name: "localhost"},
		strings.Repeat("a", 63) + ".b":  {Name: strings.Repeat("a", 63) + ".b"},
		"xn--bcher-kva.example 7 # IDN": {Name: "xn--bcher-kva.example", Rest: "7"},
	} {
		got, err := hitlist.ParseLine([]byte(line))
		if diff := cmp.Diff(want, got, compare); diff != "" || err != nil {
			t.Errorf("%q: %v, -want +got:\n%s", line, err, diff)
		}
	}
	for _, line := range []string{
		"192.0.2", "192.0.2.256", "1.2.3.4.5", "192.0.2.1/33", "192.0.2.0/", "/24", "2001:db8::/129", "2001:db8::1%eth0", "fe80::1%1",
		"a..b", ".", "-a.example", "a-.example", "büche.example", "a b/24 c/", "192.0.2.1:53", "[2001:db8::1]", "www example/",
		strings.Repeat("a", 64) + ".example", strings.Repeat("a.", 127) + "ab", "12", "x\x00y", "http://www.example.com/",
	} {
		got, err := hitlist.ParseLine([]byte(line))
		if line == "a b/24 c/" || line == "www example/" { // only the first word counts
			if err != nil {
				t.Errorf("%q: %v", line, err)
			}
			continue
		}
		if !errors.Is(err, hitlist.ErrSyntax) || got != (hitlist.Entry{}) {
			t.Errorf("%q: got %+v, %v; want ErrSyntax", line, got, err)
		}
	}
}

func TestRead(t *testing.T) {
	text := "\xef\xbb\xbf# a list\r\n192.0.2.2\r\n\r\nexample.com 7\r\n2001:db8::1\n192.0.2.0/23,1\n192.0.2.2"
	want := hitlist.List{
		Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.2")},
		Text:  []string{"example.com", "192.0.2.0/23"},
	}
	for _, limit := range []int{0, 5} {
		got, err := hitlist.Read(iotest.OneByteReader(strings.NewReader(text)), limit)
		if diff := cmp.Diff(want, got, compare); diff != "" || err != nil {
			t.Errorf("%v, -want +got:\n%s", err, diff)
		}
	}
	if _, err := hitlist.Read(strings.NewReader(text), 4); !errors.Is(err, hitlist.ErrTooLarge) || !strings.Contains(err.Error(), "line 7") {
		t.Errorf("5 targets where 4 are allowed: %v, want ErrTooLarge in line 7", err)
	}
}

func TestErrorsNameTheLine(t *testing.T) {
	long := strings.Repeat("a", hitlist.MaxLine)
	for text, where := range map[string]string{
		"192.0.2.1\n\n# x\n192.0.2.300\n": "line 4:",
		"192.0.2.1\n" + "#" + long + "\n": "line 2:",
		long + long + long:                "line 1:",
	} {
		_, err := hitlist.Read(strings.NewReader(text), 0)
		if !errors.Is(err, hitlist.ErrSyntax) || !strings.HasPrefix(err.Error(), where) {
			t.Errorf("%.20q: %v, want ErrSyntax, %s", text, err, where)
		}
	}
	for _, end := range []string{"", "\n", "\r\n"} { // as long as allowed
		if _, err := hitlist.Read(strings.NewReader("#"+long[1:]+end), 0); err != nil {
			t.Errorf("a line of %d bytes: %v", hitlist.MaxLine, err)
		}
	}
	_, err := hitlist.Read(iotest.TimeoutReader(iotest.HalfReader(strings.NewReader(strings.Repeat("192.0.2.1\n", 1000)))), 0)
	if !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("got %v, want what the reader said", err)
	}
}

func TestEntriesEndEarly(t *testing.T) {
	n := 0
	for range hitlist.Entries(strings.NewReader("192.0.2.1\n192.0.2.2\nnot/one\n")) {
		if n++; n == 2 {
			break
		}
	}
	if n != 2 {
		t.Errorf("got %d entries", n)
	}
}

func TestReadPrefixes(t *testing.T) {
	got, err := hitlist.ReadPrefixes(strings.NewReader("192.0.2.7\n198.51.100.9/22\n2001:db8::1\n"))
	if want := "[192.0.2.7/32 198.51.100.0/22 2001:db8::1/128]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("got %v, %v, want %s", got, err, want)
	}
	if _, err := hitlist.ReadPrefixes(strings.NewReader("\nexample.com\n")); !errors.Is(err, hitlist.ErrSyntax) || !strings.HasPrefix(err.Error(), "line 2:") {
		t.Errorf("a name: %v, want ErrSyntax", err)
	}
}

func TestReadWeights(t *testing.T) {
	prefix := netip.MustParsePrefix
	got, err := hitlist.ReadWeights(strings.NewReader("192.0.2.0/24,10\n192.0.2.200 2.5 resolver\n2001:db8:1:2::3;4\n198.51.100.0/22\n2001:db8:1::/48 0\n"))
	want := []anycast.Weight{{Network: prefix("192.0.2.0/24"), Queries: 12.5}, {Network: prefix("2001:db8:1::/48"), Queries: 4}, {Network: prefix("198.51.100.0/22"), Queries: 1}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for _, text := range []string{"192.0.2.1 -1", "192.0.2.1 NaN", "192.0.2.1 Inf", "192.0.2.1 1e400", "192.0.2.1 many", "example.com 1", "192.0.2.1 1e308\n192.0.2.1 1e308"} {
		if got, err := hitlist.ReadWeights(strings.NewReader(text)); !errors.Is(err, hitlist.ErrSyntax) {
			t.Errorf("%q: %v, %v; want ErrSyntax", text, got, err)
		}
	}
}

func FuzzParseLine(f *testing.F) {
	list, err := os.ReadFile("testdata/example.txt")
	if err != nil {
		f.Fatal(err)
	}
	for line := range strings.Lines(string(list)) {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := hitlist.ParseLine(line)
		if err != nil || e == (hitlist.Entry{}) {
			if err != nil && (!errors.Is(err, hitlist.ErrSyntax) || e != (hitlist.Entry{})) {
				t.Fatalf("%+v, %v", e, err)
			}
			return
		}
		set := 0
		for _, is := range []bool{e.Addr.IsValid(), e.Prefix.IsValid(), e.Name != ""} {
			if is {
				set++
			}
		}
		if set != 1 {
			t.Fatalf("%d of address, prefix and name are set: %+v", set, e)
		}
		// What is printed reads as the same again.
		again, err := hitlist.ParseLine([]byte(e.String() + " " + e.Rest))
		if err != nil || again != e {
			t.Fatalf("%+v becomes %+v, %v", e, again, err)
		}
	})
}

func FuzzRead(f *testing.F) {
	list, err := os.ReadFile("testdata/example.txt")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(list))
	f.Fuzz(func(t *testing.T, text string) {
		l, err := hitlist.Read(strings.NewReader(text), 0)
		weights, weightErr := hitlist.ReadWeights(strings.NewReader(text))
		if err != nil && weightErr == nil {
			t.Fatalf("weights %v of a list that is wrong: %v", weights, err)
		}
		if n := strings.Count(text, "\n") + 1; len(l.Addrs)+len(l.Text) > n || len(weights) > n {
			t.Fatalf("%d lines give %v, %v", n, l, weights)
		}
		for _, w := range weights {
			if !(w.Queries >= 0) || w.Network != w.Network.Masked() {
				t.Fatalf("got %v", w)
			}
		}
	})
}

func BenchmarkRead(b *testing.B) {
	var text strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&text, "11.%d.%d.1 %d\n", i>>8&255, i&255, i)
	}
	b.SetBytes(int64(text.Len()))
	b.ReportAllocs()
	for b.Loop() {
		if l, err := hitlist.Read(strings.NewReader(text.String()), 0); err != nil || len(l.Addrs) != 100_000 {
			b.Fatal(len(l.Addrs), err)
		}
	}
}
