// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/swarm"
)

// Whatever strangers send to a peer, it goes on serving its swarm.
func TestStrangers(t *testing.T) {
	t.Parallel()
	peers := newSwarm(t, 3, open)
	ctx := timeout(t, 30*time.Second)
	victim := peers[1].Addr().String()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", victim)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	noise := make([]byte, 64<<10)
	rand.Read(noise)
	for _, first := range []string{
		"", "\xfa", "\xfa\x01", "\xfa\xff\xff\xff", "ch", "ch\x00\x05\x00\x01", "ci\x00\x05\x00\x04\xff", "GET / HTTP/1.1\r\n\r\n",
		"\xf7hp\x01", "\x00", "\x16\x03\x01",
	} {
		c := dial()
		c.Write([]byte(first))
		c.SetWriteDeadline(time.Now().Add(time.Second))
		c.Write(noise) // some hang up while it is sent: that is fine
		half := dial() // and this one says no more than its first bytes
		half.Write([]byte(first))
	}
	for range 300 { // a flood of connections that say nothing
		c, err := net.Dial("tcp", victim)
		if err != nil {
			break
		}
		defer c.Close()
	}
	if err := peers[2].Send(ctx, swarm.ToAddr(victim), []byte("still there?")); err != nil {
		t.Fatal(err)
	}
	if m, err := peers[1].Recv(ctx); err != nil || string(m.Data) != "still there?" {
		t.Fatalf("%+v, %v", m, err)
	}
	if n := peers[1].Counters().Refused; n == 0 {
		t.Error("no refused connection was counted")
	}
	// Those who say nothing are cut off, and then strangers can become members again.
	late := newPeer(t, swarm.Options{})
	waitFor(t, "a new member joins through the victim", func() bool {
		return late.Connect(timeout(t, 10*time.Second), victim) == nil
	})
}

// A peer that does not fetch its messages makes its senders wait, and nobody else.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	peers := newSwarm(t, 3, func(i int) swarm.Options {
		if i == 1 {
			return swarm.Options{QueueLength: 10}
		}
		return swarm.Options{}
	})
	ctx := timeout(t, 30*time.Second)
	slow, other := swarm.ToID(peers[1].ID()), swarm.ToID(peers[2].ID())
	for i := range 10 {
		if err := peers[0].Send(ctx, slow, fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	if err := peers[0].Send(short, slow, []byte("10")); err == nil {
		t.Error("the eleventh message has room in a queue of ten")
	}
	cancel()
	if err := peers[0].Send(ctx, other, []byte("x")); err != nil {
		t.Errorf("to another: %v", err)
	}
	if _, err := peers[0].Lookup(ctx, swarm.HashOf("key"), swarm.LookupOptions{}); err != nil {
		t.Errorf("lookup meanwhile: %v", err)
	}
	for i := range 11 { // with the one that was given up on: it was under way
		if m, err := peers[1].Recv(ctx); err != nil || string(m.Data) != fmt.Sprint(i) {
			t.Fatalf("message %d: %q, %v", i, m.Data, err)
		}
	}
}

// Nothing is left when peers have closed.
func TestNothingLeft(t *testing.T) {
	before := runtime.NumGoroutine()
	ctx := context.Background()
	a, b := swarm.New(swarm.Options{}), swarm.New(swarm.Options{})
	for _, p := range []*swarm.Peer{a, b} {
		if err := p.Bind(ctx, "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Connect(ctx, a.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if err := a.Send(ctx, swarm.ToID(b.ID()), []byte("x")); err != nil {
		t.Fatal(err)
	}
	a.Close()
	b.Close()
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}
