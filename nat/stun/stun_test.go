// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package stun_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed5728abee/fathom/nat/stun"
)

var (
	addr = netip.MustParseAddr
	ap   = netip.MustParseAddrPort
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// RFC 5769 sections 2.1 to 2.3.
const (
	vectorRequest = `00010058 2112a442 b7e7a701bc34d686fa87dfae
		80220010 5354554e207465737420636c69656e74
		00240004 6e0001ff
		80290008 932ff9b151263b36
		00060009 6576746a3a68367659202020
		00080014 9aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2
		80280004 e57a3bcf`
	vectorIPv4 = `0101003c 2112a442 b7e7a701bc34d686fa87dfae
		8022000b 7465737420766563746f7220
		00200008 0001a147e112a643
		00080014 2b91f599fd9e90c38c7489f92af9ba53f06be7d7
		80280004 c07d4c96`
	vectorIPv6 = `01010048 2112a442 b7e7a701bc34d686fa87dfae
		8022000b 7465737420766563746f7220
		00200014 0002a1470113a9faa5d3f179bc25f4b5bed2b9d9
		00080014 a382954e4be67bf11784c97c8292c275bfe3ed41
		80280004 c8fb0b4c`
	vectorID = `b7e7a701bc34d686fa87dfae`
)

// A host asks, and a server answers what it sees.
func Example() {
	id := stun.NewID()
	request := stun.AppendRequest(nil, id)
	// ... which reaches a server, from outside the NAT:
	answer, err := stun.AppendAnswer(nil, request, ap("203.0.113.7:4001"))
	if err != nil {
		fmt.Println(err)
		return
	}
	// ... and the answer comes back:
	a, err := stun.ParseAnswer(answer)
	fmt.Println(a.Mapped, a.ID == id, err)
	// Output: 203.0.113.7:4001 true <nil>
}

func TestVectors(t *testing.T) {
	id := stun.ID(unhex(t, vectorID))
	for vector, want := range map[string]stun.Answer{
		vectorIPv4: {ID: id, Mapped: ap("192.0.2.1:32853")},
		vectorIPv6: {ID: id, Mapped: ap("[2001:db8:1234:5678:11:2233:4455:6677]:32853")},
	} {
		b := unhex(t, vector)
		got, err := stun.ParseAnswer(b)
		if err != nil || got != want {
			t.Errorf("ParseAnswer(%x) = %v, %v, want %v", b, got, err, want)
		}
		for i := range b {
			if got, err := stun.ParseAnswer(b[:i]); !errors.Is(err, stun.ErrMessage) {
				t.Errorf("the first %d bytes are taken for %v (%v)", i, got, err)
			}
		}
		broken := slices.Clone(b)
		broken[len(b)-1] ^= 1
		if _, err := stun.ParseAnswer(broken); !errors.Is(err, stun.ErrMessage) {
			t.Errorf("a wrong fingerprint: %v", err)
		}
		if _, err := stun.AppendAnswer(nil, b, want.Mapped); !errors.Is(err, stun.ErrKind) {
			t.Errorf("an answer was answered: %v", err)
		}
	}
	// The fingerprint of the answer is there because the request has one.
	answer, err := stun.AppendAnswer([]byte("x"), unhex(t, vectorRequest), ap("[::ffff:192.0.2.1]:32853"))
	want := append([]byte("x"), unhex(t, `01010014 2112a442 b7e7a701bc34d686fa87dfae 00200008 0001a147e112a643 80280004 `)...)
	if err != nil || !bytes.HasPrefix(answer, want) || len(answer) != len(want)+4 {
		t.Errorf("answer %x, %v, want %x and a checksum", answer, err, want)
	}
	if got := stun.AppendRequest(nil, id); !bytes.HasPrefix(got, unhex(t, "00010008 2112a442"+vectorID+"80280004")) || len(got) != 28 {
		t.Errorf("request %x", got)
	}
}

// An answer must not be much longer than what it answers, or the server amplifies.
func TestNoAmplification(t *testing.T) {
	bare := unhex(t, "00010000 2112a442"+vectorID)
	for _, from := range []netip.AddrPort{ap("192.0.2.1:1"), ap("[2001:db8::1]:1")} {
		for _, request := range [][]byte{bare, stun.AppendRequest(nil, stun.NewID())} {
			answer, err := stun.AppendAnswer(nil, request, from)
			if err != nil || len(answer) > len(request)+24 {
				t.Errorf("%d bytes of request, %d of answer (%v)", len(request), len(answer), err)
			}
		}
	}
	for _, b := range [][]byte{nil, []byte("GET / HTTP/1.1\r\n"), make([]byte, 1200), append(slices.Clone(bare), 0), unhex(t, "00110000 2112a442"+vectorID)} {
		if answer, err := stun.AppendAnswer(nil, b, ap("192.0.2.1:1")); err == nil {
			t.Errorf("%x was answered with %x", b, answer)
		}
	}
	if answer, err := stun.AppendAnswer(nil, bare, netip.AddrPort{}); err == nil {
		t.Errorf("nobody was answered with %x", answer)
	}
}

func FuzzParse(f *testing.F) {
	for _, v := range []string{vectorRequest, vectorIPv4, vectorIPv6} {
		f.Add(unhex(f, v))
	}
	f.Add(stun.AppendRequest(nil, stun.ID{}))
	from := ap("192.0.2.1:32853")
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := stun.ParseAnswer(b); err == nil && (!a.Mapped.IsValid() || a.Mapped.Port() == 0) {
			t.Errorf("%x: mapped address %v", b, a.Mapped)
		}
		answer, err := stun.AppendAnswer(nil, b, from)
		if err != nil {
			return
		}
		if a, err := stun.ParseAnswer(answer); err != nil || a.Mapped != from || len(answer) > len(b)+24 {
			t.Errorf("%x is answered with %x: %v, %v", b, answer, a, err)
		}
	})
}

