// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestWindow checks the window against a set that remembers everything.
func TestWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w window
		seen := map[uint64]bool{}
		highest := uint64(0)
		base := rapid.Uint64Range(0, 1<<40).Draw(t, "base")
		steps := rapid.SliceOfN(rapid.Int64Range(-5000, 700), 1, 300).Draw(t, "steps")
		at := base
		for _, step := range steps {
			at = uint64(max(int64(at)+step, 0))
			if rapid.IntRange(0, 50).Draw(t, "jump") == 0 {
				at += 10_000
			}
			old := len(seen) > 0 && highest >= at && highest-at >= windowSize
			want := !seen[at] && !old
			if got := w.fresh(at); got != want {
				t.Fatalf("counter %d, highest %d: fresh %v, want %v", at, highest, got, want)
			}
			if want {
				first := len(seen) == 0 || at > highest
				if w.mark(at) != first {
					t.Fatalf("counter %d, highest %d: highest so far? want %v", at, highest, first)
				}
				seen[at] = true
				highest = max(highest, at)
			}
		}
	})
}

// TestParts puts frames together from parts in any order, with others between.
func TestParts(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	now := time.Unix(0, 0)
	var a assemblies
	type piece struct {
		h    partHeader
		data []byte
	}
	var pieces []piece
	frames := map[uint32][]byte{}
	for id, total := range map[uint32]int{1: minFrame, 2: 1500, 3: maxFrame, 4: 40_000, 5: 800} {
		data := make([]byte, total)
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		frames[id] = data
		h := partHeader{frame: id, total: uint32(total), size: minPart}
		for at := 0; at < total; at += minPart {
			p := piece{h, data[at:min(at+minPart, total)]}
			pieces = append(pieces, p, p)
			h.index++
		}
	}
	rng.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
	for _, p := range pieces {
		frame, lost, _ := a.add(0, p.h, p.data, now)
		if lost != 0 {
			t.Fatal("a frame was lost")
		}
		if frame == nil {
			continue
		}
		if string(frame) != string(frames[p.h.frame]) {
			t.Errorf("frame %d differs", p.h.frame)
		}
		delete(frames, p.h.frame)
	}
	if len(frames) != 0 || len(a.open) != 0 || a.bytes != 0 {
		t.Errorf("%d frames are missing, %d open", len(frames), len(a.open))
	}
	// Incomplete ones go after three seconds, or when there is no room.
	h := partHeader{frame: 100, total: maxFrame, size: 1000}
	part := make([]byte, 1000)
	a.add(0, h, part, now)
	if n := a.expire(now.Add(partTimeout - 1)); n != 0 {
		t.Error("lost too early")
	}
	if n := a.expire(now.Add(partTimeout)); n != 1 || a.bytes != 0 {
		t.Error("not lost in time")
	}
	lost := 0
	for range 100 {
		h.frame++
		_, n, _ := a.add(0, h, part, now)
		lost += n
		if a.bytes > maxAssembling {
			t.Fatalf("%d bytes", a.bytes)
		}
	}
	if lost != 100-maxAssembling/maxFrame {
		t.Errorf("%d lost", lost)
	}
}

// Neither frames in parts nor a flood of parts that never become one take new memory for each.
func TestPartsReuseMemory(t *testing.T) {
	var a assemblies
	now := time.Unix(0, 0)
	part := make([]byte, minPart)
	h := partHeader{total: 2 * minPart, size: minPart}
	whole := func() {
		h.frame++
		for h.index = range 2 {
			a.add(0, h, part, now)
		}
	}
	lone := partHeader{total: maxFrame, size: minPart}
	lost := func() {
		lone.frame--
		a.add(0, lone, part, now)
	}
	for name, f := range map[string]func(){"whole": whole, "lost": lost} {
		for range 2 * maxAssemblies {
			f()
		}
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations for each frame", name, n)
		}
	}
	if a.tick(now.Add(partTimeout)); a.open != nil || a.spare != nil {
		t.Error("memory is kept")
	}
}

func TestLimit(t *testing.T) {
	l := newLimit(10, 5)
	now := time.Unix(0, 0)
	passed := 0
	for range 1000 { // in 10 seconds
		if l.allow(now) {
			passed++
		}
		now = now.Add(10 * time.Millisecond)
	}
	if passed < 103 || passed > 105 {
		t.Errorf("%d passed", passed)
	}
}
