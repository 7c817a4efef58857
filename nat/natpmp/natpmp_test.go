// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package natpmp_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/nat/natpmp"
)

// The bytes are drawn by hand from the figures of RFC 6886, sections 3.2 to 3.5.
var requests = []struct {
	name, hex string
	want      natpmp.Request
}{
	{"external address", "0000", natpmp.Request{Op: natpmp.ExternalAddress}},
	{
		"map udp", "00010000c1cac1cb00000e10",
		natpmp.Request{Op: natpmp.MapUDP, InternalPort: 49610, ExternalPort: 49611, Lifetime: time.Hour},
	},
	{"unmap tcp", "00020000c1ca000000000000", natpmp.Request{Op: natpmp.MapTCP, InternalPort: 49610}},
}

var responses = []struct {
	name, hex string
	want      natpmp.Response
}{
	{
		"external address", "0080000000000107cb007109",
		natpmp.Response{Op: natpmp.ExternalAddress, Epoch: 263, External: netip.MustParseAddr("203.0.113.9")},
	},
	{
		"mapped tcp", "0082000000000107c1cac1cb00000078",
		natpmp.Response{Op: natpmp.MapTCP, Epoch: 263, InternalPort: 49610, ExternalPort: 49611, Lifetime: 2 * time.Minute},
	},
	{
		"refused", "0081000200000107c1ca000000000000",
		natpmp.Response{Op: natpmp.MapUDP, Result: natpmp.NotAuthorized, Epoch: 263, InternalPort: 49610},
	},
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
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
		if got, err := natpmp.ParseRequest(wire); err != nil || got != tt.want {
			t.Errorf("%s: decoded as %+v (%v), want %+v", tt.name, got, err, tt.want)
		}
		for n := range wire {
			if _, err := natpmp.ParseRequest(wire[:n]); !errors.Is(err, natpmp.ErrMalformed) {
				t.Errorf("%s: the first %d bytes are taken for a request (%v)", tt.name, n, err)
			}
		}
	}
	for _, bad := range []string{"0200", "0003", "0080", "00010000c1cac1cb00000e"} {
		if r, err := natpmp.ParseRequest(unhex(t, bad)); !errors.Is(err, natpmp.ErrMalformed) {
			t.Errorf("%s is taken for %+v (%v)", bad, r, err)
		}
	}
}

func TestResponses(t *testing.T) {
	for _, tt := range responses {
		wire := unhex(t, tt.hex)
		if got := tt.want.Append(nil); !bytes.Equal(got, wire) {
			t.Errorf("%s: encoded as %x, want %x", tt.name, got, wire)
		}
		if got, err := natpmp.ParseResponse(wire); err != nil || got != tt.want {
			t.Errorf("%s: decoded as %+v (%v), want %+v", tt.name, got, err, tt.want)
		}
		if tt.want.Result != natpmp.Success {
			continue
		}
		for n := range wire {
			if _, err := natpmp.ParseResponse(wire[:n]); !errors.Is(err, natpmp.ErrMalformed) {
				t.Errorf("%s: the first %d bytes are taken for a response (%v)", tt.name, n, err)
			}
		}
	}
}

// A gateway that speaks NAT-PMP only answers PCP with eight bytes, whatever was asked.
func TestUnsupportedVersion(t *testing.T) {
	r, err := natpmp.ParseResponse(unhex(t, "0081000100000107"))
	if err != nil || r.Result != natpmp.UnsupportedVersion || r.Epoch != 263 {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		natpmp.MapTCP.String(): "map tcp", natpmp.Op(37).String(): "Op(37)",
		natpmp.NetworkFailure.String(): "network failure", natpmp.Result(300).String(): "Result(300)",
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
		r, err := natpmp.ParseRequest(b)
		if err != nil {
			return
		}
		again, err := natpmp.ParseRequest(r.Append(nil))
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
		r, err := natpmp.ParseResponse(b)
		if err != nil || r.Result != natpmp.Success {
			return
		}
		again, err := natpmp.ParseResponse(r.Append(nil))
		if err != nil || again != r {
			t.Errorf("%x is %+v, which encodes to %+v (%v)", b, r, again, err)
		}
	})
}
