// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/trace"
)

// mtrSession runs a continuous trace that can be started anew with other settings. Its methods
// are called from one goroutine, except those of its history.
type mtrSession struct {
	via  trace.Via
	req  probe.Request
	opts trace.ContinuousOptions

	trace   *trace.Continuous
	history *mtrHistory
	cancel  context.CancelFunc
	ended   chan error // has the result of the trace's Run when it has ended
	paused  bool
}

// start begins to trace. The trace before it must have been stopped.
func (s *mtrSession) start(ctx context.Context) error {
	history := &mtrHistory{hops: make(map[int][]mtrCell)}
	opts := s.opts
	opts.OnSend, opts.OnReply = history.sent, history.reply
	t, err := trace.NewContinuous(s.via, s.req, opts)
	if err != nil {
		return err
	}
	if s.paused {
		t.Pause()
	}
	ctx, cancel := context.WithCancel(ctx)
	s.trace, s.history, s.cancel = t, history, cancel
	s.ended = make(chan error, 1)
	go func() { s.ended <- t.Run(ctx) }()
	return nil
}

// stop ends the trace and waits for it. What it has measured stays readable.
func (s *mtrSession) stop() {
	s.cancel()
	s.ended <- <-s.ended
}

// over tells whether the trace has ended by itself, and its error.
func (s *mtrSession) over() (bool, error) {
	select {
	case err := <-s.ended:
		s.ended <- err
		return true, err
	default:
		return false, nil
	}
}

// change starts anew with settings that set makes. If the trace refuses them, it goes on
// with the old ones.
func (s *mtrSession) change(ctx context.Context, set func(*probe.Request, *trace.ContinuousOptions)) error {
	req, opts := s.req, s.opts
	set(&s.req, &s.opts)
	if _, err := trace.NewContinuous(s.via, s.req, s.opts); err != nil {
		s.req, s.opts = req, opts
		return err
	}
	s.stop()
	return s.start(ctx)
}

func (s *mtrSession) pause(paused bool) {
	s.paused = paused
	if paused {
		s.trace.Pause()
	} else {
		s.trace.Resume()
	}
}

func (s *mtrSession) reset() {
	s.trace.Reset()
	s.history.clear()
}

// wait waits for the end of the trace. That ctx has ended is no error.
func (s *mtrSession) wait(ctx context.Context) error {
	err := <-s.ended
	s.ended <- err
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// mtrCell is one probe in the history of a hop.
type mtrCell struct {
	number uint64
	status probe.Status // 0 while it is in flight
	rtt    time.Duration
}

// mtrHistoryLength is how many probes per hop are kept: more than any terminal is wide.
const mtrHistoryLength = 1000

// mtrHistory keeps the latest probes of each hop, for the charts.
type mtrHistory struct {
	mu   sync.Mutex
	hops map[int][]mtrCell // by TTL, oldest first
}

func (h *mtrHistory) sent(ttl int, number uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	cells := h.hops[ttl]
	if len(cells) >= mtrHistoryLength {
		cells = append(cells[:0], cells[1:]...)
	}
	h.hops[ttl] = append(cells, mtrCell{number: number})
}

func (h *mtrHistory) reply(number uint64, r probe.Result) {
	h.mu.Lock()
	defer h.mu.Unlock()
	cells := h.hops[int(r.TTL)]
	for i := len(cells) - 1; i >= 0 && cells[i].number >= number; i-- {
		if cells[i].number == number {
			cells[i].status, cells[i].rtt = r.Status, r.RTT
		}
	}
}

func (h *mtrHistory) clear() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.hops)
}

// latest copies the last n cells of a hop.
func (h *mtrHistory) latest(ttl, n int) []mtrCell {
	h.mu.Lock()
	defer h.mu.Unlock()
	cells := h.hops[ttl]
	return append([]mtrCell(nil), cells[max(0, len(cells)-n):]...)
}
