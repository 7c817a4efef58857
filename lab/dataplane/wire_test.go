// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"testing"
	"time"
)

const ms = time.Millisecond

// arrival is a frame that left a line.
type arrival struct {
	at time.Duration
	id byte
}

// carry sends n frames of size bytes into a line, one every gap, and returns
// what comes out and when. The first byte of a frame is its number.
func carry(l *line, n, size int, gap time.Duration) (got []arrival) {
	var pool bufferPool
	var now time.Duration
	emit := func(data []byte, pooled bool) {
		got = append(got, arrival{now, data[0]})
		if pooled {
			pool.put(data)
		}
	}
	leaveUntil := func(end time.Duration) {
		for l.queue.len() > 0 && l.queue.items[0].at <= end {
			now = l.queue.items[0].at
			l.leave(now, emit)
		}
	}
	for i := range n {
		at := time.Duration(i) * gap
		leaveUntil(at)
		now = at
		data := make([]byte, size)
		data[0] = byte(i)
		l.enter(now, at, data, &pool, emit)
	}
	leaveUntil(math.MaxInt64)
	return got
}

func TestLineDelay(t *testing.T) {
	l := newLine(Params{Delay: 5 * ms}, 1, Forward)
	for i, a := range carry(l, 20, 60, ms) {
		if want := (arrival{time.Duration(i)*ms + 5*ms, byte(i)}); a != want {
			t.Fatalf("arrival %d is %+v, want %+v", i, a, want)
		}
	}
	if c := l.counters; c.Frames != 20 || c.Bytes != 1200 || c.Delivered != 20 {
		t.Errorf("counters %+v", c)
	}
}

// TestLineLate: a frame that is seen late does not arrive later.
func TestLineLate(t *testing.T) {
	l := newLine(Params{Delay: 5 * ms}, 1, Forward)
	l.enter(13*ms, 10*ms, []byte{1}, new(bufferPool), nil)
	if at := l.queue.items[0].at; at != 15*ms {
		t.Errorf("a frame stamped 10ms, seen at 13ms, arrives at %v over a wire of 5ms", at)
	}
	// Seen after its arrival, it leaves at once, behind those before it.
	var order []byte
	l.enter(20*ms, 12*ms, []byte{2}, new(bufferPool), func(d []byte, _ bool) { order = append(order, d[0]) })
	if !slices.Equal(order, []byte{1, 2}) {
		t.Errorf("order %v, want 1 2", order)
	}
}

func TestLineLoss(t *testing.T) {
	l := newLine(Params{LossEvery: 3}, 1, Forward)
	var ids []byte
	for _, a := range carry(l, 9, 60, ms) {
		ids = append(ids, a.id)
	}
	if want := []byte{0, 1, 3, 4, 6, 7}; !slices.Equal(ids, want) {
		t.Errorf("LossEvery 3 leaves %v, want %v", ids, want)
	}

	const n, p = 100000, 0.2
	l = newLine(Params{Loss: p}, 42, Forward)
	got := len(carry(l, n, 1, 0))
	// 6 standard deviations of the binomial distribution: chance 2e-9, and the seed is fixed.
	if d := math.Abs(float64(got) - n*(1-p)); d > 6*math.Sqrt(n*p*(1-p)) {
		t.Errorf("loss %v of %d leaves %d", p, n, got)
	}
	if c := l.counters; c.Lost+c.Delivered != n || int(c.Delivered) != got {
		t.Errorf("counters %+v", c)
	}
}

func TestLineRate(t *testing.T) {
	// 1000 bytes at 8 Mbit/s: 1 ms each. The queue holds 5 frames.
	l := newLine(Params{Rate: 8e6, QueueBytes: 5000, Delay: 2 * ms}, 1, Forward)
	got := carry(l, 10, 1000, 0)
	if len(got) != 5 || l.counters.QueueDrops != 5 {
		t.Fatalf("%d frames arrived, %d dropped; want 5 and 5", len(got), l.counters.QueueDrops)
	}
	for i, a := range got {
		if want := time.Duration(i+1)*ms + 2*ms; a.at != want || a.id != byte(i) {
			t.Errorf("arrival %d: %+v, want at %v", i, a, want)
		}
	}
	// Two frames per ms at a rate of one per ms: half get through, back to back.
	l = newLine(Params{Rate: 8e6, QueueBytes: 3000}, 1, Forward)
	got = carry(l, 200, 1000, ms/2)
	if n := len(got); n < 100 || n > 104 {
		t.Errorf("%d of 200 frames at twice the rate arrived", n)
	}
	for i := 1; i < len(got); i++ {
		if d := got[i].at - got[i-1].at; d != ms {
			t.Fatalf("arrivals %d and %d are %v apart, want 1ms", i-1, i, d)
		}
	}
	// A frame larger than the queue passes when nothing else waits.
	l = newLine(Params{Rate: 8e6, QueueBytes: 100}, 1, Forward)
	if got := carry(l, 3, 1000, 2*ms); len(got) != 3 {
		t.Errorf("%d of 3 large frames arrived", len(got))
	}
}

