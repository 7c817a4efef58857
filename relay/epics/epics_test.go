// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package epics_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/seed5728abee/fathom/relay/drop"
	"github.com/seed5728abee/fathom/relay/epics"
)

type vectorFile map[string]struct {
	protocol epics.Protocol
	bytes    []byte
}

// vectors reads the recorded and written datagrams, by protocol and name.
func vectors(tb testing.TB) vectorFile {
	tb.Helper()
	file, err := os.ReadFile("testdata/vectors.txt")
	if err != nil {
		tb.Fatal(err)
	}
	all := vectorFile{}
	for line := range strings.Lines(string(file)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] == "#" {
			continue
		}
		v := all[fields[0]+" "+fields[1]]
		if err := v.protocol.UnmarshalText([]byte(fields[0])); err != nil {
			tb.Fatal(err)
		}
		if v.bytes, err = hex.DecodeString(strings.Join(fields[2:], "")); err != nil {
			tb.Fatalf("%s: %v", fields[1], err)
		}
		all[fields[0]+" "+fields[1]] = v
	}
	return all
}

func vector(tb testing.TB, name string) []byte {
	tb.Helper()
	v, ok := vectors(tb)[name]
	if !ok {
		tb.Fatalf("there is no vector %q", name)
	}
	return v.bytes
}

func TestVectorsAreValid(t *testing.T) {
	for name, v := range vectors(t) {
		if got := epics.Valid(v.protocol, v.bytes); got != drop.None {
			t.Errorf("%s: %v", name, got)
		}
		other := epics.ChannelAccess + epics.PVAccess - v.protocol
		if got := epics.Valid(other, v.bytes); got != drop.Invalid {
			t.Errorf("%s is as %v %v, want invalid", name, other, got)
		}
	}
}

// TestTruncated cuts every vector everywhere. What is left is valid only where a message ends.
func TestTruncated(t *testing.T) {
	ends := map[string][]int{"ca search": {16}, "ca search-libca": {16, 48, 88}, "pva origin-and-search": {24}}
	for name, v := range vectors(t) {
		for n := range v.bytes {
			want := drop.Invalid
			if slices.Contains(ends[name], n) {
				want = drop.None
			}
			if got := epics.Valid(v.protocol, v.bytes[:n]); got != want {
				t.Errorf("%s cut to %d of %d bytes is %v, want %v", name, n, len(v.bytes), got, want)
			}
		}
	}
}

