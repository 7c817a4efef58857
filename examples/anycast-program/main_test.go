// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"
	"testing/synctest"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/fleettest"
)

func TestHears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fleettest.New(1, "fra", "nyc", "syd")
		defer f.Close()
		f.Internet.Host = func(p fleettest.Probe) fleettest.Host {
			return fleettest.Host{Silent: p.Target.Is4() && p.Target.As4()[0] == 1}
		}
		p, err := newHears(anycast.ProgramConf{Fleet: f, Words: []string{"9.9.9.9", "1.1.1.1", "2620:fe::fe"}})
		if err != nil {
			t.Fatal(err)
		}
		out, err := p.Run(t.Context())
		if want := "9.9.9.9 nyc\n1.1.1.1 *\n2620:fe::fe nyc"; err != nil || out != want {
			t.Errorf("%q, %v, want %q", out, err, want)
		}
	})
	if _, err := newHears(anycast.ProgramConf{}); err == nil {
		t.Error("a request without targets is taken")
	}
}
