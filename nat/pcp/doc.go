// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package pcp encodes and decodes the messages of the Port Control Protocol (RFC 6887) that a host needs to
// have ports mapped by its gateway: MAP and ANNOUNCE. It does no I/O.
//
// Requests go to UDP port [Port] of the default gateway; answers come from there. A gateway that has restarted
// announces it to UDP port [AnnouncePort] of all hosts. NAT-PMP (package natpmp) is the forerunner, on the same ports: the first byte of a
// message, the version, tells them apart.
package pcp
