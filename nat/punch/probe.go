// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package punch

import (
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"fmt"
)

// errProbe is what is wrong with a datagram that is no probe.
var errProbe = errors.New("bad probe")

// A probe opens the NATs on its way, and shows the other side where it came from; its echo shows that it arrived.
//
//	 0         1            9         13         29
//	+---------+------------+---------+----------+
//	| 0e / 0f | session    | number  | MAC      |
//	+---------+------------+---------+----------+
//
// The first byte is none of QUIC, STUN or what else RFC 7983 lets share a port. The MAC is of the sender's key, over all before it.
// Numbers are not repeated within an attempt, so that a recorded probe has no effect.
type probe struct {
	echo    bool // of the other's probe with this number
	session sessionID
	number  uint32
}

const (
	probeSize = 1 + sessionSize + 4 + macSize
	probeByte = 0x0e
	echoByte  = 0x0f
)

func (p probe) append(b []byte, key *[32]byte) []byte {
	start := len(b)
	first := byte(probeByte)
	if p.echo {
		first = echoByte
	}
	b = append(b, first)
	b = append(b, p.session[:]...)
	b = binary.BigEndian.AppendUint32(b, p.number)
	sum := mac(key, b[start:])
	return append(b, sum[:]...)
}

// isProbe tells probes from STUN.
func isProbe(b []byte) bool {
	return len(b) == probeSize && (b[0] == probeByte || b[0] == echoByte)
}

// parseProbe decodes a probe. It is worth nothing before verifyProbe.
func parseProbe(b []byte) (probe, error) {
	if !isProbe(b) {
		return probe{}, fmt.Errorf("%w: %d bytes", errProbe, len(b))
	}
	return probe{
		echo:    b[0] == echoByte,
		session: sessionID(b[1:]),
		number:  binary.BigEndian.Uint32(b[1+sessionSize:]),
	}, nil
}

// verifyProbe checks the MAC of what parseProbe has accepted.
func verifyProbe(b []byte, key *[32]byte) bool {
	sum := mac(key, b[:probeSize-macSize])
	return hmac.Equal(sum[:], b[probeSize-macSize:])
}

// replayWindow remembers which numbers of an attempt have been seen; there are not more of them.
type replayWindow [maxProbes / 64]uint64

// maxProbes bounds the probes that one side sends in an attempt. The limit is never met: see probeRounds.
const maxProbes = 4096

// first tells whether a number is seen for the first time.
func (w *replayWindow) first(n uint32) bool {
	if n >= maxProbes || w[n/64]&(1<<(n%64)) != 0 {
		return false
	}
	w[n/64] |= 1 << (n % 64)
	return true
}