func TestInvalid(t *testing.T) {
	for _, c := range []struct {
		what, protocol, hex, err string
	}{
		{"nothing", "ca", "", "header cut short"},
		{"nothing", "pva", "", "header cut short"},
		{"text", "pva", "48656c6c6f2c20776f726c64", "not a PVAccess message"},
		{"version 0", "pva", "ca00800c00000000", "not a PVAccess message"},
		{"control message", "pva", "ca02810c00000000", "control message"},
		{"segment", "pva", "ca02900c00000000", "segment"},
		{"size 2^32-1", "pva", "ca02800cffffffff", "payload cut short"},
		{
			"search with 2^32-1 protocols", "pva",
			"ca0280030000001f 0000000c00000000 00000000000000000000000000000000 9c40 feffffffff", "shorter than its fields",
		},
		{
			"search for a name of 2^32-1 bytes", "pva",
			"ca02800300000029 0000000c00000000 00000000000000000000000000000000 9c40 00 0001 00000001 feffffffff 0000000000", "shorter than its fields",
		},
		{
			"search for 65,535 names", "pva",
			"ca0280030000001d 0000000c00000000 00000000000000000000000000000000 9c40 00 ffff", "shorter than its fields",
		},
		{
			"search for nothing", "pva",
			"ca02800300000022 0000000c00000000 00000000000000000000000000000000 9c40 00 0001 00000001 00", "name is empty",
		},
		{
			"answer with fewer identifiers", "pva",
			"ca02c0040000002d 000102030405060708090a0b 0000000c 00000000000000000000000000000000 13d3 03746370 01 0002 00000001", "shorter than its fields",
		},
		{"short origin", "pva", "ca0280160000000f000000000000000000000000000000", "shorter than its fields"},

		{"search for nothing", "ca", "000600000005000d0000000100000001", "empty or not terminated"},
		{"search for an empty name", "ca", "000600080005000d00000001000000010000000000000000", "empty or not terminated"},
		{"name without an end", "ca", "000600080005000d00000001000000016161616161616161", "empty or not terminated"},
		{"no padding", "ca", "000600020005000d00000001000000016100", "multiple of 8"},
		{"answer of 16 bytes", "ca", "0006001013c80000ffffffff0000000100000000000000000000000000000000", "wrong size"},
		{"beacon with a payload", "ca", "000d0008000d13c800000003000000000000000000000000", "wrong size"},
		{"extended header without its end", "ca", "0006ffff000500000000000100000001", "header cut short"},
		{"size 2^32-8", "ca", "0006ffff000500000000000100000001fffffff80000000d", "payload cut short"},
	} {
		b, err := hex.DecodeString(strings.ReplaceAll(c.hex, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		var p epics.Protocol
		if err := p.UnmarshalText([]byte(c.protocol)); err != nil {
			t.Fatal(err)
		}
		if got := epics.Valid(p, b); got != drop.Invalid {
			t.Errorf("%s %s is %v", c.protocol, c.what, got)
		}
		if p == epics.ChannelAccess {
			_, _, err = epics.ParseCA(b)
		} else {
			var m epics.PVAMessage
			if m, _, err = epics.ParsePVA(b); err == nil {
				err = decodePVA(m)
			}
		}
		if !errors.Is(err, drop.Invalid) || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s %s: %v, want %q", c.protocol, c.what, err, c.err)
		}
		for s := range epics.Searches(p, b) {
			t.Errorf("%s %s: searches for %q", c.protocol, c.what, s.Name)
		}
	}
}

// decodePVA decodes the payload as what the command says it is.
func decodePVA(m epics.PVAMessage) (err error) {
	switch m.Command {
	case epics.PVACommandSearch:
		_, err = m.Search()
	case epics.PVACommandSearchResponse:
		_, err = m.SearchResponse()
	case epics.PVACommandBeacon:
		_, err = m.Beacon()
	case epics.PVACommandOrigin:
		_, err = m.Origin()
	}
	return err
}

func TestNoProtocolIsValid(t *testing.T) {
	if got := epics.Valid(epics.None, []byte{1}); got != drop.None {
		t.Errorf("without a protocol: %v", got)
	}
	for port, want := range map[uint16]epics.Protocol{5064: epics.ChannelAccess, 5065: epics.ChannelAccess, 5076: epics.PVAccess, 5075: epics.None} {
		if got := epics.ProtocolOf(port); got != want {
			t.Errorf("port %d belongs to %v, want %v", port, got, want)
		}
	}
}

func TestSearches(t *testing.T) {
	two := epics.Search{Name: []byte("two:val")}
	for name, want := range map[string][]epics.Search{
		"pva search":            {{ID: 0x12345678, Name: two.Name}},
		"pva origin-and-search": {{ID: 0x12345678, Name: two.Name}},
		"pva search-long-size":  {{ID: 1, Name: two.Name}},
		"pva search-little":     {{ID: 1, Name: []byte("a")}, {ID: 2, Name: two.Name}},
		"pva discovery":         nil,
		"pva response":          nil,
		"ca search":             {{ID: 1, Name: two.Name}},
		"ca search-extended":    {{ID: 1, Name: two.Name}},
		"ca search-libca":       {{ID: 1, Name: []byte("SR01:BPM:01:X")}, {ID: 2, Name: []byte("SR01:BPM:02:X.DESC")}, {ID: 3, Name: []byte("twoval88")}},
		"ca response":           nil,
		"ca beacon":             nil,
	} {
		v := vectors(t)[name]
		if got := slices.Collect(epics.Searches(v.protocol, v.bytes)); !cmp.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	for s := range epics.Searches(epics.PVAccess, vector(t, "pva search-little")) {
		if string(s.Name) != "a" {
			t.Errorf("went on to %q after the loop was left", s.Name)
		}
		break
	}
	b := append(epics.CASearch(1, "a").Append(nil), epics.CASearch(2, "b").Append(nil)...)
	for s := range epics.Searches(epics.ChannelAccess, b) {
		if s.ID != 1 {
			t.Errorf("went on to %d after the loop was left", s.ID)
		}
		break
	}
}

func TestCAFields(t *testing.T) {
	parse := func(name string) (m epics.CAMessage, rest []byte) {
		t.Helper()
		m, rest, err := epics.ParseCA(vector(t, name))
		if err != nil {
			t.Fatal(err)
		}
		return m, rest
	}
	m, rest := parse("ca search")
	if n, ok := m.Sequence(); n != 1 || !ok || len(rest) != 24 || m.Name() != nil {
		t.Errorf("version: %+v, sequence %d %v", m, n, ok)
	}
	if _, ok := m.Server(); ok {
		t.Error("a client is a server")
	}
	m, _ = parse("ca beacon")
	if s, ok := m.Server(); s != netip.MustParseAddrPort("10.0.0.9:5064") || !ok || m.Param1 != 3 || m.IsRequest() {
		t.Errorf("beacon: %+v, server %v %v", m, s, ok)
	}
	m, _ = parse("ca response")
	if s, ok := m.Server(); s != netip.MustParseAddrPort("0.0.0.0:5064") || !ok || m.ID() != 1 || m.Name() != nil {
		t.Errorf("answer: %+v, server %v %v", m, s, ok)
	}
}

func TestPVAFields(t *testing.T) {
	parse := func(name string) epics.PVAMessage {
		t.Helper()
		m, _, err := epics.ParsePVA(vector(t, name))
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	s, err := parse("pva search-little").Search()
	if err != nil || s.Sequence != 12 || s.Flags != 0 || s.ReplyTo != netip.MustParseAddrPort("10.0.0.1:40000") || s.Len() != 2 {
		t.Errorf("search: %+v, %v", s, err)
	}
	var protocols []string
	for p := range s.Protocols() {
		protocols = append(protocols, string(p))
	}
	if !slices.Equal(protocols, []string{"tls", "tcp"}) {
		t.Errorf("protocols: %q", protocols)
	}
	for range s.Protocols() {
		break
	}
	s, err = parse("pva discovery").Search()
	if err != nil || s.Sequence != 0x66696e64 || s.Flags != epics.PVAMustReply|epics.PVAUnicast || s.ReplyTo.Port() != 54358 ||
		!s.ReplyTo.Addr().IsUnspecified() || s.Len() != 0 {
		t.Errorf("discovery: %+v, %v", s, err)
	}

	r, err := parse("pva response").SearchResponse()
	guid := epics.GUID{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}
	if err != nil || r.GUID != guid || r.Sequence != 12 || r.Server != netip.MustParseAddrPort("10.0.0.9:5075") ||
		string(r.Protocol) != "tcp" || !r.Found || !slices.Equal(slices.Collect(r.IDs()), []uint32{1, 2}) {
		t.Errorf("answer: %+v, %v", r, err)
	}
	for range r.IDs() {
		break
	}
	b, err := parse("pva beacon").Beacon()
	if err != nil || b.GUID != guid || b.Sequence != 3 || b.Changes != 1 || b.Server.Port() != 5075 || string(b.Protocol) != "tcp" {
		t.Errorf("beacon: %+v, %v", b, err)
	}
	a, err := parse("pva origin-and-search").Origin()
	if err != nil || a != netip.MustParseAddr("10.0.0.2") {
		t.Errorf("origin: %v, %v", a, err)
	}
	if _, err := parse("pva beacon").Search(); !errors.Is(err, drop.Invalid) {
		t.Errorf("a beacon as a search: %v", err)
	}
}

// TestEncoders encodes what was recorded, byte for byte, and the other byte order so that it means the same.
func TestEncoders(t *testing.T) {
	equal := func(name string, got []byte) {
		t.Helper()
		if want := vector(t, name); !bytes.Equal(got, want) {
			t.Errorf("%s:\ngot  %x\nwant %x", name, got, want)
		}
	}
	equal("ca search", epics.CASearch(1, "two:val").Append(epics.CAVersionMessage(1).Append(nil)))
	equal("ca search-libca", epics.CASearch(3, "twoval88").Append(epics.CASearch(2, "SR01:BPM:02:X.DESC").Append(
		epics.CASearch(1, "SR01:BPM:01:X").Append(epics.CAVersionMessage(1).Append(nil)))))
	equal("ca beacon", epics.CABeacon(3, netip.MustParseAddrPort("10.0.0.9:5064")).Append(nil))
	equal("ca response", epics.CASearchResponse(1, 5064).Append(nil))

	guid := epics.GUID{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}
	be, le := binary.AppendByteOrder(binary.BigEndian), binary.AppendByteOrder(binary.LittleEndian)
	equal("pva search", epics.AppendPVASearch(nil, be, epics.PVASearch{
		Sequence: 0x66696e64, Flags: epics.PVAUnicast, ReplyTo: netip.MustParseAddrPort("0.0.0.0:35848"),
	}, []string{"tcp"}, epics.PVAName{ID: 0x12345678, Name: "two:val"}))
	equal("pva discovery", epics.AppendPVASearch(nil, be, epics.PVASearch{
		Sequence: 0x66696e64, Flags: epics.PVAUnicast | epics.PVAMustReply, ReplyTo: netip.MustParseAddrPort("0.0.0.0:54358"),
	}, nil))
	equal("pva search-little", epics.AppendPVASearch(nil, le, epics.PVASearch{
		Sequence: 12, ReplyTo: netip.MustParseAddrPort("10.0.0.1:40000"),
	}, []string{"tls", "tcp"}, epics.PVAName{ID: 1, Name: "a"}, epics.PVAName{ID: 2, Name: "two:val"}))
	equal("pva response", epics.AppendPVASearchResponse(nil, be, epics.PVASearchResponse{
		GUID: guid, Sequence: 12, Server: netip.MustParseAddrPort("10.0.0.9:5075"), Protocol: []byte("tcp"), Found: true,
	}, 1, 2))
	equal("pva beacon", epics.AppendPVABeacon(nil, be, epics.PVABeacon{
		GUID: guid, Sequence: 3, Changes: 1, Server: netip.AddrPortFrom(netip.Addr{}, 5075), Protocol: []byte("tcp"),
	}))
	equal("pva origin-and-search", append(epics.AppendPVAOrigin(nil, be, netip.MustParseAddr("10.0.0.2")),
		epics.AppendPVASearch(nil, be, epics.PVASearch{
			Sequence: 0x66696e64, ReplyTo: netip.MustParseAddrPort("0.0.0.0:35848"),
		}, []string{"tcp"}, epics.PVAName{ID: 0x12345678, Name: "two:val"})...))

	want := epics.PVABeacon{GUID: guid, Flags: 7, Sequence: 3, Changes: 513, Server: netip.MustParseAddrPort("[2001:db8::1]:5075"), Protocol: []byte("tls")}
	m, rest, err := epics.ParsePVA(epics.AppendPVABeacon(nil, le, want))
	if err != nil || len(rest) != 0 || m.Flags != epics.PVAFromServer {
		t.Fatal(m, rest, err)
	}
	if got, err := m.Beacon(); err != nil || !cmp.Equal(got, want, cmpopts.EquateComparable(netip.AddrPort{})) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}

	// Strings on both sides of where a size takes one byte or five, and payloads of both headers.
	for _, n := range []int{1, 7, 8, 253, 254, 255, 65_524, 65_527, 65_528, 65_535, 100_000} {
		name := strings.Repeat("n", n)
		b := epics.AppendPVASearch(nil, le, epics.PVASearch{}, nil, epics.PVAName{ID: 9, Name: name})
		for _, got := range [][]epics.Search{
			slices.Collect(epics.Searches(epics.PVAccess, b)),
			slices.Collect(epics.Searches(epics.ChannelAccess, epics.CASearch(9, name).Append(nil))),
		} {
			if len(got) != 1 || got[0].ID != 9 || string(got[0].Name) != name {
				t.Errorf("a name of %d bytes became %d names", n, len(got))
			}
		}
	}
}

func TestNothingAllocates(t *testing.T) {
	for name, v := range vectors(t) {
		names := 0
		if n := testing.AllocsPerRun(100, func() {
			_ = epics.Valid(v.protocol, v.bytes)
			_ = epics.Valid(v.protocol, v.bytes[:len(v.bytes)-1])
			for s := range epics.Searches(v.protocol, v.bytes) {
				names += len(s.Name)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		epics.Protocol(9).String():               "Protocol(9)",
		epics.None.String():                      "none",
		epics.CACommand(99).String():             "CACommand(99)",
		epics.PVACommand(99).String():            "PVACommand(99)",
		epics.StatsOrder(9).String():             "StatsOrder(9)",
		epics.ByCount.String():                   "count",
		epics.ByRecent.String():                  "recent",
		epics.ByRate.String():                    "rate",
		epics.PVACommandBeacon.String():          "beacon",
		epics.PVACommandSearch.String():          "search",
		epics.PVACommandSearchResponse.String():  "search response",
		epics.PVACommandOrigin.String():          "origin tag",
		"ca " + epics.CACommandVersion.String():  "ca version",
		"ca " + epics.CACommandSearch.String():   "ca search",
		"ca " + epics.CACommandBeacon.String():   "ca beacon",
		"ca " + epics.CACommandNotFound.String(): "ca not found",
		"ca " + epics.CACommandConfirm.String():  "ca confirm",
		"ca " + epics.CACommandRegister.String(): "ca register",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	var p epics.Protocol
	if err := json.Unmarshal([]byte(`"pva"`), &p); p != epics.PVAccess || err != nil {
		t.Errorf("%v, %v", p, err)
	}
	if err := p.UnmarshalText([]byte("udp")); !errors.Is(err, epics.ErrProtocol) {
		t.Errorf("udp: %v", err)
	}
}

func TestAppendPrintable(t *testing.T) {
	for _, c := range []struct {
		in    string
		limit int
		want  string
	}{
		{"two:val", 100, "two:val"},
		{"", 100, ""},
		{"\x1b[2J\r\n\x00\x7f", 100, `\x1b[2J\x0d\x0a\x00\x7f`},
		{"a\xffb\\x", 100, `a\xffb\\x`},
		{"Größe 漢字", 100, "Größe 漢字"},
		{"\u202egnp.exe\u200b\U000e0001", 100, `\u202egnp.exe\u200b\U000e0001`},
		{"\u009b2J", 100, `\u009b2J`},
		{"abcdefgh", 8, "abcdefgh"},
		{"abcdefghi", 8, "abcde…"},
		{"abcdefg\x1b", 8, "abcde…"},
		{"äääää", 8, "ää…"},
		{"abc", 2, ""},
		{"abc", 0, ""},
	} {
		if got := string(epics.AppendPrintable([]byte("> "), c.in, c.limit)); got != "> "+c.want {
			t.Errorf("%q in %d bytes is %q, want %q", c.in, c.limit, got, "> "+c.want)
		}
		if got := string(epics.AppendPrintable(nil, []byte(c.in), c.limit)); got != c.want || !utf8.ValidString(got) {
			t.Errorf("%q in %d bytes is %q, want %q", c.in, c.limit, got, c.want)
		}
	}
}
