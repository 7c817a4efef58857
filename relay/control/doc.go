// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package control lets other programs on a host ask the relays that run there:
// HTTP with JSON over a Unix socket with an abstract name.
//
//	GET  /status                            relay.Status
//	GET  /watch                             relay.Event, one JSON object a line, until the client goes
//	GET  /searches?top=N&contains=S         relay.SearchReport
//	POST /test?port=N&wait=D                relay.TestReport, one JSON object a line
//
// An abstract name lives in a network namespace, as a relay does: it leaves no
// file behind, and each container and each host of a lab has its own. It has no
// permissions, so the server asks the kernel who connects: only root and the
// user that runs the relay are answered.
//
// Reference: unix(7), "Abstract sockets" and SO_PEERCRED.
package control
