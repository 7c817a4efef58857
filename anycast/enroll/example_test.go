// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package enroll_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/seed5728abee/fathom/anycast/enroll"
)

// One host joins and then connects. The messages here go over bare TLS and end where a side of the connection
// ends; a controller has a gRPC service for them.
func Example() {
	dir, err := os.MkdirTemp("", "enroll")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)

	// On the controller's host.
	authority, err := enroll.Open(filepath.Join(dir, "authority"), enroll.AuthorityOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	config, err := authority.ServerTLS("localhost")
	if err != nil {
		fmt.Println(err)
		return
	}
	listener, err := tls.Listen("tcp", "localhost:0", config)
	if err != nil {
		fmt.Println(err)
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		request, err := io.ReadAll(conn)
		if err != nil {
			return
		}
		reply, who, err := authority.Respond(conn.(*tls.Conn).ConnectionState(), request)
		fmt.Println("controller:", who, "asked,", "error:", err)
		conn.Write(reply)
	}()
	defer func() { listener.Close(); <-done }()
	token, err := authority.Token(enroll.Identity{Role: enroll.Agent, Name: "fra1"}, 0, listener.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	line := token.Reveal() // what the administrator takes to the other host

	// On the host that joins.
	token, err = enroll.ParseToken(line)
	if err != nil {
		fmt.Println(err)
		return
	}
	credentials, err := enroll.Join(context.Background(), token, filepath.Join(dir, "credentials"), enroll.JoinOptions{
		Exchange: func(_ context.Context, conn net.Conn, request []byte) ([]byte, error) {
			if _, err := conn.Write(request); err != nil {
				return nil, err
			}
			if err := conn.(*tls.Conn).CloseWrite(); err != nil {
				return nil, err
			}
			return io.ReadAll(conn)
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("joined as", credentials.Identity())
	fmt.Println("the token prints without its secret:", strings.HasSuffix(token.String(), "/..."))
	// Output:
	// controller: agent/fra1 asked, error: <nil>
	// joined as agent/fra1
	// the token prints without its secret: true
}
