// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// The fuzz targets below compare with gopacket wherever it decodes the same thing. It is the more
// lenient of the two (it takes truncated packets and stops at the end), so what we accept it must
// accept with the same fields, except where noted.

func seed(f *testing.F, decoders ...string) {
	for _, s := range corpus(f) {
		for _, name := range decoders {
			if s.decoder == name {
				f.Add(s.bytes)
			}
		}
	}
}

func FuzzChecksum(f *testing.F) {
	f.Add(vector(f, "echo4"), uint8(3))
	f.Fuzz(func(t *testing.T, b []byte, skip uint8) {
		b = b[min(int(skip), len(b)):] // any alignment
		if got, want := Checksum(b), slowChecksum(b); got != want {
			t.Fatalf("%x: got %04x, want %04x", b, got, want)
		}
	})
}

func FuzzIPv4(f *testing.F) {
	seed(f, "IPv4", "QuotedIPv4")
	f.Fuzz(func(t *testing.T, b []byte) {
		touch(t, b, "IPv4", "QuotedIPv4")
		v, err := ParseIPv4(b)
		if _, quoted := ParseQuotedIPv4(b); err == nil && quoted != nil {
			t.Fatalf("a whole packet is refused as a quote: %v", quoted)
		}
		var g layers.IPv4
		gerr := g.DecodeFromBytes(b, gopacket.NilDecodeFeedback)
		if err != nil {
			// It takes a total length of 0 for that of an offloaded packet.
			if gerr == nil && errors.Is(err, ErrMalformed) && (b[2] != 0 || b[3] != 0) {
				t.Fatalf("refused: %v", err)
			}
			return
		}
		if gerr != nil {
			if len(v.Options()) == 0 {
				t.Fatalf("accepted, but: %v", gerr)
			}
			return // it decodes each option, and refuses what is wrong there
		}
		if v.HeaderLen() != int(g.IHL)*4 || v.TOS() != g.TOS || v.TotalLen() != int(g.Length) || v.ID() != g.Id ||
			v.DontFragment() != (g.Flags&layers.IPv4DontFragment != 0) || v.MoreFragments() != (g.Flags&layers.IPv4MoreFragments != 0) ||
			v.FragmentOffset() != int(g.FragOffset)*8 || v.TTL() != g.TTL || uint8(v.Protocol()) != uint8(g.Protocol) || v.Checksum() != g.Checksum ||
			!g.SrcIP.Equal(v.Src().AsSlice()) || !g.DstIP.Equal(v.Dst().AsSlice()) || !bytes.Equal(v.Payload(), g.Payload) {
			t.Fatalf("got %x, gopacket %+v", v, g)
		}
		// Encoding what was decoded gives the same bytes, but for the reserved flag and the checksum.
		h := IPv4Header{
			TOS: v.TOS(), ID: v.ID(), DontFragment: v.DontFragment(), MoreFragments: v.MoreFragments(), FragmentOffset: uint16(v.FragmentOffset()),
			TTL: v.TTL(), Protocol: v.Protocol(), Src: v.Src(), Dst: v.Dst(), Options: v.Options(),
		}
		got, err := h.Append(nil, len(v.Payload()))
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Clone(v[:v.HeaderLen()])
		want[6] &= 0x7f
		if !IPv4(got).ChecksumOK() {
			t.Fatalf("wrong checksum: %x", got)
		}
		copy(want[10:], got[10:12])
		if !bytes.Equal(got, want) {
			t.Fatalf("got %x, want %x", got, want)
		}
	})
}

