// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicada

import (
	_ "embed"
	"encoding/hex"
	"net/netip"
	"strings"

	"github.com/seed5728abee/fathom/swarm/member"
)

//go:embed testdata/vectors.txt
var vectorText string

// vectors maps the names in testdata/vectors.txt to bytes.
var vectors = func() map[string][]byte {
	m := map[string][]byte{}
	for line := range strings.Lines(vectorText) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, digits, _ := strings.Cut(line, " ")
		b, err := hex.DecodeString(digits)
		if err != nil || m[name] != nil {
			panic("testdata/vectors.txt: " + name)
		}
		m[name] = b
	}
	return m
}()

// The members of the vectors.
var refA, refB, refC, refD = refAt(50001), refAt(50002), refAt(50003), refAt(50004)

func refAt(port uint16) Ref {
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	return Ref{ID: member.OfAddr(addr), Addr: addr}
}
