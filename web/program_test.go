// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package web_test

import (
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/fleettest"
	"github.com/seed5728abee/fathom/probe/stateless"
	"github.com/seed5728abee/fathom/web"
)

// sink keeps what a program finds.
type sink struct {
	mu      sync.Mutex
	results []anycast.Result
}

func (s *sink) Results(r []anycast.Result) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.results = append(s.results, r...)
	return nil
}

func (s *sink) Progress(anycast.Progress) {}

// TestPrograms holds that the sums of the page are those of the program that found the results.
func TestPrograms(t *testing.T) {
	var found sink
	synctest.Test(t, func(t *testing.T) {
		fleet := fleettest.New(1, "fra", "nyc", "syd")
		defer fleet.Close()
		var targets []anycast.Target
		for i := range 600 {
			targets = append(targets, anycast.Target{Addr: netip.AddrFrom4([4]byte{20, byte(i / 256), byte(i), 1})})
		}
		d := anycast.Definition{Program: anycast.KindCatchment, Protocol: stateless.ICMP, Sites: []string{"fra"}}
		if err := anycast.Run(t.Context(), fleet, d, targets, &found); err != nil {
			t.Fatal(err)
		}
	})
	source := newMemory()
	source.add(measured("p", anycast.KindCatchment, "a program's", 600), found.results...)
	s := serve(t, web.Options{Source: source})
	got := ask[struct {
		summary
		Summary anycast.Summary
	}](t, s.URL+"/api/measurements/p/summary")
	if got.Networks != 600 || len(got.Sites) != 3 {
		t.Fatalf("%d networks at %d sites, want 600 at 3", got.Networks, len(got.Sites))
	}
	for _, site := range got.Sites {
		if want := got.Summary.Sites[site.Name]; site.Networks != want {
			t.Errorf("%s catches %d networks, the program says %d", site.Name, site.Networks, want)
		}
	}
}
