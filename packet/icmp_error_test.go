// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var cmpAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// The label stacks of the vectors.
var (
	label1  = []Label{{Label: 16001, TC: 5, Bottom: true, TTL: 1}}
	labels3 = []Label{{16001, 0, false, 1}, {299776, 7, false, 254}, {1048575, 3, true, 255}}
)

func TestParseICMPError(t *testing.T) {
	target := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, last}) }
	volta := netip.MustParseAddr("192.0.2.1")
	for _, tc := range []struct {
		name      string
		header    int // of the packet around it
		version   int
		typ, code uint8
		quote     int
		labels    []Label
		want      Quote // without Transport
		id, seq   uint16
		sum       uint16
	}{
		{"time-exceeded4", 20, 4, 11, 0, 28, nil, Quote{Version: 4, Protocol: ProtocolICMP, TTL: 253, Src: src4, Dst: target(1), TotalLen: 28, IPID: 0x511a}, 1, 0x80e8, 0x7716},
		{"time-exceeded4-mpls", 20, 4, 11, 0, 128, label1, Quote{Version: 4, Protocol: ProtocolICMP, TTL: 253, Src: src4, Dst: target(3), TotalLen: 28, IPID: 0xc2f7}, 1, 0x80e9, 0x7715},
		{"icmp4-time-exceeded-mpls-no-length", 0, 4, 11, 0, 128, label1, Quote{Version: 4, Protocol: ProtocolUDP, TTL: 253, Src: src4, Dst: target(5), TotalLen: 32, IPID: 0x8578, SrcPort: 1, DstPort: 0x80ea}, 12, 0x4958, 0x000c},
		{"icmp4-prohibited", 0, 4, 3, 13, 28, nil, Quote{Version: 4, Protocol: ProtocolUDP, TTL: 253, Src: src4, Dst: target(0x3f), TotalLen: 32, IPID: 0xc553, SrcPort: 2000, DstPort: 53}, 12, 0x80ed, 0x000c},
		{"icmp6-port", 0, 6, 1, 4, 48, nil, Quote{Version: 6, Protocol: ProtocolUDP, TTL: 253, Src: src6, Dst: netip.MustParseAddr("fd88:66::36"), TotalLen: 52, FlowLabel: 0xd0913, SrcPort: 1, DstPort: 0x80ee}, 12, 0x8336, 0x000c},
		{"anycast-time-exceeded", 20, 4, 11, 0, 28, nil, Quote{Version: 4, Protocol: ProtocolUDP, TTL: 1, Src: volta, Dst: far4, TotalLen: 28, SrcPort: 10000, DstPort: 33434}, 8, 0, 8},
		{"anycast-port", 20, 4, 3, 3, 28, nil, Quote{Version: 4, Protocol: ProtocolUDP, TTL: 1, Src: volta, Dst: far4, TotalLen: 28, SrcPort: 10003, DstPort: 33434}, 8, 0, 8},
		{"anycast-captured", 20, 4, 11, 0, 28, nil, Quote{Version: 4, Protocol: ProtocolUDP, TTL: 1, Src: volta, Dst: far4, TotalLen: 28, IPID: 0x3e2, SrcPort: 10000, DstPort: 33434}, 8, 0, 8},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := vector(t, tc.name)
			if tc.header == 20 {
				v, err := ParseIPv4(b)
				if err != nil || !v.ChecksumOK() {
					t.Fatalf("outer header: %v", err)
				}
				b = v.Payload()
			}
			m := ICMP(b)
			if tc.version == 4 && !m.ChecksumOK() || tc.version == 6 && !m.ChecksumOK6(netip.MustParseAddr("fd88:67::1"), src6) {
				t.Error("checksum taken for wrong")
			}
			e, err := ParseICMPError(tc.version, b)
			if err != nil {
				t.Fatal(err)
			}
			if e.Type != tc.typ || e.Code != tc.code || len(e.Quote) != tc.quote || e.MTU != 0 || e.Pointer != 0 {
				t.Errorf("error: %+v", e)
			}
			if got := e.Extensions.AppendLabels(nil); !slices.Equal(got, tc.labels) {
				t.Errorf("labels: got %v, want %v", got, tc.labels)
			}
			q, err := ParseQuote(e.Quote)
			if err != nil {
				t.Fatal(err)
			}
			if q.ID() != tc.id || q.Seq() != tc.seq || q.UDPChecksum() != tc.seq || q.UDPLen() != int(tc.id) || q.TCPSeq() != uint32(tc.id)<<16|uint32(tc.seq) ||
				q.SCTPTag() != q.TCPSeq() || q.ICMPType() != uint8(q.SrcPort>>8) && q.ICMPType() != 8 {
				t.Errorf("transport: %x", q.Transport)
			}
			if q.Protocol == ProtocolICMP && (q.ICMPType() != 8 || q.ICMPCode() != 0 || q.ICMPChecksum() != tc.sum) {
				t.Errorf("quoted ICMP: %x", q.Transport)
			}
			q.Transport = nil
			if d := cmp.Diff(tc.want, q, cmpAddr); d != "" {
				t.Error(d)
			}
		})
	}
}

