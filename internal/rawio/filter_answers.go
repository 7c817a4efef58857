// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"cmp"
	"slices"

	"golang.org/x/net/bpf"
)

// The filters below are for probes that are told apart by ranges of source ports, or of identifiers of echo
// requests, when the answers may be ICMP errors about packets that another host has sent. They look into the quoted
// packet, which spares a site of an anycast network the errors about its ordinary traffic.

// PortRange is a range of ports or identifiers, both ends included. It is empty if Hi is below Lo.
type PortRange struct{ Lo, Hi uint16 }

// maxPortRanges is how many ranges a filter tests, one after the other. The kernel would take a thousand, but
// a packet that is refused may have to pass all of them.
const maxPortRanges = 32

// Positions inside ICMP errors, and what may be there.
const (
	quoteOffset      = 8 // of the quoted IP header in the ICMP message
	ip4Protocol      = 9 // in an IPv4 header
	ip6NextHeader    = 6 // in an IPv6 header
	ip6HeaderLen     = 40
	srcPortOffset    = 0
	icmp4Echo        = 8
	icmp6Echo        = 128
	protoHopByHop    = 0
	protoICMP        = 1
	protoTCP         = 6
	protoUDP         = 17
	protoRouting     = 43
	protoFragment    = 44
	protoAH          = 51
	protoICMP6       = 58
	protoDestination = 60
)

// FilterAnswersICMP4 accepts, on a raw IPv4 ICMP socket, echo replies whose identifier is in one of the
// ranges, and the errors (destination unreachable, time exceeded, parameter problem) that quote a UDP or TCP packet with
// its source port, or an echo request with its identifier, in one of them.
//
// No ranges accept nothing. Of more than 32 that do not touch, the closest are joined, with what is between them.
func FilterAnswersICMP4(ranges []PortRange) []bpf.RawInstruction {
	load := func(off uint32, size int) bpf.Instruction { return bpf.LoadIndirect{Off: off, Size: size} }
	quoted := []bpf.Instruction{load(quoteOffset+ipFragmentField, 2)}
	quoted = append(quoted, require(bpf.JumpBitsNotSet, ipFragmentMask)...)
	quoted = append(quoted,
		// X becomes the length of both IP headers; A is the protocol.
		load(quoteOffset+ip4Protocol, 1),
		bpf.StoreScratch{Src: bpf.RegA, N: 0},
		load(quoteOffset, 1),
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x0f},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftLeft, Val: 2},
		bpf.ALUOpX{Op: bpf.ALUOpAdd},
		bpf.TAX{},
		bpf.LoadScratch{Dst: bpf.RegA, N: 0})
	quoted = append(quoted, loadQuotedPort(load, quoteOffset, protoICMP, icmp4Echo)...)
	p := transport4()
	p = append(p, loadAnswerPort(load, icmp4EchoReply, []uint32{icmp4Unreach, icmp4Exceeded, icmp4Parameter}, quoted)...)
	return assemble(append(p, acceptRanges(ranges)...)...)
}

// FilterAnswersICMP6 is [FilterAnswersICMP4] for a raw ICMPv6 socket, with packet too big as a fourth error. Errors that quote a packet
// with extension headers are accepted whatever follows these: they are rare, and a filter cannot follow such a chain.
func FilterAnswersICMP6(ranges []PortRange) []bpf.RawInstruction {
	if len(ranges) == 0 {
		return FilterNone() // extension headers included
	}
	load := func(off uint32, size int) bpf.Instruction { return bpf.LoadAbsolute{Off: off, Size: size} }
	quoted := []bpf.Instruction{load(quoteOffset+ip6NextHeader, 1)}
	quoted = append(quoted, acceptTypes(protoHopByHop, protoRouting, protoFragment, protoAH, protoDestination)...)
	quoted = append(quoted, loadQuotedPort(load, quoteOffset+ip6HeaderLen, protoICMP6, icmp6Echo)...)
	p := loadAnswerPort(load, icmp6EchoReply, []uint32{icmp6Unreach, icmp6TooBig, icmp6Exceeded, icmp6Parameter}, quoted)
	return assemble(append(p, acceptRanges(ranges)...)...)
}

// FilterAnswersTCP4 accepts, on a raw IPv4 TCP socket, the answers to a SYN (segments with SYN and ACK, and
// segments with RST) whose destination port is in one of the ranges; see [FilterAnswersICMP4] about their number.
func FilterAnswersTCP4(ranges []PortRange) []bpf.RawInstruction {
	p := transport4()
	p = append(p, bpf.LoadIndirect{Off: tcpFlagsOffset, Size: 1})
	p = append(p, requireSYNAnswer()...)
	p = append(p, bpf.LoadIndirect{Off: dstPortOffset, Size: 2})
	return assemble(append(p, acceptRanges(ranges)...)...)
}

// FilterAnswersTCP6 is [FilterAnswersTCP4] for a raw IPv6 TCP socket.
func FilterAnswersTCP6(ranges []PortRange) []bpf.RawInstruction {
	p := []bpf.Instruction{bpf.LoadAbsolute{Off: tcpFlagsOffset, Size: 1}}
	p = append(p, requireSYNAnswer()...)
	p = append(p, bpf.LoadAbsolute{Off: dstPortOffset, Size: 2})
	return assemble(append(p, acceptRanges(ranges)...)...)
}