func FuzzIPv6(f *testing.F) {
	seed(f, "IPv6", "QuotedIPv6")
	f.Fuzz(func(t *testing.T, b []byte) {
		touch(t, b, "IPv6", "QuotedIPv6")
		v, err := ParseIPv6(b)
		if _, quoted := ParseQuotedIPv6(b); err == nil && quoted != nil {
			t.Fatalf("a whole packet is refused as a quote: %v", quoted)
		}
		var g layers.IPv6
		gerr := g.DecodeFromBytes(b, gopacket.NilDecodeFeedback)
		if err != nil || v.NextHeader() == ProtocolHopByHop {
			return // which gopacket makes a part of this header, and decodes each option of
		}
		if gerr != nil {
			if v.PayloadLen() != 0 {
				t.Fatalf("accepted, but: %v", gerr)
			}
			return // it wants a jumbogram's option
		}
		if v.TrafficClass() != g.TrafficClass || v.FlowLabel() != g.FlowLabel || v.PayloadLen() != int(g.Length) || uint8(v.NextHeader()) != uint8(g.NextHeader) ||
			v.HopLimit() != g.HopLimit || !g.SrcIP.Equal(net.IP(v[8:24])) || !g.DstIP.Equal(net.IP(v[24:40])) ||
			v.PayloadLen() != 0 && !bytes.Equal(v.Payload(), g.Payload) {
			t.Fatalf("got %x, gopacket %+v", v, g)
		}
		h := IPv6Header{TrafficClass: v.TrafficClass(), FlowLabel: v.FlowLabel(), NextHeader: v.NextHeader(), HopLimit: v.HopLimit(), Src: v.Src(), Dst: v.Dst()}
		got, err := h.Append(nil, v.PayloadLen())
		if err != nil || !bytes.Equal(got, v[:40]) {
			t.Fatalf("got %x, %v, want %x", got, err, v[:40])
		}
	})
}

func FuzzUpper(f *testing.F) {
	seed(f, "IPv6")
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := ParseIPv6(b)
		if err != nil {
			return
		}
		p, rest, err := v.Upper()
		if err != nil {
			return
		}
		if !bytes.HasSuffix(v.Payload(), rest) {
			t.Fatalf("%x is not the end of %x", rest, v)
		}
		pkt := gopacket.NewPacket(v, layers.LayerTypeIPv6, gopacket.DecodeOptions{NoCopy: true})
		for _, l := range pkt.Layers() {
			switch g := l.(type) {
			case *layers.UDP:
				if p != ProtocolUDP || !bytes.HasPrefix(rest, g.Contents) {
					t.Fatalf("got %v %x, gopacket UDP %x", p, rest, g.Contents)
				}
				return
			case *layers.IPv6, *layers.IPv6HopByHop, *layers.IPv6Routing, *layers.IPv6Destination, *layers.IPv6Fragment, *layers.IPSecAH:
			default:
				return
			}
		}
	})
}

func FuzzUDP(f *testing.F) {
	seed(f, "UDP")
	f.Fuzz(func(t *testing.T, b []byte) {
		touch(t, b, "UDP")
		u, err := ParseUDP(b)
		if err != nil {
			return
		}
		var g layers.UDP
		if err := g.DecodeFromBytes(b, gopacket.NilDecodeFeedback); err != nil {
			t.Fatalf("accepted, but: %v", err)
		}
		if u.SrcPort() != uint16(g.SrcPort) || u.DstPort() != uint16(g.DstPort) || u.Length() != int(g.Length) || u.Checksum() != g.Checksum || !bytes.Equal(u.Payload(), g.Payload) {
			t.Fatalf("got %x, gopacket %+v", u, g)
		}
	})
}

