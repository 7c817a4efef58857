// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package lab builds networks of hosts, routers, bridges and NATs in Linux network namespaces, from
// one TOML file or a Go value, without root and without touching the network of the machine.
//
//	   host a            router r (kernel, or user space         host b
//	+-----------+        when it misbehaves)                 +-----------+
//	| namespace |  veth  +-----------+    veth        veth   | namespace |
//	|      "r" =+========+= "a"  "b" =+=======+ wire +=======+= "r"      |
//	+-----------+ plain  +-----------+       delay, loss     +-----------+
//	                                         (user space)
//
// A wire without impairments is a bare veth pair. A wire with delay, jitter, loss, reordering,
// duplication, corruption or a rate limit is carried in user space by package dataplane, as is the traffic of a NAT and of a
// router that misbehaves; everything else is the kernel's own.
//
// # Promises
//
//   - Nothing outside is touched. Every namespace is anonymous, every interface is made inside
//     one. After [Enter] not even the program itself is in the network of the machine.
//   - Nothing is left behind. Namespaces die with the descriptors that hold them, and commands with the
//     process; after [Enter] also when it is killed with SIGKILL, with all their descendants.
//   - Root is not needed. [Enter] makes a user namespace when the process has not the capabilities.
//   - A topology gives the same addresses, routes and random choices each time.
//
// # Addresses and routes
//
// Wires, and bridges with all their wires, are numbered from 1 in the order of the file. Network N
// is 10.H.L.0/24 with N = 256 H + L, and fd00:1ab:0:N::/64 (N in hexadecimal); its interfaces are 1, 2, … in the order in
// which wires name them. Interfaces are named after the node they lead to.
//
// The same address on several hosts is anycast: each node routes to the nearest. [Lab.Withdraw] and [Lab.Announce] change who
// announces it while the lab runs, and [Lab.Catchment] says who is reached.
//
// Every node can reach every address, over the paths of least cost, all of them when several are equal;
// only what is inside a NAT is hidden from its outside. A host with one way out has a default route.
// Explicit routes replace automatic ones to the same prefix, and so make asymmetric
// paths, loops and black holes. The guide docs/guides/lab.md lists every key of the file.
//
// # In tests
//
// Call [Main] from TestMain and [New] in each test. [Host.Do] runs a function on a host,
// [Host.Command] a program.
package lab
