// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package stateless

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/seed5728abee/fathom/packet"
)

// fuzzTable has a measurement of each kind on ports of its own, and gives the answers to them.
func fuzzTable(f *testing.F, version int) (*Table, [][]byte) {
	var table Table
	var answers [][]byte
	for i, kind := range kinds {
		cfg := testConfig(kind)
		cfg.FirstPort += uint16(i) * cfg.Ports
		c, err := New(cfg)
		if err != nil {
			f.Fatal(err)
		}
		if err := table.Add(c); err != nil {
			f.Fatal(err)
		}
		pkt := build(f, c, testProbe(version))
		answers = append(answers, reply(f, pkt), report(f, packet.ICMPError{Type: exceeded(version), Quote: pkt}))
		if version == 4 {
			answers = append(answers, report(f, packet.ICMPError{Type: 3, Code: 3, Quote: pkt[:28]}))
		}
	}
	for i, kind := range []Kind{ICMP, UDP} {
		c, err := New(Config{Kind: kind, FirstPort: 10000 + uint16(i)*100, Ports: 100, Classic: true})
		if err != nil {
			f.Fatal(err)
		}
		if err := table.Add(c); err != nil {
			f.Fatal(err)
		}
	}
	return &table, answers
}

// judge checks what must hold of any answer and any refusal.
func judge(t *testing.T, c *Codec, err error, a *Answer) {
	t.Helper()
	switch {
	case err != nil:
		if c != nil || !errors.Is(err, ErrNotOurs) && !errors.Is(err, ErrForged) && !errors.Is(err, ErrMalformed) {
			t.Errorf("%v, %v", c, err)
		}
	case c.cfg.Classic:
		if a.Strong || a.Number > c.MaxNumber() {
			t.Errorf("%+v", a)
		}
	// No fuzzer finds a key: an answer that proves itself with the long check is about the one probe there is.
	case a.Number > c.MaxNumber() || a.Flow >= c.cfg.Ports || a.Status == 0 || a.Strong && (a.Number != 42 || a.Target.WithZone("") != target[0] && a.Target != target[1]):
		t.Errorf("%+v", a)
	case a.Sent != 0 && (!a.Strong || a.Sent != testTime):
		t.Errorf("%+v", a)
	}
}

func FuzzParse4(f *testing.F) {
	table, answers := fuzzTable(f, 4)
	for _, in := range answers {
		f.Add(in)
	}
	for _, name := range []string{"classic-exceeded", "classic-unreachable", "classic-captured"} {
		f.Add(vector(f, name))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var a Answer
		c, err := table.Parse4(in, &a)
		judge(t, c, err, &a)
	})
}

func FuzzParse6(f *testing.F) {
	table, answers := fuzzTable(f, 6)
	for _, in := range answers {
		h := packet.IPv6(in)
		f.Add(uint8(h.NextHeader()), h.Src().AsSlice(), h.Dst().AsSlice(), h.Payload())
	}
	f.Fuzz(func(t *testing.T, proto uint8, from, to, data []byte) {
		src, _ := netip.AddrFromSlice(from)
		dst, _ := netip.AddrFromSlice(to)
		var a Answer
		c, err := table.Parse6(src, dst, 64, 0, packet.Protocol(proto), data, &a)
		judge(t, c, err, &a)
	})
}

func FuzzParseKind(f *testing.F) {
	for _, kind := range kinds {
		f.Add(kind.String())
	}
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := ParseKind(s); err == nil && k.String() != s {
			t.Errorf("%q gives %v", s, k)
		}
	})
}
