// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/seed5728abee/fathom/probe"
)

// One echo request, like ping.
func ExampleProber_Probe() {
	p, err := probe.New(probe.Options{})
	if errors.Is(err, probe.ErrPermission) {
		fmt.Println("no sockets:", err) // the message says how to get them
		return
	} else if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	r, err := p.Probe(ctx, probe.Request{Target: netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		fmt.Println(err) // not sent, or given up
		return
	}
	fmt.Println(r.Status, r.Responder, r.RTT, r.ReplyTTL)
}

// All hops of a path at once, along one flow.
func ExampleProber_Start() {
	p, err := probe.New(probe.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close()
	results := make(chan probe.Result, 30) // room for all, since a callback must not block
	for ttl := range uint8(30) {
		_, err := p.Start(probe.Request{
			Target: netip.MustParseAddr("192.0.2.1"), Protocol: probe.UDP, Flow: 1, TTL: ttl + 1, Timeout: time.Second,
		}, func(r probe.Result) { results <- r })
		if err != nil {
			fmt.Println(err)
			return
		}
	}
	for range 30 {
		r := <-results
		fmt.Println(r.TTL, r.Status, r.Responder, r.RTT, r.MPLS)
	}
}

// Many targets, a thousand probes in flight.
func ExampleProber_Stream() {
	p, err := probe.New(probe.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close()
	targets := []probe.Request{
		{Target: netip.MustParseAddr("192.0.2.1")},
		{Target: netip.MustParseAddr("2001:db8::1"), Protocol: probe.TCP, Port: 443},
	}
	for r := range p.Stream(context.Background(), 1000, slices.Values(targets)) {
		if r.Answered() {
			fmt.Println(r.Target, r.Status, r.RTT)
		}
	}
}

// The answer comes through a channel.
func ExampleProber_Send() {
	p, err := probe.New(probe.Options{Mode: probe.Unprivileged})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close()
	answer, err := p.Send(context.Background(), probe.Request{Target: netip.MustParseAddr("127.0.0.1"), Protocol: probe.TCP, Port: 22})
	if err != nil {
		fmt.Println(err)
		return
	}
	r := <-answer
	fmt.Println(r.Status)
}

func ExampleProber_Features() {
	p, err := probe.New(probe.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close()
	f := p.Features()
	fmt.Println(f.Mode, f.Supports(probe.SCTP, 6))
	for _, sentence := range f.Missing {
		fmt.Println(sentence)
	}
}

func ExampleResolve() {
	a, err := probe.Resolve(context.Background(), nil, "192.0.2.1", 4)
	fmt.Println(a, err)
	_, err = probe.Resolve(context.Background(), nil, "192.0.2.1", 6)
	fmt.Println(err)
	// Output:
	// 192.0.2.1 <nil>
	// resolve 192.0.2.1 (IPv6): it is an address of the other IP version
}

func ExampleRequestError() {
	_, err := probe.ParseProtocol("gre")
	fmt.Println(err, errors.Is(err, probe.ErrInvalid))
	// Output:
	// invalid protocol gre: want icmp, udp, tcp or sctp true
}
