// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/seed5728abee/fathom/swarm/member"
)

// The owner of a value is the first member at or after its place.
func Example() {
	members := []member.ID{
		member.OfAddr(netip.MustParseAddrPort("192.0.2.1:49610")),
		member.OfAddr(netip.MustParseAddrPort("192.0.2.2:49610")),
		member.OfAddr(netip.MustParseAddrPort("192.0.2.3:49610")),
	}
	key := member.HashOf("printer")
	owner := members[0]
	for _, m := range members {
		if key.Distance(m).Compare(key.Distance(owner)) < 0 {
			owner = m
		}
	}
	fmt.Println(key.Short(), "belongs to", owner.Short())
	// Output: ba70e1da belongs to e533355d
}

// A member keeps its identity in a file, and with it its place in a swarm that is bound by key.
func ExampleLoadIdentity() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "identity.pem")

	made := member.NewIdentity()
	if err := made.Save(name); err != nil {
		fmt.Println(err)
		return
	}
	read, err := member.LoadIdentity(name)
	if err != nil {
		fmt.Println(err)
		return
	}
	listening := netip.MustParseAddrPort("192.0.2.1:49610")
	fmt.Println(read.ID(member.ByKey, listening) == made.ID(member.ByKey, listening))
	fmt.Println(read.ID(member.ByAddress, listening).Short())
	// Output:
	// true
	// e533355d
}
