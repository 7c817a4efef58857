// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Command mtr-packet sends network probes for another program, which it obeys on
// standard input and answers on standard output. It takes the place of
// the helper of the same name that comes with mtr: mtr itself, and the Python package mtrpacket,
// start it when the environment variable MTR_PACKET names it, or when it comes first in PATH.
//
//	$ mtr-packet
//	1 send-probe ip-4 192.0.2.7 ttl 3
//	1 ttl-expired ip-4 198.51.100.1 round-trip-time 8120
//
// A command is one line: a number that the answer repeats, a word, and pairs of names and values. Many
// probes may be in flight, and answers come as they come. docs/compatibility.md lists the commands, and
// what differs from the original.
//
// When standard input ends, the probes in flight are completed and mtr-packet exits with status 0. It exits
// with status 1 when nobody can read its answers any more, or when it can open no sockets.
//
// # Environment
//
// FATHOM_MTR_DIALECT is 0.96 (default) or 0.95: the release of mtr whose words and first
// sequence number are used. mtr up to 0.95 understands unreachable destinations only from dialect 0.95.
//
// FATHOM_MTR_PROBES is how many probes may be in flight, from 1 to 32000, default
// 10240. One more is answered with probes-exhausted.
//
// # Privileges
//
// Raw sockets need CAP_NET_RAW:
//
//	setcap cap_net_raw+ep /usr/local/bin/mtr-packet
//
// Without it mtr-packet uses the sockets that the system lets every user open. Sockets are opened at the start;
// every capability is dropped before the first packet is sent, with one exception
// that docs/adr/0003-mtr-packet-privileges.md explains.
package main
