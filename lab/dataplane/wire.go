// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// Direction is a direction of a wire.
type Direction uint8

// Directions.
const (
	Forward  Direction = iota // from the first end to the second
	Backward                  // from the second end to the first
)

// String names the direction.
func (d Direction) String() string {
	switch d {
	case Forward:
		return "forward"
	case Backward:
		return "backward"
	}
	return fmt.Sprintf("Direction(%d)", uint8(d))
}

// WireConfig says what a wire is. Its zero value is a perfect wire.
type WireConfig struct {
	Name     string // appears in errors
	Forward  Params
	Backward Params
	// Seed of the random choices; each direction has its own sequence.
	Seed uint64
}

// Params is what one direction of a wire does to frames. The zero value is a
// perfect wire. A frame meets, in this order: the queue before the transmitter
// (Rate, QueueBytes), loss, corruption, duplication, and the way (Delay, Jitter, Reorder).
//
// Probabilities are per frame, from 0 to 1, and independent of each other.
type Params struct {
	// Delay is the time from one end to the other, counted from when the
	// kernel took the frame from the sender (so the engine's own latency is
	// part of it, not added to it) and from the end of its transmission when
	// there is a Rate.
	Delay time.Duration
	// Jitter varies Delay by frame: the standard deviation of a normal
	// distribution, or half the width of a uniform one. The way never takes
	// less than no time, and a frame never overtakes another because of Jitter:
	// it arrives with it at the earliest.
	Jitter time.Duration
	// JitterUniform chooses the uniform distribution.
	JitterUniform bool
	// Loss is the probability that a frame vanishes.
	Loss float64
	// LossEvery loses every n-th frame, besides Loss: a pattern to count on in tests.
	// 0 is none.
	LossEvery uint64
	// Reorder is the probability that a frame overtakes those before it: it
	// skips Delay and Jitter. So without Delay there is nothing to overtake.
	Reorder float64
	// Duplicate is the probability that a frame arrives twice in a row.
	Duplicate float64
	// Corrupt is the probability that one bit of a frame, somewhere, flips.
	Corrupt float64
	// Rate is the transmitter's speed in bits per second of frame data (no
	// preamble, check sequence or gap). 0 is no limit.
	Rate float64
	// QueueBytes bounds what waits for the transmitter, the frame in
	// transmission included; a frame that does not fit is dropped (tail drop),
	// unless nothing else waits. Default: 50 ms of Rate, at least 64 KiB.
	QueueBytes int
	// MaxInFlight bounds the frames on their way, a matter of memory (each
	// takes 256 or 2048 bytes). Default 65536.
	MaxInFlight int
}

// Bounds that validate enforces.
const (
	maxDelay        = time.Hour
	maxRate         = 1e13
	minQueueBytes   = 64 << 10
	defaultInFlight = 1 << 16
)

// ErrParams is wrapped in the error for parameters that make no sense.
var ErrParams = errors.New("invalid wire parameters")

func (p *Params) validate() error {
	for _, d := range []struct {
		name string
		d    time.Duration
	}{{"delay", p.Delay}, {"jitter", p.Jitter}} {
		if d.d < 0 || d.d > maxDelay {
			return fmt.Errorf("%w: %s %v is not within 0 and %v", ErrParams, d.name, d.d, maxDelay)
		}
	}
	for _, f := range []struct {
		name string
		p    float64
	}{{"loss", p.Loss}, {"reorder", p.Reorder}, {"duplicate", p.Duplicate}, {"corrupt", p.Corrupt}} {
		if !(f.p >= 0 && f.p <= 1) { // NaN fails too
			return fmt.Errorf("%w: %s %v is not within 0 and 1", ErrParams, f.name, f.p)
		}
	}
	if !(p.Rate >= 0 && p.Rate <= maxRate) {
		return fmt.Errorf("%w: rate %v is not within 0 and %g bit/s", ErrParams, p.Rate, maxRate)
	}
	if p.QueueBytes < 0 || p.MaxInFlight < 0 {
		return fmt.Errorf("%w: queue of %d bytes, %d frames in flight", ErrParams, p.QueueBytes, p.MaxInFlight)
	}
	return nil
}

// WireCounters counts the frames of one direction of a wire.
type WireCounters struct {
	Frames     uint64 // that entered
	Bytes      uint64 // of these frames
	Delivered  uint64 // that left, copies included
	Lost       uint64 // by Loss and LossEvery
	Corrupted  uint64
	Duplicated uint64
	Reordered  uint64
	QueueDrops uint64 // did not fit QueueBytes or MaxInFlight
	Oversize   uint64 // longer than the interface takes: offloads of the sender are on
	SendErrors uint64 // refused by the interface at the far end
}

