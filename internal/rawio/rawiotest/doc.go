// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package rawiotest is the in-memory twin of package rawio's sockets: a [Host] for tests of engines.
//
// What an engine sends reaches a [Network], a function of the test, which says what comes back and when.
// There is no kernel, no privilege and no real time: in a testing/synctest bubble an hour of
// timeouts takes milliseconds, and a round-trip time is exact to the nanosecond.
//
//	synctest.Test(t, func(t *testing.T) {
//		host := rawiotest.NewHost(rawiotest.Config{
//			Addrs:   []netip.Addr{netip.MustParseAddr("192.0.2.1")},
//			Network: func(packet []byte) []rawiotest.Delivery { return ... },
//		})
//		defer host.Close()
//		...
//	})
//
// The twin keeps what an engine relies on: the shape in which each kind of socket delivers (IPv4 with its header, IPv6
// without), kernel time stamps, the count of departure stamps, filters, the error queue and
// the error that it leaves on the socket, bounded receive queues, and that a Wait ends at once while
// something is there to read. [TestHost] holds both, the twin and the kernel, to one contract.
//
// It does not fragment: a [Network] sees what is longer than the MTU as one packet. It sends
// from the first address of each version, whatever the route.
package rawiotest
