// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Broadcast is for [net.ListenConfig]: it lets a UDP socket send broadcasts, and only through the interface device, unless
// that is empty.
func Broadcast(device string) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		return withDescriptor(c, func(fd int) error {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
				return fmt.Errorf("set SO_BROADCAST: %w", err)
			}
			if device == "" {
				return nil
			}
			if err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, device); err != nil {
				return fmt.Errorf("bind to device %s: %w", device, err)
			}
			return nil
		})
	}
}

// PeerUser returns the user id of the process at the other end of a Unix socket, when it connected (SO_PEERCRED in unix(7)).
func PeerUser(c *net.UnixConn) (uid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	err = withDescriptor(raw, func(fd int) error {
		cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return fmt.Errorf("ask who connects: %w", err)
		}
		uid = int(cred.Uid)
		return nil
	})
	return uid, err
}

// withDescriptor runs f with the descriptor of a connection.
func withDescriptor(c syscall.RawConn, f func(fd int) error) error {
	var failed error
	err := c.Control(func(fd uintptr) { failed = f(int(fd)) })
	return errors.Join(err, failed)
}
