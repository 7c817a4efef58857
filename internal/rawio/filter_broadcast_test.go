// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/net/bpf"
)

// ancillary is what the kernel knows about a frame beside its bytes.
type ancillary struct{ tagged, mark uint32 }

// runFrame executes a filter as run does. The virtual machine knows no ancillary data: it sees constants.
func runFrame(t *testing.T, prog []bpf.RawInstruction, frame []byte, a ancillary) bool {
	t.Helper()
	ins, all := bpf.Disassemble(prog)
	if !all {
		t.Fatalf("program has instructions that do not disassemble: %v", ins)
	}
	for i, in := range ins {
		load, ok := in.(bpf.LoadExtension)
		if !ok {
			continue
		}
		value, ok := map[bpf.Extension]uint32{
			bpf.ExtVLANTagPresent: a.tagged, bpf.ExtMark: a.mark,
		}[load.Num]
		if !ok {
			t.Fatalf("%v: nothing known about it", in)
		}
		ins[i] = bpf.LoadConstant{Dst: bpf.RegA, Val: value}
	}
	raw, err := bpf.Assemble(ins)
	if err != nil {
		t.Fatal(err)
	}
	return run(t, raw, frame)
}

// ether puts an Ethernet header before a payload.
func ether(to, from string, typ uint16, payload []byte) []byte {
	f := append([]byte(to), from...)
	f = binary.BigEndian.AppendUint16(f, typ)
	return append(f, payload...)
}

// datagram4 is an IPv4 packet with a UDP header; fragment is its field of flags and offset.
func datagram4(opts int, fragment uint16, proto byte, port uint16) []byte {
	p := ip4(opts, ports(port, 0)[:8]...)
	binary.BigEndian.PutUint16(p[6:], fragment)
	p[9] = proto
	return p
}

// datagram6 is an IPv6 packet, with a fragment header if fragment is not negative.
func datagram6(fragment int, proto byte, port uint16) []byte {
	p := make([]byte, 40)
	p[0] = 0x60
	p[6] = proto
	if fragment >= 0 {
		p[6] = 44
		p = append(p, proto, 0, byte(fragment>>8), byte(fragment), 0, 0, 0, 1)
	}
	return append(p, ports(port, 0)[:8]...)
}

const (
	everybody = "\xff\xff\xff\xff\xff\xff"
	host1     = "\x02\x00\x00\x00\x00\x01"
	host2     = "\x02\x00\x00\x00\x00\x02"
	group4    = "\x01\x00\x5e\x01\x02\x03"
	group6    = "\x33\x33\x00\x00\x00\xfb"
)

