// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package cicadatest has a stand-in for a peer that runs Cicada, for tests and for showing that such peers can be in a swarm.
//
// An [Original] does what peers of Cicada 0.2.2 were seen to do, as slowly, and as wrongly: it reads 64 bytes at a time, hands its
// application whatever comes, whoever it is for, relays broadcasts only when its application reads them, and never heals. It is as
// easily broken, too: what would have ended one of its threads is kept in [Original.Harm], which has to stay empty.
//
// It keeps to the message formats of package cicada, and shares nothing else with the gateway that it is there to test.
package cicadatest
