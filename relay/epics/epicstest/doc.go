// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package epicstest is as much of EPICS as it takes to search for a name and to
// find it: a [Server] that answers, a [Client] that searches, both over sockets
// of the caller's and in both protocols, and the genuine Channel Access library
// where it is installed, see [LibCA].
//
// It is for tests of what carries searches, and for demonstrations of it. No
// data can be had from the server, and nothing listens on its TCP port.
package epicstest
