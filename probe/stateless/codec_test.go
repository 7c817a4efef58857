// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package stateless

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/seed5728abee/fathom/packet"
)

func TestVectors(t *testing.T) {
	for _, kind := range kinds {
		for _, version := range []int{4, 6} {
			name := fmt.Sprintf("%s%d", kind, version)
			c, _ := setup(t, testConfig(kind))
			want := vector(t, name)
			if got := build(t, c, testProbe(version)); !bytes.Equal(got, want) {
				t.Errorf("%s:\n got %x\nwant %x", name, got, want)
			}
			// The buffer may have been used before, and have a packet in it already.
			cfg := testConfig(kind)
			cfg.Size = 200
			c, _ = setup(t, cfg)
			fresh, used := build(t, c, testProbe(version)), bytes.Repeat([]byte{0xff}, 512)
			got, err := c.Append(used[:3], testProbe(version))
			if err != nil || !bytes.Equal(got[3:], fresh) || !bytes.Equal(got[:3], []byte{0xff, 0xff, 0xff}) {
				t.Errorf("%s into a used buffer: %v\n got %x\nwant %x", name, err, got[3:], fresh)
			}
		}
	}
}

// TestProbes checks that probes are right packets, whatever is asked for.
func TestProbes(t *testing.T) {
	for _, kind := range kinds {
		for _, version := range []int{4, 6} {
			for _, size := range []int{0, 1, 65, 200, 1499, 1500} {
				cfg := testConfig(kind)
				cfg.Size, cfg.TOS = size, 0xb9
				c, _ := setup(t, cfg)
				for _, number := range []uint16{0, 1, 99, c.MaxNumber() / 2, c.MaxNumber()} {
					p := testProbe(version)
					p.Number = min(number, c.MaxNumber())
					pkt := build(t, c, p)
					checkPacket(t, c, p, pkt)
					if (kind == ICMP || kind == UDP) && size >= 200 && len(pkt) != size {
						t.Errorf("%s of %d bytes has %d", kind, size, len(pkt))
					}
				}
			}
		}
	}
}

func checkPacket(t *testing.T, c *Codec, p *Probe, pkt []byte) {
	t.Helper()
	var proto packet.Protocol
	if p.Dst.Is4() {
		h, err := packet.ParseIPv4(pkt)
		if err != nil {
			t.Fatal(err)
		}
		if !h.ChecksumOK() || h.TotalLen() != len(pkt) || h.ID() == 0 || h.TTL() != p.TTL || h.TOS() != c.cfg.TOS || h.Src() != p.Src || h.Dst() != p.Dst {
			t.Errorf("header: %x", pkt)
		}
		proto = h.Protocol()
	} else {
		h, err := packet.ParseIPv6(pkt)
		if err != nil {
			t.Fatal(err)
		}
		if len(h) != len(pkt) || h.FlowLabel() == 0 || h.HopLimit() != p.TTL || h.TrafficClass() != c.cfg.TOS || h.Src() != p.Src || h.Dst() != p.Dst {
			t.Errorf("header: %x", pkt)
		}
		proto = h.NextHeader()
	}
	b := transport(pkt)
	ok := false
	switch proto {
	case packet.ProtocolICMP:
		ok = packet.ICMP(b).ChecksumOK()
	case packet.ProtocolICMPv6:
		ok = packet.ICMP(b).ChecksumOK6(p.Src, p.Dst)
	case packet.ProtocolUDP:
		u, err := packet.ParseUDP(b)
		ok = err == nil && len(u) == len(b) && u.Checksum() != 0 && u.ChecksumOK(p.Src, p.Dst)
	case packet.ProtocolTCP:
		s, err := packet.ParseTCP(b)
		ok = err == nil && s.ChecksumOK(p.Src, p.Dst) && s.Flags() == packet.TCPSyn
	}
	if !ok || proto != c.Protocol(versionOf(pkt)) {
		t.Errorf("%s: %x", proto, pkt)
	}
}

// hashed is what load balancers look at: addresses, protocol, the first 4 bytes behind the IP header, flow label;
// IPv4 header without what changes on every path.
func hashed(pkt []byte) string {
	if versionOf(pkt) == 4 {
		return string(pkt[9:10]) + string(pkt[12:24])
	}
	return string(pkt[1:4]) + string(pkt[6:7]) + string(pkt[8:44])
}

