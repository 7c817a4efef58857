// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import "golang.org/x/net/bpf"

// BroadcastFilter says what [FilterBroadcast] lets pass beside IPv4 broadcasts, and what it refuses.
type BroadcastFilter struct {
	// Mark refuses what this host sends with this mark (SO_MARK in socket(7)): what the reader's own program
	// sends. Default 0: refuse nothing.
	Mark uint32
	// IPv4Groups and IPv6Groups also let pass multicast UDP.
	IPv4Groups, IPv6Groups bool
	// Announcements also lets pass frames of EtherType 0x88B5, set aside for experiments (IEEE 802).
	Announcements bool
}

// maxBroadcastRanges is how many ranges of ports a filter for broadcasts tells apart. It takes them by bisection, in six steps.
const maxBroadcastRanges = 64

// Positions in Ethernet frames, and what may be there.
const (
	etherType      = 12
	etherHeader    = 14
	etherTypeIPv4  = 0x0800
	etherTypeIPv6  = 0x86dd
	etherTypeLocal = 0x88b5

	ip6FragmentHeader = 8 // bytes
	ip6FragmentField  = 2 // in the fragment header
	ip6FragmentMask   = 0xfff8
)

// FilterBroadcast accepts, on a packet socket, untagged frames to everybody with an IPv4 UDP datagram for a port in
// one of the ranges, and what o adds. Of a fragmented datagram the first fragment is known by the
// port; later ones pass. Frames to a single host never pass, announcements included, nor do IPv6 datagrams with other
// extension headers than that of a fragment.
//
// No ranges accept no datagram. Of more than 64 that do not touch, the closest are joined, with what is between them.
func FilterBroadcast(ranges []PortRange, o BroadcastFilter) []bpf.RawInstruction {
	p := []bpf.Instruction{bpf.LoadAbsolute{Off: 0, Size: 1}} // most frames on a busy interface are refused here
	p = append(p, require(bpf.JumpBitsSet, 1)...)
	p = append(p, bpf.LoadExtension{Num: bpf.ExtVLANTagPresent})
	p = append(p, require(bpf.JumpEqual, 0)...)
	if o.Mark != 0 {
		p = append(p, bpf.LoadExtension{Num: bpf.ExtMark})
		p = append(p, require(bpf.JumpNotEqual, o.Mark)...)
	}
	p = append(p, bpf.LoadAbsolute{Off: etherType, Size: 2})
	if o.Announcements {
		p = append(p, acceptTypes(etherTypeLocal)...)
	}
	joined := joinRanges(ranges, maxBroadcastRanges)
	if len(joined) == 0 {
		return assemble(append(p, bpf.RetConstant{Val: 0})...)
	}
	v4, tree := broadcast4(o.IPv4Groups), acceptSorted(joined)
	if !o.IPv6Groups {
		p = append(p, require(bpf.JumpEqual, etherTypeIPv4)...)
	} else {
		v6 := groups6(len(v4))
		p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherTypeIPv4, SkipTrue: uint8(2 + len(v6))})
		p = append(p, require(bpf.JumpEqual, etherTypeIPv6)...)
		p = append(p, v6...)
	}
	p = append(p, v4...)
	return assemble(append(p, tree...)...)
}

// broadcast4 looks at a frame with an IPv4 packet. It loads the port of a datagram to everybody, or with groups to a group; it
// accepts later fragments and refuses others.
func broadcast4(groups bool) []bpf.Instruction {
	const ipv4Groups, ipv4GroupsMask = 0x01005e00, 0xffffff00 // RFC 1112, section 6.4
	p := []bpf.Instruction{bpf.LoadAbsolute{Off: etherHeader + ip4Protocol, Size: 1}}
	p = append(p, require(bpf.JumpEqual, protoUDP)...)
	p = append(p, bpf.LoadAbsolute{Off: 0, Size: 4})
	if groups {
		p = append(p,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: acceptAll, SkipTrue: 4},
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: ipv4GroupsMask})
		p = append(p, require(bpf.JumpEqual, ipv4Groups)...)
		p = append(p, bpf.Jump{Skip: 3})
	} else {
		p = append(p, require(bpf.JumpEqual, acceptAll)...)
	}
	p = append(p, bpf.LoadAbsolute{Off: 4, Size: 2})
	p = append(p, require(bpf.JumpEqual, 0xffff)...)
	return append(p,
		bpf.LoadAbsolute{Off: etherHeader + ipFragmentField, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: ipFragmentMask, SkipTrue: 1},
		bpf.RetConstant{Val: acceptAll},
		bpf.LoadMemShift{Off: etherHeader},
		bpf.LoadIndirect{Off: etherHeader + dstPortOffset, Size: 2})
}

// groups6 looks at a frame with an IPv6 packet. It loads the port of a datagram to a group and skips so many instructions; it accepts later
// fragments, whose protocol is not told reliably, and refuses others.
func groups6(skip int) []bpf.Instruction {
	const ipv6Groups = 0x3333 // RFC 2464, section 7
	const transport = etherHeader + ip6HeaderLen
	first := []bpf.Instruction{ // in a fragment header; A is its next header
		bpf.LoadAbsolute{Off: transport + ip6FragmentField, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: ip6FragmentMask, SkipTrue: 1},
		bpf.RetConstant{Val: acceptAll},
		bpf.LoadAbsolute{Off: transport, Size: 1},
	}
	first = append(first, require(bpf.JumpEqual, protoUDP)...)
	first = append(first, bpf.LoadAbsolute{Off: transport + ip6FragmentHeader + dstPortOffset, Size: 2}, bpf.Jump{Skip: uint32(skip)})

	p := []bpf.Instruction{bpf.LoadAbsolute{Off: 0, Size: 2}}
	p = append(p, require(bpf.JumpEqual, ipv6Groups)...)
	p = append(p,
		bpf.LoadAbsolute{Off: etherHeader + ip6NextHeader, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoUDP, SkipTrue: 2},
		bpf.LoadAbsolute{Off: transport + dstPortOffset, Size: 2},
		bpf.Jump{Skip: uint32(2 + len(first) + skip)})
	p = append(p, require(bpf.JumpEqual, protoFragment)...)
	return append(p, first...)
}

// acceptSorted ends a program: accept if A is in one of the ranges, which are in order and apart from each other and at least one,
// else refuse. It halves them at each step.
func acceptSorted(ranges []PortRange) []bpf.Instruction {
	if len(ranges) == 1 {
		return acceptRange(ranges[0].Lo, ranges[0].Hi)
	}
	middle := len(ranges) / 2
	below, above := acceptSorted(ranges[:middle]), acceptSorted(ranges[middle:])
	test := bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: uint32(ranges[middle].Lo)}
	p := []bpf.Instruction{test}
	if len(below) < 1<<8 {
		test.SkipTrue = uint8(len(below))
		p[0] = test
	} else { // a conditional jump reaches no further than 255
		test.SkipFalse = 1
		p = []bpf.Instruction{test, bpf.Jump{Skip: uint32(len(below))}}
	}
	p = append(p, below...)
	return append(p, above...)
}