func TestLineJitter(t *testing.T) {
	const n = 20000
	for _, uniform := range []bool{false, true} {
		l := newLine(Params{Delay: 50 * ms, Jitter: 5 * ms, JitterUniform: uniform}, 7, Forward)
		var sum, squares, least, most float64
		least = math.Inf(1)
		for i, a := range carry(l, n, 1, time.Second) { // far apart: order plays no part
			d := float64(a.at-time.Duration(i)*time.Second) / float64(ms)
			sum, squares = sum+d, squares+d*d
			least, most = min(least, d), max(most, d)
		}
		mean := sum / n
		deviation := math.Sqrt(squares/n - mean*mean)
		want := 5.0
		if uniform {
			want = 5 / math.Sqrt(3)
			if least < 45 || most > 55 {
				t.Errorf("uniform jitter of 5ms: delays from %v to %v ms", least, most)
			}
		}
		if math.Abs(mean-50) > 0.3 || math.Abs(deviation-want) > 0.2 {
			t.Errorf("uniform %v: mean %.3f ms, deviation %.3f ms; want 50 and %.3f", uniform, mean, deviation, want)
		}
	}
	// Close together, they keep their order, and never arrive before they were sent.
	l := newLine(Params{Delay: ms, Jitter: 5 * ms}, 7, Forward)
	got := carry(l, 200, 1, ms/10)
	for i, a := range got {
		if a.id != byte(i) {
			t.Fatalf("arrival %d is frame %d", i, a.id)
		}
		if a.at < time.Duration(i)*ms/10 {
			t.Fatalf("frame %d arrives at %v, before it was sent", i, a.at)
		}
	}
}

func TestLineReorder(t *testing.T) {
	l := newLine(Params{Delay: 10 * ms, Reorder: 0.1}, 3, Forward)
	got := carry(l, 250, 1, ms)
	if len(got) != 250 {
		t.Fatalf("%d of 250 arrived", len(got))
	}
	overtook := 0
	var latest byte
	for _, a := range got {
		switch a.at - time.Duration(a.id)*ms {
		case 0:
			overtook++
		case 10 * ms:
			if a.id < latest {
				t.Fatalf("frame %d, which skipped nothing, came after %d", a.id, latest)
			}
			latest = a.id
		default:
			t.Fatalf("frame %d took %v", a.id, a.at-time.Duration(a.id)*ms)
		}
	}
	if overtook != int(l.counters.Reordered) || overtook < 10 || overtook > 45 {
		t.Errorf("%d frames skipped the delay, %d counted; want about 25", overtook, l.counters.Reordered)
	}
}

// TestLineReorderLate: also of frames that are all seen after their arrival, some overtake others.
func TestLineReorderLate(t *testing.T) {
	l := newLine(Params{Delay: 20 * ms, Reorder: 0.3}, 3, Forward)
	var pool bufferPool
	var order []byte
	emit := func(d []byte, _ bool) { order = append(order, d[0]) }
	for i := range 50 {
		l.enter(100*ms, time.Duration(i)*time.Microsecond, []byte{byte(i)}, &pool, emit)
	}
	l.leave(100*ms, emit)
	if first := int(l.counters.Reordered); len(order) != 50 || !slices.IsSorted(order[:first]) || !slices.IsSorted(order[first:]) || slices.IsSorted(order) {
		t.Errorf("%d of 50 in the order %v, want %d ahead of the others", len(order), order, first)
	}
}

func TestLineDuplicateCorrupt(t *testing.T) {
	l := newLine(Params{Duplicate: 1}, 3, Forward)
	if got := carry(l, 2, 10, ms); len(got) != 4 || got[0] != got[1] || got[2] != got[3] {
		t.Errorf("Duplicate 1: %v", got)
	}
	for _, delay := range []time.Duration{0, ms} {
		l = newLine(Params{Corrupt: 1, Delay: delay}, 3, Forward)
		flipped := map[int]bool{}
		for range 2000 {
			data := make([]byte, 4)
			emit := func(d []byte, _ bool) {
				n, where := 0, 0
				for i, b := range d {
					n += bits.OnesCount8(b)
					if b != 0 {
						where = i*8 + bits.TrailingZeros8(b)
					}
				}
				if n != 1 {
					t.Fatalf("Corrupt flipped %d bits: %x", n, d)
				}
				flipped[where] = true
			}
			l.enter(0, 0, data, new(bufferPool), emit)
			l.leave(time.Hour, emit)
		}
		if len(flipped) != 32 {
			t.Errorf("of 32 bits, %d were ever flipped", len(flipped))
		}
	}
}

