// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring_test

import (
	"context"
	"fmt"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/ring"
	"github.com/seed5728abee/fathom/swarm/simnet"
)

func Example() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	network := simnet.New(simnet.Options{})
	start := func(c member.Contact, entries ...member.Contact) *ring.Node {
		port := network.Attach(c, nil)
		node := ring.New(c, port, ring.Options{})
		port.Serve(node)
		go func() { _ = node.Run(ctx) }() // nil, when ctx has ended
		if len(entries) > 0 {
			if err := node.Join(ctx, entries...); err != nil {
				fmt.Println(err)
			}
		}
		return node
	}
	alice, bob := simnet.Contact(1), simnet.Contact(2)
	node := start(alice)
	start(bob, alice)

	found, err := node.Lookup(ctx, bob.ID, ring.LookupOptions{})
	fmt.Println(found.Owner.ID == bob.ID, found.Hops, err)
	// Output: true 1 <nil>
}