// Where the extension structure may be, and what is not one.
func TestICMPErrorExtensions(t *testing.T) {
	type place struct {
		length byte // length field
		quote  int  // bytes before the structure
	}
	ext := func(change ...byte) []byte { // pairs of offset and value
		b := vector(t, "extension-3labels")
		for i := 0; i < len(change); i += 2 {
			b[change[i]] = change[i+1]
		}
		return b
	}
	for _, tc := range []struct {
		name      string
		version   int
		typ       uint8
		place     place
		extension []byte
		ok        bool
		quote     int
	}{
		{"length 128 bytes", 4, 11, place{32, 128}, ext(), true, 128},
		{"length 160 bytes", 4, 3, place{40, 160}, ext(), true, 160},
		{"length 160 bytes, structure at 128", 4, 3, place{40, 128}, ext(), false, 128 + 20},
		{"length below 128", 4, 12, place{7, 28}, ext(), true, 28},
		{"no length", 4, 11, place{0, 128}, ext(), true, 128},
		{"no length, elsewhere", 4, 11, place{0, 132}, ext(), false, 152},
		{"length beyond the end", 4, 11, place{255, 128}, ext(), false, 148},
		{"length up to the end", 4, 11, place{37, 128}, ext(), false, 148},
		{"ICMPv6 128 bytes", 6, 3, place{16, 128}, ext(), true, 128},
		{"ICMPv6 136 bytes", 6, 1, place{17, 136}, ext(), true, 136},
		{"ICMPv6 no length", 6, 1, place{0, 128}, ext(), true, 128},
		{"ICMPv6 without such a field", 6, 4, place{16, 128}, ext(), false, 148},
		{"redirect", 4, 5, place{32, 128}, ext(), false, 148},
		{"version 1", 4, 11, place{32, 128}, ext(0, 0x10), false, 128},
		{"wrong checksum", 4, 11, place{32, 128}, ext(19, 0), false, 128},
		{"wrong checksum, no length", 4, 11, place{0, 128}, ext(19, 0), false, 148},
		{"no checksum", 4, 11, place{32, 128}, ext(2, 0, 3, 0), true, 128},
		{"object of 3 bytes", 4, 11, place{32, 128}, ext(2, 0, 3, 0, 5, 3), false, 128},
		{"object beyond the end", 4, 11, place{32, 128}, ext(2, 0, 3, 0, 5, 17), false, 128},
		{"bytes behind the objects", 4, 11, place{32, 128}, ext(2, 0, 3, 0, 5, 13), false, 128},
		{"3 bytes of extension", 4, 11, place{32, 128}, ext()[:3], false, 128},
		{"header alone", 4, 11, place{32, 128}, []byte{0x20, 0, 0xdf, 0xff}, true, 128},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := make([]byte, 8+tc.place.quote, 1000)
			b[0] = tc.typ
			if tc.version == 4 {
				b[5] = tc.place.length
			} else {
				b[4] = tc.place.length
			}
			b = append(b, tc.extension...)
			e, err := ParseICMPError(tc.version, b)
			if err != nil {
				t.Fatal(err)
			}
			if len(e.Quote) != tc.quote || (e.Extensions != nil) != tc.ok {
				t.Errorf("got %d bytes of quote, extensions %x", len(e.Quote), e.Extensions)
			}
			if tc.ok {
				equalBytes(t, "extensions", e.Extensions, tc.extension)
			}
		})
	}
}

