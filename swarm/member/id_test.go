// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package member

import (
	"bufio"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"math/big"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// ring is 2^256.
var ring = new(big.Int).Lsh(big.NewInt(1), Bits)

func (a ID) big() *big.Int { return new(big.Int).SetBytes(a[:]) }

func mod(n *big.Int) *big.Int { return n.Mod(n, ring) }

// ids draws places of which many are equal, or near each other or the place where the ring closes.
func ids() *rapid.Generator[ID] {
	return rapid.Custom(func(t *rapid.T) ID {
		var id ID
		switch rapid.IntRange(0, 3).Draw(t, "how") {
		case 0:
			id[len(id)-1] = rapid.ByteRange(0, 4).Draw(t, "near 0")
		case 1:
			for i := range id {
				id[i] = 0xff
			}
			id[len(id)-1] = rapid.ByteRange(0xfb, 0xff).Draw(t, "near the end")
		default:
			copy(id[:], rapid.SliceOfN(rapid.Byte(), len(id), len(id)).Draw(t, "anywhere"))
		}
		return id
	})
}

// TestArithmetic compares with math/big.
func TestArithmetic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := ids().Draw(t, "a"), ids().Draw(t, "b")
		i := rapid.IntRange(0, Bits-1).Draw(t, "i")
		power := new(big.Int).Lsh(big.NewInt(1), uint(i))
		for _, c := range []struct {
			name string
			got  ID
			want *big.Int
		}{
			{"Distance", a.Distance(b), mod(new(big.Int).Sub(b.big(), a.big()))},
			{"After", a.After(i), mod(new(big.Int).Add(a.big(), power))},
			{"Before", a.Before(i), mod(new(big.Int).Sub(a.big(), power))},
		} {
			if c.got.big().Cmp(c.want) != 0 {
				t.Errorf("%s: got %s, want %s", c.name, c.got.Decimal(), c.want)
			}
		}
		if got, want := a.Compare(b), a.big().Cmp(b.big()); got != want {
			t.Errorf("Compare: got %d, want %d", got, want)
		}
		if got, want := a.Log2(), a.big().BitLen()-1; got != want {
			t.Errorf("Log2: got %d, want %d", got, want)
		}
		if a.Decimal() != a.big().String() {
			t.Errorf("Decimal: got %s, want %s", a.Decimal(), a.big())
		}
	})
}

// TestIntervals walks clockwise from one end, in math/big.
func TestIntervals(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, from, to := ids().Draw(t, "a"), ids().Draw(t, "from"), ids().Draw(t, "to")
		at := mod(new(big.Int).Sub(a.big(), from.big()))
		end := mod(new(big.Int).Sub(to.big(), from.big()))
		if end.Sign() == 0 {
			end = ring
		}
		between := at.Sign() > 0 && at.Cmp(end) < 0
		if got := a.Between(from, to); got != between {
			t.Errorf("Between: got %t", got)
		}
		if got, want := a.In(from, to), between || a == to; got != want {
			t.Errorf("In: got %t", got)
		}
	})
}

func TestPowersOutOfRange(t *testing.T) {
	for _, i := range []int{-1, Bits} {
		for name, step := range map[string]func(int) ID{"After": ID{}.After, "Before": ID{}.Before} {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%s(%d) did not panic", name, i)
					}
				}()
				step(i)
			}()
		}
	}
}

// TestAddresses holds that IDs are those of Cicada's peers.
func TestAddresses(t *testing.T) {
	f, err := os.Open("testdata/ids.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.HasPrefix(s.Text(), "#") {
			continue
		}
		fields := strings.Fields(s.Text())
		if len(fields) != 3 {
			t.Fatalf("%q", s.Text())
		}
		addr, digits, decimal := netip.MustParseAddrPort(fields[0]), fields[1], fields[2]
		id := OfAddr(addr)
		if id.String() != digits || id.Decimal() != decimal {
			t.Errorf("%s: got %s = %s, want %s = %s", addr, id, id.Decimal(), digits, decimal)
		}
		if mapped := netip.AddrPortFrom(netip.AddrFrom16(addr.Addr().As16()), addr.Port()); OfAddr(mapped) != id {
			t.Errorf("%s: got %s, want that of the IPv4 address", mapped, OfAddr(mapped))
		}
		for _, text := range []string{digits, strings.ToUpper(digits), decimal} {
			if got, err := ParseID(text); err != nil || got != id {
				t.Errorf("ParseID(%q): %s, %v", text, got, err)
			}
		}
		n++
	}
	if n != 4 {
		t.Errorf("%d vectors", n)
	}
}

func TestOfKey(t *testing.T) {
	a, b := ed25519.PublicKey(make([]byte, 32)), ed25519.PublicKey(slices.Repeat([]byte{1}, 32))
	if OfKey(a) == OfKey(b) || OfKey(a) == HashOf(a) {
		t.Error("the ID does not depend on the key and the label")
	}
	const want = "4eb5df5da2f4f5cafb68867cf35c9de7db35b0dc9803adbd4a8ac6ad1924da09"
	if got := OfKey(a).String(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestParseID(t *testing.T) {
	last := new(big.Int).Sub(ring, big.NewInt(1)).String()
	for _, c := range []struct {
		text, want string
	}{
		{"0", strings.Repeat("0", 64)},
		{"255", strings.Repeat("0", 62) + "ff"},
		{last, strings.Repeat("f", 64)},
		{strings.Repeat("1", 64), strings.Repeat("1", 64)}, // 64 digits: hexadecimal
		{ring.String(), ""},
		{strings.Repeat("9", 79), ""},
		{strings.Repeat("0", 79), ""},
		{"", ""},
		{"-1", ""},
		{"+1", ""},
		{"0x10", ""},
		{"1_0", ""},
		{" 1", ""},
		{"ff", ""},
		{"٣", ""},
		{strings.Repeat("g", 64), ""},
		{strings.Repeat("f", 63), ""},
	} {
		id, err := ParseID(c.text)
		if c.want == "" {
			if !errors.Is(err, ErrID) || id != (ID{}) {
				t.Errorf("ParseID(%q): %s, %v", c.text, id, err)
			}
		} else if err != nil || id.String() != c.want {
			t.Errorf("ParseID(%q): %s, %v", c.text, id, err)
		}
	}
}

func TestIDText(t *testing.T) {
	id := HashOf("a value")
	if id != HashOf([]byte("a value")) {
		t.Error("a string and its bytes have different hashes")
	}
	b, err := json.Marshal(map[ID]ID{id: id})
	if err != nil || string(b) != `{"`+id.String()+`":"`+id.String()+`"}` {
		t.Errorf("%s, %v", b, err)
	}
	var back map[ID]ID
	if err := json.Unmarshal(b, &back); err != nil || back[id] != id {
		t.Errorf("%v, %v", back, err)
	}
	if err := new(ID).UnmarshalText([]byte("nobody")); !errors.Is(err, ErrID) {
		t.Error(err)
	}
	if got := id.Short(); got != id.String()[:8] {
		t.Error(got)
	}
}

func BenchmarkDistance(b *testing.B) {
	x, y := HashOf("x"), HashOf("y")
	b.ReportAllocs()
	for b.Loop() {
		x = x.Distance(y)
	}
}
