// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package volta_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/seed5728abee/fathom/anycast/volta"
)

func newBlocks(t testing.TB, start, end, size int) *volta.Blocks {
	t.Helper()
	b, err := volta.NewBlocks(start, end, size)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestBlocksSequences has the sequences of the originals where they agree with sense: without releasing
// anything, until there is no block left.
func TestBlocksSequences(t *testing.T) {
	for _, tt := range []struct {
		start, end, size int
		want             []uint16
	}{
		{1000, 2000, 100, []uint16{1000, 1100, 1200, 1300, 1400, 1500, 1600, 1700, 1800, 1900}},
		{10000, 10400, 100, []uint16{10000, 10100, 10200, 10300}},
		{10000, 10250, 100, []uint16{10000, 10100}},
		{10, 250, 100, []uint16{10, 110}},
		{1000, 1100, 100, []uint16{1000}},
		{65436, 65536, 100, []uint16{65436}},
		{1, 3, 1, []uint16{1, 2}},
	} {
		t.Run(fmt.Sprintf("%d-%d in %d", tt.start, tt.end, tt.size), func(t *testing.T) {
			b := newBlocks(t, tt.start, tt.end, tt.size)
			if b.Len() != len(tt.want) || b.Size() != tt.size {
				t.Errorf("%d blocks of %d", b.Len(), b.Size())
			}
			for _, want := range tt.want {
				if got, err := b.Allocate(); err != nil || got != want {
					t.Fatalf("%d, %v; want %d", got, err, want)
				}
			}
			if got, err := b.Allocate(); !errors.Is(err, volta.ErrNoBlock) {
				t.Fatalf("behind the last: %d, %v", got, err)
			}
		})
	}
}

func TestAllocatePort(t *testing.T) {
	b := newBlocks(t, 1000, 1250, 100)
	if err := b.AllocatePort(1150); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		port uint16
		want error
	}{{1150, volta.ErrNoBlock}, {999, volta.ErrRange}, {1200, volta.ErrRange}, {0, volta.ErrRange}} {
		if err := b.AllocatePort(tt.port); !errors.Is(err, tt.want) {
			t.Errorf("port %d: %v, want %v", tt.port, err, tt.want)
		}
	}
	if first, err := b.Allocate(); err != nil || first != 1000 {
		t.Errorf("block %d, %v; want the one without the port", first, err)
	}
	if err := b.AllocatePort(1001); !errors.Is(err, volta.ErrNoBlock) {
		t.Errorf("in a block that is in use: %v", err)
	}
	b.Release(1150)
	if first, err := b.Allocate(); err != nil || first != 1100 {
		t.Errorf("block %d, %v; want the one whose port was released", first, err)
	}
}

func TestBlocksNextFit(t *testing.T) {
	b := newBlocks(t, 1000, 2000, 100)
	for _, want := range []uint16{1000, 1100, 1200, 1300, 1400, 1500, 1600, 1700, 1800, 1900, 1000} {
		got, err := b.Allocate()
		if err != nil || got != want {
			t.Fatalf("%d, %v; want %d", got, err, want)
		}
		b.Release(got)
	}

	b = newBlocks(t, 1000, 1400, 100)
	for range 4 {
		if _, err := b.Allocate(); err != nil {
			t.Fatal(err)
		}
	}
	b.Release(1100)
	if got, err := b.Allocate(); err != nil || got != 1100 {
		t.Fatalf("%d, %v; want the only free block", got, err)
	}
	b.Release(1100)
	b.Release(1300)
	if got, err := b.Allocate(); err != nil || got != 1300 {
		t.Fatalf("%d, %v; want 1300: the search goes on behind 1100", got, err)
	}
}

func TestBlocksRefuse(t *testing.T) {
	for _, r := range [][3]int{
		{0, 100, 10},
		{-5, 100, 10},
		{1, 65537, 10},
		{100, 100, 1},
		{200, 100, 10},
		{100, 200, 0},
		{100, 200, -1},
		{1000, 1100, 101},
	} {
		if _, err := volta.NewBlocks(r[0], r[1], r[2]); !errors.Is(err, volta.ErrRange) {
			t.Errorf("%d-%d in %d: %v", r[0], r[1], r[2], err)
		}
	}
	b := newBlocks(t, 100, 200, 10)
	for _, n := range []int{0, -1, 11} {
		if _, err := b.AllocatePorts(n); !errors.Is(err, volta.ErrRange) {
			t.Errorf("%d ports: %v", n, err)
		}
	}
}

