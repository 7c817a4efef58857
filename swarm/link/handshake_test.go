// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestHandshakeTellsWhoIsThere(t *testing.T) {
	a, b := tcpPipe(t)
	ca, cb := testConfig(1, testHandler{}), testConfig(2, testHandler{})
	ca.Hello = func(remote net.Addr) []byte { return []byte("I see " + remote.String()) }
	cb.Hello = func(net.Addr) []byte { return bytes.Repeat([]byte{'h'}, MaxHello) }
	cb.Check = func(key ed25519.PublicKey, hello []byte, remote net.Addr) error {
		if !key.Equal(identity(1).Public()) || string(hello) != "I see "+b.LocalAddr().String() || remote != b.RemoteAddr() {
			t.Errorf("checked %x, %q, %v", key, hello, remote)
		}
		return nil
	}
	client, server, err1, err2 := handshake(a, b, ca, cb, identity(2).Public().(ed25519.PublicKey))
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	defer server.Close()
	defer client.Close()
	if !client.Key().Equal(identity(2).Public()) || len(client.Hello()) != MaxHello || !client.Dialer() || client.RTT() <= 0 {
		t.Errorf("client: %x, %q, dialer %v, %v", client.Key(), client.Hello(), client.Dialer(), client.RTT())
	}
	if !server.Key().Equal(identity(1).Public()) || server.Dialer() || server.RTT() <= 0 || server.RemoteAddr() != b.RemoteAddr() {
		t.Errorf("server: %x, dialer %v, %v", server.Key(), server.Dialer(), server.RTT())
	}
}

func TestHandshakeRefused(t *testing.T) {
	k := func(n ...byte) (keys [][32]byte) {
		for _, n := range n {
			keys = append(keys, [32]byte{n})
		}
		return keys
	}
	with := func(n byte, keys [][32]byte) Config {
		c := testConfig(n, testHandler{})
		c.SwarmKeys = keys
		return c
	}
	refusing := func(n byte, err error) Config {
		c := testConfig(n, testHandler{})
		c.Check = func(ed25519.PublicKey, []byte, net.Addr) error { return err }
		return c
	}
	chatty := testConfig(1, testHandler{})
	chatty.Hello = func(net.Addr) []byte { return make([]byte, MaxHello+1) }
	no := errors.New("not you")
	for _, test := range []struct {
		name           string
		client, server Config
		expect         byte  // the key that the client expects, if not 0
		clientError    error // nil: success
		serverError    error
	}{
		{name: "the same key", client: with(1, k(7)), server: with(2, k(7))},
		{name: "a key that is rotated in", client: with(1, k(8, 7)), server: with(2, k(7, 8))},
		{name: "a key that is rotated out", client: with(1, k(7)), server: with(2, k(8, 9, 7))},
		{name: "other keys", client: with(1, k(7)), server: with(2, k(8, 9)), clientError: ErrSwarmKey, serverError: ErrSwarmKey},
		{name: "a key that only the client has", client: with(1, k(7)), server: with(2, nil), clientError: ErrSwarmKey, serverError: ErrSwarmKey},
		{name: "a key that only the server has", client: with(1, nil), server: with(2, k(7)), clientError: ErrSwarmKey, serverError: ErrSwarmKey},
		{name: "the right member", client: with(1, nil), server: with(2, nil), expect: 2},
		{name: "another member", client: with(1, nil), server: with(2, nil), expect: 3, clientError: ErrWrongMember, serverError: ErrHandshake},
		{name: "itself", client: with(1, nil), server: with(1, nil), clientError: ErrSelf, serverError: ErrHandshake},
		{name: "refused by the server", client: with(1, nil), server: refusing(2, no), clientError: ErrRefused, serverError: no},
		{name: "refused by the client", client: refusing(1, no), server: with(2, nil), clientError: no, serverError: ErrHandshake},
		{name: "a hello that is too long", client: chatty, server: with(2, nil), clientError: ErrTooLarge, serverError: ErrHandshake},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := net.Pipe()
				var expect ed25519.PublicKey
				if test.expect != 0 {
					expect = identity(test.expect).Public().(ed25519.PublicKey)
				}
				client, server, err1, err2 := handshake(a, b, test.client, test.server, expect)
				if !errors.Is(err1, test.clientError) || !errors.Is(err2, test.serverError) {
					t.Errorf("client: %v, not %v; server: %v, not %v", err1, test.clientError, err2, test.serverError)
				}
				if test.clientError == nil {
					if err := client.Send(t.Context(), []byte("hello")); err != nil {
						t.Error(err)
					}
					client.Close()
					server.Close()
				}
				if _, err := a.Write(nil); !errors.Is(err, io.ErrClosedPipe) {
					t.Error("the connection is still open")
				}
			})
		})
	}
}

func TestRefusalHasCode(t *testing.T) {
	a, b := net.Pipe()
	cb := testConfig(2, testHandler{})
	cb.Check = func(ed25519.PublicKey, []byte, net.Addr) error {
		return &Goodbye{Code: CodeDuplicate, Reason: "one will do"}
	}
	_, _, err, _ := handshake(a, b, testConfig(1, testHandler{}), cb, nil)
	var bye *Goodbye
	if !errors.As(err, &bye) || *bye != (Goodbye{CodeDuplicate, "one will do"}) || !errors.Is(err, ErrRefused) {
		t.Error(err)
	}
}

