// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/nettest"
)

func TestMain(m *testing.M) {
	if peer := os.Getenv(benchPeer); peer != "" {
		runBenchPeer(peer)
		return
	}
	goleak.VerifyTestMain(m)
}

// identity makes the same key for the same number each time.
func identity(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
}

// A testHandler does what its functions say; those that are nil do as little as possible.
type testHandler struct {
	request func(s *Session, body []byte, reply func([]byte))
	cast    func(s *Session, body []byte)
	message func(s *Session, payload []byte) error
	stream  func(s *Session, header []byte, c net.Conn) error
}

func (h testHandler) Request(s *Session, body []byte, reply func([]byte)) {
	if h.request == nil {
		reply(body)
		return
	}
	h.request(s, body, reply)
}

func (h testHandler) Cast(s *Session, body []byte) {
	if h.cast != nil {
		h.cast(s, body)
	}
}

func (h testHandler) Message(s *Session, payload []byte) error {
	if h.message == nil {
		return nil
	}
	return h.message(s, payload)
}

func (h testHandler) Stream(s *Session, header []byte, c net.Conn) error {
	if h.stream == nil {
		return errors.New("no streams here")
	}
	return h.stream(s, header, c)
}

func testConfig(n byte, h testHandler) Config { return Config{Identity: identity(n), Handler: h} }

// tcpPipe makes a pair of TCP connections.
func tcpPipe(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// shake makes a link, or returns both sides' errors.
func handshake(a, b net.Conn, ca, cb Config, expect ed25519.PublicKey) (client, server *Session, clientErr, serverErr error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		server, serverErr = Server(context.Background(), b, cb)
	}()
	client, clientErr = Client(context.Background(), a, ca, expect)
	<-done
	return client, server, clientErr, serverErr
}

// newLink makes a link over a and b that ends with the test.
func newLink(t testing.TB, a, b net.Conn, ca, cb Config) (client, server *Session) {
	t.Helper()
	client, server, err1, err2 := handshake(a, b, ca, cb, nil)
	if err1 != nil || err2 != nil {
		t.Fatalf("client: %v; server: %v", err1, err2)
	}
	t.Cleanup(func() {
		client.Close()
		server.Close()
	})
	return client, server
}

func newTCPLink(t testing.TB, ca, cb Config) (client, server *Session) {
	t.Helper()
	a, b := tcpPipe(t)
	return newLink(t, a, b, ca, cb)
}

func TestEverything(t *testing.T) {
	casts := make(chan string, 1)
	h := testHandler{
		request: func(_ *Session, body []byte, reply func([]byte)) { go reply(bytes.ToUpper(body)) },
		cast:    func(_ *Session, body []byte) { casts <- string(body) },
		message: func(_ *Session, payload []byte) error {
			if len(payload) > 3 && string(payload[:4]) == "bad " {
				return fmt.Errorf("refused of %d bytes", len(payload))
			}
			return nil
		},
		stream: func(_ *Session, header []byte, c net.Conn) error {
			if string(header) != "echo" {
				return errors.New("what for?")
			}
			go func() {
				io.Copy(c, c)
				c.Close()
			}()
			return nil
		},
	}
	client, server := newTCPLink(t, testConfig(1, h), testConfig(2, h))
	for _, size := range []int{0, 1, maxSmall, maxSmall + 1, 1 << 20} {
		for _, s := range []*Session{client, server} {
			body := bytes.Repeat([]byte{'x'}, size)
			answer, err := s.Call(t.Context(), body)
			if err != nil || !bytes.Equal(answer, bytes.ToUpper(body)) {
				t.Fatalf("call of %d bytes: %d bytes, %v", size, len(answer), err)
			}
			if err := s.Send(t.Context(), body); err != nil {
				t.Fatalf("message of %d bytes: %v", size, err)
			}
			if size >= 4 {
				copy(body, "bad ")
				if err := s.Send(t.Context(), body); !errors.Is(err, ErrRefused) {
					t.Fatalf("refused message of %d bytes: %v", size, err)
				}
			}
			s.Cast(body)
			if got := <-casts; got != string(body) {
				t.Fatalf("cast of %d bytes: got %d", size, len(got))
			}
			st, err := s.Open(t.Context(), []byte("echo"))
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				st.Write(body)
				st.CloseWrite()
			}()
			got, err := io.ReadAll(st)
			if err != nil || !bytes.Equal(got, body) {
				t.Fatalf("stream of %d bytes: %d came back, %v", size, len(got), err)
			}
			st.Close()
			if _, err := s.Open(t.Context(), []byte("else")); !errors.Is(err, ErrRefused) {
				t.Fatalf("refused stream: %v", err)
			}
		}
	}
	if err := client.Send(t.Context(), make([]byte, 16<<20)); err != nil {
		t.Error(err)
	}
	if _, err := client.Call(t.Context(), make([]byte, DefaultMaxBody+1)); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
	if rtt, err := client.Ping(t.Context()); err != nil || rtt <= 0 {
		t.Error(rtt, err)
	}
	server.Close()
	<-client.Done()
	var bye *Goodbye
	if !errors.As(client.Err(), &bye) || bye.Code != CodeClosed {
		t.Error(client.Err())
	}
	if !errors.Is(server.Err(), net.ErrClosed) {
		t.Error(server.Err())
	}
	for name, s := range map[string]*Session{"client": client, "server": server} {
		s.mu.Lock()
		if len(s.table)+len(s.calls)+s.ownStreams+s.peerStreams+s.serving+s.casts+s.pending.count != 0 || s.held != [purposes]int{} {
			t.Errorf("%s left something behind: %+v", name, s.held)
		}
		s.mu.Unlock()
		if got := s.extra.Load(); got != 4*DefaultMaxWindow {
			t.Errorf("%s: windows may grow by %d", name, got)
		}
	}
}

func TestStreamIsConn(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		a, b := net.Pipe()
		streams := make(chan net.Conn, 1)
		client, server, err, _ := handshake(a, b, testConfig(1, testHandler{}), testConfig(2, testHandler{
			stream: func(_ *Session, _ []byte, c net.Conn) error {
				streams <- c
				return nil
			},
		}), nil)
		if err != nil {
			return nil, nil, nil, err
		}
		c1, err = client.Open(t.Context(), nil)
		if err != nil {
			return nil, nil, nil, err
		}
		return c1, <-streams, func() {
			client.Close()
			server.Close()
		}, nil
	})
}

// eventually waits for something that takes no time on a machine that is not busy.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}
