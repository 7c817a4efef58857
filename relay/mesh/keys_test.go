// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseKeys(t *testing.T) {
	text := func(k Key) string {
		b, err := k.AppendText(nil)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	one, two := text(testKey(1)), text(testKey(2))
	many := ""
	for n := range byte(MaxKeys + 1) {
		many += text(testKey(n+1)) + "\n"
	}
	for _, c := range []struct {
		name, text string
		want       int
		problem    string
	}{
		{"one", one, 1, ""},
		{"two with comments", "# keys\n\n  " + one + "  # from May\r\n" + two + "\n", 2, ""},
		{"none", "# nothing\n", 0, "no key"},
		{"empty", "", 0, "no key"},
		{"too short", one[:40], 0, "line 1"},
		{"too long", "\n" + one + one, 0, "line 2: longer"},
		{"31 bytes", "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHw==", 0, "31 bytes, not 32"},
		{"not base64", strings.Repeat("?", 44), 0, "not base64"},
		{"two on a line", one + " " + two, 0, "line 1"},
		{"bits left over", strings.Replace(one, "yA=", "yB=", 1), 0, "not base64"},
		{"twice", one + "\n" + one, 0, "line 2: the same key"},
		{"zeros", text(Key{}), 0, "zeros"},
		{"too many", many, 0, "line 17: more than 16"},
	} {
		t.Run(c.name, func(t *testing.T) {
			keys, err := ParseKeys([]byte(c.text))
			if len(keys) != c.want || (err == nil) != (c.want > 0) || err != nil && (!errors.Is(err, ErrKey) || !strings.Contains(err.Error(), c.problem)) {
				t.Errorf("%d keys, error %v", len(keys), err)
			}
			if err != nil && strings.Contains(err.Error(), one[:20]) {
				t.Errorf("the error tells the key: %v", err)
			}
			if len(keys) > 0 && keys[0] != testKey(1) {
				t.Errorf("got %x", keys[0][:])
			}
		})
	}
}

func TestKeysStaySecret(t *testing.T) {
	k := testKey(1)
	for _, s := range []string{fmt.Sprint(k), fmt.Sprintf("%v %+v %#v %s %q", k, k, k, k, k), fmt.Sprint([]Key{k})} {
		if strings.Contains(s, "01020304") || strings.Contains(s, "1 2 3 4") || strings.Contains(s, "AQIDBA") {
			t.Errorf("printed: %s", s)
		}
	}
	if a, b := GenerateKey(), GenerateKey(); a == b || a == (Key{}) {
		t.Error("keys are not random")
	}
}

func TestReadKeyFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "key")
	text, err := testKey(1).AppendText(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		mode os.FileMode
		ok   bool
	}{{0o600, true}, {0o400, true}, {0o440, true}, {0o640, true}, {0o644, false}, {0o604, false}, {0o660, false}, {0o601, false}} {
		if err := os.Chmod(name, c.mode); err != nil {
			t.Fatal(err)
		}
		keys, err := ReadKeyFile(name)
		if c.ok != (err == nil && len(keys) == 1) || !c.ok && !errors.Is(err, ErrKeyMode) {
			t.Errorf("mode %o: %v", c.mode, err)
		}
	}
	if _, err := ReadKeyFile(name + ".none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(name, make([]byte, maxSecretFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadKeyFile(name); err == nil {
		t.Error("a file without end was read")
	}
}

func TestOptions(t *testing.T) {
	ca := newAuthority(t)
	id := ca.identity(t, "a.example", nil)
	compat, both, tooMany := Options{Compat: true}, keyed(1), Options{Keys: make([]Key, MaxKeys+1)}
	both.Identity = id
	for _, o := range []Options{{Payload: 100}, {Payload: 9000}, {Version: strings.Repeat("v", 33)}, {Version: "\x1b"}, compat, both, tooMany} {
		if _, err := New(o); !errors.Is(err, ErrOptions) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	open, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := New(keyed(1))
	if err != nil {
		t.Fatal(err)
	}
	rotated, err := New(keyed(2, 3))
	if err != nil {
		t.Fatal(err)
	}
	certified, err := New(Options{Identity: id})
	if err != nil {
		t.Fatal(err)
	}
	if open.MeshID() != [8]byte{} || sealed.MeshID() == open.MeshID() || certified.MeshID() == sealed.MeshID() || rotated.MeshID() != sealed.MeshID() {
		t.Error("mesh IDs")
	}
	for _, err := range []error{open.SetKeys([]Key{testKey(1)}), certified.SetKeys([]Key{testKey(1)}), sealed.SetIdentity(id), open.SetIdentity(id), certified.SetIdentity(nil)} {
		if !errors.Is(err, ErrMode) {
			t.Errorf("the mode was changed: %v", err)
		}
	}
	if err := sealed.SetKeys(nil); !errors.Is(err, ErrOptions) {
		t.Errorf("no keys: %v", err)
	}
}

func TestSetPeers(t *testing.T) {
	m, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	var list []netip.AddrPort
	for _, s := range []string{
		"192.0.2.1:7124", "[::ffff:192.0.2.1]:7124", "192.0.2.1:7124", "[2001:db8::1]:7124", "[fe80::1%eth0]:7124",
		"0.0.0.0:7124", "192.0.2.1:0", "224.0.0.1:7124", "[ff02::1]:7124", "255.255.255.255:7124", "[::]:7124",
	} {
		list = append(list, netip.MustParseAddrPort(s))
	}
	if ignored := m.SetPeers(append(list, netip.AddrPort{})); ignored != 7 {
		t.Errorf("%d ignored", ignored)
	}
	if s := m.Peers(time.Now()); len(s) != 3 || s[0].Number == s[1].Number || s[0].Origin != "configured" {
		t.Errorf("%+v", s)
	}
	number := m.Peers(time.Now())[0].Number
	m.AddNeighbour(list[:1], time.Now())
	m.SetPeers(list[3:4])
	if s := m.Peers(time.Now()); len(s) != 2 || s[0].Number != number || s[0].Origin != "neighbour" {
		t.Errorf("%+v", s)
	}
	var many []netip.AddrPort
	for i := range MaxPeers + 10 {
		many = append(many, address(1))
		many[i] = netip.AddrPortFrom(many[i].Addr(), uint16(i+1))
	}
	if ignored := m.SetPeers(many); ignored != 11 || len(m.Peers(time.Now())) != MaxPeers {
		t.Errorf("%d ignored", ignored)
	}
}
