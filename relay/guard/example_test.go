// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package guard_test

import (
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/relay/guard"
)

// A host says the same twice, and its broadcasts come over two ways.
func ExampleCopies() {
	var copies guard.Copies
	key := guard.KeyOf(netip.MustParseAddrPort("192.0.2.1:49152"), 5076, []byte("search"))
	host := guard.MAC{2, 0, 0, 0, 0, 1}

	now := time.Now().UnixNano()
	for range 2 {
		fmt.Println("from the first peer: ", copies.Received(key, host, 1, now).String())
		fmt.Println("from the second peer:", copies.Received(key, host, 2, now).String())
	}
	// Output:
	// from the first peer:  none
	// from the second peer: copy
	// from the first peer:  none
	// from the second peer: copy
}

func ExampleElection() {
	log := slog.New(slog.DiscardHandler)
	first := guard.NewElection(guard.ElectionConfig{Relay: guard.MAC{2, 0, 0, 0, 0, 1}, Token: [8]byte{1}, Log: log})
	second := guard.NewElection(guard.ElectionConfig{Relay: guard.MAC{2, 0, 0, 0, 0, 2}, Token: [8]byte{2}, Log: log})
	for _, e := range []*guard.Election{first, second} {
		e.SetReady(true, nil)
	}
	now := time.Now().UnixNano()

	a, from, err := guard.Parse(first.AppendAnnouncement(nil, guard.MAC{2, 0, 0, 0, 0, 1}, now))
	if err != nil {
		fmt.Println(err)
		return
	}
	second.Heard(a, from, now)
	fmt.Println(first.Serving(now), second.Serving(now), second.Serving(now+int64(guard.Lost)))
	// Output: true false true
}

func ExampleLimiter() {
	l := guard.NewLimiter(guard.Rates{SourcePackets: 10, Burst: time.Second})
	now := time.Now().UnixNano()
	for range 15 {
		l.Allow(netip.MustParseAddr("192.0.2.1"), 128, now)
	}
	for _, x := range l.AppendExcesses(nil, now) {
		fmt.Printf("%v is over its rate, %d dropped\n", x.Source, x.Dropped)
	}
	for _, t := range l.Talkers(10, now) {
		fmt.Printf("%v sent %d, %d bytes\n", t.Source, t.Packets, t.Bytes)
	}
	// Output:
	// 192.0.2.1 is over its rate, 5 dropped
	// 192.0.2.1 sent 15, 1920 bytes
}
