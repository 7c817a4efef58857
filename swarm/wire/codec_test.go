// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/seed5728abee/fathom/swarm/member"
)

var update = flag.Bool("update", false, "write testdata/vectors.txt anew")

const vectorsFile = "testdata/vectors.txt"

// short is the longest encoding that goes into the file in full.
const short = 1000

// same compares messages; whether an empty list is nil says nothing.
func same(a, b Message) string {
	if reflect.DeepEqual(a, b) {
		return "" // most are, and cmp is slow
	}
	return cmp.Diff(a, b, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }))
}

// TestSamplesCoverKinds makes whoever adds a message add it to the samples, and so to every test.
func TestSamplesCoverKinds(t *testing.T) {
	seen, names := map[Kind]bool{}, map[string]bool{}
	for _, s := range samples() {
		if names[s.name] {
			t.Errorf("two samples are called %q", s.name)
		}
		seen[s.m.Kind()], names[s.name] = true, true
	}
	for k, m := range prototypes {
		if m != nil && !seen[Kind(k)] {
			t.Errorf("no sample of %T", m)
		}
		if named := kindNames[Kind(k)] != ""; named != (m != nil) {
			t.Errorf("kind %d: has a name: %t, has a message: %t", k, named, m != nil)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for _, s := range samples() {
		prefix := []byte("before")
		b := Append(prefix, s.m)
		if !bytes.HasPrefix(b, prefix) {
			t.Fatalf("%s: Append changed what was there", s.name)
		}
		b = b[len(prefix):]
		m, err := Decode(b)
		if err != nil {
			t.Errorf("%s: %v\n%x", s.name, err, b)
			continue
		}
		if d := same(s.m, m); d != "" {
			t.Errorf("%s (-sent +received):\n%s", s.name, d)
		}
		if again := Append(nil, m); !bytes.Equal(again, b) {
			t.Errorf("%s: encoded again\ngot  %x\nwant %x", s.name, again, b)
		}
	}
}

// TestTruncated holds that no message is a prefix of another, and that nothing may follow one.
func TestTruncated(t *testing.T) {
	for _, s := range samples() {
		b := Append(nil, s.m)
		for n := range b {
			if m, err := Decode(b[:n:n]); err == nil {
				t.Fatalf("%s: the first %d bytes of %d are %#v", s.name, n, len(b), m)
			} else if !errors.Is(err, ErrMessage) {
				t.Fatalf("%s: the first %d bytes: %v", s.name, n, err)
			}
		}
		if m, err := Decode(append(b, 0)); !errors.Is(err, ErrMessage) {
			t.Errorf("%s with a byte more: %#v, %v", s.name, m, err)
		}
	}
}

// TestVectors holds that the format stays as it is.
func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	want := vectors(t)
	for _, s := range samples() {
		got := Append(nil, s.m)
		if len(got) > short {
			continue
		}
		if !bytes.Equal(got, want[s.name]) {
			t.Errorf("%s:\ngot  %x\nwant %x", s.name, got, want[s.name])
		}
		delete(want, s.name)
	}
	for name := range want {
		t.Errorf("%s has a vector of %q, but no sample is called so", vectorsFile, name)
	}
}

func writeVectors(t *testing.T) {
	t.Helper()
	var b strings.Builder
	b.WriteString("# Messages between members of a swarm: the name of a sample in samples_test.go, and its encoding.\n" +
		"# Written by go test ./swarm/wire -run TestVectors -update, when a message is added.\n")
	for _, s := range samples() {
		if data := Append(nil, s.m); len(data) <= short {
			fmt.Fprintf(&b, "%s: %x\n", s.name, data)
		}
	}
	if err := os.WriteFile(vectorsFile, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

func vectors(tb testing.TB) map[string][]byte {
	tb.Helper()
	f, err := os.Open(vectorsFile)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	all := make(map[string][]byte)
	for s := bufio.NewScanner(f); s.Scan(); {
		name, digits, ok := strings.Cut(s.Text(), ": ")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		if all[name], err = hex.DecodeString(digits); err != nil {
			tb.Fatal(err)
		}
	}
	return all
}

func TestRefused(t *testing.T) {
	id := strings.Repeat("00", 32)
	bare := id + "00" + "00" + "00"                      // unknown, no addresses, no hosts
	push := func(except, key, signature string) string { // without its payload
		return strings.Repeat("00", 16) + id + "00" + except + key + signature + id + "00"
	}
	addressed := func(addr string) string { return "06" + id + "00" + "01" + addr + "00" }
	for _, c := range []struct {
		name, hex, problem string
	}{
		{"nothing", "", "empty"},
		{"kind 0", "00", "unknown kind 0"},
		{"kind 255", "ff", "unknown kind 255"},
		{"ping with a body", "0200", "1 bytes too many"},
		{"number in a longer form", "08" + id + "8000", "malformed number"},
		{"number above 64 bits", "08" + id + "ffffffffffffffffff02", "malformed number"},
		{"number without end", "08" + id + "ffffffffffffffffffffff", "malformed number"},
		{"boolean 2", "0b" + "02" + "00" + "00", "boolean 2"},
		{"unknown contact flag", "06" + id + "10" + "00" + "00", "flags 0x10"},
		{"dialect 3", "06" + id + "03" + "00" + "00", "flags 0x3"},
		{"address of 5 bytes", addressed("05" + "0102030405" + "0001"), "malformed address"},
		{"address of 0 bytes", addressed("00" + "0001" + "0000000000"), "malformed address"},
		{"port 0", addressed("04" + "c0000201" + "0000"), "malformed address"},
		{"IPv4 in IPv6 form", addressed("10" + "00000000000000000000ffffc0000201" + "0001"), "malformed address"},
		{"nine addresses", "06" + id + "00" + "09" + strings.Repeat("04c00002010001", 9) + "00", "of at most 8"},
		{"five hosts", "06" + id + "04" + "00" + "05" + strings.Repeat(bare, 5), "of at most 4"},
		{"host with a host", "06" + id + "04" + "00" + "01" + id + "00" + "00" + "01" + bare, "of at most 0"},
		{"33 neighbours", "0d" + "21" + strings.Repeat(bare, 33), "of at most 32"},
		{"two leaves", "0b" + "01" + "02" + bare + bare + "00", "of at most 1"},
		{"65 IDs in a path", "09" + id + bare + "00" + "01" + "41" + strings.Repeat(id, 65), "of at most 64"},
		{"17 records", "11" + "11" + strings.Repeat("00", 17), "of at most 16"},
		{"record above the bound", "0e" + "8120" + strings.Repeat("00", MaxRecord+1), "of at most 4096"},
		{"513 tags", "14" + "8104" + strings.Repeat("00", 16*513), "of at most 512"},
		{"513 news", "22" + "8104" + strings.Repeat("00", 18*513), "of at most 512"},
		{"33 excepted", "12" + strings.Repeat("00", 16+32+1) + "21" + strings.Repeat(id, 33), "of at most 32"},
		{"key of 31 bytes", "12" + strings.Repeat("00", 16+32+2) + "1f" + strings.Repeat("00", 31+1+32+2), "key of 31 bytes"},
		{"many tags in few bytes", "14" + "8004" + strings.Repeat("00", 16), "512 items in 16 bytes"},
		{"as many items as there are numbers", "22" + "ffffffffffffffffff01", "items in 0 bytes"},
		{"nine candidates tried", "17" + "09" + strings.Repeat("00", 9), "of at most 8"},
		{"payload above the bound", "12" + push("00", "00", "00") + "81808008" + "00", "of at most 16777216"},
		{"key of 31 bytes", "12" + push("00", "1f"+strings.Repeat("00", 31), "00") + "00", "key of 31 bytes"},
		{"signature of 63 bytes", "12" + push("00", "00", "3f"+strings.Repeat("00", 63)) + "00", "signature of 63"},
		{"33 exceptions", "12" + push("21"+strings.Repeat(id, 33), "00", "00") + "00", "of at most 32"},
		{"reason above the bound", "1b" + "01" + "c901" + strings.Repeat("41", 201), "of at most 200"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := hex.DecodeString(c.hex)
			if err != nil {
				t.Fatal(err)
			}
			m, err := Decode(b)
			if m != nil || !errors.Is(err, ErrMessage) || !strings.Contains(fmt.Sprint(err), c.problem) {
				t.Errorf("got %#v, error %v, want one with %q", m, err, c.problem)
			}
			if unknown := strings.HasPrefix(c.name, "kind"); errors.Is(err, ErrKind) != unknown {
				t.Errorf("ErrKind: %v", err)
			}
		})
	}
}

// TestAppendHoldsBounds holds that a list that grew too long makes a message that can be read, with the first of it.
func TestAppendHoldsBounds(t *testing.T) {
	crowd := contacts(1, MaxNeighbours+1)
	much := leaf()
	much.Addrs = append(much.Addrs, contact(1).Addrs...)
	much.Hosts = append(much.Hosts, contact(1))
	nested := leaf()
	nested.Hosts[0].Leaf, nested.Hosts[0].Hosts = true, crowd[:1]
	plain := leaf()
	plain.Hosts[0].Leaf = true
	mapped := contact(1)
	mapped.Addrs = []netip.AddrPort{netip.MustParseAddrPort("[::ffff:192.0.2.1]:49610")}
	for _, c := range []struct{ sent, want Message }{
		{Neighbours{Self: much, Predecessors: crowd}, Neighbours{Self: leaf(), Predecessors: crowd[:MaxNeighbours]}},
		{Found{Leaf: crowd, Path: make([]member.ID, MaxPath+1)}, Found{Leaf: crowd[:1], Path: make([]member.ID, MaxPath)}},
		{Closest{Leaf: crowd, Contacts: crowd}, Closest{Leaf: crowd[:1], Contacts: crowd[:MaxNeighbours]}},
		{Records{make([][]byte, MaxRecords+1)}, Records{make([][]byte, MaxRecords)}},
		{Have{make([]News, MaxTags+1)}, Have{make([]News, MaxTags)}},
		{Want{tags(MaxTags + 1)}, Want{tags(MaxTags)}},
		{Push{Except: make([]member.ID, MaxExcept+1)}, Push{Except: make([]member.ID, MaxExcept)}},
		{Payloads{make([]Push, MaxTags+1)}, Payloads{make([]Push, MaxTags)}},
		{Tried{make([]bool, member.MaxAddrs+1)}, Tried{make([]bool, member.MaxAddrs)}},
		{Refused{Code: Invalid, Reason: strings.Repeat("a", maxReason+1)}, Refused{Code: Invalid, Reason: strings.Repeat("a", maxReason)}},
		{Notify{nested}, Notify{plain}},
		{Notify{mapped}, Notify{contact(1)}},
	} {
		got, err := Decode(Append(nil, c.sent))
		if err != nil {
			t.Errorf("%T: %v", c.sent, err)
		} else if d := same(c.want, got); d != "" {
			t.Errorf("%T (-want +got):\n%s", c.sent, d)
		}
	}
}

// TestDecodedIsOurs holds that a message outlives the buffer that it came in, but for payloads.
func TestDecodedIsOurs(t *testing.T) {
	for _, s := range samples() {
		switch s.m.(type) {
		case Push, Payloads:
			continue
		}
		b := Append(nil, s.m)
		m, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		clear(b)
		if d := same(s.m, m); d != "" {
			t.Errorf("%s changed with the buffer:\n%s", s.name, d)
		}
	}
	b := Append(nil, Push{Payload: []byte("hello")})
	m, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if p := m.(Push).Payload; &p[0] != &b[len(b)-5] || cap(p) != 5 {
		t.Error("the payload of a Push was copied, or reaches beyond its end")
	}
}

func TestAllocations(t *testing.T) {
	for _, c := range []struct {
		m         Message
		decode    float64 // the value in its interface, and the decoder
		allocated string
	}{
		{Lookup{Key: contact(1).ID, Hops: 3}, 2, "the message and the decoder"},
		{Push{Tag: Tag{1}, Limit: contact(1).ID, Payload: make([]byte, 1000)}, 2, "the message and the decoder"},
		{Ping{}, 1, "the decoder"},
	} {
		b := Append(nil, c.m)
		if got := testing.AllocsPerRun(100, func() {
			if _, err := Decode(b); err != nil {
				t.Error(err)
			}
		}); got > c.decode {
			t.Errorf("Decode of a %T: %v allocations, want %v: %s", c.m, got, c.decode, c.allocated)
		}
		if got := testing.AllocsPerRun(100, func() { b = Append(b[:0], c.m) }); got > 0 {
			t.Errorf("Append of a %T: %v allocations", c.m, got)
		}
	}
}

func TestStrings(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{KindLookup.String(), "lookup"},
		{Kind(99).String(), "Kind(99)"},
		{NotConnected.String(), "not connected"},
		{RefusalCode(0).String(), "RefusalCode(0)"},
		{RefusalCode(37).String(), "RefusalCode(37)"},
		{Tag{0xab, 15: 1}.String(), "ab000000000000000000000000000001"},
		{Refused{Code: Leaving, Reason: "bye\x1b[2J"}.Error(), `refused: leaving: "bye\x1b[2J"`},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, s := range samples() {
		switch s.name {
		case "lookup", "push", "neighbours, full", "found a leaf":
		default:
			continue
		}
		data := Append(nil, s.m)
		b.Run(strings.ReplaceAll(s.name, " ", "_"), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Decode(data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