// TestBlocksReleaseTwice: what was never given out, or was already given back, is nobody's.
func TestBlocksReleaseTwice(t *testing.T) {
	b := newBlocks(t, 100, 130, 10)
	whole, _ := b.Allocate()
	ports, _ := b.AllocatePorts(3)
	b.Release(ports)
	b.Release(ports)
	b.Release(whole + 1)
	b.Release(7)
	b.Release(65535)
	if got := b.InUse(); got != 10 {
		t.Errorf("%d ports in use, want the whole block's 10", got)
	}
	b.Release(whole)
	b.Release(whole)
	if got := b.InUse(); got != 0 {
		t.Errorf("%d ports in use, want none", got)
	}
}

func TestBlocksIndex(t *testing.T) {
	b := newBlocks(t, 10000, 10250, 100)
	for port, want := range map[uint16]int{10000: 0, 10099: 0, 10100: 1, 10199: 1} {
		if got, ok := b.Index(port); !ok || got != want {
			t.Errorf("%d: %d, %v; want %d", port, got, ok, want)
		}
	}
	for _, port := range []uint16{0, 9999, 10200, 10249, 65535} {
		if got, ok := b.Index(port); ok {
			t.Errorf("%d is in block %d", port, got)
		}
	}
}

// TestAllocatePortsShares fits a thousand measurements at once where a hundred blocks are, and leaves whole
// blocks to those who need them.
func TestAllocatePortsShares(t *testing.T) {
	b := newBlocks(t, 10000, 20000, 100)
	var ports []uint16
	for range 1000 {
		port, err := b.AllocatePorts(4)
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, port)
	}
	for i := range 60 {
		if _, err := b.Allocate(); err != nil {
			t.Fatalf("whole block %d beside 40 full ones: %v", i, err)
		}
	}
	if _, err := b.AllocatePorts(1); !errors.Is(err, volta.ErrNoBlock) {
		t.Errorf("one more port than there are: %v", err)
	}
	for _, port := range ports[:25] {
		b.Release(port)
	}
	if got, err := b.Allocate(); err != nil || got != 10000 {
		t.Errorf("the block that became empty: %d, %v", got, err)
	}
}

// TestAllocatePortsKeepsBlocks: measurements that go on and on must not end up with one port in every
// block.
func TestAllocatePortsKeepsBlocks(t *testing.T) {
	b := newBlocks(t, 1000, 2000, 100)
	for range 10 { // each leaves one port behind
		kept, err := b.AllocatePorts(1)
		if err != nil {
			t.Fatal(err)
		}
		rest, err := b.AllocatePorts(99)
		if err != nil {
			t.Fatal(err)
		}
		b.Release(rest)
		_ = kept
	}
	whole := 0
	for {
		if _, err := b.Allocate(); err != nil {
			break
		}
		whole++
	}
	if whole < 5 {
		t.Errorf("%d of 10 blocks are left for whole ones, want half", whole)
	}
}

// TestAllocatePortsLate: one measurement after the other sees every port before the first comes again.
func TestAllocatePortsLate(t *testing.T) {
	b := newBlocks(t, 1000, 1100, 10)
	seen := map[uint16]bool{}
	for range 100 {
		port, err := b.AllocatePorts(1)
		if err != nil {
			t.Fatal(err)
		}
		if seen[port] {
			t.Fatalf("port %d again after %d", port, len(seen))
		}
		seen[port] = true
		b.Release(port)
	}
}

func TestBlocksConcurrently(t *testing.T) {
	b := newBlocks(t, 1000, 2000, 10)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 200 {
				var port uint16
				var err error
				if i%2 == 0 {
					port, err = b.Allocate()
				} else {
					port, err = b.AllocatePorts(i)
				}
				if err != nil {
					t.Error(err)
					return
				}
				b.Release(port)
			}
		})
	}
	wg.Wait()
	if got := b.InUse(); got != 0 {
		t.Errorf("%d ports in use at the end", got)
	}
}

