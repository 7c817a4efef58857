// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
)

// defaultGateway reads the routing table of the calling thread's network: that of a process can be another one, in a lab.
func defaultGateway() (netip.Addr, error) {
	text, err := os.ReadFile("/proc/thread-self/net/route")
	if err != nil {
		return netip.Addr{}, fmt.Errorf("routing table: %w", err)
	}
	return parseProcRoutes(string(text), binary.NativeEndian)
}
