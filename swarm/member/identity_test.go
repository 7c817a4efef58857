// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package member

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// testIdentity is that of RFC 8410, section 10.3, as openssl writes it, too.
const testIdentity = `-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
-----END PRIVATE KEY-----
`

func TestIdentityFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "identity.pem")
	if _, err := LoadIdentity(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	i := NewIdentity()
	if err := i.Save(name); err != nil {
		t.Fatal(err)
	}
	back, err := LoadIdentity(name)
	if err != nil || !back.Private().Equal(i.Private()) {
		t.Errorf("%v, %v, want %v", back, err, i)
	}
	if err := NewIdentity().Save(name); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over another: %v", err)
	}
	if back, err = LoadIdentity(name); err != nil || !back.Private().Equal(i.Private()) {
		t.Errorf("the other did not survive: %v, %v", back, err)
	}
	if runtime.GOOS == "windows" {
		return
	}
	if err := os.Chmod(name, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadIdentity(name); !errors.Is(err, ErrMode) || !strings.Contains(err.Error(), "chmod 0600 "+name) {
		t.Errorf("mode 644: %v", err)
	}
}

func TestParseIdentity(t *testing.T) {
	i, err := ParseIdentity([]byte(testIdentity))
	if err != nil {
		t.Fatal(err)
	}
	// RFC 8410, section 10.1, has the public key.
	if got, want := hex.EncodeToString(i.Public()), "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	addr := netip.MustParseAddrPort("192.0.2.1:49610")
	if i.ID(ByKey, addr) != OfKey(i.Public()) || i.ID(ByAddress, addr) != OfAddr(addr) {
		t.Error("the ID is not bound as asked")
	}
	block := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(other)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, text, problem string }{
		{"nothing", "", "no PEM block"},
		{"a certificate", block("CERTIFICATE", der), "another kind"},
		{"another algorithm", block("PRIVATE KEY", der), "another algorithm"},
		{"garbage", block("PRIVATE KEY", []byte("garbage")), "no key"},
		{"two", testIdentity + testIdentity, "more than one"},
	} {
		if i, err := ParseIdentity([]byte(c.text)); i != nil || !errors.Is(err, ErrIdentity) || !strings.Contains(err.Error(), c.problem) {
			t.Errorf("%s: %v, %v", c.name, i, err)
		}
	}
}

// leaks tells in which of the usual forms a secret stands in a text.
func leaks(text string, secret []byte) string {
	for _, n := range []int{4, len(secret)} {
		part := secret[:n]
		for _, form := range []string{
			string(part), hex.EncodeToString(part), strings.ToUpper(hex.EncodeToString(part)), strings.Trim(fmt.Sprintf("%d", part), "[]"),
			strings.Trim(strings.ReplaceAll(fmt.Sprintf("%d", part), " ", ","), "[]"), strings.TrimSuffix(fmt.Sprintf("%#v", part)[len("[]byte{"):], "}"),
			base64.StdEncoding.EncodeToString(part[:n/3*3]), strings.Trim(fmt.Sprintf("%b", part), "[]"), strings.Trim(fmt.Sprintf("%o", part), "[]"),
		} {
			if strings.Contains(text, form) {
				return form
			}
		}
	}
	return ""
}

// TestSecretsStaySecret prints in every way that happens by mistake.
func TestSecretsStaySecret(t *testing.T) {
	i, k := NewIdentity(), NewSwarmKey()
	for _, c := range []struct {
		name   string
		value  any
		within any // in another value, as configurations are printed
		secret []byte
	}{
		{"identity", i, struct{ I *Identity }{i}, i.Private().Seed()},
		{"key", k, struct{ K SwarmKey }{k}, k[:]},
		{"keys", SwarmKeys{k}, struct{ K SwarmKeys }{SwarmKeys{k}}, k[:]},
	} {
		var b bytes.Buffer
		for _, v := range []any{c.value, c.within} {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%b", "%o", "%c", "%t"} {
				fmt.Fprintf(&b, verb+"\n", v)
			}
			slog.New(slog.NewTextHandler(&b, nil)).Info("text", "value", v)
			slog.New(slog.NewJSONHandler(&b, nil)).Info("JSON", "value", v)
			j, err := json.Marshal(v)
			if err != nil {
				t.Error(err)
			}
			b.Write(j)
		}
		if form := leaks(b.String(), c.secret); form != "" {
			t.Errorf("%s: shows %s:\n%s", c.name, form, b.String())
		}
		if name := fmt.Sprintf("%v", c.value); !strings.Contains(b.String(), name) || !strings.Contains(name, "(") {
			t.Errorf("%s: has no name: %s", c.name, name)
		}
	}
	if leaks(fmt.Sprintf("%d", [32]byte(k)), k[:]) == "" || leaks(fmt.Sprintf("%#v", k[:]), k[:]) == "" || leaks(k.Reveal(), k[:]) == "" {
		t.Error("this test does not see what it is for")
	}
}

func TestSwarmKeyFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "swarm.key")
	keys := SwarmKeys{NewSwarmKey(), NewSwarmKey()}
	if err := keys.Save(name); err != nil {
		t.Fatal(err)
	}
	back, err := LoadSwarmKeys(name)
	if err != nil || len(back) != 2 || back[0] != keys[0] || back[1] != keys[1] {
		t.Errorf("%v, %v", back, err)
	}
	if raw := back.Raw(); len(raw) != 2 || raw[0] != keys[0] || raw[1] != keys[1] {
		t.Error("the raw keys are others")
	}
	if err := keys.Save(name); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over another: %v", err)
	}
	if runtime.GOOS == "windows" {
		return
	}
	if err := os.Chmod(name, 0o604); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadSwarmKeys(name); !errors.Is(err, ErrMode) {
		t.Errorf("mode 604: %v", err)
	}
}

func TestParseSwarmKeys(t *testing.T) {
	key := func(n byte) SwarmKey { return SwarmKey(bytes.Repeat([]byte{n}, len(SwarmKey{}))) }
	one, two := key(1).Reveal(), swarmKeyPrefix+strings.Repeat("02", 32)
	if one != "fathom-swarm-key:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=" {
		t.Errorf("Reveal: %s", one)
	}
	many := ""
	for n := range byte(MaxSwarmKeys + 1) {
		many += key(n+1).Reveal() + "\n"
	}
	for _, c := range []struct {
		name, text string
		want       int
		problem    string
	}{
		{"base64", one, 1, ""},
		{"hexadecimal", "# in May\n\n  " + one + "  # old\r\n" + two + "\n", 2, ""},
		{"upper case", one + "\n" + swarmKeyPrefix + strings.Repeat("AB", 32), 2, ""},
		{"a space after the colon", strings.Replace(one, ":", ": ", 1), 1, ""},
		{"nothing", "", 0, "no key in it: make one"},
		{"a comment", "# nothing\n", 0, "no key in it"},
		{"no prefix", "\n" + strings.TrimPrefix(one, swarmKeyPrefix), 0, "line 2: does not begin with fathom-swarm-key:"},
		{"too short", one[:len(one)-4], 0, "line 1: not 32 bytes"},
		{"too long", one + "AAAA", 0, "line 1: not 32 bytes"},
		{"31 bytes", swarmKeyPrefix + base64.StdEncoding.EncodeToString(make([]byte, 31)), 0, "line 1: not 32 bytes"},
		{"33 bytes", swarmKeyPrefix + base64.StdEncoding.EncodeToString(make([]byte, 33)), 0, "line 1: not 32 bytes"},
		{"bits left over", strings.Replace(one, "QE=", "QF=", 1), 0, "line 1: not 32 bytes"},
		{"a digit wrong", strings.Replace(two, "02", "0x", 1), 0, "line 1: not 32 bytes"},
		{"two on a line", one + " " + two, 0, "line 1"},
		{"twice", one + "\n" + two + "\n" + one, 0, "line 3: the same key once more: remove"},
		{"zeros", SwarmKey{}.Reveal(), 0, "line 1: a key of zeros"},
		{"too many", many, 0, "line 17: more than 16 keys"},
	} {
		t.Run(c.name, func(t *testing.T) {
			keys, err := ParseSwarmKeys([]byte(c.text))
			if len(keys) != c.want || (err == nil) != (c.want > 0) || err != nil && (!errors.Is(err, ErrSwarmKey) || !strings.Contains(err.Error(), c.problem)) {
				t.Errorf("%d keys, error %v", len(keys), err)
			}
			if err != nil && strings.Contains(err.Error(), "AQEBAQ") {
				t.Errorf("the error tells the key: %v", err)
			}
			if len(keys) > 0 && keys[0] != key(1) {
				t.Errorf("got %x", keys[0][:])
			}
		})
	}
	if one, other := NewSwarmKey(), NewSwarmKey(); one == other || key(1).String() == key(2).String() {
		t.Error("keys, or their names, are not their own")
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add([]byte(testIdentity))
	f.Add([]byte(strings.ReplaceAll(testIdentity, "MC4C", "MC4D")))
	f.Fuzz(func(t *testing.T, text []byte) {
		i, err := ParseIdentity(text)
		if err != nil {
			if i != nil || !errors.Is(err, ErrIdentity) {
				t.Fatalf("%v, %v", i, err)
			}
			return
		}
		if !ed25519.Verify(i.Public(), text, ed25519.Sign(i.Private(), text)) {
			t.Fatal("the key does not sign")
		}
	})
}

func FuzzParseSwarmKeys(f *testing.F) {
	f.Add([]byte(SwarmKey{1}.Reveal()))
	f.Add([]byte("# two\n" + SwarmKey{1}.Reveal() + " # in use\r\n" + swarmKeyPrefix + strings.Repeat("02", 32)))
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := ParseSwarmKeys(text)
		if err != nil {
			if keys != nil || !errors.Is(err, ErrSwarmKey) {
				t.Fatalf("%v, %v", keys, err)
			}
			return
		}
		var b strings.Builder
		for _, k := range keys {
			b.WriteString(k.Reveal() + "\n")
		}
		again, err := ParseSwarmKeys([]byte(b.String()))
		if err != nil || len(again) != len(keys) || again[0] != keys[0] {
			t.Fatalf("%v, then %v, %v", keys, again, err)
		}
	})
}