func TestClassify(t *testing.T) {
	local := []netip.AddrPort{ap("192.168.1.2:4001")}
	const s1, s2, s1b, s3 = "192.0.2.1:1", "192.0.2.2:1", "192.0.2.1:2", "192.0.2.3:1"
	for _, c := range []struct {
		name     string
		seen     []string // server, mapped, server, ...
		want     stun.Behaviour
		predicts []netip.AddrPort
	}{
		{name: "nobody"},
		{name: "one", seen: []string{s1, "203.0.113.1:4001"}, want: stun.Behaviour{Preserves: true, Mapped: []netip.AddrPort{ap("203.0.113.1:4001")}}},
		{name: "no NAT", seen: []string{s1, "192.168.1.2:4001", s2, "192.168.1.2:4001"}, want: stun.Behaviour{Mapping: stun.NoMapping, Preserves: true, Mapped: local}},
		{name: "cone", seen: []string{s1, "203.0.113.1:5", s2, "203.0.113.1:5"}, want: stun.Behaviour{Mapping: stun.EndpointIndependent, Mapped: []netip.AddrPort{ap("203.0.113.1:5")}}},
		{
			name: "random", seen: []string{s1, "203.0.113.1:5000", s2, "203.0.113.1:9000"},
			want: stun.Behaviour{Mapping: stun.Dependent, Mapped: []netip.AddrPort{ap("203.0.113.1:9000"), ap("203.0.113.1:5000")}},
		},
		{
			name: "counts", seen: []string{s1, "203.0.113.1:5000", s2, "203.0.113.1:5002"},
			want:     stun.Behaviour{Mapping: stun.Dependent, Step: 2, Mapped: []netip.AddrPort{ap("203.0.113.1:5002"), ap("203.0.113.1:5000")}},
			predicts: []netip.AddrPort{ap("203.0.113.1:5004"), ap("203.0.113.1:5006")},
		},
		{
			name: "counts down to the well-known ports", seen: []string{s1, "203.0.113.1:1026", s2, "203.0.113.1:1025"},
			want:     stun.Behaviour{Mapping: stun.Dependent, Step: -1, Mapped: []netip.AddrPort{ap("203.0.113.1:1025"), ap("203.0.113.1:1026")}},
			predicts: []netip.AddrPort{ap("203.0.113.1:1024")},
		},
		{
			name: "counts unevenly", seen: []string{s1, "203.0.113.1:5000", s2, "203.0.113.1:5001", s3, "203.0.113.1:5003"},
			want: stun.Behaviour{Mapping: stun.Dependent, Mapped: []netip.AddrPort{ap("203.0.113.1:5003"), ap("203.0.113.1:5001"), ap("203.0.113.1:5000")}},
		},
		{
			name: "by address", seen: []string{s1, "203.0.113.1:5000", s1b, "203.0.113.1:5000", s2, "203.0.113.1:7000"},
			want: stun.Behaviour{Mapping: stun.AddressDependent, Mapped: []netip.AddrPort{ap("203.0.113.1:7000"), ap("203.0.113.1:5000")}},
		},
		{
			name: "by port", seen: []string{s1, "203.0.113.1:5000", s1b, "203.0.113.1:5001"},
			want:     stun.Behaviour{Mapping: stun.AddressAndPortDependent, Step: 1, Mapped: []netip.AddrPort{ap("203.0.113.1:5001"), ap("203.0.113.1:5000")}},
			predicts: []netip.AddrPort{ap("203.0.113.1:5002"), ap("203.0.113.1:5003")},
		},
		{
			name: "counts, with two who are silent", seen: []string{s1, "203.0.113.1:5000", s2, "", s3, "203.0.113.1:5002", s1b, ""},
			want:     stun.Behaviour{Mapping: stun.Dependent, Step: 1, Silent: 1, Mapped: []netip.AddrPort{ap("203.0.113.1:5002"), ap("203.0.113.1:5000")}},
			predicts: []netip.AddrPort{ap("203.0.113.1:5004"), ap("203.0.113.1:5005")},
		},
		{name: "all are silent", seen: []string{s1, "", s2, ""}},
		{ // what is seen of one version of IP does not contradict the other
			name: "both versions", seen: []string{s1, "203.0.113.1:5000", "[2001:db8::1]:1", "[2001:db8::2]:4001", s2, "203.0.113.1:5001"},
			want: stun.Behaviour{
				Mapping: stun.Dependent, Step: 1,
				Mapped: []netip.AddrPort{ap("203.0.113.1:5001"), ap("[2001:db8::2]:4001"), ap("203.0.113.1:5000")},
			},
			predicts: []netip.AddrPort{ap("203.0.113.1:5002"), ap("203.0.113.1:5003")},
		},
	} {
		var seen []stun.Observation
		for i := 0; i < len(c.seen); i += 2 {
			o := stun.Observation{Server: ap(c.seen[i])}
			if c.seen[i+1] != "" {
				o.Mapped = ap(c.seen[i+1])
			}
			seen = append(seen, o)
		}
		got := stun.Classify(local, seen)
		if diff := cmp.Diff(c.want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Errorf("%s: %v (-want +got)\n%s", c.name, got.Mapping, diff)
		}
		if p := got.Predict(2); !slices.Equal(p, c.predicts) {
			t.Errorf("%s: predicts %v, want %v", c.name, p, c.predicts)
		}
	}
	if got := stun.Mapping(37).String(); got != "Mapping(37)" {
		t.Error(got)
	}
}

