// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/client"
	"github.com/seed5728abee/fathom/anycast/controller"
)

// A measurement is started and followed to its end: here on a controller without agents, which says so.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	address, stop := fleet()
	defer stop()

	c, err := client.Dial(ctx, address, client.Options{Insecure: true})
	if err != nil {
		panic(err)
	}
	defer c.Close()
	sites, err := c.Sites(ctx)
	fmt.Println(len(sites), err)

	definition := anycast.Definition{Program: anycast.KindCatchment, Pace: anycast.Pace{Rate: 100}}
	stream, err := c.Start(ctx, definition, client.Targets{Text: []string{"192.0.2.0/24", "2001:db8::/47"}}, true)
	if err != nil {
		panic(err)
	}
	fmt.Println(stream.Measurement().State, stream.Measurement().Targets)
	for event, err := range stream.All() {
		if err != nil {
			panic(err)
		}
		for _, result := range event.Results {
			fmt.Printf("%T\n", result)
		}
	}
	fmt.Println(stream.Measurement().State, stream.Measurement().Error)

	_, err = c.Follow(ctx, "another")
	fmt.Println(errors.Is(err, anycast.ErrNoMeasurement))
	// Output:
	// 0 <nil>
	// running 3
	// failed catchment: site not connected
	// true
}

// fleet runs a controller on this host.
func fleet() (address string, stop func()) {
	c, err := controller.New(controller.Options{
		Start: 10000, End: 20000, Block: 100, Insecure: true, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		panic(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := c.Serve(ctx, listener); err != nil {
			panic(err)
		}
	}()
	return listener.Addr().String(), func() {
		cancel()
		<-ended
	}
}
