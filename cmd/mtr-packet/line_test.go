// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// cut feeds input to a line splitter in pieces of the given sizes, over and over.
func cut(t *testing.T, input []byte, sizes ...int) (out []string) {
	t.Helper()
	l := new(lines)
	for i := 0; len(input) > 0; i++ {
		space := l.space()
		if len(space) < readSize {
			t.Fatalf("space for %d bytes, want at least %d", len(space), readSize)
		}
		n := copy(space[:min(sizes[i%len(sizes)], len(space))], input)
		l.add(n)
		input = input[n:]
		for {
			line, overflow, ok := l.next()
			if !ok {
				break
			}
			if overflow {
				out = append(out, "<overflow>")
			} else {
				out = append(out, string(line))
			}
		}
	}
	return out
}

func TestLines(t *testing.T) {
	x := func(n int) string { return strings.Repeat("x", n) }
	overflow := func(n int) []string { return slices.Repeat([]string{"<overflow>"}, n) }
	tests := []struct {
		name, in string
		want     []string
	}{
		{"nothing", "", nil},
		{"unfinished", "abc", nil},
		{"one", "abc\n", []string{"abc"}},
		{"empty", "\n\n", []string{"", ""}},
		{"carriage return is kept", "abc\r\n", []string{"abc\r"}},
		{"NUL is a byte like others", "a\x00b\nc\n", []string{"a\x00b", "c"}},
		{"two and a rest", "a\nb\nc", []string{"a", "b"}},
		{"longest", x(4094) + "\n", []string{x(4094)}},
		{"one too long", x(4095) + "\n", []string{"<overflow>", ""}},
		{"goes on after it", x(4095) + "abc\ndef\n", []string{"<overflow>", "abc", "def"}},
		{"16 times", x(65536) + "\n", append(overflow(16), x(16))},
		{"overflow without an end", x(3 * 4095), overflow(3)},
	}
	for _, tt := range tests {
		for _, sizes := range [][]int{{1}, {7}, {4095}, {4096}, {readSize}, {1, 4094, 4095, 2}} {
			t.Run(fmt.Sprintf("%s/%d", tt.name, sizes), func(t *testing.T) {
				if got := cut(t, []byte(tt.in), sizes...); !slices.Equal(got, tt.want) {
					t.Errorf("got %.60q, want %.60q", got, tt.want)
				}
			})
		}
	}
}

// How the input is cut into reads must not matter.
func TestLinesReadSizes(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for range 20 {
		var in bytes.Buffer
		for range 50 {
			in.WriteString(strings.Repeat("y", int(r.ExpFloat64()*1500)))
			in.WriteByte('\n')
		}
		want := cut(t, in.Bytes(), readSize)
		if got := cut(t, in.Bytes(), 1+r.IntN(5000), 1+r.IntN(100), 1+r.IntN(60000)); !slices.Equal(got, want) {
			t.Fatalf("seed %d: the cut depends on the sizes of reads", seed)
		}
	}
}
