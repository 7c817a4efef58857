// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package epics reads the datagrams by which EPICS clients and servers find
// each other: those of Channel Access and of PVAccess. A relay carries them, and
// with this package it can tell that they are what they claim to be, and keep
// account of who searches for what.
//
// [Valid] judges a datagram in about a hundred nanoseconds and without
// allocation. [Searches] goes through the names that a datagram searches for;
// [Stats] counts them. [ParseCA] and [ParsePVA] decode single messages, and the
// Append functions and methods encode them. Package describe makes a line for
// people of a datagram; package epicstest has a small client and server.
//
// # What cannot be seen
//
// Only what is broadcast comes past a relay: searches and beacons. A server
// answers a search to the client alone, so that nothing here can tell whether
// a name was found. A name that goes on being searched for, at the slow rate
// to which clients fall back, was most probably not.
//
// # Strict and lenient
//
// What servers and clients rely on must hold: lengths, padding, terminated
// names, names that are not empty. Messages with unknown commands or versions,
// and what follows the known fields of a PVAccess message, only have to fit the
// frame of the protocol, so that a relay does not stand in the way of a newer
// EPICS. An empty datagram, which registers a client with the Channel Access
// repeater of its own host, is no message: it is never broadcast.
//
// # References
//
//   - Channel Access Protocol Specification, version 1.4.
//   - pvAccess Protocol Specification, EPICS V4 Working Group, 16 October 2015, as continued in the
//     documentation of pvAccessCPP.
//
// Where servers are stricter than the specifications, so is this package: EPICS
// Base refuses Channel Access messages that are not padded to eight bytes, and
// all PVAccess implementations refuse version 0, control messages and segments
// in datagrams.
package epics
