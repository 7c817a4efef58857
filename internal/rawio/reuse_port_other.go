// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !(linux || darwin || freebsd)

package rawio

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
)

// ReusePort fails with [errors.ErrUnsupported]: this system has no sockets that share a local port safely.
func ReusePort(string, string, syscall.RawConn) error {
	return fmt.Errorf("share a local port on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
