// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicada_test

import (
	"fmt"
	"net/netip"

	"github.com/seed5728abee/fathom/swarm/cicada"
	"github.com/seed5728abee/fathom/swarm/member"
)

// A message for the application of one original, as it goes over the wire.
func Example() {
	from := member.OfAddr(netip.MustParseAddrPort("192.0.2.1:49610"))
	to := member.OfAddr(netip.MustParseAddrPort("192.0.2.2:49610"))
	body := cicada.AppendBody(nil, cicada.Body{Payload: []byte("hello!")})
	b := cicada.AppendMessage(nil, cicada.Message{
		Type: cicada.Lookup, Sequence: 1, Sender: from,
		Data: cicada.AppendSearch(nil, cicada.Search{Key: to, Body: body}),
	})

	m, err := cicada.DecodeMessage(b)
	if err != nil {
		fmt.Println(err)
		return
	}
	search, _ := cicada.DecodeSearch(m.Data)
	got, _ := cicada.DecodeBody(search.Body)
	fmt.Printf("%d bytes: %s of %s for %s: %s\n", len(b), m.Type, m.Sender.Short(), search.Key.Short(), got.Payload)
	// Output: 144 bytes: lookup of e533355d for 6cc604d0: hello!
}
