// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package nattest is a gateway for tests: one that maps ports by PCP, NAT-PMP and UPnP, on the loopback address, with everything
// that can go wrong at hand. It forwards nothing.
//
// [New] starts one for a test, [Gateway.Options] are what package nat finds it with, [Gateway.Set] makes it misbehave, and
// [Gateway.Mappings] and [Gateway.Requests] tell what was asked of it.
package nattest
