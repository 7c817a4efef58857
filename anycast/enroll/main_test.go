// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		os.Exit(childMain())
	}
	goleak.VerifyTestMain(m)
}

const testController = "controller.example:50051"

func newAuthority(t testing.TB) *Authority {
	t.Helper()
	a, err := Open(filepath.Join(t.TempDir(), "authority"), AuthorityOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newToken(t testing.TB, a *Authority, who Identity) Token {
	t.Helper()
	token, err := a.Token(who, 0, testController)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// server is a controller that does nothing but enrol. A message is its length in 4 bytes, then itself.
type server struct {
	config *tls.Config
	handle func(cs tls.ConnectionState, request []byte) []byte
	wg     sync.WaitGroup
	conns  sync.Map
}

func newServer(t testing.TB, a *Authority, hosts ...string) *server {
	t.Helper()
	config, err := a.ServerTLS(hosts...)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{config: config, handle: func(cs tls.ConnectionState, request []byte) []byte {
		reply, _, _ := a.Respond(cs, request)
		return reply
	}}
	t.Cleanup(s.close)
	return s
}

func (s *server) close() {
	s.conns.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
	s.wg.Wait()
}

// dial is a JoinOptions.Dial that leads to the server, through memory.
func (s *server) dial(context.Context, string, string) (net.Conn, error) {
	client, end := pipe()
	s.conns.Store(end, nil)
	s.wg.Go(func() {
		conn := tls.Server(end, s.config)
		defer conn.Close()
		if conn.Handshake() != nil {
			return
		}
		for {
			request, err := readMessage(conn)
			if err != nil || writeMessage(conn, s.handle(conn.ConnectionState(), request)) != nil {
				return
			}
		}
	})
	return client, nil
}

// memConn is one end of a connection in memory. Unlike net.Pipe's it has a buffer, for in TLS both ends may write at
// once; unlike a socket it works in a synctest bubble. It has no deadlines.
type memConn struct {
	net.Conn // nil: what is not below is not used
	in, out  *memBuffer
}

type memBuffer struct {
	mu     sync.Mutex
	change sync.Cond
	data   []byte
	closed bool
}

func pipe() (a, b net.Conn) {
	x, y := new(memBuffer), new(memBuffer)
	x.change.L, y.change.L = &x.mu, &y.mu
	return &memConn{in: x, out: y}, &memConn{in: y, out: x}
}

func (c *memConn) Read(b []byte) (int, error) {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	for len(c.in.data) == 0 {
		if c.in.closed {
			return 0, io.EOF
		}
		c.in.change.Wait()
	}
	n := copy(b, c.in.data)
	c.in.data = c.in.data[n:]
	return n, nil
}

func (c *memConn) Write(b []byte) (int, error) {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if c.out.closed {
		return len(b), nil // as with TCP, one learns of it by reading, and reads first what was sent before
	}
	c.out.data = append(c.out.data, b...)
	c.out.change.Broadcast()
	return len(b), nil
}

func (c *memConn) Close() error {
	for _, b := range []*memBuffer{c.in, c.out} {
		b.mu.Lock()
		b.closed = true
		b.change.Broadcast()
		b.mu.Unlock()
	}
	return nil
}

func (c *memConn) SetDeadline(time.Time) error      { return nil }
func (c *memConn) SetWriteDeadline(time.Time) error { return nil }

func writeMessage(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func readMessage(r io.Reader) ([]byte, error) {
	var n [4]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(n[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

func exchange(_ context.Context, conn net.Conn, request []byte) ([]byte, error) {
	if err := writeMessage(conn, request); err != nil {
		return nil, err
	}
	return readMessage(conn)
}

func (s *server) join(t testing.TB, token Token) (*Credentials, error) {
	t.Helper()
	return Join(context.Background(), token, filepath.Join(t.TempDir(), "credentials"), JoinOptions{Exchange: exchange, Dial: s.dial})
}

func (s *server) mustJoin(t testing.TB, token Token) *Credentials {
	t.Helper()
	c, err := s.join(t, token)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// call sends one request over a new connection.
func (s *server) call(config *tls.Config, request []byte) ([]byte, error) {
	raw, err := s.dial(context.Background(), "", "")
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, config)
	defer conn.Close()
	if err := conn.Handshake(); err != nil {
		return nil, err
	}
	return exchange(context.Background(), conn, request)
}

// renew renews credentials once.
func (s *server) renew(c *Credentials) error {
	reply, err := s.call(c.ClientTLS(), c.RenewRequest())
	if err != nil {
		return Explain(err)
	}
	return c.Renewed(reply)
}

func wantError(t *testing.T, what string, err error, want ...error) {
	t.Helper()
	for _, w := range want {
		if !errors.Is(err, w) {
			t.Errorf("%s: got %v, want %v", what, err, w)
		}
	}
}
