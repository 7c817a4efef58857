// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestAddrCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running, most, calls atomic.Int32
		cache := newAddrCache(func(ctx context.Context, addr netip.Addr) string {
			calls.Add(1)
			most.Store(max(most.Load(), running.Add(1)))
			defer running.Add(-1)
			select {
			case <-time.After(time.Second):
				return "host-" + addr.String()
			case <-ctx.Done():
				return ""
			}
		})
		addr := netip.MustParseAddr("10.0.0.1")
		for range 3 {
			if got := cache.get(addr); got != "" {
				t.Errorf("got %q before the lookup has ended", got)
			}
		}
		for range 100 {
			addr = addr.Next()
			cache.get(addr)
		}
		cache.wait(t.Context())
		if got := cache.get(addr); got != "host-10.0.0.101" {
			t.Errorf("got %q", got)
		}
		if calls.Load() != 101 || most.Load() > addrLookups {
			t.Errorf("%d lookups, %d at once; want 101, at most %d", calls.Load(), most.Load(), addrLookups)
		}
		cache.get(addr.Next())
		cache.close() // must not wait for the second
		cache.get(addr.Next().Next())
		if calls.Load() > 102 {
			t.Error("a lookup after close")
		}
	})
}

// Names come from whoever owns the address. None may carry control sequences to the terminal.
func TestCleanName(t *testing.T) {
	for in, want := range map[string]string{
		"router.example.":        "router.example",
		"a_b-1.example.":         "a_b-1.example",
		"\x1b[2Jrouter.example.": `"\x1b[2Jrouter.example"`,
		"bell\a.example.":        `"bell\a.example"`,
		"\u202erouter.example.":  `"\u202erouter.example"`,
		"two words.example.":     `"two words.example"`,
		"\x9b31mrouter.example":  `"\x9b31mrouter.example"`,
	} {
		if got := cleanName(in); got != want {
			t.Errorf("cleanName(%q) = %s, want %s", in, got, want)
		}
	}
}

func TestOriginName(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1":   "1.2.0.192.origin.asn.cymru.com.",
		"2001:db8::1": "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.origin6.asn.cymru.com.",
	} {
		if got := originName(netip.MustParseAddr(in)); got != want {
			t.Errorf("originName(%s) = %s, want %s", in, got, want)
		}
	}
}

func TestParseOrigin(t *testing.T) {
	full := addrFacts{"AS64500", "192.0.2.0/24", "NL", "ripencc", "1992-03-12"}
	tests := []struct {
		in   string
		want addrFacts
		ok   bool
	}{
		{"64500 | 192.0.2.0/24 | NL | ripencc | 1992-03-12", full, true},
		{"64500 64501 | 192.0.2.0/24 | NL | ripencc | 1992-03-12", full, true},
		{"64500|192.0.2.0/24||arin|", addrFacts{"AS64500", "192.0.2.0/24", "", "arin", ""}, true},
		{"64500 | 192.0.2.0/24 | \x1b[31m | ripencc | x", addrFacts{"AS64500", "192.0.2.0/24", `"\x1b[31m"`, "ripencc", "x"}, true},
		{"NA | 192.0.2.0/24 | NL | ripencc | 1992-03-12", addrFacts{}, false},
		{"64500 | 192.0.2.0/24", addrFacts{}, false},
		{"4294967296 | a | b | c | d", addrFacts{}, false},
		{"", addrFacts{}, false},
	}
	for _, tt := range tests {
		got, ok := parseOrigin(tt.in)
		if got != tt.want || ok != tt.ok {
			t.Errorf("parseOrigin(%q) = %q, %v; want %q, %v", tt.in, got, ok, tt.want, tt.ok)
		}
	}
}

func FuzzParseOrigin(f *testing.F) {
	f.Add("64500 | 192.0.2.0/24 | NL | ripencc | 1992-03-12")
	f.Add("1 2|\x00|\xff||")
	f.Fuzz(func(t *testing.T, text string) {
		facts, ok := parseOrigin(text)
		for _, fact := range facts {
			for _, r := range fact {
				if r < ' ' || r > '~' {
					t.Errorf("%q lets %q through", text, fact)
				}
			}
		}
		if !ok && facts != (addrFacts{}) {
			t.Errorf("%q is refused, but gives %q", text, facts)
		}
	})
}
