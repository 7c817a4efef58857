// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package rawio

import (
	"syscall"
	"time"
)

// UserTimeout does nothing: the option is Linux's.
func UserTimeout(time.Duration) func(network, address string, c syscall.RawConn) error { return nil }
