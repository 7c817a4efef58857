// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestQuoteIPv4Options(t *testing.T) {
	h := IPv4Header{TTL: 1, TOS: 0xb8, ID: 7, Protocol: ProtocolTCP, Src: src4, Dst: dst4, Options: []byte{7, 7, 4, 0, 0, 0, 0}}
	b := must(t)(h.Append(nil, 40))
	b = append(b, 0x80, 0xf9, 0, 80, 1, 2, 3, 4)
	q, err := ParseQuote(b)
	if err != nil {
		t.Fatal(err)
	}
	if q.SrcPort != 0x80f9 || q.DstPort != 80 || q.TCPSeq() != 0x01020304 || q.TOS != 0xb8 || q.TTL != 1 || q.IPID != 7 || q.TotalLen != 68 || len(q.Transport) != 8 {
		t.Errorf("got %+v", q)
	}
}

func TestQuoteIPv6Extensions(t *testing.T) {
	q, err := ParseQuote(extended(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	if q.Protocol != ProtocolUDP || q.SrcPort != 1 || q.DstPort != 2 || q.UDPLen() != 8 || q.UDPChecksum() != 0 {
		t.Errorf("got %+v", q)
	}
}

func TestQuoteSCTP(t *testing.T) {
	h := IPv4Header{TTL: 1, Protocol: ProtocolSCTP, Src: src4, Dst: dst4}
	b := append(must(t)(h.Append(nil, 32)), vector(t, "sctp-init")...)
	q, err := ParseQuote(b)
	if err != nil {
		t.Fatal(err)
	}
	tag, ok := q.SCTPInitiateTag()
	if q.SrcPort != 33500 || q.DstPort != 164 || q.SCTPTag() != 0 || tag != 0xdeadbeef || !ok {
		t.Errorf("got %+v, initiate tag %x", q, tag)
	}
	for n := 28; n < 40; n++ {
		q, err := ParseQuote(b[:n])
		if err != nil {
			t.Fatal(err)
		}
		if tag, ok := q.SCTPInitiateTag(); ok {
			t.Errorf("%d bytes: initiate tag %x", n, tag)
		}
	}
}

func TestQuoteErrors(t *testing.T) {
	fragment := vector(t, "echo4")
	fragment[7] = 1
	if _, err := ParseQuote(fragment); !errors.Is(err, ErrFragment) {
		t.Errorf("second fragment: %v", err)
	}
	if _, err := ParseQuote(extended(t, 8)); !errors.Is(err, ErrFragment) {
		t.Errorf("second fragment, IPv6: %v", err)
	}
	if _, err := ParseQuote(make([]byte, 60)); !errors.Is(err, ErrVersion) {
		t.Errorf("version 0: %v", err)
	}
	// Everything that ends before 8 bytes of transport header is refused.
	for name, shortest := range map[string]int{"echo4": 28, "echo6": 48} {
		b := vector(t, name)
		for n := range shortest {
			if _, err := ParseQuote(b[:n]); !errors.Is(err, ErrTruncated) {
				t.Errorf("%s, %d bytes: %v", name, n, err)
			}
		}
		for n := shortest; n <= len(b); n++ {
			if q, err := ParseQuote(b[:n]); err != nil || q.ID() != 1 {
				t.Errorf("%s, %d bytes: %v", name, n, err)
			}
		}
	}
}

// A Quote that is used again keeps nothing of the packet before, and all of it after an error.
func TestQuoteDecodeAgain(t *testing.T) {
	var used Quote
	for _, name := range []string{"echo6", "go-udp-probe", "echo4", "echo6"} {
		b := vector(t, name)
		if err := used.Decode(b); err != nil {
			t.Fatal(err)
		}
		fresh, err := ParseQuote(b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(fresh, used, cmpAddr); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		for n := range 28 {
			if err := used.Decode(b[:n]); err == nil {
				t.Fatalf("%s: %d bytes accepted", name, n)
			}
		}
		if d := cmp.Diff(fresh, used, cmpAddr); d != "" {
			t.Errorf("%s, after errors: %s", name, d)
		}
	}
}

func TestICMPErrorDecodeAgain(t *testing.T) {
	var used ICMPError
	for _, name := range []string{"icmp4-time-exceeded-mpls-no-length", "icmp4-prohibited"} {
		b := vector(t, name)
		if err := used.Decode(4, b); err != nil {
			t.Fatal(err)
		}
		fresh, err := ParseICMPError(4, b)
		if err != nil {
			t.Fatal(err)
		}
		if used.Decode(4, b[:7]) == nil || used.Decode(5, b) == nil || used.Decode(4, make([]byte, 8)) == nil {
			t.Errorf("%s: not refused", name)
		}
		if d := cmp.Diff(fresh, used, cmpAddr); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}
