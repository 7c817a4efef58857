// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/vectors.txt anew")

// A transcript notes what both ends of a connection write.
type transcript struct {
	net.Conn
	who  string
	mu   *sync.Mutex
	note *strings.Builder
}

func (c transcript) Write(p []byte) (int, error) {
	c.mu.Lock()
	fmt.Fprintf(c.note, "%s %x\n", c.who, p)
	c.mu.Unlock()
	return c.Conn.Write(p)
}

// vectors are handshakes with fixed keys and randomness, and the first records after them.
func vectors(t *testing.T) string {
	var note strings.Builder
	for _, keyed := range []bool{false, true} {
		ca, cb := testConfig(1, testHandler{}), testConfig(2, testHandler{})
		ca.Hello = func(net.Addr) []byte { return []byte("from the dialer") }
		cb.Hello = func(net.Addr) []byte { return []byte("from the accepter") }
		fmt.Fprintln(&note, "# identities: Ed25519 seeds of 32 bytes 01 (dialer) and 02; randomness: ChaCha8 with seeds of 32 bytes 03 and 04")
		if keyed {
			ca.SwarmKeys = [][32]byte{{5}}
			cb.SwarmKeys = [][32]byte{{6}, {5}}
			fmt.Fprintln(&note, "# swarm key: 05 and 31 zero bytes")
		}
		a, b := net.Pipe()
		var mu sync.Mutex
		seed := func(n byte) *rand.ChaCha8 { return rand.NewChaCha8([32]byte(bytes.Repeat([]byte{n}, 32))) }
		ca, err := ca.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		if cb, err = cb.withDefaults(); err != nil {
			t.Fatal(err)
		}
		dialer := &shake{conn: transcript{a, "dialer", &mu, &note}, config: ca, dialer: true, random: seed(3)}
		accepter := &shake{conn: transcript{b, "accepter", &mu, &note}, config: cb, random: seed(4)}
		done := make(chan *Session)
		go func() {
			send, recv, err := accepter.accept()
			if err != nil {
				t.Error(err)
				done <- nil
				return
			}
			done <- newSession(accepter, send.UnsafeKey(), recv.UnsafeKey())
		}()
		send, recv, err := dialer.dial(nil)
		two := <-done
		if err != nil || two == nil {
			t.Fatal(err)
		}
		one := newSession(dialer, send.UnsafeKey(), recv.UnsafeKey())
		line := func(who string, d *direction, f frame) {
			fmt.Fprintf(&note, "# %s\n%s %x\n", f.kind, who, d.seal(nil, appendFrame(nil, &f)))
		}
		line("accepter", &two.send.direction, frame{kind: kindWelcome})
		line("dialer", &one.send.direction, frame{kind: kindMessage, body: []byte("hello!")})
		line("dialer", &one.send.direction, frame{kind: kindRekey})
		one.send.rekey()
		line("dialer", &one.send.direction, frame{kind: kindOpen, id: 1, code: forMessage, total: 100000})
		line("accepter", &two.send.direction, frame{kind: kindAcked, number: 1})
		a.Close()
	}
	fmt.Fprintln(&note, "# every frame, as it is inside of a record")
	for _, f := range seedFrames() {
		fmt.Fprintf(&note, "%s %s\n", f.kind, hex.EncodeToString(appendFrame(nil, &f)))
	}
	return note.String()
}

func TestVectors(t *testing.T) {
	const name = "testdata/vectors.txt"
	got := vectors(t)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the format has changed: got\n%s\nwant\n%s", got, want)
	}
}

func TestNamesOfUnknownValues(t *testing.T) {
	for got, want := range map[string]string{
		kind(99).String():       "kind(99)",
		kindCredit.String():     "credit",
		Code(99).String():       "Code(99)",
		CodeOverloaded.String(): "overloaded",
		(&Goodbye{Code: CodeClosed, Reason: "x\n"}).Error(): `the other side said goodbye: closed: "x\n"`,
	} {
		if got != want {
			t.Errorf("%s, not %s", got, want)
		}
	}
}
