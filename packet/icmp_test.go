// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"errors"
	"testing"
)

func TestICMPEcho(t *testing.T) {
	for _, tc := range []struct {
		name    string
		header  int
		id, seq uint16
		payload []byte
	}{
		{"echo4", 20, 1, 0x80e8, make([]byte, 36)},
		{"echo4-size100-pattern171-tos184-ttl9", 20, 1, 0x80e9, bytes.Repeat([]byte{0xab}, 72)},
		{"echo4-smallest", 20, 1, 0x80ea, nil},
		{"echo6", 40, 1, 0x80eb, make([]byte, 16)},
		{"seed-icmp", 0, 0, 0, nil},
		{"seed-icmp-hello", 0, 0x1234, 1, []byte("hello")},
	} {
		want := vector(t, tc.name)[tc.header:]
		m, err := ParseICMP(want)
		if err != nil {
			t.Fatal(err)
		}
		if m.ID() != tc.id || m.Seq() != tc.seq || m.Code() != 0 || !bytes.Equal(m.Body(), tc.payload) {
			t.Errorf("%s: decoded wrongly: %x", tc.name, m)
		}
		got := AppendICMPEcho([]byte("before"), m.Type(), tc.id, tc.seq, tc.payload)[6:]
		right := ICMP(got).ChecksumOK()
		if m.Type() == ICMPv6Echo {
			SetICMPv6Checksum(got, src6, dst6)
			right = ICMP(got).ChecksumOK6(src6, dst6)
		}
		equalBytes(t, tc.name, got, want)
		if !right {
			t.Errorf("%s: right checksum taken for wrong", tc.name)
		}
		got[7] ^= 1
		if ICMP(got).ChecksumOK() || ICMP(got).ChecksumOK6(src6, dst6) {
			t.Errorf("%s: wrong checksum taken for right", tc.name)
		}
	}
}

func TestICMPTranslate(t *testing.T) {
	m := ICMP(vector(t, "echo4")[20:])
	m.SetID(0xfffe)
	if m.ID() != 0xfffe || !m.ChecksumOK() {
		t.Errorf("SetID: %x", m)
	}
	m = ICMP(vector(t, "echo6")[40:])
	m.UpdateAddr(src6, dst6)
	if !m.ChecksumOK6(dst6, dst6) {
		t.Errorf("UpdateAddr: %x", m)
	}
}

func TestBalanceICMP(t *testing.T) {
	for sum := range 0x10000 {
		b := AppendICMPEcho(make([]byte, 0, 16), ICMPv4Echo, 7, uint16(sum), []byte{1, 2, 3, 4, 5})
		if err := BalanceICMP(b, 0xbeef, 8); err != nil {
			t.Fatal(err)
		}
		if m := ICMP(b); m.Checksum() != 0xbeef || m.Seq() != uint16(sum) || m.Body()[2] != 3 || !m.ChecksumOK() {
			t.Fatalf("sequence %04x: %x", sum, m)
		}
	}
	b := AppendICMPEcho(nil, ICMPv6Echo, 7, 8, []byte{1, 2, 3, 4})
	if err := BalanceICMPv6(b, src6, dst6, 0x1234, 10); err != nil {
		t.Fatal(err)
	}
	if m := ICMP(b); m.Checksum() != 0x1234 || m.Body()[1] != 2 || !m.ChecksumOK6(src6, dst6) {
		t.Errorf("ICMPv6: %x", m)
	}
	SetICMPv6Checksum(b, src6, dst6) // as the kernel does
	if ICMP(b).Checksum() != 0x1234 {
		t.Errorf("the kernel would send checksum %04x", ICMP(b).Checksum())
	}
	for _, tc := range []struct {
		n, at int
		want  error
	}{{7, 4, ErrTruncated}, {8, 3, ErrMalformed}, {8, 5, ErrMalformed}, {8, 2, ErrMalformed}, {8, -2, ErrMalformed}, {9, 8, ErrTruncated}, {8, 8, ErrTruncated}, {8, 6, nil}} {
		if err := BalanceICMP(make([]byte, tc.n), 1, tc.at); !errors.Is(err, tc.want) {
			t.Errorf("%d bytes at %d: got %v, want %v", tc.n, tc.at, err, tc.want)
		}
		if err := BalanceICMPv6(make([]byte, tc.n), src6, dst6, 1, tc.at); !errors.Is(err, tc.want) {
			t.Errorf("%d bytes at %d: got %v, want %v", tc.n, tc.at, err, tc.want)
		}
	}
	if err := BalanceICMPv6(b, src6, dst4, 1, 8); !errors.Is(err, ErrAddress) {
		t.Errorf("two versions: %v", err)
	}
}
