// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/seed5728abee/fathom/swarm/member"
)

var update = flag.Bool("update", false, "write testdata/vectors.txt anew")

const vectorsFile = "testdata/vectors.txt"

// A side is a member with its key file.
type side struct {
	id    member.ID
	addr  netip.AddrPort
	table *Table
}

func newSide(tb testing.TB, n byte, hosts ...string) side {
	tb.Helper()
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, n}), 7000)
	return side{member.OfAddr(addr), addr, parse(tb, `{"trusted_hosts": [`+strings.Join(hosts, ",")+`]}`)}
}

func entry(address, outbound, inbound string) string {
	return fmt.Sprintf(`{"address": %q, "outbound_key": %q, "inbound_key": %q}`, address, outbound, inbound)
}

// two are 192.0.2.1 and 192.0.2.2, which list each other.
func two(tb testing.TB) (a, b side) {
	tb.Helper()
	return newSide(tb, 1, entry("192.0.2.2:7000", "a to b", "b to a")), newSide(tb, 2, entry("192.0.2.1:7000", "b to a", "a to b"))
}

// restart is the side after a restart of its process.
func (s side) restart(tb testing.TB, hosts ...string) side {
	tb.Helper()
	return newSide(tb, s.addr.Addr().As4()[3], hosts...)
}

func (s side) seal(tb testing.TB, to side, payload string) []byte {
	tb.Helper()
	body, sealed := s.table.Seal(s.id, to.id, to.addr, []byte(payload))
	if !sealed || len(payload) > 4 && bytes.Contains(body, []byte(payload)) || len(body) != Overhead+len(payload) {
		tb.Fatalf("%q is not sealed: %q", payload, body)
	}
	return body
}

// expect opens a body and checks the payload or, if want is an error, the error.
func (s side) expect(tb testing.TB, what string, from side, body []byte, want any) {
	tb.Helper()
	payload, sealed, err := s.table.Open(s.id, from.id, from.addr, body)
	switch want := want.(type) {
	case string:
		if err != nil || string(payload) != want || !sealed {
			tb.Errorf("%s: %q, sealed %t, %v, want %q", what, payload, sealed, err, want)
		}
	case error:
		if !errors.Is(err, want) || payload != nil || sealed {
			tb.Errorf("%s: %q, sealed %t, %v, want %v", what, payload, sealed, err, want)
		}
	}
}

func TestSealOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		stranger := newSide(t, 9)
		one, other := a.seal(t, b, "first message"), a.seal(t, b, "first message")
		if bytes.Equal(one, other) {
			t.Error("the same payload is sealed the same way twice")
		}
		b.expect(t, "a message", a, one, "first message")
		b.expect(t, "the message again", a, one, ErrReplayed)
		b.expect(t, "the same text again", a, other, "first message")
		a.expect(t, "the answer", b, b.seal(t, a, "hello"), "hello")
		a.expect(t, "sent back", b, a.seal(t, b, "mirror"), ErrWrongKey)
		b.expect(t, "in clear", a, []byte("hello"), ErrNotSealed)
		b.expect(t, "nothing", a, nil, ErrNotSealed)
		b.expect(t, "of another sender", stranger, a.seal(t, b, "hello"), ErrNotListed)
		stranger.expect(t, "to a stranger", a, a.seal(t, b, "hello"), ErrNotListed)

		empty, sealed := a.table.Seal(a.id, b.id, b.addr, nil)
		if !sealed {
			t.Error("an empty message is not sealed")
		}
		b.expect(t, "an empty message", a, empty, "")
		if body, sealed := a.table.Seal(a.id, stranger.id, stranger.addr, []byte("hello")); sealed || string(body) != "hello" {
			t.Errorf("to a stranger: %q, %t", body, sealed)
		}
		if payload, sealed, err := a.table.Open(a.id, stranger.id, stranger.addr, []byte("hello")); err != nil || sealed || string(payload) != "hello" {
			t.Errorf("from a stranger: %q, %t, %v", payload, sealed, err)
		}
	})
}

// TestDamage changes and cuts a message in every place.
func TestDamage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		good := a.seal(t, b, "payload")
		for i := range good {
			bad := bytes.Clone(good)
			bad[i] ^= 1
			b.expect(t, fmt.Sprint("byte ", i), a, bad, map[bool]error{true: ErrNotSealed, false: ErrWrongKey}[i < len(marker)])
			b.expect(t, fmt.Sprint("the first ", i), a, good[:i], map[bool]error{true: ErrNotSealed, false: ErrWrongKey}[i < len(marker)])
		}
		b.expect(t, "a byte more", a, append(bytes.Clone(good), 0), ErrWrongKey)
		b.expect(t, "after all that", a, good, "payload")
	})
}

