// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/net/bpf"

	"github.com/seed5728abee/fathom/packet"
)

var (
	answersFrom4 = netip.MustParseAddr("203.0.113.9")
	answersTo4   = netip.MustParseAddr("192.0.2.1")
	answersFrom6 = netip.MustParseAddr("2001:db8:1::9")
	answersTo6   = netip.MustParseAddr("2001:db8::1")
)

// sent is a packet whose errors come back.
type sent struct {
	proto   packet.Protocol
	number  uint16 // source port, or identifier
	reply   bool   // echo: of a reply rather than a request
	options int    // IPv4: bytes of options, a multiple of 4
	header  packet.Protocol
	offset  uint16 // IPv4: of a fragment
}

func (s sent) transport(v6 bool) []byte {
	b := make([]byte, 24)
	switch s.proto {
	case packet.ProtocolICMP, packet.ProtocolICMPv6:
		b[0] = packet.ICMPv4Echo
		switch {
		case v6 && s.reply:
			b[0] = packet.ICMPv6EchoReply
		case v6:
			b[0] = packet.ICMPv6Echo
		case s.reply:
			b[0] = packet.ICMPv4EchoReply
		}
		b[4], b[5] = byte(s.number>>8), byte(s.number)
	default:
		b[0], b[1] = byte(s.number>>8), byte(s.number)
	}
	return b
}

// packet4 puts an IPv4 header around a payload.
func packet4(t testing.TB, h packet.IPv4Header, payload []byte) []byte {
	t.Helper()
	b, err := h.Append(nil, len(payload))
	if err != nil {
		t.Fatal(err)
	}
	return append(b, payload...)
}

// error4 is an ICMP error about s, with outer options of so many bytes.
func error4(t testing.TB, typ uint8, outer int, s sent) []byte {
	t.Helper()
	quote := packet4(t, packet.IPv4Header{
		Protocol: s.proto, Src: answersTo4, Dst: answersFrom4, Options: make([]byte, s.options), FragmentOffset: s.offset,
	}, s.transport(false))
	m := append([]byte{typ, 0, 0, 0, 0, 0, 0, 0}, quote...)
	return packet4(t, packet.IPv4Header{Protocol: packet.ProtocolICMP, Src: answersFrom4, Dst: answersTo4, Options: make([]byte, outer)}, m)
}

