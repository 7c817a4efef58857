// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package rawio

import (
	"errors"
	"fmt"
	"runtime"
)

// NewHost is there on Linux only; elsewhere it fails with [errors.ErrUnsupported].
func NewHost() (Host, error) {
	return nil, fmt.Errorf("batched raw sockets on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
