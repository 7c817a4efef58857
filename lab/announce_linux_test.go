// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// site answers datagrams to an address of a host with the host's name until the test ends.
func site(t *testing.T, h *Host, addr netip.AddrPort) {
	t.Helper()
	var conn *net.UDPConn
	if err := h.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			_, from, err := conn.ReadFromUDPAddrPort(make([]byte, 1))
			if err != nil {
				return
			}
			_, _ = conn.WriteToUDPAddrPort([]byte(h.Name()), from) // a refusal by the asker's host is no concern of ours
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
}

// caller asks a site again and again from one socket, for one flow.
func caller(t *testing.T, h *Host, to netip.AddrPort) func() (string, error) {
	t.Helper()
	var conn *net.UDPConn
	if err := h.Do(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return func() (string, error) {
		if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return "", err
		}
		if _, err := conn.Write([]byte("?")); err != nil {
			return "", err
		}
		b := make([]byte, 64)
		n, err := conn.Read(b)
		return string(b[:n]), err
	}
}

// The example's map, as packets see it: all up, with nyc withdrawn, and all up again. The
// drawing is at the head of the file.
func TestWithdrawMovesCatchments(t *testing.T) {
	topology, err := ReadFile(anycastExample)
	if err != nil {
		t.Fatal(err)
	}
	l := New(t, topology)
	for _, name := range []string{"ams", "nyc", "sin"} {
		for _, addr := range anycast {
			site(t, l.Host(name), netip.AddrPortFrom(addr, 5353))
		}
	}
	callers := map[string][2]func() (string, error){}
	for _, name := range []string{"eu1", "us1", "us3", "ap1", "la1", "mix1", "mix2"} {
		callers[name] = [2]func() (string, error){
			caller(t, l.Host(name), netip.AddrPortFrom(anycast[0], 5353)), caller(t, l.Host(name), netip.AddrPortFrom(anycast[1], 5353)),
		}
	}
	check := func(when string, moved map[string]string) {
		t.Helper()
		want := map[string]string{"eu1": "ams", "us1": "nyc", "us3": "nyc", "ap1": "sin", "la1": "ams", "mix1": "nyc sin", "mix2": "nyc sin"}
		for name, both := range callers {
			expect := want[name]
			if to, ok := moved[name]; ok {
				expect = to
			}
			for v, ask := range both {
				got, err := ask()
				if err != nil || !slices.Contains(strings.Fields(expect), got) {
					t.Errorf("%s: %s reaches %s at %q, %v; want %q", when, name, anycast[v], got, err, expect)
				}
				if ends, err := l.Catchment(name, anycast[v]); err != nil || strings.Join(ends, " ") != expect {
					t.Errorf("%s: catchment of %s: got %q, %v; want %q", when, name, ends, err, expect)
				}
			}
		}
	}
	check("all up", nil)
	if err := l.Withdraw(t.Context(), "nyc", AnnounceOptions{}); err != nil {
		t.Fatal(err)
	}
	check("nyc withdrawn", map[string]string{"us1": "ams", "us3": "ams", "mix1": "sin", "mix2": "sin"})
	if got, err := l.Announcements("nyc"); err != nil || len(got) != 2 || !got[0].Withdrawn || got[0].Prefix.Addr() != anycast[0] {
		t.Errorf("announcements of nyc: got %+v, %v", got, err)
	}
	// At a cost, nyc gets back what nobody else is near.
	if err := l.Announce(t.Context(), "nyc", AnnounceOptions{Cost: new(1)}); err != nil {
		t.Fatal(err)
	}
	check("nyc at cost 1", map[string]string{"mix1": "sin", "mix2": "sin"})
	if err := l.Announce(t.Context(), "nyc", AnnounceOptions{Cost: new(0)}); err != nil {
		t.Fatal(err)
	}
	check("all up again", nil)
	if err := l.Withdraw(t.Context(), "nyc", AnnounceOptions{Prefixes: []netip.Prefix{netip.PrefixFrom(anycast[1], 128)}}); err != nil {
		t.Fatal(err)
	}
	if ends, _ := l.Catchment("us1", anycast[0]); !slices.Equal(ends, []string{"nyc"}) {
		t.Errorf("IPv6 alone withdrawn: us1 reaches IPv4 at %q, want nyc", ends)
	}
	if got, err := callers["us1"][1](); err != nil || got != "ams" {
		t.Errorf("IPv6 alone withdrawn: us1 reaches %q, %v; want ams", got, err)
	}
	if err := l.Withdraw(t.Context(), "nowhere", AnnounceOptions{}); !errors.Is(err, ErrNoNode) {
		t.Errorf("unknown node: got %v, want %v", err, ErrNoNode)
	}
}

// Flows of one customer part at the balancing router, and each stays at its site.
func TestFlowsPartBetweenSites(t *testing.T) {
	topology, err := ReadFile(anycastExample)
	if err != nil {
		t.Fatal(err)
	}
	l := New(t, topology)
	for _, name := range []string{"ams", "nyc", "sin"} {
		site(t, l.Host(name), netip.AddrPortFrom(anycast[0], 5353))
	}
	count := map[string]int{}
	for range 32 {
		ask := caller(t, l.Host("mix1"), netip.AddrPortFrom(anycast[0], 5353))
		first, err := ask()
		if err != nil {
			t.Fatal(err)
		}
		if second, err := ask(); err != nil || second != first {
			t.Errorf("one flow reached %s and then %s, %v", first, second, err)
		}
		count[first]++
	}
	if count["nyc"] == 0 || count["sin"] == 0 || count["nyc"]+count["sin"] != 32 {
		t.Errorf("32 flows reached %v, want some at nyc and some at sin", count)
	}
}

