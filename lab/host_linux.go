// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Host is the inside of a node: usually a host, but the namespace of a router, bridge or NAT is
// entered the same way, to capture there, say. The namespace of a user-space router
// holds its interfaces, without addresses.
type Host struct {
	lab  *Lab
	plan *planNode
	ns   *namespace
}

// Host is the node of that name. It panics if there is none, as a lab's author knows its names;
// see [Lab.Lookup].
func (l *Lab) Host(name string) *Host {
	h, err := l.Lookup(name)
	if err != nil {
		panic(err)
	}
	return h
}

// Lookup is the node of that name, or [ErrNoNode].
func (l *Lab) Lookup(name string) (*Host, error) {
	n := l.plan.byName[name]
	if n == nil {
		return nil, fmt.Errorf("%w: %q in lab %s", ErrNoNode, name, l.plan.topology.label())
	}
	return l.nodes[n.index], nil
}

// Name of the node.
func (h *Host) Name() string { return h.plan.name }

// Kind of the node.
func (h *Host) Kind() Kind { return h.plan.kind }

// Addr is the node's IPv4 address: the first service address, or else that of the first wire.
// It is the zero Addr if the node has none.
func (h *Host) Addr() netip.Addr { return h.plan.address(0) }

// Addr6 is the node's IPv6 address, chosen like that of [Host.Addr].
func (h *Host) Addr6() netip.Addr { return h.plan.address(1) }

// Addrs are all addresses of the node, service addresses first.
func (h *Host) Addrs() []netip.Addr { return h.plan.addresses() }

// AddrTowards is the address, of IP version 4 or 6, of the node's interface on the first wire to
// a neighbour (or a bridge): what a traceroute from there shows. It is the zero Addr if there is none.
func (h *Host) AddrTowards(neighbour string, version int) netip.Addr {
	for _, f := range h.plan.ifaces {
		if f.peer.name == neighbour {
			return f.addr(version / 6)
		}
	}
	return netip.Addr{}
}

// Do runs f on a thread inside the node, and returns what f returns. Sockets that f opens
// stay there for good; goroutines that f starts run outside, as does everything that works in
// goroutines of its own (a net.Resolver, an http.Client): give those a Dial function that calls Do.
func (h *Host) Do(f func() error) error {
	if h.lab.closed() {
		return fmt.Errorf("lab %s: %w", h.lab.plan.topology.label(), net.ErrClosed)
	}
	return h.ns.do(f)
}

// DoUnprivileged is Do on a thread without capabilities: what f opens is what an ordinary user
// could open.
func (h *Host) DoUnprivileged(f func() error) error {
	return h.Do(func() error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			return fmt.Errorf("drop capabilities: %w", err)
		}
		return f()
	})
}

// A Cmd is an [exec.Cmd] that runs inside a node, whose name is the host name that it sees. Its methods shadow those that start and wait; all
// fields can be used. It is killed when its lab closes or this process ends.
type Cmd struct {
	*exec.Cmd
	// Unprivileged starts the command without capabilities, as an ordinary user would.
	Unprivileged bool

	host     *Host
	waitOnce sync.Once
	waitErr  error
	ended    chan struct{}
}

// Command prepares a command to run inside the node. It is killed when ctx is done.
func (h *Host) Command(ctx context.Context, name string, args ...string) *Cmd {
	c := &Cmd{Cmd: exec.CommandContext(ctx, name, args...), host: h, ended: make(chan struct{})}
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return c
}

// Start starts the command and does not wait for it.
func (c *Cmd) Start() error {
	l := c.host.lab
	started := make(chan error)
	if !l.spawn(func() {
		// The thread must outlive the command: its end would send the parent-death signal.
		_ = onThread(func() error {
			if err := c.startHere(); err != nil {
				started <- err
				return err
			}
			close(started)
			select {
			case <-c.ended:
			case <-l.closing:
				_ = c.Process.Kill() // it may have just ended
				_ = c.Wait()
			}
			return nil
		})
	}) {
		return fmt.Errorf("start %s on %s: lab %s: %w", c.Path, c.host.Name(), l.plan.topology.label(), net.ErrClosed)
	}
	if err := <-started; err != nil {
		return fmt.Errorf("start %s on %s: %w", c.Path, c.host.Name(), err)
	}
	return nil
}

// startHere starts the command from the calling thread, which is thrown away.
func (c *Cmd) startHere() error {
	if err := c.host.ns.enterThread(); err != nil {
		return err
	}
	// The node's name for the command's prompts and logs. A system that refuses costs no more than that.
	if unix.Unshare(unix.CLONE_NEWUTS) == nil {
		_ = unix.Sethostname([]byte(c.host.Name()))
	}
	if c.Unprivileged {
		// What the bounding set lacks, no exec can gain, not even as root.
		for capability := range unix.CAP_LAST_CAP + 1 {
			err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(capability), 0, 0, 0)
			if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: the kernel knows fewer
				return fmt.Errorf("drop capability %d: %w", capability, err)
			}
		}
	}
	return c.Cmd.Start()
}

// Wait waits for the command to end, as [exec.Cmd.Wait] does.
func (c *Cmd) Wait() error {
	if c.Process == nil {
		return errors.New("lab: Wait before Start")
	}
	c.waitOnce.Do(func() {
		c.waitErr = c.Cmd.Wait()
		close(c.ended)
	})
	return c.waitErr
}

// Run starts the command and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the command and returns its standard output.
func (c *Cmd) Output() ([]byte, error) {
	var out, stderr bytes.Buffer
	c.Stdout = &out
	if c.Stderr == nil {
		c.Stderr = &stderr
	}
	err := c.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		exit.Stderr = stderr.Bytes()
	}
	return out.Bytes(), err
}

// CombinedOutput runs the command and returns its standard output and standard error.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}