func FuzzTCP(f *testing.F) {
	seed(f, "TCP")
	f.Fuzz(func(t *testing.T, b []byte) {
		touch(t, b, "TCP")
		s, err := ParseTCP(b)
		var g layers.TCP
		gerr := g.DecodeFromBytes(b, gopacket.NilDecodeFeedback)
		if err != nil {
			if gerr == nil {
				t.Fatalf("refused: %v", err)
			}
			return
		}
		if gerr != nil {
			if len(s.Options()) == 0 {
				t.Fatalf("accepted, but: %v", gerr)
			}
			return // it refuses wrong options
		}
		flags := s.Flags()
		if s.SrcPort() != uint16(g.SrcPort) || s.DstPort() != uint16(g.DstPort) || s.Seq() != g.Seq || s.Ack() != g.Ack || s.DataOffset() != int(g.DataOffset)*4 ||
			s.Window() != g.Window || s.Checksum() != g.Checksum || s.Urgent() != g.Urgent || !bytes.Equal(s.Payload(), g.Payload) ||
			flags&TCPFin != 0 != g.FIN || flags&TCPSyn != 0 != g.SYN || flags&TCPRst != 0 != g.RST || flags&TCPPsh != 0 != g.PSH ||
			flags&TCPAck != 0 != g.ACK || flags&TCPUrg != 0 != g.URG || flags&TCPEce != 0 != g.ECE || flags&TCPCwr != 0 != g.CWR {
			t.Fatalf("got %x, gopacket %+v", s, g)
		}
		mss, _ := s.MSS()
		for _, o := range g.Options {
			if o.OptionType == layers.TCPOptionKindMSS && len(o.OptionData) == 2 {
				if want := uint16(o.OptionData[0])<<8 | uint16(o.OptionData[1]); mss != want {
					t.Fatalf("MSS %d, gopacket %d", mss, want)
				}
				break
			}
		}
	})
}

func FuzzSCTP(f *testing.F) {
	seed(f, "SCTP")
	f.Fuzz(func(t *testing.T, b []byte) {
		touch(t, b, "SCTP")
		s, err := ParseSCTP(b)
		if err != nil {
			return
		}
		pkt := gopacket.NewPacket(b, layers.LayerTypeSCTP, gopacket.DecodeOptions{NoCopy: true})
		g, ok := pkt.Layer(layers.LayerTypeSCTP).(*layers.SCTP)
		if !ok || s.SrcPort() != uint16(g.SrcPort) || s.DstPort() != uint16(g.DstPort) || s.Tag() != g.VerificationTag || s.Checksum() != swap32(g.Checksum) {
			t.Fatalf("got %x, gopacket %+v", s, g)
		}
		ls := pkt.Layers()
		if len(ls) < 2 {
			return
		}
		if gi, ok := ls[1].(*layers.SCTPInit); ok {
			init, ok := s.First().Init()
			want := SCTPInit{gi.InitiateTag, gi.AdvertisedReceiverWindowCredit, gi.OutboundStreams, gi.InboundStreams, gi.InitialTSN}
			if !ok || init != want {
				t.Fatalf("got %+v, %v, gopacket %+v", init, ok, want)
			}
		}
	})
}

// swap32 is for gopacket, which reads the CRC in the other byte order.
func swap32(x uint32) uint32 { return x>>24 | x>>8&0xff00 | x<<8&0xff0000 | x<<24 }

func FuzzICMP(f *testing.F) {
	seed(f, "ICMP", "ICMPv4Error", "ICMPv6Error")
	f.Fuzz(func(t *testing.T, b []byte) {
		touch(t, b, "ICMP")
		m, err := ParseICMP(b)
		if err != nil {
			return
		}
		var g layers.ICMPv4
		if err := g.DecodeFromBytes(b, gopacket.NilDecodeFeedback); err != nil {
			t.Fatalf("accepted, but: %v", err)
		}
		if m.Type() != g.TypeCode.Type() || m.Code() != g.TypeCode.Code() || m.Checksum() != g.Checksum || m.ID() != g.Id || m.Seq() != g.Seq || !bytes.Equal(m.Body(), g.Payload) {
			t.Fatalf("got %x, gopacket %+v", m, g)
		}
	})
}