func TestFilterBroadcast(t *testing.T) {
	ports := []PortRange{{5064, 5065}, {5076, 5076}, {9, 9}, {0, 0}, {65535, 65535}}
	plain := BroadcastFilter{}
	full := BroadcastFilter{Mark: 0x4654, IPv4Groups: true, IPv6Groups: true, Announcements: true}
	udp := func(port uint16) []byte { return ether(everybody, host1, 0x0800, datagram4(0, 0, 17, port)) }
	tests := []struct {
		name        string
		frame       []byte
		with        ancillary
		plain, full bool
	}{
		{"broadcast", udp(5064), ancillary{}, true, true},
		{"end of a range", udp(5065), ancillary{}, true, true},
		{"behind a range", udp(5066), ancillary{}, false, false},
		{"before a range", udp(5063), ancillary{}, false, false},
		{"port 0", udp(0), ancillary{}, true, true},
		{"port 65535", udp(65535), ancillary{}, true, true},
		{"port 65534", udp(65534), ancillary{}, false, false},
		{"options", ether(everybody, host1, 0x0800, datagram4(40, 0, 17, 5076)), ancillary{}, true, true},
		{"options, other port", ether(everybody, host1, 0x0800, datagram4(40, 0, 17, 5077)), ancillary{}, false, false},
		{"TCP", ether(everybody, host1, 0x0800, datagram4(0, 0, 6, 5064)), ancillary{}, false, false},
		{"do not fragment", ether(everybody, host1, 0x0800, datagram4(0, 0x4000, 17, 5064)), ancillary{}, true, true},
		{"first fragment", ether(everybody, host1, 0x0800, datagram4(0, 0x2000, 17, 5064)), ancillary{}, true, true},
		{"first fragment, other port", ether(everybody, host1, 0x0800, datagram4(0, 0x2000, 17, 1)), ancillary{}, false, false},
		{"later fragment", ether(everybody, host1, 0x0800, datagram4(0, 0x2001, 17, 1)), ancillary{}, true, true},
		{"last fragment", ether(everybody, host1, 0x0800, datagram4(0, 0x1fff, 17, 1)), ancillary{}, true, true},
		{"later fragment of TCP", ether(everybody, host1, 0x0800, datagram4(0, 1, 6, 1)), ancillary{}, false, false},
		{"ARP", ether(everybody, host1, 0x0806, datagram4(0, 0, 17, 5064)), ancillary{}, false, false},
		{"to a host", ether(host2, host1, 0x0800, datagram4(0, 0, 17, 5064)), ancillary{}, false, false},
		{"almost to everybody", ether("\xff\xff\xff\xff\xff\xfd", host1, 0x0800, datagram4(0, 0, 17, 5064)), ancillary{}, false, false},
		{"tagged", udp(5064), ancillary{tagged: 1}, false, false},
		{"tag in the frame", ether(everybody, host1, 0x8100, append([]byte{0, 7, 8, 0}, datagram4(0, 0, 17, 5064)...)), ancillary{}, false, false},
		{"sent with the mark", udp(5064), ancillary{mark: 0x4654}, true, false},
		{"sent with another", udp(5064), ancillary{mark: 0x4655}, true, true},
		{"group", ether(group4, host1, 0x0800, datagram4(0, 0, 17, 5064)), ancillary{}, false, true},
		{"group, other port", ether(group4, host1, 0x0800, datagram4(0, 0, 17, 5)), ancillary{}, false, false},
		{"group, later fragment", ether(group4, host1, 0x0800, datagram4(0, 5, 17, 5)), ancillary{}, false, true},
		{"not a group of IPv4", ether("\x01\x80\xc2\x00\x00\x0e", host1, 0x0800, datagram4(0, 0, 17, 5064)), ancillary{}, false, false},
		{"group of IPv6", ether(group6, host1, 0x86dd, datagram6(-1, 17, 5064)), ancillary{}, false, true},
		{"group of IPv6, other port", ether(group6, host1, 0x86dd, datagram6(-1, 17, 5067)), ancillary{}, false, false},
		{"group of IPv6, ICMP", ether(group6, host1, 0x86dd, datagram6(-1, 58, 5064)), ancillary{}, false, false},
		{"group of IPv6, first fragment", ether(group6, host1, 0x86dd, datagram6(1, 17, 5076)), ancillary{}, false, true},
		{"group of IPv6, first fragment, other port", ether(group6, host1, 0x86dd, datagram6(1, 17, 5077)), ancillary{}, false, false},
		{"group of IPv6, first fragment of ICMP", ether(group6, host1, 0x86dd, datagram6(1, 58, 5076)), ancillary{}, false, false},
		{"group of IPv6, later fragment", ether(group6, host1, 0x86dd, datagram6(8, 17, 1)), ancillary{}, false, true},
		{"IPv6 to everybody", ether(everybody, host1, 0x86dd, datagram6(-1, 17, 5064)), ancillary{}, false, false},
		{"announcement", ether(everybody, host1, 0x88b5, nil), ancillary{}, false, true},
		{"announcement to a host", ether(host1, host2, 0x88b5, nil), ancillary{}, false, false},
		{"nothing", nil, ancillary{}, false, false},
	}
	for _, test := range tests {
		for _, v := range []struct {
			o    BroadcastFilter
			want bool
		}{{plain, test.plain}, {full, test.full}} {
			prog := FilterBroadcast(ports, v.o)
			if got := runFrame(t, prog, test.frame, test.with); got != v.want {
				t.Errorf("%s, %+v: accepted %v, want %v", test.name, v.o, got, v.want)
			}
			// A frame that ends too early is refused at the latest with its last byte but the UDP length and checksum,
			// which the filter does not look at.
			for n := range test.frame[:max(len(test.frame)-8, 0)] {
				if test.frame[12] == 0x88 {
					break
				}
				later := test.frame[12] == 0x08 && len(test.frame) > 21 && binary.BigEndian.Uint16(test.frame[20:])&0x1fff != 0 && n > 21 ||
					test.frame[12] == 0x86 && n > 57
				if got := runFrame(t, prog, test.frame[:n], test.with); got && !later {
					t.Errorf("%s, %+v: %d of %d bytes accepted", test.name, v.o, n, len(test.frame))
				}
			}
		}
	}
	for name, ranges := range map[string][]PortRange{"none": nil, "empty": {{5, 4}}} {
		prog := FilterBroadcast(ranges, full)
		if runFrame(t, prog, udp(5064), ancillary{}) || runFrame(t, prog, udp(5), ancillary{}) {
			t.Errorf("%s: a datagram is accepted", name)
		}
		if !runFrame(t, prog, ether(everybody, host1, 0x88b5, nil), ancillary{}) {
			t.Errorf("%s: an announcement is refused", name)
		}
	}
}

// TestFilterBroadcastPorts compares the tree with a plain search, for as many ranges as may be and more.
func TestFilterBroadcastPorts(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	for _, count := range []int{1, 2, 3, 7, 63, 64, 65, 300} {
		var ranges []PortRange
		for range count {
			lo := uint16(r.IntN(1 << 16))
			ranges = append(ranges, PortRange{lo, lo + min(uint16(r.IntN(4)), 65535-lo)})
		}
		joined := joinRanges(ranges, maxBroadcastRanges)
		prog := FilterBroadcast(ranges, BroadcastFilter{IPv4Groups: true, IPv6Groups: true})
		if len(prog) > 400 {
			t.Errorf("%d ranges make a program of %d instructions", count, len(prog))
		}
		for range 300 {
			port := ranges[r.IntN(count)].Lo + uint16(r.IntN(8)) - 2 // may wrap
			want := slices.ContainsFunc(joined, func(p PortRange) bool { return p.Lo <= port && port <= p.Hi })
			for _, frame := range [][]byte{
				ether(everybody, host1, 0x0800, datagram4(4, 0, 17, port)),
				ether(group6, host1, 0x86dd, datagram6(0, 17, port)),
			} {
				if got := runFrame(t, prog, frame, ancillary{}); got != want {
					t.Fatalf("seed %d, %d ranges: port %d accepted %v, want %v", seed, count, port, got, want)
				}
			}
		}
	}
	// So many ranges that one branch is longer than a conditional jump reaches.
	var many []PortRange
	for lo := uint16(0); lo < 4000; lo += 10 {
		many = append(many, PortRange{lo, lo + 4})
	}
	prog := assemble(append([]bpf.Instruction{bpf.LoadAbsolute{Off: 0, Size: 2}}, acceptSorted(many)...)...)
	for port := range uint16(5000) {
		if got, want := run(t, prog, []byte{byte(port >> 8), byte(port)}), port < 4000 && port%10 < 5; got != want {
			t.Fatalf("%d ranges: port %d accepted %v, want %v", len(many), port, got, want)
		}
	}
}
