// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package record_test

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/record"
)

// A member publishes its name; another one looks it up in the store of whoever owns the name's place.
func Example() {
	identity := member.NewIdentity()
	listening := netip.MustParseAddrPort("192.0.2.1:49610")
	published, err := record.Sign(record.Record{
		Name:    "printer",
		Contact: member.Contact{ID: identity.ID(member.ByKey, listening), Dialect: member.Native, Addrs: []netip.AddrPort{listening}},
	}, identity)
	if err != nil {
		fmt.Println(err)
		return
	}

	store := record.NewStore(record.StoreOptions{Binding: member.ByKey})
	if _, err := store.Put(published, time.Now()); err != nil {
		fmt.Println(err)
		return
	}

	answers := store.Get(record.Key("printer"))
	for _, r := range record.Select("printer", member.ByKey, time.Now(), answers...) {
		fmt.Println(r.Name, "is at", r.Contact.Addr())
	}
	// Output: printer is at 192.0.2.1:49610
}