func FuzzICMPError(f *testing.F) {
	seed(f, "ICMPv4Error", "ICMPv6Error")
	f.Fuzz(func(t *testing.T, b []byte) {
		touch(t, b, "ICMPv4Error", "ICMPv6Error")
		for _, version := range []int{4, 6} {
			e, err := ParseICMPError(version, b)
			if err != nil {
				continue
			}
			if len(e.Quote)+len(e.Extensions) > len(b)-8 || !bytes.HasPrefix(b[8:], e.Quote) || !bytes.HasSuffix(b, e.Extensions) {
				t.Fatalf("%x divided into %x and %x", b, e.Quote, e.Extensions)
			}
			// What was decoded can be sent on, and is the same, as far as it fits.
			var again []byte
			if version == 4 {
				again, err = AppendICMPError4(nil, &e)
			} else {
				again, err = AppendICMPError6(nil, src6, dst6, &e)
			}
			if err != nil {
				if !errors.Is(err, ErrTooLong) {
					t.Fatal(err)
				}
				continue
			}
			e2, err := ParseICMPError(version, again)
			if err != nil {
				t.Fatal(err)
			}
			if e2.Type != e.Type || e2.Code != e.Code || e2.MTU != e.MTU || e2.Pointer != e.Pointer || e2.Gateway != e.Gateway {
				t.Fatalf("got %+v, want %+v", e2, e)
			}
			if len(e.Extensions) != 0 && !bytes.Equal(e2.Extensions, e.Extensions) {
				t.Fatalf("extensions %x, want %x", e2.Extensions, e.Extensions)
			}
		}
	})
}

func FuzzExtensions(f *testing.F) {
	seed(f, "Extensions")
	f.Fuzz(func(t *testing.T, b []byte) {
		touch(t, b, "Extensions")
		e, err := ParseExtensions(b)
		if err != nil {
			return
		}
		var objects []ExtensionObject
		for o := range e.All() {
			objects = append(objects, o)
		}
		again, err := AppendExtensions(nil, objects...)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again[4:], e[4:]) {
			t.Fatalf("got %x, want %x", again, e)
		}
		for _, o := range objects {
			if o.Class != ExtensionMPLS || o.Type != 1 {
				continue
			}
			labels := e.AppendLabels(nil)
			if len(labels) != len(o.Payload)/4 {
				t.Fatalf("%d labels in %x", len(labels), o.Payload)
			}
			for i, l := range labels {
				var g layers.MPLS
				p := o.Payload[i*4:]
				pkt := gopacket.NewPacket(p, layers.LayerTypeMPLS, gopacket.DecodeOptions{NoCopy: true, Lazy: true})
				gp, ok := pkt.Layer(layers.LayerTypeMPLS).(*layers.MPLS)
				if !ok {
					t.Fatalf("gopacket refuses %x", p)
				}
				if g = *gp; l != (Label{g.Label, g.TrafficClass, g.StackBottom, g.TTL}) {
					t.Fatalf("got %+v, gopacket %+v", l, g)
				}
			}
			stack, err := AppendLabelStack(nil, labels)
			if err != nil || !bytes.HasPrefix(o.Payload, stack) {
				t.Fatalf("got %x, %v, want %x", stack, err, o.Payload)
			}
			break
		}
	})
}

func FuzzQuote(f *testing.F) {
	seed(f, "Quote")
	f.Fuzz(func(t *testing.T, b []byte) {
		touch(t, b, "Quote")
		q, err := ParseQuote(b)
		if err != nil {
			return
		}
		if q.Version != int(b[0]>>4) || len(q.Transport) < 8 || !bytes.Contains(b, q.Transport) || !q.Src.IsValid() || !q.Dst.IsValid() {
			t.Fatalf("got %+v of %x", q, b)
		}
	})
}

