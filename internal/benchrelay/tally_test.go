// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"testing"
)

func TestTally(t *testing.T) {
	tests := []struct {
		name                   string
		arrive                 []uint32
		lost, copies, disorder int
	}{
		{"all", []uint32{0, 1, 2, 3}, 0, 0, 0},
		{"none", nil, 4, 0, 0},
		{"lost in the middle", []uint32{0, 3}, 2, 0, 0},
		{"twice", []uint32{0, 1, 1, 2, 3, 0}, 0, 2, 0},
		{"late", []uint32{0, 2, 3, 1}, 0, 0, 1},
		{"a copy of a late one", []uint32{2, 1, 1, 0, 3}, 0, 1, 2},
		{"beyond the end", []uint32{0, 1, 2, 3, 4, 1 << 31}, 0, 0, 0},
	}
	var y tally
	b := make([]byte, headerLen)
	for _, tt := range tests {
		y.begin(7, 4)
		for i, n := range tt.arrive {
			putHeader(b, 7, n, 1000+int64(i))
			want := 1000 + int64(i)
			if n >= 4 {
				want = 0
			}
			if got := y.take(b, 5000); got != want {
				t.Errorf("%s: payload %d: sent at %d, want %d", tt.name, i, got, want)
			}
		}
		putHeader(b, 6, 0, 1) // of an earlier run
		if y.take(b, 6000) != 0 || y.take(b[:headerLen-1], 6000) != 0 || y.take(nil, 6000) != 0 {
			t.Errorf("%s: took what is none of this run", tt.name)
		}
		if y.lost() != tt.lost || y.copies != tt.copies || y.disorder != tt.disorder {
			t.Errorf("%s: got %v; want %d lost, %d copies, %d out of order", tt.name, &y, tt.lost, tt.copies, tt.disorder)
		}
		if exact := tt.lost+tt.copies+tt.disorder == 0; y.exact() != exact {
			t.Errorf("%s: exact is %t, want %t", tt.name, y.exact(), exact)
		}
	}
}

func TestHighest(t *testing.T) {
	for _, tt := range []struct {
		name             string
		limit, generator float64
		low, high        float64
	}{
		{"above the first", 73_000, 1e9, 69_000, 73_000},
		{"below the first", 1_300, 1e9, 1_230, 1_300},
		{"more than can be sent", 1e9, 50_000, 50_000, 50_000},
		{"never", 0, 1e9, 0, 0},
	} {
		hiccup := true
		got, err := highest(8000, func(rate float64) (float64, bool, error) {
			reached := min(rate, tt.generator)
			if hiccup = !hiccup; hiccup {
				return reached, reached <= tt.limit, nil
			}
			return reached, false, nil // a pause of the machine, every other time
		})
		if err != nil || got < tt.low || got > tt.high {
			t.Errorf("%s: got %.0f, %v; want %.0f to %.0f", tt.name, got, err, tt.low, tt.high)
		}
	}
	broken := errors.New("broken")
	if _, err := highest(1, func(float64) (float64, bool, error) { return 0, false, broken }); !errors.Is(err, broken) {
		t.Errorf("got %v, want the error of a try", err)
	}
}
