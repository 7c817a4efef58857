// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"testing"
)

func TestRelayArgs(t *testing.T) {
	cmd := newRelayCommand(newApp())
	for _, test := range []struct{ args, want string }{
		{"", ""},
		{"-t eth1 -b 5064 -m 7000", "-t eth1 -b 5064 -m 7000"},
		{"--other-relays a b c", "--other-relays=a --other-relays=b --other-relays=c"},
		{"--other a b --key f", "--other-relays=a --other-relays=b --key f"},
		{"--other-relays=a -ll debug", "--other-relays=a --log-level debug"},
		{"-l warning --target=eth1", "--log-level warning --target-interface=eth1"},
		{"-ll=info", "--log-level=info"},
		{"--mesh-p 1 --broad 2 --log error", "--mesh-port 1 --broadcast-port 2 --log-level error"},
		{"--mesh-mtu 1300 --metrics :1 --mesh-port 7", "--mesh-mtu 1300 --metrics :1 --mesh-port 7"},
		{"--mesh 7", "--mesh-port 7"}, // ours that begin alike are to be said in full
		{"--other-relays", "--other-relays"},
		{"--other-relays -t eth0", "--other-relays"},
		{"--mesh-port", "--mesh-port"},
		{"-- --other a", "-- --other a"},
		{"status --log x", "status --log x"}, // a subcommand's options are its own
	} {
		got := relayArgs(cmd, strings.Fields(test.args))
		if !slices.Equal(got, strings.Fields(test.want)) {
			t.Errorf("%q became %q, want %q", test.args, strings.Join(got, " "), test.want)
		}
	}
}
