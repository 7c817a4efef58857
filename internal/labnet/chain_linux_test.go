// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package labnet

import (
	"encoding/binary"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed5728abee/fathom/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// Every hop answers as itself, and is heard at the site of its part of the path.
//
//	a --+
//	b --+-- path: 19 hops -- target
//	c --+
func TestChain(t *testing.T) {
	const hops = 20
	sites := []string{"a", "b", "c"}
	topology := Chain(hops, sites...)
	if err := topology.Validate(); err != nil {
		t.Fatal(err)
	}
	l := lab.New(t, topology)
	sockets := map[string]int{}
	for _, site := range sites {
		if err := l.Host(site).Do(func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
			sockets[site] = fd
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(sockets[site])
	}
	for ttl := 1; ttl <= hops; ttl++ {
		if err := l.Host("a").Do(func() error { return sendProbe(ttl, 40000+ttl) }); err != nil {
			t.Fatal(err)
		}
		site := Home(hops, ttl, sites...)
		from, port := readError(t, sockets[site])
		want := HopAddr(l, ttl)
		if ttl == hops {
			want = Target4
		}
		if from != want || port != 40000+ttl {
			t.Errorf("hop %d: %s heard %v about port %d, want %v about %d", ttl, site, from, port, want, 40000+ttl)
		}
	}
	for ttl, want := range map[int]string{1: "a", 6: "a", 7: "b", 13: "b", 14: "c", 19: "c", 20: "a"} {
		if got := Home(hops, ttl, sites...); got != want {
			t.Errorf("home of hop %d: got %s, want %s", ttl, got, want)
		}
	}
	if got, err := l.Catchment("target", Anycast4); err != nil || len(got) != 1 || got[0] != "a" {
		t.Errorf("the target reaches %q, %v; want a", got, err)
	}
	if got, err := l.Catchment("b", l.Host("controller").Addr()); err != nil || len(got) != 1 || got[0] != "controller" {
		t.Errorf("b reaches the controller at %q, %v", got, err)
	}
}

// sendProbe sends a UDP datagram from the anycast address.
func sendProbe(ttl, sport int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, ttl); err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: Anycast4.As4(), Port: sport}); err != nil {
		return err
	}
	return unix.Sendto(fd, []byte("probe"), 0, &unix.SockaddrInet4{Addr: Target4.As4(), Port: 33434})
}

// readError reads an ICMP error and says who sent it, about which source port.
func readError(t *testing.T, fd int) (netip.Addr, int) {
	t.Helper()
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, int((5 * time.Second).Milliseconds())); err != nil || n == 0 {
		t.Errorf("no answer: %v", err)
		return netip.Addr{}, 0
	}
	b := make([]byte, 1500)
	n, err := unix.Read(fd, b)
	if err != nil || n < 50 {
		t.Fatalf("read: %d bytes, %v", n, err)
	}
	return netip.AddrFrom4([4]byte(b[12:16])), int(binary.BigEndian.Uint16(b[48:]))
}
