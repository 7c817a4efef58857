// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
)

// errNoRoute: the host has no default route.
var errNoRoute = errors.New("this host has no default route over a gateway")

// Flags of a route in /proc/net/route: RTF_UP and RTF_GATEWAY of linux/route.h.
const (
	routeUp      = 1
	routeGateway = 2
)

// parseProcRoutes finds the gateway of the default route with the lowest metric in the text of Linux' /proc/net/route. Addresses
// there are in hexadecimal as the machine keeps them: the bytes of order, which are the network's, read as one number.
func parseProcRoutes(text string, order binary.ByteOrder) (netip.Addr, error) {
	var best netip.Addr
	lowest := uint64(math.MaxUint64)
	for line := range strings.Lines(text) {
		fields := strings.Fields(line) // Iface Destination Gateway Flags RefCnt Use Metric Mask ...
		if len(fields) < 8 || fields[1] != "00000000" || fields[7] != "00000000" {
			continue
		}
		gateway, err1 := strconv.ParseUint(fields[2], 16, 32)
		flags, err2 := strconv.ParseUint(fields[3], 16, 32)
		metric, err3 := strconv.ParseUint(fields[6], 10, 32)
		if err := errors.Join(err1, err2, err3); err != nil {
			return netip.Addr{}, fmt.Errorf("routing table: %w", err)
		}
		if flags&(routeUp|routeGateway) != routeUp|routeGateway || metric >= lowest {
			continue
		}
		var b [4]byte
		order.PutUint32(b[:], uint32(gateway))
		best, lowest = netip.AddrFrom4(b), metric
	}
	if !best.IsValid() {
		return netip.Addr{}, errNoRoute
	}
	return best, nil
}
