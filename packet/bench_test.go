// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

func BenchmarkChecksum(b *testing.B) {
	for _, n := range []int{20, 64, 1500, 9000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			data := make([]byte, n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				Checksum(data)
			}
		})
	}
}

// BenchmarkDecodeError takes apart a time exceeded message with an MPLS label: outer header, ICMP
// error, quoted header and ports, labels. gopacket has no decoder for the extension, so it does less.
func BenchmarkDecodeError(b *testing.B) {
	datagram := vector(b, "time-exceeded4-mpls")
	b.Run("packet", func(b *testing.B) {
		d := errorDecoder{labels: make([]Label, 0, 8)}
		b.ReportAllocs()
		for b.Loop() {
			if err := d.decode(datagram); err != nil || len(d.labels) != 1 || d.q.Seq() != 0x80e9 {
				b.Fatal(err)
			}
		}
	})
	b.Run("packet without extension", func(b *testing.B) {
		datagram := vector(b, "anycast-captured")
		var d errorDecoder
		b.ReportAllocs()
		for b.Loop() {
			if err := d.decode(datagram); err != nil || d.q.SrcPort != 10000 {
				b.Fatal(err)
			}
		}
	})
	b.Run("gopacket", func(b *testing.B) {
		var ip, quotedIP layers.IPv4
		var icmp, quotedICMP layers.ICMPv4
		outer := gopacket.NewDecodingLayerParser(layers.LayerTypeIPv4, &ip, &icmp)
		inner := gopacket.NewDecodingLayerParser(layers.LayerTypeIPv4, &quotedIP, &quotedICMP)
		outer.IgnoreUnsupported, inner.IgnoreUnsupported = true, true
		var decoded []gopacket.LayerType
		b.ReportAllocs()
		for b.Loop() {
			if err := outer.DecodeLayers(datagram, &decoded); err != nil {
				b.Fatal(err)
			}
			if err := inner.DecodeLayers(icmp.Payload, &decoded); err != nil || quotedICMP.Seq != 0x80e9 {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkDecodeEcho(b *testing.B) {
	datagram := vector(b, "echo4")
	b.Run("packet", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			v, err := ParseIPv4(datagram)
			if err != nil {
				b.Fatal(err)
			}
			if m, err := ParseICMP(v.Payload()); err != nil || m.Seq() != 0x80e8 {
				b.Fatal(err)
			}
		}
	})
	b.Run("gopacket", func(b *testing.B) {
		var ip layers.IPv4
		var icmp layers.ICMPv4
		parser := gopacket.NewDecodingLayerParser(layers.LayerTypeIPv4, &ip, &icmp)
		parser.IgnoreUnsupported = true
		var decoded []gopacket.LayerType
		b.ReportAllocs()
		for b.Loop() {
			if err := parser.DecodeLayers(datagram, &decoded); err != nil || icmp.Seq != 0x80e8 {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkEncodeUDP makes a whole IPv4 packet of 64 bytes with both checksums.
func BenchmarkEncodeUDP(b *testing.B) {
	src, dst := netip.AddrPortFrom(src4, 40000), netip.AddrPortFrom(dst4, 33434)
	payload := make([]byte, 36)
	b.Run("packet", func(b *testing.B) {
		buf := make([]byte, 0, 128)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := AppendUDPProbe(buf, src, dst, 5, payload); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("gopacket", func(b *testing.B) {
		ip := &layers.IPv4{Version: 4, TTL: 5, Protocol: layers.IPProtocolUDP, SrcIP: src4.AsSlice(), DstIP: dst4.AsSlice()}
		udp := &layers.UDP{SrcPort: 40000, DstPort: 33434}
		if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
			b.Fatal(err)
		}
		data := gopacket.Payload(payload)
		buf := gopacket.NewSerializeBuffer()
		options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
		b.ReportAllocs()
		for b.Loop() {
			if err := gopacket.SerializeLayers(buf, options, ip, udp, data); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkEncodeICMP(b *testing.B) {
	for name, a := range map[string][2]netip.Addr{"IPv4": {src4, dst4}, "IPv6": {src6, dst6}} {
		b.Run(name, func(b *testing.B) {
			buf, payload := make([]byte, 0, 128), make([]byte, 36)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := AppendICMPProbe(buf, a[0], a[1], 5, 1, 2, payload); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkBalanceUDP(b *testing.B) {
	segment := vector(b, "udp4-balanced")
	b.ReportAllocs()
	for b.Loop() {
		if err := BalanceUDP(segment, src4, dst4, 0x80f1); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodeSCTPInit(b *testing.B) {
	buf := make([]byte, 0, 128)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := AppendSCTPInit(buf, 1, 2, SCTPInit{InitiateTag: 1, Window: 65536, OutStreams: 1, InStreams: 1}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkForward(b *testing.B) {
	v := IPv4(vector(b, "echo4"))
	b.ReportAllocs()
	for b.Loop() {
		v.DecrementTTL()
	}
}
