// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"fmt"

	"golang.org/x/net/bpf"
)

// The filters below are programs of classic BPF for raw sockets. What such a
// program sees first differs by family: on IPv4 the IP header, on IPv6 what
// follows the IP header and its extension headers. See [AttachFilter].
//
// A filter spares the reader the wake-up and the copy; it does not replace the
// reader's own checks.

// Positions inside transport headers.
const (
	icmpTypeOffset  = 0
	icmpIDOffset    = 4
	dstPortOffset   = 2
	tcpFlagsOffset  = 13
	tcpRST          = 0x04
	tcpSYNACK       = 0x12
	acceptAll       = 1<<32 - 1
	icmp4Unreach    = 3
	icmp4Exceeded   = 11
	icmp4Parameter  = 12
	icmp6Unreach    = 1
	icmp6TooBig     = 2
	icmp6Exceeded   = 3
	icmp6Parameter  = 4
	icmp4EchoReply  = 0
	icmp6EchoReply  = 129
	ipFragmentMask  = 0x1fff
	ipFragmentField = 6
)

// FilterNone accepts nothing: for a socket that only sends, such as one with
// IP_HDRINCL, and for draining a socket while its real filter is prepared.
func FilterNone() []bpf.RawInstruction {
	return assemble(bpf.RetConstant{Val: 0})
}

// FilterICMP4 accepts, on a raw IPv4 ICMP socket, echo replies whose
// identifier is in [lo, hi], and the errors that quote a packet: destination
// unreachable, time exceeded and parameter problem.
func FilterICMP4(lo, hi uint16) []bpf.RawInstruction {
	p := transport4()
	p = append(p, bpf.LoadIndirect{Off: icmpTypeOffset, Size: 1})
	p = append(p, acceptTypes(icmp4Unreach, icmp4Exceeded, icmp4Parameter)...)
	p = append(p,
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: icmp4EchoReply, SkipFalse: 4},
		bpf.LoadIndirect{Off: icmpIDOffset, Size: 2})
	return assemble(append(p, acceptRange(lo, hi)...)...)
}

// FilterICMP6 accepts, on a raw ICMPv6 socket, echo replies whose identifier
// is in [lo, hi], and the errors that quote a packet: destination unreachable,
// packet too big, time exceeded and parameter problem.
func FilterICMP6(lo, hi uint16) []bpf.RawInstruction {
	p := []bpf.Instruction{bpf.LoadAbsolute{Off: icmpTypeOffset, Size: 1}}
	p = append(p, acceptTypes(icmp6Unreach, icmp6TooBig, icmp6Exceeded, icmp6Parameter)...)
	p = append(p,
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: icmp6EchoReply, SkipFalse: 4},
		bpf.LoadAbsolute{Off: icmpIDOffset, Size: 2})
	return assemble(append(p, acceptRange(lo, hi)...)...)
}

// FilterTCP4 accepts, on a raw IPv4 TCP socket, the answers to a SYN (segments
// with SYN and ACK, and segments with RST) whose destination port is in [lo, hi].
func FilterTCP4(lo, hi uint16) []bpf.RawInstruction {
	p := transport4()
	p = append(p, bpf.LoadIndirect{Off: dstPortOffset, Size: 2})
	p = append(p, requireRange(lo, hi)...)
	p = append(p, bpf.LoadIndirect{Off: tcpFlagsOffset, Size: 1})
	return assemble(append(p, acceptSYNAnswer()...)...)
}

// FilterTCP6 is FilterTCP4 for a raw IPv6 TCP socket.
func FilterTCP6(lo, hi uint16) []bpf.RawInstruction {
	p := []bpf.Instruction{bpf.LoadAbsolute{Off: dstPortOffset, Size: 2}}
	p = append(p, requireRange(lo, hi)...)
	p = append(p, bpf.LoadAbsolute{Off: tcpFlagsOffset, Size: 1})
	return assemble(append(p, acceptSYNAnswer()...)...)
}

// FilterPort4 accepts, on a raw IPv4 socket of a protocol whose header begins
// with source and destination port (UDP, SCTP, TCP, DCCP), packets whose
// destination port is in [lo, hi].
func FilterPort4(lo, hi uint16) []bpf.RawInstruction {
	p := transport4()
	p = append(p, bpf.LoadIndirect{Off: dstPortOffset, Size: 2})
	return assemble(append(p, acceptRange(lo, hi)...)...)
}

// FilterPort6 is FilterPort4 for a raw IPv6 socket.
func FilterPort6(lo, hi uint16) []bpf.RawInstruction {
	p := []bpf.Instruction{bpf.LoadAbsolute{Off: dstPortOffset, Size: 2}}
	return assemble(append(p, acceptRange(lo, hi)...)...)
}

// transport4 begins a program that looks behind an IPv4 header: it sets X to
// the header's length. A later fragment has no transport header and is refused;
// raw sockets get reassembled packets, so this matters on packet sockets only.
func transport4() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: ipFragmentField, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: ipFragmentMask, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.LoadMemShift{Off: 0},
	}
}

// acceptTypes accepts a packet whose A is one of types, else falls through.
func acceptTypes(types ...uint32) []bpf.Instruction {
	var p []bpf.Instruction
	for _, t := range types {
		p = append(p,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: t, SkipFalse: 1},
			bpf.RetConstant{Val: acceptAll})
	}
	return p
}

// requireRange refuses a packet whose A is outside [lo, hi], else falls
// through. It is three instructions long.
func requireRange(lo, hi uint16) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: uint32(lo), SkipFalse: 1},
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: uint32(hi), SkipFalse: 1},
		bpf.RetConstant{Val: 0},
	}
}

// acceptRange ends a program: accept if A is in [lo, hi], else refuse. Its last
// instruction, the fourth, refuses, so that jumps may go there.
func acceptRange(lo, hi uint16) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: uint32(lo), SkipFalse: 2},
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: uint32(hi), SkipTrue: 1},
		bpf.RetConstant{Val: acceptAll},
		bpf.RetConstant{Val: 0},
	}
}

// acceptSYNAnswer ends a program whose A is the flags of a TCP header.
func acceptSYNAnswer() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: tcpRST, SkipTrue: 2},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: tcpSYNACK},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: tcpSYNACK, SkipTrue: 1},
		bpf.RetConstant{Val: acceptAll},
		bpf.RetConstant{Val: 0},
	}
}

// assemble translates a program that is correct by construction.
func assemble(p ...bpf.Instruction) []bpf.RawInstruction {
	raw, err := bpf.Assemble(p)
	if err != nil {
		panic(fmt.Sprintf("rawio: filter does not assemble: %v", err))
	}
	return raw
}