// FilterAnswersUDP4 accepts, on a raw IPv4 UDP socket, datagrams whose destination port is in one of the ranges; see
// [FilterAnswersICMP4] about their number.
func FilterAnswersUDP4(ranges []PortRange) []bpf.RawInstruction {
	p := transport4()
	p = append(p, bpf.LoadIndirect{Off: dstPortOffset, Size: 2})
	return assemble(append(p, acceptRanges(ranges)...)...)
}

// FilterAnswersUDP6 is [FilterAnswersUDP4] for a raw IPv6 UDP socket.
func FilterAnswersUDP6(ranges []PortRange) []bpf.RawInstruction {
	p := []bpf.Instruction{bpf.LoadAbsolute{Off: dstPortOffset, Size: 2}}
	return assemble(append(p, acceptRanges(ranges)...)...)
}

// loader makes the instruction that loads size bytes at an offset of the ICMP message.
type loader func(off uint32, size int) bpf.Instruction

// loadAnswerPort loads an echo reply's identifier, or with quoted the port of the packet that an error is about;
// it refuses other types.
func loadAnswerPort(load loader, reply uint32, errors []uint32, quoted []bpf.Instruction) []bpf.Instruction {
	var p []bpf.Instruction
	for i, typ := range errors {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: typ, SkipTrue: uint8(len(errors) - i)})
	}
	p = append(p, bpf.RetConstant{Val: 0})
	p = append(p, quoted...)
	return append([]bpf.Instruction{
		load(icmpTypeOffset, 1),
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: reply, SkipTrue: 2},
		load(icmpIDOffset, 2),
		bpf.Jump{Skip: uint32(len(p))},
	}, p...)
}

// loadQuotedPort loads the source port or identifier of a quoted packet with protocol A and its transport header at the
// offset; it refuses other protocols, and other messages than echo requests.
func loadQuotedPort(load loader, at, icmp, echo uint32) []bpf.Instruction {
	id := require(bpf.JumpEqual, icmp)
	id = append(id, load(at+icmpTypeOffset, 1))
	id = append(id, require(bpf.JumpEqual, echo)...)
	id = append(id, load(at+icmpIDOffset, 2))
	return append([]bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoUDP, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoTCP, SkipTrue: 2},
		load(at+srcPortOffset, 2),
		bpf.Jump{Skip: uint32(len(id))},
	}, id...)
}

// require refuses a packet whose A fails the test, else falls through.
func require(test bpf.JumpTest, val uint32) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.JumpIf{Cond: test, Val: val, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	}
}

// requireSYNAnswer refuses a segment whose flags, in A, are not those of an answer to a SYN, else falls through.
func requireSYNAnswer() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: tcpRST, SkipTrue: 3},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: tcpSYNACK},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: tcpSYNACK, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	}
}

// acceptRanges ends a program: accept if A is in one of the ranges, else refuse.
func acceptRanges(ranges []PortRange) []bpf.Instruction {
	var p []bpf.Instruction
	for _, r := range JoinRanges(ranges) {
		// They are in order: below one is outside all.
		p = append(p, require(bpf.JumpGreaterOrEqual, uint32(r.Lo))...)
		p = append(p,
			bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: uint32(r.Hi), SkipTrue: 1},
			bpf.RetConstant{Val: acceptAll})
	}
	return append(p, bpf.RetConstant{Val: 0})
}

// JoinRanges gives what a filter for ranges accepts, in order and apart from each other: of more than 32 ranges that do not
// touch, the closest are joined, with what is between them. The argument stays as it is.
func JoinRanges(ranges []PortRange) []PortRange { return joinRanges(ranges, maxPortRanges) }

// joinRanges gives at most n ranges, in order and apart from each other, that cover the given ones: where they are too
// many, those with the smallest gaps become one.
func joinRanges(ranges []PortRange, n int) []PortRange {
	sorted := slices.Clone(ranges)
	sorted = slices.DeleteFunc(sorted, func(r PortRange) bool { return r.Hi < r.Lo })
	slices.SortFunc(sorted, func(a, b PortRange) int { return cmp.Compare(a.Lo, b.Lo) })
	sorted = joinGaps(sorted, 0)
	if len(sorted) <= n {
		return sorted
	}
	gaps := make([]int, len(sorted)-1)
	for i := range gaps {
		gaps[i] = gap(sorted[i], sorted[i+1])
	}
	slices.Sort(gaps)
	return joinGaps(sorted, gaps[len(sorted)-n-1])
}

// joinGaps joins neighbours with at most so many ports between them. The ranges are in the order of Lo, and are overwritten.
func joinGaps(ranges []PortRange, most int) []PortRange {
	joined := ranges[:0]
	for _, r := range ranges {
		if n := len(joined); n > 0 && gap(joined[n-1], r) <= most {
			joined[n-1].Hi = max(joined[n-1].Hi, r.Hi)
		} else {
			joined = append(joined, r)
		}
	}
	return joined
}

// gap is how many ports are between a and a later range, less than 0 if they overlap.
func gap(a, b PortRange) int { return int(b.Lo) - int(a.Hi) - 1 }