func TestICMPErrorFields(t *testing.T) {
	for _, tc := range []struct {
		version   int
		typ, code uint8
		rest      uint32
		want      ICMPError
	}{
		{4, 3, 4, 0x00000578, ICMPError{MTU: 1400}},
		{4, 3, 3, 0x00000578, ICMPError{}},
		{4, 12, 0, 0x09000000, ICMPError{Pointer: 9}},
		{4, 5, 1, 0x0a580102, ICMPError{Gateway: src4}},
		{4, 4, 0, 0xffffffff, ICMPError{}},
		{6, 2, 0, 0x00010500, ICMPError{MTU: 66816}},
		{6, 4, 1, 0x00000028, ICMPError{Pointer: 40}},
		{6, 100, 0, 0xffffffff, ICMPError{}},
	} {
		b := []byte{tc.typ, tc.code, 0, 0, 0, 0, 0, 0, 'q'}
		binary.BigEndian.PutUint32(b[4:], tc.rest)
		got, err := ParseICMPError(tc.version, b)
		if err != nil {
			t.Fatal(err)
		}
		tc.want.Type, tc.want.Code, tc.want.Quote = tc.typ, tc.code, []byte("q")
		if d := cmp.Diff(tc.want, got, cmpAddr); d != "" {
			t.Errorf("IPv%d type %d code %d: %s", tc.version, tc.typ, tc.code, d)
		}
	}
	for _, tc := range []struct {
		version int
		b       []byte
		want    error
	}{
		{5, make([]byte, 8), ErrVersion},
		{4, make([]byte, 8), ErrMalformed}, // an echo reply
		{6, []byte{129, 0, 0, 0, 0, 0, 0, 0}, ErrMalformed},
		{4, []byte{11, 0, 0, 0, 0, 0, 0}, ErrTruncated},
	} {
		if _, err := ParseICMPError(tc.version, tc.b); !errors.Is(err, tc.want) {
			t.Errorf("IPv%d %x: got %v, want %v", tc.version, tc.b, err, tc.want)
		}
	}
}

func TestIsICMPError(t *testing.T) {
	for typ := range 256 {
		want4 := slices.Contains([]int{3, 4, 5, 11, 12}, typ)
		if got := IsICMPError(4, uint8(typ)); got != want4 {
			t.Errorf("ICMP %d: %v", typ, got)
		}
		if got := IsICMPError(6, uint8(typ)); got != (typ < 128) {
			t.Errorf("ICMPv6 %d: %v", typ, got)
		}
		if IsICMPError(0, uint8(typ)) {
			t.Errorf("type %d of IP version 0", typ)
		}
	}
}

