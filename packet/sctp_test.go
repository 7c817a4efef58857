// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"errors"
	"testing"
)

func TestSCTP(t *testing.T) {
	init := SCTPInit{InitiateTag: 0xdeadbeef, Window: 65536, OutStreams: 1, InStreams: 1, TSN: 99}
	initAck := SCTPInit{InitiateTag: 0x01020304, Window: 65536, OutStreams: 1, InStreams: 1, TSN: 7}
	for _, tc := range []struct {
		name     string
		got      []byte
		src, dst uint16
		tag      uint32
		typ      uint8
		init     SCTPInit
	}{
		{"sctp-init", must(t)(AppendSCTPInit(nil, 33500, 164, init)), 33500, 164, 0, SCTPChunkInit, init},
		{"sctp-abort", AppendSCTPAbort(nil, 164, 33500, 0xdeadbeef, false), 164, 33500, 0xdeadbeef, SCTPChunkAbort, SCTPInit{}},
		{"sctp-init-ack", must(t)(AppendSCTPInitAck(nil, 164, 33500, 0xdeadbeef, initAck, []byte{0xc0, 0x0c, 0x1e, 0})), 164, 33500, 0xdeadbeef, SCTPChunkInitAck, initAck},
	} {
		want := vector(t, tc.name)
		if tc.name == "sctp-init-ack" { // the vector's chunk length is wrong: see TestSCTPInitAckCutShort
			want[15] = 28
			setSCTPChecksum(want)
		}
		equalBytes(t, tc.name, tc.got, want)
		s, err := ParseSCTP(tc.got)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		c := s.First()
		i, ok := c.Init()
		if s.SrcPort() != tc.src || s.DstPort() != tc.dst || s.Tag() != tc.tag || c.Type != tc.typ || c.Flags != 0 ||
			i != tc.init || ok != (tc.typ != SCTPChunkAbort) || !s.ChecksumOK() {
			t.Errorf("%s: decoded wrongly: %+v, %+v", tc.name, c, i)
		}
		s[13] ^= 1
		if s.ChecksumOK() {
			t.Errorf("%s: wrong checksum taken for right", tc.name)
		}
	}
	if s, err := ParseSCTP(AppendSCTPAbort([]byte("x"), 1, 2, 3, true)[1:]); err != nil || s.First().Flags != 1 || !s.ChecksumOK() {
		t.Errorf("reflected tag: %x, %v", s, err)
	}
	// A cookie of 5 bytes: the chunk's length is without its padding, the packet's with it.
	odd := must(t)(AppendSCTPInitAck([]byte("x"), 1, 2, 3, initAck, []byte("cooky")))[1:]
	if s, err := ParseSCTP(odd); err != nil || len(odd) != 12+32 || len(s.First().Value) != 25 || !s.ChecksumOK() {
		t.Errorf("odd cookie: %x, %v", odd, err)
	}
}

// The chunk length in the compatibility vector, 24, stops in the middle of the cookie parameter.
// It is an answer to the INIT all the same.
func TestSCTPInitAckCutShort(t *testing.T) {
	s, err := ParseSCTP(vector(t, "sctp-init-ack"))
	if err != nil {
		t.Fatal(err)
	}
	init, ok := s.First().Init()
	if !s.ChecksumOK() || s.Tag() != 0xdeadbeef || s.First().Type != SCTPChunkInitAck || !ok || init.InitiateTag != 0x01020304 {
		t.Errorf("decoded wrongly: %+v", init)
	}
}

func TestSCTPChunks(t *testing.T) {
	head := vector(t, "sctp-abort")[:12]
	for _, tc := range []struct {
		name   string
		chunks []byte
		want   []uint8
		err    error
	}{
		{"none", nil, nil, ErrTruncated},
		{"two", []byte{10, 0, 0, 5, 1, 0, 0, 0, 11, 0, 0, 4}, []uint8{10, 11}, nil},
		{"last not padded", []byte{11, 0, 0, 4, 0, 0, 0, 5, 9}, []uint8{11, 0}, nil},
		{"length 3", []byte{11, 0, 0, 3}, nil, ErrMalformed},
		{"length beyond the end", []byte{11, 0, 0, 5}, nil, ErrTruncated},
		{"second of length 3", []byte{11, 0, 0, 4, 0, 0, 0, 3}, []uint8{11}, nil},
		{"second cut", []byte{11, 0, 0, 4, 0, 0, 0}, []uint8{11}, nil},
	} {
		s, err := ParseSCTP(append(bytes.Clone(head), tc.chunks...))
		if !errors.Is(err, tc.err) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.err)
			continue
		}
		if err != nil {
			continue
		}
		var got []uint8
		for c := range s.Chunks() {
			got = append(got, c.Type)
		}
		equalBytes(t, tc.name, got, tc.want)
	}
	if _, ok := (SCTPChunk{Type: SCTPChunkInit, Value: make([]byte, 15)}).Init(); ok {
		t.Error("short INIT decoded")
	}
}

func TestSCTPErrors(t *testing.T) {
	good := SCTPInit{InitiateTag: 1, OutStreams: 1, InStreams: 1}
	for _, bad := range []SCTPInit{{OutStreams: 1, InStreams: 1}, {InitiateTag: 1, InStreams: 1}, {InitiateTag: 1, OutStreams: 1}} {
		if _, err := AppendSCTPInit(nil, 1, 2, bad); !errors.Is(err, ErrMalformed) {
			t.Errorf("%+v: %v", bad, err)
		}
		if _, err := AppendSCTPInitAck(nil, 1, 2, 3, bad, nil); !errors.Is(err, ErrMalformed) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if _, err := AppendSCTPInitAck(nil, 1, 2, 3, good, make([]byte, 65536-24)); !errors.Is(err, ErrTooLong) {
		t.Errorf("long cookie: %v", err)
	}
}
