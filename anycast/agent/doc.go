// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package agent is what runs at a site of an anycast network: it sends the probes that controllers ask for, and tells
// them of the answers that come home here, whichever site has sent the probe.
//
//	a, err := agent.New(agent.Options{ID: "ams", Links: []agent.Link{{Address: "control.example.net:50051", TLS: conf}}})
//	// The sockets are open: this is the moment to give all privileges away.
//	err = probe.DropPrivileges(false)
//	err = a.Run(ctx)
//
//	controller 1 <--> link 1: spool, writer <--+         +--> raw senders   --> probes
//	controller 2 <--> link 2: spool, writer <--+-- plane-+
//	                                                     +<-- raw receivers <-- answers
//
// # Promises
//
//   - One process serves several controllers, which do not see each other's answers, ports or orders. The site connects
//     to them: nothing has to reach it from outside but the answers, so it may sit behind a NAT or a firewall.
//   - A lost connection is made again for ever, with pauses of 0.5 to 15 seconds. What was begun goes on in the meantime; answers
//     and reports are kept until a controller says that it has them, and have numbers by which it drops
//     what it gets twice. What finds the spool full is dropped and counted.
//   - Answers are recognised by a keyed check in each probe (package stateless). What is forged, or has nothing to do with
//     an open session, is counted and goes no further. Most of it does not even leave the kernel, whose filters pass what has
//     a port of an open session, and nothing while there is none.
//   - A controller is told when a session has been opened, and has no site send probes before: an answer
//     may come home here sooner than the controller's message.
//   - Probes leave from addresses of this host only, whatever a controller says, and go to hosts, not to groups.
//   - Sending never keeps the receiver waiting: answers are read before each batch of at most 64 probes, from sockets that had
//     none before every eighth at least.
//   - Departures are stamped by the kernel while they are few, else before the system call; arrivals always by the kernel.
//
// # Privileges
//
// Raw sockets need CAP_NET_RAW. With CAP_NET_ADMIN the receive queues hold a burst of 100,000 answers; without
// it they are as large as the sysctl net.core.rmem_max allows, and a message says so. Both are needed in New only.
//
// # Firewalls
//
// A stateful firewall at a site knows nothing of probes that other sites have sent: to it their answers are
// "invalid" or unsolicited, and commonly dropped. Let ICMP errors and echo replies in, as well as UDP and TCP to the ports
// that the controller uses, before the rule that drops such packets, or exempt the anycast addresses from
// connection tracking. With nftables, before any "ct state invalid drop":
//
//	ip daddr 192.0.2.1 icmp type { destination-unreachable, time-exceeded, echo-reply } accept
//	ip6 daddr 2001:db8::1 icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, echo-reply } accept
//	ip daddr 192.0.2.1 udp dport 10000-20000 accept
//	ip daddr 192.0.2.1 tcp dport 10000-20000 tcp flags & (syn | rst) != 0 accept
//
// The host's own kernel does not know of these probes either: it answers a SYN-ACK with a reset, and a DNS response with
// a port unreachable. That is harmless, and the agent has seen the packet by then.
//
// # Voltadomar
//
// With the dialects Seed and Go an agent serves Voltadomar's controllers as their own agents do, without their defects. These
// say nothing of the ports in use, so they are sent every ICMP error of type 3 or 11 that quotes UDP
// and is of no session of a controller of ours, or of none yet; two of them get the same. See docs/compatibility.md.
package agent
