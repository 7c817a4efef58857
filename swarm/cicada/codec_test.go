// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicada

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/seed5728abee/fathom/swarm/member"
)

// samples are the messages in the vectors, as they are to be decoded; those without data of their own have nil.
func samples() map[string]Message {
	request := func(t Type, sequence uint32, data []byte) Message {
		return Message{Type: t, Sequence: sequence, Sender: refB.ID, Data: data}
	}
	answer := func(t Type, sequence uint32, to string, data []byte) Message {
		asked, err := DecodeMessage(vectors[to])
		if err != nil {
			panic(err)
		}
		return Message{
			Type: t, Response: true, Sequence: sequence, Sender: refA.ID, Data: data,
			RequestSequence: asked.Sequence, RequestChecksum: asked.Checksum,
		}
	}
	node := func(self, predecessor, successor Ref) Node {
		return Node{Self: self, Predecessor: predecessor, Successor: successor}
	}
	search := func(key Ref, body []byte) []byte { return AppendSearch(nil, Search{Key: key.ID, Body: body}) }
	all := Body{Broadcast: true, Visited: []member.ID{refA.ID}, Payload: []byte("hi all")}
	return map[string]Message{
		"join": request(Join, 0x01020304, AppendJoin(nil, refB.Addr)),
		"join-answer": answer(Join, 0x11223344, "join",
			AppendJoinAnswer(nil, JoinAnswer{Node: node(refA, refB, refB), Successor: refA})),
		"join-answer-no-predecessor": answer(Join, 0x11223344, "join",
			AppendJoinAnswer(nil, JoinAnswer{Node: node(refA, Ref{}, refB), Successor: refA})),
		"info":             request(Info, 0x01020305, nil),
		"info-answer":      answer(Info, 0x11223345, "info", AppendNode(nil, node(refA, refC, refD))),
		"info-answer-none": answer(Info, 0x11223345, "info", AppendNode(nil, node(refA, Ref{}, Ref{}))),
		"notify":           request(Notify, 0x01020306, AppendNode(nil, node(refB, refC, refA))),
		"notify-answer-1":  answer(Notify, 0x11223346, "notify", AppendAccepted(nil, true)),
		"notify-answer-0":  answer(Notify, 0x11223346, "notify", AppendAccepted(nil, false)),
		"lookup":           request(Lookup, 0x01020307, search(refC, nil)),
		"lookup-answer": answer(Lookup, 0x11223347, "lookup",
			AppendSearchAnswer(nil, SearchAnswer{Key: refC.ID, Owner: refC, Hops: 2})),
		"lookup-data":      request(Lookup, 0x01020308, search(refA, AppendBody(nil, Body{Payload: []byte("hello!")}))),
		"lookup-broadcast": request(Lookup, 0x01020309, search(refA, AppendBody(nil, all))),
		"error":            {Type: 0xff, Sequence: 1, Sender: refA.ID},
	}
}

