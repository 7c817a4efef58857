// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Command benchrelay measures the broadcast relay, as users run it: the fathom program, a process on each of the hosts that
// relay, in a lab that this program builds.
//
//	go run ./internal/benchrelay [-rounds N] [-seconds D] [-only REGEXP]
//
// Broadcasts carry numbers, so that losses, copies and changes of order are told apart. The sender and those that
// count share the processors with what is measured. A rate counts as free of loss when everything sent at it has arrived once
// and soon after the last was sent: what a long queue took in and had not yet worked off does not count. It exits with 1 if a
// goal is missed.
//
// Another relay that speaks the same datagrams can be measured beside ours, in turns; its command runs in the
// lab by /bin/sh, with the variables INTERFACE, PORT, MESH (ports of the broadcasts and of the mesh) and PEERS:
//
//	go run ./internal/benchrelay -origin 'exec ... -t "$INTERFACE" -b "$PORT" -m "$MESH" --other-relays $PEERS'
package main
