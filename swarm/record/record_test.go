// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

var update = flag.Bool("update", false, "write testdata/vectors.txt anew")

const vectorsFile = "testdata/vectors.txt"

// start is when the tests' records are issued.
var start = time.UnixMilli(1767225600000) // 2026-01-01T00:00:00Z

// identity n has the seed n, n, n, ...
func identity(tb testing.TB, n byte) *member.Identity {
	tb.Helper()
	// The head of a PKCS #8 Ed25519 key (RFC 8410); the seed is the rest.
	der := append([]byte{0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20}, bytes.Repeat([]byte{n}, 32)...)
	i, err := member.ParseIdentity(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		tb.Fatal(err)
	}
	return i
}

// contact n is that of identity n at 192.0.2.n.
func contact(tb testing.TB, n byte) member.Contact {
	tb.Helper()
	i, addr := identity(tb, n), netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, n}), 49610)
	return member.Contact{ID: i.ID(member.ByKey, addr), Dialect: member.Native, Key: i.Public(), Addrs: []netip.AddrPort{addr}}
}

// record is one of identity n that lives for an hour.
func record(tb testing.TB, n byte, name string, sequence uint64) Record {
	tb.Helper()
	return Record{Name: name, Contact: contact(tb, n), Sequence: sequence, Issued: start, Expires: start.Add(time.Hour)}
}

