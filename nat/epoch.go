// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"time"

	"github.com/seed5728abee/fathom/nat/pcp"
)

// epoch follows the clock that a gateway puts into its answers, which begins again when its mappings are lost.
type epoch struct {
	value uint32    // of the latest answer
	at    time.Time // when that came; zero before the first
}

// restarted takes the clock of a new answer and tells whether the gateway has lost its mappings since the one before, by the rules of
// RFC 6887, section 8.5. NAT-PMP's clock is held against the same ones, but for being fast, though RFC 6886, section 3.6, would let it be
// slower: a restart soon after the latest answer shows only so, and a false alarm costs no more than a request.
func (e *epoch) restarted(version byte, value uint32, now time.Time) bool {
	before := *e
	*e = epoch{value, now}
	if before.at.IsZero() {
		return false
	}
	mine := int64(now.Sub(before.at) / time.Second)
	theirs := int64(value) - int64(before.value)
	back := theirs < -1 // an answer that was overtaken by a later one may be a second behind
	slow := theirs+2 < mine-mine/16
	fast := mine+2 < theirs-theirs/16
	return back || slow || fast && version == pcp.Version
}
