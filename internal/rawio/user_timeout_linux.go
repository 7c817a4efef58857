// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// UserTimeout gives a net.Dialer.Control after which a TCP connection breaks when what it has sent is not
// acknowledged for so long (RFC 5482); the system's own patience is a quarter of an hour. Keep-alive
// probes watch an idle connection only. On systems without the option it does nothing.
func UserTimeout(d time.Duration) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
		}); e != nil {
			err = e
		}
		if err != nil {
			return fmt.Errorf("set TCP user timeout: %w", err)
		}
		return nil
	}
}