// A network gets its allowance and no more, whatever others do.
func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l, l6 stun.Limiter // two, as networks may meet in a bucket
		ask := func(l *stun.Limiter, to string, n int) (allowed int) {
			for range n {
				if l.Allow(addr(to)) {
					allowed++
				}
			}
			return allowed
		}
		if got := ask(&l, "203.0.113.1", 100); got != 40 {
			t.Errorf("%d answers at once", got)
		}
		if got := ask(&l, "203.0.113.200", 100) + ask(&l, "::ffff:203.0.113.7", 1); got != 0 {
			t.Errorf("%d answers more to the same network", got)
		}
		if got := ask(&l6, "2001:db8::1", 30) + ask(&l6, "2001:db8:0:ffff::1", 70); got != 40 {
			t.Errorf("%d answers to a network of IPv6", got)
		}
		time.Sleep(2 * time.Second)
		if got := ask(&l, "203.0.113.1", 100); got != 20 {
			t.Errorf("%d answers after two seconds", got)
		}
		if l.Allow(netip.Addr{}) {
			t.Error("nobody was allowed an answer")
		}
		if n := testing.AllocsPerRun(100, func() { l.Allow(addr("203.0.113.1")) }); n > 0 {
			t.Errorf("%v allocations", n)
		}
	})
}
