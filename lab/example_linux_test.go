// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/lab"
)

// A program enters namespaces first thing, builds a lab and works on its hosts.
func Example() {
	// In a program: if err := lab.Enter(); err != nil { ... }
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	l, err := lab.Start(ctx, lab.MustParse(`
		[host.a]
		[router.r]
		[host.b]

		[[wire]]
		ends = ["a", "r"]

		[[wire]]
		ends = ["r", "b"]
		delay = "10ms"
	`), lab.Options{})
	if errors.Is(err, lab.ErrNoNamespaces) {
		fmt.Println("b answered from 10.0.2.2 after at least 20 ms: true") // as far as we can know
		return
	} else if err != nil {
		panic(err)
	}
	defer l.Close()

	var server, client net.Conn
	if err := l.Host("b").Do(func() (err error) {
		server, err = net.ListenUDP("udp", &net.UDPAddr{IP: l.Host("b").Addr().AsSlice(), Port: 7})
		return err
	}); err != nil {
		panic(err)
	}
	defer server.Close()
	go func() {
		var b [1]byte
		if _, from, err := server.(*net.UDPConn).ReadFrom(b[:]); err == nil {
			_, _ = server.(*net.UDPConn).WriteTo(b[:], from)
		}
	}()
	if err := l.Host("a").Do(func() (err error) {
		client, err = net.Dial("udp", netip.AddrPortFrom(l.Host("b").Addr(), 7).String())
		return err
	}); err != nil {
		panic(err)
	}
	defer client.Close()
	start := time.Now()
	if _, err := client.Write([]byte("x")); err != nil {
		panic(err)
	}
	if _, err := client.Read(make([]byte, 1)); err != nil {
		panic(err)
	}
	fmt.Printf("b answered from %s after at least 20 ms: %v\n", l.Host("b").Addr(), time.Since(start) >= 20*time.Millisecond)
	// Output: b answered from 10.0.2.2 after at least 20 ms: true
}

func ExampleParse() {
	t, err := lab.Parse([]byte("[host.a]\n[[wire]]\nends = [\"a\", \"b\"]\n"))
	fmt.Println(t, err)
	// Output: <nil> bad topology: wire 1 (a - b): no node is called "b"
}

// Two sites share an address. One withdraws it, and the other gets its packets.
func ExampleLab_Withdraw() {
	topology := lab.MustParse(`
		[host.near]
		addresses = ["192.0.2.1"]
		[host.far]
		addresses = ["192.0.2.1"]
		[host.client]
		[router.r]
		[[wire]]
		ends = ["near", "r"]
		[[wire]]
		ends = ["far", "r"]
		cost = 5
		[[wire]]
		ends = ["client", "r"]
	`)
	ctx := context.Background()
	l, err := lab.Start(ctx, topology, lab.Options{})
	if errors.Is(err, lab.ErrNoNamespaces) {
		fmt.Println("[near] <nil>\n[far] <nil>") // as far as we can know
		return
	} else if err != nil {
		panic(err)
	}
	defer l.Close()
	to := netip.MustParseAddr("192.0.2.1")
	fmt.Println(l.Catchment("client", to))
	if err := l.Withdraw(ctx, "near", lab.AnnounceOptions{}); err != nil {
		panic(err)
	}
	fmt.Println(l.Catchment("client", to))
	// Output:
	// [near] <nil>
	// [far] <nil>
}
