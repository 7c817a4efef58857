// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package rawio is the engine room: sockets that send and receive in batches,
// kernel filters and time stamps, packet rings, and a wait with nanosecond
// deadlines. Everything that moves many packets stands on it.
//
//	Host    sockets of an IP stack, and the wait for them   (KernelHost; in memory: rawiotest.Host)
//	Conn    one socket, worked in batches of Messages
//	Poller  ppoll(2) with deadlines in nanoseconds and a cheap Wake
//	Filter… classic BPF programs for the sockets of a prober, and of a relay
//
// and for a relay of broadcasts (Linux only):
//
//	FrameConn  Ethernet frames of one interface, by a ring shared with the kernel
//	UDPConn    datagrams to many places, merged on their way through the kernel
//	Emitter    whole IP packets for a segment and the applications of this host
//	JoinGroups, LookupInterface, WatchInterfaces
//
// The types promise that nothing is allocated per packet. They leave policy
// (what to retry, whom to tell) to their users.
//
// References: socket(7), ip(7), ipv6(7), packet(7), recvmmsg(2), sendmmsg(2),
// udp(7), packet_mmap.rst and timestamping.rst of the kernel's Documentation/networking.
package rawio