// error6 is an ICMPv6 error about s, as a raw socket delivers it.
func error6(t testing.TB, typ uint8, s sent) []byte {
	t.Helper()
	payload, next := s.transport(true), s.proto
	if s.header != 0 {
		h, err := packet.AppendIPv6Options(nil, next, nil)
		if err != nil {
			t.Fatal(err)
		}
		payload, next = append(h, payload...), s.header
	}
	h := packet.IPv6Header{NextHeader: next, Src: answersTo6, Dst: answersFrom6}
	quote, err := h.Append(nil, len(payload))
	if err != nil {
		t.Fatal(err)
	}
	m, err := packet.AppendICMPError6(nil, answersFrom6, answersTo6, &packet.ICMPError{Type: typ, Quote: append(quote, payload...)})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestFilterAnswersICMP(t *testing.T) {
	ranges := []PortRange{{2000, 2099}, {20000, 20007}}
	prog4, prog6 := FilterAnswersICMP4(ranges), FilterAnswersICMP6(ranges)
	udp := func(n uint16) sent { return sent{proto: packet.ProtocolUDP, number: n} }
	for _, typ := range []uint8{3, 11, 12} {
		for _, number := range []uint16{1999, 2000, 2099, 2100, 19999, 20000, 20007, 20008, 0, 65535} {
			want := number >= 2000 && number <= 2099 || number >= 20000 && number <= 20007
			for _, proto := range []packet.Protocol{packet.ProtocolUDP, packet.ProtocolTCP, packet.ProtocolICMP} {
				for _, options := range []int{0, 4, 40} {
					s := sent{proto: proto, number: number, options: options}
					if got := run(t, prog4, error4(t, typ, 40-options, s)); got != want {
						t.Errorf("type %d about %+v: %v", typ, s, got)
					}
				}
			}
		}
	}
	for _, typ := range []uint8{1, 2, 3, 4} {
		for _, number := range []uint16{1999, 2000, 2099, 2100, 20004} {
			want := number >= 2000 && number <= 2099 || number == 20004
			for _, proto := range []packet.Protocol{packet.ProtocolUDP, packet.ProtocolTCP, packet.ProtocolICMPv6} {
				s := sent{proto: proto, number: number}
				if got := run(t, prog6, error6(t, typ, s)); got != want {
					t.Errorf("version 6, type %d about %+v: %v", typ, s, got)
				}
			}
		}
	}
	tests := []struct {
		name string
		prog []bpf.RawInstruction
		in   []byte
		want bool
	}{
		{"echo reply", prog4, ip4(0, echo(0, 2000)...), true},
		{"echo reply behind options", prog4, ip4(40, echo(0, 2000)...), true},
		{"another's echo reply", prog4, ip4(0, echo(0, 2100)...), false},
		{"echo request", prog4, ip4(0, echo(8, 2000)...), false},
		{"redirect", prog4, error4(t, 5, 0, udp(2000)), false},
		{"about an echo reply", prog4, error4(t, 3, 0, sent{proto: packet.ProtocolICMP, number: 2000, reply: true}), false},
		{"about SCTP", prog4, error4(t, 3, 0, sent{proto: packet.ProtocolSCTP, number: 2000}), false},
		{"about ICMPv6 in IPv4", prog4, error4(t, 3, 0, sent{proto: packet.ProtocolICMPv6, number: 2000}), false},
		{"about a later fragment", prog4, error4(t, 11, 0, sent{proto: packet.ProtocolUDP, number: 2000, offset: 8}), false},
		{"short quote", prog4, error4(t, 11, 0, udp(2000))[:20+8+20+1], false},
		{"shortest quote", prog4, error4(t, 11, 0, udp(2000))[:20+8+20+8], true},
		{"echo reply", prog6, echo(129, 2000), true},
		{"another's echo reply", prog6, echo(129, 2100), false},
		{"echo request", prog6, echo(128, 2000), false},
		{"neighbour advertisement", prog6, error6(t, 0, udp(2000)), false},
		{"about an echo reply", prog6, error6(t, 3, sent{proto: packet.ProtocolICMPv6, number: 2000, reply: true}), false},
		{"about ICMP in IPv6", prog6, error6(t, 3, sent{proto: packet.ProtocolICMP, number: 2000}), false},
		{"about a packet with options", prog6, error6(t, 3, sent{proto: packet.ProtocolUDP, number: 1, header: packet.ProtocolDestination}), true},
		{"short quote", prog6, error6(t, 3, udp(2000))[:8+40], false},
		{"no ranges", FilterAnswersICMP4(nil), ip4(0, echo(0, 0)...), false},
		{"no ranges", FilterAnswersICMP6(nil), error6(t, 3, sent{proto: packet.ProtocolUDP, header: packet.ProtocolFragment}), false},
		{"empty range", FilterAnswersICMP4([]PortRange{{2, 1}}), ip4(0, echo(0, 1)...), false},
	}
	for _, tt := range tests {
		if got := run(t, tt.prog, tt.in); got != tt.want {
			t.Errorf("%s: %v, %x", tt.name, got, tt.in)
		}
	}
}

func TestFilterAnswersPorts(t *testing.T) {
	ranges := []PortRange{{20000, 20007}, {30000, 30000}}
	for _, port := range []uint16{19999, 20000, 20007, 20008, 30000, 30001} {
		in := port >= 20000 && port <= 20007 || port == 30000
		for flags := range 0x40 {
			answer := flags&0x04 != 0 || flags&0x12 == 0x12
			segment := ports(port, byte(flags))
			if got := run(t, FilterAnswersTCP4(ranges), ip4(8, segment...)); got != (in && answer) {
				t.Errorf("TCP port %d, flags %#x: %v", port, flags, got)
			}
			if got := run(t, FilterAnswersTCP6(ranges), segment); got != (in && answer) {
				t.Errorf("TCP port %d, flags %#x, version 6: %v", port, flags, got)
			}
		}
		if got := run(t, FilterAnswersUDP4(ranges), ip4(12, ports(port, 0)...)); got != in {
			t.Errorf("UDP port %d: %v", port, got)
		}
		if got := run(t, FilterAnswersUDP6(ranges), ports(port, 0)); got != in {
			t.Errorf("UDP port %d, version 6: %v", port, got)
		}
	}
}

func TestJoinRanges(t *testing.T) {
	tests := []struct {
		name     string
		in, want []PortRange
	}{
		{"none", nil, nil},
		{"order", []PortRange{{30, 39}, {10, 19}}, []PortRange{{10, 19}, {30, 39}}},
		{"touching", []PortRange{{10, 19}, {20, 29}}, []PortRange{{10, 29}}},
		{"inside", []PortRange{{10, 99}, {20, 29}, {50, 50}}, []PortRange{{10, 99}}},
		{"empty", []PortRange{{5, 4}, {7, 7}}, []PortRange{{7, 7}}},
		{"whole", []PortRange{{0, 65535}, {65535, 65535}}, []PortRange{{0, 65535}}},
		{"closest", []PortRange{{10, 19}, {30, 39}, {42, 49}, {100, 109}}, []PortRange{{10, 19}, {30, 49}, {100, 109}}},
	}
	for _, tt := range tests {
		in := slices.Clone(tt.in)
		if got := joinRanges(tt.in, 3); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		if !slices.Equal(in, tt.in) {
			t.Errorf("%s: the argument was changed to %v", tt.name, tt.in)
		}
	}
}

// A message is read by the plain predicates below, which refuse what ends too early, as the programs do.
type message struct {
	data   []byte
	ranges []PortRange
}

// at gives a byte, -1 behind the end.
func (m message) at(i int) int {
	if i >= len(m.data) {
		return -1
	}
	return int(m.data[i])
}

// wordIn tells whether the two bytes at i are in one of the ranges.
func (m message) wordIn(i int) bool {
	if i+1 >= len(m.data) {
		return false
	}
	n := binary.BigEndian.Uint16(m.data[i:])
	return slices.ContainsFunc(m.ranges, func(r PortRange) bool { return r.Lo <= n && n <= r.Hi })
}

// unfragmented tells that the IPv4 header at i is there as far as its fragment offset, which is 0.
func (m message) unfragmented(i int) bool {
	return i+7 < len(m.data) && m.data[i+6]&0x1f == 0 && m.data[i+7] == 0
}

// accepts4 says in plain Go what FilterAnswersICMP4 is to accept.
func (m message) accepts4() bool {
	if !m.unfragmented(0) {
		return false
	}
	icmp := m.at(0) & 15 * 4
	switch m.at(icmp) {
	case 0:
		return m.wordIn(icmp + 4)
	case 3, 11, 12:
		quote := icmp + 8
		if !m.unfragmented(quote) {
			return false
		}
		inner := quote + m.at(quote)&15*4
		switch m.at(quote + 9) {
		case 6, 17:
			return m.wordIn(inner)
		case 1:
			return m.at(inner) == 8 && m.wordIn(inner+4)
		}
	}
	return false
}

// accepts6 says in plain Go what FilterAnswersICMP6 is to accept.
func (m message) accepts6() bool {
	switch m.at(0) {
	case 129:
		return m.wordIn(4)
	case 1, 2, 3, 4:
		switch m.at(14) {
		case 0, 43, 44, 51, 60:
			return len(m.ranges) > 0
		case 6, 17:
			return m.wordIn(48)
		case 58:
			return m.at(48) == 128 && m.wordIn(52)
		}
	}
	return false
}

// TestFilterAnswersRandom compares the programs with plain Go, on packets that are right but for a few bytes.
func TestFilterAnswersRandom(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	compare := func(ranges []PortRange, filter func([]PortRange) []bpf.RawInstruction, plain func(message) bool, carry func(s sent) []byte) (accepted, refused int) {
		ins, _ := bpf.Disassemble(filter(ranges))
		vm, err := bpf.NewVM(ins)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for range 200 {
			s := sent{
				proto:   []packet.Protocol{1, 6, 17, 58, 132}[r.IntN(5)],
				number:  uint16(r.IntN(1 << 16)),
				options: r.IntN(11) * 4,
			}
			if len(ranges) > 0 && r.IntN(2) == 0 {
				s.number = ranges[r.IntN(len(ranges))].Lo + uint16(r.IntN(3)) - 1
			}
			in := carry(s)
			for range r.IntN(3) {
				in[r.IntN(len(in))] = byte(r.IntN(256))
			}
			in = in[:max(1, len(in)-max(0, r.IntN(120)-60))]
			n, err := vm.Run(in)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			want := plain(message{in, ranges})
			if (n != 0) != want {
				t.Fatalf("seed %d: filter for %v says %v about %x", seed, ranges, n != 0, in)
			}
			if want {
				accepted++
			} else {
				refused++
			}
		}
		return accepted, refused
	}
	var accepted, refused [2]int
	for range 200 {
		var ranges []PortRange
		for range r.IntN(maxPortRanges + 1) { // joining would accept more than was asked for
			lo := uint16(r.IntN(1 << 16))
			ranges = append(ranges, PortRange{lo, lo | uint16(r.IntN(2000))})
		}
		yes, no := compare(ranges, FilterAnswersICMP4, message.accepts4, func(s sent) []byte {
			return error4(t, []uint8{0, 3, 5, 8, 11, 12}[r.IntN(6)], r.IntN(11)*4, s)
		})
		accepted[0], refused[0] = accepted[0]+yes, refused[0]+no
		yes, no = compare(ranges, FilterAnswersICMP6, message.accepts6, func(s sent) []byte {
			if r.IntN(4) == 0 {
				s.header = packet.ProtocolHopByHop
			}
			m := error6(t, uint8(r.IntN(6)), s)
			if r.IntN(5) == 0 {
				m = append(echo(129, s.number), 0, 0)
			}
			return m
		})
		accepted[1], refused[1] = accepted[1]+yes, refused[1]+no
	}
	if min(accepted[0], accepted[1], refused[0], refused[1]) < 1000 {
		t.Errorf("seed %d: %d accepted and %d refused compare too little", seed, accepted, refused)
	}
}

// TestFilterAnswersMany holds that a long list loses nothing and fits the kernel.
func TestFilterAnswersMany(t *testing.T) {
	var ranges []PortRange
	for lo := uint16(1000); lo < 60000; lo += 100 {
		ranges = append(ranges, PortRange{lo, lo + 9})
	}
	ranges = append(ranges, PortRange{500, 509})
	prog := FilterAnswersUDP6(ranges)
	if len(prog) > 4096 {
		t.Errorf("%d instructions are too many", len(prog))
	}
	for _, r := range ranges {
		if !run(t, prog, ports(r.Lo, 0)) || !run(t, prog, ports(r.Hi, 0)) {
			t.Errorf("lost %v", r)
		}
	}
	for _, port := range []uint16{0, 499, 510, 999, 60000, 65535} {
		if run(t, prog, ports(port, 0)) {
			t.Errorf("port %d, far from all ranges, is accepted", port)
		}
	}
}

func FuzzFilterAnswers(f *testing.F) {
	f.Add(error4(f, 11, 4, sent{proto: packet.ProtocolUDP, number: 2000}))
	f.Add(error4(f, 3, 0, sent{proto: packet.ProtocolICMP, number: 2000, options: 8}))
	f.Add(error6(f, 3, sent{proto: packet.ProtocolICMPv6, number: 2000}))
	f.Add(bytes.Repeat([]byte{0x4f}, 200))
	ranges := []PortRange{{100, 300}, {1999, 2001}}
	var vms [2]*bpf.VM
	for i, prog := range [][]bpf.RawInstruction{FilterAnswersICMP4(ranges), FilterAnswersICMP6(ranges)} {
		ins, _ := bpf.Disassemble(prog)
		var err error
		if vms[i], err = bpf.NewVM(ins); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		m := message{in, ranges}
		for i, want := range []bool{m.accepts4(), m.accepts6()} {
			n, err := vms[i].Run(in)
			if err != nil {
				t.Fatal(err)
			}
			if (n != 0) != want {
				t.Errorf("version %d: filter says %v about %x", 4+2*i, n != 0, in)
			}
		}
	})
}

func ExampleFilterAnswersUDP6() {
	ins, _ := bpf.Disassemble(FilterAnswersUDP6([]PortRange{{20000, 20007}, {20100, 20107}}))
	vm, _ := bpf.NewVM(ins)
	for _, port := range []uint16{20007, 20008, 20100} {
		n, _ := vm.Run([]byte{0, 53, byte(port >> 8), byte(port), 0, 8, 0, 0})
		fmt.Println(port, n != 0)
	}
	// Output:
	// 20007 true
	// 20008 false
	// 20100 true
}