// TestKeySeparation uses one key for everything, as people do.
func TestKeySeparation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		same := func(address string) string { return entry(address, "secret", "secret") }
		a, b, c := newSide(t, 1, same("192.0.2.2"), same("192.0.2.3")), newSide(t, 2, same("192.0.2.1"), same("192.0.2.3")), newSide(t, 3, same("192.0.2.1"), same("192.0.2.2"))
		body := a.seal(t, b, "for b")
		c.expect(t, "from a, to another", a, body, ErrWrongKey)
		c.expect(t, "from b, handed on as its own", b, body, ErrWrongKey)
		a.expect(t, "sent back", b, body, ErrWrongKey)
		b.expect(t, "in another's name", c, body, ErrWrongKey)
		b.expect(t, "as it should be", a, body, "for b")
		wrong := newSide(t, 2, entry("192.0.2.1", "secret", "Secret"))
		wrong.expect(t, "with another key", a, a.seal(t, b, "for b"), ErrWrongKey)
	})
}

func TestRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		old := a.seal(t, b, "before")
		b.expect(t, "before", a, old, "before")
		unseen := a.seal(t, b, "never arrived")
		time.Sleep(time.Second)

		again := a.restart(t, entry("192.0.2.2:7000", "a to b", "b to a"))
		first := again.seal(t, b, "after")
		if bytes.Equal(first[sessionAt:counterAt], old[sessionAt:counterAt]) {
			t.Fatal("a session goes on after a restart: nonces are used twice")
		}
		b.expect(t, "after the sender's restart", a, first, "after")
		b.expect(t, "from before the sender's restart", a, old, ErrReplayed)

		time.Sleep(time.Millisecond)
		later := b.restart(t, entry("192.0.2.1:7000", "b to a", "a to b"))
		time.Sleep(time.Second)
		for name, body := range map[string][]byte{"old": old, "unseen": unseen, "first": first} {
			later.expect(t, name+", after the receiver's restart", a, body, ErrReplayed)
		}
		later.expect(t, "new, after the receiver's restart", a, again.seal(t, b, "new"), "new")
	})
}

func TestTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		time.Sleep(time.Hour)
		late, tooLate := a.seal(t, b, "late"), a.seal(t, b, "too late")
		time.Sleep(Window)
		b.expect(t, "late", a, late, "late")
		time.Sleep(time.Millisecond)
		b.expect(t, "too late", a, tooLate, ErrReplayed)
		b.expect(t, "too late", a, tooLate, ErrClock)

		// A sender whose clock is ahead.
		h := a.table.find(b.id, b.addr)
		ahead := func(d time.Duration) []byte {
			aead, id, counter := h.next(pair{a.id, b.id})
			return seal(aead, id, counter, time.Now().Add(d), []byte("ahead"))
		}
		b.expect(t, "a clock ahead", a, ahead(Window), "ahead")
		early := ahead(Window + time.Second)
		b.expect(t, "a clock too far ahead", a, early, ErrClock)
		if _, _, err := b.table.Open(b.id, a.id, a.addr, early); errors.Is(err, ErrReplayed) {
			t.Errorf("the future is said to be repeated: %v", err)
		}
	})
}

// TestReordering lets messages overtake each other, and come more than once.
func TestReordering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		random := rand.New(rand.NewPCG(1, 2))
		var bodies [][]byte
		for i := range 1000 {
			bodies = append(bodies, a.seal(t, b, fmt.Sprint(i)))
		}
		opened := make(map[string]int)
		for range 2 {
			for _, i := range random.Perm(len(bodies)) {
				payload, _, err := b.table.Open(b.id, a.id, a.addr, bodies[i])
				if err == nil {
					opened[string(payload)]++
				} else if !errors.Is(err, ErrReplayed) {
					t.Fatal(err)
				}
			}
		}
		if len(opened) != len(bodies) {
			t.Errorf("%d of %d arrived", len(opened), len(bodies))
		}
		for i, n := range opened {
			if n != 1 {
				t.Errorf("message %s arrived %d times", i, n)
			}
		}
	})
}

// TestSessionsBounded starts a sender more often than the receiver remembers.
func TestSessionsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		var first []byte
		for i := range maxSessions + 1 {
			body := a.restart(t, entry("192.0.2.2:7000", "a to b", "b to a")).seal(t, b, "hello")
			if i == 0 {
				first = body
			}
			if i < maxSessions {
				b.expect(t, "session", a, body, "hello")
			} else {
				b.expect(t, "one session too many", a, body, ErrReplayed)
			}
		}
		time.Sleep(Window + time.Second)
		b.expect(t, "when the others are old", a, a.seal(t, b, "hello"), "hello")
		b.expect(t, "of a session that is forgotten", a, first, ErrReplayed)
		if n := len(b.table.find(a.id, a.addr).sessions); n != 1 {
			t.Errorf("%d sessions are remembered", n)
		}
	})
}

