// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay_test

import (
	"fmt"

	"github.com/seed5728abee/fathom/relay"
)

// What a relay for a site with EPICS is told: the ports of both protocols, and the group that PVAccess uses.
func ExampleFindPreset() {
	options := relay.Options{Interfaces: []string{"eth0"}}
	for _, name := range []string{"epics-ca", "epics-pva"} {
		preset, err := relay.FindPreset(name)
		if err != nil {
			fmt.Println(err)
			return
		}
		options.Ports = append(options.Ports, preset.Ports...)
		options.Groups = append(options.Groups, preset.Groups...)
	}
	fmt.Println(options.Ports)
	for _, g := range options.Groups {
		fmt.Println(g.Addr, g.Ports)
	}
	// Output:
	// [5064-5065 5076]
	// 224.0.0.128 [5076]
}

func ExampleParsePorts() {
	ports, err := relay.ParsePorts([]string{"5064-5065,5076", "9"})
	fmt.Println(ports, err)
	// Output: [5064-5065 5076 9] <nil>
}
