// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package epics_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/seed5728abee/fathom/relay/drop"
	"github.com/seed5728abee/fathom/relay/epics"
)

func seed(f *testing.F, p epics.Protocol) {
	for _, v := range vectors(f) {
		if v.protocol == p {
			f.Add(v.bytes)
		}
	}
}

// FuzzParseCA holds that a message means the same once encoded again, and that all decoders agree on what is valid.
func FuzzParseCA(f *testing.F) {
	seed(f, epics.ChannelAccess)
	f.Fuzz(func(t *testing.T, b []byte) {
		valid := epics.Valid(epics.ChannelAccess, b) == drop.None
		var names [][]byte
		rest := b
		var err error
		for {
			var m epics.CAMessage
			before := len(rest)
			if m, rest, err = epics.ParseCA(rest); err != nil {
				break
			}
			if m.IsRequest() {
				names = append(names, m.Name())
				if len(m.Name()) == 0 || bytes.IndexByte(m.Name(), 0) >= 0 {
					t.Fatalf("searches for %q", m.Name())
				}
			}
			m.Server()
			m.Sequence()
			if before-len(rest) < epics.CAHeaderLen+len(m.Payload) {
				t.Fatalf("a message with %d bytes of payload took %d bytes", len(m.Payload), before-len(rest))
			}
			again, tail, err := epics.ParseCA(m.Append(nil))
			if err != nil || len(tail) != 0 || !bytes.Equal(again.Payload, m.Payload) {
				t.Fatalf("%+v encoded and decoded is %+v, %v", m, again, err)
			}
			if again.Payload, m.Payload = nil, nil; again.Command != m.Command || again.Count != m.Count || again.Param1 != m.Param1 {
				t.Fatalf("%+v encoded and decoded is %+v", m, again)
			}
			if len(rest) == 0 {
				break
			}
		}
		if err != nil && !errors.Is(err, drop.Invalid) || (err == nil) != valid {
			t.Fatalf("valid is %v, but parsing ends with %v", valid, err)
		}
		i := 0
		for s := range epics.Searches(epics.ChannelAccess, b) {
			if i >= len(names) || !bytes.Equal(s.Name, names[i]) {
				t.Fatalf("search %d is for %q, want %q", i, s.Name, names)
			}
			i++
		}
		if i != len(names) {
			t.Fatalf("%d searches, want %d", i, len(names))
		}
	})
}

// FuzzParsePVA holds the same for PVAccess.
func FuzzParsePVA(f *testing.F) {
	seed(f, epics.PVAccess)
	f.Fuzz(func(t *testing.T, b []byte) {
		valid := epics.Valid(epics.PVAccess, b) == drop.None
		rest := b
		var err error
		names := 0
		for {
			var m epics.PVAMessage
			if m, rest, err = epics.ParsePVA(rest); err != nil {
				break
			}
			if err = decodePVA(m); err != nil {
				break
			}
			names += reencode(t, m)
			if len(rest) == 0 {
				break
			}
		}
		if err != nil && !errors.Is(err, drop.Invalid) || (err == nil) != valid {
			t.Fatalf("valid is %v, but parsing ends with %v", valid, err)
		}
		for s := range epics.Searches(epics.PVAccess, b) {
			if names--; len(s.Name) == 0 {
				t.Fatal("searches for nothing")
			}
		}
		if names != 0 {
			t.Fatalf("%d names are missing", names)
		}
	})
}

// reencode encodes a message with the known fields only and compares. It returns how many names it searches for.
func reencode(t *testing.T, m epics.PVAMessage) int {
	order := binary.AppendByteOrder(binary.LittleEndian)
	if m.Flags&epics.PVABigEndian != 0 {
		order = binary.BigEndian
	}
	parse := func(b []byte) epics.PVAMessage {
		again, rest, err := epics.ParsePVA(b)
		if err != nil || len(rest) != 0 || again.Flags&epics.PVABigEndian != m.Flags&epics.PVABigEndian {
			t.Fatalf("%x: %+v, %v", b, again, err)
		}
		return again
	}
	switch m.Command {
	case epics.PVACommandSearch:
		s, _ := m.Search()
		var protocols []string
		for p := range s.Protocols() {
			protocols = append(protocols, string(p))
		}
		var names []epics.PVAName
		for id, name := range s.Names() {
			names = append(names, epics.PVAName{ID: id, Name: string(name)})
		}
		b := epics.AppendPVASearch(nil, order, s, protocols, names...)
		all := protocols
		again, err := parse(b).Search()
		if err != nil || again.Sequence != s.Sequence || again.Flags != s.Flags || again.ReplyTo.Port() != s.ReplyTo.Port() ||
			again.Len() != s.Len() || len(names) != s.Len() {
			t.Fatalf("%+v became %+v, %v", s, again, err)
		}
		for p := range again.Protocols() {
			if len(protocols) == 0 || string(p) != protocols[0] {
				t.Fatalf("protocol %q, want %q", p, protocols)
			}
			protocols = protocols[1:]
		}
		if len(protocols) != 0 {
			t.Fatalf("protocols %q are missing", protocols)
		}
		if !bytes.Equal(epics.AppendPVASearch(nil, order, again, all, names...), b) {
			t.Fatalf("%x is not encoded the same again", b)
		}
		return len(names)
	case epics.PVACommandSearchResponse:
		s, _ := m.SearchResponse()
		again, err := parse(epics.AppendPVASearchResponse(nil, order, s, slices.Collect(s.IDs())...)).SearchResponse()
		if err != nil || again.GUID != s.GUID || again.Sequence != s.Sequence || again.Found != s.Found ||
			!slices.Equal(slices.Collect(again.IDs()), slices.Collect(s.IDs())) || !bytes.Equal(again.Protocol, s.Protocol) {
			t.Fatalf("%+v became %+v, %v", s, again, err)
		}
	case epics.PVACommandBeacon:
		s, _ := m.Beacon()
		again, err := parse(epics.AppendPVABeacon(nil, order, s)).Beacon()
		if err != nil || again.GUID != s.GUID || again.Changes != s.Changes || again.Sequence != s.Sequence || again.Server.Port() != s.Server.Port() {
			t.Fatalf("%+v became %+v, %v", s, again, err)
		}
	case epics.PVACommandOrigin:
		a, _ := m.Origin()
		again, err := parse(epics.AppendPVAOrigin(nil, order, a)).Origin()
		if err != nil || again != a && !a.IsUnspecified() {
			t.Fatalf("%v became %v, %v", a, again, err)
		}
	}
	return 0
}

func FuzzAppendPrintable(f *testing.F) {
	f.Add([]byte("\x1b[2J\\\xff\u202e"), uint8(12))
	f.Fuzz(func(t *testing.T, b []byte, limit uint8) {
		got := epics.AppendPrintable(nil, b, int(limit))
		if len(got) > int(limit) {
			t.Fatalf("%q has more than %d bytes", got, limit)
		}
		if again := epics.AppendPrintable(nil, bytes.ReplaceAll(got, []byte(`\`), nil), 4*len(got)+3); bytes.ContainsRune(again, '\\') {
			t.Fatalf("%q has characters that are not printable", got)
		}
	})
}
