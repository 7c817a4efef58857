// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import "errors"

// Errors to branch on. Everything this package returns wraps one of them or an error of the system.
var (
	// ErrTopology: a topology is malformed or contradicts itself. The message names the place.
	ErrTopology = errors.New("bad topology")

	// ErrNoNamespaces: this process may not create network namespaces, not even inside a user
	// namespace of its own. The message says what refused and what to do.
	ErrNoNamespaces = errors.New("cannot create network namespaces")

	// ErrNoNode: no host, router, bridge or NAT of the lab has this name.
	ErrNoNode = errors.New("no such node")

	// ErrNotHeld: the node has no such prefix among its addresses, and cannot announce or withdraw it.
	ErrNotHeld = errors.New("prefix is not held")

	// ErrNoWire: no wire joins these two nodes.
	ErrNoWire = errors.New("no such wire")

	// ErrPlainWire: the wire is a plain veth pair, whose impairments cannot be changed. Declare it
	// with "adjustable = true", or with any impairment.
	ErrPlainWire = errors.New("wire is a plain veth pair")

	// ErrKernelRouter: the router is the kernel's, which cannot be told to misbehave. Declare it
	// with "adjustable = true", or with any behaviour.
	ErrKernelRouter = errors.New("router is the kernel's")

	// ErrNoLab: no lab of this name is running.
	ErrNoLab = errors.New("no such lab")

	// ErrLabExists: a lab of this name is running already.
	ErrLabExists = errors.New("lab is running already")
)
