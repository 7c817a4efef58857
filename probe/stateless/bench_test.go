// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package stateless

import (
	"fmt"
	"testing"

	"github.com/seed5728abee/fathom/packet"
)

func BenchmarkAppend(b *testing.B) {
	for _, kind := range kinds {
		for _, version := range []int{4, 6} {
			b.Run(fmt.Sprintf("%s%d", kind, version), func(b *testing.B) {
				c, _ := setup(b, testConfig(kind))
				p := testProbe(version)
				buf := make([]byte, 0, 256)
				b.ReportAllocs()
				for b.Loop() {
					if _, err := c.Append(buf, p); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func benchParse(b *testing.B, table *Table, in []byte) {
	b.Helper()
	var a Answer
	b.ReportAllocs()
	for b.Loop() {
		_, _ = parse(table, in, &a)
	}
}

func BenchmarkParse4(b *testing.B) {
	for _, kind := range kinds {
		c, table := setup(b, testConfig(kind))
		pkt := build(b, c, testProbe(4))
		b.Run(kind.String()+"/quote28", func(b *testing.B) {
			benchParse(b, table, report(b, packet.ICMPError{Type: 11, Quote: pkt[:28]}))
		})
		b.Run(kind.String()+"/quote", func(b *testing.B) { benchParse(b, table, report(b, packet.ICMPError{Type: 11, Quote: pkt})) })
		b.Run(kind.String()+"/reply", func(b *testing.B) { benchParse(b, table, reply(b, pkt)) })
		b.Run(kind.String()+"/others", func(b *testing.B) { benchParse(b, new(Table), report(b, packet.ICMPError{Type: 11, Quote: pkt})) })
	}
}

func BenchmarkParse6(b *testing.B) {
	for _, kind := range kinds {
		c, table := setup(b, testConfig(kind))
		pkt := build(b, c, testProbe(6))
		b.Run(kind.String()+"/quote", func(b *testing.B) { benchParse(b, table, report(b, packet.ICMPError{Type: 3, Quote: pkt})) })
	}
}
