// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package broadcast_test

import (
	"context"
	"fmt"
	"sync"

	"github.com/seed5728abee/fathom/swarm/broadcast"
	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/simnet"
)

// Three members that know each other, on a simulated network.
func Example() {
	network := simnet.New(simnet.Options{})
	all := []member.Contact{simnet.Contact(1), simnet.Contact(2), simnet.Contact(3)}
	ctx, cancel := context.WithCancel(context.Background())
	var running, delivered sync.WaitGroup
	delivered.Add(len(all) - 1)

	var engines []*broadcast.Engine
	for _, self := range all {
		port := network.Attach(self, nil)
		e := broadcast.New(broadcast.Options{
			Self:       func() member.Contact { return self },
			Table:      func() []member.Contact { return all },
			Neighbours: func() (before, after []member.Contact) { return all, all },
			Transport:  port,
			Deliver: func(m broadcast.Message) {
				fmt.Printf("%s from %s\n", m.Payload, m.Origin.Short())
				delivered.Done()
			},
		})
		port.Serve(e)
		running.Go(func() { _ = e.Run(ctx) })
		engines = append(engines, e)
	}

	if _, err := engines[0].Broadcast(ctx, []byte("hello"), nil); err != nil {
		fmt.Println(err)
	}
	delivered.Wait()
	cancel()
	running.Wait()
	// Output:
	// hello from 80e96e43
	// hello from 80e96e43
}