func TestVectors(t *testing.T) {
	for name, want := range samples() {
		b := vectors[name]
		if got := AppendMessage(nil, want); !bytes.Equal(got, b) {
			t.Errorf("%s: packed\n %x, want\n %x", name, got, b)
		}
		got, err := DecodeMessage(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got.Unlinked {
			t.Errorf("%s: the hash chain does not match", name)
		}
		want.Checksum = got.Checksum
		if want.Data == nil {
			want.Data = []byte{}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: decoded\n %+v, want\n %+v", name, got, want)
		}
		for n := range b {
			if _, err := DecodeMessage(b[:n]); !errors.Is(err, ErrMessage) {
				t.Errorf("%s: %d bytes of %d: %v", name, n, len(b), err)
			}
		}
		for i := range b {
			broken := slices.Clone(b)
			broken[i] ^= 0x10
			if _, err := DecodeMessage(broken); !errors.Is(err, ErrMessage) {
				t.Errorf("%s: byte %d changed: %v", name, i, err)
			}
		}
	}
	if len(vectors) != len(samples())+3 {
		t.Errorf("%d vectors, %d messages and 3 bodies", len(vectors), len(samples()))
	}
}

func TestDataOfVectors(t *testing.T) {
	data := func(name string) []byte {
		m, err := DecodeMessage(vectors[name])
		if err != nil {
			t.Fatal(err)
		}
		return m.Data
	}
	check := func(name string, got any, err error, want any) {
		t.Helper()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, want)
		}
	}
	addr, err := DecodeJoin(data("join"))
	check("join", addr, err, refB.Addr)
	join, err := DecodeJoinAnswer(data("join-answer-no-predecessor"))
	check("join answer", join, err, JoinAnswer{Node: Node{Self: refA, Successor: refB}, Successor: refA})
	node, err := DecodeNode(data("info-answer"))
	check("info answer", node, err, Node{Self: refA, Predecessor: refC, Successor: refD})
	node, err = DecodeNode(data("info-answer-none"))
	check("info answer", node, err, Node{Self: refA})
	accepted, err := DecodeAccepted(data("notify-answer-1"))
	check("notify answer", accepted, err, true)
	search, err := DecodeSearch(data("lookup-data"))
	check("lookup", search, err, Search{Key: refA.ID, Body: vectors["data"]})
	found, err := DecodeSearchAnswer(data("lookup-answer"))
	check("lookup answer", found, err, SearchAnswer{Key: refC.ID, Owner: refC, Hops: 2})
	body, err := DecodeBody(vectors["data"])
	check("data", body, err, Body{Payload: []byte("hello!")})
	body, err = DecodeBody(vectors["broadcast-ac"])
	check("broadcast", body, err, Body{Broadcast: true, Visited: []member.ID{refA.ID, refC.ID}, Payload: []byte("hi all")})
}

// Originals ignore what follows where their messages could be extended, and so do we; nothing may be missing.
func TestLengthsOfData(t *testing.T) {
	decoders := map[string]struct {
		valid    []byte
		trailing bool
		decode   func([]byte) error
	}{
		"join":          {AppendJoin(nil, refA.Addr), false, func(b []byte) error { _, err := DecodeJoin(b); return err }},
		"node":          {AppendNode(nil, Node{Self: refA, Successor: refB}), true, func(b []byte) error { _, err := DecodeNode(b); return err }},
		"join answer":   {AppendJoinAnswer(nil, JoinAnswer{Node: Node{Self: refA}, Successor: refB}), true, func(b []byte) error { _, err := DecodeJoinAnswer(b); return err }},
		"search":        {AppendSearch(nil, Search{Key: refA.ID, Body: vectors["data"]}), false, func(b []byte) error { _, err := DecodeSearch(b); return err }},
		"search answer": {AppendSearchAnswer(nil, SearchAnswer{Key: refA.ID, Owner: refB, Hops: 1}), true, func(b []byte) error { _, err := DecodeSearchAnswer(b); return err }},
		"accepted":      {AppendAccepted(nil, true), true, func(b []byte) error { _, err := DecodeAccepted(b); return err }},
		"data":          {vectors["data"], true, func(b []byte) error { _, err := DecodeBody(b); return err }},
		"broadcast":     {vectors["broadcast-ac"], true, func(b []byte) error { _, err := DecodeBody(b); return err }},
	}
	for name, d := range decoders {
		if err := d.decode(d.valid); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := d.decode(append(slices.Clone(d.valid), 0)); (err == nil) != d.trailing || err != nil && !errors.Is(err, ErrMessage) {
			t.Errorf("%s with a byte more: %v", name, err)
		}
		for n := range d.valid {
			if err := d.decode(d.valid[:n]); !errors.Is(err, ErrMessage) {
				t.Errorf("%s: %d bytes of %d: %v", name, n, len(d.valid), err)
			}
		}
	}
}