// FuzzEncode compares packets that we make with those that gopacket makes.
func FuzzEncode(f *testing.F) {
	f.Add(src4.AsSlice(), dst4.AsSlice(), uint8(1), uint8(0xb8), uint32(0xdeadbeef), uint16(33434), uint16(53), []byte("payload"))
	f.Add(src6.AsSlice(), dst6.AsSlice(), uint8(255), uint8(0), uint32(0x12345), uint16(0), uint16(0xffff), []byte{})
	f.Fuzz(func(t *testing.T, srcBytes, dstBytes []byte, ttl, tos uint8, x uint32, sp, dp uint16, payload []byte) {
		src, ok1 := netip.AddrFromSlice(srcBytes)
		dst, ok2 := netip.AddrFromSlice(dstBytes)
		if !ok1 || !ok2 || src.Is4() != dst.Is4() || src.Is4In6() || dst.Is4In6() || len(payload) > 60000 {
			t.Skip()
		}
		var network interface {
			gopacket.NetworkLayer
			gopacket.SerializableLayer
		}
		var header func(p Protocol, n int) []byte
		if src.Is4() {
			g := &layers.IPv4{Version: 4, TOS: tos, Id: uint16(x), Flags: layers.IPv4DontFragment, TTL: ttl, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
			network = g
			header = func(p Protocol, n int) []byte {
				g.Protocol = layers.IPProtocol(p)
				h := IPv4Header{TOS: tos, ID: uint16(x), DontFragment: true, TTL: ttl, Protocol: p, Src: src, Dst: dst}
				return must(t)(h.Append(nil, n))
			}
		} else {
			g := &layers.IPv6{Version: 6, TrafficClass: tos, FlowLabel: x & 0xfffff, HopLimit: ttl, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
			network = g
			header = func(p Protocol, n int) []byte {
				g.NextHeader = layers.IPProtocol(p)
				h := IPv6Header{TrafficClass: tos, FlowLabel: x & 0xfffff, NextHeader: p, HopLimit: ttl, Src: src, Dst: dst}
				return must(t)(h.Append(nil, n))
			}
		}
		compare := func(p Protocol, ours []byte, theirs ...gopacket.SerializableLayer) {
			t.Helper()
			got := append(header(p, len(ours)), ours...)
			buf := gopacket.NewSerializeBuffer()
			err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
				append([]gopacket.SerializableLayer{network}, theirs...)...)
			if err != nil {
				t.Fatalf("%v: gopacket: %v", p, err)
			}
			if !bytes.Equal(got, buf.Bytes()) {
				t.Fatalf("%v:\n     got %x\ngopacket %x", p, got, buf.Bytes())
			}
		}
		data := gopacket.Payload(payload)

		udp := &layers.UDP{SrcPort: layers.UDPPort(sp), DstPort: layers.UDPPort(dp)}
		_ = udp.SetNetworkLayerForChecksum(network)
		compare(ProtocolUDP, must(t)(AppendUDP(nil, netip.AddrPortFrom(src, sp), netip.AddrPortFrom(dst, dp), payload)), udp, data)

		h := TCPHeader{SrcPort: sp, DstPort: dp, Seq: x, Ack: ^x, Flags: TCPSyn | TCPAck, Window: sp ^ dp, Options: AppendTCPOptionMSS(nil, dp)}
		tcp := &layers.TCP{
			SrcPort: layers.TCPPort(sp), DstPort: layers.TCPPort(dp), Seq: x, Ack: ^x, SYN: true, ACK: true, Window: sp ^ dp,
			Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{byte(dp >> 8), byte(dp)}}},
		}
		_ = tcp.SetNetworkLayerForChecksum(network)
		compare(ProtocolTCP, must(t)(h.Append(nil, src, dst, payload)), tcp, data)

		if src.Is4() {
			compare(ProtocolICMP, AppendICMPEcho(nil, ICMPv4Echo, sp, dp, payload),
				&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0), Id: sp, Seq: dp}, data)
			return
		}
		icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoRequest, 0)}
		_ = icmp.SetNetworkLayerForChecksum(network)
		ours := AppendICMPEcho(nil, ICMPv6Echo, sp, dp, payload)
		SetICMPv6Checksum(ours, src, dst)
		compare(ProtocolICMPv6, ours, icmp, &layers.ICMPv6Echo{Identifier: sp, SeqNumber: dp}, data)
	})
}

// touch runs the named decoders with all methods of what they return; a panic fails the target.
func touch(t *testing.T, b []byte, names ...string) {
	t.Helper()
	for _, name := range names {
		_ = decoders[name](b)
	}
}
