// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package stateless_test

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// Two sites share the address 192.0.2.1 and a key. One sends a probe, a router on the way answers, and the answer
// comes home at the other.
func Example() {
	key := stateless.Key{1, 2, 3} // NewKey, where the output need not be the same each time
	cfg := stateless.Config{Key: key, Kind: stateless.UDP, FirstPort: 20000, Ports: 16}

	// At the site that sends:
	codec, err := stateless.New(cfg)
	if err != nil {
		fmt.Println(err)
		return
	}
	probe, err := codec.Append(nil, &stateless.Probe{
		Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr("203.0.113.10"), TTL: 7, Flow: 2, Number: 41,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	answer := timeExceeded(probe, netip.MustParseAddr("198.51.100.9"))

	// At the site where the answer comes home:
	codec, err = stateless.New(cfg)
	if err != nil {
		fmt.Println(err)
		return
	}
	var table stateless.Table
	if err := table.Add(codec); err != nil {
		fmt.Println(err)
		return
	}
	var a stateless.Answer
	if _, err := table.Parse4(answer, &a); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("probe %d of flow %d to %s: %s from %s\n", a.Number, a.Flow, a.Target, a.Status, a.Responder)

	// The same about a probe that nobody has sent:
	answer[len(answer)-1]++
	_, err = table.Parse4(answer, &a)
	fmt.Println(errors.Is(err, stateless.ErrForged))
	// Output:
	// probe 41 of flow 2 to 203.0.113.10: time-exceeded from 198.51.100.9
	// true
}

// timeExceeded is what a router says that quotes no more than it has to.
func timeExceeded(probe []byte, from netip.Addr) []byte {
	m, err := packet.AppendICMPError4(nil, &packet.ICMPError{Type: packet.ICMPv4TimeExceeded, Quote: probe[:28]})
	if err != nil {
		panic(err)
	}
	h := packet.IPv4Header{TTL: 60, Protocol: packet.ProtocolICMP, Src: from, Dst: packet.IPv4(probe).Src()}
	b, err := h.Append(nil, len(m))
	if err != nil {
		panic(err)
	}
	return append(b, m...)
}
