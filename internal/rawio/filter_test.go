// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"encoding/binary"
	"fmt"
	"testing"

	"golang.org/x/net/bpf"
)

// run executes a filter in the virtual machine of x/net/bpf.
func run(t *testing.T, prog []bpf.RawInstruction, packet []byte) bool {
	t.Helper()
	ins, all := bpf.Disassemble(prog)
	if !all {
		t.Fatalf("program has instructions that do not disassemble: %v", ins)
	}
	vm, err := bpf.NewVM(ins)
	if err != nil {
		t.Fatal(err)
	}
	n, err := vm.Run(packet)
	if err != nil {
		t.Fatal(err)
	}
	return n != 0 // "all" is -1 on 32-bit systems
}

// ip4 puts an IPv4 header with opts bytes of options before payload.
func ip4(opts int, payload ...byte) []byte {
	h := make([]byte, 20+opts)
	h[0] = 0x40 | byte(len(h)/4)
	return append(h, payload...)
}

func echo(typ byte, id uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{typ, 0, 0, 0}, id)
}

func ports(dst uint16, flags byte) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, 443)
	binary.BigEndian.PutUint16(b[2:], dst)
	b[13] = flags
	return b
}

func TestFilters(t *testing.T) {
	const lo, hi = 0x1000, 0x1fff
	fragment := ip4(0, echo(0, lo)...)
	fragment[7] = 1
	tests := []struct {
		name   string
		prog   []bpf.RawInstruction
		accept [][]byte
		refuse [][]byte
	}{
		{
			name: "none", prog: FilterNone(),
			refuse: [][]byte{ip4(0), echo(129, lo), {}},
		},
		{
			name: "icmp4", prog: FilterICMP4(lo, hi),
			accept: [][]byte{
				ip4(0, echo(0, lo)...), ip4(0, echo(0, hi)...), ip4(0, echo(0, 0x1234)...), ip4(40, echo(0, lo)...),
				ip4(0, echo(3, 0)...), ip4(0, echo(11, 0)...), ip4(4, echo(12, 0)...),
			},
			refuse: [][]byte{
				ip4(0, echo(0, lo-1)...), ip4(0, echo(0, hi+1)...), ip4(0, echo(8, lo)...), ip4(0, echo(5, 0)...),
				ip4(0, echo(13, lo)...), ip4(40, echo(0, 0xffff)...), ip4(0, 0), ip4(0),
				{},
				fragment,
			},
		},
		{
			name: "icmp6", prog: FilterICMP6(lo, hi),
			accept: [][]byte{echo(129, lo), echo(129, hi), echo(1, 0), echo(2, 0), echo(3, 0), echo(4, 0)},
			refuse: [][]byte{echo(129, lo-1), echo(129, hi+1), echo(128, lo), echo(135, lo), echo(0, lo), {129}, {}},
		},
		{
			name: "tcp4", prog: FilterTCP4(lo, hi),
			accept: [][]byte{
				ip4(0, ports(lo, 0x12)...), ip4(0, ports(hi, 0x14)...), ip4(8, ports(lo, 0x04)...),
				ip4(0, ports(lo, 0x52)...), // SYN, ACK, ECE
			},
			refuse: [][]byte{
				ip4(0, ports(lo-1, 0x12)...), ip4(0, ports(hi+1, 0x04)...), ip4(0, ports(lo, 0x02)...),
				ip4(0, ports(lo, 0x10)...), ip4(0, ports(lo, 0x18)...), ip4(0, ports(lo, 0x11)...), ip4(0, ports(lo, 0)[:13]...),
			},
		},
		{
			name: "tcp6", prog: FilterTCP6(lo, hi),
			accept: [][]byte{ports(lo, 0x12), ports(hi, 0x14), ports(lo, 0x04)},
			refuse: [][]byte{ports(lo-1, 0x12), ports(hi+1, 0x04), ports(lo, 0x02), ports(lo, 0x10), ports(lo, 0x12)[:13]},
		},
		{
			name: "port4", prog: FilterPort4(lo, hi),
			accept: [][]byte{ip4(0, ports(lo, 0)...), ip4(12, ports(hi, 0)...)},
			refuse: [][]byte{ip4(0, ports(lo-1, 0)...), ip4(0, ports(hi+1, 0)...), ip4(0, 0, 0, 0x10)},
		},
		{
			name: "port6", prog: FilterPort6(lo, hi),
			accept: [][]byte{ports(lo, 0), ports(hi, 0)},
			refuse: [][]byte{ports(lo-1, 0), ports(hi+1, 0), {0, 0, 0x10}},
		},
		{
			name: "whole range", prog: FilterPort6(0, 0xffff),
			accept: [][]byte{ports(0, 0), ports(0xffff, 0)},
		},
		{
			name: "one port", prog: FilterPort6(7, 7),
			accept: [][]byte{ports(7, 0)},
			refuse: [][]byte{ports(6, 0), ports(8, 0)},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, p := range tt.accept {
				if !run(t, tt.prog, p) {
					t.Errorf("refused %x", p)
				}
			}
			for _, p := range tt.refuse {
				if run(t, tt.prog, p) {
					t.Errorf("accepted %x", p)
				}
			}
		})
	}
}

// TestFilterBounds compares the range of identifiers with plain arithmetic.
func TestFilterBounds(t *testing.T) {
	bounds := []uint16{0, 1, 0x7fff, 0x8000, 0xfffe, 0xffff}
	for _, lo := range bounds {
		for _, hi := range bounds {
			prog := FilterICMP4(lo, hi)
			for _, id := range bounds {
				if got, want := run(t, prog, ip4(0, echo(0, id)...)), lo <= id && id <= hi; got != want {
					t.Errorf("[%#x, %#x] accepts %#x: %v", lo, hi, id, got)
				}
			}
		}
	}
}

func ExampleFilterICMP6() {
	ins, _ := bpf.Disassemble(FilterICMP6(100, 199))
	vm, _ := bpf.NewVM(ins)
	for _, id := range []byte{99, 100, 199, 200} {
		n, _ := vm.Run([]byte{129, 0, 0, 0, 0, id, 0, 1})
		fmt.Println(id, n != 0)
	}
	// Output:
	// 99 false
	// 100 true
	// 199 true
	// 200 false
}
