// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"bytes"
	_ "embed"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/relay/drop"
)

//go:embed testdata/vectors.txt
var vectorText string

// vectors maps the names in testdata/vectors.txt to bytes.
var vectors = func() map[string][]byte {
	m := map[string][]byte{}
	for line := range strings.Lines(vectorText) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, digits, _ := strings.Cut(line, " ")
		b, err := hex.DecodeString(digits)
		if err != nil || m[name] != nil {
			panic("testdata/vectors.txt: " + name)
		}
		m[name] = b
	}
	return m
}()

// vector returns a copy of the named vector.
func vector(t testing.TB, name string) []byte {
	t.Helper()
	b, ok := vectors[name]
	if !ok {
		t.Fatalf("no vector %q", name)
	}
	return bytes.Clone(b)
}

// frames gives a copy of the Ethernet frame in each recorded SS datagram.
func frames() map[string][]byte {
	m := map[string][]byte{}
	for name, b := range vectors {
		if strings.HasPrefix(name, "ss-") {
			m[name] = bytes.Clone(b[2:])
		}
	}
	return m
}

var (
	sender  = netip.MustParseAddrPort("10.77.2.11:40000")
	sender6 = netip.MustParseAddrPort("[2001:db8::b]:40000")
	link    = MAC{2, 0, 0, 2, 0, 0x0b}
)

// ip4 makes an IPv4 packet from sender, with right checksums and the ID 0x1234.
func ip4(dst string, payload []byte, options ...byte) []byte {
	h := packet.IPv4Header{ID: 0x1234, TTL: 64, Protocol: packet.ProtocolUDP, Src: sender.Addr(), Dst: netip.MustParseAddrPort(dst).Addr(), Options: options}
	b, err := h.Append(nil, packet.UDPHeaderLen+len(payload))
	if err != nil {
		panic(err)
	}
	if b, err = packet.AppendUDP(b, sender, netip.MustParseAddrPort(dst), payload); err != nil {
		panic(err)
	}
	return b
}

// ip6 makes an IPv6 packet from sender6. Its extension headers are given whole, the first byte of each being set here.
func ip6(dst string, payload []byte, extensions ...extension) []byte {
	n := packet.UDPHeaderLen + len(payload)
	for _, e := range extensions {
		n += len(e.bytes)
	}
	next := make([]packet.Protocol, 0, len(extensions)+1)
	for _, e := range extensions {
		next = append(next, e.protocol)
	}
	next = append(next, packet.ProtocolUDP)
	h := packet.IPv6Header{NextHeader: next[0], HopLimit: 255, Src: sender6.Addr(), Dst: netip.MustParseAddrPort(dst).Addr()}
	b, err := h.Append(nil, n)
	if err != nil {
		panic(err)
	}
	for i, e := range extensions {
		b = append(append(b, byte(next[i+1])), e.bytes[1:]...)
	}
	if b, err = packet.AppendUDP(b, sender6, netip.MustParseAddrPort(dst), payload); err != nil {
		panic(err)
	}
	return b
}

type extension struct {
	protocol packet.Protocol
	bytes    []byte
}

var (
	hopByHop    = extension{packet.ProtocolHopByHop, []byte{0, 0, 1, 4, 0, 0, 0, 0}}
	destination = extension{packet.ProtocolDestination, []byte{0, 0, 1, 4, 0, 0, 0, 0}}
)

// frame puts the Ethernet header that goes with its destination before an IP packet.
func frame(ip []byte) []byte {
	b := append(Broadcast[:len(Broadcast):len(Broadcast)], link[:]...)
	if ip[0]>>4 == 6 {
		copy(b, []byte{0x33, 0x33, ip[36], ip[37], ip[38], ip[39]})
		b = append(b, 0x86, 0xdd)
	} else {
		if ip[16]>>4 == 14 {
			copy(b, []byte{0x01, 0x00, 0x5e, ip[17] & 0x7f, ip[18], ip[19]})
		}
		b = append(b, 8, 0)
	}
	return append(b, ip...)
}

// change changes bytes of an IPv4 packet and makes its header checksum right again.
func change(ip []byte, at int, values ...byte) []byte {
	ip = bytes.Clone(ip)
	copy(ip[at:], values)
	if n := int(ip[0]&15) * 4; n >= 20 && n <= len(ip) {
		clear(ip[10:12])
		binary.BigEndian.PutUint16(ip[10:], packet.Checksum(ip[:n]))
	}
	return ip
}

// payload makes n bytes that differ from their neighbours, and from those of the next blocks.
func payload(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func parsed(t testing.TB, ip []byte) *Datagram {
	t.Helper()
	d := new(Datagram)
	if reason := d.Parse(frame(ip), Capture{}); reason != drop.None {
		t.Fatalf("%x: %v", ip[:min(len(ip), 60)], reason)
	}
	return d
}

func finishedDatagram(t testing.TB, ip []byte) *Datagram {
	t.Helper()
	d := parsed(t, ip)
	if reason := d.Finish(); reason != drop.None {
		t.Fatal(reason)
	}
	return d
}
