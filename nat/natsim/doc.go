// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package natsim is a network of hosts behind NATs, in memory, for tests in testing/synctest bubbles: an hour of
// timeouts passes in milliseconds.
//
//	public network:  host      host      NAT ------- NAT        delay, loss
//	                                     / \          |
//	networks inside:                  host  NAT     host        a NAT may be behind another
//	                                         |
//	                                       host
//
// NATs are of any of the kinds of RFC 4787: what mapping and filtering depend on, how ports are chosen, whether inside
// hosts reach each other by outside addresses, how long an idle mapping lives, and whether a connection that is not
// let in is refused or ignored. [Kinds] has those with names.
//
// UDP is simulated datagram by datagram. TCP is simulated as far as setting up a connection goes, packet by packet:
// SYN, SYN-ACK, ACK and RST pass the NATs, two SYNs that cross become one connection (RFC 9293 section 3.5), and a SYN-ACK
// for an attempt that was given up is reset. What is written to an established connection then reaches the other end
// after the delay of the network, past the NATs and their timeouts.
//
// A [Host] has the calls that a program needs of its network: ListenUDP, ListenTCP, DialTCP, Addrs.
// Connections are not closed for those who forget them: in a bubble, that shows as a deadlock.
package natsim