// Services of an anycast host, and every address of a network on a loopback interface, answer with the address that
// was asked: echo requests, and datagrams to no port.
func TestSharedAddressesAnswer(t *testing.T) {
	topology, err := ReadFile(anycastExample)
	if err != nil {
		t.Fatal(err)
	}
	l := New(t, topology)
	for _, addr := range []string{"192.0.2.1", "198.18.9.77"} {
		to := netip.MustParseAddr(addr)
		if got := hop(t, l.Host("us1"), to, 30, 33434, 5*time.Second); got != to {
			t.Errorf("a datagram to no port of %s: answered as %v", to, got)
		}
	}
	for _, addr := range []string{"192.0.2.1", "2001:db8::1", "198.18.9.77", "2001:db8:9:77::1"} {
		ping(t, l, "us1", addr)
	}
}

// No question goes unanswered while the nearest site comes and goes: each router has a route at any time.
//
//	near --- r1 --- r2 --- r3 --- far
//	          |
//	        client
func TestRoutesChangeWithoutGap(t *testing.T) {
	for _, kind := range []string{"kernel", "user space"} {
		t.Run(kind, func(t *testing.T) {
			topology := MustParse(twoSites + "[host.client]\n[[wire]]\nends = ['r1', 'client']\n")
			for _, name := range []string{"near", "far"} {
				topology.Hosts[name] = HostConfig{Addresses: []netip.Prefix{netip.PrefixFrom(anycast[0], 32), netip.PrefixFrom(anycast[1], 128)}}
			}
			for _, name := range []string{"r1", "r2", "r3"} {
				topology.Routers[name] = RouterConfig{Adjustable: kind != "kernel"}
			}
			l := New(t, topology)
			var callers []func() (string, error)
			for _, addr := range anycast {
				to := netip.AddrPortFrom(addr, 5353)
				site(t, l.Host("near"), to)
				site(t, l.Host("far"), to)
				callers = append(callers, caller(t, l.Host("client"), to))
			}
			done := make(chan error, 1)
			var asked atomic.Int64
			await := func() { // some questions more, so that each state has been seen
				for until := asked.Load() + 4; asked.Load() < until && t.Context().Err() == nil; {
					time.Sleep(100 * time.Microsecond)
				}
			}
			go func() {
				var err error
				for range 20 {
					err = errors.Join(err, l.Withdraw(t.Context(), "near", AnnounceOptions{}))
					await()
					err = errors.Join(err, l.Announce(t.Context(), "near", AnnounceOptions{}))
					await()
				}
				done <- err
			}()
			count := map[string]int{}
			for changing := true; changing; {
				select {
				case err := <-done:
					if err != nil {
						t.Error(err)
					}
					changing = false
				default:
				}
				for v, ask := range callers {
					who, err := ask()
					if err != nil {
						t.Fatalf("%s after %v: %v", anycast[v], count, err)
					}
					count[who]++
					asked.Add(1)
				}
			}
			if count["near"] == 0 || count["far"] == 0 {
				t.Errorf("answers: %v, want some of either", count)
			}
		})
	}
}

// A staggered change reaches nodes by distance, and one that nobody waits for is finished at once.
//
//	near --- r1 --- r2 --- r3 --- far
func TestStagger(t *testing.T) {
	l := New(t, MustParse(twoSites))
	const stagger = 30 * time.Millisecond
	start := time.Now()
	if err := l.Withdraw(t.Context(), "far", AnnounceOptions{Stagger: stagger}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 2*stagger { // r2, two hops away, shared its packets; r1 knows no difference
		t.Errorf("the withdrawal took %v, want at least %v", took, 2*stagger)
	}
	to := anycast[0]
	if ends, _ := l.Catchment("r3", to); !slices.Equal(ends, []string{"near"}) {
		t.Fatalf("far withdrawn: r3 reaches %q, want near", ends)
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error)
	go func() { done <- l.Announce(ctx, "far", AnnounceOptions{Stagger: time.Second}) }()
	poll(t, "r3 to hear of far", func() bool {
		ends, _ := l.Catchment("r3", to)
		return slices.Equal(ends, []string{"far"})
	})
	if ends, _ := l.Catchment("r2", to); !slices.Equal(ends, []string{"near"}) {
		t.Errorf("r2 reaches %q before it can have heard, want near", ends)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v, want %v", err, context.Canceled)
	}
	if ends, _ := l.Catchment("r2", to); !slices.Equal(ends, []string{"far", "near"}) {
		t.Errorf("cancelled: r2 reaches %q, want far and near", ends)
	}

	go func() { done <- l.Withdraw(t.Context(), "far", AnnounceOptions{Stagger: MaxDelay}) }()
	poll(t, "the withdrawal to begin", func() bool {
		a, _ := l.Announcements("far")
		return len(a) == 1
	})
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: got %v, want %v", err, net.ErrClosed)
	}
	if err := l.Announce(t.Context(), "far", AnnounceOptions{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after close: got %v, want %v", err, net.ErrClosed)
	}
}
