// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"net/netip"
	"testing"
)

func TestLengths(t *testing.T) {
	var l lengths
	key := func(i int) pathKey {
		return pathKey{"fra1", netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})}
	}
	if got := l.get(key(1)); got != 0 {
		t.Errorf("got %d hops of an unknown path, want 0", got)
	}
	l.set(key(1), 12)
	l.set(key(1), 255)
	if got := l.get(key(1)); got != 255 {
		t.Errorf("got %d hops, want 255", got)
	}
	if got := l.get(pathKey{"ams1", key(1).target}); got != 0 {
		t.Errorf("got %d hops from another site, want 0", got)
	}
	for i := range 3 * maxLengths {
		l.set(key(i), 7)
		if len(l.hops) > maxLengths {
			t.Fatalf("%d paths are remembered, want at most %d", len(l.hops), maxLengths)
		}
	}
	if got := l.get(key(3*maxLengths - 1)); got != 7 {
		t.Errorf("got %d hops of the latest path, want 7", got)
	}
}
