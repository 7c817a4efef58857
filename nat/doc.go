// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package nat has ports of this host mapped by its gateway, so that hosts outside can reach them through the gateway's NAT: by
// PCP (RFC 6887), NAT-PMP (RFC 6886), or UPnP's Internet Gateway Device, version 1 or 2, whichever the gateway speaks.
//
//	m, err := nat.Discover(ctx, nat.Options{})
//	if err != nil {
//		return err // nat.ErrNoGateway within two seconds, where nothing maps ports
//	}
//	defer m.Close()
//	mapping, err := m.Map(ctx, nat.Request{Protocol: nat.TCP | nat.UDP, InternalPort: 49610})
//	if err != nil {
//		return err
//	}
//	fmt.Println("others reach us at", mapping.External())
//
// # What it promises
//
//   - The external port is the one asked for, or the next that is free; [Mapping.External] tells. Another host's mapping is never
//     replaced, not even at a gateway that would let us.
//   - The mapping is renewed when half of what was granted has passed, on the same external port.
//   - It is back within seconds after a gateway that announces its restart or refuses connections, and well within a minute after one that
//     restarts without a word; also when the gateway's external address changes, when its services move to another port, and
//     when this host moves to another network. Request.Notify hears of each.
//   - Close removes it. What a killed program leaves ends with its lease: an hour, unless asked for otherwise.
//   - A gateway behind another NAT is an error that says so, [ErrDoubleNAT], and not an address that nobody can reach.
//
// # Trust
//
// These protocols have no secrets worth the name: any host of the local network can ask for mappings. What comes back counts
// only if it comes from the gateway's address, and for PCP if it has the number that was asked with. What a gateway says is
// bounded before it is read. Nothing is asked of, or sent to, any host but the gateway, beyond UPnP's search on the local network.
//
// # Other systems
//
// The default gateway is found on Linux, macOS and the BSDs. Elsewhere name it in Options.Gateway; without that only UPnP is
// tried, which finds gateways by itself. Mappings are of IPv4.
package nat
