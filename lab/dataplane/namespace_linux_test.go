// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/seed5728abee/fathom/internal/rawio"
)

// TestMain enters a user namespace of its own when an ordinary user runs the
// tests, so that nothing has to skip.
func TestMain(m *testing.M) {
	const inside = "DATAPLANE_TEST_INSIDE"
	if os.Geteuid() == 0 || os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil: // user namespaces are forbidden: the tests that need one skip
		os.Exit(m.Run())
	}
}

// namespace is an anonymous network namespace that dies with the test.
type namespace struct{ h netns.NsHandle }

func newNamespace(t testing.TB) *namespace {
	t.Helper()
	var n namespace
	var err error
	onThread(func() {
		if n.h, err = netns.New(); err == nil {
			// Addresses are set by hand; autoconfiguration only adds noise.
			for _, kv := range [][2]string{{"accept_dad", "0"}, {"router_solicitations", "0"}, {"addr_gen_mode", "1"}} {
				os.WriteFile("/proc/sys/net/ipv6/conf/default/"+kv[0], []byte(kv[1]), 0)
			}
			if lo, e := netlink.LinkByName("lo"); e == nil {
				netlink.LinkSetUp(lo)
			}
		}
	})
	if errors.Is(err, os.ErrPermission) {
		t.Skip("needs CAP_SYS_ADMIN, here or in a user namespace")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.h.Close() })
	return &n
}

// do runs f inside the namespace, on a thread that is thrown away afterwards.
func (n *namespace) do(t testing.TB, f func() error) {
	t.Helper()
	var err error
	onThread(func() {
		if err = netns.Set(n.h); err == nil {
			err = f()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func onThread(f func()) {
	done := make(chan struct{})
	go func() { runtime.LockOSThread(); defer close(done); f() }()
	<-done
}

// host is a namespace whose interface eth0 leads to a FrameConn.
type host struct {
	*namespace
	conn *rawio.FrameConn
	mac  net.HardwareAddr
}

// newHost makes a host with the given addresses on eth0. The other end of its
// veth is in the namespace hub, where a test's engine lives.
//
//	host [eth0]----veth----[name] hub
func newHost(t testing.TB, hub *namespace, name string, addrs ...string) *host {
	t.Helper()
	h := &host{namespace: newNamespace(t)}
	hub.do(t, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(h.h)}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add veth %s: %w", name, err)
		}
		os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0)
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := rawio.DisableOffload(name); err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
	h.do(t, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		h.mac = link.Attrs().HardwareAddr
		if err := rawio.DisableOffload("eth0"); err != nil {
			return err
		}
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			addr.Flags = syscall.IFA_F_NODAD
			if err := netlink.AddrAdd(link, addr); err != nil {
				return fmt.Errorf("add %s: %w", a, err)
			}
		}
		return netlink.LinkSetUp(link)
	})
	// The kernel configures IPv6 when it notices, up to a second later, that
	// the link is up. Before that it does not hear neighbour solicitations.
	h.do(t, func() error {
		for deadline := time.Now().Add(5 * time.Second); len(addrs) > 0; time.Sleep(time.Millisecond) {
			routes, err := os.ReadFile("/proc/thread-self/net/ipv6_route")
			if err != nil {
				return err
			}
			if slices.ContainsFunc(strings.Split(string(routes), "\n"), func(l string) bool {
				return strings.HasPrefix(l, "ff000000000000000000000000000000 08") && strings.HasSuffix(l, "eth0")
			}) {
				return nil
			}
			if time.Now().After(deadline) {
				return errors.New("eth0 has no multicast route")
			}
		}
		return nil
	})
	hub.do(t, func() (err error) {
		h.conn, err = rawio.OpenFrameConn(name, rawio.FrameOptions{Promiscuous: true})
		return err
	})
	return h
}

// route adds a default route by gateway.
func (h *host) route(t testing.TB, gateways ...string) {
	t.Helper()
	h.do(t, func() error {
		for _, g := range gateways {
			gw := netip.MustParseAddr(g)
			dst := "0.0.0.0/0"
			if gw.Is6() {
				dst = "::/0"
			}
			_, ipnet, _ := net.ParseCIDR(dst)
			if err := netlink.RouteAdd(&netlink.Route{Dst: ipnet, Gw: gw.AsSlice()}); err != nil {
				return fmt.Errorf("route by %s: %w", g, err)
			}
		}
		return nil
	})
}

// runEngine runs an engine until the test ends.
func runEngine(t testing.TB) *Engine {
	t.Helper()
	e, err := NewEngine()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := e.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		if err := e.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return e
}
