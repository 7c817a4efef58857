// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

func seedFrames() []frame {
	return []frame{
		{kind: kindWelcome},
		{kind: kindGoodbye, code: uint8(CodeDuplicate), body: []byte("enough")},
		{kind: kindPing, number: 1 << 40},
		{kind: kindPong, number: 1},
		{kind: kindRekey},
		{kind: kindRequest, id: 7, body: []byte("question")},
		{kind: kindAnswer, id: 7, body: []byte("answer")},
		{kind: kindFailed, id: 7, body: []byte("too large")},
		{kind: kindCast, body: []byte("by the way")},
		{kind: kindMessage, body: []byte("hello!")},
		{kind: kindAcked, number: 300},
		{kind: kindNacked, body: []byte("no")},
		{kind: kindOpen, id: 1, code: forApplication, body: []byte("header")},
		{kind: kindOpen, id: 3, code: forMessage, total: 100000},
		{kind: kindOpen, id: 1, code: forRequest, number: 7, total: 5},
		{kind: kindAccept, id: 1},
		{kind: kindData, id: 1, body: []byte("bytes")},
		{kind: kindCredit, id: 1, number: 65536},
		{kind: kindEnd, id: 1, code: endAborted, body: []byte("what for?")},
	}
}

func FuzzDecodeFrame(f *testing.F) {
	for _, s := range seedFrames() {
		f.Add(appendFrame(nil, &s))
	}
	f.Add([]byte{byte(kindData), 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01})
	f.Fuzz(func(t *testing.T, b []byte) {
		var one, two frame
		rest, err := decodeFrame(&one, b)
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Fatal(err)
			}
			return
		}
		again := appendFrame(nil, &one)
		if len(again) > len(b)-len(rest) || len(again) > frameOverhead+len(one.body) {
			t.Fatalf("%d bytes for what came in %d", len(again), len(b)-len(rest))
		}
		if rest, err := decodeFrame(&two, again); err != nil || len(rest) > 0 || !sameFrame(one, two) {
			t.Fatalf("%+v became %+v, %v", one, two, err)
		}
	})
}

func sameFrame(a, b frame) bool {
	return a.kind == b.kind && a.id == b.id && a.code == b.code && a.number == b.number && a.total == b.total && bytes.Equal(a.body, b.body)
}

func FuzzDecodeAnnounced(f *testing.F) {
	f.Add(announced{
		key: make([]byte, 32), signature: make([]byte, 64), limits: limits{1, 2, 64 << 10}, hello: []byte("hello"),
	}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := decodeAnnounced(b)
		if err != nil {
			if !errors.Is(err, ErrHandshake) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(a.append(nil), b) {
			t.Fatalf("%+v", a)
		}
	})
}

// Whatever comes instead of a handshake, the answer is an error.
func FuzzServer(f *testing.F) {
	f.Add([]byte("ch\x00\x05"))
	f.Add(append([]byte{Magic, Version, 0, 32}, make([]byte, 32)...))
	f.Add(append(append([]byte{Magic, Version, 0, 32, 9}, make([]byte, 31)...), 0, 100))
	f.Add(append([]byte{Magic, Version, 0, 48}, make([]byte, 48)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, c := net.Pipe()
		go io.Copy(io.Discard, a)
		go func() {
			a.Write(b)
			a.Close()
		}()
		if s, err := Server(context.Background(), c, testConfig(2, testHandler{})); !errors.Is(err, ErrHandshake) {
			t.Fatal(s, err)
		}
	})
}

// Whatever a peer with the right keys says, the link goes on or ends with an error that says why.
func FuzzRecord(f *testing.F) {
	for _, s := range seedFrames() {
		f.Add(appendFrame(nil, &s))
	}
	var dialog []byte
	for _, s := range []frame{
		{kind: kindOpen, id: 1, body: []byte("header")},
		{kind: kindData, id: 1, body: []byte("bytes")},
		{kind: kindOpen, id: 3, code: forMessage, total: 3},
		{kind: kindData, id: 3, body: []byte("abc")},
		{kind: kindEnd, id: 1, code: endWriting},
		{kind: kindMessage, body: []byte("bad")},
		{kind: kindRequest, id: 9, body: []byte("?")},
	} {
		dialog = appendFrame(dialog, &s)
	}
	f.Add(dialog)
	victim := testConfig(2, testHandler{
		message: func(_ *Session, payload []byte) error {
			if string(payload) == "bad" {
				return errors.New("bad")
			}
			return nil
		},
		stream: func(_ *Session, header []byte, c net.Conn) error {
			if len(header) == 0 {
				return errors.New("no header")
			}
			go func() {
				io.Copy(c, c)
				c.Close()
			}()
			return nil
		},
	})
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) == 0 || len(text) > maxRecord-tagSize {
			return
		}
		v, s := newVillain(t, victim)
		go func() {
			v.write(v.send.seal(nil, text))
			v.say(frame{kind: kindGoodbye})
		}()
		go v.goodbye() // and hang up when it comes
		select {
		case <-s.Done():
		case <-time.After(10 * time.Second):
			t.Fatal("the link goes on after the goodbye")
		}
		var bye *Goodbye
		if err := s.Err(); !errors.Is(err, ErrProtocol) && !errors.As(err, &bye) {
			t.Fatal(err)
		}
	})
}
