// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package natpmp encodes and decodes the messages of NAT-PMP (RFC 6886), by which a host asks its gateway for an
// external address and for mappings of ports. It does no I/O.
//
// Requests go to UDP port [Port] of the default gateway; answers come from there. A gateway announces a new external
// address, or its restart, by unasked answers to UDP port [AnnouncePort] of all hosts.
//
// PCP (package pcp) is the successor, on the same ports: the first byte of a message, the version, tells them apart.
package natpmp
