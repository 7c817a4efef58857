// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
)

func TestTCP(t *testing.T) {
	h := TCPHeader{
		SrcPort: 33017, DstPort: 80, Seq: 0x01020304, Ack: 0x05060708, Flags: TCPSyn | TCPAck, Window: 64240, Urgent: 9,
		Options: append(AppendTCPOptionMSS([]byte{1}, 1460), 4, 2),
	}
	b := must(t)(h.Append([]byte("before"), src4, dst4, []byte("abc")))
	seg, err := ParseTCP(b[6:])
	if err != nil {
		t.Fatal(err)
	}
	mss, ok := seg.MSS()
	if seg.SrcPort() != 33017 || seg.DstPort() != 80 || seg.Seq() != 0x01020304 || seg.Ack() != 0x05060708 || seg.DataOffset() != 28 ||
		seg.Flags() != TCPSyn|TCPAck || seg.Window() != 64240 || seg.Urgent() != 9 || string(seg.Payload()) != "abc" ||
		!bytes.Equal(seg.Options(), []byte{1, 2, 4, 5, 0xb4, 4, 2, 0}) || mss != 1460 || !ok || !seg.ChecksumOK(src4, dst4) {
		t.Errorf("round trip: %x", seg)
	}
	seg.SetSrcPort(1)
	seg.SetDstPort(2)
	seg.UpdateAddr(dst4, far4)
	if seg.SrcPort() != 1 || seg.DstPort() != 2 || !seg.ChecksumOK(src4, far4) {
		t.Errorf("translated: %x", seg)
	}
	seg[20] ^= 1
	if seg.ChecksumOK(src4, far4) {
		t.Error("wrong checksum taken for right")
	}
}

func TestTCPMSS(t *testing.T) {
	for options, want := range map[string]uint16{
		"020405b4": 1460, "0101020405b40000": 1460, "04020303": 0, "00020405b4000000": 0, // after the end
		"02030500": 0, "0200": 0, "02": 0, "010204ff": 0, "080a0000000100000002020400ff": 255,
	} {
		o, err := hex.DecodeString(options)
		if err != nil {
			t.Fatal(err)
		}
		h := TCPHeader{Options: o}
		seg, err := ParseTCP(must(t)(h.Append(nil, src6, dst6, nil)))
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := seg.MSS(); got != want || ok != (want != 0) {
			t.Errorf("%s: got %d, %v, want %d", options, got, ok, want)
		}
	}
}

func TestTCPErrors(t *testing.T) {
	h := TCPHeader{}
	if _, err := h.Append(nil, src4, dst6, nil); !errors.Is(err, ErrAddress) {
		t.Errorf("two versions: %v", err)
	}
	if _, err := h.Append(nil, src4, dst4, make([]byte, 65516)); !errors.Is(err, ErrTooLong) {
		t.Errorf("long payload: %v", err)
	}
	h.Options = make([]byte, 41)
	if _, err := h.Append(nil, src4, dst4, nil); !errors.Is(err, ErrTooLong) {
		t.Errorf("long options: %v", err)
	}
	b := make([]byte, 20)
	b[12] = 4 << 4
	if _, err := ParseTCP(b); !errors.Is(err, ErrMalformed) {
		t.Errorf("data offset 16: %v", err)
	}
}

func TestTCPFlagsString(t *testing.T) {
	for f, want := range map[TCPFlags]string{0: "0", TCPSyn: "SYN", TCPSyn | TCPAck: "SYN|ACK", 0xff: "FIN|SYN|RST|PSH|ACK|URG|ECE|CWR"} {
		if got := f.String(); got != want {
			t.Errorf("%02x: got %q, want %q", uint8(f), got, want)
		}
	}
}
