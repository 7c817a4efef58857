// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package pcp_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/nat/pcp"
)

var nonce = pcp.Nonce{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}

// The bytes are drawn by hand from the figures of RFC 6887, sections 7.1, 7.2 and 11.1.
var requests = []struct {
	name, hex string
	want      pcp.Request
}{
	{
		"announce", "02000000 00000000 00000000000000000000ffffc0000207",
		pcp.Request{Opcode: pcp.Announce, Client: netip.MustParseAddr("192.0.2.7")},
	},
	{
		"map udp", "02010000 00000e10 00000000000000000000ffffc0000207 0102030405060708090a0b0c 11000000 c1cac1cb 00000000000000000000ffff00000000",
		pcp.Request{
			Opcode: pcp.Map, Lifetime: time.Hour, Client: netip.MustParseAddr("192.0.2.7"),
			Mapping: pcp.Mapping{Nonce: nonce, Protocol: pcp.UDP, InternalPort: 49610, External: netip.MustParseAddrPort("0.0.0.0:49611")},
		},
	},
	{
		"map tcp over IPv6", "02010000 00000000 20010db8000000000000000000000007 0102030405060708090a0b0c 06000000 c1ca0000 00000000000000000000000000000000",
		pcp.Request{
			Opcode: pcp.Map, Client: netip.MustParseAddr("2001:db8::7"),
			Mapping: pcp.Mapping{Nonce: nonce, Protocol: pcp.TCP, InternalPort: 49610, External: netip.MustParseAddrPort("[::]:0")},
		},
	},
}

var responses = []struct {
	name, hex string
	want      pcp.Response
}{
	{
		"announce", "02800000 00000000 00000107 000000000000000000000000",
		pcp.Response{Opcode: pcp.Announce, Epoch: 263},
	},
	{
		"mapped", "02810000 00000078 00000107 000000000000000000000000 0102030405060708090a0b0c 06000000 c1cac1cb 00000000000000000000ffffcb007109",
		pcp.Response{
			Opcode: pcp.Map, Lifetime: 2 * time.Minute, Epoch: 263,
			Mapping: pcp.Mapping{Nonce: nonce, Protocol: pcp.TCP, InternalPort: 49610, External: netip.MustParseAddrPort("203.0.113.9:49611")},
		},
	},
	{
		"refused", "02810002 00000708 00000107 000000000000000000000000 0102030405060708090a0b0c 06000000 c1cac1cb 00000000000000000000ffff00000000",
		pcp.Response{
			Opcode: pcp.Map, Result: pcp.NotAuthorized, Lifetime: 30 * time.Minute, Epoch: 263,
			Mapping: pcp.Mapping{Nonce: nonce, Protocol: pcp.TCP, InternalPort: 49610, External: netip.MustParseAddrPort("0.0.0.0:49611")},
		},
	},
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRequests(t *testing.T) {
	for _, tt := range requests {
		wire := unhex(t, tt.hex)
		if got := tt.want.Append(nil); !bytes.Equal(got, wire) {
			t.Errorf("%s: encoded as %x, want %x", tt.name, got, wire)
		}
		if got, err := pcp.ParseRequest(wire); err != nil || got != tt.want {
			t.Errorf("%s: decoded as %+v (%v), want %+v", tt.name, got, err, tt.want)
		}
		for n := range wire {
			if _, err := pcp.ParseRequest(wire[:n]); !errors.Is(err, pcp.ErrMalformed) {
				t.Errorf("%s: the first %d bytes are taken for a request (%v)", tt.name, n, err)
			}
		}
		if _, err := pcp.ParseResponse(wire); !errors.Is(err, pcp.ErrMalformed) {
			t.Errorf("%s: taken for a response (%v)", tt.name, err)
		}
	}
}

func TestResponses(t *testing.T) {
	for _, tt := range responses {
		wire := unhex(t, tt.hex)
		if got := tt.want.Append(nil); !bytes.Equal(got, wire) {
			t.Errorf("%s: encoded as %x, want %x", tt.name, got, wire)
		}
		if got, err := pcp.ParseResponse(wire); err != nil || got != tt.want {
			t.Errorf("%s: decoded as %+v (%v), want %+v", tt.name, got, err, tt.want)
		}
		withOption := append(bytes.Clone(wire), 128, 0, 0, 4, 1, 2, 3, 4)
		if got, err := pcp.ParseResponse(withOption); err != nil || got != tt.want {
			t.Errorf("%s with an option: decoded as %+v (%v)", tt.name, got, err)
		}
		if _, err := pcp.ParseResponse(append(bytes.Clone(wire), make([]byte, pcp.MaxSize)...)); !errors.Is(err, pcp.ErrMalformed) {
			t.Errorf("%s: taken although too long (%v)", tt.name, err)
		}
		if tt.want.Result != pcp.Success {
			continue
		}
		for n := range wire {
			if _, err := pcp.ParseResponse(wire[:n]); !errors.Is(err, pcp.ErrMalformed) {
				t.Errorf("%s: the first %d bytes are taken for a response (%v)", tt.name, n, err)
			}
		}
	}
}

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		pcp.Map.String(): "MAP", pcp.Opcode(37).String(): "Opcode(37)",
		pcp.ExcessiveRemotePeers.String(): "excessive remote peers", pcp.Result(37).String(): "Result(37)",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, tt := range requests {
		f.Add(unhex(f, tt.hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := pcp.ParseRequest(b)
		if err != nil {
			return
		}
		again, err := pcp.ParseRequest(r.Append(nil))
		if err != nil || again != r {
			t.Errorf("%x is %+v, which encodes to %+v (%v)", b, r, again, err)
		}
	})
}

func FuzzParseResponse(f *testing.F) {
	for _, tt := range responses {
		f.Add(unhex(f, tt.hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := pcp.ParseResponse(b)
		if err != nil || r.Result != pcp.Success {
			return
		}
		again, err := pcp.ParseResponse(r.Append(nil))
		if err != nil || again != r {
			t.Errorf("%x is %+v, which encodes to %+v (%v)", b, r, again, err)
		}
	})
}
