// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package volta

import (
	"errors"
	"fmt"
)

// Dialect is one of the two ways in which the originals encode messages. A stream has one dialect for
// its whole life, which the agent's first message shows.
type Dialect uint8

const (
	_ Dialect = iota
	// Seed is the dialect of the original in Python: a kind in words, local times without zone,
	// acknowledgements by source port.
	Seed
	// Go is the dialect of its rewrite in Go: the kind is the payload's type, times are RFC 3339,
	// acknowledgements count from 0.
	Go
)

// ErrDialect reports a Dialect, or the name of one, that does not exist.
var ErrDialect = errors.New("no such dialect")

// String gives the name that ParseDialect reads: "seed" or "go".
func (d Dialect) String() string {
	switch d {
	case Seed:
		return "seed"
	case Go:
		return "go"
	default:
		return fmt.Sprintf("Dialect(%d)", uint8(d))
	}
}

// ParseDialect reads "seed" or "go"; anything else is ErrDialect.
func ParseDialect(name string) (Dialect, error) {
	switch name {
	case "seed":
		return Seed, nil
	case "go":
		return Go, nil
	default:
		return 0, fmt.Errorf("%w: %.40q (seed or go)", ErrDialect, name)
	}
}

// AckSeq gives the number by which a DONE acknowledges the probe with the given index, counted from 0,
// of a job with this base port: Seed says the source port, Go the index.
func (d Dialect) AckSeq(basePort int32, index int) int32 {
	if d == Seed {
		return basePort + int32(index)
	}
	return int32(index)
}

// AckIndex is the inverse of AckSeq. What a peer sent may give any index, also one below 0.
func (d Dialect) AckIndex(basePort, seq int32) int {
	if d == Seed {
		return int(seq) - int(basePort)
	}
	return int(seq)
}
