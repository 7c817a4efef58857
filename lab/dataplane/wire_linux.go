// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
)

// Wire joins two interfaces.
type Wire struct {
	name   string
	engine *Engine
	ways   [2]way // by Direction; guarded by the engine's mu
}

// way is one direction of a wire and where it ends.
type way struct {
	line *line
	to   *port
	emit func(data []byte, pooled bool) // to.send, made once
}

// AddWire joins two interfaces by a wire. The engine owns the FrameConns from
// here on, also when AddWire fails. Errors: [ErrParams], [net.ErrClosed].
func (e *Engine) AddWire(ends [2]*rawio.FrameConn, cfg WireConfig) (*Wire, error) {
	w, err := e.addWire(ends, cfg)
	if err != nil {
		for _, c := range ends {
			c.Close()
		}
		return nil, fmt.Errorf("wire %s: %w", cfg.Name, err)
	}
	e.poller.Wake()
	return w, nil
}

func (e *Engine) addWire(ends [2]*rawio.FrameConn, cfg WireConfig) (*Wire, error) {
	for _, p := range []*Params{&cfg.Forward, &cfg.Backward} {
		if err := p.validate(); err != nil {
			return nil, err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, net.ErrClosed
	}
	w := &Wire{name: cfg.Name, engine: e}
	a, b := e.addPort(ends[0]), e.addPort(ends[1])
	w.ways[Forward] = newWay(cfg.Forward, cfg.Seed, Forward, b)
	w.ways[Backward] = newWay(cfg.Backward, cfg.Seed, Backward, a)
	a.handle = w.ways[Forward].enter
	b.handle = w.ways[Backward].enter
	e.wires = append(e.wires, w)
	return w, nil
}

func newWay(p Params, seed uint64, d Direction, to *port) way {
	l := newLine(p, seed, d)
	to.sendErrors = &l.counters.SendErrors
	return way{line: l, to: to, emit: to.send}
}

func (y *way) enter(now, at time.Duration, f *rawio.Frame) {
	if f.Truncated {
		y.line.counters.Frames++
		y.line.counters.Oversize++
		return
	}
	y.line.enter(now, at, f.Data, &y.to.engine.pool, y.emit)
}

// release sends what has arrived and returns when the next frame does, negative for never.
func (w *Wire) release(now time.Duration) time.Duration {
	next := time.Duration(-1)
	for i := range w.ways {
		y := &w.ways[i]
		if y.line.queue.len() == 0 {
			continue
		}
		y.line.leave(now, y.emit)
		if y.line.queue.len() > 0 {
			next = earlier(next, y.line.queue.items[0].at)
		}
	}
	return next
}

// Set changes what the wire does from now on; frames on their way keep their
// time. The seed's sequence goes on. Error: [ErrParams].
func (w *Wire) Set(d Direction, p Params) error {
	if err := p.validate(); err != nil {
		return fmt.Errorf("wire %s: %w", w.name, err)
	}
	if d > Backward {
		return fmt.Errorf("wire %s: %w: %v", w.name, ErrParams, d)
	}
	w.engine.mu.Lock()
	defer w.engine.mu.Unlock()
	w.ways[d].line.set(p)
	return nil
}

// Params returns what the wire does at present.
func (w *Wire) Params(d Direction) Params {
	w.engine.mu.Lock()
	defer w.engine.mu.Unlock()
	return w.ways[d].line.p
}

// Counters returns the counts since the wire was added.
func (w *Wire) Counters(d Direction) WireCounters {
	w.engine.mu.Lock()
	defer w.engine.mu.Unlock()
	return w.ways[d].line.counters
}

// Name is the name the wire was given.
func (w *Wire) Name() string { return w.name }
