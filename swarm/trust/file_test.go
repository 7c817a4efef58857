// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/seed5728abee/fathom/swarm/member"
)

// file has one entry of each kind.
const file = `{"trusted_hosts": [
  {"peer": "90425829130704367820806772505098151819214954987047437620735631432198960276053", "outbound_key": "out 1", "inbound_key": "in 1"},
  {},
  {"address": "192.0.2.101:7000", "outbound_key": "out 3", "inbound_key": "in 3"},
  {"address": "192.0.2.101", "outbound_key": "out 4", "inbound_key": "in 4"},
  {"inbound_key": "\u00e9\n", "outbound_key": " ", "peer": "71b01c2c359b190aa4dfbb280a339db11b02efae5587441caaf8ee740b868e26"},
  {"address": "[2001:db8::1]:7000", "outbound_key": "out 6", "inbound_key": "in 6"},
  {"address": "2001:db8::1", "outbound_key": "out 7", "inbound_key": "in 7"},
  {"address": "localhost:7000", "outbound_key": "out 8", "inbound_key": "in 8"}
]}`

func parse(tb testing.TB, text string) *Table {
	tb.Helper()
	t, err := Parse([]byte(text))
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

func TestFind(t *testing.T) {
	table := parse(t, file)
	if table.Len() != 7 {
		t.Errorf("%d hosts", table.Len())
	}
	local := netip.MustParseAddrPort("127.0.0.1:50001")
	other := member.HashOf("somebody")
	for _, c := range []struct {
		id    member.ID
		addr  string
		entry int
	}{
		{member.OfAddr(local), "", 1},
		{member.OfAddr(local), "192.0.2.101:7000", 1}, // the peer goes first
		{other, "192.0.2.101:7000", 3},
		{other, "[::ffff:192.0.2.101]:7000", 3},
		{other, "192.0.2.101:7001", 4},
		{member.OfAddr(netip.MustParseAddrPort("127.0.0.1:50002")), "", 5},
		{other, "[2001:db8::1]:7000", 6},
		{other, "[2001:db8::1]:7001", 7},
		{other, "127.0.0.1:7000", 8},
		{other, "127.0.0.1:7001", 0},
		{other, "192.0.2.1:7000", 0},
		{other, "", 0},
	} {
		var addr netip.AddrPort
		if c.addr != "" {
			addr = netip.MustParseAddrPort(c.addr)
		}
		entry := 0
		if h := table.find(c.id, addr); h != nil {
			entry = h.entry
		}
		if entry != c.entry || table.Trusted(c.id, addr) != (entry > 0) {
			t.Errorf("%s at %q: entry %d, want %d", c.id.Short(), c.addr, entry, c.entry)
		}
	}
	if h := table.byID[member.OfAddr(netip.MustParseAddrPort("127.0.0.1:50002"))]; h.inbound != "é\n" || h.outbound != " " {
		t.Errorf("keys %q, %q", h.inbound, h.outbound)
	}
}

func TestParseRefuses(t *testing.T) {
	entry := func(fields string) string { return "{\"trusted_hosts\": [\n{},\n{" + fields + "}]}" }
	const keys = `"outbound_key": "top secret", "inbound_key": "hush hush"`
	const good = `{"address": "192.0.2.1", ` + keys + `}`
	for _, c := range []struct{ name, text, problem string }{
		{"nothing", "", "line 1: the text ends too early"},
		{"half", "{\"trusted_hosts\": [\n" + good + ",", "entry 2, line 2: the text ends too early"},
		{"no JSON", "[hosts]", "line 1: not a JSON object"},
		{"not JSON inside", entry(`"peer" = "1"`), "entry 2, line 3: not JSON"},
		{"a list", "[]", "not a JSON object"},
		{"another member", `{"hosts": []}`, `has to be {"trusted_hosts": [...]}`},
		{"other case", `{"Trusted_Hosts": []}`, "has to be"},
		{"one more member", `{"trusted_hosts": [], "more": 1}`, "has to be"},
		{"more after the end", `{"trusted_hosts": []} {}`, "more after the end"},
		{"no list", `{"trusted_hosts": {}}`, "trusted_hosts is not a list"},
		{"no object", `{"trusted_hosts": ["top secret"]}`, "entry 1, line 1: not a JSON object"},
		{"a comma too many", `{"trusted_hosts": [` + good + `,]}`, "not JSON"},
		{"no comma", `{"trusted_hosts": [` + good + good + `]}`, "not JSON"},
		{"no keys", entry(`"address": "192.0.2.1"`), "entry 2, line 3: outbound_key is missing"},
		{"one key", entry(`"address": "192.0.2.1", "outbound_key": "top secret"`), "inbound_key is missing"},
		{"empty key", entry(`"address": "192.0.2.1", "outbound_key": "", "inbound_key": "hush hush"`), "outbound_key is missing or empty"},
		{"key that is a number", entry(`"address": "192.0.2.1", "outbound_key": 12345, "inbound_key": "hush hush"`), "outbound_key is not a string"},
		{"key twice", entry(`"address": "192.0.2.1", "inbound_key": "x", ` + keys), "inbound_key is there twice"},
		{"unknown", entry(`"adress": "192.0.2.1", ` + keys), `"adress" is not known`},
		{"other case inside", entry(`"Address": "192.0.2.1", ` + keys), `"Address" is not known`},
		{"neither", entry(keys), "one of peer and address"},
		{"both", entry(`"address": "192.0.2.1", "peer": "1", ` + keys), "not both"},
		{"peer that is no ID", entry(`"peer": "top secret", ` + keys), "peer is not an ID"},
		{"name", entry(`"address": "host.example:7000", ` + keys), "names are not looked up"},
		{"localhost and more", entry(`"address": "localhost.example", ` + keys), "names are not looked up"},
		{"port 0", entry(`"address": "192.0.2.1:0", ` + keys), "neither IP nor IP:PORT"},
		{"zone", entry(`"address": "fe80::1%eth0", ` + keys), "neither IP nor IP:PORT"},
		{"twice", `{"trusted_hosts": [{}, ` + good + `, ` + good + `]}`, "entry 3, line 1: 192.0.2.1 is the host of entry 2 already"},
		{"twice, in other forms", `{"trusted_hosts": [` + good + `, {"address": "::ffff:192.0.2.1", ` + keys + `}]}`, "entry 2, line 1: 192.0.2.1 is the host of entry 1"},
		{"not UTF-8", entry(`"address": "192.0.2.1", "outbound_key": "` + "\xff" + `", "inbound_key": "x"`), "not UTF-8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			table, err := Parse([]byte(c.text))
			if table != nil || !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), c.problem) {
				t.Fatalf("got %v, want %q", err, c.problem)
			}
			for _, secret := range []string{"secret", "hush", "12345"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the error tells a key: %v", err)
				}
			}
		})
	}
	for _, text := range []string{`{"trusted_hosts": []}`, " {\"trusted_hosts\":[{},{}]}\n"} {
		if table := parse(t, text); table.Len() != 0 {
			t.Errorf("%s: %d hosts", text, table.Len())
		}
	}
}

func TestLoad(t *testing.T) {
	name := filepath.Join(t.TempDir(), "keys.json")
	if _, err := Load(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(name, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	if table, err := Load(name); err != nil || table.Len() != 7 {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(name, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(name); !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), name) {
		t.Errorf("not a key file: %v", err)
	}
	if runtime.GOOS == "windows" {
		return
	}
	if err := os.Chmod(name, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(name); !errors.Is(err, ErrMode) || !strings.Contains(err.Error(), "chmod 0600") {
		t.Errorf("mode 644: %v", err)
	}
}
