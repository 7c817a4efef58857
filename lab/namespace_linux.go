// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A namespace is an anonymous network namespace. Only this descriptor (and processes and sockets
// inside) keep it alive, so nothing is left when the process dies.
type namespace struct {
	netlink *netlink.Handle

	mu sync.RWMutex // guards fd: its number may not be used again while someone enters by it
	fd int          // -1 when closed
}

// newNamespace makes an empty network namespace with its loopback interface up.
func newNamespace() (*namespace, error) {
	ns := &namespace{fd: -1}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare network namespace: %w", err)
		}
		var err error
		if ns.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("open own network namespace: %w", err)
		}
		if ns.netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open netlink socket: %w", err)
		}
		lo, err := ns.netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find loopback interface: %w", err)
		}
		return ns.netlink.LinkSetUp(lo)
	})
	if err != nil {
		ns.close()
		return nil, err
	}
	return ns, nil
}

// do runs f on a thread inside the namespace. Sockets that f opens stay there; goroutines that f
// starts do not.
func (ns *namespace) do(f func() error) error {
	return onThread(func() error {
		if err := ns.enterThread(); err != nil {
			return err
		}
		return f()
	})
}

// enterThread moves the calling thread, which must be locked and thrown away, into the namespace.
func (ns *namespace) enterThread() error {
	ns.mu.RLock()
	defer ns.mu.RUnlock()
	if ns.fd < 0 {
		return fmt.Errorf("enter network namespace: %w", net.ErrClosed)
	}
	if err := unix.Setns(ns.fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return nil
}

func (ns *namespace) close() {
	if ns.netlink != nil {
		ns.netlink.Close()
	}
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if ns.fd >= 0 {
		unix.Close(ns.fd)
		ns.fd = -1
	}
}

// onThread runs f on a thread of its own, which is thrown away with its goroutine because it is never
// unlocked: whatever f does to its thread ends there. A panic of f, or a call of
// runtime.Goexit (testing.T.FailNow is one), goes on in the caller.
func onThread(f func() error) (err error) {
	var (
		done     = make(chan struct{})
		returned bool
		panicked any
	)
	go func() {
		runtime.LockOSThread()
		defer close(done)
		defer func() {
			if !returned {
				panicked = recover()
			}
		}()
		err = f()
		returned = true
	}()
	<-done
	switch {
	case returned:
		return err
	case panicked != nil:
		panic(panicked)
	}
	runtime.Goexit()
	return nil
}

// A sysctl is a file below /proc/sys/net and what to write there: the first value that the
// kernel accepts. An optional one may be absent: it came with a later kernel, or belongs to all
// namespaces at once and is not ours to change.
type sysctl struct {
	path     string
	values   []string
	optional bool
}

// nodeSysctls make a namespace quiet and exact: no address is tentative, nothing is configured
// by advertisements, nothing is rate-limited or dropped for the way it came.
var nodeSysctls = []sysctl{
	{"ipv6/conf/all/disable_ipv6", []string{"0"}, false},
	{"ipv6/conf/default/disable_ipv6", []string{"0"}, false},
	{"ipv6/conf/all/accept_dad", []string{"0"}, false},
	{"ipv6/conf/default/accept_dad", []string{"0"}, false},
	{"ipv6/conf/default/dad_transmits", []string{"0"}, false},
	{"ipv6/conf/default/accept_ra", []string{"0"}, false},
	{"ipv6/conf/default/autoconf", []string{"0"}, false},
	{"ipv6/conf/default/router_solicitations", []string{"0"}, false},
	{"ipv6/icmp/ratelimit", []string{"0"}, false},
	{"ipv4/icmp_ratelimit", []string{"0"}, false},
	{"ipv4/icmp_msgs_per_sec", []string{"1000000000"}, true},
	{"ipv4/icmp_msgs_burst", []string{"1000000000"}, true},
	{"ipv4/conf/all/rp_filter", []string{"0"}, false},
	{"ipv4/conf/default/rp_filter", []string{"0"}, false},
	{"ipv4/conf/all/accept_redirects", []string{"0"}, false},
	{"ipv4/conf/all/send_redirects", []string{"0"}, false},
	{"ipv4/conf/default/send_redirects", []string{"0"}, false},
	{"ipv6/conf/all/accept_redirects", []string{"0"}, false},
	{"ipv6/conf/default/accept_redirects", []string{"0"}, false},
	// All groups; in a user namespace that maps a single one, that one.
	{"ipv4/ping_group_range", []string{"0 2147483647", "0 0"}, false},
}

// routerSysctls make a namespace forward, and share load by flow as routers do.
var routerSysctls = []sysctl{
	{"ipv4/ip_forward", []string{"1"}, false},
	{"ipv6/conf/all/forwarding", []string{"1"}, false},
	{"ipv4/fib_multipath_hash_policy", []string{"1"}, true},
	{"ipv6/fib_multipath_hash_policy", []string{"1"}, true},
}

// setSysctls writes the sysctls of the namespace.
func (ns *namespace) setSysctls(list []sysctl) error {
	return ns.do(func() error {
		for _, s := range list {
			if err := s.write(); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *sysctl) write() error {
	path := "/proc/sys/net/" + s.path
	var err error
	for _, value := range s.values {
		if err = os.WriteFile(path, []byte(value), 0); err == nil {
			return nil
		}
	}
	if errors.Is(err, os.ErrNotExist) && (s.optional || strings.HasPrefix(s.path, "ipv6/")) {
		return nil // a kernel without IPv6 fails later, and clearly, when addresses are added
	}
	return fmt.Errorf("set sysctl: %w", err)
}