// line is one direction of a wire: pure, its time is handed in.
type line struct {
	p        Params
	rng      *rand.Rand
	queue    schedule
	free     time.Duration // when the transmitter will be idle
	lastWay  time.Duration // latest arrival among the frames that keep their order
	counters WireCounters
}

func newLine(p Params, seed uint64, d Direction) *line {
	return &line{p: p, rng: rand.New(rand.NewPCG(seed, uint64(d)))}
}

// fate is what happens to one frame.
type fate struct {
	deliver bool
	twice   bool
	flip    int // bit to flip, or -1
	at      time.Duration
}

// decide draws the fate of a frame of size bytes that enters at at. Calls come
// in the order of at, but for what clocks differ.
func (l *line) decide(at time.Duration, size int) fate {
	p := &l.p
	l.counters.Frames++
	l.counters.Bytes += uint64(size)

	out := at
	if p.Rate > 0 {
		perByte := 8e9 / p.Rate // ns
		backlog := max(0, l.free-at)
		limit := float64(p.QueueBytes)
		if p.QueueBytes == 0 {
			limit = max(minQueueBytes, 0.05*p.Rate/8)
		}
		if backlog > 0 && float64(backlog)/perByte+float64(size) > limit {
			l.counters.QueueDrops++
			return fate{}
		}
		out = at + backlog + time.Duration(math.Round(float64(size)*perByte))
		l.free = out
	}
	if l.queue.len() >= l.maxInFlight() {
		l.counters.QueueDrops++
		return fate{}
	}
	if p.LossEvery > 0 && l.counters.Frames%p.LossEvery == 0 || l.chance(p.Loss) {
		l.counters.Lost++
		return fate{}
	}
	f := fate{deliver: true, flip: -1, at: out}
	if l.chance(p.Corrupt) && size > 0 {
		l.counters.Corrupted++
		f.flip = l.rng.IntN(size * 8)
	}
	if l.chance(p.Duplicate) {
		l.counters.Duplicated++
		f.twice = true
	}
	if l.chance(p.Reorder) && p.Delay > 0 {
		l.counters.Reordered++
		return f
	}
	way := p.Delay
	if p.Jitter > 0 {
		var x float64
		if p.JitterUniform {
			x = 2*l.rng.Float64() - 1
		} else {
			x = l.rng.NormFloat64()
		}
		way = max(0, way+time.Duration(x*float64(p.Jitter)))
	}
	f.at = max(out+way, l.lastWay)
	l.lastWay = f.at
	return f
}

func (l *line) maxInFlight() int {
	if l.p.MaxInFlight > 0 {
		return l.p.MaxInFlight
	}
	return defaultInFlight
}

// chance draws only when there is something to decide, so that the sequence of
// a wire does not depend on what it does not do.
func (l *line) chance(p float64) bool { return p > 0 && (p >= 1 || l.rng.Float64() < p) }

// set changes the parameters. Frames on their way keep their time. Those that
// come later may overtake them, as after a change of route.
func (l *line) set(p Params) {
	l.p = p
	l.lastWay = 0
	if p.Rate == 0 {
		l.free = 0
	}
}

// enter puts a frame, seen at now to have entered at at, on its way. Frames
// that have arrived are given to emit, in order; such a frame may be data itself, which
// is not copied then. A line that reorders has them wait for leave, because those that overtake them may be seen next.
func (l *line) enter(now, at time.Duration, data []byte, pool *bufferPool, emit func([]byte, bool)) {
	f := l.decide(at, len(data))
	if !f.deliver {
		return
	}
	if f.flip >= 0 {
		data[f.flip/8] ^= 1 << (f.flip % 8)
	}
	copies := 1
	if f.twice {
		copies = 2
	}
	if f.at <= now && l.p.Reorder == 0 {
		l.leave(f.at, emit)
		for range copies {
			l.counters.Delivered++
			emit(data, false)
		}
		return
	}
	for range copies {
		l.queue.push(scheduled{at: f.at, data: pool.copy(data)})
	}
}

// leave gives emit the frames that have arrived by now.
func (l *line) leave(now time.Duration, emit func(data []byte, pooled bool)) {
	for l.queue.len() > 0 && l.queue.items[0].at <= now {
		l.counters.Delivered++
		emit(l.queue.pop().data, true)
	}
}
