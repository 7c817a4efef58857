// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/seed5728abee/fathom/swarm"
)

// Two peers in one program; elsewhere they would be on two hosts.
func Example() {
	ctx := context.Background()
	alice, bob := swarm.New(swarm.Options{}), swarm.New(swarm.Options{})
	defer alice.Close()
	defer bob.Close()
	for _, p := range []*swarm.Peer{alice, bob} {
		if err := p.Bind(ctx, "127.0.0.1:0"); err != nil {
			fail(err)
		}
	}
	if err := bob.Connect(ctx, alice.Addr().String()); err != nil {
		fail(err)
	}
	if err := alice.Send(ctx, swarm.ToAddrPort(bob.Addr()), []byte("hello")); err != nil {
		fail(err)
	}
	m, err := bob.Recv(ctx)
	if err != nil {
		fail(err)
	}
	fmt.Printf("%s, from alice: %v\n", m.Data, m.From.ID == alice.ID())
	// Output: hello, from alice: true
}

// A service of one peer, and a stream to it.
func ExamplePeer_Dial() {
	ctx := context.Background()
	server, client := swarm.New(swarm.Options{}), swarm.New(swarm.Options{})
	defer server.Close()
	defer client.Close()
	for _, p := range []*swarm.Peer{server, client} {
		if err := p.Bind(ctx, "127.0.0.1:0"); err != nil {
			fail(err)
		}
	}
	if err := client.Connect(ctx, server.Addr().String()); err != nil {
		fail(err)
	}
	l, err := server.Listen("greeting")
	if err != nil {
		fail(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			fmt.Fprint(c, "good evening")
			c.Close()
		}
	}()
	c, err := client.Dial(ctx, swarm.ToID(server.ID()), "greeting")
	if err != nil {
		fail(err)
	}
	defer c.Close()
	text, err := io.ReadAll(c)
	fmt.Println(string(text), err)
	// Output: good evening <nil>
}

func fail(err error) {
	slog.Error("swarm", "error", err)
	os.Exit(1)
}