func TestAppendICMPError(t *testing.T) {
	// The vectors, from their parts.
	for _, name := range []string{"time-exceeded4", "time-exceeded4-mpls", "anycast-port"} {
		b := vector(t, name)[20:]
		e, err := ParseICMPError(4, b)
		if err != nil {
			t.Fatal(err)
		}
		e.Quote = e.Quote[:28] // the padding is the encoder's
		equalBytes(t, name, must(t)(AppendICMPError4([]byte("before"), &e)), append([]byte("before"), b...))
	}
	b := vector(t, "icmp6-port")
	e, err := ParseICMPError(6, b)
	if err != nil {
		t.Fatal(err)
	}
	router6 := netip.MustParseAddr("fd88:67::1")
	equalBytes(t, "icmp6-port", must(t)(AppendICMPError6(nil, router6, src6, &e)), b)

	long := bytes.Repeat([]byte{0xcc}, 9000)
	extension := must(t)(AppendMPLS(nil, labels3))
	for _, tc := range []struct {
		name    string
		version int
		e       ICMPError
		quote   int
		length  byte
	}{
		{"IPv4 as much as fits", 4, ICMPError{Type: 11, Quote: long}, 548, 0},
		{"IPv6 as much as fits", 6, ICMPError{Type: 3, Quote: long}, 1232, 0},
		{"IPv4 with labels", 4, ICMPError{Type: 11, Quote: long, Extensions: extension}, 128, 32},
		{"IPv6 with labels", 6, ICMPError{Type: 1, Code: 4, Quote: long, Extensions: extension}, 128, 16},
		{"IPv6 short with labels", 6, ICMPError{Type: 3, Quote: long[:61], Extensions: extension}, 128, 16},
		{"fragmentation needed with labels", 4, ICMPError{Type: 3, Code: 4, MTU: 1492, Quote: long, Extensions: extension}, 128, 32},
		{"parameter problem with labels", 4, ICMPError{Type: 12, Pointer: 200, Quote: long, Extensions: extension}, 128, 32},
		{"packet too big", 6, ICMPError{Type: 2, MTU: 1 << 31, Quote: long}, 1232, 0},
		{"next header unknown", 6, ICMPError{Type: 4, Code: 1, Pointer: 40, Quote: long[:50]}, 50, 0},
		{"redirect", 4, ICMPError{Type: 5, Code: 1, Gateway: far4, Quote: long[:50]}, 50, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b []byte
			field := 5
			if tc.version == 4 {
				b = must(t)(AppendICMPError4(nil, &tc.e))
				if !ICMP(b).ChecksumOK() || len(b) > 556 {
					t.Errorf("checksum or length %d: %x", len(b), b)
				}
			} else {
				field = 4
				b = must(t)(AppendICMPError6(nil, router6, src6, &tc.e))
				if !ICMP(b).ChecksumOK6(router6, src6) || len(b) > 1240 {
					t.Errorf("checksum or length %d: %x", len(b), b)
				}
			}
			if tc.e.Extensions != nil && b[field] != tc.length {
				t.Errorf("length field %d, want %d", b[field], tc.length)
			}
			got, err := ParseICMPError(tc.version, b)
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Quote) != tc.quote {
				t.Errorf("%d bytes of quote, want %d", len(got.Quote), tc.quote)
			}
			n := min(tc.quote, len(tc.e.Quote))
			equalBytes(t, "quote", got.Quote[:n], tc.e.Quote[:n])
			equalBytes(t, "padding", got.Quote[n:], make([]byte, tc.quote-n))
			got.Quote, tc.e.Quote = nil, nil
			if d := cmp.Diff(tc.e, got, cmpAddr); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestAppendICMPErrorErrors(t *testing.T) {
	big := must(t)(AppendExtensions(nil, ExtensionObject{Class: 9, Payload: make([]byte, 1200)}))
	for _, tc := range []struct {
		e            ICMPError
		want4, want6 error
	}{
		{ICMPError{Type: 0, Quote: []byte("q")}, ErrMalformed, nil},
		{ICMPError{Type: 200}, ErrMalformed, ErrMalformed},
		{ICMPError{Type: 3, Code: 4, MTU: 65536}, ErrMalformed, nil},
		{ICMPError{Type: 12, Pointer: 256}, ErrMalformed, nil},
		{ICMPError{Type: 5, Gateway: src6}, ErrMalformed, nil},
		{ICMPError{Type: 4, Extensions: big[:4]}, ErrMalformed, ErrMalformed},
		{ICMPError{Type: 3, Extensions: big}, ErrTooLong, ErrTooLong},
	} {
		if b, err := AppendICMPError4([]byte("x"), &tc.e); !errors.Is(err, tc.want4) || string(b) != "x" {
			t.Errorf("IPv4 type %d: %x, %v, want %v", tc.e.Type, b, err, tc.want4)
		}
		if b, err := AppendICMPError6([]byte("x"), dst6, src6, &tc.e); !errors.Is(err, tc.want6) || err != nil && string(b) != "x" {
			t.Errorf("IPv6 type %d: %x, %v, want %v", tc.e.Type, b, err, tc.want6)
		}
	}
	if _, err := AppendICMPError6(nil, dst4, src6, &ICMPError{Type: 3}); !errors.Is(err, ErrAddress) {
		t.Errorf("two versions: %v", err)
	}
}
