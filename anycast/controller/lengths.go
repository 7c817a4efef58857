// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"net/netip"
	"sync"
)

// pathKey is a path that a traceroute took.
type pathKey struct {
	site   string
	target netip.Addr
}

// maxLengths bounds the paths whose length is remembered. A thousand requests at once are often about few targets.
const maxLengths = 1 << 13

// lengths remembers how many hops paths had, so that the next traceroute to the same target needs one batch of probes
// instead of several. A length that has changed costs it a few probes, and is corrected by it. The zero value is empty.
type lengths struct {
	mu   sync.Mutex
	hops map[pathKey]uint8
}

func (l *lengths) get(k pathKey) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int(l.hops[k])
}

func (l *lengths) set(k pathKey, hops int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.hops[k]; !known && len(l.hops) >= maxLengths || l.hops == nil {
		l.hops = make(map[pathKey]uint8)
	}
	l.hops[k] = uint8(hops)
}