// TestParis holds that a flow looks the same to load balancers and another flow does not, whatever else differs.
func TestParis(t *testing.T) {
	for _, kind := range []Kind{ICMP, UDP, TCP, DNS} {
		for _, version := range []int{4, 6} {
			c, _ := setup(t, testConfig(kind))
			seen := map[string]uint16{}
			for flow := range uint16(100) {
				var first string
				for number := uint16(0); number < 40000; number += 3999 {
					p := testProbe(version)
					p.Flow, p.Number, p.TTL, p.Time = flow, number, uint8(number), int64(number)*12345
					// Flows beyond the ports start over.
					for _, p.Flow = range []uint16{flow, flow + 100} {
						got := hashed(build(t, c, p))
						if first == "" {
							first = got
						}
						if got != first {
							t.Fatalf("%s, version %d, flow %d: number %d goes another way", kind, version, p.Flow, number)
						}
					}
				}
				if other, ok := seen[first]; ok {
					t.Errorf("%s, version %d: flows %d and %d look the same", kind, version, flow, other)
				}
				seen[first] = flow
			}
		}
	}
}

// TestParisCHAOS holds that a CHAOS number is a flow, whatever else differs.
func TestParisCHAOS(t *testing.T) {
	for _, version := range []int{4, 6} {
		c, _ := setup(t, testConfig(CHAOS))
		seen := map[string]bool{}
		for number := range uint16(100) {
			p := testProbe(version)
			p.Number = number
			first := hashed(build(t, c, p))
			p.Flow, p.TTL, p.Time = 9, 9, 9
			if seen[first] || hashed(build(t, c, p)) != first {
				t.Errorf("version %d: number %d", version, number)
			}
			seen[first] = true
		}
	}
}

// TestIPIDs holds that no identification is left to the kernel, which replaces 0.
func TestIPIDs(t *testing.T) {
	for _, s := range []shortCheck{0, 0x10000, 0xabcd_0000_0000_0000} {
		if s.ipID() != 0xffff {
			t.Errorf("%#x gives %#x", uint64(s), s.ipID())
		}
	}
	if got := shortCheck(0x5555_1234).ipID(); got != 0x1234 {
		t.Errorf("%#x", got)
	}
}

func TestQueries(t *testing.T) {
	for _, name := range []string{"example.com", "example.com.", "", "."} {
		cfg := testConfig(DNS)
		cfg.Name = name
		c, _ := setup(t, cfg)
		var q dns.Msg
		if err := q.Unpack(packet.UDP(transport(build(t, c, testProbe(4)))).Payload()); err != nil {
			t.Fatal(err)
		}
		label, rest, _ := strings.Cut(q.Question[0].Name, ".")
		if want := strings.Trim(name, "."); strings.Trim(rest, ".") != want || len(label) != labelLen || !strings.HasPrefix(label, "002a") {
			t.Errorf("name %q: question %v", name, q.Question)
		}
		if q.RecursionDesired || q.Response || q.Question[0].Qtype != dns.TypeA || len(q.Question) != 1 {
			t.Errorf("query %v", &q)
		}
	}
	c, _ := setup(t, testConfig(CHAOS))
	var q dns.Msg
	if err := q.Unpack(packet.UDP(transport(build(t, c, testProbe(6)))).Payload()); err != nil {
		t.Fatal(err)
	}
	if w := q.Question[0]; w.Name != "hostname.bind." || w.Qtype != dns.TypeTXT || w.Qclass != dns.ClassCHAOS || q.RecursionDesired {
		t.Errorf("query %v", &q)
	}
	var codes []uint16
	for _, o := range q.IsEdns0().Option {
		codes = append(codes, o.Option())
		if o, ok := o.(*dns.EDNS0_COOKIE); ok && (len(o.Cookie) != 16 || o.Cookie == "0000000000000000") {
			t.Errorf("cookie %s", o.Cookie)
		}
	}
	if !slices.Equal(codes, []uint16{dns.EDNS0NSID, dns.EDNS0COOKIE}) || q.IsEdns0().UDPSize() != ednsSize {
		t.Errorf("options %v", q.IsEdns0())
	}
}