func TestRefusedHeads(t *testing.T) {
	for name, change := range map[string]func([]byte){
		"protocol":        func(b []byte) { b[1] = 'x' },
		"version":         func(b []byte) { b[3] = 4 },
		"response flag":   func(b []byte) { b[6] = 2 },
		"no room for id":  func(b []byte) { copy(b[60:], []byte{0, 0, 0, 31}) },
		"longer than any": func(b []byte) { copy(b[60:], []byte{1, 0, 0, 1}) },
	} {
		b := slices.Clone(vectors["info"])
		change(b)
		if n, err := MessageSize(b); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	b := slices.Clone(vectors["info"])
	b[1] = 'i'
	if n, err := MessageSize(b); n != MinMessage || err != nil {
		t.Errorf("the other protocol ID: %d, %v", n, err)
	}
}

func TestLongVisitedLists(t *testing.T) {
	ids := make([]member.ID, MaxVisited+1)
	b := AppendBody(nil, Body{Broadcast: true, Visited: ids})
	body, err := DecodeBody(b)
	if err != nil || len(body.Visited) != MaxVisited {
		t.Errorf("%d visited members, %v", len(body.Visited), err)
	}
	b[4]++ // one more than an original would ever have
	if _, err := DecodeBody(append(b, make([]byte, idSize)...)); !errors.Is(err, ErrMessage) {
		t.Errorf("%d visited members: %v", MaxVisited+1, err)
	}
}

func TestOnlyIPv4IsTold(t *testing.T) {
	six := Ref{ID: refA.ID, Addr: netip.MustParseAddrPort("[2001:db8::1]:49610")}
	n, err := DecodeNode(AppendNode(nil, Node{Self: refA, Predecessor: six, Successor: refB}))
	if want := (Node{Self: refA, Successor: refB}); err != nil || n != want {
		t.Errorf("%+v, %v", n, err)
	}
	mapped := Ref{ID: refA.ID, Addr: netip.MustParseAddrPort("[::ffff:192.0.2.1]:49610")}
	n, err = DecodeNode(AppendNode(nil, Node{Self: refA, Predecessor: mapped}))
	if want := netip.MustParseAddrPort("192.0.2.1:49610"); err != nil || n.Predecessor.Addr != want {
		t.Errorf("%+v, %v", n, err)
	}
}

func TestTypeNames(t *testing.T) {
	if got := fmt.Sprint(Join, Info, Notify, Lookup, Type(255)); got != "join info notify lookup Type(255)" {
		t.Error(got)
	}
}

func FuzzMessage(f *testing.F) {
	for _, b := range vectors {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		size, err := MessageSize(b)
		if err == nil && (size < MinMessage || size > MaxMessage) {
			t.Fatalf("a message of %d bytes", size)
		}
		m, err := DecodeMessage(b)
		if err != nil {
			if !errors.Is(err, ErrMessage) {
				t.Fatal(err)
			}
			return
		}
		packed := AppendMessage(nil, m)
		if again, err := DecodeMessage(packed); err != nil || again.Unlinked {
			t.Fatalf("%+v, %v", again, err)
		}
		if !m.Unlinked && b[1] == 'h' && !bytes.Equal(packed, b) {
			t.Fatalf("packed\n %x, was\n %x", packed, b)
		}
	})
}

func FuzzData(f *testing.F) {
	for name := range samples() {
		m, _ := DecodeMessage(vectors[name])
		f.Add(m.Data)
	}
	for _, name := range []string{"data", "broadcast-a", "broadcast-ac"} {
		f.Add(vectors[name])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(name string, packed []byte) {
			if !bytes.HasPrefix(b, packed) {
				t.Errorf("%s: packed\n %x, was\n %x", name, packed, b)
			}
		}
		if addr, err := DecodeJoin(b); err == nil {
			same("join", AppendJoin(nil, addr))
		}
		if s, err := DecodeSearch(b); err == nil {
			same("search", AppendSearch(nil, s))
		}
		if a, err := DecodeSearchAnswer(b); err == nil {
			same("search answer", AppendSearchAnswer(nil, a))
		}
		if body, err := DecodeBody(b); err == nil {
			same("body", AppendBody(nil, body))
		}
		// Flags have more values than two, and what is absent may be filled with anything.
		if n, err := DecodeNode(b); err == nil {
			if again, err := DecodeNode(AppendNode(nil, n)); err != nil || again != n {
				t.Errorf("node: %+v, %v", again, err)
			}
		}
		if a, err := DecodeJoinAnswer(b); err == nil {
			if again, err := DecodeJoinAnswer(AppendJoinAnswer(nil, a)); err != nil || again != a {
				t.Errorf("join answer: %+v, %v", again, err)
			}
		}
		if accepted, err := DecodeAccepted(b); err == nil && accepted != (b[0] != 0) {
			t.Error("accepted")
		}
	})
}