// TestBlocksModel runs any sequence of calls against a picture of the range: one flag per port.
func TestBlocksModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 12).Draw(t, "size")
		n := rapid.IntRange(1, 8).Draw(t, "blocks")
		start := rapid.IntRange(1, 65536-size*n).Draw(t, "start")
		partial := rapid.IntRange(0, min(size-1, 65536-start-size*n)).Draw(t, "partial")
		b, err := volta.NewBlocks(start, start+size*n+partial, size)
		if err != nil {
			t.Fatal(err)
		}
		used := make([]bool, size*n)
		held := map[uint16]int{}    // first port to number of ports
		next, portsUsed := 0, false // where Allocate searches, as long as nobody shares
		free := func(from, k int) bool { return !slices.Contains(used[from:from+k], true) }

		t.Repeat(map[string]func(*rapid.T){
			"allocate": func(t *rapid.T) {
				got, err := b.Allocate()
				want := -1
				for i := range n {
					if at := (next + i) % n; free(at*size, size) {
						want = at
						break
					}
				}
				if want < 0 {
					if !errors.Is(err, volta.ErrNoBlock) {
						t.Fatalf("%d, %v where no block is free", got, err)
					}
					return
				}
				at := (int(got) - start) / size
				switch {
				case err != nil:
					t.Fatalf("%v, but block %d is free", err, want)
				case (int(got)-start)%size != 0 || at >= n || !free(at*size, size):
					t.Fatalf("%d is no free block", got)
				case !portsUsed && at != want:
					t.Fatalf("block %d, want the next free one, %d", at, want)
				}
				next = (at + 1) % n
				held[got] = size
				for p := range size {
					used[at*size+p] = true
				}
			},
			"ports": func(t *rapid.T) {
				k := rapid.IntRange(1, size).Draw(t, "k")
				possible := false
				for at := range n * size {
					if at%size+k <= size && free(at, k) {
						possible = true
					}
				}
				got, err := b.AllocatePorts(k)
				if !possible {
					if !errors.Is(err, volta.ErrNoBlock) {
						t.Fatalf("%d, %v where no %d ports are free", got, err, k)
					}
					return
				}
				at := int(got) - start
				if err != nil || at < 0 || at+k > n*size || at%size+k > size || !free(at, k) {
					t.Fatalf("%d ports: %d, %v", k, got, err)
				}
				portsUsed = true
				held[got] = k
				for p := range k {
					used[at+p] = true
				}
			},
			"port": func(t *rapid.T) {
				at := rapid.IntRange(0, n*size-1).Draw(t, "at")
				// A block that is given out whole, and one whose ports are shared, look alike where they are full.
				_, whole := held[uint16(start+at/size*size)]
				whole = whole && held[uint16(start+at/size*size)] == size
				err := b.AllocatePort(uint16(start + at))
				switch {
				case used[at] || whole:
					if !errors.Is(err, volta.ErrNoBlock) {
						t.Fatalf("port %d: %v where it is in use", start+at, err)
					}
				case err != nil:
					t.Fatalf("port %d: %v, but it is free", start+at, err)
				default:
					portsUsed = true
					held[uint16(start+at)] = 1
					used[at] = true
				}
			},
			"release": func(t *rapid.T) {
				if len(held) == 0 {
					t.Skip("nothing to release")
				}
				ports := make([]uint16, 0, len(held))
				for port := range held {
					ports = append(ports, port)
				}
				slices.Sort(ports)
				port := rapid.SampledFrom(ports).Draw(t, "port")
				b.Release(port)
				at := int(port) - start
				clear(used[at : at+held[port]])
				delete(held, port)
			},
			"": func(t *rapid.T) {
				sum := 0
				for _, k := range held {
					sum += k
				}
				if got := b.InUse(); got != sum {
					t.Fatalf("%d ports in use, want %d", got, sum)
				}
			},
		})
	})
}

func BenchmarkAllocatePorts(b *testing.B) {
	blocks := newBlocks(b, 10000, 20000, 100)
	for range 2000 {
		if _, err := blocks.AllocatePorts(4); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		port, err := blocks.AllocatePorts(4)
		if err != nil {
			b.Fatal(err)
		}
		blocks.Release(port)
	}
}