// TestManyMembersOfOneHost holds that an entry for a whole host serves all members there.
func TestManyMembersOfOneHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newSide(t, 1, entry("192.0.2.2", "a to b", "b to a"))
		for range 2 {
			for port := range uint16(maxReceivers + 10) {
				b := newSide(t, 2, entry("192.0.2.1", "b to a", "a to b"))
				b.addr = netip.AddrPortFrom(b.addr.Addr(), 7000+port)
				b.id = member.OfAddr(b.addr)
				b.expect(t, "there", a, a.seal(t, b, "hello"), "hello")
				a.expect(t, "and back", b, b.seal(t, a, "hello"), "hello")
			}
		}
	})
}

// TestSessionEnds holds that a session ends before its key has sealed too much.
func TestSessionEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		first := a.seal(t, b, "first")
		h := a.table.find(b.id, b.addr)
		h.counter = maxMessages - 1
		last, next := a.seal(t, b, "last"), a.seal(t, b, "next")
		if !bytes.Equal(first[:counterAt], last[:counterAt]) || bytes.Equal(last[:counterAt], next[:counterAt]) {
			t.Errorf("sessions:\n%x\n%x\n%x", first[:timeAt], last[:timeAt], next[:timeAt])
		}
		if !bytes.Equal(first[counterAt:timeAt], next[counterAt:timeAt]) {
			t.Errorf("a new session begins at %x", next[counterAt:timeAt])
		}
		b.expect(t, "last", a, last, "last")
		b.expect(t, "next", a, next, "next")
	})
}

func TestWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w window
		seen := make(map[uint64]bool)
		var top uint64
		near := rapid.Uint64Range(0, 2*windowWords*64)
		base := rapid.SampledFrom([]uint64{0, 1 << 40, 1<<64 - 1 - 2*windowWords*64}).Draw(t, "base")
		for range rapid.IntRange(1, 200).Draw(t, "count") {
			n := base + near.Draw(t, "counter")
			got := w.admit(n)
			switch {
			case seen[n] && got:
				t.Fatalf("%d was admitted twice", n)
			case !seen[n] && !got && (n >= top || top-n < windowSize):
				t.Fatalf("%d was refused, the highest being %d", n, top)
			}
			seen[n] = seen[n] || got
			top = max(top, n)
		}
	})
}

func TestConcurrently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		bodies := make(chan []byte, 400)
		for i := range 4 {
			go func() {
				for j := range 100 {
					bodies <- a.seal(t, b, fmt.Sprint(i, j))
				}
			}()
		}
		synctest.Wait()
		close(bodies)
		for range 4 {
			go func() {
				for body := range bodies {
					if _, sealed, err := b.table.Open(b.id, a.id, a.addr, body); err != nil || !sealed {
						t.Errorf("%v", err)
					}
				}
			}()
		}
		synctest.Wait()
	})
}

// TestVectors holds that the format stays as it is.
func TestVectors(t *testing.T) {
	from, to := member.OfAddr(netip.MustParseAddrPort("192.0.2.1:7000")), member.OfAddr(netip.MustParseAddrPort("192.0.2.2:7000"))
	id := sessionID(slices.Repeat([]byte{0x5e}, 16))
	sent := time.UnixMilli(1767225600000)
	var got []struct {
		name string
		body []byte
	}
	for _, c := range []struct {
		name, key, payload string
		counter            uint64
	}{{"hello", "a to b", "hello!", 0}, {"empty", "a to b", "", 1}, {"later", "clé 2", "hello!", 1<<32 - 1}} {
		got = append(got, struct {
			name string
			body []byte
		}{c.name, seal(newAEAD(c.key, pair{from, to}, id), id, c.counter, sent, []byte(c.payload))})
	}
	if *update {
		text := "# Sealed from 192.0.2.1:7000 to 192.0.2.2:7000 (IDs by address) at 2026-01-01T00:00:00Z, in a session of 16 bytes 5e:\n" +
			"# \"hello!\" as message 0 and nothing as message 1 with the key \"a to b\"; \"hello!\" as message 4294967295 with \"clé 2\".\n" +
			"# Written by go test ./swarm/trust -run TestVectors -update, when the format changes its version.\n"
		for _, v := range got {
			text += fmt.Sprintf("%s: %x\n", v.name, v.body)
		}
		if err := os.WriteFile(vectorsFile, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := vectors(t)
	for _, v := range got {
		if !bytes.Equal(v.body, want[v.name]) {
			t.Errorf("%s:\ngot  %x\nwant %x", v.name, v.body, want[v.name])
		}
	}
}

func vectors(tb testing.TB) map[string][]byte {
	tb.Helper()
	f, err := os.Open(vectorsFile)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	all := make(map[string][]byte)
	for s := bufio.NewScanner(f); s.Scan(); {
		name, digits, ok := strings.Cut(s.Text(), ": ")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		if all[name], err = hex.DecodeString(digits); err != nil {
			tb.Fatal(err)
		}
	}
	return all
}

func BenchmarkSealOpen(b *testing.B) {
	from, to := two(b)
	payload := make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		body, _ := from.table.Seal(from.id, to.id, to.addr, payload)
		if _, _, err := to.table.Open(to.id, from.id, from.addr, body); err != nil {
			b.Fatal(err)
		}
	}
}
