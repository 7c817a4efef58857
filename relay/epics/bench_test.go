// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package epics_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/relay/drop"
	"github.com/seed5728abee/fathom/relay/epics"
)

// fullSearch is a search of as many names as clients put into a datagram.
func fullSearch() []byte {
	var names []epics.PVAName
	for i := range 60 {
		names = append(names, epics.PVAName{ID: uint32(i), Name: fmt.Sprintf("SR%02d:BPM:%02d:X", i/8, i%8)})
	}
	return epics.AppendPVASearch(nil, binary.BigEndian, epics.PVASearch{}, []string{"tcp"}, names...)
}

func BenchmarkValid(b *testing.B) {
	for name, datagram := range map[string][]byte{
		"ca search": vector(b, "ca search"), "pva search": vector(b, "pva search"),
		"pva beacon": vector(b, "pva beacon"), "pva 60 names": fullSearch(),
	} {
		p := epics.PVAccess
		if name[0] == 'c' {
			p = epics.ChannelAccess
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if epics.Valid(p, datagram) != drop.None {
					b.Fatal("invalid")
				}
			}
		})
	}
}

func BenchmarkSearches(b *testing.B) {
	datagram := fullSearch()
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		for range epics.Searches(epics.PVAccess, datagram) {
			n++
		}
		if n != 60 {
			b.Fatal(n)
		}
	}
}

// BenchmarkStats counts datagrams of one name each, in batches, from a site of 20,000 names and 200 clients.
func BenchmarkStats(b *testing.B) {
	s := epics.NewStats(epics.StatsOptions{})
	var all []epics.Datagram
	for i := range 20_000 {
		all = append(all, epics.Datagram{
			Protocol: epics.ChannelAccess, Client: netip.AddrFrom4([4]byte{10, 0, 0, byte(i % 200)}),
			Payload: epics.CASearch(uint32(i), fmt.Sprintf("SR%02d:BPM:%03d:X", i/1000, i%1000)).Append(nil),
		})
	}
	now := time.Unix(1_700_000_000, 0)
	s.Add(now, all)
	b.ReportAllocs()
	const batch = 50
	for i := 0; b.Loop(); i++ {
		at := i * batch % len(all)
		s.Add(now, all[at:at+batch])
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/datagram")
}

func BenchmarkStatsTop(b *testing.B) {
	s := epics.NewStats(epics.StatsOptions{})
	now := time.Unix(1_700_000_000, 0)
	for i := range 20_000 {
		s.Add(now, []epics.Datagram{{
			Protocol: epics.ChannelAccess, Client: netip.AddrFrom4([4]byte{10, 0, 0, byte(i % 200)}),
			Payload: epics.CASearch(uint32(i), fmt.Sprintf("SR%02d:BPM:%03d:X", i/1000, i%1000)).Append(nil),
		}})
	}
	b.ReportAllocs()
	for b.Loop() {
		if len(s.Top(now, epics.StatsQuery{Limit: 50})) != 50 {
			b.Fatal("not 50 names")
		}
	}
}