func sign(tb testing.TB, n byte, r Record) []byte {
	tb.Helper()
	b, err := Sign(r, identity(tb, n))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// seal signs whatever bytes stand where a record's should.
func seal(tb testing.TB, n byte, b []byte) []byte {
	tb.Helper()
	b = bytes.Clone(b)
	copy(b[1:], ed25519.Sign(identity(tb, n).Private(), signed(b)))
	return b
}

func TestRoundTrip(t *testing.T) {
	leaf := record(t, 1, "leaf", 7)
	leaf.Contact.Leaf, leaf.Contact.Hosts = true, []member.Contact{contact(t, 2), contact(t, 3), contact(t, 4), contact(t, 5)}
	for _, r := range []Record{
		record(t, 1, "printer", 1),
		record(t, 1, "Printer in the café", 1<<64-1),
		record(t, 1, strings.Repeat("名", MaxName/3), 1),
		leaf,
	} {
		b := sign(t, 1, r)
		got, err := Decode(b)
		if err != nil {
			t.Errorf("%s: %v", r.Name, err)
			continue
		}
		if d := cmp.Diff(r, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
			t.Errorf("%s (-signed +decoded):\n%s", r.Name, d)
		}
		for n := range b {
			if _, err := Decode(b[:n:n]); !errors.Is(err, ErrRecord) && !errors.Is(err, ErrSignature) {
				t.Fatalf("%s: the first %d bytes: %v", r.Name, n, err)
			}
			damaged := bytes.Clone(b)
			damaged[n] ^= 0x20
			if _, err := Decode(damaged); !errors.Is(err, ErrRecord) && !errors.Is(err, ErrSignature) {
				t.Fatalf("%s: byte %d changed: %v", r.Name, n, err)
			}
		}
	}
}

func TestSign(t *testing.T) {
	i := identity(t, 1)
	bare := contact(t, 1)
	bare.Key = nil
	before := time.Now().Truncate(time.Millisecond)
	b, err := Sign(Record{Name: "cafe\u0301", Contact: bare}, i)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Decode(b)
	if err != nil || r.Name != "caf\u00e9" || !i.Public().Equal(r.Contact.Key) || r.Issued.Before(before) ||
		r.Expires.Sub(r.Issued) != DefaultLife || r.Sequence < uint64(before.UnixNano()) {
		t.Errorf("%+v, %v", r, err)
	}
	for _, c := range []struct {
		name string
		r    Record
		want error
	}{
		{"another's contact", Record{Name: "n", Contact: contact(t, 2)}, ErrSignature},
		{"no name", Record{Contact: bare}, ErrName},
		{"too long a life", Record{Name: "n", Contact: bare, Issued: start, Expires: start.Add(MaxLife + time.Millisecond)}, ErrRecord},
		{"no life", Record{Name: "n", Contact: bare, Issued: start, Expires: start}, ErrRecord},
		{"before 1970", Record{Name: "n", Contact: bare, Issued: time.Unix(-1, 0)}, ErrRecord},
		{"address without a port", Record{Name: "n", Contact: member.Contact{Addrs: []netip.AddrPort{{}}}}, ErrRecord},
	} {
		if b, err := Sign(c.r, i); b != nil || !errors.Is(err, c.want) {
			t.Errorf("%s: %x, %v", c.name, b, err)
		}
	}
}

func TestNormal(t *testing.T) {
	for _, c := range []struct{ name, want string }{
		{"printer", "printer"},
		{"Printer", "Printer"},
		{"two words", "two words"},
		{"cafe\u0301", "caf\u00e9"},
		{"\u212b", "\u00c5"}, // the Ångström sign
		{strings.Repeat("a", MaxName), strings.Repeat("a", MaxName)},
		{strings.Repeat("e\u0301", 100), strings.Repeat("é", 100)}, // 300 bytes become 200
		{"", ""},
		{strings.Repeat("a", MaxName+1), ""},
		{" printer", ""},
		{"printer ", ""},
		{"line\n", ""},
		{"\x1b[2J", ""},
		{"a\u00a0b", ""},      // no-break space
		{"a\u200bb", ""},      // zero-width space
		{"\u202eretnirp", ""}, // right-to-left override
		{"\xff", ""},
		{"a\u0000", ""},
	} {
		got, err := Normal(c.name)
		if got != c.want || errors.Is(err, ErrName) != (c.want == "") {
			t.Errorf("Normal(%q): got %q, %v, want %q", c.name, got, err, c.want)
		}
		if c.want != "" && Key(c.name) != Key(c.want) {
			t.Errorf("%q and %q have different keys", c.name, c.want)
		}
	}
	if Key("a") == Key("A") || Key("a") == member.HashOf("a") {
		t.Error("keys of different things are the same")
	}
}

// TestDecodeRefuses signs what should not be there, so that it is not the signature that is refused.
func TestDecodeRefuses(t *testing.T) {
	good := sign(t, 1, record(t, 1, "name", 1))
	change := func(at int, b ...byte) []byte {
		c := bytes.Clone(good)
		copy(c[at:], b)
		return c
	}
	time := func(at int, ms uint64) []byte { return change(at, binary.BigEndian.AppendUint64(nil, ms)...) }
	const issuedAt, expiresAt = signedAt + 8, signedAt + 16
	keyless := contact(t, 1)
	keyless.Key = nil
	for _, c := range []struct {
		name    string
		b       []byte
		problem string
	}{
		{"nothing", nil, "too short"},
		{"version 2", change(0, 2), "version 2"},
		{"no name", change(nameAt-1, 0), "name not in normal form"},
		{"name beyond the end", change(nameAt-1, 255), "too short"},
		{"name not in normal form", seal(t, 1, change(nameAt, 'e', 0xcc, 0x81, 'a')), "name not in normal form"},
		{"name with a control", seal(t, 1, change(nameAt, '\n')), "name not in normal form"},
		{"name not UTF-8", seal(t, 1, change(nameAt, 0xff)), "name not in normal form"},
		{"expires as it is issued", seal(t, 1, time(expiresAt, uint64(start.UnixMilli()))), "times"},
		{"lives too long", seal(t, 1, time(expiresAt, uint64(start.Add(MaxLife).UnixMilli())+1)), "times"},
		{"issued at the end of time", seal(t, 1, time(issuedAt, 1<<64-1)), "times"},
		{"expires at the end of time", seal(t, 1, time(expiresAt, 1<<64-1)), "times"},
		{"contact without a key", seal(t, 1, wire.AppendContact(bytes.Clone(good[:nameAt+4]), keyless)), "without a key"},
		{"more after the contact", seal(t, 1, append(bytes.Clone(good), 0)), "malformed message"},
		{"too long", append(bytes.Clone(good), make([]byte, wire.MaxRecord)...), "too long"},
	} {
		if r, err := Decode(c.b); !errors.Is(err, ErrRecord) || !strings.Contains(err.Error(), c.problem) || r.Name != "" {
			t.Errorf("%s: %+v, %v", c.name, r, err)
		}
	}
	if _, err := Decode(seal(t, 2, good)); !errors.Is(err, ErrSignature) {
		t.Errorf("signed by another: %v", err)
	}
}

func TestCheck(t *testing.T) {
	r := record(t, 1, "name", 1)
	byAddress := r
	byAddress.Contact.ID = member.OfAddr(r.Contact.Addr())
	for _, c := range []struct {
		name string
		r    Record
		b    member.Binding
		now  time.Time
		want error
	}{
		{"at once", r, member.ByKey, start, nil},
		{"last millisecond", r, member.ByKey, r.Expires.Add(-time.Millisecond), nil},
		{"expired", r, member.ByKey, r.Expires, ErrTime},
		{"clock ahead", r, member.ByKey, start.Add(-Skew), nil},
		{"clock too far ahead", r, member.ByKey, start.Add(-Skew - time.Millisecond), ErrTime},
		{"bound by address", byAddress, member.ByAddress, start, nil},
		{"not bound by key", byAddress, member.ByKey, start, member.ErrUnbound},
		{"not bound by address", r, member.ByAddress, start, member.ErrUnbound},
	} {
		if err := c.r.Check(c.b, c.now); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func TestSelect(t *testing.T) {
	one, newer := sign(t, 1, record(t, 1, "caf\u00e9", 1)), sign(t, 1, record(t, 1, "caf\u00e9", 2))
	two := sign(t, 2, record(t, 2, "caf\u00e9", 1))
	other := sign(t, 3, record(t, 3, "bar", 1))
	late := record(t, 4, "caf\u00e9", 1)
	late.Issued = start.Add(time.Hour)
	late.Expires = late.Issued.Add(time.Hour)
	forged := bytes.Clone(two)
	forged[5]++
	publishers := func(list []Record) (s string) {
		for _, r := range list {
			s += fmt.Sprintf("%d/%d ", r.Contact.Addr().Addr().As4()[3], r.Sequence)
		}
		return s
	}
	for _, c := range []struct {
		answers [][]byte
		want    string
	}{
		{nil, ""},
		{[][]byte{one}, "1/1 "},
		{[][]byte{one, two, newer, one}, "1/2 2/1 "},
		{[][]byte{two, newer, one}, "2/1 1/2 "},
		{[][]byte{other, forged, nil, []byte("garbage"), sign(t, 4, late), two}, "2/1 "},
	} {
		if got := publishers(Select("cafe\u0301", member.ByKey, start, c.answers...)); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
	if got := Select("caf\u00e9", member.ByAddress, start, one); got != nil {
		t.Errorf("a contact that is not bound was taken: %v", got)
	}
}

// TestVectors holds that the format stays as it is: Ed25519 signs the same with the same.
func TestVectors(t *testing.T) {
	leaf := record(t, 2, "Café am Eck", 1<<40)
	leaf.Contact.Leaf, leaf.Contact.Hosts = true, []member.Contact{contact(t, 3)}
	got := []struct {
		name string
		b    []byte
	}{{"member", sign(t, 1, record(t, 1, "printer", 1))}, {"leaf", sign(t, 2, leaf)}, {"key of printer", new(Key("printer"))[:]}}
	if *update {
		text := "# Records as the doc comment draws them. Identity 1 has a seed of 32 bytes 01, identity 2 of 02.\n" +
			"# Written by go test ./swarm/record -run TestVectors -update, when the format changes its version.\n"
		for _, v := range got {
			text += fmt.Sprintf("%s: %x\n", v.name, v.b)
		}
		if err := os.WriteFile(vectorsFile, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := vectors(t)
	for _, v := range got {
		if !bytes.Equal(v.b, want[v.name]) {
			t.Errorf("%s:\ngot  %x\nwant %x", v.name, v.b, want[v.name])
		}
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

// FuzzDecode also signs what comes in, so that what lies behind the signature is reached.
func FuzzDecode(f *testing.F) {
	for _, b := range vectors(f) {
		f.Add(b)
	}
	f.Add(sign(f, 1, record(f, 1, "name", 1)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > signedAt {
			if r, err := parse(b); err == nil && identity(t, 1).Public().Equal(r.Contact.Key) {
				b = seal(t, 1, b)
			}
		}
		r, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrRecord) && !errors.Is(err, ErrSignature) {
				t.Fatal(err)
			}
			return
		}
		if n, err := Normal(r.Name); err != nil || n != r.Name || r.Expires.Sub(r.Issued) > MaxLife || !r.Issued.Before(r.Expires) {
			t.Fatalf("%+v", r)
		}
		if bytes.Equal(r.Contact.Key, identity(t, 1).Public()) {
			if again, err := Sign(r, identity(t, 1)); err != nil || r.Sequence != 0 && !bytes.Equal(again, b) {
				t.Fatalf("%v\nis  %x\nwas %x", err, again, b)
			}
		}
	})
}
