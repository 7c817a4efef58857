// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"time"

	"github.com/seed5728abee/fathom/nat/natpmp"
	"github.com/seed5728abee/fathom/nat/pcp"
)

// epoch follows the clock that a gateway puts into its answers, which begins again when its mappings are lost.
type epoch struct {
	value uint32    // of the latest answer
	at    time.Time // when that came; zero before the first
}

// restarted takes the clock of a new answer and tells whether the gateway has lost its mappings since the one before. The
// rules are those of each protocol: RFC 6887, section 8.5, where a clock that runs too fast tells as well, and
// RFC 6886, section 3.6.
func (e *epoch) restarted(version byte, value uint32, now time.Time) bool {
	before := *e
	*e = epoch{value, now}
	if before.at.IsZero() {
		return false
	}
	mine := int64(now.Sub(before.at) / time.Second)
	theirs := int64(value) - int64(before.value)
	switch version {
	case pcp.Version:
		// An answer that was overtaken by a later one may be a second behind.
		return theirs < -1 || theirs >= 0 && (mine+2 < theirs-theirs/16 || theirs+2 < mine-mine/16)
	case natpmp.Version:
		return theirs < mine*7/8-2
	}
	return false
}
