// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"

	"github.com/seed5728abee/fathom/swarm/link"
)

// A shouter answers requests in capitals and prints messages.
type shouter struct{}

func (shouter) Request(_ *link.Session, body []byte, reply func([]byte)) { reply(bytes.ToUpper(body)) }
func (shouter) Cast(*link.Session, []byte)                               {}
func (shouter) Stream(*link.Session, []byte, net.Conn) error             { return errors.New("no streams") }

func (shouter) Message(_ *link.Session, payload []byte) error {
	fmt.Printf("message: %s\n", payload)
	return nil
}

func Example() {
	_, alice, _ := ed25519.GenerateKey(nil)
	_, bob, _ := ed25519.GenerateKey(nil)
	ctx := context.Background()
	a, b := net.Pipe() // or any other connection

	go link.Server(ctx, b, link.Config{Identity: bob, Handler: shouter{}})

	s, err := link.Client(ctx, a, link.Config{Identity: alice, Handler: shouter{}}, bob.Public().(ed25519.PublicKey))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()
	answer, err := s.Call(ctx, []byte("anybody home?"))
	fmt.Printf("answer: %s, %v\n", answer, err)
	fmt.Println("acknowledged:", s.Send(ctx, []byte("hello")))
	// Output:
	// answer: ANYBODY HOME?, <nil>
	// message: hello
	// acknowledged: <nil>
}