// TestLineRepeats: the same seed is the same fate, another seed or direction is another.
func TestLineRepeats(t *testing.T) {
	p := Params{Delay: 3 * ms, Jitter: ms, Loss: 0.1, Reorder: 0.1, Duplicate: 0.1, Corrupt: 0.1, Rate: 1e7}
	run := func(seed uint64, d Direction) []arrival { return carry(newLine(p, seed, d), 200, 100, ms/10) }
	a := run(5, Forward)
	if b := run(5, Forward); !slices.Equal(a, b) {
		t.Error("two runs with one seed differ")
	}
	if b := run(6, Forward); slices.Equal(a, b) {
		t.Error("two seeds give the same run")
	}
	if b := run(5, Backward); slices.Equal(a, b) {
		t.Error("both directions give the same run")
	}
}

func TestLineSet(t *testing.T) {
	l := newLine(Params{Delay: 100 * ms}, 1, Forward)
	var pool bufferPool
	l.enter(0, 0, []byte{1}, &pool, nil)
	l.set(Params{Delay: ms})
	l.enter(10*ms, 10*ms, []byte{2}, &pool, nil)
	var order []byte
	for range 2 {
		l.leave(l.queue.items[0].at, func(d []byte, _ bool) { order = append(order, d[0]) })
	}
	if !slices.Equal(order, []byte{2, 1}) {
		t.Errorf("order %v after the wire became shorter, want 2 1", order)
	}
}

func TestLineMaxInFlight(t *testing.T) {
	l := newLine(Params{Delay: time.Second, MaxInFlight: 10}, 1, Forward)
	if got := carry(l, 20, 60, 0); len(got) != 10 || l.counters.QueueDrops != 10 {
		t.Errorf("%d arrived, %d dropped; want 10 and 10", len(got), l.counters.QueueDrops)
	}
}

func TestParamsValidate(t *testing.T) {
	good := []Params{{}, {Loss: 1}, {Delay: time.Hour, Rate: 1e10}}
	bad := []Params{
		{Loss: -0.1},
		{Loss: 1.1},
		{Duplicate: math.NaN()},
		{Reorder: 2},
		{Corrupt: -1},
		{Delay: -1},
		{Jitter: -1},
		{Delay: 2 * time.Hour},
		{Rate: -1},
		{Rate: math.Inf(1)},
		{Rate: math.NaN()},
		{QueueBytes: -1},
		{MaxInFlight: -1},
	}
	for _, p := range good {
		if err := p.validate(); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
	}
	for _, p := range bad {
		if err := p.validate(); !errors.Is(err, ErrParams) {
			t.Errorf("%+v: %v, want ErrParams", p, err)
		}
	}
}

func TestScheduleOrder(t *testing.T) {
	var s schedule
	var want []scheduled
	for i := range 1000 {
		f := scheduled{at: time.Duration(i * 7919 % 101), port: i}
		s.push(f)
		f.seq = uint64(i + 1)
		want = append(want, f)
	}
	slices.SortStableFunc(want, func(a, b scheduled) int { return int(a.at - b.at) })
	for i := range want {
		if got := s.pop(); got.port != want[i].port {
			t.Fatalf("pop %d is frame %d, want %d", i, got.port, want[i].port)
		}
	}
}

func TestLineAllocs(t *testing.T) {
	l := newLine(Params{Delay: ms, Jitter: ms / 2, Loss: 0.01, Duplicate: 0.01, Reorder: 0.01, Corrupt: 0.01, Rate: 1e9}, 1, Forward)
	var pool bufferPool
	data := make([]byte, 100)
	emit := func(d []byte, pooled bool) {
		if pooled {
			pool.put(d)
		}
	}
	now := time.Duration(0)
	step := func() {
		now += 10 * time.Microsecond
		l.leave(now, emit)
		l.enter(now, now, data, &pool, emit)
	}
	for range 10000 {
		step()
	}
	if n := testing.AllocsPerRun(10000, step); n != 0 {
		t.Errorf("%v allocations per frame, want 0", n)
	}
}

func BenchmarkLine(b *testing.B) {
	for _, p := range []Params{{}, {Delay: 10 * ms}, {Delay: 10 * ms, Jitter: ms, Loss: 0.01, Rate: 1e9}} {
		b.Run(fmt.Sprintf("delay=%v,jitter=%v", p.Delay, p.Jitter), func(b *testing.B) {
			l := newLine(p, 1, Forward)
			var pool bufferPool
			data := make([]byte, 100)
			emit := func(d []byte, pooled bool) {
				if pooled {
					pool.put(d)
				}
			}
			now := time.Duration(0)
			b.ReportAllocs()
			for b.Loop() {
				now += 5 * time.Microsecond
				l.leave(now, emit)
				l.enter(now, now, data, &pool, emit)
			}
		})
	}
}
