// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/client"
	"github.com/seed5728abee/fathom/anycast/controller"
)

// A controller with a request of the operator's own, beside Voltadomar's.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := controller.New(controller.Options{
		Start: 10000, End: 20000, Block: 100,
		Insecure: true, // a fleet has an Authority instead
		Log:      slog.New(slog.DiscardHandler),
		Programs: map[string]anycast.NewProgram{
			"echo": func(conf anycast.ProgramConf) (anycast.Program, error) {
				if len(conf.Words) == 0 {
					return nil, errors.New("usage: echo WORD...")
				}
				return echo(conf.Words), nil
			},
		},
	})
	if err != nil {
		panic(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	serving, stop := context.WithCancel(ctx)
	ended := make(chan error)
	go func() { ended <- c.Serve(serving, listener) }()

	user, err := client.Dial(ctx, listener.Addr().String(), client.Options{Insecure: true})
	if err != nil {
		panic(err)
	}
	for _, command := range []string{"echo how deep is it", "echo", "volta fra1 192.0.2.9"} {
		code, output, err := user.Request(ctx, command)
		fmt.Println(code, output, err)
	}
	user.Close()
	stop()
	fmt.Println(<-ended)
	// Output:
	// 200 how deep is it <nil>
	// 400 Invalid command: usage: echo WORD... <nil>
	// 500 Program execution failed: failed to send job to agent fra1: agent fra1 not connected <nil>
	// <nil>
}

type echo []string

func (e echo) Run(context.Context) (string, error) { return strings.Join(e, " "), nil }