func TestConfigErrors(t *testing.T) {
	tests := []struct {
		name string
		edit func(*Config)
	}{
		{"no kind", func(c *Config) { c.Kind = 0 }},
		{"unknown kind", func(c *Config) { c.Kind = 37 }},
		{"no key", func(c *Config) { c.Key = Key{} }},
		{"no ports", func(c *Config) { c.FirstPort = 0 }},
		{"ports too high", func(c *Config) { c.FirstPort, c.Ports = 65500, 37 }},
		{"too big", func(c *Config) { c.Size = MaxSize + 1 }},
		{"negative size", func(c *Config) { c.Size = -1 }},
		{"long note", func(c *Config) { c.Note = strings.Repeat("x", MaxNote+1) }},
		{"name without DNS", func(c *Config) { c.Name = "example.com" }},
		{"target", func(c *Config) { c.Target = target[0] }},
		{"long name", func(c *Config) { c.Kind, c.Note, c.Name = DNS, "", strings.Repeat("abcdefg.", 30) }},
		{"long label", func(c *Config) { c.Kind, c.Note, c.Name = DNS, "", strings.Repeat("a", 64) }},
		{"empty label", func(c *Config) { c.Kind, c.Note, c.Name = DNS, "", "a..b" }},
		{"classic TCP", func(c *Config) { c.Classic, c.Kind, c.Note = true, TCP, "" }},
		{"classic port", func(c *Config) { c.Classic, c.Note, c.DstPort = true, "", 53 }},
		{"classic size", func(c *Config) { c.Classic, c.Note, c.Size = true, "", 100 }},
		{"classic note", func(c *Config) { c.Classic = true }},
		{"classic IPv6", func(c *Config) { c.Classic, c.Note, c.Target = true, "", target[1] }},
	}
	for _, tt := range tests {
		cfg := testConfig(UDP)
		tt.edit(&cfg)
		if _, err := New(cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	cfg := testConfig(UDP)
	cfg.FirstPort, cfg.Ports, cfg.Size = 65535, 0, MaxSize
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Config(); got.Ports != 1 || got.DstPort != DefaultUDPPort {
		t.Errorf("defaults: %+v", got)
	}
	build(t, c, testProbe(4))
	build(t, c, testProbe(6))
}

func TestProbeErrors(t *testing.T) {
	chaos := testConfig(CHAOS)
	classic := Config{Kind: UDP, FirstPort: 10000, Ports: 4, Classic: true}
	tests := []struct {
		name string
		cfg  Config
		edit func(*Probe)
	}{
		{"no source", testConfig(UDP), func(p *Probe) { p.Src = netip.Addr{} }},
		{"no destination", testConfig(UDP), func(p *Probe) { p.Dst = netip.Addr{} }},
		{"two versions", testConfig(UDP), func(p *Probe) { p.Dst = target[1] }},
		{"number", testConfig(UDP), func(p *Probe) { p.Number = MaxNumber + 1 }},
		{"number above ports", chaos, func(p *Probe) { p.Number = 100 }},
		{"classic number", classic, func(p *Probe) { p.Number = 4 }},
		{"classic IPv6", classic, func(p *Probe) { *p = *testProbe(6); p.Number = 0 }},
	}
	for _, tt := range tests {
		c, _ := setup(t, tt.cfg)
		p := testProbe(4)
		tt.edit(p)
		if b, err := c.Append([]byte("x"), p); !errors.Is(err, ErrProbe) || string(b) != "x" {
			t.Errorf("%s: %q, %v", tt.name, b, err)
		}
	}
}

func TestKind(t *testing.T) {
	for _, k := range kinds {
		text, err := k.MarshalText()
		var back Kind
		if err != nil || back.UnmarshalText(text) != nil || back != k || string(text) != k.String() {
			t.Errorf("%v: %s, %v, %v", k, text, err, back)
		}
	}
	if got := Kind(37).String(); got != "Kind(37)" {
		t.Error(got)
	}
	if _, err := Kind(0).MarshalText(); !errors.Is(err, ErrConfig) {
		t.Error(err)
	}
	if _, err := ParseKind("sctp"); !errors.Is(err, ErrConfig) {
		t.Error(err)
	}
}

func TestKeyStaysSecret(t *testing.T) {
	k := NewKey()
	if k == NewKey() || k == (Key{}) {
		t.Error("keys repeat")
	}
	if got := fmt.Sprintf("%v %+v %s", k, Config{Key: k}, k); strings.Count(got, "Key(secret)") != 3 {
		t.Error(got)
	}
}
