// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin || freebsd

package rawio

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// ReusePort is a net.ListenConfig.Control and net.Dialer.Control after which several sockets may have the same
// local address, if all have asked for it: what connects from the port that is listened on needs that.
// On systems without such sockets it fails with [errors.ErrUnsupported].
func ReusePort(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	}); e != nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("share a local port: %w", err)
	}
	return nil
}