// What comes instead of a handshake ends it at once, or when the time is up, and costs little.
func TestHandshakeWithStrangers(t *testing.T) {
	keyed := testConfig(2, testHandler{})
	keyed.SwarmKeys = [][32]byte{{1}, {2}}
	for _, test := range []struct {
		name   string
		config Config
		sent   []byte
		want   error
		answer []byte
	}{
		{"a Cicada message", testConfig(2, testHandler{}), []byte("ch\x00\x05"), ErrHandshake, nil},
		{"another version", testConfig(2, testHandler{}), []byte{Magic, 9, 0, 32}, ErrVersion, []byte{Magic, Version, 0, 0}},
		{"an endless message", testConfig(2, testHandler{}), []byte{Magic, Version, 0xff, 0xff}, ErrHandshake, nil},
		{"garbage for a key", testConfig(2, testHandler{}), append([]byte{Magic, Version, 0, 48}, make([]byte, 48)...), ErrSwarmKey, []byte{Magic, Version, 0, 0}},
		{"a swarm key that is none", keyed, append([]byte{Magic, Version, 0, 48}, make([]byte, 48)...), ErrSwarmKey, []byte{Magic, Version, 0, 0}},
		{"a key of low order", testConfig(2, testHandler{}), append([]byte{Magic, Version, 0, 32}, make([]byte, 32)...), ErrHandshake, nil},
		{"silence", testConfig(2, testHandler{}), nil, context.DeadlineExceeded, nil},
		{"a part", testConfig(2, testHandler{}), []byte{Magic, Version, 0}, context.DeadlineExceeded, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := net.Pipe()
				began := time.Now()
				answer := make(chan []byte)
				go func() {
					a.Write(test.sent)
					got, _ := io.ReadAll(a)
					answer <- got
				}()
				_, err := Server(t.Context(), b, test.config)
				if !errors.Is(err, test.want) || !errors.Is(err, ErrHandshake) {
					t.Errorf("%v, not %v", err, test.want)
				}
				if got := <-answer; !bytes.Equal(got, test.answer) {
					t.Errorf("answered % x", got)
				}
				if took := time.Since(began); test.want == context.DeadlineExceeded && took != DefaultHandshake {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// A peer that feeds a handshake byte by byte does not get more time for it.
func TestSlowHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		var feeding sync.WaitGroup
		defer feeding.Wait()
		defer a.Close()
		feeding.Go(func() {
			for _, c := range append([]byte{Magic, Version, 0, 32}, make([]byte, 32)...) {
				if _, err := a.Write([]byte{c}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		})
		began := time.Now()
		if _, err := Server(t.Context(), b, testConfig(2, testHandler{})); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if took := time.Since(began); took != DefaultHandshake {
			t.Error(took)
		}
	})
}

func TestHandshakeCanceled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := Client(ctx, a, testConfig(1, testHandler{}), nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

// A flipper changes one byte of what is written to a connection.
type flipper struct {
	net.Conn
	at int
}

func (f *flipper) Write(p []byte) (int, error) {
	if f.at >= 0 && f.at < len(p) {
		p = bytes.Clone(p)
		p[f.at] ^= 0x40
	}
	f.at -= len(p)
	return f.Conn.Write(p)
}

// Whoever changes a bit of a handshake ends it.
func TestTamperedHandshake(t *testing.T) {
	total := 4 + firstOpen + 2 + keyLen + tagSize + announcement + tagSize // what the client sends
	step := 1
	if testing.Short() {
		step = 11
	}
	for at := 0; at < total; at += step {
		synctest.Test(t, func(t *testing.T) {
			a, b := net.Pipe()
			client, server, err1, err2 := handshake(&flipper{a, at}, b, testConfig(1, testHandler{}), testConfig(2, testHandler{}), nil)
			if err1 == nil || err2 == nil {
				t.Errorf("byte %d changed: client %v, server %v", at, err1, err2)
			}
			for _, s := range []*Session{client, server} {
				if s != nil {
					s.Close()
				}
			}
		})
	}
}

// A signature of one handshake is worth nothing in another one.
func TestSignatureIsForOneHandshake(t *testing.T) {
	static, ephemeral, other := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32), bytes.Repeat([]byte{3}, 32)
	signature := ed25519.Sign(identity(1), signed(dialerContext, static, ephemeral))
	key := identity(1).Public().(ed25519.PublicKey)
	for name, message := range map[string][]byte{
		"as the accepter":         signed(accepterContext, static, ephemeral),
		"with another Noise key":  signed(dialerContext, other, ephemeral),
		"in another handshake":    signed(dialerContext, static, other),
		"with keys changed about": signed(dialerContext, ephemeral, static),
	} {
		if ed25519.Verify(key, message, signature) {
			t.Errorf("valid %s", name)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := testConfig(1, testHandler{})
	for name, change := range map[string]func(*Config){
		"no identity":         func(c *Config) { c.Identity = nil },
		"no handler":          func(c *Config) { c.Handler = nil },
		"too many swarm keys": func(c *Config) { c.SwarmKeys = make([][32]byte, MaxSwarmKeys+1) },
		"MaxBody":             func(c *Config) { c.MaxBody = 1 },
		"MaxStreams":          func(c *Config) { c.MaxStreams = -1 },
	} {
		c := good
		change(&c)
		a, b := net.Pipe()
		defer b.Close()
		if _, err := Client(t.Context(), a, c, nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
