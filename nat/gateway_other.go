// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux && !darwin && !dragonfly && !freebsd && !netbsd && !openbsd

package nat

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
)

// defaultGateway is not known here: UPnP's search finds gateways without, and users can name theirs.
func defaultGateway() (netip.Addr, error) {
	return netip.Addr{}, fmt.Errorf("default gateway on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
